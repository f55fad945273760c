"""`vitral train` and `vitral recipes`: what is said, what is left, and how it ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from tests.training.conftest import write_pictures
from vitral.cli.train import options_from
from vitral.data.objects import write_objects
from vitral.data.synthetic import SyntheticScenes
from vitral.errors import UsageError
from vitral.recipes.catalogue import RECIPES

Vitral = Callable[..., Result]

SMALL = ["--recipe", "cifar10_vit", "--quick", "--network.width", "16", "--network.heads", "2", "--network.mlp-width", "32"]
SMALL += ["--image-size", "8", "--learning-rate", "5e-3", "--epochs", "3", "--batch-size", "8"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("sets") / "colours")


def test_a_training_from_the_command_line(vitral: Vitral, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = vitral("train", pictures, "--held-out", "0.25", "--out", out, *SMALL)
    assert done.exit_code == 0, done.stderr
    assert "vit_ti16 learns 3 classes from 27 pictures, judged by 9 others" in " ".join(done.stdout.split())
    assert done.stdout.count("held out: top-1") >= 3
    assert "The best model names" in done.stdout
    assert {path.name for path in out.iterdir() if not path.name.startswith(("step-", "."))} == {
        "best", "journal.jsonl", "last", "recipe.json", "training.html",
    }  # fmt: skip
    told = json.loads((out / "recipe.json").read_text())["recipe"]
    assert (told["learning_rate"], told["network.width"], told["epochs"]) == (5e-3, 16, 3)
    page = (out / "training.html").read_text()
    assert "violet" in page
    assert "http:" not in page.replace("http://www.w3.org", "")
    assert "https:" not in page

    answered = vitral("predict", pictures / "red/000.png", "--model", out / "best", "--json")
    assert json.loads(answered.stdout)["classes"][0]["label"] == "red"

    again = vitral("train", pictures, "--held-out", "0.25", "--out", out, *SMALL)
    assert again.exit_code == 0
    assert "held out: top-1" not in again.stdout  # there was nothing left to do
    assert "The best model names" in again.stdout


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--learning-rat", "1"], "Did you mean 'learning_rate'"),
        (["--batch-size", "many"], "batch_size takes a whole number; 'many' came"),
        (["--epochs", "3", "--epochs", "4"], "--epochs was given twice"),
        (["--learning-rate", "1", "--learning_rate", "2"], "--learning-rate was given twice"),
        (["--name", "mine"], "Unknown option of a training 'name'"),
        (["extra"], "'extra' stands alone"),
        (["--network.dept", "3"], "Did you mean 'depth'"),
    ],
)
def test_a_wrong_option_ends_with_a_sentence(
    words: list[str], sentence: str, vitral: Vitral, pictures: Path, tmp_path: Path
) -> None:
    done = vitral("train", pictures, "--recipe", "cifar10_vit", "--quick", "--out", tmp_path / "run", *words)
    assert done.exit_code == 2
    assert sentence in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_batch_of_more_pictures_than_there_are_is_told_of(vitral: Vitral, pictures: Path, tmp_path: Path) -> None:
    done = vitral("train", pictures, "--out", tmp_path / "run", *SMALL[:-4], "--epochs", "1", "--batch-size", "72")
    assert done.exit_code == 0, done.stderr
    told = " ".join(done.stdout.split())
    assert "A batch of 72 is more than the 36 pictures: every step sees each of them about 2.0 times" in told


def test_the_pictures_come_first(vitral: Vitral, pictures: Path) -> None:
    done = vitral("train", "--epochs", "10", pictures)
    assert done.exit_code == 2
    assert "The pictures come first" in done.stderr


def test_a_run_among_the_pictures_would_become_a_class(vitral: Vitral, pictures: Path) -> None:
    done = vitral("train", pictures, "--out", pictures / "run", *SMALL)
    assert done.exit_code == 2
    assert "would be taken for a class" in done.stderr


def test_neither_model_nor_recipe(vitral: Vitral, pictures: Path, tmp_path: Path) -> None:
    done = vitral("train", pictures, "--out", tmp_path / "run")
    assert done.exit_code == 2
    assert "Say what to train" in done.stderr


def test_another_training_in_the_folder_is_not_touched(vitral: Vitral, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert vitral("train", pictures, "--out", out, *SMALL, "--seed", "1").exit_code == 0
    before = (out / "journal.jsonl").read_bytes()
    done = vitral("train", pictures, "--out", out, *SMALL)
    assert done.exit_code == 2
    assert "holds a training with other options: seed 1, now 0" in done.stderr
    assert (out / "journal.jsonl").read_bytes() == before


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_terminated_training_says_so_and_goes_on(processes: str, pictures: Path, tmp_path: Path) -> None:
    if processes != "1":
        pytest.importorskip("accelerate")
    out = tmp_path / "run"
    command = [sys.executable, "-m", "vitral", "train", str(pictures), "--out", str(out), *SMALL[:-4], "--epochs", "4000"]
    command += ["--batch-size", "8", "--device", "cpu", "--threads", "1", "--save-every", "1000", "--evaluate-every", "1000"]
    command += ["--processes", processes]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    journal = out / "journal.jsonl"
    for _ in range(600):
        if journal.exists() and journal.stat().st_size:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert " ".join(said.split()).count("Stopped by SIGTERM after step") == 1
    assert any(path.name.startswith("step-") for path in out.iterdir())


def test_tensorboard_gets_the_scalars(vitral: Vitral, pictures: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = tmp_path / "run"
    assert vitral("train", pictures, "--held-out", "0.25", "--out", out, "--tensorboard", *SMALL).exit_code == 0
    events: Any = accumulator.EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    rows = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["event"] == "step"]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(losses)
    looks = [row["step"] for row in rows if row["event"] == "epoch"]
    assert [event.step for event in events.Scalars("held_out/top1")] == looks


def test_recipes_are_listed_and_told(vitral: Vitral) -> None:
    listed = vitral("recipes")
    assert [line.split()[0] for line in listed.stdout.splitlines()] == list(RECIPES)
    told = vitral("recipes", "deit_s")
    assert "Touvron et al. 2021" in told.stdout
    assert "learning_rate          0.001" in told.stdout
    assert "Did you mean 'deit_s'" in vitral("recipes", "deit-s").stderr


def test_words_become_options() -> None:
    assert options_from(["--epochs", "3", "--mixup=0.2", "--compile", "--clip", "-1"]) == {
        "epochs": "3",
        "mixup": "0.2",
        "compile": "yes",
        "clip": "-1",
    }
    with pytest.raises(UsageError, match="stands alone"):
        options_from(["3"])


# -- detectors ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight drawn pictures to learn from and four to judge by, in YOLO's format."""
    drawn = SyntheticScenes(count=8, size=(48, 64), shapes=("disc", "square"), number=(1, 3))
    folder = tmp_path_factory.mktemp("sets") / "scenes"
    write_objects({"train": drawn, "val": replace(drawn, count=4, seed=1)}, folder, format="yolo")
    return folder


