"""Annotated pictures: sets that know where the objects are, read from COCO's, Pascal VOC's and YOLO's formats, and written.

```
read_objects(path) ──> ObjectSplits ── train, val, test: ObjectSet
                                           └─ read(i) -> Picture, annotations(i) -> Annotations
write_objects(sets, folder, format="coco")
```

A path is a folder, a tar archive, or the file that holds or names the annotations. Nothing is decoded before it is asked
for. What is wrong in the files is found as they are read: training on it is refused unless the caller says otherwise.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from vitral.base.disk import whole_folder
from vitral.base.image import Picture, read_header
from vitral.base.masks import decode_rle, polygons_to_mask
from vitral.data.coco import coco_files, coco_json, holds_coco, read_coco
from vitral.data.listed import NumberedPictures, rows_of
from vitral.data.object_source import (
    Draft,
    Entry,
    Problem,
    Row,
    Source,
    is_picture,
    open_source,
    problems_of,
    safe_name,
)
from vitral.data.voc import holds_voc, read_voc, voc_xml
from vitral.data.yolo import holds_yolo, read_yolo, yolo_lines, yolo_page
from vitral.errors import PictureError, UnknownNameError, UsageError

__all__ = [
    "Annotations",
    "BadObjects",
    "ListedObjects",
    "ObjectFormat",
    "ObjectSet",
    "ObjectSplits",
    "ObjectTable",
    "formats_in",
    "mask_of",
    "object_formats",
    "read_objects",
    "write_objects",
]

ObjectFormat = Literal["coco", "voc", "yolo"]
"""How annotations lie in files: see `vitral.data.coco`, `vitral.data.voc` and `vitral.data.yolo`."""

BadObjects = Literal["refuse", "skip", "keep"]
"""What reading does about annotations and pictures with which something is wrong.

