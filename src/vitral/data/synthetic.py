"""Drawn scenes with perfect labels of every kind, so that detectors and segmenters can be tried and compared anywhere.

Textured shapes lie on a textured ground of one or two materials. Boxes, masks, classes of all pixels, segments of things and
of stuff, and a caption follow from the drawing itself. A scene is a pure function of the seed and its number; how hard it
is, the options say.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from jaxtyping import Bool, Float, Float32, Int32, Int64, UInt8
from PIL import Image

from vitral.base.chance import generator_of
from vitral.base.config import check_choices
from vitral.base.image import Picture
from vitral.base.masks import boxes_of
from vitral.base.numbers import real_number, whole_number
from vitral.data.objects import Annotations
from vitral.errors import UnknownNameError, UsageError

__all__ = ["MATERIALS", "SCENES", "SHAPES", "Scene", "SegmentedScenes", "SyntheticScenes", "drawn_scenes"]

SCENES = "scenes"
"""What drawn pictures are called where a path is asked for. (A folder of that name is "./scenes".)"""

_Grid = Float32[np.ndarray, "y x"]

_LEAST = 0.25  # share of an object that is seen at least where overlaps are allowed to hide almost all
_FEWEST = 9  # pixels of an object that are seen at least
_TRIES = 30  # places tried for an object
_RING, _CROSS, _STAR = 0.55, 0.33, 0.42  # a ring's hole, a cross's arm and a star's notches, in parts of their radius


# -- shapes -------------------------------------------------------------------------------------------------------------


def _corners(x: _Grid, y: _Grid, count: int) -> _Grid:
    """A regular polygon of circumradius 1 with a corner upwards."""
    middle = math.pi / count
    angle = np.arctan2(x, -y)
    folded = np.abs(np.remainder(angle + middle, 2 * middle) - middle)
    return np.hypot(x, y) * np.cos(middle - folded) - math.cos(middle)


def _star(x: _Grid, y: _Grid) -> _Grid:
    """Five points of radius 1: in one half of a point, the side of the line from its tip to the notch."""
    tenth = math.pi / 5
    folded = np.abs(np.remainder(np.arctan2(x, -y) + tenth, 2 * tenth) - tenth)
    radius = np.hypot(x, y)
    across, along = radius * np.sin(folded), radius * np.cos(folded)
    notch = _STAR * math.sin(tenth), _STAR * math.cos(tenth)
    normal = 1 - notch[1], notch[0]
    return ((across * normal[0] + (along - 1) * normal[1]) / math.hypot(*normal)).astype(np.float32)


def _cross(x: _Grid, y: _Grid) -> _Grid:
    x, y = np.abs(x), np.abs(y)
    long = math.sqrt(1 - _CROSS**2)
    return np.minimum(np.maximum(x - _CROSS, y - long), np.maximum(x - long, y - _CROSS))


def _ring(x: _Grid, y: _Grid) -> _Grid:
    radius = np.hypot(x, y)
    return np.maximum(radius - 1, _RING - radius)


def _crescent(x: _Grid, y: _Grid) -> _Grid:
    return np.maximum(np.hypot(x, y) - 1, 0.8 - np.hypot(x - 0.5, y))


def _square(x: _Grid, y: _Grid) -> _Grid:
    return np.maximum(np.abs(x), np.abs(y)) - np.float32(math.sqrt(0.5))


_SHAPES: dict[str, Callable[[_Grid, _Grid], _Grid]] = {
    "disc": lambda x, y: np.hypot(x, y) - 1,
    "square": _square,
    "triangle": lambda x, y: _corners(x, y, 3),
    "star": _star,
    "ring": _ring,
    "cross": _cross,
    "hexagon": lambda x, y: _corners(x, y, 6),
    "crescent": _crescent,
}

SHAPES = tuple(_SHAPES)
"""The classes of things, each within a circle of radius 1."""


# -- materials ----------------------------------------------------------------------------------------------------------


def _plain(x: _Grid, y: _Grid, rng: np.random.Generator) -> _Grid:
    return np.zeros_like(x)


def _striped(x: _Grid, y: _Grid, rng: np.random.Generator) -> _Grid:
    angle, phase = rng.random(2) * math.pi
    period = 5 + 4 * rng.random()
    wave = (x * math.cos(angle) + y * math.sin(angle)) * (2 * math.pi / period) + 2 * phase
    return (np.sin(wave) > 0).astype(np.float32)


def _checked(x: _Grid, y: _Grid, rng: np.random.Generator) -> _Grid:
    period, left, top = 4 + 4 * rng.random(), *(10 * rng.random(2))
    return np.remainder(np.floor((x + left) / period) + np.floor((y + top) / period), 2).astype(np.float32)


def _dotted(x: _Grid, y: _Grid, rng: np.random.Generator) -> _Grid:
    period, left, top = 6 + 3 * rng.random(), *(10 * rng.random(2))
    across, down = (np.remainder(one, period) - period / 2 for one in (x + left, y + top))
    return (np.hypot(across, down) < 0.3 * period).astype(np.float32)


def _grained(x: _Grid, y: _Grid, rng: np.random.Generator) -> _Grid:
    return rng.random(x.shape, dtype=np.float32)


def _cloudy(x: _Grid, y: _Grid, rng: np.random.Generator) -> _Grid:
    """Soft spots: noise on a coarse grid, bilinear in between."""
    height, width = x.shape
    coarse = rng.random((height // 12 + 2, width // 12 + 2), dtype=np.float32)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR))


_MATERIALS: dict[str, Callable[[_Grid, _Grid, np.random.Generator], _Grid]] = {
    "plain": _plain,
    "striped": _striped,
    "checked": _checked,
    "dotted": _dotted,
    "grained": _grained,
    "cloudy": _cloudy,
}

MATERIALS = tuple(_MATERIALS)
"""The materials of things and of the ground; those of the ground are the classes of stuff."""

_COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (206, 52, 46),
    "orange": (233, 138, 36),
    "yellow": (234, 208, 62),
    "green": (58, 146, 70),
    "blue": (44, 96, 190),
    "purple": (132, 66, 160),
    "pink": (232, 136, 172),
    "brown": (122, 80, 48),
    "white": (238, 238, 234),
    "black": (34, 34, 38),
}


# -- scenes -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """A drawn picture and all there is to know of it. Objects stand in the order in which they were laid down.

    Attributes:
        picture: the picture.
        boxes: xyxy in pixels, the tightest around what is seen of each object.
        labels: the shape of each, a place in the set's classes.
        masks: what is seen of each; no pixel is of two.
        areas: how many pixels that are.
        class_map: the class of each pixel: of the things, then of the stuff, see `SyntheticScenes.stuff`.
        panoptic: the segment of each pixel, from 1: the objects in their order, then the materials of the ground.
        segments: the class of each segment, as in `class_map`.
        caption: a sentence that counts the objects and names colours and ground.
    """

    picture: Picture
    boxes: Float32[np.ndarray, "k 4"]
    labels: Int64[np.ndarray, " k"]
    masks: Bool[np.ndarray, "k y x"]
    areas: Float[np.ndarray, " k"]
    class_map: UInt8[np.ndarray, "y x"]
    panoptic: Int32[np.ndarray, "y x"]
    segments: Int64[np.ndarray, " s"]
    caption: str


@dataclass(frozen=True, kw_only=True)
class SyntheticScenes:
    """An `ObjectSet` of drawn scenes.

    Args:
        count: scenes in the set.
        size: (height, width) of each, in pixels.
        seed: another one gives other scenes. Of two sets that differ in `count` alone, one begins with the other.
        number: least and most objects in a scene. There are fewer where no room for more is found.
        shapes: the classes.
        scale: smallest and largest diameter of an object, in parts of the shorter side.
        overlap: how much of an object others may hide, from 0 (nothing; none touch) to 1 (all but a quarter).
        rotation: turned by up to this angle in degrees, either way.
        texture: how often an object has a material other than plain.
        confusion: from 0 to 1, how close the colours of objects come to those of the ground.
        clutter: lines and specks on the ground that are none of the objects.
        noise: standard deviation of what is added to all values, in levels of 255.
        grounds: most materials of a scene's ground, 1 or 2.
        with_masks: whether `annotations` come with masks.
        name: what messages call the set.

    Raises:
        UnknownNameError: no such shape.
        UsageError: an option out of its range.
    """

    count: int = 1000
    size: tuple[int, int] = (128, 128)
    seed: int = 0
    number: tuple[int, int] = (1, 6)
    shapes: tuple[str, ...] = SHAPES
    scale: tuple[float, float] = (0.15, 0.4)
    overlap: float = 0.25
    rotation: float = 180.0
    texture: float = 0.5
    confusion: float = 0.0
    clutter: int = 4
    noise: float = 4.0
    grounds: int = 2
    with_masks: bool = False
    name: str = "scenes"

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("size", "number", "shapes", "scale"):  # a list would do, but cannot be remembered by
            object.__setattr__(self, name, tuple(getattr(self, name)))
        whole_number("count of SyntheticScenes", self.count, least=0)
        whole_number("seed of SyntheticScenes", self.seed, least=0)
        whole_number("clutter of SyntheticScenes", self.clutter, least=0)
        for side in self.size:
            whole_number("size of SyntheticScenes", side, least=16)
        least, most = self.number
        if not 0 <= least <= most <= 1000:
            raise UsageError(f"number of SyntheticScenes must be (least, most) from 0 to 1000, but is {self.number!r}.")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UsageError(f"scale of SyntheticScenes must be (smallest, largest) in (0, 1], but is {self.scale!r}.")
        for name in ("overlap", "texture", "confusion"):
            if not 0 <= real_number(f"{name} of SyntheticScenes", getattr(self, name)) <= 1:
                raise UsageError(f"{name} of SyntheticScenes must be from 0 to 1, but is {getattr(self, name)!r}.")
        for name in ("rotation", "noise"):
            if real_number(f"{name} of SyntheticScenes", getattr(self, name)) < 0:
                raise UsageError(f"{name} of SyntheticScenes must not be negative, but is {getattr(self, name)!r}.")
        if self.grounds not in (1, 2):
            raise UsageError(f"grounds of SyntheticScenes must be 1 or 2, but is {self.grounds!r}.")
        for shape in self.shapes:
            if shape not in _SHAPES:
                raise UnknownNameError("shape", shape, SHAPES)
        if not self.shapes or len(set(self.shapes)) < len(self.shapes):
            raise UsageError(f"shapes of SyntheticScenes must be one or more, each once, but are {self.shapes!r}.")

    def __len__(self) -> int:
        return self.count

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the things."""
        return self.shapes

    @property
    def categories(self) -> tuple[int, ...]:
        """Their numbers in files: counted from 1."""
        return tuple(range(1, len(self.shapes) + 1))

    @property
    def stuff(self) -> tuple[str, ...]:
        """The names of the stuff: class maps count it on behind the things."""
        return tuple(f"{material} ground" for material in MATERIALS)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What each scene is called."""
        return tuple(f"{number:06}.png" for number in range(self.count))

    def where(self, index: int) -> str:
        """What messages call a scene."""
        return f"{self.name}/{self.names[index]}"

    def image_id(self, index: int) -> int:
        """The number of a scene, from 1."""
        return self._place(index) + 1

    def size_of(self, index: int) -> tuple[int, int]:
        """(height, width) of a scene, in pixels."""
        self._place(index)
        return self.size

    def read(self, index: int, *, at_least: tuple[int, int] | None = None) -> Picture:
        """The picture of a scene; it is never reduced.

        Raises:
            IndexError: there is no such scene.
        """
        return self.scene(index).picture

    def annotations(self, index: int) -> Annotations:
        """The objects of a scene, as they are seen.

        Raises:
            IndexError: there is no such scene.
        """
        scene = self.scene(index)
        first = _first_id(self.image_id(index))
        return Annotations(
            boxes=scene.boxes,
            labels=scene.labels,
            crowd=np.zeros(len(scene.labels), dtype=bool),
            areas=scene.areas.astype(np.float64),
            ids=np.arange(first, first + len(scene.labels), dtype=np.int64),
            masks=scene.masks if self.with_masks else None,
        )

    def _place(self, index: int) -> int:
        place = index + self.count if index < 0 else index
        if not 0 <= place < self.count:
            raise IndexError(f"{self.name} has {self.count:,} scenes; there is none at {index}.")
        return place

    def scene(self, index: int) -> Scene:
        """Draw a scene.

        Raises:
            IndexError: there is no such scene.
        """
        return _drawn(self, self._place(index))


@dataclass(frozen=True, kw_only=True)
class SegmentedScenes:
    """Drawn scenes of which every pixel is said: an `ObjectSet` of things and stuff with masks, and a `ClassMapSet`.

    Args:
        scenes: what is drawn.
    """

    scenes: SyntheticScenes = SyntheticScenes()

    @property
    def name(self) -> str:
        """What messages call the set."""
        return self.scenes.name

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the things, then of the stuff."""
        return self.scenes.shapes + self.scenes.stuff

    @property
    def categories(self) -> tuple[int, ...]:
        """Their numbers in files: counted from 1."""
        return tuple(range(1, len(self.classes) + 1))

    @property
    def things(self) -> tuple[bool, ...]:
        """Which classes are things."""
        return tuple(place < len(self.scenes.shapes) for place in range(len(self.classes)))

    @property
    def ignore(self) -> int:
        """What class maps would hold where nothing is known; of scenes all is."""
        return 255

    @property
    def names(self) -> tuple[str, ...]:
        """What each scene is called."""
        return self.scenes.names

    def __len__(self) -> int:
        return len(self.scenes)

    def where(self, index: int) -> str:
        """What messages call a scene."""
        return self.scenes.where(index)

    def image_id(self, index: int) -> int:
        """The number of a scene, from 1."""
        return self.scenes.image_id(index)

    def size_of(self, index: int) -> tuple[int, int]:
        """(height, width) of a scene, in pixels."""
        return self.scenes.size_of(index)

    def read(self, index: int, *, at_least: tuple[int, int] | None = None) -> Picture:
        """The picture of a scene; it is never reduced.

        Raises:
            IndexError: there is no such scene.
        """
        return self.scenes.read(index)

    def class_map(self, index: int) -> UInt8[np.ndarray, "y x"]:
        """The class of every pixel of a scene.

        Raises:
            IndexError: there is no such scene.
        """
        return self.scenes.scene(index).class_map

    def annotations(self, index: int) -> Annotations:
        """The segments of a scene, things and stuff, with their masks.

        Raises:
            IndexError: there is no such scene.
        """
        scene = self.scenes.scene(index)
        count = len(scene.segments)
        masks = scene.panoptic == np.arange(1, count + 1, dtype=np.int32)[:, None, None]
        first = _first_id(self.scenes.image_id(index))
        return Annotations(
            boxes=boxes_of(masks),
            labels=scene.segments,
            crowd=np.zeros(count, dtype=bool),
            areas=masks.sum((1, 2)).astype(np.float64),
            ids=np.arange(first, first + count, dtype=np.int64),
            masks=masks,
        )


