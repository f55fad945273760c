"""Sets of pictures: read against Pillow, cut, copied and read by other processes."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from tests.data.trees import folder, packed
from vitral.data.pictures import Arrays, BadPictures, Files, PictureSet, PictureStore
from vitral.data.splits import read_pictures
from vitral.errors import PictureError, UsageError

NAMES = ["cat/1.png", "cat/2.png", "dog/a b.png", "dog/ü.png", "emu/1.jpg"]


@pytest.fixture(params=["folder", "x.tar", "x.tar.gz"])
def pictures(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PictureSet:
    monkeypatch.setenv("VITRAL_CACHE", str(tmp_path / "cache"))
    root = folder(tmp_path / "root", NAMES)
    if request.param == "folder":
        return read_pictures(root)
    return read_pictures(packed(root, tmp_path / request.param, "w:gz" if request.param.endswith("gz") else "w"))


def by_pillow(root: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(root / name).convert("RGB")) for name in NAMES]


def test_a_set_is_what_lies_on_the_disk(pictures: PictureSet, tmp_path: Path) -> None:
    assert len(pictures) == 5
    assert repr(pictures).endswith(": 5 pictures of 3 classes>")
    assert pictures.classes == ("cat", "dog", "emu")
    assert pictures.names == tuple(NAMES)
    assert pictures.labels.tolist() == [0, 0, 1, 1, 2]
    assert pictures.counts.tolist() == [2, 2, 1]
    for index, expected in enumerate(by_pillow(tmp_path / "root")):
        assert np.array_equal(pictures.read(index).array, expected)
        assert pictures.read(index).name == pictures.where(index)
        assert pictures.where(index).endswith(f"/{NAMES[index]}")
    picture, label = pictures[-1]
    assert (picture.name, label) == (pictures.where(4), 2)
    with pytest.raises(IndexError):
        pictures[5]


def as_numbers(batch: list[tuple[Any, int]]) -> list[tuple[np.ndarray, int]]:
    return [(picture.array.copy(), label) for picture, label in batch]


def test_workers_read_the_same(pictures: PictureSet) -> None:
    alone = as_numbers([pictures[index] for index in range(5)])
    loader = DataLoader(pictures, batch_size=2, num_workers=2, collate_fn=as_numbers, multiprocessing_context="fork")
    together = [item for batch in loader for item in batch]
    assert [label for _, label in together] == [label for _, label in alone]
    assert all(np.array_equal(ours, theirs) for (ours, _), (theirs, _) in zip(together, alone, strict=True))


ELSEWHERE = """
import pickle, sys
pictures = pickle.load(open(sys.argv[1], "rb"))
pickle.dump([pictures.read(index).array.copy() for index in range(len(pictures))], open(sys.argv[1], "wb"))
"""


def test_a_fresh_process_reads_the_same(pictures: PictureSet, tmp_path: Path) -> None:
    told = tmp_path / "told"
    told.write_bytes(pickle.dumps(pictures))
    subprocess.run([sys.executable, "-c", ELSEWHERE, str(told)], cwd="/", check=True)
    for index, theirs in enumerate(pickle.loads(told.read_bytes())):
        assert np.array_equal(pictures.read(index).array, theirs)


def test_a_relative_folder_is_found_after_a_change_of_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path / "root", NAMES)
    monkeypatch.chdir(tmp_path)
    pictures = read_pictures("root")
    assert pictures.where(0) == os.path.join("root", "cat/1.png")  # noqa: PTH118
    monkeypatch.chdir("/")
    assert np.array_equal(pictures.read(0).array, by_pillow(tmp_path / "root")[0])


def test_a_subset_has_the_same_classes(pictures: PictureSet) -> None:
    for chosen in ([4, 0, 0], np.array([4, 0, 0]), (4, 0, 0)):
        some = pictures.subset(chosen, name="some")
        assert some.names == (NAMES[4], NAMES[0], NAMES[0])
        assert some.labels.tolist() == [2, 0, 0]
        assert some.classes == pictures.classes
        assert np.array_equal(some.read(0).array, pictures.read(4).array)
        assert (some.name, pictures.subset([]).name) == ("some", pictures.name)
    assert some.subset([1]).where(0) == pictures.where(0)
    assert len(pictures.subset([])) == 0


@pytest.mark.parametrize("wrong", [[5], [-1], [True], np.array([0.5]), np.array([True]), np.array(["0"])])
def test_an_index_without_a_picture_is_refused(pictures: PictureSet, wrong: Any) -> None:
    with pytest.raises(UsageError, match=r"has pictures 0 to 4; .* is none of them"):
        pictures.subset(wrong)


def test_a_fingerprint_knows_names_labels_and_classes_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITRAL_CACHE", str(tmp_path / "cache"))
    root = folder(tmp_path / "root", NAMES)
    pictures = read_pictures(root)
    for same in (read_pictures(packed(root, tmp_path / "x.tar")), read_pictures(root.rename(tmp_path / "moved"))):
        assert same.fingerprint == pictures.fingerprint
    others = [
        pictures.subset([1, 0, 2, 3, 4]),
        pictures.subset([0, 1, 2, 3]),
        replace(pictures, classes=("cat", "dog", "fox")),
        replace(pictures, labels=np.array([0, 1, 1, 1, 2])),
        replace(pictures, store=Files(root, [*NAMES[:4], "emu/2.jpg"])),
    ]
    assert len({other.fingerprint for other in [pictures, *others]}) == 6


def test_a_set_that_contradicts_itself_is_refused() -> None:
    store = Arrays("memory", ["0", "1"], np.zeros((2, 8, 8), np.uint8))
    assert isinstance(store, PictureStore)
    good = PictureSet(name="x", classes=("a", "b"), labels=np.array([0, 1]), places=np.arange(2), store=store)
    assert good.read(1).size == (8, 8)
    assert good.where(1) == "memory/1"
    with pytest.raises(UsageError, match=r"labels of x lie in \[0, 2\]"):
        replace(good, labels=np.array([0, 2]))
    with pytest.raises(UsageError, match=r"labels of x lie in \[-1, 0\]"):
        replace(good, labels=np.array([-1, 0]))
    with pytest.raises(UsageError, match="names a class twice: 'a'"):
        replace(good, classes=("a", "a"))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda data: b"", r"It is empty \(0 bytes\)"),
        (lambda data: data[: len(data) // 2], "could not be decoded"),
        (lambda data: data[:20] + b"\0" * 400 + data[420:], "could not be decoded"),
        (lambda data: b"<html>not found</html>", "is no picture in a format read here"),
        (None, "There is no such file"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage: Any, sentence: str) -> None:
    root = folder(tmp_path, NAMES)
    pictures = read_pictures(root)
    for index in (0, 4):  # a PNG and a JPEG
        path = root / NAMES[index]
        if damage is None:
            path.unlink()
        else:
            path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(PictureError, match=sentence) as error:
            pictures.read(index)
        assert error.value.name == pictures.where(index)
    assert pictures.read(1).size == (20, 24)


def test_large_jpegs_may_be_read_smaller(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.new("RGB", (640, 480)).save(tmp_path / "a" / "1.jpg")
    picture = read_pictures(tmp_path).read(0, at_least=(100, 100))
    assert (picture.size, picture.image.size) == ((480, 640), (160, 120))


def test_what_may_happen_to_bad_pictures() -> None:
    assert get_args(BadPictures) == ("refuse", "skip")
