"""Files of annotated pictures before they are understood, and what they say once they are, whatever their format.

```
open_source(path) ──> Source      the names of all files, of a folder or an archive, and their contents
    └─ coco, voc, yolo ──> Draft  a split as its files say it: pictures, the objects of each, and what is wrong
```

`vitral.data.objects` makes sets of drafts, and of sets drafts again to write them.
"""

from __future__ import annotations

import math
import os
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from vitral.base.image import PICTURE_SUFFIXES, PictureSource
from vitral.base.numbers import as_integer
from vitral.data.archive import Archive, is_archive, open_archive
from vitral.data.pictures import Files, PictureStore
from vitral.data.tree import SPLITS, Tree, walk
from vitral.errors import PictureError, UsageError

__all__ = [
    "Chosen",
    "Draft",
    "Entry",
    "Problem",
    "ProblemKind",
    "Row",
    "Source",
    "chosen_places",
    "finite_number",
    "is_picture",
    "open_source",
    "out_of_picture",
    "outside",
    "problems_of",
    "safe_name",
    "split_of",
]

ProblemKind = Literal["malformed", "unknown class", "empty", "outside", "duplicate", "missing", "unreadable", "size"]
"""What can be wrong with an annotation or its picture.

"malformed": numbers that are none; "unknown class"; "empty": a box without area; "outside": one that reaches more than a
pixel beyond its picture; "duplicate": an id, or a picture, that is there twice; "missing": a file that is not there;
"unreadable": one that is no picture; "size": a picture of another size than its annotation says.
"""

