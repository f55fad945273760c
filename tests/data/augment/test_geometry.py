"""Crops, flips and turns give torchvision's pixels, and everything that is known of places moves with the picture."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torchvision.transforms as T
import torchvision.transforms.functional as TF
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from vitral.base.chance import generator_of
from vitral.data.augment.example import Augment, Example
from vitral.data.augment.geometry import (
    Flip,
    PaddedCrop,
    RandomAffine,
    RandomResizedCrop,
    Resized,
    fill_of,
    moved,
    resampling,
)
from vitral.data.augment.rand_augment import RandAugment
from vitral.errors import UnknownNameError, UsageError

TORCHVISION = {"bilinear": TF.InterpolationMode.BILINEAR, "bicubic": TF.InterpolationMode.BICUBIC}
SOURCE = np.random.default_rng(3)


def picture(height: int, width: int, mode: str = "RGB") -> Image.Image:
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(SOURCE.integers(0, 256, shape, dtype=np.uint8))


def unchecked(kind: type, **fields: Any) -> None:
    """Make one as outside the tests, where no types are checked."""
    inspect.unwrap(kind.__init__)(object.__new__(kind), **fields)  # type: ignore[misc]


def pixels(image: Image.Image) -> Any:
    return np.asarray(image).astype(int)


# -- resized crops ------------------------------------------------------------------------------------------------------


def test_the_area_of_a_crop_is_uniform_in_scale_and_the_logarithm_of_its_shape_in_ratio() -> None:
    crop = RandomResizedCrop(size=(8, 8), scale=(0.1, 0.5), ratio=(0.5, 2.0))  # at most a side of the whole: all fit
    windows = np.array([crop.window((2000, 2000), generator_of(1, i)) for i in range(2000)])
    area, shape = windows[:, 2] * windows[:, 3] / 2000**2, np.log(windows[:, 3] / windows[:, 2])
    assert stats.kstest(area, stats.uniform(0.1, 0.4).cdf).pvalue > 1e-3
    assert stats.kstest(shape, stats.uniform(-np.log(2), 2 * np.log(2)).cdf).pvalue > 1e-3


@pytest.mark.parametrize("size", [(200, 300), (300, 90)])
def test_the_windows_are_distributed_as_torchvisions(size: tuple[int, int]) -> None:
    crop = RandomResizedCrop(size=(8, 8))
    image = Image.new("L", size[::-1])
    ours = np.array([crop.window(size, generator_of(2, i)) for i in range(1500)])
    theirs = np.array([T.RandomResizedCrop.get_params(image, list(crop.scale), list(crop.ratio)) for _ in range(1500)])
    for column in range(4):
        assert stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3


@pytest.mark.parametrize("size", [(10, 400), (400, 10), (301, 7), (5, 6), (1, 1), (1, 9)])
def test_where_no_crop_fits_the_middle_is_taken_as_torchvision_takes_it(size: tuple[int, int]) -> None:
    crop = RandomResizedCrop(size=(8, 8), scale=(1.0, 1.0), ratio=(0.9, 1.1))
    theirs = T.RandomResizedCrop.get_params(Image.new("L", size[::-1]), list(crop.scale), list(crop.ratio))
    if size not in [(5, 6)]:  # whose whole may be drawn
        assert crop.window(size, generator_of(1)) == theirs


def test_every_place_of_a_window_is_equally_likely() -> None:
    crop = RandomResizedCrop(size=(8, 8), scale=(0.25, 0.25), ratio=(1.0, 1.0))
    windows = np.array([crop.window((8, 8), generator_of(3, i)) for i in range(2500)])
    places = np.bincount(windows[:, 0] * 5 + windows[:, 1], minlength=25)  # a window of 4 has 5 x 5 places
    assert len(places) == 25
    assert stats.chisquare(places).pvalue > 1e-3


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_resized_crop_has_torchvisions_pixels(mode: str, interpolation: Any) -> None:
    image = picture(61, 83, mode)
    crop = RandomResizedCrop(size=(24, 32), interpolation=interpolation)
    for key in range(5):
        top, left, height, width = crop.window((61, 83), generator_of(key))
        theirs = TF.resized_crop(image, top, left, height, width, [24, 32], TORCHVISION[interpolation])
        assert np.array_equal(crop(Example(image=image), generator_of(key)).image, theirs)


def test_a_random_interpolation_is_each_of_the_two_half_of_the_time() -> None:
    image = picture(61, 83)
    crop = RandomResizedCrop(size=(24, 32), scale=(1.0, 1.0), ratio=(83 / 61, 83 / 61), interpolation="random")
    both = [np.asarray(image.resize((32, 24), filter)) for filter in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)]
    seen = [crop(Example(image=image), generator_of(i)).image for i in range(200)]
    bilinear, bicubic = (sum(np.array_equal(one, other) for one in seen) for other in both)
    assert bilinear + bicubic == 200
    assert stats.binomtest(bilinear, 200).pvalue > 1e-3
    assert resampling("bicubic", 0.1) == Image.Resampling.BICUBIC


# -- padded crops and flips ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(("filling", "theirs"), [("zero", "constant"), ("reflect", "reflect")])
def test_a_padded_crop_is_one_of_torchvisions(mode: str, filling: Any, theirs: Any) -> None:
    image = picture(9, 11, mode)
    padded = TF.pad(image, [3], padding_mode=theirs)
    all_of_them = {
        np.asarray(TF.crop(padded, top, left, 9, 11)).tobytes(): (top, left) for top in range(7) for left in range(7)
    }
    crop = PaddedCrop(padding=3, mode=filling)
    seen = [all_of_them[np.asarray(crop(Example(image=image), generator_of(i)).image).tobytes()] for i in range(980)]
    counts = [seen.count(place) for place in all_of_them.values()]
    assert len(counts) == 49
    assert stats.chisquare(counts).pvalue > 1e-3


def test_nothing_is_known_of_places_in_a_margin() -> None:
    example = Example(
        image=picture(9, 11), class_map=np.full((9, 11), 3, np.uint8), masks=np.ones((1, 9, 11), bool), ignore=200
    )
    after = PaddedCrop(padding=5, mode="reflect")(example, generator_of(4))
    assert after.class_map is not None
    assert after.masks is not None
    assert set(np.unique(after.class_map)) == {3, 200}
    assert np.array_equal(after.masks[0], after.class_map == 3)


def test_a_picture_too_small_to_be_reflected_is_refused() -> None:
    with pytest.raises(UsageError, match="too small"):
        PaddedCrop(padding=4, mode="reflect")(Example(image=picture(4, 9)), generator_of(0))


@pytest.mark.parametrize(("axis", "theirs"), [("horizontal", TF.hflip), ("vertical", TF.vflip)])
def test_a_flip_is_torchvisions_as_often_as_it_should_be(axis: Any, theirs: Any) -> None:
    image = picture(5, 7)
    flip, mirrored = Flip(probability=0.3, axis=axis), np.asarray(theirs(image))
    flips = sum(np.array_equal(flip(Example(image=image), generator_of(5, i)).image, mirrored) for i in range(1000))
    assert stats.binomtest(flips, 1000, 0.3).pvalue > 1e-3


# -- turns --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_an_affine_turn_has_torchvisions_pixels(interpolation: Any) -> None:
    image = picture(40, 53)
    turn = RandomAffine(
        degrees=40, translate=(0.1, 0.2), scale=(0.7, 1.4), shear=20, interpolation=interpolation, fill=(9, 99, 199)
    )
    for key in range(10):
        draws = generator_of(key)
        angle, down, across, shear = (2 * draws.random(4) - 1).tolist()
        theirs = TF.affine(
            image,
            angle=40 * angle,
            translate=[0.2 * 53 * across, 0.1 * 40 * down],  # type: ignore[list-item] # torchvision shifts by parts too
            scale=0.7 + 0.7 * draws.random(),
            shear=[20 * shear, 0],
            interpolation=TORCHVISION[interpolation],
            fill=[9, 99, 199],
        )
        ours = turn(Example(image=image), generator_of(key)).image
        assert np.abs(pixels(ours) - pixels(theirs)).max() <= 1  # the last bit of a cosine


def test_grey_is_filled_with_the_colours_luma() -> None:
    colour = (200, 30, 90)
    assert fill_of(picture(2, 2, "L"), colour) == Image.new("RGB", (1, 1), colour).convert("L").getpixel((0, 0))
    assert fill_of(picture(2, 2), colour) == colour


def test_resizing_has_pillows_pixels_and_leaves_alone_what_fits() -> None:
    example = Example(image=picture(20, 30))
    assert Resized(size=(20, 30))(example, generator_of(0)) is example
    ours = Resized(size=(15, 10), interpolation="bilinear")(example, generator_of(0)).image
    assert np.array_equal(ours, example.image.resize((10, 15), Image.Resampling.BILINEAR))


# -- everything moves ---------------------------------------------------------------------------------------------------


def example_of(height: int, width: int, boxes: Sequence[tuple[int, int, int, int]]) -> Example:
    """A picture whose boxes are white on black, with everything known of them."""
    masks = np.zeros((len(boxes), height, width), dtype=bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    white = masks.any(0)
    corners = np.array(boxes, dtype=np.float32)
    return Example(
        image=Image.fromarray(white.astype(np.uint8) * 255),
        boxes=corners,
        masks=masks,
        class_map=white.astype(np.int64),
        points=((corners[:, :2] + corners[:, 2:]) / 2),
    )


def grown(mask: Any, steps: int = 1) -> Any:
    for _ in range(steps):
        beyond = np.pad(mask, 1, mode="edge")
        mask = np.max([np.roll(beyond, (y, x), (0, 1)) for y in (-1, 0, 1) for x in (-1, 0, 1)], axis=0)[1:-1, 1:-1]
    return mask


AUGMENTS: dict[str, tuple[Augment, float]] = {  # and how far, in pixels, a mask's outline may lie from its box's
    "resized crop": (RandomResizedCrop(size=(50, 40), scale=(0.3, 1.0), interpolation="bilinear"), 0.51),
    "resized": (Resized(size=(37, 61), interpolation="bilinear"), 0.51),
    "padded crop": (PaddedCrop(padding=9), 0.01),
    "flip": (Flip(probability=1.0), 0.01),
    "vertical flip": (Flip(probability=1.0, axis="vertical"), 0.01),
    "turn": (RandomAffine(degrees=180, translate=(0.2, 0.2), scale=(0.8, 1.3), shear=20, fill=(0, 0, 0)), 0.01),
    "RandAugment": (RandAugment(operations=1, magnitude=8.0, fill=(0, 0, 0), probability=1.0), 0.51),
}


@st.composite
def examples(draw: Any) -> Example:
    height, width = draw(st.integers(40, 70)), draw(st.integers(40, 70))
    boxes = []
    for _ in range(draw(st.integers(1, 3))):
        x0, y0 = draw(st.integers(0, width - 12)), draw(st.integers(0, height - 12))
        boxes.append((x0, y0, draw(st.integers(x0 + 12, width)), draw(st.integers(y0 + 12, height))))
    return example_of(height, width, boxes)


@pytest.mark.parametrize("name", AUGMENTS)
@settings(deadline=None, max_examples=25, derandomize=True)
@given(example=examples(), key=st.integers(0, 10_000))
def test_boxes_masks_class_map_and_points_move_together(name: str, example: Example, key: int) -> None:
    augment, slack = AUGMENTS[name]
    after = augment(example, generator_of(key))
    again = augment(example, generator_of(key))
    assert after.boxes is not None
    assert after.masks is not None
    assert after.class_map is not None
    assert after.points is not None
    assert after.kept is not None
    assert np.array_equal(after.boxes, again.boxes if again.boxes is not None else None)
    assert np.array_equal(after.image, again.image)
    height, width = after.size
    for mask, box in zip(after.masks, after.boxes, strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        outline = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        assert np.abs(outline - box).max() <= slack
        assert (box >= 0).all()
        assert (box <= [width, height, width, height]).all()
    # A point in the middle of an object is in its mask, wherever that went; and no point is lost.
    assert len(after.points) == len(example_points(example))
    inside = after.points_inside
    for mask, row in zip(after.masks, after.kept.tolist(), strict=True):
        if inside[row]:
            x, y = after.points[row].astype(int)
            assert mask[y, x]
    # The class map is the union of the masks, except that it knows nothing of what came in from outside.
    lost = set(range(len(after.points))) - set(after.kept.tolist())
    if not lost:
        assert np.array_equal(after.class_map == 1, after.masks.any(0))


@settings(deadline=None, max_examples=25, derandomize=True)
@given(example=examples(), key=st.integers(0, 10_000))
def test_turned_boxes_are_the_tightest_around_all_that_is_visible_of_the_old(example: Example, key: int) -> None:
    augment = RandomAffine(degrees=180, translate=(0.4, 0.4), scale=(0.8, 1.3), shear=20)
    before = Example(image=example.image, boxes=example.boxes)
    after = augment(before, generator_of(key))
    a, b, c, d, e, f = augment.matrix(before.size, generator_of(key))
    back = np.linalg.inv([[a, b, c], [d, e, f], [0, 0, 1]])
    height, width = before.size
    assert before.boxes is not None
    assert after.boxes is not None
    assert after.kept is not None
    found = dict(zip(after.kept.tolist(), after.boxes, strict=True))
    steps = np.linspace(0, 1, 4000)[:, None]
    for row, (x0, y0, x1, y1) in enumerate(before.boxes.tolist()):
        corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
        edges = np.concatenate(
            [start + steps * (end - start) for start, end in zip(corners, np.roll(corners, -1, 0), strict=True)]
        )
        places = edges @ back[:2, :2].T + back[:2, 2]
        visible = places[((places >= 0) & (places <= [width, height])).all(1)]
        ends = np.array([[0, 0], [width, 0], [width, height], [0, height]])
        old = ends @ np.array([[a, d], [b, e]]) + [c, f]
        visible = np.concatenate([visible, ends[((old >= [x0, y0]) & (old <= [x1, y1])).all(1)]])
        if len(visible) > 20:
            np.testing.assert_allclose(found[row], [*visible.min(0), *visible.max(0)], atol=0.1)
        elif not len(visible):
            assert row not in found


def example_points(example: Example) -> Any:
    return example.points if example.points is not None else []


@pytest.mark.parametrize("name", [name for name in AUGMENTS if name != "RandAugment"])  # whose colours change
@settings(deadline=None, max_examples=15, derandomize=True)
@given(example=examples(), key=st.integers(0, 10_000))
def test_masks_lie_where_the_picture_shows_them(name: str, example: Example, key: int) -> None:
    after = AUGMENTS[name][0](example, generator_of(key))
    assert after.class_map is not None
    white, told = np.asarray(after.image) > 127, after.class_map == 1
    assert not (white & ~grown(told)).any()
    assert not (told & ~grown(white)).any()


def test_a_turned_box_is_the_tightest_around_what_is_visible() -> None:
    example = Example(image=picture(60, 60), boxes=np.array([[20, 20, 40, 40]], dtype=np.float32))
    half = np.float64(np.sqrt(2) * 10)
    cos = float(np.sqrt(0.5))
    at = 30 * (1 - 2 * cos)
    turn = (cos, cos, 30 - 60 * cos, -cos, cos, 30.0)  # by 45 degrees about the middle
    assert at < 0
    whole = moved(example, example.image, turn)
    assert whole.boxes is not None
    np.testing.assert_allclose(whole.boxes[0], [30 - half, 30 - half, 30 + half, 30 + half], atol=1e-4)
    # Cut through above the middle, only the tip is left: as wide as it is there, not as the whole box was.
    cut = moved(example, example.image.crop((0, 0, 60, 20)), turn)
    assert cut.boxes is not None
    tip = half - 10
    np.testing.assert_allclose(cut.boxes[0], [30 - tip, 30 - half, 30 + tip, 20], atol=1e-4)


def test_turned_and_turned_back_a_box_with_its_mask_has_not_grown() -> None:
    example = example_of(80, 80, [(30, 30, 50, 60)])
    cos, sin = np.cos(np.pi / 6), np.sin(np.pi / 6)
    for angle in (sin, -sin):
        turn = (cos, angle, 40 - 40 * cos - 40 * angle, -angle, cos, 40 + 40 * angle - 40 * cos)
        example = moved(example, example.image, turn)
    assert example.boxes is not None
    assert np.abs(example.boxes[0] - [30, 30, 50, 60]).max() <= 1
    alone = Example(image=example.image, boxes=np.array([[30, 30, 50, 60]], dtype=np.float32))
    grown_box = moved(moved(alone, alone.image, turn), alone.image, turn).boxes
    assert grown_box is not None
    assert grown_box[0, 2] - grown_box[0, 0] > 30


def test_what_leaves_the_picture_is_dropped_and_kept_says_what_is_left() -> None:
    example = example_of(40, 40, [(0, 0, 10, 10), (20, 5, 40, 25), (2, 30, 12, 40)])
    right = moved(example, example.image.crop((15, 0, 40, 40)), (1, 0, 15, 0, 1, 0))
    assert right.kept is not None
    assert right.kept.tolist() == [1]
    assert right.boxes is not None
    assert right.boxes.tolist() == [[5, 5, 25, 25]]
    assert right.points is not None
    assert right.points.tolist() == [[-10, 5], [15, 15], [-8, 35]]
    assert right.points_inside.tolist() == [False, True, False]
    # Row numbers stay those of the first example, however many augmentations follow.
    again = moved(example, example.image.crop((0, 20, 40, 40)), (1, 0, 0, 0, 1, 20))
    assert again.kept is not None
    assert again.kept.tolist() == [1, 2]
    twice = moved(again, again.image.crop((0, 10, 40, 20)), (1, 0, 0, 0, 1, 10))
    assert twice.kept is not None
    assert twice.kept.tolist() == [2]


def test_an_object_whose_mask_has_left_is_dropped_with_its_box() -> None:
    masks = np.zeros((1, 10, 10), dtype=bool)
    masks[0, 0, 0] = True  # one pixel, though the box is large
    example = Example(image=picture(10, 10), boxes=np.array([[0, 0, 10, 10]], dtype=np.float32), masks=masks)
    after = moved(example, example.image.crop((2, 2, 10, 10)), (1, 0, 2, 0, 1, 2))
    assert after.boxes is not None
    assert after.kept is not None
    assert (len(after.boxes), len(after.kept)) == (0, 0)


def test_what_is_turned_in_has_no_class() -> None:
    example = Example(image=picture(20, 20), class_map=np.ones((20, 20), np.int64), ignore=-1)
    after = RandomAffine(translate=(0.5, 0.5))(example, generator_of(0))
    assert after.class_map is not None
    filled = np.asarray(
        RandomAffine(translate=(0.5, 0.5), fill=(0, 0, 0))(
            Example(image=Image.new("L", (20, 20), 255)), generator_of(0)
        ).image
    )
    assert (after.class_map == -1).any()
    assert np.array_equal(after.class_map[filled == 0], np.full((filled == 0).sum(), -1))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: RandomResizedCrop(size=(8, 0)), "size"),
        (lambda: RandomResizedCrop(size=(8, 8), scale=(0.0, 1.0)), "scale"),
        (lambda: RandomResizedCrop(size=(8, 8), scale=(0.5, 1.5)), "at most 1"),
        (lambda: RandomResizedCrop(size=(8, 8), ratio=(2.0, 1.0)), "ratio"),
        (lambda: PaddedCrop(padding=-1), "padding"),
        (lambda: Flip(probability=1.5), "probability"),
        (lambda: RandomAffine(degrees=-3.0), "degrees"),
        (lambda: RandomAffine(shear=90.0), "shear"),
        (lambda: RandomAffine(scale=(0.0, 1.0)), "scale"),
        (lambda: RandomAffine(translate=(-0.1, 0.0)), "translate"),
    ],
)
def test_a_field_out_of_its_range_is_refused(wrong: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        wrong()


def test_a_misspelt_choice_is_told_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="bicubic"):
        unchecked(RandomResizedCrop, **vars(RandomResizedCrop(size=(8, 8))) | {"interpolation": "bicubik"})
