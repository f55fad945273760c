"""Every pixel a segment: things one by one and stuff by its kind, in both of COCO's forms (Kirillov et al. 2019, sec. 3).

```
annotations/panoptic_val2017.json     annotations/panoptic_val2017/….png     val2017/….jpg
```

In the first form a pixel's colour is its segment's id, red + 256 green + 65536 blue, and the JSON says of each picture which
category each id is of; black is nothing. In the second, of two channels, red is the category's id and green tells segments
of one category apart; 255 there is a crowd. Its JSON names pictures and categories only. Which categories are things their
`isthing` says, in the JSON itself or in a `*categories*.json` beside it.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import numpy as np
from jaxtyping import Bool, Int32, Int64, UInt8

from vitral.base.masks import regions_of
from vitral.base.numbers import as_integer
from vitral.data.coco import Categories, Listed, categories_of, files_of_splits, folders_with, images_of, listed, parsed
from vitral.data.instance_maps import objects_in
from vitral.data.label_files import colour_codes, label_values
from vitral.data.listed import NumberedPictures, rows_of
from vitral.data.object_source import Chosen, Problem, ProblemKind, Source, safe_name, split_of
from vitral.data.objects import Annotations
from vitral.data.pictures import PictureStore
from vitral.data.tree import some
from vitral.errors import PictureError, UsageError

__all__ = [
    "PanopticDraft",
    "PanopticMaps",
    "SegmentTable",
    "Segments",
    "class_map_of",
    "holds_panoptic",
    "panoptic_files",
    "read_panoptic",
]

_PREFIX = "panoptic_"
_CROWD = 255  # the green of a crowd in two channels
_MOST = 100_000  # segments of a picture, which have their ids


@dataclass(frozen=True, kw_only=True, eq=False)
class SegmentTable:
    """The segments of all pictures, one after the other.

    Attributes:
        starts: the first segment of each picture, and behind the last picture's last one.
        numbers: the id of each in its map.
        labels: the class of each.
        crowd: which are crowds.
    """

    starts: Int64[np.ndarray, " m"] = field(repr=False)
    numbers: Int64[np.ndarray, " k"] = field(repr=False)
    labels: Int64[np.ndarray, " k"] = field(repr=False)
    crowd: Bool[np.ndarray, " k"] = field(repr=False)

    def of(self, places: Sequence[int]) -> SegmentTable:
        """The segments of some pictures, in the order asked for."""
        rows, starts = rows_of(self.starts, places)
        return SegmentTable(
            starts=starts,
            numbers=self.numbers[rows],
            labels=self.labels[rows],
            crowd=self.crowd[rows],
        )


class Segments(NamedTuple):
    """The segments of a picture.

    Attributes:
        numbers: the segment of each pixel; 0 where there is none.
        ids: the number of each segment that has a pixel.
        labels: the class of each.
        crowd: which are crowds.
        wrong: what does not agree with the JSON: its kind, which part of the map, and a sentence. Those pixels are 0.
    """

    numbers: Int32[np.ndarray, "y x"]
    ids: Int64[np.ndarray, " k"]
    labels: Int64[np.ndarray, " k"]
    crowd: Bool[np.ndarray, " k"]
    wrong: tuple[tuple[ProblemKind, str, str], ...]


_Wrong = list[tuple[ProblemKind, str, str]]
_Told = tuple[dict[int, tuple[int, bool]], _Wrong]


@dataclass(frozen=True, kw_only=True, eq=False)
class PanopticMaps(NumberedPictures):
    """Pictures and the segment of every pixel: an `ObjectSet` with masks, and a `ClassMapSet` too.

    Args:
        things: which classes are things; the others are stuff.
        labels: where the maps lie, in the order of the pictures.
        table: the segments that the JSON lists; None where maps have two channels, which say it themselves.
    """

    things: tuple[bool, ...]
    labels: PictureStore = field(repr=False)
    table: SegmentTable | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        things = sum(self.things)
        return f"<PanopticMaps {self.name}: {len(self):,} pictures, {things} things and {len(self.things) - things} stuff>"

    @property
    def ignore(self) -> int:
        """What class maps hold where there is no segment."""
        return 255 if len(self.classes) <= 255 else 65535

    def look(self, index: int) -> Segments:
        """What the map of one picture says, be it understood or not.

        Raises:
            IndexError: there is no such picture.
            PictureError: the map is missing or damaged.
        """
        place = self._place(index)
        numbers = colour_codes(label_values(self.labels, place, coloured=True))
        if self.table is None:
            numbers &= 0xFFFF
            numbers[numbers & 255 == 0] = 0
        there = regions_of(numbers)
        pixels = dict(zip(there.values.tolist(), there.areas.tolist(), strict=True))
        told, wrong = self._two_channels(pixels) if self.table is None else self._by_table(place, pixels)
        if wrong:
            numbers[~np.isin(numbers, list(told))] = 0
        return Segments(
            numbers,
            np.array(list(told), dtype=np.int64),
            np.array([label for label, _ in told.values()], dtype=np.int64),
            np.array([crowd for _, crowd in told.values()], dtype=bool),
            tuple(wrong),
        )

    def _two_channels(self, pixels: Mapping[int, int]) -> _Told:
        """The segments of a map that says itself what they are."""
        label_of = {number: label for label, number in enumerate(self.categories)}
        told: dict[int, tuple[int, bool]] = {}
        wrong: _Wrong = []
        for number, count in pixels.items():
            category = number & 255
            if category in label_of:
                told[number] = label_of[category], number >> 8 == _CROWD
            elif number:
                reason = f"{_pixels(count)} of the category {category}, which the JSON does not list."
                wrong.append(
                    ("unknown class", f"category {category}", f"{reason} List it there, or make those pixels black.")
                )
        return told, wrong

    def _by_table(self, place: int, pixels: Mapping[int, int]) -> _Told:
        """The segments of a map that the JSON explains."""
        table = cast(SegmentTable, self.table)
        rows = slice(*table.starts[place : place + 2].tolist())
        explained = zip(table.labels[rows].tolist(), table.crowd[rows].tolist(), strict=True)
        listed = dict(zip(table.numbers[rows].tolist(), explained, strict=True))
        wrong: _Wrong = []
        for number, count in pixels.items():
            if number and number not in listed:
                reason = f"{_pixels(count)} of the segment {number}, which segments_info does not list."
                wrong.append(("unknown class", f"segment {number}", f"{reason} List it there, or make those pixels black."))
        for number in listed:
            if number not in pixels:
                reason = "segments_info lists it, but no pixel is of it. Take it off the list."
                wrong.append(("empty", f"segment {number}", reason))
        return {number: one for number, one in listed.items() if number in pixels}, wrong

    def _segments(self, index: int) -> Segments:
        """The segments of one picture, if nothing is wrong with them."""
        found = self.look(index)
        if found.wrong:
            _, part, reason = found.wrong[0]
            raise PictureError(self.labels.where(self._place(index)), f"In the map, {part}: {reason}")
        return found

    def annotations(self, index: int) -> Annotations:
        """The segments of one picture, things and stuff, with their masks.

        Raises:
            IndexError: there is no such picture.
            PictureError: the map is missing or damaged, or does not agree with the JSON.
        """
        found = self._segments(index)
        first = 1 + _MOST * self._place(index)
        return objects_in(found.numbers, found.ids, found.labels, found.crowd, first=first)

    def class_map(self, index: int) -> UInt8[np.ndarray, "y x"] | Int32[np.ndarray, "y x"]:
        """The class of every pixel of one picture, crowds among them; `ignore` where there is no segment.

        Raises:
            IndexError: there is no such picture.
            PictureError: the map is missing or damaged, or does not agree with the JSON.
        """
        found = self._segments(index)
        return class_map_of(found.numbers, found.ids, found.labels, self.ignore)

    def _of(self, places: tuple[int, ...]) -> dict[str, Any]:
        table = None if self.table is None else self.table.of(places)
        return {**super()._of(places), "labels": Chosen(self.labels, places), "table": table}


def class_map_of(
    numbers: Int32[np.ndarray, "y x"], ids: Int64[np.ndarray, " k"], labels: Int64[np.ndarray, " k"], ignore: int
) -> UInt8[np.ndarray, "y x"] | Int32[np.ndarray, "y x"]:
    """The class of every pixel by its segment.

    Args:
        numbers: the segment of each pixel; 0 where there is none.
        ids: the number of each segment.
        labels: the class of each.
        ignore: what the map holds where there is none.
    """
    order = np.argsort(ids)
    ranked = np.concatenate([[0], ids[order]])
    classes = np.concatenate([[ignore], labels[order]]).astype(np.uint8 if ignore <= 255 else np.int32)
    return classes[np.searchsorted(ranked, numbers)]


def _pixels(count: int) -> str:
    return "1 pixel is" if count == 1 else f"{count:,} pixels are"


# -- reading ------------------------------------------------------------------------------------------------------------


def holds_panoptic(source: Source) -> bool:
    """Whether a source has a file of panoptic annotations by its name, or is one by what it holds."""
    if source.only is not None:
        return source.only.lower().endswith(".json") and _is_panoptic(source, source.only)
    return any(_is_named(name) for name in source.tree.files)


def _is_named(name: str) -> bool:
    base = posixpath.basename(name).lower()
    return base.startswith(_PREFIX) and base.endswith(".json") and "categories" not in base and "detection" not in base


def _is_panoptic(source: Source, name: str) -> bool:
    """Whether a JSON lists segments, or pictures alone of which maps have two channels."""
    if _is_named(name) or posixpath.basename(name).startswith("instances_"):  # it may be large
        return _is_named(name)
    try:
        told = parsed(source.content(name), source.where(name))
    except UsageError:
        return False
    annotations = told.get("annotations")
    if annotations is None:
        return isinstance(told.get("images"), list)
    return isinstance(annotations, list) and any(isinstance(one, dict) and "segments_info" in one for one in annotations)


def panoptic_files(source: Source) -> dict[str, str]:
    """The JSON of each split, "train", "val" or "test".

    Raises:
        UsageError: two stand for one split, or one stands for none although there are several.
    """
    chosen = [source.only] if source.only is not None else [name for name in source.tree.files if _is_named(name)]
    return files_of_splits(source, {name: _stem(name) for name in chosen})


def _stem(name: str) -> str:
    """What a file's name says of its split: "val2017"."""
    return posixpath.splitext(posixpath.basename(name))[0].removeprefix(_PREFIX)


