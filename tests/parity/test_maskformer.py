"""Checkpoints of MaskFormer: the same numbers as transformers, and back."""

from __future__ import annotations

import json
import re
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
from vitral.checkpoints.maskformer import transformers
from vitral.checkpoints.save import save_model
from vitral.errors import CheckpointError, UsageError
from vitral.models.backbones.resnet import ResNetConfig
from vitral.models.segmentation.maskformer import VARIANTS, MaskFormer, MaskFormerConfig

DECODER: dict[str, Any] = {
    "d_model": 32,
    "decoder_layers": 3,
    "decoder_ffn_dim": 24,
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "num_queries": 7,
    "dropout": 0.0,
}
SMALL: dict[str, Any] = {"fpn_feature_size": 32, "mask_feature_size": 24, "num_labels": 5}
STAGES = ["stage1", "stage2", "stage3", "stage4"]


def swin() -> Any:
    """Anew each time, as transformers writes into it."""
    return hf.SwinConfig(
        embed_dim=8, depths=[1, 2, 1, 2], num_heads=[1, 2, 2, 2], window_size=3, image_size=64, out_features=STAGES
    )


def resnet() -> Any:
    """Whose last map is as wide as the decoder, which then has no projection."""
    return hf.ResNetConfig(
        embedding_size=8, hidden_sizes=[16, 16, 24, 32], depths=[1, 1, 2, 1], layer_type="basic", out_features=STAGES
    )


@dataclass
class Case:
    theirs: Any
    ours: MaskFormer
    folder: Path


def load(source: Path) -> MaskFormer:
    model = load_model(source)
    assert isinstance(model, MaskFormer)
    return model


def peer(backbone: Any, **options: Any) -> Any:
    config = hf.MaskFormerConfig(backbone_config=backbone, decoder_config=hf.DetrConfig(**DECODER), **{**SMALL, **options})
    return stirred(hf.MaskFormerForInstanceSegmentation(config))  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=["swin", "resnet"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    theirs, folder = peer(swin() if request.param == "swin" else resnet()), tmp_path_factory.mktemp("theirs")
    theirs.save_pretrained(folder)
    return Case(theirs, load(folder), folder)


def assert_same_output(ours: MaskFormer, theirs: Any, pixels: Tensor, mask: Tensor | None = None) -> None:
    came = theirs(pixels, pixel_mask=None if mask is None else (~mask).long())
    found = ours(pixels, mask)
    assert_same(found.logits, came.class_queries_logits)
    assert_same(found.masks, came.masks_queries_logits)
    assert_same(found.queries, came.transformer_decoder_last_hidden_state)
    assert found.auxiliary == ()
    assert found.canvas is None


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
def test_what_is_said_on_the_way_is_the_same(case: Case) -> None:
    pixels, theirs, held = pictures(64, 75), case.theirs, list[Tensor]()
    decoder = theirs.model.transformer_module.decoder
    hooks = [layer.register_forward_hook(lambda *told: held.append(told[2])) for layer in decoder.layers]
    features = theirs.model(pixels).pixel_decoder_last_hidden_state
    for hook in hooks:
        hook.remove()
    for one, other in zip(case.ours.layer_outputs(pixels), held, strict=True):
        normed = decoder.layernorm(other)
        assert_same(one.logits, theirs.class_predictor(normed))
        assert_same(one.masks, torch.einsum("bqc,bcyx->bqyx", theirs.mask_embedder(normed), features))


@torch.no_grad()
def test_transformers_loads_what_we_write(case: Case, tmp_path: Path) -> None:
    save_model(case.ours, tmp_path, layout="transformers")
    theirs: Any = hf.MaskFormerForInstanceSegmentation.from_pretrained(tmp_path)
    pixels = pictures(64, 75)
    assert_same_output(case.ours, theirs.eval(), pixels)
    again = load(tmp_path)
    assert again.config == case.ours.config
    assert torch.equal(again(pixels).masks, case.ours(pixels).masks)
    wrote, came = load_file(tmp_path / "model.safetensors"), load_file(case.folder / "model.safetensors")
    for name, tensor in wrote.items():
        assert torch.equal(tensor, came[name])
    # What its losses weigh classes by, a norm that only a classifier reads, and what can be computed.
    left = re.compile(r"criterion\..*|.*encoder\.model\.layernorm\..*|.*relative_position_index")
    assert all(left.fullmatch(name) for name in came.keys() - wrote.keys())


@torch.no_grad()
def test_names_in_memory_and_older_words_are_read(case: Case, tmp_path: Path) -> None:
    state = {name: one.contiguous() for name, one in case.theirs.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    config = json.loads((case.folder / "config.json").read_text())
    if "swin" in config["backbone_config"]["model_type"]:  # as published
        config["backbone_config"] |= {"model_type": "swin", "out_features": ["stage4"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    pixels = pictures(64, 75)
    assert torch.equal(load(tmp_path)(pixels).masks, case.ours(pixels).masks)


@pytest.mark.parametrize("name", ["maskformer_r50", "maskformer_swin_ti", "maskformer_swin_l"])
def test_the_catalogues_networks_are_known_by_name(name: str) -> None:
    config = replace(VARIANTS[name], num_classes=7, queries=30, image_size=(320, 320))
    assert transformers.catalogue_name(config) == name
    assert transformers.catalogue_name(replace(config, width=512)) is None


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"fpn_feature_size": 64}, "fpn_feature_size=64 and d_model=32"),
        ({"decoder_config": {**DECODER, "auxiliary_loss": True}}, "auxiliary_loss=True of the decoder"),
        ({"decoder_config": {**DECODER, "activation_function": "gelu"}}, "activation_function='gelu'"),
        ({"decoder_config": {**DECODER, "decoder_layers": 2}}, r"decoder\.layers\.2"),
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


def test_what_transformers_cannot_state_is_refused(tmp_path: Path) -> None:
    tiny = ResNetConfig(block="basic", stem_width=8, stage_channels=(8, 8), depths=(1, 1))
    config = MaskFormerConfig(backbone=tiny, width=16, mask_width=8, decoder_depth=1, heads=4, mlp_width=8)
    with pytest.raises(UsageError, match="a width of 16, for norms of 32 groups"):
        save_model(MaskFormer(config), tmp_path, layout="transformers")
    assert not list(tmp_path.iterdir())
