"""What every reader of a foreign file gets and gives: the user's options, and the parts of a model."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..arch import SCALINGS, Network
from ..common.checks import choice
from ..common.files import read_regular, shown
from ..errors import ModelError
from ..model import usual_preprocessing
from ..quantized import Rescale
from ..storage.folder import Stored
from ..storage.tensors_file import Tensors
from ..weights import check_values

RESCALES: tuple[Rescale, ...] = ("fixed", "full")
_MAX_LABELS = 16 << 20  # bytes of a file of labels


@dataclass(frozen=True)
class Options:
    """Is what a user may say about a file that does not say it itself.

    Attributes:
        resolution: one side or (height, width); None for the file's own, or 224 where it holds weights alone.
        labels: one a class, or a text file with one a line; None for the source's own, or numbers.
        scaling: of the pixels, a key of `SCALINGS`; None for the source's own, or its library's.
        include_top: False leaves the classifier out.
        unpickle: reads pickles (.pth), in a process of its own.
        allow_nonfinite: takes NaN, infinities and negative variances.
        rescale: of an integer TFLite file, "fixed" or "full".
    """

    resolution: int | tuple[int, int] | None = None
    labels: Sequence[str] | Path | None = None
    scaling: str | None = None
    include_top: bool = True
    unpickle: bool = False
    allow_nonfinite: bool = False
    rescale: Rescale = "fixed"

    def __post_init__(self) -> None:
        choice("scaling", self.scaling, (None, *SCALINGS))
        choice("rescale", self.rescale, RESCALES)

    def sides(self, default: int | tuple[int, int] = 224) -> tuple[int, int]:
        """Returns (height, width)."""
        sides = default if self.resolution is None else self.resolution
        return (sides, sides) if isinstance(sides, int) else sides


def finish(
    path: Path,
    title: str,
    network: Network,
    tensors: Tensors,
    options: Options,
    *,
    labels: Sequence[str] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    notes: Mapping[str, Any] | None = None,
) -> Stored:
    """Returns the model, with the user's options in the place of what the source says.

    Args:
        path: of the source; its name goes into the model card.
        title: what the source is called.
        network, tensors: as the source has them.
        options: the user's.
        labels, preprocessing: the source's own; of the preprocessing the fields that differ from the usual.
        notes: facts that are worth keeping.

    Raises:
        ModelError: names the tensor with NaN, or the labels that do not fit.
    """
    if not options.allow_nonfinite:
        try:
            check_values(tensors)
        except ModelError as error:
            raise ModelError(f"{shown(path)}: {error}") from error
    if options.resolution is not None:
        height, width = options.sides()
        network = network.replace(height=height, width=width)
    changes = {name: value for name, value in (preprocessing or {}).items() if name not in ("height", "width")}
    mean, std = changes.get("mean"), changes.get("std")
    known = [name for name, scaling in SCALINGS.items() if scaling == (mean, std)]
    scaling = options.scaling or (known[0] if known else None)
    if scaling:
        network = network.replace(conventions=dataclasses.replace(network.conventions, scaling=scaling))
        changes |= zip(("mean", "std"), SCALINGS[scaling], strict=True)
    if not options.include_top:
        network = network.replace(include_top=False)
        tensors = {name: tensors[name] for name in network.tensors}
        labels = None
    given = _labels(options.labels, network) if options.labels is not None else labels
    facts = {"from": title, "file": shown(path.name), **(notes or {})}
    usual = usual_preprocessing(network)
    return Stored(
        network,
        tensors,
        None if given is None else tuple(given),
        dataclasses.replace(usual, **changes),
        {"imported": facts},
    )


def _labels(given: Sequence[str] | Path, network: Network) -> list[str]:
    """Returns the labels; where class 0 is the background it need not be among them."""
    if isinstance(given, Path):
        try:
            found = read_regular(given, _MAX_LABELS).decode().splitlines()
        except UnicodeDecodeError:
            raise ModelError(f"{shown(given)}: is not UTF-8; needed is a text file with a label a line") from None
    else:
        found = list(given)
    background = network.conventions.background and network.classes == len(found) + 1
    return ["background", *found] if background else found
