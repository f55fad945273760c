"""Segmented pictures: every layout written by hand and read back to equal arrays; what is wrong ends in a sentence."""

from __future__ import annotations

import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.annotated import coco
from tests.data.segmented import label_file, numbers, pairs, panoptic, photo
from vitral.data.class_maps import Labelling
from vitral.data.listed import set_apart
from vitral.data.objects import ObjectSet
from vitral.data.segments import ClassMapSet, PanopticSet, known_of, read_segments, segment_kinds
from vitral.data.synthetic import SegmentedScenes, SyntheticScenes
from vitral.errors import PictureError, UnknownNameError, UsageError

SHARED = Path(__file__).parents[3] / "shared" / "data"
CITYSCAPES = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14,
              28: 15, 31: 16, 32: 17, 33: 18}  # fmt: skip


def looked_up(values: np.ndarray, table: dict[int, int], ignore: int = 255) -> np.ndarray:
    """Each pixel on its own."""
    return np.array([[table.get(int(value), ignore) for value in row] for row in values])


def first(splits: Any, split: str = "train") -> Any:
    return splits.sets[split]


# -- label files of classes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layout", [("images", "labels"), ("img", "masks"), ("JPEGImages", "annotations"), ("train", "trainannot")]
)
def test_pairs_are_found_and_read_back(tmp_path: Path, layout: tuple[str, str]) -> None:
    maps = {f"{stem}": numbers(seed, [0, 1, 2, 255]) for seed, stem in enumerate(("a", "b", "c10"))}
    splits = read_segments(pairs(tmp_path, maps, *layout))
    one = first(splits)
    assert isinstance(one, ClassMapSet)
    assert splits.kind == "semantic"
    assert one.classes == ("class 0", "class 1", "class 2")
    assert [Path(name).stem for name in one.names] == ["a", "b", "c10"]
    for index, values in enumerate(maps.values()):
        assert one.class_map(index).dtype == np.uint8
        np.testing.assert_array_equal(one.class_map(index), values)
        assert one.size_of(index) == one.read(index).size == (12, 16)
    assert splits.assumes == (
        "As nothing says otherwise, 0 to 2 are the 3 classes; 255 says that nothing is known (ignored: 255 in class maps). "
        "No names of classes were found: if 0 says that nothing is known, say offset=1 (--offset 1), or so in a classes.txt "
        "beside the pictures (0 void, 1 road, …)."
    )
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(one)).class_map(-1), maps["c10"])
    with pytest.raises(IndexError, match="there is none at 3"):
        one.class_map(3)


@pytest.mark.parametrize("mode", ["P", "16", "RGB", "RGBA", "LA"])
def test_numbers_are_read_as_they_were_written(tmp_path: Path, mode: str) -> None:
    values = numbers(0, [0, 1, 7, 300] if mode == "16" else [0, 1, 7, 200])
    photo(tmp_path / "images" / "a.jpg")
    path = tmp_path / "labels" / "a.png"
    if mode in ("P", "16"):
        label_file(path, values, mode)
    else:
        path.parent.mkdir()
        Image.fromarray(values.astype(np.uint8)).convert(mode).save(path)
    names = [f"c{label}" for label in range(301)]
    one = first(read_segments(tmp_path, classes=names))
    np.testing.assert_array_equal(one.class_map(0), values)
    assert one.ignore == 65535
    assert one.class_map(0).dtype == np.int32


@pytest.mark.parametrize(("bits", "largest"), [(1, 1), (2, 3), (4, 15)])
def test_grey_of_few_bits_is_not_stretched(tmp_path: Path, bits: int, largest: int) -> None:
    import struct
    import zlib

    values = numbers(1, list(range(largest + 1)), (5, 8))
    rows = b""
    for row in values:  # PNG, Specification (second edition), 7.2: samples packed from the highest bits down
        packed = int("".join(f"{value:0{bits}b}" for value in row), 2).to_bytes(bits, "big")
        rows += b"\0" + packed

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    photo(tmp_path / "images" / "a.jpg", (5, 8))
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 5, bits, 0, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    np.testing.assert_array_equal(first(read_segments(tmp_path)).class_map(0), values)


