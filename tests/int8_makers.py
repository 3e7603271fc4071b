"""Random int8 tensors whose outputs spread over the whole of uint8 and reach both clamps, for tests of kernels."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobilenet import integer, quantized
from mobilenet.arch import Layer, Network
from mobilenet.fixed_point import ADD_SHIFT, factors
from mobilenet.model import Model
from mobilenet.quantized import Rescale

Tensors = dict[str, NDArray[Any]]


def random_int8(
    network: Network, seed: int = 0, images: int = 4, rescale: Rescale = "float", ranges: int | None = None
) -> Tensors:
    """Returns tensors of an int8 model of the network; multipliers are set layer by layer on random pixels.

    Weights are of all magnitudes up to 127, zero points and upper clamps anywhere, and of a layer's outputs, over the
    random pixels, about a tenth lie below the lower clamp and a tenth above the upper. With the rescales "full" and
    "fixed" weights have zero points, and with the latter some channels factors and sums as large and as small as they
    can be.

    Args:
        ranges: the seed of zero points and clamps, on which machine code depends; None for `seed`'s generator.
    """
    generator = np.random.default_rng(seed)
    choose = generator if ranges is None else np.random.default_rng(ranges)
    pixels = random_bytes(network, images, seed)
    tensors: Tensors = {quantized.PIXELS_ZERO: choose.integers(0, 256, network.channels).astype(np.int32)}
    found: dict[str, NDArray[Any]] = {}
    x, zero_in, scale_in = pixels, tensors[quantized.PIXELS_ZERO], 1.0
    for layer in network.layers:
        _random_layer(layer, tensors, generator, choose, x, zero_in, scale_in, found, rescale)
        if rescale == "fixed" and layer.kind != "max_pool":
            _fix(layer, tensors, generator, choose)
        if rescale == "full" and layer.adds:
            _add_bytes(layer.name, tensors, choose)
        if layer.kind != "dense":
            found[layer.name] = x = _one(layer, tensors, zero_in, x, found)
            zero_in, scale_in = tensors[f"{layer.name}.zero"], float(tensors[f"{layer.name}.scale"][0])
    quantized.check(network, tensors, rescale)
    return tensors


def random_int8_model(
    network: Network, seed: int = 0, rescale: Rescale = "float", ranges: int | None = None, **parts: Any
) -> Model:
    """Returns an int8 model with `random_int8`."""
    tensors = random_int8(network, seed, rescale=rescale, ranges=ranges)
    return Model(network, tensors, precision="int8", rescale=rescale, **parts)


def random_bytes(network: Network, count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Returns a batch of pixels: noise of which some is 0 and some 255."""
    noise = np.random.default_rng(seed).integers(-40, 296, (count, *network.input))
    return np.clip(noise, 0, 255).astype(np.uint8)


def _random_layer(
    layer: Layer,
    tensors: Tensors,
    generator: np.random.Generator,
    choose: np.random.Generator,
    x: NDArray[np.uint8],
    zero_in: NDArray[np.int32],
    scale_in: float,
    found: dict[str, NDArray[Any]],
    rescale: Rescale,
) -> None:
    name, outs = layer.name, layer.output.channels
    if layer.kind == "max_pool":
        tensors |= {f"{name}.scale": np.array([scale_in], np.float32), f"{name}.zero": zero_in.copy()}
        tensors |= {f"{name}.high": _one_number(255)} | ({} if rescale == "float" else {f"{name}.low": _one_number(0)})
        return
    relu = layer.activation != "linear"
    high = int(choose.integers(150, 256)) if layer.activation == "relu6" else 255
    zero = int(choose.integers(0, 100 if relu else 256))
    if rescale != "float" and choose.integers(3):  # as converters have it
        zero, high = (0, 255) if relu else (zero, 255)
    scale = float(choose.uniform(0.001, 0.1))
    if layer.weight_shape is not None:
        largest = generator.integers(1, 128, outs)
        middle, kind = 0, np.int8
        if rescale != "float":
            middle, kind = int(choose.choice((0, 128, 128, 255, choose.integers(0, 256)))), np.uint8
            tensors[f"{name}.weight_zero"] = _one_number(middle)
        low, top = (-127, 127) if rescale == "float" else (-middle, 255 - middle)
        numbers = generator.uniform(low / 127, top / 127, layer.weight_shape) * largest
        weight = (np.rint(numbers) + middle).astype(kind)
        weight.reshape(-1, outs)[0, 0], weight.reshape(-1, outs)[-1, -1] = top + middle, low + middle
        tensors |= {f"{name}.weight": weight, f"{name}.bias": np.zeros(outs, np.int32)}
    if layer.kind != "dense" or rescale != "float":
        tensors |= {f"{name}.scale": np.array([scale], np.float32), f"{name}.zero": np.array([zero], np.int32)}
        tensors |= {f"{name}.high": np.array([high], np.int32)}
    if layer.adds is not None:
        tensors[f"{name}.shortcut"] = generator.uniform(0.2, 1, 1).astype(np.float32)
    # The sums themselves: a multiplier of 1 and logits, which are neither rounded nor clipped.
    sums = _sums(layer, tensors, zero_in, x)
    axes = tuple(range(sums.ndim - 1))
    low_sum, high_sum = np.quantile(sums, (0.1, 0.9), axes if layer.weight_shape else None)
    terms = np.prod(layer.weight_shape[:-1]) if layer.weight_shape else 1
    width = np.maximum(high_sum - low_sum, 64 * np.sqrt(terms))  # where there is one pixel alone
    if layer.kind == "average_pool":  # without a bias, only the zero point can move the outputs into the range
        low_sum, high_sum = min(low_sum, 0.0), max(high_sum, 0.0)
        width = np.maximum(high_sum - low_sum, 64.0)
    low = zero if relu else 0
    multiplier = np.atleast_1d((high - low) / width)
    if layer.kind == "average_pool":
        tensors[f"{name}.zero"] = np.clip(np.rint([-low_sum * multiplier[0]]), 0, 255).astype(np.int32)
    if layer.weight_shape is not None:
        tensors[f"{name}.bias"] = np.rint((low - zero) / multiplier - low_sum).astype(np.int32)
    tensors[f"{name}.multiplier"] = multiplier.astype(np.float32)
    if rescale != "float":
        tensors[f"{name}.low"] = _one_number(int(tensors[f"{name}.zero"][0]) if relu else 0)


