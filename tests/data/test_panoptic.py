"""Panoptic files that do not say what they should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.segmented import panoptic
from vitral.data.segments import read_segments
from vitral.errors import PictureError, UsageError


def segments(crowd: Any) -> list[dict[str, Any]]:
    listed = [
        {"id": 300, "category_id": 18},
        {"id": 5, "category_id": 18, "iscrowd": crowd},
        {"id": 70_000, "category_id": 193},
    ]
    return [{"image_id": 42, "file_name": "a.png", "segments_info": listed}]


@pytest.mark.parametrize("crowd", ["0", [0], float("nan"), 2])
def test_a_crowd_is_0_or_1(tmp_path: Path, crowd: Any) -> None:
    with pytest.raises(UsageError, match=r"segment 5 \(a\.jpg\): Its iscrowd should be 0 or 1"):
        read_segments(panoptic(tmp_path, annotations=segments(crowd)))


@pytest.mark.parametrize(("crowd", "meant"), [(0, False), (1, True), (1.0, True), (None, False), (True, True)])
def test_what_is_0_or_1_is_taken_so(tmp_path: Path, crowd: Any, meant: bool) -> None:
    one: Any = read_segments(panoptic(tmp_path, annotations=segments(crowd))).sets["val"]
    assert one.annotations(0).crowd.tolist() == [False, meant, False]


def test_maps_show_their_ids_as_colours(tmp_path: Path) -> None:
    root = panoptic(tmp_path)
    one: Any = read_segments(root).sets["val"]
    expected, path = one.class_map(0), root / "annotations" / "panoptic_val2017" / "a.png"
    with Image.open(path) as image:
        image.quantize(8).save(path)  # four colours: a palette holds them all
    with Image.open(path) as image:
        assert image.mode == "P"
    np.testing.assert_array_equal(one.class_map(0), expected)
    Image.fromarray(np.full((12, 16), 300, dtype=np.uint16)).save(path)
    with pytest.raises(PictureError, match="but colours are expected"):
        one.class_map(0)
