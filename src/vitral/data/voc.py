"""Pascal VOC's format: one XML file for each picture (Everingham et al. 2010, "The Pascal Visual Object Classes Challenge").

```
Annotations/2007_000027.xml      JPEGImages/2007_000027.jpg      ImageSets/Main/{train,val,test}.txt
```

Corners are pixels counted from 1, both of them inside; so a box from (1, 1) to (1, 1) is the first pixel, and becomes
(0, 0, 1, 1) here. Classes are all names in all files, sorted, or those that the caller names. An object marked as difficult
counts as `crowd`: it is neither taught nor held against anybody. Parts of objects are passed over.
"""

from __future__ import annotations

import posixpath
import xml.etree.ElementTree as ET
from collections.abc import Collection, Sequence
from typing import Any
from xml.sax.saxutils import escape

import numpy as np

from vitral.data.object_source import Draft, Entry, Problem, Row, Source, finite_number, is_picture, safe_name
from vitral.data.tree import natural, some
from vitral.errors import UsageError

__all__ = ["holds_voc", "read_voc", "voc_xml"]

_SIDES = ("xmin", "ymin", "xmax", "ymax")
_YES = ("1", "true", "yes")
_LARGEST = 64 << 20  # bytes of one picture's XML; 5,000 objects take one and a half


class _Plain(ET.TreeBuilder):
    """Builds a tree of a document that declares nothing: declared entities could unfold without end, or read files."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise UsageError("it declares a document type (DOCTYPE), which no annotation needs and which is not read here")


def holds_voc(source: Source) -> bool:
    """Whether a source has a folder `Annotations` with XML files in it."""
    return bool(_roots(source))


def _roots(source: Source) -> set[str]:
    """The folders that hold a folder `Annotations` with XML files."""
    found = set()
    for name in source.tree.files:
        folder = posixpath.dirname(name)
        if name.lower().endswith(".xml") and posixpath.basename(folder) == "Annotations":
            found.add(posixpath.dirname(folder))
    return found


def read_voc(source: Source, classes: Sequence[str] | None = None) -> list[Draft]:
    """The splits of a source in Pascal VOC's format.

    Without `ImageSets` all of it is for training; "trainval" counts only where there is neither train nor val.

    Args:
        source: the files.
        classes: the names of the classes, in order; by default those that occur.

    Raises:
        UsageError: XML that cannot be read, or declares a document type; several data sets; nothing to read.
    """
    roots = sorted(_roots(source))
    if len(roots) != 1:
        raise UsageError(f"{source.shown} holds several sets in Pascal VOC's format ({some(roots)}). Name one of them.")
    top = roots[0]
    notes: dict[str, str] = {}
    for name in source.below(posixpath.join(top, "Annotations")):
        if name.lower().endswith(".xml"):
            stem = posixpath.splitext(posixpath.basename(name))[0]
            if stem in notes:
                raise UsageError(
                    f"{source.where(notes[stem])} and {source.where(name)} are of one name. Rename one of them."
                )
            notes[stem] = name
    pictures: dict[str, str] = {}
    folder = posixpath.join(top, "JPEGImages")
    for name in source.below(folder):
        if is_picture(name):
            pictures.setdefault(posixpath.splitext(name[len(folder) + 1 :])[0], name)
    splits = _splits(source, top, notes) or {"train": sorted(notes)}
    read: dict[str, tuple[Entry, list[str], list[Problem]]] = {}
    lost: dict[str, list[Problem]] = {}
    number = 0
    for split, stems in splits.items():
        lost[split] = []
        for stem in stems:
            number += 1
            if stem not in notes:
                where = source.where(posixpath.join(top, "Annotations", f"{stem}.xml"))
                reason = f"The split {split} lists it, but there is no such file."
                lost[split].append(Problem(kind="missing", file=where, annotation="", picture=stem, reason=reason))
            elif stem not in read:
                read[stem] = _entry(source, notes[stem], pictures, folder, stem, number)
    seen = {name for _, names, _ in read.values() for name in names}
    known = tuple(sorted(seen, key=natural)) if classes is None else tuple(classes)
    place = {name: label for label, name in enumerate(known)}
    drafts = []
    for split, stems in splits.items():
        entries: list[Entry] = []
        for stem in stems:
            if stem in read:
                entry, names, problems = read[stem]
                lost[split] += problems
                entries.append(entry._replace(rows=_labelled(entry, names, place, lost[split])))
        drafts.append(
            Draft(
                split=split,
                classes=known,
                categories=tuple(range(1, len(known) + 1)),
                entries=entries,
                noun="object",
                problems=lost[split],
            )
        )
    return drafts


def _splits(source: Source, top: str, notes: Collection[str]) -> dict[str, list[str]]:
    """The pictures of each split, by the lists in ImageSets/Main: a line is a name, or begins with one."""
    found: dict[str, list[str]] = {}
    for split in ("train", "val", "test", "trainval"):
        name = posixpath.join(top, "ImageSets", "Main", f"{split}.txt")
        if name in source:
            try:
                text = source.content(name).decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise UsageError(f"{source.where(name)} is not UTF-8. Save the file as UTF-8.") from error
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            stems = [line if line in notes else line.split()[0] for line in lines]
            found[split] = [safe_name(stem, source.where(name)) for stem in stems]
    both = found.pop("trainval", None)
    if both is not None and "train" not in found and "val" not in found:
        found = {"train": both, **found}
    return found


def _entry(
    source: Source, name: str, pictures: dict[str, str], folder: str, stem: str, number: int
) -> tuple[Entry, list[str], list[Problem]]:
    """One XML file: its picture and objects, their classes' names, and what is wrong. Labels are places in the names."""
    shown = source.where(name)
    root = _parsed(source.content(name), shown)
    path = pictures.get(stem)
    if path is None:  # some tools name the files differently, and say so
        told = (root.findtext("filename") or "").strip()
        path = posixpath.join(folder, safe_name(told, shown) if told else f"{stem}.jpg")
    height, width = (finite_number(root.findtext(f"size/{side}") or "") for side in ("height", "width"))
    size = (int(height), int(width)) if height and width and height >= 1 and width >= 1 else None
    rows: list[Row] = []
    names: list[str] = []
    problems: list[Problem] = []
    for count, one in enumerate(root.findall("object"), start=1):
        box = [finite_number((one.findtext(f"bndbox/{side}") or "").strip()) for side in _SIDES]
        label = (one.findtext("name") or "").strip()
        if None in box or not label:
            reason = "It has no name." if not label else f"Its bndbox should have the numbers {', '.join(_SIDES)}."
            problems.append(Problem(kind="malformed", file=shown, annotation=f"object {count}", picture=path, reason=reason))
            continue
        x0, y0, x1, y1 = (side or 0.0 for side in box)
        rows.append(
            Row((x0 - 1, y0 - 1, x1, y1), len(names), count, (one.findtext("difficult") or "").strip().lower() in _YES)
        )
        names.append(label)
    return Entry(path[len(folder) + 1 :], path, size, number, rows, shown), names, problems


