"""From names to sets: folders, archives, manifests and the digits; shares counted by hand."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.trees import folder, packed
from vitral.data.pictures import Arrays, PictureSet
from vitral.data.splits import _held_out, all_splits, read_pictures, read_splits
from vitral.errors import PictureError, UnknownNameError, UsageError

SPLIT = ["train/a/1.png", "train/b/2.png", "train/b/3.png", "val/a/4.png", "val/b/5.png", "test/a/6.png", "test/b/7.png"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITRAL_CACHE", str(tmp_path / "cache"))


def told(sets: dict[str, PictureSet]) -> dict[str, list[tuple[str, str]]]:
    return {
        split: [
            (name.removeprefix("top/"), found.classes[label]) for name, label in zip(found.names, found.labels, strict=True)
        ]
        for split, found in sets.items()
    }


EXPECTED = {
    split: [(name, name.split("/")[1]) for name in SPLIT if name.startswith(split)] for split in ("train", "val", "test")
}


def test_a_folder_and_its_archives_are_one_set(tmp_path: Path) -> None:
    root = folder(tmp_path / "root", [*SPLIT, "README.md", "train/LICENSE.txt", "train/.DS_Store"])
    sources = [
        root,
        packed(root, tmp_path / "x.tar"),
        packed(root, tmp_path / "x.tar.gz", "w:gz"),
        packed(root, tmp_path / "x.tgz", "w:gz", top="top/"),  # as `tar -czf x.tgz top` makes it
        packed(root, tmp_path / "dotted.tar", "w", top="./top/"),
    ]
    for source in sources:
        found = all_splits(source)
        assert list(found) == ["train", "val", "test"]
        assert told(found) == EXPECTED
        assert found["test"].read(1).array.tobytes() == read_pictures(root, "test").read(1).array.tobytes()
    assert all_splits(root)["val"].name == "root/val"
    assert all_splits(sources[1])["val"].where(0) == f"{tmp_path}/x.tar/val/a/4.png"


@pytest.mark.parametrize("name", ["manifest.csv", "manifest.jsonl"])
def test_a_manifest_names_the_same(tmp_path: Path, name: str) -> None:
    root = folder(tmp_path / "root", SPLIT)
    rows = [(file, file.split("/")[1], file.split("/")[0]) for file in SPLIT]
    keys = ("file", "label", "split")
    lines = [json.dumps(dict(zip(keys, row, strict=True))) for row in rows]
    (root / name).write_text("\n".join([",".join(keys), *map(",".join, rows)] if name.endswith("csv") else lines))
    for source in (root / name, root, packed(root, tmp_path / "x.tar"), packed(root, tmp_path / "y.tar", top="top/")):
        found = all_splits(source)
        assert told(found) == EXPECTED
        assert found["val"].read(0).size == (20, 24)
    (root / "classes.txt").write_text("b\na\n")
    for source in (root, packed(root, tmp_path / "z.tar")):
        assert all_splits(source)["train"].classes == ("b", "a")
        assert told(all_splits(source)) == EXPECTED


@pytest.mark.parametrize("pack", [False, True])
def test_a_file_that_a_manifest_names_in_vain_fails_when_it_is_read(tmp_path: Path, pack: bool) -> None:
    root = folder(tmp_path / "root", ["pictures/a b.png"])
    (root / "manifest.csv").write_text('file,label\n"pictures/a b.png",1\npictures/c.png,0\n')
    pictures = read_pictures(packed(root, tmp_path / "x.tar") if pack else root / "manifest.csv")
    assert (pictures.classes, pictures.labels.tolist()) == (("0", "1"), [1, 0])
    assert pictures.read(0).size == (20, 24)
    with pytest.raises(PictureError, match=r"pictures/c\.png: .*no such file"):
        pictures.read(1)


def test_one_set_of_many_and_the_only_one(tmp_path: Path) -> None:
    root = folder(tmp_path, SPLIT)
    assert told({"val": read_pictures(root, "validation")})["val"] == EXPECTED["val"]
    assert read_pictures(root / "train").names == ("a/1.png", "b/2.png", "b/3.png")
    with pytest.raises(UsageError, match=r"has the splits train, val, test. Say which one"):
        read_pictures(root)
    with pytest.raises(UnknownNameError, match="Did you mean 'val"):
        read_pictures(root, "vall")
    with pytest.raises(UsageError, match="has no split val; it has none"):
        read_pictures(root / "train", "val")


def test_what_judges(tmp_path: Path) -> None:
    root = folder(tmp_path / "all", SPLIT)
    splits = read_splits(root)
    assert (len(splits.train), splits.held_out and len(splits.held_out), splits.test and len(splits.test)) == (3, 2, 2)
    assert splits.classes == ("a", "b")

    two = folder(tmp_path / "two", [name for name in SPLIT if "val" not in name])
    splits = read_splits(two)
    assert splits.held_out is not None
    assert splits.held_out.names[0] == "test/a/6.png"
    assert splits.test is None

    plain = folder(tmp_path / "plain", ["b/1.png", "a/2.png"])
    assert read_splits(plain).held_out is None
    splits = read_splits(two, plain)
    assert splits.held_out is not None
    assert splits.held_out.names == ("a/2.png", "b/1.png")
    assert splits.test is not None
    assert read_splits(plain, two).held_out.names == ("test/a/6.png", "test/b/7.png")  # type: ignore[union-attr]


def test_another_order_of_the_same_classes_is_put_right(tmp_path: Path) -> None:
    folder(tmp_path, ["train/a/1.png", "train/b/2.png", "other/3.png", "other/4.png"])
    (tmp_path / "other" / "list.csv").write_text("file,label\n3.png,a\n4.png,0\n")
    (tmp_path / "other" / "classes.txt").write_text("b\na\n")
    held_out = read_splits(tmp_path / "train", tmp_path / "other" / "list.csv").held_out
    assert held_out is not None
    assert (held_out.classes, held_out.labels.tolist()) == (("a", "b"), [0, 1])


def of(counts: list[int]) -> PictureSet:
    labels = np.repeat(np.arange(len(counts)), counts)
    names = [f"{place}.png" for place in range(len(labels))]
    store = Arrays("memory", names, np.zeros((len(labels), 1, 1), np.uint8))
    classes = tuple(map(str, range(len(counts))))
    return PictureSet(name="x", classes=classes, labels=labels, places=np.arange(len(labels)), store=store)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(sum), st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_a_share_takes_its_part_of_every_class(counts: list[int], share: float) -> None:
    train = of(counts)
    apart = _held_out(train, share, seed=0)
    for label, count in enumerate(counts):
        taken = int(apart[train.labels == label].sum())
        if count < 2:
            assert taken == 0
        else:
            assert 1 <= taken <= count - 1
            assert abs(taken - share * count) <= 1


def test_a_share_depends_on_seed_and_names_alone() -> None:
    train = of([30, 30])
    taken = {name for name, out in zip(train.names, _held_out(train, 0.3, 7), strict=True) if out}
    assert len(taken) == 18
    order = np.random.default_rng(0).permutation(60)
    mixed = train.subset(order)
    assert {name for name, out in zip(mixed.names, _held_out(mixed, 0.3, 7), strict=True) if out} == taken
    assert not np.array_equal(_held_out(train, 0.3, 8), _held_out(train, 0.3, 7))


def test_a_share_and_the_rest_are_all_of_it(tmp_path: Path) -> None:
    root = folder(tmp_path, [f"{kind}/{number}.png" for kind in "ab" for number in range(10)] + ["c/only.png"])
    splits = read_splits(root, 0.2, seed=3)
    assert splits.held_out is not None
    assert sorted(splits.train.names + splits.held_out.names) == sorted(read_pictures(root).names)
    assert splits.held_out.counts.tolist() == [2, 2, 0]
    assert splits.held_out.name == f"{tmp_path.name}, held out"
    assert splits.train.fingerprint == read_splits(root, 0.2, seed=3).train.fingerprint
    assert splits.train.fingerprint != read_splits(root, 0.2, seed=4).train.fingerprint


def test_digits_are_built_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = pytest.importorskip("sklearn.datasets").load_digits()
    splits = read_splits("digits")
    assert splits.held_out is not None
    assert (len(splits.train), len(splits.held_out), splits.test) == (1438, 359, None)
    assert splits.classes == tuple("0123456789")
    pixels = np.rint(source.images * 255 / 16).astype(np.uint8)
    theirs = Counter((image.tobytes(), int(label)) for image, label in zip(pixels, source.target, strict=True))
    ours = Counter((picture.array[..., 0].tobytes(), label) for picture, label in splits.held_out)
    assert ours <= theirs
    assert (splits.train.counts + splits.held_out.counts).tolist() == np.bincount(source.target).tolist()
    monkeypatch.chdir(tmp_path)
    folder(tmp_path, ["digits/a/1.png"])
    assert len(all_splits("digits")) == 2
    assert read_pictures("./digits").names == read_pictures(Path("digits")).names == ("a/1.png",)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda root: all_splits(root / "trian"), r"no file or folder .*trian\. Did you mean 'train'"),
        (lambda root: all_splits(""), "An empty name came"),
        (lambda root: all_splits("digit"), "Did you mean 'digits'"),
        (lambda root: all_splits(root / "train" / "a" / "1.png"), "neither a folder nor a tar archive"),
        (lambda root: all_splits(root / "pipe"), "is a pipe, a device or a socket"),
        (lambda root: read_splits(root, 0.0), "must lie between 0 and 1"),
        (lambda root: read_splits(root, 1), "must lie between 0 and 1"),
        (lambda root: read_splits(root, float("nan")), "finite number"),
        (lambda root: read_splits(root, 0.5), "has a split val with 2 pictures to judge by"),
        (lambda root: read_splits(root / "train", 0.5, seed=-1), "seed must be a whole number"),
        (lambda root: read_splits(root / "judges"), "has no split train, only test"),
        (lambda root: read_splits(root / "train", root / "judges"), "differ; only in train: 'b'; only in judges/test: 'c'"),
        (lambda root: read_splits(root / "train", root / "learns"), "has only a split train"),
        (lambda root: all_splits(root / "two"), "Name the one that is meant"),
    ],
)
def test_what_cannot_be_met_is_refused(tmp_path: Path, call: Any, sentence: str) -> None:
    root = folder(tmp_path / "root", SPLIT)
    extra = ["judges/test/a/1.png", "judges/test/c/1.png", "learns/train/a/1.png", "two/manifest.csv", "two/manifest.jsonl"]
    folder(root, extra)
    os.mkfifo(root / "pipe")
    for name in ("judges", "learns", "two"):  # beside the splits they would be taken for classes
        (root / name).rename(tmp_path / name)

    class Root(type(root)):  # type: ignore[misc]
        def __truediv__(self, name: str) -> Path:
            return tmp_path / name if name in {"judges", "learns", "two"} else Path(self) / name

    with pytest.raises(UsageError, match=sentence):
        call(Root(root))


@pytest.mark.slow
def test_cifar_10_as_it_comes(shared: Path) -> None:
    path = shared / "data" / "cifar10" / "cifar10-jpeg.tar.gz"
    splits = read_splits(path, 0.1)
    assert splits.train.counts.tolist() == [4500] * 10
    assert splits.held_out is not None
    assert splits.held_out.counts.tolist() == [500] * 10
    assert splits.test is not None
    assert splits.test.counts.tolist() == [1000] * 10
    assert splits.classes == ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    assert splits.test[9_999][0].size == (32, 32)
