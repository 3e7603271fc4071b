"""Integer TFLite files: computed to the last bit of LiteRT's reference kernels; and such as no kernel takes."""

import os
import platform
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mobilenet
from integer_tflite import Maker, Options8
from mobilenet import cli, photos, quantized
from mobilenet.arch import Network, v1, v2
from mobilenet.convert.tflite import model_of, read
from mobilenet.convert.tflite_integer import preprocessing_of
from mobilenet.engine import Engine
from mobilenet.errors import ModelError, UsageError
from mobilenet.evaluation.activation import classifier_weight
from mobilenet.fixed_point import softmax
from mobilenet.formats import tflite_graph
from mobilenet.formats import tflite_schema as schema
from mobilenet.formats.flatbuffer import Scalar
from mobilenet.formats.tflite_schema import Op, Tensor, Type
from mobilenet.integer import outputs
from mobilenet.model import Model
from mobilenet.photos.preprocessing import Preprocessing
from mobilenet.quantized import Rescale
from mobilenet.runner import runner
from model_makers import edit_config, random_model, random_pixels, same_tensors

DATA = os.environ.get("MOBILENET_DATA")
real = pytest.mark.skipif(DATA is None, reason="MOBILENET_DATA is not set")
UINT8, INT8 = Type.UINT8, Type.INT8
V1 = v1(0.25, 32, 30, conventions="slim")
V2 = v2(0.35, 48, 20, conventions="slim")
OPTIONS = [
    Options8(UINT8),
    Options8(UINT8, mean=True, convolution=False, bias=False),
    Options8(INT8, channels=True),
    Options8(INT8, channels=True, mean=True, convolution=False),
    Options8(INT8, convolution=False, softmax=False),
]


def litert(
    data: bytes, pixels: np.ndarray, tensors: dict[str, int], output: int, *, reference: bool = True
) -> tuple[dict[str, Any], Any]:
    """Returns tensors by name and the output, as bytes, of LiteRT's reference kernels, or of its usual ones."""
    interpreter_module = pytest.importorskip("ai_edge_litert.interpreter")
    kinds = interpreter_module.OpResolverType
    interpreter = interpreter_module.Interpreter(
        model_content=data,
        experimental_op_resolver_type=kinds.BUILTIN_REF if reference else kinds.AUTO,
        experimental_preserve_all_tensors=reference,  # which XNNPACK does not
        num_threads=1,
    )
    interpreter.allocate_tensors()
    source = interpreter.get_input_details()[0]
    less = 128 if source["dtype"] == np.int8 else 0
    interpreter.set_tensor(source["index"], (pixels.astype(np.int16) - less).astype(source["dtype"]))
    interpreter.invoke()
    found = {name: interpreter.get_tensor(index).astype(np.int16) + less for name, index in tensors.items()}
    return found, interpreter.get_tensor(output).astype(np.int16) + less


def probabilities(model: Model, logits: np.ndarray) -> np.ndarray:
    return softmax(logits, float(model.tensors[f"{model.network.layers[-1].name}.scale"][0]))


@pytest.mark.parametrize("options", OPTIONS, ids=range(len(OPTIONS)))
@pytest.mark.parametrize(
    "network", [V1, V2, v2(0.35, 32, 7, conventions="torchvision"), v1(0.25, 40, 300, conventions="keras")], ids=str
)
def test_every_layer_is_litert_s(network: Network, options: Options8) -> None:
    for seed in range(2):
        maker = Maker(network, options, seed)
        model = model_of(maker.data)
        assert (model.precision, model.rescale) == ("int8", "fixed")
        assert [layer.name for layer in model.network.layers] == [layer.name for layer in network.layers]
        pixels = random_pixels(network, 1, seed)
        theirs, last = litert(maker.data, pixels, maker.tensors, maker.output)
        ours = outputs(model.network, model.tensors, pixels)
        for name, output in ours.items():
            assert (output.reshape(-1) == theirs[name].reshape(-1)).all(), name
        logits = ours[network.layers[-1].name].reshape(-1)
        assert len(np.unique(logits)) > 2  # nothing is told by outputs that are all clamped
        assert ((probabilities(model, logits) if options.softmax else logits) == last.reshape(-1)).all()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="elsewhere XNNPACK rounds otherwise")
