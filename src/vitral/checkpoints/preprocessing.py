"""How pictures are prepared, in the words of transformers and of timm, read and written.

transformers keeps it in preprocessor_config.json, timm in config.json under pretrained_cfg.
"""

from __future__ import annotations

import math
import re
from typing import Any, Literal, cast

from vitral.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    INCEPTION_MEAN,
    INCEPTION_STD,
    Interpolation,
    Preprocessing,
)
from vitral.errors import CheckpointError, UnknownNameError, UsageError

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "Processor",
    "detection",
    "evaluation",
    "from_timm",
    "from_transformers",
    "landscape_size",
    "to_timm",
    "to_transformers",
]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# Pillow's numbers, which transformers writes.
_RESAMPLE: dict[int, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}

# What a processor does where its file does not say (transformers' class attributes): edge or size, crop, filter, mean.
_PROCESSORS: dict[str, dict[str, Any]] = {
    "ViT": {
        "size": {"height": 224, "width": 224},
        "resample": 2,
        "image_mean": INCEPTION_MEAN,
        "image_std": INCEPTION_STD,
    },
    "DeiT": {
        "size": {"height": 256, "width": 256},
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
        "resample": 3,
        "image_mean": INCEPTION_MEAN,
        "image_std": INCEPTION_STD,
    },
    "Beit": {
        "size": {"height": 224, "width": 224},
        "resample": 3,
        "image_mean": INCEPTION_MEAN,
        "image_std": INCEPTION_STD,
    },
    "Bit": {
        "size": {"shortest_edge": 224},
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
        "resample": 3,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
    },
    "DINOv3ViT": {
        "size": {"height": 224, "width": 224},
        "resample": 2,
        "image_mean": IMAGENET_MEAN,
        "image_std": IMAGENET_STD,
    },
}
_PROCESSORS["CLIP"] = _PROCESSORS["Bit"]
# What it does to the labels of a training, `do_reduce_labels`, is no matter of pictures.
_PROCESSORS["Segformer"] = {
    "size": {"height": 512, "width": 512},
    "resample": 2,
    "image_mean": IMAGENET_MEAN,
    "image_std": IMAGENET_STD,
}

Processor = Literal["Detr", "DeformableDetr", "Yolos", "RTDetr", "Segformer", "MaskFormer", "Mask2Former"]
"""Detectors and segmenters that have a processor of their own in transformers, which also reads what they say."""

_USUAL_LONGEST = 1333  # where a file of before 2023 gives a number for the shorter side alone
_USUAL_MULTIPLE = 16  # of YOLOS, whatever its patches
_USUAL_DIVISOR = 32  # of MaskFormer and Mask2Former, which round up
_ROUNDING_UP = ("MaskFormer", "Mask2Former")
_DETR = {
    "size": {"shortest_edge": 800, "longest_edge": _USUAL_LONGEST},
    "resample": 2,
    "image_mean": IMAGENET_MEAN,
    "image_std": IMAGENET_STD,
}
_DETECTORS: dict[Processor, dict[str, Any]] = {
    "Detr": _DETR,
    "DeformableDetr": _DETR,
    "Yolos": _DETR,
    "RTDetr": {**_DETR, "size": {"height": 640, "width": 640}, "do_normalize": False},
    "MaskFormer": _DETR,
    "Mask2Former": _DETR,
}
_PROCESSORS |= cast(dict[str, dict[str, Any]], _DETECTORS)

# Model type → processor, for a checkpoint without a preprocessor_config.json.
_FAMILIES = {
    "deit": "DeiT",
    "beit": "Beit",
    "data2vec-vision": "Beit",
    "dinov2": "Bit",
    "dinov2_with_registers": "Bit",
    "dinov3_vit": "DINOv3ViT",
    "detr": "Detr",
    "deformable_detr": "DeformableDetr",
    "yolos": "Yolos",
    "rt_detr": "RTDetr",
    "rt_detr_v2": "RTDetr",
    "segformer": "Segformer",
    "maskformer": "MaskFormer",
    "mask2former": "Mask2Former",
}
# Steps that other processors take and these do not; a file that asks for one is not read as if it did not.
_OTHER_STEPS = ("do_pad", "crop_pct", "do_flip_channel_order", "offset", "size_divisor", "do_thumbnail")


