"""A model: a network with its weights, labels and preprocessing. Make one, load it, save it, ask it."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, overload

import numpy as np
from numpy.typing import NDArray

from . import photos
from .arch import SCALINGS, Network, need_network, v1, v2
from .common.checks import choice, integer, short
from .errors import UsageError
from .photos.preprocessing import Preprocessing
from .quantized import Rescale
from .runner import Floats, Runner, runner
from .storage import folder
from .storage.folder import Precision, Stored
from .weights import initial

if TYPE_CHECKING:
    from PIL.Image import Image

    from .compiler.native import NativeEngine
    from .storage.transfer import Transfer

PUBLISHED = "imagenet/"  # what names of published weights begin with
_BATCH = 32  # photos whose pixels are in memory at a time


@dataclass(frozen=True, eq=False)
class Prediction:
    """Is what a model says about one photo.

    Attributes:
        scores: probability of each class, float32 [classes].
        labels: of the classes.
    """

    scores: Floats
    labels: tuple[str, ...]

    @property
    def label(self) -> str:
        """The label of the likeliest class."""
        return self.labels[int(self.scores.argmax())]

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """Returns the `k` likeliest labels with their probabilities, best first, of equal ones the first class."""
        integer("k", k, 1, 2**31)
        best = np.argsort(-self.scores, kind="stable")[:k]
        return [(self.labels[index], float(self.scores[index])) for index in best]

    def __str__(self) -> str:
        return ", ".join(f"{label} {score:.1%}" for label, score in self.top())


class Model:
    """Is a network with everything that is needed to use it.

    Attributes:
        network: the architecture.
        tensors: by name as `network.tensors` lists them, float32; batch norm is not folded in. Of an int8 model
            those of `quantized.specs`.
        labels: one for each class, "0", "1", … if none were given; none without the top.
        preprocessing: how a photo becomes the network's input.
        notes: facts of the run that made the model: section -> fact -> value, plain data.
        precision: "f32" or "int8".
        rescale: of an int8 model, how its sums become bytes: "float", "full" or "fixed"; see `integer`.
    """

    def __init__(
        self,
        network: Network,
        tensors: Mapping[str, NDArray[Any]],
        labels: Iterable[str] | None = None,
        preprocessing: Preprocessing | None = None,
        notes: Mapping[str, Any] | None = None,
        precision: Precision = "f32",
        rescale: Rescale = "float",
    ) -> None:
        """Checks that the parts fit each other.

        Args:
            network: the architecture.
            tensors: exactly those of `network.tensors`, or of `quantized.specs` for int8.
            labels: one for each class; None for numbers.
            preprocessing: None for the network's usual one, `usual_preprocessing`.
            notes: facts of the run, for the model card.
            precision: "f32" or "int8".
            rescale: "float", or of an int8 model also "full" or "fixed".

        Raises:
            UsageError: another precision or rescale; labels that are no list.
            ModelError: names the tensor, label or size that does not fit, what it is and what is needed.
        """
        choice("precision", precision, get_args(Precision))
        choice("rescale", rescale, get_args(Rescale) if precision == "int8" else ("float",))
        folder.check_tensors(network, tensors, precision, rescale, allow_nonfinite=True)
        labels = None if labels is None else _texts(labels)
        folder.check_labels(network, labels)
        preprocessing = preprocessing or usual_preprocessing(network)
        folder.check_preprocessing(network, preprocessing)
        self.network = network
        self.tensors = dict(tensors)
        self.preprocessing = preprocessing
        self.notes = dict(notes or {})
        self.precision = precision
        self.rescale = rescale
        self._labels = labels

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """One for each class."""
        if self._labels is not None:
            return self._labels
        return tuple(map(str, range(self.network.classes))) if self.network.include_top else ()

    def __repr__(self) -> str:
        int8 = " int8" if self.precision == "int8" else ""
        return f"<{type(self).__name__} {self.network}{int8}>"

    def save(self, path: str | os.PathLike[str], *, allow_nonfinite: bool = False) -> None:
        """Writes the model folder `path`, whole or not at all; see docs/model-folder.md.

        Raises:
            ModelError: names the tensor with NaN, infinity or a negative variance (`allow_nonfinite` lets it pass), or
                the folder that holds files of something else.
            MobileNetError: names the file that could not be written, and why.
        """
        stored = Stored(
            self.network, self.tensors, self._labels, self.preprocessing, self.notes, self.precision, self.rescale
        )
        folder.save(path, stored, allow_nonfinite=allow_nonfinite)

    def compile(
        self, precision: str | None = None, threads: int | None = None, target: str | None = None
    ) -> "NativeEngine":
        """Returns this model as machine code; compiled at first, then taken from the cache on disk.

        Args:
            precision: "f32", "bf16", or "int8" of a quantised model; None for what the weights are.
            threads: over which a batch's images, or one image's rows and channels, are split, from 1 to 1024; None for
                one a processor.
            target: the instruction set, a name of `compiler.targets.TARGETS`; None for `MOBILENET_TARGET` or the best
                that runs here.

        Raises:
            UsageError: names the argument, its value and the rule.
            MobileNetError: compiling for the first time needs llvmlite, and it is not installed.
        """
        from .compiler.native import NativeEngine

        return NativeEngine(self, threads, precision=precision, target=target)

    def summary(self) -> str:
        """Returns the layers as the source notes' Keras listing names them, with parameters and multiply-adds."""
        from . import notes

        return notes.text(self.network)

    @overload
    def predict(self, source: "Path | str | bytes | Image") -> Prediction: ...
    @overload
    def predict(self, source: list[Any] | tuple[Any, ...]) -> list[Prediction]: ...
    @overload
    def predict(self, source: NDArray[Any]) -> Any: ...
    def predict(self, source: Any) -> Prediction | list[Prediction]:
        """Labels a photo, or several.

        Args:
            source: a path, a file's bytes, a PIL image, or an array; or a list or tuple of these. An array of the
                network's own size, uint8 or float32 [height, width, channels] with values 0..255, is run as it is; of
                another size it is a photo, uint8 [H, W, 3] or [H, W]. [N, height, width, channels] is a batch.

        Returns:
            A `Prediction`; a list of them for a list, tuple or batch.

        Raises:
            PhotoError: names the photo that can't be read, and why.
            UsageError: the model ends before its classifier, or the array's shape is none of these.
        """
        if not self.network.include_top:
            raise UsageError(f"predict: {self.network} has no classifier; needed is one with include_top=True")
        several = isinstance(source, list | tuple) or (isinstance(source, np.ndarray) and source.ndim == 4)
        sources: Sequence[Any] = source if several else [source]
        found: list[Prediction] = []
        for begin in range(0, len(sources), _BATCH):
            pixels = [self._pixels(item) for item in sources[begin : begin + _BATCH]]
            # A float image in the batch makes all of it float; the values are the same.
            found += [Prediction(softmax(row), self.labels) for row in self.engine(np.stack(pixels))]
        return found if several else found[0]

    def load_weights(self, path: str | os.PathLike[str], by_name: bool = True) -> "Transfer":
        """Takes over weights from a model folder, a .safetensors file, or a Keras .h5 file of the notes' listing.

        Args:
            path: of the folder or file. An .h5 file needs the package h5py.
            by_name: as in Keras, layers whose names are in both are loaded and must have the same shapes, the others
                keep their weights; False needs exactly the layers of this network.

        Returns:
            What was loaded, what kept its own weights, and what of the file was not used.

        Raises:
            ModelError: names the file, the layer and both shapes; nothing has been loaded then.
            UsageError: this is an int8 model.
        """
        from .storage import transfer

        need_float(self, "load_weights")
        loaded, done = transfer.read(Path(path), self.network, by_name)
        self.tensors |= loaded
        self.__dict__.pop("engine", None)
        return done

    def quantize(self, images: str | Path | NDArray[np.uint8], *, rescale: Rescale = "full") -> "Model":
        """Returns the int8 model of this one: a quarter of the size, and faster where it is compiled.

        Args:
            images: a few dozen of what the model will see, labels are not needed: uint8 [N, H, W, 3], or a folder.
            rescale: "full" for a model whose ONNX and TFLite files give its very bits in their runtimes; "float" for
                one that stays here: shortcuts and logits, in float32, are a little nearer to this model's.

        Raises:
            UsageError: the images are none; this is an int8 model.
            DataError: names the folder without photos, or the photos that can't be read.
            ModelError: names the tensor with NaN or infinity, or the layer whose sums would not fit an int32.
        """
        from .quantization.quantize import quantize
        from .quantization.sweep import Choices

        return quantize(self, images, Choices(rescale=rescale)).model

    def without_top(self) -> "Model":
        """Returns the model that ends with the last feature map; it shares this one's arrays."""
        network = self.network.replace(include_top=False)
        from . import quantized

        names = quantized.specs(network, self.rescale) if self.precision == "int8" else network.tensors
        tensors = {name: self.tensors[name] for name in names}
        return Model(network, tensors, None, self.preprocessing, self.notes, self.precision, self.rescale)

    @cached_property
    def engine(self) -> Runner:
        """What `predict` runs, made when it is first needed."""
        return runner(self)

    def _pixels(self, source: Any) -> NDArray[Any]:
        if isinstance(source, np.ndarray) and source.shape == self.network.input:
            return source
        if isinstance(source, np.ndarray) and source.dtype != np.uint8:
            raise UsageError(
                f"predict: got an array {source.dtype} {list(source.shape)}; needed uint8 or float32 "
                f"{list(self.network.input)}, or a photo, uint8 [H, W, 3]"
            )
        return photos.pixels(source, self.preprocessing)


