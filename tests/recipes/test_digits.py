"""The digits recipe: its inputs against Pillow and scipy, its training against what it promises."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn", reason="needs the extra `demo`")

from vitral.base.image import read_picture
from vitral.checkpoints.load import load_model
from vitral.checkpoints.save import save_model
from vitral.data.digits import read_digits
from vitral.recipes.digits import PREPROCESSING, digits, move_and_turn, pixels_of


def test_pixels_are_what_the_preprocessing_makes_of_each_picture() -> None:
    _, held_out = read_digits()
    pictures = held_out.pictures[:5]
    one_by_one = [PREPROCESSING(read_picture(picture))[0] for picture in pictures]
    torch.testing.assert_close(pixels_of(pictures), torch.stack(one_by_one), rtol=1e-5, atol=1e-5)


def test_the_preprocessing_has_the_mean_and_deviation_of_the_pictures_trained_on() -> None:
    train, _ = read_digits()
    assert (train.pictures / 255).mean() == pytest.approx(PREPROCESSING.mean[0], abs=5e-4)
    assert (train.pictures / 255).std() == pytest.approx(PREPROCESSING.std[0], abs=5e-4)


def test_a_turn_is_the_one_of_scipy() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    ink = torch.zeros(1, 1, 8, 8)
    ink[0, 0, 2:6, 3:5] = 1
    paper = -PREPROCESSING.mean[0] / PREPROCESSING.std[0]
    moved = move_and_turn(ink + paper, torch.Generator().manual_seed(4), pixels_far=0.5, degrees=20.0) - paper

    turn, right, down = (torch.rand(1, 3, generator=torch.Generator().manual_seed(4)) * 2 - 1)[0].tolist()
    angle = math.radians(20 * turn)
    matrix = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])  # acts on (y, x)
    centre = np.array([3.5, 3.5])
    offset = centre - matrix @ centre + 0.5 * np.array([down, right])
    theirs = ndimage.affine_transform(ink[0, 0].numpy(), matrix, offset, order=1, mode="constant")
    np.testing.assert_allclose(moved[0, 0].numpy(), theirs, atol=1e-5)


def test_quick_learns_in_seconds_and_the_model_survives_saving(tmp_path: Path) -> None:
    trained = digits(quick=True)
    assert trained.accuracy > 0.88  # of ten classes; the full recipe's figure is measured in the slow test

    save_model(trained.model, tmp_path / "digits")
    again = load_model(tmp_path / "digits")
    _, held_out = read_digits()
    pixels = pixels_of(held_out.pictures)
    with torch.inference_mode():
        assert torch.equal(again(pixels).logits, trained.model(pixels).logits)
    assert again.record.labels == tuple("0123456789")
    assert again.record.preprocessing == PREPROCESSING


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_recipe_reaches_what_it_promises(seed: int) -> None:
    assert digits(seed=seed).accuracy >= 0.97
