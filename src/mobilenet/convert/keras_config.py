"""The layers of a Keras model's config as one flat list, models in models laid out, whichever Keras wrote it."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ..common.checks import short
from ..errors import ModelError

_MAX_LAYERS = 2_000
_MAX_DEPTH = 4  # of models in models
_MODELS = ("Functional", "Model", "Sequential")
# Keras 2 writes operations on tensors, as `preprocess_input` makes them, under the names of TensorFlow's functions.
_FUNCTIONS = {"math.truediv": "TrueDivide", "math.subtract": "Subtract", "math.multiply": "Multiply"}


class Op(NamedTuple):
    """Is one layer of a config, models in models laid out flat.

    Attributes:
        name: of the layer.
        kind: Keras' class.
        config: its arguments.
        inputs: names of the layers, with the models they are in, whose outputs it takes.
        constants: numbers among its arguments, for operations on them.
        key: its name, with the models it is in.
    """

    name: str
    kind: str
    config: Mapping[str, Any]
    inputs: tuple[str, ...]
    constants: tuple[float, ...]
    key: str


def operations(config: object) -> tuple[list[Op], str]:
    """Returns the layers of a model in order, and the key of the one that gives its output.

    Raises:
        ModelError: names the layer that is used twice, or takes what does not come before it.
    """
    return _flatten(_model(config), None, "", 0)


def _model(config: object) -> Mapping[str, Any]:
    if not isinstance(config, Mapping) or config.get("class_name") not in _MODELS:
        kind = config.get("class_name") if isinstance(config, Mapping) else config
        raise ModelError(f"the model is of class {short(kind)}; needed is a functional or sequential model")
    return config


def _flatten(model: Mapping[str, Any], given: str | None, prefix: str, depth: int) -> tuple[list[Op], str]:
    """Returns the layers of a model and of the models in it, in order, and the key of its output.

    Args:
        given: key of the layer that feeds the model, None for the outermost.
        prefix: of the keys of its layers.
    """
    if depth == _MAX_DEPTH:
        raise ModelError(f"model {short(prefix)} is nested too deeply")
    inner = model["config"]
    sequential = model["class_name"] == "Sequential"
    listed = inner["layers"] if isinstance(inner, Mapping) else inner  # Keras before 2.3: a list
    found: list[Op] = []
    outputs: dict[str, str] = {}  # name -> key of what it gives
    previous = given
    for entry in listed:
        kind, name = entry["class_name"], entry.get("name") or entry["config"]["name"]
        inputs, constants = ((), ()) if sequential else _inputs(entry)
        sources: tuple[str, ...]
        key = f"{prefix}{name}"
        if sequential:
            sources = () if previous is None else (previous,)
        else:
            sources = tuple(outputs.get(each) or _unknown(name, each) for each in inputs)
        if kind == "InputLayer" and given is not None:
            sources = (given,)
        if kind in _MODELS:
            if len(sources) > 1:
                raise ModelError(f"model {short(name)} has {len(sources)} inputs, needed is one")
            # Without a source the model is the first layer of a sequential one.
            more, outputs[name] = _flatten(entry, sources[0] if sources else None, f"{key}/", depth + 1)
            found += more
        else:
            if kind == "TFOpLambda":
                kind = _FUNCTIONS.get(entry["config"]["function"], kind)
            found.append(Op(name, kind, entry["config"], sources, constants, key))
            outputs[name] = key
        previous = outputs[name]
        if len(found) > _MAX_LAYERS:
            raise ModelError(f"has more than {_MAX_LAYERS:,} layers")
    if not found:
        raise ModelError("the model has no layers")
    if sequential:
        return found, str(previous)
    return found, outputs[_single(inner["output_layers"], "output")]


def _unknown(name: str, source: str) -> str:
    raise ModelError(f"layer {short(name)} takes the output of {short(source)}, which does not come before it")


def _single(layers: Any, what: str) -> str:
    """Returns the name in ["name", 0, 0] or [["name", 0, 0]]."""
    listed = layers if isinstance(layers[0], list) else [layers]
    if len(listed) != 1:
        raise ModelError(f"the model has {len(listed)} {what}s, needed is one")
    return str(listed[0][0])


def _inputs(entry: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Returns the names of the layers that a layer takes, and the numbers among its arguments."""
    nodes = entry["inbound_nodes"]
    if not nodes:
        return (), ()
    if len(nodes) > 1:
        raise ModelError(f"layer {short(entry.get('name'))} is used {len(nodes)} times, no MobileNet does that")
    node = nodes[0]
    if isinstance(node, Mapping):  # Keras 3
        return tuple(_tensors(node["args"])), tuple(_numbers([*node["args"], *node.get("kwargs", {}).values()]))
    listed = node if isinstance(node[0], list) else [node]
    arguments = [value for each in listed if len(each) > 3 for value in each[3].values()]
    return tuple(str(each[0]) for each in listed), tuple(_numbers(arguments))


def _tensors(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for each in value:
            yield from _tensors(each)
    elif isinstance(value, Mapping) and value.get("class_name") == "__keras_tensor__":
        yield str(value["config"]["keras_history"][0])


def _numbers(values: list[Any]) -> Iterator[float]:
    for value in values:
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield float(value)