"refuse": it ends with a sentence that names the first of them. "skip": they are left out, and stand in the set's `problems`.
"keep": they stay in the set, as far as numbers can say them, and stand in `problems`: for looking at them, not for training.
"""


# -- what a set says ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Annotations:
    """The objects in a picture.

    Args:
        boxes: xyxy in pixels of the upright picture.
        labels: the class of each.
        crowd: which are regions of many objects that nobody told apart (COCO's iscrowd), or marked as difficult (Pascal
            VOC): nothing to learn from, and nothing to count against anybody.
        areas: in square pixels; of the object itself where its outline is known, else of its box.
        ids: a number for each, its own within the set.
        shapes: the JSON of each one's outline (polygons) or pixels (run lengths), as its file has it, "" where there is
            none; or nothing at all.
        masks: the pixels of each, where they are known already.

    Raises:
        UsageError: numbers of objects that do not agree.
    """

    boxes: Float32[np.ndarray, "k 4"]
    labels: Int64[np.ndarray, " k"]
    crowd: Bool[np.ndarray, " k"]
    areas: Float64[np.ndarray, " k"]
    ids: Int64[np.ndarray, " k"]
    shapes: tuple[str, ...] = ()
    masks: Bool[np.ndarray, "k y x"] | None = None

    def __post_init__(self) -> None:
        rows = (self.boxes, self.labels, self.crowd, self.areas, self.ids, self.shapes or self.boxes)
        counts = {len(one) for one in (*rows, *([] if self.masks is None else [self.masks]))}
        if len(counts) > 1:
            raise UsageError(f"Annotations must have a row for each object in everything, but have {sorted(counts)} rows.")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def segmentation(self) -> tuple[Any, ...]:
        """Each one's outline or pixels as COCO's file says it: a list of polygons, or {"size", "counts"}; or None."""
        return tuple(json.loads(shape) if shape else None for shape in self.shapes or ("",) * len(self))


@runtime_checkable
class ObjectSet(Protocol):
    """Pictures and the objects in each. It can be copied into another process and be read there."""

    @property
    def name(self) -> str:
        """What messages call the set."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, each once."""
        ...

    @property
    def categories(self) -> tuple[int, ...]:
        """The number that each class has in its files, and in COCO's form of results."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """What each picture is called in its files."""
        ...

    def __len__(self) -> int: ...

    def where(self, index: int) -> str:
        """What messages call a picture."""
        ...

    def image_id(self, index: int) -> int:
        """The number of a picture in its files, and in COCO's form of results."""
        ...

    def size_of(self, index: int) -> tuple[int, int] | None:
        """(height, width) of a picture as its files say it, in pixels; None where they do not."""
        ...

    def read(self, index: int, *, at_least: tuple[int, int] | None = None) -> Picture:
        """Read one picture; see `vitral.base.image.read_picture`.

        Raises:
            PictureError: it is missing, damaged or too large.
        """
        ...

    def annotations(self, index: int) -> Annotations:
        """The objects of one picture."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class ObjectTable:
    """The objects of all pictures, one after the other.

    Attributes:
        starts: the first object of each picture, and behind the last picture's last one.
        boxes: see `Annotations`, as all of the following.
        labels: the classes.
        crowd: which are crowds.
        areas: in square pixels.
        ids: their numbers.
        shapes: the JSON of all outlines, one after the other, in UTF-8.
        shape_ends: where each one's ends.
    """

    starts: Int64[np.ndarray, " m"] = field(repr=False)
    boxes: Float32[np.ndarray, "k 4"] = field(repr=False)
    labels: Int64[np.ndarray, " k"] = field(repr=False)
    crowd: Bool[np.ndarray, " k"] = field(repr=False)
    areas: Float64[np.ndarray, " k"] = field(repr=False)
    ids: Int64[np.ndarray, " k"] = field(repr=False)
    shapes: bytes = field(repr=False)
    shape_ends: Int64[np.ndarray, " k"] = field(repr=False)


@dataclass(frozen=True, kw_only=True, eq=False)
class ListedObjects(NumberedPictures):
    """An `ObjectSet` that files describe; what was wrong in them stays in it where it was read with "keep".

    Args:
        table: the objects.
        things: which classes are things and not stuff, where the files say so.
        with_masks: whether `annotations` come with masks, drawn of the outlines.
    """

    table: ObjectTable = field(repr=False)
    things: tuple[bool, ...] = ()
    with_masks: bool = False

    def __repr__(self) -> str:
        objects = len(self.table.labels)
        return f"<ListedObjects {self.name}: {len(self):,} pictures, {objects:,} objects of {len(self.classes):,} classes>"

    @cached_property
    def counts(self) -> Int64[np.ndarray, " c"]:
        """How many objects each class has, crowds among them."""
        return np.bincount(self.table.labels, minlength=len(self.classes)).astype(np.int64)

    def read(self, index: int, *, at_least: tuple[int, int] | None = None) -> Picture:
        """Read one picture; see `ListedPictures.read`.

        Raises:
            IndexError: there is no such picture.
            PictureError: it is missing, damaged or too large, or of another size than its annotations say.
        """
        picture, size = super().read(index, at_least=at_least), self.size_of(index)
        if size is not None and size != picture.size:
            raise PictureError(
                picture.name,
                f"It has {picture.size[0]} × {picture.size[1]} pixels (height × width), but its annotations say {size[0]} × "
                f"{size[1]}, so its boxes may not fit. Correct one of them.",
            )
        return picture

    def annotations(self, index: int) -> Annotations:
        """The objects of one picture, in the order of their file.

        Raises:
            IndexError: there is no such picture.
            PictureError: masks are wanted, and an outline is none.
        """
        place, table = self._place(index), self.table
        begin, end = table.starts[place : place + 2].tolist()
        rows = slice(begin, end)
        shapes: tuple[str, ...] = ()
        if table.shapes:
            edges = [int(table.shape_ends[begin - 1]) if begin else 0, *table.shape_ends[rows].tolist()]
            shapes = tuple(table.shapes[low:high].decode() for low, high in itertools.pairwise(edges))
        return Annotations(
            boxes=table.boxes[rows],
            labels=table.labels[rows],
            crowd=table.crowd[rows],
            areas=table.areas[rows],
            ids=table.ids[rows],
            shapes=shapes,
            masks=self._masks(place, shapes, table.ids[rows].tolist()) if self.with_masks else None,
        )

    def _masks(self, place: int, shapes: Sequence[str], ids: Sequence[int]) -> Bool[np.ndarray, "k y x"]:
        """The pixels of objects, by their outlines."""
        size = self.size_of(place) or read_header(self.store.source(place), name=self.store.where(place)).size
        masks = np.zeros((len(ids), *size), dtype=bool)
        for row, number in enumerate(ids):
            try:
                masks[row] = mask_of(shapes[row] if shapes else "", size)
            except UsageError as error:
                raise PictureError(self.where(place), f"Annotation {number} has no mask. {error}") from error
        return masks

    def _of(self, places: tuple[int, ...]) -> dict[str, Any]:
        if len(set(places)) < len(places):
            raise UsageError(
                f"A subset of {self.name} cannot hold a picture twice: the ids of its objects would not be theirs."
            )
        table = self.table
        rows, starts = rows_of(table.starts, places)
        lengths = np.diff(table.shape_ends, prepend=0)
        ends = np.cumsum(lengths[rows])
        begins = table.shape_ends - lengths
        shapes = (
            b"".join(table.shapes[begins[row] : table.shape_ends[row]] for row in rows.tolist()) if table.shapes else b""
        )
        chosen = ObjectTable(
            starts=starts,
            boxes=table.boxes[rows],
            labels=table.labels[rows],
            crowd=table.crowd[rows],
            areas=table.areas[rows],
            ids=table.ids[rows],
            shapes=shapes,
            shape_ends=ends.astype(np.int64),
        )
        return {**super()._of(places), "table": chosen}


@dataclass(frozen=True, kw_only=True, eq=False)
class ObjectSplits:
    """What a training learns from, and what it is judged by. All have the same classes, in the same order.

    Attributes:
        train: the pictures to learn from; None where a source only judges.
        val: the pictures to judge by during the training.
        test: pictures for the very end.

    Raises:
        UsageError: none of them is there, or their classes differ.
    """

    train: ObjectSet | None = None
    val: ObjectSet | None = None
    test: ObjectSet | None = None

    def __post_init__(self) -> None:
        there = list(self.sets.values())
        if not there:
            raise UsageError("ObjectSplits need at least one split.")
        for other in there[1:]:
            if (other.classes, other.categories) != (there[0].classes, there[0].categories):
                raise UsageError(f"{there[0].name} and {other.name} do not have the same classes in the same order.")

    @property
    def sets(self) -> dict[str, ObjectSet]:
        """The splits that there are, by name."""
        named = {"train": self.train, "val": self.val, "test": self.test}
        return {name: one for name, one in named.items() if one is not None}

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return next(iter(self.sets.values())).classes

    @property
    def categories(self) -> tuple[int, ...]:
        """The number that each class has in its files."""
        return next(iter(self.sets.values())).categories


# -- reading ------------------------------------------------------------------------------------------------------------


def object_formats(path: str | os.PathLike[str]) -> tuple[ObjectFormat, ...]:
    """The formats of a source's annotations; usually one, or none where there are none.

    Raises:
        UsageError: there is no such source.
    """
    return formats_in(open_source(path))


def formats_in(source: Source) -> tuple[ObjectFormat, ...]:
    """The formats of the annotations in a source that is open already; see `object_formats`."""
    found: list[ObjectFormat] = []
    if source.only is not None:
        return ("coco",) if source.only.lower().endswith(".json") else ("yolo",)
    if holds_coco(source):
        found.append("coco")
    if holds_voc(source):
        found.append("voc")
    if holds_yolo(source):
        found.append("yolo")
    return tuple(found)


def read_objects(
    path: str | os.PathLike[str],
    *,
    format: ObjectFormat | None = None,
    bad: BadObjects = "refuse",
    classes: Sequence[str] | None = None,
) -> ObjectSplits:
    """The annotated pictures of a folder, a tar archive, or a file of annotations.

    Args:
        path: the source.
        format: how its annotations lie; None to see for oneself.
        bad: what happens to those that something is wrong with.
        classes: the names of the classes, in order, for Pascal VOC's format, which has no list of them; by default those
            that occur, sorted.

    Raises:
        UsageError: it cannot be understood; or something is wrong with an annotation or a picture's file and `bad` is
            "refuse": the message names file and annotation.
        UnknownNameError: no such format.
    """
    if format is not None and format not in get_args(ObjectFormat):
        raise UnknownNameError("format of annotations", format, get_args(ObjectFormat))
    if bad not in get_args(BadObjects):
        raise UnknownNameError("value of bad", bad, get_args(BadObjects))
    source = open_source(path)
    found = formats_in(source) if format is None else (format,)
    if len(found) > 1:
        raise UsageError(f"{path} holds annotations of several formats: {', '.join(found)}. Say which one is meant.")
    kind = found[0] if found else None
    if kind is None or (kind == "coco" and not coco_files(source)) or (kind == "voc" and not holds_voc(source)):
        where = "in any format read here" if kind is None else f"in the format {kind}"
        raise UsageError(
            f"{path} holds no annotations of objects {where}: "
            "annotations/instances_*.json (COCO), Annotations/*.xml (Pascal VOC), data.yaml or labels/*.txt (YOLO)."
        )
    if classes is not None and kind != "voc":
        raise UsageError(f"Annotations in the format {kind} name their classes themselves. Leave `classes` out.")
    drafts = read_coco(source) if kind == "coco" else read_voc(source, classes) if kind == "voc" else read_yolo(source)
    for name in drafts[0].classes:
        if any("\ud800" <= sign <= "\udfff" for sign in name):  # no file of ours could hold it
            raise UsageError(f"{path} has a class whose name is not valid Unicode, {name!r}.")
    sets: dict[str, ListedObjects] = {}
    for draft in drafts:
        problems, sound = problems_of(draft, source.tree.files)
        if problems and bad == "refuse":
            more = f" {len(problems) - 1:,} more have something wrong." if len(problems) > 1 else ""
            raise UsageError(
                f"{problems[0]}{more} Look with `vitral data check`, or leave them out: --bad-pictures skip (bad='skip')."
            )
        entries = draft.entries if bad == "keep" else sound
        sets[draft.split] = _set(draft, entries, source, f"{Path(str(path)).name or path}/{draft.split}", problems)
    return ObjectSplits(**sets)


def _set(draft: Draft, entries: list[Entry], source: Source, name: str, problems: list[Problem]) -> ListedObjects:
    """A draft as a set."""
    rows = [row for entry in entries for row in entry.rows]
    boxes = np.array([row.box for row in rows], dtype=np.float64).reshape(-1, 4).astype(np.float32)
    sides = (boxes[:, 2:] - boxes[:, :2]).astype(np.float64).clip(min=0)
    shapes = [row.shape.encode() for row in rows]
    areas = [sides[place].prod() if row.area is None else row.area for place, row in enumerate(rows)]
    return ListedObjects(
        name=name,
        classes=draft.classes,
        categories=draft.categories,
        names=tuple(entry.name for entry in entries),
        store=source.pictures([entry.path for entry in entries]),
        sizes=np.array([entry.size or (0, 0) for entry in entries], dtype=np.int64).reshape(-1, 2),
        image_ids=np.array([entry.image_id for entry in entries], dtype=np.int64),
        table=ObjectTable(
            starts=np.cumsum([0, *(len(entry.rows) for entry in entries)], dtype=np.int64),
            boxes=boxes,
            labels=np.array([row.label for row in rows], dtype=np.int64),
            crowd=np.array([row.crowd for row in rows], dtype=bool),
            areas=np.array(areas, dtype=np.float64),
            ids=np.array([place if row.id is None else row.id for place, row in enumerate(rows, start=1)], dtype=np.int64),
            shapes=b"".join(shapes),
            shape_ends=np.cumsum([len(shape) for shape in shapes], dtype=np.int64),
        ),
        problems=tuple(problems),
        things=draft.things,
    )


def mask_of(shape: str, size: tuple[int, int]) -> Bool[np.ndarray, "y x"]:
    """An outline as COCO's file has it, drawn: polygons, or run lengths, compressed or not.

    Args:
        shape: its JSON.
        size: (height, width) of the picture, in pixels.

    Raises:
        UsageError: there is none, it is malformed, or of another size.
    """
    told = json.loads(shape) if shape else None
    if isinstance(told, dict):
        return decode_rle(told, size)
    if not isinstance(told, list) or not told:
        raise UsageError("It has no segmentation, neither polygons nor run lengths. Add one, or leave the object out.")
    return polygons_to_mask(told, size)


# -- writing ------------------------------------------------------------------------------------------------------------


def write_objects(
    data: ObjectSplits | ObjectSet | Mapping[str, ObjectSet],
    folder: str | os.PathLike[str],
    *,
    format: ObjectFormat = "coco",
) -> None:
    """Write pictures and annotations into a folder, all of it or nothing; `read_objects` reads them again as they were.

    Files of pictures are copied as they are; pictures that are no files become PNG. COCO's format keeps all of `Annotations`
    but masks; Pascal VOC's boxes, classes and crowds; YOLO's boxes and classes.

    Args:
        data: the sets; a single one becomes the split train.
        folder: where to. It must not be there yet, or be empty.
        format: how the annotations lie in it; the pages of `vitral.data.coco`, `voc` and `yolo` show it.

    Raises:
        UsageError: the folder holds something; names that the format cannot hold; crowds, which YOLO's cannot.
        PictureError: a picture cannot be read.
        OSError: the disk is full, or cannot be written to.
        UnknownNameError: no such format.
    """
    if format not in get_args(ObjectFormat):
        raise UnknownNameError("format of annotations", format, get_args(ObjectFormat))
    target = Path(os.path.expanduser(folder))  # noqa: PTH111
    if target.is_dir() and any(target.iterdir()):
        raise UsageError(f"{folder} holds something already. Name a folder that is empty or not there yet.")
    splits = data if isinstance(data, ObjectSplits) else _splits(data)
    with whole_folder(target) as room:
        written: set[str] = set()
        for path, content in _FILES[format](splits.sets):
            if path in written:
                raise UsageError(f"Two pictures would both be written to {path}. Rename one of them.")
            written.add(path)
            place = room / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)


def _splits(data: ObjectSet | Mapping[str, ObjectSet]) -> ObjectSplits:
    """Sets as splits: a single one is for training."""
    named = data if isinstance(data, Mapping) else {"train": data}
    for split in named:
        if split not in ("train", "val", "test"):
            raise UnknownNameError("split", split, ("train", "val", "test"))
    return ObjectSplits(**named)


def _entries(pictures: ObjectSet) -> Iterator[tuple[Entry, bytes]]:
    """The pictures of a set as a format's page takes them, and their files."""
    for index in range(len(pictures)):
        content, suffix = _file_of(pictures, index)
        found = pictures.annotations(index)
        name, size = pictures.names[index], pictures.size_of(index) or pictures.read(index).size
        if not is_picture(name):
            name += suffix
        safe_name(name, pictures.name)
        rows = [
            Row(tuple(box), label, place, crowd, area, number, shape)
            for place, (box, label, crowd, area, number, shape) in enumerate(
                zip(
                    found.boxes.tolist(),
                    found.labels.tolist(),
                    found.crowd.tolist(),
                    found.areas.tolist(),
                    found.ids.tolist(),
                    found.shapes or ("",) * len(found),
                    strict=True,
                ),
                start=1,
            )
        ]
        yield Entry(name, name, size, pictures.image_id(index), rows, ""), content