@dataclass(frozen=True, kw_only=True)
class PanopticDraft:
    """A split as its files say it.

    Attributes:
        split: "train", "val" or "test".
        known: its categories; `things` may be empty.
        images: its pictures.
        pictures: where each lies in the source.
        maps: where the map of each lies.
        segments: the segments of each: number, class and whether it is a crowd; None where maps have two channels.
        problems: what is wrong with pictures and segments that are left out for that reason.
    """

    split: str
    known: Categories
    images: list[Listed]
    pictures: list[str]
    maps: list[str]
    segments: list[list[tuple[int, int, bool]]] | None
    problems: list[Problem]


def read_panoptic(source: Source, folder: str | None = None) -> list[PanopticDraft]:
    """The splits of a source of panoptic maps.

    Args:
        source: the files.
        folder: the folder of the maps, where several could be it.

    Raises:
        UsageError: a file that is no such JSON; no pictures or maps where they could be; nothing says which categories are
            things.
    """
    return [_draft(source, name, split, folder) for split, name in panoptic_files(source).items()]


def _draft(source: Source, name: str, split: str, folder: str | None) -> PanopticDraft:
    """One JSON."""
    shown = source.where(name)
    told = parsed(source.content(name), shown)
    known = _known(source, told, name)
    images = images_of(told, shown)
    stem = posixpath.splitext(posixpath.basename(name))[0]
    said = split_of(_stem(name))
    problems: list[Problem] = []
    if "annotations" not in told:
        rows: dict[int, list[tuple[int, int, bool]]] | None = None
        map_of = {one.id: f"{posixpath.splitext(one.name)[0]}.png" for one in images}
    else:
        rows, map_of = _rows(told, shown, images, known, problems)
    files = [map_of[one.id] for one in images if one.id in map_of]
    lies = _folder(source, files, shown, said, folder, "maps", [stem, _stem(name), f"{_PREFIX}{_stem(name)}"])
    pictures = _folder(
        source, [one.name for one in images], shown, said, None, "pictures", [_stem(name), "images"], not_in=lies
    )
    kept: list[Listed] = []
    seen: set[int] = set()
    for one in images:
        trouble = None
        path = posixpath.join(pictures, one.name)
        if one.id in seen:
            trouble = "duplicate", f"Another picture has its id {one.id} too."
        elif one.id not in map_of:
            trouble = "missing", "It is listed, but no annotation says what it shows."
        elif posixpath.join(lies, map_of[one.id]) not in source:
            trouble = "missing", f"Its map {posixpath.join(lies, map_of[one.id])} is not there."
        elif path not in source:
            trouble = "missing", f"There is no picture {path}."
        seen.add(one.id)
        if trouble is None:
            kept.append(one)
        else:
            kind = cast(ProblemKind, trouble[0])
            problems.append(Problem(kind=kind, file=shown, annotation="", picture=one.name, reason=trouble[1]))
    return PanopticDraft(
        split=split,
        known=known,
        images=kept,
        pictures=[posixpath.join(pictures, one.name) for one in kept],
        maps=[posixpath.join(lies, map_of[one.id]) for one in kept],
        segments=None if rows is None else [rows[one.id] for one in kept],
        problems=problems,
    )


