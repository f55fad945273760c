"""Pages that stand alone: what is written on them is escaped, and charts are where the numbers say."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from vitral.base import page
from vitral.errors import UsageError

NASTY = "<script>alert('x')</script>&\""


def test_nothing_written_on_a_page_becomes_markup() -> None:
    tile = page.Tile(Image.new("L", (8, 8)), NASTY, NASTY, NASTY)
    text = page.document(
        NASTY,
        page.section(NASTY, page.paragraph(NASTY), page.commands(NASTY), page.facts([(NASTY, NASTY)])),
        page.details(NASTY, page.tile_grid([tile])),
        page.chart(NASTY, [page.Series(name=NASTY, x=[1], y=[1.0])], across=NASTY),
        page.confusion_table(np.eye(2, dtype=int), [NASTY, NASTY]),
        lead=NASTY,
        foot=NASTY,
    )
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 14
    assert not re.search(r'="[^"]*<', text)


def test_data_cannot_end_their_block() -> None:
    told = {"name": NASTY, "comment": "<!--", "numbers": [1, 2.5], "separator": "\u2028", "surrogate": "\udce9"}
    block = page.data_block("told", told)
    head, body = block.removesuffix("</script>").split(">", 1)
    assert head == '<script type="application/json" id="told"'
    assert not set(body) & set("<>\u2028")
    assert json.loads(body) == told
    with pytest.raises(ValueError, match="JSON"):
        page.data_block("told", float("nan"))


def test_a_page_allows_its_own_script_and_no_other() -> None:
    plain, script = page.document("title"), "const π = 3;\nif (1 < π && π > 2) document.title = 'π';"
    assert "script-src" not in plain
    assert "<script" not in plain
    text = page.document("title", script=script, style="p { color: red; }")
    net, inside = re.findall(r"<script[^>]*>(.*?)</script>", text, re.DOTALL)
    assert '<script type="module">const' in text
    assert inside == script
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy is not None
    digests = [base64.b64encode(hashlib.sha256(one.encode("utf-8")).digest()).decode() for one in (net, script)]
    rules = dict(rule.strip().split(" ", 1) for rule in policy[1].split(";"))
    assert rules == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": "'unsafe-inline'",
        "script-src": " ".join(f"'sha256-{digest}'" for digest in digests),
    }
    assert text.index('id="failed"') < text.index(net) < text.index(script)
    assert "p { color: red; }</style>" in text


@pytest.mark.parametrize("code", ["x = '</script>'", "</STYLE >", "<!-- x", "a\r\nb"])
@pytest.mark.parametrize("kind", ["style", "script"])
def test_code_that_would_end_its_own_element_is_refused(kind: str, code: str) -> None:
    with pytest.raises(UsageError, match=f"A page's {kind} must not hold"):
        page.document("title", **{kind: code})


def test_a_photograph_travels_as_jpeg() -> None:
    image = Image.effect_noise((64, 48), 40).convert("RGB")
    for photo, kind in ((False, "PNG"), (True, "JPEG")):
        head, _, packed = page.picture_address(image, photo=photo).partition(",")
        assert head == f"data:image/{kind.lower()};base64"
        with Image.open(io.BytesIO(base64.b64decode(packed))) as read:
            assert (read.format, read.size) == (kind, (64, 48))
            apart = np.abs(np.asarray(read, dtype=int) - np.asarray(image, dtype=int))
        assert apart.max() == 0 if kind == "PNG" else 0 < apart.mean() < 8


def test_a_line_goes_where_its_values_are() -> None:
    drawn = page.chart(
        "accuracy",
        [page.Series(name="", x=range(1, 5), y=[0.0, 0.5, 1.0, 2.0])],
        across="epoch",
        low=0.0,
        high=1.0,
        form=".0%",
    )
    points = re.search(r'points="([^"]+)"', drawn)
    assert points is not None
    x, y = np.array([pair.split(",") for pair in points[1].split()], dtype=float).T
    np.testing.assert_allclose(np.diff(x), np.diff(x)[0], atol=0.11)
    np.testing.assert_allclose((y[0] - y) / (y[0] - y[2]), [0, 0.5, 1, 1], atol=0.01)  # beyond the edge: at the edge
    assert "200%" in drawn


@pytest.mark.parametrize("values", [[], [float("nan")], [1.0, float("inf")]])
def test_a_chart_of_nothing_is_refused(values: list[float]) -> None:
    with pytest.raises(UsageError, match="finite"):
        page.chart("loss", [page.Series(name="", x=range(len(values)), y=values)], across="epoch", low=0.0, high=1.0)


def corners(drawn: str, kind: str) -> np.ndarray:
    """The points (n 2) of a chart's line."""
    points = re.search(rf'<polyline class="{kind}" points="([^"]+)"', drawn)
    assert points is not None
    return np.array([pair.split(",") for pair in points[1].split()], dtype=float)