@pytest.mark.parametrize("options", OPTIONS, ids=range(len(OPTIONS)))
@pytest.mark.parametrize("network", [V1, V2, v1(0.25, 40, 300, conventions="keras"), v1(0.25, 64, 5)], ids=str)
def test_full_is_litert_s_with_xnnpack(network: Network, options: Options8) -> None:
    """The last of the layers, and those that add or pool.

    Means of 4 bytes are often halves; of int8, above its 0, AVERAGE_POOL_2D alone rounds them up.
    """
    for seed in range(2):
        maker = Maker(network, options, seed)
        model = model_of(maker.data, rescale="full")
        assert model.rescale == "full"
        pixels = random_pixels(network, 1, seed)
        ours = outputs(model.network, model.tensors, pixels)
        for layer in network.layers:
            if layer.adds or layer.kind in ("average_pool", "dense"):
                data = maker.graph.encoded(network, maker.tensors[layer.name], b"")
                _, theirs = litert(data, pixels, {}, maker.tensors[layer.name], reference=False)
                other = ours[layer.name].reshape(-1) != theirs.reshape(-1)
                halves = options.kind == INT8 and not options.mean and layer.kind == "average_pool"
                assert not (other & (theirs.reshape(-1) < 128) if halves else other).any(), layer.name
                if halves and layer.input.height % 2 == 0:
                    break


def test_a_full_sum_has_the_nearest_factors_of_21_bits() -> None:
    maker = Maker(V2, OPTIONS[2], 0)
    model = model_of(maker.data, rescale="full")
    named = {found[Tensor.NAME]: maker.scales.get(index) for index, found in enumerate(maker.graph.tensors)}
    for layer in model.network.layers:
        if layer.adds:
            own, other, both = (np.float32(scale) for scale, _ in (
                named[layer.name], maker.scales[maker.tensors[layer.adds]], named[f"{layer.name}.sum"]))  # fmt: skip
            multipliers, (shift,) = (model.tensors[f"{layer.name}.sum_{part}"] for part in ("multiplier", "shift"))
            exact = np.array([own / both, other / both], np.float64) * 2.0**shift
            assert (np.abs(multipliers - exact) <= 0.5).all()
            assert 1 << 20 <= multipliers.max() <= 1 << 21


@pytest.mark.parametrize("options", [OPTIONS[4], Options8(UINT8, convolution=False, softmax=False)], ids=str)
def test_a_fully_connected_classifier_rounds_once(options: Options8) -> None:
    """Of so many classes some are rounded otherwise in two steps, as in a convolution."""
    network = v1(0.25, 32, 20_000, conventions="slim")
    maker = Maker(network, options, 2)
    model = model_of(maker.data)
    pixels = random_pixels(network, 1, 2)
    _, theirs = litert(maker.data, pixels, {}, maker.output)
    twice = model.tensors | {"classifier.roundings": np.array([2], np.int32)}
    once, other = (outputs(network, tensors, pixels)["classifier"] for tensors in (model.tensors, twice))
    assert (once.reshape(-1) == theirs.reshape(-1)).all()
    assert (other != once).any()


def test_max_pooling_takes_the_scale_of_its_input() -> None:
    network = v1(0.25, 64, 5, conventions="slim", pooling="max", include_top=False)
    maker = Maker(network, Options8(INT8, channels=True), 3)
    model = model_of(maker.data)
    pixels = random_pixels(network, 1)
    theirs, _ = litert(maker.data, pixels, maker.tensors, maker.output)
    pooled = outputs(model.network, model.tensors, pixels)[network.layers[-1].name]
    assert (pooled.reshape(-1) == theirs[network.layers[-1].name].reshape(-1)).all()


