"""A look at annotated pictures: counts, and planted faults found by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.data.annotated import Remembered, boxed, coco, picture, voc, voc_object, yolo
from vitral.data.object_check import check_objects
from vitral.data.objects import ObjectSplits, write_objects
from vitral.data.synthetic import SyntheticScenes


def test_counts_are_those_of_the_set() -> None:
    one = Remembered(
        [boxed([[0, 0, 32, 32], [0, 0, 31, 31], [0, 0, 96, 96]], [0, 0, 1], crowd=[1]), boxed([])],
        [(99, 98)] * 2,
        ["a", "b", "c"],
    )
    report = check_objects(ObjectSplits(train=one))
    counts = report.counts["train"]
    assert (counts.pictures, counts.empty, counts.objects, counts.crowds, counts.most) == (2, 1, (2, 1, 0), 1, 3)
    assert counts.sizes == (1, 1, 1)
    assert report.without_objects("train") == ("c",)
    assert report.problems == ()
    assert report.heights is not None
    assert (report.heights.least, report.heights.most) == (99, 99)
    assert json.loads(json.dumps(report.to_dict()))["counts"]["train"]["objects"] == {"a": 2, "b": 1, "c": 0}


def test_planted_faults_are_found(tmp_path: Path) -> None:
    write_objects(
        {"train": SyntheticScenes(count=8, size=(32, 32)), "val": SyntheticScenes(count=2, size=(32, 32), seed=1)},
        tmp_path / "set",
    )
    assert check_objects(tmp_path / "set").problems == ()
    path = tmp_path / "set" / "annotations" / "instances_train.json"
    told = json.loads(path.read_text())
    first = {"id": 10**6, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "area": 25, "iscrowd": 0}
    faults = [{"bbox": [1, 1, 0, 5]}, {"bbox": [20, 1, 40, 5]}, {"category_id": 99}, {"bbox": None}]
    told["annotations"] += [first | {"id": 10**6 + row} | fault for row, fault in enumerate(faults)]
    told["annotations"].append(told["annotations"][0])
    path.write_text(json.dumps(told))
    (tmp_path / "set" / "train" / "000002.png").unlink()
    (tmp_path / "set" / "train" / "000003.png").write_bytes(b"broken")
    picture(tmp_path / "set" / "train" / "000004.png", (31, 32))
    shutil.copy(tmp_path / "set" / "val" / "000000.png", tmp_path / "set" / "train" / "000005.png")
    done: list[tuple[int, int]] = []
    report = check_objects(tmp_path / "set", workers=2, on_progress=lambda *both: done.append(both))
    assert report.kinds == dict.fromkeys(
        ["unknown class", "malformed", "missing", "empty", "outside", "duplicate", "unreadable", "size"], 1
    )
    assert done[-1] == (10, 10)
    assert {one.picture for one in report.problems if one.kind in ("missing", "unreadable", "size")} == {
        "000002.png",
        "000003.png",
        "000004.png",
    }
    assert [sorted(split for split, _ in group) for group in report.leaks] == [["train", "val"]]
    assert report.counts["train"].pictures == 8


def test_boxes_in_pictures_whose_size_nobody_says(tmp_path: Path) -> None:
    root = voc(tmp_path, {"x": f"<annotation>{voc_object('dog', 1, 1, 90, 5)}</annotation>"})
    report = check_objects(root)
    assert [one.kind for one in report.problems] == ["outside"]
    assert "JPEGImages/x.jpg, annotation 1: " in str(report.problems[0])


def test_other_formats_are_looked_at_too(tmp_path: Path) -> None:
    assert check_objects(coco(tmp_path / "c")).counts["val"].objects == (2, 1)
    root = yolo(tmp_path / "y", {"train/a.jpg": "1 0.5 0.5 0.25 0.5\n7 0 0 0 0\n"})
    assert check_objects(root, format="yolo").kinds == {"unknown class": 1}
