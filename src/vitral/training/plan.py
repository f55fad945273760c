"""How long a training is and when it pauses: arithmetic over the number of pictures, known before the first step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vitral.training.recipe import Recipe

__all__ = ["Plan"]

_ROUNDING = 1e-9  # 3 · 0.1 is not 0.3
_ROWS = 2000  # of single steps in a journal, at most about: enough for any curve that is looked at


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The length of a training and its pauses.

    Attributes:
        count: pictures in the set.
        batch_size: pictures to a step.
        steps: of the optimiser.
        warmup_steps: how many of them raise the learning rate.
        drops: the steps at which it falls at once.
        evaluate_every: epochs between two evaluations.
        save_every: epochs between two checkpoints.
    """

    count: int
    batch_size: int
    steps: int
    warmup_steps: int
    drops: tuple[int, ...]
    evaluate_every: float
    save_every: float

    @classmethod
    def of(cls, recipe: Recipe, count: int) -> Plan:
        """The plan of a recipe for `count` pictures; the last step may look at a few pictures once more."""
        steps = max(1, math.ceil(recipe.epochs * count / recipe.batch_size - _ROUNDING))
        return cls(
            count=count,
            batch_size=recipe.batch_size,
            steps=steps,
            warmup_steps=min(steps, round(recipe.warmup_epochs * count / recipe.batch_size)),
            drops=tuple(round(epoch * count / recipe.batch_size) for epoch in recipe.drop_epochs or ()),
            evaluate_every=recipe.evaluate_every,
            save_every=recipe.save_every,
        )

    @property
    def advice(self) -> str:
        """A sentence about what the user may not have meant; "" where there is none."""
        if self.batch_size <= self.count:
            return ""
        return (
            f"A batch of {self.batch_size:,} is more than the {self.count:,} pictures: every step sees each of them about "
            f"{self.batch_size / self.count:.1f} times. A smaller batch_size takes more steps."
        )

    def epoch(self, done: int) -> float:
        """How often as many pictures were seen as there are, after `done` steps."""
        return done * self.batch_size / self.count

    def evaluates(self, done: int) -> bool:
        """Whether the pictures held out are looked at after `done` steps."""
        return self._passes(done, self.evaluate_every)

    def saves(self, done: int) -> bool:
        """Whether a checkpoint is written after `done` steps."""
        return self._passes(done, self.save_every)

    def notes(self, done: int) -> bool:
        """Whether step `done` has a row of its own in the journal."""
        return done % max(1, self.steps // _ROWS) == 0 or done == self.steps

    def _passes(self, done: int, every: float) -> bool:
        """Whether the step that led to `done` passed a multiple of `every` epochs, or is the last."""
        before, after = (math.floor(self.epoch(steps) / every + _ROUNDING) for steps in (done - 1, done))
        return done == self.steps or after > before
