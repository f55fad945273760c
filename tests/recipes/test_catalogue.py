"""Every recipe's quick form goes its whole way; names and options are checked."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.training.conftest import write_pictures
from vitral.checkpoints.load import load_model
from vitral.checkpoints.save import save_model
from vitral.errors import UnknownNameError, UsageError
from vitral.models.catalogue import create_model
from vitral.recipes.catalogue import RECIPES, opened, recipe_for, train
from vitral.training.recipe import Recipe

_OF_A_CHECKPOINT = ("cifar10_transfer", "finetune")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("sets") / "set", each=12, size=40)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("checkpoint")
    model = create_model("deit_ti16", image_size=(64, 64), num_classes=7, width=24, depth=2, mlp_width=48)
    save_model(model, folder)
    return str(folder)


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "digits"])
def test_a_recipe_goes_the_whole_way(name: str, pictures: Path, checkpoint: str, tmp_path: Path) -> None:
    model = checkpoint if name in _OF_A_CHECKPOINT else None
    options: dict[str, Any] = {"batch_size": 4, "epochs": 1} | ({"image_size": 64} if name == "scratch" else {})
    trained = train(pictures, recipe=name, model=model, quick=True, held_out=0.25, out=tmp_path / "run", **options)
    assert trained.steps == 7  # 27 pictures, four to a step
    assert trained.evaluation is not None
    assert len(trained.evaluation) == 9
    assert 0 < trained.epochs[-1].loss < 3
    assert load_model(tmp_path / "run/best").record.labels == ("green", "red", "violet")


def test_digits_are_learnt() -> None:
    """The quick form reads nine of ten digits it never saw."""
    trained = train("digits", recipe="digits", quick=True)
    assert trained.evaluation is not None
    assert trained.evaluation.top1 > 0.88


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_recipe_tells_its_story_and_is_called_by_its_name(name: str) -> None:
    for quick in (False, True):
        recipe = RECIPES[name](quick=quick)
        assert isinstance(recipe, Recipe)
        assert recipe.name == name
    story = RECIPES[name].__doc__ or ""
    assert "Command: `" in story
    assert "The story." in story or name == "digits"
    assert len(re.findall(r"\w+", story)) > 20


def test_the_published_recipes_are_the_papers() -> None:
    """DeiT, Touvron et al. 2021, table 9; plain ViT, Beyer et al. 2022, section 2."""
    deit = RECIPES["deit_s"]()
    assert (deit.epochs, deit.batch_size, deit.learning_rate, deit.weight_decay) == (300, 1024, 5e-4 * 1024 / 512, 0.05)
    assert (deit.warmup_epochs, deit.objective.label_smoothing, deit.drop_path) == (5, 0.1, 0.1)
    mixing = deit.augment
    assert (mixing.rand_augment, mixing.magnitude, mixing.magnitude_std, mixing.repeats) == (2, 9, 0.5, 3)
    assert (mixing.mixup, mixing.cutmix, mixing.erase) == (0.8, 1.0, 0.25)
    vit = RECIPES["vit_s"]()
    assert (vit.epochs, vit.batch_size, vit.learning_rate, vit.clip, vit.augment.mixup) == (90, 1024, 1e-3, 1.0, 0.2)
    assert round(vit.warmup_epochs * 1_281_167 / 1024, -2) == 10_000


def test_without_a_recipe_the_model_decides(checkpoint: str) -> None:
    assert recipe_for(None, model="cct_2_3x2_32").name == "scratch"
    assert recipe_for(None, model=checkpoint).name == "finetune"
    with pytest.raises(UsageError, match=r"Say what to train: a model .* or a recipe"):
        recipe_for(None)


def test_misspelt_recipes_and_options_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'cifar10_cct'"):
        recipe_for("cifar10_cc")
    with pytest.raises(UnknownNameError, match="Did you mean 'learning_rate'"):
        recipe_for("digits", learning_rates=1.0)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": None}, "data must be the path of a folder, an archive or a manifest, or 'digits'; None came"),
        ({"out": 3}, "out must be the path of a folder; 3 came"),
        ({"out": ""}, "out is empty; give the path of a folder"),
        ({"held_out": "1.5"}, "A share to hold out must lie between 0 and 1, both excluded; 1.5 came"),
        ({"held_out": []}, r"held_out must be a finite number; \[\] came"),
        ({"model": Path("checkpoint")}, "model must be the text of a name, a path or a Hub id; a PosixPath came"),
        ({"learning_rate": "x"}, "learning_rate takes a number; 'x' came"),
        (
            {"model": "cct_7_3x1_32"},
            "The recipe cifar10_vit sets network.patch_size, which cct_7_3x1_32 does not have: .* scratch",
        ),
    ],
)
def test_what_is_no_argument_of_a_training(arguments: dict[str, Any], message: str, pictures: Path) -> None:
    with pytest.raises(UsageError, match=message):
        train(**({"data": pictures, "recipe": "cifar10_vit", "quick": True} | arguments))


def test_a_share_may_be_a_text(pictures: Path) -> None:
    assert len(opened(pictures, "0.25").train) == len(opened(pictures, 0.25).train) == 27


def test_a_recipe_of_ones_own(pictures: Path) -> None:
    own: Any = replace(RECIPES["cifar10_vit"](quick=True), epochs=0.5, batch_size=6, warmup_epochs=0)
    told: list[Any] = []
    trained = train(pictures, recipe=own, learning_rate=1e-4, watch=told.append)
    assert trained.steps == 3
    assert trained.epochs[-1].held_out is None
    assert told[0].learning_rate == 1e-4
    with pytest.raises(UsageError, match="quick=True is for recipes by name"):
        train(pictures, recipe=own, quick=True)
