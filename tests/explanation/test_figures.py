"""Figures by what is in them: the numbers they were given, what they are called, and that no text is cut or hidden."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from collections.abc import Callable
from inspect import unwrap
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

import vitral
from vitral.base.frame import Frame
from vitral.base.image import Picture
from vitral.data.transforms import Preprocessing
from vitral.errors import UnknownNameError, UsageError
from vitral.explanation.capture import capture
from vitral.explanation.embeddings import FilterComponents, PositionSimilarity
from vitral.explanation.figures import (
    COLUMN,
    PAGE,
    attention_grid,
    compare,
    distance_chart,
    filter_grid,
    norm_histogram,
    patch_grid,
    position_grid,
)
from vitral.explanation.geometry import TokenGeometry
from vitral.explanation.result import Explanation
from vitral.explanation.statistics import HeadStatistics, TokenNorms


def tiny(**changed: Any) -> Any:
    """A small vision transformer on a grid of 4 × 3 patches."""
    parts: dict[str, Any] = {"image_size": (32, 24), "patch_size": (8, 8), "width": 32, "depth": 3, "heads": 2}
    return vitral.create_model("vit_ti16", **parts | {"mlp_width": 48, "num_classes": 5} | changed).eval()


def picture(height: int = 60, width: int = 80, name: str = "a.png") -> Picture:
    """A picture whose red tells the row, and whose green the column."""
    levels = np.zeros((height, width, 3), dtype=np.uint8)
    levels[..., 0] = np.linspace(0, 255, height).round()[:, None]
    levels[..., 1] = np.linspace(0, 255, width).round()[None, :]
    return Picture(Image.fromarray(levels), (height, width), name)


def geometry(prefix: tuple[str, ...] = ("class",), grid: tuple[int, int] = (4, 3)) -> TokenGeometry:
    size = grid[0] * 8, grid[1] * 8
    return TokenGeometry(prefix, grid, (8, 8), Frame(picture=size, input=size))


def explanation(of: Picture | None = None, **changed: Any) -> Explanation:
    seen = of or picture()
    frame = Frame(picture=seen.size, input=(32, 32), scale=(32 / seen.size[0], 32 / seen.size[1]))
    parts: dict[str, Any] = {
        "name": seen.name,
        "method": "relevance",
        "heat": np.random.rand(4, 4),
        "cell": (8, 8),
        "geometry": TokenGeometry(("class",), (4, 4), (8, 8), frame),
        "target": 3,
        "label": "tabby",
        "score": 0.731,
        "picture": seen,
    }
    return Explanation(**parts | changed)


def similarity(grid: tuple[int, int], limits: tuple[float, float] | None = (-1.0, 1.0)) -> PositionSimilarity:
    values = np.random.uniform(-1, 1, (*grid, *grid))
    return PositionSimilarity(values=values, kind="absolute", title="Positions", label="Cosine similarity", limits=limits)


def statistics(layers: int = 12, heads: int = 3) -> HeadStatistics:
    return HeadStatistics(
        layers=tuple(f"blocks.{layer}.attention" for layer in range(layers)),
        distance=np.random.uniform(10, 120, (layers, heads)),
        entropy=np.random.uniform(1, 5, (layers, heads)),
        similarity=np.random.uniform(0, 1, (layers, heads, heads)),
        tokens=197,
        pictures=8,
    )


def norms(outliers: int = 3) -> TokenNorms:
    values = np.random.normal(40, 5, (2, 1 + 196))
    values[:, 0] = 1000  # the class token, which is no patch
    values[0, 1 : 1 + outliers] = 300
    return TokenNorms(norms=values, layer="blocks.9.attention", prefix=("class",), grid=(14, 14), threshold=120.0)


def filters(count: int = 28, channels: int = 3) -> FilterComponents:
    return FilterComponents(components=np.random.randn(count, channels, 4, 5), shares=np.linspace(0.2, 0.01, count))


def shown(figure: Figure, axes: int = 0) -> list[np.ndarray]:
    """What the panels of one pair of axes hold, as arrays, in the order they were drawn."""
    return [np.asarray(image.get_array()) for image in figure.axes[axes].images]


def texts(figure: Figure, axes: int = 0) -> list[str]:
    return [text.get_text() for text in figure.axes[axes].texts]


def ticks(axis: Any) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


# Patches


@pytest.mark.parametrize("scale", [1 / 255, 1.0])
def test_patches_are_the_picture_before_it_was_prepared(scale: float) -> None:
    levels = torch.rand(3, 20, 27)
    preparing = Preprocessing(mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3), scale=scale)
    mean, std = torch.tensor([preparing.mean, preparing.std])[:, :, None, None]
    figure = patch_grid((levels * 255 * scale - mean) / std, (8, 9), preprocessing=preparing)
    panels = shown(figure)
    assert len(figure.axes) == 1
    assert len(panels) == 2 * 3, "rows and columns of whole patches, the remainder left out"
    for number, (i, j) in enumerate(np.ndindex(2, 3)):
        expected = levels[:, i * 8 : i * 8 + 8, j * 9 : j * 9 + 9].permute(1, 2, 0).numpy()
        np.testing.assert_allclose(panels[number], expected, atol=1e-5)


def test_patches_lie_as_in_the_picture_a_gap_apart_and_keep_their_shape() -> None:
    figure = patch_grid(torch.rand(3, 16, 48), (8, 16), gap=0.25, width=2.0)
    extents = [image.get_extent() for image in figure.axes[0].images]
    assert [x0 for x0, *_ in extents[:3]] == pytest.approx([0, 1.25, 2.5])
    assert [bottom for *_, bottom, _ in extents[::3]] == pytest.approx([0.5, 1.25]), "half as tall as wide"
    width, height = figure.get_size_inches()
    assert (width, height) == pytest.approx((2.0, 2.0 * (2 * 0.5 + 0.25) / (3 + 2 * 0.25)))


def test_without_a_preprocessing_least_is_black_and_greatest_white_and_one_channel_is_grey() -> None:
    pixels = torch.linspace(-3, 5, 64).view(1, 8, 8)
    figure = patch_grid(pixels, 4)
    whole = np.block([[shown(figure)[0], shown(figure)[1]], [shown(figure)[2], shown(figure)[3]]])
    np.testing.assert_allclose(whole, np.linspace(0, 1, 64).reshape(8, 8), atol=1e-6)
    assert figure.axes[0].images[0].get_clim() == (0, 1)
    assert shown(patch_grid(torch.ones(3, 8, 8), 8))[0].max() == 0


def test_pixels_that_cannot_be_drawn_are_refused() -> None:
    with pytest.raises(UsageError, match="three channels or one can be drawn; 4 came"):
        patch_grid(torch.zeros(4, 8, 8), 4)
    with pytest.raises(UsageError, match="not finite"):
        patch_grid(torch.full((3, 8, 8), torch.nan), 4)
    with pytest.raises(UsageError, match="gap is in widths of a patch"):
        patch_grid(torch.zeros(3, 8, 8), 4, gap=-0.1)


# Filters


@pytest.mark.parametrize("channels", [1, 3])
def test_filters_are_grey_at_zero_and_tell_their_share(channels: int) -> None:
    found = filters(10, channels)
    figure = filter_grid(found, columns=4)
    panels = shown(figure)
    assert len(panels) == 10
    for panel, component in zip(panels, found.components, strict=True):
        expected = 0.5 + component.transpose(1, 2, 0) / np.abs(component).max() / 2
        np.testing.assert_allclose(panel, expected[..., 0] if channels == 1 else expected)
        assert max(panel.max() - 0.5, 0.5 - panel.min()) == pytest.approx(0.5)
    assert texts(figure) == [f"{share:.1%}" for share in found.shares]
    for text, image in zip(figure.axes[0].texts, figure.axes[0].images, strict=True):
        left, right, bottom, _ = image.get_extent()
        x, y = text.get_position()
        assert x == pytest.approx((left + right) / 2)
        assert y > bottom


def test_filters_of_other_channels_are_refused() -> None:
    with pytest.raises(UsageError, match="these have 4"):
        filter_grid(filters(3, 4))
    with pytest.raises(UsageError, match="columns must be"):
        filter_grid(filters(3), columns=0)


# Positions


def test_every_position_has_its_map_where_it_lies() -> None:
    found = similarity((4, 3))
    figure = position_grid(found)
    axes, key = figure.axes
    assert len(axes.images) == 12
    for image, (r, s) in zip(axes.images, np.ndindex(4, 3), strict=True):
        np.testing.assert_array_equal(image.get_array(), found.values[r, s])
        left, _, _, top = image.get_extent()
        assert (top, left) == pytest.approx((r * (4 / 3 + 0.12), s * 1.12))
        assert image.get_clim() == (-1, 1)
        assert image.get_cmap().name == "viridis"
    assert (axes.get_xlabel(), axes.get_ylabel(), key.get_ylabel()) == ("Patch column", "Patch row", "Cosine similarity")
    assert (ticks(axes.xaxis), ticks(axes.yaxis)) == (["0", "1", "2"], ["0", "1", "2", "3"])
    assert ticks(key.yaxis) == ["−1", "−0.5", "0", "0.5", "1"]


def test_unbounded_values_have_zero_in_the_middle_of_the_colours() -> None:
    found = similarity((3, 3), limits=None)
    figure = position_grid(found)
    reach = np.abs(found.values).max()
    assert {image.get_clim() for image in figure.axes[0].images} == {(-reach, reach)}
    assert figure.axes[0].images[0].get_cmap().name == "RdBu_r"


@pytest.mark.parametrize(
    ("grid", "every", "rows", "columns"),
    [
        ((6, 6), 2, [0, 2, 4], [0, 2, 4]),
        ((6, 9), 3, [1, 4], [1, 4, 7]),
        ((16, 16), None, list(range(0, 16, 2)), list(range(0, 16, 2))),
        ((1, 40), None, [0], list(range(1, 40, 3))),
    ],
)
def test_of_a_large_grid_some_positions_are_drawn(
    grid: tuple[int, int], every: int | None, rows: list[int], columns: list[int]
) -> None:
    found = similarity(grid)
    panels = shown(position_grid(found, every=every))
    expected = [found.values[r, s] for r in rows for s in columns]
    assert len(panels) == len(expected)
    for panel, values in zip(panels, expected, strict=True):
        np.testing.assert_array_equal(panel, values)


def test_more_steps_than_there_are_positions_are_refused() -> None:
    with pytest.raises(UsageError, match="every must be from 1 to 6"):
        position_grid(similarity((4, 6)), every=7)


# Heads


@pytest.mark.parametrize("token", [0, 1, 5, -1])
def test_every_head_and_layer_has_its_map(token: int) -> None:
    maps = [torch.rand(2, 3, 13, 13) for _ in range(4)]
    figure = attention_grid(maps, geometry(), token=token, place=1)
    axes, _ = figure.axes
    panels = {
        (round(image.get_extent()[3] / 1.2, 1), round(image.get_extent()[0] / 1.06)): image for image in axes.images
    }  # by where they lie
    assert len(axes.images) == len(panels) == 12
    by_row = sorted({row for row, _ in panels})
    for layer in range(4):
        for head in range(3):
            image = panels[by_row[head], layer]
            expected = maps[layer][1, head, token, 1:].view(4, 3).numpy()
            np.testing.assert_array_equal(image.get_array(), expected)
            assert image.get_clim() == pytest.approx((0, expected.max()))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("Layer", "Head")
    assert (ticks(axes.xaxis), ticks(axes.yaxis)) == (["0", "1", "2", "3"], ["0", "1", "2"])
    name = "the class token" if token == 0 else f"patch {divmod(token % 13 - 1, 3)}"
    assert axes.get_title(loc="left") == f"Attention of {name}"


def test_captured_layers_are_named_by_their_numbers_and_one_row_is_enough() -> None:
    model, pixels = tiny(registers=1), torch.randn(1, 3, 32, 24)
    with torch.no_grad(), capture(model, [0, -1], queries=1) as maps:
        model(pixels)
    figure = attention_grid(maps, TokenGeometry.of(model, (4, 3), geometry().frame), token=1)
    assert ticks(figure.axes[0].xaxis) == ["0", "2"]
    assert figure.axes[0].get_title(loc="left") == "Attention of the register 1 token"
    np.testing.assert_array_equal(shown(figure)[3], maps[-1][0, 1, 0, 2:].view(4, 3).numpy())


def test_a_shared_scale_reaches_to_the_greatest_of_all() -> None:
    maps = [torch.rand(1, 2, 1, 13) / 10, torch.rand(1, 2, 1, 13)]
    figure = attention_grid(maps, geometry(), scale="shared")
    greatest = max(float(each[..., 1:].max()) for each in maps)
    for image in figure.axes[0].images:
        assert image.get_clim() == pytest.approx((0, greatest))
    numbers = [float(tick) for tick in ticks(figure.axes[1].yaxis)]
    assert numbers[0] == 0
    assert numbers[-1] <= greatest
    assert ticks(attention_grid(maps, geometry()).axes[1].yaxis) == ["0", "max"]


def test_beside_the_maps_stands_what_patches_cover_of_the_picture() -> None:
    # The input is the middle of the picture, doubled; patches leave out its last four columns.
    seen, whole = picture(64, 96), Frame(picture=(64, 96), input=(64, 52), scale=(2.0, 2.0), offset=(32.0, 80.0))
    lying = TokenGeometry(("class",), (8, 6), (8, 8), whole)
    figure = attention_grid([torch.rand(1, 6, 1, 49)], lying, seen)
    [drawn] = shown(figure, 0)
    assert drawn.shape[0] / drawn.shape[1] == pytest.approx(64 / 48, abs=0.01)
    y0, x0, y1, x1 = 16, 40, 48, 64  # of the picture
    corners = [(drawn[row, column, 0], drawn[row, column, 1]) for row in (0, -1) for column in (0, -1)]
    expected = [(row / 64 * 255, column / 96 * 255) for row in (y0, y1) for column in (x0, x1)]
    np.testing.assert_allclose(np.array(corners, dtype=float), expected, atol=5)
    maps = figure.axes[1].get_position()
    beside = figure.axes[0].get_position()
    assert beside.y1 == pytest.approx(maps.y1)
    assert beside.x1 < maps.x0


def test_with_few_heads_the_picture_is_as_high_as_the_maps() -> None:
    figure = attention_grid([torch.rand(1, 3, 1, 13) for _ in range(12)], geometry(), picture(32, 24))
    beside, maps = (axes.get_position() for axes in figure.axes[:2])
    assert (beside.y0, beside.y1) == pytest.approx((maps.y0, maps.y1), abs=1e-3)


def test_maps_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="There are no attention maps"):
        attention_grid([], geometry())
    with pytest.raises(UsageError, match="There are 13 tokens; maps of all of them, or of one, are needed, but 2 ask"):
        attention_grid([torch.rand(1, 2, 2, 13)], geometry())
    with pytest.raises(UsageError, match="There are 13 tokens, 12 of them patches; 20 values came"):
        attention_grid([torch.rand(1, 2, 1, 20)], geometry())
    with pytest.raises(UsageError, match=r"\(b h n m\) are needed; one is \(2, 13, 13\)"):
        attention_grid([torch.rand(2, 13, 13)], geometry())
    with pytest.raises(UsageError, match="There is no picture 1"):
        attention_grid([torch.rand(1, 2, 1, 13)], geometry(), place=1)
    with pytest.raises(UsageError, match="There is no token 13"):
        attention_grid([torch.rand(1, 2, 13, 13)], geometry(), token=13)
    with pytest.raises(UsageError, match="not finite"):
        attention_grid([torch.full((1, 2, 1, 13), torch.nan)], geometry())
    with pytest.raises(UnknownNameError, match=r"Unknown scale 'shard'\. Did you mean 'shared'"):
        unwrap(attention_grid)([torch.rand(1, 2, 1, 13)], geometry(), scale="shard")


# Charts


def test_the_distance_chart_has_a_dot_for_every_head_and_a_line_of_means() -> None:
    found = statistics()
    axes = distance_chart(found).axes[0]
    dots = np.asarray(axes.collections[0].get_offsets())
    expected = [(layer, found.distance[layer, head]) for layer in range(12) for head in range(3)]
    np.testing.assert_allclose(dots, expected)
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [(n, found.distance[n].mean()) for n in range(12)])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("Layer", "Mean attention distance (pixels)")
    assert axes.get_ylim()[0] == 0
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["head", "mean over heads"]


@pytest.mark.parametrize("outliers", [0, 3])
def test_the_histogram_counts_patches_and_marks_outliers(outliers: int) -> None:
    found = norms(outliers)
    axes = norm_histogram(found, bins=30).axes[0]
    usual, marked = ([bar.get_height() for bar in container] for container in axes.containers[:2])
    counts, edges = np.histogram(found.norms[:, 1:], bins=30, range=(0, found.norms[:, 1:].max()))
    np.testing.assert_array_equal(np.add(usual, marked), counts)
    assert sum(marked) == outliers
    np.testing.assert_allclose([bar.get_x() for bar in axes.containers[0]], edges[:-1], atol=1e-9)
    assert axes.containers[0][0].get_facecolor() != axes.containers[1][0].get_facecolor()
    np.testing.assert_allclose(axes.lines[0].get_xdata(), [120, 120])
    assert axes.get_xlim()[1] > 120, "the threshold shows, also where nothing reaches it"
    legend = sorted(text.get_text() for text in axes.get_legend().get_texts())
    assert legend == sorted([f"{392 - outliers} patches", f"{outliers} outliers", "threshold 120"])
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_yscale()) == ("L2 norm after block 9", "Patches", "log")


# Explanations side by side


def test_explanations_stand_side_by_side_and_tell_method_class_and_probability() -> None:
    seen = picture(750, 1000)
    ones = [
        explanation(seen),
        explanation(seen, method="grad_cam", score=0.5),
        explanation(seen, method="rollout", label=None, score=None),
    ]
    figure = compare(ones)
    panels = shown(figure)
    assert texts(figure) == ["Relevance", "tabby (73.1%)", "Grad-CAM", "tabby (50.0%)", "Rollout"]
    pixels = round((PAGE - 0.06) / (3 * 1.05 - 0.05) * 300)
    for panel, one in zip(panels, ones, strict=True):
        assert panel.shape[1] in (pixels, pixels + 1), "as many pixels as dots will be printed"
        np.testing.assert_array_equal(panel, np.asarray(one.draw(longest=panel.shape[1])))


def test_each_picture_may_stand_before_its_explanations() -> None:
    first, second = picture(60, 80, "a.png"), picture(80, 60, "b.png")
    ones = [explanation(first), explanation(first, method="rise"), explanation(second), explanation(second, method="rise")]
    figure = compare(ones, original=True, columns=3)
    captions = [text for text in texts(figure) if "tabby" not in text]
    assert captions == ["Picture", "Relevance", "RISE"] * 2
    panels = shown(figure)
    assert len(panels) == 6
    for panel, seen in ((panels[0], first), (panels[3], second)):
        expected = seen.image.resize((panel.shape[1], panel.shape[0]), Image.Resampling.LANCZOS)
        np.testing.assert_array_equal(panel, np.asarray(expected))
    # The second, upright, is higher than wide; both are as wide as their panels and keep their shape.
    for image, tall in zip(figure.axes[0].images, [60 / 80] * 3 + [80 / 60] * 3, strict=True):
        left, right, bottom, top = image.get_extent()
        assert (right - left, bottom - top) == pytest.approx((1, tall))


def test_two_pictures_that_are_called_the_same_are_two() -> None:
    one, other = picture(60, 80, "<array>"), picture(80, 80, "<array>")
    captions = texts(compare([explanation(one), explanation(other)], original=True))
    assert captions.count("Picture") == 2


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (5, 1), (6, 2), (7, 2), (11, 3)])
def test_rows_are_as_even_as_can_be(count: int, rows: int) -> None:
    figure = compare([explanation() for _ in range(count)])
    tops = {round(image.get_extent()[3], 6) for image in figure.axes[0].images}
    assert len(tops) == rows


def test_long_names_lose_synonyms_first_then_the_probability_moves_down_then_letters_go() -> None:
    label = "Pembroke, Pembroke Welsh corgi"
    assert texts(compare([explanation(label=label)])) == ["Relevance", f"{label} (73.1%)"]
    assert texts(compare([explanation(label=label)] * 5))[1] == "Pembroke (73.1%)"
    long = "German shepherd, German police dog"
    narrow = texts(compare([explanation(label=long), explanation()] * 2, columns=4, width=COLUMN))
    assert re.fullmatch(r"German s\w+…", narrow[1])
    assert narrow[2:6] == ["73.1%", "Relevance", "tabby", "73.1%"]


def test_dollars_are_no_formulas() -> None:
    figure = compare([explanation(label="$5 and $10")])
    assert texts(figure)[1] == "$5 and $10 (73.1%)"
    assert not figure.axes[0].texts[1].get_parse_math()


def test_nothing_to_compare_and_pictures_that_were_not_kept_are_refused() -> None:
    with pytest.raises(UsageError, match="no explanations"):
        compare([])
    for original in (False, True):
        with pytest.raises(UsageError, match=r"The picture of a\.png was not kept"):
            compare([explanation(picture=None)], original=original)
    with pytest.raises(UsageError, match="columns must be"):
        compare([explanation()], columns=0)


# All of them

FIGURES: dict[str, Callable[[float], Figure]] = {
    "patch_grid": lambda width: patch_grid(torch.rand(3, 32, 48), 8, width=width),
    "filter_grid": lambda width: filter_grid(filters(), width=width),
    "position_grid": lambda width: position_grid(similarity((14, 14)), width=width),
    "position_grid, wide": lambda width: position_grid(similarity((3, 14), None), width=width),
    "position_grid, a line": lambda width: position_grid(similarity((1, 40)), width=width),
    "attention_grid": lambda width: attention_grid(
        [torch.rand(1, 3, 1, 13) for _ in range(12)], geometry(), picture(), width=width
    ),
    "attention_grid, large": lambda width: attention_grid(
        [torch.rand(1, 6, 13, 13) / 1000 for _ in range(24)], geometry(), picture(), token=12, scale="shared", width=width
    ),
    "attention_grid, alone": lambda width: attention_grid([torch.rand(1, 1, 1, 13)], geometry(), width=width),
    "distance_chart": lambda width: distance_chart(statistics(), width=width),
    "distance_chart, deep": lambda width: distance_chart(statistics(48, 16), width=width),
    "norm_histogram": lambda width: norm_histogram(norms(), width=width),
    "compare": lambda width: compare([explanation(label="Pembroke, Pembroke Welsh corgi")] * 4, original=True, width=width),
}


@pytest.fixture(params=FIGURES, ids=str)
def drawing(request: pytest.FixtureRequest) -> Callable[[float], Figure]:
    return FIGURES[request.param]


@pytest.mark.parametrize("width", [COLUMN, PAGE])
def test_no_text_is_cut_and_none_lies_on_another(drawing: Callable[[float], Figure], width: float) -> None:
    figure = drawing(width)
    assert figure.get_size_inches()[0] == pytest.approx(width)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    sheet = figure.bbox
    boxes = []
    for text in figure.findobj(matplotlib.text.Text):
        if text.get_visible() and text.get_text().strip() and _inside_its_axis(text):
            box = text.get_window_extent(renderer)
            assert box.x0 >= -1, f"{text.get_text()!r} is cut at the left"
            assert box.y0 >= -1, f"{text.get_text()!r} is cut at the bottom"
            assert box.x1 <= sheet.x1 + 1, f"{text.get_text()!r} is cut at the right"
            assert box.y1 <= sheet.y1 + 1, f"{text.get_text()!r} is cut at the top"
            boxes.append((text.get_text(), box))
    for number, (one, box) in enumerate(boxes):
        for other, another in boxes[:number]:
            across = min(box.x1, another.x1) - max(box.x0, another.x0)
            down = min(box.y1, another.y1) - max(box.y0, another.y0)
            assert across < 2 or down < 2, f"{one!r} lies on {other!r}"


def _inside_its_axis(text: Any) -> bool:
    """Whether a text is drawn: a tick's is not, where the tick lies beyond its axis."""
    for axes in text.figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            every = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            if any(text in (tick.label1, tick.label2) for tick in every):
                low, high = sorted(axis.get_view_interval())
                return any(
                    text in (tick.label1, tick.label2) and low <= tick.get_loc() <= high and tick.label1.get_visible()
                    for tick in every
                )
    return True


