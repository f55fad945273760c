"""YOLOS through the harness, and what is its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch

from tests.models.detection.harness import DetectorHarness
from tests.models.harness import assert_close
from vitral.errors import UsageError
from vitral.explanation.capture import capture
from vitral.models.catalogue import CATALOGUE
from vitral.models.detection.yolos import YOLOSConfig

SMALL = YOLOSConfig(image_size=(48, 80), num_classes=5, queries=6, width=32, depth=3, heads=4, mlp_width=48)


class TestYOLOS(DetectorHarness):
    kinds: ClassVar[Mapping[str, Any]] = {
        "positions throughout": SMALL,
        "positions once, oblong patches, in grey": replace(
            SMALL, middle_positions=False, patch_size=(16, 8), channels=1, qkv_bias=False, dropout=0.1
        ),
    }

    @torch.no_grad()
    def test_attention_can_be_looked_at(self, kind: str) -> None:
        model = self.small(kind)
        with capture(model) as maps:
            model(self.pictures(model, 1, (64, 48)))
        rows, columns = model.config.grid_of((64, 48))
        assert [one.shape for one in maps] == [(1, 4, 7 + rows * columns, 7 + rows * columns)] * 3

    @torch.no_grad()
    def test_a_resized_network_answers_as_before(self, kind: str) -> None:
        model = self.small(kind)
        larger = model.resized((96, 64))
        assert larger.config.image_size == (96, 64)
        pixels = self.pictures(model, 1, (96, 64))
        assert_close(larger(pixels).logits, model(pixels).logits, 1e-5)

    def test_depths_go_through_the_blocks(self, kind: str) -> None:
        depths = self.small(kind).depths()
        assert depths.get("middle_positions", 0) == depths["vit.register_tokens"] == 0
        assert depths["vit.blocks.1.norm1.weight"] == 2
        assert depths["vit.norm.weight"] == depths["head.layers.0.weight"] == 4


# Table 1 of the paper, in millions.
@pytest.mark.parametrize(
    ("name", "millions"), [("yolos_ti", 6.5), ("yolos_s", 30.7), ("yolos_s_dwr", 27.6), ("yolos_b", 127)]
)
def test_the_published_number_of_parameters(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = CATALOGUE[name].build(CATALOGUE[name].config)
    found = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert (round(found, 1) if millions < 100 else int(found)) == millions  # B's are told without what follows the point


def test_tokens_before_the_patches_have_names() -> None:
    assert SMALL.prefix_names == ("class", *(f"detection {number}" for number in range(1, 7)))
    assert len(SMALL.prefix_names) == SMALL.prefix
    assert SMALL.grid == (3, 5)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"heads": 5}, "width 32 is not a multiple of heads 5"),
        ({"queries": 0}, "queries must be from 1"),
        ({"num_classes": 0}, "num_classes must be from 1"),
        ({"image_size": (8, 64)}, "smaller than one patch"),
    ],
)
def test_what_cannot_be_built_is_refused(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        replace(SMALL, **wrong)
