"""Sets of annotated pictures: what they say, round trips through all formats, and what is refused."""

from __future__ import annotations

import json
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.annotated import Remembered, boxed, coco, picture, voc, voc_file, voc_object, yolo
from tests.data.trees import packed
from vitral.data.objects import (
    ListedObjects,
    ObjectFormat,
    ObjectSet,
    ObjectSplits,
    object_formats,
    read_objects,
    write_objects,
)
from vitral.data.pictures import PictureStore
from vitral.errors import PictureError, UnknownNameError, UsageError


def same(one: ObjectSet, other: ObjectSet, *, ids: bool = True) -> None:
    """Both hold the same pictures with the same objects, whatever their order."""
    assert sorted(one.names) == sorted(other.names)
    place = {name: index for index, name in enumerate(other.names)}
    for index, name in enumerate(one.names):
        mine, theirs = one.annotations(index), other.annotations(place[name])
        np.testing.assert_array_equal(mine.boxes, theirs.boxes)
        np.testing.assert_array_equal(mine.labels, theirs.labels)
        np.testing.assert_array_equal(mine.crowd, theirs.crowd)
        np.testing.assert_array_equal(one.read(index).array, other.read(place[name]).array)
        if ids:
            np.testing.assert_array_equal(mine.ids, theirs.ids)
            np.testing.assert_array_equal(mine.areas, theirs.areas)
            assert mine.segmentation == theirs.segmentation
            assert one.image_id(index) == other.image_id(place[name])


# A box in 32-bit numbers within a picture of 60 × 50 pixels, as odd as they come.
sides = st.tuples(*[st.floats(0, 1, width=32).filter(lambda part: part == 0 or part > 1e-6) for _ in range(4)]).map(
    lambda four: np.float32([min(four[:2]) * 50, min(four[2:]) * 60, max(four[:2]) * 50, max(four[2:]) * 60]).tolist()
)
boxes = st.lists(sides.filter(lambda box: box[2] - box[0] > 1e-3 and box[3] - box[1] > 1e-3), max_size=4)


@pytest.mark.parametrize("format", ["coco", "voc", "yolo"])
@settings(max_examples=6)
@given(found=st.lists(boxes, min_size=1, max_size=3), seed=st.integers(0, 99))
def test_what_was_written_is_read_again_to_the_last_bit(format: ObjectFormat, found: list[list[float]], seed: int) -> None:
    numbers = np.random.default_rng(seed)
    objects, first = [], 1
    for each in found:
        labels = numbers.integers(0, 3, len(each)).tolist()
        objects.append(boxed(each, labels, crowd=[0] if format != "yolo" else [], first=first))
        first += len(each)
    one = Remembered(objects, [(60, 50)] * len(found), ("dog: a", "cat's <1>", "Bär"))
    with tempfile.TemporaryDirectory() as folder:
        write_objects({"val": one}, Path(folder) / "out", format=format)
        read = read_objects(Path(folder) / "out", classes=one.classes if format == "voc" else None)
        assert read.train is None
        assert read.classes == one.classes
        assert read.val is not None
        same(one, read.val, ids=format == "coco")
        if format == "coco":
            assert read.categories == one.categories


def test_the_published_numbers_of_coco_come_back_as_they_were(shared: Path, tmp_path: Path) -> None:
    source = shared / "data" / "coco128" / "coco128.tar"
    splits = read_objects(source)
    assert splits.train is not None
    assert (len(splits.train), len(splits.classes)) == (128, 80)
    small = splits.train.subset(range(40))  # type: ignore[attr-defined]
    write_objects(small, tmp_path / "out")
    same(small, read_objects(tmp_path / "out").sets["train"])
    import tarfile

    with tarfile.open(source) as archive:
        told = json.load(archive.extractfile("annotations/instances_train2017.json"))  # type: ignore[arg-type]
    published = {one["id"]: one for one in told["annotations"]}
    written = json.loads((tmp_path / "out" / "annotations" / "instances_train.json").read_text())["annotations"]
    assert len(written) > 200
    for one in written:
        for name, value in one.items():
            assert published[one["id"]][name] == value


