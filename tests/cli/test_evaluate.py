"""`vitral evaluate`: what it prints, the folder it leaves, and what it refuses before it begins."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import LABELS
from vitral.cli import evaluate as cli_evaluate
from vitral.cli import evaluate_pictures
from vitral.data.splits import read_splits
from vitral.errors import PictureError, UnknownNameError, UsageError
from vitral.pipelines.predictor import load

Evaluate = Callable[..., None]
SHORT = ("red kite", "GROßER BÄR", "as ImageNet's often are")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine pictures of noise in a folder for each class, named like one of the names of its label."""
    folder = tmp_path_factory.mktemp("labelled")
    numbers = np.random.default_rng(0)
    for name in SHORT:
        for number in range(3):
            place = folder / "test" / name
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(numbers.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(place / f"{number}.png")
    return folder


@pytest.fixture
def ask(labelled: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Evaluate:
    """The command, with its options as they are where nobody says otherwise."""
    monkeypatch.setenv("COLUMNS", "80")

    def asked(data: Any = labelled, **options: Any) -> None:
        usual = {"split": None, "batch_size": 4, "device": "cpu", "dtype": None, "workers": 0, "bad_pictures": "refuse"}
        usual |= {"decoding": "fast", "architecture": None, "as_json": False, "out": None}
        cli_evaluate.evaluate(str(data), str(checkpoint), **usual | options)

    return asked


def expected_answers(labelled: Path, checkpoint: Path) -> dict[str, Any]:
    """What the predictor says of every picture, by its name."""
    predictor = load(checkpoint, top_k=None)
    paths = sorted((labelled / "test").rglob("*.png"))
    return {path.relative_to(labelled).as_posix(): predictor(path) for path in paths}


def truth_of(name: str) -> str:
    return LABELS[SHORT.index(name.split("/")[1])]


def test_json_is_one_object_that_says_what_the_predictor_says(
    ask: Evaluate, labelled: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(as_json=True)
    [line] = capsys.readouterr().out.splitlines()
    told = json.loads(line)
    answers = expected_answers(labelled, checkpoint)
    right = sum(answer.labels[0] == truth_of(name) for name, answer in answers.items())
    assert told["top1"] == pytest.approx(right / 9)
    losses = [-np.log(answer.scores[answer.labels.index(truth_of(name))]) for name, answer in answers.items()]
    assert told["nll"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert told["pictures"] == 9
    assert [row["support"] for row in told["classes"]] == [3, 3, 3]
    assert [row["label"] for row in told["classes"]] == list(LABELS)


def test_what_a_training_held_out_is_judged_again(
    ask: Evaluate, labelled: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The same share of the same names is the same pictures."""
    ask(data=labelled / "test", held_out=0.34, as_json=True, out=tmp_path / "answers")
    told = json.loads(capsys.readouterr().out)
    assert (told["data"], told["pictures"]) == ("test, held out", 3)
    rows = list(csv.DictReader((tmp_path / "answers" / "predictions.csv").open(encoding="utf-8")))
    apart = read_splits(labelled / "test", 0.34).held_out
    assert apart is not None
    assert sorted(row["name"] for row in rows) == sorted(apart.names)


def test_the_tables_say_the_same_in_80_columns(ask: Evaluate, capsys: pytest.CaptureFixture[str]) -> None:
    ask(as_json=True)
    told = json.loads(capsys.readouterr().out)
    ask()
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 100
    low, high = told["intervals"]["top1"]
    assert re.search(rf"top-1 +{told['top1']:.1%} +{low:.1%} to {high:.1%}", said)
    assert re.search(rf"cross-entropy \(NLL\) +{told['nll']:.3f}", said)
    assert re.search(rf"calibration error \(ECE\) +{told['ece']:.1%}", said)
    assert "top-5" not in said  # of three classes
    for row in told["classes"]:
        assert re.search(rf"{re.escape(row['label'][:20])}.* +3 +{row['recall']:.1%} +{row['precision']:.1%}", said)
    assert "commonest mistakes" in said
    first = told["confusions"][0]
    assert re.search(rf"{re.escape(first['true'][:8])}.* → .* +{first['count']} +3", said)


def test_the_folder_holds_the_page_the_numbers_and_every_answer(
    ask: Evaluate, labelled: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(split="test", out=tmp_path / "a" / "b")
    out = tmp_path / "a" / "b"
    assert sorted(path.name for path in out.iterdir()) == ["evaluation.html", "evaluation.json", "predictions.csv"]
    told = json.loads((out / "evaluation.json").read_text("utf-8"))
    page = (out / "evaluation.html").read_text("utf-8")
    assert f"<h1>{told['top1']:.1%} of " in page
    answers = expected_answers(labelled, checkpoint)
    with (out / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["name"] for row in rows) == sorted(answers)
    for row in rows:
        answer, truth = answers[row["name"]], truth_of(row["name"])
        assert (row["label"], row["answer"]) == (truth, answer.labels[0])
        assert float(row["score"]) == pytest.approx(answer.scores[0], rel=1e-4)
        assert float(row["score_of_label"]) == pytest.approx(answer.scores[answer.labels.index(truth)], rel=1e-4)
        assert int(row["rank_of_label"]) == 1 + answer.labels.index(truth)
    assert "The page lies in" in capsys.readouterr().err


def test_a_folder_is_left_whole_or_as_it_was(
    ask: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "evaluation.html").write_text("old")
    (tmp_path / "mine.txt").write_text("mine")

    def full(*_: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(evaluate_pictures, "_table_of", full)
    with pytest.raises(OSError, match="No space left"):
        ask(out=tmp_path)
    assert (tmp_path / "evaluation.html").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evaluation.html", "mine.txt"]
    monkeypatch.undo()
    ask(out=tmp_path)
    assert len(list(tmp_path.iterdir())) == 4
    assert (tmp_path / "evaluation.html").read_text("utf-8").startswith("<!DOCTYPE html>")


def test_what_cannot_be_read_ends_it_or_is_told(
    ask: Evaluate, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("red kite", "großer bär"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (30, 30)).save(tmp_path / name / "0.png")
    (tmp_path / "red kite" / "1.png").write_bytes(b"broken")
    with pytest.raises(PictureError, match=r"1\.png"):
        ask(tmp_path)
    ask(tmp_path, bad_pictures="skip")
    told = capsys.readouterr()
    assert "2 pictures, 1 left out" in told.out
    assert re.search(r"Left out: .*1\.png: ", told.err)


def test_names_that_steer_terminals_or_look_like_markup_are_shown_as_they_are(
    ask: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Any] = []
    monkeypatch.setattr(cli_evaluate, "_show", lambda *shown: found.append(shown))
    ask()
    monkeypatch.undo()
    [(evaluation, kind)] = found
    named = replace(evaluation, classes=("[bold]a[/]", "\x1b[31mb", "c"), model="[red]", data="\x1b]0;x")
    cli_evaluate._show(named, kind)
    said = capsys.readouterr().out
    assert "[bold]a[/]" in said
    assert "[red]" in said
    assert "\x1b" not in said


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model fails the test: what is wrong must be said before that."""

    def loaded(*_: Any, **__: Any) -> None:
        pytest.fail("a model was loaded first")

    monkeypatch.setattr(cli_evaluate, "load_model", loaded)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"bad_pictures": "skp"}, "Did you mean 'skip'"),
        ({"decoding": "exat"}, "Did you mean 'exact'"),
        ({"device": "cuda:77"}, "no cuda:77"),
        ({"dtype": "float99"}, "Unknown dtype"),
        ({"split": "train"}, "has no split train"),
        ({"split": "tset"}, "Did you mean 'test'"),
        ({"split": "test", "held_out": 0.5}, "leave --split out"),
        ({"held_out": 0.5}, "has no split train"),
        ({"edges": True}, "holds no segmented pictures"),
        ({"void": (0,)}, "holds no segmented pictures"),
        ({"data": "scenes", "held_out": 0.5}, "has a split val with 200 pictures"),
        ({"data": "no/such/folder"}, "There is no file or folder"),
    ],
)
def test_options_that_make_no_sense_are_refused_first(ask: Evaluate, options: dict[str, Any], said: str) -> None:
    with pytest.raises((UnknownNameError, UsageError), match=said):
        ask(**options)


@pytest.mark.usefixtures("no_model")
def test_folders_that_results_must_not_go_to_are_refused_first(ask: Evaluate, labelled: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="is a file; give a folder"):
        ask(out=tmp_path / "file")
    for out in (labelled, labelled / "test" / "answers"):
        with pytest.raises(UsageError, match="would be taken for a class"):
            ask(out=out)
    assert not (labelled / "test" / "answers").exists()
