"""A page that stands alone: one HTML file with its pictures and charts inside, for a phone or a desk, by day or night.

Nothing on such a page is fetched from anywhere, and its own policy forbids it. Every function returns a piece of HTML in
which all text is escaped; `document` puts pieces together. A page may have one script, which its policy names by hash, and
which is watched: where it fails, the page says so.
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

from jaxtyping import Float, Int
from numpy import ndarray
from PIL import Image

from vitral.errors import UsageError

__all__ = [
    "Series",
    "Tile",
    "bars",
    "chart",
    "commands",
    "confusion_table",
    "data_block",
    "details",
    "document",
    "facts",
    "link",
    "paragraph",
    "picture_address",
    "reliability_diagram",
    "rounded_up",
    "rules",
    "section",
    "side_by_side",
    "tile_grid",
]

# Blue and vermilion of Okabe and Ito's palette (lightened for the night), which colour-blind people tell apart; the panes
# at the top are the rest of it.
_STYLE = """
:root { color-scheme: light dark; --ink: #18202e; --quiet: #5a6577; --paper: #fbfaf7; --card: #fff; --line: #e2e0d9;
  --right: #0072b2; --wrong: #c44e00; --third: #00795a; --on: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --quiet: #9aa6b8; --paper: #12151b; --card: #1a1f28;
  --line: #2d3542; --right: #56b4e9; --wrong: #ff8a3d; --third: #2fc79a; --on: #10141b; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 52rem; margin: 0 auto; padding: 1.25rem 1rem 4rem; }
.panes { height: 10px; background: linear-gradient(90deg, #0072b2 0 14%, #56b4e9 0 27%, #009e73 0 45%, #f0e442 0 55%,
  #e69f00 0 72%, #d55e00 0 86%, #cc79a7 0); }
h1 { font-size: clamp(1.6rem, 6vw, 2.4rem); line-height: 1.15; margin: 1.2rem 0 .4rem; text-wrap: balance; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .5rem; }
p { margin: .4rem 0 .8rem; max-width: 42rem; }
.failed { color: var(--wrong); }
.lead { font-size: 1.1rem; color: var(--quiet); } .quiet { color: var(--quiet); font-size: .92rem; }
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
.chart .second { stroke: var(--wrong); stroke-dasharray: 6 3; } .chart circle.second { fill: var(--wrong); stroke: none; }
.chart .third { stroke: var(--third); stroke-dasharray: 2 3; } .chart circle.third { fill: var(--third); stroke: none; }
.chart polyline.faint { stroke-width: 1; opacity: .35; }
.chart .truth { stroke: var(--quiet); stroke-dasharray: 4 4; } .chart rect { fill: var(--right); }
.chart rect.share { opacity: .55; } .chart .gap { stroke: var(--wrong); stroke-width: 2.5; }
.chart .quiet { margin: .1rem 0 .4rem; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; margin: 0 0 .3rem; font-size: .85rem; color: var(--quiet); }
.legend i { display: inline-block; width: 1.3rem; margin-right: .4rem; vertical-align: .25em;
  border-top: 2.5px solid var(--right); }
.legend i.second { border-top: 2.5px dashed var(--wrong); } .legend i.third { border-top: 2.5px dotted var(--third); }
.bars { list-style: none; margin: .6rem 0; padding: 0; display: grid; gap: .35rem 1.4rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); }
.bars li { display: grid; grid-template: 1fr auto / 1fr auto; gap: 0 .8rem; font-size: .92rem; }
.bars li > span:first-child { overflow-wrap: anywhere; align-self: end; }
.bars small { color: var(--quiet); font-variant-numeric: tabular-nums; align-self: end; }
.bars .track { grid-column: 1 / -1; height: 6px; border-radius: 3px; background: var(--line); overflow: hidden; }
.bars .track i { display: block; height: 100%; width: var(--share); background: var(--right); }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(3.6rem, 1fr)); gap: .5rem; }
.tiles.large { grid-template-columns: repeat(auto-fill, minmax(7rem, 1fr)); gap: .8rem; }
.tile { border: 1px solid var(--line); border-radius: 8px; overflow: hidden; background: var(--card); }
.tile img { display: block; width: 100%; aspect-ratio: 1; image-rendering: pixelated; }
.tile img.photo { image-rendering: auto; object-fit: contain; }
.tile figcaption span { overflow-wrap: anywhere; }
.tile figcaption { display: flex; flex-wrap: wrap; justify-content: space-between; padding: .05rem .4rem; font-weight: 650; }
.tile small { color: var(--quiet); font-weight: 400; font-variant-numeric: tabular-nums; }
.tile.wrong { border: 2px solid var(--wrong); } .tile.wrong figcaption { color: var(--wrong); }
.scroll { overflow-x: auto; }
.confusion { border-collapse: separate; border-spacing: 2px; font-size: .85rem; font-variant-numeric: tabular-nums; }
.confusion th { font-weight: 500; color: var(--quiet); padding: 0 .3rem; }
.confusion th { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.confusion th[scope=row] { text-align: right; max-width: min(11rem, 30vw); position: sticky; left: 0;
  background: var(--paper); }
.confusion.tall th[scope=col] { writing-mode: vertical-rl; transform: rotate(180deg); text-align: left; max-height: 9rem;
  padding: .3rem 0; }
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
# Watches the page's script, and is not part of it: one that cannot even be read says nothing itself. Browsers also report
# that they put off telling of sizes, which is no failure.
_NET = """{
  const say = (failure) => {
    if (String(failure).startsWith("ResizeObserver")) return;
    const told = document.getElementById("failed");
    const what = `The script of this page failed${failure ? ` (${failure})` : ""}.`;
    told.textContent = `${what} What it draws is missing, or stands still; all else is as it was.`;
    told.hidden = false;
  };
  addEventListener("error", (event) => say(event.message));
  addEventListener("unhandledrejection", (event) => say(event.reason));
}"""


@dataclass(frozen=True)
class Tile:
    """A picture with what was said about it.

    Attributes:
        image: the picture, shown with hard edges at the tile's size.
        said: the answer.
        note: a remark on it, such as a score.
        description: what a screen reader reads instead of the picture.
        wrong: whether the answer was wrong; such a tile stands out.
        photo: whether it is a photograph, which travels as JPEG and is shown whole and smooth.
    """

    image: Image.Image
    said: str
    note: str
    description: str
    wrong: bool = False
    photo: bool = False


@dataclass(frozen=True, kw_only=True)
class Series:
    """A line of a chart.

    Attributes:
        name: what it is called in the legend.
        x: where its points stand, not falling.
        y: their values.
        faint: drawn thin and pale behind the others, and not in the legend: what a smoothed line was made from.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    faint: bool = False


def document(title: str, *parts: str, lead: str = "", foot: str = "", style: str = "", script: str = "") -> str:
    """A whole page.

    Args:
        title: its heading and the name of its tab.
        *parts: pieces of HTML, from top to bottom.
        lead: a sentence under the heading.
        foot: a last remark.
        style: rules of its own, after those of every page.
        script: a module of JavaScript, which runs when the page is there. Where it fails, a sentence says so. No other
            script can run: the policy names it, and the few lines that watch it, by hash (Content Security Policy Level 3,
            section 8.4), and still forbids to fetch anything.

    Raises:
        UsageError: a style or a script that would end its own element.
    """
    for name, code in (("style", style), ("script", script)):
        if any(sign in code.lower() for sign in ("</style", "</script", "<!--", "\r")):
            raise UsageError(f"A page's {name} must not hold '</{name}', '<!--' or carriage returns.")
    policy = _POLICY
    if script:
        policy += f"; script-src {_hash(_NET)} {_hash(script)}"
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
            f'<p class="failed" id="failed" role="alert" hidden></p><script>{_NET}</script>' if script else "",
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


def _hash(script: str) -> str:
    """A script's name in the policy: the hash of the text between the tags, in UTF-8."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return f"'sha256-{digest}'"


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
    kind = ' class="photo"' if tile.photo else ""
    picture = f'<img{kind} src="{picture_address(tile.image, photo=tile.photo)}" alt="{escape(tile.description)}">'
    caption = f"<figcaption><span>{escape(tile.said)}</span> <small>{escape(tile.note)}</small></figcaption>"
    return f'<figure class="tile{" wrong" if tile.wrong else ""}">{picture}{caption}</figure>'


_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 312, 10, 150
"""The edges of a small chart's field, in a drawing of 320 × 172."""
_LINES = ("first", "second", "third")
_THIRDS = (0.0, 0.5, 1.0)


def chart(
    title: str,
    series: Sequence[Series],
    *,
    across: str,
    low: float | None = None,
    high: float | None = None,
    form: str = ".2f",
    note: str = "",
) -> str:
    """Lines over a common axis as an inline drawing that takes the page's colours.

    What lies beyond the lower or the upper edge is drawn at the edge.

    Args:
        title: what the lines show; their axis.
        series: up to three lines, and any number of faint ones behind them. The last value of each is written out.
        across: what the other axis counts.
        low: the value at the lower edge; by default 0, or below the least value where that is negative.
        high: the value at the upper edge; by default a round number above the greatest value.
        form: how values are written, as in `format`.
        note: a remark below the drawing.

    Raises:
        UsageError: no values, or one that is not a finite number, or edges in the wrong order, or too many lines.
    """
    lines = [one for one in series if not one.faint]
    found = [value for one in series for value in one.y]
    low = (-rounded_up(-min(found)) if found and min(found) < 0 else 0.0) if low is None else low
    high = (max(rounded_up(max(found)), low + 1e-12) if found else 1.0) if high is None else high
    places = [place for one in series for place in one.x]
    if not all(one.y for one in series) or not all(map(math.isfinite, (*found, *places, low, high))) or low >= high:
        raise UsageError(f"A chart needs finite values and low < high, but got {found[:20]!r}, {low} and {high}.")
    if not 1 <= len(lines) <= len(_LINES) or any(len(one.x) != len(one.y) for one in series):
        raise UsageError(f"A chart shows one to {len(_LINES)} lines, each with a place for each value; {len(lines)} came.")
    first, last = min(places), max(places)
    longest = max(len(format(low + (high - low) * share, form)) for share in _THIRDS)
    left = max(_LEFT, 8 + 6 * longest)
    wide, tall = (_RIGHT - left) / ((last - first) or 1), (_BOTTOM - _TOP) / (high - low)

    def at(x: float, y: float) -> tuple[float, float]:
        return left + wide * (x - first), _BOTTOM - tall * (min(max(y, low), high) - low)

    drawn = [rules(low, high, left=left, right=_RIGHT, top=_TOP, bottom=_BOTTOM, form=form)]
    drawn.append(f'<text x="{left}" y="166">{_counted(first)}</text>')
    drawn.append(f'<text x="{_RIGHT}" y="166" text-anchor="end">{escape(across)} {_counted(last)}</text>')
    kinds = dict(zip(map(id, lines), _LINES, strict=False))
    for one in sorted(series, key=lambda one: not one.faint):
        points = [at(x, y) for x, y in zip(one.x, one.y, strict=True)]
        kind = kinds.get(id(one), "faint")
        drawn.append(f'<polyline class="{kind}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>')
        if not one.faint:
            drawn.append(f'<circle class="{kind}" cx="{points[-1][0]:.1f}" cy="{points[-1][1]:.1f}" r="3.5"/>')
    ends = [(one.name, format(one.y[-1], form)) for one in lines]
    if len(lines) == 1:
        told, legend, head = f"{title}, at last {ends[0][1]}", "", f"{escape(title)}<b>{ends[0][1]}</b>"
    else:
        told = f"{title}; at last " + ", ".join(f"{name} {value}" for name, value in ends)
        keys = [
            f'<span><i class="{kind}"></i>{escape(name)} <b>{value}</b></span>'
            for kind, (name, value) in zip(_LINES, ends, strict=False)
        ]
        legend, head = f'<p class="legend">{"".join(keys)}</p>', escape(title)
    return (
        f'<figure class="chart"><figcaption>{head}</figcaption>{legend}'
        f'<svg viewBox="0 0 320 172" role="img" aria-label="{escape(told)}">{"".join(drawn)}</svg>'
        f"{paragraph(note, kind='quiet') if note else ''}</figure>"
    )


def rules(
    low: float,
    high: float,
    *,
    left: float,
    right: float,
    top: float,
    bottom: float,
    form: str = ".2f",
    shares: Sequence[float] = _THIRDS,
) -> str:
    """The horizontal lines of a drawing, each with its value to its left.

    Args:
        low: the value at the lower edge.
        high: the value at the upper edge.
        left: the field's edge, in the drawing's units, as are the other three.
        right: likewise.
        top: likewise.
        bottom: likewise.
        form: how values are written, as in `format`.
        shares: where the lines are, from 0 at the lower edge to 1 at the upper.
    """
    drawn = []
    for share in shares:
        y = bottom - (bottom - top) * share
        drawn.append(f'<line x1="{left}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>')
        label = format(low + (high - low) * share, form)
        drawn.append(f'<text x="{left - 6}" y="{y + 3.5:.1f}" text-anchor="end">{label}</text>')
    return "".join(drawn)


def rounded_up(value: float) -> float:
    """The next number that reads well at the end of an axis: it is short, and so are its quarters."""
    if not value > 0 or not math.isfinite(value):
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    steps = (1, 1.2, 1.6, 2, 2.4, 3, 4, 5, 6, 8, 10)
    return float(next(step * power for step in steps if step * power >= value * (1 - 1e-9)))


def _counted(number: float) -> str:
    return f"{number:,.0f}" if number == int(number) else f"{number:.3g}"


def reliability_diagram(
    counts: Int[ndarray, " k"],
    confidence: Float[ndarray, " k"],
    accuracy: Float[ndarray, " k"],
    edges: Float[ndarray, " k+1"],
    *,
    title: str = "Reliability",
    note: str = "",
) -> str:
    """How often an answer is right (bars) by how sure it was, and how far that is from being as sure as right (strokes).

    Args:
        counts: pictures in each bin; a row of small bars below the drawing shows them.
        confidence: the mean confidence in each bin.
        accuracy: the share of right answers in each bin.
        edges: of the bins, from 0 to 1.
        title: above the drawing.
        note: below it.

    Raises:
        UsageError: no pictures.
    """
    total = int(counts.sum())
    if not total:
        raise UsageError("A reliability diagram needs at least one picture.")
    left, right, top, bottom = 46, 312, 10, 196  # and the counts below, from 206 to 236
    wide, tall = right - left, bottom - top
    drawn = [rules(0, 1, left=left, right=right, top=top, bottom=bottom, form=".0%")]
    for number, held, sure, truth, low, high in zip(
        counts.tolist(),
        (counts / counts.max()).tolist(),
        confidence.tolist(),
        accuracy.tolist(),
        edges,
        edges[1:],
        strict=False,
    ):
        if not number:
            continue
        x, width = left + wide * float(low) + 0.5, max(wide * float(high - low) - 1, 0.5)
        share, pile = tall * truth, max(30 * held, 1)
        said = f"{number:,} of {total:,} pictures: {sure:.1%} sure on average, {truth:.1%} right"
        drawn.append(
            f"<g><title>{said}</title>"
            f'<rect class="share" x="{x:.1f}" y="{bottom - share:.1f}" width="{width:.1f}" height="{share:.1f}"/>'
            f'<rect x="{x:.1f}" y="{236 - pile:.1f}" width="{width:.1f}" height="{pile:.1f}"/></g>'
        )
        middle, level = left + wide * sure, bottom - tall * sure
        drawn.append(f'<line class="gap" x1="{middle:.1f}" y1="{bottom - share:.1f}" x2="{middle:.1f}" y2="{level:.1f}"/>')
    drawn.append(f'<line class="truth" x1="{left}" y1="{bottom}" x2="{right}" y2="{top}"/>')
    drawn.append(f'<line x1="{left}" y1="236" x2="{right}" y2="236"/>')
    drawn.append(f'<text x="{left - 6}" y="226" text-anchor="end">pictures</text>')
    drawn.append(f'<text x="{left}" y="250">0%</text><text x="{right}" y="250" text-anchor="end">100% sure</text>')
    told = f"{title}: the share of right answers over how sure they were, in {int((counts > 0).sum())} bins"
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 320 256" role="img" aria-label="{escape(told)}">{"".join(drawn)}</svg>'
        f"{paragraph(note, kind='quiet') if note else ''}</figure>"
    )


