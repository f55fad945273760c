"""Preprocessing gives what the peers' processors give, and the way back leads to the right place."""

from __future__ import annotations

import inspect
import io
import random
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from torch import Tensor
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.models.yolos.image_processing_yolos import get_size_with_aspect_ratio_yolos

from vitral.base.image import Picture, read_picture
from vitral.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from vitral.errors import PictureError, UnknownNameError, UsageError

EXACT = 1e-6
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

# (height, width): odd, usual, tiny, one pixel thin, long, square, one off the sizes below.
SIZES = [
    (97, 131),
    (480, 640),
    (641, 427),
    (5, 7),
    (1, 1),
    (1, 60),
    (300, 2),
    (40, 700),
    (224, 224),
    (225, 257),
    (256, 223),
]


@cache
def picture(height: int, width: int) -> Picture:
    """Smooth colours under noise: every pixel matters."""
    y, x = np.mgrid[:height, :width]
    smooth = np.stack([x * 255 / width, y * 255 / height, (x * y) % 256], axis=-1)
    noise = np.random.default_rng(height * width).integers(-60, 60, smooth.shape)
    return read_picture(np.clip(smooth + noise, 0, 255).astype(np.uint8))


@cache
def gentle(height: int, width: int) -> Picture:
    """The same, less bright and less dark: nothing overshoots what a pixel can hold while it is resized."""
    return read_picture((picture(height, width).array * 0.4 + 77).astype(np.uint8))


def levels(one: Tensor, other: Tensor, preprocessing: Preprocessing) -> Tensor:
    """The differences before normalising, in levels of 255."""
    std = torch.tensor(preprocessing.std).view(-1, 1, 1)
    return ((one - other) * std / preprocessing.scale).abs()


# -- transformers -----------------------------------------------------------------------------------------------------

