"""The torch module: equal to the reference, in both modes, in its gradients, and with its flat tensors as promised."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from mobilenet import reference, weights
from mobilenet.arch import SCALINGS, Network, sources, v1, v2
from mobilenet.errors import ModelError, UsageError
from mobilenet.training.torch_model import TorchMobileNet
from small_members import Tensors, random_pixels, random_tensors, small_members

SINGLE = float(np.finfo(np.float32).eps)
BFLOAT = float(torch.finfo(torch.bfloat16).eps)
MEMBERS = small_members()


def scaled(network: Network, pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    mean, std = SCALINGS[network.conventions.scaling]
    return np.asarray((pixels - mean) / std)


def images(x: NDArray[np.float64], dtype: torch.dtype = torch.float32) -> Tensor:
    """Returns [N, C, H, W] in channels_last memory."""
    return torch.from_numpy(x).to(dtype).permute(0, 3, 1, 2)


def nhwc(found: Tensor) -> NDArray[np.float64]:
    array = found.detach().double().numpy()
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def without_dropout(network: Network) -> Network:
    return network.replace(conventions=dataclasses.replace(network.conventions, dropout=0.0))


# ------------------------------------------------------------------------------------------- equal to the reference


def test_members_cover_what_members_can_be() -> None:
    assert len(MEMBERS) >= 50
    seen = [{**dataclasses.asdict(member.conventions), **dataclasses.asdict(member)} for member in MEMBERS]
    pairs = {(member["family"], member["padding"]) for member in seen}
    assert pairs == {(family, padding) for family in ("v1", "v2") for padding in ("same", "symmetric", "bottom_right")}
    assert {(m["family"], m["separable"], m["include_top"]) for m in seen} == {
        (family, a, b) for family in ("v1", "v2") for a in (True, False) for b in (True, False)
    }
    for field, values in {
        "channels": {1, 3, 4},
        "downsampling": {4, 8, 16, 32},
        "pooling": {None, "avg", "max"},
        "activation": {"relu", "relu6"},
        "scaling": set(SCALINGS),
    }.items():
        assert {member[field] for member in seen} == values
    for field in ("conv_bias", "fixed_stem", "expand_first", "round_expansion", "background"):
        assert {member[field] for member in seen} == {False, True}
    parities = {(m["height"] % 2, m["width"] % 2) for m in seen}
    assert len(parities) == 4
    assert 3 * len(sources("v1") + sources("v2")) <= len(MEMBERS), "all sources three times"
    assert any(layer.adds and layer.block == 0 for member in MEMBERS for layer in member.layers)


def assert_reaches_clamps(network: Network, values: dict[str, NDArray[np.float64]]) -> None:
    for end, activations in ((0, ("relu", "relu6")), (6, ("relu6",))):
        found = [values[layer.name] == end for layer in network.layers if layer.activation in activations]
        assert not found or np.mean([clamped.any() for clamped in found]) > 0.7, f"most layers must reach {end}"


@pytest.mark.parametrize("index", range(len(MEMBERS)))
def test_equals_the_reference(index: int) -> None:
    network = MEMBERS[index]
    tensors, pixels = random_tensors(network, index), random_pixels(network, 2, index)
    x = scaled(network, pixels).astype(np.float32).astype(np.float64)
    expected = reference.outputs(network, tensors, x, scaling=reference.UNSCALED)
    assert_reaches_clamps(network, expected)
    model = TorchMobileNet(network, tensors).eval()
    with torch.no_grad():
        found = nhwc(model(images(x)))
    tolerance = reference.tolerance(network, tensors, x, SINGLE, scaling=reference.UNSCALED)
    logits = expected[network.layers[-1].name]
    assert found.shape == logits.shape
    assert (np.abs(found - logits) <= tolerance).all(), np.abs(found - logits).max() / tolerance.max()
    apart = np.abs(logits[0] - logits[1])[tolerance[0] > 0] / tolerance[0][tolerance[0] > 0]
    assert np.quantile(apart, 0.9) > 3, "a tolerance that does not tell one photo from the other"


@pytest.mark.parametrize("network", [v1(0.25, (35, 48), 9), v2(0.35, (48, 35), 9)], ids=["v1", "v2"])
def test_bfloat16_equals_the_reference(network: Network) -> None:
    network = without_dropout(network)
    tensors, x = random_tensors(network), scaled(network, random_pixels(network, 4))
    model = TorchMobileNet(network, tensors).eval()
    with torch.autocast("cpu", torch.bfloat16):
        found = nhwc(model(images(x)))
    expected = reference.forward(network, tensors, x, scaling=reference.UNSCALED)
    tolerance = reference.tolerance(network, tensors, x, SINGLE, storage=BFLOAT, scaling=reference.UNSCALED)
    assert (np.abs(found - expected) <= tolerance).all()
    assert np.abs(found - expected).max() > 50 * SINGLE, "autocast had no effect"


# ---------------------------------------------------------------------------------------------------- training mode


def batch_statistics(network: Network, tensors: Tensors, x: NDArray[np.float64]) -> tuple[Tensors, list[float]]:
    """Returns tensors whose batch norm has each layer's own statistics on `x`, and the statistics with n - 1."""
    tensors = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    unbiased = []
    values: dict[str, NDArray[np.float64]] = {}
    for previous, layer in zip((None, *network.layers), network.layers, strict=False):
        if layer.batch_norm:
            before = values[previous.name] if previous else x
            sums = reference.weighted_sum(layer, before, tensors[f"{layer.name}.weight"])
            sums += tensors.get(f"{layer.name}.bias", 0)
            mean, variance = sums.mean((0, 1, 2)), sums.var((0, 1, 2))
            tensors[f"{layer.name}.mean"], tensors[f"{layer.name}.variance"] = mean, variance
            count = sums.size // layer.output.channels
            unbiased += [*mean, *(variance * count / (count - 1))]
            normed = (sums - mean) / np.sqrt(variance + network.conventions.batch_norm_epsilon)
            found = reference.activate(layer, normed * tensors[f"{layer.name}.gamma"] + tensors[f"{layer.name}.beta"])
            values[layer.name] = found + (values[layer.adds] if layer.adds else 0)
    return tensors, unbiased


