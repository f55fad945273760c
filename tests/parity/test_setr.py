"""SETR beside what mmsegmentation computes, step by step with PyTorch's own functions on tensors of its names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.parity.openmmlab import State, attend, conv_norm, encode
from tests.parity.peers import assert_same, pictures
from vitral.checkpoints.files import Files
from vitral.checkpoints.load import load_model
from vitral.checkpoints.setr import openmmlab
from vitral.data.transforms import IMAGENET_MEAN
from vitral.errors import CheckpointError
from vitral.models.backbones.vit import ViTConfig
from vitral.models.segmentation.setr import SETR, VARIANTS, SETRConfig

DEPTH, WIDTH, LEVELS = 4, 32, (0, 1, 2, 3)
KINDS: dict[str, dict[str, Any]] = {
    "naive": {"convolutions": 1, "kernel": 1, "inside": 1},
    "naive, as for ADE20K": {"convolutions": 1, "kernel": 1, "inside": 2},
    "pup": {"convolutions": 4, "kernel": 3, "inside": 2},
    "mla": {},
}


def published(
    kind: str,
    *,
    width: int = WIDTH,
    depth: int = DEPTH,
    hidden: int = 2 * WIDTH,
    classes: int = 5,
    side: int = 4,
    channels: int = 12,
    branch: int = 6,
    empty: bool = False,
) -> State:
    """Tensors by mmsegmentation's names: configs/setr, decode_heads/setr_up_head.py, setr_mla_head.py, necks/mla_neck.py."""
    state, options = State(empty=empty), KINDS[kind]
    state.transformer(width, depth, hidden, side * side, last=False)
    if kind == "mla":
        for place in range(4):
            state.norm(f"neck.norm.{place}", width)
            state.conv_norm(f"neck.mla.channel_proj.{place}", channels, width, 1)
            state.conv_norm(f"neck.mla.feat_extract.{place}", channels, channels, 3)
            state.conv_norm(f"decode_head.up_convs.{place}.0", branch, channels, 3)
            state.conv_norm(f"decode_head.up_convs.{place}.1", branch, branch, 3)
            state.weight(f"auxiliary_head.{place}.conv_seg", classes, channels, 1, 1)
        state.weight("decode_head.conv_seg", classes, 4 * branch, 1, 1)
        return state
    heads = {"decode_head": options["convolutions"], **{f"auxiliary_head.{place}": options["inside"] for place in range(3)}}
    for head, count in heads.items():
        state.norm(f"{head}.norm", width)
        for place in range(count):
            before = width if place == 0 else channels
            state.conv_norm(f"{head}.up_convs.{place}.0", channels, before, options["kernel"])
        state.weight(f"{head}.conv_seg", classes, channels, 1, 1)
    return state