def test_a_detector_from_the_command_line(vitral: Vitral, scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ("--recipe", "synthetic_scenes", "--quick", "--batch-size", "4", "--out", out)
    done = vitral("train", scenes, *words)
    assert done.exit_code == 0, done.stderr
    assert "rtdetr_r18 learns 2 classes from 8 pictures, judged by 4 others" in " ".join(done.stdout.split())
    assert "held out: AP " in done.stdout
    assert "The best model reaches AP " in done.stdout
    told = json.loads((out / "recipe.json").read_text())["recipe"]
    assert (told["task"], told["classes"], told["costs.l1"]) == ("detection", "varifocal", 5.0)
    assert "Held-out average precision" in (out / "training.html").read_text()
    assert "square" in (out / "evaluation.html").read_text()

    again = vitral("train", "synthetic_scenes", "--data", scenes, "--task", "detection", *words[2:])
    assert again.exit_code == 0, again.stderr
    assert "held out: AP" not in again.stdout  # the same training, and there was nothing left to do

    judged = vitral("evaluate", scenes, "--model", out / "best", "--split", "val", "--json", "--out", tmp_path / "answers")
    assert judged.exit_code == 0, judged.stderr
    numbers = json.loads(judged.stdout)
    assert numbers["pictures"] == 4
    assert json.loads((tmp_path / "answers/evaluation.json").read_text())["ap50"] == numbers["ap50"]
    shown = vitral("evaluate", scenes, "--model", out / "best", "--split", "val")
    assert "AP at IoU .75" in shown.stdout
    assert "square" in shown.stdout


def test_the_task_is_named_or_found(vitral: Vitral, scenes: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for words in (
        ("detection", "--data", scenes, "--model", "vit_ti16"),
        (scenes, "--model", "vit_ti16", "--task", "detection"),
        (scenes, "--model", "vit_ti16"),
    ):
        done = vitral("train", *words, "--image-size", "32", "--out", out)
        assert done.exit_code == 2
        assert "A ViT finds no objects" in done.stderr
        assert not (out / "journal.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("detectoin", "--data", "scenes"), "Unknown task or recipe 'detectoin'. Did you mean 'detection'"),
        (("detection", "--data", "scenes", "--task", "classification"), "'detection' is one task, --task names another"),
        (("scenes", "--task", "segmantation", "--model", "detr_r50"), "Did you mean 'segmentation'"),
        (("scenes", "--model", "detr_r50", "--segments", "panoptic"), "segments is for segmentation"),
        (("scenes", "--recipe", "deit_s", "--task", "detection"), "The recipe deit_s is for classification"),
        (("scenes", "--recipe", "bccd", "--l1-wieght", "3"), "Did you mean 'l1_weight'"),
        (("scenes", "--recipe", "bccd", "--mixup", "0.8"), "Unknown option of a training 'mixup'"),
        (("scenes", "--model", "rtdetr_r18", "--network.encoder.widht", "8"), "Did you mean 'width'"),
    ],
)
def test_what_a_detectors_training_does_not_take(
    words: tuple[str, ...], sentence: str, vitral: Vitral, tmp_path: Path
) -> None:
    done = vitral("train", *words, "--out", tmp_path / "run")
    assert done.exit_code == 2
    assert sentence in " ".join(done.stderr.split())
    assert not (tmp_path / "run").exists()