TRANSFORMERS: dict[str, tuple[str, dict[str, Any], Preprocessing]] = {
    "ViT": ("ViTImageProcessor", {}, Preprocessing()),
    "ViT 384 x 128, unscaled": (
        "ViTImageProcessor",
        {"size": {"height": 384, "width": 128}, "do_rescale": False, "do_normalize": False},
        Preprocessing(size=(384, 128), scale=1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
    ),
    "ViT, not normalised": (
        "ViTImageProcessor",
        {"do_normalize": False},
        Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
    ),
    "DeiT": (
        "DeiTImageProcessor",
        {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD},
        Preprocessing(size=(256, 256), crop=(224, 224), interpolation="bicubic", mean=IMAGENET_MEAN, std=IMAGENET_STD),
    ),
    "BEiT": ("BeitImageProcessor", {}, Preprocessing(interpolation="bicubic")),
    "BiT": (
        "BitImageProcessor",
        {},
        Preprocessing(resize="shortest_edge", crop=(224, 224), interpolation="bicubic", mean=CLIP_MEAN, std=CLIP_STD),
    ),
    "DINOv2": (
        "BitImageProcessor",
        {"size": {"shortest_edge": 256}, "image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD},
        Preprocessing(
            resize="shortest_edge",
            size=(256, 256),
            crop=(224, 224),
            interpolation="bicubic",
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
        ),
    ),
    "BiT, crop of another shape": (
        "BitImageProcessor",
        {"size": {"shortest_edge": 65}, "crop_size": {"height": 64, "width": 40}, "resample": 2},
        Preprocessing(
            resize="shortest_edge", size=(65, 65), crop=(64, 40), interpolation="bilinear", mean=CLIP_MEAN, std=CLIP_STD
        ),
    ),
    "BiT, crop larger than the edge": (
        "BitImageProcessor",
        {"size": {"shortest_edge": 51}, "crop_size": {"height": 64, "width": 80}},
        Preprocessing(
            resize="shortest_edge", size=(51, 51), crop=(64, 80), interpolation="bicubic", mean=CLIP_MEAN, std=CLIP_STD
        ),
    ),
    "BiT, not resized": (
        "BitImageProcessor",
        {"do_resize": False},
        Preprocessing(resize="none", crop=(224, 224), mean=CLIP_MEAN, std=CLIP_STD),
    ),
}


@cache
def processor(kind: str, backend: str) -> Any:
    import transformers
    from transformers.models.beit.image_processing_pil_beit import BeitImageProcessorPil
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
    from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    pillow = [BeitImageProcessorPil, BitImageProcessorPil, DeiTImageProcessorPil, ViTImageProcessorPil]
    name, options, _ = TRANSFORMERS[kind]
    if backend == "Pillow":
        return next(each for each in pillow if each.__name__ == name + "Pil")(**options)
    return getattr(transformers, name)(**options)


def odd_padding(preprocessing: Preprocessing, height: int, width: int) -> bool:
    """Where transformers' Pillow backend adds the larger half of an odd margin first, and everybody else last."""
    if preprocessing.crop is None or preprocessing.resize == "exact":
        return False
    edge = preprocessing.size[0] / min(height, width) if preprocessing.resize == "shortest_edge" else 1
    resized = (int(height * edge), int(width * edge))
    return any(crop > side and (crop - side) % 2 for crop, side in zip(preprocessing.crop, resized, strict=True))


@pytest.mark.parametrize(
    ("kind", "size"),
    [(kind, size) for kind, case in TRANSFORMERS.items() for size in SIZES if not odd_padding(case[2], *size)],
    ids=str,
)
def test_transformers_pillow_backend(kind: str, size: tuple[int, int]) -> None:
    preprocessing = TRANSFORMERS[kind][2]
    ours, _ = preprocessing(picture(*size))
    theirs = torch.from_numpy(processor(kind, "Pillow")(picture(*size).image)["pixel_values"][0])
    assert (ours - theirs).abs().max() <= EXACT * max(1, preprocessing.scale * 255)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_transformers_torchvision_backend(kind: str, size: tuple[int, int]) -> None:
    """Bicubic on tensors differs from Pillow's by two levels here and there, and more where it overshoots white."""
    preprocessing = TRANSFORMERS[kind][2]
    ours, _ = preprocessing(gentle(*size))
    theirs = processor(kind, "torchvision")(gentle(*size).image, return_tensors="pt")["pixel_values"][0]
    differences = levels(ours, theirs, preprocessing)
    assert differences.max() <= (2.001 if preprocessing.interpolation == "bicubic" else 1.001)
    assert (differences > 1.001).float().mean() <= 5e-4


# -- timm -------------------------------------------------------------------------------------------------------------


def timm_transform(**config: Any) -> Any:
    import timm.data

    defaults = {"input_size": (3, 224, 224), "mean": IMAGENET_MEAN, "std": IMAGENET_STD, "interpolation": "bicubic"}
    return timm.data.create_transform(**timm.data.resolve_data_config({**defaults, **config}))


def like_timm(**fields: Any) -> Preprocessing:
    defaults = {"interpolation": "bicubic", "mean": IMAGENET_MEAN, "std": IMAGENET_STD, "crop_rounding": "round"}
    return Preprocessing(**{**defaults, **fields})


TIMM: dict[str, tuple[dict[str, Any], Preprocessing]] = {
    "0.9": ({"crop_pct": 0.9}, like_timm(resize="shortest_edge", size=(248, 248), crop=(224, 224))),
    "0.875": ({"crop_pct": 0.875}, like_timm(resize="shortest_edge", size=(256, 256), crop=(224, 224))),
    "0.95": ({"crop_pct": 0.95}, like_timm(resize="shortest_edge", size=(235, 235), crop=(224, 224))),
    "1.0": ({"crop_pct": 1.0}, like_timm(resize="shortest_edge", size=(224, 224), crop=(224, 224))),
    "odd crop": (
        {"crop_pct": 0.9, "input_size": (3, 37, 37), "interpolation": "bilinear"},
        like_timm(resize="shortest_edge", size=(41, 41), crop=(37, 37), interpolation="bilinear"),
    ),
    "squash": ({"crop_pct": 1.0, "crop_mode": "squash"}, like_timm(size=(224, 224), crop=(224, 224))),
    "squash 0.9": ({"crop_pct": 0.9, "crop_mode": "squash"}, like_timm(size=(248, 248), crop=(224, 224))),
    "not square": (
        {"crop_pct": 0.9, "input_size": (3, 96, 161)},
        like_timm(resize="shortest_edge", size=(106, 178), crop=(96, 161)),
    ),
    "not square, tall": (
        {"crop_pct": 0.875, "input_size": (3, 131, 60), "interpolation": "lanczos"},
        like_timm(resize="shortest_edge", size=(149, 68), crop=(131, 60), interpolation="lanczos"),
    ),
    "squash, not square": (
        {"crop_pct": 0.9, "input_size": (3, 96, 161), "crop_mode": "squash", "interpolation": "nearest"},
        like_timm(size=(106, 178), crop=(96, 161), interpolation="nearest"),
    ),
    "hamming": (
        {"crop_pct": 0.9, "interpolation": "hamming"},
        like_timm(resize="shortest_edge", size=(248, 248), crop=(224, 224), interpolation="hamming"),
    ),
    "box": (
        {"crop_pct": 0.9, "interpolation": "box"},
        like_timm(resize="shortest_edge", size=(248, 248), crop=(224, 224), interpolation="box"),
    ),
}


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", TIMM)
def test_timm(kind: str, size: tuple[int, int]) -> None:
    config, preprocessing = TIMM[kind]
    ours, _ = preprocessing(picture(*size))
    theirs = timm_transform(**config)(picture(*size).image)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= EXACT


@pytest.mark.parametrize("seed", range(60))
def test_torchvision_resize_and_crop_of_any_sizes(seed: int) -> None:
    """Crops of every parity, smaller and larger than the picture, along one side or both."""
    from torchvision.transforms import functional

    dice = random.Random(seed)
    height, width, edge = (dice.randint(1, 90) for _ in range(3))
    crop = (dice.randint(1, 120), dice.randint(1, 120))
    resize = dice.choice(["shortest_edge", "none"])
    fields: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "scale": 1.0, "crop_rounding": "round"}
    ours, _ = Preprocessing(resize=resize, size=(edge, edge), crop=crop, **fields)(picture(height, width))
    image = picture(height, width).image
    image = functional.resize(image, [edge]) if resize == "shortest_edge" else image
    assert (ours.numpy() == np.asarray(functional.center_crop(image, list(crop))).transpose(2, 0, 1)).all()


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 1000), st.integers(0, 1000))
def test_a_longest_side_is_kept_as_transformers_does(height: int, width: int, shortest: int, more: int) -> None:
    """The peers' own functions, which take sizes and need no picture."""
    longest = shortest + more
    kept = Preprocessing(resize="shortest_edge", size=(shortest, shortest), longest=longest)
    assert kept._limited_size(height, width, longest) == get_size_with_aspect_ratio((height, width), shortest, longest)
    sixteen = replace(kept, multiple=16)
    assert sixteen._limited_size(height, width, longest) == get_size_with_aspect_ratio_yolos(
        (height, width), shortest, longest
    )


