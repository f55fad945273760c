"""COCO's format: one JSON file for each split (Lin et al. 2014, "Microsoft COCO", and cocodataset.org, "Data format").

```
annotations/instances_train2017.json    train2017/….jpg, images/train2017/….jpg or images/….jpg
train/_annotations.coco.json            train/….jpg
```

Boxes are xywh in pixels with continuous coordinates. Classes stand in the order of their ids, which may have gaps.
"""

from __future__ import annotations

import json
import posixpath
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from vitral.base.numbers import as_integer
from vitral.data.object_source import (
    Draft,
    Entry,
    Problem,
    ProblemKind,
    Row,
    Source,
    finite_number,
    is_picture,
    safe_name,
    split_of,
)
from vitral.data.tree import some
from vitral.errors import UsageError

__all__ = [
    "Categories",
    "Listed",
    "categories_of",
    "coco_files",
    "coco_json",
    "files_of_splits",
    "folders_with",
    "holds_coco",
    "images_of",
    "listed",
    "parsed",
    "read_coco",
    "whole_id",
]

_PREFIX, _BESIDE = "instances_", "_annotations.coco.json"
_BITS = 63  # of the largest id


def holds_coco(source: Source) -> bool:
    """Whether a source has a file of annotations of COCO's name."""
    return any(_is_annotation(posixpath.basename(name)) for name in source.tree.files)


def coco_files(source: Source) -> dict[str, str]:
    """The annotation file of each split, "train", "val" or "test".

    Raises:
        UsageError: two stand for one split, or one stands for none although there are several.
    """
    if source.only is not None:
        chosen = [source.only] if source.only.lower().endswith(".json") else []
    else:
        chosen = [name for name in source.tree.files if _is_annotation(posixpath.basename(name))]
    return files_of_splits(source, {name: _stem(name) for name in chosen})


def files_of_splits(source: Source, stems: Mapping[str, str]) -> dict[str, str]:
    """Files by the splits that they stand for, "train", "val" or "test".

    Args:
        source: the files.
        stems: what the name of each says of its split ("val2017").

    Raises:
        UsageError: two stand for one split, or one stands for none although there are several.
    """
    splits: dict[str, str] = {}
    for name, stem in stems.items():
        split = split_of(stem) or ("train" if len(stems) == 1 else None)
        if split is None:
            raise UsageError(
                f"{source.where(name)} stands for no split by its name (train, val or test), and it is not the only one. "
                "Name the file itself."
            )
        if split in splits:
            raise UsageError(
                f"{source.shown} holds {splits[split]!r} and {name!r}, which both mean the split {split}. "
                "Name the file that is meant."
            )
        splits[split] = name
    return splits


def _is_annotation(base: str) -> bool:
    return base == _BESIDE or (base.startswith(_PREFIX) and base.endswith(".json"))


def _stem(name: str) -> str:
    """What a file's name says of its split: "train2017"; beside pictures, its folder does."""
    folder, base = posixpath.split(name)
    return posixpath.basename(folder) if base == _BESIDE else base.removesuffix(".json").removeprefix(_PREFIX)


def read_coco(source: Source) -> list[Draft]:
    """The splits of a source in COCO's format.

    Raises:
        UsageError: a file that is no such JSON; splits whose classes differ; no pictures where they could be.
    """
    drafts = [_draft(source, name, split) for split, name in coco_files(source).items()]
    for other in drafts[1:]:
        if (other.classes, other.categories) != (drafts[0].classes, drafts[0].categories):
            differ = set(zip(drafts[0].classes, drafts[0].categories, strict=True)) ^ set(
                zip(other.classes, other.categories, strict=True)
            )
            raise UsageError(
                f"The categories of the splits {drafts[0].split} and {other.split} of {source.shown} differ: "
                f"{some(f'{number} {name}' for name, number in sorted(differ, key=lambda pair: pair[::-1]))}."
            )
    return drafts


def _draft(source: Source, name: str, split: str) -> Draft:
    """One annotation file."""
    shown = source.where(name)
    told = parsed(source.content(name), shown)
    known = categories_of(told, shown)
    images = images_of(told, shown)
    folder = _folder(source, name, [one.name for one in images])
    problems: list[Problem] = []
    entries: list[Entry] = []
    by_id: dict[int, Entry] = {}
    for one in images:
        entry = Entry(one.name, posixpath.join(folder, one.name), one.size, one.id, [], shown)
        entries.append(entry)
        by_id.setdefault(one.id, entry)
    place = {number: label for label, number in enumerate(known.numbers)}
    for annotation in listed(told, "annotations", shown):
        _add(annotation, by_id, place, shown, problems)
    return Draft(
        split=split,
        classes=known.names,
        categories=known.numbers,
        entries=entries,
        noun="annotation",
        problems=problems,
        things=known.things,
    )


class Categories(NamedTuple):
    """The categories of a file, in the order of their ids.

    Attributes:
        numbers: their ids.
        names: their names.
        things: which are things, where the file says it of each (`isthing`); else nothing.
    """

    numbers: tuple[int, ...]
    names: tuple[str, ...]
    things: tuple[bool, ...]


