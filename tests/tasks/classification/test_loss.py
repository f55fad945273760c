"""Losses of classification against torch's, timm's, and the formulas of DeiT written out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vitral.errors import UnknownNameError, UsageError
from vitral.models.output import EncoderOutput
from vitral.tasks.classification.loss import Objective

B, C = 6, 5


@pytest.fixture
def unchecked() -> Iterator[None]:
    """As for users: annotations are not held against what comes, so the sentence that answers it is seen."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def output_of(*heads: Tensor) -> EncoderOutput:
    tokens = torch.zeros(B, 3, 2)
    logits = torch.stack(heads).mean(0) if heads else None
    return EncoderOutput(tokens, (1, 2), 1, tokens[:, 0], logits, heads)


def logits(seed: int = 0) -> Tensor:
    return 3 * torch.randn(B, C, generator=torch.Generator().manual_seed(seed))


def mixed(seed: int = 5) -> Tensor:
    return torch.rand(B, C, generator=torch.Generator().manual_seed(seed)).softmax(-1)


CLASSES = torch.tensor([0, 4, 2, 2, 1, 3])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("targets", [CLASSES, mixed()], ids=["classes", "shares"])
def test_cross_entropy_is_torchs(smoothing: float, targets: Tensor) -> None:
    ours = Objective(label_smoothing=smoothing)(output_of(logits()), targets)
    theirs = F.cross_entropy(logits(), targets, reduction="none", label_smoothing=smoothing)
    assert ours.shape == (B,)
    torch.testing.assert_close(ours, theirs)


def test_mixing_and_smoothing_are_timms() -> None:
    """timm smooths the classes and mixes them then; here mixed shares are smoothed."""
    mixup = pytest.importorskip("timm.data.mixup")
    losses = pytest.importorskip("timm.loss")
    theirs = mixup.mixup_target(CLASSES, C, lam=0.3, smoothing=0.1)
    shares = 0.3 * F.one_hot(CLASSES, C) + 0.7 * F.one_hot(CLASSES.flip(0), C)
    smoothed = {"label_smoothing": 0.1}
    ours = Objective(**smoothed)(output_of(logits()), shares).mean()
    torch.testing.assert_close(ours, losses.SoftTargetCrossEntropy()(logits(), theirs))
    ours = Objective(loss="binary", **smoothed)(output_of(logits()), shares).mean()
    torch.testing.assert_close(ours, losses.BinaryCrossEntropy(smoothing=0.1)(logits(), theirs))
    ours = Objective(loss="binary", threshold=0.0)(output_of(logits()), shares).mean()
    plain = mixup.mixup_target(CLASSES, C, lam=0.3)
    torch.testing.assert_close(ours, losses.BinaryCrossEntropy(target_threshold=0.0)(logits(), plain))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_binary_is_timms(smoothing: float) -> None:
    losses = pytest.importorskip("timm.loss")
    ours = Objective(loss="binary", label_smoothing=smoothing)(output_of(logits()), CLASSES)
    torch.testing.assert_close(ours.mean(), losses.BinaryCrossEntropy(smoothing=smoothing)(logits(), CLASSES))


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def by_hand(kind: str, student: Tensor, taught: Tensor, teacher: Tensor, tau: float, weight: float) -> np.ndarray:
    """Equations 2 and 3 of DeiT."""
    zs, zd, zt = (one.double().numpy() for one in (student, taught, teacher))
    rows = np.arange(B)
    base = -np.log(softmax(zs)[rows, CLASSES.numpy()])
    if kind == "hard":
        return (1 - weight) * base - weight * np.log(softmax(zd)[rows, zt.argmax(-1)])
    wanted, said = softmax(zt / tau), softmax(zd / tau)
    return (1 - weight) * base + weight * tau**2 * (wanted * np.log(wanted / said)).sum(-1)