_SLACK = 1.0  # pixels that a box may reach beyond its picture: how files round, and count from 0 or 1


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something wrong in annotated pictures.

    Attributes:
        kind: what.
        file: the file that says it, as messages call it.
        annotation: which part of that file ("annotation 42"); "" for all of it.
        picture: the picture it is about, as its file calls it; "" where there is none.
        reason: a sentence.
    """

    kind: ProblemKind
    file: str
    annotation: str
    picture: str
    reason: str

    def __str__(self) -> str:
        where = f"{self.file}, {self.annotation}" if self.annotation else self.file
        apart = self.picture and not self.file.endswith(self.picture)  # else the file is the picture itself
        return f"{where} ({self.picture}): {self.reason}" if apart else f"{where}: {self.reason}"


class Row(NamedTuple):
    """An object as a file says it.

    Attributes:
        box: xyxy in pixels.
        label: its class, a place in the classes.
        place: its id, or its number in its file, as messages call it.
        crowd: see `vitral.data.objects.Annotations`.
        area: in pixels; None: that of the box.
        id: its id; None: it has none of its own.
        shape: the JSON of its outline or its pixels; "" where there is none.
    """

    box: tuple[float, float, float, float]
    label: int
    place: int
    crowd: bool = False
    area: float | None = None
    id: int | None = None
    shape: str = ""


class Entry(NamedTuple):
    """A picture as a file says it.

    Attributes:
        name: what the file calls it.
        path: where it lies in the source.
        size: (height, width) in pixels, where the file says it.
        image_id: its number.
        rows: its objects.
        file: the file that lists its objects, as messages call it.
    """

    name: str
    path: str
    size: tuple[int, int] | None
    image_id: int
    rows: list[Row]
    file: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Draft:
    """A split as its files say it.

    Attributes:
        split: "train", "val" or "test".
        classes: the names of the classes.
        categories: the number that each has in its files.
        entries: the pictures.
        noun: what messages call an object in such a file: "annotation", "object" or "line".
        problems: what is wrong with objects and pictures that are in no entry for that reason.
        things: which classes are things and not stuff, where the files say so.
    """

    split: str
    classes: tuple[str, ...]
    categories: tuple[int, ...]
    entries: list[Entry]
    noun: str
    problems: list[Problem] = field(default_factory=list)
    things: tuple[bool, ...] = ()


# -- sources ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Source:
    """Files below a root: a folder's or an archive's.

    Attributes:
        shown: what messages call the root.
        tree: the names in it that are not hidden.
        archive: the archive; None for a folder.
        only: the file that was named itself, if one was, from the root.
    """

    shown: str
    tree: Tree
    archive: Archive | None = None
    only: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "_files", frozenset(self.tree.files))

    def __contains__(self, name: str) -> bool:
        return name in self._files  # type: ignore[attr-defined]

    def where(self, name: str) -> str:
        """What messages call a file."""
        return str(Path(self.shown) / name)

    def content(self, name: str) -> bytes:
        """A file's content.

        Raises:
            UsageError: it cannot be read.
        """
        try:
            if self.archive is not None:
                return self.archive.select([name]).source(0)
            return Path(os.path.expanduser(self.shown), name).read_bytes()  # noqa: PTH111
        except PictureError as error:
            raise UsageError(str(error)) from error
        except OSError as error:
            raise UsageError(f"{self.where(name)} cannot be read ({error.strerror or error}).") from error

    def pictures(self, names: Sequence[str]) -> PictureStore:
        """Where pictures of these names lie, whether or not they are there."""
        if self.archive is not None:
            return self.archive.select(names)
        return Files(Path(os.path.expanduser(self.shown)), tuple(names))  # noqa: PTH111

    def below(self, folder: str) -> Iterator[str]:
        """The files in a folder and deeper; its name ends with no slash, and "" is the root."""
        prefix = f"{folder}/" if folder else ""
        return (name for name in self.tree.files if name.startswith(prefix))


def open_source(path: str | os.PathLike[str]) -> Source:
    """The files of a folder, a tar archive, or around a file of annotations (.json, .yaml).

    Raises:
        UsageError: there is nothing, or nothing of these.
    """
    shown = str(path)
    root = Path(os.path.expanduser(path))  # noqa: PTH111 - unlike pathlib's, it lets a stranger's home be
    if root.is_dir():
        return Source(shown, walk(root))
    if not root.is_file():
        kind = "is no file or folder" if root.exists() else "is not there"
        raise UsageError(
            f"{shown} {kind}. Give a folder or a tar archive of annotated pictures, or their annotations' file."
        )
    if root.suffix.lower() in (".json", ".yaml", ".yml"):
        # What a file names lies beside it; COCO's lies in a folder beside that of the pictures.
        top = Path(shown).parent
        if root.suffix.lower() == ".json" and top.name == "annotations":
            top = top.parent
        return Source(str(top), walk(Path(os.path.expanduser(top))), only=Path(shown).relative_to(top).as_posix())  # noqa: PTH111
    try:
        packed = is_archive(root)
    except OSError as error:
        raise UsageError(f"{shown} cannot be read ({error.strerror or error}).") from error
    if not packed:
        raise UsageError(f"{shown} is neither a folder nor a tar archive, nor a file of annotations (.json, .yaml).")
    archive = open_archive(root, shown)
    return Source(shown, archive.tree, archive)


@dataclass(frozen=True, eq=False)
class Chosen:
    """Some of the pictures of a store, which is one too.

    Args:
        store: where they lie.
        places: which, in their order.
    """

    store: PictureStore
    places: tuple[int, ...] = field(repr=False)

    @property
    def names(self) -> Sequence[str]:
        """What they are called in their source."""
        return tuple(self.store.names[place] for place in self.places)

    def where(self, place: int) -> str:
        """What messages call one of them."""
        return self.store.where(self.places[place])

    def source(self, place: int) -> PictureSource:
        """What `read_picture` reads one of them from."""
        return self.store.source(self.places[place])


def chosen_places(indices: Sequence[int] | np.ndarray, name: str, count: int) -> tuple[int, ...]:
    """The pictures that are asked for, as Python's numbers.

    Args:
        indices: which, from 0.
        name: what messages call the set that they are of.
        count: how many it has.

    Raises:
        UsageError: an index that is no whole number, or for which there is no picture.
    """
    chosen: list[int] = []
    for given in indices.tolist() if isinstance(indices, np.ndarray) else indices:
        place = as_integer(given)
        if place is None or not 0 <= place < count:
            raise UsageError(f"{name} has pictures 0 to {count - 1}; {given!r} is none of them.")
        chosen.append(place)
    return tuple(chosen)


def is_picture(name: str) -> bool:
    """Whether a name ends like a picture's."""
    return posixpath.splitext(name)[1].lower() in PICTURE_SUFFIXES