def _labelled(entry: Entry, names: list[str], place: dict[str, int], problems: list[Problem]) -> list[Row]:
    """The objects with their classes; those of an unknown one become problems."""
    rows = []
    for row in entry.rows:
        name = names[row.label]
        if name in place:
            rows.append(row._replace(label=place[name]))
        else:
            where, reason = f"object {row.place}", f"Its class {name[:60]!r} is not among the known ones."
            problems.append(
                Problem(kind="unknown class", file=entry.file, annotation=where, picture=entry.name, reason=reason)
            )
    return rows


def _parsed(content: bytes, shown: str) -> Any:
    """The root of an XML file that declares no document type.

    Raises:
        UsageError: it is too large, no XML, or declares one.
    """
    if len(content) > _LARGEST:
        raise UsageError(f"{shown} has {len(content):,} bytes, more than the annotation of a picture can need.")
    try:
        parser = ET.XMLParser(target=_Plain())
        parser.feed(content)
        root = parser.close()
    except UsageError as error:
        raise UsageError(f"{shown} cannot be read: {error}.") from error
    except (ET.ParseError, ValueError, LookupError, RecursionError) as error:
        raise UsageError(f"{shown} is no XML, or a damaged one ({str(error)[:200]}).") from error
    if root.tag != "annotation":
        raise UsageError(f"{shown} begins with <{root.tag[:40]}>; a picture's annotation begins with <annotation>.")
    return root


# -- writing ----------------------------------------------------------------------------------------------------------


def voc_xml(entry: Entry, classes: tuple[str, ...]) -> bytes:
    """A picture's annotation: read again, it gives the same boxes to the last bit of any that a picture has.

    Args:
        entry: the picture; it has a size.
        classes: the names of the classes.
    """
    height, width = entry.size or (0, 0)
    lines = [
        "<annotation>",
        f"  <filename>{escape(entry.name)}</filename>",
        f"  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>",
        "  <segmented>0</segmented>",
    ]
    for row in entry.rows:
        box = [_told(row.box[0], 1), _told(row.box[1], 1), _told(row.box[2], 0), _told(row.box[3], 0)]
        sides = "".join(f"<{side}>{value}</{side}>" for side, value in zip(_SIDES, box, strict=True))
        lines += [
            "  <object>",
            f"    <name>{escape(classes[row.label])}</name>",
            f"    <difficult>{int(row.crowd)}</difficult>",
            f"    <bndbox>{sides}</bndbox>",
            "  </object>",
        ]
    return "\n".join([*lines, "</annotation>", ""]).encode()


def _told(side: float, more: int) -> str:
    """A 32-bit coordinate, moved by a whole pixel, in as few digits as give it back."""
    exact = float(side) + more
    short = float(np.format_float_positional(np.float32(side), unique=True)) + more
    told = next(
        (f"{short:.{digits}f}" for digits in range(10) if np.float32(float(f"{short:.{digits}f}") - more) == side), ""
    )
    return told or repr(exact)
