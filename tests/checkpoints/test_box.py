"""The model in the box: there, small, and what a picture is answered by when nobody named another."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import vitral
from vitral.checkpoints.box import BOXED, folder_of
from vitral.cli.main import app
from vitral.data.splits import read_pictures
from vitral.errors import UsageError
from vitral.pipelines.predictor import load
from vitral.training.evaluate import evaluate

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def test_it_fits_in_the_box_and_says_how_it_came_there() -> None:
    folder = folder_of(BOXED)
    assert folder is not None
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 3 * 2**20
    model = vitral.load_model(BOXED)
    record = model.record
    assert record.labels == CLASSES
    assert record.source == BOXED
    assert record.training.data == "CIFAR-10, train"
    assert (record.training.pictures, record.training.judged) == (50_000, 10_000)
    assert record.training.recipe.startswith("cifar10")
    assert len(record.training.date) == len("2026-11-21")
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}


def test_a_folder_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert folder_of(BOXED) is not None
    vitral.save_model(vitral.create_model("cct_2_3x2_32", num_classes=3), tmp_path / BOXED)
    assert folder_of(BOXED) is None
    assert vitral.load_model(BOXED).config.num_classes == 3


def test_a_pipeline_and_a_prediction_without_a_model_ask_it(tmp_path: Path) -> None:
    y, x = np.mgrid[:90, :120]
    pixels = np.stack([x * 2, y * 2, np.where((x - 60) ** 2 + (y - 40) ** 2 < 500, 230, 60)], axis=-1).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    named = load(BOXED)(tmp_path / "photo.png")
    unnamed = vitral.pipeline("image-classification")(str(tmp_path / "photo.png"))
    assert [one["label"] for one in unnamed] == list(named.labels[:5])
    ran = CliRunner().invoke(app, ["predict", str(tmp_path / "photo.png"), "--json"])
    assert ran.exit_code == 0, ran.output
    assert [one["label"] for one in json.loads(ran.stdout)["classes"]] == list(named.labels[:5])
    assert "the model in the box, which knows airplane, automobile" in " ".join(ran.stderr.split())


def test_other_tasks_still_want_a_model() -> None:
    with pytest.raises(UsageError, match="Name a model"):
        vitral.pipeline("image-feature-extraction")
    with pytest.raises(UsageError, match="Name a model"):
        vitral.pipeline()


def test_it_is_as_good_as_its_record_says(shared: Path) -> None:
    model = vitral.load_model(BOXED)
    pictures = read_pictures(shared / "data/cifar10/cifar10-jpeg.tar.gz", "test")
    part = pictures.subset(np.arange(0, len(pictures), 10))
    found = evaluate(model, part).top1
    assert found == pytest.approx(model.record.training.top1, abs=0.04)  # 1,000 pictures: three deviations are 3.4 %
