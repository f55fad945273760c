"""A tree of files, of a folder or of an archive, read as splits and classes.

```
root/<class>/….jpg                        classes are folders, sorted by name with numbers by their value
root/{train,val,test}/<class>/….jpg       the same for each split; val may be called valid or validation
```

Pictures may lie deeper: everything below a class folder belongs to that class. Names that begin with a dot, and what file
managers leave behind, are passed over. Other files may stand beside the class folders (a README, a licence), but not in
them: what is neither a picture nor hidden is refused by name, since leaving it out might leave out a sample.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from vitral.base.image import PICTURE_SUFFIXES
from vitral.errors import UnknownNameError, UsageError

__all__ = [
    "SPLITS",
    "WHOLE",
    "Listing",
    "Tree",
    "check_classes",
    "chosen_split",
    "class_folders",
    "hidden",
    "natural",
    "only_folders",
    "some",
    "walk",
]

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""The names that a split may have, in lower case, and the one that it has here."""

WHOLE = "all"
"""The name of the only split of a source that has none."""

_S = TypeVar("_S")

_LITTER = frozenset({"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini"})


@dataclass(frozen=True)
class Tree:
    """The names below a root, with forward slashes; hidden ones are left out.

    Attributes:
        files: every file.
        folders: every folder; those that files lie in need not be named.
    """

    files: tuple[str, ...]
    folders: tuple[str, ...]


@dataclass(frozen=True)
class Listing:
    """What a source says about its pictures.

    Attributes:
        classes: the names of the classes, in the order of the labels.
        splits: the pictures of each split, in order: name and label. Without splits there is one, called `WHOLE`.
    """

    classes: tuple[str, ...]
    splits: Mapping[str, list[tuple[str, int]]]


@dataclass
class _Split:
    """One split as it is found: its class folders, its pictures by class folder, and what should not be there."""

    classes: set[str] = field(default_factory=set)
    pictures: list[tuple[str, str]] = field(default_factory=list)
    homeless: list[str] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)


def natural(name: str) -> tuple[tuple[tuple[int | str, ...], ...], str]:
    """A key that sorts names as people do: numbers by their value, all else by its code points.

    So "2" comes before "10", and "class 9" before "class 10"; what reads the same ("1", "01") keeps a fixed order.
    """
    parts: list[tuple[int | str, ...]] = []
    for place, part in enumerate(re.split(r"([0-9]+)", name)):
        digits = part.lstrip("0")
        parts.append((len(digits), digits) if place % 2 else (part,))
    return tuple(parts), name


def some(names: Iterable[str], most: int = 10) -> str:
    """The first few of many names, and how many more there are."""
    listed = list(names)
    shown = ", ".join(map(repr, listed[:most]))
    return f"{shown} and {len(listed) - most:,} more" if len(listed) > most else shown


def hidden(name: str) -> bool:
    """Whether a path has a part that begins with a dot, or that a file manager left behind."""
    return any(part.startswith(".") or part.lower() in _LITTER for part in name.split("/"))


def walk(root: Path) -> Tree:
    """Everything below a folder that is not hidden, links to folders followed.

    Raises:
        UsageError: a folder that cannot be listed, or a link that leads back to where it came from.
    """
    files: list[str] = []
    folders: list[str] = []
    real = os.path.realpath(root)
    waiting: list[tuple[str, str, str, tuple[str, ...]]] = [(str(root), "", real, (real,))]
    while waiting:
        folder, prefix, real, above = waiting.pop()
        try:
            with os.scandir(folder) as scanned:
                entries = [entry for entry in scanned if not hidden(entry.name)]
        except OSError as error:
            raise UsageError(f"The folder {folder} cannot be listed ({error.strerror or error}).") from error
        for entry in entries:
            if not _leads_to_folder(entry):
                files.append(prefix + entry.name)
                continue
            there = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(real, entry.name)  # noqa: PTH118
            if there in above:
                raise UsageError(f"The link {entry.path} leads back to {there}, round and round. Remove it.")
            folders.append(prefix + entry.name)
            waiting.append((entry.path, f"{prefix}{entry.name}/", there, (*above, there)))
    return Tree(tuple(sorted(files)), tuple(sorted(folders)))


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder, or a link to one; a link to nothing is a file that reading will complain about."""
    try:
        return entry.is_dir()
    except OSError:  # links that only lead to each other
        return False


def class_folders(tree: Tree, shown: str, top: str = "") -> Listing:
    """Read a tree of class folders, with or without splits.

    Args:
        tree: the names.
        shown: what messages call the root.
        top: the folder in the tree that is taken for the root, ending with a slash; "" for the root itself.

    Raises:
        UsageError: it cannot be read as one: no class folders, no pictures, pictures outside of a class, files in a class
            that are no pictures, splits whose classes differ, or folders that could be splits as well as classes.
    """
    files = [name for name in tree.files if name.startswith(top)]
    folders = [name for name in tree.folders if name.startswith(top)]
    parts_of = {name: name[len(top) :].split("/") for name in (*files, *folders)}
    first = {parts_of[name][0] for name in folders} | {parts_of[name][0] for name in files if len(parts_of[name]) > 1}
    directly = {parts_of[name][0] for name in files if len(parts_of[name]) == 2 and _is_picture(name)}
    splits = _split_folders(first, directly, shown)
    found: dict[str, _Split] = {split: _Split() for split in splits.values()} or {WHOLE: _Split()}
    depth = 1 if splits else 0  # how many folders lie above the class folders
    for name in folders:
        parts = parts_of[name]
        if len(parts) > depth:
            found[splits.get(parts[0], WHOLE)].classes.add(parts[depth])
    for name in files:
        parts = parts_of[name]
        # What lies directly in a root with splits belongs to none of them; a picture there is one too many in any.
        split = found[splits[parts[0]] if splits and len(parts) > 1 else next(iter(found))]
        if len(parts) <= depth + 1:
            if _is_picture(name):
                split.homeless.append(name)
        elif _is_picture(name):
            split.classes.add(parts[depth])
            split.pictures.append((parts[depth], name))
        else:
            split.strays.append(name)
    return _listing(found, shown)


def _is_picture(name: str) -> bool:
    """Whether a name ends like a picture's."""
    return os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES  # noqa: PTH122 - called once for each of a million names


