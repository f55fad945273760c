"""`vitral predict` with a segmenter: tables of areas, maps in a folder, windows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.pipelines.brightest import Brightest, painted
from tests.pipelines.lit import Lit, LitMasks
from vitral.cli.predict import predict
from vitral.cli.show import Screen
from vitral.errors import UsageError
from vitral.pipelines.predictor import Predictor

USUAL: dict[str, Any] = {"top_k": None, "as_json": False, "out": None, "batch_size": 2, "workers": 0}


@pytest.fixture
def lamps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    paths = [path.name for path in painted(tmp_path)]
    monkeypatch.chdir(tmp_path)
    return paths


def asked(monkeypatch: pytest.MonkeyPatch, network: Any) -> Predictor:
    """A network in place of whatever is asked for."""
    found = Predictor(network)
    monkeypatch.setattr("vitral.cli.predict.load", lambda *_, **__: found)
    return found


def test_classes_are_a_table(lamps: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked(monkeypatch, Lit())
    assert predict(lamps[:1], "x", **USUAL) == 0
    head, titles, *rows = capsys.readouterr().out.splitlines()
    assert head == "0.png  40 × 60"
    assert titles.split() == ["area", "pixels"]
    assert [row.split() for row in rows] == [["dark", "50.0%", "1200"], ["light", "50.0%", "1200"]]
    assert len({len(row) for row in (titles, *rows)}) == 1


def test_segments_and_objects_have_scores(
    lamps: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked(monkeypatch, LitMasks())
    assert predict(lamps[:1], "x", **USUAL) == 0
    _, titles, *rows = capsys.readouterr().out.splitlines()
    assert titles.split() == ["score", "area", "pixels"]
    assert [row.split() for row in rows] == [["dark", "100.0%", "50.0%", "1200"], ["light", "99.3%", "50.0%", "1200"]]
    assert predict(lamps[:1], "x", subtask="instance", threshold=0.2, **USUAL) == 0
    assert [row.split()[0] for row in capsys.readouterr().out.splitlines()[2:]] == ["dark", "light", "thing"]
    assert predict(lamps[:1], "x", threshold=1.0, **USUAL) == 0
    assert capsys.readouterr().out.splitlines()[1] == "  nothing above the threshold"
    assert predict(lamps[:1], "x", mask_threshold=1.0, **USUAL) == 0  # no pixel is anyone's own beyond doubt
    assert capsys.readouterr().out.splitlines()[1:] != [titles, *rows]
    assert predict(lamps[:1], "x", overlap_threshold=1.0, **USUAL) == 0  # nobody has more than all of its pixels
    assert capsys.readouterr().out.splitlines()[1] == "  nothing above the threshold"


def test_maps_lie_beside_drawings(
    lamps: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    predictor, out = asked(monkeypatch, Lit()), tmp_path / "out"
    assert predict([*lamps[:2], lamps[0], "none.png"], "x", **USUAL | {"out": out, "as_json": True}) == 1
    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text("utf-8").splitlines()]
    assert [row.get("file") for row in rows] == ["0.png", "1.png", "0-2.png", None]
    assert [row.get("map") for row in rows] == ["0-classes.png", "1-classes.png", "0-2-classes.png", None]
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert printed == [{key: value for key, value in row.items() if key not in ("file", "map")} for row in rows]
    answer = predictor(lamps[1])
    np.testing.assert_array_equal(np.asarray(Image.open(out / "1-classes.png")), answer.class_map)
    np.testing.assert_array_equal(np.asarray(Image.open(out / "1.png")), np.asarray(answer.draw()))
    asked(monkeypatch, LitMasks())
    assert predict(lamps[:1], "x", **USUAL | {"out": out}) == 0
    ids = np.asarray(Image.open(out / "0-segments.png"))
    assert set(ids[..., 0].flat) == {1, 2}
    assert not ids[..., 1:].any()


def test_windows_walk_a_large_picture(
    lamps: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked(monkeypatch, Lit())
    told = {**USUAL, "as_json": True}
    assert predict([*lamps, "none.png"], "x", window=16, overlap=0.5, **told) == 1
    windows = capsys.readouterr()
    assert predict([*lamps, "none.png"], "x", **told) == 1
    assert windows.out == capsys.readouterr().out


def test_windows_are_counted(lamps: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked(monkeypatch, Lit())
    told: list[tuple[int, int, bool]] = []

    def count(screen: Screen, done: int, total: int) -> None:
        told.append((done, total, screen.progress.tasks[0].visible))

    monkeypatch.setattr(Screen, "windows", count)
    monkeypatch.setattr("vitral.cli.predict._MANY_WINDOWS", 15)
    assert predict(lamps[:1], "x", window=20, overlap=0.0, **USUAL) == 0  # of 40 × 60 pixels
    assert told == [(done, 6, False) for done in range(1, 7)]
    assert "windows" not in capsys.readouterr().err
    assert predict(lamps[:1], "x", window=10, overlap=0.0, **USUAL) == 0
    assert capsys.readouterr().err.startswith("24 windows, one after another.")
    told.clear()
    assert predict(lamps[:2], "x", window=20, overlap=0.0, **USUAL) == 0
    assert all(visible for *_, visible in told)


def test_options_without_a_use_are_refused(lamps: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked(monkeypatch, Lit())
    with pytest.raises(UsageError, match="--threshold is for models that find objects"):
        predict(lamps, "x", threshold=0.3, **USUAL)
    for name in ("mask_threshold", "overlap_threshold"):
        with pytest.raises(UsageError, match="are for segmenters that draw masks"):
            predict(lamps, "x", **{name: 0.3}, **USUAL)
    with pytest.raises(UsageError, match="--top-k is for"):
        predict(lamps, "x", **USUAL | {"top_k": 3})
    with pytest.raises(UsageError, match="--overlap is for windows"):
        predict(lamps, "x", overlap=0.3, **USUAL)
    asked(monkeypatch, LitMasks())
    with pytest.raises(UsageError, match="windows would cut"):
        predict(lamps, "x", window=32, **USUAL)
    asked(monkeypatch, Brightest())
    for option in ({"subtask": "semantic"}, {"window": 32}):
        with pytest.raises(UsageError, match="for models that segment"):
            predict(lamps, "x", **option, **USUAL)
