"""What runs a model: the call that all engines share, and the choice between them."""

import os
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .arch import Network
from .common.checks import integer
from .common.parallel import processors
from .errors import UsageError

if TYPE_CHECKING:
    from .compiler.resample import Resampler
    from .model import Model

Floats = NDArray[np.float32]
_PIXELS = (np.dtype(np.uint8), np.dtype(np.float32))


class Runner(ABC):
    """Computes logits from pixels; may be called from several threads at once.

    An image's logits do not depend on the batch it comes in, nor on `threads`, bit by bit.

    Attributes:
        network: what is run.
        threads: over which the work is split.
        resampler: resizes photos to its input, where that is compiled.
    """

    resampler: "Resampler | None" = None

    def __init__(self, network: Network, threads: int | None) -> None:
        """Checks `threads`, from 1 to 1024; None for one a processor."""
        if threads is None:
            threads = processors()
        integer("threads", threads, 1, 1024)
        self.network = network
        self.threads = threads
        self._input = tuple(network.input)
        last = network.layers[-1]
        flat = last.kind in ("dense", "average_pool", "max_pool")
        self._shape = last.output[2:] if flat else tuple(last.output)

    def __call__(self, pixels: NDArray[np.uint8] | Floats) -> Floats:
        """Returns the logits of a batch, float32 [N, classes]; without the top [N, height, width, channels] or, pooled,
        [N, channels].

        Args:
            pixels: uint8 or float32 [N, height, width, channels], values 0..255; N may be 0.

        Raises:
            UsageError: says which type and shape was given and which is needed.
        """  # fmt: skip
        self._check(pixels)
        logits = np.empty((len(pixels), *self._shape), np.float32)
        self._run(pixels, logits)
        return logits

    def one(self, image: NDArray[np.uint8] | Floats) -> Floats:
        """Returns the logits of one image [height, width, channels], computed by the calling thread alone.

        Threads that each run images of their own take less time for all of them than threads that share each image.

        Raises:
            UsageError: says which type and shape was given and which is needed.
        """
        self._check(image[None])
        logits = np.empty(self._shape, np.float32)
        self._one(image, logits)
        return logits

    @abstractmethod
    def _one(self, image: NDArray[Any], logits: Floats) -> None:
        """Computes the logits of an image that has been checked."""

    @abstractmethod
    def _run(self, images: NDArray[Any], logits: Floats) -> None:
        """Computes the logits of images that have been checked."""

    def _check(self, pixels: object) -> None:
        right = isinstance(pixels, np.ndarray) and pixels.dtype in _PIXELS
        if right and pixels.shape[1:] == self._input:  # type: ignore[attr-defined]
            return
        needed = f"needed uint8 or float32 [N, {', '.join(map(str, self._input))}], values 0..255"
        if not isinstance(pixels, np.ndarray):
            raise UsageError(f"pixels: got {type(pixels).__name__}, {needed}")
        one = "; one image alone is pixels[None]" if pixels.shape == self._input else ""
        raise UsageError(f"pixels: got {pixels.dtype} {list(pixels.shape)}, {needed}{one}")


def runner(model: "Model", threads: int | None = None) -> Runner:
    """Returns a model's compiled engine; the numpy one where the environment variable `MOBILENET_TARGET` is "numpy", or
    where nothing is compiled for this machine and the variable asks for nothing.

    Raises:
        UsageError: names `threads` or `MOBILENET_TARGET`, its value and the rule.
        MobileNetError: compiling the network for the first time needs llvmlite, and it is not installed.
    """  # fmt: skip
    from .compiler import targets

    asked = os.environ.get(targets.ENVIRONMENT)
    if asked == "numpy" or not (asked or targets.runnable()):
        from .engine import Engine

        return Engine(model, threads)
    return model.compile(threads=threads)
