"""The frame of the report and the pieces it is made of: style, page, sections, figures, tables, bars.

All arguments are HTML already: what comes from outside goes through `charts.escape` first.
"""

from collections.abc import Sequence

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #16191d; --quiet: #59616b; --rule: #dfe3e8; --grid: #e9ecf0;
  --blue: #1f5fbf; --orange: #b3500b; --on: #ffffff; --soft: #eef3fb;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #101316; --card: #191d21; --ink: #e9ecef; --quiet: #a3acb6; --rule: #31373e; --grid: #262b31;
    --blue: #7fb0ff; --orange: #ffa45c; --on: #0c0f12; --soft: #1d2632;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 1040px; margin: 0 auto; padding: 36px 20px 64px; }
header p { margin: 2px 0; color: var(--quiet); overflow-wrap: anywhere; }
h1 { margin: 0 0 4px; font-size: 27px; line-height: 1.25; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { margin: 0 0 4px; font-size: 19px; letter-spacing: -0.005em; }
section { margin-top: 44px; }
section > p { margin: 0 0 14px; max-width: 74ch; color: var(--quiet); }
section.headline { margin-top: 26px; }
.tiles { display: grid; grid-template-columns: repeat(4, 1fr); gap: 12px; }
.tile { padding: 14px 16px; }
.tile h2 { margin: 0; font-size: 13px; font-weight: 600; color: var(--quiet); letter-spacing: 0; }
.tile p { margin: 0; }
.tile .figure { font-size: 27px; font-weight: 650; line-height: 1.3; font-variant-numeric: tabular-nums; }
.tile .note { font-size: 12.5px; color: var(--quiet); line-height: 1.4; }
.tile.first { grid-column: span 2; background: var(--soft); border-color: var(--blue); }
.tile.first .figure { font-size: 40px; line-height: 1.15; color: var(--blue); }
section > p.verdict { margin: 16px 0 0; color: var(--ink); }
figure { margin: 0 0 14px; padding: 16px; }
figcaption { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 2px 18px; margin-bottom: 8px; }
figcaption { font-weight: 600; font-size: 14px; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 14px; }
.pair > figure { margin: 0; }
.scroll { overflow-x: auto; }
.legend { font-weight: 400; font-size: 12.5px; color: var(--quiet); }
.key { display: inline-block; margin-right: 14px; }
.key:last-child { margin: 0; }
.key i { display: inline-block; width: 14px; height: 10px; margin-right: 6px; border-radius: 2px; }
.key i.train, .key i.val { height: 0; border-radius: 0; vertical-align: middle; border-top: 2.5px solid var(--blue); }
.key i.train { border-top: 2.5px dashed var(--quiet); }
.key i.right, .key i.accuracy { background: var(--blue); }
.key i.wrong, .key i.gap { background: var(--orange); }
.key i.photos { background: var(--quiet); }
.key i.gap { width: 3px; height: 12px; vertical-align: middle; border-radius: 0; }
.key i.ideal { height: 0; vertical-align: middle; border-radius: 0; border-top: 1.5px dashed var(--ink); }
svg { display: block; width: 100%; height: auto; font-size: 12px; }
svg text { fill: var(--ink); }
svg .tick { fill: var(--quiet); font-size: 11.5px; font-variant-numeric: tabular-nums; }
svg .name { fill: var(--quiet); }
svg .grid { stroke: var(--grid); }
svg .axis { stroke: var(--quiet); }
svg .line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
svg .line.val { stroke: var(--blue); }
svg .line.train { stroke: var(--quiet); stroke-dasharray: 5 4; }
svg .dot { stroke: var(--card); stroke-width: 1.5; }
svg .dot.val { fill: var(--blue); }
svg .dot.train { fill: var(--quiet); }
svg .mark { font-weight: 650; paint-order: stroke; stroke: var(--card); stroke-width: 4px; }
svg .mark.val { fill: var(--blue); }
svg .empty { fill: var(--grid); fill-opacity: 0.5; }
svg .right, svg .accuracy { fill: var(--blue); }
svg .wrong { fill: var(--orange); }
svg .accuracy { fill-opacity: 0.75; }
svg .gap { stroke: var(--orange); stroke-width: 3; }
svg .photos { fill: var(--quiet); fill-opacity: 0.55; }
svg .diagonal { stroke: var(--ink); stroke-width: 1.2; stroke-dasharray: 4 4; }
svg .count { font-size: 11.5px; font-variant-numeric: tabular-nums; }
svg .count.on { fill: var(--on); }
table { width: 100%; border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; font-size: 12.5px; color: var(--quiet); }
th, td { padding: 5px 14px 5px 0; border-bottom: 1px solid var(--grid); vertical-align: top; }
td { overflow-wrap: break-word; }
details td { overflow-wrap: anywhere; }
th:last-child, td:last-child { padding-right: 0; }
tr:last-child td { border-bottom: 0; }
.number { text-align: right; white-space: nowrap; }
.share { white-space: nowrap; }
.bar { display: inline-block; width: 72px; height: 8px; margin-right: 9px; background: var(--grid); }
.bar, .bar i { border-radius: 4px; }
.bar i { display: block; height: 100%; background: var(--blue); }
.bar.wrong i { background: var(--orange); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(290px, 1fr)); gap: 14px; }
.card { margin: 0; padding: 12px; }
.card .images { display: grid; grid-template-columns: 1fr 1fr; gap: 6px; }
.card img { display: block; width: 100%; height: auto; aspect-ratio: 1; object-fit: contain; border-radius: 6px; }
.card .gone { grid-column: span 2; margin: 0; padding: 40px 12px; text-align: center; color: var(--quiet); }
.card figcaption { display: block; margin: 8px 0 0; font-weight: 400; }
.card figcaption p { margin: 0; overflow-wrap: anywhere; }
.said { font-weight: 650; color: var(--orange); }
.true { font-weight: 650; color: var(--blue); }
.path { font-size: 12px; color: var(--quiet); }
details { margin-bottom: 8px; padding: 9px 16px; }
figure, details, .tile { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; }
summary { cursor: pointer; font-weight: 600; font-size: 14px; }
details table { margin-top: 8px; }
footer { margin-top: 44px; padding-top: 14px; border-top: 1px solid var(--rule); }
footer { font-size: 12.5px; color: var(--quiet); }
@media (max-width: 560px) {
  main { padding: 22px 14px 44px; }
  figure { padding: 12px; }
  .tiles { grid-template-columns: 1fr 1fr; gap: 10px; }
  .tile { padding: 12px 14px; }
  .bar { display: none; }
  th, td { padding-right: 8px; }
  td:first-child { min-width: 62px; }
  svg.plot, svg.plot .tick { font-size: 15px; }
  .cards { grid-template-columns: 1fr; }
}
@media print { figure, .card, .tile { break-inside: avoid; } body { background: none; } }
"""

# The policy lets the page load nothing and run nothing, whatever a label or file name should manage to smuggle in.
PAGE = (
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>"""
    + STYLE.replace("{", "{{").replace("}", "}}")
    + """</style>
</head>
<body>
<main>
<header>
<h1>{title}</h1>
<p>{network}</p>
<p>Evaluated on {data}</p>
</header>
{sections}
<footer>Made by mobilenet. This page is one file and loads nothing else.</footer>
</main>
</body>
</html>
"""
)


