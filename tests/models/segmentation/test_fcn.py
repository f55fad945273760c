"""Fully convolutional networks through the harness, on residual networks and on VGG, and what is their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F

from tests.models.segmentation.harness import SegmentationHarness
from vitral.errors import UsageError
from vitral.models.backbones.resnet import ResNetConfig
from vitral.models.catalogue import CATALOGUE
from vitral.models.segmentation.fcn import FCNConfig
from vitral.models.segmentation.fcn_vgg import VARIANTS, FCNVGGConfig

SMALL = FCNConfig(
    image_size=(64, 64),
    num_classes=5,
    backbone=ResNetConfig(
        block="basic", stem_width=8, stage_channels=(8, 12, 16, 24), depths=(1, 1, 2, 1), dilated=2, num_classes=0
    ),
)
SMALL_VGG = FCNVGGConfig(
    image_size=(32, 32), num_classes=5, stage_channels=(4, 4, 6, 6, 8), depths=(1, 1, 2, 1, 1), hidden_width=16, dropout=0.2
)


class TestFCN(SegmentationHarness):
    kinds: ClassVar[Mapping[str, Any]] = {
        "basic": SMALL,
        "bottlenecks, alone, in grey": replace(
            SMALL,
            channels=1,
            backbone=ResNetConfig(stem_width=8, stage_channels=(16, 32, 32, 48), depths=(1, 1, 1, 2), dilated=2),
            auxiliary=False,
        ),
    }
    cells = 8
    auxiliary: ClassVar[Mapping[str, int]] = {"bottlenecks, alone, in grey": 0}


class TestFCNVGG(SegmentationHarness):
    kinds: ClassVar[Mapping[str, Any]] = {
        "32s, in grey": replace(SMALL_VGG, finest="32", channels=1),
        "16s": replace(SMALL_VGG, finest="16"),
        "8s": SMALL_VGG,
    }
    cells = 1
    sizes: ClassVar[tuple[tuple[int, int], ...]] = ((32, 32), (29, 41), (1, 50))
    auxiliary: ClassVar[Mapping[str, int]] = dict.fromkeys(kinds, 0)


def parameters(name: str) -> dict[str, int]:
    with torch.device("meta"):
        model = CATALOGUE[name].build(CATALOGUE[name].config)
    return {name: parameter.numel() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(("name", "count"), [("fcn_r50", 35_322_218), ("fcn_r101", 54_314_346)])
def test_torchvisions_number_of_parameters(name: str, count: int) -> None:
    assert sum(parameters(name).values()) == count


def test_the_papers_number_of_parameters() -> None:
    counts = parameters("fcn8s_vgg16")
    body = sum(count for name, count in counts.items() if name.startswith(("blocks", "hidden")))
    assert body == 138_357_544 - (4096 * 1000 + 1000)  # VGG-16 without its last layer
    scores = sum(width * 21 + 21 for width in (4096, 512, 256))
    enlarging = 21 * 21 * (4 * 4 + 4 * 4 + 16 * 16)
    assert sum(counts.values()) == body + scores + enlarging == 134_489_759  # "134M" in table 1
    assert sum(parameters("fcn32s_vgg16").values()) == body + 4096 * 21 + 21 + 21 * 21 * 64 * 64
    sixteen = 4096 * 21 + 21 + 512 * 21 + 21 + 21 * 21 * (4 * 4 + 32 * 32)
    assert sum(parameters("fcn16s_vgg16").values()) == body + sixteen


class Place:
    """Where a cell of a map lies in the picture, as a line: cell = scale · pixel + shift."""

    def __init__(self, scale: float = 1.0, shift: float = 0.0) -> None:
        self.scale, self.shift = scale, shift

    def windowed(self, kernel: int, stride: int = 1, padding: int = 0) -> Place:
        return Place(self.scale / stride, (self.shift + padding - (kernel - 1) / 2) / stride)

    def enlarged(self, kernel: int, stride: int) -> Place:
        return Place(self.scale * stride, self.shift * stride + (kernel - 1) / 2)


@torch.no_grad()
@pytest.mark.parametrize("finest", ["32", "16", "8"])
def test_what_is_cut_off_follows_from_the_windows(finest: Any) -> None:
    """What each cell sees is followed through the windows; the paper's network is computed with cuts that follow from it."""
    model = TestFCNVGG.small("8s", finest=finest)
    pixels = torch.randn(1, 3, 45, 70)
    x, place, pooled = pixels, Place(), []
    blocks = iter(model.blocks)
    for stage, depth in enumerate(model.config.depths):
        for index in range(depth):
            border = 100 if not stage + index else 1
            conv = next(blocks).conv
            x, place = F.relu(F.conv2d(x, conv.weight, conv.bias, padding=border)), place.windowed(3, 1, border)
        x, place = F.max_pool2d(x, 2, 2, ceil_mode=True), place.windowed(2, 2)
        pooled.append((x, place))
    for layer, kernel in zip(model.hidden, (7, 1), strict=True):
        x, place = F.relu(F.conv2d(x, layer.conv.weight, layer.conv.bias)), place.windowed(kernel)
    x = F.conv2d(x, model.scores[0].weight, model.scores[0].bias)
    for score, enlarge, (fine, where) in zip(model.scores[1:], model.enlarging, reversed(pooled[:-1]), strict=False):
        x, place = F.conv_transpose2d(x, enlarge.weight, stride=2), place.enlarged(4, 2)
        assert place.scale == where.scale
        margin = where.shift - place.shift
        assert margin == round(margin)
        wanted = F.conv2d(fine, score.weight, score.bias)[:, :, round(margin) :, round(margin) :]
        x = x + wanted[:, :, : x.shape[2], : x.shape[3]]
    stride = int(finest)
    x, place = F.conv_transpose2d(x, model.enlarging[-1].weight, stride=stride), place.enlarged(2 * stride, stride)
    assert place.scale == 1
    before = round(place.shift)
    expected = x[:, :, before : before + 45, before : before + 70]
    torch.testing.assert_close(model(pixels).logits, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", list(VARIANTS))
def test_enlarging_begins_as_interpolation_and_scores_as_nothing(name: str) -> None:
    config = replace(SMALL_VGG, finest=VARIANTS[name].finest)
    model = CATALOGUE[name].build(config)
    x = torch.randn(2, 5, 6, 7)
    for layer in model.enlarging:
        times = layer.stride[0]
        expected = F.interpolate(x, scale_factor=times, mode="bilinear", align_corners=False)
        cut, edge = times // 2, times  # at the edges interpolation repeats, and these layers see zeros
        ours = layer(x)[:, :, cut:-cut, cut:-cut]
        torch.testing.assert_close(
            ours[:, :, edge:-edge, edge:-edge], expected[:, :, edge:-edge, edge:-edge], atol=1e-5, rtol=1e-4
        )
    assert not model.eval()(torch.randn(1, 3, 20, 20)).logits.any()


def test_the_last_maps_are_kept_large() -> None:
    assert FCNConfig().grid == (65, 65)
    assert FCNConfig().stride == 8
    assert FCNVGGConfig().depth == 13


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"depths": (1, 1, 1, 1)}, "five stages of 1 to 100 convolutions"),
        ({"depths": (1, 1, 1, 1, 0)}, "five stages of 1 to 100 convolutions"),
        ({"finest": "4"}, "Unknown finest of a FCNVGGConfig '4'"),
        ({"num_classes": 0}, "num_classes must be from 1"),
    ],
)
def test_what_cannot_be_built_is_refused(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        replace(SMALL_VGG, **wrong)


def test_pictures_of_other_channels_are_refused() -> None:
    for model in (TestFCN.small("basic"), TestFCNVGG.small("8s")):
        with pytest.raises(UsageError, match="pictures of 3 channels; 1 came"):
            model(torch.zeros(1, 1, 32, 32))