def test_the_published_set_of_voc_is_read_whole(shared: Path) -> None:
    splits = read_objects(shared / "data" / "bccd" / "bccd-voc.tar")
    assert {name: len(one) for name, one in splits.sets.items()} == {"train": 205, "val": 87, "test": 72}
    assert splits.classes == ("Platelets", "RBC", "WBC")
    assert splits.train is not None
    first = splits.train.annotations(0)
    assert splits.train.read(0).size == splits.train.size_of(0) == (480, 640)
    assert len(first) > 5


def test_a_set_knows_its_pictures(tmp_path: Path) -> None:
    found = read_objects(coco(tmp_path / "set")).val
    assert isinstance(found, ListedObjects)
    assert isinstance(found, ObjectSet)
    assert isinstance(found.store, PictureStore)
    assert found.names == ("a.jpg", "b.jpg")
    assert found.classes == ("airplane", "dog")
    assert found.categories == (5, 18)
    assert [found.image_id(index) for index in range(2)] == [9, 4]
    assert found.counts.tolist() == [2, 1]
    assert repr(found) == "<ListedObjects set/val: 2 pictures, 3 objects of 2 classes>"
    assert found.annotations(-1).ids.tolist() == [1, 7]
    assert found.where(1) == str(tmp_path / "set" / "val2017" / "b.jpg")
    with pytest.raises(IndexError, match="has 2 pictures; there is none at 2"):
        found.annotations(2)
    again = pickle.loads(pickle.dumps(found))
    same(found, again)
    part = found.subset(np.array([1]))
    assert part.names == ("b.jpg",)
    assert part.annotations(0).segmentation == found.annotations(1).segmentation
    np.testing.assert_array_equal(part.read(0).array, found.read(1).array)
    with pytest.raises(UsageError, match="5 is none of them"):
        found.subset([5])
    with pytest.raises(UsageError, match="twice"):
        found.subset([0, 0])


@pytest.mark.parametrize("format", ["coco", "voc", "yolo"])
def test_sets_without_objects_and_pictures_full_of_them(tmp_path: Path, format: ObjectFormat) -> None:
    numbers = np.random.default_rng(0)
    corners = numbers.uniform(0, 30, (5000, 2)).astype(np.float32)
    full = boxed(np.concatenate([corners, corners + numbers.uniform(1, 10, (5000, 2))], axis=1))
    write_objects(Remembered([full, boxed([])], [(40, 40)] * 2, ["a"]), tmp_path / "full", format=format)
    read = read_objects(tmp_path / "full").sets["train"]
    assert [len(read.annotations(index)) for index in range(2)] == [5000, 0]
    np.testing.assert_array_equal(read.annotations(0).boxes, full.boxes)
    write_objects(Remembered([boxed([])] * 2, [(40, 40)] * 2, ["a"]), tmp_path / "none", format=format)
    empty = read_objects(tmp_path / "none").sets["train"]
    assert len(empty) == 2
    assert len(empty.annotations(1)) == 0
    assert empty.annotations(1).segmentation == ()


def test_the_same_in_an_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITRAL_CACHE", str(tmp_path / "cache"))
    roots = {
        "coco": coco(tmp_path / "coco"),
        "voc": voc(tmp_path / "voc", {"x": voc_file(voc_object("dog", 1, 1, 4, 5))}),
        "yolo": yolo(tmp_path / "yolo", {"train/a.jpg": "1 0.5 0.5 0.25 0.5\n"}),
    }
    for name, root in roots.items():
        assert object_formats(root) == (name,)
        for top in ("", "deep/down/"):
            tar = packed(root, tmp_path / f"{name}{len(top)}.tar", top=top)
            for split, one in read_objects(root).sets.items():
                same(one, read_objects(tar).sets[split])


