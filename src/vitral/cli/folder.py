"""What predictions leave on disk: a folder with one file per picture, and one list of them all."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path, PurePath
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from vitral.base.disk import sweep, write_whole
from vitral.cli.show import json_line
from vitral.errors import UsageError
from vitral.pipelines.predictor import Failure
from vitral.tasks.classification.result import Classification
from vitral.tasks.detection.result import Detections
from vitral.tasks.features import Features
from vitral.tasks.segmentation.result import Instances, Panoptic, Segmentation

__all__ = ["ResultFolder", "check_apart", "check_folder", "safe_stem"]

_LIST = "predictions.jsonl"


def check_folder(folder: Path, pictures: Iterable[str | Path]) -> None:
    """Refuse a folder that results must not go to, before any work is done.

    Raises:
        UsageError: it is a file, or holds one of the pictures, which a drawing of the same name would replace.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out {folder} is a file; give a folder.")
    there = folder.resolve()
    for picture in pictures:
        path = Path(picture)
        if path.is_file() and path.resolve().parent == there:
            raise UsageError(f"--out {folder} holds the pictures themselves ({path.name}); give another folder.")


def check_apart(out: Path | None, data: str, option: str = "--out") -> None:
    """Refuse a folder for results that is a file, or that lies among labelled pictures, where it would become a class.

    Raises:
        UsageError: it does.
    """
    if out is None:
        return
    if out.exists() and not out.is_dir():
        raise UsageError(f"{option} {out} is a file; give a folder.")
    source = Path(data).expanduser()
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise UsageError(
            f"{option} {out} lies among the pictures of {data}, where it would be taken for a class; give another."
        )


def safe_stem(name: str) -> str:
    """A picture's name without folders and suffix, for a file of ours: safe on every file system."""
    try:
        path = urlsplit(name).path if "://" in name else name
    except ValueError:  # an address that is none; reading it will say so
        path = ""
    return re.sub(r"[^\w.-]+", "_", PurePath(path).stem).strip("._")[:80] or "picture"


class ResultFolder:
    """A folder that fills with results: a drawing or an archive for each picture, and `predictions.jsonl`.

    Beside the drawing of a segmentation lies its map, a PNG of the classes' numbers or of COCO's ids of segments.

    Args:
        folder: where; made if it is not there. Files of the same names are replaced.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.used: Counter[str] = Counter()
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        self.list = (folder / _LIST).open("w", encoding="utf-8")

    def __enter__(self) -> ResultFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.list.close()

    def add(self, result: Any) -> None:
        """Keep a result: its file, if it is no failure, and its line in the list, which names that file."""
        told = result.to_dict() if isinstance(result, Failure) else self._kept(result)
        self.list.write(json_line(told) + "\n")
        self.list.flush()

    def _kept(self, result: Any) -> dict[str, Any]:
        suffix, content_of, told_of = _FORMS[type(result)]
        stem = self._free_stem(result.name)
        file = stem + suffix
        write_whole(self.folder / file, content_of(result))
        told = told_of(result) | {"file": file}
        if type(result) in _MAPS:
            name, write = _MAPS[type(result)]
            told["map"] = self._free_stem(f"{stem}-{name}.png") + ".png"
            write(result, self.folder / told["map"])
        return told

    def _free_stem(self, name: str) -> str:
        """A name for a picture's file that is safe and not yet taken."""
        free = stem = safe_stem(name)
        while self.used[free.casefold()]:
            self.used[stem.casefold()] += 1
            free = f"{stem}-{self.used[stem.casefold()]}"
        self.used[free.casefold()] += 1
        return free


def _drawing(result: Classification | Detections | Segmentation | Instances | Panoptic) -> bytes:
    memory = io.BytesIO()
    result.draw().save(memory, "PNG", compress_level=4)
    return memory.getvalue()


def _archive(result: Features) -> bytes:
    """The arrays of `numpy.load`: tokens (n, d), pooled (e), grid (rows, columns), prefix (tokens before the patches)."""
    memory = io.BytesIO()
    np.savez(memory, tokens=result.tokens.numpy(), pooled=result.pooled.numpy(), grid=result.grid, prefix=result.prefix)
    return memory.getvalue()


def _facts(result: Features) -> dict[str, Any]:
    """What the list says about features; the numbers are in the archive."""
    return {"name": result.name, "size": list(result.size), "grid": list(result.grid), "prefix": result.prefix}


def _numbered(result: Panoptic, path: Path) -> None:
    """The map of segments as COCO has it: the id of a pixel's segment is R + 256 G + 256² B."""
    memory = io.BytesIO()
    result.to_coco(0)[0].save(memory, "PNG")
    write_whole(path, memory.getvalue())


_FORMS: dict[type, tuple[str, Callable[[Any], bytes], Callable[[Any], dict[str, Any]]]] = {
    Classification: (".png", _drawing, Classification.to_dict),
    Features: (".npz", _archive, _facts),
    Detections: (".png", _drawing, Detections.to_dict),
    Segmentation: (".png", _drawing, Segmentation.to_dict),
    Instances: (".png", _drawing, Instances.to_dict),
    Panoptic: (".png", _drawing, Panoptic.to_dict),
}
"""For each kind of result: the suffix of its file, the file's content, and its line in the list."""

_MAPS: dict[type, tuple[str, Callable[[Any, Path], object]]] = {
    Segmentation: ("classes", Segmentation.to_png),
    Panoptic: ("segments", _numbered),
}
"""For each kind of result that is a map: what is added to the name of its file, and what writes it."""
