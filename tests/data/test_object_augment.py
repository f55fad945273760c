"""What happens to boxes when pictures are cut, resized and zoomed: held against their masks, moved pixel by pixel."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from PIL import Image
from transformers.image_transforms import get_size_with_aspect_ratio

from vitral.data.augment.example import Example
from vitral.data.object_augment import (
    Either,
    IoUCrop,
    LeastSide,
    ObjectAugmentation,
    ScaleJitter,
    ShortestSide,
    SizeCrop,
    ZoomOut,
)
from vitral.errors import UnknownNameError, UsageError

BOXES = np.array([[3, 5, 20, 30], [40, 10, 70, 20], [60, 40, 78, 58], [0, 50, 6, 60]], dtype=np.float32)


def example() -> Example:
    """Four rectangles, each of a colour of its own."""
    pixels = np.zeros((60, 80, 3), dtype=np.uint8)
    masks = np.zeros((4, 60, 80), dtype=bool)
    for row, (x0, y0, x1, y1) in enumerate(BOXES.astype(int).tolist()):
        pixels[y0:y1, x0:x1] = 60 * (row + 1)
        masks[row, y0:y1, x0:x1] = True
    return Example(image=Image.fromarray(pixels), boxes=BOXES, masks=masks)


STEPS = {
    "shortest": ShortestSide(sides=(30, 60, 97), longest=120),
    "cut": SizeCrop(least=20, most=50),
    "jitter": ScaleJitter(size=(50, 50), scale=(0.3, 2.0)),
    "iou": IoUCrop(probability=1.0),
    "zoom": ZoomOut(probability=1.0, factor=(1.5, 2.5)),
    "either": Either(first=SizeCrop(least=20, most=30), second=ZoomOut(probability=1.0)),
    "detr": ObjectAugmentation(sides=(40, 70), longest=100, crop_sides=(50,), crop_range=(20, 40)).chain(None),
    "ssd": ObjectAugmentation(resize="exact", zoom_out=0.5, iou_crop=0.8, flip_vertical=0.5, hue=0.1).chain((48, 64)),
}


@pytest.mark.parametrize("name", STEPS)
def test_boxes_go_where_their_pixels_go(name: str) -> None:
    whole, moved = example(), 0
    for seed in range(12):
        after = STEPS[name](whole, np.random.default_rng(seed))
        again = STEPS[name](whole, np.random.default_rng(seed))
        np.testing.assert_array_equal(np.asarray(after.image), np.asarray(again.image))
        assert after.boxes is not None
        assert after.masks is not None
        assert after.kept is not None
        assert len(after.boxes) == len(after.masks) == len(after.kept)
        assert set(after.kept.tolist()) <= set(range(4))
        for box, mask in zip(after.boxes.tolist(), after.masks, strict=True):
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            seen = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            # Pixels are whole, boxes are not; and two resizings round twice.
            np.testing.assert_allclose(box, seen, atol=2.6 if name == "detr" else 1.01)
        moved += after.boxes.tobytes() != BOXES.tobytes()
    assert moved > 4


def test_sizes_are_those_of_the_published_processors() -> None:
    for height, width, side, longest in itertools.product(
        (200, 333, 480, 640), (31, 427, 640, 1999), (97, 480), (500, 1333)
    ):
        expected = get_size_with_aspect_ratio((height, width), side, longest)
        assert ShortestSide(sides=(side,), longest=longest).size((height, width), side) == tuple(map(int, expected))


def test_a_cut_is_within_its_range_and_everywhere() -> None:
    tops = set()
    for seed in range(100):
        after = SizeCrop(least=20, most=30)(example(), np.random.default_rng(seed))
        assert 20 <= min(after.size) <= max(after.size) <= 30
        tops.add(after.size)
    assert len(tops) > 40
    small = SizeCrop(least=384, most=600)(example(), np.random.default_rng(0))
    assert small.size == (60, 80)


def test_an_iou_crop_shares_what_it_must() -> None:
    for least in (0.1, 0.3, 0.5):
        step = IoUCrop(probability=1.0, overlaps=(least, least, least, 1.0))
        for seed in range(12):
            after = step(example(), np.random.default_rng(seed))
            assert after.boxes is not None
            if after.size != (60, 80):
                height, width = after.size
                areas = (after.boxes[:, 2:] - after.boxes[:, :2]).prod(1)
                whole = (BOXES[after.kept, 2:] - BOXES[after.kept, :2]).prod(1)
                assert (areas / (whole + height * width - areas)).max() >= least - 1e-4
                assert 0.5 <= width / height <= 2
    bare = Example(image=example().image, boxes=np.zeros((0, 4), dtype=np.float32))
    assert IoUCrop(probability=1.0)(bare, np.random.default_rng(0)) is bare


def test_large_scale_jitter_covers_its_range() -> None:
    sides = [
        max(ScaleJitter(size=(64, 64), scale=(0.5, 1.5))(example(), np.random.default_rng(seed)).size) for seed in range(80)
    ]
    assert min(sides) < 36
    assert max(sides) == 64


def test_what_is_too_small_is_dropped_with_its_label() -> None:
    labels = np.array([5, 6, 7, 8])
    after = LeastSide(side=11)(example(), np.random.default_rng(0))
    assert after.kept is not None
    assert labels[after.kept].tolist() == [5, 7]
    assert after.masks is not None
    assert len(after.masks) == 2


def test_a_zoomed_out_ground_has_its_colour() -> None:
    after = ZoomOut(probability=1.0, factor=(2, 2), fill=(1, 2, 3))(example(), np.random.default_rng(3))
    assert after.size == (120, 160)
    pixels = np.asarray(after.image)
    assert (pixels == (1, 2, 3)).all(2).sum() == 120 * 160 - 60 * 80
    assert after.boxes is not None
    np.testing.assert_allclose(after.boxes - after.boxes[0, [0, 1, 0, 1]], BOXES - BOXES[0, [0, 1, 0, 1]])


@pytest.mark.parametrize(
    "changes",
    [{"flip": 1.5}, {"sides": ()}, {"sides": (0,)}, {"longest": 0}, {"crop_range": (9, 3)}, {"jitter": (2.0, 1.0)},
     {"hue": 0.7}, {"zoom_out": 0.1, "zoom_out_factor": (0.5, 2.0)}, {"least_side": -1.0}],
)  # fmt: skip
def test_options_out_of_their_range_are_refused(changes: dict[str, object]) -> None:
    resize = "jitter" if "jitter" in changes else "select"
    with pytest.raises(UsageError):
        ObjectAugmentation(resize=resize, **changes)  # type: ignore[arg-type]


def test_misspelt_choices_are_refused(unchecked: None) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'shortest'"):
        dataclasses.replace(ObjectAugmentation(), resize="shortst")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="needs the size of the input"):
        ObjectAugmentation(resize="exact").chain(None)
    with pytest.raises(UsageError, match="must hold 1"):
        IoUCrop(overlaps=(0.5,))
