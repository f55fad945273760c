"""Boxes against torchvision's own operators and closed forms."""

from __future__ import annotations

import pytest
import torch

from vitral.base.boxes import (
    area_of,
    clipped,
    cxcywh_to_xyxy,
    generalized_iou,
    iou,
    paired_generalized_iou,
    xywh_to_xyxy,
    xyxy_to_cxcywh,
    xyxy_to_xywh,
)

torchvision = pytest.importorskip("torchvision")


def _boxes(count: int, seed: int) -> torch.Tensor:
    numbers = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=numbers) * 50
    return torch.cat([corner, corner + torch.rand(count, 2, generator=numbers) * 40], dim=1)


def test_formats_are_torchvisions_and_come_back() -> None:
    boxes, convert = _boxes(50, 0), torchvision.ops.box_convert
    assert torch.equal(xyxy_to_cxcywh(boxes), convert(boxes, "xyxy", "cxcywh"))
    assert torch.equal(xyxy_to_xywh(boxes), convert(boxes, "xyxy", "xywh"))
    torch.testing.assert_close(cxcywh_to_xyxy(xyxy_to_cxcywh(boxes)), boxes)
    torch.testing.assert_close(xywh_to_xyxy(xyxy_to_xywh(boxes)), boxes)


def test_overlaps_are_torchvisions() -> None:
    one, other, ops = _boxes(40, 1), _boxes(30, 2), torchvision.ops
    torch.testing.assert_close(area_of(one), ops.box_area(one))
    torch.testing.assert_close(iou(one, other), ops.box_iou(one, other))
    torch.testing.assert_close(generalized_iou(one, other), ops.generalized_box_iou(one, other))
    torch.testing.assert_close(paired_generalized_iou(one[:30], other), generalized_iou(one[:30], other).diagonal())
    torch.testing.assert_close(clipped(one - 20, (30, 40)), ops.clip_boxes_to_image(one - 20, (30, 40)))


def test_boxes_without_area_have_a_finite_overlap_and_gradient() -> None:
    point = torch.tensor([[3.0, 3.0, 3.0, 3.0]], requires_grad=True)
    assert iou(point, point).item() == 0
    assert generalized_iou(point, point).item() == 0
    generalized_iou(point, torch.tensor([[5.0, 5.0, 7.0, 7.0]])).sum().backward()
    assert torch.isfinite(point.grad).all()


def test_far_boxes_are_told_how_far() -> None:
    one, near, far = (torch.tensor([[x, 0.0, x + 1, 1.0]]) for x in (0.0, 2.0, 8.0))
    assert generalized_iou(one, near).item() == pytest.approx(-1 / 3)
    assert generalized_iou(one, far).item() == pytest.approx(-7 / 9)