def test_lines_share_their_axes() -> None:
    lines = [
        page.Series(name="raw", x=[0, 100, 400], y=[2.0, 9.0, 0.0], faint=True),
        page.Series(name="one", x=[0, 400], y=[1.0, 2.0]),
        page.Series(name="two", x=[200, 300], y=[0.0, 3.0]),
    ]
    drawn = page.chart("Loss", lines, across="step", low=0.0, high=4.0, form=".1f", note="A remark.")
    x, y = np.concatenate([corners(drawn, kind) for kind in ("faint", "first", "second")]).T
    np.testing.assert_allclose((x - x[0]) / (x[2] - x[0]), [0, 0.25, 1, 0, 1, 0.5, 0.75], atol=0.001)
    down = y[2] - (y[2] - y[1]) * np.array([2, 4, 0, 1, 2, 0, 3]) / 4  # 9 lies beyond the edge, and is drawn at it
    np.testing.assert_allclose(y, down, atol=0.1)
    assert re.findall(r"</i>(\w+) <b>([\d.]+)</b>", drawn) == [("one", "2.0"), ("two", "3.0")]
    assert "step 400" in drawn
    assert "A remark." in drawn
    assert drawn.index('<polyline class="faint"') < drawn.index('<polyline class="first"')
    assert 'aria-label="Loss; at last one 2.0, two 3.0"' in drawn


def test_edges_are_round_numbers_around_all_values() -> None:
    lines = [page.Series(name="a", x=[1, 2], y=[0.3, 0.7]), page.Series(name="b", x=[1, 2], y=[-0.2, 0.1])]
    drawn = page.chart("Both", lines, across="epoch")
    assert re.findall(r'text-anchor="end">(-?[\d.]+)<', drawn) == ["-0.20", "0.30", "0.80"]
    for value, edge in ((0.7, 0.8), (0.8, 0.8), (1.01, 1.2), (23, 24), (3e-4, 3e-4), (0, 1), (-5, 1), (9.9e9, 1e10)):
        assert page.rounded_up(value) == pytest.approx(edge)


@pytest.mark.parametrize("count", [0, 4])
def test_a_chart_has_as_many_lines_as_an_eye_tells_apart(count: int) -> None:
    lines = [page.Series(name=str(number), x=[1], y=[1.0]) for number in range(count)]
    with pytest.raises(UsageError, match="one to 3 lines"):
        page.chart("title", lines, across="epoch")
    with pytest.raises(UsageError, match="a place for each value"):
        page.chart("title", [page.Series(name="a", x=[1, 2], y=[1.0])], across="epoch")


def test_the_reliability_diagram_is_as_high_as_answers_are_right() -> None:
    counts, accuracy = np.array([0, 10, 30]), np.array([0.0, 0.25, 1.0])
    confidence, edges = np.array([0.0, 0.5, 0.9]), np.linspace(0, 1, 4)
    drawn = page.reliability_diagram(counts, confidence, accuracy, edges, title=NASTY)
    shares = re.findall(r'<rect class="share" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', drawn)
    x, y, width, height = np.array(shares, dtype=float).T
    assert len(x) == 2  # nothing is drawn where there are no pictures
    np.testing.assert_allclose(height / height[1], [0.25, 1], atol=0.001)
    np.testing.assert_allclose(y + height, y[0] + height[0], atol=0.11)
    np.testing.assert_allclose(x[1] - x[0], width + 1, atol=0.11)
    gaps = np.array(re.findall(r'class="gap" x1="([\d.]+)" y1="([\d.]+)" x2="\1" y2="([\d.]+)"', drawn), dtype=float)
    np.testing.assert_allclose((gaps[:, 2] - gaps[:, 1]) / height[1], [0.25 - 0.5, 1 - 0.9], atol=0.002)
    piles = re.findall(r'<rect x="[\d.]+" y="[\d.]+" width="[\d.]+" height="([\d.]+)"', drawn)
    assert float(piles[0]) / float(piles[1]) == pytest.approx(1 / 3)
    assert "10 of 40 pictures: 50.0% sure on average, 25.0% right" in drawn
    assert "<script" not in drawn
    with pytest.raises(UsageError, match="at least one picture"):
        page.reliability_diagram(counts * 0, confidence, accuracy, edges)


def test_bars_are_as_long_as_their_shares() -> None:
    drawn = page.bars([("half", 0.5, "1 of 2"), (NASTY, 1.7, NASTY), ("none", -1.0, "")])
    assert re.findall(r"--share: ([\d.]+)%", drawn) == ["50.0", "100.0", "0.0"]
    assert "<script" not in drawn


def test_a_photograph_on_a_tile_is_shown_whole() -> None:
    image = Image.effect_noise((64, 48), 40).convert("RGB")
    drawn = page.tile_grid([page.Tile(image, "a", "b", "c", photo=True), page.Tile(image, "a", "b", "c")])
    assert re.findall(r'<img( class="photo")? src="data:image/(\w+)', drawn) == [(' class="photo"', "jpeg"), ("", "png")]


def test_the_confusion_table_tells_hits_from_misses() -> None:
    drawn = page.confusion_table(np.array([[3, 1], [0, 4]]), ["cat", "dog"])
    assert re.findall(r'<td class="hit" style="--share: (\d+)%">(\d+)', drawn) == [("75", "3"), ("100", "4")]
    assert re.findall(r'<td class="miss">(\d+)', drawn) == ["1"]
    assert drawn.count("<td></td>") == 1
