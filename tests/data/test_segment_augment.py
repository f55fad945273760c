"""Maps, masks and boxes go where the picture goes; a window in which no class is almost all; the padding is ignored."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitral.data.augment.example import Example
from vitral.data.segment_augment import CategoryCrop, PaddedTo, RandomScale, SegmentAugmentation
from vitral.errors import UnknownNameError, UsageError


def blocks(height: int, width: int, side: int = 4) -> np.ndarray:
    """A map of blocks of classes 0 to 6."""
    rows, columns = np.indices((height, width)) // side
    return ((3 * rows + columns) % 7).astype(np.uint8)


def shown(class_map: np.ndarray) -> Image.Image:
    """A picture in which a class is a level: what a pixel shows is what it is."""
    return Image.fromarray(np.repeat((30 * class_map + 10)[..., None].astype(np.uint8), 3, axis=2))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(5, 40), st.integers(5, 40), st.integers(4, 30), st.integers(4, 30), st.floats(0.2, 1.0), st.integers(0, 9999)
)
def test_what_moves_the_picture_moves_all_of_it(
    height: int, width: int, tall: int, wide: int, most: float, seed: int
) -> None:
    known = blocks(height, width)
    labels = np.unique(known)
    masks = known == labels[:, None, None]
    boxes = np.array([[0, 0, width, height]] * len(labels), dtype=np.float32)
    # Sizes stay (factor 1 of the picture's own), so that a pixel's colour is its class to the last bit.
    still = SegmentAugmentation(
        scale=(1, 1), relative="picture", most=most, flip=0.5, flip_vertical=0.5, colour=0, interpolation="bilinear"
    )
    after = still.chain((tall, wide), fill=(250, 250, 250))(
        Example(image=shown(known), class_map=known, masks=masks, boxes=boxes), np.random.default_rng(seed)
    )
    assert after.size == (tall, wide)
    levels = np.asarray(after.image)[..., 0]
    assert after.class_map is not None
    outside = after.class_map == 255
    np.testing.assert_array_equal(outside, levels == 250)
    np.testing.assert_array_equal(levels[~outside], 30 * after.class_map[~outside] + 10)
    assert after.masks is not None
    assert after.boxes is not None
    assert after.kept is not None
    there = sorted(set(after.class_map[~outside].tolist()))
    assert labels[after.kept].tolist() == there
    for label, mask, box in zip(there, after.masks, after.boxes, strict=True):
        np.testing.assert_array_equal(mask, after.class_map == label)
        np.testing.assert_array_equal(box, [0, 0, min(wide, width), min(tall, height)])
    assert (~outside).sum() == min(tall, height) * min(wide, width)


@settings(max_examples=15, deadline=None)
@given(st.integers(8, 48), st.integers(8, 48), st.integers(0, 9999))
def test_scaled_maps_take_the_class_under_each_pixels_middle(height: int, width: int, seed: int) -> None:
    known = blocks(height, width, 3)
    after = RandomScale(scale=(0.5, 2.0))(Example(image=shown(known), class_map=known), np.random.default_rng(seed))
    factor = 0.5 + 1.5 * np.random.default_rng(seed).random()
    assert after.size == (round(height * factor), round(width * factor))
    assert after.class_map is not None
    for row in range(0, after.size[0], 5):
        for column in range(0, after.size[1], 5):
            y, x = int((row + 0.5) * height / after.size[0]), int((column + 0.5) * width / after.size[1])
            assert after.class_map[row, column] == known[y, x]


def test_the_shorter_side_is_meant_unless_the_longer_one_becomes_too_long() -> None:
    for size, expected in (((20, 30), (40, 60)), ((30, 20), (60, 40)), ((10, 100), (16, 160))):
        still = RandomScale(scale=(1, 1), side=40)
        assert still(Example(image=Image.new("RGB", size[::-1])), np.random.default_rng(0)).size == expected


def test_no_class_is_almost_all_of_a_window() -> None:
    known = np.zeros((60, 60), dtype=np.uint8)
    known[:, 50:] = 1  # a sixth of the picture
    known[:30, :20] = 255
    example = Example(image=shown(known), class_map=known)

    def commonest(most: float, seed: int) -> float:
        after = CategoryCrop(size=(20, 20), most=most, trials=200)(example, np.random.default_rng(seed)).class_map
        assert after is not None
        counts = np.bincount(after[after != 255], minlength=2)
        return float(counts.max() / max(counts.sum(), 1))

    assert all(commonest(0.75, seed) < 0.75 for seed in range(20))
    assert sum(commonest(1.0, seed) == 1 for seed in range(20)) > 8
    plain = Example(image=shown(known), class_map=np.zeros_like(known))  # nothing will do: the last one is taken
    assert CategoryCrop(size=(20, 20))(plain, np.random.default_rng(0)).size == (20, 20)


def test_a_picture_that_is_large_enough_is_not_padded() -> None:
    example = Example(image=Image.new("L", (9, 7), 3))
    assert PaddedTo(size=(5, 9))(example, np.random.default_rng(0)) is example
    filled = np.asarray(PaddedTo(size=(8, 9), fill=(200, 200, 200))(example, np.random.default_rng(0)).image)
    assert filled.shape == (8, 9)
    assert (filled[:7] == 3).all()
    assert (filled[7:] == 200).all()


@pytest.mark.usefixtures("unchecked")
def test_what_makes_no_sense_is_refused() -> None:
    for options in ({"most": 1.5}, {"scale": (2.0, 0.5)}, {"flip": -1.0}, {"hue": 0.9}):
        with pytest.raises(UsageError):
            SegmentAugmentation(**options)  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="Did you mean 'picture'"):
        SegmentAugmentation(relative="pictures")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="needs the size of the input"):
        SegmentAugmentation().chain(None)
    with pytest.raises(UsageError, match="height, width"):
        CategoryCrop(size=(3,))  # type: ignore[arg-type]