def split_of(name: str) -> str | None:
    """The split that a name begins with ("train2017", "valid"), if it does."""
    lowered = name.lower()
    found = [word for word in SPLITS if lowered.startswith(word)]
    rest = lowered[len(max(found, key=len)) :] if found else ""
    return SPLITS[max(found, key=len)] if found and not rest[:1].isalpha() else None


def safe_name(name: Any, what: str) -> str:
    """A picture's name from a file of strangers, which must not lead out of the source.

    Raises:
        UsageError: it does, or it is none; `what` tells where it stands.
    """
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise UsageError(f"{what} names no picture: {name!r}.")
    plain = posixpath.normpath(name.replace("\\", "/"))
    if plain.startswith(("/", "../")) or plain == ".." or plain[1:2] == ":":
        raise UsageError(f"{what} names a picture that leads out of its folder: {name!r}. Nothing was read.")
    return plain


def finite_number(value: Any) -> float | None:
    """A value of JSON or a text as a number; None if it is none, NaN, or infinite."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and abs(number) < 1e12 else None


# -- what is wrong ----------------------------------------------------------------------------------------------------


def problems_of(draft: Draft, known: Iterable[str] | None) -> tuple[list[Problem], list[Entry]]:
    """What is wrong with a draft, and its pictures and objects with which nothing is.

    Args:
        draft: as its files say it.
        known: the files of the source; None where any may be there.
    """
    there = None if known is None else frozenset(known)
    found, sound = list(draft.problems), []
    ids: set[int] = set()
    names: set[str] = set()
    numbers: set[int] = set()
    for entry in draft.entries:
        trouble: tuple[ProblemKind, str] | None = None
        if there is not None and entry.path not in there:
            trouble = "missing", f"There is no picture {entry.path}."
        elif entry.name in names:
            trouble = "duplicate", "The picture is there twice."
        elif entry.image_id in numbers:
            trouble = "duplicate", f"Another picture has its id {entry.image_id} too."
        names.add(entry.name)
        numbers.add(entry.image_id)
        if trouble is not None:
            found.append(Problem(kind=trouble[0], file=entry.file, annotation="", picture=entry.name, reason=trouble[1]))
        fine: list[Row] = []
        for row in entry.rows:
            wrong = _wrong(row, entry.size, ids)
            if row.id is not None:
                ids.add(row.id)
            if wrong is None:
                fine.append(row)
            else:
                where = f"{draft.noun} {row.place}"
                found.append(Problem(kind=wrong[0], file=entry.file, annotation=where, picture=entry.name, reason=wrong[1]))
        if trouble is None:
            sound.append(entry if len(fine) == len(entry.rows) else entry._replace(rows=fine))
    return found, sound


def outside(box: Sequence[float], size: tuple[int, int]) -> bool:
    """Whether a box xyxy reaches more than a pixel out of a picture of (height, width): less is how files round."""
    return min(box[:2]) < -_SLACK or box[2] > size[1] + _SLACK or box[3] > size[0] + _SLACK


def _wrong(row: Row, size: tuple[int, int] | None, ids: set[int]) -> tuple[ProblemKind, str] | None:
    """What is wrong with an object, if anything is."""
    x0, y0, x1, y1 = row.box
    if row.id is not None and row.id in ids:
        return "duplicate", f"Another annotation has the id {row.id} too."
    if not (np.float32(x1) > np.float32(x0) and np.float32(y1) > np.float32(y0)):
        return "empty", f"Its box is {x1 - x0:g} pixels wide and {y1 - y0:g} high, so there is nothing in it."
    if size is not None and outside(row.box, size):
        return "outside", out_of_picture(row.box, size)
    return None


def out_of_picture(box: Sequence[float], size: tuple[int, int]) -> str:
    """The sentence about a box that is `outside`."""
    return (
        f"Its box, from ({box[0]:g}, {box[1]:g}) to ({box[2]:g}, {box[3]:g}), reaches out of the picture, which is "
        f"{size[1]} pixels wide and {size[0]} high."
    )
