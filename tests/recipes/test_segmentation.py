"""Recipes for segmenters: each quick form goes its whole way, and every option is there to be changed by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.data.segmented import numbers, pairs, panoptic, photo
from vitral.checkpoints.load import load_model
from vitral.checkpoints.save import save_model
from vitral.data.segment_augment import SegmentAugmentation
from vitral.data.synthetic import SegmentedScenes, SyntheticScenes
from vitral.errors import UnknownNameError, UsageError
from vitral.models.catalogue import CATALOGUE, configured
from vitral.recipes.catalogue import RECIPES, recipe_for, task_of, train, train_on
from vitral.tasks.segmentation.loss import MASK2FORMER_LOSS, MASKFORMER_LOSS, MapLoss, MaskLoss
from vitral.training.recipe import Recipe, changed, options_of
from vitral.training.segmentation import Segmented
from vitral.training.start import model_for

SEGMENTERS = [name for name, function in RECIPES.items() if function().task == "segmentation"]
THINGS = SyntheticScenes(count=4, size=(48, 64), number=(1, 2), with_masks=True)
MEASURES = {"semantic": "miou", "instance": "ap", "panoptic": "pq"}


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("checkpoint")
    save_model(model_for(RECIPES["ade20k_segformer"](quick=True), ("one", "other", "third")), folder)
    return str(folder)


def opened(kind: Any) -> Segmented:
    sets: Any = [THINGS, replace(THINGS, seed=1, name="others")]
    if kind != "instance":
        sets = [SegmentedScenes(scenes=one) for one in sets]
    return Segmented(kind=kind, train=sets[0], held_out=sets[1], assumes="")


@pytest.mark.parametrize("name", SEGMENTERS)
def test_a_recipe_for_segmenters_goes_the_whole_way(name: str, segmenter: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"batch_size": 4, "image_size": 32}
    if name == "scratch_segmenter":
        options |= {"model": "segformer_b0", "ema": None}
        options |= {f"network.{field}": value for field, value in RECIPES["ade20k_segformer"](quick=True).network.items()}
    if name == "finetune_segmenter":
        options["model"] = segmenter
    model = options.pop("model", None)
    recipe = recipe_for(name, model=model, quick=True, **options)
    kind = recipe.segments or "semantic"
    trained = train_on(opened(kind), recipe, out=tmp_path / "run")
    assert trained.steps == 1
    assert len(trained.evaluation) == 4
    assert 0 < trained.epochs[-1].loss < 200
    told = load_model(tmp_path / "run/best").record
    assert told.labels == opened(kind).classes
    assert told.training is not None
    assert getattr(told.training, MEASURES[kind]) == trained.evaluation.value


@pytest.mark.parametrize("name", SEGMENTERS)
@pytest.mark.parametrize("quick", [False, True])
def test_every_option_is_plain_and_survives_its_own_text(name: str, quick: bool) -> None:
    recipe = RECIPES[name](quick=quick)
    options = options_of(recipe)
    assert json.loads(json.dumps(options)) == options
    told = {option: str(value) for option, value in options.items() if option != "name"}
    again = changed(recipe, told)
    assert options_of(again) == options
    assert replace(again, network=recipe.network) == recipe
    assert "draw" not in options


@pytest.mark.parametrize("name", SEGMENTERS)
def test_what_a_recipe_sets_the_network_has(name: str) -> None:
    """In its long form too, which no test has the time to go through."""
    recipe: Any = RECIPES[name]()
    if recipe.model in CATALOGUE:
        configured(CATALOGUE[recipe.model].config, dict(recipe.network))


def test_options_of_parts_are_changed_by_name() -> None:
    masks: Any = recipe_for("synthetic_panoptic", **{"costs.points": "512", "points": "256", "dice_weight": "2"}).objective
    assert (masks.costs.points, masks.points, masks.dice_weight) == (512, 256, 2.0)
    assert (masks.costs.classes, masks.error) == (2.0, "cross_entropy")
    maps: Any = recipe_for("camvid", dice="1", lovasz_over="batch", class_weights="1,2.5", scale="0.8,1.2")
    assert maps.objective == MapLoss(dice=1.0, lovasz_over="batch", class_weights=(1.0, 2.5))
    assert maps.augment == SegmentAugmentation(scale=(0.8, 1.2))
    assert recipe_for("camvid", segments="panoptic").segments == "panoptic"


@pytest.mark.parametrize(
    ("name", "option", "sentence"),
    [
        ("synthetic_panoptic", "dice", "Unknown option of a training 'dice'"),
        ("synthetic_panoptic", "costs.point", "Did you mean 'costs.points'"),
        ("synthetic_panoptic", "relative", "Unknown option of a training 'relative'"),
        ("camvid", "dise", "Did you mean 'dice'"),
        ("camvid", "dice_weight", "Unknown option of a training 'dice_weight'"),
        ("camvid", "costs.points", "Unknown option of a training 'costs.points'"),
        ("synthetic_panoptic", "draw", "Unknown option of a training 'draw'"),
    ],
)
def test_options_of_the_other_loss_are_none(name: str, option: str, sentence: str) -> None:
    with pytest.raises(UnknownNameError, match=sentence):
        recipe_for(name, **{option: "1"})


def test_a_kind_of_segments_is_for_segmentation() -> None:
    with pytest.raises(UsageError, match="segments is for segmentation, and bccd is a recipe for detection"):
        recipe_for("bccd", segments="instance")
    with pytest.raises(UnknownNameError, match="Did you mean 'instance'"):
        recipe_for("camvid", segments="instances")


def test_a_network_is_taught_by_its_papers_loss(segmenter: str) -> None:
    losses = {
        name: recipe_for("scratch_segmenter", model=name).objective
        for name in ("segformer_b0", "setr_pup_l16", "mask2former_r50", "maskformer_r50")
        if name in CATALOGUE
    }
    assert losses.pop("segformer_b0") == losses.pop("setr_pup_l16") == MapLoss()
    assert losses.pop("mask2former_r50") == MASK2FORMER_LOSS
    assert all(loss == MASKFORMER_LOSS for loss in losses.values())
    assert recipe_for("finetune_segmenter", model=segmenter).objective == MapLoss()
    assert isinstance(recipe_for("penn_fudan").objective, MaskLoss)


def test_what_pictures_are_there_to_teach(segmenter: str, tmp_path: Path) -> None:
    streets = pairs(tmp_path / "streets", {name: numbers(0, (0, 1, 2)) for name in ("train/a", "train/b", "val/c")})
    listed = panoptic(tmp_path / "panoptic") / "annotations" / "panoptic_val2017.json"
    assert task_of(streets) == task_of(listed) == "segmentation"
    twice = pairs(tmp_path / "twice", {"0": numbers(0, (0, 1))})
    photo(twice / "images" / "0.jpeg")
    with pytest.raises(UsageError, match="two pictures of one name"):  # and not a training on "images" and "labels"
        train(twice, model=segmenter)
    assert recipe_for(None, model="unet", task="segmentation").name == "scratch_segmenter"
    assert recipe_for(None, model=segmenter, task="segmentation").name == "finetune_segmenter"
    with pytest.raises(
        UsageError, match=r"deit_s is for classification, not for segmentation. For segmentation there are: f"
    ):
        train(streets, recipe="deit_s", task="segmentation")
    fields = {f"network.{name}": value for name, value in RECIPES["ade20k_segformer"](quick=True).network.items()}
    options: dict[str, Any] = {"epochs": 1, "batch_size": 2, "image_size": 32, "ema": None, "workers": 0, "warmup_epochs": 0}
    trained = train(streets, model="segformer_b0", **options, **fields)
    assert trained.evaluation.measure == "miou"


def test_the_published_recipes_are_the_papers() -> None:
    """Xie et al. 2021, section 4.1: AdamW at 6e-5, ten times that in the decoder, 160,000 steps of 16 windows."""
    ade: Any = RECIPES["ade20k_segformer"]()
    assert ade.learning_rate * ade.backbone_rate == pytest.approx(6e-5)
    assert ade.epochs * 20_210 / ade.batch_size == pytest.approx(160_000, rel=0.01)
    assert ade.warmup_epochs * 20_210 / ade.batch_size == pytest.approx(1_500, rel=0.02)
    city: Any = RECIPES["cityscapes_segformer"]()
    assert city.epochs * 2_975 / city.batch_size == pytest.approx(160_000, rel=0.01)
    assert (city.image_size, city.augment.relative, city.augment.scale) == ((1024, 1024), "picture", (0.5, 2.0))
    setr: Any = RECIPES["ade20k_setr"]()
    assert (setr.optimizer, setr.objective.auxiliary, setr.learning_rate * setr.backbone_rate) == ("sgd", 0.4, 1e-3)
    assert isinstance(setr, Recipe)