# -------------------------------------------------------------------------------------------------------- the model


@pytest.fixture(scope="module")
def model() -> Model:
    return model_of(Maker(V2, Options8(UINT8), 5).data)


def test_it_is_saved_and_loaded_and_predicts(model: Model, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    back = mobilenet.load(tmp_path / "model")
    assert same_tensors(back.tensors, model.tensors)
    assert (back.rescale, repr(back)) == ("fixed", repr(model))
    pixels = random_pixels(V2, 3)
    engine = Engine(back)
    bytes_ = outputs(V2, model.tensors, pixels)["classifier"].reshape(3, -1)
    scale, zero = (model.tensors[f"classifier.{part}"] for part in ("scale", "zero"))
    assert (engine(pixels) == (bytes_ - zero).astype(np.float32) * scale).all()
    assert [int(found.label) for found in back.predict(pixels)] == bytes_.argmax(-1).tolist()


def test_it_is_imported_with_the_user_s_options(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(Maker(V2, Options8(UINT8), 5).data)
    labels = [f"class {number}" for number in range(V2.classes)]
    whole = mobilenet.convert(path, labels=labels)
    assert (whole.rescale, list(whole.labels)) == ("fixed", labels)
    assert same_tensors(whole.tensors, model.tensors)
    assert whole.preprocessing == model.preprocessing
    bare = mobilenet.convert(path, include_top=False)
    assert same_tensors(bare.tensors, model.without_top().tensors)
    with pytest.raises(UsageError, match=r"scaling: got 'unit', but to this network of whole numbers"):
        mobilenet.convert(path, scaling="unit")


def test_without_its_top_it_gives_what_the_last_bytes_stand_for(model: Model) -> None:
    bare = model.without_top()
    assert bare.rescale == "fixed"
    pixels = random_pixels(V2, 1)
    last = bare.network.layers[-1]
    expected = quantized.dequantised(last, model.tensors, outputs(V2, model.tensors, pixels)[last.name])
    assert (runner(bare)(pixels).reshape(-1) == expected.reshape(-1)).all()


def test_weights_of_the_classifier_are_what_the_file_means() -> None:
    maker = Maker(V1, Options8(INT8, channels=True), 1)
    found = classifier_weight(model_of(maker.data))
    weight = next(tensor for tensor in tflite_graph.read(maker.data).tensors if tensor.name == "classifier.weight")
    assert weight.quantization is not None
    assert weight.data is not None
    expected = weight.data.squeeze((1, 2)).T.astype(np.float64) * weight.quantization.scale.astype(np.float64)
    # Three scales of float32 are taken out of the factor again; the factor itself is exact to 2^-31.
    assert (np.abs(found - expected) <= np.abs(expected) * 8 * np.finfo(np.float32).eps).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rescale": "float"}, "rescale: got 'float', needed 'full' or 'fixed' beside the precision 'int8', or no"),
        ({"rescale": ["full"]}, "rescale: got .*full.*, needed 'full' or 'fixed' beside the precision 'int8'"),
        ({"rescale": "full"}, "tensor 'stem.multiplier' has dtype 'I32', needed is 'F32'"),
        ({"precision": "int4"}, "precision: got 'int4', needed 'int8'"),
    ],
)
def test_configs_of_another_rescale_are_refused(
    model: Model, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    model.save(tmp_path / "model")
    edit_config(tmp_path / "model", **changes)
    with pytest.raises(ModelError, match=message):
        mobilenet.load(tmp_path / "model")


def test_tensors_of_one_rescale_are_refused_by_the_other(model: Model, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tensor 'stem.weight' has type uint8|tensor .* is missing|does not belong"):
        Model(V2, model.tensors, precision="int8")
    with pytest.raises(UsageError, match="rescale: got 'fixed'"):
        Model(V2, model.tensors, rescale="fixed")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("stem.multiplier", -1, "holds -1, needed is 0 to 2147483647"),
        ("stem.shift", 31, "holds 31, needed is -31 to 30"),
        ("stem.shift", 25, "layer 'stem': channel 0: the sum may reach .* and must stay below 2,147,483,648"),
        ("stem.bias", (1 << 31) - 1, "layer 'stem': channel 0: the sum may reach"),
        ("stem.low", 256, "holds 256, needed is 0 to 255"),
        ("stem.high", -1, "holds -1, needed is"),
        ("stem.weight_zero", 256, "holds 256, needed is 0 to 255"),
        ("stem.scale", np.nan, "holds nan, needed is a finite number"),
        ("pool.origin", 129, "holds 129, needed is 0 to 128"),
        ("classifier.roundings", 0, "holds 0, needed is 1 to 2"),
        ("classifier.zero", -1, "holds -1, needed is 0 to 255"),
        ("block2.project.sum_zero", 300, "holds 300, needed is 0 to 255"),
        ("block2.project.sum_shift", 1, "holds 1, needed is -31 to 0"),
    ],
)
def test_values_outside_their_range_are_named(model: Model, name: str, value: float, message: str) -> None:
    tensors = model.tensors | {name: model.tensors[name].copy()}
    tensors[name][0] = value
    with pytest.raises(ModelError, match=message):
        quantized.check(V2, tensors, "fixed")


