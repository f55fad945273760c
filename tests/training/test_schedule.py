"""Schedules against transformers', torch's and closed forms."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jaxtyping
import pytest
import torch
from torch import nn

from vitral.errors import UnknownNameError, UsageError
from vitral.training.schedule import Schedule, warmup_constant, warmup_cosine, warmup_linear


@pytest.fixture
def unchecked() -> Iterator[None]:
    """As for users: annotations are not held against what comes, so the sentence that answers it is seen."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("cosine", "get_cosine_schedule_with_warmup"),
        ("linear", "get_linear_schedule_with_warmup"),
        ("constant", "get_constant_schedule_with_warmup"),
    ],
)
def test_kinds_are_the_ones_of_transformers(kind: Any, name: str) -> None:
    transformers = pytest.importorskip("transformers.optimization")
    peer = optimizer()
    training = {} if kind == "constant" else {"num_training_steps": 30}
    schedule = getattr(transformers, name)(peer, num_warmup_steps=5, **training)
    ours = Schedule(kind=kind, steps=30, warmup_steps=5)
    for step in range(31):
        theirs = schedule.get_last_lr()[0]  # whose warm-up begins with a step that does not move
        assert ours(step) == pytest.approx(theirs + 0.2 if step < 5 else theirs, abs=1e-9)
        peer.step()
        schedule.step()


def test_the_line_is_the_one_of_torch() -> None:
    peer = optimizer()
    schedule = torch.optim.lr_scheduler.LinearLR(peer, start_factor=1.0, end_factor=0.25, total_iters=20)
    for step in range(25):
        assert warmup_linear(step, steps=20, floor=0.25) == pytest.approx(schedule.get_last_lr()[0], abs=1e-9)
        peer.step()
        schedule.step()


def test_closed_forms() -> None:
    assert [warmup_linear(step, steps=8, warmup_steps=4) for step in range(9)] == [
        *(0.25, 0.5, 0.75, 1.0),
        *(1.0, 0.75, 0.5, 0.25, 0.0),
    ]
    assert [warmup_constant(step, steps=3, warmup_steps=2) for step in range(5)] == [0.5, 1.0, 1.0, 1.0, 1.0]
    assert Schedule(kind="cosine", steps=12, warmup_steps=4, floor=0.2)(6) == pytest.approx(
        0.2 + 0.8 * (1 + math.sqrt(0.5)) / 2
    )
    assert Schedule(steps=9, floor=0.1)(10**6) == warmup_cosine(9, steps=9, floor=0.1) == pytest.approx(0.1)


def test_all_of_it_may_be_warm_up() -> None:
    for kind in ("cosine", "linear", "constant"):
        rising = Schedule(kind=kind, steps=4, warmup_steps=4)
        assert [rising(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"steps": 2.5}, {"warmup_steps": 11}, {"warmup_steps": -1}, {"floor": 1.1}, {"floor": math.nan}]
)
def test_numbers_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Schedule(**{"steps": 10} | wrong)


@pytest.mark.usefixtures("unchecked")
def test_a_misspelt_kind_is_told_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="'cosine'"):
        Schedule(kind="cosinus", steps=10)  # type: ignore[arg-type]


def test_falling_in_steps_is_the_one_of_torch() -> None:
    peer = optimizer()
    theirs = torch.optim.lr_scheduler.MultiStepLR(peer, milestones=[4, 9], gamma=0.3)
    mine = Schedule(kind="step", steps=14, drops=(4, 9), drop_factor=0.3)
    for step in range(14):
        assert mine(step) == pytest.approx(peer.param_groups[0]["lr"])
        peer.step()
        theirs.step()


def test_falling_in_steps_rises_first() -> None:
    schedule = Schedule(kind="step", steps=10, warmup_steps=4, drops=(6,))
    assert [schedule(step) for step in range(8)] == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 0.1, 0.1])


@pytest.mark.parametrize("fields", [{"kind": "step"}, {"drops": (3,)}, {"kind": "step", "drops": (3,), "drop_factor": 0.0}])
def test_steps_to_fall_at_belong_to_one_kind(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"Steps to fall at belong to schedule 'step'|drop_factor must be in"):
        Schedule(steps=10, **fields)
