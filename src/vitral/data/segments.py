"""Segmented pictures: sets that know the class, the object or the segment of every pixel, read from label files and COCO's.

```
read_segments(path) ──> SegmentSplits ── train, val, test
    semantic     ClassMapSet          class_map(i): the class of every pixel
    instance     ObjectSet            annotations(i).masks: the pixels of every object
    panoptic     PanopticSet          both, of things and stuff
```

| kind | read from |
|---|---|
| semantic | label files: see `vitral.data.label_files` for how they lie and `vitral.data.class_maps` for what they mean |
| instance | COCO's `instances_*.json` (polygons and run lengths), or label files that number objects (Penn-Fudan) |
| panoptic | COCO's `panoptic_*.json` and maps, of one or of two channels; or all segments in COCO's form of objects |

A path is a folder, a tar archive, a JSON, or "scenes": drawn ones, of every kind. Nothing is decoded before it is asked for,
but to count classes of which nobody said how many there are. What label files mean is never guessed in silence: the
splits' `assumes` says it in a sentence.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, cast, get_args, runtime_checkable

import numpy as np
from jaxtyping import Int32, UInt8

from vitral.base.image import Picture
from vitral.data.class_maps import ClassMaps, labelling_of, void_numbers
from vitral.data.coco import holds_coco
from vitral.data.instance_maps import InstanceMaps, holds_instances, only_class
from vitral.data.label_files import Pair, Pairs, label_pairs
from vitral.data.listed import with_held_out
from vitral.data.object_source import Problem, Source, open_source
from vitral.data.objects import Annotations, BadObjects, ListedObjects, ObjectSet, formats_in, read_objects
from vitral.data.panoptic import PanopticDraft, PanopticMaps, SegmentTable, holds_panoptic, read_panoptic
from vitral.data.synthetic import SCENES, SegmentedScenes, drawn_scenes
from vitral.errors import UnknownNameError, UsageError

__all__ = [
    "ClassMapSet",
    "Known",
    "PanopticSet",
    "SegmentKind",
    "SegmentSet",
    "SegmentSplits",
    "known_of",
    "read_segments",
    "segment_kinds",
]

SegmentKind = Literal["semantic", "instance", "panoptic"]
"""What is known of pixels: the class; the object, where there is one; or the segment, of things and of stuff."""

Known = Literal["classes", "objects", "segments"]
"""What is known of pictures: the class of each; the objects in it, as boxes; or what its pixels show."""


# -- what a set says ----------------------------------------------------------------------------------------------------


@runtime_checkable
class ClassMapSet(Protocol):
    """Pictures and the class of every pixel. It can be copied into another process and be read there."""

    @property
    def name(self) -> str:
        """What messages call the set."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, each once."""
        ...

    @property
    def ignore(self) -> int:
        """What class maps hold where nothing is known."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """What each picture is called in its files."""
        ...

    def __len__(self) -> int: ...

    def where(self, index: int) -> str:
        """What messages call a picture."""
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

    def class_map(self, index: int) -> UInt8[np.ndarray, "y x"] | Int32[np.ndarray, "y x"]:
        """The class of every pixel of one picture; `ignore` where nothing is known.

        Raises:
            PictureError: its labels are missing or damaged, or hold what is no class.
        """
        ...


@runtime_checkable
class PanopticSet(ClassMapSet, Protocol):
    """Pictures and the segment of every pixel: an `ObjectSet` whose annotations are all segments, with masks."""

    @property
    def categories(self) -> tuple[int, ...]:
        """The number that each class has in its files, and in COCO's form of results."""
        ...

    @property
    def things(self) -> tuple[bool, ...]:
        """Which classes are things; the others are stuff."""
        ...

    def image_id(self, index: int) -> int:
        """The number of a picture in its files, and in COCO's form of results."""
        ...

    def annotations(self, index: int) -> Annotations:
        """The segments of one picture, with their masks.

        Raises:
            PictureError: its map is missing or damaged, or does not agree with its list.
        """
        ...


