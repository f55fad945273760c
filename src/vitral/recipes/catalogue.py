"""The recipes by name, and a training from a path to a model in one call."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeAlias, overload

import torch

from vitral.checkpoints.load import load_model
from vitral.data.pictures import BadPictures
from vitral.data.segments import Known, SegmentKind, known_of
from vitral.data.splits import Splits, read_splits
from vitral.errors import UnknownNameError, UsageError
from vitral.models.catalogue import CATALOGUE
from vitral.models.network import Network
from vitral.recipes.cifar10 import cifar10_cct, cifar10_cct_long, cifar10_transfer, cifar10_vit
from vitral.recipes.detection import (
    bccd,
    detr_coco,
    finetune_detector,
    rtdetr_coco,
    scratch_detector,
    synthetic_scenes,
)
from vitral.recipes.digits import digits
from vitral.recipes.imagenet import deit_s, vit_s
from vitral.recipes.segmentation import (
    ade20k_segformer,
    ade20k_setr,
    camvid,
    cityscapes_segformer,
    finetune_segmenter,
    penn_fudan,
    scratch_segmenter,
    synthetic_panoptic,
    synthetic_semantic,
)
from vitral.recipes.usual import finetune, scratch
from vitral.training.classification import ClassificationSubject
from vitral.training.detection import Annotated, DetectionSubject, read_annotated, usual_object_loss
from vitral.training.loop import Epoch, Step, Trained, fit
from vitral.training.recipe import Recipe, TaskName, changed
from vitral.training.segmentation import SegmentationSubject, Segmented, read_segmented, usual_segment_loss
from vitral.training.start import Teacher, model_for, teacher_for
from vitral.training.subject import Subject

__all__ = ["RECIPES", "Opened", "begun", "opened", "out_folder", "recipe_for", "subject_of", "task_of", "train", "train_on"]

Opened: TypeAlias = Splits | Annotated | Segmented
"""Pictures to train on and to judge by, of whatever task."""

RECIPES: dict[str, Callable[..., Recipe]] = {
    one.__name__: one
    for one in (
        finetune,
        scratch,
        finetune_detector,
        scratch_detector,
        finetune_segmenter,
        scratch_segmenter,
        digits,
        cifar10_cct,
        cifar10_cct_long,
        cifar10_vit,
        cifar10_transfer,
        deit_s,
        vit_s,
        synthetic_scenes,
        bccd,
        detr_coco,
        rtdetr_coco,
        synthetic_semantic,
        synthetic_panoptic,
        camvid,
        penn_fudan,
        ade20k_setr,
        ade20k_segformer,
        cityscapes_segformer,
    )
}
"""Name → recipe, the usual ones first."""


def task_of(data: str | Path) -> TaskName:
    """What pictures are there to teach: objects, where there are annotations of them; pixels, where there are label files.

    Args:
        data: see `opened`.

    Raises:
        UsageError: there are label files, and nobody can tell which pictures they are for.
    """
    if not isinstance(data, str | os.PathLike):  # whoever reads the pictures says better what is wrong with them
        return "classification"
    return _TAUGHT[known_of(data)]


_TAUGHT: dict[Known, TaskName] = {"classes": "classification", "objects": "detection", "segments": "segmentation"}


def recipe_for(
    name: str | None,
    /,
    *,
    model: str | None = None,
    task: TaskName | None = None,
    quick: bool = False,
    **options: Any,
) -> Recipe:
    """A recipe by name, or the usual one for a model, with options changed.

    Args:
        name: a key of `RECIPES`; None for `scratch` where the model is a network of the catalogue, `finetune` where it is a
            checkpoint; `scratch_detector` and `finetune_detector` where the task is detection, `scratch_segmenter` and
            `finetune_segmenter` where it is segmentation.
        model: what to start from instead of the recipe's own.
        task: what is trained for; None for what the recipe is for, or classification.
        quick: the recipe's quick form.
        **options: see `training.recipe.changed`.

    Raises:
        UnknownNameError: no such recipe or option.
        UsageError: neither a recipe nor a model, or a value that an option does not take.
    """
    if model is not None and not isinstance(model, str):
        raise UsageError(f"model must be the text of a name, a path or a Hub id; a {type(model).__name__} came.")
    if name is None:
        if model is None:
            raise UsageError(
                "Say what to train: a model (--model cct_7_7x2_224 from nothing, --model facebook/deit-tiny-patch16-224 to "
                f"fine-tune) or a recipe (--recipe {', '.join(RECIPES)})."
            )
        name = "scratch" if model in CATALOGUE else "finetune"
        name += {"detection": "_detector", "segmentation": "_segmenter"}.get(task or "", "")
    if name not in RECIPES:
        raise UnknownNameError("recipe", name, RECIPES)
    recipe = RECIPES[name](quick=quick)
    if task is not None and recipe.task != task:
        fitting = ", ".join(one for one, function in RECIPES.items() if function().task == task)
        raise UsageError(f"The recipe {name} is for {recipe.task}, not for {task}. For {task} there are: {fitting}.")
    return _adapted(recipe, model, options)


def _adapted(recipe: Recipe, model: str | None, options: Mapping[str, Any]) -> Recipe:
    """A recipe for another model than its own, with options changed.

    Raises:
        UsageError: the recipe sets what the model does not have.
    """
    if model in CATALOGUE:
        known = {one.name for one in fields(CATALOGUE[model].config)}
        for name in recipe.network:
            if name.split(".")[0] not in known:
                raise UsageError(
                    f"The recipe {recipe.name} sets network.{name}, which {model} does not have: the recipe is for networks "
                    f"like {recipe.model}. Take another recipe for {model}, such as scratch."
                )
    if model is not None and recipe.task != "classification":
        kind = CATALOGUE[model].build if model in CATALOGUE else _kind_of(model)
        if kind is not None and (recipe.model not in CATALOGUE or kind is not CATALOGUE[recipe.model].build):
            usual = usual_object_loss if recipe.task == "detection" else usual_segment_loss
            recipe = replace(recipe, objective=usual(kind))
    return changed(recipe, options if model is None else {"model": model, **options})


def _kind_of(model: str) -> Any:
    """The class of a checkpoint's network; None for what is none, as the training itself will say."""
    return type(load_model(model)) if Path(model).exists() or "/" in model else None