def test_ade20k_counts_from_one(tmp_path: Path) -> None:
    values = numbers(3, [0, 1, 2, 3])
    for split in ("training", "validation"):
        photo(tmp_path / "ADE" / "images" / split / "ADE_1.jpg")
        label_file(tmp_path / "ADE" / "annotations" / split / "ADE_1.png", values)
    head = "Idx\tRatio\tTrain\tVal\tStuff\tName\n"
    lines = ["1\t0.1\t11\t1\t1\twall", "2\t0.1\t7\t1\t1\tbuilding, edifice", "3\t0.2\t3\t1\t0\tdoor"]
    (tmp_path / "ADE" / "objectInfo150.txt").write_text(head + "\n".join(lines) + "\n")
    splits = read_segments(tmp_path / "ADE")
    assert list(splits.sets) == ["train", "val"]
    assert splits.classes == ("wall", "building", "door")
    np.testing.assert_array_equal(first(splits, "val").class_map(0), looked_up(values, {1: 0, 2: 1, 3: 2}))
    assert "1 to 3 are the 3 classes; 0 says that nothing is known" in splits.assumes


@pytest.mark.parametrize("kind", ["labelIds", "labelTrainIds"])
def test_cityscapes(tmp_path: Path, kind: str) -> None:
    ids = numbers(4, list(range(34)))
    trained = looked_up(ids, CITYSCAPES)
    for split, city in (("train", "aachen"), ("val", "ulm")):
        stem = f"{city}_000000_000019"
        photo(tmp_path / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png")
        beside = tmp_path / "gtFine" / split / city
        label_file(beside / f"{stem}_gtFine_labelIds.png", ids)
        label_file(beside / f"{stem}_gtFine_instanceIds.png", ids)
        label_file(beside / f"{stem}_gtFine_color.png", np.stack([ids] * 3, axis=-1))
        if kind == "labelTrainIds":
            label_file(beside / f"{stem}_gtFine_labelTrainIds.png", trained)
    photo(tmp_path / "leftImg8bit" / "test" / "bonn" / "bonn_0_leftImg8bit.png")  # without labels
    splits = read_segments(tmp_path)
    assert list(splits.sets) == ["train", "val"]
    assert len(splits.classes) == 19
    assert splits.classes[:3] + splits.classes[-1:] == ("road", "sidewalk", "building", "bicycle")
    np.testing.assert_array_equal(first(splits).class_map(0), trained)
    assert kind in splits.assumes
    if kind == "labelIds":
        assert "0 to 6, 9, 10, 14 to 16, 18, 29, 30 and 255 say" in splits.assumes


@pytest.mark.parametrize("mode", ["L", "P", "colours"])
def test_pascal_voc(tmp_path: Path, mode: str) -> None:
    values = numbers(5, [0, 1, 15, 20, 255])
    # The first colours of the published palette, and the last.
    colours = {0: (0, 0, 0), 1: (128, 0, 0), 15: (192, 128, 128), 20: (0, 64, 128), 255: (224, 224, 192)}
    shown = np.array([[colours[value] for value in row] for row in values]) if mode == "colours" else values
    for stem in ("2007_1", "2007_2", "2007_3"):
        photo(tmp_path / "VOC2012" / "JPEGImages" / f"{stem}.jpg")
    for stem in ("2007_1", "2007_2"):
        label_file(tmp_path / "VOC2012" / "SegmentationClass" / f"{stem}.png", shown, mode)
    for folder, split, stems in (
        ("Segmentation", "train", "2007_1\n"),
        ("Segmentation", "val", "2007_2\n"),
        ("Main", "train", "2007_3 1\n"),
    ):
        path = tmp_path / "VOC2012" / "ImageSets" / folder / f"{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(stems)
    splits = read_segments(tmp_path)
    assert [one.names for one in splits.sets.values()] == [
        ("VOC2012/JPEGImages/2007_1.jpg",),
        ("VOC2012/JPEGImages/2007_2.jpg",),
    ]
    assert splits.classes[0] == "background"
    assert len(splits.classes) == 21
    np.testing.assert_array_equal(first(splits, "val").class_map(0), values)


def test_colours_by_a_file(tmp_path: Path) -> None:
    table = {(64, 128, 64): 0, (192, 0, 128): 1, (128, 128, 128): 2}
    codes = numbers(6, [0, 1, 2, 255])
    colours = {label: colour for colour, label in table.items()} | {255: (0, 0, 0)}
    shown = np.array([[colours[value] for value in row] for row in codes])
    photo(tmp_path / "images" / "a.png")
    label_file(tmp_path / "labels" / "a_L.png", shown)
    with pytest.raises(PictureError, match=r"a_L\.png: It holds colours, .* label_colors\.txt"):
        read_segments(tmp_path)
    told = first(read_segments(tmp_path, colours=table, void=[0]))
    np.testing.assert_array_equal(told.class_map(0), codes)
    (tmp_path / "label_colors.txt").write_text("64 128 64\tAnimal\n192 0 128\t\tArchway\n128 128 128 Sky\n0 0 0\tVoid\n")
    splits = read_segments(tmp_path)
    assert splits.classes == ("Animal", "Archway", "Sky")
    np.testing.assert_array_equal(first(splits).class_map(0), codes)
    (tmp_path / "label_colors.txt").unlink()
    (tmp_path / "class_dict.csv").write_text("name,r,g,b\nAnimal,64,128,64\nArchway,192,0,128\nSky,128,128,128\n")
    with pytest.raises(PictureError, match=r"a_L\.png: \d+ pixels? holds? the colour \(0, 0, 0\), which is no class"):
        first(read_segments(tmp_path)).class_map(0)
    (tmp_path / "class_dict.csv").write_text("Animal,64,128\n")
    with pytest.raises(UsageError, match="is no colour with a name"):
        read_segments(tmp_path)


def test_names_by_a_file_and_by_options(tmp_path: Path) -> None:
    values = numbers(7, [0, 1, 2, 255])
    root = pairs(tmp_path, {"a": values})
    (root / "classes.txt").write_text("sky\nroad\ncar\n")
    assert read_segments(root).classes == ("sky", "road", "car")
    (root / "classes.txt").write_text("0: void\n1: sky\n2: road\n")
    splits = read_segments(root)
    assert splits.classes == ("sky", "road")
    np.testing.assert_array_equal(first(splits).class_map(0), looked_up(values, {1: 0, 2: 1}))
    (root / "classes.txt").unlink()
    reduced = first(read_segments(root, offset=1))
    np.testing.assert_array_equal(reduced.class_map(0), looked_up(values, {1: 0, 2: 1}))
    mapped = first(read_segments(root, mapping={2: 0, 0: 1}, void=[1, 255], classes=["x", "y"]))
    np.testing.assert_array_equal(mapped.class_map(0), looked_up(values, {2: 0, 0: 1}))
    with pytest.raises(UsageError, match="Say one of offset"):
        read_segments(root, offset=1, mapping={0: 0})
    with pytest.raises(UsageError, match="leave things out"):
        read_segments(root, things=["x"])


@pytest.mark.usefixtures("unchecked")
def test_misspelt_choices_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'semantic'"):
        read_segments("scenes", "semantics")  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="Did you mean 'skip'"):
        read_segments("scenes", bad="skipp")  # type: ignore[arg-type]