def evaluation(
    image_size: tuple[int, int],
    *,
    resize: int | None = None,
    interpolation: Interpolation = "bicubic",
    inception: bool = False,
) -> Preprocessing:
    """The usual evaluation: the shorter side to `resize`, the middle cut out, ImageNet's (or ±1) normalisation.

    Args:
        image_size: height and width of the cut.
        resize: the shorter side before it; without one, the picture is resized to `image_size` exactly.
        interpolation: the filter.
        inception: normalise to [−1, 1] rather than by ImageNet's mean and deviation.
    """
    return Preprocessing(
        resize="exact" if resize is None else "shortest_edge",
        size=image_size if resize is None else (resize, resize),
        crop=None if resize is None else image_size,
        crop_rounding="round",
        interpolation=interpolation,
        mean=INCEPTION_MEAN if inception else IMAGENET_MEAN,
        std=INCEPTION_STD if inception else IMAGENET_STD,
    )


def detection(shortest: int = 800, longest: int = _USUAL_LONGEST, *, multiple: int = 1) -> Preprocessing:
    """The usual preparation for a detector: the shorter side to `shortest` unless the longer one came to be too long.

    Args:
        shortest: pixels of the shorter side.
        longest: pixels that the longer side must not exceed.
        multiple: pixels of which both sides are made a multiple, by leaving out the rest.
    """
    return Preprocessing(
        resize="shortest_edge",
        size=(shortest, shortest),
        longest=longest,
        multiple=multiple,
        interpolation="bilinear",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )


def from_transformers(processor: dict[str, Any], model_type: str, image_size: tuple[int, int]) -> Preprocessing | None:
    """Read a preprocessor_config.json.

    Args:
        processor: its content; empty where there was no file.
        model_type: the model's type in config.json, which says whose defaults hold.
        image_size: height and width of the model's pictures, for a checkpoint that says nothing.

    Returns:
        The preprocessing; None for a processor, or a step of one, that is not known here.
    """
    named = str(processor.get("image_processor_type") or processor.get("feature_extractor_type") or "")
    family = re.sub(r"(ImageProcessor|FeatureExtractor).*", "", named) or _FAMILIES.get(model_type, "ViT")
    # Detectors fill batches up, which is no matter of one picture, unless to a size that is always the same.
    others: tuple[str, ...] = ("pad_size", *_OTHER_STEPS[1:]) if family in _DETECTORS else _OTHER_STEPS
    if family in _ROUNDING_UP:
        others = tuple(step for step in others if step != "size_divisor")
    if family not in _PROCESSORS or any(processor.get(step) for step in others):
        return None
    told = {**_PROCESSORS[family], **{key: value for key, value in processor.items() if value is not None}}
    if family in _DETECTORS:
        return _for_detector(told, family, image_size)
    if not processor:
        told["size"] = told["crop_size"] = {"height": image_size[0], "width": image_size[1]}
    edge = told["size"]
    if family in ("Bit", "CLIP") and isinstance(edge, int | float):
        edge = {"shortest_edge": edge}  # what a bare number means depends on the processor
    resize, size = _size(edge) if told.get("do_resize", True) else ("none", image_size)
    crop = _size(told.get("crop_size", told["size"]))[1] if told.get("do_center_crop", False) else None
    return Preprocessing(
        resize=cast(Any, resize),
        size=size,
        crop=crop,
        # transformers' processors work on tensors wherever torchvision is installed; DINOv3's scales before it resizes.
        resizer="torch_float" if family == "DINOv3ViT" else "torch",
        **_values(told),
    )


