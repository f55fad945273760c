"""Captured attention maps beside transformers' own (`attn_implementation="eager"`, `output_attentions=True`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from tests.parity.peers import assert_same, load, pictures, randomised
from tests.parity.test_transformers import CASES, SIZES
from vitral.explanation.capture import capture
from vitral.models.backbones.vit import ViT
from vitral.models.catalogue import create_model

KINDS = (
    "vit",
    "vit, oblong",
    "deit with its teacher",
    "beit, biases per block",
    "beit, shared biases",
    "data2vec-vision",
    "dinov2 gated alone",
    "dinov2 with registers",
    "dinov3",
    "dinov3 gated",
    "vit-msn alone",
)


def eager(kind: str) -> nn.Module:
    """transformers' network of a kind of `test_transformers`, mixing in the open."""
    stem, name, options = CASES[kind]
    sizes = {key: value for key, value in SIZES.items() if "Dinov2" not in stem or key != "intermediate_size"}
    config = getattr(hf, f"{stem}Config")(**{**sizes, **options}, attn_implementation="eager")
    return randomised(getattr(hf, name)(config))


def assert_same_maps(ours: ViT, theirs: nn.Module, pixels: Tensor, **options: Any) -> None:
    with torch.no_grad():
        expected = theirs(pixels, output_attentions=True, **options).attentions
        with capture(ours, [f"blocks.{index}" for index in range(2)]) as maps:
            ours(pixels)
        with torch.enable_grad(), capture(ours, gradients=True) as mixed:
            ours(pixels)
    assert len(maps) == len(expected) == 2
    for index, their_map in enumerate(expected):
        assert (maps[index] - their_map).abs().max() < 1e-5
        assert (mixed[index] - their_map).abs().max() < 1e-5
        assert their_map.amax() > 1.5 / their_map.shape[-1]  # no map that any network would have


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_maps_as_transformers(kind: str, tmp_path: Path) -> None:
    theirs = eager(kind)
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    assert_same_maps(ours, theirs, pictures(*ours.config.image_size, 2))


@pytest.mark.parametrize(
    ("kind", "options"), [("vit", {"interpolate_pos_encoding": True}), ("dinov2 with registers", {}), ("dinov3", {})]
)
def test_the_same_maps_at_another_size(kind: str, options: dict[str, bool], tmp_path: Path) -> None:
    theirs = eager(kind)
    theirs.save_pretrained(tmp_path)
    assert_same_maps(load(tmp_path), theirs, pictures(160, 96), **options)


def carried(theirs: nn.Module, name: str, **options: Any) -> ViT:
    """Our network with the weights of transformers' picture side of CLIP or SigLIP, whose checkpoints we do not read yet."""
    state = dict(getattr(theirs, "vision_model", theirs).state_dict())
    sizes: dict[str, Any] = {"width": 32, "depth": 2, "heads": 2, "mlp_width": 48, "image_size": 128, "patch_size": 32}
    ours = create_model(name, **sizes, **options)
    assert isinstance(ours, ViT)

    def moved(to: str, *sources: str) -> dict[str, Tensor]:
        return {
            f"{to}.{kind}": torch.cat([state[f"{source}.{kind}"] for source in sources])
            for kind in ("weight", "bias")
            if f"{sources[0]}.{kind}" in state
        }

    table = state["embeddings.position_embedding.weight"][None]
    made = {"position_table": table, **moved("patch.projection", "embeddings.patch_embedding")}
    made |= moved("norm", "post_layernorm")
    if "embeddings.class_embedding" in state:
        made |= {"class_token": state["embeddings.class_embedding"][None, None], **moved("stem_norm", "pre_layrnorm")}
    for index in range(2):
        here, there = f"blocks.{index}", f"encoder.layers.{index}"
        made |= moved(f"{here}.attention.qkv", *(f"{there}.self_attn.{one}_proj" for one in "qkv"))
        made |= moved(f"{here}.attention.projection", f"{there}.self_attn.out_proj")
        for number, layer in ((1, "up"), (2, "down")):
            made |= moved(f"{here}.norm{number}", f"{there}.layer_norm{number}")
            made |= moved(f"{here}.mlp.{layer}", f"{there}.mlp.fc{number}")
    if ours.pool is not None:
        made["pool.query"] = state["head.probe"]
        for kind in ("weight", "bias"):
            asking, telling = state[f"head.attention.in_proj_{kind}"].split([32, 64])
            made |= {f"pool.query_projection.{kind}": asking, f"pool.key_value.{kind}": telling}
        made |= {**moved("pool.projection", "head.attention.out_proj"), **moved("pool.norm", "head.layernorm")}
        made |= {**moved("pool.mlp.up", "head.mlp.fc1"), **moved("pool.mlp.down", "head.mlp.fc2")}
    ours.load_state_dict(made)
    return ours.eval()


def test_the_maps_of_clips_picture_side() -> None:
    theirs = randomised(hf.CLIPVisionModel(hf.CLIPVisionConfig(**SIZES, attn_implementation="eager")))
    ours, pixels = carried(theirs, "clip_b32"), pictures(128, 128, 2)
    with torch.no_grad():
        assert_same(ours(pixels).pooled, theirs(pixels).pooler_output)  # so the weights were carried whole
    assert_same_maps(ours, theirs, pixels)


def test_the_maps_of_siglips_picture_side_and_of_its_pool() -> None:
    theirs = randomised(hf.SiglipVisionModel(hf.SiglipVisionConfig(**SIZES, attn_implementation="eager")))
    ours, pixels = carried(theirs, "siglip_b16", activation="gelu_tanh"), pictures(128, 128, 2)
    with torch.no_grad():
        expected = theirs(pixels)
        assert_same(ours(pixels).pooled, expected.pooler_output)
        head: Any = getattr(theirs, "vision_model", theirs).head
        tokens = expected.last_hidden_state
        asking = head.probe.expand(2, -1, -1)
        _, their_map = head.attention(asking, tokens, tokens, need_weights=True, average_attn_weights=False)
        with capture(ours, "pool") as maps:
            ours(pixels)
    assert_same_maps(ours, theirs, pixels)
    assert maps["pool"].shape == their_map.shape == (2, 2, 1, 16)
    assert (maps["pool"] - their_map).abs().max() < 1e-5
