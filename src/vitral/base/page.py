"""A page that stands alone: one HTML file with its pictures and charts inside, for a phone or a desk, by day or night.

Nothing on such a page is fetched from anywhere, and its own policy forbids it. Every function returns a piece of HTML in
which all text is escaped; `document` puts pieces together. A page may have one script, which its policy names by hash.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from jaxtyping import Int
from numpy import ndarray
from PIL import Image

from vitral.errors import UsageError

__all__ = [
    "Tile",
    "commands",
    "confusion_table",
    "data_block",
    "details",
    "document",
    "facts",
    "line_chart",
    "link",
    "paragraph",
    "picture_address",
    "section",
    "side_by_side",
    "tile_grid",
]

# Blue and vermilion of Okabe and Ito's palette (lightened for the night), which colour-blind people tell apart; the panes
# at the top are the rest of it.
_STYLE = """
:root { color-scheme: light dark; --ink: #18202e; --quiet: #5a6577; --paper: #fbfaf7; --card: #fff; --line: #e2e0d9;
  --right: #0072b2; --wrong: #c44e00; --on: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --quiet: #9aa6b8; --paper: #12151b; --card: #1a1f28;
  --line: #2d3542; --right: #56b4e9; --wrong: #ff8a3d; --on: #10141b; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 52rem; margin: 0 auto; padding: 1.25rem 1rem 4rem; }
.panes { height: 10px; background: linear-gradient(90deg, #0072b2 0 14%, #56b4e9 0 27%, #009e73 0 45%, #f0e442 0 55%,
  #e69f00 0 72%, #d55e00 0 86%, #cc79a7 0); }
h1 { font-size: clamp(1.6rem, 6vw, 2.4rem); line-height: 1.15; margin: 1.2rem 0 .4rem; text-wrap: balance; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .5rem; }
p { margin: .4rem 0 .8rem; max-width: 42rem; }
.lead { font-size: 1.1rem; color: var(--quiet); }
.beside { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); gap: 1rem; }
figure { margin: 0; }
.chart { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .7rem .8rem .4rem;
  max-width: 26rem; }
.chart figcaption { display: flex; justify-content: space-between; gap: 1rem; color: var(--quiet); font-size: .9rem; }
.chart b { color: var(--ink); }
.chart svg { display: block; width: 100%; height: auto; }
.chart line { stroke: var(--line); } .chart text { fill: var(--quiet); font-size: 10px; }
.chart polyline { fill: none; stroke: var(--right); stroke-width: 2; stroke-linejoin: round; }
.chart circle { fill: var(--right); }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(3.6rem, 1fr)); gap: .5rem; }
.tiles.large { grid-template-columns: repeat(auto-fill, minmax(7rem, 1fr)); gap: .8rem; }
.tile { border: 1px solid var(--line); border-radius: 8px; overflow: hidden; background: var(--card); }
.tile img { display: block; width: 100%; aspect-ratio: 1; image-rendering: pixelated; }
.tile figcaption { display: flex; flex-wrap: wrap; justify-content: space-between; padding: .05rem .4rem; font-weight: 650; }
.tile small { color: var(--quiet); font-weight: 400; font-variant-numeric: tabular-nums; }
.tile.wrong { border: 2px solid var(--wrong); } .tile.wrong figcaption { color: var(--wrong); }
.scroll { overflow-x: auto; }
.confusion { border-collapse: separate; border-spacing: 2px; font-size: .85rem; font-variant-numeric: tabular-nums; }
.confusion th { font-weight: 500; color: var(--quiet); padding: 0 .3rem; }
.confusion td { width: 2.3rem; height: 2.1rem; text-align: center; border-radius: 4px; background: var(--card); }
.confusion td.hit { background: color-mix(in oklab, var(--right) var(--share), var(--card)); color: var(--on); }
.confusion td.miss { background: color-mix(in oklab, var(--wrong) 22%, var(--card)); color: var(--ink); font-weight: 650; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.2rem; margin: .5rem 0; }
dt { color: var(--quiet); } dd { margin: 0; overflow-wrap: anywhere; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .7rem .9rem; overflow-x: auto;
  font: .88rem/1.6 ui-monospace, monospace; }
