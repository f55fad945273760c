"""UPerNets through the harness, and what is their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F

from tests.models.segmentation.harness import SegmentationHarness
from vitral.errors import UnknownNameError, UsageError
from vitral.layers.pyramid_pooling import PyramidPooling
from vitral.models.backbones.cvt import CvTConfig
from vitral.models.backbones.pvt import PVTConfig
from vitral.models.backbones.resnet import ResNetConfig
from vitral.models.backbones.swin import SwinConfig
from vitral.models.catalogue import create_model
from vitral.models.segmentation.trunk import Trunk
from vitral.models.segmentation.upernet import VARIANTS, UPerNet, UPerNetConfig

SWIN = SwinConfig(
    widths=(8, 16, 16, 24),
    depths=(1, 1, 2, 1),
    heads=(1, 2, 2, 3),
    windows=((4, 4),) * 4,
    shift_rule="always",
    num_classes=0,
)
RESNET = ResNetConfig(block="basic", stem_width=8, stage_channels=(8, 12, 16, 24), depths=(1, 1, 1, 1), num_classes=0)
SMALL = UPerNetConfig(image_size=(64, 64), num_classes=5, backbone=SWIN, width=16, pool_grids=(1, 2, 3), auxiliary_width=12)


class TestUPerNet(SegmentationHarness):
    kinds: ClassVar[Mapping[str, Any]] = {
        "swin": SMALL,
        "resnet, joined": replace(SMALL, backbone=RESNET, auxiliary_depth=2, auxiliary_joined=True, dropout=0.0),
        "pvt, alone, in grey": replace(
            SMALL,
            channels=1,
            backbone=PVTConfig(
                widths=(8, 16, 24, 32), depths=(1, 1, 1, 1), heads=(1, 2, 3, 4), reductions=(4, 2, 2, 1), num_classes=0
            ),
            auxiliary=False,
        ),
        "cvt": replace(
            SMALL, backbone=CvTConfig(widths=(8, 16, 24), depths=(1, 1, 1), heads=(1, 2, 3), num_classes=0), pool_grids=(2,)
        ),
    }
    maps: ClassVar[Mapping[str, int]] = {"swin": 5, "pvt, alone, in grey": 4, "cvt": 3}
    auxiliary: ClassVar[Mapping[str, int]] = {"pvt, alone, in grey": 0}
    idle = (r".*\.stage_norm\..*",)

    def test_depths_go_through_the_network(self, kind: str) -> None:
        model = self.small(kind)
        depths = model.depths()
        assert min(depths.values()) == 0
        assert depths["head.weight"] == depths["pooling.join.conv.weight"] == model.depth + 1
        backbone = {depth for name, depth in depths.items() if name.startswith("trunk.network.")}
        assert backbone - {model.depth + 1} == set(range(model.depth + 1))


def counted(config: UPerNetConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in UPerNet(config).parameters())


# In millions: of Swin and of ResNet-101 in Liu et al. 2021, table 3.
@pytest.mark.parametrize(
    ("name", "millions"),
    [("upernet_swin_t", 60), ("upernet_swin_s", 81), ("upernet_swin_l", 234), ("upernet_swin_b", 121)],
)
def test_the_published_number_of_parameters(name: str, millions: int) -> None:
    assert round(counted(VARIANTS[name]) / 1e6) == millions


def test_the_number_of_parameters_on_residual_networks() -> None:
    deep = replace(VARIANTS["upernet_r101"], backbone=ResNetConfig(depths=(3, 4, 23, 3), stem="deep"))
    assert round(counted(deep) / 1e6) == 86  # in the same table
    head = 4 * (2048 * 512 + 1024) + (4096 * 512 * 9 + 1024)  # pooled means, and what joins them
    head += (256 + 512 + 1024) * 512 + 3 * 1024 + 3 * (512 * 512 * 9 + 1024)  # beside each map, and behind each sum
    head += 2048 * 512 * 9 + 1024 + 512 * 150 + 150  # all of them side by side, and their classes
    auxiliary = 1024 * 256 * 9 + 512 + 256 * 150 + 150
    assert counted(VARIANTS["upernet_r50"]) == 25_557_032 - 2_049_000 + head + auxiliary


@torch.no_grad()
def test_pyramid_pooling_is_its_definition() -> None:
    layer = PyramidPooling(3, 4, (1, 2)).eval()
    x = torch.randn(2, 3, 6, 8)
    whole = x.mean((2, 3), keepdim=True)
    quarters = torch.stack(
        [torch.stack([x[:, :, 3 * i : 3 * i + 3, 4 * j : 4 * j + 4].mean((2, 3)) for j in (0, 1)], -1) for i in (0, 1)], -2
    )
    seen = [x]
    for means, convolution in zip((whole, quarters), layer.pooled, strict=True):
        told = F.relu(F.conv2d(means, convolution.conv.weight) / (1 + 1e-5) ** 0.5)
        seen.append(F.interpolate(told, size=(6, 8), mode="bilinear", align_corners=False))
    expected = F.relu(F.conv2d(torch.cat(seen, 1), layer.join.conv.weight, padding=1) / (1 + 1e-5) ** 0.5)
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-4)


def test_a_single_picture_is_refused_in_training() -> None:
    model = TestUPerNet.small("swin").train()
    with pytest.raises(UsageError, match=r"batch of one came\. Train with two pictures at a time"):
        model(torch.zeros(1, 3, 64, 64))


def test_the_backbone_is_made_for_the_same_pictures() -> None:
    backbone = UPerNetConfig(image_size=(320, 480), channels=1, backbone=replace(RESNET, num_classes=9)).backbone
    assert (backbone.image_size, backbone.channels, backbone.num_classes) == ((320, 480), 1, 0)
    assert UPerNetConfig(image_size=(320, 480)).grid == (10, 15)


def test_fields_within_can_be_named() -> None:
    small = {f"backbone.{name}": getattr(SWIN, name) for name in ("widths", "depths", "heads", "windows")}
    model = create_model("upernet_swin_t", 4, image_size=64, width=8, auxiliary_width=8, **small)
    drop_path = VARIANTS["upernet_swin_t"].backbone.drop_path
    assert model.config.backbone == replace(SWIN, image_size=(64, 64), drop_path=drop_path)
    assert model.record.preprocessing is not None


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"width": 0}, "width must be from 1"),
        ({"num_classes": 0}, "num_classes must be from 1"),
        ({"pool_grids": ()}, "pool_grids are one number or more from 1 to 1000"),
        ({"pool_grids": (0,)}, "pool_grids are one number or more from 1 to 1000"),
        ({"dropout": 1.0}, "dropout must be from 0"),
        ({"backbone": None}, "backbone of a UPerNetConfig must be of type ResNetConfig or of type SwinConfig"),
    ],
)
def test_what_cannot_be_built_is_refused(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        replace(SMALL, **wrong)


def test_a_second_head_reads_a_map_that_is_there() -> None:
    with pytest.raises(UsageError, match="The backbone has 4 maps; auxiliary_level 4"):
        TestUPerNet.small("swin", auxiliary_level=4)


def test_a_misspelt_field_of_the_backbone_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'widths'"):
        create_model("upernet_swin_t", **{"backbone.width": (8,)})


def test_a_trunk_reads_its_backbones_last_map() -> None:
    with pytest.raises(UsageError, match=r"A trunk's last map is its backbone's, number 3; \(0, 1\) came"):
        Trunk(RESNET, (0, 1))


@torch.no_grad()
def test_a_trunk_norms_what_is_bare() -> None:
    trunk = Trunk(SWIN).eval()
    pixels = torch.randn(2, 3, 61, 83)
    for one, plain in zip(trunk(pixels).maps, trunk.network.pyramid(pixels).maps, strict=True):
        middle, spread = plain.mean(1, keepdim=True), plain.var(1, unbiased=False, keepdim=True)
        torch.testing.assert_close(one, (plain - middle) / (spread + 1e-5).sqrt(), atol=1e-5, rtol=1e-4)
    assert not len(Trunk(RESNET).norms)