def _file_of(pictures: ObjectSet, index: int) -> tuple[bytes, str]:
    """A picture's file as it is, or a PNG of it; and the suffix that a name of it needs where it has none."""
    if isinstance(pictures, ListedObjects):
        source = pictures.store.source(index)
        try:
            if isinstance(source, bytes):
                return source, ""
            if isinstance(source, str | os.PathLike):
                return Path(source).read_bytes(), ""
        except OSError as error:
            raise PictureError(pictures.where(index), f"It cannot be read ({error.strerror or error}).") from error
    memory = io.BytesIO()
    pictures.read(index).image.save(memory, "PNG", compress_level=1)
    return memory.getvalue(), ".png"


_Files = Iterator[tuple[str, bytes]]


def _coco(sets: Mapping[str, ObjectSet]) -> _Files:
    for split, pictures in sets.items():
        entries: list[Entry] = []
        for entry, content in _entries(pictures):
            entries.append(entry)
            yield f"{split}/{entry.name}", content
        yield f"annotations/instances_{split}.json", coco_json(entries, pictures.classes, pictures.categories)


def _check_names(sets: Mapping[str, ObjectSet], format: str) -> None:
    """Refuse names of classes that a format of lines or tags does not give back as they were."""
    for name in next(iter(sets.values())).classes:
        if name != name.strip() or not name.isprintable():
            raise UsageError(f"The format {format} cannot hold the class {name!r}, with such signs at its ends or in it.")


