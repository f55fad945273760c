"""Spatial-reduction attention, its feed-forward network and its embedding against timm and brute force."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from timm.models.pvt_v2 import Attention, MlpWithDepthwiseConv, OverlapPatchEmbed
from torch import nn

from vitral.layers.block import Block
from vitral.layers.conv_mlp import ConvMlp, GridBlock
from vitral.layers.overlapping import OverlappingEmbedding
from vitral.layers.spatial_reduction import SpatialReductionAttention

NAMES = {"q": "query", "kv": "key_value", "proj": "projection", "sr": "reduce", "norm": "norm", "fc1": "up", "fc2": "down"}
NAMES |= {"dwconv": "neighbours"}


def given(ours: nn.Module, theirs: nn.Module) -> None:
    """Give our layer the weights of timm's."""
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.3)
    state = {}
    for name, tensor in theirs.state_dict().items():
        part, _, rest = name.partition(".")
        state[f"{NAMES[part]}.{rest}"] = tensor
    ours.load_state_dict(state)


@torch.no_grad()
@pytest.mark.parametrize(("reduction", "linear"), [(1, False), (2, False), (3, False), (4, True)])
def test_it_is_timms(reduction: int, linear: bool) -> None:
    ours = SpatialReductionAttention(12, 3, reduction, linear=linear)
    theirs = Attention(12, 3, sr_ratio=reduction, linear_attn=linear)
    given(ours, theirs)
    for grid in ((8, 8), (9, 5), (3, 11)):
        tokens = torch.randn(2, grid[0] * grid[1], 12)
        torch.testing.assert_close(ours(tokens, grid), theirs(tokens, grid), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_it_is_what_the_paper_says() -> None:
    layer = SpatialReductionAttention(6, 2, 2)
    tokens, grid = torch.randn(1, 5 * 4, 6), (5, 4)
    cells = tokens[0].view(5, 4, 6)
    kernel = layer.reduce.weight
    seen = [  # four windows of 2 × 2 cells; the fifth row is left out
        torch.einsum("dcyx,yxc->d", kernel, cells[2 * i : 2 * i + 2, 2 * j : 2 * j + 2]) + layer.reduce.bias
        for i in range(2)
        for j in range(2)
    ]
    keys, values = layer.key_value(layer.norm(torch.stack(seen))).chunk(2, dim=-1)
    queries = layer.query(tokens[0])
    heads = []
    for part in (slice(0, 3), slice(3, 6)):
        weights = (queries[:, part] @ keys[:, part].T / 3**0.5).softmax(-1)
        heads.append(weights @ values[:, part])
    torch.testing.assert_close(layer(tokens, grid)[0], layer.projection(torch.cat(heads, -1)), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_one_product_is_asked_with_the_fewer_keys() -> None:
    sizes: list[tuple[int, int]] = []
    for reduction, linear, keys in ((1, False, 64), (4, False, 4), (1, True, 49)):
        layer = SpatialReductionAttention(8, 2, reduction, linear=linear)
        layer.product.register_forward_hook(lambda _, args, out: sizes.append((args[0].shape[2], args[1].shape[2])))
        layer(torch.randn(1, 64, 8), (8, 8))
        assert sizes[-1] == (64, keys)


@torch.no_grad()
def test_a_map_smaller_than_a_window_is_filled_up_with_zeros() -> None:
    layer = SpatialReductionAttention(8, 2, 4)
    small = torch.randn(1, 6, 8)
    filled = torch.zeros(1, 4, 4, 8)
    filled[:, :2, :3] = small.view(1, 2, 3, 8)
    key = layer.norm(layer.reduce(filled.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2))
    only = layer.key_value(key)[..., 8:]  # one key alone is all that is attended to
    torch.testing.assert_close(layer(small, (2, 3)), layer.projection(only).expand(1, 6, 8), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("rectified", [False, True])
def test_the_feed_forward_network_is_timms(rectified: bool) -> None:
    ours, theirs = ConvMlp(6, 10, rectified=rectified), MlpWithDepthwiseConv(6, 10, extra_relu=rectified)
    given(ours, theirs)
    tokens = torch.randn(2, 20, 6)
    torch.testing.assert_close(ours(tokens, (5, 4)), theirs(tokens, (5, 4)), atol=1e-5, rtol=1e-5)
    seen: list[torch.Tensor] = []
    handle = ours.neighbours.register_forward_hook(lambda module, inputs, output: seen.append(output))
    watched = ours(tokens, (5, 4))
    handle.remove()
    hidden = ours.up(tokens).transpose(1, 2).unflatten(2, (5, 4))
    assert torch.equal(seen[0], ours.neighbours(F.relu(hidden) if rectified else hidden))
    assert torch.equal(watched, ours(tokens, (5, 4)))


def test_gradients_are_those_of_the_overwriting_road() -> None:
    layer = ConvMlp(6, 10)
    tokens = torch.randn(1, 12, 6)
    recorded = layer(tokens, (3, 4))
    with torch.no_grad():
        torch.testing.assert_close(layer(tokens, (3, 4)), recorded)
    recorded.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in layer.parameters())


@torch.no_grad()
def test_the_embedding_is_timms() -> None:
    for kernel, stride in ((7, 4), (3, 2)):
        ours, theirs = OverlappingEmbedding(3, 8, kernel, stride), OverlapPatchEmbed(kernel, stride, 3, 8)
        given(ours, theirs)
        for size in ((32, 32), (29, 41), (1, 2)):
            pixels = torch.randn(1, 3, *size)
            tokens, grid = ours(pixels)
            expected = theirs(pixels)
            assert grid == tuple(expected.shape[1:3]) == (-(-size[0] // stride), -(-size[1] // stride))
            torch.testing.assert_close(tokens, expected.flatten(1, 2), atol=1e-5, rtol=1e-5)


def test_a_block_tells_both_branches_the_grid() -> None:
    attention, mlp = SpatialReductionAttention(8, 2, 2), ConvMlp(8, 16)
    block = GridBlock(attention, mlp, (nn.LayerNorm(8), nn.LayerNorm(8)))
    assert isinstance(block, Block)
    tokens, grid = torch.randn(2, 16, 8), (4, 4)
    between = tokens + attention(block.norm1(tokens), grid)
    torch.testing.assert_close(block(tokens, grid), between + mlp(block.norm2(between), grid))
    dropping = GridBlock(attention, mlp, (nn.LayerNorm(8), nn.LayerNorm(8)), drop_path=0.999).train()
    assert torch.equal(dropping(tokens, grid), tokens)