def _for_detector(told: dict[str, Any], family: str, image_size: tuple[int, int]) -> Preprocessing:
    """What a detector's processor does, all of whose entries are known."""
    size: Any = told["size"]
    if isinstance(size, int | float):
        size = {"shortest_edge": size, "longest_edge": told.get("max_size", _USUAL_LONGEST)}
    resize, edge = _size(size) if told.get("do_resize", True) else ("none", image_size)
    longest = size.get("longest_edge") if resize == "shortest_edge" else None
    multiple = _USUAL_MULTIPLE if family == "Yolos" else 1
    if family in _ROUNDING_UP:  # both names are in use, and 0 is none
        multiple = int(told.get("size_divisor", told.get("size_divisibility", _USUAL_DIVISOR))) or 1
        if resize == "exact":
            edge = (-(-edge[0] // multiple) * multiple, -(-edge[1] // multiple) * multiple)
    return Preprocessing(
        resize=cast(Any, resize),
        size=edge,
        longest=None if longest is None else int(longest),
        multiple=1 if longest is None else multiple,
        rounding="up" if longest is not None and family in _ROUNDING_UP and multiple > 1 else "down",
        resizer="torch",
        **_values(told),
    )


def landscape_size(prepared: Preprocessing | None) -> tuple[int, int] | None:
    """Height and width of the pictures that a network is made for, as far as their preparation tells: of a landscape."""
    if prepared is None or prepared.resize == "none":
        return None
    return prepared.input_size or (prepared.size[0], prepared.longest or prepared.size[1])


def _values(told: dict[str, Any]) -> dict[str, Any]:
    """The fields of a Preprocessing that say what becomes of a pixel's values."""
    normalise, rescale = told.get("do_normalize", True), told.get("do_rescale", True)
    mean, std = _channels(told["image_mean"]), _channels(told["image_std"])
    return {
        "interpolation": _interpolation(told.get("resample", 2)),
        "mean": mean if normalise else (0.0,) * len(mean),
        "std": std if normalise else (1.0,) * len(std),
        "scale": float(told.get("rescale_factor", 1 / 255)) if rescale else 1.0,
    }


def to_transformers(preprocessing: Preprocessing, processor: Processor | None = None) -> dict[str, Any]:
    """The preprocessor_config.json of a processor of transformers that does the same.

    Args:
        preprocessing: how pictures are prepared.
        processor: that of a detector or segmenter that has one of its own; None for other networks.

    Raises:
        UsageError: transformers has no processor that would do so.
    """
    if processor == "Segformer":
        return _of_segformer(preprocessing)
    if processor is not None:
        return _of_detector(preprocessing, processor)
    if preprocessing.longest is not None:
        raise UsageError(
            "In transformers only the processors of detectors limit the longer side, here to "
            f"{preprocessing.longest} pixels. Use layout='vitral'."
        )
    kind = {"shortest_edge": "BitImageProcessor", "exact": "DeiTImageProcessor", "none": "DeiTImageProcessor"}[
        preprocessing.resize
    ]
    if preprocessing.resizer == "torch_float":
        kind = "DINOv3ViTImageProcessor"
    elif preprocessing.resize == "exact" and preprocessing.crop is None:
        kind = "ViTImageProcessor"
    height, width = preprocessing.size
    size = {"shortest_edge": height} if preprocessing.resize == "shortest_edge" else {"height": height, "width": width}
    crop = preprocessing.crop or preprocessing.size
    return {
        "image_processor_type": kind,
        "do_convert_rgb": len(preprocessing.mean) == 3,
        "do_resize": preprocessing.resize != "none",
        "size": size,
        "resample": next(number for number, name in _RESAMPLE.items() if name == preprocessing.interpolation),
        "do_center_crop": preprocessing.crop is not None,
        "crop_size": {"height": crop[0], "width": crop[1]},
        "do_rescale": True,
        "rescale_factor": preprocessing.scale,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }


def _of_detector(preprocessing: Preprocessing, processor: Processor) -> dict[str, Any]:
    height, width = preprocessing.size
    limited, rounds_up = preprocessing.longest is not None, processor in _ROUNDING_UP
    wrong = {
        f"cuts {preprocessing.crop}": preprocessing.crop is not None,
        "keeps the shape without a limit for the longer side": preprocessing.resize == "shortest_edge" and not limited,
        f"makes sides multiples of {preprocessing.multiple}, rounding {preprocessing.rounding}": limited
        and not rounds_up
        and (preprocessing.multiple, preprocessing.rounding) != (_USUAL_MULTIPLE if processor == "Yolos" else 1, "down"),
        f"takes what remains of {preprocessing.multiple} pixels off sides": rounds_up
        and preprocessing.multiple > 1
        and preprocessing.rounding == "down",
    }
    found = [what for what, present in wrong.items() if present]
    if found:
        raise UsageError(
            f"The {processor}ImageProcessor of transformers cannot state a preprocessing that {' and '.join(found)}. Use "
            "layout='vitral'."
        )
    raw = set(preprocessing.mean) == {0.0} and set(preprocessing.std) == {1.0}
    size = (
        {"shortest_edge": height, "longest_edge": preprocessing.longest} if limited else {"height": height, "width": width}
    )
    own: dict[str, Any] = {"format": "coco_detection"}
    if rounds_up:
        own = {"size_divisor": preprocessing.multiple, "ignore_index": 255, "do_reduce_labels": False}
        if not limited and preprocessing.resize == "exact":  # the size is what rounding led to
            own["size_divisor"] = math.gcd(_USUAL_DIVISOR, height, width)
    return {
        "image_processor_type": f"{processor}ImageProcessor",
        **own,
        "do_resize": preprocessing.resize != "none",
        "size": size,
        "resample": next(number for number, name in _RESAMPLE.items() if name == preprocessing.interpolation),
        "do_rescale": True,
        "rescale_factor": preprocessing.scale,
        "do_normalize": not raw,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
        "do_pad": processor != "RTDetr",
    }


def _of_segformer(preprocessing: Preprocessing) -> dict[str, Any]:
    if preprocessing.crop is not None or preprocessing.resize == "shortest_edge":
        raise UsageError(
            "The SegformerImageProcessor of transformers makes all pictures of one shape, and cuts none; a preprocessing "
            "that does otherwise it cannot state. Use layout='vitral'."
        )
    stated = to_transformers(preprocessing)
    kept = ("do_resize", "size", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
    return {
        "image_processor_type": "SegformerImageProcessor",
        **{key: stated[key] for key in kept},
        "do_reduce_labels": False,
    }


def from_timm(pretrained: dict[str, Any], image_size: tuple[int, int]) -> Preprocessing:
    """Read timm's pretrained_cfg.

    Args:
        pretrained: its content.
        image_size: height and width of the model's pictures, where the content does not say.
    """
    crop = tuple(pretrained.get("input_size") or (3, *image_size))[-2:]
    ratio = float(pretrained.get("crop_pct") or 0.875)
    size = tuple(math.floor(side / ratio) for side in crop)
    mode = pretrained.get("crop_mode") or "center"
    if mode not in ("center", "squash"):
        raise UnknownNameError("crop_mode of timm", mode, ("center", "squash"))
    return Preprocessing(
        resize="exact" if mode == "squash" else "shortest_edge",
        size=cast(tuple[int, int], size),
        crop=cast(tuple[int, int], crop),
        crop_rounding="round",
        interpolation=_interpolation(pretrained.get("interpolation") or "bicubic"),
        mean=_channels(pretrained.get("mean", IMAGENET_MEAN)),
        std=_channels(pretrained.get("std", IMAGENET_STD)),
    )


def to_timm(preprocessing: Preprocessing, channels: int) -> dict[str, Any]:
    """The part of timm's pretrained_cfg that says how pictures are prepared.

    Raises:
        UsageError: timm has no words for it.
    """
    crop, size = preprocessing.crop or preprocessing.size, preprocessing.size
    # timm divides and rounds down again; half a pixel more keeps the quotient from falling just short.
    ratio = 1.0 if crop == size else crop[0] / (size[0] + 0.5)
    kept = (math.floor(crop[0] / ratio), math.floor(crop[1] / ratio)) == size
    if preprocessing.resize == "none" or preprocessing.longest is not None or not kept:
        raise UsageError(
            f"timm's layout cannot state a preprocessing that resizes to {size} ({preprocessing.resize}) and cuts {crop}. "
            "Use layout='vitral' or 'transformers'."
        )
    return {
        "input_size": [channels, *crop],
        "interpolation": preprocessing.interpolation,
        "crop_pct": ratio,
        "crop_mode": "squash" if preprocessing.resize == "exact" else "center",
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
    }


def _size(size: Any) -> tuple[str, tuple[int, int]]:
    """transformers' many ways to write a size: a number, a pair, or an object."""
    if isinstance(size, int | float):
        return "exact", (int(size), int(size))
    if isinstance(size, list | tuple) and len(size) == 2:
        return "exact", (int(size[0]), int(size[1]))
    if isinstance(size, dict) and "shortest_edge" in size:
        return "shortest_edge", (int(size["shortest_edge"]),) * 2
    if isinstance(size, dict) and {"height", "width"} <= set(size):
        return "exact", (int(size["height"]), int(size["width"]))
    raise CheckpointError(
        f"The preprocessor's size {size!r} is not understood; expected height and width, or shortest_edge."
    )


def _interpolation(name: Any) -> Interpolation:
    known = set(_RESAMPLE.values())
    found = _RESAMPLE.get(name) if isinstance(name, int) else {"random": "bicubic"}.get(name, name)
    if found not in known:
        raise UnknownNameError("interpolation", name, sorted(known))
    return cast(Interpolation, found)


def _channels(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in (values if isinstance(values, list | tuple) else [values] * 3))
