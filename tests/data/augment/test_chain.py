"""From a picture to a training input: seeded, normalised as in evaluation, and configured in one place."""

from __future__ import annotations

import hashlib
import inspect
import pickle
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from vitral.base.chance import generator_of
from vitral.base.image import Picture, read_picture
from vitral.data.augment.chain import Augmentation, TrainingInput
from vitral.data.augment.colour import ColourJitter
from vitral.data.augment.geometry import Flip, PaddedCrop, RandomResizedCrop, Resized
from vitral.data.augment.rand_augment import RandAugment
from vitral.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from vitral.errors import UnknownNameError, UsageError

IMAGENET = Preprocessing(mean=IMAGENET_MEAN, std=IMAGENET_STD, interpolation="bicubic", size=(32, 32))
PLAIN = Augmentation(crop="none", flip=0.0)
EVERYTHING = Augmentation(
    rand_augment=2,
    operation_probability=1.0,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
    erase=0.5,
    flip_vertical=0.3,
    interpolation="random",
)


def picture(height: int = 50, width: int = 70, seed: int = 0) -> Picture:
    return read_picture(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def unchecked(kind: type, **fields: Any) -> None:
    """Make one as outside the tests, where no types are checked."""
    inspect.unwrap(kind.__init__)(object.__new__(kind), **fields)  # type: ignore[misc]


# -- chance -------------------------------------------------------------------------------------------------------------


def test_a_generator_is_pcg64_seeded_with_the_hash_of_its_key() -> None:
    mask, multiplier = (1 << 128) - 1, 0x2360ED051FC65DA44385DF649FCCF645
    for key in [(0,), (1, 2, 3, 4), (2**64 - 1, 0)]:
        digest = hashlib.blake2b(struct.pack(f"<{len(key)}Q", *key), digest_size=32).digest()
        words = struct.unpack("<4Q", digest)
        state, stream = words[0] << 64 | words[1], words[2] << 64 | words[3]
        # pcg_setseq_128_srandom_r of O'Neill's reference code
        increment = (stream << 1 | 1) & mask
        expected = ((increment + state) * multiplier + increment) & mask
        told: Any = generator_of(*key).bit_generator.state
        assert (told["state"]["state"], told["state"]["inc"]) == (expected, increment)


def test_equal_keys_give_equal_streams_and_others_others() -> None:
    keys = [(0,), (0, 0), (0, 0, 0), (1, 0), (0, 1), (10,), (2**63,)]
    streams = [tuple(generator_of(*key).random(4).tolist()) for key in keys]
    assert len(set(streams)) == len(keys)
    assert streams == [tuple(generator_of(*key).random(4).tolist()) for key in keys]
    assert inspect.unwrap(generator_of)(np.int64(3), 4).random() == generator_of(3, 4).random()


def test_first_draws_of_neighbouring_keys_are_uniform_and_uncorrelated() -> None:
    draws = np.array([generator_of(0, index).random() for index in range(3000)])
    assert stats.kstest(draws, stats.uniform(0, 1).cdf).pvalue > 1e-3
    assert stats.pearsonr(draws[:-1], draws[1:]).pvalue > 1e-3


@pytest.mark.parametrize("key", [(), (-1,), (2**64,), (1.5,), ("a",)])
def test_what_is_no_key_is_refused(key: Any) -> None:
    with pytest.raises(UsageError, match="key must be"):
        inspect.unwrap(generator_of)(*key)


def test_a_generator_travels() -> None:
    rng = generator_of(1, 2)
    copy = pickle.loads(pickle.dumps(rng))
    assert rng.random() == copy.random()


# -- inputs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mean", [IMAGENET_MEAN, (0.3,)])
def test_without_augmentation_the_input_is_the_preprocessings(mean: tuple[float, ...]) -> None:
    preprocessing = replace(IMAGENET, mean=mean, std=tuple(0.2 + 0.1 * one for one in mean))
    came = picture()
    expected, _ = preprocessing(came)
    assert torch.equal(TrainingInput(PLAIN, preprocessing, (32, 32))(came, generator_of(0)), expected)


@pytest.mark.parametrize("crop", ["resized", "padded", "none"])
def test_an_input_is_a_pure_function_of_picture_and_key(crop: Any) -> None:
    prepare = TrainingInput(replace(EVERYTHING, crop=crop), IMAGENET, (24, 40))
    came = picture()
    before = np.array(came.image)
    one, same, other = (prepare(came, generator_of(0, epoch, 7)) for epoch in (0, 0, 1))
    assert one.shape == (3, 24, 40)
    assert one.dtype == torch.float32
    assert one.is_contiguous()
    assert torch.isfinite(one).all()
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert np.array_equal(came.image, before)
    travelled = pickle.loads(pickle.dumps(prepare))
    assert torch.equal(travelled(came, generator_of(0, 0, 7)), one)


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (32, 32)])
def test_any_picture_gives_an_input_in_colour_and_grey(size: tuple[int, int]) -> None:
    for preprocessing, channels in ((IMAGENET, 3), (Preprocessing(mean=(0.5,), std=(0.5,)), 1)):
        for crop in ("resized", "padded", "none"):
            prepare = TrainingInput(replace(EVERYTHING, crop=crop), preprocessing, (16, 20))  # type: ignore[arg-type]
            for key in range(10):
                values = prepare(picture(*size), generator_of(key))
                assert values.shape == (channels, 16, 20)
                assert torch.isfinite(values).all()


