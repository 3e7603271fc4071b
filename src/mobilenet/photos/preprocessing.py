"""How a photo becomes a network's input, as data that travels with the model. Standard library only."""

import dataclasses
from typing import Any

from ..common.checks import choice, exact_fields, integer, number, short
from ..common.frozen import frozen
from ..errors import ModelError, UsageError

MAX_SIDE = 4096
"""The largest input height and width, in pixels: keeps the memory for one photo below 512 MiB."""

RESIZES = ("crop", "squash")
INTERPOLATIONS = ("bilinear", "bicubic")
_RANGES = {"mean": (-1e6, 1e6), "std": (1e-6, 1e6)}


@frozen
class Preprocessing:
    """Describes the way from a photo to pixels: which part of it, resized to what, and how the engine scales values.

    Raises `UsageError` that names the field, its value and the rule.
    """

    height: int
    """Rows of the network's input, in pixels."""
    width: int
    """Columns of the network's input, in pixels."""
    channels: int = 3
    """3 for RGB, 1 for grey (ITU-R 601 luma). A network may have others; photos can't be made into its input."""
    crop: float = 0.875
    """The part of each side of the fitting area that the central crop keeps; 1.0 keeps all."""
    resize: str = "crop"
    """`crop`: the fitting area is the largest central one with the input's aspect. `squash`: it is the whole photo."""
    interpolation: str = "bilinear"
    """`bilinear` or `bicubic`, both with antialiasing: the filter is widened by the reduction."""
    mean: tuple[float, ...] = (127.5,)
    """Subtracted from the values 0..255, by the engine; one for all channels or one each."""
    std: tuple[float, ...] = (127.5,)
    """Divides the values after the mean is subtracted, by the engine; one for all channels or one each."""

    def __post_init__(self) -> None:
        for name in ("height", "width", "channels"):
            integer(f"preprocessing.{name}", getattr(self, name), 1, MAX_SIDE)
        number("preprocessing.crop", self.crop, 0, 1, open_low=True)
        choice("preprocessing.resize", self.resize, RESIZES)
        choice("preprocessing.interpolation", self.interpolation, INTERPOLATIONS)
        for name in ("mean", "std"):
            values = getattr(self, name)
            if not isinstance(values, tuple) or len(values) not in (1, self.channels):
                raise UsageError(f"preprocessing.{name}: got {short(values)}, needed 1 or {self.channels} numbers")
            for value in values:
                number(f"preprocessing.{name}", value, *_RANGES[name])

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON knows them: numbers, text and lists."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, given: object) -> "Preprocessing":
        """Builds the object from what `to_dict` gave: all fields and no others.

        Raises `ModelError` that names the field that is unknown (with the nearest known), missing, or outside its rule.
        """
        try:
            known: dict[str, Any] = exact_fields("preprocessing", given, cls)
            known |= {name: tuple(value) for name, value in known.items() if isinstance(value, list)}
            return cls(**known)
        except UsageError as error:
            raise ModelError(str(error)) from None
