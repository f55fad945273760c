"""Whole or not at all: after errors, after interruptions, and after a kill before any call that changes the disk."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from vitral.base import disk
from vitral.base.disk import check_space, exchange, staging, sweep, whole_folder, write_whole

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")
CHANGING = ("replace", "rename", "mkdir", "unlink", "rmdir")


def told_of(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder with its content, and every folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def hidden_in(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.name.startswith(".vitral-")]


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """No file may grow beyond some bytes: what takes a part of it, then refuses, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# One file.


def test_a_file_is_written_and_written_again(tmp_path: Path) -> None:
    for content in (b"first", b"", b"second" * 100_000):
        write_whole(tmp_path / "file", content)
        assert told_of(tmp_path) == {"file": content}


def test_a_files_permissions_are_as_before_or_as_of_any_other(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        write_whole(tmp_path / "file", b"1")
        assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
        (tmp_path / "file").chmod(0o604)
        write_whole(tmp_path / "file", b"2")
        assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o604
    finally:
        os.umask(mask)


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "file").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "far" / "file")
    write_whole(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "far" / "file").read_bytes() == b"new"


def test_what_is_no_file_on_a_disk_is_written_to(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    ear = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_whole(tmp_path / "pipe", b"hello")
        assert os.read(ear, 9) == b"hello"
    finally:
        os.close(ear)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_full_disk_leaves_the_old_file_and_names_it(tmp_path: Path) -> None:
    write_whole(tmp_path / "file", b"old")
    with no_file_beyond(1000), pytest.raises(OSError, match="File too large") as caught:
        write_whole(tmp_path / "file", b"n" * 2000)
    assert (caught.value.strerror, caught.value.filename) == ("File too large", str(tmp_path / "file"))
    assert told_of(tmp_path) == {"file": b"old"}


def test_places_that_cannot_be_written_to_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "folder").mkdir()
    with pytest.raises(NotADirectoryError) as caught:
        write_whole(tmp_path / "file" / "x", b"")
    assert (caught.value.strerror, caught.value.filename) == ("Not a directory", str(tmp_path / "file" / "x"))
    with pytest.raises(IsADirectoryError, match="A folder stands where a file is to be written") as held:
        write_whole(tmp_path / "folder", b"")
    assert held.value.filename == str(tmp_path / "folder")
    with pytest.raises(FileNotFoundError) as absent:
        write_whole(tmp_path / "absent" / "x", b"")
    assert str(absent.value) == f"[Errno 2] No such file or directory: '{tmp_path}/absent/x'"
    for refused in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=r"stands where|Not a directory") as below, staging(refused):
            pytest.fail("nothing is to be done there")
        assert str(below.value.filename).startswith(str(tmp_path / "file"))
        with pytest.raises(OSError, match=r"stands where|Not a directory"), whole_folder(refused):
            pytest.fail("nothing is to be done there")
    assert told_of(tmp_path) == {"file": b"mine", "folder": None}