@pytest.mark.parametrize(("size", "multiple"), [((1, 3000), 1), ((30, 1000), 16)])
def test_a_picture_of_which_nothing_would_be_left_is_refused(size: tuple[int, int], multiple: int) -> None:
    prepare = Preprocessing(resize="shortest_edge", size=(80, 80), longest=133, multiple=multiple)
    with pytest.raises(PictureError, match="with a longer side of 133 pixels nothing would be left"):
        prepare(read_picture(Image.new("RGB", size)))


def test_grey_models_see_grey() -> None:
    from torchvision.transforms import functional

    preprocessing = Preprocessing(size=(20, 30), mean=(0.5,), std=(0.25,))
    ours, _ = preprocessing(picture(97, 131))
    theirs = functional.to_tensor(functional.resize(picture(97, 131).image.convert("L"), [20, 30]))
    assert ours.shape == (1, 20, 30)
    assert (ours - (theirs - 0.5) / 0.25).abs().max() <= EXACT


def test_grey_pixels_come_through_unchanged() -> None:
    digit = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    ours, _ = Preprocessing(size=(8, 8), mean=(0.0,), std=(1.0,), scale=1.0)(read_picture(digit))
    assert (ours[0].numpy() == digit).all()


def test_photographs(shared: Path) -> None:
    photographs = sorted((shared / "data" / "photos").glob("*.jpg"))
    assert photographs
    for path in photographs:
        photograph = read_picture(path)
        opened = Image.open(path).convert("RGB")
        for kind, (_, _, preprocessing) in TRANSFORMERS.items():
            ours, _ = preprocessing(photograph)
            theirs = processor(kind, "torchvision")(opened, return_tensors="pt")["pixel_values"][0]
            assert levels(ours, theirs, preprocessing).max() <= 1.001
            if odd_padding(preprocessing, *photograph.size):
                continue
            theirs = torch.from_numpy(processor(kind, "Pillow")(opened)["pixel_values"][0])
            assert (ours - theirs).abs().max() <= EXACT * max(1, preprocessing.scale * 255)
        for config, preprocessing in TIMM.values():
            assert (preprocessing(photograph)[0] - timm_transform(**config)(opened)).abs().max() <= EXACT


