"""A window that slides over the picture: histograms of oriented gradients, and a linear classifier that looks at them.

Dalal and Triggs 2005, "Histograms of Oriented Gradients for Human Detection", CVPR. What a window shows is described by how
strong its edges are in nine directions, cell by cell of 8 × 8 pixels, each block of 2 × 2 cells normalised on its own; a
linear support vector machine says whether that is the object. It learns from the objects and from windows without any, then
once more with the windows that it took for objects (hard examples, section 4 there). Every size is looked for in a smaller
copy of the picture, and of windows upon each other the best is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32, Float64, UInt8
from numpy import ndarray
from PIL import Image

from vitral.base.config import check_choices
from vitral.base.image import Picture
from vitral.base.numbers import whole_number
from vitral.base.suppression import nms
from vitral.data.objects import ObjectSet
from vitral.errors import MissingExtraError, UnknownNameError, UsageError
from vitral.tasks.detection.metrics import overlaps_of
from vitral.tasks.detection.result import Detections
from vitral.tasks.ranked import check_threshold

__all__ = ["HogConfig", "HogDetector", "histograms_of_gradients", "train_hog_detector"]

_BLOCK = 2  # cells on each side of a block (section 6.4)


@dataclass(frozen=True, kw_only=True)
class HogConfig:
    """How a window is described, how it slides, and how its classifier learns.

    Attributes:
        window: (height, width) in pixels, multiples of `cell`.
        margin: pixels of the window around the object, on each side (Dalal and Triggs 2005, section 6.5).
        cell: side of a cell in pixels; the window slides by so much.
        orientations: directions that are told apart, of 180°.
        step: how much smaller each copy of the picture is than the one before it.
        penalty: C of the support vector machine: how much a wrong window costs.
        negatives: windows without an object that are taken from each picture at first.
        hard: windows taken for objects that are added from each picture, at most.
        rounds: how often it learns again with those.
        suppression: of two windows that share more than this (intersection over union), only the better one is kept.

    Raises:
        UsageError: a number out of its range.
    """

    window: tuple[int, int] = (128, 64)
    margin: int = 16
    cell: int = 8
    orientations: int = 9
    step: float = 1.2
    penalty: float = 0.01
    negatives: int = 10
    hard: int = 20
    rounds: int = 1
    suppression: float = 0.3

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("cell", "orientations", "negatives", "hard"):
            whole_number(name, getattr(self, name))
        for name in ("margin", "rounds"):
            whole_number(name, getattr(self, name), least=0)
        if any(side % self.cell or side < _BLOCK * self.cell or side <= 2 * self.margin for side in self.window):
            raise UsageError(
                f"The sides of a window must be multiples of the cell ({self.cell}), at least two of them and more than "
                f"twice the margin ({self.margin}); {self.window} came."
            )
        if not self.step > 1 or not self.penalty > 0 or not 0 <= self.suppression <= 1:
            raise UsageError(
                "step must be above 1, penalty above 0 and suppression from 0 to 1; "
                f"{self.step}, {self.penalty} and {self.suppression} came."
            )

    @property
    def blocks(self) -> tuple[int, int]:
        """Rows and columns of blocks in a window."""
        rows, columns = (side // self.cell - _BLOCK + 1 for side in self.window)
        return rows, columns

    @property
    def inner(self) -> int:
        """The object's height in a window, in pixels."""
        return self.window[0] - 2 * self.margin


