"""The subcommands of `mobilenet`: each one's arguments, and its handler: one function call, text or one JSON document.

Each handler imports what it needs, so that `cost` starts without numpy and `predict` without torch.
"""

import argparse
import dataclasses
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from .errors import GateError, MobileNetError, UsageError

Arguments = argparse.Namespace


class Command(NamedTuple):
    """Is one subcommand: its line of help, an example, its arguments, and its handler, which returns an exit code."""

    help: str
    example: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[Arguments], int]


def _name(text: str) -> str:
    if not text:  # a shell variable that is not set; as a path it would be the current folder
        raise argparse.ArgumentTypeError("got an empty path, needed the name of a file or folder")
    return text


def _path(text: str) -> Path:
    return Path(_name(text))


def _emit(args: Arguments, document: Any, text: str) -> None:
    print(json.dumps(document, indent=2, allow_nan=False) if args.json else text)


# ------------------------------------------------------------------------------------------------- cost and choose


def _network_arguments(parser: argparse.ArgumentParser) -> None:
    from .training.settings import sides

    parser.add_argument("family", choices=("v1", "v2"), help="which of the two families")
    parser.add_argument("--alpha", type=float, default=1.0, help="width multiplier (default 1)")
    parser.add_argument("--resolution", type=sides, default=224, metavar="N|HxW", help="input size (default 224)")
    parser.add_argument("--classes", type=int, help="outputs of the classifier (default 1000, or the source's 1001)")
    parser.add_argument("--channels", type=int, default=3, help="input channels (default 3)")
    parser.add_argument("--no-top", action="store_true", help="without pooling and classifier")
    parser.add_argument("--pooling", choices=("avg", "max"), help="pooling without the top")
    parser.add_argument("--downsampling", type=int, default=32, help="32 as the papers; 8 suits 32x32 photos")
    parser.add_argument("--standard", action="store_true", help="the twin made of standard convolutions")
    parser.add_argument("--source", default="paper", help="whose conventions: paper, keras, torchvision, timm, slim, …")


def _network(args: Arguments) -> Any:
    from . import arch
    from .common.checks import choice

    choice("source", args.source, arch.sources(args.family))
    return {"v1": arch.v1, "v2": arch.v2}[args.family](
        args.alpha,
        args.resolution,
        args.classes,
        channels=args.channels,
        include_top=not args.no_top,
        pooling=args.pooling,
        downsampling=args.downsampling,
        separable=not args.standard,
        conventions=args.source,
    )


def _cost_arguments(parser: argparse.ArgumentParser) -> None:
    from .cost import VIEWS

    _network_arguments(parser)
    parser.add_argument("--view", choices=VIEWS, default="layers", help="how to group the rows (default layers)")
    parser.add_argument("--bytes", type=int, default=4, choices=(1, 2, 4), help="per activation and weight (default 4)")


def _cost(args: Arguments) -> int:
    from .cost import cost

    found = cost(_network(args), bytes_per_element=args.bytes)
    tables = dict.fromkeys((args.view, "total"))  # once if it is the same
    _emit(args, found.to_dict(), "\n\n".join([str(found.network), *map(found.table, tables)]))
    return 0


def _choose_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--macs", help="most multiply-adds, as 100M")
    parser.add_argument("--params", help="most parameters, as 3M")
    parser.add_argument("--memory", help="most memory for activations at their peak, as 1MB")
    parser.add_argument("--size", help="most bytes of weights, as 2MB")
    parser.add_argument("--classes", type=int, default=1000, help="outputs of the classifier (default 1000)")
    parser.add_argument("--family", choices=("v1", "v2"), help="only this family")
    parser.add_argument("--bytes", type=int, default=4, choices=(1, 2, 4), help="per activation and weight (default 4)")
    parser.add_argument("--fused", action="store_true", help="count memory with fused blocks, not layer by layer")
    parser.add_argument("--limit", type=int, default=20, help="rows of the table (default 20)")


def _choose(args: Arguments) -> int:
    from .budget import FAMILIES, choose, choose_table

    found = choose(
        args.macs,
        args.params,
        args.memory,
        args.size,
        classes=args.classes,
        families=(args.family,) if args.family else FAMILIES,
        bytes_per_element=args.bytes,
        fused=args.fused,
    )
    _emit(args, [candidate.to_dict() for candidate in found], choose_table(found, args.limit))
    return 0


# ------------------------------------------------------------------------------------------- data, train, evaluate


def _data_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("check",), help="check: decode every photo, find duplicates and imbalance")
    parser.add_argument("photos", type=_path, help="folder, CSV or JSON lines")


