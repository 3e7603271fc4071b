"""What quantisation cost: the answers of the float32 and the int8 model on the same photos, layers, size and speed."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..common.progress import Progress
from ..common.text import bytes_text, table_text
from ..errors import DataError, PhotoError
from ..evaluation.predict import answers, photo_paths
from ..model import Model
from ..runner import runner
from .quantize import Quantized, evenly, labelled

COMPARED = 1000  # photos, evenly taken
_SHOWN_LAYERS = 5
_TIMED = 20


@dataclass(frozen=True)
class Comparison:
    """Holds what int8 costs and gives, over `photos` photos that nothing was measured on, where there are any.

    Attributes:
        agreement: share of the photos that both models give the same label.
        top1: shares of right labels, float32 and int8; None where there are no labels.
        ratios: by layer the signal over the error of int8, in dB.
        sizes: bytes of weights.
        seconds: per photo, one photo at a time on one thread, medians.
    """

    photos: int
    agreement: float
    top1: tuple[float, float] | None
    ratios: dict[str, float]
    sizes: tuple[int, int]
    seconds: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        """Returns the figures as plain data."""
        pairs = {"bytes": self.sizes, "seconds": self.seconds} | ({"top1": self.top1} if self.top1 else {})
        named = {name: {"f32": before, "int8": after} for name, (before, after) in pairs.items()}
        return {"photos": self.photos, "agreement": self.agreement, **named, "signal_to_noise_db": self.ratios}

    def __str__(self) -> str:
        top1 = [["top-1", *(f"{share:.2%}" for share in self.top1)]] if self.top1 else []
        size = ["size of the weights", *map(bytes_text, self.sizes)]
        speed = ["time a photo, one thread", *(f"{1e3 * seconds:.2f} ms" for seconds in self.seconds)]
        worst = sorted(self.ratios.items(), key=lambda item: item[1])[:_SHOWN_LAYERS]
        return "\n".join(
            [
                table_text(["<", "float32", "int8"], [*top1, size, speed]),
                f"the same label for {self.agreement:.2%} of {self.photos} photos",
                "layers that lose most, signal over noise: " + ", ".join(f"{name} {db:.1f} dB" for name, db in worst),
            ]
        )


def compare(
    model: Model, quantized: Quantized, photos: Path | str, *, count: int = COMPARED, progress: Progress | None = None
) -> Comparison:
    """Runs both models over photos of a folder, as far as possible others than those that ranges were measured on.

    The folder's labels are used where they are the model's: a folder a class, as in training.

    Raises:
        DataError: no photo can be read.
    """
    taken = _others(list(_listed(model, photos)), quantized.paths, count)
    engines = runner(model), runner(quantized.model)
    found: list[tuple[int, int, int | None]] = []
    paths = (path for path, _ in taken)
    for (_, label), answer in zip(taken, answers(paths, model.preprocessing, *engines), strict=True):
        if not isinstance(answer, PhotoError):
            before, after = (int(logits.argmax()) for logits in answer)
            found.append((before, after, label))
        if progress:
            progress(len(found), len(taken))
    if not found:
        raise DataError(f"{photos}: no photo can be read")
    truth = [label for _, _, label in found]
    top1 = None
    if None not in truth:
        right = [(before == label, after == label) for before, after, label in found]
        top1 = float(np.mean([before for before, _ in right])), float(np.mean([after for _, after in right]))
    return Comparison(
        len(found),
        float(np.mean([before == after for before, after, _ in found])),
        top1,
        quantized.ratios,
        (_bytes(model), _bytes(quantized.model)),
        (_seconds(model), _seconds(quantized.model)),
    )


def _listed(model: Model, photos: Path | str) -> Iterable[tuple[Path, int | None]]:
    """Returns the photos with the number of their class, or None for all where there are no labels of the model."""
    data = labelled(model, photos)
    if data is None:
        return ((path, None) for path in photo_paths([photos]))
    chosen = data.of("test") or data.of("val") or data.photos
    return ((data.path(photo), photo.label) for photo in chosen)


def _others(
    photos: Sequence[tuple[Path, int | None]], seen: Sequence[Path], count: int
) -> list[tuple[Path, int | None]]:
    """Returns at most `count` photos, without those that were seen if that leaves as many as were."""
    known = {path.resolve() for path in seen}
    others = [item for item in photos if item[0].resolve() not in known]
    return list(evenly(others if len(others) >= len(seen) else list(photos), count))


def _bytes(model: Model) -> int:
    return sum(tensor.nbytes for tensor in model.tensors.values())


def _seconds(model: Model) -> float:
    engine, times = runner(model, 1), []
    image = np.zeros(model.network.input, np.uint8)  # of whatever pixels, it takes as long
    for _ in range(_TIMED + 1):  # the first one prepares
        began = time.perf_counter()
        engine.one(image)
        times.append(time.perf_counter() - began)
    return float(np.median(times[1:]))
