"""The processes that train together, started by `torchrun`: who this one is, and the few things they tell each other.

A group of one needs no start and every operation does nothing. Process 0 alone decides, writes and prints.
"""

import json
import os
import re
from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import MobileNetError

PREPARATION = timedelta(hours=12)  # one process may decode a million photos while the others wait
STEP = timedelta(seconds=30)  # in training all do the same work: who is later than that is lost


class Lost(MobileNetError):
    """Another process of the group has stopped."""


class Group:
    """Is this process among those that train together: number `rank` of `size`, with its `device`."""

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0) -> None:
        self.rank, self.size = rank, size
        cuda = torch.cuda.is_available()
        self.device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
        self._steps: dist.ProcessGroup | None = None
        if cuda:
            torch.cuda.set_device(self.device)

    @staticmethod
    def from_environment() -> "Group":
        """Returns the group that torchrun describes in RANK, WORLD_SIZE and LOCAL_RANK; without them a group of one."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1 or "RANK" not in os.environ:
            return Group()
        return Group(int(os.environ["RANK"]), size, int(os.environ.get("LOCAL_RANK", "0")))

    @property
    def is_first(self) -> bool:
        """True in the process that decides, writes and prints."""
        return self.rank == 0

    def meet(self) -> None:
        """Waits for all processes to be there; what follows may take them hours, until `hurry`."""
        if self.size > 1:
            backend = "nccl" if self.device.type == "cuda" else "gloo"
            self._guarded(lambda: dist.init_process_group(backend, timeout=PREPARATION))

    def hurry(self) -> None:
        """Waits for all, and from then on gives up on a process that is 30 seconds late."""
        if self.size > 1:
            self._guarded(dist.barrier)
            self._guarded(self._make_steps)

    def _make_steps(self) -> None:
        self._steps = dist.new_group(timeout=STEP)

    def tell(self, document: Any = None) -> Any:
        """Returns process 0's `document`, plain data, in every process."""
        if self.size == 1:
            return document
        data = json.dumps(document).encode() if self.is_first else b""
        length = torch.tensor([len(data)], device=self.device)
        self.copy([length])
        content = torch.zeros(int(length), dtype=torch.uint8)
        if self.is_first:
            content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        content = content.to(self.device)
        self.copy([content])
        return json.loads(content.cpu().numpy().tobytes())

    def copy(self, tensors: Iterable[Tensor]) -> None:
        """Overwrites the tensors with those of process 0."""
        if self.size > 1:
            for tensor in tensors:
                self._guarded(partial(dist.broadcast, tensor, 0, group=self._steps))

    def add(self, tensor: Tensor) -> Tensor:
        """Replaces the tensor with its sum over all processes and returns it; the same bits in each of them."""
        if self.size > 1:
            self._guarded(lambda: dist.all_reduce(tensor, group=self._steps))
        return tensor

    def leave(self) -> None:
        """Ends the group, after the last operation has gone well."""
        if self.size > 1:
            dist.destroy_process_group()

    def _guarded(self, operation: Callable[[], object]) -> None:
        try:
            operation()
        except (RuntimeError, ValueError) as error:
            raise Lost(
                f"process {self.rank} of {self.size}: another process of the training has stopped or can't be reached "
                f"({_short_reason(error)}); go on with --resume"
            ) from error


def _short_reason(error: Exception) -> str:
    """Returns the first sentence of torch's error, without the place in its source."""
    return re.sub(r"^\[.*?\] *", "", str(error).strip()).partition(". ")[0].partition("\n")[0][:200]
