"""Segmenter beside what its authors and mmsegmentation compute, on tensors of their names.

The authors' encoder is timm's vision transformer; their decoder's blocks are timm's blocks; what is around them is computed
here step by step.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm.models.deit
import timm.models.vision_transformer as timm_vit
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.parity.openmmlab import State, encode, layer
from tests.parity.peers import assert_same, pictures, randomised
from vitral.checkpoints.files import Files
from vitral.checkpoints.load import load_model
from vitral.checkpoints.segmenter import openmmlab, rstrudel
from vitral.data.transforms import IMAGENET_MEAN, INCEPTION_MEAN
from vitral.errors import CheckpointError
from vitral.models.backbones.vit import ViTConfig
from vitral.models.segmentation.segmenter import VARIANTS, Segmenter, SegmenterConfig

WIDTH, DEPTH, CLASSES = 32, 3, 5
VIT = ViTConfig(width=WIDTH, depth=DEPTH, heads=4, mlp_width=64, norm_eps=1e-5, position_antialias=False)
NAMED = SegmenterConfig(image_size=(64, 64), backbone=VIT)
KINDS = ["mask", "linear", "mask, distilled"]


def masks(x: Tensor, norms: list[tuple[Tensor, Tensor]], patch: Tensor, classes: Tensor) -> Tensor:
    """What is done behind the decoder's layers, the classes standing last: section 3.2, tokens as rows."""
    x = F.layer_norm(x, (WIDTH,), *norms[0], 1e-5)
    patches, tokens = x[:, :-CLASSES] @ patch, x[:, -CLASSES:] @ classes
    product = (patches / patches.norm(dim=-1, keepdim=True)) @ (tokens / tokens.norm(dim=-1, keepdim=True)).transpose(1, 2)
    return F.layer_norm(product, (CLASSES,), *norms[1], 1e-5).transpose(1, 2)


