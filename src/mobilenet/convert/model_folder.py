"""Folders with a config.json beside the weights, as the hub has them: of transformers and of timm."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..arch import Conventions, Network, conventions
from ..common import strict_json
from ..common.checks import short
from ..common.files import shown, write_atomic
from ..errors import MobileNetError, ModelError, UsageError
from ..model import Model
from ..storage.folder import Stored
from .names import HUGGINGFACE_V1, HUGGINGFACE_V2, TIMM_V1, TIMM_V2, Source
from .source import Options, finish
from .state_dict import encode, read_tensors, source_for
from .unpickle import unpickled

CONFIG, WEIGHTS, PROCESSOR = "config.json", "model.safetensors", "preprocessor_config.json"
_PICKLES = ("pytorch_model.bin", "model.pth")
_TYPES = {"mobilenet_v1": HUGGINGFACE_V1, "mobilenet_v2": HUGGINGFACE_V2}
_ARCHITECTURES = {"mobilenetv1_": TIMM_V1, "mobilenetv2_": TIMM_V2}
_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def read(path: Path, options: Options) -> Stored:
    """Reads a folder with config.json and model.safetensors (or a pickle, if the options say so).

    Raises:
        ModelError: names the file, and the field or tensor that does not fit.
    """
    config = strict_json.read_object(path / CONFIG)
    if config.get("format") == "mobilenet model":
        raise ModelError(f"{shown(path)}: is a model of mobilenet already; nothing is to be converted")
    if config.get("model_type") in _TYPES:
        return _transformers(path, config, options)
    architecture = str(config.get("architecture"))
    for begin, source in _ARCHITECTURES.items():
        if architecture.startswith(begin):
            return _timm(path, config, source, options)
    given = config.get("model_type") or config.get("architecture")
    raise ModelError(
        f"{shown(path / CONFIG)}: not a MobileNet: describes {short(given)}; needed is a model_type of "
        f"{', '.join(_TYPES)} (transformers), or an architecture of mobilenetv1 or mobilenetv2 (timm)"
    )


def _weights(path: Path, source: Source, rules: Conventions | None, options: Options) -> tuple[Network, dict[str, Any]]:
    """Returns the network, at 224x224, and its tensors."""
    pickled = next((path / name for name in _PICKLES if (path / name).exists()), None)
    if (path / WEIGHTS).exists() or pickled is None:
        fit, tensors = read_tensors(path / WEIGHTS, [source], rules)
    elif not options.unpickle:
        raise ModelError(
            f"{shown(pickled)}: is a pickle, which can run code when it is read, and there is no {WEIGHTS}; --unpickle "
            "(unpickle=True) reads it: tensors alone, in a process of its own without network"
        )
    else:
        with unpickled(pickled) as file:
            fit, tensors = read_tensors(pickled, [source], rules, file)
    return fit.network, tensors


# ----------------------------------------------------------------------------------------------------- transformers


def _transformers(path: Path, config: Mapping[str, Any], options: Options) -> Stored:
    source = _TYPES[config["model_type"]]
    try:
        _refuse(config)
        rules = _conventions(source, config)
        alpha, side = config.get("depth_multiplier", 1.0), config.get("image_size", 224)
        processor = strict_json.read_object(path / PROCESSOR) if (path / PROCESSOR).exists() else {}
        sides, preprocessing = _processing(processor, side)
    except (UsageError, TypeError, KeyError, ZeroDivisionError) as error:
        raise ModelError(f"{shown(path)}: {type(error).__name__}: {error}") from error
    network, tensors = _weights(path, source, rules, options)
    network = _with_alpha(path, network, alpha).replace(height=sides[0], width=sides[1])
    rules = dataclasses.replace(network.conventions, background=network.classes == 1001)
    network = network.replace(conventions=rules)
    return finish(
        path,
        source.title,
        network,
        tensors,
        options,
        labels=labels(path / CONFIG),
        preprocessing=preprocessing,
    )


def labels(path: Path) -> list[str] | None:
    """Returns the labels of transformers' config.json; None where they are numbers, or its own "LABEL_0", ….

    Raises:
        ModelError: names the file that can't be read.
    """
    given = strict_json.read_object(path).get("id2label")
    if not isinstance(given, dict):
        return None
    names = [given.get(str(n)) for n in range(len(given))]
    if all(name in (str(n), f"LABEL_{n}") for n, name in enumerate(names)):
        return None
    return [str(name) for name in names]


def _refuse(config: Mapping[str, Any]) -> None:
    needed = {"expand_ratio": 6, "output_stride": 32}
    for name, value in needed.items():
        if config.get(name, value) != value:
            raise UsageError(f"{name}: got {short(config[name])}, needed {value}")
    for architecture in config.get("architectures") or ():
        if not str(architecture).endswith("ForImageClassification"):
            raise UsageError(f"architectures: {short(architecture)} is no image classification")


def _conventions(source: Source, config: Mapping[str, Any]) -> Conventions:
    changes: dict[str, Any] = {
        "padding": "same" if config.get("tf_padding", True) else "symmetric",
        "activation": config.get("hidden_act", "relu6"),
        "batch_norm_epsilon": config.get("layer_norm_eps", 1e-3),
        "min_width": config.get("min_depth", 8),
    }
    if source.family == "v2":
        changes |= {
            "divisor": config.get("depth_divisible_by", 8),
            "expand_first": not config.get("first_layer_is_expansion", True),
            "scale_head": "above_one" if config.get("finegrained_output", True) else "always",
        }
    return conventions(source.family, source.preset, **changes)


def _with_alpha(path: Path, network: Network, alpha: float) -> Network:
    """Returns the network with the alpha that the config says: several may have the same widths."""
    try:
        said = network.replace(alpha=alpha)
    except UsageError as error:
        raise ModelError(f"{shown(path / CONFIG)}: depth_multiplier: {error}") from error
    if said.tensors != network.tensors:
        raise ModelError(
            f"{shown(path / CONFIG)}: says depth_multiplier {alpha}, the tensors are those of alpha {network.alpha}"
        )
    return said


def _processing(config: Mapping[str, Any], side: int) -> tuple[tuple[int, int], dict[str, Any]]:
    """Returns the input's height and width, and the preprocessing, of a preprocessor_config.json."""
    factor = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0
    mean, std = config.get("image_mean", [0.5] * 3), config.get("image_std", [0.5] * 3)
    if not config.get("do_normalize", True):
        mean, std = [0.0], [1.0]
    mean, std = (_shorter(tuple(round(value / factor, 6) for value in values)) for values in (mean, std))
    found: dict[str, Any] = {"mean": mean, "std": std}
    if config.get("resample") in _INTERPOLATIONS:
        found["interpolation"] = _INTERPOLATIONS[config["resample"]]
    size = config.get("size", {})
    crop = config.get("crop_size") if config.get("do_center_crop", True) else None
    sides = (side, side)
    if isinstance(crop, Mapping):
        sides = (crop["height"], crop["width"])
    elif "height" in size:
        sides = (size["height"], size["width"])
    if isinstance(size, Mapping) and "shortest_edge" in size:
        found["crop"] = min(min(sides) / size["shortest_edge"], 1.0)
    elif isinstance(size, Mapping) and "height" in size:
        found |= {"resize": "squash", "crop": min(sides[0] / size["height"], 1.0)}
    return sides, found


