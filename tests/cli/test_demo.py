"""`vitral demo`: the folder it leaves, and the page in it."""

from __future__ import annotations

import base64
import io
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

pytest.importorskip("sklearn", reason="needs the extra `demo`")
from sklearn.datasets import load_digits

from vitral.cli.main import app
from vitral.pipelines.pipeline import pipeline

Vitral = Callable[..., Result]
VOID = {"meta", "img", "line", "circle", "polyline"}


class Page(HTMLParser):
    """What a page holds; complains about tags that do not close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """The folder of a quick demo, its page, and what was printed."""
    out = tmp_path_factory.mktemp("demo") / "out"
    ran = CliRunner().invoke(app, ["demo", "--quick", "--out", str(out)])
    assert ran.exit_code == 0, ran.output
    return out, (out / "index.html").read_text("utf-8"), ran.stdout


def pixels_in(page: Page) -> list[np.ndarray]:
    addresses = [str(image["src"]).removeprefix("data:image/png;base64,") for image in page.all("img")]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(address, validate=True)))) for address in addresses]


def test_what_it_leaves(left: tuple[Path, str, str]) -> None:
    out, _, _ = left
    assert sorted(path.name for path in out.iterdir()) == [
        "checkpoint",
        "digits",
        "index.html",
        "inside.html",
        "photograph.png",
    ]
    assert sorted(path.name for path in (out / "checkpoint").iterdir()) == ["model.safetensors", "vitral.json"]
    assert len(list((out / "digits").glob("*.png"))) == 20


def test_the_page_stands_alone(left: tuple[Path, str, str]) -> None:
    _, text, _ = left
    page = Page(text)
    assert {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object"} == set()
    assert all(str(image["src"]).startswith("data:image/png;base64,") and image["alt"] for image in page.all("img"))
    assert re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?(?:https?:)?//", text) == []
    assert "prefers-color-scheme: dark" in text
    assert any(meta.get("name") == "viewport" for meta in page.all("meta"))


def test_the_page_tells_the_truth(left: tuple[Path, str, str]) -> None:
    """Counted again from the digits in scikit-learn, the saved checkpoint and the page's own pictures."""
    out, text, printed = left
    page = Page(text)
    source = load_digits()
    known = {picture.tobytes(): digit for picture, digit in zip(source.images, source.target, strict=True)}
    shown = pixels_in(page)
    truth = np.array([known[np.rint(pixels / (255 / 16)).astype(np.float64).tobytes()] for pixels in shown])
    answers = pipeline("image-classification", model=out / "checkpoint")(shown, top_k=1)
    said = np.array([int(answer[0]["label"]) for answer in answers])

    frames = [str(figure["class"]) for figure in page.all("figure") if str(figure["class"]).startswith("tile")]
    assert [frame.endswith("wrong") for frame in frames] == (said != truth).tolist()
    mistakes = len(frames) - 359
    assert sum(frame.endswith("wrong") for frame in frames) == 2 * mistakes  # each in its section and in the grid
    assert f"{1 - mistakes / 359:.1%} of unseen digits" in text
    assert f"{1 - mistakes / 359:.1%} of the 359" in printed

    cells = [cell.get("class") for cell in page.all("td")]
    assert len(cells) == 100
    assert cells.count("hit") == 10
    counts = np.zeros((10, 10), int)
    np.add.at(counts, (truth[-359:], said[-359:]), 1)
    assert cells.count("miss") == np.count_nonzero(counts) - np.count_nonzero(np.diag(counts))
    assert len(re.findall(r"<polyline", text)) >= 1


def test_the_next_command_works(left: tuple[Path, str, str], vitral: Vitral) -> None:
    out, text, printed = left
    command = f"vitral predict {out / 'digits'} --model {out / 'checkpoint'}"
    assert command in printed
    assert command in text
    ran = vitral(*command.split()[1:], "--json", "--top-k", 1)
    assert ran.exit_code == 0
    assert len(ran.stdout.splitlines()) == 20


def test_files_say_the_same_as_arrays(left: tuple[Path, str, str]) -> None:
    """The enlarged files come back through the preprocessing as the very pixels they were made from."""
    out, _, _ = left
    classify = pipeline("image-classification", model=out / "checkpoint")
    preprocess = classify.predictor.preprocessing
    for file in (out / "digits").glob("*.png"):
        enlarged = np.asarray(Image.open(file))
        assert enlarged.shape == (128, 128)
        assert classify(enlarged[::16, ::16].copy()) == classify(str(file))
    assert preprocess.interpolation == "box"


def test_a_file_in_the_way_is_refused_before_the_work(vitral: Vitral, tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("mine")
    ran = vitral("demo", "--out", tmp_path / "demo")
    assert ran.exit_code == 2
    assert (tmp_path / "demo").read_text() == "mine"


def test_without_scikit_learn_a_sentence_says_what_to_install(
    vitral: Vitral, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    ran = vitral("demo", "--out", tmp_path / "demo")
    assert ran.exit_code == 1
    assert "pip install 'vitral[demo]'" in ran.stderr
    assert not (tmp_path / "demo").exists()
