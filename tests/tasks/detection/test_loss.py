"""The loss of a set of queries, term by term against transformers' own."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.loss import loss_deformable_detr, loss_for_object_detection, loss_rt_detr

from vitral.base.boxes import Objects
from vitral.errors import TrainingError, UnknownNameError, UsageError
from vitral.models.output import Denoised, Predicted, SetOutput
from vitral.tasks.detection.loss import DEFORMABLE_LOSS, DETR_LOSS, RTDETR_LOSS, SetLoss
from vitral.tasks.detection.matching import Costs

CLASSES, QUERIES, WIDTH = 5, 9, 4
COUNTS = (3, 0, 5, 1)  # objects of each picture: one has none


def predicted(columns: int, pictures: int = len(COUNTS), queries: int = QUERIES) -> Predicted:
    boxes = torch.cat([torch.rand(pictures, queries, 2), 0.05 + 0.4 * torch.rand(pictures, queries, 2)], -1)
    return Predicted((2 * torch.randn(pictures, queries, columns)).requires_grad_(), boxes.requires_grad_())


def some_objects(counts: tuple[int, ...] = COUNTS) -> list[Objects]:
    return [
        Objects(
            torch.randint(0, CLASSES, (count,)),
            torch.cat([torch.rand(count, 2), 0.05 + 0.4 * torch.rand(count, 2)], -1),
        )
        for count in counts
    ]


def output_of(last: Predicted, scoring: Any, **more: Any) -> SetOutput:
    return SetOutput(*last, scoring, torch.zeros(*last.logits.shape[:2], WIDTH), **more)


def theirs(objects: list[Objects]) -> list[dict[str, Tensor]]:
    return [{"class_labels": one.labels, "boxes": one.boxes} for one in objects]


def stacked(layers: list[Predicted], dim: int) -> tuple[Tensor, Tensor]:
    return torch.stack([one.logits for one in layers], dim), torch.stack([one.boxes for one in layers], dim)


def config_of(loss: SetLoss, layers: int) -> Any:
    """A configuration of theirs that says what a loss of ours says."""
    weights = {"bbox_loss_coefficient": loss.l1_weight, "giou_loss_coefficient": loss.giou_weight}
    weights |= {"weight_loss_vfl": loss.class_weight, "weight_loss_bbox": 5.0, "weight_loss_giou": 2.0}
    costs = {"class_cost": loss.costs.classes, "bbox_cost": loss.costs.l1, "giou_cost": loss.costs.giou}
    costs |= {f"matcher_{name}": cost for name, cost in costs.items()}
    focal = {"matcher_alpha": 0.25, "matcher_gamma": 2.0, "use_focal_loss": True}
    focal |= {"focal_alpha": loss.alpha, "focal_loss_alpha": loss.alpha, "focal_loss_gamma": loss.gamma}
    shape = {"num_labels": CLASSES, "decoder_layers": layers, "auxiliary_loss": True, "eos_coefficient": loss.nothing}
    return SimpleNamespace(**weights, **costs, **focal, **shape)


def gradients(total: Tensor, layers: list[Predicted]) -> list[Tensor]:
    return list(torch.autograd.grad(total, [one for layer in layers for one in layer], retain_graph=True))


def compare(ours: dict[str, Tensor], total: Tensor, terms: dict[str, Tensor], layers: list[Predicted]) -> None:
    """Totals, every term that both name, and the gradient of every layer."""
    torch.testing.assert_close(ours["total"], total, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sum(term for name, term in ours.items() if name != "total"), total, rtol=1e-5, atol=1e-5)
    for name, term in terms.items():
        torch.testing.assert_close(ours[name], term, rtol=1e-5, atol=1e-5, msg=lambda said, name=name: f"{name}: {said}")
    for one, other in zip(gradients(ours["total"], layers), gradients(total, layers), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("counts", [COUNTS, (0, 0, 0, 0), (QUERIES, 1, 2, 0)])
def test_detr_is_transformers(counts: tuple[int, ...]) -> None:
    layers, objects = [predicted(CLASSES + 1) for _ in range(3)], some_objects(counts)
    total, terms, _ = loss_for_object_detection.ForObjectDetectionLoss(
        layers[-1].logits,
        theirs(objects),
        "cpu",
        layers[-1].boxes,
        config_of(DETR_LOSS, 3),
        *stacked(layers, 0),
    )
    ours = DETR_LOSS(output_of(layers[-1], "softmax", auxiliary=tuple(layers[:-1])), objects, sum(counts))
    compare(
        ours,
        total,
        {
            "class": terms["loss_ce"],
            "l1": 5 * terms["loss_bbox"],
            "auxiliary.0.giou": 2 * terms["loss_giou_0"],
            "auxiliary.1.class": terms["loss_ce_1"],
        },
        layers,
    )
    assert len(ours) == 10


@pytest.mark.parametrize("counts", [COUNTS, (0, 0, 0, 0)])
def test_deformable_is_transformers(counts: tuple[int, ...]) -> None:
    # Theirs weighs the class by 1; what was published, and stands in ours, is 2.
    loss = replace(DEFORMABLE_LOSS, class_weight=1.0)
    layers, objects = [predicted(CLASSES) for _ in range(3)], some_objects(counts)
    total, terms, _ = loss_deformable_detr.DeformableDetrForObjectDetectionLoss(
        layers[-1].logits,
        theirs(objects),
        "cpu",
        layers[-1].boxes,
        config_of(loss, 3),
        *stacked(layers, 0),
    )
    output = output_of(layers[-1], "sigmoid", auxiliary=tuple(layers[:-1]))
    ours = loss(output, objects, sum(counts))
    compare(ours, total, {"class": terms["loss_ce"], "auxiliary.1.l1": 5 * terms["loss_bbox_1"]}, layers)
    torch.testing.assert_close(DEFORMABLE_LOSS(output, objects, sum(counts))["class"], 2 * ours["class"])


def test_proposals_of_one_column_learn_whether_there_is_an_object() -> None:
    last, proposals, objects = predicted(CLASSES), predicted(1, queries=20), some_objects()
    matcher = loss_deformable_detr.DeformableDetrHungarianMatcher(class_cost=2, bbox_cost=5, giou_cost=2)
    criterion = loss_deformable_detr.DeformableDetrImageLoss(matcher, 1, 0.25, ["labels", "boxes"])
    anything = [one | {"class_labels": torch.zeros_like(one["class_labels"])} for one in theirs(objects)]
    terms = criterion({"logits": proposals.logits, "pred_boxes": proposals.boxes}, anything)
    ours = DEFORMABLE_LOSS(output_of(last, "sigmoid", proposals=proposals), objects, sum(COUNTS))
    torch.testing.assert_close(ours["proposals.class"], 2 * terms["loss_ce"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours["proposals.l1"], 5 * terms["loss_bbox"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours["proposals.giou"], 2 * terms["loss_giou"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("groups", [0, 2])
@pytest.mark.parametrize("counts", [COUNTS, (4, 4, 4, 4)])
def test_rt_detr_is_transformers(counts: tuple[int, ...], groups: int) -> None:
    objects, widest = some_objects(counts), max(counts)
    noisy = 2 * groups * widest  # of each group first the objects, then what is to become nothing
    layers = [predicted(CLASSES) for _ in range(3)]
    shown = [predicted(CLASSES, queries=noisy) for _ in range(3)]
    proposals = predicted(CLASSES)
    rows = tuple(
        torch.cat([2 * widest * group + torch.arange(count) for group in range(groups)]).long()
        if groups
        else torch.zeros(0).long()
        for count in counts
    )
    both = [
        Predicted(*(torch.cat(pair, 1) for pair in zip(noise, layer, strict=True)))
        for noise, layer in zip(shown, layers, strict=True)
    ]
    meta = {"dn_positive_idx": rows, "dn_num_group": groups, "dn_num_split": [noisy, QUERIES]} if groups else None
    total, terms, _ = loss_rt_detr.RTDetrForObjectDetectionLoss(
        both[-1].logits,
        theirs(objects),
        "cpu",
        both[-1].boxes,
        config_of(RTDETR_LOSS, 3),
        *stacked(both, 1),
        enc_topk_logits=proposals.logits,
        enc_topk_bboxes=proposals.boxes,
        denoising_meta_values=meta,
    )
    denoising = Denoised(tuple(shown), rows, tuple(torch.arange(count).tile(groups) for count in counts), groups)
    output = output_of(
        layers[-1],
        "sigmoid",
        auxiliary=tuple(layers[:-1]),
        proposals=proposals,
        denoising=denoising if groups else None,
    )
    named = {
        "class": "loss_vfl",
        "l1": "loss_bbox",
        "auxiliary.0.giou": "loss_giou_aux_0",
        "proposals.class": "loss_vfl_aux_2",
    }
    if groups:
        named |= {"denoising.0.class": "loss_vfl_dn_0", "denoising.2.giou": "loss_giou_dn_2"}
    every = [*layers, proposals, *(shown if groups else [])]
    ours = RTDETR_LOSS(output, objects, sum(counts))
    compare(ours, total, {name: terms[other] for name, other in named.items()}, every)


def test_noisy_objects_may_come_in_any_order() -> None:
    last, noisy, objects = predicted(CLASSES), predicted(CLASSES, queries=6), some_objects((2, 3, 0, 1))
    rows = (torch.tensor([1, 0]), torch.tensor([4, 2, 0]), torch.zeros(0).long(), torch.tensor([5]))
    chosen = (torch.tensor([0, 1]), torch.tensor([2, 0, 1]), torch.zeros(0).long(), torch.tensor([0]))
    told = RTDETR_LOSS(output_of(last, "sigmoid", denoising=Denoised((noisy,), rows, chosen, 1)), objects, 6)
    flipped = Denoised((noisy,), tuple(one.flip(0) for one in rows), tuple(one.flip(0) for one in chosen), 1)
    again = RTDETR_LOSS(output_of(last, "sigmoid", denoising=flipped), objects, 6)
    assert told["denoising.0.l1"] == again["denoising.0.l1"]
    by_hand = sum(
        (noisy.boxes[picture, row] - objects[picture].boxes[one]).abs().sum()
        for picture in range(4)
        for row, one in zip(rows[picture].tolist(), chosen[picture].tolist(), strict=True)
    )
    torch.testing.assert_close(told["denoising.0.l1"], 5 * by_hand / 6)


@pytest.mark.parametrize(
    ("loss", "columns", "scoring"),
    [(DETR_LOSS, CLASSES + 1, "softmax"), (DEFORMABLE_LOSS, CLASSES, "sigmoid"), (RTDETR_LOSS, CLASSES, "sigmoid")],
)
def test_pieces_of_a_batch_add_up_to_it(loss: SetLoss, columns: int, scoring: Any) -> None:
    last, objects = predicted(columns), some_objects()
    whole = loss(output_of(last, scoring), objects, sum(COUNTS))
    told = loss(output_of(last, scoring), objects, sum(COUNTS), pictures=4)
    torch.testing.assert_close(told, whole)
    pieces = [
        loss(output_of(Predicted(*(one[part] for one in last)), scoring), objects[part], sum(COUNTS), pictures=4)
        for part in (slice(0, 1), slice(1, 2), slice(2, 4))
    ]
    for name in whole:
        torch.testing.assert_close(sum(piece[name] for piece in pieces), whole[name])


@pytest.mark.parametrize(
    ("loss", "columns", "scoring"),
    [(DETR_LOSS, CLASSES + 1, "softmax"), (DEFORMABLE_LOSS, CLASSES, "sigmoid"), (RTDETR_LOSS, CLASSES, "sigmoid")],
)
def test_what_is_right_costs_little_and_gradients_are_finite(loss: SetLoss, columns: int, scoring: Any) -> None:
    objects = some_objects((3, 2, 0, 0))
    logits = torch.full((4, QUERIES, columns), -12.0)
    boxes = torch.full((4, QUERIES, 4), 0.5)
    if scoring == "softmax":
        logits[..., -1] = 12.0
    for picture, one in enumerate(objects):
        for place, label in enumerate(one.labels.tolist()):
            logits[picture, place] = -12.0
            logits[picture, place, label] = 12.0
            boxes[picture, place] = one.boxes[place]
    right = Predicted(logits.requires_grad_(), boxes.requires_grad_())
    told = loss(output_of(right, scoring), objects, 5)
    assert float(told["total"].detach()) < 1e-3
    assert all(torch.isfinite(one).all() for one in gradients(told["total"], [right]))
    wrong = loss(output_of(Predicted(-logits, boxes + 0.2), scoring), objects, 5)
    assert all(wrong[name] > told[name] + 0.1 for name in ("class", "l1", "giou"))


def test_half_precision_is_added_up_in_single() -> None:
    last, objects = predicted(CLASSES), some_objects()
    half = Predicted(*(one.detach().bfloat16() for one in last))
    told = RTDETR_LOSS(output_of(half, "sigmoid"), objects, 9)
    exact = RTDETR_LOSS(output_of(Predicted(*(one.float() for one in half)), "sigmoid"), objects, 9)
    assert told["total"].dtype == torch.float32
    assert told["total"] == exact["total"]


def test_mistakes_are_sentences(unchecked: None) -> None:
    last, objects = predicted(CLASSES), some_objects()
    with pytest.raises(UsageError, match="is for softmax scores, but the model's are sigmoid"):
        DETR_LOSS(output_of(last, "sigmoid"), objects, 9)
    with pytest.raises(UsageError, match="normaliser must be"):
        DEFORMABLE_LOSS(output_of(last, "sigmoid"), objects, float("nan"))
    with pytest.raises(UnknownNameError, match="'varifocal'"):
        SetLoss(classes="varyfocal")  # type: ignore[arg-type]
    for wrong in ({"l1_weight": -1.0}, {"gamma": float("inf")}, {"alpha": 1.5}, {"nothing": -0.1}):
        with pytest.raises(UsageError, match=f"{next(iter(wrong))} must be"):
            SetLoss(**wrong)
    for rows, chosen in (([0, 0], [0, 1]), ([0, 1], [0, 3])):
        noisy = Denoised((last,), (torch.tensor(rows), *[torch.zeros(0).long()] * 3), (torch.tensor(chosen),) * 4, 1)
        noisy = noisy._replace(objects=(torch.tensor(chosen), *[torch.zeros(0).long()] * 3))
        with pytest.raises(UsageError, match="noisy queries of picture 0 of the batch do not fit its 3 objects"):
            RTDETR_LOSS(output_of(last, "sigmoid", denoising=noisy), objects, 9)
    broken = Predicted(last.logits.detach().clone().fill_(float("nan")), last.boxes)
    with pytest.raises(TrainingError, match="logits for picture 0"):
        RTDETR_LOSS(output_of(last, "sigmoid", auxiliary=(broken,)), objects, 9)
    assert DETR_LOSS.costs == Costs(classes=1, l1=5, giou=2)
