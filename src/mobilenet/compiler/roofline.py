"""A profile as a picture: each layer's speed over its operations a byte, under what the machine can do (SVG).

Williams, Waterman, Patterson 2009, "Roofline": a layer is below the flat roof, the multiply-adds, and below a slanted
one, of memory or, where its bytes come from there, of the cache. The area of a dot is the layer's time.
"""

import html
import math
from collections.abc import Sequence

from .profile import LayerProfile, Profile

_WIDTH, _HEIGHT = 760, 480
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 20, 56, 48
_COLOURS = {"conv": "#c2410c", "depthwise": "#0369a1", "pointwise": "#4d7c0f", "dense": "#7e22ce"}
_STYLE = (
    "svg{background:#fff;font:12px system-ui,sans-serif}text{fill:#333}.roof{stroke:#111;stroke-width:2;fill:none}"
    ".grid{stroke:#ddd}circle{fill-opacity:.6}"
    "@media(prefers-color-scheme:dark){svg{background:#16181d}text{fill:#ccc}.roof{stroke:#eee}.grid{stroke:#333}}"
)


class _Log:
    """Maps values from `low` to `high`, both powers of ten, to a range of the picture's units."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        self.low, self.high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)) + 1e-9)
        self.start, self.end = start, end

    def __call__(self, value: float) -> float:
        return self.start + (math.log10(value) - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        return [10.0**power for power in range(self.low, self.high + 1)]


def picture(profile: Profile) -> str:
    """Returns the SVG file of a profile."""
    layers = [each for each in profile.layers if each.flops and each.seconds]
    slants = {"memory": profile.bandwidth, "cache": profile.cache}
    ridges = [profile.peak / speed for speed in slants.values()]
    x = _Log([*(each.intensity for each in layers), *ridges], _LEFT, _WIDTH - _RIGHT)
    y = _Log([*(each.speed for each in layers), profile.peak], _HEIGHT - _BOTTOM, _TOP)
    title = f"{profile.network}, {profile.precision}, {profile.target}, threads: {profile.threads}"
    said = (
        f"{1e3 * profile.latency[1]:.2f} ms an image, {profile.speed / profile.peak:.0%} of the peak of "
        f"{profile.peak / 1e9:.0f} GFLOP/s; memory {profile.bandwidth / 1e9:.1f}, cache {profile.cache / 1e9:.0f} GB/s"
    )
    body = [
        f"<style>{_STYLE}</style>",
        _text(_LEFT, 20, title, "start", ' font-weight="600"'),
        _text(_LEFT, 40, said, "start"),
        *_frame(x, y),
        *(_roof(x, y, profile.peak, speed, name) for name, speed in slants.items()),
        *_dots(layers, x, y),
        *_legend(layers),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{html.escape(f"Roofline of {title}: {said}")}">{"".join(body)}</svg>\n'
    )


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{html.escape(text)}</text>'


def _frame(x: _Log, y: _Log) -> list[str]:
    base, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    found = []
    for value in x.ticks():
        found.append(f'<line class="grid" x1="{x(value):.1f}" y1="{_TOP}" x2="{x(value):.1f}" y2="{base}"/>')
        found.append(_text(x(value), base + 18, f"{value:g}", "middle"))
    for value in y.ticks():
        found.append(f'<line class="grid" x1="{_LEFT}" y1="{y(value):.1f}" x2="{right}" y2="{y(value):.1f}"/>')
        found.append(_text(_LEFT - 8, y(value) + 4, f"{value / 1e9:g}", "end"))
    found.append(_text((_LEFT + right) / 2, _HEIGHT - 8, "FLOP a byte", "middle"))
    found.append(_text(0, 0, "GFLOP/s", "middle", f' transform="translate(14 {(_TOP + base) / 2:.0f}) rotate(-90)"'))
    return found


def _roof(x: _Log, y: _Log, peak: float, bandwidth: float, name: str) -> str:
    foot = max(10.0**x.low * bandwidth, 10.0**y.low)  # in operations per second
    begin, ridge = (x(foot / bandwidth), y(foot)), (x(peak / bandwidth), y(peak))
    line = f'<path class="roof" d="M{begin[0]:.1f} {begin[1]:.1f}L{ridge[0]:.1f} {ridge[1]:.1f}H{_WIDTH - _RIGHT}"/>'
    return line + _text(begin[0] + 8, begin[1] - 4, name, "start")


def _dots(layers: Sequence[LayerProfile], x: _Log, y: _Log) -> list[str]:
    longest = sorted(layers, key=lambda each: -each.seconds)
    found: list[str] = []
    named: list[tuple[float, float]] = []
    for each in longest:  # the largest first: the others are drawn over it
        radius = 3 + 13 * math.sqrt(each.seconds / longest[0].seconds)
        place = x(each.intensity), y(each.speed)
        said = f"{each.layer.name}: {1e6 * each.seconds:.1f} µs, {each.speed / 1e9:.1f} GFLOP/s"
        found.append(
            f'<circle cx="{place[0]:.1f}" cy="{place[1]:.1f}" r="{radius:.1f}" fill="{_COLOURS[each.layer.kind]}">'
            f"<title>{html.escape(said)}</title></circle>"
        )
        at = place[0], place[1] + radius + 12
        if all(abs(at[0] - other[0]) > 90 or abs(at[1] - other[1]) > 11 for other in named):
            named.append(at)
            found.append(_text(*at, each.layer.name, "middle", ' font-size="10"'))
    return found


def _legend(layers: Sequence[LayerProfile]) -> list[str]:
    kinds = dict.fromkeys(each.layer.kind for each in layers)
    found = []
    for row, kind in enumerate(kinds):
        y = _HEIGHT - _BOTTOM - 14 - 18 * row
        found.append(f'<circle cx="{_WIDTH - _RIGHT - 96}" cy="{y - 4}" r="6" fill="{_COLOURS[kind]}"/>')
        found.append(_text(_WIDTH - _RIGHT - 84, y, kind, "start"))
    return found
