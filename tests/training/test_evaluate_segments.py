"""A segmenter that sees is judged to see; what it cannot be judged by is refused; the page shows what was said."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vitral.base.image import Picture, read_picture
from vitral.base.masks import boxes_of
from vitral.data.objects import Annotations
from vitral.data.transforms import Preprocessing
from vitral.errors import PictureError, UsageError
from vitral.models.output import MapOutput, MaskOutput
from vitral.models.record import Record
from vitral.pipelines.predictor import Predictor
from vitral.tasks.detection.metrics import ObjectMetric
from vitral.tasks.segmentation.metrics import PanopticMetric
from vitral.tasks.segmentation.result import Panoptic, Segment, Segmentation
from vitral.training.evaluate_segments import check_fits_segments, evaluate_segments
from vitral.training.segment_page import segment_evaluation_page

CLASSES = ("dark", "red", "green", "blue")
SIZE = (48, 64)


@dataclass
class Drawn:
    """Pictures of dark ground with coloured boxes, and of every pixel what it is said to be: a `PanopticSet`."""

    maps: list[Any]
    truths: list[Any]
    classes: tuple[str, ...] = CLASSES
    crowds: frozenset[int] = frozenset()
    name: str = "drawn"
    ignore: int = 255
    categories: tuple[int, ...] = (1, 2, 3, 4)
    things: tuple[bool, ...] = (False, True, True, True)
    lost: set[int] = field(default_factory=set)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"{place:03}.png" for place in range(len(self)))

    def __len__(self) -> int:
        return len(self.maps)

    def where(self, index: int) -> str:
        return f"drawn/{self.names[index]}"

    def image_id(self, index: int) -> int:
        return index + 1

    def size_of(self, index: int) -> tuple[int, int] | None:
        return None

    def read(self, index: int, *, at_least: tuple[int, int] | None = None) -> Picture:
        if self.maps[index] is None:
            raise PictureError(self.where(index), "It is broken.")
        pixels = np.zeros((*self.maps[index].shape, 3), dtype=np.uint8)
        for colour in range(3):
            pixels[self.maps[index] == colour + 1, colour] = 255
        return read_picture(pixels, name=self.where(index))

    def class_map(self, index: int) -> np.ndarray:
        if index in self.lost:
            raise PictureError(self.where(index), "Its labels are broken.")
        return self.truths[index]

    def annotations(self, index: int) -> Annotations:
        """A segment for each class."""
        truth = self.class_map(index)
        labels = np.array([one for one in np.unique(truth) if one != self.ignore], dtype=np.int64)
        masks = truth == labels[:, None, None]
        return Annotations(
            boxes=boxes_of(masks),
            labels=labels,
            crowd=np.full(len(labels), index in self.crowds),
            areas=masks.sum((1, 2)).astype(np.float64),
            ids=np.arange(len(labels)),
            masks=masks,
        )


def drawn(count: int = 6, *, moved: int = 3) -> Drawn:
    """Boxes of one to three colours; what is true lies some pixels to the right, and nothing is known of a stripe."""
    chance = np.random.default_rng(2)
    maps, truths = [], []
    for number in range(count):
        shown = np.zeros(SIZE, dtype=np.uint8)
        for colour in range(1, 2 + number % 3):
            top, left = chance.integers(0, 24), chance.integers(0, 30)
            shown[top : top + chance.integers(12, 24), left : left + chance.integers(12, 30)] = colour
        truth = np.roll(shown, moved + number, axis=1)
        truth[:5] = 255
        maps.append(shown)
        truths.append(truth)
    return Drawn(maps, truths)


@dataclass
class Shape:
    num_classes: int = 4


class Seeing(nn.Module):
    """Says of every pixel which colour it has; it needs no training."""

    tasks = ("image-segmentation",)

    def __init__(self, order: tuple[str, ...] = CLASSES, *, named: bool = True) -> None:
        super().__init__()
        self.order, self.config = order, Shape(len(order))
        preprocessing = Preprocessing(size=SIZE, resize="exact", mean=(0, 0, 0), std=(1, 1, 1))
        self.record = Record(architecture="seeing", preprocessing=preprocessing, labels=order if named else ())
        self.scale = nn.Parameter(torch.ones(()))

    def seen(self, pixels: Tensor) -> Tensor:
        """How much of each of its classes every pixel shows (b c y x)."""
        assert not self.training
        known = {"dark": 1 - pixels.sum(1), "red": pixels[:, 0], "green": pixels[:, 1], "blue": pixels[:, 2]}
        return torch.stack([known.get(one, torch.zeros_like(pixels[:, 0]) - 1) for one in self.order], 1)

    def forward(self, pixels: Tensor) -> Any:
        return MapOutput(20 * self.scale * self.seen(pixels))


class SeeingMasks(Seeing):
    """The same with a query for each class."""

    def forward(self, pixels: Tensor) -> Any:
        seen, count = self.seen(pixels), len(self.order)
        logits = torch.full((len(pixels), count, count + 1), -12.0)
        there = (seen > 0.5).flatten(2).any(2)
        for query in range(count):
            logits[:, query, query] = torch.where(there[:, query], 3.0 + query, -12.0)
        return MaskOutput(logits, 20 * self.scale * (seen - 0.5), torch.zeros(len(pixels), count, 2))


def confusion_by_hand(pictures: Drawn) -> np.ndarray:
    table = np.zeros((4, 4), dtype=np.int64)
    for shown, truth in zip(pictures.maps, pictures.truths, strict=True):
        for true in range(4):
            for said in range(4):
                table[true, said] += ((truth == true) & (shown == said)).sum()
    return table


def iou_of(table: np.ndarray) -> np.ndarray:
    right = table.diagonal()
    return right / (table.sum(0) + table.sum(1) - right)


# -- three kinds --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Seeing, SeeingMasks])
def test_classes_of_pixels_are_counted(kind: type[Seeing]) -> None:
    pictures, model, seen = drawn(), kind(), []
    model.train()
    evaluation = evaluate_segments(model, pictures, batch_size=4, on_progress=lambda *both: seen.append(both))
    assert model.training
    assert seen == [(4, 6), (6, 6)]
    table = confusion_by_hand(pictures)
    scores: Any = evaluation.scores
    np.testing.assert_array_equal(scores.confusion[:, :-1], table)
    assert not scores.confusion[:, -1].any()
    assert evaluation.value == pytest.approx(iou_of(table).mean(), abs=1e-12)
    assert evaluation.numbers["pixel_accuracy"] == pytest.approx(table.diagonal().sum() / table.sum())
    assert (evaluation.measure, len(evaluation), evaluation.data, evaluation.model) == ("miou", 6, "drawn", "seeing")
    assert "boundary_iou" not in evaluation.numbers
    told = json.loads(json.dumps(evaluation.to_dict(), allow_nan=False))
    assert (told["miou"], told["kind"], told["pictures"]) == (evaluation.value, "semantic", 6)
    assert "seeing on drawn: miou 0." in repr(evaluation)
    for options in ({"batch_size": 1}, {"batch_size": 3, "workers": 1}):
        again: Any = evaluate_segments(model, pictures, **options).scores
        np.testing.assert_array_equal(again.confusion, scores.confusion)
    assert 0 < evaluate_segments(model, pictures, edges=True).numbers["boundary_iou"] < 1


def test_objects_are_judged_by_their_masks() -> None:
    pictures = drawn()
    predictor = Predictor(SeeingMasks())
    metric = ObjectMetric(CLASSES, by="masks")
    for place in range(len(pictures)):
        said: Any = predictor(pictures.read(place), subtask="instance", threshold=0.0)
        metric.add(said, pictures.annotations(place), image_id=place + 1)
    evaluation = evaluate_segments(SeeingMasks(), pictures, "instance", batch_size=4)
    assert (evaluation.measure, evaluation.value) == ("ap", metric.result().ap)
    assert 0.1 < evaluation.value < 0.95
    assert evaluation.numbers["ap50"] == metric.result().ap50
    assert evaluate_segments(SeeingMasks(), drawn(moved=-5), "instance").numbers["ap50"] > 0.9


def test_segments_are_judged_by_panoptic_quality() -> None:
    """Held against segments that are made by hand of what the pictures show."""
    pictures = drawn()
    metric = PanopticMetric(CLASSES, pictures.things)
    for place, shown in enumerate(pictures.maps):
        segments = tuple(
            Segment(
                id=one + 1,
                index=one,
                label=CLASSES[one],
                score=0.9,
                fused=False,
                area=int((shown == one).sum()),
                box=(0, 0, 1, 1),
            )
            for one in np.unique(shown).tolist()
        )
        metric.add(Panoptic("x", SIZE, shown.astype(np.int32) + 1, segments), pictures.annotations(place))
    evaluation = evaluate_segments(SeeingMasks(), pictures, "panoptic", batch_size=4)
    expected = metric.result()
    assert evaluation.measure == "pq"
    for name, value in expected.numbers.items():
        assert evaluation.numbers[name] == pytest.approx(value, abs=1e-12), name
    assert 0.1 < evaluation.value < 1
    assert [one.value for one in evaluation.worst] == sorted(one.value for one in evaluation.worst)


def test_classes_are_matched_by_their_names() -> None:
    """The model knows the classes in another order, and one more."""
    pictures, order = drawn(), ("blue", "violet", "dark", "green", "red")
    for kind, network in (
        ("semantic", Seeing),
        ("semantic", SeeingMasks),
        ("instance", SeeingMasks),
        ("panoptic", SeeingMasks),
    ):
        usual, other = (evaluate_segments(network(one), pictures, kind) for one in (CLASSES, order))  # type: ignore[arg-type]
        assert other.numbers == pytest.approx(usual.numbers, abs=1e-12)
    assert evaluate_segments(Seeing(named=False), pictures).value == evaluate_segments(Seeing(), pictures).value


def test_a_pixel_of_a_class_that_the_set_does_not_have_is_one_of_which_nothing_was_said() -> None:
    pictures = drawn()
    fewer = Drawn(pictures.maps, [np.where(one == 3, 255, one) for one in pictures.truths], CLASSES[:3])
    scores: Any = evaluate_segments(Seeing(), fewer).scores
    expected = sum(int(((shown == 3) & (truth != 255)).sum()) for shown, truth in zip(fewer.maps, fewer.truths, strict=True))
    assert scores.confusion[:, -1].sum() == expected > 0
    assert scores.confusion.shape == (3, 4)
    assert "it says none of these classes" in segment_evaluation_page(evaluate_segments(Seeing(), fewer), fewer)
    quality: Any = evaluate_segments(SeeingMasks(), replace(fewer, things=pictures.things[:3]), "panoptic")
    assert all(one.index < 3 for worst in quality.worst for one in worst.said.segments)


# -- what goes wrong ----------------------------------------------------------------------------------------------------


def test_a_model_that_does_not_fit_is_refused_before_any_work() -> None:
    pictures = drawn()
    pictures.maps[0] = None  # reading it would be another error
    preparing, blind = Seeing(), Seeing()
    preparing.record = replace(preparing.record, preprocessing=None)
    blind.tasks = ("image-classification",)
    for model, sentence in (
        (Seeing(("dark", "red", "green", "violet")), "1 of the classes of drawn do not fit the 4 of the model"),
        (Seeing(("dark", "red"), named=False), "2 classes without names and drawn has 4"),
        (Seeing(()), "knows no classes"),
        (preparing, "Nobody said how pictures are prepared"),
        (blind, "says nothing of pixels"),
        (nn.Linear(2, 2), "not one of Vitral's models"),
    ):
        with pytest.raises(UsageError, match=sentence):
            check_fits_segments(model, pictures, "semantic")
        with pytest.raises(UsageError, match=sentence):
            evaluate_segments(model, pictures)


def test_what_cannot_be_read_is_refused_or_named() -> None:
    pictures = drawn()
    pictures.maps[2] = None
    pictures.lost.add(4)
    with pytest.raises(PictureError, match=r"drawn/002.png: It is broken."):
        evaluate_segments(Seeing(), pictures)
    for kind in ("semantic", "instance", "panoptic"):
        told: Any = evaluate_segments(SeeingMasks(), pictures, kind, bad_pictures="skip")
        assert told.skipped == ("drawn/002.png: It is broken.", "drawn/004.png: Its labels are broken.")
        assert len(told) == 4
        assert "2 pictures left out" in segment_evaluation_page(told, pictures)
    with pytest.raises(PictureError, match=r"drawn/004.png: Its labels are broken."):
        evaluate_segments(Seeing(), Drawn(drawn().maps, pictures.truths, lost={4}))
    with pytest.raises(UsageError, match="None of the 1 pictures of drawn could be read; the first: drawn/000"):
        evaluate_segments(Seeing(), Drawn([None], pictures.truths[:1]), bad_pictures="skip")


def test_where_nothing_is_known_there_is_nothing_to_judge_by() -> None:
    nothing = Drawn(drawn().maps[:1], [np.full(SIZE, 255, dtype=np.uint8)])
    with pytest.raises(UsageError, match="without any labelled pixel"):
        evaluate_segments(Seeing(), nothing)
    with pytest.raises(UsageError, match="1 picture without any object came"):
        evaluate_segments(SeeingMasks(), nothing, "instance")


# -- the worst ----------------------------------------------------------------------------------------------------------


def test_of_the_worst_pictures_what_was_said_is_kept() -> None:
    pictures = drawn(16)
    pictures.truths[5] = np.full(SIZE, 255, dtype=np.uint8)
    evaluation = evaluate_segments(Seeing(("violet", "blue", "green", "red", "dark")), pictures)
    values = {}
    for place in (place for place in range(16) if place != 5):
        table = confusion_by_hand(Drawn(pictures.maps[place : place + 1], pictures.truths[place : place + 1]))
        with np.errstate(invalid="ignore"):
            values[place] = float(np.nanmean(iou_of(table)))
    order = sorted(values, key=lambda place: values[place])[:12]
    assert [one.place for one in evaluation.worst] == order
    assert [one.value for one in evaluation.worst] == pytest.approx([values[place] for place in order])
    first: Any = evaluation.worst[0].said
    assert isinstance(first, Segmentation)
    np.testing.assert_array_equal(first.class_map, pictures.maps[order[0]])
    assert (first.name, first.labels) == (pictures.where(order[0]), CLASSES)


def test_crowds_alone_say_nothing_of_a_picture() -> None:
    """What lies on them is excused, so that nothing counts."""
    pictures = replace(drawn(3, moved=0), crowds=frozenset({0}))
    evaluation = evaluate_segments(SeeingMasks(), pictures, "panoptic")
    assert sorted(one.place for one in evaluation.worst) == [1, 2]
    assert len(evaluation) == 3


# -- the page -----------------------------------------------------------------------------------------------------------


def test_the_page_shows_numbers_and_the_worst_pictures() -> None:
    pictures = drawn()
    for kind, heading in (("semantic", "% mean IoU on drawn"), ("panoptic", "PQ on drawn")):
        evaluation: Any = evaluate_segments(SeeingMasks(), pictures, kind)
        told = segment_evaluation_page(evaluation, pictures)
        assert f"<h1>{100 * evaluation.value:.1f} {heading}</h1>" in told
        assert told.count("<img") == 4 * 6
        assert "001.png" in told
        assert "http" not in told.replace("http-equiv", "")
        assert "<img" not in segment_evaluation_page(evaluation, title="A title")
        assert "<h1>A title</h1>" in segment_evaluation_page(evaluation, title="A title")
        with pytest.raises(UsageError, match="not those of drawn"):
            segment_evaluation_page(evaluation, drawn(2))
        with pytest.raises(UsageError, match="not those of drawn"):
            segment_evaluation_page(evaluation, replace(pictures, classes=("a", "b", "c", "d")))
        gone = Drawn([None, *pictures.maps[1:]], pictures.truths)
        assert "No longer there: drawn/000.png: It is broken." in segment_evaluation_page(evaluation, gone)


def test_the_pages_confusions_are_percent_of_what_is_there() -> None:
    pictures = drawn()
    table = confusion_by_hand(pictures)
    told = segment_evaluation_page(evaluate_segments(Seeing(), pictures))
    percent = round(100 * table[1, 0] / table[1].sum())
    assert percent > 2
    assert f'<td class="miss">{percent}</td>' in told


def test_where_maps_differ_is_marked() -> None:
    """A picture without mistakes has no orange; one that is wrong everywhere is orange all over."""
    from vitral.training.segment_page import _found, _maps

    pictures = drawn(3, moved=0)
    wrong = Drawn(pictures.maps, [np.where(one == 255, 255, (one + 1) % 4).astype(np.uint8) for one in pictures.maps])
    for made in (pictures, wrong):
        evaluation = evaluate_segments(Seeing(), made)
        for one in evaluation.worst:
            truth, said, right = _maps(one, made)
            np.testing.assert_array_equal(right, made.truths[one.place] == made.maps[one.place])
            assert truth.classes.max() <= 3
            np.testing.assert_array_equal(said.classes, made.maps[one.place])
    moved = drawn(6)
    evaluation = evaluate_segments(SeeingMasks(), moved, "panoptic")
    for one in evaluation.worst:
        truth, said, right = _maps(one, moved)
        expected = np.zeros(SIZE, dtype=bool)
        for kind in range(4):
            there = moved.truths[one.place] == kind
            own = (moved.maps[one.place] == kind) & (moved.truths[one.place] != 255)
            if there.any() and (there & own).sum() > 0.5 * (there | own).sum():
                expected |= there & own
        np.testing.assert_array_equal(right, expected)
        np.testing.assert_array_equal(_found(truth, said), expected)


def test_the_page_of_objects_is_that_of_detectors_in_other_words() -> None:
    pictures = drawn()
    evaluation: Any = evaluate_segments(SeeingMasks(), pictures, "instance")
    told = segment_evaluation_page(evaluation, pictures)
    assert f"<h1>{100 * evaluation.value:.1f} mask AP on drawn</h1>" in told
    assert "boxes" not in told
    assert "AR with 1 · 10 · 100 masks" in told
    assert told.count("<img") == sum(
        map(len, (evaluation.scores.false, evaluation.scores.confused, evaluation.scores.missed))
    )


def test_of_many_classes_the_page_shows_the_best_and_the_worst() -> None:
    names = tuple(f"kind {place}" for place in range(30))
    maps = [np.arange(48 * 64).reshape(48, 64).astype(np.int64) % 30 for _ in range(2)]
    truths = [np.where(one % 2 == 0, one, (one + 2) % 30).astype(np.uint8) for one in maps]

    class Knowing(Seeing):
        def forward(self, pixels: Tensor) -> Any:
            return MapOutput(torch.nn.functional.one_hot(torch.from_numpy(maps[0]), 30).permute(2, 0, 1)[None] * 9.0)

    shown = Drawn([np.zeros(SIZE, dtype=np.uint8)] * 2, truths, names)
    told = segment_evaluation_page(evaluate_segments(Knowing(names), shown, batch_size=1), shown)
    assert "All 30 classes, the best first" in told
    assert "kind 1 → kind 29" in told
    assert '<table class="confusion' not in told


def test_instances_that_the_set_does_not_know_are_left_out() -> None:
    """An object of a class that the set does not have is no mistake."""
    pictures = drawn(moved=-9)
    fewer = Drawn(pictures.maps, [np.where(one == 3, 255, one) for one in pictures.truths], CLASSES[:3])
    few: Any = evaluate_segments(SeeingMasks(), fewer, "instance")
    there = [sum((one == kind).any() for one in fewer.truths) for kind in range(3)]
    assert few.scores.support[:, 0].tolist() == there
    shown = [sum((one == kind).any() for one in fewer.maps) for kind in range(3)]
    assert few.scores.confusion[:, :3].sum(0).tolist() == shown  # blue ones are none of them