def _fix(layer: Layer, tensors: Tensors, generator: np.random.Generator, choose: np.random.Generator) -> None:
    """Makes a layer's rescale TFLite's, which does about the same."""
    name, outs = layer.name, layer.output.channels
    real = tensors[f"{name}.multiplier"].astype(np.float64)
    if layer.kind == "dense":
        tensors[f"{name}.roundings"] = _one_number(int(choose.integers(1, 3)))
    if layer.adds:
        own, shortcut = float(generator.uniform(0.5, 2)), float(tensors.pop(f"{name}.shortcut")[0])  # an output's scale
        twice = 2 * max(own, shortcut)
        both = factors([own / twice, shortcut / twice, twice / (1 << ADD_SHIFT)])
        tensors |= {f"{name}.sum_{part}": value for part, value in both._asdict().items()}
        tensors[f"{name}.sum_zero"] = _one_number(int(generator.integers(0, 256)))
        real = real / own
    multiplier, shift = factors(real)
    if layer.kind == "average_pool":
        mean = np.int32(choose.integers(2))
        tensors[f"{name}.origin"] = _one_number(int(choose.choice((0, 128))))
        multiplier, shift = multiplier * (1 - mean), shift * (1 - mean)
    elif outs > 4 and generator.integers(2):
        bias, weight = tensors[f"{name}.bias"], tensors[f"{name}.weight"].reshape(-1, outs)
        bias[:4] = (1 << 30) + 1, -(1 << 30), generator.integers(-9, 10), 5
        multiplier[:4] = (1 << 31) - 1, 1 << 30, (1 << 31) - 1, 0
        shift[:4] = generator.integers(-31, -20), -31, generator.integers(-1, 7), 0
        weight[:, 2] = tensors[f"{name}.weight_zero"][0]  # so small are the sums that are shifted to the left
    tensors |= {f"{name}.multiplier": multiplier, f"{name}.shift": shift}


def _add_bytes(name: str, tensors: Tensors, choose: np.random.Generator) -> None:
    """Makes a layer add its shortcut as with the rescale "full", which does about the same."""
    own, shortcut = float(choose.uniform(0.9, 2)), float(tensors.pop(f"{name}.shortcut")[0])  # an output's scale
    shift = int(choose.integers(3, 21))
    if choose.integers(3) == 0:
        own, shortcut, shift = 1.0, 1.0, 0
    multipliers = np.rint(np.array([own, shortcut]) * 2**shift).astype(np.int32)
    tensors |= {f"{name}.sum_multiplier": multipliers, f"{name}.sum_shift": _one_number(shift)}
    tensors[f"{name}.sum_zero"] = np.clip(tensors[f"{name}.zero"] + choose.integers(-20, 20), 0, 255).astype(np.int32)
    tensors[f"{name}.multiplier"] /= np.float32(own)
    if choose.integers(4) == 0:  # as no converter has it
        tensors |= {f"{name}.low": _one_number(40), f"{name}.high": _one_number(200)}


def _one_number(value: int) -> NDArray[np.int32]:
    return np.array([value], np.int32)


def _sums(layer: Layer, tensors: Tensors, zero_in: NDArray[np.int32], x: NDArray[np.uint8]) -> NDArray[np.float64]:
    return np.asarray(integer.sums(integer.prepare(layer, tensors, zero_in), x), np.float64)


def _one(
    layer: Layer, tensors: Tensors, zero_in: NDArray[np.int32], x: NDArray[np.uint8], found: dict[str, NDArray[Any]]
) -> NDArray[Any]:
    shortcut = found[layer.adds] if layer.adds else None
    return integer.output(integer.prepare(layer, tensors, zero_in), x, shortcut)