def need_float(model: Model, what: str) -> None:
    """Raises a `UsageError` that begins with `what` unless the model's weights are float32."""
    if model.precision != "f32":
        raise UsageError(f"{what}: {model!r} is quantised; needed is the float32 model that it was made from")


def softmax(logits: Floats) -> Floats:
    """Returns the probabilities of one image's logits, computed in float64."""
    powers = np.exp(logits.astype(np.float64) - logits.max())
    return np.asarray(powers / powers.sum(), np.float32)


def usual_preprocessing(network: Network) -> Preprocessing:
    """Returns the preprocessing of a network that comes without one: a central crop, its conventions' pixel scaling.

    Raises:
        UsageError: the scaling has a value for each of three channels, and the network has another number of them.
    """
    mean, std = SCALINGS[network.conventions.scaling]
    if len(mean) not in (1, network.channels):
        raise UsageError(
            f"scaling: {network.conventions.scaling!r} has values for {len(mean)} channels, the network has "
            f"{network.channels}; give a preprocessing, or conventions with another scaling"
        )
    return Preprocessing(network.height, network.width, network.channels, mean=mean, std=std)


def _texts(labels: Iterable[str]) -> tuple[str, ...]:
    wanted = UsageError(f"labels: got {short(labels)}, needed a list with a text for each class")
    if isinstance(labels, str | bytes | set | frozenset):  # a set has no order
        raise wanted
    try:
        each = iter(labels)
    except TypeError:  # a number, or an array without axes
        raise wanted from None
    return tuple(each)