def test_masks_of_nothing_but_black_and_white_are_an_object(tmp_path: Path) -> None:
    values = numbers(8, [0, 255])
    splits = read_segments(pairs(tmp_path, {"a": values}))
    assert splits.classes == ("background", "object")
    np.testing.assert_array_equal(first(splits).class_map(0), values // 255)


def test_what_is_no_class_is_refused_with_file_number_count_and_remedy(tmp_path: Path) -> None:
    values = np.zeros((12, 16), dtype=np.int64)
    values[0, :5] = 2
    root = pairs(tmp_path, {"a": values})
    one = first(read_segments(root, classes=["x", "y"]))
    with pytest.raises(
        PictureError, match=r"labels/a\.png: 5 pixels hold 2, which is no class.*void=\[2\] \(--void 2\); .*\(--offset 1\)"
    ) as told:
        one.class_map(0)
    assert told.value.name == str(root / "labels" / "a.png")
    looked = one.look(0)
    assert looked.unknown == {2: 5}
    assert (looked.class_map[0, :5] == 255).all()
    void = first(read_segments(root, classes=["x", "y"], void=[2]))
    np.testing.assert_array_equal(void.class_map(0), looked_up(values, {0: 0}))


def test_damage_ends_in_a_sentence(tmp_path: Path) -> None:
    root = pairs(tmp_path, {"a": numbers(0, [0, 1]), "b": numbers(1, [0, 1])})
    names = {"classes": ["x", "y"]}
    path = root / "labels" / "a.png"
    whole = path.read_bytes()
    for content, sentence in (
        (b"", "is empty"),
        (whole[:60], "could not be decoded"),
        (b"GARBAGE" * 9, "no picture that can hold labels"),
        ((root / "images" / "a.jpg").read_bytes(), "It is a JPEG, which changes numbers"),
    ):
        path.write_bytes(content)
        with pytest.raises(PictureError, match=sentence):
            first(read_segments(root, **names)).class_map(0)
    Image.fromarray(np.zeros((4, 4), dtype=np.float32)).save(root / "labels" / "a.tif")
    path.unlink()
    with pytest.raises(PictureError, match="which are no labels"):
        first(read_segments(root, **names)).class_map(0)
    (root / "labels" / "a.tif").unlink()
    with pytest.raises(UsageError, match=r"a\.jpg.*It has no label file.*vitral data check"):
        read_segments(root, **names)
    left = first(read_segments(root, bad="skip", **names))
    assert [Path(name).stem for name in left.names] == ["b"]
    assert [one.kind for one in left.problems] == ["missing"]
    label_file(root / "labels" / "c.png", numbers(0, [0, 1]))
    assert len(first(read_segments(root, bad="skip", **names)).problems) == 2
    label_file(root / "masks" / "b.png", numbers(2, [0, 1]))
    with pytest.raises(UsageError, match=r"several label files for one picture.*labels="):
        read_segments(root, bad="skip", **names)
    chosen = first(read_segments(root, bad="skip", labels="masks", **names))
    np.testing.assert_array_equal(chosen.class_map(0), numbers(2, [0, 1]))
    with pytest.raises(UsageError, match="has no folder 'mask'"):
        read_segments(root, labels="mask")
    with pytest.raises(UsageError, match="holds no segmented pictures"):
        read_segments(root / "images")


def test_archives_lists_and_shares(tmp_path: Path) -> None:
    maps = {f"p{number}": numbers(number, [0, 1]) for number in range(9)}
    root = pairs(tmp_path / "set", maps)
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        archive.add(root, "set")
    packed = first(read_segments(tmp_path / "set.tar"))
    np.testing.assert_array_equal(packed.class_map(4), maps["p4"])
    splits = read_segments(root, held_out=0.3)
    learned, judged = first(splits), first(splits, "val")
    assert (len(learned), len(judged)) == (6, 3)
    assert sorted((*learned.names, *judged.names)) == sorted(packed.names[index][4:] for index in range(9))
    names = list(first(read_segments(root)).names)
    assert {names[place] for place in set_apart(names, 0.3)[1]} == set(judged.names)
    assert {names[::-1][place] for place in set_apart(names[::-1], 0.3)[1]} == set(judged.names)
    np.testing.assert_array_equal(judged.class_map(0), maps[Path(judged.names[0]).stem])
    (root / "train.txt").write_text("images/p1.jpg labels/p1.png\n/x/y/p2.jpg z\n")
    (root / "val.txt").write_text("p0\nnobody\n")
    with pytest.raises(UsageError, match=r"\(nobody\): The list of the split val names it"):
        read_segments(root)
    listed = read_segments(root, bad="skip")
    assert [[Path(name).stem for name in one.names] for one in listed.sets.values()] == [["p1", "p2"], ["p0"]]
    with pytest.raises(UsageError, match="has a split val"):
        read_segments(root, bad="skip", held_out=0.5)
    for share in (0, 1, -0.5):
        with pytest.raises(UsageError, match="between 0 and 1"):
            set_apart(names, share)


def packed(root: Path, path: Path) -> Path:
    """A folder within an archive, by its own name."""
    with tarfile.open(path, "w") as archive:
        archive.add(root, root.name)
    return path


def test_what_is_known_of_pictures(tmp_path: Path) -> None:
    """Boxes before pixels; segments alone are no boxes, be it one JSON or a folder of them."""
    segments = panoptic(tmp_path / "panoptic")
    listed = segments / "annotations" / "panoptic_val2017.json"
    streets = pairs(tmp_path / "streets", {"a": numbers(0, [0, 1])})
    boxes = coco(tmp_path / "boxes")
    both = pairs(coco(tmp_path / "both"), {"a": numbers(0, [0, 1])}, labels="masks")
    classes = tmp_path / "photos"
    for name in ("cat/0.jpg", "cat/0.png", "dog/1.png"):
        photo(classes / name)
    (tmp_path / "list.csv").write_text("file,label\nphotos/cat/0.png,cat\n")
    (tmp_path / "told.json").write_text(listed.read_text())
    for path, known in (
        (segments, "segments"), (listed, "segments"), (tmp_path / "told.json", "segments"), (streets, "segments"),
        (packed(streets, tmp_path / "streets.tar"), "segments"), (boxes, "objects"), (both, "objects"),
        (next((boxes / "annotations").glob("*.json")), "objects"), ("scenes", "objects"), (classes, "classes"),
        # Called as pictures are that lie beside label files, of which there are none.
        (packed(classes, tmp_path / "photos.tar"), "classes"),
        (tmp_path / "list.csv", "classes"), (tmp_path / "gone", "classes"), ("digits", "classes"), ("", "classes"),
    ):  # fmt: skip
        assert known_of(path) == known, path


def test_label_files_that_nobody_can_tell_apart_are_no_classes(tmp_path: Path) -> None:
    root = pairs(tmp_path / "streets", {"0": numbers(0, [0, 1])})
    photo(root / "images" / "0.jpeg")
    with pytest.raises(UsageError, match=r"two pictures of one name, .* Rename one"):
        known_of(root)
    (root / "images" / "0.jpeg").unlink()
    label_file(root / "masks" / "0.png", numbers(1, [0, 1]))
    with pytest.raises(UsageError, match="several label files for one picture"):
        known_of(root)


def test_a_labelling_that_contradicts_itself_is_refused() -> None:
    for wrong, sentence in (
        ({"names": ()}, "none came"),
        ({"names": ("a", "a")}, "twice there are 'a'"),
        ({"names": ("a",), "mapping": ((3, 1),)}, "stands for the class 1"),
        ({"names": ("a",), "mapping": ((255, 0),)}, "cannot be void and a class"),
        ({"names": ("a",), "coloured": True}, "Of colours each"),
        ({"names": ("a",), "offset": -1}, "at least 0"),
    ):
        with pytest.raises(UsageError, match=sentence):
            Labelling(**wrong)  # type: ignore[arg-type]


# -- objects and segments -----------------------------------------------------------------------------------------------


def test_numbered_objects(tmp_path: Path) -> None:
    values = np.zeros((12, 16), dtype=np.int64)
    values[1:4, 2:9], values[6:, 3:5], values[0, 0] = 1, 4, 9
    root = pairs(tmp_path, {"FudanPed00001": values}, "PNGImages", "PedMasks")
    assert segment_kinds(root)[0] == "instance"
    splits = read_segments(root)
    one = first(splits)
    assert isinstance(one, ObjectSet)
    assert splits.classes == ("pedestrian",)
    there = one.annotations(0)
    np.testing.assert_array_equal(there.masks, [values == 1, values == 4, values == 9])
    np.testing.assert_array_equal(there.boxes, [[2, 1, 9, 4], [3, 6, 5, 12], [0, 0, 1, 1]])
    assert there.areas.tolist() == [21, 12, 1]
    assert len(first(read_segments(root, "instance", void=[9], classes=["person"])).annotations(0)) == 2
    assert first(read_segments(root, "semantic")).classes == tuple(f"class {label}" for label in range(10))
    with pytest.raises(UsageError, match="have one class; 2 names"):
        read_segments(root, classes=["a", "b"])


def test_outlines_of_coco_are_drawn(tmp_path: Path) -> None:
    square = [[4, 6, 12, 6, 12, 10, 4, 10]]
    annotations = [
        {"id": 1, "image_id": 4, "category_id": 18, "bbox": [4, 6, 8, 4], "segmentation": square},
        {"id": 2, "image_id": 4, "category_id": 5, "bbox": [0, 0, 1, 30], "iscrowd": 1,
         "segmentation": {"size": [30, 40], "counts": [0, 30, 1170]}},
        {"id": 3, "image_id": 9, "category_id": 5, "bbox": [0, 0, 1, 2],
         "segmentation": {"size": [30, 40], "counts": "02PU1"}},
    ]  # fmt: skip
    one = first(read_segments(coco(tmp_path, annotations=annotations), "instance"), "val")
    there = one.annotations(1)
    expected = np.zeros((2, 30, 40), dtype=bool)
    expected[0, 6:10, 4:12] = True
    expected[1, :, 0] = True
    np.testing.assert_array_equal(there.masks, expected)
    assert there.crowd.tolist() == [False, True]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(one)).subset([1]).annotations(0).masks, expected)
    coco(tmp_path / "bare", annotations=[*annotations[:1], {**annotations[1], "segmentation": None}])
    with pytest.raises(UsageError, match=r"annotation 2 .*has no segmentation"):
        read_segments(tmp_path / "bare")
    left = first(read_segments(tmp_path / "bare", bad="skip"), "val")
    assert left.annotations(1).ids.tolist() == [1]
    np.testing.assert_array_equal(left.annotations(1).masks, expected[:1])
    coco(tmp_path / "odd", annotations=[{**annotations[0], "segmentation": {"size": [30, 40], "counts": [7]}}])
    with pytest.raises(PictureError, match="Annotation 1 has no mask"):
        first(read_segments(tmp_path / "odd"), "val").annotations(1)
    whole = tmp_path / "annotations" / "instances_val2017.json"
    with pytest.raises(UsageError, match=r"does not say which categories are things .*things="):
        read_segments(whole, "panoptic")
    told = read_segments(whole, "panoptic", things=["dog"])
    assert told.things == (False, True)