def _known(source: Source, told: Mapping[str, Any], name: str) -> Categories:
    """The categories of a JSON; which are things it says itself, or a file of categories does."""
    known = categories_of(told, source.where(name)) if "categories" in told else None
    if known is not None and known.things:
        return known
    for file in source.tree.files:
        if not ("categories" in posixpath.basename(file).lower() and file.lower().endswith(".json")):
            continue
        try:
            beside = categories_of({"categories": json.loads(source.content(file))}, source.where(file))
        except (ValueError, RecursionError):  # UsageError is a ValueError
            continue
        if beside.things and known is None:
            return beside
        things = dict(zip(beside.numbers, beside.things, strict=False))
        if known is not None and things.keys() >= set(known.numbers):
            return known._replace(things=tuple(things[number] for number in known.numbers))
    if known is None:
        raise UsageError(f"{source.where(name)} names no categories. Lay a file of them beside, such as categories.json.")
    return known


_Rows = dict[int, list[tuple[int, int, bool]]]


def _rows(
    told: Mapping[str, Any], shown: str, images: Sequence[Listed], known: Categories, problems: list[Problem]
) -> tuple[_Rows, dict[int, str]]:
    """The segments and the map of each picture."""
    place = {number: label for label, number in enumerate(known.numbers)}
    name_of = {one.id: one.name for one in images}
    rows: _Rows = {}
    map_of: dict[int, str] = {}

    def complain(kind: ProblemKind, annotation: str, picture: str, reason: str) -> None:
        problems.append(Problem(kind=kind, file=shown, annotation=annotation, picture=picture, reason=reason))

    for one in listed(told, "annotations", shown):
        owner = as_integer(one.get("image_id"))
        if owner is None or owner not in name_of:
            reason = f"It belongs to the image {str(one.get('image_id'))[:40]}, which is not listed."
            complain("missing", f"annotation of {str(one.get('file_name'))[:80]}", "", reason)
            continue
        if owner in rows:
            complain("duplicate", "", name_of[owner], "Two annotations say what it shows. The first counts.")
            continue
        map_of[owner] = safe_name(one.get("file_name"), f"The annotation of {name_of[owner]} of {shown}")
        rows[owner] = []
        infos = one.get("segments_info")
        if not isinstance(infos, list) or not all(isinstance(info, dict) for info in infos):
            complain("malformed", "", name_of[owner], "Its segments_info is no list of objects.")
            del rows[owner], map_of[owner]
            continue
        numbers: set[int] = set()
        for info in infos:
            number, category = as_integer(info.get("id")), as_integer(info.get("category_id"))
            crowd = info.get("iscrowd")
            if number is None or not 0 < number < 1 << 24:
                reason = f"Its id should be a whole number from 1 to {(1 << 24) - 1:,}, but is {str(info.get('id'))[:40]}."
                complain("malformed", "a segment", name_of[owner], reason)
            elif number in numbers:
                complain("duplicate", f"segment {number}", name_of[owner], "Another segment of the picture has its id too.")
            elif category is None or category not in place:
                reason = f"Its category_id is {str(info.get('category_id'))[:40]}, which no category has."
                complain("unknown class", f"segment {number}", name_of[owner], reason)
            elif crowd is not None and not (isinstance(crowd, int | float) and crowd in (0, 1)):
                reason = f"Its iscrowd should be 0 or 1, but is {repr(crowd)[:40]}."
                complain("malformed", f"segment {number}", name_of[owner], reason)
            else:
                numbers.add(number)
                rows[owner].append((number, place[category], bool(crowd)))
    return rows, map_of


def _folder(
    source: Source,
    names: Sequence[str],
    shown: str,
    split: str | None,
    wanted: str | None,
    what: str,
    likely: Sequence[str],
    not_in: str | None = None,
) -> str:
    """The folder that holds the first of some names: the one that is called like one of the likely ones, else the only one.

    Raises:
        UsageError: none does, or several do.
    """
    first = names[:100]
    if wanted is not None:
        return posixpath.normpath(wanted)
    counts = folders_with(source, first, split)
    if not_in is not None:
        counts.pop(not_in, None)
    if not first:
        return ""
    best = [folder for folder, count in counts.items() if count == max(counts.values())]
    named = [folder for word in likely for folder in best if posixpath.basename(folder) == word] or best
    if not named:
        raise UsageError(f"The {what} of {shown}, such as {first[0]!r}, are nowhere in {source.shown}.")
    if len(named) > 1 and named is best:
        raise UsageError(f"The {what} of {shown} could lie in any of {some(sorted(best))}. Say where: labels=….")
    return named[0]