def drawn_scenes(*, with_masks: bool = False) -> tuple[SyntheticScenes, SyntheticScenes]:
    """What "scenes" means: 2,000 drawn pictures to learn from, and 200 others to judge by.

    Args:
        with_masks: see `SyntheticScenes`.
    """
    train = SyntheticScenes(count=2000, name=f"{SCENES}/train", with_masks=with_masks)
    return train, SyntheticScenes(count=200, seed=1, name=f"{SCENES}/val", with_masks=with_masks)


def _first_id(number: int) -> int:
    """The id of the first object of a scene: ids of their own, whatever the others hold."""
    return 1 + 1002 * (number - 1)  # a thousand things at most, and two kinds of stuff


@lru_cache(maxsize=2)  # a picture and its annotations are asked for one after the other
def _drawn(options: SyntheticScenes, place: int) -> Scene:
    """A scene, as the options have it."""
    rng = generator_of(options.seed, place)
    height, width = options.size
    pixels, ground, materials = _ground(options, rng)
    _add_clutter(pixels, options.clutter, rng)
    owner = np.zeros((height, width), dtype=np.int32)
    least, most = options.number
    words: list[tuple[str, str]] = []
    labels: list[int] = []
    full: list[int] = []
    for _ in range(least + int(rng.random() * (most - least + 1))):
        label = int(rng.random() * len(options.shapes))
        laid = _lay(options, owner, full, options.shapes[label], len(labels) + 1, rng)
        if laid is None:
            continue
        window, inside, cover = laid
        full.append(int(inside.sum()))
        labels.append(label)
        colour = _paint(options, pixels[window], cover, rng)
        words.append((colour, options.shapes[label]))
    if options.noise:
        pixels += np.float32(options.noise) * rng.standard_normal(pixels.shape, dtype=np.float32)
    np.clip(np.rint(pixels, out=pixels), 0, 255, out=pixels)
    image = Image.fromarray(pixels.astype(np.uint8))
    numbers = np.arange(1, len(labels) + 1, dtype=np.int32)
    masks = owner == numbers[:, None, None]
    shapes = np.array(labels, dtype=np.int64)
    stuff = [len(options.shapes) + MATERIALS.index(material) for material in materials]
    segments = np.array([*labels, *stuff], dtype=np.int64)
    panoptic = np.where(owner > 0, owner, ground + np.int32(len(labels) + 1)).astype(np.int32)
    pixels_of = np.bincount(panoptic.reshape(-1), minlength=len(segments) + 1)
    for number in [len(labels) + 2, len(labels) + 1]:
        if number <= len(segments) and not pixels_of[number]:  # a ground that the objects hide is no segment
            segments = np.delete(segments, number - 1)
            panoptic[panoptic > number] -= 1
    return Scene(
        picture=Picture(image, options.size, options.where(place)),
        boxes=boxes_of(masks),
        labels=shapes,
        masks=masks,
        areas=masks.sum((1, 2)).astype(np.float64),
        class_map=segments[panoptic - 1].astype(np.uint8),
        panoptic=panoptic,
        segments=segments,
        caption=_caption(words, materials),
    )


