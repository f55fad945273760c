"""The feature pyramid against torchvision's."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import nn

from vitral.layers.pyramid import FeaturePyramid

torchvision = pytest.importorskip("torchvision")
page = torchvision.ops.feature_pyramid_network

CHANNELS = (6, 10, 14)


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("more", ["none", "every_second", "from_pyramid", "from_backbone"])
@torch.no_grad()
def test_maps_are_torchvisions(more: Any, norm: Any) -> None:
    extra = {
        "none": None,
        "every_second": page.LastLevelMaxPool(),
        "from_pyramid": page.LastLevelP6P7(8, 8),
        "from_backbone": page.LastLevelP6P7(14, 8),
    }[more]
    peer = page.FeaturePyramidNetwork(CHANNELS, 8, extra, nn.BatchNorm2d if norm == "batch" else None).eval()
    ours = FeaturePyramid(CHANNELS, 8, norm=norm, more=more).eval()
    for theirs, mine in ((peer.inner_blocks, ours.lateral), (peer.layer_blocks, ours.smooth)):
        for one, other in zip(theirs, mine, strict=True):
            other.conv.load_state_dict(one[0].state_dict())
            if norm == "batch":
                one[1].weight.normal_()
                one[1].running_mean.normal_()
                other.norm.load_state_dict(one[1].state_dict())
    if ours.coarser is not None:
        ours.coarser[0].conv.load_state_dict(extra.p6.state_dict())
        ours.coarser[1].conv.load_state_dict(extra.p7.state_dict())
    maps = [torch.randn(2, width, *size) for width, size in zip(CHANNELS, ((19, 26), (10, 13), (5, 7)), strict=True)]
    expected = list(peer(OrderedDict((str(place), one) for place, one in enumerate(maps))).values())
    for found in (ours(maps), ours.train(False)([one.clone() for one in maps])):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_it_begins_as_published() -> None:
    pyramid = FeaturePyramid((64,), 64, more="from_pyramid")
    for part in (pyramid.lateral[0], pyramid.smooth[0], pyramid.coarser[1]):
        bound = (3 / part.conv.weight[0].numel()) ** 0.5  # He et al. 2015, for layers without ReLU
        assert part.conv.weight.abs().max().item() == pytest.approx(bound, rel=0.02)
        assert part.conv.bias.abs().max() == 0
