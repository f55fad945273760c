"""The block in its arrangements against torch's and timm's, and stochastic depth against its expectation."""

from __future__ import annotations

import pytest
import torch
from timm.models.vision_transformer import ResPostBlock
from torch import nn

from vitral.layers.attention import SelfAttention
from vitral.layers.block import Block, DropPath
from vitral.layers.mlp import Mlp
from vitral.layers.norm import LayerScale


def block(placement: str, **options: object) -> Block:
    ours = Block(SelfAttention(32, 4), Mlp(32, 48), (nn.LayerNorm(32), nn.LayerNorm(32)), placement=placement, **options)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(0.1, 0.3)
    return ours.eval()


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_norms_before_or_after_the_sum_as_in_torch(placement: str) -> None:
    ours = block(placement)
    theirs = nn.TransformerEncoderLayer(
        32, 4, 48, dropout=0.0, activation="gelu", batch_first=True, norm_first=placement == "pre"
    ).eval()
    names = {
        "self_attn.in_proj_": "attention.qkv.",
        "self_attn.out_proj.": "attention.projection.",
        "linear1.": "mlp.up.",
        "linear2.": "mlp.down.",
        "norm1.": "norm1.",
        "norm2.": "norm2.",
    }
    state = ours.state_dict()
    copied = {t + part: state[o + part] for t, o in names.items() for part in ("weight", "bias")}
    theirs.load_state_dict(copied, strict=True)
    x = torch.randn(2, 7, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)


def test_norms_at_the_end_of_the_branches_as_in_timm() -> None:
    ours, theirs = block("res_post"), ResPostBlock(32, 4, mlp_ratio=1.5, qkv_bias=True, norm_layer=nn.LayerNorm).eval()
    names = {"qkv": "attention.qkv", "proj": "attention.projection"}
    pairs = {f"attn.{t}": o for t, o in names.items()}
    pairs |= {"mlp.fc1": "mlp.up", "mlp.fc2": "mlp.down", "norm1": "norm1", "norm2": "norm2"}
    state = ours.state_dict()
    copied = {f"{t}.{part}": state[f"{o}.{part}"] for t, o in pairs.items() for part in ("weight", "bias")}
    theirs.load_state_dict(copied, strict=True)
    x = torch.randn(2, 7, 32)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)


def test_the_second_norm_between_the_branches_is_written_out() -> None:
    """Hassani et al.'s code: y = norm(x + attention(norm x)), then y + mlp(y)."""
    ours, x = block("between"), torch.randn(2, 7, 32)
    y = nn.functional.layer_norm(x, (32,), ours.norm1.weight, ours.norm1.bias)
    y = nn.functional.layer_norm(x + ours.attention(y), (32,), ours.norm2.weight, ours.norm2.bias)
    torch.testing.assert_close(ours(x), y + ours.mlp(y), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("placement", ["pre", "post", "res_post"])
def test_layer_scale_of_zero_takes_the_branches_out(placement: str) -> None:
    ours = block(placement, scales=(LayerScale(32, 0.5), LayerScale(32, 0.5)))
    x = torch.randn(2, 7, 32)
    torch.nn.init.zeros_(ours.scale1.gain)
    torch.nn.init.zeros_(ours.scale2.gain)
    # Only "post" has its norms outside the branches.
    expected = ours.norm2(ours.norm1(x)) if placement == "post" else x
    torch.testing.assert_close(ours(x), expected)


def test_drop_path_keeps_the_expectation_and_drops_whole_samples() -> None:
    drop, x = DropPath(0.25).train(), torch.ones(20000, 2, 3)
    dropped = drop(x)
    # 20000 draws: the mean's deviation is sqrt(0.25 · 0.75 / 20000) / 0.75 ≈ 0.004.
    assert dropped.mean().item() == pytest.approx(1, abs=0.02)
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.75])
    per_sample = dropped.flatten(1)
    assert torch.equal(per_sample.min(1).values, per_sample.max(1).values)
    assert (per_sample[:, 0] == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)


def test_drop_path_does_nothing_in_evaluation_or_at_probability_zero() -> None:
    x = torch.randn(4, 5, 6)
    assert DropPath(0.9).eval()(x) is x
    assert DropPath(0.0).train()(x) is x


def test_a_block_in_training_drops_either_branch_of_a_sample() -> None:
    ours, x = block("pre", drop_path=0.5), torch.randn(1, 7, 32).expand(64, -1, -1)
    with torch.no_grad():
        whole = ours.eval()(x)[0]
        came = ours.train()(x)
    unchanged = sum(torch.equal(sample, x[0]) for sample in came)
    assert 4 <= unchanged <= 32, "both branches are dropped for about a quarter of the samples"
    assert not any(torch.allclose(sample, whole) for sample in came), "what is kept is scaled up by 2"
