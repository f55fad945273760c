"""Anchors against torchvision's own, and by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vitral.base.boxes import iou
from vitral.models.detection.anchors import (
    BETWEEN,
    NOTHING,
    cell_anchors,
    corrected,
    correction,
    edge_distances,
    grid_anchors,
    matched,
    sampled,
    within_edges,
)

torchvision = pytest.importorskip("torchvision")
peers = torchvision.models.detection._utils


def boxes_of(count: int, seed: int) -> Tensor:
    numbers = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=numbers) * 100
    return torch.cat([corner, corner + 1 + torch.rand(count, 2, generator=numbers) * 60], dim=1)


@pytest.mark.parametrize(("sides", "ratios"), [([32], [0.5, 1, 2]), ([32, 40, 50], [0.5, 1, 2]), ([8], [1.0])])
def test_they_lie_where_torchvisions_lie(sides: list[int], ratios: list[float]) -> None:
    peer = torchvision.models.detection.rpn.AnchorGenerator((tuple(sides),), (tuple(ratios),))
    images = torchvision.models.detection.image_list.ImageList(torch.zeros(1, 3, 100, 132), [(100, 132)])
    (expected,) = peer(images, [torch.zeros(1, 1, 13, 17)])
    assert torch.equal(grid_anchors(cell_anchors(sides, ratios), (13, 17), (100, 132)), expected)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (10.0, 5.0)])
def test_corrections_are_torchvisions_and_come_back(weights: tuple[float, float]) -> None:
    boxes, anchors = boxes_of(40, 0), boxes_of(40, 1)
    coder = peers.BoxCoder((weights[0], weights[0], weights[1], weights[1]))
    offsets = correction(boxes, anchors, weights)
    torch.testing.assert_close(offsets, coder.encode_single(boxes, anchors), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(corrected(offsets, anchors, weights), boxes, atol=1e-3, rtol=1e-4)
    wild = torch.randn(40, 4) * 20
    torch.testing.assert_close(corrected(wild, anchors, weights), coder.decode_single(wild, anchors), atol=1e-2, rtol=1e-4)
    assert torch.isfinite(corrected(torch.full((1, 4), 1e6), anchors[:1])).all()


def test_edges_are_torchvisions() -> None:
    squares, boxes = grid_anchors(cell_anchors([8], [1.0]), (4, 10), (32, 80)), boxes_of(40, 2)
    coder = peers.BoxLinearCoder(normalize_by_size=True)
    distances = edge_distances(boxes, squares)
    torch.testing.assert_close(distances / 8, coder.encode(squares, boxes))
    offsets = torch.rand(40, 4)
    torch.testing.assert_close(within_edges(offsets, squares), coder.decode(offsets, squares))


@pytest.mark.parametrize(("above", "below"), [(0.7, 0.3), (0.5, 0.4), (0.5, 0.5)])
@pytest.mark.parametrize("best", [True, False])
def test_what_anchors_hold_is_torchvisions(above: float, below: float, best: bool) -> None:
    overlaps = iou(boxes_of(6, 3), boxes_of(300, 4))
    held = matched(overlaps, above=above, below=below, best_at_least=best)
    assert torch.equal(held, peers.Matcher(above, below, best)(overlaps.clone()))
    assert {NOTHING} < set(held.tolist())


def test_an_object_that_nothing_overlaps_is_held_by_nothing() -> None:
    overlaps = torch.tensor([[0.0, 0.0, 0.0], [0.2, 0.6, 0.45]])
    assert matched(overlaps, above=0.5, below=0.4, best_at_least=True).tolist() == [NOTHING, 1, BETWEEN]
    assert matched(overlaps[:0], above=0.5, below=0.4, best_at_least=True).tolist() == [NOTHING] * 3


def test_a_share_is_drawn_and_the_rest_filled_up() -> None:
    held = torch.tensor([3] * 40 + [NOTHING] * 100 + [BETWEEN] * 50)

    def drawn(count: int, seed: int = 0) -> tuple[list[int], list[int]]:
        found = sampled(held, count=count, share=0.25, generator=torch.Generator().manual_seed(seed))
        return found[0].tolist(), found[1].tolist()

    holding, empty = drawn(64)
    assert (len(holding), len(empty)) == (16, 48)
    assert all(place < 40 for place in holding)
    assert all(40 <= place < 140 for place in empty)
    assert (holding, empty) == (sorted(set(holding)), sorted(set(empty)))
    assert drawn(64) == (holding, empty) != drawn(64, seed=1)
    assert tuple(map(len, drawn(1000))) == (40, 100)
