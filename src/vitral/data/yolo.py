"""YOLO's text format: one file of lines for each picture (Redmon and Farhadi 2018, darknet; as ultralytics lays it out).

```
data.yaml                         names, and the folders of the splits
images/train/a.jpg                labels/train/a.txt     or train/images/a.jpg and train/labels/a.txt, or without splits
```

A line is a class, counted from 0, and the box's centre and size in parts of the picture's: `3 0.5 0.25 0.1 0.2`. After the
class there may be an outline instead, x and y in turn: then the box is the one around it. A picture without a file has no
objects. Without a data.yaml the names are the lines of classes.txt, or else the numbers themselves.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import yaml  # type: ignore[import-untyped]

from vitral.base.image import read_header
from vitral.data.object_source import (
    Draft,
    Entry,
    Problem,
    Row,
    Source,
    finite_number,
    is_picture,
    safe_name,
    split_of,
)
from vitral.data.tree import SPLITS, some
from vitral.errors import PictureError, UsageError

__all__ = ["holds_yolo", "read_yolo", "yolo_lines", "yolo_page"]

_LARGEST = 1 << 20  # bytes of a data.yaml
_DEEPEST = 20  # lists in lists in one
_MOST = 1_000_000  # classes


def holds_yolo(source: Source) -> bool:
    """Whether a source has a data.yaml, or files of text in a folder `labels`."""
    if _page(source) is not None:
        return True
    return any(name.endswith(".txt") and "labels" in posixpath.dirname(name).split("/") for name in source.tree.files)


def _page(source: Source) -> str | None:
    """The file that names classes and splits, if there is one."""
    if source.only is not None:
        return source.only if source.only.lower().endswith((".yaml", ".yml")) else None
    found = [name for name in source.tree.files if posixpath.basename(name).lower() in ("data.yaml", "data.yml")]
    return min(found, key=lambda name: (name.count("/"), name), default=None)


def read_yolo(source: Source) -> list[Draft]:
    """The splits of a source in YOLO's format. The header of every picture is read, for its size.

    Raises:
        UsageError: a data.yaml or a file of lines that cannot be read; no pictures; no split where one is named.
    """
    page = _page(source)
    told = {} if page is None else _told(source, page)
    if told.get("kpt_shape"):  # whose lines could not be told from outlines
        raise UsageError(
            f"{source.where(page or '')} says that its lines hold key points (kpt_shape), which are not read here. Leave "
            "the class and the four numbers of the box in every line, and kpt_shape out."
        )
    splits = _named(source, page, told) if any(told.get(split) for split in SPLITS) else _found(source)
    if not any(splits.values()):
        raise UsageError(f"{source.shown} holds no pictures where YOLO's format has them (images/train/ or train/images/).")
    names = _names(source, page, told)
    drafts = []
    number = 0
    for split, pictures in splits.items():
        entries, problems = _entries(source, pictures, number)
        number += len(pictures)
        if split == next(iter(splits)):
            problems += _orphans(source, [name for listed in splits.values() for name in listed])
        drafts.append((split, entries, problems))
    highest = max((row.label for _, entries, _ in drafts for entry in entries for row in entry.rows), default=-1)
    if names is None:
        names = tuple(map(str, range(min(highest, _MOST) + 1)))
    return [
        Draft(
            split=split,
            classes=names,
            categories=tuple(range(len(names))),
            entries=[entry._replace(rows=_known(entry, len(names), problems)) for entry in entries],
            noun="line",
            problems=problems,
        )
        for split, entries, problems in drafts
    ]


# -- which pictures -----------------------------------------------------------------------------------------------------


def _told(source: Source, page: str) -> dict[str, Any]:
    """What a data.yaml says; every value is a text, since a class may be called "no" or "1.0"."""
    content, shown = source.content(page), source.where(page)
    if len(content) > _LARGEST:
        raise UsageError(f"{shown} has {len(content):,} bytes, more than a list of classes can need.")
    try:
        _check_events(content, shown)
        told = yaml.load(content, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{shown} is no YAML, or a damaged one ({' '.join(str(error).split())[:200]}).") from error
    if not isinstance(told, dict):
        raise UsageError(f"{shown} should have names: and train: at least.")
    return told


def _check_events(content: bytes, shown: str) -> None:
    """Refuse what would unfold without end, or take for ever to read."""
    depth = 0
    for event in yaml.parse(content):
        if isinstance(event, yaml.AliasEvent):
            raise UsageError(f"{shown} holds aliases (*name), which can unfold without end. Write the values out.")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise UsageError(f"{shown} holds lists in lists in lists, more than {_DEEPEST} deep. Names need one list.")


def _names(source: Source, page: str | None, told: dict[str, Any]) -> tuple[str, ...] | None:
    """The names of the classes; None where nobody says them."""
    shown = source.where(page) if page is not None else source.shown
    names = told.get("names")
    if isinstance(names, dict):
        if set(names) != set(map(str, range(len(names)))):
            raise UsageError(f"The names of {shown} must be numbered from 0 without a gap.")
        names = [names[str(number)] for number in range(len(names))]
    if names is None and page is None:
        lists = [name for name in source.tree.files if posixpath.basename(name) == "classes.txt"]
        if lists:
            shown = source.where(lists[0])
            names = _text(source.content(lists[0]), shown).strip().splitlines()
    if names is None:
        if page is not None:
            raise UsageError(f"{shown} has no names: it must name the classes.")
        return None
    if not isinstance(names, list) or not all(isinstance(one, str) and one.strip() for one in names):
        raise UsageError(f"The names of {shown} must be a list of texts.")
    cleaned = [one.strip() for one in names]
    if len(set(cleaned)) < len(cleaned):
        raise UsageError(f"{shown} names a class twice: {some(sorted({one for one in cleaned if cleaned.count(one) > 1}))}.")
    if "nc" in told and str(told["nc"]).strip() != str(len(cleaned)):
        raise UsageError(f"{shown} says that there are {str(told['nc'])[:20]} classes (nc), but names {len(cleaned)}.")
    return tuple(cleaned)


def _named(source: Source, page: str | None, told: dict[str, Any]) -> dict[str, list[str]]:
    """The pictures of each split that a data.yaml names: folders, or files that list pictures."""
    beside = posixpath.dirname(page or "")
    # `path` often holds a place on its author's machine; what is there below the file itself is what counts.
    base = str(told.get("path") or "").strip().replace("\\", "/").rstrip("/")
    splits: dict[str, list[str]] = {}
    for word, split in SPLITS.items():
        given = told.get(word)
        if not given:
            continue
        if split in splits:
            raise UsageError(f"{source.where(page or '')} names the split {split} twice, by two words. Keep one.")
        pictures: list[str] = []
        for place in given if isinstance(given, list) else [given]:
            if not isinstance(place, str):
                raise UsageError(f"{source.where(page or '')}: {word} must be a folder, or a file that lists pictures.")
            pictures += _at(source, beside, base, place.strip().replace("\\", "/").rstrip("/"), word, page or "")
        splits[split] = pictures
    order = list(dict.fromkeys(SPLITS.values()))
    return {split: splits[split] for split in order if split in splits}


def _at(source: Source, beside: str, base: str, place: str, word: str, page: str) -> list[str]:
    """The pictures at a place that a data.yaml names."""
    local = posixpath.basename(base) if base.startswith(("/", "..")) else base
    while place.startswith(("../", "./", "/")):  # what some exporters write, and what lies below the file itself
        place = place.split("/", 1)[1]
    for folder in dict.fromkeys((posixpath.join(beside, local), beside)):
        full = posixpath.normpath(posixpath.join(folder, place))
        full = "" if full == "." else full
        if full.startswith(".."):
            raise UsageError(f"{source.where(page)}: {word} leads out of its folder ({place!r}). Nothing was read.")
        if full.endswith(".txt") and full in source:
            lines = _text(source.content(full), source.where(full)).splitlines()
            listed = [safe_name(line.strip().removeprefix("./"), source.where(full)) for line in lines if line.strip()]
            return [posixpath.normpath(posixpath.join(posixpath.dirname(full), one)) for one in listed]
        inside = [name for name in source.below(full) if is_picture(name)]
        deeper = [name for name in inside if "images" in posixpath.dirname(name).split("/")]
        if inside:
            return deeper or inside
    raise UsageError(f"{source.where(page)} names {place!r} for {word}, but there are no pictures.")


def _found(source: Source) -> dict[str, list[str]]:
    """The pictures of each split where folders alone say which is which."""
    splits: dict[str, list[str]] = {}
    for name in source.tree.files:
        folders = posixpath.dirname(name).split("/")
        if is_picture(name) and "images" in folders:
            splits.setdefault(next((split for one in folders if (split := split_of(one))), "train"), []).append(name)
    order = list(dict.fromkeys(SPLITS.values()))
    return {split: splits[split] for split in order if split in splits}


def _label_file(picture: str) -> str:
    """The file of a picture's lines: the last folder `images` becomes `labels`."""
    folder, base = posixpath.split(picture)
    parts = folder.split("/") if folder else []
    if "images" in parts:
        last = len(parts) - 1 - parts[::-1].index("images")
        parts[last] = "labels"
    return posixpath.join(*parts, f"{posixpath.splitext(base)[0]}.txt")