@lru_cache(maxsize=4)
def _grid(height: int, width: int) -> tuple[_Grid, _Grid]:
    """The x and y of all pixels' centres."""
    y, x = np.mgrid[:height, :width].astype(np.float32) + np.float32(0.5)
    return x, y


def _colour(rng: np.random.Generator) -> tuple[str, Float32[np.ndarray, " three"]]:
    """The name of a colour, and one of its tones."""
    name = tuple(_COLOURS)[int(rng.random() * len(_COLOURS))]
    return name, np.array(_COLOURS[name], dtype=np.float32) + (rng.random(3) * 24 - 12).astype(np.float32)


def _textured(
    material: str, tone: Float32[np.ndarray, " three"], x: _Grid, y: _Grid, strength: float, rng: np.random.Generator
) -> Float32[np.ndarray, "y x 3"]:
    """A material in two tones of a colour, lighter ones of dark colours and darker ones of light ones."""
    if material == "plain":
        return np.broadcast_to(tone, (*x.shape, 3))
    pattern = _MATERIALS[material](x, y, rng)
    other = tone + np.float32(strength) * (1 if tone.mean() < 128 else -1)
    return tone + pattern[..., None] * (other - tone)


def _ground(
    options: SyntheticScenes, rng: np.random.Generator
) -> tuple[Float32[np.ndarray, "y x 3"], Int32[np.ndarray, "y x"], list[str]]:
    """The ground's pixels, which of its materials each is of, and the materials."""
    height, width = options.size
    x, y = _grid(height, width)
    count = 1 + int(rng.random() * options.grounds)
    chosen = rng.permutation(len(MATERIALS))[:count].tolist()
    materials = [MATERIALS[one] for one in chosen]
    # Grounds are greyish and of middle lightness, so that objects of any colour stand out unless they are to be confused.
    tones = [np.float32(128) + 0.35 * (_colour(rng)[1] - np.float32(128)) for _ in range(2)]
    parts = [_textured(material, tone, x, y, 34, rng) for material, tone in zip(materials, tones, strict=False)]
    which = np.zeros((height, width), dtype=np.int32)
    if count == 2:
        angle, shift, phase = rng.random() * 2 * math.pi, rng.random() * 0.4 - 0.2, rng.random() * 6
        across, down = (x - width / 2) / width, (y - height / 2) / height
        along = across * math.cos(angle) + down * math.sin(angle)
        aside = down * math.cos(angle) - across * math.sin(angle)
        which = np.asarray(along > shift + 0.06 * np.sin(aside * 9 + phase)).astype(np.int32)
        if not which.any() or which.all():
            return parts[int(which[0, 0])].copy(), np.zeros_like(which), [materials[int(which[0, 0])]]
        parts = [np.where(which[..., None] == 1, parts[1], parts[0])]
    return parts[0].astype(np.float32, copy=True), which, materials


