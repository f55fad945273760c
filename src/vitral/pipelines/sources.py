"""What a user hands to a pipeline: one picture, several, or a stream of them."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from vitral.base.image import PICTURE_SUFFIXES
from vitral.errors import PictureError, UsageError

__all__ = ["Sources", "sources_of"]


@dataclass(frozen=True)
class Sources:
    """Pictures to be answered for.

    Attributes:
        kind: "one" picture, "many" that are all here, or a "stream" that is drawn as it goes.
        pictures: the pictures; their number is known unless they are a stream.
    """

    kind: str
    pictures: Iterable[Any]


def sources_of(inputs: Any) -> Sources:
    """Understand what came.

    A folder stands for every picture file in it and below it, a pattern (`photos/*.jpg`) for the files it matches, both
    in the order of their names. A list, a tuple and an array or tensor of four dimensions are many. A generator, and
    anything with a length and places (a dataset), is a stream; of an item that is a pair or a dictionary the picture
    is taken.

    Raises:
        PictureError: a folder without pictures, or a pattern without matches.
        UsageError: nothing came.
    """
    if inputs is None:
        raise UsageError("No picture came. Give a path, an address, a Pillow image, an array, or many of them.")
    if isinstance(inputs, str | Path):
        return _named(inputs)
    if isinstance(inputs, list | tuple):
        return Sources("many", [item[0] if isinstance(item, tuple) and item else item for item in inputs])
    if isinstance(inputs, np.ndarray | Tensor):
        return Sources("many", list(inputs)) if inputs.ndim == 4 else Sources("one", [inputs])
    if isinstance(inputs, bytes | bytearray | memoryview | Image.Image) or hasattr(inputs, "read"):
        return Sources("one", [inputs])
    if hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__") and not isinstance(inputs, dict):
        return Sources("stream", _drawn(inputs))
    if isinstance(inputs, Iterable) and not isinstance(inputs, dict):
        return Sources("stream", (_picture_of(item) for item in inputs))
    return Sources("one", [_picture_of(inputs)])


def _named(inputs: str | Path) -> Sources:
    text = str(inputs)
    if not text.strip():
        raise UsageError("An empty name came. Give a path, an address, a folder or a pattern.")
    if text.startswith(("http://", "https://", "data:")) or len(text) > 4096:
        return Sources("one", [inputs])
    path = Path(os.path.expanduser(text))  # noqa: PTH111 - unlike pathlib's, it lets a stranger's home be
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in PICTURE_SUFFIXES and file.is_file())
        if not files:
            raise PictureError(text, "The folder holds no picture files.")
        return Sources("many", files)
    if glob.has_magic(text) and not path.exists():
        matches = sorted(filter(os.path.isfile, glob.glob(str(path), recursive=True)))  # noqa: PTH207
        if not matches:
            raise PictureError(text, "No file matches the pattern.")
        return Sources("many", matches)
    return Sources("one", [inputs])


def _drawn(dataset: Any) -> Iterator[Any]:
    for place in range(len(dataset)):
        yield _picture_of(dataset[place])


def _picture_of(item: Any) -> Any:
    """The picture in a dataset's item."""
    if isinstance(item, tuple) and item:
        return item[0]
    if isinstance(item, dict):
        for key in ("image", "picture", "img", "pixel_values", "path", "file"):
            if key in item:
                return item[key]
        raise UsageError(f"An item has the keys {', '.join(map(repr, item))}; none of them is 'image'.")
    return item