def _split_folders(folders: set[str], directly: set[str], shown: str) -> dict[str, str]:
    """Which folders of a root are splits, by the split; none of them where the folders are classes.

    They are splits if all of them are called so. A class of trains beside cars and buses stays a class.
    """
    named = {folder: SPLITS[folder.lower()] for folder in sorted(folders) if folder.lower() in SPLITS}
    others = sorted(folders - named.keys())
    unclear = [folder for folder in named if folder not in directly]
    if others and unclear:
        raise UsageError(
            f"{shown} holds folders called like splits ({some(unclear)}) beside others ({some(others)}), so they could be "
            "splits or classes. Keep splits and other folders apart."
        )
    if others:
        return {}
    for split in named.values():
        same = [folder for folder, meant in named.items() if meant == split]
        if len(same) > 1:
            raise UsageError(f"{shown} holds {' and '.join(map(repr, same))}, which both mean the split {split}. Keep one.")
    order = list(dict.fromkeys(SPLITS.values()))
    return dict(sorted(named.items(), key=lambda item: order.index(item[1])))


def only_folders(tree: Tree, folder: str) -> bool:
    """Whether a folder (its name ends with a slash; "" is the root) holds folders, and no pictures beside them."""
    below = [name[len(folder) :] for name in tree.files if name.startswith(folder)]
    deep = any("/" in name for name in below) or any(name.startswith(folder) for name in tree.folders)
    return deep and not any(_is_picture(name) for name in below if "/" not in name)


def _listing(found: Mapping[str, _Split], shown: str) -> Listing:
    """The splits in order, if nothing about them is wrong."""
    homeless = sorted(name for split in found.values() for name in split.homeless)
    if homeless:
        raise UsageError(
            f"In {shown}, {_counted(homeless, 'picture lies', 'pictures lie')} in no class folder: {some(homeless)}. "
            "A class is a folder: root/<class>/picture.jpg, or root/train/<class>/picture.jpg."
        )
    strays = sorted(name for split in found.values() for name in split.strays)
    if strays:
        raise UsageError(
            f"In the class folders of {shown}, {_counted(strays, 'file is no picture', 'files are no pictures')} by the "
            f"suffix: {some(strays)}. Move what is none, and give pictures the suffix of their format."
        )
    for name, split in found.items():
        if not split.pictures:
            part = shown if name == WHOLE else f"The split {name} of {shown}"
            empty = (
                f"Its class folders are empty ({some(sorted(split.classes))})"
                if split.classes
                else "It has no class folders"
            )
            raise UsageError(f"{part} holds no pictures. {empty}; expected root/<class>/picture.jpg.")
        # A class of its own, with nothing but folders in it, is a root that was named one folder too high.
        if len(split.classes) == 1 and not any(file.split("/")[-2] == kind for kind, file in split.pictures):
            raise UsageError(
                f"All pictures of {shown} lie in folders of its only folder {min(split.classes)!r}. If those are the "
                "classes, name that folder."
            )
    classes = {name: tuple(sorted(split.classes, key=natural)) for name, split in found.items()}
    check_classes(classes, shown)
    shared = next(iter(classes.values()))
    label = {name: place for place, name in enumerate(shared)}
    return Listing(
        shared,
        {
            name: [(file, label[kind]) for kind, file in sorted(split.pictures, key=lambda pair: (label[pair[0]], pair[1]))]
            for name, split in found.items()
        },
    )


def check_classes(classes: Mapping[str, Iterable[str]], shown: str) -> None:
    """Refuse splits that do not have the same classes, in whatever order.

    Args:
        classes: the classes of each split, by what messages call it; all are held against the first.
        shown: what messages call the source.

    Raises:
        UsageError: listing the differences.
    """
    (first, known), *others = ((name, set(names)) for name, names in classes.items())
    for name, names in others:
        if names != known:
            only = [
                f"only in {where}: {some(sorted(left, key=natural))}"
                for where, left in ((first, known - names), (name, names - known))
                if left
            ]
            raise UsageError(f"The classes of {first} and {name} in {shown} differ; {'; '.join(only)}.")


def _counted(names: list[str], one: str, many: str) -> str:
    """A number with its noun and verb."""
    return f"1 {one}" if len(names) == 1 else f"{len(names):,} {many}"


def chosen_split(sets: Mapping[str, _S], split: str | None, path: object) -> _S:
    """One of the splits of a source.

    Args:
        sets: all of them by name.
        split: which, by one of the names in `SPLITS`; None where there is only one.
        path: what messages call the source.

    Raises:
        UsageError: there are several splits and none was named, or not the one that was.
        UnknownNameError: there is no such split anywhere.
    """
    if split is None:
        if len(sets) > 1:
            raise UsageError(f"{path} has the splits {', '.join(sets)}. Say which one is meant.")
        return next(iter(sets.values()))
    if split.lower() not in SPLITS:
        raise UnknownNameError("split", split, SPLITS)
    wanted = SPLITS[split.lower()]
    if wanted not in sets:
        raise UsageError(f"{path} has no split {wanted}; it has {', '.join(sets) if WHOLE not in sets else 'none'}.")
    return sets[wanted]
