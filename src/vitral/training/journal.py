"""The journal of a training: one row for each thing that happened, in the order it happened.

A journal is a file of JSON lines: each row an object with "event", ended by a line feed. It is only ever added to; what a
run that goes on from a checkpoint will do once more is cut off first. A number that is not finite is written as the string
"NaN", "Infinity" or "-Infinity", for JSON has no such numbers; `float(row["loss"])` reads it, as it reads any other.
"""

from __future__ import annotations

import json
import math
import numbers
import os
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from vitral.base.disk import write_whole
from vitral.base.numbers import as_integer
from vitral.errors import CheckpointError, UsageError

__all__ = ["Journal", "read"]


class Journal:
    """The journal of one run, open to be added to.

    A row is in the file when `append` returns: it outlives the process's being killed. A power cut it outlives after `sync`.

    Args:
        path: the file; it and its folder are made with the first row.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def append(self, event: str, **values: Any) -> None:
        """Add a row.

        Args:
            event: what happened ("step", "epoch", …).
            values: what is to be said of it: numbers, strings, booleans, None, and lists and dictionaries of these. Whole
                numbers and reals of other libraries become Python's own. Rows that belong to a step name it, `step=420`;
                `cut_after` goes by that.

        Raises:
            UsageError: a value is none of these. Nothing is written.
            OSError: the disk is full, or cannot be written to. The row is not there then, not even a part of it.
        """
        row = _plain({"event": event, **values}, f"the row {event!r}")
        line = (json.dumps(row, allow_nan=False) + "\n").encode()
        file = self._opened()
        before = file.seek(0, os.SEEK_END)
        try:
            written = 0
            while written < len(line):  # a disk that fills takes a part, and refuses the rest
                written += file.write(line[written:])
        except BaseException as error:
            file.truncate(before)
            if isinstance(error, OSError):
                error.filename = str(self.path)
            raise

    def sync(self) -> None:
        """Bring the rows from the system's memory to the disk.

        Raises:
            OSError: the disk is full, or broken.
        """
        if self._file is not None:
            os.fsync(self._file.fileno())

    def cut_after(self, step: int) -> None:
        """Drop what a run that goes on from a step will do once more: rows whose "step" is greater, and a torn last line.

        The file is replaced whole or not at all.

        Raises:
            CheckpointError: a line is no row; the file is left as it is.
            OSError: the disk is full, or cannot be written to; the file is left as it is.
        """
        self.close()
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        kept = b"".join(line for line, row in _rows(content, self.path) if not _is_later(row, step))
        if kept != content:
            write_whole(self.path, kept)

    def close(self) -> None:
        """Bring the rows to the disk and let go of the file; the next `append` opens it again."""
        if self._file is not None:
            self.sync()
            self._file.close()
            self._file = None

    def _opened(self) -> BinaryIO:
        """The file, ready for a row: a line that a kill tore is cut off, or the next row would be glued to it."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path.open("a+b", buffering=0)
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
            self._file = file
        return self._file


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a journal, in order. A last line that a kill tore, so that it has no line feed, is not among them.

    Raises:
        CheckpointError: another line is no row; the message names its number.
        OSError: there is no such file.
    """
    return [row for _, row in _rows(path.read_bytes(), path)]


def _rows(content: bytes, path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Every whole line, with its line feed, and the row in it."""
    found = []
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("event"), str):
            came = line[:60].decode(errors="replace")
            raise CheckpointError(
                f"Line {number} of {path} is no row of a journal: {came!r}. Remove it, or move the file elsewhere."
            )
        found.append((line + b"\n", row))
    return found


def _is_later(row: dict[str, Any], step: int) -> bool:
    told = as_integer(row.get("step"))
    return told is not None and told > step


def _plain(value: Any, where: str) -> Any:
    """A value as every reader of JSON takes it."""
    if value is None or isinstance(value, str | bool):
        return value
    whole = as_integer(value)
    if whole is not None:
        return whole
    if isinstance(value, numbers.Real | np.floating):
        real = float(value)
        return real if math.isfinite(real) else "NaN" if math.isnan(real) else "Infinity" if real > 0 else "-Infinity"
    if isinstance(value, list | tuple):
        return [_plain(item, where) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(item, where) for key, item in value.items()}
    raise UsageError(
        f"{value!r} in {where} of the journal is a {type(value).__name__}; numbers, strings, booleans, None, and lists and "
        "dictionaries by strings of these can be written. Of a tensor, give .item() or .tolist()."
    )
