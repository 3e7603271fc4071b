"""A model as a Keras 3 model, with the source notes' names of layers."""

from typing import Any

from .. import notes as listing
from ..arch import Layer, Network
from ..errors import UsageError
from ..model import Model


def keras_model(model: Model) -> Any:
    """Builds the Keras 3 model of a model, with its weights, under the layer names of `model.summary()`.

    Its input are scaled pixels, (pixels - mean) / std of `model.preprocessing`, float32 [N, height, width, channels];
    its output probabilities [N, classes]; without the top the feature maps, or what pooling makes of them.

    Raises:
        UsageError: Keras 3 is not installed.
    """
    try:
        import keras
    except ImportError:
        raise UsageError("keras_model needs Keras 3 and a back end for it: pip install 'mobilenet[keras]'") from None
    network = model.network
    owners = {tensor: layer for layer in network.layers for tensor in layer.tensors}
    inputs = x = keras.Input(tuple(network.input), name="input")
    outputs: dict[str, Any] = {}
    layer = network.layers[0]
    for row in listing.rows(network)[1:]:
        layer = next((owners[tensor] for tensor in row.tensors.values()), layer)
        x = _applied(keras, network, layer, row, x, outputs)
        outputs[layer.name] = x
    built = keras.Model(inputs, x)
    for row in listing.rows(network):
        if row.tensors:
            arrays = [model.tensors[tensor].reshape(row.shapes[part]) for part, tensor in row.tensors.items()]
            built.get_layer(row.name).set_weights(arrays)
    return built


def _applied(keras: Any, network: Network, layer: Layer, row: listing.Row, x: Any, outputs: dict[str, Any]) -> Any:
    """Returns what the row's layer makes of `x`."""
    conv, kinds = network.conventions, keras.layers
    match row.kind:
        case "Conv2D" | "DepthwiseConv2D":
            same = conv.padding == "same" or layer.kernel == 1
            if not same:
                x = kinds.ZeroPadding2D(layer.padding, name=f"{row.name}_pad")(x)
            common = {
                "strides": layer.stride,
                "padding": "same" if same else "valid",
                "use_bias": layer.bias,
                "name": row.name,
            }
            if row.kind == "DepthwiseConv2D":
                return kinds.DepthwiseConv2D(layer.kernel, **common)(x)
            return kinds.Conv2D(layer.output.channels, layer.kernel, **common)(x)
        case "BatchNormalization":
            return kinds.BatchNormalization(
                epsilon=conv.batch_norm_epsilon, momentum=conv.batch_norm_momentum, name=row.name
            )(x)
        case "Activation":
            return kinds.Activation(layer.activation, name=row.name)(x)
        case "Add":
            return kinds.Add(name=row.name)([outputs[str(layer.adds)], x])
        case "Dense":
            return kinds.Dense(network.classes, activation="softmax", name=row.name)(x)
        case _:
            return getattr(kinds, row.kind)(name=row.name)(x)
