import json
import random
import re

import pytest

from mobilenet.arch import v1, v2
from mobilenet.budget import ALPHAS, RESOLUTIONS, Candidate, choose, choose_table
from mobilenet.common.text import bytes_text, parse_amount, table_text
from mobilenet.cost import cost
from mobilenet.errors import GateError, UsageError
from mobilenet.published import SLIM_V1_ROWS, SLIM_V2_ROWS


def members(candidates: list[Candidate]) -> list[tuple[str, float, int]]:
    return [(c.network.family, c.network.alpha, c.network.height) for c in candidates]


EVERYTHING = choose()


def test_without_a_limit_every_member_is_listed() -> None:
    assert len(EVERYTHING) == 2 * len(ALPHAS) * len(RESOLUTIONS)
    published = {(row.family, row.alpha, row.resolution) for row in (*SLIM_V1_ROWS, *SLIM_V2_ROWS)}
    assert {m for m, c in zip(members(EVERYTHING), EVERYTHING, strict=True) if c.top1 is not None} == published


def test_published_accuracies_come_first_then_multiply_adds() -> None:
    known = [c for c in EVERYTHING if c.top1 is not None]
    assert EVERYTHING[: len(known)] == known
    assert members(known)[:4] == [("v2", 1.4, 224), ("v2", 1.3, 224), ("v2", 1.0, 224), ("v1", 1.0, 224)]
    assert [c.top1 for c in known] == sorted((c.top1 for c in known if c.top1), reverse=True)
    rest = [c.macs for c in EVERYTHING[len(known) :]]
    assert rest == sorted(rest, reverse=True)
    assert members(choose(alphas=(0.35, 1.0), resolutions=(96, 224)))[2:4] == [("v2", 1.0, 96), ("v2", 0.35, 224)]


def test_figures_are_those_of_cost() -> None:
    for candidate in random.Random(5).sample(EVERYTHING, 12):
        counted = cost(candidate.network)
        assert (candidate.macs, candidate.params) == (counted.macs, counted.params)
        assert candidate.memory == counted.peak_memory
        assert candidate.size == counted.total_params * 4
    (only,) = choose(
        families=("v2",), alphas=(0.5,), resolutions=(96,), classes=7, channels=1, bytes_per_element=1, fused=True
    )
    assert only.network == v2(0.5, 96, 7, channels=1)
    counted = cost(only.network, 1)
    assert (only.memory, only.size) == (counted.fused_peak_memory, counted.total_params)
    assert choose(families=("v1",), alphas=(0.1,), resolutions=(96,), conventions="slim")[0].network == v1(
        0.1, 96, 1000, conventions="slim"
    )


def test_all_that_fit_and_only_those_are_listed() -> None:
    limits = {"macs": 100_000_000, "params": 3_000_000, "memory": 1_000_000, "size": 6_000_000}
    for name, limit in limits.items():
        fitting = {c.network for c in EVERYTHING if getattr(c, name) <= limit}
        assert {c.network for c in choose(**{name: limit})} == fitting  # type: ignore[arg-type]
        assert 0 < len(fitting) < len(EVERYTHING)
    both = {c.network for c in EVERYTHING if all(getattr(c, name) <= limit for name, limit in limits.items())}
    assert {c.network for c in choose("100M", "3M", "1MB", "6MB")} == both
    exact = cost(v1(0.25, 128)).macs
    assert ("v1", 0.25, 128) in members(choose(exact))
    assert ("v1", 0.25, 128) not in members(choose(exact - 1))


def test_pareto_front_by_its_definition() -> None:
    tie = choose(alphas=(0.25, 0.35), resolutions=(96, 160))  # V2 0.35 at 96 is as good as V1 0.25 at 160, and cheaper
    assert sorted(c.top1 for c in tie if c.top1)[:2] == [45.5, 45.5]
    for candidates in (EVERYTHING, choose("60M"), choose(memory="600kB"), tie):
        known = [c for c in candidates if c.top1 is not None]
        for c in candidates:
            beaten = c.top1 is None or any(
                o.top1 >= c.top1 and o.macs <= c.macs and o is not c  # type: ignore[operator]
                for o in known
            )
            assert c.pareto == (not beaten), members([c])
    front = {m for m, c in zip(members(EVERYTHING), EVERYTHING, strict=True) if c.pareto}
    assert ("v1", 1.0, 224) not in front  # V2 1.0 at 224 costs less and is better
    assert ("v2", 1.0, 224) in front