@dataclass(frozen=True, kw_only=True, eq=False)
class HogDetector:
    """Finds objects of one class.

    Attributes:
        label: what the class is called.
        weights: of the linear classifier, for every number of every block of a window.
        bias: what it adds.
        aspect: width over height of the objects it learned from.
        config: how windows are described, and how they slide.
        index: the class's place among those of a set.
    """

    label: str
    weights: Float32[ndarray, "d i j"] = field(repr=False)
    bias: float
    aspect: float
    config: HogConfig
    index: int = 0

    def __call__(self, picture: Picture, *, threshold: float = 0.5) -> Detections:
        """The objects in a picture.

        Args:
            picture: any; objects less high than `config.inner` pixels are not found.
            threshold: the least score. A score is the logistic function of the distance from the classifier's border, so 0.5
                is on the border; it orders windows, and is no probability.

        Raises:
            UsageError: threshold is not from 0 to 1.
        """
        check_threshold(threshold)
        least = np.log(threshold) - np.log1p(-threshold) if 0 < threshold < 1 else np.inf if threshold else -np.inf
        boxes, margins = self.windows(picture, float(least))
        height, width = picture.size
        boxes = boxes.clip(0, [width, height, width, height])
        kept = nms(torch.from_numpy(boxes), torch.from_numpy(margins), self.config.suppression).numpy()
        scores = 1 / (1 + np.exp(-margins[kept].astype(np.float64)))
        return Detections(
            picture.name,
            picture.size,
            boxes[kept].astype(np.float32),
            scores.astype(np.float32),
            (self.label,) * len(kept),
            np.full(len(kept), self.index, dtype=np.int64),
            picture,
        )

    def windows(self, picture: Picture, least: float = -np.inf) -> tuple[Float64[ndarray, "k 4"], Float64[ndarray, " k"]]:
        """The windows of every place and size.

        Args:
            picture: any.
            least: only those at least so far on the object's side of the classifier's border.

        Returns:
            The boxes of the objects that would be in them, and how far they are from the border.
        """
        answers = [(boxes, margins) for boxes, margins, _ in self._slid(picture, least)]
        if not answers:
            return np.zeros((0, 4)), np.zeros(0)
        return np.concatenate([boxes for boxes, _ in answers]), np.concatenate([margins for _, margins in answers])

    def hard(self, picture: Picture, there: Float64[ndarray, "m 4"]) -> Float32[ndarray, "k f"]:
        """What the windows show that are taken for objects where none is, the surest first, `config.hard` at most.

        Args:
            picture: any.
            there: the boxes of the objects in it.
        """
        rows, columns = self.config.blocks
        wrong: list[tuple[float, ndarray]] = []
        for boxes, margins, (blocks, down, across) in self._slid(picture, 0.0):
            near = overlaps_of(boxes, there, np.zeros(len(there), dtype=bool)).max(1, initial=0.0)
            places = np.flatnonzero(near < self.config.suppression)
            for one in places[np.argsort(-margins[places], kind="stable")][: self.config.hard].tolist():
                shown = blocks[:, down[one] : down[one] + rows, across[one] : across[one] + columns]
                wrong.append((float(margins[one]), shown.ravel()))
        wrong.sort(key=lambda pair: -pair[0])
        return np.array([shown for _, shown in wrong[: self.config.hard]], np.float32).reshape(-1, self.weights.size)

    def _slid(self, picture: Picture, least: float) -> Iterator[tuple[ndarray, ndarray, tuple[ndarray, ndarray, ndarray]]]:
        """For each size: boxes, distances from the border, and the copy's blocks with the windows' places among them."""
        config = self.config
        for blocks, scale in _levels(picture, config):
            answer = F.conv2d(torch.from_numpy(blocks)[None], torch.from_numpy(self.weights)[None])[0, 0].numpy() + self.bias
            down, across = np.nonzero(answer >= least)
            # A copy begins with the margin that was put around it, and so does a window.
            top = down * config.cell * scale
            middle = (across * config.cell + config.window[1] / 2 - config.margin) * scale
            high = config.inner * scale
            wide = high * self.aspect
            boxes = np.stack([middle - wide / 2, top, middle + wide / 2, top + high], axis=1)
            yield boxes, answer[down, across].astype(np.float64), (blocks, down, across)


