"""Every recipe's quick form goes its whole way; names and options are checked."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.conftest import write_pictures
from vitral.checkpoints.load import load_model
from vitral.checkpoints.save import save_model
from vitral.data.objects import write_objects
from vitral.data.synthetic import SyntheticScenes
from vitral.errors import UnknownNameError, UsageError
from vitral.models.catalogue import CATALOGUE, create_model
from vitral.recipes.catalogue import RECIPES, opened, recipe_for, task_of, train
from vitral.tasks.detection.loss import DEFORMABLE_LOSS, DETR_LOSS, RTDETR_LOSS
from vitral.tasks.segmentation.loss import MASKFORMER_LOSS
from vitral.training.optim import freeze
from vitral.training.recipe import Recipe
from vitral.training.start import model_for

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


DETECTORS = [name for name, function in RECIPES.items() if function().task == "detection"]
CLASSIFIERS = [name for name, function in RECIPES.items() if function().task == "classification"]


@pytest.mark.parametrize("name", [name for name in CLASSIFIERS if name != "digits"])
def test_a_recipe_goes_the_whole_way(name: str, pictures: Path, checkpoint: str, tmp_path: Path) -> None:
    model = checkpoint if name in _OF_A_CHECKPOINT else None
    options: dict[str, Any] = {"batch_size": 4, "epochs": 1} | ({"image_size": 64} if name == "scratch" else {})
    trained = train(pictures, recipe=name, model=model, quick=True, held_out=0.25, out=tmp_path / "run", **options)
    assert trained.steps == 7  # 27 pictures, four to a step
    assert trained.evaluation is not None
    assert len(trained.evaluation) == 9
    assert 0 < trained.epochs[-1].loss < 3
    assert load_model(tmp_path / "run/best").record.labels == ("green", "red", "violet")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight drawn pictures to learn from and four to judge by, in COCO's format."""
    sets = {
        "train": SyntheticScenes(count=8, size=(48, 64), shapes=("disc", "square")),
        "val": SyntheticScenes(count=4, size=(48, 64), shapes=("disc", "square"), seed=1),
    }
    folder = tmp_path_factory.mktemp("sets") / "scenes"
    write_objects(sets, folder, format="coco")
    return folder


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("checkpoint")
    save_model(model_for(RECIPES["rtdetr_coco"](quick=True), ("one", "other", "third")), folder)
    return str(folder)


@pytest.mark.parametrize("name", DETECTORS)
def test_a_recipe_for_detectors_goes_the_whole_way(name: str, scenes: Path, detector: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"batch_size": 4, "image_size": 64}
    if name == "scratch_detector":
        options |= {f"network.{field}": value for field, value in RECIPES["bccd"](quick=True).network.items()}
    model = detector if name == "finetune_detector" else None
    trained = train(scenes, recipe=name, model=model, quick=True, out=tmp_path / "run", **options)
    assert trained.steps == 2
    assert len(trained.evaluation) == 4
    assert 0 < trained.epochs[-1].loss < 100
    told = load_model(tmp_path / "run/best").record
    assert told.labels == ("disc", "square")
    assert told.training is not None
    assert told.training.ap == trained.evaluation.ap


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


def test_the_published_recipes_of_detectors_are_the_papers() -> None:
    """DETR, Carion et al. 2020, appendix A.4; RT-DETR, Zhao et al. 2024, table A of the appendix."""
    detr = RECIPES["detr_coco"]()
    assert (detr.epochs, detr.batch_size, detr.learning_rate, detr.weight_decay) == (500, 64, 1e-4, 1e-4)
    assert detr.learning_rate * detr.backbone_rate == pytest.approx(1e-5)
    assert (detr.schedule, detr.drop_epochs, detr.drop_factor, detr.clip) == ("step", (400.0,), 0.1, 0.1)
    real: Any = RECIPES["rtdetr_coco"]()
    assert (real.epochs, real.batch_size, real.learning_rate, real.weight_decay) == (72, 16, 1e-4, 1e-4)
    assert (real.backbone_rate, real.ema, real.clip, real.objective.classes) == (0.1, 0.9999, 0.1, "varifocal")


@pytest.mark.parametrize("name", ["detr_coco", "rtdetr_coco"])
def test_what_a_published_recipe_freezes_is_the_beginning_of_the_backbone(name: str) -> None:
    """The stem of both, and of DETR the first stage."""
    recipe: Any = RECIPES[name]()
    with torch.device("meta"):
        model = CATALOGUE[recipe.model].build(CATALOGUE[recipe.model].config)
    freeze(model, recipe.frozen_depth)
    frozen = {one for one, weight in model.named_parameters() if not weight.requires_grad}
    first = {one for one in dict(model.named_parameters()) if one.startswith("backbone.stem")}
    if name == "detr_coco":
        stages = list(model.backbone.blocks[:3])
        inside = {id(weight) for block in stages for weight in block.parameters()}
        first |= {one for one, weight in model.named_parameters() if id(weight) in inside}
    assert frozen == first


def test_what_pictures_are_there_to_teach(scenes: Path, pictures: Path) -> None:
    assert [task_of(one) for one in (scenes, "scenes", pictures, "digits")] == [
        "detection", "detection", "classification", "classification",
    ]  # fmt: skip
    assert recipe_for(None, model="rtdetr_r18", task="detection").name == "scratch_detector"
    with pytest.raises(UsageError, match=r"deit_s is for classification, not for detection. For detection there are: fine"):
        train(scenes, recipe="deit_s", task="detection")


def test_a_network_is_taught_by_its_papers_loss(detector: str) -> None:
    losses = {
        name: recipe_for("scratch_detector", model=name).objective
        for name in ("rtdetrv2_r18", "detr_r50", "yolos_ti", "deformable_detr_r50")
    }
    assert losses == {
        "rtdetrv2_r18": RTDETR_LOSS, "detr_r50": DETR_LOSS, "yolos_ti": DETR_LOSS, "deformable_detr_r50": DEFORMABLE_LOSS,
    }  # fmt: skip
    assert recipe_for("finetune_detector", model=detector).objective == RTDETR_LOSS


def test_a_checkpoint_is_fine_tuned_by_its_papers_loss(tmp_path: Path) -> None:
    narrow = {"block": "basic", "stem_width": 8, "stage_channels": (8, 8, 16, 16), "depths": (1, 1, 1, 1)}
    backbone = {f"backbone.{name}": value for name, value in narrow.items()}
    detr = {"width": 16, "heads": 2, "mlp_width": 16, "encoder_depth": 1, "decoder_depth": 2, "queries": 5}
    save_model(create_model("detr_r50", num_classes=2, image_size=(64, 64), **backbone, **detr), tmp_path / "detr")
    assert recipe_for(None, model=str(tmp_path / "detr"), task="detection").objective == DETR_LOSS
    save_model(create_model("maskformer_r50", num_classes=2, width=16, mask_width=16, **backbone), tmp_path / "masks")
    assert recipe_for(None, model=str(tmp_path / "masks"), task="segmentation").objective == MASKFORMER_LOSS


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
