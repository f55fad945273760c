"""Masked-attention mask transformers through the harness, and what is their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F

from tests.models.harness import assert_close
from tests.models.segmentation.harness import SegmentationHarness
from vitral.errors import UsageError
from vitral.explanation.capture import capture
from vitral.models.backbones.resnet import ResNetConfig
from vitral.models.backbones.swin import SwinConfig
from vitral.models.catalogue import CATALOGUE
from vitral.models.segmentation.mask2former import Mask2FormerConfig
from vitral.models.segmentation.pixel_decoder import ConvGroupNorm
from vitral.models.segmentation.queries import mask_logits

RESNET = ResNetConfig(block="basic", stem_width=8, stage_channels=(8, 12, 16, 24), depths=(1, 1, 1, 1))
SWIN = SwinConfig(
    widths=(8, 16, 32), depths=(1, 2, 1), heads=(1, 2, 2), windows=((2, 2),) * 3, shift_rule="always", drop_path=0.0
)
SMALL = Mask2FormerConfig(
    image_size=(64, 96),
    num_classes=5,
    backbone=RESNET,
    queries=7,
    width=32,
    mask_width=16,
    encoder_depth=2,
    encoder_points=2,
    encoder_mlp_width=24,
    decoder_depth=4,
    heads=4,
    mlp_width=40,
)


class TestMask2Former(SegmentationHarness):
    kinds: ClassVar[Mapping[str, Any]] = {
        "residual": SMALL,
        "windows of two maps, in grey": replace(
            SMALL, channels=1, backbone=SWIN, encoder_depth=1, decoder_depth=3, canvas=None
        ),
    }
    # Of the product: masked attention and self-attention of every block, and those of the backbone.
    maps: ClassVar[Mapping[str, int]] = {"residual": 8, "windows of two maps, in grey": 6 + 4}
    auxiliary: ClassVar[Mapping[str, int]] = {"residual": 4, "windows of two maps, in grey": 3}
    # A number added to all keys changes no softmax. No mask but the last is asked by a block, and none teaches by it.
    idle = (r".*\.key\.bias",)

    @torch.no_grad()
    def test_queries_see_what_their_masks_cover(self, kind: str) -> None:
        model = self.small(kind)
        pixels = self.pictures(model, 2, (64, 96))
        # Features around zero, so that every mask covers some cells and leaves others.
        features = model.pixel_decoder(model.trunk(pixels).maps).features
        model.pixel_decoder.mask_projection.conv.bias -= features.mean((0, 2, 3))
        with capture(model) as maps:
            model(pixels)
        every = model.layer_outputs(pixels)
        heads = [one for one in maps if one.shape[2] == 7 and one.shape[3] != 7]
        grids = [(64 // level.stride, 96 // level.stride) for level in reversed(model.levels[1:])]
        assert len(heads) == model.config.decoder_depth
        shares = list[float]()
        for place, (seen, said) in enumerate(zip(heads, every[:-1], strict=True)):
            small = F.interpolate(said.masks, size=grids[place % len(grids)], mode="bilinear").flatten(2)
            covered = small >= 0
            covered = covered | ~covered.any(-1, keepdim=True)
            sure = small.abs() > 1e-4
            assert torch.equal((seen.sum(1) > 0)[sure], covered[sure])
            shares.append(covered.float().mean().item())
        assert 0 < min(shares) < 1

    @torch.no_grad()
    def test_the_last_of_what_is_said_on_the_way_is_the_answer(self, kind: str) -> None:
        model = self.small(kind)
        pixels = self.pictures(model, 2, (61, 83))
        out, every = model(pixels), model.layer_outputs(pixels)
        assert len(every) == model.config.decoder_depth + 1
        assert_close(every[-1].masks, out.masks, 1e-6)
        assert_close(every[-1].logits, out.logits, 1e-6)
        # Before the first block queries know nothing of the picture: classes are the same for all pictures.
        assert torch.equal(every[0].logits[0], every[0].logits[1])
        assert not torch.equal(every[0].masks[0], every[0].masks[1])

    def test_the_canvas_is_told(self, kind: str) -> None:
        model = self.small(kind)
        assert model(self.pictures(model, 1, (64, 64))).canvas == model.config.canvas == self.kinds[kind].canvas


@torch.no_grad()
def test_a_mask_that_covers_nothing_sees_everything() -> None:
    model = TestMask2Former.small("residual")
    model.mask_head.layers[-1].weight.zero_()
    model.mask_head.layers[-1].bias.zero_()
    model.pixel_decoder.mask_projection.conv.bias.fill_(-1.0)
    model.pixel_decoder.mask_projection.conv.weight.zero_()
    model.mask_head.layers[-1].bias.fill_(1.0)  # every product is −16
    with capture(model) as maps:
        out = model(torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(out.masks, torch.full_like(out.masks, -16.0))
    assert all((one > 0).all() for one in maps)


def test_depths_go_through_the_network() -> None:
    depths = TestMask2Former.small("residual").depths()
    assert depths["trunk.network.stem.conv.weight"] == 0
    assert depths["trunk.network.stages.3.0.first.conv.weight"] == 4
    assert depths["pixel_decoder.projections.0.conv.conv.weight"] == depths["pixel_decoder.encoder.0.norm1.weight"] == 5
    assert depths["queries.weight"] == depths["decoder.0.norm1.weight"] == 7
    assert depths["head.weight"] == depths["mask_head.layers.2.bias"] == 11


def test_masks_shrink_with_the_features_they_are_drawn_with() -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings, features = torch.randn(2, 5, 8, generator=generator), torch.randn(2, 8, 17, 23, generator=generator)
    for size in ((9, 12), (5, 6), (3, 3)):
        expected = F.interpolate(torch.einsum("bqc,bcyx->bqyx", embeddings, features), size=size, mode="bilinear")
        assert_close(mask_logits(embeddings, F.interpolate(features, size=size, mode="bilinear")), expected, 1e-5)


@torch.no_grad()
@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format])
def test_group_norms_are_exact_far_from_zero(order: torch.memory_format) -> None:
    layer = ConvGroupNorm(8, 16, 3, bias=True).eval()
    x = 30 + torch.randn(2, 8, 24, 31, generator=torch.Generator().manual_seed(0))
    exact = F.group_norm(F.conv2d(x.double(), layer.conv.conv.weight.double(), padding=1), layer.norm.num_groups)
    assert_close(layer(x.contiguous(memory_format=order)), exact.float(), 1e-5)


# Cheng et al. 2022, table 1 (COCO panoptic, 133 classes), in millions.
@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("mask2former_r50", 44),
        ("mask2former_r101", 63),
        ("mask2former_swin_ti", 47),
        ("mask2former_swin_s", 69),
        ("mask2former_swin_b", 107),
        ("mask2former_swin_l", 216),
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
        ({"decoder_depth": 0}, "decoder_depth must be from 1"),
        ({"canvas": (0, 384)}, "canvas is a height"),
    ],
)
def test_a_wrong_configuration_is_refused(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        replace(SMALL, **wrong)


def test_a_backbone_of_one_map_is_refused() -> None:
    one = ResNetConfig(block="basic", stem_width=8, stage_channels=(8,), depths=(1,))
    config = replace(SMALL, backbone=one)
    with pytest.raises(UsageError, match="this one has one map"):
        CATALOGUE["mask2former_r50"].build(config)
