"""Rounding weights so that their errors cancel: each weight takes over what those rounded before it left undone.

Rounding every weight to the nearest leaves errors that are independent, while the inputs they meet are not: where two
inputs go together, an error of one weight can be made good by the other. Weights of an output channel are rounded in
turn, those of the strongest inputs first, and the error of each is spread over those that are left as the covariance of
the inputs says (Frantar et al. 2022, arXiv 2210.17323, whose order of columns this is, too). The mean of the inputs
does not matter, the bias takes care of it.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arch import Layer
from ..integer import windows

Array = NDArray[Any]
ROWS = 1 << 15  # outputs whose inputs the covariance is measured on
DAMPING = 0.1  # of the mean variance, added to each: a covariance of few photos says too much


def covariance(layer: Layer, x: Array) -> Array:
    """Returns the covariance of what each weight of an output is multiplied by, [groups, terms, terms].

    A depthwise layer has a group a channel and k·k terms, the others one group of all. `x` are the layer's inputs
    [N, height, width, channels] or [N, channels], centred at their zero point.
    """
    if layer.kind in ("pointwise", "dense"):
        rows = x.reshape(1, -1, x.shape[-1])
        rows = rows[:, :: max(rows.shape[1] // ROWS, 1)]
    else:
        seen = windows(layer, x)
        images = max(ROWS // (seen.shape[1] * seen.shape[2]), 1)
        seen = seen[:: max(len(seen) // images, 1)]
        if layer.kind == "conv":
            rows = seen.reshape(1, -1, layer.kernel**2 * layer.input.channels)
        else:
            rows = np.moveaxis(seen.reshape(-1, layer.kernel**2, layer.input.channels), 2, 0)
    rows = rows - rows.mean(1, keepdims=True)
    found = (rows.swapaxes(1, 2) @ rows).astype(np.float64) / rows.shape[1]
    damping = DAMPING * np.trace(found, axis1=1, axis2=2) / found.shape[1] + 1e-6
    found[:, np.arange(found.shape[1]), np.arange(found.shape[1])] += damping[:, np.newaxis]
    return np.asarray(found)


def rounded(weight: Array, scale: Array, covariance: Array) -> NDArray[np.int8]:
    """Returns the int8 weights, in the shape of `weight`.

    Args:
        weight: float64, in the layout of the file.
        scale: of each output channel.
        covariance: as the function above gives it.
    """
    groups, terms, _ = covariance.shape
    # [groups, terms, outputs of a group]
    left = weight.reshape(terms, groups, -1).swapaxes(0, 1) if groups > 1 else weight.reshape(1, terms, -1)
    left = left / scale.reshape(groups, 1, -1)
    order = np.argsort(-np.diagonal(covariance, axis1=1, axis2=2), axis=1, kind="stable")
    rows = np.arange(groups)[:, np.newaxis]
    left = left[rows, order]
    inverse = np.linalg.inv(covariance[rows[:, :, np.newaxis], order[:, :, np.newaxis], order[:, np.newaxis]])
    spread = np.linalg.cholesky(inverse, upper=True)
    found = np.empty_like(left)
    for term in range(terms):
        found[:, term] = np.clip(np.rint(left[:, term]), -127, 127)
        error = (left[:, term] - found[:, term]) / spread[:, term, term, np.newaxis]
        left[:, term + 1 :] -= spread[:, term, term + 1 :, np.newaxis] * error[:, np.newaxis]
    result = np.empty_like(found)
    result[rows, order] = found
    return np.asarray((result.swapaxes(0, 1) if groups > 1 else result).reshape(weight.shape), np.int8)
