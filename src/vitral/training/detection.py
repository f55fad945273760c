"""Training for detection: which objects a picture shows, and where."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import nn

from vitral.data.listed import with_held_out
from vitral.data.loader import Share
from vitral.data.object_augment import ObjectAugmentation
from vitral.data.object_loader import ObjectBatch, ObjectInput, object_batches
from vitral.data.objects import ObjectSet, ObjectSplits, read_objects
from vitral.data.pictures import BadPictures
from vitral.data.synthetic import SCENES, SyntheticScenes, drawn_scenes
from vitral.data.tree import chosen_split
from vitral.errors import UsageError
from vitral.models.detection.deformable_detr import DeformableDETR
from vitral.models.detection.rtdetr import RTDETR
from vitral.models.network import Network
from vitral.models.output import SetOutput
from vitral.tasks.detection.assignment import dense_loss
from vitral.tasks.detection.loss import DEFORMABLE_LOSS, DETR_LOSS, RTDETR_LOSS, SetLoss
from vitral.training.evaluate_objects import check_fits_objects, evaluate_objects
from vitral.training.recipe import Recipe
from vitral.training.subject import Judgement, Loss, computing

__all__ = [
    "Annotated",
    "DetectionSubject",
    "KnownObjects",
    "annotated_split",
    "read_annotated",
    "usual_object_loss",
]

# -- what is learned from ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class KnownObjects:
    """An annotated set as a training knows it again.

    Args:
        objects: the set.
    """

    objects: ObjectSet

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.objects.name

    def __len__(self) -> int:
        return len(self.objects)

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the classes, the names and all objects (SHA-256, 64 hexadecimal digits); pixels are no part of it."""
        if isinstance(self.objects, SyntheticScenes):  # its options say everything
            return hashlib.sha256(json.dumps(asdict(self.objects)).encode()).hexdigest()
        digest = hashlib.sha256(json.dumps([list(self.objects.classes), list(self.objects.names)]).encode())
        for place in range(len(self.objects)):
            there = self.objects.annotations(place)
            digest.update(len(there).to_bytes(8, "little"))
            for column, kind in ((there.boxes, "<f4"), (there.labels, "<i8"), (there.crowd, "?")):
                digest.update(np.ascontiguousarray(column, dtype=kind).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True, eq=False)
class Annotated:
    """What a detector learns from, and what it is judged by. Both have the same classes, in the same order.

    Attributes:
        train: the pictures to learn from.
        held_out: the pictures to judge by during the training.
    """

    train: ObjectSet
    held_out: ObjectSet | None

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return tuple(self.train.classes)


def read_annotated(
    path: str | os.PathLike[str],
    held_out: str | os.PathLike[str] | float | None = None,
    *,
    bad_pictures: BadPictures = "refuse",
) -> Annotated:
    """Annotated pictures to train on, and to judge by.

    Args:
        path: see `data.objects.read_objects`; or "scenes", 2,000 drawn ones to learn from and 200 to judge by.
        held_out: None: the split val, else test, else none. A share in (0, 1): that much of the training pictures, chosen
            by their names alone, at least one and not all. Or another source, of which val, else test, else train is taken.
        bad_pictures: what is done about annotations and pictures that something is wrong with.

    Raises:
        UsageError: the source cannot be understood, or there is nothing to train on; a share that is none, or although
            there is a split val; the classes of two sources differ.
    """
    found = _read(path, bad_pictures)
    train = found.train
    if train is None:
        raise UsageError(f"{path} has no split train, only {', '.join(found.sets)}. Nothing is there to learn from.")
    if held_out is None:
        return Annotated(train=train, held_out=_first(found.val, found.test))
    if isinstance(held_out, str | os.PathLike):
        other = _read(held_out, bad_pictures)
        judge = cast(ObjectSet, _first(other.val, other.test, other.train))
        ObjectSplits(train=train, val=judge)  # refuses other classes
        return Annotated(train=train, held_out=judge)
    parted = with_held_out(found, held_out, path)
    return Annotated(train=cast(ObjectSet, parted.train), held_out=parted.val)


def annotated_split(
    path: str | os.PathLike[str], split: str | None = None, *, bad_pictures: BadPictures = "refuse"
) -> ObjectSet:
    """One annotated set of pictures.

    Args:
        path: see `read_annotated`.
        split: which, where the source has several: "train", "val" or "test".
        bad_pictures: what is done about annotations and pictures that something is wrong with.

    Raises:
        UsageError: the source cannot be understood; or it has several splits and none was named, or not the one that was.
        UnknownNameError: there is no such split anywhere.
    """
    return chosen_split(_read(path, bad_pictures).sets, split, path)


def _first(*sets: ObjectSet | None) -> ObjectSet | None:
    """The first set that there is; one without pictures is there, and is complained of, not passed over."""
    return next((one for one in sets if one is not None), None)


def _read(path: str | os.PathLike[str], bad_pictures: BadPictures) -> ObjectSplits:
    """All splits of a source, or those of drawn pictures, which need no file."""
    if path == SCENES:
        train, val = drawn_scenes()
        return ObjectSplits(train=train, val=val)
    return read_objects(path, bad=bad_pictures)


# -- the subject ---------------------------------------------------------------------------------------------------------


