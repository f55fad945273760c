"""RoIAlign against torchvision's, and against a loop over points where that one has no value to compare with."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

from vitral.layers.roi_align import pyramid_levels, roi_align, roi_align_pyramid

torchvision = pytest.importorskip("torchvision")
# Its version in Python, as it stands; the one in C++ is not in every wheel.
peer = getattr(sys.modules["torchvision.ops.roi_align"]._roi_align, "__wrapped__", torchvision.ops.roi_align)


def boxes_within(count: int, height: int, width: int) -> Tensor:
    numbers = torch.Generator().manual_seed(count)
    corner = torch.rand(count, 2, generator=numbers) * torch.tensor([width / 2, height / 2])
    return torch.cat([corner, corner + torch.rand(count, 2, generator=numbers) * torch.tensor([width / 2, height / 2])], 1)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize(("size", "samples"), [((7, 7), 2), ((3, 5), 1), ((2, 2), 3)])
def test_values_and_gradients_are_torchvisions(aligned: bool, size: tuple[int, int], samples: int) -> None:
    maps = torch.randn(2, 5, 13, 17, requires_grad=True)
    boxes, pictures = boxes_within(9, 13 * 4, 17 * 4), torch.tensor([0, 1] * 4 + [0])
    ours = roi_align(maps, boxes, pictures, size=size, scale=0.25, samples=samples, aligned=aligned)
    rois = torch.cat([pictures[:, None].float(), boxes], dim=1)
    theirs = peer(maps, rois, 0.25, *size, samples, aligned)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    weights = torch.randn(ours.shape)
    (grown,) = torch.autograd.grad((ours * weights).sum(), maps)
    (expected,) = torch.autograd.grad((theirs * weights).sum(), maps)
    torch.testing.assert_close(grown, expected, atol=1e-5, rtol=1e-5)


def point(one: Tensor, y: float, x: float) -> Tensor:
    """A map's value at a point, by the definition."""
    height, width = one.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return torch.zeros(len(one))
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    total = torch.zeros(len(one))
    for row in range(height):
        for column in range(width):
            total += one[:, row, column] * max(0, 1 - abs(y - row)) * max(0, 1 - abs(x - column))
    return total


def test_points_outside_the_map() -> None:
    one = torch.randn(2, 4, 5)
    box = [3.0, -3.0, 9.0, 3.0]
    found = roi_align(one[None], torch.tensor([box]), torch.tensor([0]), size=(3, 3), samples=1)[0]
    for row in range(3):
        for column in range(3):
            expected = point(one, box[1] + 2 * row + 1, box[0] + 2 * column + 1)
            torch.testing.assert_close(found[:, row, column], expected)
    assert (found[:, 0] == 0).all()
    assert (found[:, :, 2] == 0).all()


def test_a_linear_map_is_read_exactly() -> None:
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(30.0), indexing="ij")
    maps = (2 * y - 3 * x)[None, None]
    found = roi_align(maps, torch.tensor([[4.0, 2.0, 18.0, 16.0]]), torch.tensor([0]), size=(7, 7), aligned=True)
    middles = torch.arange(7) * 2.0 + 1 - 0.5
    expected = 2 * (2 + middles)[:, None] - 3 * (4 + middles)[None]
    torch.testing.assert_close(found[0, 0], expected)


def test_large_boxes_are_read_from_coarse_maps() -> None:
    boxes = torch.tensor([[0.0, 0, side, side] for side in (0.0, 10, 111, 112, 223, 224, 447, 448, 5000)])
    assert pyramid_levels(boxes, (4, 8, 16, 32)).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3]
    mapper = torchvision.ops.poolers.initLevelMapper(2, 5)
    some = boxes_within(200, 900, 900)
    assert torch.equal(pyramid_levels(some, (4, 8, 16, 32)), mapper([some]))


def test_each_box_is_read_from_its_own_map() -> None:
    maps = [torch.randn(2, 3, 256 // stride, 320 // stride, requires_grad=True) for stride in (4, 8)]
    boxes = torch.tensor([[0.0, 0, 40, 40], [10, 20, 250, 240], [5, 5, 60, 100]])
    pictures = torch.tensor([0, 1, 1])
    together = roi_align_pyramid(maps, (4, 8), boxes, pictures)
    for place, level in enumerate((0, 1, 0)):
        alone = roi_align(maps[level], boxes[place : place + 1], pictures[place : place + 1], scale=1 / (4, 8)[level])
        torch.testing.assert_close(together[place], alone[0])
    together.sum().backward()
    assert all(one.grad is not None and one.grad.abs().max() > 0 for one in maps)
    assert roi_align_pyramid(maps, (4, 8), boxes[:0], pictures[:0]).shape == (0, 3, 7, 7)