# --------------------------------------------------------------------------------------------------- hostile files

Change = Callable[[Any, dict[int, Any]], None]


def changed(name: str, change: Change, options: Options8 = OPTIONS[0], network: Network = V2) -> bytes:
    """Returns a file whose tensor `name` was changed: `change` gets the maker and the tensor's fields."""
    maker = Maker(network, options, 5)
    index = [found[Tensor.NAME] for found in maker.graph.tensors].index(name)
    fields = dict(maker.graph.tensors[index])
    maker.graph.tensors[index] = fields
    change(maker, fields)
    return maker.data


def scaling(**parts: Any) -> Change:
    """Returns the change of parts of a tensor's quantisation."""

    def change(maker: Any, fields: dict[int, Any]) -> None:
        given = {schema.Quantization[name]: value for name, value in parts.items()}
        fields[Tensor.QUANTIZATION] = {**fields[Tensor.QUANTIZATION], **given}

    return change


def scale(*values: float) -> Change:
    return scaling(SCALE=np.array(values, np.float32), ZERO_POINT=np.zeros(len(values), np.int64))


def zero(value: int) -> Change:
    return scaling(ZERO_POINT=np.array([value], np.int64))


def kind(number: Type, data: bytes | None = None) -> Change:
    def change(maker: Any, fields: dict[int, Any]) -> None:
        fields[Tensor.TYPE] = Scalar("b", number)
        if data is not None:
            fields[Tensor.BUFFER] = Scalar("I", maker.graph.buffer(data))

    return change


def unscaled(maker: Any, fields: dict[int, Any]) -> None:
    del fields[Tensor.QUANTIZATION]


FULLY = Options8(INT8, channels=True, mean=True, convolution=False)


