"""Sheets show examples where they should, with their boxes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from vitral.base.image import read_picture
from vitral.data.augment.example import Example
from vitral.data.augment.geometry import Flip
from vitral.data.augment.sheet import as_image, sheet, variants
from vitral.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from vitral.errors import UsageError


def test_an_input_becomes_its_picture_again() -> None:
    colour = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    preprocessing = Preprocessing(resize="none", mean=IMAGENET_MEAN, std=IMAGENET_STD)
    pixels, _ = preprocessing(read_picture(colour))
    assert np.array_equal(as_image(pixels, preprocessing), colour)
    grey = Preprocessing(resize="none", mean=(0.5,), std=(0.5,))
    pixels, _ = grey(read_picture(colour))
    assert np.array_equal(as_image(pixels, grey), Image.fromarray(colour).convert("L"))
    assert as_image(torch.full((1, 1, 1), 9.0), grey).getpixel((0, 0)) == 255


def test_tiles_stand_in_rows_and_pictures_in_their_middle() -> None:
    red, blue = Image.new("RGB", (40, 40), "red"), Image.new("RGB", (40, 20), "blue")
    whole = sheet([("", red), ("", blue), ("", red)], columns=2, side=40)
    assert whole.size == (8 + 2 * 48, 8 + 2 * 48)
    pixels = np.asarray(whole)
    assert (pixels[8:48, 8:48] == (255, 0, 0)).all()
    assert (pixels[18:38, 56:96] == (0, 0, 255)).all()
    assert (pixels[8:18, 56:96] == 255).all()
    assert (pixels[56:96, 8:48] == (255, 0, 0)).all()
    assert (pixels[56:96, 56:96] == 255).all()
    assert sheet([("a title", red)], side=40).height > 56


def test_boxes_masks_and_points_are_drawn_in_an_objects_colour() -> None:
    masks = np.zeros((1, 50, 50), dtype=bool)
    masks[0, 30:40, 30:40] = True
    example = Example(
        image=Image.new("RGB", (50, 50)),
        boxes=np.array([[5, 5, 25, 25]], dtype=np.float32),
        masks=masks,
        points=np.array([[45, 10]], dtype=np.float32),
        kept=np.array([1]),
    )
    pixels = np.asarray(sheet([("", example)], side=100))[8:108, 8:108]  # twice as large
    for place in (10, 12, 47, 49):
        assert tuple(pixels[30, place]) == (86, 180, 233)
    assert tuple(pixels[30, 9]) == tuple(pixels[30, 50]) == tuple(pixels[30, 30]) == (0, 0, 0)
    assert pixels[60:80, 60:80].min() > 30
    assert (pixels[81:, 81:] == 0).all()
    assert tuple(pixels[20, 90]) == (255, 255, 255)


def test_variants_are_drawn_from_their_keys() -> None:
    example = Example(image=Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)))
    seen = [one is example for one in variants(Flip(), example, 20)]
    assert 0 < sum(seen) < 20
    assert seen == [one is example for one in variants(Flip(), example, 20)]
    assert seen != [one is example for one in variants(Flip(), example, 20, seed=1)]


def test_an_empty_sheet_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one"):
        sheet([])
