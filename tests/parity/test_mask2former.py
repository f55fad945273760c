"""Checkpoints of Mask2Former: the same numbers as transformers, and back."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.models.harness import stirred
from tests.parity.peers import assert_same, pictures
from vitral.checkpoints.load import load_model
from vitral.checkpoints.mask2former import transformers
from vitral.checkpoints.save import save_model
from vitral.errors import CheckpointError, UsageError
from vitral.models.backbones.resnet import ResNetConfig
from vitral.models.backbones.swin import SwinConfig
from vitral.models.catalogue import create_model
from vitral.models.segmentation.mask2former import VARIANTS, Mask2Former, Mask2FormerConfig

SMALL: dict[str, Any] = {
    "feature_size": 32,
    "mask_feature_size": 24,
    "hidden_dim": 32,
    "encoder_feedforward_dim": 24,
    "dim_feedforward": 40,
    "encoder_layers": 2,
    "decoder_layers": 6,
    "num_queries": 7,
    "num_attention_heads": 4,
    "num_labels": 5,
}
STAGES = ["stage1", "stage2", "stage3", "stage4"]
SWIN = hf.SwinConfig(
    embed_dim=8, depths=[1, 2, 1, 2], num_heads=[1, 2, 2, 2], window_size=3, image_size=64, out_features=STAGES
)
RESNET = hf.ResNetConfig(
    embedding_size=8, hidden_sizes=[16, 16, 24, 32], depths=[1, 1, 2, 1], layer_type="basic", out_features=STAGES
)


@dataclass
class Case:
    theirs: Any
    ours: Mask2Former
    folder: Path


def load(source: Path) -> Mask2Former:
    model = load_model(source)
    assert isinstance(model, Mask2Former)
    return model


def peer(backbone: Any, **options: Any) -> Any:
    config = hf.Mask2FormerConfig(backbone_config=backbone, **{**SMALL, **options})
    return stirred(hf.Mask2FormerForUniversalSegmentation(config))  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=["swin", "resnet"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    theirs, folder = peer(SWIN if request.param == "swin" else RESNET), tmp_path_factory.mktemp("theirs")
    theirs.save_pretrained(folder)
    return Case(theirs, load(folder), folder)


def assert_same_output(ours: Mask2Former, theirs: Any, pixels: Tensor, mask: Tensor | None = None) -> None:
    came = theirs(pixels, pixel_mask=None if mask is None else (~mask).long(), output_auxiliary_logits=True)
    found = ours(pixels, mask)
    assert_same(found.logits, came.class_queries_logits)
    assert_same(found.masks, came.masks_queries_logits)
    assert found.auxiliary == ()
    every = ours.layer_outputs(pixels)
    assert len(every) == ours.config.decoder_depth + 1
    for one, other in zip(every[:-1], came.auxiliary_logits, strict=True):
        assert_same(one.logits, other["class_queries_logits"])
        assert_same(one.masks, other["masks_queries_logits"])


@torch.no_grad()
@pytest.mark.parametrize("size", [(128, 96), (97, 131), (64, 75)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_the_same_numbers(case: Case, size: tuple[int, int]) -> None:
    assert_same_output(case.ours, case.theirs, pictures(*size, count=2))


@torch.no_grad()
def test_what_fills_pictures_up_is_seen_as_published(case: Case) -> None:
    pixels, mask = pictures(96, 110, count=2), torch.zeros(2, 96, 110, dtype=torch.bool)
    mask[0, :, 70:] = mask[1, 50:] = True
    pixels[mask[:, None].expand_as(pixels)] = 0.0
    assert_same_output(case.ours, case.theirs, pixels, mask)


@torch.no_grad()
def test_transformers_loads_what_we_write(case: Case, tmp_path: Path) -> None:
    save_model(case.ours, tmp_path, layout="transformers")
    theirs: Any = hf.Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path)
    pixels = pictures(64, 75)
    assert_same_output(case.ours, theirs.eval(), pixels)
    again = load(tmp_path)
    assert again.config == case.ours.config
    assert torch.equal(again(pixels).masks, case.ours(pixels).masks)
    wrote, came = load_file(tmp_path / "model.safetensors"), load_file(case.folder / "model.safetensors")
    for name, tensor in wrote.items():
        assert torch.equal(tensor, came[name])
    # What its losses weigh classes by, and a norm that only a classifier reads.
    assert all(name.startswith("criterion.") or ".layernorm." in name for name in came.keys() - wrote.keys())


@torch.no_grad()
def test_names_in_memory_are_read(case: Case, tmp_path: Path) -> None:
    save_file({name: one.contiguous() for name, one in case.theirs.state_dict().items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((case.folder / "config.json").read_text())
    pixels = pictures(64, 75)
    assert torch.equal(load(tmp_path)(pixels).masks, case.ours(pixels).masks)


def test_what_travels_with_the_weights(case: Case) -> None:
    config, record = case.ours.config, case.ours.record
    assert (config.num_classes, config.queries, config.decoder_depth, config.canvas) == (5, 7, 5, (384, 384))
    assert isinstance(config.backbone, SwinConfig | ResNetConfig)
    assert record.layout == "transformers"
    assert record.labels == tuple(f"LABEL_{place}" for place in range(5))


@pytest.mark.parametrize("name", ["mask2former_r50", "mask2former_swin_ti", "mask2former_swin_l"])
def test_the_catalogues_networks_are_known_by_name(name: str) -> None:
    config = replace(VARIANTS[name], num_classes=7, queries=30, image_size=(320, 320))
    assert transformers.catalogue_name(config) == name
    assert transformers.catalogue_name(replace(config, width=512)) is None


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"pre_norm": True}, "pre_norm=True; Mask2Former was published with False"),
        ({"activation_function": "gelu"}, "activation_function='gelu'"),
        ({"feature_size": 64}, "feature_size=64 and hidden_dim=32"),
        ({"feature_strides": [8, 16, 32]}, r"strides \[8, 16, 32\]"),
        ({"decoder_layers": 4}, r"decoder\.layers\.3"),
        ({"hidden_dim": "wide", "feature_size": "wide"}, "a value of an unexpected kind"),
        ({"backbone_config": {"model_type": "dinov2"}}, "'dinov2'"),
    ],
)
def test_files_of_another_network_are_refused(case: Case, wrong: dict[str, Any], told: str, tmp_path: Path) -> None:
    if isinstance(case.ours.config.backbone, ResNetConfig):
        pytest.skip("One backbone suffices.")
    (tmp_path / "model.safetensors").symlink_to(case.folder / "model.safetensors")
    config = json.loads((case.folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **wrong}))
    with pytest.raises(CheckpointError, match=told):
        load_model(tmp_path)


def test_files_that_lack_a_part_are_refused(case: Case, tmp_path: Path) -> None:
    tensors = load_file(case.folder / "model.safetensors")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text((case.folder / "config.json").read_text())
    save_file({n: t for n, t in tensors.items() if not n.startswith("class_")}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="without the layer that reads classes"):
        load_model(tmp_path)


SMALLEST = Mask2FormerConfig(
    image_size=(64, 64),
    num_classes=3,
    backbone=ResNetConfig(block="basic", stem_width=8, stage_channels=(8, 8, 8, 8), depths=(1, 1, 1, 1)),
    width=32,
    mask_width=8,
    encoder_depth=1,
    encoder_mlp_width=8,
    decoder_depth=1,
    heads=4,
    mlp_width=8,
)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"width": 16}, "a width of 16, for norms of 32 groups"),
        ({"encoder_points": 3}, "3 places that a head looks at"),
        ({"backbone": replace(SMALLEST.backbone, stage_channels=(8, 8, 8), depths=(1, 1, 1))}, "a backbone of 3 stages"),
    ],
)
def test_what_transformers_cannot_state_is_refused(changed: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=told):
        save_model(Mask2Former(replace(SMALLEST, **changed)), tmp_path, layout="transformers")
    assert not list(tmp_path.iterdir())


def test_how_pictures_are_prepared_travels(tmp_path: Path) -> None:
    model = create_model("mask2former_r50", 3, **{name: getattr(SMALLEST, name) for name in ("image_size", "backbone")})
    assert model.record.preprocessing is not None
    save_model(model, tmp_path, layout="transformers")
    again = load(tmp_path)
    assert again.config.image_size == (64, 64)
    assert again.record.preprocessing is not None
    assert again.record.preprocessing.input_size == (64, 64)
    processor: Any = hf.AutoImageProcessor.from_pretrained(tmp_path)
    assert type(processor).__name__.startswith("Mask2Former")