@pytest.mark.parametrize(
    ("name", "change", "message", "options"),
    [
        ("stem", scale(0.0), "tensor 'stem' has a scale that is not above 0", OPTIONS[0]),
        ("stem", scale(np.nan), "tensor 'stem' has a scale that is not above 0", OPTIONS[0]),
        ("stem", scale(1e-12), "tensor 'stem' has scale 1e-12, needed is 1e-09 to 1e", OPTIONS[0]),
        ("stem", scale(*[1.0] * 16), "tensor 'stem' has 16 scales|has 16 scales", OPTIONS[0]),
        ("stem", zero(256), "tensor 'stem' has 1 scales and zero point 256; needed are one and 0 to 255", OPTIONS[0]),
        ("stem", zero(128), "tensor 'stem' has 1 scales and zero point 128; needed are one and -128 to 127", FULLY),
        ("image", zero(-1), "tensor 'image' has 1 scales and zero point -1", OPTIONS[0]),
        ("stem", unscaled, "tensor 'stem' has no scale", OPTIONS[0]),
        ("stem", kind(INT8), "tensor 'stem' is INT8, needed is UINT8 as the input", OPTIONS[0]),
        ("stem.weight", unscaled, "tensor 'stem.weight' has no scale", OPTIONS[0]),
        ("stem.weight", zero(256), "tensor 'stem.weight' has zero point 256, needed is 0 to 255", OPTIONS[0]),
        ("stem.weight", zero(3), "tensor 'stem.weight' has zero point 3, needed of int8 weights is 0", FULLY),
        ("stem.weight", scale(*[1.0] * 16), "has 16 scales for axis 0; needed is one, or of int8", OPTIONS[0]),
        ("stem.weight", scale(*[1e10] * 16), "tensor 'stem.weight' has scale 1e.10, needed is at most 1e", FULLY),
        ("stem.weight", kind(INT8), "its weight is int8, needed is uint8", OPTIONS[0]),
        ("stem.bias", kind(Type.FLOAT32), "its bias is float32, needed is int32", OPTIONS[0]),
        ("stem.bias", kind(Type.INT64, bytes(128)), "its bias is int64, needed is int32", OPTIONS[0]),
        ("stem.bias", zero(1), "tensor 'stem.bias' has a zero point, which no bias has", OPTIONS[0]),
        ("stem.bias", scale(1.0), "tensor 'stem.bias' has other scales than the products", OPTIONS[0]),
        ("stem.bias", scale(1.0, 1.0), "tensor 'stem.bias' .*scales", OPTIONS[0]),
        ("pool", scale(3.0), "tensor 'pool' has scale 3 and zero point 0 as a byte, needed are those of", OPTIONS[0]),
        ("pool", scale(1e9), "tensor 'pool' has scale 1e.09, too large for a mean of|other scales", FULLY),
        ("probabilities", scale(0.1), "tensor 'probabilities' has scale 0.1 .* needed of a softmax are 1/256", FULLY),
        ("block2.project.sum", scale(1e-8), "has scale 1e-08, too (small for a sum|far from those) of", OPTIONS[0]),
    ],
)
def test_quantisation_that_no_kernel_has_is_named(name: str, change: Change, message: str, options: Options8) -> None:
    data = changed(name, change, options)
    with pytest.raises(ModelError, match=message):
        model_of(data)
    if "too large for a mean" not in message:
        with pytest.raises(ModelError, match=message):
            model_of(data, rescale="full")


def test_what_has_no_rescale_refuses_one(tmp_path: Path) -> None:
    exported = tmp_path / "float.tflite"
    mobilenet.export(random_model(v1(0.05, 32, 3)), exported, check=False)
    with pytest.raises(UsageError, match=r"rescale: got 'full', which only an integer TFLite file has; .* is f32"):
        mobilenet.convert(exported, rescale="full")
    with pytest.raises(UsageError, match="rescale: got 'float', needed one of 'fixed', 'full'"):
        mobilenet.convert(exported, rescale="float")