# -- what is in them ----------------------------------------------------------------------------------------------------


def _entries(source: Source, pictures: Sequence[str], first: int) -> tuple[list[Entry], list[Problem]]:
    """The pictures of a split with their lines; labels are not held against the classes yet."""
    store = source.pictures(pictures)
    entries: list[Entry] = []
    problems: list[Problem] = []
    top = _common(pictures)
    for place, picture in enumerate(pictures):
        name = picture[len(top) :]
        notes = _label_file(picture)
        shown = source.where(notes)
        try:
            size = read_header(store.source(place), name=store.where(place)).size if picture in source else None
        except PictureError as error:
            problems.append(Problem(kind="unreadable", file=error.name, annotation="", picture=name, reason=error.reason))
            continue
        rows: list[Row] = []
        if notes in source and size is not None:
            rows = _rows(_text(source.content(notes), shown), size, shown, name, problems)
        entries.append(Entry(name, picture, size, first + place + 1, rows, shown))
    return entries, problems


def _common(pictures: Sequence[str]) -> str:
    """The folders that all pictures of a split share, with a slash at the end."""
    folders = posixpath.commonpath([f"/{posixpath.dirname(name)}" for name in pictures]) if pictures else "/"
    return folders.strip("/") + "/" if folders != "/" else ""


