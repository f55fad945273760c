"""Losses and assignments against torchvision's, and what is refused; whole losses are in tests/parity/test_region.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vitral.base.boxes import Objects
from vitral.errors import TrainingError
from vitral.models.detection.anchors import NOTHING, cell_anchors, grid_anchors
from vitral.models.output import DenseOutput
from vitral.tasks.detection.assignment import assign_points, dense_loss, focal_loss

torchvision = pytest.importorskip("torchvision")


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.6, 1.5)])
def test_focal_loss_is_torchvisions(alpha: float, gamma: float) -> None:
    logits, wanted = torch.randn(50, 4) * 3, (torch.rand(50, 4) < 0.2).float()
    theirs = torchvision.ops.sigmoid_focal_loss(logits, wanted, alpha, gamma, reduction="sum")
    torch.testing.assert_close(focal_loss(logits, wanted, alpha, gamma), theirs)


def points() -> tuple[torch.Tensor, list[int]]:
    made = [grid_anchors(cell_anchors([stride], [1.0]), (256 // stride,) * 2, (256, 256)) for stride in (8, 16, 32)]
    return torch.cat(made), list(map(len, made))


def test_points_hold_the_smallest_object_whose_size_suits_their_map() -> None:
    anchors, counts = points()
    large, small = [40.0, 40, 200, 200], [96.0, 96, 144, 144]
    held = assign_points(torch.tensor([large, small]), anchors, counts)
    middles = (anchors[:, :2] + anchors[:, 2:]) / 2
    for place, one in enumerate(held.tolist()):
        level = 0 if place < counts[0] else 1 if place < counts[0] + counts[1] else 2
        stride = 8 * 2**level
        fits = []
        for number, (left, top, right, bottom) in enumerate((large, small)):
            x, y = middles[place].tolist()
            edges = (x - left, y - top, right - x, bottom - y)
            near = max(abs(x - (left + right) / 2), abs(y - (top + bottom) / 2)) < 1.5 * stride
            low, high = (0 if level == 0 else 4 * stride), (float("inf") if level == 2 else 8 * stride)
            if min(edges) > 0 and near and low < max(edges) < high:
                fits.append(number)
        assert one == (max(fits) if fits else NOTHING)
    assert {0, 1, NOTHING} == set(held.tolist())
    assert (assign_points(torch.zeros(0, 4), anchors, counts) == NOTHING).all()


def output(**changes: Any) -> DenseOutput:
    anchors, counts = points()
    numbers = torch.Generator().manual_seed(0)
    fields: dict[str, Any] = {
        "logits": torch.randn(2, len(anchors), 3, generator=numbers),
        "offsets": torch.randn(2, len(anchors), 4, generator=numbers) * 0.1,
        "anchors": anchors,
        "counts": tuple(counts),
        "sizes": torch.tensor([[256.0, 256.0], [200.0, 256.0]]),
        "coding": "corrections",
        "taught": "l1",
    }
    return DenseOutput(**{**fields, **changes})


NONE = Objects(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))


@pytest.mark.parametrize("kind", [{}, {"taught": "giou"}, {"coding": "edges", "centerness": torch.zeros(2, 1344)}])
def test_pictures_of_nothing_teach_only_that_there_is_nothing(kind: dict[str, Any]) -> None:
    said = output(**kind)
    logits, offsets = said.logits.requires_grad_(), said.offsets.requires_grad_()
    losses = dense_loss(said, [NONE, NONE])
    mean = focal_loss(said.logits, torch.zeros_like(said.logits)) / (1 if "coding" in kind else 2)
    torch.testing.assert_close(losses["class"], mean)
    assert losses["box"] == 0
    losses["total"].backward()
    assert (logits.grad > 0).all()
    assert offsets.grad is None or not offsets.grad.abs().max()


def test_an_object_without_area_does_no_harm() -> None:
    point = Objects(torch.tensor([1]), torch.tensor([[0.5, 0.5, 0.0, 0.0]]))
    for kind in ({}, {"taught": "giou"}, {"coding": "edges", "centerness": torch.zeros(2, 1344)}):
        assert all(torch.isfinite(term) for term in dense_loss(output(**kind), [point, NONE]).values())


def test_chance_comes_from_the_generator() -> None:
    import torch.nn.functional as F

    from vitral.tasks.detection import assignment

    said = output(logits=torch.randn(2, 1344, 1))
    boxes = [torch.tensor([[40.0, 40, 60, 60]]), torch.zeros(0, 4)]

    def told(seed: int) -> float:
        return assignment._proposal_loss(said, boxes, torch.Generator().manual_seed(seed))["objectness"].item()

    assert told(0) == told(0) != told(1)
    assert 0.5 < told(0) / F.binary_cross_entropy_with_logits(said.logits, torch.zeros_like(said.logits)).item() < 2


def test_objects_that_do_not_fit_are_refused() -> None:
    with pytest.raises(TrainingError, match="objects for 1 pictures, but the model answered for 2"):
        dense_loss(output(), [NONE])
    with pytest.raises(TrainingError, match="class 3, but the model knows 3"):
        dense_loss(output(), [NONE, Objects(torch.tensor([3]), torch.tensor([[0.5, 0.5, 0.1, 0.1]]))])
    with pytest.raises(TrainingError, match="Picture 1 of the batch has boxes that are not finite"):
        dense_loss(output(), [NONE, Objects(torch.tensor([1]), torch.full((1, 4), torch.nan))])
