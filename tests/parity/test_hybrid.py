"""Hybrids of timm and of Google's: the same numbers at any size, and what we write is read by timm."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.layers import HybridEmbed, StdConv2dSame
from timm.models import save_for_hf
from timm.models._hub import save_config_for_hf
from timm.models.resnetv2 import ResNetV2
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tests.parity.peers import assert_same, bits, pictures, randomised
from vitral.checkpoints.files import Files
from vitral.checkpoints.hybrid.timm import LAYOUT
from vitral.checkpoints.load import load_model
from vitral.checkpoints.save import save_model
from vitral.checkpoints.table import Row
from vitral.errors import CheckpointError, UsageError
from vitral.models.backbones.hybrid import HybridViT
from vitral.models.catalogue import create_model

SMALL: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 7}
SIZES = [(64, 64), (61, 43), (75, 130)]


def small(depths: tuple[int, ...], patch: int = 1, size: int | tuple[int, int] = 64, **options: Any) -> nn.Module:
    """timm's own parts with a narrow trunk, which no name of timm's has."""
    trunk = ResNetV2(
        layers=depths,
        channels=tuple(128 * 2**stage for stage in range(len(depths))),
        stem_chs=32,
        num_classes=0,
        global_pool="",
        preact=False,
        stem_type="same",
        conv_layer=partial(StdConv2dSame, eps=1e-8),
    )
    embed = partial(HybridEmbed, backbone=trunk)
    made = VisionTransformer(
        img_size=size, patch_size=patch, embed_layer=embed, dynamic_img_size=True, **{**SMALL, "num_heads": 2, **options}
    )
    return randomised(made)


def loaded(source: str | Path, **options: Any) -> HybridViT:
    model = load_model(source, **options)
    assert isinstance(model, HybridViT)
    return model


def assert_same_output(ours: HybridViT, theirs: nn.Module, sizes: list[tuple[int, int]]) -> None:
    for size in sizes:
        pixels = pictures(*size)
        out = ours(pixels)
        assert_same(out.tokens, theirs.forward_features(pixels))
        assert_same(out.logits, theirs(pixels))


@torch.no_grad()
@pytest.mark.parametrize(
    ("depths", "patch", "size"), [((1, 2, 1), 1, 64), ((1, 1, 1, 1), 1, 96), ((2, 1), 2, (48, 80))], ids=str
)
def test_the_same_numbers_at_any_size(depths: tuple[int, ...], patch: int, size: Any, tmp_path: Path) -> None:
    theirs = small(depths, patch, size)
    torch.save(theirs.state_dict(), tmp_path / "hybrid.pth")
    stride = 4 * 2 ** (len(depths) - 1) * patch
    options = {"trunk_depths": depths, "trunk_width": 32, "patch_size": stride, "image_size": size}
    named = create_model("r26_vit_s32", width=32, heads=2, mlp_width=128, depth=2, num_classes=7, **options).config
    ours = loaded(tmp_path / "hybrid.pth", architecture=named)
    assert ours.config == named
    if patch == 1:
        assert_same_output(ours, theirs, SIZES)
    else:  # timm takes the sides of a map that its patch divides
        assert_same_output(ours, theirs, [(48, 80), (64, 128)])
    trunk = theirs.patch_embed.backbone
    skips = trunk.forward_intermediates(pictures(61, 43), intermediates_only=True)
    for one, other in zip(ours.trunk(pictures(61, 43)), skips, strict=True):
        assert_same(one, other)


@torch.no_grad()
def test_timm_there_and_back(tmp_path: Path) -> None:
    arguments = {**SMALL, "img_size": 64, "dynamic_img_size": True}
    theirs = randomised(timm.create_model("vit_tiny_r_s16_p8_224", **arguments))
    save_for_hf(theirs, tmp_path / "theirs", model_args=arguments, safe_serialization=True)
    ours = loaded(tmp_path / "theirs")
    assert ours.config.image_size == (64, 64)
    assert ours.record.preprocessing is not None
    assert ours.record.preprocessing.mean == (0.5, 0.5, 0.5)
    assert_same_output(ours, theirs, [(64, 64), (128, 96)])
    written = save_model(ours, tmp_path / "ours", layout="timm")
    back = timm.create_model(f"local-dir:{written}", pretrained=True).eval()
    assert_same(back(pictures(64, 64)), theirs(pictures(64, 64)), 1e-6)
    again = loaded(written)
    assert again.config == ours.config
    assert all(torch.equal(tensor, bits(again)[key]) for key, tensor in bits(ours).items())


@pytest.mark.parametrize("name", [name for name in timm.list_models("vit_*_224") if re.search(r"_r\d*_s\d+_", name)])
def test_every_hybrid_of_timm_is_read_and_written_name_by_name(name: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(name, num_classes=1000, depth=1)
    save_config_for_hf(theirs, str(tmp_path / "config.json"))
    told = json.loads((tmp_path / "config.json").read_text())
    plan = LAYOUT.plan(Files(source=name, tensors=theirs.state_dict(), kind="safetensors", config=told), None)
    with torch.device("meta"):
        ours = plan.build(plan.config)
    held = {key: tensor.shape for key, tensor in theirs.state_dict().items()}
    assert {key: tensor.shape for key, tensor in _foreign(ours, plan.rows).items()} == held
    assert plan.config.image_size == tuple(theirs.patch_embed.img_size)
    assert plan.config.grid == tuple(theirs.patch_embed.grid_size)
    assert plan.config.heads == theirs.blocks[0].attn.num_heads
    ours.record = replace(plan.record)
    assert LAYOUT.compose is not None
    written = LAYOUT.compose(ours)
    assert _foreign(ours, written.rows).keys() == held.keys()
    described = written.documents["config.json"]
    with torch.device("meta"):
        back = timm.create_model(described["architecture"], num_classes=1000, **described["model_args"])
    assert {key: tensor.shape for key, tensor in back.state_dict().items()} == held


def _foreign(model: nn.Module, rows: list[Row]) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters())
    return {name: part for row in rows for name, part in zip(row.theirs, row.write(parameters[row.ours]), strict=True)}


@torch.no_grad()
def test_an_oblong_hybrid_is_read_from_its_config(tmp_path: Path) -> None:
    arguments = {**SMALL, "img_size": (64, 96), "dynamic_img_size": True, "depth": 1}
    theirs = randomised(timm.create_model("vit_tiny_r_s16_p8_224", **arguments))
    save_for_hf(theirs, tmp_path, model_args=arguments, safe_serialization=True)
    ours = loaded(tmp_path)
    assert (ours.config.image_size, ours.config.grid) == ((64, 96), (2, 3))
    assert_same_output(ours, theirs, [(64, 96), (96, 64)])


def google_state(theirs: nn.Module, *, flat: bool) -> dict[str, np.ndarray[Any, Any]]:
    """timm's weights as flax keeps them; `flat` for gains in one dimension."""
    state = theirs.state_dict()
    found: dict[str, Tensor] = {}

    def conv(ours: str, weights: str) -> None:
        found[f"{ours}/kernel"] = state[f"{weights}.weight"].permute(2, 3, 1, 0)

    def group(ours: str, weights: str) -> None:
        for part, name in (("scale", "weight"), ("bias", "bias")):
            gain = state[f"{weights}.{name}"]
            found[f"{ours}/{part}"] = gain if flat else gain.view(1, 1, 1, -1)

    def dense(ours: str, weights: str) -> None:
        found[f"{ours}/kernel"], found[f"{ours}/bias"] = state[f"{weights}.weight"].T, state[f"{weights}.bias"]

    def norm(ours: str, weights: str) -> None:
        found[f"{ours}/scale"], found[f"{ours}/bias"] = state[f"{weights}.weight"], state[f"{weights}.bias"]

    trunk = "patch_embed.backbone"
    conv("conv_root", f"{trunk}.stem.conv")
    group("gn_root", f"{trunk}.stem.norm")
    for stage, layers in enumerate(theirs.patch_embed.backbone.stages):
        for index, unit in enumerate(layers.blocks):
            ours, weights = f"block{stage + 1}/unit{index + 1}", f"{trunk}.stages.{stage}.blocks.{index}"
            for number in (1, 2, 3):
                conv(f"{ours}/conv{number}", f"{weights}.conv{number}")
                group(f"{ours}/gn{number}", f"{weights}.norm{number}")
            if unit.downsample is not None:
                conv(f"{ours}/conv_proj", f"{weights}.downsample.conv")
                group(f"{ours}/gn_proj", f"{weights}.downsample.norm")
    conv("embedding", "patch_embed.proj")
    found["embedding/bias"], found["cls"] = state["patch_embed.proj.bias"], state["cls_token"]
    found["Transformer/posembed_input/pos_embedding"] = state["pos_embed"]
    width, heads = 32, 2
    for index in range(2):
        ours, weights = f"Transformer/encoderblock_{index}", f"blocks.{index}"
        norm(f"{ours}/LayerNorm_0", f"{weights}.norm1")
        norm(f"{ours}/LayerNorm_2", f"{weights}.norm2")
        attention = f"{ours}/MultiHeadDotProductAttention_1"
        parts = zip(state[f"{weights}.attn.qkv.weight"].chunk(3), state[f"{weights}.attn.qkv.bias"].chunk(3), strict=True)
        for name, (weight, bias) in zip(("query", "key", "value"), parts, strict=True):
            found[f"{attention}/{name}/kernel"] = weight.T.reshape(width, heads, -1)
            found[f"{attention}/{name}/bias"] = bias.view(heads, -1)
        found[f"{attention}/out/kernel"] = state[f"{weights}.attn.proj.weight"].T.reshape(heads, -1, width)
        found[f"{attention}/out/bias"] = state[f"{weights}.attn.proj.bias"]
        dense(f"{ours}/MlpBlock_3/Dense_0", f"{weights}.mlp.fc1")
        dense(f"{ours}/MlpBlock_3/Dense_1", f"{weights}.mlp.fc2")
    norm("Transformer/encoder_norm", "norm")
    dense("head", "head")
    return {name: tensor.contiguous().numpy() for name, tensor in found.items()}


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["", "opt/target/"])
def test_googles_files(prefix: str, tmp_path: Path) -> None:
    theirs = small((1, 2, 1))
    state = google_state(theirs, flat=not prefix)
    np.savez(tmp_path / "hybrid.npz", **{prefix + name: array for name, array in state.items()})
    fresh = small((1, 2, 1)).apply(lambda part: part.reset_parameters() if hasattr(part, "reset_parameters") else None)
    fresh.load_pretrained(str(tmp_path / "hybrid.npz"))  # timm's own reader finds every tensor where we put it
    assert_same(fresh.eval()(pictures(64, 64)), theirs(pictures(64, 64)), 1e-6)
    ours = loaded(tmp_path / "hybrid.npz")
    assert ours.config.patch_size == (16, 16)
    assert ours.config.image_size == (64, 64)
    assert_same_output(ours, theirs, SIZES[:2])


