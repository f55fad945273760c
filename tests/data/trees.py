"""Small data sets to read: folders, archives, and the damage that strangers do to them."""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image


def encoded(seed: object, suffix: str = ".png", size: tuple[int, int] = (20, 24), mode: str = "RGB") -> bytes:
    """A picture file with noise of its own."""
    numbers = np.random.default_rng(zlib.crc32(repr(seed).encode()))
    image = Image.fromarray(numbers.integers(0, 256, (*size, 3), dtype=np.uint8)).convert(mode)
    memory = io.BytesIO()
    image.save(memory, {".png": "PNG", ".jpg": "JPEG", ".gif": "GIF"}[suffix])
    return memory.getvalue()


def folder(root: Path, names: Iterable[str]) -> Path:
    """A folder of files: pictures where the names say so, else a line of text; a name that ends with / is a folder."""
    for name in names:
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        suffix = path.suffix.lower().replace("jpeg", "jpg")
        path.write_bytes(encoded(name, suffix) if suffix in {".png", ".jpg", ".gif"} else b"a line\n")
    return root


def packed(root: Path, path: Path, mode: str = "w", top: str = "") -> Path:
    """A folder as a tar archive, in an order of its own."""
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for file in sorted(root.rglob("*"), reverse=True):
            archive.add(file, top + file.relative_to(root).as_posix(), recursive=False)
    return path


def hand_made(path: Path, members: Iterable[tuple[str, bytes | None, bytes]]) -> Path:
    """A tar archive of members by name, content (None: none) and type."""
    with tarfile.open(path, "w") as archive:
        for name, content, kind in members:
            member = tarfile.TarInfo(name)
            member.type, member.size, member.linkname = kind, len(content or b""), "elsewhere"
            archive.addfile(member, io.BytesIO(content or b""))
    return path
