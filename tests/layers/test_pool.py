"""Attention pooling against timm's, sequence pooling against its formula."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from timm.layers import AttentionPoolLatent, RmsNorm
from torch import nn

from vitral.layers.pool import AttentionPool, SequencePool


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_attention_pooling_is_timms(norm: str) -> None:
    ours = AttentionPool(32, 4, 48, norm=norm)
    kind = {"layer": partial(nn.LayerNorm, eps=1e-6), "rms": partial(RmsNorm, eps=1e-6)}[norm]
    theirs = AttentionPoolLatent(32, num_heads=4, mlp_ratio=1.5, norm_layer=kind).eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(0.1, 0.3)
    state = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    copied = {"latent": state["query"], "norm.weight": state["norm.weight"]}
    for part in ("weight", "bias"):
        copied |= {f"q.{part}": state[f"query_projection.{part}"], f"kv.{part}": state[f"key_value.{part}"]}
    if norm == "layer":
        copied["norm.bias"] = state["norm.bias"]
    for their, our in {"proj": "projection", "mlp.fc1": "mlp.up", "mlp.fc2": "mlp.down"}.items():
        copied |= {f"{their}.{part}": state[f"{our}.{part}"] for part in ("weight", "bias")}
    theirs.load_state_dict(copied, strict=True)
    tokens = torch.randn(3, 10, 32)
    torch.testing.assert_close(ours(tokens), theirs(tokens), atol=1e-5, rtol=1e-5)


def test_the_order_of_the_tokens_does_not_matter() -> None:
    pool, tokens = AttentionPool(32, 4, 48), torch.randn(2, 10, 32)
    nn.init.normal_(pool.query)
    torch.testing.assert_close(pool(tokens), pool(tokens[:, torch.randperm(10)]), atol=1e-6, rtol=1e-5)


def test_sequence_pooling_weighs_each_token_by_its_score() -> None:
    """Hassani et al. 2021: softmax over the tokens of one number each, then the weighted mean."""
    pool = SequencePool(24)
    with torch.no_grad():
        pool.score.weight.normal_(0, 0.5)
        pool.score.bias.fill_(3.0)
    tokens = torch.randn(3, 7, 24)
    worth = torch.softmax(tokens.double() @ pool.score.weight[0].double() + 3.0, dim=1)
    expected = (worth[:, :, None] * tokens.double()).sum(1)
    torch.testing.assert_close(pool(tokens).double(), expected, atol=1e-6, rtol=1e-6)
    assert torch.equal(pool(tokens[:, :1]), tokens[:, 0])