def _orphans(source: Source, pictures: Sequence[str]) -> list[Problem]:
    """Lines that no picture has: read by nobody, they would make pictures with objects into pictures without.

    Args:
        source: the files.
        pictures: those of all splits.
    """
    # A picture that no split names is left out on purpose, and its lines with it.
    expected = {_label_file(picture) for picture in (*pictures, *filter(is_picture, source.tree.files))}
    folders = {posixpath.dirname(_label_file(picture)) for picture in pictures}
    empty = {posixpath.splitext(posixpath.basename(name))[0]: name for name in pictures if _label_file(name) not in source}
    found = []
    for name in source.tree.files:
        folder, base = posixpath.split(name)
        stem, suffix = posixpath.splitext(base)
        if suffix.lower() != ".txt" or name in expected or base == "classes.txt":  # which labelImg leaves among the lines
            continue
        labels = "labels" in folder.split("/")
        picture = empty.get(stem, "")
        if picture and (labels or folder == posixpath.dirname(picture)):
            reason = f"Its picture's lines are looked for in {_label_file(picture)}. Move it there."
        elif labels and folder in folders:
            picture, reason = "", "There is no picture of that name."
        else:  # of a split whose pictures are elsewhere, or no lines at all
            continue
        found.append(Problem(kind="missing", file=source.where(name), annotation="", picture=picture, reason=reason))
    return found


