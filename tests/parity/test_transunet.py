"""TransUNet beside what its authors' code computes, step by step with PyTorch's own functions on tensors of its names."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.parity.openmmlab import State
from tests.parity.peers import assert_same, pictures
from vitral.checkpoints.files import Files
from vitral.checkpoints.load import load_model
from vitral.checkpoints.transunet import beckschen
from vitral.errors import CheckpointError
from vitral.models.backbones.hybrid import HybridConfig
from vitral.models.segmentation.transunet import VARIANTS, TransUNet, TransUNetConfig

TRUNK = "transformer.embeddings.hybrid_model"
HEADS = 4


def published(
    *,
    width: int = 32,
    depth: int = 2,
    hidden: int = 48,
    side: int = 4,
    units: tuple[int, ...] = (1, 2, 1),
    root: int = 32,
    before: int = 16,
    channels: tuple[int, ...] = (12, 10, 8, 6),
    skips: int = 3,
    classes: int = 5,
    empty: bool = False,
) -> State:
    """Tensors by the names of networks/vit_seg_modeling.py and vit_seg_modeling_resnet_skip.py."""
    state = State(empty=empty)
    state.weight(f"{TRUNK}.root.conv", root, 3, 7, 7, bias=False)
    state.norm(f"{TRUNK}.root.gn", root)
    inputs = root
    for block, count in enumerate(units, 1):
        outer, inner = 4 * root * 2 ** (block - 1), root * 2 ** (block - 1)
        for unit in range(1, count + 1):
            name = f"{TRUNK}.body.block{block}.unit{unit}"
            shapes = {1: (inner, inputs, 1, 1), 2: (inner, inner, 3, 3), 3: (outer, inner, 1, 1)}
            for number, shape in shapes.items():
                state.weight(f"{name}.conv{number}", *shape, bias=False)
                state.norm(f"{name}.gn{number}", shape[0])
            if unit == 1:
                state.weight(f"{name}.downsample", outer, inputs, 1, 1, bias=False)
                state.norm(f"{name}.gn_proj", outer)
            inputs = outer
    state.weight("transformer.embeddings.patch_embeddings", width, inputs, 1, 1)
    state.random("transformer.embeddings.position_embeddings", 1, side * side, width)
    for place in range(depth):
        name = f"transformer.encoder.layer.{place}"
        state.norm(f"{name}.attention_norm", width)
        state.norm(f"{name}.ffn_norm", width)
        state.weight(f"{name}.ffn.fc1", hidden, width)
        state.weight(f"{name}.ffn.fc2", width, hidden)
        for part in ("query", "key", "value", "out"):
            state.weight(f"{name}.attn.{part}", width, width)
    state.norm("transformer.encoder.encoder_norm", width)
    step(state, "decoder.conv_more", before, width)
    beside = [8 * root, 4 * root, root, 0]
    for place, (came, goes) in enumerate(zip((before, *channels), channels, strict=False)):
        step(state, f"decoder.blocks.{place}.conv1", goes, came + (beside[place] if place < skips else 0))
        step(state, f"decoder.blocks.{place}.conv2", goes, goes)
    state.weight("segmentation_head.0", classes, channels[-1], 3, 3)
    return state


def step(state: State, name: str, outputs: int, inputs: int) -> None:
    state.weight(f"{name}.0", outputs, inputs, 3, 3, bias=False)
    state.batch_norm(f"{name}.1", outputs)


def standardised(state: State, name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = state[f"{name}.weight"]
    variance, mean = torch.var_mean(weight, dim=[1, 2, 3], keepdim=True, unbiased=False)
    return F.conv2d(x, (weight - mean) / torch.sqrt(variance + 1e-5), stride=stride, padding=weight.shape[2] // 2)


def group_norm(state: State, name: str, x: Tensor, groups: int = 32, eps: float = 1e-6) -> Tensor:
    return F.group_norm(x, groups, state[f"{name}.weight"], state[f"{name}.bias"], eps)


def trunk(state: State, x: Tensor, units: tuple[int, ...]) -> tuple[Tensor, list[Tensor]]:
    """The last map, and those to be read beside, the coarsest first."""
    side = x.shape[2]
    x = group_norm(state, f"{TRUNK}.root.gn", standardised(state, f"{TRUNK}.root.conv", x, 2)).relu()
    beside = [x]
    x = F.max_pool2d(x, kernel_size=3, stride=2, padding=0)
    for block, count in enumerate(units, 1):
        for unit in range(1, count + 1):
            name, stride = f"{TRUNK}.body.block{block}.unit{unit}", 2 if block > 1 and unit == 1 else 1
            shortcut = x
            if unit == 1:
                shortcut = standardised(state, f"{name}.downsample", x, stride)
                shortcut = group_norm(state, f"{name}.gn_proj", shortcut, shortcut.shape[1], 1e-5)
            y = group_norm(state, f"{name}.gn1", standardised(state, f"{name}.conv1", x)).relu()
            y = group_norm(state, f"{name}.gn2", standardised(state, f"{name}.conv2", y, stride)).relu()
            y = group_norm(state, f"{name}.gn3", standardised(state, f"{name}.conv3", y))
            x = (shortcut + y).relu()
        if block < len(units):
            right = side // 4 // block
            feature = x.new_zeros(len(x), x.shape[1], right, right)
            feature[:, :, : x.shape[2], : x.shape[3]] = x
            beside.append(feature)
    return x, beside[::-1]


def expected(state: State, x: Tensor, units: tuple[int, ...] = (1, 2, 1), depth: int = 2, skips: int = 3) -> Tensor:
    x, beside = trunk(state, x, units)
    weights = "transformer.embeddings.patch_embeddings"
    x = F.conv2d(x, state[f"{weights}.weight"], state[f"{weights}.bias"])
    side = x.shape[2]
    tokens = x.flatten(2).transpose(1, 2) + state["transformer.embeddings.position_embeddings"]
    for place in range(depth):
        name = f"transformer.encoder.layer.{place}"
        tokens = tokens + attended(state, f"{name}.attn", layer_norm(state, f"{name}.attention_norm", tokens))
        hidden = F.gelu(linear(state, f"{name}.ffn.fc1", layer_norm(state, f"{name}.ffn_norm", tokens)))
        tokens = tokens + linear(state, f"{name}.ffn.fc2", hidden)
    tokens = layer_norm(state, "transformer.encoder.encoder_norm", tokens)
    x = convolved(state, "decoder.conv_more", tokens.transpose(1, 2).unflatten(2, (side, side)))
    enlarge = torch.nn.UpsamplingBilinear2d(scale_factor=2)
    for place in range(4):
        x = enlarge(x)
        if place < skips:
            x = torch.cat([x, beside[place]], dim=1)
        for number in (1, 2):
            x = convolved(state, f"decoder.blocks.{place}.conv{number}", x)
    return F.conv2d(x, state["segmentation_head.0.weight"], state["segmentation_head.0.bias"], padding=1)


def layer_norm(state: State, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[2:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def attended(state: State, name: str, x: Tensor) -> Tensor:
    queries, keys, values = (
        linear(state, f"{name}.{part}", x).unflatten(2, (HEADS, -1)).transpose(1, 2) for part in ("query", "key", "value")
    )
    weights = (queries @ keys.transpose(2, 3) / math.sqrt(queries.shape[3])).softmax(-1)
    return linear(state, f"{name}.out", (weights @ values).transpose(1, 2).flatten(2))


def convolved(state: State, name: str, x: Tensor) -> Tensor:
    x = F.conv2d(x, state[f"{name}.0.weight"], padding=1)
    norm = [state[f"{name}.1.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
    return F.batch_norm(x, *norm).relu()


def named(side: int) -> TransUNetConfig:
    hybrid = HybridConfig(width=32, depth=2, heads=HEADS, class_token=False, prefix_positions=0, pool="mean")
    return TransUNetConfig(image_size=(16 * side, 16 * side), backbone=hybrid)


@torch.no_grad()
@pytest.mark.parametrize(("side", "skips"), [(4, 3), (5, 3), (3, 1), (1, 3), (2, 0)])
def test_answers_are_the_authors(side: int, skips: int, tmp_path: Path) -> None:
    state = published(side=side, skips=skips)
    torch.save(dict(state), tmp_path / "epoch_149.pth")
    ours = load_model(tmp_path / "epoch_149.pth", architecture=named(4))
    assert isinstance(ours, TransUNet)
    assert ours.config.skips == skips
    assert ours.config.image_size == (16 * side, 16 * side)
    assert ours.record.layout == "beckschen"
    pixels = pictures(16 * side, 16 * side, 2)
    answer = expected(state, pixels, skips=skips)
    assert_same(ours(pixels).logits, answer)
    assert answer.std() > 0.1
    grey = pixels[:, :1]
    assert_same(ours(grey).logits, expected(state, grey.repeat(1, 3, 1, 1), skips=skips))


@torch.no_grad()
def test_other_sizes_are_filled_up(tmp_path: Path) -> None:
    state = published()
    torch.save(dict(state), tmp_path / "best.pth")
    ours = load_model(tmp_path / "best.pth", architecture=named(4))
    pixels = pictures(61, 50)
    assert_same(ours(pixels).logits, expected(state, F.pad(pixels, (0, 14, 0, 3)))[..., :61, :50])


def test_the_published_network_has_the_published_names() -> None:
    state = published(
        width=768,
        depth=12,
        hidden=3072,
        side=14,
        units=(3, 4, 9),
        root=64,
        before=512,
        channels=(256, 128, 64, 16),
        classes=9,
        empty=True,
    )
    plan = beckschen.LAYOUT.plan(Files("TU_Synapse224", state, "pickle"), None)
    assert plan.config == VARIANTS["transunet_r50_b16"]
    assert plan.record.architecture == "transunet_r50_b16"
    with torch.device("meta"):
        ours = TransUNet(plan.config).state_dict()
    assert {row.ours for row in plan.rows} == set(ours)
    assert {one for row in plan.rows for one in row.theirs} == set(state)
    for row in plan.rows:
        for one, part in zip(row.theirs, row.write(ours[row.ours]), strict=True):
            assert state[one].shape == part.shape


def test_files_that_do_not_tell_enough_or_too_much_are_refused(tmp_path: Path) -> None:
    state = dict(published())
    torch.save(state, tmp_path / "narrow.pth")
    with pytest.raises(CheckpointError, match="How many heads share 32 channels cannot be seen"):
        load_model(tmp_path / "narrow.pth")
    torch.save({**state, "transformer.extra": torch.zeros(2)}, tmp_path / "more.pth")
    with pytest.raises(CheckpointError, match=r"transformer\.extra"):
        load_model(tmp_path / "more.pth", architecture=named(4))
    torch.save({**state, "transformer.embeddings.position_embeddings": torch.zeros(1, 15, 32)}, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match="positions for 15 patches, which form no square"):
        load_model(tmp_path / "odd.pth", architecture=named(4))
