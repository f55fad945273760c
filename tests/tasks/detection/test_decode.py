"""What queries say, read as transformers' image processors read it, and brought back to the picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from transformers import DeformableDetrImageProcessor, DetrImageProcessor, RTDetrImageProcessor
from transformers.models.detr.modeling_detr import DetrObjectDetectionOutput

from vitral.base.frame import Frame, Seen
from vitral.errors import UsageError
from vitral.models.output import DenseOutput, EncoderOutput, SetOutput
from vitral.models.record import Record
from vitral.tasks.detection.decode import decode
from vitral.tasks.detection.result import Detections, Options

SIZES = ((480, 640), (333, 500), (97, 61))
NAMES = tuple("abcdef")


def said(scoring: Any, queries: int = 40, seed: int = 0) -> SetOutput:
    numbers = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(len(SIZES), queries, 6 + (scoring == "softmax"), generator=numbers)
    centre, size = (torch.rand(len(SIZES), queries, 2, generator=numbers) for _ in range(2))
    boxes = torch.cat([0.3 + 0.4 * centre, 0.02 + size * 0.5], -1)
    return SetOutput(logits, boxes, scoring, torch.zeros(len(SIZES), queries, 3))


def seen_in(input_size: tuple[int, int] = (64, 96)) -> list[Seen]:
    """Every picture resized to one input."""
    return [
        Seen(f"{place}", Frame(picture=size, input=input_size, scale=(input_size[0] / size[0], input_size[1] / size[1])))
        for place, size in enumerate(SIZES)
    ]


def assert_same(ours: Detections, theirs: dict[str, torch.Tensor], size: tuple[int, int]) -> None:
    order = theirs["scores"].argsort(descending=True, stable=True)
    assert ours.indices.tolist() == theirs["labels"][order].tolist()
    np.testing.assert_allclose(ours.scores, theirs["scores"][order].numpy(), atol=1e-6)
    height, width = size
    clipped = theirs["boxes"][order].numpy().clip(0, [width, height, width, height])
    np.testing.assert_allclose(ours.boxes, clipped, atol=1e-3)
    assert ours.labels == tuple(NAMES[index] for index in ours.indices)
    assert ours.size == size


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.9])
@pytest.mark.parametrize(
    ("processor", "scoring", "top_k"),
    [
        (DetrImageProcessor, "softmax", None),
        (DeformableDetrImageProcessor, "sigmoid", 100),
        (RTDetrImageProcessor, "sigmoid", None),
    ],
)
def test_as_transformers_reads_it(processor: Any, scoring: str, top_k: int | None, threshold: float) -> None:
    output = said(scoring)
    theirs = processor().post_process_object_detection(
        DetrObjectDetectionOutput(logits=output.logits, pred_boxes=output.boxes), threshold, list(SIZES)
    )
    ours = decode(output, seen_in(), Record(labels=NAMES), Options(threshold=threshold, top_k=top_k))
    assert sum(map(len, ours)) > 0
    for one, other, size in zip(ours, theirs, SIZES, strict=True):
        assert_same(one, other, size)


def test_the_best_few() -> None:
    for scoring in ("softmax", "sigmoid"):
        whole = decode(said(scoring), seen_in(), Record(), Options(threshold=0))
        few = decode(said(scoring), seen_in(), Record(), Options(threshold=0, top_k=3))
        for one, other in zip(whole, few, strict=True):
            assert len(one) == 40
            np.testing.assert_array_equal(other.scores, one.scores[:3])
            np.testing.assert_array_equal(other.boxes, one.boxes[:3])


def test_one_query_may_be_two_objects_only_where_classes_are_asked_apart() -> None:
    logits = torch.tensor([[[3.0, 2.0, -5.0], [-4.0, -4.0, -4.0]]])
    boxes = torch.tensor([[[0.5, 0.5, 0.5, 0.5], [0.2, 0.2, 0.1, 0.1]]])
    seen = [Seen("p", Frame(picture=(10, 20), input=(10, 20)))]
    (apart,) = decode(SetOutput(logits, boxes, "sigmoid", boxes), seen, Record(labels=("a", "b", "c")))
    assert apart.labels == ("a", "b")
    np.testing.assert_allclose(apart.scores, 1 / (1 + np.exp([-3, -2])), rtol=1e-6)
    assert apart.boxes.tolist() == [[5, 2.5, 15, 7.5]] * 2
    (one,) = decode(SetOutput(logits, boxes, "softmax", boxes), seen, Record(labels=("a", "b")))
    assert one.labels == ("a",)


def test_a_crop_and_its_margin_are_undone_and_nothing_leaves_the_picture() -> None:
    # The picture, 20 × 40, was doubled and the middle 50 × 60 cut out of 40 × 80: 5 rows of black above, 10 columns lost.
    frame = Frame(picture=(20, 40), input=(50, 60), scale=(2.0, 2.0), offset=(-5.0, 10.0))
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.4], [0.5, 0.5, 1.0, 1.0], [0.9, 0.9, 0.9, 0.9]]])
    output = SetOutput(torch.tensor([[[3.0], [2.0], [1.0]]]), boxes, "sigmoid", boxes)
    (result,) = decode(output, [Seen("p", frame)], Record())
    expected = [[17, 5, 23, 15], [5, 0, 35, 20], [(27 + 10) / 2, (22.5 - 5) / 2, 40, 20]]
    np.testing.assert_allclose(result.boxes, expected, atol=1e-4)
    assert result.labels == ("LABEL_0",) * 3


def test_numbers_that_are_none_end_in_a_sentence() -> None:
    for field in ("logits", "boxes"):
        output = said("softmax")
        getattr(output, field)[1, 2, 0] = float("nan")
        with pytest.raises(UsageError, match="logits or boxes are not finite numbers"):
            decode(output, seen_in(), Record())


def test_an_output_without_objects_is_refused() -> None:
    tokens = torch.zeros(1, 2, 3)
    output = EncoderOutput(tokens, (1, 1), 1, tokens[:, 0], None, ())
    with pytest.raises(UsageError, match=r"Objects are read from a SetOutput.*; the model gave a EncoderOutput"):
        decode(output, seen_in()[:1], Record())


@pytest.mark.parametrize("threshold", [0.3, 0.6])
def test_what_many_places_say_is_read_and_brought_back(threshold: float) -> None:
    numbers = torch.Generator().manual_seed(3)
    corner = 40 * torch.rand(60, 2, generator=numbers)
    anchors = torch.cat([corner, corner + 8 + 16 * torch.rand(60, 2, generator=numbers)], 1)
    logits = 2 * torch.randn(1, 60, 3, generator=numbers)
    output = DenseOutput(
        logits=logits,
        offsets=torch.zeros(1, 60, 4),
        anchors=anchors,
        counts=(60,),
        sizes=torch.tensor([[64.0, 64.0]]),
        coding="corrections",
        taught="l1",
    )
    seen = [Seen("p", Frame(picture=(128, 192), input=(64, 64), scale=(0.5, 1 / 3)))]
    (ours,) = decode(output, seen, Record(), Options(threshold=threshold))
    rows, classes = (logits[0].sigmoid() > threshold).nonzero(as_tuple=True)
    scores = logits[0].sigmoid()[rows, classes]
    boxes = torchvision.ops.clip_boxes_to_image(anchors[rows], (64, 64))
    kept = by_hand(boxes, scores, classes)
    assert 5 < len(kept) < len(rows)
    np.testing.assert_allclose(ours.scores, scores[kept].numpy(), rtol=1e-6)
    assert ours.indices.tolist() == classes[kept].tolist()
    np.testing.assert_allclose(ours.boxes, boxes[kept].numpy() * [3, 2, 3, 2], atol=1e-3)


def by_hand(boxes: torch.Tensor, scores: torch.Tensor, classes: torch.Tensor) -> list[int]:
    """The best box, then the best that overlaps none of its class by more than a half, and so on."""
    shared, kept = torchvision.ops.box_iou(boxes, boxes), []
    for one in scores.argsort(descending=True).tolist():
        if not any(classes[one] == classes[other] and shared[one, other] > 0.5 for other in kept):
            kept.append(one)
    return kept