def train_hog_detector(
    objects: ObjectSet,
    *,
    label: str | None = None,
    config: HogConfig | None = None,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> HogDetector:
    """Learn what objects of one class look like.

    Args:
        objects: annotated pictures.
        label: the class; it may be left out where there is only one.
        config: how windows are described, and how the classifier learns.
        seed: fixes the windows without an object that are taken at first.
        on_progress: called with the pictures looked through and how many there will be.

    Raises:
        UsageError: no class was named, or it has no objects.
        UnknownNameError: no such class.
        PictureError: a picture cannot be read.
        MissingExtraError: scikit-learn is not installed.
    """
    config = config or HogConfig()
    if label is None and len(objects.classes) > 1:
        raise UsageError(f"{objects.name} has {len(objects.classes)} classes; say which is to be found: label=…")
    label = objects.classes[0] if label is None else label
    if label not in objects.classes:
        raise UnknownNameError("class", label, objects.classes)
    index, total = objects.classes.index(label), len(objects) * (1 + config.rounds)
    chance = np.random.default_rng(whole_number("seed", seed, least=0))
    right, wrong, aspects = [], [], []
    for place in range(len(objects)):
        picture, boxes = objects.read(place), _boxes_of(objects, place, index)
        found = objects.annotations(place)
        sound = boxes[~found.crowd[found.labels == index]]
        aspects += ((sound[:, 2] - sound[:, 0]) / (sound[:, 3] - sound[:, 1])).tolist()
        right += list(_examples(picture, sound, config))
        wrong += list(_without(picture, boxes, config, chance))
        if on_progress is not None:
            on_progress(place + 1, total)
    if not right or not wrong:
        what = f"{label!r} has no objects" if not right else f"there is no room beside the objects of {label!r}"
        raise UsageError(f"{objects.name} cannot teach a detector: {what}.")
    aspect = float(np.median(aspects))
    detector = _fitted(np.stack(right), np.stack(wrong), label, index, aspect, config)
    for number in range(config.rounds):
        for place in range(len(objects)):
            wrong += list(detector.hard(objects.read(place), _boxes_of(objects, place, index)))
            if on_progress is not None:
                on_progress((number + 1) * len(objects) + place + 1, total)
        detector = _fitted(np.stack(right), np.stack(wrong), label, index, aspect, config)
    return detector


def _boxes_of(objects: ObjectSet, place: int, index: int) -> Float64[ndarray, "k 4"]:
    found = objects.annotations(place)
    return found.boxes[found.labels == index].astype(np.float64)


def _fitted(
    right: Float32[ndarray, "n f"], wrong: Float32[ndarray, "m f"], label: str, index: int, aspect: float, config: HogConfig
) -> HogDetector:
    try:
        from sklearn.svm import LinearSVC
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "classical", "teach a linear classifier") from error
    machine = LinearSVC(C=config.penalty, dual="auto", random_state=0, max_iter=5000)
    machine.fit(np.concatenate([right, wrong]), np.repeat([1, 0], [len(right), len(wrong)]))
    weights = machine.coef_.reshape(-1, *config.blocks).astype(np.float32)
    return HogDetector(
        label=label, weights=weights, bias=float(machine.intercept_[0]), aspect=aspect, config=config, index=index
    )


# -- what windows show ------------------------------------------------------------------------------------------------


def histograms_of_gradients(pixels: UInt8[ndarray, "y x 3"], config: HogConfig) -> Float32[ndarray, "d i j"]:
    """The blocks of a picture: for each, the directions of the edges in its four cells (Dalal and Triggs 2005, section 6).

    Levels go by their square root. A pixel's gradient is that of the colour in which it is steepest, and counts for the one
    direction it is nearest to. The four histograms of a block are normalised together: to length 1, no number above 0.2, and
    again to length 1 (L2-Hys).

    Args:
        pixels: of the picture.
        config: sizes of cells, and how many directions.
    """
    levels = np.sqrt(pixels / np.float32(255))
    across, down = np.zeros_like(levels), np.zeros_like(levels)
    across[:, 1:-1], down[1:-1] = levels[:, 2:] - levels[:, :-2], levels[2:] - levels[:-2]
    steep = across**2 + down**2
    colour = steep.argmax(-1, keepdims=True)
    across, down, steep = (np.take_along_axis(one, colour, -1)[..., 0] for one in (across, down, steep))
    angle = np.degrees(np.arctan2(down, across, dtype=np.float64)) % 180
    kind = (angle * (config.orientations / 180)).astype(np.int64) % config.orientations
    rows, columns = pixels.shape[0] // config.cell, pixels.shape[1] // config.cell
    inside = slice(rows * config.cell), slice(columns * config.cell)
    cell = np.arange(rows * columns).reshape(rows, columns).repeat(config.cell, 0).repeat(config.cell, 1)
    places = (cell * config.orientations + kind[inside]).ravel()
    summed = np.bincount(places, np.sqrt(steep[inside]).ravel(), rows * columns * config.orientations)
    cells = (summed / config.cell**2).reshape(rows, columns, config.orientations)
    corners = [cells[y : rows - 1 + y, x : columns - 1 + x] for y in range(_BLOCK) for x in range(_BLOCK)]
    blocks = _of_length_one(_of_length_one(np.concatenate(corners, axis=-1)).clip(max=0.2))
    return np.ascontiguousarray(blocks.transpose(2, 0, 1), dtype=np.float32)


