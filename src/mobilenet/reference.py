"""What every layer means: float64 numpy, each layer as its definition says, slow and obvious.

Everything that computes a network faster is tested against `forward`, to within `tolerance`, which is computed from
the network itself. Activations are [N, height, width, channels] throughout.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arch import SCALINGS, Layer, Network
from .errors import UsageError

Array = NDArray[np.float64]
Scaling = tuple[Sequence[float], Sequence[float]]

UNSCALED: Scaling = ((0.0,), (1.0,))  # for pixels that have been scaled already


def forward(
    network: Network, tensors: Mapping[str, NDArray[Any]], pixels: NDArray[Any], *, scaling: Scaling | None = None
) -> Array:
    """Returns logits [N, classes]; without the top the features [N, h, w, C], or [N, C] with a pooling.

    Args:
        tensors: those of `network.tensors`, in file layout.
        pixels: [N, height, width, channels] on the 0..255 scale.
        scaling: (mean, std) of `(pixels - mean) / std`, one value or one for each channel; None for that of
            `conventions.scaling`; `UNSCALED` where `pixels` are scaled already.

    Raises:
        UsageError: names the shape or the scaling that does not fit the network.
    """
    return outputs(network, tensors, pixels, scaling=scaling)[network.layers[-1].name]


def outputs(
    network: Network, tensors: Mapping[str, NDArray[Any]], pixels: NDArray[Any], *, scaling: Scaling | None = None
) -> dict[str, Array]:
    """Returns the output of every layer by name: after batch norm, activation and shortcut. Arguments as `forward`."""
    mean, std = _scaling(network, pixels, scaling)
    x = (np.asarray(pixels, np.float64) - mean) / std
    found: dict[str, Array] = {}
    for layer in network.layers:
        if layer.kind == "average_pool":
            x = x.mean((1, 2))
        elif layer.kind == "max_pool":
            x = x.max((1, 2))
        else:
            weight, bias, scale, shift = _parameters(network, layer, tensors)
            x = activate(layer, scale * (weighted_sum(layer, x, weight) + bias) + shift)
        if layer.adds is not None:
            x = x + found[layer.adds]
        found[layer.name] = x
    return found


def softmax(logits: NDArray[Any]) -> Array:
    """Returns probabilities [..., classes]: exp of each logit over the sum of all."""
    powers = np.exp(np.asarray(logits, np.float64) - np.max(logits, -1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def weighted_sum(layer: Layer, x: Array, weight: Array) -> Array:
    """Returns the sums that a convolution or dense layer is named for, without bias, batch norm and activation."""
    if layer.kind in ("pointwise", "dense"):
        return np.asarray(x @ weight)
    height, width, channels = layer.output
    padded = np.pad(x, ((0, 0), *layer.padding, (0, 0)))
    total = np.zeros((len(x), height, width, channels))
    for row in range(layer.kernel):
        for column in range(layer.kernel):
            rows = slice(row, row + (height - 1) * layer.stride + 1, layer.stride)
            columns = slice(column, column + (width - 1) * layer.stride + 1, layer.stride)
            seen = padded[:, rows, columns]
            total += seen * weight[row, column] if layer.kind == "depthwise" else seen @ weight[row, column]
    return total


def activate(layer: Layer, x: Array) -> Array:
    """Returns the layer's activation of `x`: the identity, max(x, 0), or that and at most 6."""
    if layer.activation == "linear":
        return x
    return np.clip(x, 0.0, 6.0 if layer.activation == "relu6" else np.inf)


def _parameters(
    network: Network, layer: Layer, tensors: Mapping[str, NDArray[Any]]
) -> tuple[Array, Array, Array, Array]:
    """Returns weight, bias, and batch norm, gamma (x - mean) / sqrt(variance + epsilon) + beta, as scale and shift."""
    part = {name.rpartition(".")[2]: np.asarray(tensors[name], np.float64) for name in layer.tensors}
    bias = part.get("bias", np.zeros(layer.output.channels))
    if not layer.batch_norm:
        return part["weight"], bias, np.ones_like(bias), np.zeros_like(bias)
    scale = part["gamma"] / np.sqrt(part["variance"] + network.conventions.batch_norm_epsilon)
    return part["weight"], bias, scale, part["beta"] - part["mean"] * scale


def _scaling(network: Network, pixels: NDArray[Any], scaling: Scaling | None) -> tuple[Array, Array]:
    if pixels.ndim != 4 or pixels.shape[1:] != network.input:
        raise UsageError(f"pixels: got shape {pixels.shape}, the network needs {('N', *network.input)}")
    mean, std = (np.asarray(part, np.float64) for part in scaling or SCALINGS[network.conventions.scaling])
    if mean.shape not in ((1,), (network.channels,)) or std.shape != mean.shape:
        raise UsageError(
            f"scaling: got {mean.size} means and {std.size} standard deviations, needed 1 of each or one for each of "
            f"the {network.channels} channels"
        )
    return mean, std


