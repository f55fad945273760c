"""Label files in every format give back what was written, or a sentence; and lists name pictures so that all can tell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.segmented import numbers, pairs
from vitral.data.label_files import holds_colours, label_values
from vitral.data.pictures import Files
from vitral.data.segments import read_segments
from vitral.errors import PictureError, UsageError


def values_of(path: Path) -> np.ndarray:
    return label_values(Files(path.parent, [path.name]), 0)


@pytest.mark.parametrize("largest", [1, 2, 20, 100, 255, 256, 1000, 65535])
@pytest.mark.parametrize("plain", [False, True])
def test_pgm_gives_back_the_numbers_up_to_its_largest(tmp_path: Path, largest: int, plain: bool) -> None:
    """netpbm's pgm(5): samples from 0 to maxval, of one byte, or of two from 256 on, the high one first."""
    written = np.unique(np.linspace(0, largest, 300).astype(np.int64))[None]
    path = tmp_path / "a.pgm"
    if plain:
        path.write_text(f"P2\n{written.shape[1]} 1\n{largest}\n{' '.join(map(str, written[0]))}\n")
    else:
        samples = written.astype(">u2" if largest > 255 else "u1").tobytes()
        path.write_bytes(f"P5\n{written.shape[1]} 1\n{largest}\n".encode() + samples)
    np.testing.assert_array_equal(values_of(path), written)


def test_ppm_gives_back_its_colours(tmp_path: Path) -> None:
    (tmp_path / "a.ppm").write_bytes(b"P6\n2 1\n20\n" + bytes([0, 1, 20, 7, 13, 2]))
    assert values_of(tmp_path / "a.ppm").tolist() == [[[0, 1, 20], [7, 13, 2]]]
    assert holds_colours(Files(tmp_path, ["a.ppm"]), 0)
    (tmp_path / "a.ppm").write_bytes(b"P6\n2 1\n255\n" + bytes([7, 7, 7, 2, 2, 2]))
    assert values_of(tmp_path / "a.ppm").tolist() == [[7, 2]]
    assert not holds_colours(Files(tmp_path, ["a.ppm"]), 0)


def test_grey_gif_gives_back_its_numbers(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.uint8).reshape(3, 4)
    Image.fromarray(values).save(tmp_path / "a.gif")
    np.testing.assert_array_equal(values_of(tmp_path / "a.gif"), values)


def test_tiff_that_changes_numbers_or_has_several_pages_is_refused(tmp_path: Path) -> None:
    image, path = Image.fromarray(numbers(0, list(range(9)), (16, 16)).astype(np.uint8)), tmp_path / "a.tif"
    image.save(path, compression="tiff_lzw")
    np.testing.assert_array_equal(values_of(path), np.asarray(image))
    image.save(path, compression="jpeg")
    with pytest.raises(PictureError, match="It is compressed as JPEG, which changes numbers"):
        values_of(path)
    image.save(path, save_all=True, append_images=[image.rotate(90)])
    with pytest.raises(PictureError, match="It has 2 pages, and nobody can tell which holds the labels"):
        values_of(path)
    smaller = image.resize((8, 8), Image.Resampling.NEAREST)
    smaller.encoderinfo = {"tiffinfo": {254: 1}}  # a smaller copy of the first page, as maps have them
    image.save(path, save_all=True, append_images=[smaller])
    np.testing.assert_array_equal(values_of(path), np.asarray(image))


def test_lists_tell_pictures_of_one_stem_apart_by_their_paths(tmp_path: Path) -> None:
    maps = {stem: numbers(seed, [0, 1]) for seed, stem in enumerate(("0", "a/0", "b/1", "b/c.d"))}
    root = pairs(tmp_path, maps)
    for lines, expected in (
        ("a/0.png\n1\nc.d\n", ["images/a/0.jpg", "images/b/1.jpg", "images/b/c.d.jpg"]),
        ("images/0.jpg labels/0.png\n./images/a/0.jpg x\n", ["images/0.jpg", "images/a/0.jpg"]),
        ("/elsewhere/1.png\n1\nb/c.d.jpg\n", ["images/b/1.jpg", "images/b/c.d.jpg"]),
    ):
        (root / "train.txt").write_text(lines)
        one = read_segments(root).sets["train"]
        assert list(one.names) == expected
        np.testing.assert_array_equal(one.class_map(0), maps[expected[0][len("images/") : -len(".jpg")]])  # type: ignore[union-attr]
    for entry in ("0", "elsewhere/0.jpg"):
        (root / "train.txt").write_text(f"{entry}\n1\n")
        with pytest.raises(UsageError, match=r"train of .* names '.*0.*', but there are .*images/0\.jpg.*Write so much"):
            read_segments(root, bad="skip")