SegmentSet: TypeAlias = ClassMapSet | ObjectSet
"""Segmented pictures of any kind."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SegmentSplits:
    """What a training learns from, and what it is judged by. All have the same classes, in the same order.

    Attributes:
        kind: what is known of pixels.
        assumes: what the files are taken to mean, in sentences.
        train: the pictures to learn from; None where a source only judges.
        val: the pictures to judge by during the training.
        test: pictures for the very end.

    Raises:
        UsageError: none of them is there, or their classes differ.
    """

    kind: SegmentKind
    assumes: str
    train: SegmentSet | None = None
    val: SegmentSet | None = None
    test: SegmentSet | None = None

    def __post_init__(self) -> None:
        there = list(self.sets.values())
        if not there:
            raise UsageError("SegmentSplits need at least one split.")
        for other in there[1:]:
            if tuple(other.classes) != tuple(there[0].classes):
                raise UsageError(f"{there[0].name} and {other.name} do not have the same classes in the same order.")

    @property
    def sets(self) -> dict[str, SegmentSet]:
        """The splits that there are, by name."""
        named = {"train": self.train, "val": self.val, "test": self.test}
        return {name: one for name, one in named.items() if one is not None}

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return tuple(next(iter(self.sets.values())).classes)

    @property
    def things(self) -> tuple[bool, ...] | None:
        """Which classes are things, where stuff is told from them."""
        return getattr(next(iter(self.sets.values())), "things", None) or None


# -- reading ------------------------------------------------------------------------------------------------------------


def known_of(path: str | os.PathLike[str]) -> Known:
    """What is known of the pictures of a source, by the names of its files.

    Boxes come before pixels where a source has both; but a JSON or a folder that lists panoptic segments alone has no boxes.
    What cannot be opened here, or has neither boxes nor label files, is left to the reader of labelled pictures, who says
    best what is wrong with it.

    Args:
        path: a source; "digits", or "scenes", which are drawn with objects in them.

    Raises:
        UsageError: nobody can tell which label file belongs to which picture.
    """
    if path == SCENES:
        return "objects"
    if path == "digits" or not str(path).strip():
        return "classes"
    try:
        source = open_source(path)
    except UsageError:
        return "classes"
    if source.only is not None and holds_panoptic(source):
        return "segments"
    if formats_in(source):
        return "objects"
    return "segments" if _kinds(source)[0] else "classes"


def segment_kinds(path: str | os.PathLike[str]) -> tuple[SegmentKind, ...]:
    """What a source says of pixels, the likeliest first; nothing where it says nothing.

    Label files whose numbers could be classes or objects are taken for classes, unless their names say otherwise.

    Raises:
        UsageError: there is no such source.
    """
    return _kinds(open_source(path))[0]


def _kinds(source: Source, folder: str | None = None) -> tuple[tuple[SegmentKind, ...], Pairs | None]:
    """The kinds that a source can be read as, and its pictures with label files."""
    found: list[SegmentKind] = []
    if holds_panoptic(source):
        found += ["panoptic", "semantic"]
    if source.only is not None:
        return tuple(found or (["instance"] if source.only.lower().endswith(".json") else [])), None
    if holds_coco(source):
        found.append("instance")
    pairs = None if found else label_pairs(source, folder)
    if pairs is not None:
        found += ["instance", "semantic"] if holds_instances(pairs) else ["semantic", "instance"]
    return tuple(dict.fromkeys(found)), pairs


def read_segments(
    path: str | os.PathLike[str],
    kind: SegmentKind | None = None,
    *,
    held_out: float | None = None,
    bad: BadObjects = "refuse",
    labels: str | None = None,
    classes: Sequence[str] | None = None,
    void: Sequence[int | Sequence[int]] | None = None,
    offset: int | None = None,
    mapping: Mapping[int, int] | None = None,
    colours: Mapping[tuple[int, int, int], int] | None = None,
    things: Sequence[str] | None = None,
) -> SegmentSplits:
    """The segmented pictures of a folder, a tar archive, or a JSON; or drawn ones.

    Args:
        path: the source; or "scenes", 2,000 drawn ones to learn from and 200 to judge by.
        kind: what is read of pixels; None: what the source says first.
        held_out: where there is no split val, this share of the training pictures is set apart as one; see
            `vitral.data.listed.set_apart`.
        bad: what happens to what is wrong with lists and files. What is wrong in the pixels of a label file is found when it
            is read, and is an error then.
        labels: the folder of the label files, or of the maps, where several could be it.
        classes: the names of the classes of label files, in order; of objects, the name of their only class.
        void: numbers in label files that say that nothing is known of a pixel, besides those that do so anyway, such as 255;
            a colour may be (red, green, blue).
        offset: the number of the first class in label files; 1 where 0 is void ("reduce labels").
        mapping: the class of each number in label files, instead of an offset.
        colours: the class of each colour in label files.
        things: the classes that are things, where COCO's files do not say it.

    Raises:
        UsageError: the source cannot be understood; an option that it has no use for; or something is wrong in its lists and
            `bad` is "refuse": the message names it.
        PictureError: a label file that cannot be read, where classes must be counted.
        UnknownNameError: no such kind.
    """
    if kind is not None and kind not in get_args(SegmentKind):
        raise UnknownNameError("kind of segments", kind, get_args(SegmentKind))
    if bad not in get_args(BadObjects):
        raise UnknownNameError("value of bad", bad, get_args(BadObjects))
    meaning = {"classes": classes, "void": void, "offset": offset, "mapping": mapping, "colours": colours}
    said = [name for name, value in (*meaning.items(), ("labels", labels), ("things", things)) if value is not None]
    if path == SCENES:
        _no_use(said, "Drawn scenes say everything themselves")
        drawn = _scenes(kind or "semantic")
        return drawn if held_out is None else with_held_out(drawn, held_out, path)
    source = open_source(path)
    kinds, pairs = _kinds(source, labels)
    all_in_coco = kind == "panoptic" and "instance" in kinds and pairs is None  # things and stuff in its form of objects
    if not kinds or (kind is not None and kind not in kinds and not all_in_coco):
        wanted = "no segmented pictures" if kind is None else f"nothing that can be read as {kind}"
        raise UsageError(
            f"{path} holds {wanted}: pictures with label files (images/a.jpg and labels/a.png), "
            "annotations/instances_*.json or annotations/panoptic_*.json (COCO)."
        )
    chosen = kind or kinds[0]
    shown = Path(str(path)).name or str(path)
    if pairs is not None:
        _no_use([name for name in said if name == "things"], "Label files do not tell things from stuff")
        if chosen == "semantic":
            splits = _of_classes(source, pairs, shown, bad, meaning)
        else:
            _no_use([name for name in said if name in ("offset", "mapping", "colours")], "Label files that number objects")
            splits = _of_instances(source, pairs, shown, bad, classes, void)
    elif "panoptic" in kinds and chosen != "instance":
        _no_use([name for name in said if name not in ("labels", "things")], "COCO's JSON says what its maps mean")
        splits = _of_panoptic(source, shown, bad, labels, things, chosen)
    else:
        _no_use([name for name in said if name != "things"], "COCO's JSON says what it holds")
        splits = _of_coco(path, bad, things, chosen)
    return splits if held_out is None else with_held_out(splits, held_out, path)


def _no_use(said: Sequence[str], why: str) -> None:
    """Refuse options that would count for nothing."""
    if said:
        raise UsageError(f"{why}: leave {', '.join(said)} out.")


def _scenes(kind: SegmentKind) -> SegmentSplits:
    """Drawn pictures, which need no file."""
    train, val = drawn_scenes(with_masks=kind == "instance")
    assumes = "The scenes are drawn, so that everything is known of every pixel."
    if kind == "instance":
        return SegmentSplits(kind=kind, assumes=assumes, train=train, val=val)
    return SegmentSplits(kind=kind, assumes=assumes, train=SegmentedScenes(scenes=train), val=SegmentedScenes(scenes=val))


def _refuse(problems: Sequence[Problem], bad: BadObjects) -> None:
    """End the reading where something is wrong, unless that is to be left out."""
    if problems and bad == "refuse":
        more = f" {len(problems) - 1:,} more have something wrong." if len(problems) > 1 else ""
        raise UsageError(
            f"{problems[0]}{more} Look with `vitral data check`, or leave them out: --bad-pictures skip (bad='skip')."
        )


def _stores(source: Source, pairs: Sequence[Pair]) -> dict[str, Any]:
    """What sets of label files have in common."""
    return {
        "names": tuple(pair.name for pair in pairs),
        "store": source.pictures([pair.name for pair in pairs]),
        "labels": source.pictures([pair.labels for pair in pairs]),
    }


def _of_classes(source: Source, pairs: Pairs, shown: str, bad: BadObjects, meaning: Mapping[str, Any]) -> SegmentSplits:
    """Pictures and label files of classes."""
    for split in pairs.splits:
        _refuse(pairs.problems.get(split, ()), bad)
    labelling = labelling_of(source, pairs, skip=bad == "skip", **meaning)
    sets = {
        split: ClassMaps(
            name=f"{shown}/{split}",
            labelling=labelling,
            problems=tuple(pairs.problems.get(split, ())),
            **_stores(source, listed),
        )
        for split, listed in pairs.splits.items()
    }
    return SegmentSplits(kind="semantic", assumes=f"{labelling} {labelling.doubt}".rstrip(), **sets)


def _of_instances(
    source: Source,
    pairs: Pairs,
    shown: str,
    bad: BadObjects,
    classes: Sequence[str] | None,
    void: Sequence[int | Sequence[int]] | None,
) -> SegmentSplits:
    """Pictures and label files that number objects."""
    names = tuple(classes) if classes is not None else (only_class(pairs),)
    if len(names) != 1:
        raise UsageError(f"Label files that number objects have one class; {len(names)} names came: {', '.join(names)}.")
    unknown = void_numbers(void)
    sets: dict[str, InstanceMaps] = {}
    for split, listed in pairs.splits.items():
        problems = tuple(pairs.problems.get(split, ()))
        _refuse(problems, bad)
        sets[split] = InstanceMaps(
            name=f"{shown}/{split}", classes=names, void=unknown, problems=problems, **_stores(source, listed)
        )
    nothing = ", ".join(map(str, unknown))
    assumes = f"Each number but 0{f' and {nothing}' if nothing else ''} is an object of its picture, all of them {names[0]}."
    return SegmentSplits(kind="instance", assumes=assumes, **sets)


def _of_coco(
    path: str | os.PathLike[str], bad: BadObjects, things: Sequence[str] | None, kind: SegmentKind
) -> SegmentSplits:
    """COCO's objects with their outlines; panoptic where stuff is among them."""
    objects = read_objects(path, format="coco", bad=bad)
    sets = {split: replace(cast(ListedObjects, one), with_masks=True) for split, one in objects.sets.items()}
    for split, one in sets.items():
        lacking = [place for place, end in enumerate(np.diff(one.table.shape_ends, prepend=0)) if not end]
        if lacking:
            sets[split] = _without(one, lacking, bad)
    first = next(iter(sets.values()))
    told = _things(first.classes, first.things, things)
    if kind == "panoptic" and told is None:
        raise UsageError(f"{path} does not say which categories are things (isthing). Say it: things=[…].")
    sets = {split: replace(one, things=told or ()) for split, one in sets.items()}
    assumes = "Polygons and run lengths are the pixels of objects; crowds are left out of what is taught."
    return SegmentSplits(kind=kind, assumes=assumes, **sets)


