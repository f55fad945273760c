"""Suppression against its definition, one box after the other, and torchvision's overlaps."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vitral.base.suppression import nms, nms_per_class

torchvision = pytest.importorskip("torchvision")


def by_definition(boxes: Tensor, scores: Tensor, threshold: float) -> list[int]:
    over = torchvision.ops.box_iou(boxes, boxes).numpy() > threshold
    kept: list[int] = []
    for place in scores.argsort(descending=True, stable=True).tolist():
        if not over[place, kept].any():
            kept.append(place)
    return kept


def boxes_of(count: int, seed: int, room: float = 100.0) -> tuple[Tensor, Tensor]:
    numbers = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=numbers) * room
    return torch.cat([corner, corner + torch.rand(count, 2, generator=numbers) * 40], 1), torch.rand(
        count, generator=numbers
    )


@settings(max_examples=40)
@given(st.integers(0, 30), st.integers(0, 1000), st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]))
def test_few_boxes(count: int, seed: int, threshold: float) -> None:
    boxes, scores = boxes_of(count, seed)
    scores = (scores * 5).round()  # with equal ones among them
    assert nms(boxes, scores, threshold).tolist() == by_definition(boxes, scores, threshold)


def test_more_boxes_than_are_compared_at_once() -> None:
    boxes, scores = boxes_of(1300, 0, room=300.0)
    assert nms(boxes, scores, 0.4).tolist() == by_definition(boxes, scores, 0.4)


@pytest.mark.parametrize("count", [0, 60, 1100])
def test_classes_do_not_suppress_each_other(count: int) -> None:
    boxes, scores = boxes_of(count, 1, room=150.0)
    classes = torch.randint(0, 4, (count,), generator=torch.Generator().manual_seed(2))
    expected = [
        int(places[one])
        for number in range(4)
        for places in [(classes == number).nonzero()[:, 0]]
        for one in by_definition(boxes[places], scores[places], 0.3)
    ]
    expected.sort(key=lambda place: -scores[place].item())
    assert nms_per_class(boxes, scores, classes, 0.3).tolist() == expected


def test_an_overlap_of_exactly_the_threshold_is_allowed_and_points_overlap_nothing() -> None:
    boxes = torch.tensor([[0.0, 0, 2, 1], [1, 0, 3, 1], [5, 5, 5, 5], [5, 5, 5, 5]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    assert nms(boxes, scores, 1 / 3).tolist() == [0, 1, 2, 3]
    assert nms(boxes, scores, 0.33).tolist() == [0, 2, 3]
