"""Losses of maps against closed forms and peers, losses of masks term by term against transformers' own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor
from transformers import Mask2FormerConfig, SegformerConfig, SegformerForSemanticSegmentation
from transformers.loss import loss_for_object_detection
from transformers.models.mask2former import modeling_mask2former
from transformers.models.maskformer import modeling_maskformer

from vitral.base.boxes import Objects
from vitral.errors import TrainingError, UnknownNameError, UsageError
from vitral.models.output import MapOutput, MaskOutput, PredictedMasks
from vitral.tasks.detection.matching import Costs
from vitral.tasks.segmentation.loss import DETR_MASK_LOSS, MASK2FORMER_LOSS, MASKFORMER_LOSS, MapLoss, MaskLoss
from vitral.tasks.segmentation.matching import MaskCosts

CLASSES, IGNORE = 4, 255
ONLY = {"cross_entropy": 0.0}


def maps(pictures: int = 3, size: tuple[int, int] = (9, 11), coarse: tuple[int, int] | None = None) -> Any:
    """Logits that learn, and class maps of which a fifth is to be ignored."""
    logits = (2 * torch.randn(pictures, CLASSES, *(coarse or size))).requires_grad_()
    told = torch.randint(0, CLASSES, (pictures, *size))
    told[torch.rand(told.shape) < 0.2] = IGNORE
    return logits, told


def learned(loss: MapLoss, logits: Tensor, told: Tensor, **more: Any) -> dict[str, Tensor]:
    return loss(MapOutput(logits), told, loss.pixels_of(told), **more)


def alike(one: Tensor, other: Tensor, logits: Tensor) -> None:
    """Two losses and their gradients."""
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    first, second = (torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (one, other))
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("weights", [None, (0.5, 2.0, 1.0, 0.0)])
@pytest.mark.parametrize("coarse", [None, (3, 4)])
def test_cross_entropy_is_torchs(weights: Any, coarse: Any) -> None:
    logits, told = maps(coarse=coarse)
    whole = logits if coarse is None else F.interpolate(logits, size=(9, 11), mode="bilinear")
    by_torch = F.cross_entropy(whole, told, None if weights is None else torch.tensor(weights), ignore_index=IGNORE)
    alike(learned(MapLoss(class_weights=weights), logits, told)["total"], by_torch, logits)


def test_it_is_segformers() -> None:
    small = {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "decoder_hidden_size": 8, "num_labels": CLASSES}
    model = SegformerForSemanticSegmentation(SegformerConfig(**small, num_attention_heads=[1, 1, 1, 1])).eval()
    _, told = maps(2, (37, 50))
    with torch.no_grad():
        theirs = model(torch.randn(2, 3, 37, 50), labels=told)
    torch.testing.assert_close(learned(MapLoss(), theirs.logits, told)["total"], theirs.loss, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_of_two_classes_is_the_sigmoids(gamma: float) -> None:
    said = torch.randn(2, 1, 5, 7, requires_grad=True)
    told = torch.randint(0, 2, (2, 5, 7))
    loss = MapLoss(focal=1.0, gamma=gamma, class_weights=(0.75, 0.25), **ONLY)
    ours = loss(MapOutput(torch.cat([torch.zeros_like(said), said], 1)), told, 70.0)["focal"]
    theirs = torchvision.ops.sigmoid_focal_loss(said[:, 0], told.float(), alpha=0.25, gamma=gamma, reduction="mean")
    alike(ours, theirs, said)


def test_dice_by_hand() -> None:
    logits, told = maps()
    p, t = logits.detach().double().softmax(1).numpy(), told.numpy()
    each = []
    for picture in range(3):
        seen = t[picture] != IGNORE
        for one in range(CLASSES):
            found, true = p[picture, one][seen], (t[picture] == one)[seen]
            each.append(1 - (2 * (found * true).sum() + 1) / (found.sum() + true.sum() + 1))
    assert learned(MapLoss(dice=1.0, **ONLY), logits, told)["total"].item() == pytest.approx(np.mean(each), abs=1e-6)


def extension(chances: np.ndarray, labels: np.ndarray) -> float:
    """The Lovász extension from its definition: the loss of growing sets of mistakes, the worst first."""

    def jaccard(mistakes: set[int], own: set[int]) -> float:
        return 1 - len(own - mistakes) / len(own | mistakes)

    chances, labels = chances[:, labels != IGNORE], labels[labels != IGNORE]
    each = []
    for one in np.unique(labels):
        own = set(np.flatnonzero(labels == one).tolist())
        errors = np.where(labels == one, 1 - chances[one], chances[one])
        order, told = np.argsort(-errors), 0.0
        for place, pixel in enumerate(order):
            first = jaccard(set(order[:place].tolist()), own)
            told += errors[pixel] * (jaccard(set(order[: place + 1].tolist()), own) - first)
        each.append(told)
    return float(np.mean(each))


def test_lovasz_is_the_extension() -> None:
    logits, told = maps(2, (5, 6))
    told[1][told[1] == 2] = IGNORE  # a class that only one picture shows
    p, t = logits.detach().double().softmax(1).flatten(2).numpy(), told.flatten(1).numpy()
    by_picture = learned(MapLoss(lovasz=1.0, **ONLY), logits, told)["lovasz"]
    assert by_picture.item() == pytest.approx(np.mean([extension(*one) for one in zip(p, t, strict=True)]), abs=1e-5)
    by_batch = learned(MapLoss(lovasz=1.0, lovasz_over="batch", **ONLY), logits, told)["lovasz"]
    assert by_batch.item() == pytest.approx(extension(np.concatenate(p, 1), t.reshape(-1)), abs=1e-5)
    sure = (40.0 * F.one_hot(told.where(told != IGNORE, 0)).permute(0, 3, 1, 2)).float()
    assert learned(MapLoss(lovasz=1.0, **ONLY), sure, told)["lovasz"].item() == pytest.approx(0, abs=1e-6)


def test_lovasz_of_hard_answers_is_one_minus_iou() -> None:
    told, said = torch.randint(0, 3, (1, 40, 40)), torch.randint(0, 3, (1, 40, 40))
    logits = 60.0 * F.one_hot(said).permute(0, 3, 1, 2)
    each = [1 - ((told == one) & (said == one)).sum() / ((told == one) | (said == one)).sum() for one in range(3)]
    found = MapLoss(lovasz=1.0, **ONLY)(MapOutput(logits), told, 1600.0)["lovasz"]
    torch.testing.assert_close(found, torch.stack(each).mean(), rtol=1e-5, atol=1e-5)


EVERY = MapLoss(cross_entropy=1.0, focal=0.5, dice=2.0, lovasz=0.7, class_weights=(1.0, 2.0, 0.5, 1.5))


@pytest.mark.parametrize("over", ["picture", "batch"])
def test_where_all_is_ignored_nothing_is_learned(over: Any) -> None:
    logits, told = maps(2, coarse=(3, 3))
    ours = learned(replace(EVERY, lovasz_over=over), logits, torch.full_like(told, IGNORE))
    assert ours["total"].item() == 0
    assert (torch.autograd.grad(ours["total"], logits)[0] == 0).all()


def test_pieces_of_a_batch_of_maps_add_up_to_it() -> None:
    logits, told = maps(4, coarse=(4, 5))
    told[2] = IGNORE
    output = MapOutput(logits, auxiliary=(torch.randn(4, CLASSES, 2, 3),))
    pixels = EVERY.pixels_of(told)
    whole = EVERY(output, told, pixels)
    assert len(whole) == 9
    pieces = [
        EVERY(MapOutput(logits[one], (output.auxiliary[0][one],)), told[one], pixels, pictures=4)
        for one in (slice(0, 1), slice(1, 3), slice(3, 4))
    ]
    for name in whole:
        torch.testing.assert_close(sum(piece[name] for piece in pieces), whole[name], rtol=1e-5, atol=1e-6)
    with pytest.raises(UsageError, match="IoU over a batch of 4 pictures cannot be had from a piece of 1"):
        replace(EVERY, lovasz_over="batch")(MapOutput(logits[:1]), told[:1], pixels, pictures=4)


def test_auxiliary_heads_count_by_their_weight() -> None:
    logits, told = maps()
    again = MapOutput(logits, auxiliary=(logits, logits[..., ::3, ::3]))
    ours = MapLoss()(again, told, MapLoss().pixels_of(told))
    torch.testing.assert_close(ours["auxiliary.0.cross_entropy"], 0.4 * ours["cross_entropy"])
    torch.testing.assert_close(ours["total"], 1.4 * ours["cross_entropy"] + ours["auxiliary.1.cross_entropy"])
    assert set(MapLoss(auxiliary=0.0)(again, told, 9.0)) == {"total", "cross_entropy"}


def test_what_is_surely_right_has_finite_gradients() -> None:
    told = torch.randint(0, CLASSES, (1, 4, 4))
    logits = (1e4 * F.one_hot(told, CLASSES).permute(0, 3, 1, 2)).float().requires_grad_()
    for gamma in (0.0, 0.5, 1.0):
        ours = learned(replace(EVERY, gamma=gamma), logits, told)["total"]
        assert ours.item() < 0.01
        assert torch.autograd.grad(ours, logits)[0].isfinite().all()
    half = learned(EVERY, logits.detach().bfloat16(), told)["total"]
    assert half.dtype == torch.float32


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.int32, torch.uint16])
def test_class_maps_are_of_any_whole_numbers(kind: torch.dtype) -> None:
    logits, told = maps()
    for over in ("picture", "batch"):
        loss = replace(EVERY, lovasz_over=over)
        assert loss.pixels_of(told.to(kind)) == loss.pixels_of(told)
        ours, theirs = (learned(loss, logits, one) for one in (told.to(kind), told))
        assert {name: term.item() for name, term in ours.items()} == {name: term.item() for name, term in theirs.items()}
    p, t = logits.detach().softmax(1).flatten(2).double().numpy(), told.flatten(1).numpy()
    by_hand = np.mean([extension(*one) for one in zip(p, t, strict=True)])
    ours = learned(MapLoss(lovasz=1.0, **ONLY), logits, told.to(kind))["lovasz"]
    assert ours.item() == pytest.approx(by_hand, abs=1e-5)


def test_a_whole_batch_needs_no_number_of_pixels_or_objects(unchecked: None) -> None:
    logits, told = maps()
    by_torch = F.cross_entropy(logits, told, ignore_index=IGNORE)
    torch.testing.assert_close(MapLoss()(MapOutput(logits), told)["total"], by_torch)
    said, targets = layer(), things()
    for loss in (MASKFORMER_LOSS, replace(MASKFORMER_LOSS, costs=MaskCosts(dice=2.0))):
        alone, given = loss(output_of([said]), targets), loss(output_of([said]), targets, sum(COUNTS))
        assert {name: term.item() for name, term in alone.items()} == {name: term.item() for name, term in given.items()}
    with pytest.raises(UsageError, match="needs the pixels of the whole batch too: pixels="):
        MapLoss()(MapOutput(logits), told, pictures=9)
    with pytest.raises(UsageError, match="needs the objects of the whole batch too: objects="):
        MASKFORMER_LOSS(output_of([said]), targets, pictures=9)


def test_mistakes_about_maps_are_sentences(unchecked: None) -> None:
    logits, told = maps()
    for wrong in (CLASSES, -1, 254):
        strange = told.clone()
        strange[1, 2, 3] = wrong
        with pytest.raises(UsageError, match=f"A pixel is of class {wrong}, but the model knows 4 classes"):
            learned(MapLoss(), logits, strange)
        with pytest.raises(UsageError, match=f"A pixel is of class {wrong}"):
            MapLoss(class_weights=(1.0,) * 4).pixels_of(strange)
    with pytest.raises(UsageError, match="class_weights has 3 numbers, but the model knows 4"):
        MapLoss(class_weights=(1.0,) * 3)(MapOutput(logits), told.clamp(max=2), 9.0)
    with pytest.raises(UsageError, match="2 class maps came for a batch of 3"):
        learned(MapLoss(), logits, told[:2])
    for kind in (torch.float32, torch.bool):
        for ask in (MapLoss().pixels_of, lambda one: MapLoss()(MapOutput(logits), one, 9.0)):
            with pytest.raises(UsageError, match=f"whole numbers; {kind} came"):
                ask(told.to(kind))
    for loss in (MapLoss(), MapLoss(lovasz=1.0, dice=1.0)):
        with pytest.raises(UsageError, match="A batch without any picture"):
            loss(MapOutput(logits[:0]), told[:0], 0.0)
    with pytest.raises(UsageError, match="pixels must be"):
        MapLoss()(MapOutput(logits), told, math.nan)
    with pytest.raises(UsageError, match="nothing would be learned"):
        MapLoss(cross_entropy=0.0)
    with pytest.raises(UnknownNameError, match="'picture'"):
        MapLoss(lovasz_over="pictures")  # type: ignore[arg-type]
    for options in ({"focal": -1.0}, {"gamma": math.inf}, {"class_weights": (1.0, -2.0)}):
        with pytest.raises(UsageError, match="must be"):
            MapLoss(**options)  # type: ignore[arg-type]


# -- masks ------------------------------------------------------------------------------------------------------------

QUERIES, SIZE = 7, (20, 28)
COUNTS = (3, 0, 5, 1)


def layer(pictures: int = len(COUNTS), coarse: tuple[int, int] = (5, 7)) -> PredictedMasks:
    logits = torch.randn(pictures, QUERIES, CLASSES + 1, requires_grad=True)
    return PredictedMasks(logits, (3 * torch.randn(pictures, QUERIES, *coarse)).requires_grad_())


def things(counts: tuple[int, ...] = COUNTS) -> list[Objects]:
    """Objects with blobs as masks, some of them empty."""
    told = []
    for number in counts:
        coarse = torch.randn(number, 1, 4, 5) - 0.3
        masks = F.interpolate(coarse, size=SIZE, mode="bilinear")[:, 0] > 0 if number else torch.zeros(0, *SIZE) > 0
        boxes = torch.cat([torch.rand(number, 2), 0.1 + 0.4 * torch.rand(number, 2)], -1)
        told.append(Objects(torch.randint(0, CLASSES, (number,)), boxes, masks))
    return told


def output_of(layers: list[PredictedMasks], boxes: Tensor | None = None) -> MaskOutput:
    queries = torch.zeros(*layers[0].logits.shape[:2], 4)
    return MaskOutput(layers[0].logits, layers[0].masks, queries, auxiliary=tuple(layers[1:]), boxes=boxes)


def said_by(layers: list[PredictedMasks]) -> list[dict[str, Tensor]]:
    return [{"masks_queries_logits": one.masks, "class_queries_logits": one.logits} for one in layers[1:]]


def compare(ours: dict[str, Tensor], theirs: dict[str, Tensor], weights: dict[str, float], layers: Any) -> None:
    """Every term of every layer, and the gradient of their sum."""
    assert len(ours) == 1 + len(theirs)
    total = torch.zeros(())
    for place in range(len(layers)):
        for name, weight in weights.items():
            other = weight * theirs[f"loss_{name}" + (f"_{place - 1}" if place else "")]
            mine = "class" if name in ("cross_entropy", "ce") else name
            mine = f"auxiliary.{place - 1}.{mine}" if place else mine
            torch.testing.assert_close(
                ours[mine], other, rtol=1e-5, atol=1e-5, msg=lambda said, mine=mine: f"{mine}: {said}"
            )
            total = total + other
    torch.testing.assert_close(ours["total"], total, rtol=1e-5, atol=1e-5)
    every = [one for each in layers for one in each]
    for one, two in zip(*(torch.autograd.grad(loss, every) for loss in (ours["total"], total)), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("counts", [COUNTS, (QUERIES, 1, 0, 2)])
def test_maskformer_is_transformers(counts: tuple[int, ...]) -> None:
    layers, targets = [layer() for _ in range(3)], things(counts)
    weights = {"cross_entropy": 1.0, "mask": 20.0, "dice": 1.0}
    matcher = modeling_maskformer.MaskFormerHungarianMatcher(cost_class=1.0, cost_mask=20.0, cost_dice=1.0)
    criterion = modeling_maskformer.MaskFormerLoss(CLASSES, matcher, weights, eos_coef=0.1)
    masks, labels = [one.masks.float() for one in targets], [one.labels for one in targets]
    theirs = criterion(layers[0].masks, layers[0].logits, masks, labels, said_by(layers))
    compare(MASKFORMER_LOSS(output_of(layers), targets, sum(counts)), theirs, weights, layers)


class Fixed:
    """Points that ours and theirs are given alike: one set for each picture to match by, and new ones for each layer."""

    def __init__(self, points: int, pictures: int) -> None:
        self.points, self.matching = points, torch.rand(pictures, points, 2)
        self.known: dict[tuple[int, int, int], Tensor] = {}

    def drawn(self, numbers: Iterator[int], sets: int, points: int) -> Tensor:
        key = (next(numbers), sets, points)
        return self.known.setdefault(key, torch.from_numpy(np.random.rand(sets, points, 2)).float())

    def ours(self) -> Any:
        numbers = count()

        def draw(sets: int, points: int, device: torch.device) -> Tensor:
            return self.matching if points == self.points else self.drawn(numbers, sets, points)

        return draw

    def theirs(self) -> Any:
        numbers, pictures = count(), count()

        def rand(sets: int, points: int, _: int, device: Any = None) -> Tensor:
            if points == self.points:
                return self.matching[next(pictures) % len(self.matching)][None]
            return self.drawn(numbers, sets, points)

        return rand


@pytest.mark.parametrize("counts", [COUNTS, (QUERIES, 1, 0, 2)])
def test_mask2former_is_transformers(counts: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    layers, targets = [layer() for _ in range(3)], things(counts)
    weights = {"cross_entropy": 2.0, "mask": 5.0, "dice": 5.0}
    fixed = Fixed(90, len(counts))
    config = Mask2FormerConfig(train_num_points=90, num_labels=CLASSES)
    assert (config.oversample_ratio, config.importance_sample_ratio) == (3.0, 0.75)
    assert (config.class_weight, config.mask_weight, config.dice_weight, config.no_object_weight) == (2, 5, 5, 0.1)
    criterion = modeling_mask2former.Mask2FormerLoss(config, weights)
    masks, labels = [one.masks.float() for one in targets], [one.labels for one in targets]
    with monkeypatch.context() as patched:
        patched.setattr(torch, "rand", fixed.theirs())
        theirs = criterion(layers[0].masks, layers[0].logits, masks, labels, said_by(layers))
    assert len(fixed.known) == 6  # of three layers the many, and those spread evenly
    loss = replace(MASK2FORMER_LOSS, points=90, costs=replace(MASK2FORMER_LOSS.costs, points=90), draw=fixed.ours())
    compare(loss(output_of(layers), targets, sum(counts)), theirs, weights, layers)
    assert len(fixed.known) == 6
    assert MASK2FORMER_LOSS.points == MASK2FORMER_LOSS.costs.points == Mask2FormerConfig().train_num_points


@pytest.mark.parametrize("counts", [COUNTS, (1, 1, 1, QUERIES)])
def test_detr_is_transformers(counts: tuple[int, ...]) -> None:
    said, targets = layer(), things(counts)
    boxes = torch.cat([torch.rand(4, QUERIES, 2), 0.1 + 0.4 * torch.rand(4, QUERIES, 2)], -1).requires_grad_()
    costs = {"class_cost": 1, "bbox_cost": 5, "giou_cost": 2}
    weights = {f"{name}_loss_coefficient": one for name, one in {"bbox": 5, "giou": 2, "mask": 1, "dice": 1}.items()}
    config = SimpleNamespace(**costs, **weights, num_labels=CLASSES, eos_coefficient=0.1, auxiliary_loss=False)
    labels = [{"class_labels": one.labels, "boxes": one.boxes, "masks": one.masks} for one in targets]
    total, theirs, _ = loss_for_object_detection.ForSegmentationLoss(said.logits, labels, "cpu", boxes, said.masks, config)
    ours = DETR_MASK_LOSS(output_of([said], boxes), targets, sum(counts))
    for name, other in (("class", "ce"), ("l1", "bbox"), ("giou", "giou"), ("mask", "mask"), ("dice", "dice")):
        weight = {"l1": 5, "giou": 2}.get(name, 1)
        torch.testing.assert_close(ours[name], weight * theirs[f"loss_{other}"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours["total"], total, rtol=1e-5, atol=1e-5)
    every = [*said, boxes]
    for one, two in zip(*(torch.autograd.grad(loss, every) for loss in (ours["total"], total)), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def at_fixed_points(sets: int, points: int, device: torch.device) -> Tensor:
    """The same for every mask, whatever it was drawn with."""
    return torch.rand(1, points, 2, generator=torch.Generator().manual_seed(points)).expand(sets, -1, -1)


LOSSES = {
    "maskformer": MASKFORMER_LOSS,
    "mask2former": replace(MASK2FORMER_LOSS, points=40, draw=at_fixed_points),
    "detr": DETR_MASK_LOSS,
}


@pytest.mark.parametrize("name", LOSSES)
def test_pieces_of_a_batch_of_masks_add_up_to_it(name: str) -> None:
    loss, targets, said = LOSSES[name], things(), layer()
    boxes = 0.1 + 0.4 * torch.rand(4, QUERIES, 4)
    whole = loss(output_of([said], boxes), targets, sum(COUNTS))
    pieces = [
        loss(
            output_of([PredictedMasks(said.logits[one], said.masks[one])], boxes[one]),
            targets[one],
            sum(COUNTS),
            pictures=4,
        )
        for one in (slice(0, 1), slice(1, 2), slice(2, 4))
    ]
    for term in whole:
        torch.testing.assert_close(sum(piece[term] for piece in pieces), whole[term], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_pictures_without_objects_teach_that_there_is_nothing(name: str) -> None:
    said, targets = layer(2), things((0, 0))
    told = LOSSES[name](output_of([said], torch.rand(2, QUERIES, 4)), targets, 0)
    by_torch = F.cross_entropy(said.logits.flatten(0, 1), torch.full((2 * QUERIES,), CLASSES))
    torch.testing.assert_close(told["class"], LOSSES[name].class_weight * by_torch)
    assert told["mask"] == told["dice"] == 0
    by_class, by_mask = torch.autograd.grad(told["total"], [*said])
    assert by_class.abs().sum() > 0
    assert (by_mask == 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_what_is_right_costs_little(name: str) -> None:
    targets, logits = things((3, 2)), torch.full((2, QUERIES, CLASSES + 1), -12.0)
    masks, boxes = torch.full((2, QUERIES, *SIZE), -12.0), torch.full((2, QUERIES, 4), 0.5)
    logits[..., -1] = 12.0
    for picture, one in enumerate(targets):
        for place, label in enumerate(one.labels.tolist()):
            logits[picture, place, -1], logits[picture, place, label] = -12.0, 12.0
            masks[picture, place][one.masks[place]] = 12.0
            boxes[picture, place] = one.boxes[place]
    right = [PredictedMasks(logits.requires_grad_(), masks.requires_grad_())]
    told = LOSSES[name](output_of(right, boxes), targets, 5)
    assert told["class"].item() < 1e-4
    between = name == "mask2former"  # along edges its points lie between the pixels, where nothing is quite right
    assert told["mask"].item() < (8 if between else 1e-3)
    assert told["dice"].item() < (1 if between else 1e-3)
    assert all(one.isfinite().all() for one in torch.autograd.grad(told["total"], [*right[0]]))
    wrong = LOSSES[name](output_of([PredictedMasks(logits, -masks)], boxes), targets, 5)
    assert wrong["mask"] > 2 * told["mask"] + 1
    half = LOSSES[name](output_of([PredictedMasks(logits.bfloat16(), masks.bfloat16())], boxes.bfloat16()), targets, 5)
    assert half["total"].dtype == torch.float32


def test_mistakes_about_masks_are_sentences(unchecked: None) -> None:
    said, targets = layer(2), things((2, 1))
    with pytest.raises(UsageError, match="objects of picture 1 of the batch have no masks"):
        MASKFORMER_LOSS(output_of([said]), [targets[0], targets[1]._replace(masks=None)], 3)
    smaller = targets[1]._replace(masks=targets[1].masks[:, 1:])
    with pytest.raises(UsageError, match=r"\(19, 28\) and \(20, 28\)"):
        MASKFORMER_LOSS(output_of([said]), [targets[0], smaller], 3)
    with pytest.raises(UsageError, match="of boxes too, but the model says none"):
        DETR_MASK_LOSS(output_of([said]), targets, 3)
    with pytest.raises(UsageError, match="says no boxes to be matched by"):
        MaskLoss(costs=Costs())(output_of([said]), targets, 3)
    with pytest.raises(UsageError, match="says no boxes to be matched by"):
        DETR_MASK_LOSS(output_of([said, said], torch.rand(2, QUERIES, 4)), targets, 3)
    with pytest.raises(UsageError, match="objects must be"):
        MASKFORMER_LOSS(output_of([said]), targets, -1)
    with pytest.raises(UsageError, match="objects of 1 pictures came for a batch of 2"):
        MASKFORMER_LOSS(output_of([said]), targets[:1], 3)
    with pytest.raises(TrainingError, match="An object is of class 4, but the model knows 4 classes"):
        MASKFORMER_LOSS(output_of([said]), [targets[0], targets[1]._replace(labels=torch.tensor([CLASSES]))], 3)
    for name in ("logits", "masks"):
        broken = {"logits": said.logits.detach().clone(), "masks": said.masks.detach().clone()}
        broken[name].view(2, -1)[1, 3] = math.nan
        for loss in (MASKFORMER_LOSS, MASK2FORMER_LOSS):
            with pytest.raises(TrainingError, match=f"The model's {name} for picture 1 of the batch are not finite"):
                loss(output_of([said, PredictedMasks(**broken)]), targets, 3)
    with pytest.raises(UnknownNameError, match="'focal'"):
        MaskLoss(error="focale")  # type: ignore[arg-type]
    for options in ({"alpha": 1.5}, {"importance": 2.0}, {"oversample": 0.5}, {"points": 0}, {"dice_weight": -1.0}):
        with pytest.raises(UsageError, match=f"{next(iter(options))} must be"):
            MaskLoss(**options)  # type: ignore[arg-type]
    for options in ({"points": 0}, {"mask": -1.0}, {"alpha": 2.0}, {"classes": 0.0, "mask": 0.0, "dice": 0.0}):
        with pytest.raises(UsageError, match="of MaskCosts"):
            MaskCosts(**options)  # type: ignore[arg-type]
