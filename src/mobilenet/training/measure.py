"""Choices that need a measurement: the faster precision, and how many epochs fit into a time budget.

A few passes over the first micro-batch, forward and backward, are timed; they change nothing that the training uses.
Made once, when a training begins, and written down in its `run.json`.
"""

import math
import time
from dataclasses import replace

import torch

from ..data.cache import Cache
from .allocator import keeping_memory
from .batches import Batches
from .distributed import Group
from .monitor import Report
from .recipe import Plan
from .settings import Precision, Settings
from .torch_model import TorchMobileNet
from .worker import Worker

PASSES = 3
LONGEST = 4.0  # seconds for one precision, beside its first pass
FORWARD = 1 / 3  # of a step's time goes into the forward pass, which is all of a validation
MARGIN = 1.05
GAIN = 0.9  # bf16 must take less than this share of f32's time


def decide(
    plan: Plan,
    settings: Settings,
    model: TorchMobileNet,
    train: Cache,
    validation: Cache | None,
    group: Group,
    began: float,
    report: Report,
) -> Plan:
    """Returns the plan with the precision and the epochs that were left to a measurement, in every process process 0's.

    Args:
        plan, settings: as asked for and as decided so far.
        model: of the plan's network; its gradients and batch statistics are overwritten.
        train, validation: the decoded photos.
        group: all measure at the same time, as they will train at the same time.
        began: `time.monotonic()` at the start of the budget.
        report: is told what was measured.
    """
    precisions: tuple[Precision, ...] = ("f32", "bf16") if settings.precision is None else (settings.precision,)
    if group.device.type == "cuda" and settings.precision is None:
        precisions = ("bf16",)
    if len(precisions) > 1 or plan.minutes is not None:
        with keeping_memory():
            times = {each: _seconds(replace(plan, precision=each), model, train, group) for each in precisions}
        report("a pass over one micro-batch: " + ", ".join(f"{name} {1e3 * t:.0f} ms" for name, t in times.items()))
        if len(precisions) > 1:  # a clear gain alone: a choice on noise would differ from run to run
            precisions = ("bf16",) if times["bf16"] < GAIN * times["f32"] else ("f32",)
    if plan.minutes is not None:
        batches = Batches(plan, train)
        passes = batches.per_epoch * -(-plan.micro_batches // group.size)
        photos = len(validation.index) if validation else 0
        share = FORWARD * photos / len(train.index)
        epoch = MARGIN * passes * times[precisions[0]] * (1 + share)
        left = 60 * plan.minutes - (time.monotonic() - began)
        epochs = max(int(left / epoch), 1)
        patience = math.ceil(epochs / 3) if settings.patience is None and plan.patience else plan.patience
        plan = replace(plan, epochs=epochs, patience=patience)
        report(f"{plan.epochs} epochs of about {epoch:.0f} s fit into {plan.minutes:g} minutes")
    precision, epochs, patience = group.tell([precisions[0], plan.epochs, plan.patience])
    return replace(plan, precision=precision, epochs=epochs, patience=patience)


def _seconds(plan: Plan, model: TorchMobileNet, train: Cache, group: Group) -> float:
    """Returns the median time of a micro-batch."""
    worker = Worker(plan, model, 1, group)
    model.train()
    part = next(Batches(plan, train).read(0, 1, group.rank, group.size)).to(group.device)
    times: list[float] = []
    for _ in range(1 + PASSES):
        start = time.monotonic()
        worker.accumulate(part)
        if group.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.monotonic() - start)
        if sum(times[1:]) > LONGEST:
            break
    return sorted(times[1:])[len(times[1:]) // 2]
