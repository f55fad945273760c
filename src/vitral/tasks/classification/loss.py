"""What a classifier is trained to make small: cross-entropy or its binary form, and a teacher's opinion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vitral.base.config import check_choices
from vitral.base.numbers import real_number
from vitral.errors import UsageError
from vitral.models.output import EncoderOutput

__all__ = ["Distillation", "LossName", "Objective"]

LossName = Literal["cross_entropy", "binary"]
"""Whether the classes compete for one probability, or each is a question of its own."""

Distillation = Literal["none", "soft", "hard"]
"""Whether a teacher's whole distribution is learned, its best class, or nothing."""

_AUXILIARY_WEIGHT = 0.3  # of each auxiliary classifier (Szegedy et al. 2015, GoogLeNet, section 5)
_USUAL_WEIGHT = {"none": 0.0, "soft": 0.1, "hard": 0.5}  # with a temperature of 3; and the half of equation 3


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The loss of each picture of a batch.

    A target is the number of a class, or a share for every class, as mixing pictures makes them. Smoothing takes a share
    of each target and spreads it evenly over the classes (Szegedy et al. 2016, section 7); it is linear, so that smoothing
    mixed targets is mixing smoothed ones.

    "binary" asks every class on its own whether it is there, as "ResNet strikes back" (Wightman et al. 2021) and DeiT III
    (Touvron et al. 2022) do; the loss is the mean over the classes. With `threshold`, whatever is in the mixture by more
    than that counts as there entirely.

    Distillation (DeiT, Touvron et al. 2021, section 4): with Zs the student's logits, Zt the teacher's, y the target and ψ
    the softmax,

        soft (equation 2):  (1 − λ) L(Zs, y) + λ τ² KL(ψ(Zt / τ) ‖ ψ(Zs / τ))
        hard (equation 3):  (1 − λ) L(Zs, y) + λ CE(Zs, argmax Zt)                  λ = ½

    A distilled network has a classifier of its own for the second term, its distillation head. The heads are read apart
    and not by the mean that predicts. Without a teacher, both heads learn the targets, and the loss is the mean of theirs.

    Auxiliary classifiers, of a network that has any, learn the targets too, each with a weight of 0.3 (GoogLeNet, Szegedy et
    al. 2015, section 5).

    Attributes:
        loss: L.
        label_smoothing: the share that is spread, in [0, 1).
        threshold: for "binary": targets above it become 1 and all others 0; None leaves them as they are.
        distillation: what is learned from the teacher.
        temperature: τ, more than 0.
        distillation_weight: λ in [0, 1]; None for DeiT's, 0.1 of soft and 0.5 of hard.

    Raises:
        UnknownNameError: a choice that is none.
        UsageError: a number out of its range, or a threshold where nothing is binary or where smoothing would be undone.
    """

    loss: LossName = "cross_entropy"
    label_smoothing: float = 0.0
    threshold: float | None = None
    distillation: Distillation = "none"
    temperature: float = 3.0
    distillation_weight: float | None = None

    def __post_init__(self) -> None:
        check_choices(self)
        if not 0 <= real_number("label_smoothing", self.label_smoothing) < 1:
            raise UsageError(f"label_smoothing must be in [0, 1); {self.label_smoothing!r} came.")
        if self.threshold is not None:
            if not 0 <= real_number("threshold", self.threshold) < 1:
                raise UsageError(f"threshold must be in [0, 1); {self.threshold!r} came.")
            if self.loss != "binary" or self.label_smoothing:
                raise UsageError("threshold makes targets 0 or 1: it needs loss='binary' and label_smoothing=0.")
        if real_number("temperature", self.temperature) <= 0:
            raise UsageError(f"temperature must be more than 0; {self.temperature!r} came.")
        if (
            self.distillation_weight is not None
            and not 0 <= real_number("distillation_weight", self.distillation_weight) <= 1
        ):
            raise UsageError(f"distillation_weight must be in [0, 1]; {self.distillation_weight!r} came.")

    def __call__(
        self,
        output: EncoderOutput,
        targets: Float[Tensor, "b c"] | Int[Tensor, " b"],
        teacher_logits: Float[Tensor, "b c"] | None = None,
    ) -> Float[Tensor, " b"]:
        """One loss for every picture, in at least single precision.

        A batch's loss is their sum divided by the number of pictures, those of other processes included.

        Args:
            output: the model's, with one classifier or, for a distilled network, two.
            targets: the number of each picture's class, or the share of every class.
            teacher_logits: the teacher's, where there is distillation.

        Raises:
            UsageError: no classifier, targets that are no classes of it, a teacher missing or too many, or one of other
                classes.
        """
        if not output.heads:
            raise UsageError(
                "The model has no classifier to train. Build it with num_classes=…, or use model.reset_head(n)."
            )
        heads, helpers = (
            [one.to(torch.promote_types(one.dtype, torch.float32)) for one in some]
            for some in (output.heads, output.auxiliary)
        )
        shares = self._shares(targets, heads[0])
        if self.distillation == "none":
            if teacher_logits is not None:
                raise UsageError("A teacher's logits came, but distillation is 'none'. Use 'soft' or 'hard'.")
            told = torch.stack([self._from_targets(head, shares) for head in heads]).mean(0)
            return told + _AUXILIARY_WEIGHT * sum(self._from_targets(helper, shares) for helper in helpers)
        if teacher_logits is None or teacher_logits.shape != heads[0].shape:
            came = "none came" if teacher_logits is None else f"{tuple(teacher_logits.shape)} came"
            raise UsageError(f"Distillation needs the teacher's logits, {tuple(heads[0].shape)} as the student's; {came}.")
        weight = _USUAL_WEIGHT[self.distillation] if self.distillation_weight is None else self.distillation_weight
        taught = self._from_teacher(heads[-1], teacher_logits.detach().to(heads[-1].dtype))
        return (1 - weight) * self._from_targets(heads[0], shares) + weight * taught

    def _shares(self, targets: Tensor, logits: Float[Tensor, "b c"]) -> Float[Tensor, "b c"]:
        """What is to be said of every class: one-hot or as it came, thresholded or smoothed."""
        pictures, classes = logits.shape
        if targets.shape[0] != pictures or (targets.ndim == 2 and targets.shape[1] != classes):
            raise UsageError(f"Targets of shape {tuple(targets.shape)} came for {pictures} pictures and {classes} classes.")
        if targets.ndim == 1:
            if pictures and not 0 <= int(targets.min()) <= int(targets.max()) < classes:
                raise UsageError(
                    f"The targets go from {int(targets.min())} to {int(targets.max())}, but the model's classes only from 0 "
                    f"to {classes - 1}."
                )
            targets = F.one_hot(targets.long(), classes)
        shares = targets.to(logits.dtype)
        if self.threshold is not None:
            return (shares > self.threshold).to(logits.dtype)
        return shares * (1 - self.label_smoothing) + self.label_smoothing / classes

    def _from_targets(self, logits: Float[Tensor, "b c"], shares: Float[Tensor, "b c"]) -> Float[Tensor, " b"]:
        """L."""
        if self.loss == "binary":
            return F.binary_cross_entropy_with_logits(logits, shares, reduction="none").mean(-1)
        return F.cross_entropy(logits, shares, reduction="none")

    def _from_teacher(self, logits: Float[Tensor, "b c"], teacher: Float[Tensor, "b c"]) -> Float[Tensor, " b"]:
        """The term of the teacher."""
        if self.distillation == "hard":
            return F.cross_entropy(logits, teacher.argmax(-1), reduction="none")
        student = F.log_softmax(logits / self.temperature, dim=-1)
        wanted = F.log_softmax(teacher / self.temperature, dim=-1)
        return self.temperature**2 * F.kl_div(student, wanted, reduction="none", log_target=True).sum(-1)
