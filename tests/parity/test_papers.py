"""Files as the papers' own training scripts save them: MAE, DINO, DINOv2, BEiT. Their networks are timm's."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from tests.parity.peers import assert_same, load, pictures, randomised
from vitral.layers.position import sinusoids_2d


def network(architecture: str, **options: Any) -> nn.Module:
    return randomised(timm.create_model(architecture, img_size=64, patch_size=16, depth=2, **options))


@torch.no_grad()
def test_mae_with_its_decoder(tmp_path: Path) -> None:
    theirs = network("vit_tiny_patch16_224", num_classes=0)
    theirs.pos_embed[:, 1:] = sinusoids_2d((4, 4), 192)
    decoder: dict[str, Tensor] = {
        "mask_token": torch.randn(1, 1, 16),
        "decoder_embed.weight": torch.randn(16, 192),
        "decoder_pos_embed": torch.randn(1, 17, 16),
        "decoder_blocks.0.attn.qkv.weight": torch.randn(48, 16),
        "decoder_pred.bias": torch.randn(768),
    }
    torch.save({"model": {**theirs.state_dict(), **decoder}}, tmp_path / "mae_pretrain.pth")
    ours = load(tmp_path / "mae_pretrain.pth")
    assert_same(ours(pictures(64, 64)).tokens, theirs.forward_features(pictures(64, 64)))
    assert ours.mask_token is None
    (note,) = [note for note in ours.record.notes if note.startswith("Left out on purpose")]
    for name in decoder:
        assert name in note


@torch.no_grad()
def test_mae_fine_tuned_pools_the_mean(tmp_path: Path) -> None:
    theirs = network("vit_tiny_patch16_224", num_classes=7, global_pool="avg")
    content = {"model": theirs.state_dict(), "epoch": 99, "scaler": {"scale": 1.0}, "args": argparse.Namespace(lr=1e-3)}
    torch.save(content, tmp_path / "mae_finetuned.pth")
    ours = load(tmp_path / "mae_finetuned.pth")
    assert_same(ours(pictures(64, 64)).logits, theirs(pictures(64, 64)))


@torch.no_grad()
def test_dino_full_checkpoint_is_read_as_its_teacher(tmp_path: Path) -> None:
    theirs = network("vit_tiny_patch16_224", num_classes=0)
    teacher = {f"backbone.{name}": tensor for name, tensor in theirs.state_dict().items()}
    teacher |= {"head.mlp.0.weight": torch.randn(8, 192), "head.last_layer.weight_g": torch.randn(8, 1)}
    content = {
        "student": {f"module.{name}": torch.zeros_like(tensor) for name, tensor in teacher.items()},
        "teacher": teacher,
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []},
        "epoch": 3,
        "args": argparse.Namespace(arch="vit_tiny", patch_size=16, lr=5e-4),
        "dino_loss": {"center": torch.zeros(1, 8)},
    }
    torch.save(content, tmp_path / "dino_full.pth")
    ours = load(tmp_path / "dino_full.pth")
    assert_same(ours(pictures(64, 64)).tokens, theirs.forward_features(pictures(64, 64)))
    assert any("head.mlp.0.weight" in note for note in ours.record.notes)
    student_only = {key: value for key, value in content.items() if key != "teacher"}
    torch.save(student_only, tmp_path / "student.pth")
    assert not load(tmp_path / "student.pth").class_token.any()


@torch.no_grad()
@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2_with_its_flat_mask_token(registers: int, tmp_path: Path) -> None:
    theirs = network("vit_tiny_patch16_224", num_classes=0, init_values=1.0, reg_tokens=registers, no_embed_class=False)
    state = {name.replace("reg_token", "register_tokens"): tensor for name, tensor in theirs.state_dict().items()}
    if registers:  # the papers' table has a row for the class token and none for registers
        state["pos_embed"] = torch.cat([state["pos_embed"][:, :1], state["pos_embed"][:, 1 + registers :]], dim=1)
        theirs.pos_embed[:, 1 : 1 + registers] = 0
    torch.save({**state, "mask_token": torch.randn(1, 192)}, tmp_path / "dinov2.pth")
    ours = load(tmp_path / "dinov2.pth")
    assert ours.config.registers == registers
    assert ours.config.prefix_positions == 1
    assert_same(ours(pictures(64, 64)).tokens, theirs.forward_features(pictures(64, 64)))
    assert ours.mask_token.shape == (1, 1, 192)


@torch.no_grad()
def test_dinov2_gated(tmp_path: Path) -> None:
    theirs = network("vit_giant_patch14_dinov2", num_classes=0, embed_dim=192, num_heads=3)
    names = {"mlp.fc1": "mlp.w12", "mlp.fc2": "mlp.w3"}
    state = theirs.state_dict()
    for timms, papers in names.items():
        state = {name.replace(timms, papers): tensor for name, tensor in state.items()}
    torch.save(state, tmp_path / "dinov2_g.pth")
    ours = load(tmp_path / "dinov2_g.pth")
    assert ours.config.mlp == "swiglu"
    assert_same(ours(pictures(64, 64)).tokens, theirs.forward_features(pictures(64, 64)))


@torch.no_grad()
@pytest.mark.parametrize("biases", ["per block", "shared"])
def test_beit_with_its_indices(biases: str, tmp_path: Path) -> None:
    shared = biases == "shared"
    theirs = network(
        "beit_base_patch16_224",
        num_classes=7,
        embed_dim=64,
        num_heads=4,
        use_rel_pos_bias=not shared,
        use_shared_rel_pos_bias=shared,
    )
    state = dict(theirs.state_dict())
    index = torch.zeros(17, 17, dtype=torch.long)
    prefixes = ["rel_pos_bias"] if shared else [f"blocks.{block}.attn" for block in range(2)]
    state |= {f"{prefix}.relative_position_index": index for prefix in prefixes}
    torch.save({"model": state}, tmp_path / "beit.pth")
    ours = load(tmp_path / "beit.pth")
    assert ours.config.relative_bias == ("shared" if shared else "per_block")
    assert_same(ours(pictures(64, 64)).logits, theirs(pictures(64, 64)))
    assert any("relative_position_index" in note for note in ours.record.notes)


@torch.no_grad()
def test_beit_pre_trained_with_its_head_over_visual_words(tmp_path: Path) -> None:
    options = {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True, "global_pool": "token"}
    theirs = network("beit_base_patch16_224", num_classes=0, embed_dim=64, num_heads=4, **options)
    words = {"lm_head.weight": torch.randn(20, 64), "lm_head.bias": torch.randn(20), "mask_token": torch.randn(1, 1, 64)}
    torch.save({"model": {**theirs.state_dict(), **words}}, tmp_path / "beit_pretrained.pth")
    ours = load(tmp_path / "beit_pretrained.pth")
    pixels = pictures(64, 64)
    assert_same(ours(pixels).tokens, theirs.forward_features(pixels))
    assert torch.equal(ours.mask_token, words["mask_token"])