def test_a_folder_that_refuses_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a disk mounted for reading does; that it is refused to root too, a patched call has to play."""

    def refusing(path: Any, *rest: Any, **options: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(os, "mkdir", refusing)
    monkeypatch.setattr(Path, "touch", refusing)
    with pytest.raises(OSError, match="Read-only file system") as caught:
        write_whole(tmp_path / "x", b"")
    assert caught.value.filename == str(tmp_path / "x")
    with pytest.raises(OSError, match="Read-only file system") as caught, whole_folder(tmp_path / "x"):
        pytest.fail("nothing is to be done there")
    assert caught.value.filename == str(tmp_path)


# One folder.


def fill(folder: Path, mark: bytes) -> None:
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / mark.decode()).write_bytes(mark)
    (folder / "deep" / "er" / "file").write_bytes(mark * 10)


def filled(mark: bytes) -> dict[str, bytes | None]:
    return {mark.decode(): mark, "deep": None, "deep/er": None, "deep/er/file": mark * 10}


def test_a_folder_appears_when_it_is_whole_and_replaces_what_was_there(tmp_path: Path) -> None:
    place = tmp_path / "made" / "for" / "it"
    with whole_folder(place) as fresh:
        fill(fresh, b"old")
        assert not place.exists()
    assert told_of(place) == filled(b"old")
    with whole_folder(place) as fresh:
        assert list(fresh.iterdir()) == []
        fill(fresh, b"new")
        assert told_of(place) == filled(b"old")
    assert told_of(place) == filled(b"new")
    assert hidden_in(tmp_path) == []


@pytest.mark.parametrize("error", [RuntimeError("mine"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
def test_a_folder_that_fails_is_nowhere(error: BaseException, tmp_path: Path) -> None:

    def fail(place: Path) -> None:
        with whole_folder(place) as fresh:
            fill(fresh, b"half")
            raise error

    with pytest.raises(type(error)) as caught:
        fail(tmp_path / "made" / "for" / "it")
    assert caught.value is error
    assert told_of(tmp_path) == {}
    with whole_folder(tmp_path / "it") as fresh:
        fill(fresh, b"old")
    with pytest.raises(type(error)):
        fail(tmp_path / "it")
    assert told_of(tmp_path) == {"it": None, **{f"it/{name}": content for name, content in filled(b"old").items()}}


def test_folders_made_for_it_go_unless_somebody_uses_them(tmp_path: Path) -> None:
    with staging(tmp_path / "a" / "b" / "c"):
        (tmp_path / "a" / "theirs").write_bytes(b"")
    assert told_of(tmp_path) == {"a": None, "a/theirs": b""}


def test_an_error_inside_names_what_will_lie_there(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match="File too large") as caught,
        whole_folder(tmp_path / "it") as fresh,
        no_file_beyond(10),
    ):
        (fresh / "file").write_bytes(b"n" * 20)
    assert caught.value.filename == str(tmp_path), "the system did not say which"
    with pytest.raises(FileNotFoundError) as caught, whole_folder(tmp_path / "it") as fresh:
        os.replace(fresh / "absent", fresh / "file")  # noqa: PTH105
    assert str(caught.value) == f"[Errno 2] No such file or directory: '{tmp_path}/it/absent'"
    with pytest.raises(FileNotFoundError) as caught, whole_folder(tmp_path / "it"):
        (tmp_path / "elsewhere").read_bytes()
    assert caught.value.filename == str(tmp_path / "elsewhere")


@pytest.mark.parametrize("name", [".vitral-before", ".vitral-exchange.json", "before", ".vitral-0123456789abcdef"])
def test_no_name_is_in_the_way(name: str, tmp_path: Path) -> None:
    if name in (".vitral-before", ".vitral-exchange.json"):
        with pytest.raises(OSError, match=r"exists|directory"), whole_folder(tmp_path / name):
            pass
        assert told_of(tmp_path) == {}
    else:
        with whole_folder(tmp_path / name) as fresh:
            fill(fresh, b"x")
        assert told_of(tmp_path / name) == filled(b"x")


# Several files among others.


def test_an_exchange_moves_in_what_is_named_and_leaves_the_rest(tmp_path: Path) -> None:
    for name in ("weights", "config", "old_config", "notes"):
        (tmp_path / name).write_bytes(b"old")
    with staging(tmp_path) as room:
        for name in ("weights", "config", "extra", "scratch"):
            (room / name).write_bytes(b"new")
        exchange(room, ["config", "extra", "weights"], away=["old_config", "absent"])
    assert told_of(tmp_path) == {"weights": b"new", "config": b"new", "extra": b"new", "notes": b"old"}


def test_an_interrupted_exchange_is_as_if_nothing_had_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted before the first, second, … move, and once more while things are put back."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    real = os.replace
    interrupted = 0
    after = {"weights": b"new", "config": b"new", "extra": b"new", "notes": b"old"}

    def went_through(folder: Path) -> bool:
        try:
            with staging(folder) as room:
                for name in ("weights", "config", "extra"):
                    (room / name).write_bytes(b"new")
                exchange(room, ["config", "extra", "weights"], away=["old_config"])
        except KeyboardInterrupt:
            return False
        return True

    for first in range(1, 9):
        for second in (0, 1, 2):
            folder = tmp_path / f"{first}-{second}"
            folder.mkdir()
            for name in ("weights", "config", "old_config", "notes"):
                (folder / name).write_bytes(b"old")
            before, calls = told_of(folder), 0

            def replace(source: Path, target: Path, at: tuple[int, ...] = (first, first + second if second else 0)) -> None:
                nonlocal calls
                calls += 1
                if calls in at:
                    raise KeyboardInterrupt
                real(source, target)

            with monkeypatch.context() as patch:
                patch.setattr(os, "replace", replace)
                done = went_through(folder)
            interrupted += not done
            sweep(folder)
            assert told_of(folder) == (after if done else before)
    assert interrupted == 18, "six moves, three ways each"


def test_a_folder_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine").write_bytes(b"mine")
    (tmp_path / "b").write_bytes(b"mine")
    before = told_of(tmp_path)
    for name, kind in (("a", "folder"), ("b", "file")):
        with staging(tmp_path) as room:
            (room / name).mkdir() if name == "b" else (room / name).write_bytes(b"new")
            with pytest.raises(OSError, match=f"A {kind} stands in the way; move it elsewhere") as caught:
                exchange(room, [name])
        assert caught.value.filename == str(tmp_path / name)
    assert told_of(tmp_path) == before


# Kills.


def killed_at(number: int, work: Callable[[], None]) -> bool:
    """Whether a process that is killed before its `number`-th call that changes the disk, had so many to make."""
    child = os.fork()
    if child == 0:  # pragma: no cover
        try:
            calls = 0

            def deadly(real: Any) -> Any:
                def call(*args: Any, **options: Any) -> Any:
                    nonlocal calls
                    calls += 1
                    if calls == number:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return real(*args, **options)

                return call

            for name in CHANGING:
                setattr(os, name, deadly(getattr(os, name)))
            work()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
    return os.WIFSIGNALED(status)


def of_a_file(folder: Path, mark: bytes) -> None:
    write_whole(folder / "file", mark * 1000)


def of_a_folder(folder: Path, mark: bytes) -> None:
    with whole_folder(folder / "it") as fresh:
        fill(fresh, mark)


def of_a_few(folder: Path, mark: bytes) -> None:
    with staging(folder) as room:
        (room / "weights").write_bytes(mark)
        (room / (mark.decode() + ".json")).write_bytes(mark)
        away = [path.name for path in folder.glob("*.json")]
        exchange(room, [mark.decode() + ".json", "weights"], away=away)


@needs_fork
@pytest.mark.parametrize("work", [of_a_file, of_a_folder, of_a_few])
def test_a_kill_at_any_moment_leaves_the_old_or_the_new(
    work: Callable[[Path, bytes], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before its first call, its second, …; and then, while that is put in order, at some call once more."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # a kill takes nothing from the system's memory
    ends = []
    for mark in (b"old", b"new"):
        (tmp_path / mark.decode()).mkdir()
        work(tmp_path / mark.decode(), mark)
        ends.append({**told_of(tmp_path / mark.decode()), "theirs": b"mine"})
    seen, left, number, going = [], 0, 0, True
    while going:
        number += 1
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "theirs").write_bytes(b"mine")
        work(folder, b"old")
        assert told_of(folder) == ends[0]
        going = killed_at(number, lambda folder=folder: work(folder, b"new"))  # type: ignore[misc]
        left += bool(hidden_in(folder))
        if number % 3 == 0:
            killed_at(1 + number % 5, lambda folder=folder: sweep(folder))  # type: ignore[misc]
        sweep(folder)
        now = told_of(folder)
        assert now in ends, f"killed before call {number}"
        seen.append(now == ends[1])
        work(folder, b"new")
        assert told_of(folder) == ends[1]
    assert seen == sorted(seen), "the old until some call, the new from then on"
    assert not seen[0]
    assert seen[-1]
    assert left >= 1
    assert number >= 3


def test_what_cannot_be_put_back_is_not_thrown_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails while the old is out of its place: it stays aside until a sweep can put it back."""
    (tmp_path / "file").write_bytes(b"old")
    real, calls = os.replace, 0

    def failing(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with staging(tmp_path) as room:
        (room / "file").write_bytes(b"new")
        with pytest.raises(OSError, match="Input/output error"):
            exchange(room, ["file"])
    monkeypatch.undo()
    assert not (tmp_path / "file").exists()
    sweep(tmp_path)
    assert told_of(tmp_path) == {"file": b"old"}


@needs_fork
def test_what_a_living_process_writes_is_left(tmp_path: Path) -> None:
    ear, mouth = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover
        with staging(tmp_path) as room:
            (room / "half").write_bytes(b"half")
            os.write(mouth, b".")
            time.sleep(60)
        os._exit(1)
    try:
        assert os.read(ear, 1) == b"."
        sweep(tmp_path)
        assert len(hidden_in(tmp_path)) == 1
        with whole_folder(tmp_path / "mine") as fresh:
            fill(fresh, b"x")
        assert len(hidden_in(tmp_path)) == 1
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ear)
        os.close(mouth)
    sweep(tmp_path)
    assert told_of(tmp_path / "mine") == filled(b"x")
    assert hidden_in(tmp_path) == []