# -- the way back -----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(st.integers(60, 200), st.integers(60, 200)),
    st.sampled_from(["exact", "shortest_edge", "none"]),
    st.tuples(st.integers(30, 120), st.integers(30, 120)),
    st.none() | st.tuples(st.integers(20, 150), st.integers(20, 150)),
    st.sampled_from(["floor", "round"]),
)
def test_the_frame_leads_back_to_where_a_pixel_came_from(
    size: tuple[int, int], resize: Any, to: tuple[int, int], crop: tuple[int, int] | None, rounding: Any
) -> None:
    """A picture whose colours are its own coordinates: each input pixel says where in the picture it was taken."""
    y, x = np.mgrid[: size[0], : size[1]]
    coordinates = np.stack([x, y, np.full_like(x, 255)], axis=-1).astype(np.uint8)  # blue marks what is not padding
    fields: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "scale": 1.0}
    preprocessing = Preprocessing(resize=resize, size=to, crop=crop, crop_rounding=rounding, **fields)
    pixels, frame = preprocessing(read_picture(coordinates))
    assert frame.picture == size
    assert frame.input == tuple(pixels.shape[1:])
    if preprocessing.input_size is not None:
        assert frame.input == preprocessing.input_size
    rows, columns = np.mgrid[: frame.input[0], : frame.input[1]]
    there = frame.to_picture(np.stack([columns, rows], axis=-1) + 0.5) - 0.5  # of centres
    inside = ((there > 2) & (there < np.array(size[::-1]) - 3)).all(axis=-1)  # the filter reaches over the edge
    inside &= pixels[2].numpy() == 255
    assert inside.any() or min(size) < 70
    said = pixels[:2].numpy().transpose(1, 2, 0)
    assert np.abs(said - there)[inside].max(initial=0) <= 1.01
    beyond = ((there < -0.5) | (there > np.array(size[::-1]) - 0.5)).any(axis=-1)
    assert (pixels[2].numpy()[beyond] == 0).all()


def test_a_frame_knows_the_window() -> None:
    _, frame = TRANSFORMERS["DINOv2"][2](picture(480, 640))
    assert frame.input == (224, 224)
    assert frame.scale == (256 / 480, 341 / 640)
    assert frame.offset == (16, 58)
    assert frame.window == pytest.approx((58 * 640 / 341, 30, 282 * 640 / 341, 450))