def _data(args: Arguments) -> int:
    from .data.check import check
    from .data.dataset import read

    report = check(read(args.photos), progress=_progress("checking"))
    _emit(args, report.to_dict(), str(report))
    return 0 if report.ok else 3


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    from .training.settings import add_arguments

    parser.add_argument(
        "photos", type=_path, help="folder with a folder a class (or train/ val/ test/), CSV or JSON lines"
    )
    parser.add_argument("-o", "--output", type=_path, required=True, help="model folder to make")
    parser.add_argument(
        "--from", dest="start_from", type=_path, metavar="MODEL", help="begin with this model's weights"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with the training in the output folder, if there is one"
    )
    add_arguments(parser)


def _train(args: Arguments) -> int:
    _need_torch()
    from .training.settings import settings_from
    from .training.train import train

    result = train(args.photos, args.output, settings_from(args), start_from=args.start_from, resume=args.resume)
    _emit(args, result.to_dict(), str(result))
    return 0


def _need_torch() -> None:
    import importlib.util

    if importlib.util.find_spec("torch") is None:
        raise MobileNetError("training needs torch, which is not installed: pip install 'mobilenet[train]'")


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=_path, help="model folder")
    parser.add_argument(
        "photos", type=_path, help="folder with a folder a class (or train/ val/ test/), CSV or JSON lines"
    )
    parser.add_argument("--split", choices=("train", "val", "test", "all"), help="default: test, else val, else all")
    parser.add_argument(
        "--report", type=_path, metavar="HTML", help="where the report goes (default MODEL/report.html)"
    )
    parser.add_argument("--no-report", action="store_true", help="figures only")
    parser.add_argument(
        "--min-top1", type=float, metavar="P", help="exit with code 4 when top-1 (0 to 1) is below this"
    )


def _evaluate(args: Arguments) -> int:
    from .common.checks import number
    from .common.files import check_target
    from .evaluation.evaluate import evaluate
    from .evaluation.report import write_report
    from .model import load

    if args.min_top1 is not None:
        number("min-top1", args.min_top1, 0, 1)
    model = load(args.model)
    report = None if args.no_report else args.report or args.model / "report.html"
    if report:
        check_target(report)
    split_file = args.model / "training" / "split.jsonl"  # so that val holds no photo that was trained on
    found = evaluate(model, args.photos, split=args.split, split_file=split_file, progress=_progress("evaluating"))
    if report:
        write_report(report, model, found, args.model)
    _emit(
        args,
        found.to_dict() | {"report": report and str(report)},
        f"{found}\n" + (f"report: {report}" if report else ""),
    )
    for note in found.notes:
        print(f"mobilenet evaluate: {note}", file=sys.stderr)
    if args.min_top1 is not None and found.top1 < args.min_top1:
        missed = GateError(f"top-1 is {found.top1:.4f}, below the {args.min_top1} that --min-top1 asks for")
        print(f"mobilenet evaluate: {missed}", file=sys.stderr)  # not raised: the document on stdout is complete
        return missed.exit_code
    return 0


def _predict_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=_path, help="model folder")
    parser.add_argument(
        "paths", nargs="+", type=_name, metavar="PATH", help="photos, folders, globs, @list.txt, or - for stdin"
    )
    parser.add_argument("--top", type=int, default=5, help="labels a photo (default 5)")
    parser.add_argument("--format", choices=("table", "jsonl", "csv"), help="default table")


def _predict(args: Arguments) -> int:
    # Read when numpy is loaded. Its BLAS has threads that look for work for their first 0.06 s, while this process
    # could use the processors; the numpy engine splits images over threads of its own.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if args.json and args.format:
        raise UsageError(f"format: got {args.format!r} with --json, a format of its own; leave one of them out")
    from .evaluation.predict import photo_paths, predict_paths, write_rows
    from .model import load

    rows = predict_paths(load(args.model), photo_paths(args.paths), top=args.top)
    json_wanted, args.json = args.json, False  # an error in the stream ends that document itself
    failures = write_rows(rows, "json" if json_wanted else args.format or "table", sys.stdout)
    return 3 if failures else 0


# ---------------------------------------------------------------------------------------------------------- import


def _import_arguments(parser: argparse.ArgumentParser) -> None:
    from .arch import SCALINGS
    from .training.settings import sides

    parser.add_argument(
        "source", type=_name, help="file or folder of another program, or the name of published weights"
    )
    parser.add_argument("-o", "--output", type=_path, required=True, help="model folder to make")
    parser.add_argument("--resolution", type=sides, metavar="N|HxW", help="input size (default its own, or 224)")
    parser.add_argument("--labels", type=_path, metavar="TXT", help="text file with a label a line")
    parser.add_argument("--scaling", choices=tuple(SCALINGS), help="of the pixels, where the source does not say it")
    parser.add_argument("--no-top", action="store_true", help="leave the classifier out")
    parser.add_argument("--unpickle", action="store_true", help="read pickles (.pth), in a process of its own")
    rescale = "bytes of an integer TFLite file: as of the reference kernels (default), or of LiteRT's XNNPACK"
    parser.add_argument("--rescale", choices=("fixed", "full"), default="fixed", help=rescale)


