"""Manifests: written by csv and json, read back the same; what is broken is named with its line."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitral.data.manifest import read_manifest
from vitral.data.tree import WHOLE
from vitral.errors import UnknownNameError, UsageError

FILES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1).filter(str.strip)
ROWS = st.lists(st.tuples(FILES, st.sampled_from(["cat", "a, b", 'the "dog"', "Bär", "10", "9"])), min_size=1)


def by_name(content: str, name: str = "m.csv", classes: str | None = None) -> dict[str, list[tuple[str, str]]]:
    found = read_manifest(content.encode(), name, None if classes is None else classes.encode())
    return {split: [(file, found.classes[label]) for file, label in rows] for split, rows in found.splits.items()}


@given(ROWS)
def test_what_csv_writes_is_read_back(rows: list[tuple[str, str]]) -> None:
    memory = io.StringIO(newline="")
    csv.writer(memory).writerows([("file", "label"), *rows])
    assert by_name(memory.getvalue()) == {WHOLE: rows}
    found = read_manifest(("\ufeff" + memory.getvalue()).encode(), "m.csv")
    assert found.classes == tuple(
        sorted({label for _, label in rows}, key=["9", "10", "Bär", "a, b", "cat", 'the "dog"'].index)
    )


@given(ROWS, st.booleans())
def test_what_json_writes_is_read_back(rows: list[tuple[str, str]], ascii_only: bool) -> None:
    lines = [json.dumps({"label": label, "file": file}, ensure_ascii=ascii_only) for file, label in rows]
    assert by_name("\n".join(lines), "m.jsonl") == {WHOLE: rows}


def test_numbers_count_from_0_and_sort_by_value() -> None:
    rows = "".join(f"{number}.png,{number}\n" for number in (10, 2, 0, 1, 3, 4, 5, 6, 7, 8, 9))
    found = read_manifest(f"file,label\n{rows}".encode(), "m.csv")
    assert found.classes == tuple(map(str, range(11)))
    assert all(file == f"{label}.png" for file, label in found.splits[WHOLE])
    assert read_manifest(b'{"file": "a", "label": 0}\n{"file": "b", "label": 1}', "m.jsonl").splits[WHOLE] == [
        ("a", 0),
        ("b", 1),
    ]


def test_classes_are_those_of_all_splits() -> None:
    content = "split,file,label\ntest,c.png,emu\nvalidation,b.png,dog\ntrain,a.png,cat\n\n"
    found = read_manifest(content.encode(), "m.csv")
    assert found.classes == ("cat", "dog", "emu")
    assert dict(found.splits) == {"train": [("a.png", 0)], "val": [("b.png", 1)], "test": [("c.png", 2)]}
    assert list(found.splits) == ["train", "val", "test"]


def test_classes_txt_orders_the_classes_and_counts_them() -> None:
    found = read_manifest(b"file,label\na,zebra\nb,1\nc, ant \n", "m.csv", "zebra\r\nant\r\nyak\r\n".encode("utf-8-sig"))
    assert found.classes == ("zebra", "ant", "yak")
    assert found.splits[WHOLE] == [("a", 0), ("b", 1), ("c", 1)]
    names_first = read_manifest(b"file,label\na,1\nb,0\n", "m.csv", b"1\n0\n")
    assert names_first.splits[WHOLE] == [("a", 0), ("b", 1)]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("file,lable\na,b\n", "Unknown column of m.csv 'lable'. Did you mean 'label'"),
        ("file,label,spilt\na,b,train\n", "Did you mean 'split'"),
        ("file;label\na;b\n", "separated by commas"),
        ("file\na\n", "the column 'label' is missing"),
        ("file,label,file\na,b,c\n", "a column twice"),
        ("file,label\na,b\nc\n", r"Line 3 of m\.csv has 1 columns, not 2"),
        ("file,label\na,b\nc,d,e\n", r"Line 3 of m\.csv has 3 columns"),
        ('file,label\n"a"x,b\n', r"Line 2 of m\.csv is no line of CSV"),
        ('file,label\n"a,b\n', r"Line 2 of m\.csv is no line of CSV"),
        ("file,label\na,b\n ,c\n", r"Line 3 of m\.csv names no file"),
        ("file,label\na, \n", r"label in line 2 of m\.csv is ' '"),
        ("file,label\na,-1\n", r"label in line 2 of m\.csv is -1\. Classes are counted from 0"),
        ("file,label,split\na,b,train\nc,d,\n", r"Line 3 of m\.csv names no split"),
        ("file,label,split\na,b,trian\n", r"Unknown split in line 2 of m\.csv 'trian'\. Did you mean 'train'"),
        ("file,label\n", "names no pictures"),
        ("", "names no pictures"),
    ],
)
def test_a_broken_line_of_csv_is_named(content: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        read_manifest(content.encode(), "m.csv")


GOOD: dict[str, Any] = {"file": "a", "label": "b"}


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", r"Line 2 of m\.jsonl is no JSON"),
        ("[" * 100_000, r"Line 2 of m\.jsonl is no JSON"),
        ("[1]", r"Line 2 of m\.jsonl is no object"),
        (json.dumps(GOOD | {"labels": 1}), r"Unknown entry in line 2 of m\.jsonl 'labels'\. Did you mean 'label'"),
        (json.dumps({"file": "a"}), r"Line 2 of m\.jsonl has no 'label'"),
        (json.dumps(GOOD | {"file": 3}), r"Line 2 of m\.jsonl names no file: 3"),
        (json.dumps(GOOD | {"file": "a\0b"}), r"Line 2 of m\.jsonl names no file"),
        (json.dumps(GOOD | {"label": 1.0}), r"label in line 2 of m\.jsonl is 1\.0"),
        (json.dumps(GOOD | {"label": True}), r"label in line 2 of m\.jsonl is True"),
        (json.dumps(GOOD | {"label": None}), r"label in line 2 of m\.jsonl is None"),
        (json.dumps(GOOD | {"label": -2}), r"label in line 2 of m\.jsonl is -2"),
        (json.dumps(GOOD | {"split": "val"}), r"Line 1 of m\.jsonl names no split"),
    ],
)
def test_a_broken_line_of_json_is_named(line: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        read_manifest(f"{json.dumps(GOOD)}\n{line}\n".encode(), "m.jsonl")


@pytest.mark.parametrize(
    ("label", "classes", "sentence"),
    [
        ("3", "a\nb\nc\n", r"label in line 2 of m\.csv is 3, but classes\.txt names 3 classes, counted from 0 to 2"),
        ("9" * 5000, "a\nb\n", "counted from 0 to 1"),
        ("a", "b\n\nc", r"Line 2 of classes\.txt beside m\.csv is empty"),
        ("a", "a\na", "names a class twice: 'a'"),
    ],
)
def test_labels_are_held_against_classes_txt(label: str, classes: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        read_manifest(f"file,label\nx,{label}\n".encode(), "m.csv", classes.encode())


def test_an_unknown_class_gets_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown class in line 2 of m\.csv 'zebar'\. Did you mean 'zebra'"):
        read_manifest(b"file,label\nx,zebar\n", "m.csv", b"zebra\nant\n")


def test_bytes_that_are_no_text_are_named_by_their_line() -> None:
    with pytest.raises(UsageError, match=r"Line 3 of m\.csv is not UTF-8"):
        read_manifest(b"file,label\na,b\nB\xe4r,c\n", "m.csv")
