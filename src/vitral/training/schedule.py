"""Learning-rate schedules as pure functions of the step.

A schedule keeps no state, so a training that resumes at a step continues as though it had never stopped, and a schedule
can be drawn before it is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from vitral.base.config import check_choices
from vitral.base.numbers import real_number, whole_number
from vitral.errors import UsageError

__all__ = ["Schedule", "ScheduleKind", "warmup_constant", "warmup_cosine", "warmup_linear", "warmup_steps_down"]

ScheduleKind = Literal["cosine", "linear", "constant", "step"]
"""How the learning rate goes on after the warm-up; "step": it falls at some steps at once, and stays between them."""


def warmup_cosine(step: int, *, steps: int, warmup_steps: int = 0, floor: float = 0.0) -> float:
    """The factor on the peak learning rate: a linear rise, then half a cosine down to the floor.

    The rise is the warm-up of Goyal et al. 2017 (https://arxiv.org/abs/1706.02677, section 2.2), the fall equation 5 of
    Loshchilov and Hutter 2017 (https://arxiv.org/abs/1608.03983) without restarts.

    Args:
        step: the step about to be taken, from 0.
        steps: how many steps the training takes in all; at and after that step the factor is `floor`.
        warmup_steps: how many of them rise; the first of them already moves, by 1 / warmup_steps.
        floor: the factor at the end, in [0, 1].

    Returns:
        A number in [0, 1]; exactly 1 at the last step of the warm-up and at the first step after it.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return floor + (1 - floor) * (1 + math.cos(math.pi * _progress(step, steps, warmup_steps))) / 2


def warmup_linear(step: int, *, steps: int, warmup_steps: int = 0, floor: float = 0.0) -> float:
    """The factor on the peak learning rate: a linear rise, then a line down to the floor.

    The arguments and the ends are those of `warmup_cosine`. (BERT, Devlin et al. 2019, appendix A.2.)
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return floor + (1 - floor) * (1 - _progress(step, steps, warmup_steps))


def warmup_constant(step: int, *, steps: int, warmup_steps: int = 0, floor: float = 0.0) -> float:
    """The factor on the peak learning rate: a linear rise, then 1 for ever.

    The arguments are those of `warmup_cosine`; as nothing falls, `steps` and `floor` change nothing.
    """
    return (step + 1) / warmup_steps if step < warmup_steps else 1.0


def warmup_steps_down(step: int, *, warmup_steps: int = 0, drops: tuple[int, ...] = (), drop_factor: float = 0.1) -> float:
    """The factor on the peak learning rate: a linear rise, then 1, multiplied by a factor at each drop.

    As residual networks were trained (He et al. 2016, section 3.4), and detectors still are (Carion et al. 2020, DETR,
    section 4).

    Args:
        step: the step about to be taken, from 0.
        warmup_steps: how many of them rise.
        drops: the first step of each lower stretch.
        drop_factor: by which each is lower than the one before it.
    """
    reached = sum(step >= drop for drop in drops)
    return float(drop_factor**reached) * warmup_constant(step, steps=step + 1, warmup_steps=warmup_steps)


def _progress(step: int, steps: int, warmup_steps: int) -> float:
    """How much of what comes after the warm-up is done, in [0, 1]."""
    return min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))


_FACTORS: dict[str, Callable[..., float]] = {
    "cosine": warmup_cosine,
    "linear": warmup_linear,
    "constant": warmup_constant,
}


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A schedule with its numbers: call it on a step for the factor on the peak learning rate.

    Attributes:
        kind: how it goes on after the warm-up.
        steps: how many steps the training takes in all.
        warmup_steps: how many of them rise.
        floor: the factor at the end, in [0, 1]; schedules that are constant, or fall in steps, do not come there.
        drops: the steps at which a "step" schedule falls.
        drop_factor: by which it falls at each, in (0, 1].

    Raises:
        UnknownNameError: no such kind.
        UsageError: a number out of its range.
    """

    kind: ScheduleKind = "cosine"
    steps: int
    warmup_steps: int = 0
    floor: float = 0.0
    drops: tuple[int, ...] = ()
    drop_factor: float = 0.1

    def __post_init__(self) -> None:
        check_choices(self)
        whole_number("steps of a schedule", self.steps)
        if whole_number("warmup_steps", self.warmup_steps, least=0) > self.steps:
            raise UsageError(
                f"The warm-up takes {self.warmup_steps} steps, but the whole training only {self.steps}. Shorten the "
                "warm-up or train for longer."
            )
        if not 0 <= real_number("floor", self.floor) <= 1:
            raise UsageError(f"floor is a share of the peak and must be in [0, 1]; {self.floor!r} came.")
        if not 0 < real_number("drop_factor", self.drop_factor) <= 1:
            raise UsageError(f"drop_factor must be in (0, 1]; {self.drop_factor!r} came.")
        if bool(self.drops) != (self.kind == "step"):
            raise UsageError(
                f"Steps to fall at belong to schedule 'step' and to no other; {self.drops} came for {self.kind!r}."
            )

    def __call__(self, step: int) -> float:
        """The factor on the peak learning rate for the step about to be taken, from 0; a number in [0, 1]."""
        if self.kind == "step":
            return warmup_steps_down(step, warmup_steps=self.warmup_steps, drops=self.drops, drop_factor=self.drop_factor)
        return _FACTORS[self.kind](step, steps=self.steps, warmup_steps=self.warmup_steps, floor=self.floor)