def test_what_is_turned_in_is_the_mean_of_the_training_set() -> None:
    prepare = TrainingInput(Augmentation(rand_augment=2, interpolation="bilinear"), IMAGENET, (32, 32))
    step = prepare.chain.steps[-1]
    assert isinstance(step, RandAugment)
    assert step.fill == tuple(round(255 * one) for one in IMAGENET_MEAN)  # as timm fills


def test_the_chain_holds_what_was_asked_for() -> None:
    def kinds(**fields: Any) -> list[type]:
        return [type(step) for step in Augmentation(**fields).chain((8, 8)).steps]

    assert kinds() == [RandomResizedCrop, Flip]
    assert kinds(crop="padded", flip=0.0) == [Resized, PaddedCrop]
    assert kinds(crop="none", flip=0.0, flip_vertical=0.5, hue=0.1) == [Resized, Flip, ColourJitter]
    assert kinds(rand_augment=1, brightness=0.1) == [RandomResizedCrop, Flip, RandAugment, ColourJitter]
    crop, flip, rand, jitter = EVERYTHING.chain((8, 9), (1, 2, 3)).steps[:2] + EVERYTHING.chain((8, 9), (1, 2, 3)).steps[3:]
    assert crop == RandomResizedCrop(size=(8, 9), interpolation="random")
    assert flip == Flip(probability=0.5)
    assert rand == RandAugment(operations=2, probability=1.0, interpolation="random", fill=(1, 2, 3))
    assert jitter == ColourJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)


def test_erasing_is_last_and_as_frequent_as_asked() -> None:
    grey = read_picture(Image.new("RGB", (32, 32), (255, 0, 0)))
    prepare = TrainingInput(replace(PLAIN, erase=0.25), IMAGENET, (32, 32))
    plain = TrainingInput(PLAIN, IMAGENET, (32, 32))(grey, generator_of(0))
    erased = sum(not torch.equal(prepare(grey, generator_of(key)), plain) for key in range(400))
    assert stats.binomtest(erased, 400, 0.25).pvalue > 1e-3


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"crop_scale": (0.0, 1.0)}, "crop_scale"),
        ({"crop_scale": (0.5, 2.0)}, "crop_scale"),
        ({"crop_ratio": (2.0, 1.0)}, "crop_ratio"),
        ({"padding": -1}, "padding"),
        ({"flip": 1.1}, "flip"),
        ({"flip_vertical": -0.1}, "flip_vertical"),
        ({"brightness": -1.0}, "brightness must not be negative"),
        ({"hue": 0.7}, "hue must be from 0 to 0.5"),
        ({"rand_augment": -1}, "rand_augment"),
        ({"magnitude": 30.0}, "magnitude must be from 0 to 10"),
        ({"magnitude_std": float("nan")}, "magnitude_std"),
        ({"operation_probability": 2.0}, "operation_probability"),
        ({"erase": 7.0}, "erase"),
        ({"mixup": -0.8}, "mixup"),
        ({"cutmix": float("inf")}, "cutmix"),
        ({"mix_probability": 1.5}, "mix_probability"),
        ({"cutmix_share": 1.5}, "cutmix_share"),
        ({"repeats": 0}, "repeats"),
    ],
)
def test_a_field_out_of_its_range_is_refused_by_name(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Augmentation(**fields)


def test_a_misspelt_choice_is_told_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="'padded'"):
        unchecked(Augmentation, **vars(Augmentation()) | {"crop": "paded"})
    with pytest.raises(UsageError, match="size"):
        TrainingInput(PLAIN, IMAGENET, (32, 0))
