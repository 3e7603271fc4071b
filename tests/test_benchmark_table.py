"""The README's table of the benchmark: that it is what the results give, and the arithmetic from rounds to ratios."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def imported() -> ModuleType:
    """Returns benchmarks/table.py, which belongs to no package."""
    spec = importlib.util.spec_from_file_location("benchmark_table", ROOT / "benchmarks" / "table.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


table = imported()


def side(*milliseconds: float, batch: int = 1, **facts: Any) -> dict[str, Any]:
    """Returns what a side measured: the time of a call in each round."""
    fastest = [each / 2 for each in milliseconds]
    return {"batch": batch, "apart": False, "wall": list(milliseconds), "fastest": fastest, **facts}


def made(**changes: Any) -> dict[str, Any]:
    """Returns results with one case."""
    sides = {
        "ours": side(2, 4, 2),
        "A": side(8, 4, 4),
        "B": side(9, 9, 9, batch=2),
        "peak": side(1, 1, 2, settings={"multiply_adds": 1000}),
    }
    case = {"network": "V2", "threads": 1, "multiply_adds": 1500, "sides": sides} | changes
    machine = {
        "date": "2026-01-31",
        "processors": 2,
        "load": 0.25,
        "processor": "P",
        "versions": {"ours": "1", "A": "2+cpu", "B": "3"},
    }
    return {"machine": machine, "cases": {"v2-224-1": case}}


def test_the_readme_has_the_table_of_the_results() -> None:
    readme = (ROOT / "README.md").read_text()
    assert table.written(readme, table.read()) == readme, "run benchmarks/table.py"


def test_a_ratio_is_of_the_same_round_and_against_the_rival_with_the_best_median() -> None:
    case = made()["cases"]["v2-224-1"]
    assert table.ratio(case) == ("A", 0.5, 0.25, 1.0)
    case["sides"] |= {"ours": side(4, 8, 1), "A": side(8, 4, 2)}  # the medians' ratio would be 1
    assert table.ratio(case) == ("A", 0.5, 0.5, 2.0)
    case["sides"]["B"] = side(6, 6, 6, batch=2)
    assert table.ratio(case).rival == "B"
    assert table.ratio(case, "fastest").median == pytest.approx(4 / 3)


def test_without_one_of_the_two_there_is_no_ratio() -> None:
    case = made()["cases"]["v2-224-1"]
    only_ours = case | {"sides": {name: case["sides"][name] for name in ("ours", "peak")}}
    only_theirs = case | {"sides": {"A": case["sides"]["A"]}}
    assert table.ratio(only_ours) is None
    assert table.ratio(only_theirs) is None
    assert table.share_of_peak(only_theirs) is None


def test_the_share_of_the_peak_is_of_the_peak_in_the_same_round() -> None:
    # ours does 750, 375, 750 a millisecond; the peak 1000, 1000, 500.
    assert table.share_of_peak(made()["cases"]["v2-224-1"]) == pytest.approx(0.75)


def test_the_section_has_every_side_and_case() -> None:
    results = made()
    results["cases"]["bf16"] = results["cases"]["v2-224-1"] | {"sides": {"A": side(5, 5, 5)}}
    case = results["cases"]["v2-224-1"]
    results["cases"]["headline"] = case | {"rivals_multiply_adds": 12000}
    assert "rescale" not in table.section(results)
    results["cases"]["int8-v2-224-1"] = case | {"precision": "int8", "rescale": "full"}
    text = table.section(results)
    assert "| milliseconds an image | ours | A 2 | B 3 | ours / best |" in text
    assert "| V2 1.0 224, 1 thread | 2.00 | 4.00 | 4.50 | **0.50** (0.25–1.00) |" in text
    assert "| V2 1.0 224 bf16, 1 thread | – | 5.00 | – | – |" in text
    assert "V2 1.0 224 75%" in text
    assert "int8: one quantised model for all, with the rescale full, whose" in text.replace("\n", " ")
    assert "8.0 times the multiply-adds" in text
    assert "(A) it takes 4.0 ms, MobileNet here 2.0 ms: 2.0 times as long" in text.replace("\n", " ")
    assert "medians of 3 rounds" in text.replace("\n", " ")


def test_the_terminal_says_the_batch_and_the_ratio() -> None:
    lines = table.described(made()["cases"]["v2-224-1"]).splitlines()
    assert re.fullmatch(r"  B +4\.500 ms an image \(4\.500\.\.4\.500\), batch 2 together", lines[2])
    assert lines[-2:] == ["  ours / A: 0.500 (0.250..1.000)", "  share of the peak: 75.0%"]


def test_the_section_stands_between_its_markers_and_nothing_else_changes() -> None:
    readme = f"before\n{table.BEGIN}old{table.END}\nafter\n"
    new = table.written(readme, made())
    assert new.startswith(f"before\n{table.BEGIN}\nMeasured on 2026-01-31")
    assert new.endswith(f"\n{table.END}\nafter\n")
    assert "old" not in new
    assert table.written(new, made()) == new
    assert table.written(new, {"cases": {}}) == f"before\n{table.BEGIN}{table.END}\nafter\n"
    with pytest.raises(SystemExit, match="are needed around the table"):
        table.written("no markers", made())


def test_the_pipelines_ratios_are_of_the_same_round() -> None:
    sides = {
        "ours": {"rates": [300.0, 200.0, 400.0], "decoding": [2.0, 3.0, 2.0]},
        "A": {"rates": [100.0, 100.0, 100.0], "decoding": [4.04, 4.04, 9.0]},
    }
    machine = {"date": "2026-01-31", "processor": "some processor", "versions": {"ours": "1", "A": "2+cpu"}}
    facts = {"machine": machine, "rescale": "full", "photos": 9, "threads": 2, "sides": sides}
    text = table.section(made() | {"pipeline": facts})
    assert "| ours | 300 | 2.0 | – |" in text
    assert "| A | 100 | 4.0 | **3.0** (2.0–4.0) |" in text
    assert "medians of 3 rounds" in text
    assert "2026-01-31, some processor, ours 1, A 2)" in " ".join(text.split())
    assert "int8 with the rescale full," in text
