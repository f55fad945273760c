"""Mask transformers through the harness, and what is their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch

from tests.models.harness import assert_close
from tests.models.segmentation.harness import SegmentationHarness
from vitral.errors import UsageError
from vitral.models.backbones.resnet import ResNetConfig
from vitral.models.backbones.swin import SwinConfig
from vitral.models.catalogue import CATALOGUE
from vitral.models.segmentation.maskformer import MaskFormerConfig

RESNET = ResNetConfig(block="basic", stem_width=8, stage_channels=(8, 12, 16), depths=(1, 1, 1))
SWIN = SwinConfig(
    widths=(8, 16, 32), depths=(1, 2, 1), heads=(1, 2, 2), windows=((2, 2),) * 3, shift_rule="always", drop_path=0.0
)
SMALL = MaskFormerConfig(
    image_size=(64, 96),
    num_classes=5,
    backbone=RESNET,
    queries=7,
    width=32,
    mask_width=16,
    decoder_depth=3,
    heads=4,
    mlp_width=40,
    dropout=0.0,
)


class TestMaskFormer(SegmentationHarness):
    kinds: ClassVar[Mapping[str, Any]] = {
        "residual": SMALL,
        "windows, in grey, no projection": replace(SMALL, channels=1, backbone=SWIN, decoder_depth=2),
    }
    # Self-attention and attention to the picture of every block, and those of the backbone.
    maps: ClassVar[Mapping[str, int]] = {"residual": 6, "windows, in grey, no projection": 4 + 4}
    auxiliary: ClassVar[Mapping[str, int]] = {"residual": 2, "windows, in grey, no projection": 1}
    # The first self-attention sees queries that are nothing yet: all tell the same, so that it does not matter who is asked,
    # and nothing is what they tell it of. A number added to all keys changes no softmax.
    idle = (r"decoder\.0\.attention\.(query|key)\..*", r"decoder\.0\.attention\.value\.weight", r".*\.key\.bias")

    @torch.no_grad()
    def test_the_last_of_what_is_said_on_the_way_is_the_answer(self, kind: str) -> None:
        model = self.small(kind)
        pixels = self.pictures(model, 2, (61, 83))
        out, every = model(pixels), model.layer_outputs(pixels)
        assert len(every) == model.config.decoder_depth
        assert_close(every[-1].masks, out.masks, 1e-6)
        assert_close(every[-1].logits, out.logits, 1e-6)
        assert out.canvas is None


def test_depths_go_through_the_network() -> None:
    depths = TestMaskFormer.small("residual").depths()
    assert depths["trunk.network.stem.conv.weight"] == 0
    assert depths["trunk.network.stages.2.0.first.conv.weight"] == 3
    assert depths["pixel_decoder.first.conv.conv.weight"] == depths["decoder.0.norm1.weight"] == 4
    assert depths["head.weight"] == depths["mask_head.layers.2.bias"] == 7


# Cheng et al. 2021, table 1 (ADE20K, 150 classes), in millions.
@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("maskformer_r50", 41),
        ("maskformer_r101", 60),
        ("maskformer_swin_ti", 42),
        ("maskformer_swin_s", 63),
        ("maskformer_swin_b", 102),
        ("maskformer_swin_l", 212),
    ],
)
def test_the_published_number_of_parameters(name: str, millions: int) -> None:
    with torch.device("meta"):
        model = CATALOGUE[name].build(CATALOGUE[name].config)
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6) == millions


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"width": 30, "heads": 5}, "multiple of heads and of 4; width 30 and heads 5"),
        ({"queries": 0}, "queries must be from 1"),
        ({"dropout": 1.0}, "dropout must be from"),
    ],
)
def test_a_wrong_configuration_is_refused(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        replace(SMALL, **wrong)