def _voc(sets: Mapping[str, ObjectSet]) -> _Files:
    _check_names(sets, "voc")
    lists: dict[str, list[str]] = {split: [] for split in sets}
    taken: Counter[str] = Counter()
    for split, pictures in sets.items():
        for entry, content in _entries(pictures):
            stem = posixpath.splitext(entry.name)[0]
            taken[stem] += 1
            if taken[stem] > 1 or any(sign.isspace() for sign in stem) or "/" in stem:
                reason = "there twice" if taken[stem] > 1 else "with a space or a folder in it"
                raise UsageError(f"Pascal VOC's format cannot hold the name {entry.name!r}, {reason}. Rename the picture.")
            lists[split].append(stem)
            yield f"JPEGImages/{entry.name}", content
            yield f"Annotations/{stem}.xml", voc_xml(entry, pictures.classes)
    for split, stems in lists.items():
        yield f"ImageSets/Main/{split}.txt", "".join(f"{stem}\n" for stem in stems).encode()


def _yolo(sets: Mapping[str, ObjectSet]) -> _Files:
    _check_names(sets, "yolo")
    for split, pictures in sets.items():
        for entry, content in _entries(pictures):
            if any(row.crowd for row in entry.rows):
                raise UsageError(f"YOLO's format cannot say that an object is a crowd, as in {entry.name}. Write COCO's.")
            yield f"images/{split}/{entry.name}", content
            yield f"labels/{split}/{posixpath.splitext(entry.name)[0]}.txt", yolo_lines(entry)
    first = next(iter(sets.values()))
    yield "data.yaml", yolo_page(first.classes, tuple(sets))


_FILES = {"coco": _coco, "voc": _voc, "yolo": _yolo}
