"""Files of weights alone: the library is told by the names, the member of the family by the shapes."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ..arch import Conventions, Network
from ..common.checks import short
from ..errors import ModelError
from ..storage import fitting
from ..storage.tensors_file import Shapes, Tensors
from .names import Source, candidates, keys, our_shape, ours

_Base = tuple[Source, Network, dict[str, str]]  # a library, its network at alpha 1, their key -> our tensor


class Fit(NamedTuple):
    """Is what a file's names and shapes say.

    Attributes:
        source: the library.
        network: the member, at 224x224.
        keys: our tensor -> the file's key.
    """

    source: Source
    network: Network
    keys: dict[str, str]

    def tensors(self, arrays: Tensors) -> Tensors:
        """Returns the file's arrays as our tensors."""
        found: Tensors = {}
        for layer in self.network.layers:
            for tensor in layer.tensors:
                array = arrays[self.keys[tensor]]
                found[tensor] = ours(self.source, layer, array) if tensor.endswith(".weight") else array
        return found


def fit(sources: Iterable[Source], shapes: Shapes, conventions: Conventions | None = None) -> Fit:
    """Finds the library and the member that a file's keys and shapes belong to.

    Args:
        sources: the libraries that may have written it.
        shapes: key -> shape, of weights only.
        conventions: instead of those of the source's preset, where a config says them.

    Raises:
        ModelError: names the key that does not belong or is missing, or the one whose shape does not fit with both
            shapes, and the likely cause.
    """
    found: list[tuple[int, _Base]] = []
    for source in sources:
        for base in candidates(source) if conventions is None else [source.network(conventions=conventions)]:
            mine = {key: tensor for tensor, key in _keys(source, base, shapes).items()}
            wrong = len(set(shapes) ^ set(mine))
            found.append((wrong, (source, base, mine)))
    least = min(wrong for wrong, _ in found)
    nearest = [base for wrong, base in found if wrong == least]
    for source, base, mine in nearest:
        translated = _translate(source, base, mine, shapes)
        network = translated and fitting.find(base, translated)
        if network:
            return Fit(source, network, _keys(source, network, shapes))
    raise ModelError(_explain(*nearest[0], shapes))


def _keys(source: Source, network: Network, shapes: Shapes) -> dict[str, str]:
    found = keys(source, network)
    if not source.older or any(key in shapes for key in found.values() if key.startswith(source.classifier)):
        return found
    return {tensor: key.replace(source.classifier, source.older) for tensor, key in found.items()}


def _translate(source: Source, base: Network, mine: Mapping[str, str], shapes: Shapes) -> Shapes | None:
    """Returns the shapes by our names, in our layouts; None if a key is not the source's."""
    found: Shapes = {}
    for key, shape in shapes.items():
        if key not in mine:
            return None
        found[mine[key]] = _our_shape(source, base, mine[key], shape)
    return found


def _our_shape(source: Source, base: Network, tensor: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    layer, _, part = tensor.rpartition(".")
    return our_shape(source, base.by_name[layer], shape) if part == "weight" else shape


def _explain(source: Source, base: Network, mine: Mapping[str, str], shapes: Shapes) -> str:
    """Returns what is wrong with a file that fits no member of the nearest library."""
    shared = [key for key in shapes if key in mine]
    top = {key for key, tensor in mine.items() if tensor.startswith(f"{base.layers[-1].name}.")}
    if set(shared) <= top:
        some = ", ".join(map(short, list(shapes)[:3])) or "none"
        return f"not a MobileNet: its tensors are {some}, …; no known library's MobileNet V1 or V2 has such names"
    for key in shapes:
        if key not in mine:
            hint = next((text for begin, text in source.unsupported.items() if key.startswith(begin)), "")
            return f"tensor {short(key)} has no place in {source.title}" + (f": this is {hint}" if hint else "")
    for key in mine:
        if key not in shapes and key not in top:
            return f"tensor {short(key)} is missing for {source.title}"
    translated = {mine[key]: _our_shape(source, base, mine[key], shapes[key]) for key in shared}
    network = fitting.nearest(base, translated)
    for key in shared:
        needed = network.tensors.get(mine[key])
        if translated[mine[key]] != needed:
            return (
                f"tensor {short(key)} has shape {shapes[key]}, in our order {translated[mine[key]]}; needed is "
                f"{needed} for the nearest member, {network} of {source.title}; was it made with another rule "
                "for widths, or pruned?"
            )
    return f"tensors are missing for {network} of {source.title}"


def common_prefix(names: Iterable[str], *removable: str) -> str:
    """Returns which of the prefixes all names begin with, "" if none."""
    found = list(names)
    return next((each for each in removable if found and all(name.startswith(each) for name in found)), "")
