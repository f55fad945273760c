"""Pictures in a tar archive, read where they lie: nothing is unpacked into files of its own.

A plain `.tar` is read through once, which gives the place of every file in it, and from then on by those places alone. A
compressed one has no places to read from; it is unpacked once into a plain one in the cache. The list of places is kept
there too, so that opening again takes no second look.

The cache is `~/.cache/vitral`, or the folder that the environment variable VITRAL_CACHE names. What lies there belongs to an
archive's path, size and time of change, and may be deleted at any time.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import lzma
import os
import posixpath
import shutil
import tarfile
import weakref
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Int64

from vitral.base.disk import staging
from vitral.data.tree import Tree, hidden
from vitral.errors import PictureError, UsageError

__all__ = ["Archive", "cache_folder", "is_archive", "open_archive"]

_CHUNK = 4 << 20  # bytes unpacked at a time
_SPARE = 256 << 20  # bytes that unpacking leaves free on the disk
_BLOCK = 512  # bytes; all of a tar archive is counted in these
_MISSING = -1  # the offset of a file that is not there

_COMPRESSIONS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
"""What a compressed file begins with, and what opens it."""


@dataclass(frozen=True, eq=False)
class Archive:
    """The files in a plain tar archive and where each begins.

    Reading needs no position of its own in the file, so threads and forked processes may share it; a copy in another
    process opens the file again.

    Attributes:
        shown: the archive's path, as the user named it.
        path: the plain tar: the archive itself, or its unpacked copy in the cache.
        stamp: that file's size in bytes and its time of change in nanoseconds.
        tree: the names in it that are not hidden.
        names: the files, in the order of their offsets below.
        offsets: where each begins, in bytes; -1 where there is no such file.
        sizes: how long each is, in bytes.
    """

    shown: str
    path: Path
    stamp: tuple[int, int]
    tree: Tree = field(repr=False)
    names: Sequence[str] = field(repr=False)
    offsets: Int64[np.ndarray, " n"] = field(repr=False)
    sizes: Int64[np.ndarray, " n"] = field(repr=False)

    def __post_init__(self) -> None:
        try:
            file = self.path.open("rb", buffering=0)
        except OSError as error:
            raise UsageError(f"{self.shown} cannot be read ({error.strerror or error}).") from error
        weakref.finalize(self, file.close)
        object.__setattr__(self, "_file", file)
        if _stamp(os.fstat(file.fileno())) != self.stamp:
            raise UsageError(f"{self.shown} has changed since it was opened. Open it again.")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_file"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.__post_init__()

    def select(self, names: Sequence[str]) -> Archive:
        """The same archive for these files only, in this order; one that is not in it fails when it is read."""
        place = {name: index for index, name in enumerate(self.names)}
        found = [place.get(posixpath.normpath(name), _MISSING) for name in names]
        chosen = np.array(found, dtype=np.int64)
        missing = chosen == _MISSING
        return replace(
            self,
            names=tuple(names),
            offsets=np.where(missing, _MISSING, self.offsets[chosen]),
            sizes=np.where(missing, 0, self.sizes[chosen]),
        )

    def where(self, place: int) -> str:
        """The archive's path and the file's path in it."""
        return f"{self.shown}/{self.names[place]}"

    def source(self, place: int) -> bytes:
        """The content of a file.

        Raises:
            PictureError: there is no such file, or the archive was cut short meanwhile.
        """
        offset, size = int(self.offsets[place]), int(self.sizes[place])
        if offset == _MISSING:
            raise PictureError(self.where(place), "The archive holds no such file.")
        try:
            content = _read_at(self._file, size, offset)  # type: ignore[attr-defined]
        except OSError as error:
            raise PictureError(self.where(place), f"The archive cannot be read ({error.strerror or error}).") from error
        if len(content) < size:
            raise PictureError(self.where(place), f"Only {len(content):,} of its {size:,} bytes are there.")
        return content


def _read_at(file: Any, size: int, offset: int) -> bytes:
    """Bytes from a place in a file, whoever else reads it."""
    if hasattr(os, "pread"):
        return os.pread(file.fileno(), size, offset)
    with Path(file.name).open("rb") as own:  # Windows
        own.seek(offset)
        return own.read(size)


def _stamp(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def cache_folder() -> Path:
    """Where Vitral keeps what it can make again: $VITRAL_CACHE, or ~/.cache/vitral."""
    named = os.environ.get("VITRAL_CACHE")
    return Path(named).absolute() if named else Path.home() / ".cache" / "vitral"


def is_archive(path: Path) -> bool:
    """Whether a file is a tar archive, compressed or not, by how it begins."""
    with path.open("rb") as file:
        begin = file.read(_BLOCK)
    return _compression(begin) is not None or begin[257:262] == b"ustar"


def _compression(begin: bytes) -> Any:
    """What opens a compressed file that begins like this; None for any other."""
    return next((opener for prefix, opener in _COMPRESSIONS.items() if begin.startswith(prefix)), None)


def open_archive(path: Path, shown: str | None = None) -> Archive:
    """Open a tar archive: plain, or compressed by gzip, bzip2 or xz.

    Args:
        path: the archive.
        shown: what messages call it; by default its path.

    Raises:
        UsageError: it is damaged or no tar archive; it holds something else than files and folders, or a name that leads out
            of it; there is no room to unpack it.
    """
    shown = shown or str(path)
    try:
        real = path.resolve(strict=True)
        stamp = _stamp(real.stat())
        with real.open("rb") as file:
            opener = _compression(file.read(_BLOCK))
    except OSError as error:
        raise UsageError(f"{shown} cannot be read ({error.strerror or error}).") from error
    key = hashlib.sha256(os.fsencode(f"{real}\0{stamp[0]}\0{stamp[1]}")).hexdigest()[:24]
    kept = cache_folder() / "archives" / f"{path.name.split('.')[0][:40]}-{key}.tar"
    plain = real if opener is None else kept
    index = _kept_index(kept.with_suffix(".npz"), plain)
    if index is None:
        index = _indexed(real, shown) if opener is None else _unpacked(real, opener, kept, shown)
        _keep_index(kept.with_suffix(".npz"), plain, index)
    names, folders, offsets, sizes = index
    return Archive(shown, plain, _stamp(plain.stat()), Tree(names, folders), names, offsets, sizes)


# -- the index --------------------------------------------------------------------------------------------------------

_Index = tuple[tuple[str, ...], tuple[str, ...], np.ndarray, np.ndarray]


def _indexed(path: Path, shown: str) -> _Index:
    """The names and places of all files in a plain tar.

    Raises:
        UsageError: see `open_archive`.
    """
    files: dict[str, tuple[int, int]] = {}
    folders: set[str] = set()
    try:
        with tarfile.open(path, "r:") as archive:
            for member in _members(archive):
                name = _safe_name(member, shown)
                if member.isdir():
                    folders.add(name)
                elif not hidden(name):
                    files[name] = (member.offset_data, member.size)  # of two with one name the later counts, as in any tar
            end = archive.offset
        _check_end(path, end, shown)
    except (tarfile.TarError, OSError, ValueError, OverflowError, EOFError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{shown} is no tar archive, or a damaged one ({error}). Fetch or make it again.") from error
    names = tuple(sorted(files))
    places = np.array([files[name] for name in names], dtype=np.int64).reshape(-1, 2)
    visible = tuple(sorted(name for name in folders if name != "." and not hidden(name)))
    return names, visible, np.ascontiguousarray(places[:, 0]), np.ascontiguousarray(places[:, 1])


def _members(archive: Any) -> Iterator[tarfile.TarInfo]:
    """The members one by one; unlike iterating over the archive, this does not keep a kilobyte for each of them."""
    while (member := archive.next()) is not None:
        archive.members = []
        yield member


def _safe_name(member: tarfile.TarInfo, shown: str) -> str:
    """A member's name, if it is one that a data set may have."""
    parts = member.name.split("/")
    if member.name.startswith("/") or ".." in parts:
        raise UsageError(f"{shown} holds {member.name!r}, a name that leads out of it. Nothing in it was read.")
    if not (member.isreg() or member.isdir()) or member.issparse():
        kind = "a link" if member.issym() or member.islnk() else "a device, a pipe or a sparse file"
        raise UsageError(f"{shown} holds {kind} ({member.name!r}). Pack plain files and folders only (tar --dereference).")
    return posixpath.normpath(member.name)


