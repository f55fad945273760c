"""Histograms of gradients against scikit-image's, windows against their blocks, and a detector that learns."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.tasks.detection.drawn import DrawnObjects
from vitral.base.image import read_picture
from vitral.errors import MissingExtraError, UnknownNameError, UsageError
from vitral.tasks.detection.classical.hog import HogConfig, HogDetector, histograms_of_gradients, train_hog_detector
from vitral.tasks.detection.metrics import ObjectMetric

pytest.importorskip("sklearn", reason="needs scikit-learn, of the extra `classical`")

SMALL = HogConfig(window=(48, 32), margin=8, negatives=8, hard=8, step=1.25)


def figures(count: int, seed: int) -> DrawnObjects:
    """Figures of a head, a body and two legs, of several sizes, before a ground of bars and noise."""
    chance = np.random.default_rng(seed)
    pictures, boxes = [], []
    for _ in range(count):
        ground = chance.integers(90, 150, (120, 160, 3)).astype(np.uint8)
        image = Image.fromarray(ground)
        pen = ImageDraw.Draw(image)
        for _ in range(3):
            x, y = chance.integers(0, 140, 2).tolist()
            pen.rectangle((x, y, x + int(chance.integers(5, 40)), y + int(chance.integers(5, 40))), (60, 60, 60))
        high = int(chance.integers(34, 70))
        left, top = int(chance.integers(4, 150 - high // 2)), int(chance.integers(4, 116 - high))
        wide = high // 2
        middle, colour = left + wide / 2, tuple(chance.integers(200, 256, 3).tolist())
        pen.ellipse((middle - high / 8, top, middle + high / 8, top + high / 4), colour)
        pen.rectangle((middle - high / 6, top + high / 4, middle + high / 6, top + high * 0.6), colour)
        for side in (-1, 1):
            foot = middle + side * wide / 2
            pen.polygon([(middle, top + high * 0.6), (foot - 2, top + high), (foot + 2, top + high)], colour)
        pictures.append(np.asarray(image))
        boxes.append([[left, top, left + wide, top + high]])
    return DrawnObjects(pictures, boxes, [[0]] * count, ("figure",))


@pytest.mark.parametrize("shape", [(131, 70), (64, 64)])
def test_histograms_are_scikit_images(shape: tuple[int, int]) -> None:
    features = pytest.importorskip("skimage.feature", reason="needs scikit-image, of the extra `classical`")
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    expected = features.hog(
        pixels,
        orientations=9,
        pixels_per_cell=(8, 8),
        cells_per_block=(2, 2),
        block_norm="L2-Hys",
        transform_sqrt=True,
        feature_vector=False,
        channel_axis=-1,
    )
    own = histograms_of_gradients(pixels, HogConfig())
    np.testing.assert_allclose(own.transpose(1, 2, 0), expected.reshape(*expected.shape[:2], -1), atol=1e-6)


def test_windows_lie_where_their_blocks_are() -> None:
    """A classifier that looks for one block alone finds the windows in which it is there."""
    config = HogConfig(window=(32, 32), margin=0, step=10)
    pixels = np.full((96, 96, 3), 128, dtype=np.uint8)
    pixels[40:56, 56:72] = 255
    blocks = histograms_of_gradients(pixels, config)
    weights = np.ascontiguousarray(blocks[:, 4:7, 6:9])  # of the window at (32, 48)
    detector = HogDetector(label="x", weights=weights, bias=0.0, aspect=1.0, config=config)
    boxes, margins = detector.windows(read_picture(pixels))
    assert boxes.shape == (81, 4)  # (96 - 32) / 8 + 1 on each side
    assert boxes[margins.argmax()].tolist() == [48, 32, 80, 64]
    assert margins.max() == pytest.approx(float((weights**2).sum()), rel=1e-5)


def test_a_detector_learns_to_find_figures() -> None:
    seen: list[tuple[int, int]] = []
    train, held_out = figures(16, 1), figures(6, 2)
    detector = train_hog_detector(train, config=SMALL, on_progress=lambda *both: seen.append(both))
    assert seen[0] == (1, 32)
    assert seen[-1] == (32, 32)
    metric = ObjectMetric(held_out.classes)
    for place in range(len(held_out)):
        found = detector(held_out.read(place), threshold=0.1)
        assert set(found.labels) <= {"figure"}
        metric.add(found, held_out.annotations(place))
    assert (metric.result().ap50 or 0) > 0.8


def test_hard_examples_teach_what_is_no_figure() -> None:
    """From one window of ground in each picture it learns little, and more from those that it then takes for figures."""
    train, held_out, false = figures(16, 1), figures(6, 2), []
    for rounds in (0, 1):
        detector = train_hog_detector(train, config=replace(SMALL, negatives=1, rounds=rounds))
        false.append(sum(len(detector(held_out.read(place))) for place in range(len(held_out))))
    assert false[0] > 2 * false[1]
    lenient, picture = replace(detector, bias=100.0), held_out.read(0)
    boxes, margins = lenient.windows(picture)
    hard = lenient.hard(picture, np.zeros((0, 4)))
    np.testing.assert_allclose(
        hard @ detector.weights.ravel() + 100, np.sort(margins)[::-1][: SMALL.hard], rtol=1e-5
    )  # the surest of all
    assert len(lenient.hard(picture, boxes)) == 0  # where every window is on an object, none is wrong


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.svm", None)
    with pytest.raises(MissingExtraError, match=r"vitral\[classical\]"):
        train_hog_detector(figures(2, 0), config=SMALL)


def test_a_picture_smaller_than_a_window_shows_nothing() -> None:
    config = HogConfig()
    weights = np.zeros((36, *config.blocks), dtype=np.float32)
    detector = HogDetector(label="x", weights=weights, bias=1.0, aspect=0.4, config=config)
    assert len(detector(read_picture(np.zeros((40, 20, 3), dtype=np.uint8)))) == 0
    found = detector(read_picture(np.zeros((128, 64, 3), dtype=np.uint8)))
    assert found.scores[0] == pytest.approx(1 / (1 + np.exp(-1)))
    assert (found.boxes >= 0).all()


def test_what_cannot_be_learned_is_refused() -> None:
    some = figures(2, 0)
    two = DrawnObjects(some.pictures, some.boxes, [[0], [0]], ("figure", "tree"))
    with pytest.raises(UsageError, match="has 2 classes; say which"):
        train_hog_detector(two)
    with pytest.raises(UnknownNameError, match="figure"):
        train_hog_detector(two, label="figur")
    with pytest.raises(UsageError, match="'tree' has no objects"):
        train_hog_detector(two, label="tree", config=SMALL)
    with pytest.raises(UsageError, match="multiples of the cell"):
        HogConfig(window=(100, 64))
    with pytest.raises(UsageError, match="step must be above 1"):
        HogConfig(step=1.0)
