"""`vitral train` and `vitral evaluate` of segmenters: what is said, what is left, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from typer.testing import Result

from tests.training.test_evaluate_segments import Seeing, SeeingMasks, drawn
from vitral.cli import evaluate as cli_evaluate
from vitral.cli.evaluate_segments import files, show
from vitral.cli.train import _told
from vitral.data.synthetic import SegmentedScenes, SyntheticScenes
from vitral.recipes.catalogue import opened, recipe_for
from vitral.training.evaluate_segments import evaluate_segments

Vitral = Callable[..., Result]


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four drawn pictures to learn from and two to judge by, with label files."""
    root = tmp_path_factory.mktemp("sets") / "streets"
    scenes = SegmentedScenes(scenes=SyntheticScenes(count=6, size=(32, 48), shapes=("disc", "square"), number=(1, 2)))
    for place in range(6):
        split = "train" if place < 4 else "val"
        for kind, image in (
            ("images", scenes.read(place).image),
            ("labels", Image.fromarray(scenes.class_map(place))),
        ):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
            image.save(root / kind / split / f"{place}.png")
    (root / "classes.txt").write_text("\n".join(scenes.classes) + "\n")
    return root


def test_a_segmenter_from_the_command_line(vitral: Vitral, streets: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ("--recipe", "camvid", "--quick", "--batch-size", "4", "--image-size", "32", "--out", out)
    done = vitral("train", streets, *words)
    assert done.exit_code == 0, done.stderr
    told = " ".join(done.stdout.split())
    assert "segmenter_vit_ti16_mask learns 8 classes from 4 pictures, judged by 2 others" in told
    assert "classes.txt" in told  # what the label files are taken to mean
    assert "held out: mIoU " in told
    assert "The best model reaches mIoU " in told
    assert "What it finds, and what not:" in told
    assert json.loads((out / "recipe.json").read_text())["recipe"]["cross_entropy"] == 1.0
    assert "Held-out pixels" in (out / "training.html").read_text()
    assert "The worst pictures" in (out / "evaluation.html").read_text()
    again = vitral("train", streets, *words)
    assert again.exit_code == 0, again.stderr
    assert "held out: mIoU" not in again.stdout  # there was nothing left to do

    answers = tmp_path / "answers"
    judged = vitral("evaluate", streets, "--model", out / "best", "--split", "val", "--json", "--out", answers)
    assert judged.exit_code == 0, judged.stderr
    numbers = json.loads(judged.stdout)
    assert (numbers["pictures"], numbers["kind"], len(numbers["classes"])) == (2, "semantic", 8)
    assert json.loads((answers / "evaluation.json").read_text())["miou"] == numbers["miou"]
    assert "% mean IoU on streets/val</h1>" in (answers / "evaluation.html").read_text()
    wrong = vitral("evaluate", streets, "--model", out / "best", "--split", "val", "--segments", "panoptic")
    assert wrong.exit_code == 2
    assert "nothing that can be read as panoptic" in wrong.stderr


def test_what_label_files_mean_and_what_is_held_out_is_said_again(vitral: Vitral, streets: Path, tmp_path: Path) -> None:
    """Two folders of label files, no splits: which folder, and which share, is said to the training and to its judge."""
    root, out = tmp_path / "streets", tmp_path / "run"
    for kind, split in ((kind, split) for kind in ("images", "labels") for split in ("train", "val")):
        shutil.copytree(streets / kind / split, root / kind, dirs_exist_ok=True)
    shutil.copytree(root / "labels", root / "masks")
    shutil.copy(streets / "classes.txt", root)
    words = ("--recipe", "camvid", "--quick", "--epochs", "1", "--batch-size", "4", "--image-size", "32", "--out", out)
    meant = ("--labels", "masks", "--held-out", "0.34")
    assert "Say in which folder" in vitral("train", root, *words).stderr
    done = vitral("train", root, *words, *meant)
    assert done.exit_code == 0, done.stderr
    assert "learns 8 classes from 4 pictures, judged by 2 others" in " ".join(done.stdout.split())
    others = vitral("train", root, *words, "--labels", "labels", "--held-out", "0.34")
    assert others.exit_code == 2
    assert "judged by other pictures" in others.stderr
    longer = vitral("train", root, *words, *meant, "--weight-decay", "0.5")
    assert longer.exit_code == 2
    assert f"begin with its weights: --model {out / 'best'}" in " ".join(longer.stderr.split())

    judged = vitral("evaluate", root, "--model", out / "best", *meant, "--edges", "--json")
    assert judged.exit_code == 0, judged.stderr
    numbers = json.loads(judged.stdout)
    assert (numbers["data"], numbers["pictures"]) == ("streets/train, held out", 2)
    assert f"reaches mIoU {100 * numbers['miou']:.1f}" in " ".join(done.stdout.split())
    assert 0 <= numbers["boundary_iou"] <= 1
    twice = vitral("evaluate", root, "--model", out / "best", *meant, "--split", "train")
    assert twice.exit_code == 2
    assert "leave --split out" in twice.stderr


def test_what_a_backbone_begins_with_is_told() -> None:
    recipe = recipe_for("scratch_segmenter", model="segformer_b0", backbone="nvidia/mit-b0")
    told = _told(recipe, opened("scenes", task="segmentation"), Path("run"))
    assert told.startswith("segformer_b0, whose backbone begins with nvidia/mit-b0, learns 14 classes from 2,000 pictures")


def test_edges_are_those_of_classes(vitral: Vitral) -> None:
    refused = vitral("evaluate", "scenes", "--model", "x", "--split", "val", "--segments", "instance", "--edges")
    assert refused.exit_code == 2
    assert "would be judged as instance" in refused.stderr


def test_scenes_are_judged_by_what_is_asked_for(vitral: Vitral, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A segmenter's picture set is named by the kind of its segments, where it could be a detector's too."""
    asked: list[Any] = []

    def judge(model: Any, pictures: Any, **options: Any) -> Any:
        asked.append((len(pictures), options["kind"]))
        return evaluate_segments(SeeingMasks(), drawn(), options["kind"])

    kinds = dict(cli_evaluate._KINDS)
    kind = kinds["segmentation"]
    kinds["segmentation"] = type(kind)(kind.read, judge, lambda *_: {}, kind.show, kind.speed)
    monkeypatch.setattr(cli_evaluate, "_KINDS", kinds)
    monkeypatch.setattr(cli_evaluate, "load_model", lambda *_: None)
    for name, column in (("panoptic", "in vain"), ("instance", "AP50"), ("semantic", "IoU")):
        told = vitral("evaluate", "scenes", "--model", "x", "--split", "val", "--segments", name)
        assert told.exit_code == 0, told.stderr
        assert column in told.stdout
    assert asked == [(200, "panoptic"), (200, "instance"), (200, "semantic")]


@pytest.mark.usefixtures("unchecked")
def test_a_misspelt_kind_of_segments_is_refused(vitral: Vitral) -> None:
    misspelt = vitral("evaluate", "scenes", "--model", "x", "--split", "val", "--segments", "panoptik")
    assert misspelt.exit_code == 2
    assert "Did you mean 'panoptic'" in misspelt.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ("--model", "vit_ti16"),
            "A ViT says nothing of pixels, which the pictures of streets/train are to teach. "
            "A segmenter has such a backbone: --model segmenter_vit_ti16_mask (see",
        ),
        (("--recipe", "synthetic_scenes", "--void", "0", "--offset", "1"), "void and offset say what label files mean"),
        (("--recipe", "camvid", "--quick", "--dise", "1"), "Did you mean 'dice'"),
        (("--recipe", "penn_fudan", "--quick", "--segments", "semantic", "--held-out", "0.5"), "has a split val"),
        (("--recipe", "camvid", "--task", "detection"), "The recipe camvid is for segmentation"),
        (("--recipe", "synthetic_panoptic", "--quick"), "nothing that can be read as panoptic"),
    ],
)
def test_what_a_segmenters_training_does_not_take(
    words: tuple[str, ...], sentence: str, vitral: Vitral, streets: Path, tmp_path: Path
) -> None:
    done = vitral("train", streets, *words, "--out", tmp_path / "run", "--image-size", "32")
    assert done.exit_code == 2
    assert sentence in " ".join(done.stderr.split())
    assert not (tmp_path / "run").exists()


def test_tables_are_narrow_and_say_what_was_found(capsys: pytest.CaptureFixture[str]) -> None:
    pictures = drawn()
    for kind, network, column in (
        ("semantic", Seeing, "mean IoU"),
        ("panoptic", SeeingMasks, "all classes"),
        ("instance", SeeingMasks, "AP at IoU .50"),
    ):
        evaluation: Any = evaluate_segments(network(), pictures, kind)  # type: ignore[arg-type]
        show(evaluation, Console(width=80, highlight=False))
        said = capsys.readouterr().out
        assert max(map(len, said.splitlines())) <= 80
        assert column in said
        assert f"{100 * evaluation.value:.1f}" in said
        assert files(evaluation, pictures).keys() == {"evaluation.html"}
        rows = {line.split()[0]: line.split() for line in said.splitlines() if line.startswith(("red", "blue"))}
        if kind == "semantic":
            assert rows["red"][-1] == f"{100 * evaluation.scores.iou[1]:.1f}"
            assert rows["red"][1] == f"{evaluation.scores.support[1] / evaluation.scores.support.sum():.1%}"
        if kind == "panoptic":
            counts = [int(getattr(evaluation.scores, name)[3]) for name in ("found", "missed", "wrong")]
            assert list(map(int, rows["blue"][1:4])) == counts


def test_of_many_classes_the_best_and_the_worst_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    from vitral.tasks.segmentation.metrics import MapScores
    from vitral.training.evaluate_segments import SegmentEvaluation

    counts = np.zeros((30, 31), dtype=np.int64)
    counts[np.arange(30), np.arange(30)] = np.arange(1, 31)
    counts[:, 30] = 10
    scores = MapScores(classes=tuple(f"[b]{place}" for place in range(30)), pictures=1, confusion=counts)
    show(SegmentEvaluation(data="x", model="y", kind="semantic", scores=scores), Console(width=80))
    said = capsys.readouterr().out
    assert "… 20 more …" in said
    assert "[b]29" in said
    assert "[b]15" not in said
