"""What one process does in a step and in a validation, and how the processes' parts are joined.

Each process computes the gradients of its micro-batches. One sum over all processes joins gradient, batch norm's
statistics, the loss and any wish to stop, and every process then does the same update. So W processes compute what one
process computes that accumulates the same micro-batches.
"""

import signal
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.cache import Cache
from . import augment
from .batches import MicroBatch, dropout_seed
from .distributed import Group
from .optimizer import State
from .recipe import Plan
from .tally import Sums
from .torch_model import TorchMobileNet

VALIDATION_BATCH = 256
STOPS = (signal.SIGINT, signal.SIGTERM)


class Worker:
    """Is the part of one process in the computation; holds the model and, with `state`, all that changes."""

    def __init__(self, plan: Plan, model: TorchMobileNet, steps: int, group: Group) -> None:
        self.plan, self.model, self.group = plan, model, group
        self.state = State(model, plan, steps)
        self._statistics = torch.zeros_like(model.statistics)

    def step(self, parts: Iterator[MicroBatch], stop: int = 0) -> tuple[Sums, int]:
        """Does one step with this process's next micro-batches.

        Args:
            parts: what `Batches.read` yields.
            stop: number of the signal that asked this process to stop, or 0.

        Returns:
            sums over the whole step's batch, and the signal that asked any of the processes to stop, or 0.
        """
        self.model.train()
        gradient = self.model.gradients_flat.zero_()
        statistics = self._statistics.zero_()
        sums = torch.tensor([0.0, 0, 0, *(stop == number for number in STOPS)], device=gradient.device)
        for _ in range(self.group.rank, self.plan.micro_batches, self.group.size):
            sums[:3] += self.accumulate(next(parts).to(self.group.device))
        if self.group.size > 1:
            joined = self.group.add(torch.cat([gradient, statistics, sums]))
            gradient, statistics, sums = torch.split(joined, [len(gradient), len(statistics), len(sums)])
        self.state.update(gradient, statistics)
        loss, correct, photos, *asked = sums.tolist()
        return Sums(loss, int(correct), int(photos)), next((n for n, was in zip(STOPS, asked, strict=True) if was), 0)

    def accumulate(self, part: MicroBatch) -> Tensor:
        """Adds a micro-batch's share to gradient and statistics; returns [3] sums of loss, right answers and photos."""
        plan = self.plan
        if plan.network.conventions.dropout:
            torch.manual_seed(dropout_seed(plan, part.step, part.part))
        logits = self._logits(augment.apply(part.photos, part.variation, plan.preprocessing))
        loss = F.cross_entropy(logits, part.labels, label_smoothing=plan.label_smoothing)
        (loss * part.share).backward()  # type: ignore[no-untyped-call]
        self._statistics.add_(self.model.batch_statistics, alpha=part.share)
        return _sums(loss.detach() * len(logits), logits.detach(), part.labels)

    @torch.no_grad()
    def validate(self, cache: Cache) -> Sums:
        """Returns the sums over a cache's photos as prediction sees them; each process does every W-th batch."""
        self.model.eval()
        total = torch.zeros(3, dtype=torch.float64, device=self.group.device)
        stride = VALIDATION_BATCH * self.group.size
        for start in range(VALIDATION_BATCH * self.group.rank, len(cache.index), stride):
            rows = cache.index[start : start + VALIDATION_BATCH]
            labels = torch.from_numpy(cache.labels[rows]).to(self.group.device)
            photos = torch.from_numpy(cache.pixels[rows]).to(self.group.device)
            logits = self._logits(augment.scaled(photos, self.plan.preprocessing))
            total += _sums(F.cross_entropy(logits, labels, reduction="sum"), logits, labels)
        loss, correct, photos_seen = self.group.add(total).tolist()
        return Sums(loss, int(correct), int(photos_seen))

    def _logits(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.plan.precision == "bf16"):
            logits: Tensor = self.model(x)
        return logits.float()


def _sums(loss: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    right = (logits.argmax(1) == labels).sum()
    return torch.stack([loss, right.float(), torch.full_like(loss, len(labels))])
