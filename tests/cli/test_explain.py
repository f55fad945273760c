"""`vitral explain`: the files it leaves, those it refuses to write, how it ends."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import Result

import vitral as front
from vitral.cli import explain as cli_explain
from vitral.pipelines.predictor import load

Vitral = Callable[..., Result]


@pytest.fixture(autouse=True)
def _here(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pictures)


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model fails the test: what is wrong must be said before that."""

    def loaded(*_: Any, **__: Any) -> None:
        pytest.fail("a model was loaded first")

    monkeypatch.setattr(cli_explain, "load", loaded)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_page_by_default_beside_the_user(vitral: Vitral, checkpoint: Path, pictures: Path, tmp_path: Path) -> None:
    before = files(pictures)
    ran = vitral("explain", "more/a.png", "--model", checkpoint)
    assert ran.exit_code == 0, ran.output
    assert files(pictures) == before | {"a.explained.html"}
    assert re.fullmatch(r"The page lies in a\.explained\.html \(\d+ kB\); any browser opens it\.\n", ran.stdout)
    assert ran.stderr == ""
    text = (pictures / "a.explained.html").read_text("utf-8")
    assert text.startswith("<!DOCTYPE html>")
    assert "<h1>a.png, as the model sees it</h1>" in text
    assert "großer Bär" in text


def test_a_page_where_it_is_wanted(vitral: Vitral, checkpoint: Path, pictures: Path) -> None:
    ran = vitral("explain", "a.png", "--model", checkpoint, "-o", "more/page.html", "--top-k", 1, "--target", "großer Bär")
    assert ran.exit_code == 0, ran.output
    text = (pictures / "more" / "page.html").read_text("utf-8")
    assert text.count("data-heat=") >= 2
    assert "<figcaption><b>großer Bär</b>" in text
    assert not (pictures / "a.explained.html").exists()


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["--target", "2"], {"target": 2}),
        (["--target", "red kite", "--method", "grad_cam", "--layer", "0"], {"target": 0, "method": "grad_cam", "layer": 0}),
        (["--method", "attention", "--layer", "blocks.0", "--head", "1"], {"method": "attention", "layer": 0, "head": 1}),
        (["--method", "attention", "--head", "max"], {"method": "attention", "head": "max"}),
    ],
    ids=str,
)
def test_a_drawing_alone(
    vitral: Vitral, checkpoint: Path, pictures: Path, words: list[str], options: dict[str, Any]
) -> None:
    before = files(pictures)
    ran = vitral("explain", "a.png", "--model", checkpoint, "--png", "heat.png", *words)
    assert ran.exit_code == 0, ran.output
    assert files(pictures) == before | {"heat.png"}
    assert ran.stdout.startswith("The drawing lies in heat.png (")
    expected = front.explain(load(checkpoint), pictures / "a.png", **options).draw()
    np.testing.assert_array_equal(np.asarray(Image.open("heat.png")), np.asarray(expected))


def test_both(vitral: Vitral, checkpoint: Path, pictures: Path) -> None:
    ran = vitral("explain", "a.png", "--model", checkpoint, "--png", "heat.png", "--out", "page.html")
    assert ran.exit_code == 0, ran.output
    assert {"heat.png", "page.html"} <= files(pictures)
    assert len(ran.stdout.splitlines()) == 2


def test_a_model_without_classes(vitral: Vitral, encoder: Path, pictures: Path) -> None:
    ran = vitral("explain", "a.png", "--model", encoder)
    assert ran.exit_code == 0, ran.output
    ran = vitral("explain", "a.png", "--model", encoder, "--png", "heat.png")
    assert ran.exit_code == 2
    assert "The model has no classes" in ran.stderr
    assert "heat.png" not in files(pictures)


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["a.png", "--out", "a.png"], 2, "--out a.png is the picture itself"),
        (["a.png", "--out", "more/../a.png"], 2, "is the picture itself"),
        (["a.png", "--out", "LINK"], 2, "is the picture itself"),
        (["a.png", "--png", "a.png"], 2, "--png a.png is the picture itself"),
        (["a.png", "--out", "more"], 2, "--out more is a folder"),
        (["a.png", "--out", "nowhere/page.html"], 2, "there is no folder nowhere"),
        (["a.png", "--png", "nowhere/heat.png"], 2, "there is no folder nowhere"),
        (["a.png", "--png", "x", "--out", "./x"], 2, "--out and --png both name x"),
        (["a.png", "--method", "relevence"], 2, "'relevance'"),
        (["a.png", "--method", "relevance", "--layer", "0"], 2, "'layer'"),
        (["a.png", "--png", "heat.jpg"], 2, "give a name that ends in .png"),
        (["a.png", "--out", "/dev/null"], 2, "is no plain file"),
        (["a.png", "--top-k", "0"], 2, "--top-k"),
        (["c.png"], 1, "'a.png'"),
        (["more"], 1, "It is a folder, not a picture"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("no_model")
def test_mistakes_are_told_before_a_model_is_loaded(
    vitral: Vitral, pictures: Path, words: list[str], code: int, sentence: str
) -> None:
    os.link(pictures / "a.png", pictures / "LINK")
    before = {path: path.read_bytes() for path in pictures.rglob("*") if path.is_file()}
    ran = vitral("explain", *words, "--model", "some/checkpoint")
    assert (ran.exit_code, ran.stdout) == (code, "")
    assert sentence in ran.stderr
    assert "Traceback" not in ran.output
    assert {path: path.read_bytes() for path in pictures.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["broken.jpg"], 1, "broken.jpg: It is no picture"),
        (["a.png", "--target", "red kit"], 2, "'red kite'"),
        (["a.png", "--target", "3"], 2, "There is no class 3"),
        (["a.png", "--method", "rollout", "--target", "1"], 2, "leave --target out"),  # a segmenter's segments have one
        (["a.png", "--method", "attention", "--layer", "9"], 2, "There is no layer 9"),
        (["a.png", "--method", "attention", "--head", "9"], 2, "There is no head 9"),
    ],
    ids=str,
)
def test_other_mistakes_end_as_sentences(
    vitral: Vitral, checkpoint: Path, pictures: Path, words: list[str], code: int, sentence: str
) -> None:
    before = files(pictures)
    ran = vitral("explain", *words, "--model", checkpoint)
    assert (ran.exit_code, ran.stdout) == (code, "")
    assert sentence in ran.stderr
    assert "Traceback" not in ran.output
    assert files(pictures) == before


def test_a_page_is_there_whole_or_not_at_all(
    vitral: Vitral, checkpoint: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pictures / "page.html").write_text("old")

    def torn(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:1])
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", torn)
    ran = vitral("explain", "a.png", "--model", checkpoint, "--out", "page.html")
    assert ran.exit_code == 1
    assert ran.stderr == "Error: No space left on device: page.html\n"
    assert (pictures / "page.html").read_text() == "old"
    assert not [name for name in files(pictures) if name.endswith(".part")]


def test_help_fits_a_terminal(vitral: Vitral) -> None:
    ran = vitral("explain", "--help")
    assert ran.exit_code == 0
    assert max(map(len, ran.stdout.splitlines())) <= 80
    assert "--png" in ran.stdout
