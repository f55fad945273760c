"""Trees of class folders: against torchvision's ImageFolder, brute force, and what strangers leave lying about."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.trees import folder
from vitral.data.tree import WHOLE, Tree, class_folders, natural, only_folders, some, walk
from vitral.errors import UsageError


def listed(*files: str, folders: tuple[str, ...] = ()) -> Tree:
    return Tree(tuple(sorted(files)), folders)


def test_classes_and_samples_are_those_of_image_folder(tmp_path: Path) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    root = folder(tmp_path, ["cat/b.png", "cat/a b.JPG", "dog/deep/er/1.png", "dog/2.jpeg", "emu/ü.png", "README.md"])
    theirs = datasets.ImageFolder(str(root))
    ours = class_folders(walk(root), "here")
    assert list(ours.classes) == theirs.classes
    assert sorted(ours.splits[WHOLE]) == sorted(
        (Path(file).relative_to(root).as_posix(), label) for file, label in theirs.imgs
    )


@given(st.lists(st.text(st.sampled_from("ab019 "), min_size=1, max_size=6), unique=True))
def test_natural_order_is_that_of_numbers_and_text(names: list[str]) -> None:
    def by_hand(name: str) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]

    assert sorted(names, key=natural) == sorted(sorted(names), key=lambda name: (by_hand(name), name))


def test_numbers_sort_by_value_however_long() -> None:
    assert sorted(["10", "9", "0", "1" + "0" * 5000, "class 10", "class 9"], key=natural) == [
        *("0", "9", "10", "1" + "0" * 5000),
        *("class 9", "class 10"),
    ]


def test_splits_have_their_names_in_one_order() -> None:
    tree = listed("test/a/1.png", "Validation/a/2.png", "train/a/3.png", "README.md", "train/LICENSE")
    found = class_folders(tree, "here")
    assert list(found.splits) == ["train", "val", "test"]
    assert found.splits["val"] == [("Validation/a/2.png", 0)]


def test_a_class_of_trains_is_a_class() -> None:
    assert class_folders(listed("train/1.png", "bus/2.png"), "here").classes == ("bus", "train")


def test_an_empty_class_folder_is_a_class() -> None:
    found = class_folders(listed("a/1.png", folders=("a", "b")), "here")
    assert found.classes == ("a", "b")
    assert found.splits[WHOLE] == [("a/1.png", 0)]


def test_hidden_files_and_litter_are_passed_over(tmp_path: Path) -> None:
    root = folder(
        tmp_path, ["a/1.png", "a/.DS_Store", ".git/x.png", "a/Thumbs.db", "__MACOSX/a/._1.png", "b/._2.png", "b/2.png"]
    )
    assert walk(root).files == ("a/1.png", "b/2.png")
    assert walk(root).folders == ("a", "b")


@pytest.mark.parametrize(
    ("tree", "sentence"),
    [
        (listed(), "holds no pictures. It has no class folders"),
        (listed("README.md"), "holds no pictures. It has no class folders"),
        (listed(folders=("a", "b")), r"class folders are empty \('a', 'b'\)"),
        (listed("train/a/1.png", folders=("val", "val/a")), "The split val of here holds no pictures"),
        (listed("a/1.png", "2.png"), r"1 picture lies in no class folder: '2\.png'"),
        (listed("train/a/1.png", "2.png"), r"1 picture lies in no class folder: '2\.png'"),
        (listed("train/1.png", "test/2.png"), "2 pictures lie in no class folder"),
        (listed("a/1.png", "a/notes.txt", "b/deep/2"), r"2 files are no pictures by the suffix: 'a/notes\.txt', 'b/deep/2'"),
        (listed("train/a/1.png", "val/a/2.png", "extra/3.png"), r"splits \('train', 'val'\) beside others \('extra'\)"),
        (listed("val/a/2.png", "valid/a/2.png"), "'val' and 'valid', which both mean the split val"),
        (listed("train/a/1.png", "train/b/1.png", "val/a/1.png", "val/c/1.png"), "only in train: 'b'; only in val: 'c'"),
        (listed("pictures/a/1.png", "pictures/b/2.png"), "its only folder 'pictures'. If those are the classes"),
    ],
)
def test_what_cannot_be_read_as_classes_is_refused(tree: Tree, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        class_folders(tree, "here")


def test_many_names_are_counted() -> None:
    strays = [f"a/{number:02}.txt" for number in range(25)]
    with pytest.raises(UsageError, match=r"25 files are no pictures .*'a/09\.txt' and 15 more\."):
        class_folders(listed("a/1.png", *strays), "here")
    assert some(["x"] * 10) == ", ".join(["'x'"] * 10)


def test_links_are_followed_and_loops_refused(tmp_path: Path) -> None:
    root = folder(tmp_path / "root", ["a/1.png"])
    folder(tmp_path / "elsewhere", ["2.png", "deep/3.png"])
    (root / "b").symlink_to(tmp_path / "elsewhere")
    assert walk(root).files == ("a/1.png", "b/2.png", "b/deep/3.png")
    (tmp_path / "elsewhere" / "deep" / "back").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=r"The link .*back leads back to .*elsewhere"):
        walk(root)


def test_links_to_nothing_and_to_each_other_are_files(tmp_path: Path) -> None:
    root = folder(tmp_path, ["a/1.png"])
    (root / "a" / "gone.png").symlink_to("nowhere.png")
    (root / "a" / "one.png").symlink_to("two.png")
    (root / "a" / "two.png").symlink_to("one.png")
    assert walk(root).files == ("a/1.png", "a/gone.png", "a/one.png", "a/two.png")


def test_two_links_that_lead_round_are_refused(tmp_path: Path) -> None:
    root = folder(tmp_path / "root", ["a/1.png", "b/2.png"])
    (root / "a" / "to_b").symlink_to(root / "b")
    (root / "b" / "to_a").symlink_to(root / "a")
    with pytest.raises(UsageError, match="round and round"):
        walk(root)


def test_only_folders() -> None:
    tree = listed("x/a/1.png", "x/README", "y/1.png", "y/deep/2.png")
    assert only_folders(tree, "x/")
    assert not only_folders(tree, "y/")
    assert not only_folders(tree, "x/a/")