def _of_length_one(blocks: Float64[ndarray, "i j d"]) -> Float64[ndarray, "i j d"]:
    return blocks / np.sqrt((blocks**2).sum(-1, keepdims=True) + 1e-10)  # what shows no edge stays zero


def _levels(picture: Picture, config: HogConfig) -> Iterator[tuple[Float32[ndarray, "d i j"], float]]:
    """The blocks of ever smaller copies of a picture, and how many pixels of it one of theirs is."""
    scale = 1.0
    while True:
        size = round(picture.size[1] / scale), round(picture.size[0] / scale)
        if size[1] + 2 * config.margin < config.window[0] or size[0] + 2 * config.margin < config.window[1]:
            return
        around = (config.margin, config.margin)
        pixels = np.asarray(picture.image.resize(size, Image.Resampling.BILINEAR, picture.box))
        yield histograms_of_gradients(np.pad(pixels, (around, around, (0, 0)), mode="edge"), config), scale
        scale *= config.step


def _window_around(boxes: Float64[ndarray, "k 4"], config: HogConfig) -> Float64[ndarray, "k 4"]:
    """The windows that show objects as they are looked for, xyxy in pixels of the picture."""
    middle, scale = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 3] - boxes[:, 1]) / config.inner
    half = scale[:, None] * np.array(config.window[::-1]) / 2
    return np.concatenate([middle - half, middle + half], axis=1)


def _cut(picture: Picture, window: Float64[ndarray, " _"], config: HogConfig) -> ndarray:
    """A window's pixels at its own size, with a cell more on each side; beyond the picture its edge goes on."""
    side = (window[2:] - window[:2]) / np.array(config.window[::-1]) * config.cell
    low, high = window[:2] - side, window[2:] + side
    size = (config.window[1] + 2 * config.cell, config.window[0] + 2 * config.cell)
    pixels = np.asarray(picture.image)
    before, after = np.ceil((-low).clip(0)).astype(int), np.ceil((high - picture.size[::-1]).clip(0)).astype(int)
    padded = np.pad(pixels, ((before[1], after[1]), (before[0], after[0]), (0, 0)), mode="edge")
    box = (*(low + before).tolist(), *(high + before).tolist())
    return np.asarray(Image.fromarray(padded).resize(size, Image.Resampling.BILINEAR, box))


def _shown(pixels: ndarray, config: HogConfig) -> Float32[ndarray, " f"]:
    """What a window shows, as it would in the midst of a picture: the cells around it are described with it, and dropped."""
    return histograms_of_gradients(pixels, config)[:, 1:-1, 1:-1].ravel()


def _examples(picture: Picture, boxes: Float64[ndarray, "k 4"], config: HogConfig) -> Iterator[Float32[ndarray, " f"]]:
    """The objects of a picture, each also mirrored."""
    for window in _window_around(boxes, config):
        pixels = _cut(picture, window, config)
        yield _shown(pixels, config)
        yield _shown(pixels[:, ::-1], config)


def _without(
    picture: Picture, boxes: Float64[ndarray, "k 4"], config: HogConfig, chance: np.random.Generator
) -> Iterator[Float32[ndarray, " f"]]:
    """Windows of any place and size within a picture that show no object."""
    height, width = picture.size
    most = min(height / config.window[0], width / config.window[1])
    if most < 1:
        return
    scales = np.exp(chance.uniform(0, np.log(most), 4 * config.negatives))
    sides = scales[:, None] * np.array(config.window[::-1])
    corners = chance.random((len(scales), 2)) * (np.array([width, height]) - sides)
    windows = np.concatenate([corners, corners + sides], axis=1)
    around = _window_around(boxes, config)
    clear = overlaps_of(windows, around, np.zeros(len(around), dtype=bool)).max(1, initial=0.0) < config.suppression
    for window in windows[clear][: config.negatives]:
        yield _shown(_cut(picture, window, config), config)
