"""Colours change as torchvision changes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torchvision.transforms.functional as TF
from PIL import Image, ImageFilter, ImageOps
from scipy import stats

from vitral.base.chance import generator_of
from vitral.data.augment import colour
from vitral.data.augment.colour import ColourJitter, GaussianBlur, Grayscale, Solarize
from vitral.data.augment.example import Example
from vitral.errors import UsageError

RGB = Image.fromarray(np.random.default_rng(1).integers(0, 256, (19, 23, 3), dtype=np.uint8))
PICTURES = [RGB, RGB.convert("L")]


@pytest.mark.parametrize("image", PICTURES, ids=["RGB", "L"])
@pytest.mark.parametrize("factor", [0.0, 0.37, 1.0, 1.9])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_a_factor_gives_torchvisions_pixels(name: str, factor: float, image: Image.Image) -> None:
    ours = getattr(colour, f"with_{name}")(image, factor)
    assert np.array_equal(ours, getattr(TF, f"adjust_{name}")(image, factor))


@pytest.mark.parametrize("image", PICTURES, ids=["RGB", "L"])
@pytest.mark.parametrize("shift", [-0.5, -0.123, 0.0, 0.002, 0.31, 0.5])
def test_a_hue_gives_torchvisions_pixels(shift: float, image: Image.Image) -> None:
    assert np.array_equal(colour.with_hue(image, shift), TF.adjust_hue(image, shift))


@pytest.mark.parametrize("image", PICTURES, ids=["RGB", "L"])
@pytest.mark.parametrize("threshold", [0, 1, 128, 256])
def test_solarising_gives_pillows_pixels(threshold: int, image: Image.Image) -> None:
    assert np.array_equal(colour.with_solarized(image, threshold), ImageOps.solarize(image, threshold))


def test_jitter_draws_uniform_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[int, list[float]] = {0: [], 1: [], 2: []}

    def noted(part: int) -> Any:
        def note(image: Image.Image, factor: float) -> Image.Image:
            seen[part].append(factor)
            return image

        return note

    monkeypatch.setattr(colour, "_FACTORS", tuple(map(noted, range(3))))
    jitter = ColourJitter(brightness=0.4, contrast=0.1, saturation=1.5)
    for key in range(500):
        jitter(Example(image=RGB), generator_of(key))
    for part, (low, high) in enumerate([(0.6, 1.4), (0.9, 1.1), (0.0, 2.5)]):
        assert stats.kstest(seen[part], stats.uniform(low, high - low).cdf).pvalue > 1e-3


def test_all_orders_of_jitter_occur() -> None:
    jitter = ColourJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.2)
    names = ("brightness", "contrast", "saturation", "hue")
    orders = set()
    for key in range(200):
        rng = generator_of(key)
        order, image = rng.permutation(4).tolist(), RGB
        for part in order:
            amount = (2 * rng.random() - 1) * (0.2 if part == 3 else 0.4)
            image = getattr(TF, f"adjust_{names[part]}")(image, amount if part == 3 else 1 + amount)
        orders.add(tuple(order))
        ours = np.asarray(jitter(Example(image=RGB), generator_of(key)).image).astype(int)
        assert np.abs(ours - np.asarray(image)).mean() < 0.02  # a factor's last bit
    assert len(orders) == 24


@pytest.mark.parametrize("image", PICTURES, ids=["RGB", "L"])
def test_grey_blur_and_solarise_happen_as_often_as_asked(image: Image.Image) -> None:
    grey = np.asarray(image.convert("L").convert(image.mode))
    solarized = np.asarray(ImageOps.solarize(image, 100))
    for augment, pixels in [(Grayscale(probability=0.3), grey), (Solarize(probability=0.3, threshold=100), solarized)]:
        after = [augment(Example(image=image), generator_of(key)).image for key in range(400)]
        if image.mode == "RGB" or isinstance(augment, Solarize):
            changed = sum(one is not image for one in after)
            assert stats.binomtest(changed, 400, 0.3).pvalue > 1e-3
        assert all(np.array_equal(one, pixels) for one in after if one is not image)
    blurred = [GaussianBlur(probability=0.3)(Example(image=image), generator_of(key)).image for key in range(400)]
    assert stats.binomtest(sum(one is not image for one in blurred), 400, 0.3).pvalue > 1e-3


def test_a_blur_is_pillows_at_a_uniform_width() -> None:
    for key in range(5):
        sigma = 0.5 + 1.5 * float(generator_of(key).random(2)[1])
        ours = GaussianBlur(probability=1.0, sigma=(0.5, 2.0))(Example(image=RGB), generator_of(key)).image
        assert np.array_equal(ours, RGB.filter(ImageFilter.GaussianBlur(sigma)))


def test_jitter_may_leave_pictures_alone() -> None:
    jitter = ColourJitter(brightness=0.4, probability=0.8)
    same = sum(jitter(Example(image=RGB), generator_of(key)).image is RGB for key in range(500))
    assert stats.binomtest(same, 500, 0.2).pvalue > 1e-3


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: ColourJitter(brightness=-0.1), "brightness"),
        (lambda: ColourJitter(hue=0.6), "hue"),
        (lambda: ColourJitter(contrast=float("nan")), "contrast"),
        (lambda: Grayscale(probability=2.0), "probability"),
        (lambda: GaussianBlur(sigma=(0.0, 1.0)), "sigma"),
        (lambda: Solarize(threshold=300), "threshold"),
    ],
)
def test_a_field_out_of_its_range_is_refused(wrong: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        wrong()
