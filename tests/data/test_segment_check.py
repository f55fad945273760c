"""What a look at segmented pictures finds: shares of classes, and what does not fit, with file, number, count and remedy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from tests.data.annotated import coco
from tests.data.segmented import label_file, numbers, pairs, panoptic, photo
from vitral.data.segment_check import check_segments
from vitral.data.segments import SegmentSplits, read_segments
from vitral.data.synthetic import SegmentedScenes, SyntheticScenes
from vitral.errors import UsageError


def test_shares_and_what_is_assumed(tmp_path: Path) -> None:
    values = np.zeros((10, 20), dtype=np.int64)
    values[:5], values[0, :7] = 1, 255
    seen: list[tuple[int, int]] = []
    report = check_segments(
        pairs(tmp_path, {"train/a": values, "val/b": values}), workers=2, on_progress=lambda *done: seen.append(done)
    )
    assert seen[-1] == (2, 2)
    assert report.problems == ()
    assert report.counts["val"].pixels == (100, 93)
    assert report.counts["val"].unlabelled == 7
    assert report.shares("train") == (0.5, 0.465)
    assert "255 says that nothing is known" in report.assumes
    assert report.heights is not None
    assert report.heights.most == 10
    assert json.loads(json.dumps(report.to_dict()))["counts"]["train"]["pixels"] == {"class 0": 100, "class 1": 93}


def test_everything_wrong_is_found_at_once(tmp_path: Path) -> None:
    maps = {stem: numbers(seed, [0, 1]) for seed, stem in enumerate(("good", "void", "size", "torn", "alone", "picture"))}
    root = pairs(tmp_path, maps)
    values = maps["void"].copy()
    values[:2, :3] = 7
    label_file(root / "labels" / "void.png", values)
    label_file(root / "labels" / "size.png", numbers(0, [0, 1], (12, 15)))
    (root / "labels" / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    (root / "labels" / "alone.png").unlink()
    (root / "images" / "picture.jpg").write_bytes(b"no")
    label_file(root / "labels" / "nobody.png", maps["good"])
    report = check_segments(root, classes=["x", "y", "never"])
    assert report.kinds == {"missing": 2, "unreadable": 2, "unknown class": 1, "size": 1}
    by_kind = {one.kind: one for one in report.problems}
    wrong = by_kind["unknown class"]
    assert wrong.file == str(root / "labels" / "void.png")
    assert wrong.annotation == "7"
    assert wrong.reason == "6 pixels hold 7, which is no class."
    assert report.advice == (
        "If 7 says that nothing is known, name it: void=[7] (--void 7); if it is a class, name all classes: classes=[…], or "
        "a classes.txt beside the pictures.",
    )
    assert "It has 12 × 16 pixels (height × width), but its labels have 12 × 15" in by_kind["size"].reason
    assert report.counts["train"].unlabelled == 6
    assert report.without_pixels("train") == ("never",)


def test_maps_of_segments(tmp_path: Path) -> None:
    root = panoptic(tmp_path)
    report = check_segments(root)
    assert report.kind == "panoptic"
    assert report.counts["val"].objects == (0, 2, 1)
    assert report.counts["val"].crowds == 1
    assert report.counts["val"].pixels == (0, 28, 96)
    assert report.counts["val"].unlabelled == 12 * 16 - 28 - 96
    listed = [{"id": 300, "category_id": 18}, {"id": 9, "category_id": 1}, {"id": 70_000, "category_id": 193}]
    panoptic(tmp_path, annotations=[{"image_id": 42, "file_name": "a.png", "segments_info": listed}])
    report = check_segments(root)
    assert [(one.kind, one.annotation) for one in report.problems] == [
        ("unknown class", "segment 5"),
        ("empty", "segment 9"),
    ]
    assert report.counts["val"].unlabelled == 12 * 16 - 16 - 96


def test_objects_and_scenes(tmp_path: Path) -> None:
    annotations = [
        {"id": 1, "image_id": 4, "category_id": 18, "bbox": [4, 6, 8, 4], "segmentation": [[4, 6, 12, 6, 12, 10, 4, 10]]},
        {
            "id": 2,
            "image_id": 4,
            "category_id": 5,
            "bbox": [4, 6, 8, 4],
            "segmentation": {"size": [30, 40], "counts": [1200]},
        },
    ]
    report = check_segments(coco(tmp_path, annotations=annotations))
    assert report.counts["val"].pixels == (0, 32)
    assert report.counts["val"].objects == (1, 1)
    assert [(one.kind, one.annotation) for one in report.problems] == [("empty", "annotation 2")]
    scenes = SegmentedScenes(scenes=SyntheticScenes(count=3, size=(24, 32)))
    splits = SegmentSplits(kind="panoptic", assumes="", train=scenes, val=scenes)
    report = check_segments(splits)
    expected = sum(np.bincount(scenes.class_map(index).reshape(-1), minlength=14) for index in range(3))
    assert report.counts["train"].pixels == tuple(expected)
    assert len(report.leaks) == 3
    with pytest.raises(UsageError, match="Leave those options out"):
        check_segments(splits, offset=1)


def test_a_training_reads_what_is_left(tmp_path: Path) -> None:
    root = pairs(tmp_path, {"a": numbers(0, [0, 1]), "b": numbers(1, [0, 1])})
    photo(root / "images" / "c.png")
    splits = read_segments(root, bad="skip")
    assert [one.kind for one in check_segments(splits).problems] == ["missing"]
    assert len(splits.sets["train"]) == 2


def test_broken_labels_are_all_listed_where_nobody_named_the_classes(tmp_path: Path) -> None:
    root = pairs(tmp_path, {stem: numbers(0, [0, 1]) for stem in "abc"})
    for stem in "ab":
        (root / "labels" / f"{stem}.png").write_bytes(b"no")
    report = check_segments(root)
    assert report.kinds == {"unreadable": 2}
    assert report.classes == ("class 0", "class 1")


def test_what_to_do_is_said_once_for_many_files(tmp_path: Path) -> None:
    root = pairs(tmp_path, {stem: numbers(seed, [0, 1, 2]) for seed, stem in enumerate("abcd")})
    report = check_segments(root, classes=["x", "y"])
    assert report.kinds == {"unknown class": 4}
    assert [one.split(":")[0] for one in report.advice] == ["If 2 says that nothing is known, name it"]
    assert report.to_dict()["advice"] == list(report.advice)


def test_a_split_without_any_class_is_no_set_with_nothing_wrong(tmp_path: Path) -> None:
    nothing = np.full((4, 6), 255)
    root = pairs(tmp_path, {"train/a": numbers(0, [0, 1]), "val/b": nothing, "test/c": nothing})
    report = check_segments(root)
    assert [(one.kind, one.file.split("/")[-1]) for one in report.problems] == [
        ("empty", "val")
    ]  # a test may keep its answers
    assert "No pixel of its pictures is of any class" in report.problems[0].reason


def turned(path: Path, size: tuple[int, int], orientation: int) -> None:
    """A picture that EXIF turns."""
    photo(path, size)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    with Image.open(path) as image:
        image.save(path, exif=exif)


@pytest.mark.parametrize(
    ("orientation", "picture", "labels", "found"),
    [
        (3, (12, 16), (12, 16), "its size does not tell whether its labels are turned"),
        (6, (12, 12), (12, 12), "its size does not tell whether its labels are turned"),
        (6, (12, 16), (12, 16), "Turn its labels likewise, or take the orientation out of its EXIF"),
        (6, (12, 16), (16, 12), None),  # so are the labels, by their size
        (1, (12, 12), (12, 12), None),
    ],
)
def test_pictures_that_exif_turns(
    tmp_path: Path, orientation: int, picture: tuple[int, int], labels: tuple[int, int], found: str | None
) -> None:
    root = pairs(tmp_path, {"a": numbers(0, [0, 1], labels)})
    turned(root / "images" / "a.jpg", picture, orientation)
    report = check_segments(root)
    if found is None:
        assert not report.problems
    else:
        assert [one.kind for one in report.problems] == ["size"]
        assert found in report.problems[0].reason
        assert bool(report.advice) == ("does not tell" in found)