def test_two_at_once_in_one_process_do_not_sweep_each_other(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "a") as one:
        fill(one, b"a")
        with whole_folder(tmp_path / "b") as other:
            fill(other, b"b")
            write_whole(tmp_path / "c", b"c")
            sweep(tmp_path)
    assert told_of(tmp_path / "a") == filled(b"a")
    assert told_of(tmp_path / "b") == filled(b"b")
    assert hidden_in(tmp_path) == []


def test_only_what_is_ours_is_swept(tmp_path: Path) -> None:
    names = (".vitral-notes", ".vitral-0123456789ABCDEF", "vitral-0123456789abcdef", ".vitral-0123456789abcdef0", ".hidden")
    for name in names:
        (tmp_path / name).write_bytes(b"mine")
    (tmp_path / ".vitral-0123456789abcdef").mkdir()
    (tmp_path / ".vitral-0123456789abcdef" / "half").write_bytes(b"")
    (tmp_path / ".vitral-00000000000000ff").write_bytes(b"half")
    sweep(tmp_path)
    assert told_of(tmp_path).keys() == set(names)
    sweep(tmp_path / "absent")
    sweep(tmp_path / ".hidden")


def test_a_folder_from_somebody_else_cannot_reach_beyond_itself(tmp_path: Path) -> None:
    """What looks like an exchange that was broken off, with ways and links out of the folder."""
    for name in ("folder", "precious"):
        (tmp_path / name).mkdir()
    (tmp_path / "precious" / "file").write_bytes(b"mine")
    folder, out = tmp_path / "folder", (str(tmp_path / "precious"), "../precious", "..", ".", "", 3, None)
    for number, name in enumerate(out):
        room = folder / f".vitral-{number:016x}"
        (room / ".vitral-before").mkdir(parents=True)
        (room / ".vitral-exchange.json").write_text(json.dumps([name]))
    (folder / ".vitral-000000000000000a").symlink_to(tmp_path / "precious")
    (folder / ".vitral-000000000000000c").mkdir()
    (folder / ".vitral-000000000000000c" / ".vitral-exchange.json").write_text("[" * 100_000)
    room = folder / ".vitral-000000000000000b"
    room.mkdir()
    (room / ".vitral-before").symlink_to(tmp_path / "precious")
    (room / ".vitral-exchange.json").write_text("[]")
    sweep(folder)
    assert told_of(tmp_path / "precious") == {"file": b"mine"}
    assert [path.name for path in folder.iterdir()] == [".vitral-000000000000000a"]


def test_without_locks_what_is_old_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_lock", lambda path, wait: None)
    young, old = tmp_path / ".vitral-0000000000000001", tmp_path / ".vitral-0000000000000002"
    young.mkdir()
    old.mkdir()
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(old, (two_days_ago, two_days_ago))
    with whole_folder(tmp_path / "it") as fresh:
        fill(fresh, b"x")
    assert hidden_in(tmp_path) == [young.name]
    assert told_of(tmp_path / "it") == filled(b"x")


# Room on the disk.


def test_there_is_room_or_a_sentence(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    check_space(tmp_path, 0)
    check_space(tmp_path / "not" / "there" / "yet", free // 2)
    with pytest.raises(OSError, match=r"are needed and .* GB are free|are needed and .* are free") as caught:
        check_space(tmp_path / "absent", 10**18)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(tmp_path / "absent")
    assert str(caught.value.strerror).startswith("Not enough room on the disk: 1000000000.0 GB are needed and ")
    assert str(caught.value.strerror).endswith("Delete something or choose a folder on another disk")
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize(("count", "told"), [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (2_340_000, "2.3 MB")])
def test_sizes_are_told_to_a_reader(count: int, told: str) -> None:
    assert disk._size(count) == told
