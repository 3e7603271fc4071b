"""State dicts of the torch family: torchvision, timm, transformers, d-li14 and tonylins; .safetensors, and .pth.

A .pth file is a pickle, which can run code: it is read only when asked for, see `unpickle`.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..arch import Conventions, Network
from ..common.files import shown, write_atomic
from ..errors import ModelError
from ..model import Model
from ..storage import tensors_file
from ..storage.folder import Stored
from ..storage.tensors_file import Shapes, Tensors
from . import by_name
from .by_name import Fit
from .names import TORCH, Source, candidates, keys, theirs
from .source import Options, finish

_COUNTER = ".num_batches_tracked"  # of batch norm in torch: how many steps it was trained, which nothing reads
_WRAPPERS = ("module.", "model.", "_orig_mod.")  # DataParallel, Lightning, torch.compile

_TELLING = (
    *("padding", "activation", "batch_norm_epsilon", "last_stride", "conv_bias", "expand_first", "first_shortcut"),
    *("depth", "head_conv", "fixed_stem", "rounding"),
)


def read(path: Path, options: Options) -> Stored:
    """Reads a .safetensors file; the library and the member are recognised by names and shapes.

    Raises:
        ModelError: names the file, the tensor, both shapes and the likely cause.
    """
    fit, tensors = read_tensors(path)
    return stored(path, fit, tensors, options)


def read_pickle(path: Path, options: Options) -> Stored:
    """Reads a .pth file, if the options say so, as `read` does.

    Raises:
        ModelError: names the file; it holds anything but tensors, or the option is not set.
    """
    from .unpickle import unpickled

    if not options.unpickle:
        raise ModelError(
            f"{shown(path)}: is a pickle, which can run code when it is read; better ask for a .safetensors file, or "
            "read it with --unpickle (unpickle=True): tensors alone, in a process of its own without network"
        )
    with unpickled(path) as file:
        fit, tensors = read_tensors(path, file=file)
    return stored(path, fit, tensors, options)


def read_tensors(
    path: Path,
    sources: Iterable[Source] = TORCH,
    conventions: Conventions | None = None,
    file: Path | None = None,
) -> tuple[Fit, Tensors]:
    """Returns what a file of tensors is, and the tensors by our names.

    Args:
        path: for messages.
        sources: the libraries that may have written it.
        conventions: instead of those of the source's preset.
        file: where the content lies; None for `path`.
    """
    found: list[Fit] = []
    wrapper = ""

    def choose(shapes: Shapes) -> list[str]:
        nonlocal wrapper
        weights = {key: shape for key, shape in shapes.items() if not key.endswith(_COUNTER)}
        wrapper = by_name.common_prefix(weights, *_WRAPPERS)
        bare = {key.removeprefix(wrapper): shape for key, shape in weights.items()}
        found.append(by_name.fit(sources, bare, conventions))
        return list(weights)

    with _named(path, file):
        arrays = tensors_file.read(file or path, choose, follow_symlinks=True, foreign=True)
    fit = found[0]
    return fit, fit.tensors({key.removeprefix(wrapper): array for key, array in arrays.items()})


@contextlib.contextmanager
def _named(path: Path, file: Path | None) -> Iterator[None]:
    """Says the name that the user knows in place of that of a temporary file."""
    try:
        yield
    except FileNotFoundError:
        raise ModelError(f"{shown(path)}: no such file") from None
    except ModelError as error:
        text = str(error)
        raise ModelError(text if file is None else text.replace(shown(file), shown(path))) from error


def stored(path: Path, fit: Fit, tensors: Tensors, options: Options) -> Stored:
    """Returns the model of a state dict, whose resolution is the user's or 224."""
    preprocessing = {"crop": fit.source.crop, "interpolation": fit.source.interpolation}
    return finish(path, fit.source.title, fit.network, tensors, options, preprocessing=preprocessing)


def source_for(model: Model, sources: Iterable[Source], format: str, free: Mapping[str, Any] | None = None) -> Source:
    """Returns the source of that name for a model.

    Args:
        model: what is to be written.
        sources: the table to look in.
        format: the source's name.
        free: conventions that the format can express, with the values that will be written.

    Raises:
        ModelError: the library can't hold the model, or would compute something else; names the difference.
    """
    network = model.network
    named = [source for source in sources if source.name == format]
    source = next((source for source in named if source.family == network.family), None)
    if source is None:
        raise ModelError(f"format: {named[0].title} is a MobileNet {named[0].family.upper()}, the model is {network}")
    difference = _difference(source, network, free or {})
    if difference:
        raise ModelError(f"format: {source.title} would give other outputs than {network}: {difference}")
    return source


def _difference(source: Source, network: Network, free: Mapping[str, Any]) -> str:
    """Returns in what the source's network differs from a model's, "" if they compute the same."""
    if not network.separable:
        return "it has no twins of standard convolutions"
    if network.downsampling != 32:
        return f"it has downsampling 32, not {network.downsampling}"
    if not network.include_top and network.pooling:
        return f"it has no {network.pooling} pooling without a classifier"
    for base in candidates(source):
        same = dataclasses.replace(base.conventions, **free)
        other = network.replace(conventions=same)
        epsilon = network.conventions.batch_norm_epsilon
        if other.layers == network.layers and same.batch_norm_epsilon == epsilon:
            return ""
    ours, same = network.conventions, dataclasses.replace(source.network().conventions, **free)
    pairs = ((name, getattr(same, name), getattr(ours, name)) for name in _TELLING)
    apart = [f"{name} {needed}, not {found}" for name, needed, found in pairs if needed != found]
    return "it has " + ", ".join(apart or ["other widths"])


def write(model: Model, path: Path, format: str) -> None:
    """Writes a .safetensors file whose names and shapes are those of the library's own state dict.

    Raises:
        ModelError: the library's network is another; names the difference.
    """
    source = source_for(model, TORCH, format)
    if path.suffix != ".safetensors":
        raise ModelError(f"{shown(path)}: needed is a name that ends in .safetensors; pickles (.pth) are not written")
    write_atomic(path, encode(model, source))


def encode(model: Model, source: Source) -> bytes:
    """Returns the file of a state dict; its metadata is what transformers looks for."""
    by_key: Tensors = {}
    for tensor, key in keys(source, model.network).items():
        layer, _, part = tensor.rpartition(".")
        array = model.tensors[tensor]
        by_key[key] = theirs(source, model.network.by_name[layer], array) if part == "weight" else array
    counters = [key.removesuffix(".running_var") + _COUNTER for key in by_key if key.endswith(".running_var")]
    return tensors_file.encode(by_key, {"format": "pt"}, counters)  # transformers misses the counters
