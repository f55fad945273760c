"""Proposals: every object of a drawn scene is among them; grouping against one written out; recall on published pictures."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from vitral.base.image import read_picture
from vitral.data.objects import read_objects
from vitral.errors import MissingExtraError, UnknownNameError, UsageError
from vitral.tasks.detection.classical import selective_search as page
from vitral.tasks.detection.classical.selective_search import Likeness, selective_search
from vitral.tasks.detection.metrics import overlaps_of

pytest.importorskip("skimage", reason="needs scikit-image, of the extra `classical`")


def recall(boxes: np.ndarray, there: np.ndarray) -> np.ndarray:
    return overlaps_of(boxes, there, np.zeros(len(there), dtype=bool)).max(0)


def test_every_object_of_a_drawn_scene_is_proposed() -> None:
    chance = np.random.default_rng(0)
    image = Image.fromarray(chance.integers(100, 120, (150, 200, 3)).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    there = np.array([[10, 20, 60, 90], [90, 15, 140, 60], [110, 80, 190, 140]], dtype=np.float32)
    for box, colour in zip(there.tolist(), ((200, 40, 40), (40, 180, 60), (60, 60, 220)), strict=True):
        pen.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), colour)
    # One object of two colours: only grouping finds it whole.
    pen.rectangle((110, 80, 189, 109), (230, 200, 40))
    boxes = selective_search(read_picture(image), mode="single")
    assert (recall(boxes, there) > 0.9).all()
    assert boxes[:, 0].min() >= 0
    assert (boxes[:, 2] <= 200).all()
    assert (boxes[:, 3] <= 150).all()
    assert [0, 0, 200, 150] in boxes.tolist()  # the end of every hierarchy
    assert len(np.unique(boxes, axis=0)) == len(boxes)
    np.testing.assert_array_equal(boxes, selective_search(read_picture(image), mode="single"))
    # In a copy twice as large, searched at the old size, the boxes are twice as large.
    twice = image.resize((400, 300), Image.Resampling.NEAREST)
    enlarged = selective_search(read_picture(twice), mode="single", longest=200)
    assert (recall(enlarged, 2 * there) > 0.85).all()
    assert (enlarged[:, 2:] - enlarged[:, :2]).min() >= 16


@pytest.mark.parametrize(
    "likeness", [Likeness(), Likeness(colour=False), Likeness(colour=False, texture=False, size=False)], ids=str
)
def test_grouping_is_the_papers_algorithm(likeness: Likeness) -> None:
    """Against sets of pixels that are looked at anew in every step (Uijlings et al. 2013, algorithm 1)."""
    chance = np.random.default_rng(8)
    labels = np.kron(np.arange(8).reshape(2, 4), np.ones((5, 6), dtype=np.int64))
    values = chance.random((8, 3))[labels] * 0.8 + chance.random((*labels.shape, 3)) * 0.2
    segments = page._segments(labels, values)
    area = labels.size
    pixels = [frozenset(zip(*np.nonzero(labels == one), strict=True)) for one in range(8)]
    flat = values.reshape(-1, 3), page._gradients(values)
    place = {pixel: number for number, pixel in enumerate(itertools.product(range(10), range(24)))}

    def histogram(which: frozenset, kind: int) -> np.ndarray:
        rows = flat[kind][[place[one] for one in which]]
        bins = (25, 10)[kind]
        parts = [np.histogram(column, bins, (0, 1))[0] for column in rows.T]
        return np.concatenate(parts) / np.concatenate(parts).sum()

    def box(which: frozenset) -> list[int]:
        down, across = zip(*which, strict=True)
        return [min(across), min(down), max(across) + 1, max(down) + 1]

    def touch(one: frozenset, other: frozenset) -> bool:
        return any((y + a, x + b) in other for y, x in one for a, b in ((0, 1), (1, 0), (0, -1), (-1, 0)))

    def alike(one: frozenset, other: frozenset) -> float:
        left, top, right, bottom = box(one | other)
        total = 0.0
        for kind, asked in enumerate((likeness.colour, likeness.texture)):
            total += np.minimum(histogram(one, kind), histogram(other, kind)).sum() if asked else 0.0
        total += 1 - len(one | other) / area if likeness.size else 0.0
        return total + (1 - ((right - left) * (bottom - top) - len(one | other)) / area if likeness.fill else 0.0)

    expected = [box(one) for one in pixels]
    while len(pixels) > 1:
        pairs = [pair for pair in itertools.combinations(pixels, 2) if touch(*pair)]
        scores = np.array([alike(*pair) for pair in pairs])
        one, other = pairs[int(scores.argmax())]
        if likeness.colour or likeness.texture:  # sizes alone are equal too often for the order to be told
            assert np.sort(scores)[-1] - (np.sort(scores)[-2] if len(scores) > 1 else -1) > 1e-9
        pixels = [each for each in pixels if each not in (one, other)] + [one | other]
        expected.append(box(one | other))
    found = page._group(segments, likeness).tolist()
    if likeness.colour or likeness.texture:
        assert found == expected
    else:
        assert len(found) == len(expected)
        assert found[-1] == expected[-1] == [0, 0, 24, 10]


def test_what_is_too_small_holds_nothing() -> None:
    assert selective_search(read_picture(np.zeros((3, 90, 3), dtype=np.uint8))).shape == (0, 4)


def test_without_scikit_image_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(MissingExtraError, match=r"vitral\[classical\]"):
        selective_search(read_picture(np.zeros((30, 30, 3), dtype=np.uint8)))


def test_misspelt_options_are_refused(unchecked: None) -> None:
    picture = read_picture(np.zeros((30, 30, 3), dtype=np.uint8))
    with pytest.raises(UnknownNameError, match="'fast'"):
        selective_search(picture, mode="fats")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="least must be a whole number of at least 2"):
        selective_search(picture, least=1)


def test_most_objects_of_published_pictures_are_proposed(shared: Path) -> None:
    objects = read_objects(shared / "data/coco128/coco128.tar").train
    assert objects is not None
    found = []
    for place in (2,):
        there = objects.annotations(place)
        boxes = selective_search(objects.read(place), mode="single", longest=200)
        found += recall(boxes, there.boxes[there.areas > 96**2]).tolist()
    assert len(found) >= 2
    assert np.mean(np.array(found) >= 0.5) >= 0.6
