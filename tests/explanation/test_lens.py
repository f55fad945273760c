"""The logit lens: at the last block the class token's reading is the model's answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.explanation.conftest import question, tiny
from tests.parity.peers import pictures
from vitral.explanation.capture import capture
from vitral.explanation.lens import logit_lens


@pytest.mark.parametrize("options", [{}, {"registers": 2}, {"representation": 20}, {"pool_norm": True, "final_norm": False}])
def test_the_class_tokens_reading_is_the_answer(options: dict[str, Any]) -> None:
    model, pixels = tiny(**options), pictures(32, 48, 2)
    with capture(model, -1, parts="residual_post") as captured:
        logits = model(pixels).logits
    assert logits is not None
    assert (model.read_tokens(captured[-1])[:, 0] - logits).abs().max() < 1e-4


def test_a_single_patch_pooled_by_mean_or_attention_is_read_as_the_picture() -> None:
    """With one patch alone, pooling over patches is pooling over it."""
    for pool in ("mean", "attention"):
        model = tiny(pool=pool, class_token=False, prefix_positions=0)
        pixels = pictures(8, 8, 2)
        with capture(model, -1, parts="residual_post") as captured:
            logits = model(pixels).logits
        assert logits is not None
        assert (model.read_tokens(captured[-1])[:, 0] - logits).abs().max() < 1e-4


@pytest.mark.parametrize("layer", [0, -1])
def test_heat_is_the_classs_probability_at_every_patch(layer: int) -> None:
    model, pixels = tiny(), pictures(32, 48, 2)
    with capture(model, layer, parts="residual_post") as captured:
        model(pixels)
    tokens = captured[layer][:, 1:].detach()
    logits = model.head(model.norm(tokens))  # type: ignore[misc]
    asked = question(model, pixels, [5, 2])
    for place, target in enumerate((5, 2)):
        expected = logits[place].softmax(1)[:, target].view(4, 6)
        assert (logit_lens(asked, layer=layer).values[place] - expected).abs().max() < 1e-5
        raw = logit_lens(asked, layer=layer, value="logit").values[place]
        assert torch.allclose(raw, logits[place, :, target].view(4, 6), rtol=1e-4, atol=1e-4)