def test_text_has_seven_or_eight_points_at_any_width(drawing: Callable[[float], Figure]) -> None:
    for width in (COLUMN, PAGE):
        figure = drawing(width)
        figure.draw_without_rendering()
        sizes = {text.get_fontsize() for text in figure.findobj(matplotlib.text.Text) if text.get_text().strip()}
        assert sizes <= {6, 7, 8}
        assert 6 not in sizes or figure.axes[0].texts[0].get_text().endswith("%"), "only shares below filters are smaller"


def test_figures_are_saved_as_pixels_and_as_vectors(drawing: Callable[[float], Figure]) -> None:
    figure = drawing(COLUMN)
    for kind, start in (("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")):
        file = io.BytesIO()
        figure.savefig(file, format=kind)
        assert file.getvalue().startswith(start)
        if kind == "png":
            assert Image.open(file).size[0] == round(COLUMN * 300)


def test_nothing_of_matplotlibs_own_state_is_touched(drawing: Callable[[float], Figure]) -> None:
    before = dict(dict.items(matplotlib.rcParams))  # as they lie there: asked for its backend, matplotlib would choose one
    drawing(COLUMN).draw_without_rendering()
    assert dict(dict.items(matplotlib.rcParams)) == before


def test_a_style_of_the_users_own_draws_no_grid_over_pictures(drawing: Callable[[float], Figure]) -> None:
    with matplotlib.rc_context({"axes.grid": True, "axes.facecolor": "black", "figure.facecolor": "black"}):
        figure = drawing(COLUMN)
    assert figure.get_facecolor() == (1, 1, 1, 1)
    for axes in figure.axes:
        assert axes.get_facecolor() == (1, 1, 1, 1)
        assert not any(line.get_visible() for line in [*axes.get_xgridlines(), *axes.get_ygridlines()])


def test_widths_that_no_paper_has_are_refused(drawing: Callable[[float], Figure]) -> None:
    for width in (0.1, 1000.0, float("nan")):
        with pytest.raises(UsageError, match="width is in inches"):
            drawing(width)


def test_pyplot_is_not_imported_and_only_this_page_needs_matplotlib(root: Path) -> None:
    script = (
        "import sys, vitral.explanation.explain, vitral.explanation.embeddings, vitral.explanation.statistics\n"
        "assert 'matplotlib' not in sys.modules\n"
        "import vitral.explanation.figures\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=root / "src")
    pages = {page.name: page.read_text("utf-8") for page in (root / "src" / "vitral" / "explanation").glob("*.py")}
    assert [name for name, page in pages.items() if re.search(r"^(import|from) matplotlib", page, re.M)] == ["figures.py"]