def _add_clutter(pixels: Float32[np.ndarray, "y x 3"], count: int, rng: np.random.Generator) -> None:
    """Thin lines in any colours, drawn onto the ground."""
    height, width = pixels.shape[:2]
    for _ in range(count):
        tone = _colour(rng)[1]
        start, angle, length = rng.random(2) * (width, height), rng.random() * 2 * math.pi, (0.1 + 0.3 * rng.random())
        steps = np.arange(0, max(2, length * min(height, width)), 0.5)
        columns = (start[0] + np.cos(angle) * steps).astype(np.intp)
        rows = (start[1] + np.sin(angle) * steps).astype(np.intp)
        inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
        pixels[rows[inside], columns[inside]] = tone


_Laid = tuple[tuple[slice, slice], Bool[np.ndarray, "v u"], Float32[np.ndarray, "v u"]]


def _lay(
    options: SyntheticScenes,
    owner: Int32[np.ndarray, "y x"],
    full: Sequence[int],
    shape: str,
    number: int,
    rng: np.random.Generator,
) -> _Laid | None:
    """Find a place for an object and take its pixels; None where none is found.

    Returns:
        The window it lies in, its pixels there, and how much of each it covers.
    """
    height, width = options.size
    hidden = min(options.overlap, 1 - _LEAST)
    for attempt in range(_TRIES):
        draws = rng.random(4).tolist()
        share = options.scale[0] + (options.scale[1] - options.scale[0]) * draws[0] * (1 - attempt / _TRIES)
        radius = max(2.0, min(height, width) * share / 2)
        room = [max(0.0, side - 2 * radius) for side in (width, height)]
        x, y = (radius + draw * more for draw, more in zip(draws[1:3], room, strict=True))
        turn = math.radians(options.rotation * (2 * draws[3] - 1))
        rows = slice(max(0, math.floor(y - radius - 1)), min(height, math.ceil(y + radius + 1)))
        columns = slice(max(0, math.floor(x - radius - 1)), min(width, math.ceil(x + radius + 1)))
        across, down = (one[rows, columns] - middle for one, middle in zip(_grid(height, width), (x, y), strict=True))
        cos, sin = np.float32(math.cos(turn) / radius), np.float32(math.sin(turn) / radius)
        distance = _SHAPES[shape](cos * across + sin * down, cos * down - sin * across) * np.float32(radius)
        inside = distance < 0
        beneath = owner[rows, columns]
        if inside.sum() < _FEWEST or not _may_hide(beneath, inside, owner, full, hidden):
            continue
        beneath[inside] = number
        return (rows, columns), inside, np.clip(0.5 - distance, 0, 1)
    return None