def expected(kind: str, state: State, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The logits of the decoder and of the auxiliary heads."""
    options = KINDS[kind]
    maps = encode(state, pixels, heads=4, levels=LEVELS, class_token=kind != "mla")
    if kind != "mla":
        inside = [up(state, f"auxiliary_head.{place}", maps[place], options["inside"], 4) for place in range(3)]
        scale = 2 if kind == "pup" else 4
        return up(state, "decode_head", maps[3], options["convolutions"], scale), inside
    features = [
        conv_norm(state, f"neck.mla.channel_proj.{place}", normed(state, f"neck.norm.{place}", one))
        for place, one in enumerate(maps)
    ]
    total, sums = torch.zeros(()), []
    for one in features[::-1]:
        total = total + one
        sums.append(total)
    outs = [conv_norm(state, f"neck.mla.feat_extract.{place}", one) for place, one in enumerate(sums)]
    branches = []
    for place, one in enumerate(outs):
        for step in (0, 1):
            one = conv_norm(state, f"decode_head.up_convs.{place}.{step}", one)
        branches.append(F.interpolate(one, scale_factor=4, mode="bilinear", align_corners=False))
    inside = [classified(state, f"auxiliary_head.{place}", one) for place, one in enumerate(outs)]
    return classified(state, "decode_head", torch.cat(branches, dim=1)), inside


def up(state: State, head: str, x: Tensor, count: int, scale: int) -> Tensor:
    x = normed(state, f"{head}.norm", x)
    for place in range(count):
        x = conv_norm(state, f"{head}.up_convs.{place}.0", x)
        x = F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)
    return classified(state, head, x)


def classified(state: State, head: str, x: Tensor) -> Tensor:
    return F.conv2d(x, state[f"{head}.conv_seg.weight"], state[f"{head}.conv_seg.bias"])


def normed(state: State, name: str, x: Tensor) -> Tensor:
    tokens = x.flatten(2).transpose(1, 2)
    tokens = F.layer_norm(tokens, tokens.shape[2:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)
    return tokens.transpose(1, 2).reshape(x.shape)


def architecture(kind: str) -> SETRConfig:
    vit = ViTConfig(patch_size=(16, 16), width=WIDTH, depth=DEPTH, heads=4, mlp_width=2 * WIDTH, position_antialias=False)
    return SETRConfig(image_size=(64, 64), num_classes=5, backbone=vit, levels=LEVELS)


@pytest.fixture(params=KINDS)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, State, SETR]:
    state = published(request.param)
    path = tmp_path / "setr_768x768_80k_cityscapes.pth"
    torch.save({"meta": {"mmcv_version": "1.3", "CLASSES": ("road",)}, "state_dict": dict(state), "optimizer": {}}, path)
    model = load_model(path, architecture=architecture(request.param))
    assert isinstance(model, SETR)
    return request.param, state, model


@torch.no_grad()
def test_answers_are_mmsegmentations(case: tuple[str, State, SETR]) -> None:
    kind, state, model = case
    assert model.config.decoder == kind.partition(",")[0]
    assert model.record.layout == "openmmlab"
    pixels = pictures(64, 64, 2)
    logits, _ = expected(kind, state, pixels)
    found = model(pixels).logits
    assert_same(found, logits, 1e-5)
    assert logits.std() > 0.1
    # Sides that the patch does not divide: zeros on the right and below, which mmsegmentation adds too.
    pixels = pictures(61, 52)
    logits, _ = expected(kind, state, F.pad(pixels, (0, 12, 0, 3)))
    whole = F.interpolate(logits, size=(64, 64), mode="bilinear", align_corners=False)
    assert_same(model(pixels).logits, whole[..., :61, :52], 1e-5)


@torch.no_grad()
def test_auxiliary_answers_are_mmsegmentations(case: tuple[str, State, SETR]) -> None:
    kind, state, model = case
    pixels = pictures(64, 64)
    _, inside = expected(kind, state, pixels)
    model.training = True  # the parts, norms of batches among them, stay in evaluation
    found = model(pixels).auxiliary
    assert len(found) == len(inside) == (4 if kind == "mla" else 3)
    for one, other in zip(found, inside, strict=True):
        assert_same(one, other, 1e-5)


@torch.no_grad()
def test_a_file_without_auxiliary_heads_is_read(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in published("pup").items() if not name.startswith("auxiliary")}
    torch.save({"state_dict": state}, tmp_path / "pup.pth")
    model = load_model(tmp_path / "pup.pth", architecture=architecture("pup"))
    assert isinstance(model, SETR)
    assert not model.config.auxiliary
    assert_same(model(pictures(64, 64)).logits, expected("pup", published("pup"), pictures(64, 64))[0], 1e-5)


@pytest.mark.parametrize("kind", ["naive", "mla"])
def test_what_no_tensor_shows_is_the_published_choice(kind: str, tmp_path: Path) -> None:
    torch.save({"state_dict": dict(published(kind, width=64, depth=12))}, tmp_path / "base.pth")
    model = load_model(tmp_path / "base.pth")
    assert isinstance(model, SETR)
    assert model.config.levels == VARIANTS[f"setr_{kind}_b16"].levels
    assert model.config.backbone.heads == 1
    assert model.config.image_size == (64, 64)
    assert model.record.preprocessing is not None
    assert model.record.preprocessing.mean == IMAGENET_MEAN
    assert "1 heads, as heads of 64 channels are usual; the file does not say." in model.record.notes
    torch.save({"state_dict": dict(published(kind, width=64, depth=5))}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="Behind which of 5 blocks maps are taken cannot be seen"):
        load_model(tmp_path / "other.pth")
    torch.save({"state_dict": dict(published(kind, width=32))}, tmp_path / "narrow.pth")
    with pytest.raises(CheckpointError, match="How many heads share 32 channels cannot be seen"):
        load_model(tmp_path / "narrow.pth")


def test_a_tensor_more_or_less_is_refused(tmp_path: Path) -> None:
    for change in ("less", "more"):
        state = dict(published("naive"))
        if change == "less":
            del state["decode_head.norm.bias"]
        else:
            state["decode_head.extra.weight"] = torch.zeros(3)
        torch.save({"state_dict": state}, tmp_path / "changed.pth")
        with pytest.raises(
            CheckpointError, match="decode_head.norm.bias" if change == "less" else "decode_head.extra.weight"
        ):
            load_model(tmp_path / "changed.pth", architecture=architecture("naive"))


@pytest.mark.parametrize(("name", "kind"), [("setr_naive_l16", "naive"), ("setr_pup_l16", "pup"), ("setr_mla_l16", "mla")])
def test_published_networks_have_the_published_names(name: str, kind: str) -> None:
    sizes = {"width": 1024, "depth": 24, "hidden": 4096, "classes": 19, "side": 48, "channels": 256, "branch": 128}
    state = published(kind, **sizes, empty=True)
    plan = openmmlab.LAYOUT.plan(Files("setr", state, "pickle"), None)
    assert plan.config == VARIANTS[name]
    assert plan.record.architecture == name
    with torch.device("meta"):
        ours = SETR(VARIANTS[name]).state_dict()
    for row in plan.rows:
        for one, part in zip(row.theirs, row.write(ours[row.ours]), strict=True):
            assert plan.tensors[one].shape == part.shape
    assert {row.ours for row in plan.rows} == set(ours)
    named = {one for row in plan.rows for one in row.theirs} | ({"cls_token"} if kind == "mla" else set())
    assert named == {one.removeprefix("backbone.") for one in state}


def test_attention_of_the_oracle_is_a_module_of_pytorchs() -> None:
    """What the oracle computes for a layer is `torch.nn.MultiheadAttention`, which mmsegmentation wraps."""
    state, tokens = published("naive"), torch.randn(2, 7, WIDTH)
    theirs = torch.nn.MultiheadAttention(WIDTH, 4, batch_first=True).eval()
    prefix = "backbone.layers.0.attn.attn."
    theirs.load_state_dict({name.removeprefix(prefix): one for name, one in state.items() if name.startswith(prefix)})
    assert_same(attend(state, prefix, tokens, 4), theirs(tokens, tokens, tokens)[0])
