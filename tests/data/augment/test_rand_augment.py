"""RandAugment's operations are timm's, with timm's ranges."""

from __future__ import annotations

import inspect
from collections import Counter
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from timm.data import auto_augment as timm_ops

from vitral.base.chance import generator_of
from vitral.data.augment import rand_augment
from vitral.data.augment.example import Example
from vitral.data.augment.rand_augment import OPERATIONS, RandAugment, argument_of, operated
from vitral.errors import UnknownNameError, UsageError

# Our name → timm's in its increasing set.
TIMM = dict(zip(OPERATIONS, timm_ops._RAND_INCREASING_TRANSFORMS, strict=True))
NOISE = Image.fromarray(np.random.default_rng(1).integers(20, 230, (33, 41, 3), dtype=np.uint8))
SMOOTH = Image.fromarray(np.indices((33, 41)).sum(0).astype(np.uint8) * 2).convert("RGB")
FLAT = Image.new("RGB", (9, 9), (40, 90, 200))
PICTURES = {"noise": NOISE, "smooth": SMOOTH, "flat": FLAT, "grey": NOISE.convert("L"), "tiny": NOISE.crop((0, 0, 3, 2))}


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_magnitude_means_what_it_means_to_timm(operation: Any, sign: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm_ops, "_randomly_negate", lambda value: sign * value)
    level = timm_ops.LEVEL_TO_ARG[TIMM[operation]]
    for magnitude in (0.0, 1.3, 4.99, 5.0, 7.77, 9.0, 9.99):
        theirs = level(magnitude, {})[0] if level else 0.0
        assert argument_of(operation, magnitude, sign) == pytest.approx(theirs, rel=1e-12)


def test_one_bit_is_kept_at_the_highest_magnitude() -> None:
    assert argument_of("posterize", 10.0) == 1


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_has_timms_pixels(operation: Any, picture: str) -> None:
    image = PICTURES[picture]
    fill: Any = (124, 116, 104)
    for magnitude, sign in ((0.5, 1), (6.3, -1), (9.0, 1), (9.9, -1)):
        for filter in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC):
            argument = argument_of(operation, magnitude, sign)
            colour = fill if image.mode == "RGB" else Image.new("RGB", (1, 1), fill).convert("L").getpixel((0, 0))
            arguments = () if operation in ("auto_contrast", "equalize", "invert") else (argument,)
            if operation in ("posterize", "solarize", "solarize_add"):
                arguments = (int(argument),)
            theirs = timm_ops.NAME_TO_OP[TIMM[operation]](image, *arguments, fillcolor=colour, resample=filter)
            ours = operated(Example(image=image), operation, argument, filter=filter, fill=fill).image
            assert ours.mode == image.mode
            assert np.array_equal(ours, theirs), (magnitude, filter)


def test_operations_are_drawn_evenly_and_applied_as_often_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def noted(example: Example, operation: str, argument: float, **_: Any) -> Example:
        seen.append(operation)
        return example

    monkeypatch.setattr(rand_augment, "operated", noted)
    augment = RandAugment(operations=3, probability=0.5)
    for key in range(1000):
        augment(Example(image=FLAT), generator_of(key))
    assert stats.binomtest(len(seen), 3000, 0.5).pvalue > 1e-3
    counts = Counter(seen)
    assert set(counts) == set(OPERATIONS)
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_magnitudes_are_gaussian_cut_off_at_ten_and_go_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    slants: list[float] = []
    bits: list[float] = []

    def noted(example: Example, operation: str, argument: float, **_: Any) -> Example:
        (slants if operation == "shear_x" else bits if operation == "solarize" else []).append(argument)
        return example

    monkeypatch.setattr(rand_augment, "operated", noted)
    augment = RandAugment(operations=15, magnitude=5.0, magnitude_std=1.0, probability=1.0)
    for key in range(600):
        augment(Example(image=FLAT), generator_of(key))
    assert stats.kstest(np.abs(slants) / 0.03, stats.norm(5, 1).cdf).pvalue > 1e-3
    assert stats.binomtest(int((np.array(slants) > 0).sum()), len(slants)).pvalue > 1e-3
    bits.clear()
    for key in range(50):
        RandAugment(operations=15, magnitude=10.0, magnitude_std=50.0, probability=1.0)(
            Example(image=FLAT), generator_of(key)
        )
    assert min(bits) == 0  # magnitude 10 inverts everything
    assert max(bits) == 256  # and magnitude 0 nothing


def test_no_deviation_and_no_operations() -> None:
    example = Example(image=NOISE)
    assert RandAugment(operations=0)(example, generator_of(0)) is example
    assert RandAugment(probability=0.0)(example, generator_of(0)) is example
    one = RandAugment(operations=1, magnitude=9.0, magnitude_std=0.0, probability=1.0)
    outcomes = {np.asarray(one(example, generator_of(key)).image).tobytes() for key in range(400)}
    # Three have no argument, posterize, solarize and solarize_add one value, and nine go two ways, of which five with
    # either of two filters if that is random; here all are bicubic.
    assert len(outcomes) == 3 + 3 + 9 * 2


def test_a_misspelt_operation_is_told_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="rotate"):
        inspect.unwrap(argument_of)("rotat", 3.0)  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="shear_x"):
        inspect.unwrap(operated)(Example(image=FLAT), "shear-x", 3.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"operations": -1}, "operations"),
        ({"magnitude": 11.0}, "magnitude"),
        ({"magnitude_std": -0.5}, "magnitude_std"),
        ({"probability": 1.1}, "probability"),
    ],
)
def test_a_field_out_of_its_range_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        RandAugment(**fields)