def _without(one: ListedObjects, lacking: Sequence[int], bad: BadObjects) -> ListedObjects:
    """A set without the objects of which nobody knows the pixels."""
    table, problems = one.table, []
    owners = np.searchsorted(table.starts, lacking, side="right") - 1
    for row, owner in zip(lacking, owners.tolist(), strict=True):
        reason = "It has no segmentation, neither polygons nor run lengths. Add one, or leave the object out."
        where = f"annotation {int(table.ids[row])}"
        problems.append(Problem(kind="malformed", file=one.name, annotation=where, picture=one.names[owner], reason=reason))
    _refuse(problems, bad)
    stays = np.ones(len(table.labels), dtype=bool)
    stays[list(lacking)] = False
    gone = np.concatenate([[0], np.cumsum(~stays)])
    return replace(
        one,
        table=replace(
            table,
            starts=table.starts - gone[table.starts],
            boxes=table.boxes[stays],
            labels=table.labels[stays],
            crowd=table.crowd[stays],
            areas=table.areas[stays],
            ids=table.ids[stays],
            shape_ends=table.shape_ends[stays],  # what is left out has no bytes
        ),
        problems=(*one.problems, *problems),
    )


def _things(classes: Sequence[str], told: tuple[bool, ...], named: Sequence[str] | None) -> tuple[bool, ...] | None:
    """Which classes are things, as the caller or the files say it."""
    if named is None:
        return told or None
    for name in named:
        if name not in classes:
            raise UnknownNameError("class", name, classes)
    return tuple(name in named for name in classes)