def _shorter(values: tuple[float, ...]) -> tuple[float, ...]:
    return values[:1] if len(set(values)) == 1 else values


def write(model: Model, path: Path, format: str) -> None:
    """Writes a folder that `from_pretrained` of transformers loads: weights, config with labels, preprocessing.

    Raises:
        ModelError: transformers' network is another, names the difference; or the folder is there already.
    """
    network, conv = model.network, model.network.conventions
    free = ("activation", "batch_norm_epsilon", "min_width", "divisor", "expand_first", "scale_head")
    rules = {name: getattr(conv, name) for name in free}
    rules["padding"] = "symmetric" if conv.padding == "symmetric" else "same"
    if network.family == "v1":
        rules["divisor"] = 8  # which V1's rule for widths does not look at
    source = source_for(model, (HUGGINGFACE_V1, HUGGINGFACE_V2), format, rules)
    if not network.include_top:
        raise ModelError(f"format: {source.title} has a classifier, {network} has none")
    files = {
        CONFIG: json.dumps(_config(model, source, rules), indent=1, ensure_ascii=False).encode(),
        PROCESSOR: json.dumps(_processor(model), indent=1).encode(),
        WEIGHTS: encode(model, source),
    }
    try:
        path.mkdir(parents=True, exist_ok=True)
        taken = next(path.iterdir(), None)
    except OSError as error:
        raise MobileNetError(f"{shown(path)}: can't be made: {error.strerror}") from error
    if taken:
        raise ModelError(f"{shown(path)}: holds files already; choose another folder")
    for name, data in files.items():
        write_atomic(path / name, data)