@overload
def opened(data: str | Path, held_out: str | Path | float | None = None) -> Splits: ...


@overload
def opened(
    data: str | Path,
    held_out: str | Path | float | None = None,
    *,
    task: TaskName,
    segments: SegmentKind | None = None,
    bad_pictures: BadPictures = "refuse",
    **meaning: Any,
) -> Opened: ...


def opened(
    data: str | Path,
    held_out: str | Path | float | None = None,
    *,
    task: TaskName = "classification",
    segments: SegmentKind | None = None,
    bad_pictures: BadPictures = "refuse",
    **meaning: Any,
) -> Opened:
    """Pictures to train on and to judge by.

    See `data.splits.read_splits`, `training.detection.read_annotated` and `training.segmentation.read_segmented`.

    Args:
        data: a path, or "digits"; for detection and segmentation "scenes".
        held_out: a path, or a share such as 0.1, also as text. (A folder of such a name is "./0.1".)
        task: what they are to teach.
        segments: of segmentation, what is read of pixels; None: what the pictures say first.
        bad_pictures: what is done about annotations that something is wrong with.
        **meaning: of segmentation, what label files mean (`void`, `offset`, `labels` and others); see
            `data.segments.read_segments`.

    Raises:
        UsageError: they are no paths, or cannot be understood; or they are to teach something else than label files say.
    """
    if not isinstance(data, str | os.PathLike):
        raise UsageError(f"data must be the path of a folder, an archive or a manifest, or 'digits'; {data!r} came.")
    if isinstance(held_out, str):
        with suppress(ValueError):
            held_out = float(held_out)
    if meaning and task != "segmentation":
        raise UsageError(
            f"{' and '.join(meaning)} say what label files mean, and {data} is to teach {task}. Leave them out, or teach "
            "the pixels: task='segmentation' (--task segmentation)."
        )
    if task == "detection":
        return read_annotated(data, held_out, bad_pictures=bad_pictures)
    if task == "segmentation":
        return read_segmented(data, held_out, kind=segments, bad_pictures=bad_pictures, **meaning)
    return read_splits(data, held_out)


def out_folder(out: str | Path) -> Path:
    """The folder that a training writes to, as it was named.

    Raises:
        UsageError: it was not named, or by something that is no path.
    """
    if not isinstance(out, str | os.PathLike):
        raise UsageError(f"out must be the path of a folder; {out!r} came.")
    if not str(out).strip():
        raise UsageError('out is empty; give the path of a folder, such as "run".')
    return Path(out)