def test_panoptic_maps(tmp_path: Path) -> None:
    splits = read_segments(panoptic(tmp_path))
    one = first(splits, "val")
    assert isinstance(one, PanopticSet)
    assert isinstance(one, ObjectSet)
    assert (splits.kind, one.classes, one.categories) == ("panoptic", ("person", "dog", "grass"), (1, 18, 193))
    assert splits.things == (True, True, False)
    assert (one.image_id(0), one.size_of(0)) == (42, (12, 16))
    there = one.annotations(0)
    expected = np.zeros((3, 12, 16), dtype=bool)
    expected[0, 2:6, 2:6], expected[1, 8:, 1:4], expected[2, :, 8:] = True, True, True
    np.testing.assert_array_equal(there.masks, expected)
    assert there.labels.tolist() == [1, 1, 2]
    assert there.crowd.tolist() == [False, True, False]
    np.testing.assert_array_equal(there.boxes, [[2, 2, 6, 6], [1, 8, 4, 12], [8, 0, 16, 12]])
    classes = np.where(expected[2], 2, np.where(expected[:2].any(0), 1, 255))
    np.testing.assert_array_equal(one.class_map(0), classes)
    assert read_segments(tmp_path, "semantic").kind == "semantic"
    # The same in two channels: red the category, green the number, 255 for crowds (panopticapi's naive format).
    two = np.zeros((12, 16, 3), dtype=np.int64)
    for mask, category, number in zip(expected, (18, 18, 193), (0, 255, 0), strict=True):
        two[mask] = category, number, 0
    label_file(tmp_path / "annotations" / "maps" / "a.png", two)
    told = json.loads((tmp_path / "annotations" / "panoptic_val2017.json").read_text())
    del told["annotations"]
    (tmp_path / "annotations" / "info_val2017.json").write_text(json.dumps(told))
    other = first(read_segments(tmp_path / "annotations" / "info_val2017.json", labels="annotations/maps"))
    again = other.annotations(0)
    order = [again.masks.tolist().index(mask.tolist()) for mask in expected]
    assert again.labels[order].tolist() == [1, 1, 2]
    assert again.crowd[order].tolist() == [False, True, False]
    np.testing.assert_array_equal(other.class_map(0), classes)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(one)).subset([0]).annotations(0).masks, expected)