@pytest.mark.parametrize(("kind", "weight"), [("soft", 0.1), ("hard", 0.5)])
def test_distillation_is_the_formula_and_reads_the_heads_apart(kind: Any, weight: float) -> None:
    student, taught, teacher = logits(0), logits(1), logits(2)
    for heads in ((student, taught), (student,)):
        ours = Objective(distillation=kind)(output_of(*heads), CLASSES, teacher)
        wanted = by_hand(kind, heads[0], heads[-1], teacher, 3.0, weight)
        np.testing.assert_allclose(ours.numpy(), wanted, rtol=1e-5)
    ours = Objective(distillation=kind, temperature=1.7, distillation_weight=0.4)(
        output_of(student, taught), CLASSES, teacher
    )
    np.testing.assert_allclose(ours.numpy(), by_hand(kind, student, taught, teacher, 1.7, 0.4), rtol=1e-5)


def test_each_head_learns_from_its_own_term_and_the_teacher_from_none() -> None:
    student, taught, teacher = (one.requires_grad_() for one in (logits(0), logits(1), logits(2)))
    Objective(distillation="hard")(output_of(student, taught), CLASSES, teacher).sum().backward()
    gradient = (student.detach().softmax(-1) - F.one_hot(CLASSES, C)) / 2  # that of a cross-entropy, halved
    torch.testing.assert_close(student.grad, gradient)
    said = F.one_hot(teacher.detach().argmax(-1), C)
    torch.testing.assert_close(taught.grad, (taught.detach().softmax(-1) - said) / 2)
    assert teacher.grad is None


def test_without_a_teacher_both_heads_learn_the_targets() -> None:
    student, taught = logits(0), logits(1)
    wanted = (F.cross_entropy(student, CLASSES, reduction="none") + F.cross_entropy(taught, CLASSES, reduction="none")) / 2
    torch.testing.assert_close(Objective()(output_of(student, taught), CLASSES), wanted)


def test_auxiliary_classifiers_weigh_three_tenths_each() -> None:
    """Szegedy et al. 2015, section 5."""
    main, first, second = (F.cross_entropy(logits(seed), CLASSES, reduction="none") for seed in range(3))
    output = output_of(logits(0))._replace(auxiliary=(logits(1), logits(2)))
    torch.testing.assert_close(Objective()(output, CLASSES), main + 0.3 * first + 0.3 * second)


def test_half_precision_is_summed_in_single() -> None:
    ours = Objective()(output_of(logits().bfloat16()), CLASSES)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, F.cross_entropy(logits().bfloat16().float(), CLASSES, reduction="none"))


@pytest.mark.parametrize("wrong", [torch.tensor([0, 1, 2, 3, 4, 5]), torch.tensor([0, 1, 2, 3, 4, -100])])
def test_targets_that_are_no_class_are_refused(wrong: Tensor) -> None:
    with pytest.raises(UsageError, match="classes only from 0 to 4"):
        Objective()(output_of(logits()), wrong)


def test_what_does_not_fit_is_refused() -> None:
    for targets in (CLASSES[:4], torch.zeros(B, C + 1)):
        with pytest.raises(UsageError, match="Targets of shape"):
            Objective()(output_of(logits()), targets)
    with pytest.raises(UsageError, match="no classifier"):
        Objective()(output_of(), CLASSES)
    with pytest.raises(UsageError, match="none came"):
        Objective(distillation="soft")(output_of(logits()), CLASSES)
    with pytest.raises(UsageError, match="distillation is 'none'"):
        Objective()(output_of(logits()), CLASSES, logits(2))


@pytest.mark.usefixtures("unchecked")
def test_a_teacher_of_other_classes_is_refused() -> None:
    with pytest.raises(UsageError, match=r"\(6, 5\) as the student's; \(6, 7\) came"):
        Objective(distillation="hard")(output_of(logits()), torch.zeros(B, C), torch.zeros(B, C + 2))


@pytest.mark.parametrize(
    "wrong",
    [
        {"label_smoothing": 1.0},
        {"threshold": 0.2},
        {"loss": "binary", "threshold": 0.2, "label_smoothing": 0.1},
        {"loss": "binary", "threshold": 1.0},
        {"temperature": 0.0},
        {"distillation_weight": 1.5},
        {"label_smoothing": float("nan")},
    ],
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Objective(**wrong)


@pytest.mark.usefixtures("unchecked")
def test_a_misspelt_kind_is_told_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="'binary'"):
        Objective(loss="binari")  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="'hard'"):
        Objective(distillation="hart")  # type: ignore[arg-type]
