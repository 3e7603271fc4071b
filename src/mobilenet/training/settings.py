"""What a user may ask of a training: one table of settings, each with its type, its check and its line of help.

Standard library only: the command line makes its options from this table.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, get_type_hints

from .. import arch
from ..common.checks import choice, fields, integer, number
from ..errors import UsageError

Augment = Literal["none", "light", "standard"]
Precision = Literal["f32", "bf16", "int8"]
Resolution = int | tuple[int, int]


class _Option(NamedTuple):
    """Describes a field: how text becomes its value, the check that names it in errors, and its line of help."""

    kind: Callable[[str], Any]
    check: Callable[[str, Any], None]
    help: str
    metavar: str


def _whole(low: int, high: int, text: str) -> _Option:
    return _Option(int, lambda name, value: integer(name, value, low, high), text, "N")


def _real(low: float, high: float, text: str, *, open_low: bool = False, open_high: bool = False) -> _Option:
    def check(name: str, value: Any) -> None:
        number(name, value, low, high, open_low=open_low, open_high=open_high)

    return _Option(float, check, text, "X")


def _one_of(allowed: tuple[Any, ...], text: str, metavar: str = "") -> _Option:
    shown = metavar or "{" + ",".join(str(value) for value in allowed) + "}"
    return _Option(type(allowed[0]), lambda name, value: choice(name, value, allowed), text, shown)


def sides(text: str) -> Resolution:
    """Returns the resolution that a text such as "160" or "97x64" (height x width) means, for argparse."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"got {text!r}, needed N or HxW in pixels")
    return int(parts[0]) if len(parts) == 1 else (int(parts[0]), int(parts[1]))


def _check_sides(name: str, value: Any) -> None:
    for side in value if isinstance(value, tuple) and len(value) == 2 else (value,):
        integer(name, side, arch.MIN_RESOLUTION, arch.MAX_RESOLUTION)


def _switch(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise UsageError(f"{name}: got {value!r}, needed true or false")


_SOURCES = tuple(dict.fromkeys((*arch.sources("v1"), *arch.sources("v2"))))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Holds what a user asks for. None leaves the choice to `recipe.decide`, or on resume to how it was begun.

    The fields after `seed` are about the machine and not the result: they may change on resume.

    Raises:
        UsageError: names the field, its value and the rule.
    """

    family: Annotated[arch.Family | None, _one_of(("v1", "v2"), "which MobileNet (default v2)")] = None
    alpha: Annotated[float | None, _real(0, 10, "width multiplier (default 0.5)", open_low=True)] = None
    resolution: Annotated[
        Resolution | None,
        _Option(sides, _check_sides, "input size (default 32, 64 or 160, by the photos' sizes)", "N|HxW"),
    ] = None
    downsampling: Annotated[
        int | None,
        _one_of((32, 16, 8, 4, 2, 1), "input side over last feature map's side (default 8, 16 or 32, by the input)"),
    ] = None
    source: Annotated[str | None, _one_of(_SOURCES, "whose conventions (default paper)", "NAME")] = None
    epochs: Annotated[int | None, _whole(1, 100_000, "passes over the photos (default by their number)")] = None
    minutes: Annotated[
        float | None, _real(0, 1e6, "time budget that sets the epochs, by a measurement at the start", open_low=True)
    ] = None
    batch: Annotated[int | None, _whole(2, 65_536, "photos a step (default 128, fewer of few photos)")] = None
    micro_batches: Annotated[
        int | None, _whole(1, 4096, "parts of a batch, done in turn or by as many processes (default one a process)")
    ] = None
    learning_rate: Annotated[float | None, _real(0, 100, "at its peak (default by the batch)", open_low=True)] = None
    weight_decay: Annotated[float | None, _real(0, 1, "of weights that are not depthwise (default 0.0001)")] = None
    label_smoothing: Annotated[
        float | None, _real(0, 1, "share of the target spread over all classes (default 0.1)", open_high=True)
    ] = None
    average: Annotated[
        float | None,
        _real(0, 1, "decay of the moving average of the weights; 0 for none (default 0.999)", open_high=True),
    ] = None
    clip: Annotated[float | None, _real(0, 1e6, "largest norm of the gradient; 0 for any (default 0)")] = None
    augment: Annotated[
        Augment | None,
        _one_of(("none", "light", "standard"), "how photos are varied; light does not mirror (default standard)"),
    ] = None
    precision: Annotated[
        Precision | None,
        _one_of(
            ("f32", "bf16", "int8"),
            "of the arithmetic (default the faster one on this machine); int8 makes an int8 model of --from's",
        ),
    ] = None
    patience: Annotated[
        int | None, _whole(0, 100_000, "epochs without a better validation until it stops; 0: never (default a third)")
    ] = None
    validation: Annotated[
        float | None,
        _real(0, 1, "share of the photos to validate on where there is no val folder (default 0.15)", open_high=True),
    ] = None
    seed: Annotated[int | None, _whole(0, 2**63 - 1, "of every random choice (default 0)")] = None
    threads: Annotated[int | None, _whole(1, 1024, "of each process (default torch's choice)")] = None
    checkpoint_seconds: Annotated[float | None, _real(0, 1e6, "between checkpoints within an epoch (default 60)")] = (
        None
    )
    max_bad: Annotated[float | None, _real(0, 1, "share of unreadable photos above which it fails (default 0.1)")] = (
        None
    )
    tensorboard: Annotated[bool | None, _Option(bool, _switch, "write TensorBoard's files too", "")] = None

    def __post_init__(self) -> None:
        for name, value in self.given().items():
            _OPTIONS[name].check(name, value)
        if self.epochs is not None and self.minutes is not None:
            raise UsageError("epochs, minutes: both were given; a time budget sets the epochs, leave one of them out")

    def given(self) -> dict[str, Any]:
        """Returns the fields that are not left open."""
        return {name: value for name in fields(Settings) if (value := getattr(self, name)) is not None}


_OPTIONS: dict[str, _Option] = {
    name: hint.__metadata__[0] for name, hint in get_type_hints(Settings, include_extras=True).items()
}

OPERATION = ("threads", "checkpoint_seconds", "max_bad", "tensorboard")
"""The settings that may change on resume."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds an option for each field of `Settings`: `--learning-rate` for `learning_rate`."""
    for name, option in _OPTIONS.items():
        flag = f"--{name.replace('_', '-')}"
        if option.kind is bool:
            parser.add_argument(flag, action="store_true", default=None, help=option.help)
        else:
            parser.add_argument(flag, type=option.kind, metavar=option.metavar, help=option.help)


def settings_from(args: argparse.Namespace) -> Settings:
    """Returns the settings that the options of `add_arguments` ask for."""
    return Settings(**{name: getattr(args, name) for name in fields(Settings)})
