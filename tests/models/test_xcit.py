"""Cross-covariance transformers through the harness, and what is their own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from tests.models.harness import Harness
from vitral.errors import UsageError
from vitral.explanation.capture import capture
from vitral.models.backbones.xcit import VARIANTS, XCiTConfig
from vitral.models.catalogue import create_model

SMALL = {"width": 32, "depth": 2, "heads": 2, "mlp_width": 48}


class TestXCiT(Harness):
    kinds: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "xcit_nano_12_p16": SMALL,
        "xcit_tiny_24_p8": {**SMALL, "class_depth": 1, "drop_path": 0.1},
        "xcit_small_12_p16: without positions": {**SMALL, "positions": False, "qkv_bias": False, "channels": 1, "patch": 4},
    }
    bf16 = 4e-2  # twice as many parts follow each other as in a ViT of this depth

    def test_class_attention_learns_fastest_of_all_blocks(self, kind: str) -> None:
        depths = self.small(kind).depths()
        assert {place for name, place in depths.items() if name.startswith("reading.")} == {3}
        assert {place for name, place in depths.items() if name.startswith("blocks.1.")} == {2}
        assert {place for name, place in depths.items() if name.startswith(("stem.", "positions."))} == {0}

    @torch.no_grad()
    def test_maps_of_channels_and_of_the_class_token_can_be_captured(self, kind: str) -> None:
        model = self.small(kind)
        with capture(model) as maps:
            out = model(self.pictures(model, 2, (64, 48)))
        channels = [maps[f"blocks.{place}"] for place in range(2)]
        assert [one.shape for one in channels] == [(2, 2, 16, 16)] * 2
        reading = maps["reading.blocks.0"]
        assert reading.shape == (2, 2, 1, out.tokens.shape[1])
        for one in (*channels, reading):
            torch.testing.assert_close(one.sum(-1), torch.ones(one.shape[:-1]))

    @torch.no_grad()
    def test_the_parts_of_a_block_add_up(self, kind: str) -> None:
        model = self.small(kind)
        parts = ("residual_pre", "attention_output", "residual_mid", "mlp_output", "residual_post")
        with capture(model, 1, parts=parts) as seen:
            model(self.pictures(model, 1, (64, 48)))
        mid, added, after = (seen[1, part] for part in ("residual_mid", "mlp_output", "residual_post"))
        torch.testing.assert_close(mid + added, after, atol=1e-4, rtol=1e-4)
        block, attended = model.blocks[1], seen[1, "residual_pre"] + seen[1, "attention_output"]
        local = block.scale3(block.local(block.norm3(attended), model.config.grid_of((64, 48))))
        torch.testing.assert_close(attended + local, mid, atol=1e-4, rtol=1e-4)


# Table 1 of the paper, in millions.
@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("nano_12_p16", 3),
        ("tiny_12_p8", 7),
        ("tiny_24_p16", 12),
        ("small_12_p16", 26),
        ("small_24_p8", 48),
        ("medium_24_p16", 84),
        ("large_24_p8", 189),
    ],
)
def test_the_published_number_of_parameters(name: str, millions: int) -> None:
    with torch.device("meta"):
        model = create_model(f"xcit_{name}")
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6) == millions


def test_all_fourteen_are_there() -> None:
    assert len(VARIANTS) == 14
    assert {name for name, one in VARIANTS.items() if not one.class_norm_all} == {"xcit_nano_12_p16", "xcit_nano_12_p8"}


@torch.no_grad()
def test_positions_are_sines_and_cosines_of_rows_and_columns() -> None:
    model = create_model("xcit_nano_12_p16", **SMALL)
    positions = model.positions
    assert positions is not None
    nn.init.zeros_(positions.projection.weight)
    positions.projection.weight[:, :32] += torch.eye(32)  # the rows' numbers
    positions.projection.bias.zero_()
    found = positions((5, 3))[0].unflatten(0, (5, 3))
    for row in range(5):
        for pair in range(16):
            angle = (row + 1) / 5 * 2 * math.pi / 10000 ** (pair / 16)
            expected = torch.tensor([math.sin(angle), math.cos(angle)])
            torch.testing.assert_close(found[row, 2, 2 * pair : 2 * pair + 2], expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_neighbours_meet_by_the_local_interaction_alone() -> None:
    """Without it, exchanging two tokens that enter the blocks exchanges what leaves them, and no more."""
    model = TestXCiT.small("xcit_nano_12_p16")
    tokens, order = torch.randn(1, 12, 32), torch.tensor([0, 1, 2, 7, 4, 5, 6, 3, 8, 9, 10, 11])

    def through(entering: torch.Tensor) -> torch.Tensor:
        for block in model.blocks:
            entering = block(entering, (3, 4))
        return entering

    assert (through(tokens[:, order]) - through(tokens)[:, order]).abs().max() > 0.1
    for block in model.blocks:
        nn.init.zeros_(block.scale3.gain)
    torch.testing.assert_close(through(tokens[:, order]), through(tokens)[:, order], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"patch": 12}, "patch must be a power of two"),
        ({"heads": 5}, "width 384 is not a multiple of heads 5"),
        ({"width": 36, "heads": 2, "patch": 16}, "half the patch, 8"),
        ({"class_depth": 0}, "class_depth must be from 1 to 100; 0 came"),
        ({"drop_path": 1.5}, "drop_path must be from 0.0 to 0.999; 1.5 came"),
    ],
)
def test_what_cannot_be_built_is_refused(wrong: dict[str, int], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        XCiTConfig(**wrong)


def test_pictures_of_other_channels_are_refused() -> None:
    with pytest.raises(UsageError, match="takes pictures of 3 channels; 1 came"):
        TestXCiT.small("xcit_nano_12_p16")(torch.randn(1, 1, 32, 32))


def test_the_classifier_reads_no_single_token() -> None:
    with pytest.raises(UsageError, match="classifier of a XCiT cannot read one token alone"):
        TestXCiT.small("xcit_nano_12_p16").read_tokens(torch.randn(1, 4, 32))