a { color: var(--right); }
summary { cursor: pointer; color: var(--right); padding: .6rem 0; }
footer { margin-top: 3rem; color: var(--quiet); font-size: .9rem; }
@media (max-width: 30rem) { .confusion td { width: 1.7rem; height: 1.8rem; } .confusion { font-size: .75rem; }
  dl { grid-template-columns: 1fr; } dd { margin-bottom: .5rem; } }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclass(frozen=True)
class Tile:
    """A picture with what was said about it.

    Attributes:
        image: the picture, shown with hard edges at the tile's size.
        said: the answer.
        note: a remark on it, such as a score.
        description: what a screen reader reads instead of the picture.
        wrong: whether the answer was wrong; such a tile stands out.
    """

    image: Image.Image
    said: str
    note: str
    description: str
    wrong: bool = False


def document(title: str, *parts: str, lead: str = "", foot: str = "", style: str = "", script: str = "") -> str:
    """A whole page.

    Args:
        title: its heading and the name of its tab.
        *parts: pieces of HTML, from top to bottom.
        lead: a sentence under the heading.
        foot: a last remark.
        style: rules of its own, after those of every page.
        script: a module of JavaScript, which runs when the page is there. No other script can: the policy names it by hash
            (Content Security Policy Level 3, section 8.4), and still forbids to fetch anything.

    Raises:
        UsageError: a style or a script that would end its own element.
    """
    for name, code in (("style", style), ("script", script)):
        if any(sign in code.lower() for sign in ("</style", "</script", "<!--", "\r")):
            raise UsageError(f"A page's {name} must not hold '</{name}', '<!--' or carriage returns.")
    policy = _POLICY
    if script:
        # The hash is of the text between the tags, in UTF-8.
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
        policy += f"; script-src 'sha256-{digest}'"
    told = "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>{_STYLE}{style}</style>",
            '<div class="panes"></div>',
            "<main>",
            f"<h1>{escape(title)}</h1>",
            paragraph(lead, kind="lead") if lead else "",
            *parts,
            f"<footer>{escape(foot)}</footer>" if foot else "",
            "</main>",
            f'<script type="module">{script}</script>' if script else "",
            "</html>",
            "",
        ]
    )
    # A file name or a label may hold half of a surrogate pair, which no encoding of the page could write.
    return told.encode("utf-8", "replace").decode("utf-8")


def section(title: str, *parts: str) -> str:
    """Pieces under a heading of their own."""
    return "\n".join(["<section>", f"<h2>{escape(title)}</h2>", *parts, "</section>"])


def paragraph(text: str, *, kind: str = "") -> str:
    """A paragraph of plain text."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def side_by_side(*parts: str) -> str:
    """Pieces beside each other, or below each other where the screen is narrow."""
    return "\n".join(['<div class="beside">', *parts, "</div>"])


def details(summary: str, *parts: str) -> str:
    """Pieces that are folded away until asked for."""
    return "\n".join(["<details>", f"<summary>{escape(summary)}</summary>", *parts, "</details>"])


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Names and what they stand for."""
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(fact)}</dd>" for name, fact in rows) + "</dl>"


def link(address: str, text: str) -> str:
    """A way to another page, such as one in the same folder."""
    return f'<p><a href="{escape(address)}">{escape(text)}</a></p>'


def commands(*lines: str) -> str:
    """Lines to be typed or pasted."""
    return f"<pre>{escape(chr(10).join(lines))}</pre>"


def data_block(name: str, content: Any) -> str:
    """Data for the page's script, which finds them by name; a block of data is no script, and needs no permission.

    Args:
        name: the element's identifier.
        content: plain values, as JSON; what could end the block is escaped.
    """
    told = json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c").replace(">", "\\u003e")
    return f'<script type="application/json" id="{escape(name)}">{told}</script>'


