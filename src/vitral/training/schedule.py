"""Learning-rate schedules as pure functions of the step.

A schedule keeps no state, so a training that resumes at a step continues as though it had never stopped, and a schedule
can be drawn before it is used.
"""

from __future__ import annotations

import math

__all__ = ["warmup_cosine"]


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
    progress = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2