class Listed(NamedTuple):
    """A picture that a file lists.

    Attributes:
        name: its path from the folder of pictures.
        id: its number.
        size: (height, width) in pixels, where the file says it.
    """

    name: str
    id: int
    size: tuple[int, int] | None


def categories_of(told: Mapping[str, Any], shown: str) -> Categories:
    """The categories of a file.

    Raises:
        UsageError: one without a name or an id of its own.
    """
    ordered = sorted(
        (
            (whole_id(one, "id", f"A category of {shown}"), place, one)
            for place, one in enumerate(listed(told, "categories", shown))
        ),
        key=lambda found: found[:2],
    )
    numbers, classes = [number for number, _, _ in ordered], tuple(str(one.get("name")) for _, _, one in ordered)
    named = all(isinstance(one.get("name"), str) and one["name"] for _, _, one in ordered)
    if not named or len(set(numbers)) < len(numbers):
        raise UsageError(f"The categories of {shown} must each have a name and an id of their own.")
    if len(set(classes)) < len(classes):
        twice = sorted({one for one in classes if classes.count(one) > 1})
        raise UsageError(f"{shown} names a category twice: {some(twice)}.")
    said = all(one.get("isthing") in (0, 1) for _, _, one in ordered)
    return Categories(tuple(numbers), classes, tuple(bool(one["isthing"]) for _, _, one in ordered) if said else ())


def images_of(told: Mapping[str, Any], shown: str) -> list[Listed]:
    """The pictures of a file.

    Raises:
        UsageError: one without an id, or whose name is none or leads out of the source.
    """
    found = []
    for one in listed(told, "images", shown):
        name = safe_name(one.get("file_name"), f"An image of {shown}")
        number = whole_id(one, "id", f"The image {name} of {shown}")
        height, width = as_integer(one.get("height")), as_integer(one.get("width"))
        found.append(Listed(name, number, (height, width) if _is_side(height) and _is_side(width) else None))
    return found


def _add(one: dict[str, Any], by_id: dict[int, Entry], place: dict[int, int], shown: str, problems: list[Problem]) -> None:
    """Give an annotation to its picture, or say why not."""
    number = whole_id(one, "id", f"An annotation of {shown}")
    owner = as_integer(one.get("image_id"))
    entry = None if owner is None else by_id.get(owner)
    made = _row(one, number, entry, place)
    if isinstance(made, Row) and entry is not None:
        entry.rows.append(made)
    elif not isinstance(made, Row):
        picture, where = entry.name if entry else "", f"annotation {number}"
        problems.append(Problem(kind=made[0], file=shown, annotation=where, picture=picture, reason=made[1]))


def _row(one: dict[str, Any], number: int, entry: Entry | None, place: dict[int, int]) -> Row | tuple[ProblemKind, str]:
    """An annotation as an object; or what is wrong with it, and a sentence."""
    if entry is None:
        return "missing", f"It belongs to the image {repr(one.get('image_id'))[:40]}, which is not listed."
    sides = one.get("bbox")
    plain = isinstance(sides, list) and len(sides) == 4 and not any(isinstance(side, str) for side in sides)
    box = [finite_number(side) for side in sides or ()] if plain else [None]
    if None in box:
        return "malformed", f"Its bbox should be four numbers (x, y, width, height), but is {str(sides)[:80]}."
    category = as_integer(one.get("category_id"))
    if category is None or category not in place:
        return "unknown class", f"Its category_id is {repr(one.get('category_id'))[:40]}, which no category has."
    area = one.get("area")
    if area is not None and (finite_number(area) is None or isinstance(area, str) or area < 0):
        return "malformed", f"Its area is {str(area)[:40]}, which is no area."
    crowd = one.get("iscrowd")
    if crowd is not None and not (isinstance(crowd, int | float) and crowd in (0, 1)):
        return "malformed", f"Its iscrowd should be 0 or 1, but is {repr(crowd)[:40]}."
    try:
        shape = json.dumps(one["segmentation"], separators=(",", ":"), allow_nan=False) if one.get("segmentation") else ""
    except (ValueError, RecursionError):
        return "malformed", "Its segmentation holds numbers that are none (NaN or infinity)."
    x, y, width, height = (side or 0.0 for side in box)
    return Row(
        box=(x, y, x + width, y + height),
        label=place[category],
        place=number,
        crowd=bool(crowd),
        area=None if area is None else float(area),
        id=number,
        shape=shape,
    )


def parsed(content: bytes, shown: str) -> dict[str, Any]:
    """A file's JSON.

    Raises:
        UsageError: it is none, or no object.
    """
    try:
        told = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{shown} is no JSON, or a damaged one ({str(error)[:200]}).") from error
    if not isinstance(told, dict):
        raise UsageError(f"{shown} is no object with images, annotations and categories.")
    return told


def _is_side(length: int | None) -> TypeGuard[int]:
    """Whether something is the length of a picture's side."""
    return length is not None and 0 < length < 1 << 31


