"""Pascal VOC's format as its page has it, by hand; and what strangers' files do."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.annotated import picture, voc, voc_file, voc_object
from vitral.data.objects import read_objects
from vitral.errors import UsageError


def test_corners_are_counted_from_one_and_inside(tmp_path: Path) -> None:
    objects = voc_object("dog", 1, 1, 1, 1) + voc_object("cat", "5.5", 10, 40, 30, difficult=1)
    part = "<object><name>person</name><bndbox><xmin>2</xmin><ymin>3</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    part += (
        "<part><name>head</name><bndbox><xmin>2</xmin><ymin>3</ymin><xmax>4</xmax><ymax>4</ymax></bndbox></part></object>"
    )
    found = read_objects(voc(tmp_path, {"x": voc_file(objects + part), "y": voc_file("")})).sets["train"]
    assert found.classes == ("cat", "dog", "person")
    assert found.annotations(0).boxes.tolist() == [[0, 0, 1, 1], [4.5, 9, 40, 30], [1, 2, 9, 9]]
    assert found.annotations(0).labels.tolist() == [1, 0, 2]
    assert found.annotations(0).crowd.tolist() == [False, True, False]
    assert len(found.annotations(1)) == 0
    assert [found.image_id(index) for index in range(2)] == [1, 2]


def test_lists_say_which_split(tmp_path: Path) -> None:
    one = voc_file(voc_object("dog", 1, 1, 4, 5))
    root = voc(tmp_path / "a", dict.fromkeys("pqrs", one), {"train": "p\nq  1\n\n", "val": "r\n", "trainval": "p\nq\nr\n"})
    assert {name: found.names for name, found in read_objects(root).sets.items()} == {
        "train": ("p.jpg", "q.jpg"),
        "val": ("r.jpg",),
    }
    root = voc(tmp_path / "b", dict.fromkeys("pq", one), {"trainval": "p\n", "test": "q\n"})
    assert list(read_objects(root).sets) == ["train", "test"]
    root = voc(tmp_path / "c", {"p": one}, {"train": "p\ngone\n"})
    with pytest.raises(UsageError, match=r"gone\.xml .gone.: The split train lists it, but there is no such file"):
        read_objects(root)
    assert read_objects(root, bad="skip").sets["train"].names == ("p.jpg",)


def test_names_with_spaces_stand_whole_in_a_list(tmp_path: Path) -> None:
    root = voc(
        tmp_path, dict.fromkeys(("my photo 1", "q"), voc_file(voc_object("dog", 1, 1, 4, 5))), {"train": "my photo 1\nq 1\n"}
    )
    assert read_objects(root).sets["train"].names == ("my photo 1.jpg", "q.jpg")


def test_files_of_one_name_in_two_folders_are_refused(tmp_path: Path) -> None:
    root = voc(tmp_path, {"x": voc_file(voc_object("dog", 1, 1, 4, 5))})
    (root / "Annotations" / "more").mkdir()
    (root / "Annotations" / "more" / "x.xml").write_text(voc_file(voc_object("cat", 1, 1, 4, 5)))
    with pytest.raises(UsageError, match=r"more/x\.xml and .*Annotations/x\.xml are of one name"):
        read_objects(root)


@pytest.mark.parametrize(("said", "crowd"), [("1", True), ("true", True), (" True ", True), ("0", False), ("false", False)])
def test_difficult_is_said_in_numbers_and_words(tmp_path: Path, said: str, crowd: bool) -> None:
    one = voc_object("dog", 1, 1, 4, 5, difficult=7).replace(">7<", f">{said}<")
    found = read_objects(voc(tmp_path, {"x": voc_file(one)})).sets["train"]
    assert found.annotations(0).crowd.tolist() == [crowd]


def test_classes_may_be_named(tmp_path: Path) -> None:
    root = voc(tmp_path, {"x": voc_file(voc_object("dog", 1, 1, 4, 5) + voc_object("cat", 1, 1, 4, 5))})
    assert read_objects(root, classes=("dog", "cat", "emu")).sets["train"].annotations(0).labels.tolist() == [0, 1]
    with pytest.raises(UsageError, match=r"x\.xml, object 2 .*'cat' is not among the known ones"):
        read_objects(root, classes=["dog"])
    found = read_objects(root, classes=["dog"], bad="skip").sets["train"]
    assert [one.kind for one in found.problems] == ["unknown class"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (voc_object("dog", 1, 1, 60, 5), "object 1 .*reaches out of the picture"),
        (voc_object("dog", 5, 1, 4, 5), "0 pixels wide"),
        (voc_object("dog", "nan", 1, 4, 5), "object 1 .*should have the numbers"),
        (voc_object("", 1, 1, 4, 5), "It has no name"),
        ("<object><name>dog</name></object>", "should have the numbers"),
    ],
)
def test_a_bad_object_is_named_or_left_out(tmp_path: Path, content: str, sentence: str) -> None:
    root = voc(tmp_path, {"x": voc_file(content + voc_object("dog", 1, 1, 9, 9))})
    with pytest.raises(UsageError, match=sentence):
        read_objects(root)
    assert len(read_objects(root, bad="skip").sets["train"].annotations(0)) == 1


LAUGHS = (
    '<!DOCTYPE a [<!ENTITY a "ha">'
    + "".join(f'<!ENTITY {two} "{f"&{one};" * 50}">' for one, two in zip("abcdefgh", "bcdefghi", strict=True))
    + "]>"
)


@pytest.mark.parametrize(
    "content",
    [
        voc_file("<object><name>&i;</name></object>", head=LAUGHS).encode(),
        voc_file("", head='<!DOCTYPE a SYSTEM "file:///etc/passwd">').encode(),
        voc_file("", head='<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>').encode(),
        ("\ufeff" + voc_file("", head='<!DOCTYPE a [<!ENTITY x "y">]>')).encode("utf-16-le"),
        b'<?xml version="1.0" encoding="cp037"?>' + voc_file("", head='<!DOCTYPE a [<!ENTITY x "y">]>').encode("cp037"),
    ],
)
def test_declared_entities_are_never_unfolded(tmp_path: Path, content: bytes) -> None:
    root = voc(tmp_path, {"x": ""})
    (root / "Annotations" / "x.xml").write_bytes(content)
    with pytest.raises(UsageError, match=r"x\.xml (cannot be read: it declares a document type|is no XML)"):
        read_objects(root)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is no XML"),
        (b"\0\1\2", "is no XML"),
        (b"<annotation>", "is no XML"),
        (b"<html></html>", "begins with <html>"),
        (b'<?xml version="1.0" encoding="no-such"?><annotation/>', "is no XML"),
        (b"<annotation><filename>../../x.jpg</filename></annotation>", "leads out of its folder"),
        (b"<annotation><object>&lt;" + b"<a>" * 50_000, "is no XML"),
    ],
)
def test_a_hostile_file_ends_in_a_sentence(tmp_path: Path, content: bytes, sentence: str) -> None:
    root = voc(tmp_path, {"x": ""})
    (root / "JPEGImages" / "x.jpg").unlink()
    (root / "Annotations" / "x.xml").write_bytes(content)
    with pytest.raises(UsageError, match=sentence):
        read_objects(root)


def test_a_picture_may_have_another_name_than_its_file(tmp_path: Path) -> None:
    root = voc(tmp_path, {"note": voc_file(voc_object("dog", 1, 1, 4, 5))})
    (root / "JPEGImages" / "note.jpg").unlink()
    with pytest.raises(UsageError, match=r"There is no picture JPEGImages/x\.jpg"):
        read_objects(root)
    picture(root / "JPEGImages" / "x.jpg")
    assert read_objects(root).sets["train"].names == ("x.jpg",)


def test_two_sets_in_one_folder_are_refused(tmp_path: Path) -> None:
    for year in ("VOC2007", "VOC2012"):
        (tmp_path / year).mkdir()
        voc(tmp_path / year, {"x": voc_file("")})
    with pytest.raises(UsageError, match="'VOC2007', 'VOC2012'"):
        read_objects(tmp_path)
    assert len(read_objects(tmp_path / "VOC2012").sets["train"]) == 1