def create(
    network: Network,
    seed: int = 0,
    labels: Iterable[str] | None = None,
    preprocessing: Preprocessing | None = None,
) -> Model:
    """Returns an untrained model of a network, the same weights for the same seed on every machine.

    Raises:
        UsageError: `network` is none, `seed` no whole number from 0 to 2⁶⁴ - 1, or `labels` no list.
        ModelError: the labels or the preprocessing do not fit the network.
    """
    need_network(network)
    return Model(network, initial(network, seed), labels, preprocessing)


def load(path: str | os.PathLike[str], *, allow_nonfinite: bool = False) -> Model:
    """Reads a model folder, or published weights by name: "imagenet/v2-1.0-224" (see `convert.hub`).

    Raises:
        ModelError: names the file, what in it is wrong and what would be right. `allow_nonfinite` takes NaN, infinities
            and negative variances.
        MobileNetError: the published weights can't be fetched.
    """
    if str(path).startswith(PUBLISHED) and not os.path.lexists(path):
        from .convert import convert

        return convert(path)
    return Model(*folder.load(path, allow_nonfinite=allow_nonfinite))


def MobileNet(
    shape: Sequence[int],
    num_classes: int | None,
    alpha: float = 1.0,
    include_top: bool = True,
    weights: str | os.PathLike[str] | None = None,
) -> Model:
    """Returns MobileNet V1 as the project's source notes list it, with their conventions and layer names.

    Args:
        shape: (height, width, channels) of the input.
        num_classes: outputs of the classifier; None only without it.
        alpha: the width multiplier.
        include_top: with average pooling and classifier.
        weights: a file to load by name, as `Model.load_weights` does.

    Raises:
        UsageError: names the argument, its value and the rule.
        ModelError: names the layer of `weights` that does not fit.
    """
    return _from_notes("v1", shape, num_classes, alpha, include_top, weights)


def MobileNetV2(
    shape: Sequence[int],
    num_classes: int | None,
    alpha: float = 1.0,
    include_top: bool = True,
    weights: str | os.PathLike[str] | None = None,
) -> Model:
    """Returns MobileNet V2 with the conventions of the project's source notes; arguments and errors as `MobileNet`."""
    return _from_notes("v2", shape, num_classes, alpha, include_top, weights)


def _from_notes(
    family: str,
    shape: Sequence[int],
    num_classes: int | None,
    alpha: float,
    include_top: bool,
    weights: str | os.PathLike[str] | None,
) -> Model:
    if not isinstance(shape, tuple | list) or len(shape) != 3:
        raise UsageError(f"shape: got {short(shape)}, needed (height, width, channels)")
    if num_classes is None and include_top:
        raise UsageError("num_classes: got None, needed a whole number from 1, or include_top=False")
    height, width, channels = shape
    make = {"v1": v1, "v2": v2}[family]
    network = make(alpha, (height, width), num_classes, channels=channels, include_top=include_top, conventions="notes")
    model = create(network)
    if weights == "imagenet" and not os.path.lexists(weights):
        raise UsageError(
            "weights: got 'imagenet', needed a file or folder: published weights come with their own network, "
            f'mobilenet.load("imagenet/{family}-1.0-224")'
        )
    if weights is not None:
        model.load_weights(weights, by_name=True)
    return model