def test_what_timm_has_no_hybrid_for_is_not_written(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"width": 32, "heads": 2, "depth": 1, "mlp_width": 64, "num_classes": 3, "image_size": 64}
    narrow = create_model("r50_vit_b16", trunk_depths=(1,), patch_size=16, **sizes)
    with pytest.raises(UsageError, match=r"timm has no hybrid whose trunk has \(1,\) units"):
        save_model(narrow, tmp_path / "refused", layout="timm")
    gated = create_model("r_vit_ti16", mlp="swiglu", **sizes)
    with pytest.raises(UsageError, match="this one would need a vit_giant_patch14_dinov2"):
        save_model(gated, tmp_path / "refused", layout="timm")
    with pytest.raises(UsageError, match="A HybridViT has no form in the layout of transformers"):
        save_model(narrow, tmp_path / "refused", layout="transformers")
    assert not (tmp_path / "refused").exists()


def test_transformers_files_are_refused_in_a_sentence(tmp_path: Path) -> None:
    torch.save({"vit.embeddings.cls_token": torch.zeros(1, 1, 8)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit-hybrid"}))
    with pytest.raises(CheckpointError, match=r"that transformers itself no longer knows.*timm/vit_base_r50_s16_384"):
        load_model(tmp_path)


def test_tensors_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    state = small((1, 1), embed_dim=64, num_heads=1).state_dict()
    trunk = "patch_embed.backbone"
    names = ("stem.conv.weight", "stages.1.blocks.0.downsample.conv.weight", "stages.0.blocks.0.norm2.bias")
    for name in (*(f"{trunk}.{one}" for one in names), "patch_embed.proj.weight", "pos_embed"):
        for spoilt in (None, state[name].flatten()[:-1], torch.tensor(1.0)):
            changed = {**state, name: spoilt} if spoilt is not None else {k: v for k, v in state.items() if k != name}
            torch.save(changed, tmp_path / "hybrid.pth")
            with pytest.raises(CheckpointError):
                load_model(tmp_path / "hybrid.pth")
    unit = {k.replace("stages.1.blocks.0", "stages.1.blocks.900"): tensor for k, tensor in state.items()}
    torch.save(unit, tmp_path / "hybrid.pth")
    with pytest.raises(CheckpointError, match="missing"):
        load_model(tmp_path / "hybrid.pth")
