"""Segmentation: what every pixel of a picture shows, by class, by object, or both."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Integer, Shaped
from PIL import Image

from vitral.base.colours import voc_colours
from vitral.base.disk import write_whole
from vitral.base.draw import draw_classes, draw_masks, draw_segments
from vitral.base.image import Picture
from vitral.base.masks import Regions, boxes_of, encode_regions, encode_rle, mask_to_polygons, regions_of
from vitral.base.numbers import all_finite, as_integer
from vitral.errors import UnknownNameError, UsageError
from vitral.tasks.ranked import Ranked, kept, summary

__all__ = ["Instances", "Panoptic", "Segment", "Segmentation"]


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The class of every pixel of one picture.

    Attributes:
        name: the picture's path, address or description.
        size: its height and width in pixels.
        class_map: for every pixel the place of its class in the model's output, or `ignore`.
        labels: the names of all the model's classes.
        scores: how sure the network is of the class it says, for every pixel; probabilities. None where nobody asked.
        picture: the picture itself, where it was kept.
        ignore: the number of pixels of which nothing is said. Where the model has a class of this number, it is the class.

    Raises:
        UsageError: a map of another size than the picture, a number that is no class, or scores that are not finite.
    """

    name: str
    size: tuple[int, int]
    class_map: Integer[np.ndarray, "y x"]
    labels: tuple[str, ...]
    scores: Float32[np.ndarray, "y x"] | None = None
    picture: Picture | None = None
    ignore: int = 255

    def __post_init__(self) -> None:
        if not np.issubdtype(self.class_map.dtype, np.integer):
            raise UsageError(
                f"The class map of {self.name} holds {self.class_map.dtype}. A pixel is of a class by its number, so whole "
                "numbers are wanted."
            )
        _same_size(self.name, self.size, "class map", self.class_map)
        if self.scores is not None:
            _same_size(self.name, self.size, "map of scores", self.scores)
            all_finite(f"scores of {self.name}", self.scores)
        beyond = [value for value in self._regions.values.tolist() if value != self.ignore and not self._is_class(value)]
        if beyond:
            raise UsageError(
                f"The class map of {self.name} has pixels of class {beyond[0]}; there are classes 0 to "
                f"{len(self.labels) - 1}, and {self.ignore} for pixels of which nothing is said."
            )

    def __repr__(self) -> str:
        whole = max(self.class_map.size, 1)
        shown = [f"{label} {area / whole:.1%}" for label, area in zip(self.classes[:3], self.areas[:3], strict=True)]
        counted = f"{len(self.classes)} class{'' if len(self.classes) == 1 else 'es'}"
        return f"Segmentation({summary(self.name, counted, shown, len(self.classes))})"

    @property
    def indices(self) -> tuple[int, ...]:
        """The places of the classes that the picture shows, the one with most pixels first."""
        return tuple(self._present.values.tolist())

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes that the picture shows, the one with most pixels first."""
        return tuple(self.labels[index] for index in self.indices)

    @property
    def areas(self) -> tuple[int, ...]:
        """How many pixels each of `classes` has."""
        return tuple(self._present.areas.tolist())

    def mask(self, which: str | int) -> Bool[np.ndarray, "y x"]:
        """The pixels of a class, by its name or its place; none where the picture does not show it.

        Raises:
            UnknownNameError: no class of this name.
            UsageError: no class at this place.
        """
        if isinstance(which, str):
            indices = [index for index, label in enumerate(self.labels) if label == which]
            if not indices:
                raise UnknownNameError("class", which, self.labels)
            return np.isin(self.class_map, indices)  # several classes may be called the same
        index = as_integer(which)
        if index is None or not self._is_class(index):
            raise UsageError(
                f"A class is chosen by its name or by a number from 0 to {len(self.labels) - 1}; {which!r} came."
            )
        return self.class_map == index

    def draw(self) -> Image.Image:
        """A copy of the picture with the classes' colours over it, and a legend below.

        Raises:
            UsageError: the picture was not kept.
        """
        picture = kept(self.name, self.picture)
        return draw_classes(picture.image, _laid(self.class_map, picture), self.labels, ignore=self.ignore)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON: the classes that the picture shows, the one with most pixels first.

        An area is in pixels, a box [left, top, right, bottom] in pixels, a mask COCO's run lengths; a score is the mean over
        the pixels of the class.
        """
        masks = encode_regions(self.class_map)
        rows = zip(self.classes, self.indices, self.areas, self._present.boxes.tolist(), strict=True)
        told = [
            {"label": label, "index": index, "area": area, "box": box, "mask": masks[index]}
            for label, index, area, box in rows
        ]
        if self.scores is not None:
            sums = np.zeros(len(self.labels))
            for line, scores in zip(self.class_map, self.scores, strict=True):  # line by line, to need little memory
                known = (line >= 0) & (line < len(self.labels))
                sums += np.bincount(line[known], weights=scores[known], minlength=len(self.labels))
            for row in told:
                row["score"] = float(sums[row["index"]] / row["area"])
        return {"name": self.name, "size": list(self.size), "classes": told}

    def to_png(self, path: str | PathLike[str]) -> Path:
        """Write the class map as a PNG whose pixels are the classes' numbers, as Pascal VOC's files have them.

        Up to 256 numbers make an indexed picture with Pascal VOC's palette; more make one of 16 bits. After an interruption
        there is the old file or the new one.

        Args:
            path: of the file; its folder must be there.

        Returns:
            The path.

        Raises:
            UsageError: a number that 16 bits do not hold (-1 for what is ignored, for example).
            OSError: the file cannot be written.
        """
        low, high = (int(self.class_map.min(initial=0)), int(self.class_map.max(initial=0)))
        if low < 0 or high > 65535:
            raise UsageError(
                f"A PNG holds numbers from 0 to 65535; the class map of {self.name} has {low if low < 0 else high}. "
                "Give what is ignored another number."
            )
        if high < 256:
            image = Image.fromarray(self.class_map.astype(np.uint8))
            image.putpalette(voc_colours(256).tobytes())
        else:
            image = Image.fromarray(self.class_map.astype(np.uint16))
        content = io.BytesIO()
        image.save(content, "PNG")
        write_whole(Path(path), content.getvalue())
        return Path(path)

    def to_coco(self, image_id: int | str, categories: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Rows as COCO's files of results have them for stuff: the pixels of every class that the picture shows.

        Args:
            image_id: the picture's, in the file of annotations.
            categories: the file's category of each of the model's classes; None where the classes are these categories.

        Raises:
            UsageError: a class that has no category.
        """
        masks = encode_regions(self.class_map)
        return [
            {"image_id": image_id, "category_id": _category(index, categories, self.name), "segmentation": masks[index]}
            for index in self.indices
        ]

    def _is_class(self, value: int) -> bool:
        return 0 <= value < len(self.labels)

    @cached_property
    def _regions(self) -> Regions:
        return regions_of(self.class_map)

    @cached_property
    def _present(self) -> Regions:
        """The classes without what is ignored, the one with most pixels first."""
        values, areas, boxes = self._regions
        order = np.argsort(-areas, kind="stable")
        order = order[(values[order] >= 0) & (values[order] < len(self.labels))]
        return Regions(values[order], areas[order], boxes[order])


@dataclass(frozen=True, eq=False, repr=False)
class Instances(Ranked):
    """The objects of one picture with their pixels, best first; those of one score stay in the order in which they came.

    Objects may overlap.

    Attributes:
        name: the picture's path, address or description.
        size: its height and width in pixels.
        masks: the pixels of each object.
        scores: how sure the network is of each, from high to low; probabilities.
        labels: names of their classes.
        indices: the places of their classes in the model's output.
        picture: the picture itself, where it was kept.
        queries: which of the model's queries each object was read from. None where nobody told.

    Raises:
        UsageError: one mask, score, label or index for each object did not come, masks of another size than the picture, or
            a score that is not finite.
    """

    name: str
    size: tuple[int, int]
    masks: Bool[np.ndarray, "k y x"]
    scores: Float[np.ndarray, " k"]
    labels: tuple[str, ...]
    indices: Integer[np.ndarray, " k"]
    picture: Picture | None = None
    queries: Integer[np.ndarray, " k"] | None = None

    shown = ("masks", "mask")

    def __post_init__(self) -> None:
        self._check_rows()
        if self.masks.shape[1:] != tuple(self.size):
            raise UsageError(
                f"Masks of {' × '.join(map(str, self.masks.shape[1:]))} pixels came for {self.name}, which has "
                f"{self.size[0]} × {self.size[1]}."
            )
        all_finite(f"scores of {self.name}", self.scores)
        self._put_in_order()

    @cached_property
    def boxes(self) -> Float32[np.ndarray, "k 4"]:
        """Left, top, right and bottom of each object's pixels; four zeros where it has none."""
        return boxes_of(self.masks)

    @cached_property
    def areas(self) -> Integer[np.ndarray, " k"]:
        """How many pixels each object has."""
        return np.array([np.count_nonzero(mask) for mask in self.masks], dtype=np.int64)

    def polygons(self, place: int) -> list[list[int]]:
        """The outline of an object along the edges of its pixels, as COCO has it (see `vitral.base.masks`).

        Raises:
            UsageError: there is no object at this place.
        """
        at = as_integer(place)
        if at is None or not -len(self) <= at < len(self):
            raise UsageError(f"{self.name} has {len(self)} objects; there is none at place {place!r}.")
        return mask_to_polygons(self.masks[at])

    def draw(self) -> Image.Image:
        """A copy of the picture with every object in a colour of its own, its outline, and what it is.

        Raises:
            UsageError: the picture was not kept.
        """
        picture = kept(self.name, self.picture)
        rows = list(zip(self.labels, self.scores.tolist(), strict=True))
        if picture.image.size == self.size[::-1]:
            return draw_masks(picture.image, self.masks, rows, list(range(len(self))))
        height, width = picture.image.height, picture.image.width
        smaller = np.empty((len(self), height, width), dtype=bool)
        for place, mask in enumerate(self.masks):
            smaller[place] = _laid(mask, picture)
        return draw_masks(picture.image, smaller, rows, list(range(len(self))))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; a box is [left, top, right, bottom] in pixels, a mask COCO's run lengths."""
        rows = zip(self.labels, self.scores.tolist(), self.indices.tolist(), self.boxes.tolist(), strict=True)
        areas = self.areas.tolist()
        return {
            "name": self.name,
            "size": list(self.size),
            "objects": [
                {"label": label, "score": score, "index": index, "box": box, "area": areas[place]}
                | {"mask": encode_rle(self.masks[place])}
                for place, (label, score, index, box) in enumerate(rows)
            ],
        }

    def to_coco(self, image_id: int | str, categories: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Rows as COCO's files of results have them; a box is [left, top, width, height] in pixels.

        Args:
            image_id: the picture's, in the file of annotations.
            categories: the file's category of each of the model's classes; None where the classes are these categories.

        Raises:
            UsageError: an object of a class that has no category.
        """
        rows = zip(self.indices.tolist(), self.scores.tolist(), self.boxes.tolist(), self.masks, strict=True)
        return [
            {
                "image_id": image_id,
                "category_id": _category(index, categories, self.name),
                "segmentation": encode_rle(mask),
                "bbox": [left, top, right - left, bottom - top],
                "score": score,
            }
            for index, score, (left, top, right, bottom), mask in rows
        ]


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One part of a picture: a thing, or all there is of some stuff.

    Attributes:
        id: the number of its pixels in the map, above 0.
        index: the place of its class in the model's output.
        label: the name of its class.
        score: how sure the network is of it; a probability.
        fused: whether it is all there is of its class, joined, rather than one of several.
        area: how many pixels it has.
        box: left, top, right and bottom of its pixels.
    """

    id: int
    index: int
    label: str
    score: float
    fused: bool
    area: int
    box: tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Panoptic:
    """Which part of a picture every pixel belongs to: one of the things, or some stuff (Kirillov et al. 2019).

    Attributes:
        name: the picture's path, address or description.
        size: its height and width in pixels.
        segment_map: for every pixel the `id` of its segment, or 0 where nothing is said.
        segments: every segment, in the order of the network.
        picture: the picture itself, where it was kept.

    Raises:
        UsageError: a map of another size than the picture, an id that comes twice or is not above 0, a segment that has no
            pixels or another number of them than it says, or pixels of none.
    """

    name: str
    size: tuple[int, int]
    segment_map: Integer[np.ndarray, "y x"]
    segments: tuple[Segment, ...]
    picture: Picture | None = None

    def __post_init__(self) -> None:
        _same_size(self.name, self.size, "segment map", self.segment_map)
        areas = {segment.id: segment.area for segment in self.segments}
        if len(areas) < len(self.segments) or min(areas, default=1) < 1:
            raise UsageError(f"Every segment of {self.name} needs an id of its own, above 0; {[*areas]} came.")
        found = {id_: area for id_, area in zip(*(part.tolist() for part in self._regions[:2]), strict=True) if id_}
        wrong = next((id_ for id_ in [*areas, *found] if areas.get(id_) != found.get(id_)), None)
        if wrong is not None:
            raise UsageError(
                f"Segment {wrong} of {self.name} should have {areas.get(wrong, 'no')} pixels, but the map has "
                f"{found.get(wrong, 'none')} of it."
            )

    def __len__(self) -> int:
        return len(self.segments)

    def __repr__(self) -> str:
        shown = [f"{segment.label} {segment.score:.3f}" for segment in self.segments[:3]]
        counted = f"{len(self)} segment{'' if len(self) == 1 else 's'}"
        return f"Panoptic({summary(self.name, counted, shown, len(self))})"

    def mask(self, id: int) -> Bool[np.ndarray, "y x"]:
        """The pixels of a segment.

        Raises:
            UsageError: there is no segment of this id.
        """
        wanted = as_integer(id)
        known = [segment.id for segment in self.segments]
        if wanted not in known:
            raise UsageError(f"{self.name} has no segment {id!r}; it has {', '.join(map(str, known[:20])) or 'none'}.")
        return self.segment_map == wanted

    def class_map(self, ignore: int = 255) -> Integer[np.ndarray, "y x"]:
        """The class of every pixel.

        Args:
            ignore: the number for pixels of which nothing is said.

        Returns:
            Bytes where all numbers are from 0 to 255, whole numbers of 32 bits otherwise.

        Raises:
            UsageError: `ignore` is the number of a class that the picture shows.
        """
        indices = {segment.id: segment.index for segment in self.segments}
        if (self.segment_map == 0).any():
            if ignore in indices.values():
                raise UsageError(f"ignore must be no class that {self.name} shows; {ignore} came.")
            indices[0] = ignore
        ids = np.array(sorted(indices), dtype=np.int64)
        values = np.array([indices[id_] for id_ in ids.tolist()], dtype=np.int64)
        kind = np.uint8 if not len(values) or 0 <= values.min() <= values.max() <= 255 else np.int32
        classes = np.empty(self.segment_map.shape, dtype=kind)
        for row, line in zip(classes, self.segment_map, strict=True):  # line by line: places take eight bytes a pixel
            row[:] = values[np.searchsorted(ids, line)]
        return classes

    def draw(self) -> Image.Image:
        """A copy of the picture with every segment in a colour of its own, its outline, and what it is.

        Raises:
            UsageError: the picture was not kept.
        """
        picture = kept(self.name, self.picture)
        rows = {segment.id: (segment.label, segment.score) for segment in self.segments}
        return draw_segments(picture.image, _laid(self.segment_map, picture), rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; a box is [left, top, right, bottom] in pixels, a mask COCO's run lengths."""
        masks = encode_regions(self.segment_map)
        return {
            "name": self.name,
            "size": list(self.size),
            "segments": [
                {
                    "id": segment.id,
                    "label": segment.label,
                    "score": segment.score,
                    "index": segment.index,
                    "fused": segment.fused,
                    "area": segment.area,
                    "box": list(segment.box),
                    "mask": masks[segment.id],
                }
                for segment in self.segments
            ],
        }

    def to_coco(
        self, image_id: int | str, categories: Sequence[int] | None = None, *, file_name: str | None = None
    ) -> tuple[Image.Image, dict[str, Any]]:
        """The map and its annotation as COCO's panoptic files have them (Kirillov et al. 2019; COCO's page on formats).

        Args:
            image_id: the picture's, in the file of annotations.
            categories: the file's category of each of the model's classes; None where the classes are these categories.
            file_name: of the PNG, for the annotation; None: the picture's id, of twelve digits where it is a number.

        Returns:
            An RGB picture to be written as a PNG, a pixel's id being R + 256 G + 256² B, and its annotation; a box there is
            [left, top, width, height] in pixels.

        Raises:
            UsageError: a segment of a class that has no category, or an id that three bytes do not hold.
        """
        if self.segments and max(segment.id for segment in self.segments) >= 1 << 24:
            raise UsageError(f"COCO's panoptic pictures hold ids below {1 << 24}; {self.name} has greater ones.")
        pixels = np.empty((*self.segment_map.shape, 3), dtype=np.uint8)
        for channel in range(3):
            pixels[..., channel] = (self.segment_map >> (8 * channel)) & 255
        if file_name is None:
            file_name = f"{image_id:012d}.png" if isinstance(image_id, int) else f"{image_id}.png"
        rows = []
        for segment in self.segments:
            left, top, right, bottom = map(round, segment.box)
            rows.append(
                {
                    "id": segment.id,
                    "category_id": _category(segment.index, categories, self.name),
                    "area": segment.area,
                    "bbox": [left, top, right - left, bottom - top],
                    "iscrowd": 0,
                }
            )
        return Image.fromarray(pixels), {"image_id": image_id, "file_name": file_name, "segments_info": rows}

    @cached_property
    def _regions(self) -> Regions:
        return regions_of(self.segment_map)


def _same_size(name: str, size: tuple[int, int], what: str, array: np.ndarray) -> None:
    """Refuse a map that does not cover its picture pixel by pixel."""
    if array.shape != tuple(size):
        raise UsageError(
            f"A {what} of {' × '.join(map(str, array.shape))} pixels came for {name}, which has {size[0]} × {size[1]}."
        )


def _laid(numbers: Shaped[np.ndarray, "_ _"], picture: Picture) -> Shaped[np.ndarray, "_ _"]:
    """A map of the original as a map of the pixels that were decoded: for each of them the nearest number."""
    image = picture.image
    if image.size == numbers.shape[::-1] and picture.box is None:
        return numbers
    left, top, right, bottom = picture.box or (0, 0, *image.size)  # where the original lies in what was decoded
    across = _nearest(image.width, left, right, numbers.shape[1])
    down = _nearest(image.height, top, bottom, numbers.shape[0])
    return numbers[np.ix_(down, across)]


def _nearest(length: int, first: float, last: float, count: int) -> Integer[np.ndarray, " _"]:
    """For each of `length` pixels which of `count` numbers, laid from `first` to `last`, its middle lies on."""
    places = (np.arange(length) + 0.5 - first) * (count / (last - first))
    return np.clip(places.astype(np.int64), 0, count - 1)


def _category(index: int, categories: Sequence[int] | None, name: str) -> int:
    """The category of a class in a file of annotations."""
    if categories is None:
        return index
    if not 0 <= index < len(categories):
        raise UsageError(f"Class {index} was found in {name}, but categories came for {len(categories)} classes only.")
    return int(categories[index])
