"""Writing whole or not at all: files, folders, and a set of files inside a folder that holds other things too.

Whatever is being written lies under a hidden name (`.vitral-` and sixteen hexadecimal digits) until it is whole, on the disk
and not only in the system's memory; then it is renamed, which file systems do at once. After an error, or Ctrl-C, nothing
hidden is left. A process that is killed, or a power cut, can leave something hidden: `sweep` takes it away, and `staging`
and `whole_folder` sweep before they begin. What is hidden and belongs to a process that lives is left alone: its owner holds
a lock on it, which the system lets go of when the owner ends, however it ends.

An error of the disk is an `OSError` whose `strerror` is a sentence's beginning and whose `filename` is the name that the
caller knows, never the hidden one.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from vitral.errors import UsageError

__all__ = ["alone_in", "check_space", "exchange", "staging", "sweep", "whole_folder", "write_whole"]

_HIDDEN = re.compile(r"\.vitral-[0-9a-f]{16}")
_BEFORE = ".vitral-before"  # in a hidden folder: what stood where the new is being put
_RECORD = ".vitral-exchange.json"  # in a hidden folder, while an exchange is under way: the names of the new
_LOCK = ".vitral-lock"  # in a folder that one program writes to
_OLD = 24 * 3600  # seconds after which something hidden is taken for abandoned where the file system knows no locks
_UNNAMED = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}  # these come without a file's name


def write_whole(path: Path, content: bytes) -> None:
    """Write a file at once: after an interruption there is the old one or the new one, never half of one.

    The new file is on the disk when this returns. It has the old one's permissions; a link stays one, and the file it points
    to is written. What is no file on a disk (a pipe, a terminal, /dev/null) is written to directly.

    Args:
        path: where to; its folder must be there.
        content: all of it.

    Raises:
        OSError: the disk is full, the folder cannot be written to, or `path` is a folder; it names `path`.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "A folder stands where a file is to be written", str(path))
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    target = Path(os.path.realpath(path))
    try:
        with _hidden(target.parent, folder=False) as part:
            part.write_bytes(content)
            if target.exists():
                shutil.copymode(target, part)
            _flush(part)
            os.replace(part, target)  # noqa: PTH105 - atomic within a file system
            _flush(target.parent)
    except OSError as error:
        _call(error, path)
        raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which stands at `path` when the block ends well, and is nowhere when it does not.

    A folder that stands at `path` already is replaced: it is moved aside, the new one is moved in, the old one is removed.
    A process killed between the two moves (microseconds apart) leaves no folder at `path`, and the old one, whole, aside:
    the next `sweep` of the folder around it puts it back. Killed at any other moment, it leaves the old one or the new one
    at `path`, and perhaps something hidden beside it.

    Args:
        path: where the folder is to stand. The folders around it are made where they are not there.

    Yields:
        The folder to fill, beside `path` and hidden.

    Raises:
        OSError: the disk is full, the place cannot be written to, or `path` is a file.
    """
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "A file stands where a folder is to be written", str(path))
    with staging(path.parent) as room:
        fresh = room / path.name
        fresh.mkdir()
        yield fresh
        exchange(room, [path.name])


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """A hidden folder inside `folder` for things that are not whole yet. It is gone when the block ends.

    Leftovers in `folder` are swept first. Where `folder`, or a folder around it, is not there, it is made; those that were
    made for this and stayed empty are removed again.

    Raises:
        OSError: the folder cannot be written to, or is a file. One raised in the block names what lies in `folder`, not
            what lies in the hidden one.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "A file stands where a folder is needed", str(folder))
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        with _hidden(folder, folder=True) as room:
            try:
                yield room
            except OSError as error:
                _rename_in(error, room)
                raise
    finally:
        with suppress(OSError):  # it holds something, so it stays
            for one in made:
                one.rmdir()


def exchange(room: Path, names: Sequence[str], *, away: Iterable[str] = ()) -> None:
    """Move what a `staging` folder holds into the folder around it, all of it or nothing.

    All of it is brought to the disk first. What stands where something is put is moved out before, last named first, and
    removed with the staging folder. If anything interrupts this, all is as it was: at once after an error or Ctrl-C, and
    with the next `sweep` of the folder after a kill, until which new and old may stand side by side.

    Args:
        room: what `staging` gave.
        names: the files and folders in it to move, in this order.
        away: names of others in the folder around it that shall be removed.

    Raises:
        OSError: the disk is full, the folder cannot be written to, or a folder stands where a file is to be put.
    """
    folder, before = room.parent, room / _BEFORE
    out = [name for name in reversed(dict.fromkeys([*away, *names])) if os.path.lexists(folder / name)]
    for name in out:
        if name in names and (folder / name).is_dir() != (room / name).is_dir():
            kind = "folder" if (folder / name).is_dir() else "file"
            raise OSError(errno.EEXIST, f"A {kind} stands in the way; move it elsewhere", str(folder / name))
    before.mkdir()
    (room / _RECORD).write_text(json.dumps(list(names)), encoding="utf-8")
    _flush_all(room)
    try:
        for name in out:
            os.replace(folder / name, before / name)  # noqa: PTH105 - atomic within a file system
        for name in names:
            os.replace(room / name, folder / name)  # noqa: PTH105
        _flush(folder)
    except BaseException:
        _put_back(room)
        raise
    (room / _RECORD).unlink()  # from here on the new is what counts
    with suppress(OSError):  # it is on the disk already; only how soon the old may go is at stake
        _flush(room)


