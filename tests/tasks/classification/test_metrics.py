"""Metrics against scikit-learn, loops written out, and closed forms."""

from __future__ import annotations

import inspect
import math
import time
from typing import Any

import numpy as np
import pytest
import torch

from vitral.errors import UsageError
from vitral.tasks.classification import metrics

oracle = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn, of the extra `demo`")


def answered(count: int = 400, classes: int = 7, *, seed: int = 0, sharpness: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that are right more often than not, and the truth; the last class has no pictures."""
    numbers = np.random.default_rng(seed)
    labels = numbers.integers(0, classes - 1, count)
    logits = numbers.standard_normal((count, classes))
    logits[np.arange(count), labels] += 1
    powers = np.exp(sharpness * logits)
    return (powers / powers.sum(1, keepdims=True)).astype(np.float32), labels


SCORES, LABELS = answered()


@pytest.mark.parametrize("k", [1, 2, 5, 7])
def test_top_k_is_scikit_learns(k: int) -> None:
    expected = oracle.top_k_accuracy_score(LABELS, SCORES, k=k, labels=range(7)) if k < 7 else 1.0
    assert metrics.top_k_accuracy(SCORES, LABELS, k) == pytest.approx(expected)
    assert metrics.accuracy(LABELS, metrics.answers_of(SCORES)) == oracle.accuracy_score(LABELS, SCORES.argmax(1))


def test_of_equal_scores_the_lower_class_stands_first() -> None:
    scores = np.array([[0.25, 0.25, 0.25, 0.25], [0.1, 0.4, 0.4, 0.1]], dtype=np.float32)
    labels = np.array([3, 2])
    assert metrics.answers_of(scores).tolist() == torch.from_numpy(scores).argmax(1).tolist() == [0, 1]
    assert metrics.ranks_of(scores, labels).tolist() == [3, 1]
    assert [metrics.top_k_accuracy(scores, labels, k) for k in (1, 2, 3, 4, 9)] == [0, 0.5, 0.5, 1, 1]
    # A model that says the same of all is right about class 0 alone.
    same = np.full((8, 4), 0.25, dtype=np.float32)
    assert metrics.top_k_accuracy(same, np.repeat(np.arange(4), 2)) == 0.25


def test_the_class_table_is_scikit_learns() -> None:
    answers = metrics.answers_of(SCORES)
    table = metrics.class_table(LABELS, answers, 7)
    expected = oracle.precision_recall_fscore_support(LABELS, answers, labels=range(7), zero_division=0)
    for name, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        np.testing.assert_allclose(getattr(table, name), values, atol=1e-12, err_msg=name)
    assert table.support[6] == 0
    assert table.said.tolist() == np.bincount(answers, minlength=7).tolist()
    means = oracle.precision_recall_fscore_support(LABELS, answers, average="macro", zero_division=0)[:3]
    assert list(table.macro.values()) == pytest.approx(list(means))


def test_the_confusion_matrix_is_scikit_learns_and_the_commonest_are_its_greatest() -> None:
    answers = metrics.answers_of(SCORES)
    matrix = metrics.confusion_matrix(LABELS, answers, 7)
    np.testing.assert_array_equal(matrix, oracle.confusion_matrix(LABELS, answers, labels=range(7)))
    off = matrix - np.diag(np.diag(matrix))
    found = metrics.confusions(LABELS, answers)
    assert sum(one.count for one in found) == off.sum()
    assert [one.count for one in found] == sorted(off[off > 0].tolist(), reverse=True)
    assert all(off[one.true, one.said] == one.count for one in found)
    assert metrics.confusions(LABELS, answers, 3) == found[:3]
    assert metrics.confusions(LABELS, LABELS) == []


def test_losses_are_scikit_learns() -> None:
    precise = SCORES.astype(np.float64)
    precise /= precise.sum(1, keepdims=True)  # scikit-learn warns of what single precision rounds
    expected = oracle.log_loss(LABELS, precise, labels=range(7))
    assert metrics.log_losses(SCORES, LABELS).mean() == pytest.approx(expected, rel=1e-6)
    expected = oracle.brier_score_loss(LABELS, precise, labels=range(7), scale_by_half=False)
    assert metrics.brier_scores(SCORES, LABELS).mean() == pytest.approx(expected, rel=1e-6)


def test_one_impossible_truth_costs_87_nats_and_not_infinitely_many() -> None:
    scores = np.array([[1.0, 0.0], [0.5, 0.5]], dtype=np.float32)
    assert metrics.log_losses(scores, np.array([1, 1])).tolist() == pytest.approx([126 * math.log(2), math.log(2)])
    assert metrics.brier_scores(scores, np.array([1, 1])).tolist() == [2.0, 0.5]


def ece_written_out(scores: np.ndarray, labels: np.ndarray, bins: int) -> float:
    """Guo et al. 2017, equation 3, picture by picture."""
    error = 0.0
    for number in range(1, bins + 1):
        held = [
            (float(row.max()), int(row.argmax()) == label)
            for row, label in zip(scores, labels.tolist(), strict=True)
            if (number - 1) / bins < row.max() <= number / bins
        ]
        if held:
            sure, right = (sum(part) / len(held) for part in zip(*held, strict=True))
            error += len(held) / len(labels) * abs(right - sure)
    return error


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_the_calibration_error_is_the_papers_sum(bins: int) -> None:
    expected = ece_written_out(SCORES.astype(np.float64), LABELS, bins)
    assert expected > 0.01
    assert metrics.expected_calibration_error(SCORES, LABELS, bins=bins) == pytest.approx(expected, abs=1e-9)


def test_what_lies_on_an_edge_belongs_to_the_bin_below() -> None:
    scores = np.array([[0.5, 0.5], [0.75, 0.25], [1.0, 0.0], [0.8, 0.2]])
    found = metrics.reliability_bins(scores, np.array([0, 0, 0, 1]), bins=4)
    assert found.counts.tolist() == [0, 1, 1, 2]
    assert found.confidence.tolist() == pytest.approx([0, 0.5, 0.75, 0.9])
    assert found.accuracy.tolist() == [0, 1, 1, 0.5]
    assert found.error == pytest.approx((0.5 + 0.25 + 2 * 0.4) / 4)


def test_even_bins_hold_as_many_pictures_each() -> None:
    scores, labels = answered(600)
    found = metrics.reliability_bins(scores, labels, bins=15, adaptive=True)
    assert found.counts.tolist() == [40] * 15
    order = np.argsort(scores.max(1), kind="stable").reshape(15, 40)
    right = scores.argmax(1) == labels
    sure = scores.max(1).astype(np.float64)
    expected = np.mean([abs(right[rows].mean() - sure[rows].mean()) for rows in order])
    assert found.error == pytest.approx(expected)


def test_even_bins_part_no_equal_pictures_whatever_their_order() -> None:
    numbers = np.random.default_rng(1)
    sure = numbers.choice([0.6, 0.7, 0.9], 100)
    scores, labels = np.stack([sure, 1 - sure], axis=1), numbers.integers(0, 2, 100)
    found = metrics.reliability_bins(scores, labels, adaptive=True)
    assert len(found.counts) == 3
    order = np.argsort(labels)
    again = metrics.reliability_bins(scores[order], labels[order], adaptive=True)
    assert again.counts.tolist() == found.counts.tolist() == [int((sure == value).sum()) for value in (0.6, 0.7, 0.9)]
    assert again.error == pytest.approx(found.error)
    alike = metrics.reliability_bins(np.full((9, 2), 0.5), np.zeros(9, dtype=int), adaptive=True)
    assert (alike.counts.tolist(), alike.error) == ([9], 0.5)


def test_a_calibrated_model_has_little_error_and_a_too_sure_one_has_what_it_is_too_sure_by() -> None:
    numbers = np.random.default_rng(2)
    sure = numbers.uniform(0.5, 1.0, 40_000)
    labels = (numbers.uniform(size=len(sure)) > sure).astype(int)  # class 0 as often as it is sure
    scores = np.stack([sure, 1 - sure], axis=1)
    assert metrics.expected_calibration_error(scores, labels) < 0.01
    bold = np.stack([0.5 + sure / 2, 0.5 - sure / 2], axis=1)
    assert metrics.expected_calibration_error(bold, labels) == pytest.approx(np.mean((1 - sure) / 2), abs=0.01)


def test_a_proportions_interval_is_the_normal_one() -> None:
    right = np.random.default_rng(3).uniform(size=2000) < 0.8
    share = right.mean()
    half = 1.959964 * math.sqrt(share * (1 - share) / len(right))
    [(low, high)] = metrics.bootstrap_intervals(right[:, None].astype(np.float64), resamples=4000)
    assert (low, high) == pytest.approx((share - half, share + half), abs=half / 12)
    [(low, high)] = metrics.bootstrap_intervals(right[:, None].astype(np.float64), level=0.5, resamples=4000)
    assert (low, high) == pytest.approx((share - 0.3441 * half, share + 0.3441 * half), abs=half / 12)


def test_intervals_are_fixed_by_their_seed_and_draw_all_columns_alike() -> None:
    values = np.random.default_rng(4).standard_normal((300, 1))
    both = np.concatenate([values, 2 * values + 1], axis=1)
    first = metrics.bootstrap_intervals(both, seed=5)
    np.testing.assert_array_equal(first, metrics.bootstrap_intervals(both, seed=5))
    assert (first != metrics.bootstrap_intervals(both, seed=6)).any()
    np.testing.assert_allclose(first[1], 2 * first[0] + 1, atol=1e-12)
    np.testing.assert_array_equal(metrics.bootstrap_intervals(np.ones((50, 1))), [[1, 1]])


def test_a_thousand_resamples_of_ten_thousand_pictures_take_no_time() -> None:
    values = np.random.default_rng(7).uniform(size=(10_000, 4))
    started = time.process_time()
    metrics.bootstrap_intervals(values)
    assert time.process_time() - started < 2


def changed(row: int, column: int, value: float) -> np.ndarray:
    scores = SCORES.copy()
    scores[row, column] = value
    return scores


@pytest.mark.parametrize("measure", ["ranks_of", "reliability_bins", "brier_scores", "log_losses", "top_k_accuracy"])
@pytest.mark.parametrize(
    ("scores", "labels", "said"),
    [
        (changed(17, 2, float("nan")), LABELS, r"row 17 are not all finite .* 1 of 400 rows"),
        (changed(3, 0, float("inf")), LABELS, "row 3 are not all finite"),
        (changed(5, 1, 1.5), LABELS, r"row 5 reach from .* to 1\.5, so they are no probabilities"),
        (changed(5, 1, -0.25), LABELS, "row 5 reach from -0.25"),
        (SCORES, np.where(np.arange(400) == 9, 7, LABELS), "label of row 9 is 7, and there are 7 classes"),
        (SCORES, np.where(np.arange(400) == 8, -1, LABELS), "label of row 8 is -1"),
        (SCORES[:0], LABELS[:0], "at least one picture"),
    ],
)
def test_what_makes_no_sense_is_refused(measure: str, scores: np.ndarray, labels: np.ndarray, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        getattr(metrics, measure)(scores, labels)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: metrics.top_k_accuracy(SCORES, LABELS, 0), "k must be a whole number of at least 1"),
        (lambda: metrics.reliability_bins(SCORES, LABELS, bins=0), "bins must be"),
        (lambda: metrics.accuracy(LABELS[:0], LABELS[:0]), "no pictures"),
        (lambda: metrics.class_table(LABELS, LABELS, 3), "labels are from 0 to 5, and there are 3 classes"),
        (lambda: metrics.confusion_matrix(LABELS, LABELS + 9, 7), "answers are from 9 to 14"),
        (lambda: metrics.confusions(LABELS, LABELS, 0), "k must be"),
        (lambda: metrics.bootstrap_intervals(np.zeros((0, 1))), "no pictures"),
        (lambda: metrics.bootstrap_intervals(np.array([[0.0], [np.nan]])), "row 1 are not all finite"),
        (lambda: metrics.bootstrap_intervals(np.zeros((3, 1)), level=1.0), "level must be between 0 and 1"),
        (lambda: metrics.bootstrap_intervals(np.zeros((3, 1)), resamples=0), "resamples must be"),
        (lambda: metrics.bootstrap_intervals(np.zeros((3, 1)), seed=-1), "seed must be"),
    ],
)
def test_numbers_out_of_range_are_refused(call: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        call()


def test_labels_that_are_no_whole_numbers_are_refused() -> None:
    with pytest.raises(UsageError, match="whole numbers; float64 came"):
        inspect.unwrap(metrics.check_scores)(SCORES, LABELS.astype(np.float64))
