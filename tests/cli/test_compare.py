"""`vitral compare`: refusals before any work, tables in 80 columns, JSON, the folder, and failures that cost nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitral.cli import compare as command
from vitral.errors import UnknownNameError, UsageError
from vitral.training import compare

TINY = "vit_ti16:patch_size=4,depth=1,width=16,heads=2,mlp_width=32"
OTHER = "vit_ti16:patch_size=8,depth=1,width=16,heads=2,mlp_width=32"
LATE = "vit_ti32:depth=1,width=16,heads=2,mlp_width=32"

Compare = Callable[..., bool]


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Compare:
    """The command in this process, which memory is not measured for: 1 MB for each picture."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(
        compare, "peak_memory", lambda model, fields, size, batches, **how: {one: 10**6 * one for one in batches}
    )

    def asked(*names: str, **options: Any) -> bool:
        usual: dict[str, Any] = {"sizes": [16], "batches": [1, 2], "rounds": 1, "data": None, "held_out": None}
        usual |= {"epochs": None, "minutes": None, "out": None, "as_json": False, "device": "cpu", "threads": None}
        return command.compare(names, **usual | options)

    return asked


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Black and white squares, in a folder per class."""
    root = tmp_path_factory.mktemp("labelled") / "squares"
    numbers = np.random.default_rng(0)
    for name, level in (("black", 40), ("white", 200)):
        (root / name).mkdir(parents=True)
        for number in range(20):
            pixels = (level + numbers.normal(0, 20, (16, 16, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def test_json_is_one_object(ask: Compare, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(TINY, OTHER, as_json=True)
    [line] = capsys.readouterr().out.splitlines()
    told = json.loads(line)
    assert [model["name"] for model in told["models"]] == [TINY, OTHER]
    assert told["sizes"] == [[16, 16]]
    assert told["training"] is None
    [cost] = [one for one in told["models"][0]["costs"] if one["size"] == [16, 16]]
    assert cost["torch_flops"] == 2 * cost["multiply_adds"]
    assert [one["memory"] for one in told["models"][0]["speeds"]] == [10**6, 2 * 10**6]


def test_what_fails_is_named_and_the_table_fits(ask: Compare, capsys: pytest.CaptureFixture[str]) -> None:
    assert not ask(TINY, LATE, sizes=[16, 32])
    shown, errors = capsys.readouterr()
    lines = shown.splitlines()
    assert max(len(line) for line in lines if "vit_ti" in line and "Not beaten" not in line) <= 80
    assert [line.split()[-1] for line in lines if line.startswith("vit_ti32")] == ["failed", "2.00"]
    assert f"{LATE}: counting at 16 × 16" in " ".join(errors.split())
    assert "…" not in " ".join(line for line in lines if "GMACs " in line)


@pytest.mark.parametrize(
    ("names", "options", "said"),
    [
        ((TINY, "vit_s61"), {}, "Did you mean 'vit_s16'"),
        ((TINY,), {"sizes": [0]}, "size must be a whole number"),
        ((TINY,), {"batches": [0]}, "batch must be a whole number"),
        ((TINY,), {"epochs": 1.0}, "say on which pictures"),
        ((TINY,), {"minutes": 1.0}, "say on which pictures"),
        ((TINY,), {"data": "digits", "epochs": 1.0, "minutes": 1.0}, "give one of them"),
        ((TINY,), {"data": "digits", "minutes": 0.0}, "more than 0"),
        ((TINY,), {"data": "no/such/folder"}, "no file or folder"),
    ],
)
def test_nonsense_is_refused_before_any_work(
    ask: Compare, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], options: dict[str, Any], said: str
) -> None:
    monkeypatch.setattr(command, "measure", lambda *_, **__: pytest.fail("work was done"))
    with pytest.raises(UsageError, match=said):
        ask(*names, **options)


def test_a_misspelt_name_carries_the_nearest(ask: Compare) -> None:
    with pytest.raises(UnknownNameError) as caught:
        ask("vit_b61")
    assert "vit_b16" in caught.value.nearest


def test_training_by_one_recipe_leaves_a_page(
    ask: Compare, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert not ask(TINY, LATE, data=str(labelled), epochs=4.0, held_out="0.25", out=out)
    assert {path.name for path in out.iterdir()} == {"compare.html", "compare.json", "pareto.png", "growth.png"}
    told = json.loads((out / "compare.json").read_text())
    learned = [model["learned"] for model in told["models"]]
    assert learned[1] is None
    assert learned[0]["steps"] == 2  # 4 epochs of 30 pictures, 64 at once
    assert learned[0]["judged"] == told["training"]["judged"] == 10
    assert told["training"]["budget"] == "steps"
    assert told["training"]["recipe"]["learning_rate"] == 1e-3
    assert told["fronts"][0]["up"] == "top1"
    with Image.open(out / "pareto.png") as picture:
        assert min(picture.size) > 300
    page = (out / "compare.html").read_text(encoding="utf-8")
    assert "by one recipe, 4 epochs each" in page
    shown = capsys.readouterr().out
    assert f"{learned[0]['top1']:.1%}" in shown
    with pytest.raises(UsageError, match="among the pictures"):
        ask(TINY, data=str(labelled), out=labelled / "out")


def test_what_was_measured_is_kept_when_a_training_is_interrupted(
    ask: Compare, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "learn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ask(TINY, data=str(labelled), epochs=1.0, out=tmp_path / "out")
    told = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert len(told["models"][0]["speeds"]) == 2


def test_the_usual_sizes(ask: Compare, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def noted(contenders: Any, sizes: Any, batches: Any, **_: Any) -> Any:
        asked.append((sizes, batches))
        return tuple(compare.Compared(name=one.name) for one in contenders)

    monkeypatch.setattr(command, "measure", noted)
    ask("cct_7_3x1_32", "cct_2_3x2_32", sizes=[], batches=[])
    ask("cct_7_3x1_32", "vit_ti16", sizes=[], batches=[4, 4])
    assert asked == [(((32, 32),), (1, 8)), (((224, 224),), (4,))]


def test_small_pictures_are_moved_and_large_ones_cut() -> None:
    small, large = command.common_recipe((32, 32), 5), command.common_recipe((224, 224))
    assert (small.augment.crop, small.augment.padding, small.warmup_epochs) == ("padded", 4, 0.5)
    assert (large.augment.crop, large.epochs) == ("resized", 10)
    assert small.drop_path is large.drop_path is None