def _of_panoptic(
    source: Source, shown: str, bad: BadObjects, folder: str | None, things: Sequence[str] | None, kind: SegmentKind
) -> SegmentSplits:
    """COCO's panoptic maps."""
    sets: dict[str, PanopticMaps] = {}
    channels = ""
    for draft in read_panoptic(source, folder):
        _refuse(draft.problems, bad)
        told = _things(draft.known.names, draft.known.things, things)
        if told is None:
            raise UsageError(f"{source.shown} does not say which categories are things (isthing). Say it: things=[…].")
        channels = "their colours are ids of segments_info" if draft.segments is not None else "red is the category's id"
        sets[draft.split] = PanopticMaps(
            name=f"{shown}/{draft.split}",
            classes=draft.known.names,
            categories=draft.known.numbers,
            things=told,
            names=tuple(one.name for one in draft.images),
            store=source.pictures(draft.pictures),
            labels=source.pictures(draft.maps),
            sizes=np.array([one.size or (0, 0) for one in draft.images], dtype=np.int64).reshape(-1, 2),
            image_ids=np.array([one.id for one in draft.images], dtype=np.int64),
            table=_table(draft),
            problems=tuple(draft.problems),
        )
    ignore = next(iter(sets.values())).ignore
    assumes = f"Of the maps, {channels}, and black says that nothing is known (ignored: {ignore} in class maps)."
    return SegmentSplits(kind=kind, assumes=assumes, **sets)


def _table(draft: PanopticDraft) -> SegmentTable | None:
    """The segments of a split; None where its maps say themselves what they are."""
    if draft.segments is None:
        return None
    rows = [row for one in draft.segments for row in one]
    return SegmentTable(
        starts=np.cumsum([0, *map(len, draft.segments)], dtype=np.int64),
        numbers=np.array([number for number, _, _ in rows], dtype=np.int64),
        labels=np.array([label for _, label, _ in rows], dtype=np.int64),
        crowd=np.array([crowd for _, _, crowd in rows], dtype=bool),
    )