def _rows(text: str, size: tuple[int, int], shown: str, picture: str, problems: list[Problem]) -> list[Row]:
    """The lines of a file as objects."""
    height, width = size
    rows: list[Row] = []
    for number, line in enumerate(text.splitlines(), start=1):
        parts = line.split()
        if not parts:
            continue
        values = [finite_number(part) for part in parts]
        label = int(parts[0]) if parts[0].isascii() and parts[0].isdecimal() and len(parts[0]) < 10 else None
        outline = len(parts) >= 7 and len(parts) % 2 == 1
        if None in values or label is None or not (len(parts) == 5 or outline):
            reason = f"It should be a class and four numbers from 0 to 1, but is {line[:60]!r}."
            where = f"line {number}"
            problems.append(Problem(kind="malformed", file=shown, annotation=where, picture=picture, reason=reason))
            continue
        sides = np.array(values[1:], dtype=np.float64)
        if outline:
            points = sides.reshape(-1, 2) * (width, height)
            low, high = points.min(0), points.max(0)
            shape = json.dumps([points.reshape(-1).tolist()], separators=(",", ":"))
        else:
            low, high = ((sides[:2] + sign * sides[2:] / 2) * (width, height) for sign in (-1, 1))
            shape = ""
        rows.append(Row((*low.tolist(), *high.tolist()), label, number, shape=shape))
    return rows


def _known(entry: Entry, count: int, problems: list[Problem]) -> list[Row]:
    """The objects of classes that there are; the others become problems."""
    rows = []
    for row in entry.rows:
        if row.label < count:
            rows.append(row)
        else:
            where, reason = f"line {row.place}", f"Its class is {row.label}, but there are {count}, counted from 0."
            problems.append(
                Problem(kind="unknown class", file=entry.file, annotation=where, picture=entry.name, reason=reason)
            )
    return rows


def _text(content: bytes, shown: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{shown} is not UTF-8. Save the file as UTF-8.") from error


# -- writing ----------------------------------------------------------------------------------------------------------


def yolo_lines(entry: Entry) -> bytes:
    """A picture's lines: read again, they give the same boxes to the last bit.

    Args:
        entry: the picture; it has a size, its objects boxes in 32-bit numbers.
    """
    lines = [f"{row.label} {' '.join(_relative(row.box, entry.size or (1, 1)))}\n" for row in entry.rows]
    return "".join(lines).encode()


def _relative(box: tuple[float, float, float, float], size: tuple[int, int]) -> Iterable[str]:
    """Centre and size in parts of the picture's, in as few digits as give the same box again."""
    whole = np.array([size[1], size[0]], dtype=np.float64)
    corners = np.array(box, dtype=np.float64).reshape(2, 2)
    sides = np.concatenate([corners.sum(0) / 2 / whole, (corners[1] - corners[0]) / whole])
    for digits in (6, 9, 12, 15, 17):
        told = [f"{side:.{digits}f}" for side in sides.tolist()]
        again = np.array(told, dtype=np.float64)
        pixels = np.stack([again[:2] - again[2:] / 2, again[:2] + again[2:] / 2]) * whole
        if (pixels.astype(np.float32) == corners.astype(np.float32)).all():
            return told
    return list(map(repr, sides.tolist()))


def yolo_page(classes: tuple[str, ...], splits: Sequence[str]) -> bytes:
    """The data.yaml of a folder with images/<split>/ and labels/<split>/."""
    told = {"path": ".", **{split: f"images/{split}" for split in splits}, "nc": len(classes)}
    lines = [f"{name}: {value}\n" for name, value in told.items()]
    return "".join(
        [
            *lines,
            "names:\n",
            *(f"  {number}: {json.dumps(name, ensure_ascii=False)}\n" for number, name in enumerate(classes)),
        ]
    ).encode()
