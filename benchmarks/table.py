"""The README's tables from the results: all arithmetic on what `compare.py` and `pipeline.py` measured. Standard
library only.

python benchmarks/table.py            # writes the section between the markers of README.md
python benchmarks/table.py --check    # exits with 1 if it is not what the results give
"""

import argparse
import json
import statistics
import sys
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
RESULTS, PIPELINE = (Path(__file__).with_name(name) for name in ("results.json", "pipeline.json"))
BEGIN, END = "<!-- made by benchmarks/table.py -->\n", "<!-- end of what benchmarks/table.py made -->"
CLOCKS = ("wall", "fastest", "processor")
OURS, PEAK = "ours", "peak"


class Ratio(NamedTuple):
    """Is our time over the best rival's: the median over the rounds, and the least and the largest of a round."""

    rival: str
    median: float
    least: float
    largest: float


def milliseconds(side: dict[str, Any], clock: str = "wall") -> list[float]:
    """Returns a side's time for one image in each round."""
    return [each / side["batch"] for each in side[clock]]


def rivals(case: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the sides that are neither ours nor the peak."""
    return {name: side for name, side in case["sides"].items() if name not in (OURS, PEAK)}


def ratio(case: dict[str, Any], clock: str = "wall") -> Ratio | None:
    """Returns ours over the rival with the least median; None where one of the two is missing."""
    medians = {name: statistics.median(milliseconds(side, clock)) for name, side in rivals(case).items()}
    if OURS not in case["sides"] or not medians:
        return None
    best = min(medians, key=medians.__getitem__)
    pairs = zip(milliseconds(case["sides"][OURS], clock), milliseconds(case["sides"][best], clock), strict=True)
    each = [ours / theirs for ours, theirs in pairs]
    return Ratio(best, statistics.median(each), min(each), max(each))


def share_of_peak(case: dict[str, Any], clock: str = "wall") -> float | None:
    """Returns our multiply-adds a second over those of the peak's loop, the median over the rounds."""
    if OURS not in case["sides"] or PEAK not in case["sides"]:
        return None
    peak = case["sides"][PEAK]
    rates: list[float] = [peak["settings"]["multiply_adds"] / time for time in milliseconds(peak, clock)]
    ours: list[float] = [case["multiply_adds"] / time for time in milliseconds(case["sides"][OURS], clock)]
    return statistics.median(a / b for a, b in zip(ours, rates, strict=True))


def described(case: dict[str, Any], clock: str = "wall") -> str:
    """Returns a case's results as lines for a terminal."""
    lines = []
    for name, side in case["sides"].items():
        times = milliseconds(side, clock)
        batch = f", batch {side['batch']} {'apart' if side['apart'] else 'together'}" if side["batch"] > 1 else ""
        error = f", {side['error']:.3f} of the tolerance" if "error" in side else ""
        spread = f"{min(times):.3f}..{max(times):.3f}"
        lines.append(f"  {name:17} {statistics.median(times):8.3f} ms an image ({spread}){batch}{error}")
    found, share = ratio(case, clock), share_of_peak(case, clock)
    if found:
        lines.append(f"  ours / {found.rival}: {found.median:.3f} ({found.least:.3f}..{found.largest:.3f})")
    if share:
        lines.append(f"  share of the peak: {share:.1%}")
    return "\n".join(lines)


TITLES = {
    "v2-224-1": "V2 1.0 224, 1 thread",
    "v2-224-2": "V2 1.0 224, 2 threads",
    "v1-224-1": "V1 1.0 224, 1 thread",
    "v1-224-2": "V1 1.0 224, 2 threads",
    "v2-96-1": "V2 0.35 96, 1 thread",
    "v2-96-2": "V2 0.35 96, 2 threads",
    "v1-96-1": "V1 0.25 96, 1 thread",
    "v1-96-2": "V1 0.25 96, 2 threads",
    "throughput": "V2 1.0 224, 2 threads, each at its best batch",
    "bf16": "V2 1.0 224 bf16, 1 thread",
    "int8-v2-224-1": "V2 1.0 224 int8, 1 thread",
    "int8-v2-224-2": "V2 1.0 224 int8, 2 threads",
    "int8-v1-224-1": "V1 1.0 224 int8, 1 thread",
    "int8-v1-224-2": "V1 1.0 224 int8, 2 threads",
    "int8-v2-96-1": "V2 0.35 96 int8, 1 thread",
    "int8-v2-96-2": "V2 0.35 96 int8, 2 threads",
    "int8-v1-96-1": "V1 0.25 96 int8, 1 thread",
    "int8-v1-96-2": "V1 0.25 96 int8, 2 threads",
}


def section(results: dict[str, Any]) -> str:
    """Returns the README's section."""
    machine, cases = results["machine"], results["cases"]
    sides = list(machine["versions"])
    heads = [OURS, *(f"{name} {machine['versions'][name].partition('+')[0]}" for name in sides if name != OURS)]
    rows = [
        f"| milliseconds an image | {' | '.join(heads)} | ours / best |",
        "|---" * (len(heads) + 2) + "|",
        *(_row(title, cases[name], sides) for name, title in TITLES.items() if name in cases),
    ]
    rounds = min(len(side["wall"]) for case in cases.values() for side in case["sides"].values())
    about = (
        f"Measured on {machine['date']} on {machine['processors']} processors ({machine['processor']}), all in one "
        f"run, in turns, medians of {rounds} rounds, the ratio's least and largest round in brackets; batch 1 and "
        "float32 where nothing else is said. Same weights and pixels for all, logits checked against `reference.py` "
        "before anything is timed; ours includes scaling the uint8 pixels, the others get them scaled. The processors "
        f"are parts of a machine that others use too (load before: {machine['load']:.1f}), so only figures of one row "
        "compare, and ratios are surer than times."
    )
    if rescales := " or ".join(sorted({case["rescale"] for case in cases.values() if "rescale" in case})):
        about += (
            f" int8: one quantised model for all, with the rescale {rescales}, whose uint8 pixels all take as they are."
        )
    shares = [
        f"{TITLES[name].partition(',')[0]} {share:.0%}"
        for name in ("v1-224-1", "v2-224-1")
        if name in cases and (share := share_of_peak(cases[name])) is not None
    ]
    parts = [textwrap.fill(about, 120), "\n".join(rows)]
    if shares:
        text = f"Share of the multiply-adds that the processor can do at that moment, one thread: {', '.join(shares)}."
        parts.append(textwrap.fill(text, 120))
    if "headline" in cases and (headline := _headline(cases["headline"])):
        parts.append(textwrap.fill(headline, 120))
    if "pipeline" in results:
        parts += _pipeline(results["pipeline"])
    return "\n\n".join(parts) + "\n"


def _pipeline(results: dict[str, Any]) -> list[str]:
    """Returns the paragraph and the table of what `pipeline.py` measured."""
    machine, sides = results["machine"], results["sides"]
    versions = ", ".join(f"{name} {version.partition('+')[0]}" for name, version in machine["versions"].items())
    where = ", ".join(("[`pipeline.py`](benchmarks/pipeline.py)", machine["date"], machine["processor"], versions))
    about = (
        f"From JPEG files to labels ({where}): V2 1.0 224 on {results['threads']} threads, int8 with the rescale "
        f"{results['rescale']}, torchvision float32; {results['photos']} photos, in turns, medians of "
        f"{len(sides[OURS]['rates'])} rounds, each side the fastest of its ways."
    )
    rows = ["| | images/s | decoding and resizing, ms of one thread | ours is faster by |", "|---" * 4 + "|"]
    for name, side in sides.items():
        each = [ours / theirs for ours, theirs in zip(sides[OURS]["rates"], side["rates"], strict=True)]
        times = f"**{statistics.median(each):.1f}** ({min(each):.1f}–{max(each):.1f})" if name != OURS else "–"
        rows.append(
            f"| {name} | {statistics.median(side['rates']):.0f} | {statistics.median(side['decoding']):.1f} | {times} |"
        )
    return [textwrap.fill(about, 120), "\n".join(rows)]


def _row(title: str, case: dict[str, Any], sides: list[str]) -> str:
    cells = []
    for name in sides:
        side = case["sides"].get(name)
        cells.append(f"{statistics.median(milliseconds(side)):.2f}" if side else "–")
    found = ratio(case)
    last = f"**{found.median:.2f}** ({found.least:.2f}–{found.largest:.2f})" if found else "–"
    return f"| {title} | {' | '.join(cells)} | {last} |"


def _headline(case: dict[str, Any]) -> str | None:
    found = ratio(case)
    if found is None:
        return None
    promised = case["rivals_multiply_adds"] / case["multiply_adds"]
    ours, theirs = (statistics.median(milliseconds(case["sides"][name])) for name in (OURS, found.rival))
    return (
        f"The papers' saving, realised: the V1 paper's network of standard convolutions has {promised:.1f} times the "
        f"multiply-adds of MobileNet V1. On its fastest rival ({found.rival}) it takes {theirs:.1f} ms, MobileNet here "
        f"{ours:.1f} ms: {1 / found.median:.1f} times as long."
    )


def read() -> dict[str, Any]:
    """Returns the results, without cases before the first run."""
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"cases": {}}
    return found | ({"pipeline": json.loads(PIPELINE.read_text())} if PIPELINE.exists() else {})


def written(readme: str, results: dict[str, Any]) -> str:
    """Returns the README with the section put between its markers."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"README.md: the lines {BEGIN.strip()!r} and {END!r} are needed around the table")
    return f"{before}{BEGIN}\n{section(results)}\n{END}{after}" if results["cases"] else f"{before}{BEGIN}{END}{after}"


def main() -> None:
    """Writes the README, or checks it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    readme = ROOT / "README.md"
    old = readme.read_text()
    new = written(old, read())
    if given.check:
        sys.exit(
            0 if new == old else "README.md: the table is not that of benchmarks/results.json; run this without --check"
        )
    readme.write_text(new)


if __name__ == "__main__":
    main()
