"""SegFormers through the harness, the published sizes, and that the layers of its decoder change places rightly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.models.harness import assert_close
from tests.models.segmentation.harness import SegmentationHarness
from vitral.errors import UsageError
from vitral.models.backbones.mit import MiTConfig
from vitral.models.catalogue import create_model
from vitral.models.segmentation.segformer import SegFormerConfig

SMALL = SegFormerConfig(
    image_size=(64, 64),
    num_classes=5,
    backbone=MiTConfig(widths=(8, 16, 20, 16), depths=(1, 2, 1, 1), heads=(1, 2, 5, 2), mlp_ratios=(2, 2, 2, 2)),
    decoder_width=12,
)


class TestSegFormer(SegmentationHarness):
    kinds: ClassVar[Mapping[str, Any]] = {
        "small": SMALL,
        "three stages, in grey": replace(
            SMALL,
            channels=1,
            decoder_dropout=0.0,
            backbone=MiTConfig(
                widths=(8, 16, 20), depths=(1, 1, 1), heads=(1, 2, 5), reductions=(3, 2, 2), mlp_ratios=(2, 2, 1)
            ),
        ),
    }
    maps: ClassVar[Mapping[str, int]] = {"small": 5, "three stages, in grey": 3}
    auxiliary: ClassVar[Mapping[str, int]] = {"small": 0, "three stages, in grey": 0}
    # A map's bias shifts whole channels, and in training the norm takes their means away.
    idle = (r"decoder\.projections\.\d\.bias",)


# Table 1 of the paper, in millions, for ADE20K's 150 classes.
@pytest.mark.parametrize(
    ("name", "millions"), [("b0", 3.8), ("b1", 13.7), ("b2", 27.5), ("b3", 47.3), ("b4", 64.1), ("b5", 84.7)]
)
def test_the_published_number_of_parameters(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = create_model(f"segformer_{name}")
    assert round(sum(one.numel() for one in model.parameters()) / 1e6, 1) == millions


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("learning", [False, True])
def test_the_decoder_is_the_papers(training: bool, learning: bool) -> None:
    model = TestSegFormer.small("small")
    decoder = model.decoder.train(training)
    maps = [torch.randn(2, width, 16 // 2**level, 12 // 2**level) for level, width in enumerate((8, 16, 20, 16))]
    with torch.set_grad_enabled(learning):
        norm = nn.BatchNorm2d(12)
        norm.load_state_dict(decoder.norm.state_dict())
        projected = [layer(one.movedim(1, -1)).movedim(-1, 1) for layer, one in zip(decoder.projections, maps, strict=True)]
        enlarged = [F.interpolate(one, (16, 12), mode="bilinear", align_corners=False) for one in projected]
        expected = norm.train(training)(decoder.fuse(torch.cat(enlarged[::-1], dim=1))).relu()
        assert_close(decoder(maps), expected, 1e-5)
    assert_close(decoder.norm.running_var, norm.running_var, 1e-5)


@torch.no_grad()
def test_changed_weights_count_at_once() -> None:
    model, pixels = TestSegFormer.small("small"), torch.randn(1, 3, 64, 64)
    before = model(pixels).logits
    for tensor in (model.decoder.norm.running_mean, model.decoder.fuse.weight, model.decoder.projections[3].bias):
        tensor.data.add_(0.5)
        after = model(pixels).logits
        assert not torch.allclose(after, before)
        before = after


def test_the_encoder_is_made_for_the_same_pictures() -> None:
    config = SegFormerConfig(image_size=(320, 480), channels=1)
    assert (config.backbone.image_size, config.backbone.channels, config.backbone.num_classes) == ((320, 480), 1, 0)
    assert (config.stride, config.width, config.grid) == (32, 512, (10, 15))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"num_classes": 0}, "num_classes must be from 1"),
        ({"decoder_width": 0}, "decoder_width must be from 1"),
        ({"decoder_dropout": 1.0}, "decoder_dropout must be from 0.0 to 0.999"),
    ],
)
def test_what_cannot_be_built_is_refused(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        SegFormerConfig(**wrong)