def _import(args: Arguments) -> int:
    from .convert import convert
    from .storage.folder import refuse_output

    refuse_output(args.output)
    model = convert(
        args.source,
        resolution=args.resolution,
        labels=args.labels,
        scaling=args.scaling,
        include_top=not args.no_top,
        unpickle=args.unpickle,
        rescale=args.rescale,
    )
    model.save(args.output)
    facts = {"model": str(args.output), "from": model.notes["imported"]["from"], "network": str(model.network)}
    facts |= {name: list(getattr(model.preprocessing, name)) for name in ("mean", "std")}
    mean, std = (values[0] if len(values) == 1 else values for values in (facts["mean"], facts["std"]))
    _emit(args, facts, f"{facts['network']} of {facts['from']}, pixels scaled by (x - {mean}) / {std}: {args.output}")
    return 0


# -------------------------------------------------------------------------------------------------------- quantize


def _quantize_arguments(parser: argparse.ArgumentParser) -> None:
    from .quantization.ranges import METHODS
    from .quantization.sweep import RESCALES

    parser.add_argument("model", type=_path, help="model folder, float32")
    parser.add_argument("--photos", type=_path, required=True, help="folder of what it will see; labels are not needed")
    parser.add_argument("-o", "--output", type=_path, required=True, help="model folder to make, int8")
    parser.add_argument("--count", type=int, metavar="N", help="photos to measure on (default 48, more of small ones)")
    parser.add_argument("--ranges", choices=METHODS, default=METHODS[-1], help="how to choose them (default mse)")
    parser.add_argument("--equalise", action="store_true", help="scale channels to similar ranges first")
    rescale = (
        "full (default): exports give the same bits; float: nearer to float32, but exports of a V2 round otherwise"
    )
    parser.add_argument("--rescale", choices=RESCALES, default=RESCALES[0], help=rescale)


def _quantize(args: Arguments) -> int:
    from .model import load
    from .quantization.comparison import compare
    from .quantization.quantize import quantize
    from .quantization.sweep import Choices
    from .storage.folder import refuse_inside, refuse_output

    if args.output.resolve() == args.model.resolve():
        raise UsageError(f"output: {args.output} is the float32 model, which would be lost; choose another folder")
    refuse_output(args.output)
    refuse_inside(args.output, args.photos)
    model = load(args.model)
    choices = Choices(args.ranges, equalise=args.equalise, rescale=args.rescale)
    made = quantize(model, args.photos, choices, count=args.count, progress=_progress("quantising"))
    made.model.save(args.output)
    found = compare(model, made, args.photos, progress=_progress("comparing"))
    _emit(args, {"model": str(args.output), "measured_on": len(made.paths), **found.to_dict()}, str(found))
    return 0


# ---------------------------------------------------------------------------------------------------------- export


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    from .export import FORMATS

    parser.add_argument("model", type=_path, help="model folder")
    parser.add_argument("-o", "--output", type=_path, required=True, help="file to write")
    parser.add_argument("--format", choices=tuple(FORMATS), help="default: told by the file's ending")
    # An option that is not given is not passed on: each format has its own.
    absent = argparse.SUPPRESS
    parser.add_argument("--pixels", action="store_true", default=absent, help="onnx: the input is the photo's uint8")
    parser.add_argument("--softmax", action="store_true", default=absent, help="the outputs are probabilities")
    parser.add_argument(
        "--no-check", dest="check", action="store_false", default=absent, help="don't run it in its own runtime"
    )
    targets = "host, aarch64, android-aarch64, armv7, cortex-m, riscv64, wasm, …"
    parser.add_argument("--target", default=absent, help=f"native: what it is for, {targets}")
    parser.add_argument("--symbol", default=absent, help="native: with which the C names begin (default mobilenet)")
    parser.add_argument(
        "--weights", choices=("inside", "beside"), default=absent, help="native: in the code, or in a file beside it"
    )


def _export(args: Arguments) -> int:
    from .export import export
    from .model import load

    names = ("pixels", "softmax", "check", "target", "symbol", "weights")
    options = {name: getattr(args, name) for name in names if hasattr(args, name)}
    written = export(load(args.model), args.output, args.format, **options)
    _emit(args, written.to_dict(), str(written))
    return 0


def _progress(what: str) -> Callable[[int, int], None]:
    from .common.progress import counter

    return counter(what)


# --------------------------------------------------------------------------------------------------- compile, bench


def _compile_arguments(parser: argparse.ArgumentParser) -> None:
    from .compiler.targets import TARGETS

    parser.add_argument("model", type=_path, help="model folder")
    parser.add_argument("--precision", help="f32, bf16, or int8 of a quantised model (default what its weights are)")
    parser.add_argument("--threads", type=int, help="of the engine, as it will run (default one a processor)")
    parser.add_argument("--target", choices=TARGETS, help="instruction set (default the best that runs here)")


