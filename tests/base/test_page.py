"""Pages that stand alone: what is written on them is escaped, and charts are where the numbers say."""

from __future__ import annotations

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