@pytest.mark.parametrize(
    ("infos", "sentence"),
    [
        ([(300, 18), (5, 18)], r"segment 70000: 96 pixels are of the segment 70000, which segments_info does not list"),
        ([(300, 18), (5, 18), (70_000, 193), (9, 1)], r"segment 9: segments_info lists it, but no pixel is of it"),
        ([(300, 18), (5, 2), (70_000, 193)], r"category_id is 2, which no category has"),
        ([(300, 18), (300, 18)], r"Another segment of the picture has its id"),
        ([(0, 18)], r"Its id should be a whole number from 1"),
    ],
)
def test_maps_and_lists_that_do_not_agree(tmp_path: Path, infos: list[tuple[int, int]], sentence: str) -> None:
    listed = [{"id": number, "category_id": category} for number, category in infos]
    annotation = {"image_id": 42, "file_name": "a.png", "segments_info": listed}
    root = panoptic(tmp_path, annotations=[annotation])
    with pytest.raises((PictureError, UsageError), match=sentence):
        first(read_segments(root), "val").class_map(0)


def test_panoptic_files_that_are_missing(tmp_path: Path) -> None:
    more = {"id": 7, "file_name": "b.jpg", "height": 12, "width": 16}
    root = panoptic(tmp_path, images=[{"id": 42, "file_name": "a.jpg", "height": 12, "width": 16}, more])
    with pytest.raises(UsageError, match=r"\(b\.jpg\): It is listed, but no annotation"):
        read_segments(root)
    assert len(first(read_segments(root, bad="skip"), "val")) == 1
    (root / "annotations" / "panoptic_val2017" / "a.png").unlink()
    with pytest.raises(UsageError, match=r"The maps of .* are nowhere"):
        read_segments(root)


