"""Detection transformers through the harness, and what is their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch

from tests.models.detection.harness import DetectorHarness
from vitral.errors import UsageError
from vitral.explanation.capture import capture
from vitral.models.backbones.resnet import ResNetConfig
from vitral.models.catalogue import CATALOGUE
from vitral.models.detection.detr import DETRConfig

TINY = ResNetConfig(block="basic", stem_width=8, stage_channels=(8, 12, 16), depths=(1, 1, 1), norm="frozen")
SMALL = DETRConfig(
    image_size=(64, 96),
    num_classes=5,
    backbone=TINY,
    queries=7,
    width=32,
    encoder_depth=2,
    decoder_depth=3,
    heads=4,
    mlp_width=48,
)


class TestDETR(DetectorHarness):
    kinds: ClassVar[Mapping[str, Any]] = {
        "basic": SMALL,
        "dilated, in grey, learning norms": replace(
            SMALL,
            channels=1,
            dropout=0.0,
            backbone=ResNetConfig(stem_width=8, stage_channels=(16, 32, 32), depths=(1, 1, 1), dilated=1),
        ),
    }
    reach = 64
    # The first self-attention of the decoder sees queries that are nothing yet: all tell the same, so that it does not
    # matter who is asked, and nothing is what they tell it of.
    idle = (r"decoder\.0\.attention\.(query|key)\..*", r"decoder\.0\.attention\.value\.weight", r".*\.key\.bias")

    @torch.no_grad()
    def test_three_kinds_of_attention_can_be_looked_at(self, kind: str) -> None:
        model = self.small(kind)
        with capture(model) as maps:
            model(self.pictures(model, 2, (64, 48)))
        cells = (64 // model.config.stride) * (48 // model.config.stride)
        assert [one.shape[2:] for one in maps] == [(cells, cells)] * 2 + [(7, 7), (7, cells)] * 3

    def test_depths_go_through_the_network(self, kind: str) -> None:
        depths = self.small(kind).depths()
        assert depths["backbone.stem.conv.weight"] == 0
        assert depths["backbone.stages.2.0.first.conv.weight"] == 3
        assert depths["projection.weight"] == depths["encoder.0.norm1.weight"] == 4
        assert depths["query_positions.weight"] == depths["decoder.0.norm1.weight"] == 6
        assert depths["norm.weight"] == depths["head.weight"] == 9


def parameters(name: str) -> dict[str, int]:
    with torch.device("meta"):
        model = CATALOGUE[name].build(CATALOGUE[name].config)
    return {name: parameter.numel() for name, parameter in model.named_parameters()}


# Table 1 of the paper, in millions.
@pytest.mark.parametrize(
    ("name", "millions"), [("detr_r50", 41), ("detr_r101", 60), ("detr_r50_dc5", 41), ("detr_r101_dc5", 60)]
)
def test_the_published_number_of_parameters(name: str, millions: int) -> None:
    counts = parameters(name)
    # The authors count what they train, which is neither the stem nor the first stage.
    trained = {name: count for name, count in counts.items() if not name.startswith(("backbone.stem", "backbone.stages.0"))}
    assert sum(trained.values()) // 10**6 == millions
    if name == "detr_r50":
        assert sum(trained.values()) == 41_302_368  # as the log of their training says


def test_the_grid_is_that_of_the_last_map() -> None:
    assert DETRConfig().grid == (25, 42)
    assert CATALOGUE["detr_r50_dc5"].config.grid == (50, 84)


def test_the_residual_network_is_made_for_the_same_pictures() -> None:
    config = DETRConfig(image_size=(320, 480), channels=1)
    assert (config.backbone.image_size, config.backbone.channels, config.backbone.num_classes) == ((320, 480), 1, 0)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"width": 30, "heads": 5}, "multiple of heads and of 4; width 30 and heads 5"),
        ({"width": 32, "heads": 5}, "multiple of heads and of 4; width 32 and heads 5"),
        ({"queries": 0}, "queries must be from 1"),
        ({"num_classes": 0}, "num_classes must be from 1"),
        ({"decoder_depth": 0}, "decoder_depth must be from 1"),
    ],
)
def test_what_cannot_be_built_is_refused(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        replace(SMALL, **wrong)
    if "num_classes" in wrong:
        with pytest.raises(UsageError, match=told):
            TestDETR.small("basic").reset_head(0)