def test_the_command_imports_either(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "model.tflite"
    file.write_bytes(Maker(V1, OPTIONS[0]).data)
    for rescale, option in (("fixed", []), ("full", ["--rescale", "full"])):
        folder = tmp_path / rescale
        assert cli.main(["import", str(file), "-o", str(folder), *option]) == 0
        assert mobilenet.load(folder).rescale == rescale
    capsys.readouterr()


def test_a_bias_without_a_scale_has_that_of_the_sums() -> None:
    whole = model_of(Maker(V2, OPTIONS[0], 5).data)
    assert same_tensors(model_of(changed("stem.bias", unscaled)).tensors, whole.tensors)


def test_an_addition_of_one_tensor_is_named() -> None:
    maker = Maker(V2, OPTIONS[0], 5)
    kinds = [operator.op for operator in tflite_graph.read(maker.data).operators]
    added = kinds.index(Op.ADD)
    fields = maker.graph.operators[added] = dict(maker.graph.operators[added])
    fields[schema.Operator.INPUTS] = np.array([maker.tensors["block2.project"] - 1], np.int32)
    with pytest.raises(ModelError, match=r"does not add|does not take"):
        model_of(maker.data)


# --------------------------------------------------------------------------------------------------------- pixels


def source(data: bytes) -> tflite_graph.Tensor:
    graph = tflite_graph.read(data)
    return graph.tensors[graph.inputs[0]]


def test_pixels_are_the_input_as_they_are() -> None:
    tensor = source(changed("image", scaling(SCALE=np.array([1 / 255], np.float32), ZERO_POINT=np.zeros(1, np.int64))))
    found = preprocessing_of(V2, tensor, None)
    assert (found.mean, found.std) == ((0.0,), (255.0,))
    near = Preprocessing(48, 48, mean=(0.5,), std=(254.0,))
    assert preprocessing_of(V2, tensor, near) is near
    for mean, std in (((127.5,), (255.0,)), ((0.0, 0.0, 0.0), (255.0, 255.0, 200.0))):
        told = Preprocessing(48, 48, mean=mean * (3 if len(mean) < len(std) else 1), std=std)
        with pytest.raises(ModelError, match=r"by the metadata pixels have mean .* they are not the input as they are"):
            preprocessing_of(V2, tensor, told)


# ------------------------------------------------------------------------------------------------------ real files

ANSWERS = {
    "mobilenet_v1_0.25_128_quant": (283, 0.25),
    "mobilenet_v1_0.5_160_quant": (286, 0.51),
    "mobilenet_v1_0.75_192_quant": (283, 0.35),
    "mobilenet_v2_1.0_224_quant": (286, 0.70),
}


@real
@pytest.mark.parametrize("rescale", ["fixed", "full"])
@pytest.mark.parametrize("name", [*ANSWERS, "vww_96_int8"])
def test_real_files_give_litert_s_bytes(name: str, rescale: Rescale) -> None:
    """Logits of the kernels that the rescale is of, and probabilities of the reference kernels."""
    path = Path(str(DATA)) / "models" / f"{name}.tflite"
    model = read(path, rescale=rescale)
    graph = tflite_graph.read(path.read_bytes())
    softmax_input = graph.operators[-1].inputs[0]
    with zipfile.ZipFile(Path(str(DATA)) / "photos.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith("JPEG")][::80]
        pixels = np.stack([photos.pixels(archive.read(name), model.preprocessing) for name in names])
    ours = outputs(model.network, model.tensors, pixels)[model.network.layers[-1].name]
    reference = rescale == "fixed"
    for image, found in zip(pixels, ours, strict=True):
        places = {"logits": softmax_input}
        theirs, last = litert(path.read_bytes(), image[None], places, graph.outputs[0], reference=reference)
        assert (theirs["logits"].reshape(-1) == found.reshape(-1)).all()
        assert not reference or (last.reshape(-1) == probabilities(model, found)).all()


@real
@pytest.mark.parametrize("name", ANSWERS)
def test_real_files_know_the_cat(name: str) -> None:
    model = read(Path(str(DATA)) / "models" / f"{name}.tflite")
    with Image.open(Path(str(DATA)) / "cat.bmp") as photo:  # the answers are of photos made smaller by Lanczos' filter
        pixels = np.asarray(photo.resize((model.network.width, model.network.height), Image.Resampling.LANCZOS))
    scores = model.predict(pixels).scores
    label, least = ANSWERS[name]
    assert (int(scores.argmax()), bool(scores.max() >= least)) == (label, True)