class Authors:
    """The network of rstrudel/segmenter at patches of 8 pixels."""

    def __init__(self, kind: str) -> None:
        norm: Any = partial(nn.LayerNorm, eps=1e-5)
        self.distilled = "distilled" in kind
        build: Any = timm.models.deit.VisionTransformerDistilled if self.distilled else timm_vit.VisionTransformer
        options = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": 4, "mlp_ratio": 2, "norm_layer": norm}
        self.encoder = randomised(build(img_size=64, patch_size=8, num_classes=10, **options))
        self.blocks = [
            randomised(timm_vit.Block(WIDTH, 4, 4, qkv_bias=True, norm_layer=norm), seed)
            for seed in range(2 * ("mask" in kind))
        ]
        self.state = State()
        if not self.blocks:
            self.state.weight("decoder.head", CLASSES, WIDTH)
            return
        self.state.random("decoder.cls_emb", 1, CLASSES, WIDTH)
        self.state.weight("decoder.proj_dec", WIDTH, WIDTH)
        for name in ("patch", "classes"):
            self.state.random(f"decoder.proj_{name}", WIDTH, WIDTH)
        self.state.norm("decoder.decoder_norm", WIDTH)
        self.state.norm("decoder.mask_norm", CLASSES)

    def file(self) -> dict[str, Any]:
        state = {f"encoder.{name}": one for name, one in self.encoder.state_dict().items()} | dict(self.state)
        for place, block in enumerate(self.blocks):
            state |= {f"decoder.blocks.{place}.{name}": one for name, one in block.state_dict().items()}
        return {"model": state, "epoch": 63, "optimizer": {}}

    def __call__(self, pixels: Tensor) -> Tensor:
        """The logits of every pixel."""
        height, width = pixels.shape[2:]
        filled = F.pad(pixels, (0, -width % 8, 0, -height % 8))
        encoder: Any = self.encoder
        x, state = encoder.forward_features(filled)[:, 1 + self.distilled :], self.state
        if not self.blocks:
            found = F.linear(x, state["decoder.head.weight"], state["decoder.head.bias"]).transpose(1, 2)
        else:
            x = F.linear(x, state["decoder.proj_dec.weight"], state["decoder.proj_dec.bias"])
            x = torch.cat([x, state["decoder.cls_emb"].expand(len(x), -1, -1)], dim=1)
            for block in self.blocks:
                x = block(x)
            norms = [(state[f"decoder.{n}_norm.weight"], state[f"decoder.{n}_norm.bias"]) for n in ("decoder", "mask")]
            found = masks(x, norms, state["decoder.proj_patch"], state["decoder.proj_classes"])
        found = found.unflatten(2, (filled.shape[2] // 8, -1))
        return F.interpolate(found, size=filled.shape[2:], mode="bilinear")[..., :height, :width]


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_the_authors(kind: str, tmp_path: Path) -> None:
    theirs = Authors(kind)
    torch.save(theirs.file(), tmp_path / "checkpoint.pth")
    ours = load_model(tmp_path / "checkpoint.pth", architecture=NAMED)
    assert isinstance(ours, Segmenter)
    assert ours.config.decoder == kind.partition(",")[0]
    assert ours.record.layout == "rstrudel"
    assert ours.record.preprocessing is not None
    assert ours.record.preprocessing.mean == (IMAGENET_MEAN if theirs.distilled else INCEPTION_MEAN)
    for size in ((64, 64), (61, 57)):  # the second is filled up to the first
        pixels = pictures(*size, 2)
        found = F.interpolate(ours(pixels).logits, size=size, mode="bilinear")
        expected = theirs(pixels)
        assert_same(found, expected)
        assert expected.std() > 0.1


def openmmlabs(
    decoder: str, *, empty: bool = False, width: int = WIDTH, depth: int = DEPTH, classes: int = CLASSES
) -> State:
    """Tensors by mmsegmentation's names: configs/segmenter, decode_heads/segmenter_mask_head.py, fcn_head.py."""
    state, hidden = State(empty=empty), 4 * width if empty else 64
    state.transformer(width, depth, hidden, 1024 if empty else 16, last=True)
    if decoder == "linear":
        state.weight("decode_head.conv_seg", classes, width, 1, 1)
        return state
    state.random("decode_head.cls_emb", 1, classes, width)
    for place in range(2):
        state.layer(f"decode_head.layers.{place}", width, 4 * width)
    state.weight("decode_head.dec_proj", width, width)
    for name in ("patch", "classes"):
        state.weight(f"decode_head.{name}_proj", width, width, bias=False)
    state.norm("decode_head.decoder_norm", width)
    state.norm("decode_head.mask_norm", classes)
    state.weight("decode_head.conv_seg", classes, width, 1, 1)  # of the class it inherits from, and not used
    return state


def openmmlabs_answer(decoder: str, state: State, pixels: Tensor) -> Tensor:
    (last,) = encode(state, pixels, heads=4, levels=(DEPTH - 1,))
    if decoder == "linear":
        return F.conv2d(last, state["decode_head.conv_seg.weight"], state["decode_head.conv_seg.bias"])
    x = F.linear(last.flatten(2).transpose(1, 2), state["decode_head.dec_proj.weight"], state["decode_head.dec_proj.bias"])
    x = torch.cat([x, state["decode_head.cls_emb"].expand(len(x), -1, -1)], dim=1)
    for place in range(2):
        x = layer(state, f"decode_head.layers.{place}", x, 4, 1e-5)
    norms = [(state[f"decode_head.{n}_norm.weight"], state[f"decode_head.{n}_norm.bias"]) for n in ("decoder", "mask")]
    patch, classes = (state[f"decode_head.{name}_proj.weight"].T for name in ("patch", "classes"))
    return masks(x, norms, patch, classes).unflatten(2, last.shape[2:])


@torch.no_grad()
@pytest.mark.parametrize("decoder", ["mask", "linear"])
def test_answers_are_mmsegmentations(decoder: str, tmp_path: Path) -> None:
    state = openmmlabs(decoder)
    torch.save({"meta": {"CLASSES": ("wall",)}, "state_dict": dict(state)}, tmp_path / "segmenter.pth")
    ours = load_model(tmp_path / "segmenter.pth", architecture=NAMED)
    assert isinstance(ours, Segmenter)
    assert ours.config.backbone.norm_eps == 1e-6
    assert ours.record.layout == "openmmlab"
    pixels = pictures(64, 64, 2)
    assert_same(ours(pixels).logits, openmmlabs_answer(decoder, state, pixels), 1e-5)


@pytest.mark.parametrize("name", ["segmenter_vit_s16_linear", "segmenter_vit_ti16_mask"])
def test_published_networks_have_the_published_names(name: str) -> None:
    variant = VARIANTS[name]
    state = openmmlabs(variant.decoder, empty=True, width=variant.width, depth=12, classes=150)
    plan = openmmlab.LAYOUT.plan(Files("segmenter", state, "pickle"), None)
    assert plan.record.architecture == name
    assert plan.config.image_size == variant.image_size
    with torch.device("meta"):
        ours = Segmenter(variant).state_dict()
    assert {row.ours for row in plan.rows} == set(ours)
    for row in plan.rows:
        for one, part in zip(row.theirs, row.write(ours[row.ours]), strict=True):
            assert plan.tensors[one].shape == part.shape


def test_files_that_do_not_tell_enough_or_too_much_are_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": dict(openmmlabs("mask"))}, tmp_path / "narrow.pth")
    with pytest.raises(CheckpointError, match="How many heads share 32 channels cannot be seen"):
        load_model(tmp_path / "narrow.pth")
    told = Authors("mask").file()
    told["model"]["decoder.extra"] = torch.zeros(2)
    torch.save(told, tmp_path / "checkpoint.pth")
    with pytest.raises(CheckpointError, match=r"decoder\.extra"):
        load_model(tmp_path / "checkpoint.pth", architecture=NAMED)


def test_layouts_are_not_taken_for_each_other() -> None:
    files = {
        "openmmlab": Files("mmseg", openmmlabs("linear"), "pickle"),
        "rstrudel": Files("authors", Authors("linear").file()["model"], "pickle"),
    }
    for name, one in files.items():
        assert [page.LAYOUT.name for page in (openmmlab, rstrudel) if page.LAYOUT.recognises(one)] == [name]
