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
        page.line_chart(NASTY, [1.0], low=0.0, high=1.0),
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
    inside = re.search(r'<script type="module">(.*?)</script>', text, re.DOTALL)
    assert inside is not None
    assert inside[1] == script
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy is not None
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode()
    rules = dict(rule.strip().split(" ", 1) for rule in policy[1].split(";"))
    assert rules == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": "'unsafe-inline'",
        "script-src": f"'sha256-{digest}'",
    }
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
    drawn = page.line_chart("accuracy", [0.0, 0.5, 1.0, 2.0], low=0.0, high=1.0, form=".0%")
    points = re.search(r'points="([^"]+)"', drawn)
    assert points is not None
    x, y = np.array([pair.split(",") for pair in points[1].split()], dtype=float).T
    np.testing.assert_allclose(np.diff(x), np.diff(x)[0], atol=0.11)
    np.testing.assert_allclose((y[0] - y) / (y[0] - y[2]), [0, 0.5, 1, 1], atol=0.01)  # beyond the edge: at the edge
    assert "200%" in drawn


@pytest.mark.parametrize("values", [[], [float("nan")], [1.0, float("inf")]])
def test_a_chart_of_nothing_is_refused(values: list[float]) -> None:
    with pytest.raises(UsageError, match="finite"):
        page.line_chart("loss", values, low=0.0, high=1.0)


def test_the_confusion_table_tells_hits_from_misses() -> None:
    drawn = page.confusion_table(np.array([[3, 1], [0, 4]]), ["cat", "dog"])
    assert re.findall(r'<td class="hit" style="--share: (\d+)%">(\d+)', drawn) == [("75", "3"), ("100", "4")]
    assert re.findall(r'<td class="miss">(\d+)', drawn) == ["1"]
    assert drawn.count("<td></td>") == 1
