"""COCO's format as its page has it, by hand; and what strangers' files do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.data.annotated import coco, picture
from vitral.data.objects import read_objects
from vitral.errors import UsageError

GOOD = {"id": 3, "image_id": 4, "category_id": 5, "bbox": [1, 1, 2, 2], "area": 4.0, "iscrowd": 0}


def test_numbers_mean_what_the_page_says(tmp_path: Path) -> None:
    found = read_objects(coco(tmp_path)).sets["val"]
    crowd = found.annotations(0)
    assert crowd.crowd.tolist() == [True]
    assert crowd.segmentation == ({"size": [30, 40], "counts": [0, 1200]},)
    both = found.annotations(1)
    assert both.boxes[0].tolist() == pytest.approx([1.5, 2.25, 11.5, 14.35])
    assert both.boxes[1].tolist() == [20, 10, 25, 15]
    assert both.labels.tolist() == [1, 0]
    assert both.areas.tolist() == [60.5, 25]
    assert both.ids.tolist() == [1, 7]
    assert both.segmentation == ([[1.5, 2.25, 11.5, 2.25, 11.5, 14.35]], None)


@pytest.mark.parametrize(
    ("changes", "kind", "sentence"),
    [
        ({"bbox": [1, 1, 0, 5]}, "empty", "annotation 3 .b.jpg.: Its box is 0 pixels wide"),
        ({"bbox": [1, 1, -4, 5]}, "empty", "-4 pixels wide"),
        ({"bbox": [30, 1, 20, 5]}, "outside", r"from \(30, 1\) to \(50, 6\), reaches out .* 40 pixels wide and 30 high"),
        ({"bbox": [-3, 1, 20, 5]}, "outside", "reaches out"),
        ({"bbox": [1, 1, 2]}, "malformed", "four numbers"),
        ({"bbox": [1, 1, float("nan"), 2]}, "malformed", "four numbers"),
        ({"bbox": [1, 1, "2", 2]}, "malformed", "four numbers"),
        ({"bbox": None}, "malformed", "four numbers"),
        ({"area": float("inf")}, "malformed", "no area"),
        ({"segmentation": [[float("nan")]]}, "malformed", "NaN"),
        ({"iscrowd": "0"}, "malformed", "iscrowd should be 0 or 1, but is '0'"),
        ({"iscrowd": float("nan")}, "malformed", "iscrowd should be 0 or 1, but is nan"),
        ({"iscrowd": 2}, "malformed", "iscrowd should be 0 or 1, but is 2"),
        ({"category_id": 6}, "unknown class", "category_id is 6"),
        ({"category_id": "5"}, "unknown class", "category_id is '5', which no category has"),
        ({"image_id": "4"}, "missing", "image '4', which is not listed"),
        ({"image_id": 77}, "missing", "image 77, which is not listed"),
    ],
)
def test_a_bad_annotation_is_named_or_left_out(tmp_path: Path, changes: Any, kind: str, sentence: str) -> None:
    root = coco(tmp_path, annotations=[GOOD | {"id": 1}, GOOD | changes])
    with pytest.raises(UsageError, match=f"instances_val2017.json, annotation 3.*{sentence.removeprefix('annotation 3 ')}"):
        read_objects(root)
    found = read_objects(root, bad="skip").sets["val"]
    assert found.annotations(1).ids.tolist() == [1]
    assert [one.kind for one in found.problems] == [kind]  # type: ignore[attr-defined]


def test_a_box_that_rounding_moved_is_no_bad_one(tmp_path: Path) -> None:
    root = coco(tmp_path, annotations=[GOOD | {"bbox": [-0.6, 0, 41, 30.9]}])
    assert read_objects(root).sets["val"].annotations(1).boxes[0].tolist() == pytest.approx([-0.6, 0, 40.4, 30.9])


def test_ids_and_pictures_that_are_there_twice(tmp_path: Path) -> None:
    image = {"id": 9, "file_name": "a.jpg", "height": 30, "width": 40}
    with pytest.raises(UsageError, match="Another annotation has the id 3 too"):
        read_objects(coco(tmp_path / "1", annotations=[GOOD, GOOD]))
    with pytest.raises(UsageError, match="Another picture has its id 9 too"):
        read_objects(coco(tmp_path / "2", images=[image, image | {"file_name": "b.jpg"}], annotations=[]))
    with pytest.raises(UsageError, match="The picture is there twice"):
        read_objects(coco(tmp_path / "3", images=[image, image | {"id": 8}], annotations=[]))
    root = coco(tmp_path / "4")
    (root / "val2017" / "a.jpg").unlink()
    with pytest.raises(UsageError, match=r"There is no picture val2017/a\.jpg"):
        read_objects(root)
    found = read_objects(root, bad="skip").sets["val"]
    assert found.names == ("b.jpg",)
    assert found.annotations(0).ids.tolist() == [1, 7]
    assert len(read_objects(root, bad="keep").sets["val"]) == 2


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is no JSON"),
        (b"{" * 100_000, "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b"[]", "no object with images"),
        (b"{}", "'categories' is missing"),
        (b'{"categories": 3}', "no list of objects"),
        (b'{"categories": [3]}', "no list of objects"),
        (b'{"categories": [{"id": 1}], "images": []}', "must each have a name"),
        (b'{"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}', "names a category twice"),
        (b'{"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}', "an id of their own"),
        (b'{"categories": [{"id": 1.5, "name": "a"}]}', "whole number"),
        (b'{"categories": [], "images": [{"id": 1, "file_name": "../../etc/passwd.jpg"}]}', "leads out of its folder"),
        (b'{"categories": [], "images": [{"id": 1, "file_name": "/etc/passwd.jpg"}]}', "leads out of its folder"),
        (b'{"categories": [], "images": [{"id": 1, "file_name": "C:\\\\a.jpg"}]}', "leads out of its folder"),
        (b'{"categories": [], "images": [{"id": 1}]}', "names no picture"),
        (b'{"categories": [], "images": [{"id": 1, "file_name": "gone.jpg"}]}', "are not there"),
        (b'{"categories": [], "images": [{"id": ' + b"9" * 5000 + b', "file_name": "a.jpg"}]}', "JSON"),
        (b'{"categories": [], "images": [{"id": ' + b"9" * 50 + b', "file_name": "a.jpg"}]}', "whole number"),
        (b'{"categories": [{"id": 1, "name": "\\ud800"}], "images": [], "annotations": []}', "not valid Unicode"),
        (b'{"categories": [], "images": []}', "'annotations' is missing"),
    ],
)
def test_a_hostile_file_ends_in_a_sentence(tmp_path: Path, content: bytes, sentence: str) -> None:
    root = coco(tmp_path)
    (root / "annotations" / "instances_val2017.json").write_bytes(content)
    with pytest.raises(UsageError, match=sentence):
        read_objects(root)


def test_splits_by_names_of_files_and_folders(tmp_path: Path) -> None:
    root = coco(tmp_path / "one")
    text = (root / "annotations" / "instances_val2017.json").read_text()
    (root / "annotations" / "instances_train.json").write_text(text)
    with pytest.raises(UsageError, match=r"The pictures of .*instances_train.json, such as 'a.jpg', are not there"):
        read_objects(root)
    for name in ("a.jpg", "b.jpg"):
        picture(root / "images" / "train" / name)
    assert list(read_objects(root).sets) == ["train", "val"]
    (root / "annotations" / "instances_train.json").write_text(text.replace('"dog"', '"cat"'))
    with pytest.raises(UsageError, match=r"categories of the splits .* differ: '18 cat', '18 dog'"):
        read_objects(root)
    (root / "annotations" / "instances_train.json").rename(root / "annotations" / "instances_odd.json")
    with pytest.raises(UsageError, match="stands for no split by its name"):
        read_objects(root)
    (root / "annotations" / "instances_odd.json").rename(root / "annotations" / "instances_val2014.json")
    with pytest.raises(UsageError, match="both mean the split val"):
        read_objects(root)
    beside = tmp_path / "beside"
    for name in ("a.jpg", "b.jpg"):
        picture(beside / "valid" / name)
    (beside / "valid" / "_annotations.coco.json").write_text(text)
    assert read_objects(beside).sets["val"].names == ("a.jpg", "b.jpg")
    assert read_objects(beside).sets["val"].read(1).size == (30, 40)
