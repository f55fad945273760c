"""`vitral data check`: what people read, what programs read, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import Result

from tests.data.annotated import coco
from tests.data.segmented import pairs, panoptic, photo
from tests.data.trees import folder

Vitral = Callable[..., Result]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return folder(tmp_path / "root", [f"{kind}/{number}.png" for kind in ("cat", "großer Bär") for number in range(3)])


def test_good_pictures_end_well(vitral: Vitral, root: Path) -> None:
    ran = vitral("data", "check", root)
    assert ran.exit_code == 0, ran.output
    assert "3 großer Bär" in ran.stdout
    assert "All 6 pictures can be read." in ran.stdout
    assert "No two have the same pixels." in ran.stdout
    assert "Heights are 20 pixels, widths 24 pixels." in ran.stdout


def test_bad_ones_are_named_at_most_ten_of_a_kind(vitral: Vitral, root: Path) -> None:
    for number in range(14):
        (root / "cat" / f"bad{number:02}\x1b.jpg").write_bytes(b"")
        (root / "cat" / f"twin{number:02}.png").write_bytes((root / "cat" / "0.png").read_bytes())
    (root / "emu").mkdir()
    ran = vitral("data", "check", root, "--num-workers", "1")
    assert ran.exit_code == 1
    lines = ran.stdout.splitlines()
    begin = lines.index("14 pictures cannot be read:")
    assert len([line for line in lines[begin + 1 : begin + 11] if "0 bytes" in line]) == 10
    assert lines[begin + 11] == "  … and 4 more"
    assert "bad13" not in ran.stdout
    assert "\x1b" not in ran.stdout
    assert "1 class has no picture:" in lines
    assert "1 picture is there several times within a split:" in lines
    assert "and 12 more" in ran.stdout
    assert "2 of 3" in ran.stdout


def test_of_the_same_pixels_those_with_other_labels_are_shown_first(vitral: Vitral, root: Path) -> None:
    for number in range(9):
        (root / "cat" / f"0-{number}.png").write_bytes((root / "cat" / "0.png").read_bytes())
    (root / "großer Bär" / "9.png").write_bytes((root / "cat" / "0.png").read_bytes())
    ran = vitral("data", "check", root)
    assert ran.exit_code == 0
    line = ran.stdout.splitlines()[ran.stdout.splitlines().index("1 picture is there under several labels:") + 1]
    cat, bear = root / "cat", root / "großer Bär"
    assert line == f"  {cat}/0-0.png (cat) = {bear}/9.png (großer Bär) = {cat}/0-1.png (cat) and 8 more"


def test_json_is_one_object(vitral: Vitral, root: Path) -> None:
    (root / "cat" / "bad.jpg").write_bytes(b"")
    ran = vitral("data", "check", root, "--json")
    assert ran.exit_code == 1
    told = json.loads(ran.stdout)
    assert told["counts"] == {"all": {"cat": 4, "großer Bär": 3}}
    assert [one["name"] for one in told["unreadable"]] == [str(root / "cat" / "bad.jpg")]


def test_what_is_no_data_set_is_a_wrong_command(vitral: Vitral, tmp_path: Path) -> None:
    ran = vitral("data", "check", tmp_path / "gone")
    assert ran.exit_code == 2
    assert "There is no file or folder" in ran.stderr
    assert ran.stdout == ""


def test_a_link_to_nothing_is_a_picture_that_cannot_be_read(vitral: Vitral, root: Path) -> None:
    (root / "cat" / "gone.jpg").symlink_to(root / "nowhere.jpg")
    (root / "cat" / "round.jpg").symlink_to(root / "cat" / "round.jpg")
    done = vitral("data", "check", root, "--json")
    assert done.exit_code == 1
    names = [Path(one["name"]).name for one in json.loads(done.stdout)["unreadable"]]
    assert {"gone.jpg", "round.jpg"} <= set(names)


def test_pictures_with_boxes_are_told_by_splits_and_classes(vitral: Vitral, tmp_path: Path) -> None:
    root = coco(tmp_path / "boxes")
    ran = vitral("data", "check", root)
    assert ran.exit_code == 0, ran.output
    lines = [line.split() for line in ran.stdout.splitlines()]
    assert ["val", "2", "0", "3", "1", "2", "1", "0", "2"] in lines
    assert ["airplane", "2"] in lines
    assert "Nothing is wrong with pictures or annotations." in ran.stdout
    told = json.loads(vitral("data", "check", root, "--json").stdout)
    assert told["counts"]["val"]["objects"] == {"airplane": 2, "dog": 1}


def test_bad_boxes_are_named(vitral: Vitral, tmp_path: Path) -> None:
    one = {"image_id": 4, "category_id": 5, "bbox": [1, 1, 0, 2], "area": 4.0, "iscrowd": 0}
    root = coco(tmp_path / "boxes", annotations=[one | {"id": number} for number in range(13)])
    ran = vitral("data", "check", root)
    assert ran.exit_code == 1
    lines = ran.stdout.splitlines()
    begin = lines.index("13 boxes have no area:")
    assert "annotation 0 (b.jpg): Its box is 0 pixels wide" in lines[begin + 1]
    assert lines[begin + 11] == "  … and 3 more"
    assert "1 class has no object in val:" in lines


def test_segmented_pictures_are_told_by_shares_and_what_is_assumed(vitral: Vitral, tmp_path: Path) -> None:
    values = np.zeros((10, 20), dtype=np.int64)
    values[:5], values[0, :10] = 1, 255
    root = pairs(tmp_path / "segments", {"a": values})
    ran = vitral("data", "check", root)
    assert ran.exit_code == 0, ran.output
    lines = [line.split() for line in ran.stdout.splitlines()]
    assert ["train", "1", "0.0", "5.00", "%"] in lines
    assert ["class", "0", "50.00", "%"] in lines
    assert ["class", "1", "45.00", "%"] in lines
    assert "Read as semantic. As nothing says otherwise, 0 to 1 are the 2 classes; 255 says" in ran.stdout
    assert "Nothing is wrong with pictures or labels." in ran.stdout
    (root / "classes.txt").write_text("sky\n")
    ran = vitral("data", "check", root)
    assert ran.exit_code == 1
    assert "1 time a label file holds what is no class:" in ran.stdout
    assert "90 pixels hold 1, which is no class." in ran.stdout
    assert json.loads(vitral("data", "check", root, "--json").stdout)["problems"][0]["annotation"] == "1"


def test_a_json_of_segments_is_no_json_of_boxes(vitral: Vitral, tmp_path: Path) -> None:
    root = panoptic(tmp_path / "segments")
    ran = vitral("data", "check", root / "annotations" / "panoptic_val2017.json")
    assert ran.exit_code == 0, ran.output
    assert ["dog", "thing", "14.58", "%"] in [line.split() for line in ran.stdout.splitlines()]
    assert "Read as panoptic." in ran.stdout


def test_label_files_that_nobody_can_tell_apart_are_not_looked_at_as_classes(vitral: Vitral, tmp_path: Path) -> None:
    root = pairs(tmp_path / "streets", {"0": np.zeros((4, 6), dtype=np.int64)})
    photo(root / "images" / "0.jpeg")
    ran = vitral("data", "check", root)
    assert ran.exit_code == 2
    assert "two pictures of one name" in ran.stderr