def test_an_annotation_file_can_be_named_itself(tmp_path: Path) -> None:
    root = coco(tmp_path / "set")
    same(read_objects(root / "annotations" / "instances_val2017.json").sets["val"], read_objects(root).sets["val"])
    root = yolo(tmp_path / "yolo", {"train/a.jpg": "1 0.5 0.5 0.25 0.5\n"})
    same(read_objects(root / "data.yaml").sets["train"], read_objects(root).sets["train"])


def test_a_picture_of_another_size_is_refused_when_it_is_read(tmp_path: Path) -> None:
    found = read_objects(coco(tmp_path / "set")).sets["val"]
    picture(tmp_path / "set" / "val2017" / "a.jpg", (31, 40))
    with pytest.raises(PictureError, match=r"31 × 40 pixels .* its annotations say 30 × 40"):
        found.read(0)


def test_what_holds_no_annotations_is_refused(tmp_path: Path, unchecked: None) -> None:
    picture(tmp_path / "empty" / "a.jpg")
    with pytest.raises(UsageError, match="holds no annotations of objects in any format read here"):
        read_objects(tmp_path / "empty")
    with pytest.raises(UsageError, match="in the format voc"):
        read_objects(coco(tmp_path / "c"), format="voc")
    with pytest.raises(UsageError, match="is not there"):
        read_objects(tmp_path / "gone")
    with pytest.raises(UnknownNameError, match="Did you mean 'coco'"):
        read_objects(tmp_path / "c", format="cocoa")  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="Did you mean 'skip'"):
        read_objects(tmp_path / "c", bad="skipp")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="name their classes themselves"):
        read_objects(tmp_path / "c", classes=["a"])
    yolo(tmp_path / "c", {"train/a.jpg": ""})
    with pytest.raises(UsageError, match="several formats: coco, yolo"):
        read_objects(tmp_path / "c")
    (tmp_path / "odd.bin").write_bytes(b"nothing of ours")
    with pytest.raises(UsageError, match="neither a folder nor a tar archive"):
        read_objects(tmp_path / "odd.bin")


def test_writing_is_all_or_nothing(tmp_path: Path, unchecked: None) -> None:
    one = Remembered([boxed([[1, 2, 3, 4]])] * 2, [(40, 40)] * 2, ["a"])
    one.names = ("p.png", "p.png")
    with pytest.raises(UsageError, match=r"both be written to train/p\.png"):
        write_objects(one, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    one.names = ("p.png", "../q.png")
    with pytest.raises(UsageError, match="leads out of its folder"):
        write_objects(one, tmp_path / "out")
    one.names = ("p.png", "p.jpg")
    for format in ("voc", "yolo"):
        with pytest.raises(UsageError, match="Rename"):
            write_objects(one, tmp_path / "out", format=format)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
    one.names = ("p.png", "q.png")
    write_objects(one, tmp_path / "out")
    with pytest.raises(UsageError, match="holds something already"):
        write_objects(one, tmp_path / "out")
    with pytest.raises(UnknownNameError, match="Did you mean 'train'"):
        write_objects({"trian": one}, tmp_path / "other")
    with pytest.raises(UnknownNameError, match="'yolo'"):
        write_objects(one, tmp_path / "other", format="yollo")  # type: ignore[arg-type]
    crowded = Remembered([boxed([[1, 2, 3, 4]], crowd=[0])], [(40, 40)], ["a"])
    with pytest.raises(UsageError, match="cannot say that an object is a crowd"):
        write_objects(crowded, tmp_path / "other", format="yolo")
    spaced = Remembered([boxed([[1, 2, 3, 4]])], [(40, 40)], [" a"])
    with pytest.raises(UsageError, match="cannot hold the class ' a'"):
        write_objects(spaced, tmp_path / "other", format="voc")
    assert not (tmp_path / "other").exists()


def test_splits_must_agree(tmp_path: Path) -> None:
    one, other = (Remembered([boxed([])], [(4, 4)], [name], name) for name in "ab")
    with pytest.raises(UsageError, match="a and b do not have the same classes"):
        ObjectSplits(train=one, val=other)
    with pytest.raises(UsageError, match="at least one split"):
        ObjectSplits()
