"""Recipes: every option by name, with its type checked, and nothing that a misspelling could slip through."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest

from vitral.data.augment.chain import Augmentation
from vitral.data.object_augment import ObjectAugmentation
from vitral.data.segment_augment import SegmentAugmentation
from vitral.errors import UnknownNameError, UsageError
from vitral.tasks.classification.loss import Objective
from vitral.tasks.detection.loss import SetLoss
from vitral.tasks.detection.matching import Costs
from vitral.tasks.segmentation.loss import MapLoss, MaskLoss
from vitral.tasks.segmentation.matching import MaskCosts
from vitral.training.plan import Plan
from vitral.training.recipe import Recipe, TaskName, changed, option_names, options_of

OWN = {one.name for one in fields(Recipe)} - {"name", "network", "objective", "augment"}
FOUND = {one.name for one in fields(SetLoss)} - {"costs"} | {f"costs.{one.name}" for one in fields(Costs)}


@pytest.mark.parametrize(
    ("task", "parts"),
    [
        ("classification", [{one.name for one in fields(Objective)}, {one.name for one in fields(Augmentation)}]),
        ("detection", [FOUND, {one.name for one in fields(ObjectAugmentation)}]),
    ],
)
def test_every_field_is_an_option_and_no_two_share_a_name(task: TaskName, parts: list[set[str]]) -> None:
    names = option_names(task)
    assert set(names) == OWN.union(*parts)
    assert len(names) == len(OWN) + sum(map(len, parts))
    assert set(names) <= set(option_names())


def names_in(part: Any) -> set[str]:
    return {one.name for one in fields(part)}


SEGMENTING = names_in(MaskLoss) - {"costs", "draw"} | {f"costs.{name}" for name in names_in(MaskCosts)}


@pytest.mark.parametrize(
    ("objective", "told"), [(MapLoss(), names_in(MapLoss)), (MaskLoss(), SEGMENTING)], ids=["maps", "masks"]
)
@pytest.mark.parametrize("augment", [SegmentAugmentation(), ObjectAugmentation()], ids=["windows", "whole"])
def test_of_parts_of_several_kinds_the_options_are_those_it_has(objective: Any, told: set[str], augment: Any) -> None:
    recipe = Recipe(task="segmentation", objective=objective, augment=augment)
    names = set(options_of(recipe)) - {"name"}
    assert names == OWN | told | names_in(augment)
    assert len(names) == len(OWN) + len(told) + len(names_in(augment))  # no two share a name
    assert names <= set(option_names("segmentation"))
    matched = Recipe(task="segmentation", objective=MaskLoss(costs=Costs()), augment=augment)
    assert {"costs.l1", "costs.giou"} <= options_of(matched).keys()
    assert "costs.points" not in options_of(matched)


def test_options_of_a_segmenter_survive_their_own_text() -> None:
    recipe = Recipe(
        task="segmentation",
        segments="panoptic",
        objective=MaskLoss(points=None, nothing=0.2, costs=MaskCosts(points=99)),
        augment=SegmentAugmentation(scale=(0.7, 1.5), relative="picture"),
    )
    told = {name: str(value) for name, value in options_of(recipe).items() if name != "name"}
    assert (told["costs.points"], told["points"], told["segments"]) == ("99", "None", "panoptic")
    start = Recipe(task="segmentation", objective=MaskLoss(), augment=SegmentAugmentation())
    assert changed(start, told) == recipe
    assert json.loads(json.dumps(options_of(recipe))) == options_of(recipe)
    with pytest.raises(UnknownNameError, match=r"'dice'\. Did you mean .* or 'dice_weight'"):
        changed(recipe, {"dice": "1"})
    assert changed(Recipe(), {"task": "segmentation", "dice": "1"}).objective == MapLoss(dice=1.0)


def test_options_survive_their_own_text() -> None:
    """What `options_of` tells, given back as text, is the same recipe."""
    recipe = Recipe(
        image_size=(32, 48),
        mean=(0.1, 0.2, 0.3),
        std=(0.5, 0.5, 0.5),
        clip=1.0,
        frozen_depth="body",
        compile=True,
        network={"depth": 3, "drop_path": 0.5, "pool": "mean", "class_token": False},
        objective=Objective(label_smoothing=0.2),
        augment=Augmentation(crop_scale=(0.3, 0.9), mixup=0.4, crop="padded"),
    )
    told = {name: str(value) for name, value in options_of(recipe).items() if name != "name"}
    assert changed(Recipe(), told) == recipe
    assert json.loads(json.dumps(options_of(recipe))) == options_of(recipe)


def test_options_of_a_detector_survive_their_own_text() -> None:
    recipe = Recipe(
        task="detection",
        backbone="resnet/",
        backbone_rate=0.1,
        schedule="step",
        drop_epochs=(40.0, 45.5),
        network={"backbone.stem_width": 16, "width": 32},
        objective=SetLoss(classes="focal", class_weight=2.0, costs=Costs(classes=2.0, l1=4.0)),
        augment=ObjectAugmentation(resize="shortest", sides=(320, 352), longest=None, iou_crop=0.5),
    )
    told = {name: str(value) for name, value in options_of(recipe).items() if name != "name"}
    assert told["costs.l1"] == "4.0"
    assert changed(Recipe(), told) == recipe
    assert json.loads(json.dumps(options_of(recipe))) == options_of(recipe)


def test_another_task_brings_its_own_parts() -> None:
    found = changed(Recipe(epochs=7), {"task": "detection", "costs.giou": "3", "sides": "320"})
    assert found.objective == SetLoss(costs=Costs(giou=3.0))
    assert found.augment == ObjectAugmentation(sides=(320,))
    assert found.epochs == 7
    with pytest.raises(UnknownNameError, match="Unknown option of a training 'mixup'"):
        changed(found, {"mixup": 0.5})
    with pytest.raises(UnknownNameError, match="Did you mean 'detection'"):
        changed(Recipe(), {"task": "detectoin"})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": "detection"}, "objective of a recipe for detection must be of type SetLoss; a Objective came"),
        (
            {"task": "detection", "objective": SetLoss()},
            "augment of a recipe for detection must be of type ObjectAugmentation; a Augmentation came",
        ),
        (
            {"task": "segmentation"},
            "objective of a recipe for segmentation must be of type MapLoss or MaskLoss; a Objective",
        ),
        ({"segments": "semantic"}, "segments is for segmentation, and custom is a recipe for classification"),
        ({"schedule": "step"}, "None came with 'step'"),
        ({"drop_epochs": (3.0,)}, r"\(3.0,\) came with 'cosine'"),
        ({"schedule": "step", "drop_epochs": (0.0,)}, "more than 0"),
    ],
)
def test_parts_of_a_recipe_fit_each_other(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Recipe(**fields)


def test_a_plan_knows_where_the_rate_drops() -> None:
    """DETR's longer schedule over COCO's 118,287 pictures: from 400 epochs on, a tenth."""
    plan = Plan.of(Recipe(epochs=500, batch_size=64, schedule="step", drop_epochs=(400.0,)), 118_287)
    assert plan.drops == (round(400 * 118_287 / 64),)


@pytest.mark.parametrize(
    ("option", "text", "value"),
    [
        ("epochs", "3", 3.0),
        ("learning-rate", "1e-3", 1e-3),
        ("batch_size", "64", 64),
        ("ema", "none", None),
        ("ema", "0.99", 0.99),
        ("image-size", "32,48", (32, 48)),
        ("image_size", "(32, 48)", (32, 48)),
        ("image-size", "224", (224, 224)),
        ("compile", "yes", True),
        ("compile", "False", False),
        ("optimizer", "lamb", "lamb"),
        ("frozen_depth", "2", 2),
        ("frozen_depth", "body", "body"),
        ("workers", "None", None),
        ("model", "1e3", "1e3"),
    ],
)
def test_an_option_reads_its_text(option: str, text: str, value: Any) -> None:
    found = getattr(changed(Recipe(), {option: text}), option.replace("-", "_"))
    assert found == value
    assert type(found) is type(value)


def test_options_of_the_parts_and_of_the_network_reach_them() -> None:
    recipe = changed(Recipe(), {"mixup": "0.8", "label-smoothing": 0.1, "network.depth": "6", "network.pool": "mean"})
    assert (recipe.augment.mixup, recipe.objective.label_smoothing) == (0.8, 0.1)
    assert recipe.network == {"depth": 6, "pool": "mean"}


@pytest.mark.parametrize(
    ("option", "given", "message"),
    [
        ("learning_rat", "1", r"Unknown option of a training 'learning_rat'. Did you mean 'learning_rate'"),
        ("mixupp", "1", "Did you mean 'mixup'"),
        ("optimizer", "adam", "Unknown value of optimizer 'adam'. Did you mean 'adamw'"),
        ("batch_size", "12.5", "batch_size takes a whole number; '12.5' came"),
        ("batch_size", "0", "batch_size must be a whole number of at least 1"),
        ("epochs", "many", "epochs takes a number; 'many' came"),
        ("epochs", "nan", "epochs takes a number"),
        ("epochs", "0", r"epochs must be a number in \(0, 1e\+06\]; 0.0 came"),
        ("image_size", "32,4,5", r"image_size takes two whole numbers between commas; '32,4,5' came"),
        ("crop_scale", "1", r"crop_scale takes two numbers between commas; '1' came"),
        ("epochs", 10**400, "epochs takes a number; a number of about 400 digits came"),
        ("seed", 10**4000, r"seed takes a whole number; a number of about 4,000 digits came"),
        ("compile", "maybe", "compile takes yes or no"),
        ("label_smoothing", "1.5", r"label_smoothing must be in \[0, 1\)"),
        ("momentum", "1", r"momentum must be a number in \[0, 1\)"),
        ("distillation", "soft", "distillation needs a teacher"),
    ],
)
def test_what_an_option_does_not_take(option: str, given: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        changed(Recipe(), {option: given})


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"learning_rate": "x"}, "learning_rate of a Recipe must be a number; 'x' came"),
        ({"epochs": 10**400}, "epochs of a Recipe must be a number; a number of about 400 digits came"),
        ({"batch_size": True}, "batch_size of a Recipe must be a whole number; True came"),
        ({"compile": "no"}, "compile of a Recipe must be yes or no; 'no' came"),
        ({"image_size": (1, 2, 3)}, r"image_size of a Recipe must be two whole numbers or None; \(1, 2, 3\) came"),
        ({"mean": 0.5}, "mean of a Recipe must be numbers or None; 0.5 came"),
        ({"network": 3}, "network of a Recipe must be of type Mapping; 3 came"),
        (
            {"objective": "binary"},
            "objective of a Recipe must be of type Objective or .* or of type MaskLoss; 'binary' came",
        ),
    ],
)
def test_a_recipe_holds_what_its_annotations_say(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Recipe(**fields)


@pytest.mark.parametrize(
    ("name", "taken", "refused", "interval"),
    [
        ("epochs", (1e-3, 1e6), (0, 1.1e6), r"\(0, 1e\+06\]"),
        ("crop_share", (0.1, 1), (0.09, 1.000001), r"\[0.1, 1\]"),
        ("learning_rate", (0, 1000), (-1e-9, 1001), r"\[0, 1000\]"),
        ("momentum", (0, 0.999), (-0.1, 1), r"\[0, 1\)"),
        ("layer_decay", (1e-3, 1), (1e-4, 1.000001), r"\[0.001, 1\]"),
        ("final_rate", (0, 1), (-0.1, 1.000001), r"\[0, 1\]"),
        ("clip", (1e-20, 1e300), (0, -1), r"\(0, inf\)"),
        ("ema", (0, 0.9999), (1,), r"\[0, 1\)"),
        ("save_every", (1e-3, 1e9), (0,), r"\(0, inf\)"),
    ],
)
def test_a_range_is_what_its_message_says(
    name: str, taken: tuple[float, ...], refused: tuple[float, ...], interval: str
) -> None:
    for number in taken:
        assert getattr(Recipe(**{name: number}), name) == number  # type: ignore[arg-type]
    for number in refused:
        with pytest.raises(UsageError, match=f"{name} must be a number in {interval}; "):
            Recipe(**{name: number})  # type: ignore[arg-type]


def test_a_misspelt_option_carries_the_nearest() -> None:
    with pytest.raises(UnknownNameError) as caught:
        changed(Recipe(), {"weigth-decay": "0.1"})
    assert caught.value.nearest[0] == "weight_decay"


# -- how long it is -----------------------------------------------------------------------------------------------------


def test_a_plan_is_arithmetic() -> None:
    plan = Plan.of(Recipe(epochs=3, batch_size=40, warmup_epochs=1, evaluate_every=1, save_every=0.5), 100)
    assert (plan.steps, plan.warmup_steps) == (8, 2)
    assert [step for step in range(1, 9) if plan.evaluates(step)] == [3, 5, 8]
    assert [step for step in range(1, 9) if plan.saves(step)] == [2, 3, 4, 5, 7, 8]
    assert plan.epoch(5) == 2.0


def test_a_batch_larger_than_the_set_is_told_of() -> None:
    assert Plan.of(Recipe(batch_size=27), 27).advice == ""
    assert "A batch of 64 is more than the 27 pictures: every step sees each of them about 2.4 times." in (
        Plan.of(Recipe(batch_size=64), 27).advice
    )


def test_tenths_of_an_epoch_are_ten_to_an_epoch() -> None:
    plan = Plan.of(Recipe(epochs=3, batch_size=100, save_every=0.1), 1000)
    assert [step for step in range(1, 31) if plan.saves(step)] == list(range(1, 31))
    assert Plan.of(Recipe(epochs=1.1, batch_size=10), 100).steps == 11


def test_a_long_plan_notes_about_two_thousand_steps() -> None:
    plan = Plan.of(Recipe(epochs=300, batch_size=1024), 1_281_167)
    assert plan.steps == 375_342
    assert 1900 < sum(map(plan.notes, range(1, plan.steps + 1))) <= 2100
    assert plan.notes(plan.steps)


def test_a_short_plan_has_a_step_and_warms_up_within_it() -> None:
    plan = Plan.of(Recipe(epochs=0.01, batch_size=64, warmup_epochs=5), 10)
    assert (plan.steps, plan.warmup_steps) == (1, 1)
    assert plan.evaluates(1)
    assert plan.saves(1)