@pytest.mark.parametrize("index", range(0, 36, 3))
def test_training_mode_normalises_with_the_batch_and_keeps_its_statistics(index: int) -> None:
    network = without_dropout(MEMBERS[index])
    tensors, x = random_tensors(network), scaled(network, random_pixels(network, 3))
    model = TorchMobileNet(network, tensors).double().train()
    before = model.statistics.clone()
    logits = nhwc(model(images(x, torch.float64)))
    with_batch, unbiased = batch_statistics(network, tensors, x)
    close = {"rtol": 1e-9, "atol": 1e-9}  # float64, of which the normalisation of few equal values may lose some
    np.testing.assert_allclose(model.batch_statistics.numpy(), unbiased, **close)
    np.testing.assert_allclose(logits, reference.forward(network, with_batch, x, scaling=reference.UNSCALED), **close)
    assert torch.equal(model.statistics, before), "only the trainer moves the running statistics"


@pytest.mark.parametrize(
    "network",
    [
        v1(0.25, (40, 33), 5, downsampling=8, conventions="mlperf_tiny"),
        v2(0.25, (33, 40), 5, downsampling=8, conventions="torchvision"),
        v2(0.1, (36, 35), downsampling=8, separable=False, include_top=False, pooling="max"),
        v1(0.1, (36, 35), downsampling=8, include_top=False),
    ],
    ids=str,
)
@pytest.mark.parametrize("training", [True, False])
def test_gradient_is_the_slope(network: Network, training: bool) -> None:
    network = without_dropout(network)
    x = images(scaled(network, random_pixels(network, 4)), torch.float64)
    model = TorchMobileNet(network, random_tensors(network)).double().train(training)
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(model(x).shape, generator=generator, dtype=torch.float64)
    (model(x) * target).sum().backward()
    gradient, start = model.gradients_flat, model.parameters_flat.detach().clone()
    direction = torch.randn(gradient.shape, generator=generator, dtype=torch.float64) * 1e-8
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            model.parameters_flat.copy_(start + sign * direction)
            ends.append(float((model(x) * target).sum()))
    error = abs((ends[0] - ends[1]) / 2 - float(gradient @ direction))
    assert error < 1e-3 * float((gradient * direction).norm())  # a few of the clamps lie within the step