def section(title: str, text: str, body: str) -> str:
    """Returns a section of the page: its heading, a sentence or two if any, and its figures."""
    return f"<section><h2>{title}</h2>{f'<p>{text}</p>' if text else ''}{body}</section>"


def figure(title: str, body: str, keys: str = "") -> str:
    """Returns a framed chart or table with its title and legend; it scrolls where it is too wide."""
    return f'<figure><figcaption>{title}{keys}</figcaption><div class="scroll">{body}</div></figure>'


def legend(*entries: tuple[str, str]) -> str:
    """Returns the keys of a chart, each a CSS class and its meaning."""
    keys = "".join(f'<span class="key"><i class="{style}"></i>{name}</span>' for style, name in entries)
    return f'<span class="legend">{keys}</span>'


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table; a column whose name begins with "#" stands right."""
    styles = [' class="number"' if column.startswith("#") else "" for column in columns]
    heads = [
        f'<th scope="col"{style}>{name.removeprefix("#")}</th>' for name, style in zip(columns, styles, strict=True)
    ]
    lines = ("".join(f"<td{style}>{cell}</td>" for cell, style in zip(row, styles, strict=True)) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><thead><tr>{''.join(heads)}</tr></thead><tbody>{body}</tbody></table>"


def bar(share: float, style: str = "", full: float = 1.0) -> str:
    """Returns a share as a bar, whole at `full`, and as a number."""
    length = f"width:{100 * share / full:.1f}%"
    return f'<span class="share"><span class="bar {style}"><i style="{length}"></i></span>{share:.1%}</span>'