def usual_object_loss(model: type[nn.Module]) -> SetLoss:
    """What the network's paper makes small; DETR's where there is none of its own.

    Networks that look at every place of a picture have a loss without choices, and ask for none of this.

    Args:
        model: the network's class.
    """
    return {DeformableDETR: DEFORMABLE_LOSS, RTDETR: RTDETR_LOSS}.get(cast(Any, model), DETR_LOSS)


@dataclass(frozen=True, eq=False)
class DetectionSubject:
    """The objects in pictures, as a subject of training.

    The loss of networks whose queries are matched with objects (`SetOutput`) is the recipe's; of those that look at every
    place, the one of `tasks.detection.assignment`.

    Args:
        objects: to train on.
        recipe: whose objective, augmentation and precision are taken.
        judging: to be measured on; the best weights are those with the highest average precision.

    Raises:
        UsageError: the recipe is for something else.
    """

    objects: ObjectSet
    recipe: Recipe
    judging: ObjectSet | None = None

    parts: ClassVar[tuple[str, ...]] = ("class", "box", "giou", "beside")

    def __post_init__(self) -> None:
        if self.recipe.task != "detection":
            raise UsageError(f"The recipe {self.recipe.name} is for {self.recipe.task}, not for detection.")

    @cached_property
    def pictures(self) -> KnownObjects:
        """What is learned from."""
        return KnownObjects(self.objects)

    @cached_property
    def held_out(self) -> KnownObjects | None:
        """What the network is judged by."""
        return None if self.judging is None else KnownObjects(self.judging)

    @property
    def objective(self) -> SetLoss:
        """What is made small."""
        return cast(SetLoss, self.recipe.objective)  # the recipe has seen to it

    def check(self, model: Network) -> None:
        """Refuse a model that finds no objects, or not those of the pictures; and pictures that show none.

        Raises:
            UsageError: the sentence says what does not fit.
        """
        if "object-detection" not in model.tasks:
            or_else = " Or teach it their pixels: --task segmentation." if "image-segmentation" in model.tasks else ""
            raise UsageError(
                f"A {type(model).__name__} finds no objects, which the pictures of {self.objects.name} are to teach. Take a "
                f"detector, such as rtdetr_r50 (see `vitral models`).{or_else}"
            )
        if model.config.num_classes != len(self.objects.classes):
            raise UsageError(
                f"The model has {model.config.num_classes} classes, {self.objects.name} has {len(self.objects.classes)}. "
                "Give it a head for them: model.reset_head(…)."
            )
        if not any((~self.objects.annotations(place).crowd).any() for place in range(len(self.objects))):
            raise UsageError(f"{self.objects.name} holds no objects to learn from, in {len(self.objects)} pictures.")
        self._input_of(model)
        if self.judging is not None:
            check_fits_objects(model, self.judging)

    def batches(
        self, model: Network, share: Share, *, steps: range, workers: int, pin_memory: bool
    ) -> Iterator[list[ObjectBatch]]:
        """Pictures, augmented, and the objects in them; see `data.object_loader.object_batches`."""
        return object_batches(
            self.objects,
            self._input_of(model),
            share,
            seed=self.recipe.seed,
            steps=steps,
            workers=workers,
            bad_pictures=self.recipe.bad_pictures,
            pin_memory=pin_memory,
        )

    def amounts(self, batch: ObjectBatch) -> tuple[float, ...]:
        """Objects, by which what is said of them is divided, and pictures."""
        return float(sum(len(one.labels) for one in batch.targets)), float(len(batch))

    def loss(self, network: nn.Module, batch: ObjectBatch, whole: tuple[float, ...], device: torch.device) -> Loss:
        """The class, the distance of boxes and their overlap of the network's last word; and all beside it.

        What is beside it: the same of earlier layers, of proposals, and of noisy objects.
        """
        objects, pictures = whole
        pixels = batch.pixels.to(device, non_blocking=True)
        mask = None if batch.mask is None else batch.mask.to(device, non_blocking=True)
        targets = [one.to(device) for one in batch.targets]
        with computing(self.recipe, device):
            output = network(pixels, mask, targets)
        if isinstance(output, SetOutput):
            terms, share = self.objective(output, targets, objects, int(pictures)), 1.0
        else:
            terms, share = dense_loss(output, targets), len(batch) / pictures
        total = terms["total"] * share
        nothing = torch.zeros_like(total)
        told = [terms.get(name, nothing) * share for name in ("class", "l1" if "l1" in terms else "box", "giou")]
        parts = torch.stack([*told, total - torch.stack(told).sum()])
        return Loss(total, parts.detach())

    def judge(self, model: Network, *, device: torch.device, workers: int) -> Judgement | None:
        """COCO's numbers; the best is chosen by the average precision over overlaps from .50 to .95."""
        if self.judging is None:
            return None
        found = evaluate_objects(
            model,
            self.judging,
            batch_size=self.recipe.batch_size,
            device=device,
            workers=workers,
            bad_pictures=self.recipe.bad_pictures,
        )
        numbers = found.numbers
        line = f"AP {100 * found.ap:5.1f}  AP50 {100 * numbers['ap50']:5.1f}  AP75 {100 * numbers['ap75']:5.1f}"
        return Judgement(
            data=found.data,
            count=len(found),
            numbers=numbers,
            value=found.ap,
            line=line,
            recorded={"ap": found.ap},
            details=found,
        )

    def _input_of(self, model: Network) -> ObjectInput:
        return ObjectInput(cast(ObjectAugmentation, self.recipe.augment), model.record.preparing(), model.config.image_size)
