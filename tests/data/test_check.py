"""The look at every picture: everything planted is found, and nothing else, against counts by hand."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.trees import encoded, folder, packed
from vitral.data.check import DataReport, check
from vitral.data.splits import all_splits, read_pictures, read_splits
from vitral.errors import UsageError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITRAL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """70 good pictures in two splits, and one of every trouble."""
    root = folder(tmp_path / "root", [f"train/{kind}/{number:02}.png" for kind in ("cat", "dog") for number in range(30)])
    folder(
        root, [f"test/{kind}/{number}.png" for kind in ("cat", "dog") for number in range(5)] + ["train/emu/", "test/emu/"]
    )
    same = Image.open(root / "train/cat/00.png")
    same.save(root / "train/cat/twin.bmp")  # the same pixels in another file
    same.save(root / "test/cat/leak.png")
    (root / "train/dog/disputed.png").write_bytes((root / "train/cat/01.png").read_bytes())
    (root / "train/cat/empty.jpg").write_bytes(b"")
    (root / "test/dog/short.png").write_bytes(encoded("short")[:300])
    return root


def names(groups: Any) -> list[set[str]]:
    return [{"/".join(sample.name.rsplit("/", 3)[1:]) for sample in group} for group in groups]


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("pack", [False, True])
def test_what_was_planted_is_found(planted: Path, tmp_path: Path, pack: bool, workers: int) -> None:
    steps: list[tuple[int, int]] = []
    source = packed(planted, tmp_path / "x.tar") if pack else planted
    report = check(source, workers=workers, on_progress=lambda done, total: steps.append((done, total)))

    assert report.classes == ("cat", "dog", "emu")
    assert report.counts == {"train": (32, 31, 0), "test": (6, 6, 0)}
    assert report.total == 75
    assert report.without_pictures("train") == report.without_pictures("test") == ("emu",)
    assert [(one.split, Path(one.name).name) for one in report.unreadable] == [("train", "empty.jpg"), ("test", "short.png")]
    assert "0 bytes" in report.unreadable[0].reason
    assert names(report.twins) == [
        {"train/cat/00.png", "train/cat/twin.bmp"},
        {"train/cat/01.png", "train/dog/disputed.png"},
    ]
    assert names(report.leaks) == [{"train/cat/00.png", "train/cat/twin.bmp", "test/cat/leak.png"}]
    assert names(report.disputed) == [{"train/cat/01.png", "train/dog/disputed.png"}]
    assert {sample.label for sample in report.disputed[0]} == {"cat", "dog"}
    assert report.modes == {"RGB": 73}
    assert report.odd == ()
    assert steps == sorted(steps)
    assert steps[-1] == (75, 75)
    assert json.loads(json.dumps(report.to_dict()))["counts"]["test"] == {"cat": 6, "dog": 6, "emu": 0}


def test_duplicates_are_those_that_comparing_all_pairs_finds(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0)
    for place in range(40):  # 2 x 2 pictures of two colours meet again and again
        path = tmp_path / ("train" if place % 3 else "test") / "ab"[place % 2] / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(numbers.choice([0, 255], (2, 2)).astype(np.uint8)).save(path)
    sets = all_splits(tmp_path)
    everything = [
        (split, pictures.where(index), label, pictures.read(index).array.tobytes())
        for split, pictures in sets.items()
        for index, label in enumerate(pictures.labels)
    ]
    groups = {pixels: [one for one in everything if one[3] == pixels] for *_, pixels in everything}
    many = [group for group in groups.values() if len(group) > 1]
    report = check(tmp_path)

    def same(found: Any, expected: Any) -> bool:
        return sorted(sorted(sample.name for sample in group) for group in found) == sorted(
            sorted(one[1] for one in group) for group in expected
        )

    within = [[one for one in group if one[0] == split] for group in many for split in sets]
    assert same(report.twins, [group for group in within if len(group) > 1])
    assert same(report.leaks, [group for group in many if len({one[0] for one in group}) > 1])
    assert same(report.disputed, [group for group in many if len({one[2] for one in group}) > 1])
    assert min(len(report.twins), len(report.leaks), len(report.disputed)) > 3


def test_sizes_of_another_kind_are_odd(tmp_path: Path) -> None:
    sizes = {f"{number}": (60 + number, 80) for number in range(9)}
    sizes |= {
        "tiny": (100, 15),
        "thin": (16, 81),
        "not thin": (20, 100),
        "large": (300, 500),
        "small": (16, 17),
        "fits": (200, 300),
    }
    (tmp_path / "a").mkdir()
    for name, (height, width) in sizes.items():
        Image.new("RGB", (width, height), (len(name), 0, height)).save(tmp_path / "a" / f"{name}.png")
    report = check(tmp_path)
    heights, widths = zip(*sizes.values(), strict=True)
    assert report.heights is not None
    assert report.widths is not None
    assert vars(report.heights) == {"least": min(heights), "median": statistics.median(heights), "most": max(heights)}
    assert vars(report.widths) == {"least": min(widths), "median": statistics.median(widths), "most": max(widths)}
    odd = {Path(one.name).stem: (one.size, one.reason) for one in report.odd}
    assert odd == {name: (sizes[name], name) for name in ("tiny", "thin", "large", "small")}


def test_small_pictures_are_not_odd_among_small_ones() -> None:
    pytest.importorskip("sklearn")
    report = check(read_pictures("digits", "test"))
    assert report.odd == ()
    assert report.modes == {"L": 359}
    assert report.heights is not None
    assert report.heights.median == 8


MODES = ["RGB", "L", "P", "RGBA", "LA", "1", "CMYK", "I;16"]


def test_modes_are_those_of_pillow(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for place, mode in enumerate(MODES):
        grey = np.random.default_rng(place).integers(0, 256, (20, 20))
        image = Image.fromarray((grey * 257).astype(np.uint16)) if mode == "I;16" else Image.fromarray(grey.astype(np.uint8))
        image = image if mode == "I;16" else image.convert(mode)
        for copy in range(place + 1):
            image.putpixel((0, 0), copy) if mode in {"L", "P"} else None
            image.save(tmp_path / "a" / f"{place}-{copy}.{'jpg' if mode == 'CMYK' else 'png'}")
    expected = Counter(Image.open(file).mode for file in (tmp_path / "a").iterdir())
    assert expected.keys() == set(MODES)
    expected["16 bit"] = expected.pop("I;16")
    assert check(tmp_path).modes == expected


def test_a_turned_jpeg_is_read_upright(tmp_path: Path) -> None:
    image = Image.effect_noise((40, 20), 50).convert("RGB")
    exif = Image.Exif()
    exif[274] = 6
    (tmp_path / "a").mkdir()
    image.save(tmp_path / "a" / "1.jpg", exif=exif)
    report = check(tmp_path)
    assert report.heights is not None
    assert (report.heights.most, report.modes) == (40, {"RGB": 1})


def test_sets_and_splits_may_be_given(planted: Path) -> None:
    whole = check(planted)

    def told(report: DataReport) -> dict[str, Any]:
        return report.to_dict() | {"counts": None, "without_pictures": None}

    assert told(check(all_splits(planted))) == told(whole)
    splits = read_splits(planted)
    assert check(splits).counts == {"train": (32, 31, 0), "held out": (6, 6, 0)}
    one = check(read_pictures(planted, "test"))
    assert one.counts == {"root/test": (6, 6, 0)}
    assert one.leaks == ()


def test_nothing_that_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(b"")
    report = check(tmp_path)
    assert (report.heights, report.widths, report.odd, report.modes) == (None, None, (), {})
    assert len(report.unreadable) == 1
    assert report.to_dict()["heights"] is None


@pytest.mark.parametrize("workers", [0, -1, True])
def test_a_number_of_threads_that_is_none(planted: Path, workers: Any) -> None:
    with pytest.raises(UsageError, match="workers must be a whole number"):
        check(planted, workers=workers)


def test_sets_that_do_not_belong_together(planted: Path, tmp_path: Path) -> None:
    other = read_pictures(folder(tmp_path / "other", ["a/1.png"]))
    with pytest.raises(UsageError, match="do not have the same classes"):
        check({"train": read_pictures(planted, "train"), "other": other})
    with pytest.raises(UsageError, match="No set of pictures came"):
        check({})