def picture_address(image: Image.Image, *, photo: bool = False) -> str:
    """A picture as an address that holds it: PNG in base64, or for a photograph JPEG of quality 85."""
    memory = io.BytesIO()
    kind = "jpeg" if photo else "png"
    image.save(memory, kind, optimize=True, **({"quality": 85} if photo else {}))
    return f"data:image/{kind};base64," + base64.b64encode(memory.getvalue()).decode("ascii")


def tile_grid(tiles: Iterable[Tile], *, large: bool = False) -> str:
    """Tiles side by side, as many to a row as the screen has room for."""
    return "\n".join([f'<div class="tiles{" large" if large else ""}">', *map(_tile, tiles), "</div>"])


def _tile(tile: Tile) -> str:
    picture = f'<img src="{picture_address(tile.image)}" alt="{escape(tile.description)}">'
    caption = f"<figcaption><span>{escape(tile.said)}</span> <small>{escape(tile.note)}</small></figcaption>"
    return f'<figure class="tile{" wrong" if tile.wrong else ""}">{picture}{caption}</figure>'


def line_chart(title: str, values: Sequence[float], *, low: float, high: float, form: str = ".2f") -> str:
    """A line over the numbers 1, 2, 3, … as an inline drawing that takes the page's colours.

    Args:
        title: what the line shows.
        values: one for each number; the last is written out.
        low: the value at the lower edge.
        high: the value at the upper edge.
        form: how values are written, as in `format`.

    Raises:
        UsageError: no values, or one that is not a finite number, or edges in the wrong order.
    """
    if not values or not all(map(math.isfinite, (*values, low, high))) or low >= high:
        raise UsageError(f"A chart needs finite values and low < high, but got {list(values)!r}, {low} and {high}.")
    left, right, top, bottom = 46, 312, 10, 150
    step = (right - left) / max(len(values) - 1, 1)
    places = [
        (left + step * number, bottom - (bottom - top) * (min(max(value, low), high) - low) / (high - low))
        for number, value in enumerate(values)
    ]
    rules = []
    for share in (0.0, 0.5, 1.0):
        y = bottom - (bottom - top) * share
        label = format(low + (high - low) * share, form)
        rules.append(f'<line x1="{left}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>')
        rules.append(f'<text x="{left - 5}" y="{y + 3:.1f}" text-anchor="end">{label}</text>')
    rules.append(f'<text x="{left}" y="166">1</text><text x="{right}" y="166" text-anchor="end">epoch {len(values)}</text>')
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dot = f'<circle cx="{places[-1][0]:.1f}" cy="{places[-1][1]:.1f}" r="3.5"/>'
    last = format(values[-1], form)
    return (
        f'<figure class="chart"><figcaption>{escape(title)}<b>{last}</b></figcaption>'
        f'<svg viewBox="0 0 320 172" role="img" aria-label="{escape(title)}, at last {last}">'
        f'{"".join(rules)}<polyline points="{points}"/>{dot}</svg></figure>'
    )


def confusion_table(counts: Int[ndarray, "c c"], labels: Sequence[str]) -> str:
    """How often each class (rows) was taken for each class (columns); what is off the diagonal stands out.

    Args:
        counts: one row for each true class, one column for each answer.
        labels: the classes' names.
    """
    head = "".join(f'<th scope="col">{escape(label)}</th>' for label in labels)
    rows = []
    for place, label in enumerate(labels):
        total = max(int(counts[place].sum()), 1)
        cells = "".join(_cell(int(count), total, right=column == place) for column, count in enumerate(counts[place]))
        rows.append(f'<tr><th scope="row">{escape(label)}</th>{cells}</tr>')
    return f'<div class="scroll"><table class="confusion"><tr><th></th>{head}</tr>{"".join(rows)}</table></div>'


def _cell(count: int, total: int, *, right: bool) -> str:
    if right:
        return f'<td class="hit" style="--share: {count / total:.0%}">{count}</td>'
    return f'<td class="miss">{count}</td>' if count else "<td></td>"
