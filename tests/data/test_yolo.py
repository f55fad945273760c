"""YOLO's text format as its page has it, by hand; and what strangers' files do."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import ExifTags, Image

from tests.data.annotated import picture, yolo
from vitral.data.objects import read_objects
from vitral.errors import UsageError


def test_lines_are_parts_of_the_picture(tmp_path: Path) -> None:
    lines = {
        "train/a.jpg": "1 0.5 0.5 0.25 0.5\n\n0 0.125 0.1 0.25 0.2\n",
        "train/b.jpg": None,
        "train/deep/c.jpg": "0 0 0 0.5 0 0.5 0.5 0.25 1\n",
    }
    found = read_objects(yolo(tmp_path, lines)).sets["train"]
    assert found.classes == ("cat", "dog")
    assert found.names == ("a.jpg", "b.jpg", "deep/c.jpg")
    assert found.annotations(0).boxes[0].tolist() == [15, 7.5, 25, 22.5]
    assert found.annotations(0).boxes[1].tolist() == pytest.approx([0, 0, 10, 6])
    assert found.annotations(0).labels.tolist() == [1, 0]
    assert len(found.annotations(1)) == 0
    assert found.annotations(2).boxes.tolist() == [[0, 0, 20, 30]]
    assert found.annotations(2).segmentation == ([[0, 0, 20, 0, 20, 15, 10, 30]],)


def test_a_picture_that_lies_on_its_side_counts_upright(tmp_path: Path) -> None:
    root = yolo(tmp_path, {"train/a.jpg": "0 0.5 0.5 1 1\n"})
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (40, 30)).save(root / "images" / "train" / "a.jpg", exif=exif)
    found = read_objects(root).sets["train"]
    assert found.size_of(0) == found.read(0).size == (40, 30)
    assert found.annotations(0).boxes.tolist() == [[0, 0, 30, 40]]


@pytest.mark.parametrize(
    ("page", "classes"),
    [
        ("names: ['no', \"1.0\",\n  yes]\ntrain: images/train\nnc: 3\n", ("no", "1.0", "yes")),
        ("path: ../datasets/somewhere\nnames:\n  0: a\n  1: b # c\ntrain: images/train\nval:\n", ("a", "b")),
        ("names:\n- 'a: x'\n- b\ntrain: [../images/train]\n", ("a: x", "b")),
        ("names: [a, b]\n", ("a", "b")),
        ("names: [a, b]\ntrain: list.txt\n", ("a", "b")),
    ],
)
def test_pages_that_people_write(tmp_path: Path, page: str, classes: tuple[str, ...]) -> None:
    root = yolo(tmp_path, {"train/a.jpg": "1 0.5 0.5 0.25 0.5\n"}, page)
    (root / "list.txt").write_text("./images/train/a.jpg\n")
    found = read_objects(root)
    assert found.classes == classes
    assert found.sets["train"].annotations(0).labels.tolist() == [1]


def test_without_a_page_folders_say_all(tmp_path: Path) -> None:
    root = yolo(tmp_path / "a", {"train2017/a.jpg": "3 0.5 0.5 0.2 0.2\n", "valid/b.jpg": "0 0.5 0.5 0.2 0.2\n"}, None)
    assert {name: one.names for name, one in read_objects(root).sets.items()} == {"train": ("a.jpg",), "val": ("b.jpg",)}
    assert read_objects(root).classes == ("0", "1", "2", "3")
    (root / "classes.txt").write_text("w\nx\ny\nz\n")
    assert read_objects(root).classes == ("w", "x", "y", "z")
    other = tmp_path / "b"
    picture(other / "test" / "images" / "a.png")
    (other / "test" / "labels").mkdir()
    (other / "test" / "labels" / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    assert list(read_objects(other).sets) == ["test"]
    assert len(read_objects(other).sets["test"].annotations(0)) == 1


@pytest.mark.parametrize(
    ("line", "kind", "sentence"),
    [
        ("2 0.5 0.5 0.1 0.1", "unknown class", "line 2 .*class is 2, but there are 2"),
        ("-1 0.5 0.5 0.1 0.1", "malformed", "a class and four numbers"),
        ("0 0.5 0.5 0.1", "malformed", "a class and four numbers"),
        ("0 0.5 0.5 nan 0.1", "malformed", "a class and four numbers"),
        ("0 0.5 0.5 0.1 0.1 0.9", "malformed", "a class and four numbers"),
        ("0 5 5 2 2", "outside", "reaches out"),
        ("0 0.5 0.5 0 0.1", "empty", "0 pixels wide"),
    ],
)
def test_a_bad_line_is_named_or_left_out(tmp_path: Path, line: str, kind: str, sentence: str) -> None:
    root = yolo(tmp_path, {"train/a.jpg": f"0 0.5 0.5 0.1 0.1\n{line}\n"})
    with pytest.raises(UsageError, match=rf"a\.txt, .*{sentence}"):
        read_objects(root)
    found = read_objects(root, bad="skip").sets["train"]
    assert len(found.annotations(0)) == 1
    assert [one.kind for one in found.problems] == [kind]  # type: ignore[attr-defined]


def test_pictures_without_a_size_and_lines_without_a_picture(tmp_path: Path) -> None:
    root = yolo(tmp_path, {"train/a.jpg": "0 0.5 0.5 0.1 0.1\n", "train/b.jpg": "0 0.5 0.5 0.1 0.1\n"})
    (root / "images" / "train" / "a.jpg").write_bytes(b"no picture at all")
    (root / "labels" / "train" / "c.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    found = read_objects(root, bad="skip").sets["train"]
    assert found.names == ("b.jpg",)
    assert sorted(one.kind for one in found.problems) == ["missing", "unreadable"]  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="1 more have something wrong"):
        read_objects(root)


def test_splits_may_be_lists_of_one_folder(tmp_path: Path) -> None:
    page = "names: [cat]\ntrain: train.txt\nval: val.txt\n"
    root = yolo(tmp_path, {"a.jpg": "0 0.5 0.5 0.2 0.2\n", "b.jpg": "0 0.5 0.5 0.4 0.4\n", "c.jpg": "0 0.5 0.5 1 1\n"}, page)
    (root / "train.txt").write_text("images/a.jpg\n")
    (root / "val.txt").write_text("images\\b.jpg\r\n")
    found = read_objects(root)
    assert {name: one.names for name, one in found.sets.items()} == {"train": ("a.jpg",), "val": ("b.jpg",)}
    assert [one.annotations(0).boxes.tolist() for one in found.sets.values()] == [[[16, 12, 24, 18]], [[12, 9, 28, 21]]]


@pytest.mark.parametrize("misplaced", ["images/train/a.txt", "labels/a.txt", "labels/train/a.TXT", "train/labels/a.txt"])
def test_lines_in_the_wrong_place_are_no_empty_picture(tmp_path: Path, misplaced: str) -> None:
    root = yolo(tmp_path, {"train/a.jpg": None, "train/b.jpg": "0 0.5 0.5 0.2 0.2\n"})
    (root / misplaced).parent.mkdir(parents=True, exist_ok=True)
    (root / misplaced).write_text("0 0.5 0.5 0.2 0.2\n")
    with pytest.raises(UsageError, match=r"a\.(txt|TXT) .*Its picture's lines are looked for in labels/train/a\.txt"):
        read_objects(root)
    (root / misplaced).rename(root / "labels" / "train" / "a.txt")
    assert len(read_objects(root).sets["train"].annotations(0)) == 1


def test_texts_that_are_no_lines_of_these_pictures_are_let_be(tmp_path: Path) -> None:
    root = yolo(tmp_path, {"train/a.jpg": "0 0.5 0.5 0.2 0.2\n"})
    (root / "labels" / "val").mkdir()
    for name in ("labels/val/elsewhere.txt", "labels/train/classes.txt", "images/train/a.txt", "README.txt"):
        (root / name).write_text("a caption\n")
    assert len(read_objects(root).sets["train"].annotations(0)) == 1


@pytest.mark.parametrize(
    ("page", "sentence"),
    [
        (b"names: [a\n", "is no YAML"),
        (b"\xff\xfe\x00", "is no YAML"),
        (b"[" * 20_000, "20 deep"),
        (b"just text", "should have names"),
        (b"train: images/train\n", "has no names"),
        (b"names: {0: a, 2: b}\ntrain: images/train\n", "without a gap"),
        (b"names: [a, a]\ntrain: images/train\n", "names a class twice"),
        (b"names: [a, b]\nnc: 3\ntrain: images/train\n", "3 classes .nc., but names 2"),
        (b"names: [a, b]\ntrain: images/gone\n", "there are no pictures"),
        (b"names: [a, b]\ntrain: images/../../../etc\n", "leads out of its folder"),
        (b"names: [a, b]\nval: images/train\nvalid: images/train\n", "names the split val twice"),
        (b"a: &a [x, x]\nnames: [*a, *a]\n", "aliases"),
        (  # tags say nothing here: it is a list of one text
            b"names: !!python/object/apply:os.system ['true']\n",
            "but there are 1",
        ),
        (b"names: [a, b]\ntrain: images/train\nkpt_shape: [4, 2]\n", "key points"),
    ],
)
def test_a_hostile_page_ends_in_a_sentence(tmp_path: Path, page: bytes, sentence: str) -> None:
    root = yolo(tmp_path / "in", {"train/a.jpg": "1 0.5 0.5 0.25 0.5\n"})
    (root / "data.yaml").write_bytes(page)
    with pytest.raises(UsageError, match=sentence):
        read_objects(root)