# ------------------------------------------------------------------------------------------------------- tolerance

# How far may a correct computation in floating point be from `forward`?
#
# One layer. A sum of n rounded products, in any order, is off by at most n u A, u = epsilon / 2 and A the sum of the
# terms' magnitudes. Rounding errors are as good as independent with mean 0; then SIGMAS sqrt(n) u A bounds it, except
# with probability 2 exp(-SIGMAS^2 / 2) = 3e-8 (Higham and Mary, SIAM J. Sci. Comput. 41, 2019). n counts ROUNDINGS
# more for bias, batch norm and shortcut, and A has their terms too, so that it holds as well where batch norm or the
# pixels' scaling is folded into the weights.
#
# From layer to layer. Errors e of the inputs become sqrt(sum w^2 e^2): errors of different inputs are taken as
# independent too. That is a model, not a bound. The bound, sum |w| e, grows in each layer by about sqrt(n) more than
# the values do, for logits of about 2 to 6e9 in a trained V1 0.25 and to 2e18 in a random V2 0.35: any wrong result
# would pass. The model's weak side are neighbouring pixels, whose errors are alike where the pixels are. So the
# pooling, the one large sum over pixels, takes the bound. An activation passes on no error of a value safely beyond
# its clamp.
#
# Measured against torch in float32, the tolerance is 15 to 1000 times the largest error (64 random networks and a
# trained one); what tells the outputs of two photos apart is 8 times the tolerance and more, in the median network
# 100 times. In bfloat16 (`storage`) it is 2 to 30 times the error of the trained one for photos, and 1.06 times for an
# image of one grey, the worst case of that weak side.

SIGMAS = 6.0
ROUNDINGS = 8


def tolerance(
    network: Network,
    tensors: Mapping[str, NDArray[Any]],
    pixels: NDArray[Any],
    epsilon: float,
    *,
    storage: float = 0.0,
    scaling: Scaling | None = None,
) -> Array:
    """Returns how far each output of a correct computation may be from `forward`'s, in the same shape.

    Args:
        epsilon: of the type that sums are computed in, the distance from 1 to the next number: `np.finfo(t).eps`.
        storage: epsilon of a narrower type that weights and activations are rounded to between layers: 2**-7 for
            bfloat16. 0 if there is none.
        network, tensors, pixels, scaling: as `forward`.
    """
    found = tolerances(network, tensors, pixels, epsilon, storage=storage, scaling=scaling)
    return found[network.layers[-1].name]


def tolerances(
    network: Network,
    tensors: Mapping[str, NDArray[Any]],
    pixels: NDArray[Any],
    epsilon: float,
    *,
    storage: float = 0.0,
    scaling: Scaling | None = None,
) -> dict[str, Array]:
    """Returns `tolerance` for the output of every layer, by name as `outputs` gives them. Arguments as `tolerance`."""
    mean, std = _scaling(network, pixels, scaling)
    values = outputs(network, tensors, pixels, scaling=scaling)
    summing, storing = SIGMAS * epsilon / 2, SIGMAS * storage / 2
    x = (np.asarray(pixels, np.float64) - mean) / std
    size = (np.abs(pixels) + np.abs(mean)) / std
    error = np.hypot(summing * size, storing * x)
    found: dict[str, Array] = {}
    for layer in network.layers:
        if layer.kind == "average_pool":
            terms = layer.input.height * layer.input.width
            error = error.mean((1, 2)) + summing * np.sqrt(terms) * size.mean((1, 2))
        elif layer.kind == "max_pool":
            error = error.max((1, 2))
        else:
            error = _layer_error(network, layer, tensors, x, size, error, summing, storing)
        if layer.adds is not None:
            error = np.hypot(error, found[layer.adds])
        found[layer.name], x = error, values[layer.name]
        size = np.abs(x)
    return found


def _layer_error(
    network: Network,
    layer: Layer,
    tensors: Mapping[str, NDArray[Any]],
    x: Array,
    size: Array,
    error: Array,
    summing: float,
    storing: float,
) -> Array:
    weight, bias, scale, shift = _parameters(network, layer, tensors)
    mean, beta = (tensors[f"{layer.name}.{part}"] if layer.batch_norm else shift for part in ("mean", "beta"))
    folded = weight * scale
    terms = weight.size // layer.output.channels + ROUNDINGS
    total = weighted_sum(layer, size, np.abs(folded)) + np.abs(scale) * (np.abs(bias) + np.abs(mean)) + np.abs(beta)
    unbiased = scale * weighted_sum(layer, x, weight)
    before = unbiased + scale * bias + shift
    stored = weighted_sum(layer, x**2, folded**2) + unbiased**2 + before**2  # of weights, sums, and batch norm's output
    error = np.sqrt(weighted_sum(layer, error**2, folded**2) + terms * (summing * total) ** 2 + storing**2 * stored)
    after, low, high = (activate(layer, value) for value in (before, before - error, before + error))
    return np.maximum(high - after, after - low)
