"""Deformable DETR: what every detector does, what its paper says of it, and how it is counted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from tests.models.detection.harness import DetectorHarness, filled_up
from tests.models.harness import stirred
from vitral.errors import UsageError
from vitral.layers.deformable import WeightedSamples
from vitral.models.backbones.resnet import ResNetConfig
from vitral.models.catalogue import create_model
from vitral.models.detection.deformable_detr import VARIANTS, DeformableDETR, DeformableDETRConfig

_BACKBONE = ResNetConfig(stem_width=8, stage_channels=(16, 16, 24, 32), depths=(1, 1, 1, 1), norm="frozen")
_SMALL: dict[str, Any] = {
    "backbone": _BACKBONE,
    "num_classes": 5,
    "queries": 7,
    "width": 64,
    "heads": 4,
    "mlp_width": 24,
    "encoder_depth": 2,
    "decoder_depth": 3,
    "image_size": (64, 64),
    "encoder_points": 2,
}

KINDS: dict[str, DeformableDETRConfig] = {
    "four maps": replace(VARIANTS["deformable_detr_r50"], **_SMALL),
    "one larger map": replace(VARIANTS["deformable_detr_r50_dc5"], **{**_SMALL, "backbone": replace(_BACKBONE, dilated=1)}),
    "six maps, refined": replace(VARIANTS["deformable_detr_r50_refine"], **{**_SMALL, "levels": 6}),
    "two stages": replace(VARIANTS["deformable_detr_r50_two_stage"], **_SMALL),
}


def small(kind: str, **overrides: Any) -> DeformableDETR:
    model = stirred(DeformableDETR(replace(KINDS[kind], **overrides)))
    assert isinstance(model, DeformableDETR)
    return model


class TestDeformableDETR(DetectorHarness):
    kinds: ClassVar = KINDS
    reach: ClassVar = None  # the norms behind the projections see the whole of a map


# The authors' README, table of main results, in millions.
@pytest.mark.parametrize(
    ("name", "published"),
    [("", 40), ("_single_scale", 34), ("_dc5", 34), ("_refine", 41), ("_two_stage", 41)],
)
def test_parameters_are_as_many_as_published(name: str, published: int) -> None:
    with torch.device("meta"):
        model = create_model(f"deformable_detr_r50{name}")
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6) == published


@torch.no_grad()
def test_strides_are_those_of_figure_four() -> None:
    """8, 16, 32 and 64 pixels; one map of 32, or of 16 where it is kept larger."""
    pixels = torch.randn(1, 3, 192, 130)
    for kind, strides in (("four maps", (8, 16, 32, 64)), ("one larger map", (16,)), ("two stages", (8, 16, 32, 64))):
        model = small(kind)
        cells = model.encode(pixels)
        assert cells.grids == tuple((-(-192 // stride), -(-130 // stride)) for stride in strides)
        assert cells.grids[-1] == model.config.grid_of((192, 130))
        assert model.config.stride == strides[-1]


@torch.no_grad()
def test_what_is_looked_at_can_be_listened_to() -> None:
    model, seen = small("four maps"), []
    for module in model.modules():
        if isinstance(module, WeightedSamples):
            module.register_forward_hook(lambda _, inputs, __: seen.append(inputs[1:3]))
    cells = sum(rows * columns for rows, columns in model.encode(torch.randn(2, 3, 64, 96)).grids)
    seen.clear()
    model(torch.randn(2, 3, 64, 96))
    assert [tuple(locations.shape) for locations, _ in seen] == [(2, cells, 4, 4, 2, 2)] * 2 + [(2, 7, 4, 4, 4, 2)] * 3
    for _, weights in seen:
        torch.testing.assert_close(weights.sum((-1, -2)), torch.ones(weights.shape[:3]))


@torch.no_grad()
def test_nothing_is_looked_at_where_a_picture_is_not() -> None:
    """What the network sees of a map beyond the picture counts for nothing once the map is made."""
    model = small("four maps")
    pixels, mask = filled_up([torch.randn(3, 70, 90)], (128, 128))
    cells = model.encode(pixels, mask)
    assert cells.present is not None
    assert cells.present.sum() == sum(-(-70 // stride) * -(-90 // stride) for stride in (8, 16, 32, 64))
    before = model(pixels, mask)
    projections = list(model.projections)

    def disturbed(_: Any, __: Any, x: Tensor) -> Tensor:
        rows, columns = -(-70 * x.shape[2] // 128), -(-90 * x.shape[3] // 128)
        x = x.clone()
        x[:, :, rows:] = 9.0
        x[:, :, :, columns:] = -9.0
        return x

    for projection in projections[:3]:  # the fourth map is made from the residual network's last, not from these
        projection.register_forward_hook(disturbed)
    after = model(pixels, mask)
    torch.testing.assert_close(after.logits, before.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(after.boxes, before.boxes, atol=1e-5, rtol=1e-5)
    assert (model(pixels).logits - before.logits).abs().max() > 1e-2


@torch.no_grad()
def test_queries_are_the_best_proposals() -> None:
    model = small("two stages")
    pixels = torch.randn(2, 3, 128, 160)
    out = model(pixels)
    assert out.proposals is not None
    cells = sum(rows * columns for rows, columns in ((16, 20), (8, 10), (4, 5), (2, 3)))
    assert out.proposals.logits.shape == (2, cells, 1)
    assert out.proposals.boxes.shape == (2, cells, 4)
    reference: list[Tensor] = []
    model.decoder[0].register_forward_pre_hook(lambda _, inputs: reference.append(inputs[2][:, :, 0]))
    model(pixels)
    for place in range(2):
        best = out.proposals.logits[place, :, 0].argsort(descending=True, stable=True)[:7]
        expected = {tuple(box) for box in out.proposals.boxes[place, best].tolist()}
        assert {tuple(box) for box in reference[0][place].tolist()} == expected
    tiny = model(torch.randn(1, 3, 16, 8))  # of which there are fewer cells than queries
    assert tiny.logits.shape == (1, 2 + 1 + 1 + 1, 5)


def test_refined_boxes_learn_from_their_own_block_alone() -> None:
    """Zhu et al. 2021, appendix A.4: no gradient passes from a box to the one before it."""
    model = small("six maps, refined", dropout=0.0).train()
    out = model(torch.randn(1, 3, 64, 64))
    found = torch.autograd.grad(out.boxes.sum(), list(model.box_heads.parameters()), allow_unused=True)
    count = len(found) // 3
    assert all(gradient is None for gradient in found[: 2 * count])
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in found[2 * count :])


@torch.no_grad()
def test_it_begins_as_published() -> None:
    torch.manual_seed(0)
    for kind, size in (("four maps", -2.0), ("six maps, refined", -2.0), ("two stages", 0.0)):
        model = DeformableDETR(KINDS[kind]).eval()
        out = model.train()(torch.randn(1, 3, 64, 64))
        for head in model.heads:  # focal loss's prior, a hundredth
            torch.testing.assert_close(head.bias, torch.full((5,), 0.01).logit())
        if size:
            sizes = torch.full_like(out.auxiliary[0].boxes[..., 2:], size).sigmoid()
            torch.testing.assert_close(out.auxiliary[0].boxes[..., 2:], sizes)
        else:  # a proposal is not changed at first
            assert out.proposals is not None
            first = out.proposals.boxes[0, :64]
            torch.testing.assert_close(first[9], torch.tensor([1.5 / 8, 1.5 / 8, 0.05, 0.05]), atol=1e-5, rtol=1e-5)


def test_what_cannot_be_is_refused() -> None:
    wrongs: list[tuple[dict[str, Any], str]] = [
        ({"width": 96, "heads": 5}, "width must be a multiple of heads and of 32; width 96 and heads 5 came"),
        ({"width": 80}, "of 32; width 80"),
        ({"levels": 2}, "levels is 1, or 3 and more"),
        ({"two_stage": True}, "two_stage needs refine=True"),
        ({"num_classes": 0}, "num_classes must be from 1"),
        ({"backbone": ResNetConfig(stage_channels=(16, 16), depths=(1, 1))}, "at least 3 stages; 4 and 2 stages came"),
    ]
    for options, why in wrongs:
        with pytest.raises(UsageError, match=why):
            create_model("deformable_detr_r50", **options)
    with pytest.raises(UsageError, match="num_classes must be from 1"):
        small("four maps").reset_head(0)
