"""What segmentation answers with: classes, objects, and both."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from vitral.base.colours import voc_colours
from vitral.base.image import Picture
from vitral.base.masks import polygons_to_mask
from vitral.errors import UnknownNameError, UsageError
from vitral.tasks.segmentation.result import Instances, Panoptic, Segment, Segmentation

# pycocotools' own arrays know an older way to be copied.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

GREY = Picture(Image.new("RGB", (40, 30), (120, 120, 120)), (30, 40), "p.jpg")


def classes(**other: object) -> Segmentation:
    numbers = np.full((30, 40), 2, dtype=np.uint8)
    numbers[:10], numbers[25:, 30:] = 0, 255
    told = {"name": "p.jpg", "size": (30, 40), "class_map": numbers, "labels": ("sky", "cat", "road"), "picture": GREY}
    return Segmentation(**(told | other))


def objects(**other: object) -> Instances:
    masks = np.zeros((3, 30, 40), bool)
    masks[0, 2:12, 3:9], masks[1, 5:25, 10:30], masks[2, 20:, 30:] = True, True, True
    scores = np.array([0.5, 0.9, 0.25], dtype=np.float32)
    told = {"name": "p.jpg", "size": (30, 40), "masks": masks, "scores": scores, "labels": ("cat", "dog", "cow")}
    return Instances(**(told | {"indices": np.array([1, 0, 4]), "picture": GREY, "queries": np.array([7, 8, 9])} | other))


def parts(**other: object) -> Panoptic:
    numbers = np.zeros((30, 40), dtype=np.int32)
    numbers[:10], numbers[12:20, 5:15], numbers[12:20, 20:25] = 70000, 2, 3
    row = {"score": 0.75, "fused": False, "index": 17}
    segments = (
        Segment(id=2, label="cat", area=80, box=(5, 12, 15, 20), **row),
        Segment(id=3, label="cat", area=40, box=(20, 12, 25, 20), **row),
        Segment(id=70000, label="sky", area=400, box=(0, 0, 40, 10), **row | {"fused": True, "index": 3}),
    )
    return Panoptic(
        **({"name": "p.jpg", "size": (30, 40), "segment_map": numbers, "segments": segments, "picture": GREY} | other)
    )


def test_classes_that_the_picture_shows() -> None:
    result = classes()
    assert (result.classes, result.indices, result.areas) == (("road", "sky"), (2, 0), (750, 400))
    assert (result.mask("sky") == (result.class_map == 0)).all()
    assert (result.mask(2) == (result.class_map == 2)).all()
    assert not result.mask("cat").any()
    assert repr(result) == "Segmentation(p.jpg: 2 classes: road 62.5%, sky 33.3%)"
    with pytest.raises(UnknownNameError, match="Did you mean 'road'"):
        result.mask("raod")
    with pytest.raises(UsageError, match="a number from 0 to 2; 3 came"):
        result.mask(3)
    twice = classes(labels=("a", "b", "a"))
    assert (twice.mask("a") == (twice.class_map != 255)).all()


def test_plain_values_of_classes() -> None:
    scores = np.random.default_rng(0).random((30, 40), dtype=np.float32)
    result = classes(scores=scores)
    told = json.loads(json.dumps(result.to_dict()))
    assert told["size"] == [30, 40]
    assert [row["label"] for row in told["classes"]] == ["road", "sky"]
    for row in told["classes"]:
        mask = coco.decode(row["mask"]).astype(bool)
        assert (mask == (result.class_map == row["index"])).all()
        assert row["area"] == mask.sum()
        assert row["score"] == pytest.approx(scores[mask].mean(), rel=1e-5)
    assert told["classes"][1]["box"] == [0, 0, 40, 10]
    assert "score" not in classes().to_dict()["classes"][0]
    ignored = np.where(result.class_map == 255, -1, result.class_map.astype(np.int32))
    assert classes(class_map=ignored, ignore=-1, scores=scores).to_dict() == result.to_dict()


def test_rows_of_coco_for_classes() -> None:
    rows = json.loads(json.dumps(classes().to_coco(5, [90, 91, 92])))
    assert [(row["image_id"], row["category_id"]) for row in rows] == [(5, 92), (5, 90)]
    assert coco.area([row["segmentation"] for row in rows]).tolist() == [750, 400]
    with pytest.raises(UsageError, match="categories came for 2 classes only"):
        classes().to_coco(5, [90, 91])


def test_an_indexed_picture(tmp_path: Path) -> None:
    result = classes()
    with Image.open(result.to_png(tmp_path / "a.png")) as image:
        assert image.mode == "P"
        assert (np.asarray(image) == result.class_map).all()
        assert (np.asarray(image.convert("RGB")) == voc_colours(256)[result.class_map]).all()
    many = classes(class_map=np.arange(1200).reshape(30, 40), labels=tuple(map(str, range(1200))))
    with Image.open(many.to_png(tmp_path / "b.png")) as image:
        assert (np.asarray(image) == many.class_map).all()
    with pytest.raises(UsageError, match="has -1"):
        classes(class_map=np.full((30, 40), -1), ignore=-1).to_png(tmp_path / "c.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"class_map": np.zeros((40, 30), int)}, "class map of 40 × 30 pixels came"),
        ({"class_map": np.full((30, 40), 3)}, "pixels of class 3; there are classes 0 to 2"),
        ({"class_map": np.full((30, 40), -1)}, "pixels of class -1"),
        ({"class_map": np.full((30, 40), 0.5)}, "holds float64. A pixel is of a class by its number"),
        ({"scores": np.full((30, 40), np.nan, np.float32)}, "not all finite"),
        ({"scores": np.ones((3, 4), np.float32)}, "map of scores of 3 × 4"),
    ],
)
def test_maps_are_whole(change: dict, said: str, unchecked: None) -> None:
    with pytest.raises(UsageError, match=said):
        classes(**change)


def test_objects_are_chosen() -> None:
    result = objects()
    assert result.labels == ("dog", "cat", "cow")
    assert result.queries.tolist() == [8, 7, 9]
    assert result.boxes.tolist() == [[10, 5, 30, 25], [3, 2, 9, 12], [30, 20, 40, 30]]
    assert result.areas.tolist() == [400, 60, 100]
    assert len(result) == 3
    assert result[result.areas < 200].labels == ("cat", "cow")
    assert result[[2, 1]].labels == ("cat", "cow")  # best first again
    assert result.above(0.25).boxes.tolist() == [[10, 5, 30, 25], [3, 2, 9, 12]]
    assert [one.labels[0] for one in result] == ["dog", "cat", "cow"]
    assert repr(result[1]) == "Instances(p.jpg: 1 object: cat 0.500)"
    assert (polygons_to_mask(result.polygons(1), (30, 40)) == result.masks[1]).all()
    with pytest.raises(UsageError, match="none at place 3"):
        result.polygons(3)
    with pytest.raises(UsageError, match="threshold must be from 0 to 1"):
        result.above(-1)


def test_plain_values_and_rows_of_objects() -> None:
    told = json.loads(json.dumps(objects().to_dict()))
    assert {key: value for key, value in told["objects"][0].items() if key not in ("mask", "score")} == {
        "label": "dog",
        "index": 0,
        "box": [10, 5, 30, 25],
        "area": 400,
    }
    rows = json.loads(json.dumps(objects().to_coco(9, [5, 6, 7, 8, 9])))
    assert [row["category_id"] for row in rows] == [5, 6, 9]
    for place, row in enumerate(rows):
        assert (coco.decode(row["segmentation"]) == objects().masks[place]).all()
        assert row["bbox"] == coco.toBbox(row["segmentation"]).tolist()
        assert row["segmentation"] == told["objects"][place]["mask"]
    with pytest.raises(UsageError, match="Class 4 was found"):
        objects().to_coco(9, [5, 6])


@pytest.mark.parametrize(
    "change", [{"masks": np.zeros((2, 30, 40), bool)}, {"masks": np.zeros((3, 4, 4), bool)}, {"scores": np.full(3, np.nan)}]
)
def test_objects_are_whole(change: dict, unchecked: None) -> None:
    with pytest.raises(UsageError, match=r"Every object needs|Masks of 4 × 4 pixels came|not all finite"):
        objects(**change)


def test_parts_and_their_classes() -> None:
    result = parts()
    assert len(result) == 3
    assert result.mask(3).sum() == 40
    numbers = result.class_map()
    assert numbers.dtype == np.uint8
    assert (numbers == np.select([result.segment_map == 70000, result.segment_map > 0], [3, 17], 255)).all()
    assert result.class_map(-1).min() == -1
    assert repr(result) == "Panoptic(p.jpg: 3 segments: cat 0.750, cat 0.750, sky 0.750)"
    with pytest.raises(UsageError, match="no segment 5; it has 2, 3, 70000"):
        result.mask(5)
    with pytest.raises(UsageError, match="ignore must be no class"):
        result.class_map(17)
    told = json.loads(json.dumps(result.to_dict()))
    assert coco.area([row["mask"] for row in told["segments"]]).tolist() == [80, 40, 400]


def test_cocos_form_of_parts() -> None:
    image, row = parts().to_coco(139, list(range(100, 118)))
    pixels = np.asarray(image).astype(int)
    assert (pixels[..., 0] + 256 * pixels[..., 1] + 256**2 * pixels[..., 2] == parts().segment_map).all()
    assert (row["image_id"], row["file_name"]) == (139, "000000000139.png")
    assert json.loads(json.dumps(row))["segments_info"][1] == {
        "id": 3,
        "category_id": 117,
        "area": 40,
        "bbox": [20, 12, 5, 8],
        "iscrowd": 0,
    }


def test_cocos_own_example_comes_back(shared: Path) -> None:
    folder = shared / "data/panoptic_sample/sample_data"
    told = json.loads((folder / "panoptic_examples.json").read_text())
    for row in told["annotations"]:
        with Image.open(folder / "panoptic_examples" / row["file_name"]) as image:
            pixels = np.asarray(image.convert("RGB"))
        numbers = pixels.astype(np.int32) @ np.array([1, 256, 65536], dtype=np.int32)
        segments = []
        for one in row["segments_info"]:
            left, top, width, height = one["bbox"]
            box = (left, top, left + width, top + height)
            more = {"label": "x", "score": 1.0, "fused": False, "area": one["area"], "box": box}
            segments.append(Segment(id=one["id"], index=one["category_id"], **more))
        image, mine = Panoptic("p", numbers.shape, numbers, tuple(segments)).to_coco(row["image_id"])
        assert (np.asarray(image) == pixels).all()
        assert mine["file_name"] == row["file_name"]
        for one, theirs in zip(mine["segments_info"], row["segments_info"], strict=True):
            assert one == {key: theirs[key] for key in one} | {"iscrowd": 0}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"segments": parts().segments[:2]}, "Segment 70000 of p.jpg should have no pixels, but the map has 400"),
        ({"segments": parts().segments[:1] * 2}, "an id of its own"),
        ({"segment_map": np.zeros((30, 40), np.int32)}, "Segment 2 .* should have 80 pixels, but the map has none"),
        ({"size": (40, 30)}, "segment map of 30 × 40"),
    ],
)
def test_parts_are_whole(change: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parts(**change)


@pytest.mark.parametrize("result", [classes(), objects(), parts()], ids=["classes", "objects", "parts"])
def test_drawings_are_copies(result: Segmentation | Instances | Panoptic) -> None:
    drawn = result.draw()
    assert (np.asarray(GREY.image) == 120).all()
    assert drawn.mode == "RGB"
    if not isinstance(result, Segmentation):
        assert drawn.size == (40, 30)
    with pytest.raises(UsageError, match="was not kept"):
        type(result)(**{field: getattr(result, field) for field in result.__dataclass_fields__} | {"picture": None}).draw()


def test_a_picture_that_was_read_smaller() -> None:
    small = Picture(Image.new("RGB", (101, 76), (120, 120, 120)), (600, 800), "p", (0, 0, 100, 75))
    numbers = np.zeros((600, 800), np.uint8)
    numbers[400:, 560:] = 1
    drawn = np.asarray(Segmentation("p", (600, 800), numbers, ("a", "b"), None, small).draw())
    left = (drawn.shape[1] - 101) // 2
    blue = drawn[:76, left : left + 101, 2].astype(int) > drawn[:76, left : left + 101, 0].astype(int) + 20
    assert (np.flatnonzero(blue.any(0))[[0, -1]] - [70, 100]).tolist() == pytest.approx([0, 0], abs=1)
    assert np.flatnonzero(blue.any(1))[0] == pytest.approx(50, abs=1)
    masks = (numbers == 1)[None]
    objects = Instances("p", (600, 800), masks, np.ones(1), ("x",), np.zeros(1, int), small)
    assert objects.draw().size == (101, 76)