def test_when_nothing_fits_the_nearest_member_is_named_with_its_figures() -> None:
    smallest = min(EVERYTHING, key=lambda c: c.macs)
    with pytest.raises(GateError) as raised:
        choose(macs="0.1M")
    text = str(raised.value)
    assert text.startswith(f"none of {len(EVERYTHING)} members fits; the nearest, {smallest.network}, has ")
    assert text.endswith(
        f"{smallest.macs:,} multiply-adds (limit 100,000: {smallest.macs / 100_000:.2f} times too much)"
    )
    assert raised.value.exit_code == 4
    with pytest.raises(GateError, match=r"the nearest, MobileNetV2 alpha 0\.25 "):  # misses by 12.3 at most, V1 by 13.6
        choose("1M", "400k", alphas=(0.25,), resolutions=(128,))
    with pytest.raises(
        GateError, match=r"\(limit 1,000,000,000: fits\), .* of weights \(limit 5\.00 kB: .* too much\)"
    ):
        choose(macs="1G", size="5kB")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"macs": "many"}, "macs: got 'many', needed a plain count such as 100M, 3.5M or 250000"),
        ({"macs": "1MB"}, "macs: got '1MB', needed a plain count"),
        ({"memory": "1MiBs"}, "memory: got '1MiBs', needed bytes such as 512KiB, 1MB or 250000"),
        ({"size": "0"}, "size: got 0.0, needed a number from 1 to 1e+15"),
        ({"params": -3}, "params: got -3, needed a number from 1 to 1e+15"),
        ({"params": True}, "params: got True, needed a number"),
        ({"families": ("v3",)}, "families: got 'v3', needed one of 'v1', 'v2'"),
        ({"families": "v1"}, "families: got 'v1', needed a list with at least one entry"),
        ({"alphas": ()}, "alphas: got (), needed a list with at least one entry"),
        ({"resolutions": 224}, "resolutions: got 224, needed a list with at least one entry"),
        ({"resolutions": (20,)}, "resolution: got 20, needed a whole number from 32 to 8192"),
        ({"classes": 0}, "classes: got 0, needed a whole number from 1"),
        ({"bytes_per_element": 0}, "bytes_per_element: got 0, needed a whole number from 1 to 8"),
        ({"conventions": "torchvision"}, "conventions: 'torchvision' is not a source of MobileNet V1"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        choose(**arguments)  # type: ignore[arg-type]


def test_table_of_candidates() -> None:
    candidates = choose("100M", alphas=(0.25, 0.5), resolutions=(160, 192))
    lines = choose_table(candidates, limit=3).splitlines()
    assert " ".join(lines[0].split()) == ("member multiply-adds parameters peak memory weights ImageNet top-1 front")
    assert lines[1].split() == ["v2", "0.5", "192", "71,701,760", "1,968,680", "2.21", "MB", "7.95", "MB", "63.9%", "*"]
    assert lines[3].split()[:3] == ["v1", "0.5", "160"]
    assert lines[4] == "… and 4 more"
    assert "more" not in choose_table(candidates, limit=len(candidates))
    assert max(map(len, choose_table(EVERYTHING, 1000).splitlines())) <= 120
    unknown = next(c for c in EVERYTHING if c.top1 is None)
    assert "%" not in choose_table([unknown])


def test_plain_data_of_a_candidate() -> None:
    data = choose(families=("v1",), alphas=(0.25,), resolutions=(128,))[0].to_dict()
    assert json.loads(json.dumps(data)) == {
        "family": "v1",
        "alpha": 0.25,
        "height": 128,
        "width": 128,
        "classes": 1000,
        "macs": 13_570_048,
        "params": 470_072,
        "memory": 64 * 64 * (8 + 16) * 4,
        "size": 475_544 * 4,
        "top1": 41.5,
        "pareto": True,
    }


# ------------------------------------------------------------------------------------------------------------- text


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("100M", "count", 100_000_000),
        ("3.5m", "count", 3_500_000),
        ("2.3M", "count", 2_300_000),
        (" 12 k ", "count", 12_000),
        ("1.G", "count", 10**9),
        (".5G", "count", 500_000_000),
        ("250000", "count", 250_000),
        ("2Mi", "count", 2 * 2**20),
        ("1MB", "bytes", 1_000_000),
        ("1 mb", "bytes", 1_000_000),
        ("512KiB", "bytes", 524_288),
        ("64kB", "bytes", 64_000),
        ("1.5Gi", "bytes", 3 * 2**29),
        ("80B", "bytes", 80),
        ("80", "bytes", 80),
        (4096, "bytes", 4096),
        (2.5e6, "count", 2_500_000),
    ],
)
def test_amounts(text: str | float, unit: str, value: int) -> None:
    assert parse_amount(text, unit) == value  # type: ignore[arg-type]


BAD_AMOUNTS = ["", "M", "-1M", "+5", "1e6", "1 000", "1,000", "1MM", "1KB", "nan", "inf", "٣M", "1..5", "0x10", "5B"]


@pytest.mark.parametrize("text", BAD_AMOUNTS)
def test_what_is_no_count(text: str) -> None:
    with pytest.raises(UsageError, match=f"^limit: got {re.escape(repr(text))}, needed a plain count such as 100M"):
        parse_amount(text, "count", "limit")


@pytest.mark.parametrize("value", ["0.2", "999999999999G", "9" * 400, float("nan"), float("inf"), 0, None, [1]])
def test_amounts_outside_their_range(value: object) -> None:
    with pytest.raises(UsageError, match=r"^amount: got .*, needed a number from 1 to 1e\+15$"):
        parse_amount(value, "bytes")  # type: ignore[arg-type]


def test_an_unknown_unit_is_named() -> None:
    with pytest.raises(UsageError, match="unit: got 'flops', needed one of 'count', 'bytes'"):
        parse_amount("1M", "flops")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (9994, "9.99 kB"),
        (9996, "10.0 kB"),
        (99_960, "100 kB"),
        (802_816, "803 kB"),
        (999_400, "999 kB"),
        (999_600, "1.00 MB"),
        (6_021_120, "6.02 MB"),
        (1_500_000_000, "1.50 GB"),
        (123_456_000_000_000, "123456 GB"),
    ],
)
def test_bytes_have_three_digits(count: int, text: str) -> None:
    assert bytes_text(count) == text


def test_columns_line_up() -> None:
    assert table_text(("<name", "n"), [("a", "10"), ("long", "5")]).splitlines() == ["name   n", "a     10", "long   5"]
    assert table_text(("n", "<mark"), [("1", ""), ("2", "*")]).splitlines() == ["n  mark", "1", "2  *"]