def _compile(args: Arguments) -> int:
    from .common.text import bytes_text
    from .model import load

    model = load(args.model)
    with warnings.catch_warnings(record=True, action="always") as told:
        engine = model.compile(args.precision, args.threads, args.target)
    made = engine.made
    if made.kept is None:
        raise MobileNetError("; ".join(str(warning.message) for warning in told))
    document = {**dataclasses.asdict(made), "kept": str(made.kept), "threads": engine.threads}
    text = (
        f"{model.network}, {made.precision}, {made.target}, threads: {engine.threads}\n"
        f"{made.kernels} kernels, {bytes_text(made.code)} of code in {made.kept}\n"
        f"{bytes_text(made.weights)} of packed weights, {bytes_text(made.arena)} of activations, "
        f"{made.seconds:.2f} s"
    )
    _emit(args, document, text)
    return 0


def _bench_arguments(parser: argparse.ArgumentParser) -> None:
    _compile_arguments(parser)
    parser.add_argument("--seconds", type=float, default=2.0, help="to measure for (default 2)")
    parser.add_argument("--picture", type=_path, metavar="SVG", help="of the roofline (default MODEL/roofline.svg)")
    parser.add_argument("--no-picture", action="store_true", help="figures only")


def _bench(args: Arguments) -> int:
    from .common.files import check_target, write_atomic
    from .compiler.roofline import picture
    from .model import load

    model = load(args.model)
    path = None if args.no_picture else args.picture or args.model / "roofline.svg"
    if path:
        check_target(path)
    found = model.compile(args.precision, args.threads, args.target).profile(seconds=args.seconds)
    if path:
        write_atomic(path, picture(found).encode())
    _emit(args, found.to_dict() | {"picture": path and str(path)}, f"{found}" + (f"\nroofline: {path}" if path else ""))
    return 0


# ----------------------------------------------------------------------------------------------------- demo, doctor


def _demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", type=_path, default=Path("mobilenet-demo"), help="folder to make")


def _demo(args: Arguments) -> int:
    _need_torch()
    from .demo import demo

    document, text = demo(args.output)
    _emit(args, document, text)
    return 0


def _doctor(args: Arguments) -> int:
    from .doctor import describe, examine

    facts = examine()
    _emit(args, facts, describe(facts))
    return 0


COMMANDS = {
    "cost": Command(
        "count the multiply-adds, parameters and memory of a network",
        "mobilenet cost v2 --alpha 0.5 --resolution 160",
        _cost_arguments,
        _cost,
    ),
    "choose": Command(
        "list the networks that fit a budget, best first",
        "mobilenet choose --macs 100M --params 3M --memory 1MB",
        _choose_arguments,
        _choose,
    ),
    "data": Command(
        "check a data set: unreadable photos, duplicates, imbalance",
        "mobilenet data check flowers/",
        _data_arguments,
        _data,
    ),
    "train": Command(
        "train a MobileNet on a folder of photos", "mobilenet train flowers/ -o flowers-model", _train_arguments, _train
    ),
    "evaluate": Command(
        "measure a model on labelled photos and write a report",
        "mobilenet evaluate flowers-model flowers/",
        _evaluate_arguments,
        _evaluate,
    ),
    "predict": Command(
        "label photos", "mobilenet predict flowers-model cat.jpg holiday/ --top 3", _predict_arguments, _predict
    ),
    "import": Command(
        "make a model of another program's MobileNet: Keras, torchvision, timm, TFLite, …",
        "mobilenet import mobilenet_v2.h5 -o my-model",
        _import_arguments,
        _import,
    ),
    "quantize": Command(
        "make the int8 model of a model, and measure what it costs",
        "mobilenet quantize flowers-model --photos flowers/ -o flowers-int8",
        _quantize_arguments,
        _quantize,
    ),
    "compile": Command(
        "compile a model ahead of time, so that the first prediction need not",
        "mobilenet compile flowers-model",
        _compile_arguments,
        _compile,
    ),
    "bench": Command(
        "measure a compiled model layer by layer, beside what the machine can do",
        "mobilenet bench flowers-model --threads 1",
        _bench_arguments,
        _bench,
    ),
    "export": Command(
        "write a model as another runtime's file (ONNX, TFLite), run there and compared first, or another library's",
        "mobilenet export flowers-model -o flowers.onnx",
        _export_arguments,
        _export,
    ),
    "demo": Command(
        "train, evaluate and predict on the handwritten digits that come with the package",
        "mobilenet demo",
        _demo_arguments,
        _demo,
    ),
    "doctor": Command("show what this machine has", "mobilenet doctor", lambda parser: None, _doctor),
}
