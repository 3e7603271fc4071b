"""Random int8 tensors whose outputs spread over the whole of uint8 and reach both clamps, for tests of kernels."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobilenet import integer, quantized
from mobilenet.arch import Layer, Network
from mobilenet.model import Model

Tensors = dict[str, NDArray[Any]]


def random_int8(network: Network, seed: int = 0, images: int = 4, ranges: int | None = None) -> Tensors:
    """Returns tensors of an int8 model of the network; multipliers are set layer by layer on random pixels.

    Weights are of all magnitudes up to 127, zero points and upper clamps anywhere, and of a layer's outputs, over the
    random pixels, about a tenth lie below the lower clamp and a tenth above the upper.

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
        _random_layer(layer, tensors, generator, choose, x, zero_in, scale_in, found)
        if layer.kind != "dense":
            found[layer.name] = x = _one(layer, tensors, zero_in, x, found)
            zero_in, scale_in = tensors[f"{layer.name}.zero"], float(tensors[f"{layer.name}.scale"][0])
    quantized.check(network, tensors)
    return tensors


def random_int8_model(network: Network, seed: int = 0, ranges: int | None = None, **parts: Any) -> Model:
    """Returns an int8 model with `random_int8`."""
    return Model(network, random_int8(network, seed, ranges=ranges), precision="int8", **parts)


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
) -> None:
    name, outs = layer.name, layer.output.channels
    if layer.kind == "max_pool":
        tensors |= {f"{name}.scale": np.array([scale_in], np.float32), f"{name}.zero": zero_in.copy()}
        tensors |= {f"{name}.high": np.array([255], np.int32)}
        return
    relu = layer.activation != "linear"
    high = int(choose.integers(150, 256)) if layer.activation == "relu6" else 255
    zero = int(choose.integers(0, 100 if relu else 256))
    scale = float(choose.uniform(0.001, 0.1))
    if layer.weight_shape is not None:
        largest = generator.integers(1, 128, outs)
        weight = np.rint(generator.uniform(-1, 1, layer.weight_shape) * largest).astype(np.int8)
        weight.reshape(-1, outs)[0, 0], weight.reshape(-1, outs)[-1, -1] = 127, -127
        tensors |= {f"{name}.weight": weight, f"{name}.bias": np.zeros(outs, np.int32)}
    if layer.kind != "dense":
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


def _sums(layer: Layer, tensors: Tensors, zero_in: NDArray[np.int32], x: NDArray[np.uint8]) -> NDArray[np.float64]:
    return np.asarray(integer.sums(integer.prepare(layer, tensors, zero_in), x), np.float64)


def _one(
    layer: Layer, tensors: Tensors, zero_in: NDArray[np.int32], x: NDArray[np.uint8], found: dict[str, NDArray[Any]]
) -> NDArray[Any]:
    shortcut = found[layer.adds] if layer.adds else None
    return integer.output(integer.prepare(layer, tensors, zero_in), x, shortcut)
