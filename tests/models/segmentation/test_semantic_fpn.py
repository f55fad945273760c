"""Semantic FPNs through the harness, and what is their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F

from tests.models.segmentation.harness import SegmentationHarness
from tests.models.segmentation.test_upernet import RESNET, SWIN
from vitral.errors import UsageError
from vitral.models.backbones.pvt import PVTConfig
from vitral.models.catalogue import CATALOGUE
from vitral.models.segmentation.semantic_fpn import SemanticFPNConfig

SMALL = SemanticFPNConfig(
    image_size=(64, 64), num_classes=5, backbone=RESNET, pyramid_width=16, width=12, groups=4, dropout=0.0
)


class TestSemanticFPN(SegmentationHarness):
    kinds: ClassVar[Mapping[str, Any]] = {
        "resnet": SMALL,
        "swin, batch": replace(SMALL, backbone=SWIN, norm="batch"),
        "pvt, in grey": replace(
            SMALL,
            channels=1,
            backbone=PVTConfig(
                widths=(8, 16, 24, 32), depths=(1, 1, 1, 1), heads=(1, 2, 3, 4), reductions=(4, 2, 2, 1), num_classes=0
            ),
        ),
    }
    maps: ClassVar[Mapping[str, int]] = {"swin, batch": 5, "pvt, in grey": 4}
    auxiliary: ClassVar[Mapping[str, int]] = dict.fromkeys(kinds, 0)


# In millions, on ADE20K: of residual networks in Wang et al. 2021 (PVT), of PVT v2 in Wang et al. 2022.
@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("semantic_fpn_r50", 28.5),
        ("semantic_fpn_r101", 47.5),
        ("semantic_fpn_pvt_v2_b1", 17.8),
        ("semantic_fpn_pvt_v2_b2", 29.1),
        ("semantic_fpn_pvt_v2_b3", 49.0),
        ("semantic_fpn_pvt_v2_b4", 66.3),
        ("semantic_fpn_pvt_v2_b5", 85.7),
    ],
)
def test_the_published_number_of_parameters(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = CATALOGUE[name].build(CATALOGUE[name].config)
    assert round(sum(one.numel() for one in model.parameters()) / 1e6, 1) == millions


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 96), (75, 130)])
def test_the_head_is_its_figure(size: tuple[int, int]) -> None:
    """Figure 3, written out: every map convolved and doubled until it is of the finest's size, and all of them added."""
    model = TestSemanticFPN.small("resnet")
    maps = model.pyramid(torch.randn(2, 3, *size)).maps
    laterals = [
        F.conv2d(one, layer.conv.weight, layer.conv.bias) for one, layer in zip(maps, model.neck.lateral, strict=True)
    ]
    total = 0.0
    for level in range(4):
        x = laterals[3]
        for below in reversed(laterals[level:3]):
            x = below + F.interpolate(x, size=below.shape[2:], mode="nearest")
        smooth = model.neck.smooth[level].conv
        x = F.conv2d(x, smooth.weight, smooth.bias, padding=1)
        for place, step in enumerate(model.climbs[level], 1):
            x = F.conv2d(x, step.layer.conv.weight, padding=1)
            x = F.relu(F.group_norm(x, 4, step.norm.weight, step.norm.bias))
            if level:
                finer = maps[level - place].shape[2:]
                assert all(0 <= 2 * side - fine <= 1 for side, fine in zip(x.shape[2:], finer, strict=True))
                x = F.interpolate(x, size=finer, mode="bilinear", align_corners=False)
        total = total + x
    torch.testing.assert_close(model.read(maps), total, atol=1e-4, rtol=1e-4)
    logits = F.conv2d(total, model.head.weight, model.head.bias)
    torch.testing.assert_close(model.head(model.read(maps)), logits, atol=1e-3, rtol=1e-4)


def test_groups_must_divide_channels() -> None:
    with pytest.raises(UsageError, match="multiple of groups; width 12 and groups 5 came"):
        replace(SMALL, groups=5)
    assert replace(SMALL, groups=5, norm="batch").width == 12
