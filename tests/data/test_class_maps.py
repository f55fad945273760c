"""What numbers and colours are taken to mean, and the sentences where that cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.segmented import label_file, numbers, pairs, photo
from vitral.data.class_maps import ClassMaps, Labelling
from vitral.data.segments import read_segments
from vitral.errors import PictureError, UsageError


def only(root: Path, **options: Any) -> Any:
    return read_segments(root, **options).sets["train"]


@pytest.mark.parametrize(
    ("lines", "classes", "expected"),
    [
        ("void\nroad\ntree\n", ("road", "tree"), [255, 0, 1, 255]),
        ("road\ntree\nunlabelled\n", ("road", "tree"), [0, 1, 255, 255]),
        ("0 road\n2 tree\n1 Void\n", ("road", "tree"), [0, 255, 1, 255]),
        ("sky\nroad\ntree\n", ("sky", "road", "tree"), [0, 1, 2, 255]),
    ],
)
def test_what_classes_txt_calls_void_is_no_class(
    tmp_path: Path, lines: str, classes: tuple[str, ...], expected: list[int]
) -> None:
    root = pairs(tmp_path, {"a": np.array([[0, 1, 2, 255]])})
    (root / "classes.txt").write_text(lines)
    one = only(root)
    assert one.classes == classes
    assert one.class_map(0).tolist() == [expected]


def test_labels_without_any_class_are_refused(tmp_path: Path) -> None:
    root = pairs(tmp_path / "s", {"a": numbers(0, [0, 1, 2])})
    for options in ({"offset": 9}, {"void": [0, 1, 2]}):
        with pytest.raises(UsageError, match=r"no pixel is of any class: they hold 0 to 2, .* void=… \(--void\) or offset"):
            read_segments(root, **options)
    with pytest.raises(UsageError, match="they hold 255, and of 255 nothing is known"):
        read_segments(pairs(tmp_path / "white", {"a": np.full((3, 4), 255)}))


def test_one_broken_label_file_hides_the_classes_of_no_other(tmp_path: Path) -> None:
    root = pairs(tmp_path, {"a": numbers(0, [0, 1]), "b": numbers(1, [0, 1, 2])})
    (root / "labels" / "a.png").write_bytes(b"no")
    with pytest.raises(PictureError, match=r"a\.png"):
        read_segments(root)
    assert only(root, bad="skip").classes == ("class 0", "class 1", "class 2")
    (root / "labels" / "b.png").write_bytes(b"")
    with pytest.raises(PictureError, match=r"a\.png"):
        read_segments(root, bad="skip")


def test_whoever_named_no_class_is_asked_about_0(tmp_path: Path) -> None:
    root = pairs(tmp_path, {"a": numbers(0, [0, 1, 2])})
    assert "if 0 says that nothing is known, say offset=1 (--offset 1)" in read_segments(root).assumes
    for answered in ({"offset": 0}, {"offset": 1}, {"classes": ["a", "b", "c"]}):
        assert "if 0 says" not in read_segments(root, **answered).assumes
    (root / "classes.txt").write_text("a\nb\nc\n")
    assert "if 0 says" not in read_segments(root).assumes


def test_advice_can_be_followed(tmp_path: Path) -> None:
    """What a sentence says to do is done, and then all is well; 255 stays void."""
    root = pairs(tmp_path / "s", {"a": np.array([[0, 1, 2, 3, 255]])})
    (root / "classes.txt").write_text("a\nb\nc\n")
    with pytest.raises(PictureError, match=r"void=\[3\] \(--void 3\)"):
        only(root).class_map(0)
    assert only(root, void=[3]).class_map(0).tolist() == [[0, 1, 2, 255, 255]]
    (root / "classes.txt").unlink()
    assert only(root, void=[3]).class_map(0).tolist() == [[0, 1, 2, 255, 255]]
    photo(tmp_path / "colours" / "images" / "a.jpg", (1, 2))
    label_file(tmp_path / "colours" / "labels" / "a.png", np.array([[[9, 8, 7], [1, 1, 1]]]))
    colours = {(9, 8, 7): 0}
    with pytest.raises(PictureError, match=r"void=\[\(1, 1, 1\)\] \(--void 65793\); .* colours="):
        only(tmp_path / "colours", colours=colours).class_map(0)
    for void in ([(1, 1, 1)], [65793]):
        assert only(tmp_path / "colours", colours=colours, void=void).class_map(0).tolist() == [[0, 255]]
    photo(tmp_path / "deep" / "images" / "a.jpg", (1, 3))
    (tmp_path / "deep" / "labels").mkdir()
    Image.fromarray(np.array([[-1, 0, 1]], dtype=np.int32)).save(tmp_path / "deep" / "labels" / "a.tif")
    with pytest.raises(PictureError, match=r"1 pixel holds -1, .* void=\[-1\] \(--void -1\)\."):
        only(tmp_path / "deep").class_map(0)
    assert only(tmp_path / "deep", void=[-1]).class_map(0).tolist() == [[255, 0, 1]]


def test_voc_may_lie_as_palette_and_as_colours(tmp_path: Path) -> None:
    palette = [0, 0, 0, 128, 0, 0, 0, 128, 0, *[0] * (3 * 252), 224, 224, 192]  # the published one, of what is used here
    values = np.array([[0, 1, 2, 255]], dtype=np.uint8)
    labels = tmp_path / "SegmentationClass"
    labels.mkdir()
    image = Image.frombytes("P", (4, 1), values.tobytes())
    image.putpalette(palette)
    image.save(labels / "a.png")
    image.convert("RGB").save(labels / "b.png")
    for stem in "ab":
        photo(tmp_path / "JPEGImages" / f"{stem}.jpg", (1, 4))
    one = only(tmp_path)
    assert [one.class_map(index).tolist() for index in range(2)] == [values.tolist()] * 2


def test_a_palette_shows_colours_where_those_are_the_classes(tmp_path: Path) -> None:
    photo(tmp_path / "images" / "a.jpg", (1, 3))
    (tmp_path / "labels").mkdir()
    image = Image.frombytes("P", (3, 1), bytes([0, 1, 2]))
    image.putpalette([0, 0, 0, 250, 50, 83, 7, 7, 7])
    image.save(tmp_path / "labels" / "a.png", transparency=b"\0\xff\xff")
    (tmp_path / "labelmap.txt").write_text("# label:color_rgb:parts:actions\ncar:250,50,83::\nvoid:0,0,0::\nsky:7,7,7::\n")
    assert only(tmp_path).class_map(0).tolist() == [[255, 0, 1]]
    Image.fromarray(np.array([[0, 300, 2]], dtype=np.uint16)).save(tmp_path / "labels" / "a.png")
    with pytest.raises(PictureError, match="numbers of the kind 'I;16', but colours are expected"):
        only(tmp_path).class_map(0)


def test_one_class_is_called_so() -> None:
    assert "As nothing says otherwise, 3 is the only class;" in str(Labelling(names=("a",), offset=3))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"mapping": {0: -1}}, "The class that a number stands for must be a whole number of at least 0; -1 came"),
        ({"mapping": {0: 0.5}}, "must be a whole number of at least 0; 0.5 came"),
        ({"mapping": {0: 0.5}, "classes": ["a"]}, "must be a whole number of at least 0; 0.5 came"),
        ({"colours": {(0, 0, 0): "x"}}, "must be a whole number of at least 0; 'x' came"),
        ({"offset": 1.5}, "offset must be a whole number of at least 0; 1.5 came"),
        ({"void": 255}, r"void must be a list of numbers, such as \[255\]; 255 came"),
        ({"void": ["a"]}, "A number in void must be a whole number"),
        ({"void": [(1, 2)]}, "A colour must be"),
    ],
)
def test_options_that_are_no_numbers_are_refused(tmp_path: Path, options: dict[str, Any], sentence: str) -> None:
    root = pairs(tmp_path, {"a": numbers(0, [0, 1])})
    with pytest.raises(UsageError, match=sentence):
        read_segments(root, **options)
    if set(options) == {"void"}:
        with pytest.raises(UsageError, match=sentence):
            read_segments(root, "instance", **options)


def test_numbers_beyond_a_table_are_looked_up(tmp_path: Path) -> None:
    values = np.array([[0, 70_000, -5, 1]], dtype=np.int32)
    photo(tmp_path / "images" / "a.jpg", (1, 4))
    (tmp_path / "labels").mkdir()
    Image.fromarray(values).save(tmp_path / "labels" / "a.tif")
    one = only(tmp_path, mapping={70_000: 0, 1: 1}, void=[0, -5])
    assert isinstance(one, ClassMaps)
    assert one.class_map(0).tolist() == [[255, 0, 255, 1]]
