"""Objects found in a picture: chosen, drawn, told."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from vitral.base.image import Picture
from vitral.errors import UsageError
from vitral.tasks.detection.result import Detections, Options

BOXES = np.array([[1, 2, 11, 22], [5, 5, 30, 20], [0, 0, 40, 30], [2, 3, 4, 6]], dtype=np.float32)


def found(picture: Picture | None = None) -> Detections:
    scores = np.array([0.5, 0.9, 0.25, 0.5], dtype=np.float32)
    return Detections("p.jpg", (30, 40), BOXES, scores, ("cat", "dog", "sky", "cow"), np.array([2, 0, 7, 5]), picture)


def test_the_best_comes_first_and_equals_keep_their_order() -> None:
    result = found()
    assert result.labels == ("dog", "cat", "cow", "sky")
    assert result.indices.tolist() == [0, 2, 5, 7]
    assert result.boxes.tolist() == BOXES[[1, 0, 3, 2]].tolist()


def test_some_of_them() -> None:
    result = found()
    assert len(result) == 4
    assert result[:2].labels == ("dog", "cat")
    assert result[-1].labels == ("sky",)
    assert result[result.indices > 2].labels == ("cow", "sky")
    assert result[[3, 1]].labels == ("cat", "sky")  # best first again
    assert result.above(0.5).labels == ("dog",)  # more than, as the field has it
    assert result.above(0.1)[result.above(0.1).scores < 0.6].boxes.tolist() == BOXES[[0, 3, 2]].tolist()
    assert len(result.above(1)) == 0
    assert [one.labels[0] for one in result] == ["dog", "cat", "cow", "sky"]
    with pytest.raises(UsageError, match="threshold must be from 0 to 1"):
        result.above(1.5)


def test_it_says_what_it_is() -> None:
    assert repr(found()) == "Detections(p.jpg: 4 objects: dog 0.900, cat 0.500, cow 0.500, …)"
    assert repr(found()[:1]) == "Detections(p.jpg: 1 object: dog 0.900)"
    assert repr(found()[:0]) == "Detections(p.jpg: 0 objects)"


def test_plain_values() -> None:
    told = json.loads(json.dumps(found()[:2].to_dict()))
    assert told["name"] == "p.jpg"
    assert told["size"] == [30, 40]
    assert told["objects"][1] == {"label": "cat", "score": 0.5, "index": 2, "box": [1, 2, 11, 22]}


def test_rows_of_coco() -> None:
    rows = json.loads(json.dumps(found().to_coco(139, [11, 12, 13, 14, 15, 16, 17, 18])))
    assert rows[1] == {"image_id": 139, "category_id": 13, "bbox": [1, 2, 10, 20], "score": 0.5}
    assert [row["category_id"] for row in rows] == [11, 13, 16, 18]
    assert [row["category_id"] for row in found().to_coco("a")] == [0, 2, 5, 7]
    with pytest.raises(UsageError, match=r"object of class 7 was found in p\.jpg, but categories came for 7 classes"):
        found().to_coco(1, range(7))


def test_a_drawing_is_a_copy_with_lines_where_the_boxes_are() -> None:
    image = Image.new("RGB", (400, 300), (120, 120, 120))
    result = Detections(
        "p",
        (300, 400),
        np.array([[50.0, 100, 350, 250]], np.float32),
        np.ones(1),
        ("x",),
        np.zeros(1, int),
        Picture(image, (300, 400), "p"),
    )
    drawn = np.asarray(result.draw())
    assert drawn.shape == (300, 400, 3)
    assert (np.asarray(image) == 120).all()
    for y, x in ((175, 50), (175, 349), (100, 300), (249, 200)):
        assert drawn[y, x].tolist() == [230, 159, 0]
    assert (drawn[110:240, 60:340] == 120).all()
    with pytest.raises(UsageError, match=r"The picture of p\.jpg was not kept"):
        found().draw()


def test_boxes_lie_rightly_on_a_picture_that_was_read_smaller() -> None:
    picture = Picture(Image.new("RGB", (101, 76), (120, 120, 120)), (600, 800), "p", (0, 0, 100, 75))
    result = Detections(
        "p", (600, 800), np.array([[400.0, 300, 640, 480]], np.float32), np.ones(1), ("x",), np.zeros(1, int), picture
    )
    orange = (np.asarray(result.draw()) == (230, 159, 0)).all(-1)[38:]
    ys, xs = np.nonzero(orange)
    assert (xs.min(), xs.max(), ys.max() + 38) == (50, 79, 59)


@pytest.mark.parametrize(
    "change", [{"boxes": BOXES[:3]}, {"labels": ("a",)}, {"scores": np.array([1, 2, np.nan, 0])}, {"boxes": BOXES + np.inf}]
)
def test_objects_are_whole(change: dict, unchecked: None) -> None:
    with pytest.raises(UsageError, match=r"Every object needs|are not finite"):
        Detections(
            **(
                {"name": "p", "size": (3, 4), "boxes": BOXES, "scores": np.ones(4), "labels": ("a",) * 4}
                | {"indices": np.zeros(4, int)}
                | change
            )
        )


@pytest.mark.parametrize(
    "wrong", [{"threshold": 1.1}, {"threshold": -0.1}, {"threshold": float("nan")}, {"top_k": 0}, {"top_k": 2.5}]
)
def test_options_have_their_ranges(wrong: dict, unchecked: None) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Options(**wrong)
