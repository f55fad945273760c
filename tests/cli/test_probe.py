"""`vitral probe`: what it says, what it leaves, and what it refuses before any work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vitral.checkpoints.load import load_model
from vitral.cli.probe import probe
from vitral.data.splits import read_splits
from vitral.errors import PictureError, UnknownNameError, UsageError
from vitral.training.features import features_of
from vitral.training.probe import knn, linear_probe

COLOURS = {"green": (40, 200, 60), "red [bold]": (210, 50, 40)}


def write(root: Path, each: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for number in range(each):
            pixels = np.array(colour) + rng.normal(0, 60, (12, 12, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / name / f"{number}.png")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes with the splits train and test."""
    root = tmp_path_factory.mktemp("probe") / "colours"
    write(root / "train", 10, seed=0)
    write(root / "test", 5, seed=1)
    return root


@pytest.fixture
def ask(encoder: Path) -> Callable[..., None]:
    """The command as typed without options, but for those given."""
    usual: dict[str, Any] = {"feature": "pooled", "neighbours": False, "k": 3, "cache": None, "batch_size": 8}
    usual |= {"device": None, "workers": 0, "architecture": None, "as_json": False, "out": None}
    return lambda data, model=encoder, **options: probe(str(data), str(model), **usual | options)


def test_json_holds_what_the_pages_below_say(
    ask: Callable[..., None], data: Path, encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(data, neighbours=True, as_json=True, feature="class_and_mean")
    told = json.loads(capsys.readouterr().out)
    splits = read_splits(data)
    assert splits.held_out is not None
    network: Any = load_model(encoder)
    x, tx = (features_of(network, one, feature="class_and_mean") for one in (splits.train, splits.held_out))
    linear = linear_probe(x, splits.train.labels, tx, splits.held_out.labels)
    near = knn(x, splits.train.labels, tx, splits.held_out.labels, k=3)
    assert told["linear"]["accuracy"] == linear.accuracy
    assert told["linear"]["strength"] == linear.strength
    assert told["linear"]["curve"] == [list(point) for point in linear.curve]
    assert told["knn"] == {"accuracy": near.accuracy, "top5": 1.0, "k": 3, "temperature": 0.07}
    assert (told["train"], told["test"], told["width"], told["feature"]) == (20, 10, 64, "class_and_mean")


def test_the_table_names_both(ask: Callable[..., None], data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask(data, neighbours=True)
    shown = capsys.readouterr().out
    assert "20 pictures to learn from, 10 to judge by" in shown
    rows = {line.strip()[:20].strip(): line for line in shown.splitlines()}
    assert "%" in rows["linear probe"]
    assert "%" in rows["3 nearest neighbours"[:20].strip()]
    assert max(map(len, shown.splitlines()[1:])) <= 80


def test_the_saved_model_answers_as_the_probe_does(
    ask: Callable[..., None], data: Path, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(data, out=tmp_path / "fitted", as_json=True, cache=tmp_path / "cache")
    told = json.loads(capsys.readouterr().out)
    fitted: Any = load_model(tmp_path / "fitted")
    assert fitted.record.labels == tuple(sorted(COLOURS))
    held_out = read_splits(data).held_out
    assert held_out is not None
    pixels = torch.stack([fitted.record.preprocessing(held_out.read(index))[0] for index in range(10)])
    with torch.no_grad():
        right = fitted(pixels).logits.argmax(1).numpy() == held_out.labels
    assert right.mean() == told["linear"]["accuracy"]
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_without_splits_a_fifth_of_each_class_judges(
    ask: Callable[..., None], data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(data / "train", as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert (told["train"], told["test"]) == (16, 4)


def test_what_makes_no_sense_is_refused_before_the_work(
    ask: Callable[..., None], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("pictures were read")

    monkeypatch.setattr("vitral.cli.probe.features_of", never)
    with pytest.raises(UnknownNameError, match="'mean_patches'"):
        ask(data, feature="mean_patch")
    with pytest.raises(UsageError, match="k must be"):
        ask(data, k=0)
    with pytest.raises(UsageError, match="no file or folder"):
        ask(tmp_path / "nothing")
    with pytest.raises(UsageError, match="lies among the pictures"):
        ask(data, out=data / "train" / "model")
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(UsageError, match="is a file"):
        ask(data, out=tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_broken_picture_is_named_and_nothing_is_saved(ask: Callable[..., None], tmp_path: Path) -> None:
    write(tmp_path / "set", 6, seed=2)
    (tmp_path / "set" / "green" / "3.png").write_bytes(b"no picture")
    with pytest.raises(PictureError, match=r"3\.png"):
        ask(tmp_path / "set", out=tmp_path / "fitted")
    assert not (tmp_path / "fitted").exists()


def test_more_neighbours_than_pictures_are_refused_before_any_is_read(ask: Callable[..., None], data: Path) -> None:
    with pytest.raises(
        UsageError, match=r"21 neighbours are to vote, but there are only 20 pictures .* Give -k 20, or fewer"
    ):
        ask(data, "no/such/checkpoint", neighbours=True, k=21)
