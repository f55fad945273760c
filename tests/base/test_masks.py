"""Masks against pycocotools, SciPy and brute force."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco
from scipy import ndimage

from vitral.base.masks import (
    boundary_of,
    boundary_thickness,
    boxes_of,
    decode_rle,
    encode_regions,
    encode_rle,
    eroded,
    mask_iou,
    mask_to_polygons,
    polygons_to_mask,
    regions_of,
)
from vitral.errors import UsageError

# pycocotools' own arrays know an older way to be copied.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def some_masks(count: int, seed: int = 0) -> list[np.ndarray]:
    """Noise, blobs, nothing and everything, of many sizes."""
    numbers = np.random.default_rng(seed)
    made = [np.zeros((3, 4), bool), np.ones((3, 4), bool), np.ones((1, 1), bool), np.eye(5, dtype=bool)]
    for place in range(count):
        noise = numbers.random(numbers.integers(1, 40, 2)) < numbers.choice([0.02, 0.3, 0.5, 0.9])
        made.append(ndimage.binary_opening(noise) if place % 2 else noise)
    return made


def theirs(mask: np.ndarray) -> dict:
    return coco.encode(np.asfortranarray(mask.astype(np.uint8)))


def test_run_lengths_are_pycocotools_both_ways() -> None:
    for mask in some_masks(50):
        mine, other = encode_rle(mask), theirs(mask)
        assert mine == {"size": list(mask.shape), "counts": other["counts"].decode()}
        assert (decode_rle(mine, mask.shape) == mask).all()
        assert (decode_rle(other) == mask).all()  # counts as bytes


def test_long_runs_and_counts_in_a_list() -> None:
    mask = np.zeros((1500, 2000), bool)
    mask[3:9, 700:1400] = True
    mask[:, 1600:1700] = True
    assert encode_rle(mask)["counts"] == theirs(mask)["counts"].decode()
    assert (decode_rle(encode_rle(mask)) == mask).all()
    assert decode_rle({"size": [3, 2], "counts": [1, 4, 1]}).tolist() == [[False, True], [True, True], [True, False]]
    assert decode_rle({"size": [0, 7], "counts": ""}).shape == (0, 7)
    assert decode_rle(encode_rle(np.zeros((0, 7), bool))).shape == (0, 7)


@pytest.mark.parametrize(
    ("size", "counts", "said"),
    [
        ([3, 4], "Q", "cut off"),  # 32 and more: another group should follow
        ([3, 4], "<\x00", "letters that run lengths do not have"),
        ([3, 4], "<ä", "letters that run lengths do not have"),
        ([3, 4], ";", "do not add up to the 3 × 4 pixels"),
        ([3, 4], "", "do not add up"),
        ([3, 4], "8N4", "do not add up"),  # 8, -2, 4 and so on: a length below nothing
        ([3, 4], [20, -8], "do not add up"),
        ([3, 4], [1.5, 10.5], "whole numbers"),
        ([3, 4], [2**63 - 1, 13], "none above"),
        ([3, 4], "PPPPPPPPPPPPP0", "no picture has pixels for"),
        ([3, 4], None, "NoneType came"),
        ([3], "<", "two whole numbers"),
        ([3, -4], "<", "two whole numbers"),
        ([3, 4.0], "<", "two whole numbers"),
        (None, "<", "two whole numbers"),
        ([10**9, 10**9], "<", "pictures have up to"),
    ],
)
def test_damaged_run_lengths_are_refused(size: object, counts: object, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        decode_rle({"size": size, "counts": counts})


def test_every_cut_is_refused() -> None:
    whole = encode_rle(np.random.default_rng(0).random((30, 40)) < 0.3)
    for end in range(len(whole["counts"])):
        with pytest.raises(UsageError, match="Damaged run lengths"):
            decode_rle(whole | {"counts": whole["counts"][:end]})
    with pytest.raises(UsageError, match="of 30 × 40 pixels came for a picture of 40 × 30"):
        decode_rle(whole, (40, 30))


def test_boxes_are_pycocotools() -> None:
    for mask in some_masks(30):
        left, top, width, height = coco.toBbox(theirs(mask))
        assert boxes_of(mask[None]).tolist() == [[left, top, left + width, top + height]]
    assert boxes_of(np.zeros((0, 3, 4), bool)).shape == (0, 4)


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int64])
def test_all_numbers_of_a_map_at_once(kind: type) -> None:
    numbers = np.random.default_rng(1)
    for height, width in [(1, 1), (1, 9), (9, 1), (20, 30), (31, 7)]:
        held = numbers.integers(0, 4, (height, width)).astype(kind) * 60
        held[:, width // 2 :] = 7
        values, areas, boxes = regions_of(held)
        masks = encode_regions(held)
        assert values.tolist() == list(masks) == np.unique(held).tolist()
        for value, area, box in zip(values.tolist(), areas.tolist(), boxes.tolist(), strict=True):
            rle = theirs(held == value)
            assert masks[value]["counts"] == rle["counts"].decode()
            assert area == coco.area(rle)
            left, top, across, down = coco.toBbox(rle)
            assert box == [left, top, left + across, top + down]
    assert len(regions_of(np.zeros((0, 5), kind)).values) == 0
    assert encode_regions(np.zeros((5, 0), kind)) == {}


def polygons(kind: str, count: int) -> list[tuple[np.ndarray, int, int]]:
    numbers, made = np.random.default_rng(len(kind)), []
    for _ in range(count):
        height, width = map(int, numbers.integers(1, 50, 2))
        points = numbers.random((int(numbers.integers(3, 12)), 2)) * [width, height]
        if kind == "beyond the picture":
            points = (points - [width / 2, height / 2]) * numbers.choice([2, 10, 1000])
        elif kind == "on the grid":
            points = np.round(points * 2) / 2
        elif kind == "degenerate":
            points = np.round(points)
            points[: len(points) // 2 + 1, 0] = points[0, 0]
            points[-1] = points[-2]
        elif kind == "a point":
            points[:] = points[0]
        made.append((points, height, width))
    return made


@pytest.mark.parametrize("kind", ["within", "beyond the picture", "on the grid", "degenerate", "a point"])
def test_outlines_are_filled_as_by_pycocotools(kind: str) -> None:
    filled = 0
    for points, height, width in polygons(kind, 100):
        expected = coco.decode(coco.frPyObjects([points.ravel().tolist()], height, width))[..., 0]
        mine = polygons_to_mask([points.ravel().tolist()], (height, width))
        assert (mine == expected).all()
        assert (polygons_to_mask([points], (height, width)) == mine).all()
        filled += int(mine.sum())
    assert filled > 500 or kind == "a point"


def test_several_outlines_are_one_mask() -> None:
    lists = [points.ravel().tolist() for points, _, _ in polygons("within", 4)]
    merged = coco.decode(coco.merge(coco.frPyObjects(lists, 40, 40)))
    assert (polygons_to_mask(lists, (40, 40)) == merged).all()
    assert not polygons_to_mask([], (3, 4)).any()


def test_an_outline_as_long_as_the_world_needs_no_memory() -> None:
    far = [[-9e7, -9e7, 9e7, -9e7, 9e7, 9e7, -9e7, 9e7]]
    assert polygons_to_mask(far, (5, 6)).all()


@pytest.mark.parametrize(
    "bad",
    [
        [1, 2, 3, 4],
        [1, 2, 3, 4, 5, 6, 7],
        [],
        5.0,
        [1, 2, 3, 4, 5, np.nan],
        [1, 2, 3, 4, 5, 1e300],
        ["a"] * 6,
        [[1, 2, 3]] * 3,
    ],
)
def test_outlines_that_are_none_are_refused(bad: object) -> None:
    with pytest.raises(UsageError, match=r"[Aa]n? outline|An outline"):
        polygons_to_mask([bad], (10, 10))


def test_a_mask_comes_back_from_its_outlines() -> None:
    for mask in some_masks(50, seed=3):
        outlines = mask_to_polygons(mask)
        assert len(outlines) == ndimage.label(mask)[1]  # parts that touch at a corner are two
        assert (polygons_to_mask(outlines, mask.shape) == mask).all()
        if outlines:
            height, width = mask.shape
            listed = [[float(number) for number in outline] for outline in outlines]
            listed = [one if len(one) > 4 else one * 2 for one in listed]
            assert (coco.decode(coco.merge(coco.frPyObjects(listed, height, width))) == mask).all()


def test_outlines_of_known_shapes() -> None:
    mask = np.zeros((6, 8), bool)
    mask[1:4, 2:7] = True
    (outline,) = mask_to_polygons(mask)
    assert {(x, y) for x, y in np.reshape(outline, (-1, 2)).tolist()} == {(2, 1), (7, 1), (7, 4), (2, 4)}
    mask[2, 4] = False  # a hole in it, and an island
    mask[5, 0] = True
    assert sorted(map(len, mask_to_polygons(mask))) == [8, 20]  # 4 corners; 4 + 4 and a seam there and back
    assert mask_to_polygons(np.zeros((4, 4), bool)) == []


def test_islands_in_holes_in_islands() -> None:
    mask = np.ones((21, 21), bool)
    for ring in range(1, 10, 2):
        mask[ring : 21 - ring, ring : 21 - ring] = False
        mask[ring + 1 : 20 - ring, ring + 1 : 20 - ring] = True
    outlines = mask_to_polygons(mask)
    assert len(outlines) == ndimage.label(mask)[1] > 3
    assert (polygons_to_mask(outlines, (21, 21)) == mask).all()


def test_overlaps_are_pycocotools() -> None:
    numbers = np.random.default_rng(5)
    one, other = (numbers.random((count, 13, 17)) < 0.4 for count in (6, 5))
    one[0], other[1], one[2, :, 9:], other[3, :, :12] = False, False, False, False
    other[4] = one[4] | other[4]
    crowd = np.array([True, False, False, True, True])
    lists = [[theirs(mask) for mask in masks] for masks in (one, other)]
    np.testing.assert_allclose(mask_iou(one, other, crowd), coco.iou(*lists, crowd.tolist()), atol=1e-12)
    np.testing.assert_allclose(mask_iou(one, other), coco.iou(*lists, [False] * 5), atol=1e-12)
    assert mask_iou(one, other, crowd)[4, 4] == 1
    assert mask_iou(one[:0], other).shape == (0, 5)


@pytest.mark.parametrize("reach", [0, 1, 2, 5, 30])
@pytest.mark.parametrize("beyond", [False, True])
def test_erosion_is_scipys(reach: int, beyond: bool) -> None:
    for mask in some_masks(12, seed=reach):
        square = np.ones((2 * reach + 1, 2 * reach + 1), bool)
        expected = ndimage.binary_erosion(mask, square, border_value=int(beyond))
        assert (eroded(mask, reach, beyond=beyond) == expected).all()


@pytest.mark.parametrize("size", [(40, 60), (33, 20), (90, 120)])
def test_boundaries_are_those_of_the_paper(size: tuple[int, int]) -> None:
    mask = ndimage.binary_dilation(np.random.default_rng(2).random(size) < 0.03, iterations=4)
    steps = max(1, round(0.02 * np.sqrt(size[0] ** 2 + size[1] ** 2)))
    # As they have it: one line of nothing around the picture, then as many steps of three by three.
    small = ndimage.binary_erosion(np.pad(mask, 1), np.ones((3, 3)), iterations=steps, border_value=1)[1:-1, 1:-1]
    assert boundary_thickness(size) == steps
    assert (boundary_of(mask) == (mask & ~small)).all()
    assert 0 < boundary_of(mask).sum() <= mask.sum()
    away = ndimage.distance_transform_cdt(np.pad(mask, 1), "chessboard")[1:-1, 1:-1]
    assert (boundary_of(mask, 3) == (mask & (away <= 3))).all()


def test_thickness_has_its_range() -> None:
    assert boundary_thickness((480, 640)) == 16
    assert boundary_thickness((1024, 2048), 0.005) == 11
    assert boundary_thickness((3, 4)) == 1
    with pytest.raises(UsageError, match="thickness"):
        boundary_of(np.ones((3, 3), bool), 0)
    with pytest.raises(UsageError, match="ratio"):
        boundary_thickness((3, 4), 0)
