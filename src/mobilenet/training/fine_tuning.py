"""Begins a training with another model's weights: what of them fits, and a classifier for the new classes.

A new classifier is fitted first, alone, on the features that the frozen network gives each photo and its mirror image.
They are computed once, so this costs two forward passes a photo; and the network is not pulled about by the gradients
of a random classifier when fine-tuning begins.
"""

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .. import weights
from ..arch import Network
from ..common.files import shown
from ..data.cache import Cache
from ..errors import ModelError
from ..photos.preprocessing import Preprocessing
from ..storage import folder
from . import augment
from .recipe import Plan
from .torch_model import TorchMobileNet

FEATURES_LIMIT = 1 << 27  # numbers, 512 MiB: of more photos every second, third, … is taken
ITERATIONS = 200

_CHUNK = 128


class Source(NamedTuple):
    """Is the model that a training begins from.

    Attributes:
        path: of its folder, absolute.
        network: with a top, where the model has none.
        preprocessing: the model's.
        labels: of its classes, None where they have numbers only.
        tensors: by name.
    """

    path: Path
    network: Network
    preprocessing: Preprocessing
    labels: tuple[str, ...] | None
    tensors: Mapping[str, NDArray[np.float32]]

    @staticmethod
    def load(path: Path) -> "Source":
        """Reads a model folder; raises `ModelError` as `folder.load` does."""
        stored = folder.load_float(path)
        network = stored.network
        if not network.include_top:
            network = network.replace(include_top=True, pooling=None)
        return Source(Path(os.path.abspath(path)), network, stored.preprocessing, stored.labels, stored.tensors)

    def has_classes(self, classes: tuple[str, ...]) -> bool:
        """Tells whether the model's classifier is for these classes, in whatever order."""
        return self.labels is not None and "classifier.weight" in self.tensors and set(self.labels) == set(classes)

    def digest(self) -> str:
        """Returns a SHA-256 of the tensors."""
        digest = hashlib.sha256()
        for name in sorted(self.tensors):
            digest.update(name.encode() + np.ascontiguousarray(self.tensors[name]).tobytes())
        return digest.hexdigest()


def begin(source: Source, network: Network, seed: int, keep_classifier: bool) -> dict[str, NDArray[np.float32]]:
    """Returns the network's tensors: the source's, and a random classifier unless it is kept.

    Raises:
        ModelError: names the first tensor that does not fit, and both shapes.
    """
    new = weights.initial(network, seed)
    classifier = network.layers[-1].tensors
    taken = {name: tensor for name, tensor in source.tensors.items() if keep_classifier or name not in classifier}
    for name in sorted(taken.keys() | network.tensors.keys() - classifier.keys()):
        found = taken[name].shape if name in taken else "none"
        needed = network.tensors.get(name, "none")
        if found != needed:
            raise ModelError(
                f"{shown(source.path)}: tensor {name!r} has shape {found}, {network} needs {needed}; "
                "leave out --family, --alpha and --source, they come with the model"
            )
    return new | taken


@torch.no_grad()
def frozen_features(model: TorchMobileNet, cache: Cache, plan: Plan, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns features [M, C] float32 of M photos as prediction sees them, and labels [M].

    Where the augmentation mirrors, the photos' mirror images follow: [2M, C] and [2M].
    """
    model.eval()
    rows = cache.index[:: max(2 * len(cache.index) * model.network.layers[-1].input.size // FEATURES_LIMIT, 1)]
    features: list[Tensor] = []
    labels: list[Tensor] = []
    for part in _parts(rows):
        photos = torch.from_numpy(cache.pixels[part]).to(device)
        windows = augment.draw(np.random.default_rng(0), cache.aspect[part], plan.preprocessing, "none").windows
        for mirror in (1, -1) if plan.augment == "standard" else (1,):
            packed = torch.from_numpy(windows * np.array([1, 1, mirror, 1], np.float32)).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=plan.precision == "bf16"):
                features.append(model.pooled(augment.apply(photos, packed, plan.preprocessing)).float())
            labels.append(torch.from_numpy(cache.labels[part]).to(device))
    return torch.cat(features), torch.cat(labels)


def central_pixels(cache: Cache, plan: Plan, count: int) -> NDArray[np.uint8]:
    """Returns at most `count` photos, evenly taken, as prediction sees them: uint8 [n, height, width, channels]."""
    rows = cache.index[:: -(-len(cache.index) // count)]
    windows = augment.draw(np.random.default_rng(0), cache.aspect[rows], plan.preprocessing, "none").windows
    photos = torch.from_numpy(cache.pixels[rows])
    x = augment.apply(
        photos, torch.from_numpy(windows), dataclasses.replace(plan.preprocessing, mean=(0.0,), std=(1.0,))
    )
    return x.round().clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8).contiguous().numpy()


def _parts(rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    return (rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK))


def fit_classifier(features: Tensor, labels: Tensor, classes: int, smoothing: float) -> tuple[Tensor, Tensor]:
    """Returns weight [C, classes] and bias [classes] of the regularised logistic regression, by L-BFGS.

    The penalty is |w|² / 2M for M rows, on features of unit variance: a unit normal prior.
    """
    mean, deviation = features.mean(0), features.std(0).clamp_min(1e-6)
    x = (features - mean) / deviation
    weight = x.new_zeros(x.shape[1], classes, requires_grad=True)
    bias = x.new_zeros(classes, requires_grad=True)
    search = torch.optim.LBFGS([weight, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        fit = F.cross_entropy(x @ weight + bias, labels, label_smoothing=smoothing)
        value = fit + weight.square().sum() / (2 * len(x))
        value.backward()  # type: ignore[no-untyped-call]
        return value

    search.step(loss)  # type: ignore[no-untyped-call]
    scaled = weight.detach() / deviation[:, None]
    return scaled, bias.detach() - mean @ scaled


def train_classifier(model: TorchMobileNet, cache: Cache, plan: Plan, device: torch.device) -> None:
    """Fits the model's classifier to the cached photos with all else frozen."""
    features, labels = frozen_features(model, cache, plan, device)
    weight, bias = fit_classifier(features, labels, model.network.classes, plan.label_smoothing)
    name = model.network.layers[-1].name
    model.parameter(f"{name}.weight").copy_(weight)
    model.parameter(f"{name}.bias").copy_(bias)
