"""Training for classification: one of several classes to every picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import nn

from vitral.data.augment.chain import Augmentation, TrainingInput
from vitral.data.loader import Batch, Share, batches
from vitral.data.pictures import PictureSet
from vitral.errors import UsageError
from vitral.models.network import Network
from vitral.tasks.classification.loss import Objective
from vitral.training.evaluate import check_fits, evaluate
from vitral.training.recipe import Recipe
from vitral.training.start import Teacher
from vitral.training.subject import Judgement, Loss, computing

__all__ = ["ClassificationSubject"]


@dataclass(frozen=True, eq=False)
class ClassificationSubject:
    """The classes of pictures, as a subject of training.

    Args:
        pictures: to train on.
        recipe: whose objective, augmentation and precision are taken.
        held_out: to be measured on; the best weights are those that name most of them rightly.
        teacher: what distillation learns from.

    Raises:
        UsageError: the recipe is for something else.
    """

    pictures: PictureSet
    recipe: Recipe
    held_out: PictureSet | None = None
    teacher: Teacher | None = None

    parts: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if self.recipe.task != "classification":
            raise UsageError(f"The recipe {self.recipe.name} is for {self.recipe.task}, not for classification.")

    @property
    def objective(self) -> Objective:
        """What is made small."""
        return cast(Objective, self.recipe.objective)  # the recipe has seen to it

    @property
    def augment(self) -> Augmentation:
        """What happens to the pictures."""
        return cast(Augmentation, self.recipe.augment)

    def check(self, model: Network) -> None:
        """Refuse a model without a preparation, or one that the pictures held out do not fit.

        Raises:
            UsageError: the sentence says which.
        """
        if "image-classification" not in model.tasks:
            raise UsageError(f"A {type(model).__name__} is no classifier; train it with a recipe for what it does.")
        self._input_of(model)
        if self.held_out is not None:
            check_fits(model, self.held_out)

    def batches(
        self, model: Network, share: Share, *, steps: range, workers: int, pin_memory: bool
    ) -> Iterator[list[Batch]]:
        """Pictures, augmented, and their classes; see `data.loader.batches`."""
        return batches(
            self.pictures,
            self._input_of(model),
            share,
            seed=self.recipe.seed,
            steps=steps,
            workers=workers,
            bad_pictures=self.recipe.bad_pictures,
            pin_memory=pin_memory,
        )

    def amounts(self, batch: Batch) -> tuple[float, ...]:
        """Pictures: the loss of a batch is the mean over those that were read."""
        return (float(len(batch)),)

    def loss(self, network: nn.Module, batch: Batch, whole: tuple[float, ...], device: torch.device) -> Loss:
        """The objective's, added up over the pictures of a piece and divided by those of the whole batch."""
        if self.teacher is not None:
            self.teacher.to(device)
        (pictures,) = whole
        pixels = batch.pixels.to(device, non_blocking=True)
        targets = batch.targets.to(device, non_blocking=True)
        with computing(self.recipe, device):
            output = network(pixels)
            taught = None if self.teacher is None else self.teacher(pixels)
        return Loss(self.objective(output, targets, taught).sum() / pictures, torch.zeros(0, device=device))

    def judge(self, model: Network, *, device: torch.device, workers: int) -> Judgement | None:
        """Top-1, by which the best is chosen, top-5 and the cross-entropy."""
        if self.held_out is None:
            return None
        found = evaluate(
            model,
            self.held_out,
            batch_size=self.recipe.batch_size,
            device=device,
            workers=workers,
            bad_pictures=self.recipe.bad_pictures,
        )
        return Judgement(
            data=found.data,
            count=len(found),
            numbers={"top1": found.top1, "top5": found.top5, "loss": found.nll},
            value=found.top1,
            line=f"top-1 {found.top1:6.1%}  loss {found.nll:.3f}",
            recorded={"top1": found.top1},
            details=found,
        )

    def _input_of(self, model: Network) -> TrainingInput:
        return TrainingInput(self.augment, model.record.preparing(), model.config.image_size)