def listed(told: Mapping[str, Any], name: str, shown: str) -> list[dict[str, Any]]:
    """One of the lists of a file.

    Raises:
        UsageError: it is missing, or no list of objects.
    """
    listed = told.get(name)
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        came = "is missing" if name not in told else "is no list of objects"
        raise UsageError(f"{shown}: {name!r} {came}. COCO's files have images, annotations and categories.")
    return listed


def whole_id(one: Mapping[str, Any], name: str, what: str) -> int:
    """A whole number that must be there.

    Raises:
        UsageError: it is not; `what` tells whose.
    """
    whole = as_integer(one.get(name))
    if whole is None or whole < 0 or whole.bit_length() > _BITS:
        raise UsageError(f"{what} has no {name} that is a whole number from 0: {str(one.get(name))[:40]!r}.")
    return whole


def _folder(source: Source, name: str, names: list[str]) -> str:
    """The folder that the pictures lie in: of those where they could, the one that has most of the first ones.

    Raises:
        UsageError: none has any.
    """
    beside, stem = posixpath.dirname(name), _stem(name)
    above = posixpath.dirname(beside)
    tried = [posixpath.join(above, stem), posixpath.join(above, "images", stem), posixpath.join(above, "images"), beside]
    tried += [posixpath.join(above, split) for split in ("train", "val", "test") if split_of(stem) == split]
    tried += [posixpath.join(above, "images", split) for split in ("train", "val", "test") if split_of(stem) == split]
    tried += [above, posixpath.join(beside, stem), posixpath.join(beside, "images")]
    first = names[:100]
    counts = [sum(posixpath.join(folder, one) in source for one in first) for folder in tried]
    if first and not max(counts):
        elsewhere = folders_with(source, first, split_of(stem))
        if len(elsewhere) == 1:
            return next(iter(elsewhere))
        has = "holds no pictures" if not any(map(is_picture, source.tree.files)) else "holds none of them"
        listed = some(dict.fromkeys(folder or "." for folder in tried))
        raise UsageError(
            f"The pictures of {source.where(name)}, such as {first[0]!r}, are not there: {source.shown} {has} in {listed}."
        )
    return tried[counts.index(max(counts))]


def folders_with(source: Source, names: Sequence[str], split: str | None) -> dict[str, int]:
    """How many files of some names each folder of a source holds, of those that hold any.

    Args:
        source: the files.
        names: paths from such a folder.
        split: the split that they are of, where it is known; folders called after another one are left out.
    """
    counts: Counter[str] = Counter()
    wanted = {posixpath.basename(name): name for name in names}
    for file in source.tree.files:
        name = wanted.get(posixpath.basename(file))
        if name is not None and (file == name or file.endswith(f"/{name}")):
            counts[file[: -len(name)].rstrip("/")] += 1
    return {folder: count for folder, count in counts.items() if _may_be(folder, split)}


def _may_be(folder: str, split: str | None) -> bool:
    """Whether a folder could hold what is of a split: no part of it is called after another one."""
    named = {split_of(part.removeprefix("panoptic_")) for part in folder.split("/")}
    return split is None or named <= {None, split}


# -- writing ----------------------------------------------------------------------------------------------------------


def coco_json(entries: Iterable[Entry], classes: tuple[str, ...], categories: tuple[int, ...]) -> bytes:
    """An annotation file: read again, it gives the same boxes to the last bit, areas, ids, crowds and outlines.

    Args:
        entries: the pictures; each has a size, its objects a box in whole or in 32-bit numbers, an id and an area.
        classes: the names of the classes.
        categories: their ids.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for entry in entries:
        height, width = entry.size or (0, 0)
        images.append({"id": entry.image_id, "file_name": entry.name, "height": height, "width": width})
        for row in entry.rows:
            one: dict[str, Any] = {
                "id": row.id,
                "image_id": entry.image_id,
                "category_id": categories[row.label],
                "bbox": _xywh(row.box),
                "area": row.area,
                "iscrowd": int(row.crowd),
            }
            if row.shape:
                one["segmentation"] = json.loads(row.shape)
            annotations.append(one)
    named = [{"id": number, "name": name} for number, name in zip(categories, classes, strict=True)]
    told = {"images": images, "annotations": annotations, "categories": named}
    return json.dumps(told, separators=(",", ":"), allow_nan=False).encode()


def _xywh(box: tuple[float, float, float, float]) -> list[float]:
    """A box of 32-bit numbers as x, y, width and height in as few digits as give the same again."""
    # Differences of the shortest decimals are what a file had that said 12.3 and 4.56; in binary they would trail digits.
    low, high = [[Decimal(str(np.float32(side))) for side in half] for half in (box[:2], box[2:])]
    told = [float(one) for one in (*low, *(far - near for near, far in zip(low, high, strict=True)))]
    again = told[0] + told[2], told[1] + told[3]
    if all(np.float32(one) == np.float32(side) for one, side in zip(again, box[2:], strict=True)):
        return told
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]
