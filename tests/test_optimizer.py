"""The step on flat vectors is what torch's own optimizer and formulas give."""

import contextlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from mobilenet import arch, weights
from mobilenet.training import recipe
from mobilenet.training.optimizer import MOMENTUM, State
from mobilenet.training.recipe import Photos, decide
from mobilenet.training.settings import Settings
from mobilenet.training.torch_model import TorchMobileNet

NETWORK = arch.v2(0.1, 32, 3)
EPS = float(np.finfo(np.float32).eps)
STEPS = 20


def make(**changes: Any) -> State:
    plan = replace(decide(Settings(), Photos(100, 0, 3, 32)), network=NETWORK, **changes)
    return State(TorchMobileNet(NETWORK, weights.initial(NETWORK, 1)), plan, STEPS)


def noise(state: State, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(step)
    gradient = rng.standard_normal(len(state.vectors["parameters"]), np.float32)
    return torch.from_numpy(gradient), torch.from_numpy(rng.random(len(state.vectors["statistics"]), np.float32))


def test_the_step_is_torchs_nesterov_sgd() -> None:
    state = make(weight_decay=0.01, learning_rate=0.3)
    decayed = state.model.decayed
    start = state.vectors["parameters"].clone()
    mine = [torch.nn.Parameter(start[where].clone()) for where in (decayed, ~decayed)]
    options: list[dict[str, Any]] = [{"params": [mine[0]], "weight_decay": 0.01}, {"params": [mine[1]]}]
    theirs = torch.optim.SGD(options, lr=1.0, momentum=MOMENTUM, nesterov=True)
    for step in range(STEPS):
        gradient, statistics = noise(state, step)
        for parameter, where in zip(mine, (decayed, ~decayed), strict=True):
            parameter.grad = gradient[where].clone()
        for group in theirs.param_groups:
            group["lr"] = recipe.learning_rate(state.plan, step, STEPS)
        theirs.step()
        state.update(gradient, statistics)
    assert state.step == STEPS
    for parameter, where in zip(mine, (decayed, ~decayed), strict=True):
        # Some 8 roundings a step; velocities reach 10 times the largest gradient, about 6, at a rate of 0.3.
        found = state.vectors["parameters"][where]
        torch.testing.assert_close(found, parameter.detach(), rtol=0, atol=STEPS * 8 * 0.3 * 60 * EPS)
        assert (found - start[where]).abs().max() > 1


@pytest.mark.parametrize("fine_tuning", [False, True])
def test_averages_follow_with_a_warm_up(fine_tuning: bool) -> None:
    state = make(average=0.7, fine_tuning=fine_tuning)
    head = 990 if fine_tuning else 0
    average = state.vectors["average"].double()
    statistics = state.vectors["statistics"].double()
    slow = statistics.clone()
    for step in range(STEPS):
        gradient, measured = noise(state, step)
        state.update(gradient, measured)
        kept = min(0.7, (1 + step) / (10 + step))
        average = kept * average + (1 - kept) * state.vectors["parameters"].double()
        momentum = min(NETWORK.conventions.batch_norm_momentum, (1 + head + step) / (10 + head + step))
        statistics = momentum * statistics + (1 - momentum) * measured.double()
        slow = kept * slow + (1 - kept) * statistics
    largest = float(state.vectors["parameters"].abs().max())
    for name, needed in (("average", average), ("statistics", statistics), ("average_statistics", slow)):
        torch.testing.assert_close(state.vectors[name].double(), needed, rtol=0, atol=STEPS * 4 * largest * EPS)


def test_without_average_the_model_is_the_last_state() -> None:
    state = make(average=0.0)
    state.update(*noise(state, 0))
    assert torch.equal(state.vectors["average"], state.vectors["parameters"])


def test_a_long_gradient_is_clipped_and_a_short_one_is_not() -> None:
    clipped, free = make(clip=1.0, weight_decay=0.0), make(weight_decay=0.0)
    gradient, statistics = noise(free, 0)
    gradient /= gradient.norm()
    for length in (5.0, 0.5):
        clipped.update(gradient * length, statistics)
        free.update(gradient * min(length, 1.0), statistics)
    difference = clipped.vectors["parameters"] - free.vectors["parameters"]
    assert difference.abs().max() <= 8 * EPS * float(free.vectors["parameters"].abs().max())
    assert not torch.equal(free.vectors["momentum"], torch.zeros_like(gradient))


def test_the_averages_are_in_the_model_only_while_entered() -> None:
    state = make()
    state.update(*noise(state, 0))
    before = {name: vector.clone() for name, vector in state.vectors.items()}
    with contextlib.suppress(KeyboardInterrupt), state.averaged():
        assert torch.equal(state.model.parameters_flat, before["average"])
        assert torch.equal(state.model.statistics, before["average_statistics"])
        raise KeyboardInterrupt
    assert all(torch.equal(vector, before[name]) for name, vector in state.vectors.items())
    assert torch.equal(state.model.parameters_flat, before["parameters"])


def test_a_state_comes_back_from_its_arrays() -> None:
    state, other = make(), make()
    state.update(*noise(state, 0))
    arrays = state.arrays()
    other.load(arrays, state.step)
    for each in (state, other):
        each.update(*noise(state, 1))
    assert other.step == 2
    assert all(torch.equal(state.vectors[name], other.vectors[name]) for name in arrays)
    assert torch.equal(other.model.parameters_flat, state.model.parameters_flat)
    assert not torch.equal(state.vectors["parameters"], torch.from_numpy(arrays["parameters"]))  # they were copies
