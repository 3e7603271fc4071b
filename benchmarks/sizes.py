"""The table of docs/machine-code.md: sizes of exported code and the memory it needs, for each target and precision.

python benchmarks/sizes.py    # some minutes; weights are random: sizes do not depend on them
"""

import tempfile
from pathlib import Path

import numpy as np

import mobilenet
from mobilenet.export import native
from mobilenet.export.native import ExportedCode
from mobilenet.model import Model

PAGE = Path(__file__).parents[1] / "docs" / "machine-code.md"
BEGIN, END = "<!-- made by benchmarks/sizes.py -->\n", "<!-- end of what benchmarks/sizes.py made -->"
NETWORKS = {
    "V1 0.25 96, 2 classes": mobilenet.v1(0.25, 96, 2),
    "V2 0.35 96, 1000 classes": mobilenet.v2(0.35, 96, 1000),
    "V2 1.0 224, 1000 classes": mobilenet.v2(1.0, 224, 1000),
}
TARGETS = {"f32": ("avx512", "avx2", "sse"), "int8": ("avx512vnni", "avx512", "avx2", "sse")}
DEVICES = ("aarch64", "armv7", "riscv64", "cortex-m", "wasm")


def models(network: mobilenet.Network) -> list[Model]:
    """Returns the float32 and the int8 model of a network."""
    noise = np.random.default_rng(0).integers(0, 256, (2, *network.input), dtype=np.uint8)
    model = mobilenet.create(network, seed=0)
    return [model, model.quantize(noise)]


def row(name: str, model: Model, target: str) -> str:
    """Returns a line of the table."""
    with tempfile.TemporaryDirectory() as folder:
        made: ExportedCode = native.export(model, Path(folder) / "model", target=target, check=False)
    whole = next(size for file, size in made.files.items() if file.endswith((".o", ".wasm")))
    numbers = (f"{size:,}" for size in (whole, whole - made.weights, made.weights, made.scratch))
    return f"| {name} | {model.precision} | `{target}` | {' | '.join(numbers)} |"


def main() -> None:
    lines = [
        "| network | numbers | target | object or module | of that code | of that weights | scratch memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, network in NETWORKS.items():
        for model in models(network):
            for target in (*TARGETS[model.precision], *DEVICES):
                lines.append(row(name, model, target))
                print(lines[-1], flush=True)
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n\n{END}{after}")


if __name__ == "__main__":
    main()