# -- reading less than everything -------------------------------------------------------------------------------------


def card(kind: str, height: int, width: int) -> Image.Image:
    """Test cards from harmless to the worst there is for a JPEG."""
    y, x = np.mgrid[:height, :width]
    if kind == "smooth":
        waves = np.stack([np.sin(9 * x / width) ** 2, np.cos(12 * y / height) ** 2, x * y / (height * width)], axis=-1)
        return Image.fromarray((waves * 255).astype(np.uint8))
    if kind == "checkerboard":
        board = ((x // 3 + y // 3) % 2 * 255).astype(np.uint8)
        return Image.fromarray(np.stack([board, 255 - board, board], axis=-1))
    image, dice = Image.new("RGB", (width, height), "white"), random.Random(0)
    draw = ImageDraw.Draw(image)
    for line in range(0, height, 14):
        colour = tuple(dice.choice([0, 255]) for _ in range(3)) if kind == "saturated text" else "black"
        draw.text((0, line), "".join(chr(dice.randrange(33, 120)) for _ in range(width // 6)), fill=colour)
    return image


# The largest and the mean difference in levels of 255 that were measured, with a little room. Saturated colours whose
# hue is stored at half the resolution (4:2:0) leave the range of RGB when decoded whole, and are clipped there.
@pytest.mark.parametrize(
    ("kind", "subsampling", "largest", "mean"),
    [
        ("smooth", "4:4:4", 6, 0.4),
        ("smooth", "4:2:0", 6, 0.4),
        ("checkerboard", "4:2:0", 2, 0.5),
        ("black text", "4:2:0", 5, 1.3),
        ("saturated text", "4:4:4", 7, 2.5),
        ("saturated text", "4:2:0", 30, 4.5),
    ],
)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_what_reading_at_reduced_size_costs(
    kind: str, subsampling: str, largest: int, mean: float, interpolation: Any
) -> None:
    file = io.BytesIO()
    card(kind, 723, 961).save(file, "JPEG", quality=90, subsampling=subsampling)
    whole = read_picture(file)
    for edge, reduction in ((72, 2), (36, 4), (18, 8)):
        fields: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "scale": 1.0, "interpolation": interpolation}
        preprocessing = Preprocessing(resize="shortest_edge", size=(edge, edge), crop=(edge, edge), **fields)
        reduced = read_picture(file, at_least=preprocessing.reading_size)
        assert reduced.image.size == (-(-961 // reduction), -(-723 // reduction))
        ours, frame = preprocessing(reduced)
        reference, same = preprocessing(whole)
        assert frame == same
        difference = (ours - reference).abs()
        assert difference.max() <= largest
        assert difference.mean() <= mean


def test_reading_sizes() -> None:
    assert Preprocessing(size=(224, 112)).reading_size == (1120, 560)
    assert Preprocessing(resize="shortest_edge", size=(256, 256), crop=(224, 224)).reading_size == (1280, 1280)
    assert Preprocessing(resize="none").reading_size is None
    assert Preprocessing(interpolation="nearest").reading_size is None


def test_a_reduced_picture_is_not_passed_off_as_whole() -> None:
    file = io.BytesIO()
    card("smooth", 200, 300).save(file, "JPEG")
    with pytest.raises(UsageError, match="was read at reduced size"):
        Preprocessing(resize="none")(read_picture(file, at_least=(20, 20)))


# -- batches and mistakes ---------------------------------------------------------------------------------------------


def test_a_batch_is_its_pictures() -> None:
    preprocessing = TRANSFORMERS["DINOv2"][2]
    pictures = [picture(*size) for size in SIZES[:4]]
    pixels, frames = preprocessing.batch(pictures)
    assert pixels.shape == (4, 3, 224, 224)
    for each, (one, frame) in enumerate(map(preprocessing, pictures)):
        assert (pixels[each] == one).all()
        assert frames[each] == frame
    assert Preprocessing(resize="none").batch([picture(5, 7)])[0].shape == (1, 3, 5, 7)


def test_batches_of_no_or_different_sizes_are_refused() -> None:
    with pytest.raises(UsageError, match="but got none"):
        Preprocessing().batch([])
    with pytest.raises(UsageError, match=r"sizes \(5, 7\), \(97, 131\)\. Set `crop`"):
        Preprocessing(resize="none").batch([picture(97, 131), picture(5, 7)])


@pytest.mark.parametrize("mean", [IMAGENET_MEAN, (0.3,)])
def test_black_is_the_input_of_a_black_picture(mean: tuple[float, ...]) -> None:
    preprocessing = Preprocessing(mean=mean, std=mean, scale=1 / 128)
    pixels, _ = preprocessing(read_picture(np.zeros((9, 7, 3), np.uint8)))
    assert torch.equal(pixels, preprocessing.black.expand_as(pixels))


def test_inputs_are_plain_float32() -> None:
    pixels, _ = Preprocessing()(picture(97, 131))
    assert pixels.dtype == torch.float32
    assert pixels.is_contiguous()
    before = picture(97, 131).array.copy()
    pixels.zero_()
    assert (picture(97, 131).array == before).all()


def test_a_thread_of_a_picture_does_not_fill_the_memory() -> None:
    thread = read_picture(Image.new("RGB", (60_000, 1)))
    with pytest.raises(PictureError, match="so long and thin"):
        Preprocessing(resize="shortest_edge", crop=(224, 224))(thread)
    assert Preprocessing()(thread)[0].shape == (3, 224, 224)


def unchecked(**fields: Any) -> None:
    """A Preprocessing of these fields, past the tests' own type checker, which would refuse some of them first."""
    inspect.unwrap(Preprocessing.__init__)(object.__new__(Preprocessing), **fields)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"size": (0, 5)}, "size of a Preprocessing must be"),
        ({"size": (5,)}, "size of a Preprocessing must be"),
        ({"size": (5.0, 5.0)}, "size of a Preprocessing must be"),
        ({"crop": (5, -5)}, "crop of a Preprocessing must be"),
        ({"mean": (0.5, 0.5)}, "three values"),
        ({"mean": (0.5,)}, "three values"),
        ({"mean": (0.5,) * 4, "std": (0.5,) * 4}, "three values"),
        ({"std": (0.5, 0.5, 0.0)}, "std and scale positive"),
        ({"mean": (0.5, 0.5, float("nan"))}, "must be finite"),
        ({"scale": 0.0}, "std and scale positive"),
        ({"longest": 300}, "longest=300 of a Preprocessing goes with resize='shortest_edge'"),
        ({"resize": "shortest_edge", "size": (9, 8), "longest": 10}, "one length for both sides"),
        ({"resize": "shortest_edge", "longest": 223}, "longest side, 223 pixels, is shorter than the shortest, 224"),
        ({"multiple": 16}, "multiple of a Preprocessing .* goes with longest; 16 came"),
        ({"resize": "shortest_edge", "longest": 300, "multiple": 0}, "from 1, and goes with longest; 0 came"),
        ({"scale": float("inf")}, "must be finite"),
    ],
)
def test_fields_must_make_sense(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        unchecked(**fields)


@pytest.mark.parametrize(
    ("fields", "nearest"),
    [
        ({"resize": "shortest"}, "shortest_edge"),
        ({"interpolation": "bicubique"}, "bicubic"),
        ({"crop_rounding": "flor"}, "floor"),
    ],
)
def test_misspelt_fields_are_told_the_nearest(fields: dict[str, Any], nearest: str) -> None:
    with pytest.raises(UnknownNameError, match=f"Did you mean '{nearest}'"):
        unchecked(**fields)