def _check_end(path: Path, end: int, shown: str) -> None:
    """Refuse an archive whose list ends too early: `tarfile` takes a damaged header for the end."""
    with path.open("rb") as file:
        file.seek(end)
        block = file.read(_BLOCK)
    if block != bytes(_BLOCK):
        what = "is damaged there" if block else "is cut short"
        raise UsageError(f"{shown} ends its list of files at byte {end:,} without an end mark: it {what}. Fetch it again.")


def _keep_index(path: Path, plain: Path, index: _Index) -> None:
    """Write an index into the cache; without one to write to, the archive is looked through again next time."""
    names, folders, offsets, sizes = index
    with contextlib.suppress(OSError), _whole(path) as file:
        np.savez(
            file,
            plain=np.array(_stamp(plain.stat()), dtype=np.int64),
            names=np.frombuffer(os.fsencode("\0".join(names)), np.uint8),
            folders=np.frombuffer(os.fsencode("\0".join(folders)), np.uint8),
            offsets=offsets,
            sizes=sizes,
        )


def _kept_index(path: Path, plain: Path) -> _Index | None:
    """The index in the cache, if it is there, whole, and of this file."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            if tuple(kept["plain"].tolist()) != _stamp(plain.stat()):
                return None
            names, folders = (
                tuple(os.fsdecode(kept[key].tobytes()).split("\0")) if kept[key].size else () for key in ("names", "folders")
            )
            offsets, sizes = kept["offsets"], kept["sizes"]
    except Exception:  # whatever a damaged file makes of numpy: it is made again
        return None
    sound = offsets.shape == sizes.shape == (len(names),) and offsets.dtype == sizes.dtype == np.int64
    return (names, folders, offsets, sizes) if sound else None


# -- the cache --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _whole(path: Path, changed: int | None = None) -> Iterator[BinaryIO]:
    """A file to write that takes its place when it is whole, or leaves nothing.

    Args:
        path: its place.
        changed: its time of change, in nanoseconds; two processes that write the same then leave the same, whoever is last.
    """
    with staging(path.parent) as room:
        part = room / path.name
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if changed is not None:
            os.utime(part, ns=(changed, changed))
        os.replace(part, path)  # noqa: PTH105 - atomic within a file system


def _unpacked(path: Path, opener: Any, kept: Path, shown: str) -> _Index:
    """Unpack a compressed archive into the cache, and say what is in it."""
    try:
        with _whole(kept, path.stat().st_mtime_ns) as plain:
            _unpack(path, opener, plain, kept.parent, shown)
            plain.flush()
            return _indexed(Path(plain.name), shown)
    except OSError as error:
        raise UsageError(
            f"{shown} cannot be unpacked into {kept.parent} ({error.strerror or error}). Name another folder in the "
            "environment variable VITRAL_CACHE."
        ) from error


def _unpack(path: Path, opener: Any, plain: BinaryIO, folder: Path, shown: str) -> None:
    """Copy the content of a compressed file, as long as the disk has room."""
    written = 0
    with opener(path, "rb") as packed:
        while True:
            try:
                chunk = packed.read(_CHUNK)
            except (gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError, OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                raise UsageError(f"{shown} is damaged, or not compressed as it says ({reason}). Fetch it again.") from error
            if not chunk:
                return
            if shutil.disk_usage(folder).free < _SPARE + len(chunk):
                raise UsageError(
                    f"There is no room in {folder} to unpack {shown}: {written:,} bytes of it are unpacked, and less than "
                    f"{_SPARE >> 20} MiB are free. Name a folder with more room in the environment variable VITRAL_CACHE."
                )
            written += plain.write(chunk)