def test_bfloat16_gradient_points_where_the_exact_one_does() -> None:
    network = v2(0.35, (48, 41), 9, downsampling=16)
    # Eval mode: in training mode the statistics of so few images make the exact gradient itself jump about.
    model = TorchMobileNet(network, random_tensors(network)).eval()
    x = images(scaled(network, random_pixels(network, 8)))
    gradients = []
    for enabled in (False, True):
        model.gradients_flat.zero_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logits = model(x)
        logits.float().square().mean().backward()
        gradients.append(model.gradients_flat.clone())
    assert gradients[1].dtype == torch.float32
    cosine = torch.nn.functional.cosine_similarity(*gradients, dim=0)
    assert cosine > 0.9  # of unrelated vectors of this length it is below 0.01
    assert not torch.equal(*gradients)


def test_two_passes_before_a_backward_and_a_batch_of_nan_leave_no_trace() -> None:
    network = without_dropout(v1(0.1, 32, 3))
    model = TorchMobileNet(network, random_tensors(network)).train()
    x = images(scaled(network, random_pixels(network, 4)))
    model(x).sum().backward()
    alone, statistics = model.gradients_flat.clone(), model.batch_statistics.clone()
    model.gradients_flat.zero_()
    first = model(x)
    model(torch.full_like(x, torch.nan))
    assert model.batch_statistics.isnan().any()
    first.sum().backward()
    assert torch.equal(model.gradients_flat, alone)
    model(x)
    assert torch.equal(model.batch_statistics, statistics)


def test_dropout_drops_in_training_only() -> None:
    network = v2(0.1, 32, 1280)
    network = network.replace(conventions=dataclasses.replace(network.conventions, dropout=0.25))
    tensors = random_tensors(network)
    tensors["classifier.weight"], tensors["classifier.bias"] = (
        np.eye(1280, dtype=np.float32),
        np.zeros(1280, np.float32),
    )
    model = TorchMobileNet(network, tensors)
    features = torch.ones(64, 1280)
    assert torch.equal(model.eval().classify(features), features)
    torch.manual_seed(0)
    kept = model.train().classify(features)
    assert set(kept.unique().tolist()) == {0.0, float(torch.tensor(1 / 0.75))}
    assert abs(float((kept == 0).float().mean()) - 0.25) < 6 * (0.25 * 0.75 / features.numel()) ** 0.5


# ----------------------------------------------------------------------------------------------------- flat tensors


def test_parameters_are_views_of_one_tensor_in_file_layout_and_order() -> None:
    network = v2(0.25, 32, 5, conventions="torchvision")
    tensors = random_tensors(network)
    model = TorchMobileNet(network, tensors)
    assert [name for name, _ in model.named_parameters()] == ["parameters_flat"]
    learned = [name for name in network.tensors if name.rpartition(".")[2] not in ("mean", "variance")]
    assert model.parameters_flat.shape == (sum(tensors[name].size for name in learned),)
    start = 0
    for name in learned:
        view = model.parameter(name)
        np.testing.assert_array_equal(view.numpy(), tensors[name])
        assert view.data_ptr() == model.parameters_flat.data_ptr() + 4 * start
        start += view.numel()
    model.parameter("block2.depthwise.gamma").fill_(7)
    assert (model.tensors()["block2.depthwise.gamma"] == 7).all()
    assert (model.parameters_flat == 7).sum() == tensors["block2.depthwise.gamma"].size
    statistics = np.concatenate([value for name, value in tensors.items() if name.endswith((".mean", ".variance"))])
    np.testing.assert_array_equal(model.statistics.numpy(), statistics)


def test_gradients_add_up_in_place() -> None:
    network = without_dropout(v1(0.1, 32, 3))
    model = TorchMobileNet(network, random_tensors(network)).eval()
    x = images(scaled(network, random_pixels(network)))
    flat = model.gradients_flat
    assert flat.shape == model.parameters_flat.shape
    assert not flat.any()
    model(x).sum().backward()
    once = flat.clone()
    assert once.any()
    model(x).sum().backward()
    assert model.gradients_flat is flat
    np.testing.assert_allclose(flat.numpy(), 2 * once.numpy(), rtol=1e-6)
    torch.optim.SGD(model.parameters()).zero_grad()
    assert not model.gradients_flat.any()


