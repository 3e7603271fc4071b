"""What training changes, as five flat vectors, and the one step that changes them.

SGD with Nesterov's momentum, weight decay where the model says so, an exponential moving average of parameters and of
batch norm's statistics. A vector is one tensor for all layers, so each line of the step is one operation.
"""

import contextlib
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .recipe import HEAD_START, Plan, kept_share, learning_rate
from .torch_model import TorchMobileNet

MOMENTUM = 0.9


class State:
    """Holds the vectors of a training, of which `parameters` and `statistics` are the model's own tensors.

    Attributes:
        vectors: by name: "parameters", "momentum" and "average" [P], "statistics" and "average_statistics" [S]; and
            what the model keeps fixed.
        step: number of steps done.
    """

    def __init__(self, model: TorchMobileNet, plan: Plan, steps: int) -> None:
        self.model, self.plan, self.steps = model, plan, steps
        self._decay = model.decayed * plan.weight_decay
        self.begin()

    def begin(self) -> None:
        """Begins a training with the model's values."""
        parameters, statistics = self.model.parameters_flat.detach(), self.model.statistics
        self.step = 0
        self.vectors: dict[str, Tensor] = {
            "parameters": parameters,
            "momentum": torch.zeros_like(parameters),
            "average": parameters.clone(),
            "statistics": statistics,
            "average_statistics": statistics.clone(),
            **self.model.fixed(),
        }

    def load(self, vectors: Mapping[str, NDArray[np.float32]], step: int) -> None:
        """Goes on from a checkpoint."""
        for name, vector in self.vectors.items():
            vector.copy_(torch.from_numpy(vectors[name]))
        self.step = step

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Returns copies of the vectors."""
        return {name: vector.to("cpu", copy=True).numpy() for name, vector in self.vectors.items()}

    @torch.no_grad()
    def update(self, gradient: Tensor, batch_statistics: Tensor) -> None:
        """Does one step.

        Args:
            gradient: [P] of the batch's mean loss; overwritten.
            batch_statistics: [S] of the batch, as averages over its micro-batches.
        """
        plan, v = self.plan, self.vectors
        if plan.clip:
            gradient.mul_((plan.clip / gradient.norm().clamp_min(1e-12)).clamp_max(1.0))
        gradient.addcmul_(v["parameters"], self._decay)
        v["momentum"].mul_(MOMENTUM).add_(gradient)
        gradient.add_(v["momentum"], alpha=MOMENTUM)
        v["parameters"].add_(gradient, alpha=-learning_rate(plan, self.step, self.steps))
        momentum = self.model.network.conventions.batch_norm_momentum
        kept = kept_share(momentum, self.step, HEAD_START if plan.fine_tuning else 0)
        v["statistics"].lerp_(batch_statistics, 1 - kept)
        kept = kept_share(plan.average, self.step)
        v["average"].lerp_(v["parameters"], 1 - kept)
        v["average_statistics"].lerp_(v["statistics"], 1 - kept)
        self.step += 1

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Has the averages in the model while it is entered."""
        kept = {name: self.vectors[name].clone() for name in ("parameters", "statistics")}
        self.vectors["parameters"].copy_(self.vectors["average"])
        self.vectors["statistics"].copy_(self.vectors["average_statistics"])
        try:
            yield
        finally:
            for name, vector in kept.items():
                self.vectors[name].copy_(vector)
