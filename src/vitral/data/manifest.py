"""A manifest: a table that says which picture is of which class, and perhaps in which split.

```
file,label,split               {"file": "a b.jpg", "label": "cat", "split": "train"}
a b.jpg,cat,train              {"file": "ü/1.png", "label": "dog", "split": "val"}
ü/1.png,dog,val
```

CSV as RFC 4180 has it, with commas and a header, or one JSON object on each line; UTF-8. Files are named by their paths from
the manifest's folder. A label is the name of a class, or a number.

The classes are the lines of a file `classes.txt` beside the manifest; then a label that is none of these names may be the
number of one, from 0. Without it the classes are all labels of all splits, sorted as `vitral.data.tree.natural` does:
numbers by their value, so that 0, 1, 2 … stay what they are where none is left out.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

from vitral.base.numbers import as_integer
from vitral.data.tree import SPLITS, WHOLE, Listing, natural, some
from vitral.errors import UnknownNameError, UsageError

__all__ = ["CLASSES_FILE", "MANIFEST_NAMES", "MANIFEST_SUFFIXES", "read_manifest"]

MANIFEST_SUFFIXES = (".csv", ".jsonl", ".ndjson")
"""How a manifest's name ends."""

MANIFEST_NAMES = ("manifest.csv", "manifest.jsonl")
"""A folder or an archive that holds a file of one of these names is read by it."""

CLASSES_FILE = "classes.txt"
"""The file beside a manifest that names the classes, one on each line, in the order of the labels."""

_COLUMNS = ("file", "label", "split")
_REQUIRED = ("file", "label")
_Row = tuple[int, dict[str, Any]]


def read_manifest(content: bytes, shown: str, classes: bytes | None = None) -> Listing:
    """Understand a manifest.

    Args:
        content: the file.
        shown: what messages call it; its suffix tells CSV from JSON lines.
        classes: what the `classes.txt` beside it holds, if there is one.

    Raises:
        UnknownNameError: a column, a class or a split that there is not; it names the nearest.
        UsageError: anything else that is wrong, with its line.
    """
    text = _text(content, shown)
    rows = list(_csv_rows(text, shown) if shown.lower().endswith(".csv") else _json_rows(text, shown))
    if not rows:
        raise UsageError(f"{shown} names no pictures.")
    samples = [(line, _file(row, line, shown), _label(row, line, shown)) for line, row in rows]
    names = _class_names(classes, shown) if classes is not None else None
    known = names or tuple(sorted({label for _, _, label in samples}, key=natural))
    numbers = {name: place for place, name in enumerate(known)}
    splits: dict[str, list[tuple[str, int]]] = {}
    for (line, file, label), split in zip(samples, _splits(rows, shown), strict=True):
        splits.setdefault(split, []).append((file, _number(label, numbers, line, shown)))
    order = [WHOLE, *dict.fromkeys(SPLITS.values())]
    return Listing(known, {split: splits[split] for split in order if split in splits})


def _text(content: bytes, shown: str) -> str:
    """A file as text, with or without a byte order mark."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsageError(f"Line {line} of {shown} is not UTF-8. Save the file as UTF-8.") from error


def _csv_rows(text: str, shown: str) -> Iterator[_Row]:
    """The lines of a CSV file by its header."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    try:
        for cells in reader:
            if not cells:  # an empty line, as many files end with
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                _check_header(header, shown)
            elif len(cells) != len(header):
                raise UsageError(
                    f"Line {reader.line_num} of {shown} has {len(cells)} columns, not {len(header)} ({','.join(header)}). "
                    "A name with a comma in it needs quotes around it."
                )
            else:
                yield reader.line_num, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise UsageError(f"Line {reader.line_num} of {shown} is no line of CSV ({error}).") from error


def _check_header(header: list[str], shown: str) -> None:
    """Refuse a header that is none of a manifest."""
    if len(header) == 1 and any(sign in header[0] for sign in ";\t|"):
        raise UsageError(f"The columns of {shown} must be separated by commas; its first line is {header[0]!r}.")
    for name in header:
        if name not in _COLUMNS:
            raise UnknownNameError(f"column of {shown}", name, _COLUMNS)
    if len(set(header)) < len(header):
        raise UsageError(f"The header of {shown} names a column twice: {','.join(header)}.")
    for name in _REQUIRED:
        if name not in header:
            raise UsageError(f"The header of {shown} is {','.join(header)}; the column {name!r} is missing.")


def _json_rows(text: str, shown: str) -> Iterator[_Row]:
    """The objects of a file of JSON lines."""
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"Line {line} of {shown} is no JSON ({str(error)[:200]}).") from error
        if not isinstance(row, dict):
            raise UsageError(f'Line {line} of {shown} is no object such as {{"file": "a.jpg", "label": "cat"}}.')
        for name in row:
            if name not in _COLUMNS:
                raise UnknownNameError(f"entry in line {line} of {shown}", name, _COLUMNS)
        for name in _REQUIRED:
            if name not in row:
                raise UsageError(f"Line {line} of {shown} has no {name!r}.")
        yield line, row


def _file(row: dict[str, Any], line: int, shown: str) -> str:
    """The file that a line names."""
    file = row["file"]
    if not isinstance(file, str) or not file.strip() or "\0" in file:
        raise UsageError(f"Line {line} of {shown} names no file: {file!r}.")
    return file


def _label(row: dict[str, Any], line: int, shown: str) -> str:
    """The label of a line as it was written; numbers as text."""
    label = row["label"]
    whole = as_integer(label)
    text = label.strip() if isinstance(label, str) else "" if whole is None else str(whole)
    if not text:
        raise UsageError(
            f"The label in line {line} of {shown} is {label!r}, neither the name of a class nor a whole number."
        )
    if text.startswith("-") and text[1:].isdecimal():
        raise UsageError(
            f"The label in line {line} of {shown} is {text}. Classes are counted from 0; leave out what has none."
        )
    return text


def _splits(rows: list[_Row], shown: str) -> Iterator[str]:
    """The split of each line."""
    has_splits = any("split" in row for _, row in rows)
    for line, row in rows:
        if not has_splits:
            yield WHOLE
            continue
        split = row.get("split", "")
        if not isinstance(split, str) or not split.strip():
            raise UsageError(f"Line {line} of {shown} names no split, while others do. Known: {', '.join(SPLITS)}.")
        if split.strip().lower() not in SPLITS:
            raise UnknownNameError(f"split in line {line} of {shown}", split.strip(), SPLITS)
        yield SPLITS[split.strip().lower()]


def _class_names(content: bytes, shown: str) -> tuple[str, ...]:
    """The lines of `classes.txt`."""
    where = f"{CLASSES_FILE} beside {shown}"
    names = [line.strip() for line in _text(content, where).strip().split("\n")]
    if "" in names:
        raise UsageError(f"Line {names.index('') + 1} of {where} is empty; each line names a class.")
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise UsageError(f"{where} names a class twice: {some(twice)}.")
    return tuple(names)


def _number(label: str, numbers: dict[str, int], line: int, shown: str) -> int:
    """The class that a label means: by its name, else by its number."""
    if label in numbers:
        return numbers[label]
    if not (label.isascii() and label.isdecimal()):
        raise UnknownNameError(f"class in line {line} of {shown}", label, numbers)
    if len(label) > 9 or int(label) >= len(numbers):
        raise UsageError(
            f"The label in line {line} of {shown} is {label}, but {CLASSES_FILE} names {len(numbers)} classes, "
            f"counted from 0 to {len(numbers) - 1}."
        )
    return int(label)
