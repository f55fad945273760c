"""How pictures are prepared: what a folder says, as the peers' own processors read it from the same folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers as hf
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from timm.models import save_for_hf
from torch import Tensor

from tests.checkpoints.folders import vit_folder
from vitral.base.image import read_picture
from vitral.checkpoints.load import load_model
from vitral.checkpoints.preprocessing import detection, evaluation, from_timm, from_transformers, to_timm, to_transformers
from vitral.checkpoints.save import save_model
from vitral.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from vitral.errors import CheckpointError, UnknownNameError, UsageError
from vitral.models.catalogue import create_model


def picture(height: int, width: int) -> Image.Image:
    """Waves and noise: both smooth and rough enough for a filter to be told from another."""
    random = np.random.default_rng(height)
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 9) + np.cos(y / 7), np.sin((x + y) / 5), np.cos(x * y / 3000)], axis=-1)
    noisy = 127 + 50 * waves + random.normal(0, 25, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype("uint8"))


def ours(preprocessing: Preprocessing | None, image: Image.Image) -> Tensor:
    assert preprocessing is not None
    return preprocessing(read_picture(image))[0]


def levels(preprocessing: Preprocessing | None, came: Tensor, expected: Tensor) -> float:
    """The largest difference, in levels of 255."""
    assert preprocessing is not None
    assert came.shape == expected.shape
    deviation = torch.tensor(preprocessing.std).view(-1, 1, 1)
    return ((came - expected) * deviation / preprocessing.scale).abs().max().item()


# ---- transformers --------------------------------------------------------------------------------------------------

# name → (model type, content of preprocessor_config.json; None for no file)
PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit", {"image_processor_type": "ViTImageProcessor", "size": {"height": 64, "width": 64}}),
    "vit, fast": ("vit", {"image_processor_type": "ViTImageProcessorFast", "size": {"height": 64, "width": 48}}),
    "vit, the size a number": ("vit", {"image_processor_type": "ViTImageProcessor", "size": 64}),
    "vit, of before 2022": ("vit", {"feature_extractor_type": "ViTFeatureExtractor", "size": 64, "resample": 3}),
    "vit, nothing said": ("vit", {}),
    "vit, other numbers": (
        "vit",
        {
            "image_processor_type": "ViTImageProcessor",
            "size": {"height": 64, "width": 64},
            "image_mean": list(IMAGENET_MEAN),
            "image_std": list(IMAGENET_STD),
            "rescale_factor": 1 / 127.5,
        },
    ),
    "vit, neither rescaled nor normalised": (
        "vit",
        {"image_processor_type": "ViTImageProcessor", "size": 64, "do_rescale": False, "do_normalize": False},
    ),
    "deit": (
        "deit",
        {
            "image_processor_type": "DeiTImageProcessor",
            "size": {"height": 73, "width": 73},
            "crop_size": {"height": 64, "width": 64},
        },
    ),
    "deit, numbers": ("deit", {"feature_extractor_type": "DeiTFeatureExtractor", "size": 73, "crop_size": 64}),
    "deit without a crop": ("deit", {"image_processor_type": "DeiTImageProcessor", "size": 64, "do_center_crop": False}),
    "deit, the crop larger than the picture": (
        "deit",
        {
            "image_processor_type": "DeiTImageProcessor",
            "size": {"height": 40, "width": 40},
            "crop_size": {"height": 65, "width": 64},
        },
    ),
    "beit": ("beit", {"image_processor_type": "BeitImageProcessor", "size": {"height": 64, "width": 64}}),
    "beit with a crop": (
        "beit",
        {"feature_extractor_type": "BeitFeatureExtractor", "size": 70, "crop_size": 63, "do_center_crop": True},
    ),
    "bit": (
        "dinov2",
        {
            "image_processor_type": "BitImageProcessor",
            "size": {"shortest_edge": 72},
            "crop_size": {"height": 63, "width": 63},
        },
    ),
    "bit, only cropped": (
        "dinov2",
        {"image_processor_type": "BitImageProcessor", "do_resize": False, "crop_size": {"height": 63, "width": 63}},
    ),
    "bit without a crop": (
        "dinov2",
        {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 61}, "do_center_crop": False},
    ),
    "bit, the size a number": ("dinov2", {"image_processor_type": "BitImageProcessor", "size": 72, "crop_size": 63}),
    "clip": ("vit", {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 72}, "crop_size": 63}),
    "clip, of before 2022": ("vit", {"feature_extractor_type": "CLIPFeatureExtractor", "size": 72, "crop_size": 63}),
    "dinov3": ("dinov3_vit", {"image_processor_type": "DINOv3ViTImageProcessorFast", "size": {"height": 64, "width": 64}}),
}


def theirs(folder: Path, image: Image.Image) -> Tensor:
    processor = hf.AutoImageProcessor.from_pretrained(folder)
    return torch.as_tensor(np.asarray(processor(image, return_tensors="pt")["pixel_values"][0]), dtype=torch.float32)


def described(folder: Path, model_type: str, content: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("size", [(90, 131), (301, 180), (64, 67)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_pictures_are_prepared_as_transformers_does(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    model_type, content = PROCESSORS[name]
    expected = theirs(described(tmp_path, model_type, content), picture(*size))
    preprocessing = from_transformers(content, model_type, (224, 224))
    assert levels(preprocessing, ours(preprocessing, picture(*size)), expected) <= 1.01


@pytest.mark.parametrize("name", PROCESSORS)
def test_what_we_write_is_prepared_the_same_by_transformers(name: str, tmp_path: Path) -> None:
    model_type, content = PROCESSORS[name]
    before = theirs(described(tmp_path / "read", model_type, content), picture(90, 131))
    preprocessing = from_transformers(content, model_type, (224, 224))
    written = to_transformers(preprocessing)
    after = theirs(described(tmp_path / "written", model_type, written), picture(90, 131))
    assert levels(preprocessing, after, before) <= 1.01
    assert from_transformers(written, model_type, (224, 224)) == preprocessing


def test_a_folder_without_a_processor_is_read_at_the_models_size(tmp_path: Path) -> None:
    preprocessing = load_model(vit_folder(tmp_path)).record.preprocessing
    assert preprocessing is not None
    assert preprocessing.resize == "exact"
    assert preprocessing.size == (32, 32)
    assert preprocessing.crop is None
    assert (preprocessing.mean, preprocessing.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_a_saved_folder_is_prepared_by_transformers_as_by_us(tmp_path: Path) -> None:
    folder = vit_folder(tmp_path / "read")
    content = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}, "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    model = load_model(folder)
    written = save_model(model, tmp_path / "written", layout="transformers")
    preprocessing = model.record.preprocessing
    assert levels(preprocessing, ours(preprocessing, picture(70, 50)), theirs(written, picture(70, 50))) <= 1.01


@pytest.mark.parametrize("key", ["size", "crop_size"])
def test_a_size_that_is_not_understood_is_refused(key: str) -> None:
    with pytest.raises(CheckpointError, match=r"size .* is not understood; expected height and width, or shortest_edge"):
        from_transformers({key: {"longest_edge": 64}, "do_center_crop": True}, "vit", (64, 64))


def test_an_unknown_filter_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="Unknown interpolation 17"):
        from_transformers({"resample": 17}, "vit", (64, 64))


# ---- transformers' detectors ----------------------------------------------------------------------------------------

# name → (model type, processor, content of preprocessor_config.json)
DETECTORS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "detr": (
        "detr",
        "Detr",
        {"image_processor_type": "DetrImageProcessor", "size": {"shortest_edge": 80, "longest_edge": 133}},
    ),
    "detr, of before 2023": (
        "detr",
        "Detr",
        {"feature_extractor_type": "DetrFeatureExtractor", "size": 80, "max_size": 133, "format": "coco_detection"},
    ),
    "detr, a number alone": ("detr", "Detr", {"image_processor_type": "DetrImageProcessor", "size": 60}),
    "detr, other numbers": (
        "detr",
        "Detr",
        {
            "image_processor_type": "DetrImageProcessor",
            "size": {"height": 65, "width": 80},
            "image_mean": [0.5, 0.4, 0.3],
            "resample": 3,
            "do_pad": False,
        },
    ),
    "detr, not resized": ("detr", "Detr", {"image_processor_type": "DetrImageProcessor", "do_resize": False}),
    "deformable": (
        "deformable_detr",
        "DeformableDetr",
        {"image_processor_type": "DeformableDetrImageProcessor", "size": {"shortest_edge": 80, "longest_edge": 133}},
    ),
    "yolos": (
        "yolos",
        "Yolos",
        {"image_processor_type": "YolosImageProcessor", "size": {"shortest_edge": 80, "longest_edge": 133}},
    ),
    "rt-detr": (
        "rt_detr",
        "RTDetr",
        {"image_processor_type": "RTDetrImageProcessor", "size": {"height": 96, "width": 96}, "do_normalize": False},
    ),
    "rt-detr, the usual": ("rt_detr", "RTDetr", {"image_processor_type": "RTDetrImageProcessor"}),
    "detr, panoptic": (
        "detr",
        "Detr",
        {"image_processor_type": "DetrImageProcessor", "size": {"shortest_edge": 90, "longest_edge": 150}}
        | {"format": "coco_panoptic"},
    ),
    "segformer": (
        "segformer",
        "Segformer",
        {"image_processor_type": "SegformerImageProcessor", "size": {"height": 96, "width": 64}, "do_reduce_labels": True},
    ),
    "segformer, of before 2023": (
        "segformer",
        "Segformer",
        {"feature_extractor_type": "SegformerFeatureExtractor", "size": 64, "reduce_labels": True},
    ),
    "segformer, not resized": (
        "segformer",
        "Segformer",
        {"image_processor_type": "SegformerImageProcessor", "do_resize": False},
    ),
    "maskformer": (
        "maskformer",
        "MaskFormer",
        {"image_processor_type": "MaskFormerImageProcessor", "size": {"shortest_edge": 80, "longest_edge": 133}}
        | {"size_divisor": 32, "num_labels": 150, "ignore_index": 255, "do_reduce_labels": True},
    ),
    "maskformer, of a size already": (
        "maskformer",
        "MaskFormer",
        {"image_processor_type": "MaskFormerImageProcessor", "size": {"shortest_edge": 90, "longest_edge": 1333}},
    ),
    "maskformer, of before 2023": (
        "maskformer",
        "MaskFormer",
        {"feature_extractor_type": "MaskFormerFeatureExtractor", "size": 80, "max_size": 133, "size_divisor": 16},
    ),
    "mask2former, exactly": (
        "mask2former",
        "Mask2Former",
        {"image_processor_type": "Mask2FormerImageProcessor", "size": {"height": 70, "width": 90}},
    ),
    "mask2former, to no multiple": (
        "mask2former",
        "Mask2Former",
        {"image_processor_type": "Mask2FormerImageProcessor", "size": {"height": 70, "width": 90}, "size_divisor": 0},
    ),
    "mask2former": (
        "mask2former",
        "Mask2Former",
        {"image_processor_type": "Mask2FormerImageProcessor", "size": {"shortest_edge": 64, "longest_edge": 256}},
    ),
}


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("size", [(90, 131), (301, 180), (40, 167)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_detectors_see_pictures_as_in_transformers(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    model_type, processor, content = DETECTORS[name]
    expected = theirs(described(tmp_path / "read", model_type, content), picture(*size))
    preprocessing = from_transformers(content, model_type, (800, 1333))
    assert preprocessing is not None
    assert levels(preprocessing, ours(preprocessing, picture(*size)), expected) <= 1.01
    written = to_transformers(preprocessing, processor)
    after = theirs(described(tmp_path / "written", model_type, written), picture(*size))
    assert levels(preprocessing, after, expected) <= 1.01
    assert from_transformers(written, model_type, (800, 1333)) == preprocessing


def test_a_detector_without_a_processor_is_read_as_usual() -> None:
    usual = from_transformers({}, "detr", (800, 1333))
    assert usual == replace(detection(), resizer="torch")
    assert from_transformers({}, "yolos", (512, 864)) == replace(detection(multiple=16), resizer="torch")
    square = from_transformers({}, "rt_detr", (320, 320))
    assert square is not None
    assert (square.resize, square.size, square.mean, square.scale) == ("exact", (640, 640), (0.0,) * 3, 1 / 255)
    assert from_transformers({"pad_size": {"height": 9, "width": 9}}, "detr", (800, 1333)) is None
    segmenter = from_transformers({}, "segformer", (320, 480))
    assert segmenter is not None
    assert (segmenter.resize, segmenter.size, segmenter.mean) == ("exact", (320, 480), IMAGENET_MEAN)
    for kind in ("maskformer", "mask2former"):
        assert from_transformers({}, kind, (64, 64)) == replace(detection(multiple=32), rounding="up", resizer="torch")
        assert from_transformers({"pad_size": {"height": 9, "width": 9}}, kind, (64, 64)) is None


@pytest.mark.parametrize(
    ("processor", "prepared", "told"),
    [
        ("MaskFormer", {"multiple": 16}, "takes what remains of 16 pixels off sides"),
        ("Detr", {"multiple": 32, "rounding": "up"}, "makes sides multiples of 32, rounding up"),
        ("Yolos", {"multiple": 16, "rounding": "up"}, "makes sides multiples of 16, rounding up"),
        ("Segformer", {}, "all pictures of one shape, and cuts none"),
    ],
)
def test_what_a_segmenters_processor_cannot_do_is_refused(processor: Any, prepared: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        to_transformers(replace(detection(), **prepared), processor)


def test_what_a_detectors_processor_cannot_state_is_refused() -> None:
    limited = detection(80, 133)
    with pytest.raises(UsageError, match="only the processors of detectors limit the longer side, here to 133"):
        to_transformers(limited)
    with pytest.raises(UsageError, match=r"DetrImageProcessor of transformers cannot state .* multiples of 16"):
        to_transformers(replace(limited, multiple=16), "Detr")
    with pytest.raises(UsageError, match="multiples of 1"):
        to_transformers(limited, "Yolos")
    with pytest.raises(UsageError, match=r"cuts \(9, 9\) and keeps the shape without a limit"):
        to_transformers(evaluation((9, 9), resize=10), "Detr")
    with pytest.raises(UsageError, match="timm's layout cannot state"):
        to_timm(limited, 3)


# ---- timm ----------------------------------------------------------------------------------------------------------

CONFIGS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "crop_pct": {"crop_pct": 0.9},
    "another crop_pct": {"crop_pct": 0.95, "interpolation": "bilinear"},
    "no margin": {"crop_pct": 1.0},
    "squash": {"crop_pct": 1.0, "crop_mode": "squash"},
    "squash and crop": {"crop_pct": 0.9, "crop_mode": "squash"},
    "imagenet": {"mean": IMAGENET_MEAN, "std": IMAGENET_STD},
    "nearest": {"interpolation": "nearest"},
}


def timm_model(folder: Path, config: dict[str, Any]) -> tuple[Any, Path]:
    sizes = {"img_size": 64, "patch_size": 16, "depth": 1, "embed_dim": 64, "num_heads": 1, "num_classes": 5}
    told = {"input_size": (3, 64, 64), **config}
    model = timm.create_model("vit_tiny_patch16_224", **sizes, pretrained_cfg_overlay=told)
    save_for_hf(model, folder, model_args=sizes)
    return model, folder


def timms(model: Any, image: Image.Image) -> Tensor:
    return create_transform(**resolve_model_data_config(model), is_training=False)(image)


@pytest.mark.parametrize("name", CONFIGS)
def test_pictures_are_prepared_as_timm_does_and_stay_so_when_written(name: str, tmp_path: Path) -> None:
    model, folder = timm_model(tmp_path / "read", CONFIGS[name])
    mine = load_model(folder)
    preprocessing = mine.record.preprocessing
    written = save_model(mine, tmp_path / "written", layout="timm")
    again = timm.create_model(f"local-dir:{written}", pretrained=True)
    for size in ((90, 131), (301, 180), (64, 64)):
        expected = timms(model, picture(*size))
        assert levels(preprocessing, ours(preprocessing, picture(*size)), expected) <= 0.01, "Pillow's, to the last bit"
        assert levels(preprocessing, timms(again, picture(*size)), expected) <= 0.01
    assert load_model(written).record.preprocessing == preprocessing


@pytest.mark.parametrize("side", [64, 224, 256, 384, 518])
@pytest.mark.parametrize("ratio", [0.875, 0.9, 0.95, 0.96, 0.97, 1.0])
def test_a_crop_ratio_survives_being_written(side: int, ratio: float) -> None:
    read = from_timm({"input_size": [3, side, side], "crop_pct": ratio}, (side, side))
    assert from_timm(to_timm(read, 3), (side, side)) == read


def test_oblong_squashed_pictures_survive_being_written() -> None:
    told = {"input_size": [3, 48, 80], "crop_pct": 1.0, "crop_mode": "squash"}
    read = from_timm(told, (1, 1))
    assert (read.resize, read.size, read.crop) == ("exact", (48, 80), (48, 80))
    assert from_timm(to_timm(read, 3), (1, 1)) == read


def test_an_exact_resize_with_a_crop_of_another_shape_is_refused() -> None:
    preprocessing = Preprocessing(resize="exact", size=(100, 60), crop=(50, 50), crop_rounding="round")
    with pytest.raises(UsageError, match="cannot state"):
        to_timm(preprocessing, 3)


def test_pictures_that_are_not_resized_are_refused() -> None:
    preprocessing = Preprocessing(resize="none", size=(64, 64), crop=(64, 64), crop_rounding="round")
    with pytest.raises(UsageError, match="cannot state"):
        to_timm(preprocessing, 3)


def test_the_flat_config_of_timms_first_years_is_read(tmp_path: Path) -> None:
    model, folder = timm_model(tmp_path, {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "crop_pct": 0.8})
    told = json.loads((folder / "config.json").read_text())
    flat = {**told.pop("pretrained_cfg"), "architecture": told["architecture"], "num_classes": 5}
    (folder / "config.json").write_text(json.dumps(flat))
    preprocessing = load_model(folder).record.preprocessing
    expected = timms(model, picture(90, 131))
    assert levels(preprocessing, ours(preprocessing, picture(90, 131)), expected) <= 0.01


def test_without_a_config_deits_evaluation_is_taken(tmp_path: Path) -> None:
    model = create_model("vit_ti16", width=64, depth=1, heads=1, mlp_width=64, image_size=224, num_classes=5)
    folder = save_model(model, tmp_path, layout="timm")
    (folder / "config.json").unlink()
    preprocessing = load_model(folder).record.preprocessing
    # DeiT's and MAE's datasets.py: Resize(int(256 / 224 * input_size), bicubic), CenterCrop(input_size), ImageNet's mean.
    assert preprocessing == evaluation((224, 224), resize=256)
    assert (preprocessing.size, preprocessing.crop, preprocessing.mean) == ((256, 256), (224, 224), IMAGENET_MEAN)
    assert (preprocessing.resize, preprocessing.interpolation) == ("shortest_edge", "bicubic")
