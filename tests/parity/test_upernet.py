"""UPerNet against transformers: the same numbers, there and back."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.models.harness import stirred
from tests.parity.peers import assert_same, pictures
from vitral.checkpoints.load import load_model
from vitral.checkpoints.save import save_model
from vitral.checkpoints.upernet.transformers import _name
from vitral.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from vitral.errors import CheckpointError, MismatchError, UsageError
from vitral.models.backbones.pvt import PVTConfig
from vitral.models.catalogue import CATALOGUE, configured
from vitral.models.segmentation.upernet import UPerNet, UPerNetConfig

STAGES = ["stage1", "stage2", "stage3", "stage4"]
SWIN: dict[str, Any] = {
    "embed_dim": 8,
    "depths": [1, 2, 2, 1],
    "num_heads": [1, 2, 2, 4],
    "window_size": 4,
    "image_size": 64,
    "out_features": STAGES,
}
RESNET: dict[str, Any] = {
    "embedding_size": 8,
    "hidden_sizes": [16, 16, 24, 32],
    "depths": [1, 2, 1, 1],
    "out_features": STAGES,
}
HEAD: dict[str, Any] = {"hidden_size": 16, "auxiliary_channels": 12, "num_labels": 5}
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "swin": (hf.SwinConfig(**SWIN), {}),
    "swin, joined": (
        hf.SwinConfig(**SWIN | {"qkv_bias": False, "hidden_act": "relu"}),
        {"auxiliary_num_convs": 2, "auxiliary_concat_input": True, "pool_scales": [1, 3]},
    ),
    "resnet": (hf.ResNetConfig(**RESNET), {}),
    "resnet, alone": (
        hf.ResNetConfig(**RESNET | {"layer_type": "basic", "hidden_sizes": [8, 12, 16, 24]}),
        {"use_auxiliary_head": False},
    ),
}
# What SegformerImageProcessor writes for the published files.
PROCESSOR = {
    "image_processor_type": "SegformerImageProcessor",
    "do_reduce_labels": True,
    "size": {"height": 96, "width": 128},
    "resample": 2,
    "image_mean": list(IMAGENET_MEAN),
    "image_std": list(IMAGENET_STD),
}


class Case(NamedTuple):
    theirs: Any
    ours: UPerNet
    folder: Path


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    backbone, options = CASES[request.param]
    torch.manual_seed(0)
    theirs: Any = stirred(hf.UperNetForSemanticSegmentation(hf.UperNetConfig(backbone_config=backbone, **HEAD, **options)))
    folder = tmp_path_factory.mktemp("theirs")
    theirs.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    ours = load_model(folder)
    assert isinstance(ours, UPerNet)
    return Case(theirs, ours, folder)


def enlarged(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 64), (61, 83), (150, 99)], ids=str)
def test_the_same_numbers(case: Case, size: tuple[int, int]) -> None:
    pixels = pictures(*size, count=2)
    assert_same(enlarged(case.ours(pixels).logits, size), case.theirs(pixels).logits)


@torch.no_grad()
def test_the_second_head_has_the_same_numbers(case: Case) -> None:
    if case.theirs.auxiliary_head is None:
        assert case.ours.auxiliary is None
        return
    maps = case.ours.trunk(pictures(61, 83)).maps
    features = case.theirs.backbone(pictures(61, 83)).feature_maps
    for one, other in zip(maps, features, strict=True):
        assert_same(one, other)
    assert case.ours.auxiliary is not None
    assert_same(case.ours.auxiliary(maps[2]), case.theirs.auxiliary_head(features))


def test_what_travels_with_the_weights(case: Case) -> None:
    record = case.ours.record
    assert record.layout == "transformers"
    assert record.labels == tuple(f"LABEL_{index}" for index in range(5))
    assert case.ours.config.image_size == case.ours.config.backbone.image_size == (96, 128)
    prepared = record.preprocessing
    assert prepared is not None
    assert (prepared.resize, prepared.size, prepared.interpolation) == ("exact", (96, 128), "bilinear")
    assert (prepared.mean, prepared.std) == (IMAGENET_MEAN, IMAGENET_STD)


@torch.no_grad()
def test_what_we_write_is_read_by_transformers_and_by_us(case: Case, tmp_path: Path) -> None:
    save_model(case.ours, tmp_path, layout="transformers")
    theirs, told = hf.UperNetForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert {name for name in told["missing_keys"] if "swin.layernorm" not in name} == set()
    assert not told["unexpected_keys"]
    assert not told["mismatched_keys"]
    pixels = pictures(61, 83)
    assert_same(theirs.eval()(pixels).logits, case.theirs(pixels).logits, 1e-6)
    again = load_model(tmp_path)
    assert again.config == case.ours.config
    assert again.record.labels == case.ours.record.labels
    assert again.record.preprocessing == case.ours.record.preprocessing
    assert torch.equal(again(pixels).logits, case.ours(pixels).logits)
    processor = hf.AutoImageProcessor.from_pretrained(tmp_path)
    assert type(processor).__name__.startswith("SegformerImageProcessor")
    assert dict(processor.size) == {"height": 96, "width": 128}


def test_names_are_those_of_the_published_files(case: Case, tmp_path: Path) -> None:
    save_model(case.ours, tmp_path, layout="transformers")
    names = set(load_file(tmp_path / "model.safetensors"))
    if hasattr(case.ours.config.backbone, "widths"):
        # Of openmmlab/upernet-swin-tiny.
        published = (
            r"backbone\.embeddings\.(norm|patch_embeddings\.projection)\.(weight|bias)"
            r"|backbone\.encoder\.layers\.\d\.blocks\.\d+\.attention\.self\.(query|key|value)\.(weight|bias)"
            r"|backbone\.encoder\.layers\.\d\.blocks\.\d+\.attention\.self\.relative_position_bias_table"
            r"|backbone\.encoder\.layers\.\d\.blocks\.\d+\.(attention\.output|intermediate|output)\.dense\.(weight|bias)"
            r"|backbone\.encoder\.layers\.\d\.blocks\.\d+\.layernorm_(before|after)\.(weight|bias)"
            r"|backbone\.encoder\.layers\.\d\.downsample\.(norm\.weight|norm\.bias|reduction\.weight)"
            r"|backbone\.hidden_states_norms\.stage[1-4]\.(weight|bias)"
            r"|(decode_head|auxiliary_head)\..*"
        )
        assert [name for name in sorted(names) if not re.fullmatch(published, name)] == []
    ours = {name for name in names if not name.startswith("backbone.")}
    assert ours == {name for name in case.theirs.state_dict() if not name.startswith("backbone.")}


@torch.no_grad()
def test_names_in_memory_and_pickles_are_read(case: Case, tmp_path: Path) -> None:
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((case.folder / name).read_bytes())
    state = case.theirs.state_dict() | {
        "backbone.encoder.layers.0.blocks.0.attention.self.relative_position_index": torch.ones(1)
    }
    if not hasattr(case.ours.config.backbone, "widths"):
        state = case.theirs.state_dict()
    pixels = pictures(61, 83)
    for name in ("pytorch_model.bin", "model.safetensors"):
        if name.endswith("bin"):
            torch.save(state, tmp_path / name)
        else:
            save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / name)
        again = load_model(tmp_path)
        assert again.config == case.ours.config
        assert torch.equal(again(pixels).logits, case.ours(pixels).logits)
        (tmp_path / name).unlink()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (
            {"backbone_config": {"model_type": "convnext"}},
            "a backbone of model_type 'convnext'; those of 'swin' and 'resnet'",
        ),
        ({"backbone_config": None, "backbone": "resnet50"}, r"model_type None \('resnet50'\)"),
        (
            {"backbone_config": {**SWIN, "model_type": "swin", "out_features": ["stage4"]}},
            r"maps \['stage4'\]; those of all",
        ),
        ({"backbone_config": {**SWIN, "model_type": "swin", "use_absolute_embeddings": True}}, "absolute positions"),
        ({"backbone_config": {**RESNET, "model_type": "resnet", "hidden_act": "gelu"}}, "hidden_act 'gelu'"),
        ({"auxiliary_in_channels": 7}, "reads 7 channels; the map of the backbone has 32"),
        ({"auxiliary_num_convs": 0}, "a second head of no convolutions"),
        ({"hidden_size": "wide"}, "a value of an unexpected kind"),
    ],
)
def test_files_of_another_network_are_refused(wrong: dict[str, Any], told: str, tmp_path: Path) -> None:
    theirs = hf.UperNetForSemanticSegmentation(hf.UperNetConfig(backbone_config=hf.SwinConfig(**SWIN), **HEAD))
    theirs.save_pretrained(tmp_path)
    described = json.loads((tmp_path / "config.json").read_text()) | wrong
    (tmp_path / "config.json").write_text(json.dumps(described))
    with pytest.raises(CheckpointError, match=told):
        load_model(tmp_path)


def test_nothing_may_be_missing_and_config_json_must_be_there(case: Case, tmp_path: Path) -> None:
    state = load_file(case.folder / "model.safetensors")
    path = tmp_path / "model.safetensors"
    save_file(state, path)
    with pytest.raises(CheckpointError, match=r"no config\.json beside it"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_bytes((case.folder / "config.json").read_bytes())
    lost = "decode_head.fpn_convs.1.conv.weight"
    save_file({name: tensor for name, tensor in state.items() if name != lost} | {"decode_head.more": torch.ones(2)}, path)
    with pytest.raises(MismatchError) as caught:
        load_model(tmp_path)
    assert [name for name, _ in caught.value.missing] == [lost]
    assert [name for name, _ in caught.value.unexpected] == ["decode_head.more"]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"backbone.shift_rule": "each_side"}, "no shifts by the rule 'each_side'"),
        ({"backbone.windows": ((4, 4),) * 3 + ((2, 2),)}, "no windows of"),
        ({"backbone.version": 2}, "a SwinConfig came|no version 2"),
        ({"backbone": PVTConfig(widths=(8, 16, 24, 32), heads=(1, 2, 3, 4))}, "a PVTConfig came"),
        ({"auxiliary_level": 1}, "a second head that reads map 1"),
    ],
)
def test_what_transformers_does_not_have_is_not_written(changed: dict[str, Any], told: str, tmp_path: Path) -> None:
    small = {"widths": (8, 16, 32, 64), "depths": (1, 1, 1, 1), "heads": (1, 2, 2, 4), "windows": ((4, 4),) * 4}
    base = configured(CATALOGUE["upernet_swin_t"].config, {f"backbone.{name}": value for name, value in small.items()})
    model = UPerNet(configured(base, {"width": 8, "auxiliary_width": 8, **changed}))
    with pytest.raises(UsageError, match=told):
        save_model(model, tmp_path, layout="transformers")
    assert not list(tmp_path.iterdir())


def test_published_networks_are_known_by_their_names(tmp_path: Path) -> None:
    """The config.json of openmmlab/upernet-swin-tiny names the network of the catalogue, and tensors of its shapes fit."""
    config = hf.UperNetConfig(backbone_config=hf.SwinConfig(out_features=STAGES), num_labels=150, auxiliary_in_channels=384)
    with torch.device("meta"):
        theirs = hf.UperNetForSemanticSegmentation(config)
        ours = UPerNet(CATALOGUE["upernet_swin_t"].config)
    count = sum(one.numel() for name, one in theirs.named_parameters() if "swin.layernorm" not in name)
    assert count == sum(one.numel() for one in ours.parameters())
    assert _name(UPerNetConfig(num_classes=19, image_size=(64, 64))) == "upernet_swin_t"
