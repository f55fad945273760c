"""Archives: against tarfile's own reading, and what damaged or hostile ones hold."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import pickle
import shutil
import tarfile
from collections import namedtuple
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.data.trees import folder, hand_made, packed
from vitral.data import archive as page
from vitral.data.archive import cache_folder, is_archive, open_archive
from vitral.errors import PictureError, UsageError

FILES = ["a/1.png", "a/2 ü.jpg", "b/" + "long " * 25 + "/3.png", "README.md", "a/.hidden.png", "c/"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VITRAL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return folder(tmp_path / "root", FILES)


def contents(path: Path) -> dict[str, bytes]:
    opened = open_archive(path)
    return {name: opened.source(place) for place, name in enumerate(opened.names)}


def on_disk(root: Path) -> dict[str, bytes]:
    return {
        file.relative_to(root).as_posix(): file.read_bytes()
        for file in root.rglob("*")
        if file.is_file() and not file.name.startswith(".")
    }


@pytest.mark.parametrize("top", ["", "./"])
@pytest.mark.parametrize(("name", "mode"), [("x.tar", "w"), ("x.tar.gz", "w:gz"), ("x.tar.xz", "w:xz"), ("x.tbz", "w:bz2")])
def test_the_content_of_every_file_is_that_on_the_disk(root: Path, tmp_path: Path, name: str, mode: str, top: str) -> None:
    path = packed(root, tmp_path / name, mode, top)
    assert is_archive(path)
    for _ in range(2):  # packed, and from the cache
        assert contents(path) == on_disk(root)
        assert set(open_archive(path).tree.folders) >= {"a", "b", "c"}


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_tar_format(root: Path, tmp_path: Path, form: int) -> None:
    with tarfile.open(tmp_path / "x.tar", "w", format=form) as archive:
        archive.add(root, arcname=".")
    assert contents(tmp_path / "x.tar") == on_disk(root)


def test_threads_copies_and_forks_read_the_same(root: Path, tmp_path: Path) -> None:
    opened = open_archive(packed(root, tmp_path / "x.tar.gz", "w:gz"))
    copy = pickle.loads(pickle.dumps(opened))
    expected = [on_disk(root)[name] for name in opened.names]
    with ThreadPoolExecutor(4) as pool:
        for reader in (opened, copy):
            assert list(pool.map(reader.source, list(range(len(expected))) * 20)) == expected * 20


def test_of_two_members_with_one_name_the_later_counts(tmp_path: Path) -> None:
    members = [("a/1.png", b"old", tarfile.REGTYPE), ("./a//1.png", b"newer", tarfile.REGTYPE)]
    assert contents(hand_made(tmp_path / "x.tar", members)) == {"a/1.png": b"newer"}


def test_a_file_that_is_not_there_fails_when_it_is_read(root: Path, tmp_path: Path) -> None:
    some = open_archive(packed(root, tmp_path / "x.tar")).select(["a/nothing.png", "a/../a/1.png"])
    assert some.source(1) == (root / "a/1.png").read_bytes()
    with pytest.raises(PictureError, match=r"x\.tar/a/nothing\.png: The archive holds no such file"):
        some.source(0)


@pytest.mark.parametrize("name", ["../evil.png", "a/../../evil.png", "/etc/evil.png", "a/.."])
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    path = hand_made(tmp_path / "x.tar", [("a/1.png", b"1", tarfile.REGTYPE), (name, b"2", tarfile.REGTYPE)])
    with pytest.raises(UsageError, match="a name that leads out of it"):
        open_archive(path)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (tarfile.SYMTYPE, "holds a link"),
        (tarfile.LNKTYPE, "holds a link"),
        (tarfile.CHRTYPE, "holds a device"),
        (tarfile.BLKTYPE, "holds a device"),
        (tarfile.FIFOTYPE, "holds a device, a pipe"),
    ],
)
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes, sentence: str) -> None:
    path = hand_made(tmp_path / "x.tar", [("a/1.png", b"1", tarfile.REGTYPE), ("a/2.png", None, kind)])
    with pytest.raises(UsageError, match=rf"{sentence}.*\('a/2\.png'\)"):
        open_archive(path)


def spoilt_header(data: bytes) -> bytes:
    return data[:1024] + b"\xff" * 512 + data[1536:]


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda data: data[:2567], "damaged|cut short"),
        (lambda data: data[:1024], "cut short"),  # exactly after the first file: tarfile takes this for the end
        (spoilt_header, "ends its list of files at byte 1,024 without an end mark: it is damaged there"),
        (lambda data: b"no tar at all", "no tar archive, or a damaged one"),
        (lambda data: b"", "no tar archive, or a damaged one"),
    ],
)
@pytest.mark.parametrize("opener", [None, gzip.compress, bz2.compress, lzma.compress])
def test_a_damaged_archive_is_refused_and_leaves_nothing(
    tmp_path: Path, cache: Path, damage: Callable[[bytes], bytes], sentence: str, opener: Callable[[bytes], bytes] | None
) -> None:
    path = hand_made(tmp_path / "x.tar", [(f"a/{place}.png", b"1" * 500, tarfile.REGTYPE) for place in range(4)])
    content = damage(path.read_bytes())
    path.write_bytes(opener(content) if opener else content)
    with pytest.raises(UsageError, match=sentence):
        open_archive(path)
    assert [file for file in cache.rglob("*") if file.is_file()] == []


@pytest.mark.parametrize("opener", [gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: data[:40] + b"\0\0\0\0\0\0\0\0" + data[48:]])
def test_damaged_compression_is_refused_and_leaves_nothing(
    root: Path, tmp_path: Path, cache: Path, opener: Callable[[bytes], bytes], damage: Callable[[bytes], bytes]
) -> None:
    path = packed(root, tmp_path / "x.tar")
    path.write_bytes(damage(opener(path.read_bytes())))
    with pytest.raises(UsageError, match="is damaged"):
        open_archive(path)
    assert [file for file in cache.rglob("*") if file.is_file()] == []


def test_the_second_opening_takes_the_cache(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [packed(root, tmp_path / "x.tar.gz", "w:gz"), packed(root, tmp_path / "y.tar")]
    expected = [contents(path) for path in paths]
    monkeypatch.setattr(page, "_indexed", None)
    assert [contents(path) for path in paths] == expected


def test_another_content_is_another_archive(root: Path, tmp_path: Path) -> None:
    path = packed(root, tmp_path / "x.tar.gz", "w:gz")
    open_archive(path)
    folder(root, ["d/new.png"])
    packed(root, path, "w:gz")
    assert "d/new.png" in open_archive(path).names


@pytest.mark.parametrize("suffix", [".tar", ".npz"])
@pytest.mark.parametrize("spoil", [Path.unlink, lambda file: os.truncate(file, 100), lambda file: file.write_bytes(b"")])
def test_a_spoilt_cache_is_made_again(
    root: Path, tmp_path: Path, cache: Path, suffix: str, spoil: Callable[[Path], Any]
) -> None:
    path = packed(root, tmp_path / "x.tar.gz", "w:gz")
    expected = contents(path)
    spoil(next(cache.rglob(f"*{suffix}")))
    assert contents(path) == expected


def test_an_archive_that_changed_is_not_read_on(root: Path, tmp_path: Path) -> None:
    path = packed(root, tmp_path / "x.tar")
    told = pickle.dumps(open_archive(path))
    folder(root, ["d/new.png"])
    packed(root, path)
    with pytest.raises(UsageError, match=r"x\.tar has changed since it was opened"):
        pickle.loads(told)


def test_a_file_cut_short_meanwhile_is_named(root: Path, tmp_path: Path) -> None:
    opened = open_archive(packed(root, tmp_path / "x.tar"))
    os.truncate(tmp_path / "x.tar", int(opened.offsets.max()) + 1)
    with pytest.raises(PictureError, match=r"Only 1 of its [\d,]+ bytes are there"):
        opened.source(int(opened.offsets.argmax()))


def test_without_room_nothing_is_unpacked(root: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    path = packed(root, tmp_path / "x.tar.gz", "w:gz")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(1 << 40, 1 << 40, 100 << 20))
    with pytest.raises(UsageError, match=r"There is no room in .* Name a folder with more room in .*VITRAL_CACHE"):
        open_archive(path)
    assert [file for file in cache.rglob("*") if file.is_file()] == []


def test_a_cache_that_cannot_be_written_to(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("VITRAL_CACHE", str(tmp_path / "file"))
    assert contents(packed(root, tmp_path / "x.tar")) == on_disk(root)
    with pytest.raises(UsageError, match=r"x\.tar\.gz cannot be unpacked into .*VITRAL_CACHE"):
        open_archive(packed(root, tmp_path / "x.tar.gz", "w:gz"))


def test_the_cache_lies_at_home_unless_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("VITRAL_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "vitral"


def test_what_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"PK\x03\x04")
    assert not is_archive(tmp_path / "x")
    with pytest.raises(UsageError, match="cannot be read"):
        open_archive(tmp_path / "gone.tar")
