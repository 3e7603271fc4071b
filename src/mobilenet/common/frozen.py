"""Frozen dataclasses that take little time to define.

`dataclasses` writes six methods for each class and compiles them: 1 ms a class, of which labelling a photo needs two
dozen. Here all classes share the same six.
"""

from dataclasses import MISSING, FrozenInstanceError, dataclass, fields
from typing import Any, TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def frozen(kind: type[T]) -> type[T]:
    """Makes a class what `dataclass(frozen=True)` does, but for fields with a `default_factory`."""
    made: Any = dataclass(init=False, repr=False, eq=False)(kind)
    made._defaults = {field.name: field.default for field in fields(made) if field.default is not MISSING}
    made.__init__, made.__repr__, made.__eq__, made.__hash__ = _init, _repr, _eq, _hash
    made.__setattr__ = made.__delattr__ = _refuse
    return kind


def _init(self: Any, *values: Any, **named: Any) -> None:
    names = self.__match_args__
    given = {**dict(zip(names, values, strict=False)), **named}
    found = {**self._defaults, **given}
    if len(given) != len(values) + len(named) or found.keys() != set(names):
        raise TypeError(f"{type(self).__name__}: got {len(values)} values, then {list(named)}; needed are {names}")
    self.__dict__.update(found)
    if hasattr(self, "__post_init__"):
        self.__post_init__()


def _facts(self: Any) -> tuple[Any, ...]:
    return tuple([getattr(self, name) for name in self.__match_args__])


def _repr(self: Any) -> str:
    facts = zip(self.__match_args__, _facts(self), strict=True)
    return f"{type(self).__qualname__}({', '.join(f'{name}={value!r}' for name, value in facts)})"


def _eq(self: Any, other: object) -> Any:
    return _facts(self) == _facts(other) if type(other) is type(self) else NotImplemented


def _hash(self: Any) -> int:
    return hash(_facts(self))


def _refuse(self: Any, name: str, *_: object) -> None:
    raise FrozenInstanceError(f"{type(self).__name__}.{name}: a frozen object can't be changed")
