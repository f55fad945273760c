"""MLP-Mixer, through the harness that every backbone goes through; for parity see tests/parity."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F

from tests.models.harness import Harness, assert_close, stirred
from vitral.errors import UsageError
from vitral.models.backbones.mixer import TokenMixing
from vitral.models.catalogue import create_model

SMALL = {"width": 16, "depth": 2, "token_hidden": 12, "channel_hidden": 24}


class TestMixer(Harness):
    kinds: ClassVar[dict[str, dict[str, Any]]] = {
        "mixer_b16": {**SMALL, "image_size": 64},
        "mixer_s32: oblong, one channel": {**SMALL, "image_size": (64, 96), "channels": 1, "activation": "gelu_tanh"},
        "mixer_s16": {**SMALL, "image_size": (61, 43), "depth": 5},
    }


# Table 1 of the paper, in millions; of the classifier of ImageNet-1k, where the paper counts without one.
COUNTS = {"s32": 19, "s16": 18, "b32": 60, "b16": 59, "l32": 206, "l16": 207, "h14": 431}


@pytest.mark.parametrize(("size", "millions"), COUNTS.items())
def test_sizes_are_the_published_ones(size: str, millions: int) -> None:
    with torch.device("meta"):
        model = create_model(f"mixer_{size}")
    count = sum(p.numel() for p in model.parameters())
    without_head = count - sum(p.numel() for p in model.head.parameters())
    assert abs(without_head / 1e6 - millions) < 1.0
    if size == "b16":
        assert count == 59_880_472


@torch.no_grad()
def test_token_mixing_is_the_equation_of_the_paper() -> None:
    mixing = TokenMixing((2, 3), 5, "gelu")
    tokens = torch.randn(4, 6, 7)
    turned = tokens.transpose(1, 2)
    expected = F.linear(F.gelu(F.linear(turned, mixing.up.weight, mixing.up.bias)), mixing.down.weight, mixing.down.bias)
    torch.testing.assert_close(mixing(tokens, (2, 3)), expected.transpose(1, 2))


@torch.no_grad()
def test_a_picture_enlarged_gives_nearly_the_answer_it_gave() -> None:
    """Of weights that change smoothly with the place, as trained ones do; and nowhere near it if nothing were carried."""
    model = stirred(create_model("mixer_b16", 5, **SMALL, patch_size=4, image_size=32))
    smooth = torch.randn(2, 3, 2, 2)
    for block in model.blocks:
        mixing = block.attention
        mixing.up.weight.copy_(F.interpolate(torch.randn(12, 1, 2, 2), size=(8, 8), mode="bilinear").flatten(1) / 8)
        mixing.down.weight.copy_(F.interpolate(torch.randn(12, 1, 2, 2), size=(8, 8), mode="bilinear").flatten(1).T)
    picture = F.interpolate(smooth, size=(32, 32), mode="bicubic")
    answer = model(picture).logits
    for size in ((64, 64), (48, 96)):
        larger = F.interpolate(smooth, size=size, mode="bicubic")
        assert_close(model(larger).logits, answer, 0.1)
    other = model(F.interpolate(torch.randn(2, 3, 2, 2), size=(32, 32), mode="bicubic")).logits
    assert (other - answer).abs().max() > 0.3 * answer.abs().max()


@torch.no_grad()
def test_a_network_resized_answers_as_the_first_one_at_that_size() -> None:
    model = stirred(create_model("mixer_b16", 5, **SMALL, image_size=64))
    again = model.resized((96, 48))
    assert again.blocks[0].attention.up.weight.shape == (12, 18)
    pixels = torch.randn(2, 3, 96, 48)
    assert_close(again(pixels).logits, model(pixels).logits, 1e-6)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match=r"image_size \(8, 8\) is smaller than one patch of \(16, 16\)"):
        create_model("mixer_b16", image_size=8)
    with pytest.raises(UsageError, match="no classifier"):
        create_model("mixer_b16", 0, **SMALL).read_tokens(torch.zeros(1, 4, 16))
