"""Makes tests/torch_references.json, and checks the way back, where the libraries are installed.

    python tests/make_torch_references.py make [--d-li14 FILE] [--tonylins FILE]   # the repositories' model files
    python tests/make_torch_references.py check FOLDER [--d-li14 FILE] [--tonylins FILE]

    python tests/make_torch_references.py registered   # every member that timm lists

`make` fills each library's own network by `torch_rule` and notes its outputs. `check` loads, strictly, the files that
`MOBILENET_WRITTEN=FOLDER pytest tests/test_convert_torch.py` leaves in FOLDER, and compares outputs with the noted.
torchvision and timm need a torch with CUDA to be imported, transformers any; nothing here is needed by the tests.
"""

import argparse
import importlib.util
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mobilenet.arch import SCALINGS
from torch_rule import CLASSES, listing_hash, ruled, ruled_pixels

HERE = Path(__file__).with_name("torch_references.json")
SIZES = ((32, 32), (41, 54))
MEMBERS = {
    "torchvision v2": (0.35, 1.0, 1.4),
    "timm v1": (0.25, 0.75, 1.25),
    "timm v1 100h": (0.5, 1.0, 1.25),
    "timm v2": (0.35, 1.0, 1.4),
    "timm v2 110d": (0.35, 1.0, 1.1),
    "timm v2 120d": (0.35, 1.0, 1.2),
    "huggingface v1": (0.25, 0.75, 1.0),
    "huggingface v2": (0.25, 0.35, 0.75, 1.4),
    "d-li14 v2": (0.1, 0.35, 1.0),
    "tonylins v2": (0.35, 1.0, 1.4),
}
SCALING = dict.fromkeys(("timm v1", "timm v1 100h", "huggingface v1", "huggingface v2"), "inception")


def from_file(path: Path, name: str) -> Callable[..., Any]:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


def build(member: str, alpha: float, files: argparse.Namespace) -> Any:
    """Returns the library's own network."""
    match member:
        case "torchvision v2":
            from torchvision.models import MobileNetV2

            return MobileNetV2(num_classes=CLASSES, width_mult=alpha)
        case "timm v1" | "timm v1 100h":
            from timm.models.efficientnet import _gen_mobilenet_v1

            return _gen_mobilenet_v1("mobilenetv1_100", alpha, head_conv=member.endswith("h"), num_classes=CLASSES)
        case "timm v2":
            from timm.models.efficientnet import _gen_mobilenet_v2

            return _gen_mobilenet_v2("mobilenetv2_100", alpha, num_classes=CLASSES)
        case "timm v2 110d" | "timm v2 120d":
            from timm.models.efficientnet import _gen_mobilenet_v2

            depth = {"110d": 1.2, "120d": 1.4}[member[-4:]]
            return _gen_mobilenet_v2(
                f"mobilenetv2_{member[-4:]}", alpha, depth, fix_stem_head=True, num_classes=CLASSES
            )
        case "huggingface v1" | "huggingface v2":
            import transformers

            kind = f"MobileNetV{member[-1]}"
            config = getattr(transformers, f"{kind}Config")(depth_multiplier=alpha, num_labels=CLASSES)
            return getattr(transformers, f"{kind}ForImageClassification")(config)
        case "d-li14 v2":
            return from_file(files.d_li14, "MobileNetV2")(num_classes=CLASSES, width_mult=alpha)
        case "tonylins v2":
            return from_file(files.tonylins, "MobileNetV2")(n_class=CLASSES, input_size=64, width_mult=alpha)
        case _:
            raise ValueError(member)


def outputs(member: str, model: Any, sizes: tuple[int, int]) -> Any:
    mean, std = (np.array(part, np.float32) for part in SCALINGS[SCALING.get(member, "imagenet")])
    x = (ruled_pixels(*sizes) - mean) / std
    with torch.no_grad():
        found = model.eval()(torch.from_numpy(x.astype(np.float32).transpose(0, 3, 1, 2).copy()))
    return getattr(found, "logits", found).double().numpy()


def registered(files: argparse.Namespace) -> None:
    """Checks timm's whole list: each member has the names and shapes of a network that is described here."""
    import timm

    from mobilenet.convert.by_name import fit
    from mobilenet.convert.names import TORCH

    for name in timm.list_models("mobilenetv[12]_*"):
        state = timm.create_model(name).state_dict()
        shapes = {key: tuple(value.shape) for key, value in state.items() if not key.endswith("tracked")}
        print(name, "is", fit(TORCH, shapes).network)


def cases(files: argparse.Namespace) -> Iterator[tuple[str, float, tuple[int, int]]]:
    for member, alphas in MEMBERS.items():
        if getattr(files, member.partition(" ")[0].replace("-", "_"), True):
            yield from ((member, alpha, size) for alpha, size in itertools.product(alphas, SIZES))


def fill(model: Any) -> None:
    state = model.state_dict()
    for key, value in state.items():
        if value.is_floating_point():
            value.copy_(torch.from_numpy(ruled(key, tuple(value.shape))))
    model.load_state_dict(state, strict=True)


def make(files: argparse.Namespace) -> None:
    found = []
    for member, alpha, sizes in cases(files):
        model = build(member, alpha, files)
        fill(model)
        shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        logits = [[float(f"{value:.9g}") for value in row] for row in outputs(member, model, sizes)]
        found.append({"member": member, "alpha": alpha, "sizes": sizes, "hash": listing_hash(shapes), "logits": logits})
        print(member, alpha, sizes)
    HERE.write_text("[\n" + ",\n".join(json.dumps(each) for each in found) + "\n]\n")


def check(files: argparse.Namespace) -> None:
    from safetensors.torch import load_file

    noted = {(each["member"], each["alpha"], tuple(each["sizes"])): each for each in json.loads(HERE.read_text())}
    for member, alpha, sizes in cases(files):
        name = f"{member} {alpha} {sizes[0]}x{sizes[1]}"
        if member.startswith("huggingface"):
            import transformers

            kind = getattr(transformers, f"MobileNetV{member[-1]}ForImageClassification")
            model, info = kind.from_pretrained(files.folder / name, output_loading_info=True)
            assert not any(info.values()), info
        else:
            model = build(member, alpha, files)
            model.load_state_dict(load_file(files.folder / f"{name}.safetensors"), strict=True)
        wanted = np.array(noted[member, alpha, sizes]["logits"])
        # Two runs of the same program on the same numbers; another order of threads may change the last bits.
        np.testing.assert_allclose(outputs(member, model, sizes), wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())
        print("strictly, same outputs:", name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("action", choices=("make", "check", "registered"))
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--d-li14", type=Path)
    parser.add_argument("--tonylins", type=Path)
    arguments = parser.parse_args()
    {"make": make, "check": check, "registered": registered}[arguments.action](arguments)