def _config(model: Model, source: Source, rules: Mapping[str, Any]) -> dict[str, Any]:
    network, version = model.network, source.family.removeprefix("v")
    found: dict[str, Any] = {
        "architectures": [f"MobileNetV{version}ForImageClassification"],
        "model_type": f"mobilenet_v{version}",
        "num_channels": network.channels,
        "image_size": network.height,
        "depth_multiplier": network.alpha,
        "min_depth": rules["min_width"],
        "hidden_act": rules["activation"],
        "tf_padding": rules["padding"] == "same",
        "layer_norm_eps": rules["batch_norm_epsilon"],
        # transformers' defaults, 0.999 and 0.8, are probabilities to keep, used as probabilities to drop.
        "classifier_dropout_prob": network.conventions.dropout,
        "id2label": {str(n): label for n, label in enumerate(model.labels)},
        "label2id": {label: n for n, label in enumerate(model.labels)},
        "torch_dtype": "float32",
    }
    if source.family == "v2":
        found |= {
            "depth_divisible_by": rules["divisor"],
            "expand_ratio": 6.0,
            "output_stride": 32,
            "first_layer_is_expansion": not rules["expand_first"],
            "finegrained_output": rules["scale_head"] == "above_one",
        }
    return found


def _processor(model: Model) -> dict[str, Any]:
    given = model.preprocessing
    side = round(min(given.height, given.width) / given.crop)
    mean, std = ([value / 255 for value in values] for values in (given.mean, given.std))
    cropped = given.resize == "crop"
    return {
        "image_processor_type": f"MobileNetV{model.network.family.removeprefix('v')}ImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": side} if cropped else {"height": given.height, "width": given.width},
        "do_center_crop": cropped,
        "crop_size": {"height": given.height, "width": given.width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean * (given.channels if len(mean) == 1 else 1),
        "image_std": std * (given.channels if len(std) == 1 else 1),
        "resample": next(n for n, name in _INTERPOLATIONS.items() if name == given.interpolation),
    }


# ------------------------------------------------------------------------------------------------------------- timm


def _timm(path: Path, config: Mapping[str, Any], source: Source, options: Options) -> Stored:
    given = config.get("pretrained_cfg", config)
    try:
        _, height, width = given.get("input_size", (3, 224, 224))
        mean, std = (_shorter(tuple(round(value * 255, 6) for value in given[name])) for name in ("mean", "std"))
        preprocessing = {
            "mean": mean,
            "std": std,
            "crop": float(given.get("crop_pct", source.crop)),
            "interpolation": given.get("interpolation", source.interpolation),
        }
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ModelError(f"{shown(path / CONFIG)}: pretrained_cfg: {type(error).__name__}: {error}") from error
    network, tensors = _weights(path, source, None, options)
    network = network.replace(height=height, width=width)
    names = given.get("label_names") or config.get("label_names")
    return finish(path, source.title, network, tensors, options, labels=names or None, preprocessing=preprocessing)