def sweep(folder: Path) -> None:
    """Take away what killed processes left hidden in a folder, and put back what one of them was about to replace.

    What a living process, this one included, is writing there is left alone; so is what cannot be removed. Where the file
    system knows no locks, all that is younger than a day is left alone too.
    """
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if not _HIDDEN.fullmatch(path.name) or path.is_symlink():  # we make no links; one may lead anywhere
            continue
        with suppress(OSError):  # its owner lives, or has just tidied up, or it is not ours to remove
            held = _lock(path, wait=False)
            try:
                if held is not None or time.time() - path.stat().st_mtime > _OLD:
                    _remove(path)
            finally:
                _let_go(held)


def check_space(folder: Path, needed_bytes: int) -> None:
    """Refuse to begin what the disk has no room for.

    Args:
        folder: where it will be written; it need not be there yet.
        needed_bytes: how much.

    Raises:
        OSError: there is less than that; it says how much is needed and free, and what to do.
    """
    there = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.is_dir())
    free = shutil.disk_usage(there).free
    if free < needed_bytes:
        raise OSError(
            errno.ENOSPC,
            f"Not enough room on the disk: {_size(needed_bytes)} are needed and {_size(free)} are free. Delete something or "
            "choose a folder on another disk",
            str(folder),
        )


@contextmanager
def _hidden(inside: Path, *, folder: bool) -> Iterator[Path]:
    """A new hidden file or folder, locked while the block lasts and gone afterwards."""
    while True:
        path = inside / f".vitral-{secrets.token_hex(8)}"
        try:
            if folder:
                path.mkdir()
            else:
                path.touch(exist_ok=False)
        except OSError as error:
            _call(error, inside)
            raise
        try:
            held = _lock(path, wait=True)
        except FileNotFoundError:  # swept before it could be locked
            continue
        if path.exists():
            break
        _let_go(held)
    try:
        yield path
    finally:
        with suppress(OSError):  # what cannot be removed, the next sweep meets again
            _remove(path)
        _let_go(held)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes that ask for it out of a folder, for as long as this lasts or this process lives.

    The lock is this process's own: children that read for it do not hold it, and cannot keep it after its end.

    Raises:
        UsageError: another process holds it.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    with (folder / _LOCK).open("a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise UsageError(f"Another program is writing to {folder}. Wait for it, or give another folder.") from None
        except OSError:
            pass  # a file system without locks
        yield


def _lock(path: Path, *, wait: bool) -> int | None:
    """A lock that ends with the process, as the descriptor that holds it; None where there are no locks.

    Raises:
        BlockingIOError: somebody else holds it.
        FileNotFoundError: there is nothing at `path`.
    """
    if sys.platform == "win32":
        return None
    import fcntl

    held = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        os.close(held)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return held


def _let_go(held: int | None) -> None:
    if held is not None and sys.platform != "win32":
        import fcntl

        fcntl.flock(held, fcntl.LOCK_UN)  # closing is not enough where a process forked meanwhile holds it too
        os.close(held)


def _put_back(room: Path) -> None:
    """Undo an exchange that did not come to its end. Doing so twice, or half and then again, does no harm."""
    folder, record, before = room.parent, room / _RECORD, room / _BEFORE
    try:
        names = json.loads(record.read_bytes())
    except (FileNotFoundError, IsADirectoryError, ValueError, RecursionError):  # nothing had begun to move, or all was done
        return
    if before.is_symlink() or not (isinstance(names, list) and all(map(_is_plain, names))):
        return  # none of ours: it came with a folder of somebody else, and would reach beyond it
    for name in names:
        if not os.path.lexists(room / name) and os.path.lexists(folder / name):
            os.replace(folder / name, room / name)  # noqa: PTH105
    for path in sorted(before.iterdir()):
        os.replace(path, folder / path.name)  # noqa: PTH105
    _flush(folder)
    record.unlink()


def _is_plain(name: object) -> bool:
    """Whether something is the name of a file or folder, and no way to one."""
    return isinstance(name, str) and name not in ("", "..") and Path(name).name == name


def _remove(path: Path) -> None:
    """Remove something hidden; what an exchange had moved aside into it goes back first, or nothing is removed."""
    if path.is_dir():
        _put_back(path)
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Bring a file's content, or a folder's list of names, from the system's memory to the disk."""
    if sys.platform == "win32" and path.is_dir():
        return  # folders cannot be opened there
    handle = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not (path.is_dir() and error.errno == errno.EINVAL):  # a file system that cannot do that for folders
            _call(error, path)
            raise
    finally:
        os.close(handle)


def _flush_all(folder: Path) -> None:
    """Bring a folder to the disk with everything in it, what lies deepest first."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if not path.is_symlink() and (path.is_file() or path.is_dir()):
            _flush(path)
    _flush(folder)


def _rename_in(error: OSError, room: Path) -> None:
    """Give an error the name of what it is about as it will be called when it is whole."""
    if isinstance(error.filename, str | Path) and Path(error.filename).is_relative_to(room):
        parts = Path(error.filename).relative_to(room).parts
        _call(error, room.parent.joinpath(*(part for part in parts if part not in (_BEFORE, _RECORD))))
    elif error.filename is None and error.errno in _UNNAMED:
        _call(error, room.parent)


def _call(error: OSError, path: Path) -> None:
    """Say what an error is about, and nothing else."""
    error.filename = str(path)
    if error.filename2 is not None:  # of a rename; setting it to None would print as a name
        del error.filename2


def _size(count: int) -> str:
    """A number of bytes for a reader."""
    for unit, bytes_ in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= bytes_:
            return f"{count / bytes_:.1f} {unit}"
    return f"{count} bytes"