def bars(rows: Iterable[tuple[str, float, str]]) -> str:
    """A list of names, each with a bar.

    Args:
        rows: a name, a share from 0 to 1 (what lies beyond is cut), and what is written beside it.
    """
    items = "".join(
        f"<li><span>{escape(name)}</span><small>{escape(note)}</small>"
        f'<span class="track"><i style="--share: {min(max(share, 0.0), 1.0):.1%}"></i></span></li>'
        for name, share, note in rows
    )
    return f'<ul class="bars">{items}</ul>'


def confusion_table(counts: Int[ndarray, "c c"], labels: Sequence[str]) -> str:
    """How often each class (rows) was taken for each class (columns); what is off the diagonal stands out.

    Args:
        counts: one row for each true class, one column for each answer.
        labels: the classes' names.
    """
    head = "".join(f'<th scope="col" title="{escape(label)}">{escape(label)}</th>' for label in labels)
    rows = []
    for place, label in enumerate(labels):
        total = max(int(counts[place].sum()), 1)
        cells = "".join(_cell(int(count), total, right=column == place) for column, count in enumerate(counts[place]))
        rows.append(f'<tr><th scope="row" title="{escape(label)}">{escape(label)}</th>{cells}</tr>')
    tall = " tall" if any(len(label) > 4 for label in labels) else ""  # long names stand upright
    return f'<div class="scroll"><table class="confusion{tall}"><tr><th></th>{head}</tr>{"".join(rows)}</table></div>'


def _cell(count: int, total: int, *, right: bool) -> str:
    if right:
        return f'<td class="hit" style="--share: {count / total:.0%}">{count}</td>'
    return f'<td class="miss">{count}</td>' if count else "<td></td>"