def train(
    data: str | Path,
    *,
    recipe: str | Recipe | None = None,
    model: str | None = None,
    task: TaskName | None = None,
    out: str | Path | None = None,
    held_out: str | Path | float | None = None,
    quick: bool = False,
    meaning: Mapping[str, Any] | None = None,
    device: str | int | torch.device | None = None,
    watch: Callable[[Step | Epoch], None] | None = None,
    **options: Any,
) -> Trained:
    """Train a classifier, a detector or a segmenter on a folder of pictures.

    Args:
        data: a folder with one folder per class, an archive or a manifest of them; see `data.splits.read_splits`. For
            detection annotated pictures of COCO's, Pascal VOC's or YOLO's format; see `data.objects.read_objects`. For
            segmentation pictures with label files, or COCO's JSON; see `data.segments.read_segments`.
        recipe: a name of `RECIPES` or a recipe of your own; by default the usual one for the model.
        model: a network of the catalogue, or a checkpoint to fine-tune.
        task: "classification", "detection" or "segmentation"; by default what the recipe is for, or what the pictures are
            there to teach.
        out: folder for checkpoints, journal and models; a training that is there goes on. None: nothing is written.
        held_out: pictures to be judged by: a path, or a share of the training pictures such as 0.1; by default the split
            that the data bring.
        quick: the recipe's quick form.
        meaning: of segmentation, what label files mean, such as {"void": (0,), "labels": "masks"}: options of
            `data.segments.read_segments`, which ask for segmentation where nothing else does.
        device: where to compute; a GPU where there is one.
        watch: told every step and every look at the pictures held out.
        **options: any option of the recipe, by name (`epochs=10`, `learning_rate=1e-3`).

    Raises:
        UsageError: something does not fit together.
        PictureError: a picture cannot be read.
        TrainingError: the loss is not finite.
    """
    if not isinstance(recipe, Recipe):
        meant = task or (None if recipe is not None else "segmentation" if meaning else task_of(data))
        chosen = recipe_for(recipe, model=model, task=meant, quick=quick, **options)
    elif quick:
        raise UsageError("quick=True is for recipes by name; a recipe of your own is as quick as you make it.")
    else:
        chosen = _adapted(recipe, model, options if task is None else {"task": task, **options})
    folder = None if out is None else out_folder(out)
    reading: dict[str, Any] = {"segments": chosen.segments, "bad_pictures": chosen.bad_pictures, **(meaning or {})}
    splits = opened(data, held_out, task=chosen.task, **reading)
    return train_on(splits, chosen, out=folder, device=device, watch=watch)


def train_on(
    splits: Opened,
    recipe: Recipe,
    *,
    out: Path | None = None,
    device: str | int | torch.device | None = None,
    watch: Callable[[Step | Epoch], None] | None = None,
) -> Trained:
    """Train on pictures that are opened already; see `train`."""
    model, subject = begun(splits, recipe)
    return fit(model, subject, recipe, out=out, device=device, watch=watch)


def begun(splits: Opened, recipe: Recipe) -> tuple[Network, Subject[Any]]:
    """The model a training starts from, and what it is trained for; whatever does not fit is refused here.

    Raises:
        UsageError: something does not fit together.
    """
    model = model_for(recipe, splits.classes)
    teacher = teacher_for(recipe, model, splits.train) if isinstance(splits, Splits) else None
    subject = subject_of(splits, recipe, teacher)
    subject.check(model)
    return model, subject


def subject_of(splits: Opened, recipe: Recipe, teacher: Teacher | None = None) -> Subject[Any]:
    """What a recipe trains for, on pictures that are opened already.

    Raises:
        UsageError: pictures that the recipe is not for, or of one class only.
    """
    if isinstance(splits, Annotated):
        return DetectionSubject(splits.train, recipe, splits.held_out)
    if isinstance(splits, Segmented):
        return SegmentationSubject(splits.train, splits.kind, recipe, splits.held_out)
    if len(set(splits.train.labels.tolist())) < 2:
        raise UsageError(
            f"{splits.train.name} shows pictures of one class only; a classifier needs two or more. Give a folder with a "
            "folder for each class."
        )
    return ClassificationSubject(splits.train, recipe, splits.held_out, teacher)
