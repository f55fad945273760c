"""TransUNets through the harness, and what is their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F

from tests.models.segmentation.harness import SegmentationHarness
from vitral.errors import UsageError
from vitral.models.backbones.hybrid import HybridConfig
from vitral.models.catalogue import create_model
from vitral.models.segmentation.transunet import VARIANTS, TransUNetConfig

HYBRID = HybridConfig(
    width=32,
    depth=2,
    heads=4,
    mlp_width=48,
    trunk_depths=(1, 2, 1),
    trunk_width=32,
    class_token=False,
    prefix_positions=0,
    pool="mean",
)
SMALL = TransUNetConfig(
    image_size=(64, 64), num_classes=5, backbone=HYBRID, decoder_width=16, decoder_channels=(12, 10, 8, 6)
)


class TestTransUNet(SegmentationHarness):
    kinds: ClassVar[Mapping[str, Any]] = {
        "all skips": SMALL,
        "one skip": replace(SMALL, skips=1),
        "no skips, class token": replace(
            SMALL, skips=0, backbone=replace(HYBRID, class_token=True, prefix_positions=1, pool="class")
        ),
        "in grey": replace(SMALL, channels=1),
    }
    cells = 1
    maps: ClassVar[Mapping[str, int]] = dict.fromkeys(kinds, 2)
    auxiliary: ClassVar[Mapping[str, int]] = dict.fromkeys(kinds, 0)

    @torch.no_grad()
    def test_what_does_not_fill_a_patch_is_filled_up(self, kind: str) -> None:
        model = self.small(kind)
        pixels = self.pictures(model, 1, (61, 83))
        whole = model(F.pad(pixels, (0, 13, 0, 3))).logits
        assert torch.equal(model(pixels).logits, whole[..., :61, :83])


def test_parameters_are_those_of_the_authors_network() -> None:
    """105,276,066 with the two classes that the authors' configuration has before a data set says how many."""
    with torch.device("meta"):
        counts = [sum(len(one.flatten()) for one in create_model("transunet_r50_b16", n).parameters()) for n in (2, 9)]
    assert counts == [105_276_066, 105_276_066 + 7 * (16 * 9 + 1)]


@torch.no_grad()
def test_grey_pictures_are_three_equal_channels() -> None:
    model = TestTransUNet.small("all skips")
    grey = torch.rand(2, 1, 48, 64)
    assert torch.equal(model(grey).logits, model(grey.repeat(1, 3, 1, 1)).logits)


@torch.no_grad()
def test_every_map_that_is_to_be_read_is_read() -> None:
    model = TestTransUNet.small("all skips")
    pixels = torch.randn(1, 3, 64, 64)
    whole = model(pixels).logits
    for place in range(3):
        skipped = model.decoder[place].first.conv.weight
        kept = skipped.clone()
        skipped[:, (16, 12, 10)[place] :] = 0
        assert (model(pixels).logits - whole).abs().max() > 1e-4
        skipped.copy_(kept)
    assert torch.equal(model(pixels).logits, whole)


def test_what_is_published() -> None:
    config = VARIANTS["transunet_r50_b16"]
    assert (config.image_size, config.num_classes, config.skips) == ((224, 224), 9, 3)
    with torch.device("meta"):
        prepared = create_model("transunet_r50_b16", image_size=512).record.preprocessing
    assert prepared is not None
    assert (prepared.size, prepared.mean, prepared.std) == ((512, 512), (0.0,) * 3, (1.0,) * 3)


def test_what_no_transunet_can_be_is_refused() -> None:
    with pytest.raises(UsageError, match="a number for each of the 4 enlargements"):
        replace(SMALL, decoder_channels=(8, 8, 8))
    with pytest.raises(UsageError, match="cells of 8 pixels and patches of"):
        replace(SMALL, backbone=replace(HYBRID, trunk_depths=(1, 1)))
    with pytest.raises(UsageError, match=r"cells of 16 pixels and patches of \(32, 32\)"):
        replace(SMALL, backbone=replace(HYBRID, patch_size=(32, 32)))
    with pytest.raises(UsageError, match="skips must be from 0 to 3; 4 came"):
        replace(SMALL, skips=4)
    with pytest.raises(UsageError, match="takes pictures of 3 channels; 2 came"):
        TestTransUNet.small("all skips")(torch.zeros(1, 2, 64, 64))