def _may_hide(
    beneath: Int32[np.ndarray, "y x"],
    inside: Bool[np.ndarray, "y x"],
    owner: Int32[np.ndarray, "v u"],
    full: Sequence[int],
    hidden: float,
) -> bool:
    """Whether enough of all objects is left when another one is laid over them."""
    taken = beneath[inside]
    taken = taken[taken > 0]
    if not len(taken):
        return True
    if not hidden:
        return False
    for number, lost in Counter(taken.tolist()).items():
        left = int((owner == number).sum()) - lost
        if left < _FEWEST or left < (1 - hidden) * full[number - 1]:
            return False
    return True


def _paint(
    options: SyntheticScenes,
    window: Float32[np.ndarray, "y x 3"],
    cover: Float32[np.ndarray, "y x"],
    rng: np.random.Generator,
) -> str:
    """Paint an object onto what lies beneath it, and name its colour."""
    ground = window.mean((0, 1))
    name, tone = max((_colour(rng) for _ in range(3)), key=lambda one: float(np.abs(one[1] - ground).sum()))
    if options.confusion:
        tone = (tone + options.confusion * (ground - tone) * np.float32(0.85)).astype(np.float32)
    material = MATERIALS[1 + int(rng.random() * (len(MATERIALS) - 1))] if rng.random() < options.texture else "plain"
    x, y = (one[: cover.shape[0], : cover.shape[1]] for one in _grid(*options.size))
    painted = _textured(material, tone, x, y, 64 * (1 - 0.6 * options.confusion), rng)
    window += cover[..., None] * (painted - window)
    return name


_NUMBERS = ("no", "a", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def _caption(words: Sequence[tuple[str, str]], materials: Sequence[str]) -> str:
    """A sentence such as "Two red discs and a blue star on striped and plain ground."."""
    parts = []
    for (colour, shape), count in Counter(words).items():
        number = _NUMBERS[count] if count < len(_NUMBERS) else str(count)
        number = "an" if number == "a" and colour[0] in "aeiou" else number
        plural = "" if count == 1 else "es" if shape.endswith("ss") else "s"
        parts.append(f"{number} {colour} {shape}{plural}")
    listed = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else "nothing"
    return f"{listed[0].upper()}{listed[1:]} on {' and '.join(materials)} ground."