def test_scenes_of_every_kind() -> None:
    scenes = SegmentedScenes(scenes=SyntheticScenes(count=3, size=(32, 48)))
    assert isinstance(scenes, PanopticSet)
    assert isinstance(scenes, ObjectSet)
    ids: set[int] = set()
    for index in range(3):
        scene, there = scenes.scenes.scene(index), scenes.annotations(index)
        assert there.masks is not None
        assert (there.masks.sum(0) == 1).all()
        np.testing.assert_array_equal(there.labels[there.masks.argmax(0)], scenes.class_map(index))
        np.testing.assert_array_equal(there.boxes[: len(scene.boxes)], scene.boxes)
        assert not ids & set(there.ids.tolist())
        ids |= set(there.ids.tolist())
    assert sum(scenes.things) == len(scenes.scenes.shapes)
    kinds = {kind: read_segments("scenes", kind) for kind in ("semantic", "instance", "panoptic")}  # type: ignore[arg-type]
    assert all(len(first(one)) == 2000 for one in kinds.values())
    assert first(kinds["instance"]).annotations(0).masks is not None
    with pytest.raises(UsageError, match="leave offset out"):
        read_segments("scenes", offset=1)


# -- published sets -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not here")
def test_published_sets() -> None:
    camvid = read_segments(SHARED / "camvid" / "camvid-train.tar")
    assert (len(first(camvid)), camvid.classes[3]) == (367, "road")
    assert "11 and 255 say that nothing is known" in camvid.assumes
    people = first(read_segments(SHARED / "penn_fudan" / "penn-fudan.tar"))
    assert len(people) == 170
    assert len(people.annotations(0)) == 2
    sample = SHARED / "panoptic_sample" / "sample_data"
    one = first(read_segments(sample / "panoptic_examples.json"))
    two = first(read_segments(sample / "images_info_examples.json", labels="panoptic_examples_2ch_format"))
    listed = json.loads((sample / "panoptic_examples.json").read_text())["annotations"]
    drawn = first(read_segments(sample / "panoptic_coco_detection_format.json"))
    for index, annotation in enumerate(listed):
        there = one.annotations(index)
        assert there.areas.tolist() == [info["area"] for info in annotation["segments_info"]]
        x, y, width, height = np.array([info["bbox"] for info in annotation["segments_info"]]).T
        np.testing.assert_array_equal(there.boxes, np.stack([x, y, x + width, y + height], axis=1))
        np.testing.assert_array_equal(one.class_map(index), two.class_map(index))
        assert sorted(two.annotations(index).areas) == sorted(there.areas)
        assert two.annotations(index).crowd.sum() == there.crowd.sum()
        np.testing.assert_array_equal(drawn.annotations(index).masks, there.masks)