def test_decay_is_for_standard_and_pointwise_convolutions_and_the_classifier() -> None:
    network = v1(0.25, 32, 3, conventions="mlperf_tiny")
    model = TorchMobileNet(network, random_tensors(network))
    model.parameters_flat.data.copy_(model.decayed)
    learned = [name for name in network.tensors if name.rpartition(".")[2] not in ("mean", "variance")]
    decayed = {name for name in learned if model.parameter(name).all()}
    assert {name for name in learned if model.parameter(name).any()} == decayed
    blocks = {f"block{n}.pointwise.weight" for n in range(13)}
    assert decayed == {"stem.weight", "classifier.weight", *blocks}


def test_tensors_and_load_are_inverse_and_copy() -> None:
    network = v2(0.1, 32, 5, separable=False)
    tensors = random_tensors(network)
    model = TorchMobileNet(network)
    model.load(tensors)
    found = model.tensors()
    assert list(found) == list(network.tensors)
    for name, tensor in found.items():
        np.testing.assert_array_equal(tensor, tensors[name])
        assert tensor.dtype == np.float32
        assert tensor.flags.owndata or tensor.base is None
    found["stem.weight"][:] = 0
    tensors["stem.gamma"][:] = 0
    assert model.parameter("stem.weight").any()
    assert model.parameter("stem.gamma").any()


def test_begins_with_the_initial_weights() -> None:
    network = v1(0.1, 32, 5)
    for name, tensor in TorchMobileNet(network).tensors().items():
        np.testing.assert_array_equal(tensor, weights.initial(network, 0)[name])


def test_state_dict_and_copies_hold_all_that_is_learned() -> None:
    network = v1(0.1, 32, 5)
    model = TorchMobileNet(network, random_tensors(network)).eval()
    assert set(model.state_dict()) == {"parameters_flat", "statistics"}
    x = images(scaled(network, random_pixels(network)))
    other = TorchMobileNet(network).eval()
    assert not torch.equal(model(x), other(x))
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(x), other(x))
    copied = copy.deepcopy(model)
    copied.parameter("stem.weight").zero_()
    assert torch.equal(model(x), other(x))


# ----------------------------------------------------------------------------------------------------- in two parts


@pytest.mark.parametrize("make", [v1, v2])
def test_pooled_then_classify_is_forward(make: type[v1]) -> None:
    network = make(0.25, 32, 5)
    tensors = random_tensors(network)
    model = TorchMobileNet(network, tensors).eval()
    x = images(scaled(network, random_pixels(network)))
    features = model.pooled(x)
    assert torch.equal(model.classify(features), model(x))
    headless = network.replace(include_top=False, pooling="avg")
    kept = {name: tensor for name, tensor in tensors.items() if name in headless.tensors}
    assert torch.equal(features, TorchMobileNet(headless, kept).eval()(x))
    assert torch.equal(features, TorchMobileNet(headless, kept).eval().pooled(x))


def test_errors_say_what_was_needed() -> None:
    network = v1(0.1, (32, 40), 5, include_top=False)
    tensors = random_tensors(network)
    model = TorchMobileNet(network, tensors)
    with pytest.raises(UsageError, match=r"x: got shape \(1, 3, 40, 32\), the network needs \(N, 3, 32, 40\)"):
        model(torch.zeros(1, 3, 40, 32))
    with pytest.raises(UsageError, match=r"pooled: MobileNetV1 .* has no pooling; describe it with pooling='avg'"):
        model.pooled(torch.zeros(1, 3, 32, 40))
    with pytest.raises(UsageError, match=r"classify: MobileNetV1 .* has no classifier; describe it with include_top"):
        model.classify(torch.zeros(1, 102))
    with pytest.raises(ModelError, match=r"'stem.gamma' .* is missing"):
        model.load({name: tensor for name, tensor in tensors.items() if name != "stem.gamma"})
    with pytest.raises(ModelError, match=r"'stem.weight' has shape \(3, 3, 3, 4\)"):
        model.load(tensors | {"stem.weight": tensors["stem.weight"].swapaxes(2, 3)[..., :3, :].repeat(4, -1)[..., :4]})
