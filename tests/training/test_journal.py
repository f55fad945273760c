"""The journal of a training: only added to, cut at a row's end, readable by anything that reads JSON."""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vitral.errors import CheckpointError, UsageError
from vitral.training.journal import Journal, read


def filled(path: Path, steps: int = 4) -> Path:
    with Journal(path) as journal:
        journal.append("start", seed=3)
        for step in range(1, steps + 1):
            journal.append("step", step=step, loss=1 / step)
            if step % 2 == 0:
                journal.append("epoch", step=step, epoch=step // 2)
    return path


def test_rows_come_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "journal.jsonl"
    with Journal(path) as journal:
        assert not path.exists(), "nothing is written before there is something to say"
        journal.append("start", recipe={"name": "plain", "sizes": (32, 32)}, resumed=None)
        journal.append("step", step=1, loss=0.1 + 0.2, good=True)
        assert len(read(path)) == 2, "a row is there as soon as it was added"
    with Journal(path) as journal:
        journal.append("end")
    assert read(path) == [
        {"event": "start", "recipe": {"name": "plain", "sizes": [32, 32]}, "resumed": None},
        {"event": "step", "step": 1, "loss": 0.30000000000000004, "good": True},
        {"event": "end"},
    ]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(st.text(), json_values), max_size=5), torn=st.binary(max_size=9))
def test_any_row_comes_back_and_a_torn_one_is_cut_off(rows: list[tuple[str, Any]], torn: bytes, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.unlink(missing_ok=True)
    journal = Journal(path)
    for event, value in rows:
        journal.append(event, value=value)
    with path.open("ab") as file:
        file.write(torn.replace(b"\n", b" "))
    expected = [{"event": event, "value": value} for event, value in rows]
    assert read(path) == expected
    with Journal(path) as again:
        again.append("more")
    assert read(path) == [*expected, {"event": "more"}]


@pytest.mark.parametrize(
    ("value", "written"),
    [(math.nan, "NaN"), (math.inf, "Infinity"), (-math.inf, "-Infinity"), (np.float32("nan"), "NaN")],
)
def test_numbers_that_are_not_finite_are_read_by_anything(value: float, written: str, tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.append("step", loss=value, deep=[{"x": value}])
    line = (tmp_path / "j").read_text()
    assert json.loads(line, parse_constant=pytest.fail)["loss"] == written
    (row,) = read(tmp_path / "j")
    assert row["deep"] == [{"x": written}]
    assert str(float(row["loss"])) == str(float(value))


@pytest.mark.parametrize(
    ("value", "written"), [(np.int64(3), 3), (np.float32(0.5), 0.5), (np.float64(0.1), 0.1), (torch.tensor(7), 7)], ids=repr
)
def test_numbers_of_other_libraries_become_pythons(value: Any, written: float, tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.append("step", value=value)
    assert read(tmp_path / "j") == [{"event": "step", "value": written}]


@pytest.mark.parametrize(
    "value", [torch.zeros(2), torch.tensor(0.5), {1: 2}, b"x", {1, 2}, Path("x"), 1j, [object]], ids=repr
)
def test_what_json_has_no_word_for_is_refused(value: Any, tmp_path: Path) -> None:
    path = filled(tmp_path / "j")
    before = path.read_bytes()
    with Journal(path) as journal, pytest.raises(UsageError, match="in the row 'step' of the journal is a"):
        journal.append("step", value=value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("step", [0, 1, 2, 3, 4, 9])
def test_what_will_be_done_once_more_is_cut(step: int, tmp_path: Path) -> None:
    path = filled(tmp_path / "j")
    rows = read(path)
    with path.open("ab") as file:
        file.write(b'{"event": "step", "step": 5, "los')
    journal = Journal(path)
    journal.cut_after(step)
    expected = [row for row in rows if row.get("step", 0) <= step]
    assert len(expected) == [1, 2, 4, 5, 7, 7][min(step, 5)]
    assert read(path) == expected
    assert path.read_bytes().endswith(b"}\n")
    journal.append("resume", step=step)
    journal.close()
    assert read(path) == [*expected, {"event": "resume", "step": step}]


def test_cutting_an_open_journal_does_not_bring_the_old_file_back(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with Journal(path) as journal:
        for step in (1, 2, 3):
            journal.append("step", step=step)
        journal.cut_after(1)
        journal.append("step", step=2)
    assert [row["step"] for row in read(path)] == [1, 2]


def test_cutting_what_is_not_there_makes_nothing(tmp_path: Path) -> None:
    Journal(tmp_path / "j").cut_after(3)
    Journal(tmp_path / "j").sync()
    assert list(tmp_path.iterdir()) == []


def test_a_cut_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = filled(tmp_path / "j")
    before = path.read_bytes()

    def interrupted(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Journal(path).cut_after(1)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("line", [b"{", b"[1]", b"", b'{"step": 1}', b'{"event": 1}', b"\xff\xfe", b"[" * 100_000])
def test_a_broken_line_in_the_middle_is_named(line: bytes, tmp_path: Path) -> None:
    path = filled(tmp_path / "j")
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([*lines[:2], line, *lines[2:]]))
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=rf"Line 3 of {path} is no row of a journal"):
        read(path)
    with pytest.raises(CheckpointError, match="Line 3"):
        Journal(path).cut_after(1)
    assert path.read_bytes() == before


def test_a_disk_that_fills_leaves_whole_rows(tmp_path: Path) -> None:
    """A limit on the file's size stands for the full disk: it too takes a part of a row, and refuses the rest."""
    path = filled(tmp_path / "j")
    before = read(path)
    journal = Journal(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 100, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            journal.append("step", step=5, note="x" * 200)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.filename == str(path)
    assert read(path) == before
    journal.append("step", step=5)
    journal.close()
    assert read(path) == [*before, {"event": "step", "step": 5}]


def test_a_kill_leaves_every_row_that_was_added(tmp_path: Path) -> None:
    """A process that never closes, and ends as a kill ends it."""
    code = (
        "import os, signal, sys; from pathlib import Path; from vitral.training.journal import Journal\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "for step in range(100): journal.append('step', step=step)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(tmp_path / "j")], check=False, timeout=60)
    assert ran.returncode == -9
    assert [row["step"] for row in read(tmp_path / "j")] == list(range(100))


def test_sync_reaches_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(os.fstat(handle).st_ino))
    journal = Journal(tmp_path / "j")
    journal.append("start")
    assert flushed == [], "not at each row: that would cost milliseconds"
    journal.sync()
    assert flushed == [(tmp_path / "j").stat().st_ino]
    journal.close()


def test_a_folder_in_its_place_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=str(tmp_path)):
        Journal(tmp_path).append("start")
