"""Matching against all permutations and transformers' matchers."""

from __future__ import annotations

from itertools import permutations
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.loss import loss_deformable_detr, loss_for_object_detection, loss_rt_detr

from vitral.base.boxes import Objects
from vitral.errors import TrainingError, UsageError
from vitral.tasks.detection.matching import Costs, match

CLASSES = 4


def drawn(seed: int, queries: int, counts: list[int], columns: int) -> tuple[torch.Tensor, torch.Tensor, list[Objects]]:
    numbers = torch.Generator().manual_seed(seed)

    def boxes(*shape: int) -> torch.Tensor:
        centre, size = torch.rand(*shape, 2, generator=numbers), torch.rand(*shape, 2, generator=numbers)
        return torch.cat([centre, 0.02 + size / 2], -1)

    objects = [Objects(torch.randint(0, CLASSES, (count,), generator=numbers), boxes(count)) for count in counts]
    return torch.randn(len(counts), queries, columns, generator=numbers), boxes(len(counts), queries), objects


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.lists(st.integers(0, 3), min_size=1, max_size=3), st.integers(3, 5))
def test_no_other_assignment_is_cheaper(seed: int, counts: list[int], queries: int) -> None:
    logits, boxes, objects = drawn(seed, queries, counts, CLASSES + 1)
    pairs = match(logits, boxes, objects, Costs(), "softmax")
    assert len(pairs) == len(counts)
    convert = torchvision.ops.box_convert
    for place, (rows, chosen) in enumerate(pairs):
        assert sorted(chosen.tolist()) == list(range(counts[place]))  # every object once
        assert rows.tolist() == sorted(set(rows.tolist()))  # no query twice
        by_class = -logits[place].softmax(-1)[:, objects[place].labels]
        by_distance = torch.cdist(boxes[place], objects[place].boxes, p=1)
        corners = (convert(one, "cxcywh", "xyxy") for one in (boxes[place], objects[place].boxes))
        cost = by_class + 5 * by_distance - 2 * torchvision.ops.generalized_box_iou(*corners)
        least = min(
            sum(float(cost[row, one]) for one, row in enumerate(order))
            for order in permutations(range(queries), counts[place])
        )
        assert float(cost[rows, chosen].sum()) == pytest.approx(least, abs=1e-4)


@pytest.mark.parametrize("kind", ["detr", "deformable", "rt_detr"])
def test_pairs_are_transformers(kind: str) -> None:
    softmax = kind == "detr"
    logits, boxes, objects = drawn(7, 50, [6, 0, 20, 1], CLASSES + softmax)
    config: Any = {"class_cost": 2.0, "bbox_cost": 5.0, "giou_cost": 2.0}
    if kind == "rt_detr":
        told = {f"matcher_{name}": cost for name, cost in config.items()} | {"matcher_alpha": 0.25, "matcher_gamma": 2.0}
        matcher: Any = loss_rt_detr.RTDetrHungarianMatcher(SimpleNamespace(**told, use_focal_loss=True))
    elif softmax:
        matcher = loss_for_object_detection.HungarianMatcher(**config)
    else:
        matcher = loss_deformable_detr.DeformableDetrHungarianMatcher(**config)
    targets = [{"class_labels": one.labels, "boxes": one.boxes} for one in objects]
    theirs = matcher({"logits": logits, "pred_boxes": boxes}, targets)
    ours = match(logits, boxes, objects, Costs(classes=2), "softmax" if softmax else "sigmoid")
    for (rows, chosen), (their_rows, their_chosen) in zip(ours, theirs, strict=True):
        assert rows.tolist() == their_rows.tolist()
        assert chosen.tolist() == their_chosen.tolist()


def test_as_many_objects_as_queries_and_not_one_more() -> None:
    logits, boxes, objects = drawn(1, 4, [0, 4], CLASSES + 1)
    assert match(logits, boxes, objects, Costs(), "softmax")[1][0].tolist() == [0, 1, 2, 3]
    _, _, more = drawn(1, 4, [0, 5], CLASSES + 1)
    with pytest.raises(TrainingError, match="Picture 1 of the batch shows 5 objects, but the model has 4 queries"):
        match(logits, boxes, more, Costs(), "softmax")


def test_what_cannot_be_matched_is_said() -> None:
    logits, boxes, objects = drawn(1, 4, [2, 3], CLASSES + 1)
    for wrong, value in (("logits", float("nan")), ("boxes", float("inf"))):
        broken = {"logits": logits.clone(), "boxes": boxes.clone()}
        broken[wrong][1, 2] = value
        with pytest.raises(TrainingError, match=f"The model's {wrong} for picture 1 of the batch are not finite"):
            match(broken["logits"], broken["boxes"], objects, Costs(), "softmax")
    spoilt = [objects[0]._replace(boxes=objects[0].boxes * float("nan")), objects[1]]
    with pytest.raises(TrainingError, match=r"boxes of the objects in picture 0 .* Check the annotations"):
        match(logits, boxes, spoilt, Costs(), "softmax")
    for label, scoring in ((CLASSES, "softmax"), (-1, "softmax"), (CLASSES + 1, "sigmoid")):
        strange = [objects[0], objects[1]._replace(labels=torch.tensor([0, 1, label]))]
        with pytest.raises(TrainingError, match=f"An object is of class {label}, but the model knows"):
            match(logits, boxes, strange, Costs(), scoring)
    with pytest.raises(UsageError, match="objects of 1 pictures came for a batch of 2"):
        match(logits, boxes, objects[:1], Costs(), "softmax")


@pytest.mark.parametrize(
    "wrong", [{"l1": -1.0}, {"giou": float("nan")}, {"alpha": 2.0}, {"classes": 0.0, "l1": 0.0, "giou": 0.0}]
)
def test_costs_have_their_ranges(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=" of Costs "):
        Costs(**wrong)
