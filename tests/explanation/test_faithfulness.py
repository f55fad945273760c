"""Measures of explanations against curves known in closed form, planted boxes, brute force, scikit-learn and scipy."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, jaccard_score
from torch import Tensor, nn

import vitral
from tests.explanation.conftest import AS_IT_IS, RED, planted_picture, tiny
from vitral.base.frame import Frame
from vitral.data.transforms import Preprocessing
from vitral.errors import UnknownNameError, UsageError
from vitral.explanation.explain import explain
from vitral.explanation.faithfulness import randomisation
from vitral.explanation.faithfulness.baselines import BASELINES, centred_gaussian, random_heat
from vitral.explanation.faithfulness.curves import Curve, insertion_deletion, perturbation
from vitral.explanation.faithfulness.evaluate import (
    MEASURES,
    Faithfulness,
    Sample,
    bootstrap_interval,
    evaluate,
    judge,
)
from vitral.explanation.faithfulness.localisation import (
    average_precision,
    energy_inside,
    pointing_game,
    segmentation_scores,
)
from vitral.explanation.faithfulness.randomisation import randomisation_sensitivity, spearman
from vitral.explanation.geometry import TokenGeometry
from vitral.explanation.methods import METHODS
from vitral.explanation.result import Explanation
from vitral.models.record import Record
from vitral.pipelines.predictor import Predictor

PLAIN = Preprocessing(resize="none", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), scale=1.0)


class Summing(nn.Module):
    """Class 0 scores the sum of the red channel, class 1 a constant; every input it was shown is kept."""

    def __init__(self, constant: float = 0.0) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_classes=2, patch_size=(1, 1), prefix=0, prefix_names=())
        self.constant, self.shown = constant, [torch.zeros(0)]

    def forward(self, pixels: Tensor) -> Any:
        self.shown.append(pixels)
        sums = pixels[:, 0].sum((1, 2))
        return SimpleNamespace(logits=torch.stack([sums, torch.full_like(sums, self.constant)], dim=1))


@dataclass
class Toy:
    """As much of a predictor as an explanation needs."""

    model: nn.Module = field(default_factory=Summing)
    preprocessing: Preprocessing = PLAIN
    record: Record = field(default_factory=lambda: Record(problem="regression"))
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32

    def prepare(self, source: Any) -> Any:
        return vitral.load(tiny(image_size=(8, 8)), preprocessing=self.preprocessing).prepare(source)


def of(heat: Any, cell: tuple[int, int] = (1, 1), frame: Frame | None = None, **fields: Any) -> Explanation:
    """An explanation with this heat."""
    heat = np.asarray(heat, dtype=np.float32)
    size = (heat.shape[0] * cell[0], heat.shape[1] * cell[1])
    geometry = TokenGeometry((), heat.shape, cell, frame or Frame(picture=size, input=size))
    return Explanation("planted", "by hand", heat, cell, geometry, **fields)


def red(values: Any) -> Tensor:
    """An input whose red channel holds these values."""
    values = torch.as_tensor(np.asarray(values), dtype=torch.float32)
    return torch.stack([values, torch.zeros_like(values), torch.zeros_like(values)])


# ----------------------------------------------------------------------------------------- against the model


def test_the_area_under_a_curve_is_the_trapezoids() -> None:
    assert Curve(np.array([0.0, 0.5, 1.0]), np.array([1.0, 0.5, 0.0])).auc == 0.5
    fractions = np.sort(np.random.default_rng(0).random(9))
    assert Curve(fractions, fractions**2).auc == pytest.approx(np.trapezoid(fractions**2, fractions), abs=1e-12)


def test_deletion_of_a_sum_is_known_in_closed_form() -> None:
    # Pixels hold 1 … n, hottest first: after k steps the triangular number T(n - k) is left, and the triangular numbers up
    # to T(n) sum to n (n + 1) (n + 2) / 6.
    n = 36
    values = np.random.default_rng(0).permutation(n).reshape(6, 6) + 1.0
    deletion = insertion_deletion(Toy(), of(values), target=0, steps=n, pixels=red(values)).deletion
    left = np.arange(n, -1, -1)
    assert deletion.values.tolist() == (left * (left + 1) / 2).tolist()
    assert deletion.auc == pytest.approx((n * (n + 1) * (n + 2) / 6 - n * (n + 1) / 4) / n)


def test_coldest_first_would_be_worse() -> None:
    values = np.random.default_rng(0).permutation(36).reshape(6, 6) + 1.0
    true, false = (insertion_deletion(Toy(), of(h), target=0, pixels=red(values)) for h in (values, -values))
    assert true.deletion.auc < false.deletion.auc
    assert true.insertion.auc > false.insertion.auc


def test_insertion_starts_from_a_gaussian_blur() -> None:
    numbers = np.random.default_rng(0)
    values, heat = numbers.random((9, 7)), numbers.random((9, 7))
    deviation, reach = 1.5, 3
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    kernel /= kernel.sum()
    padded, blurred = np.pad(values, reach, mode="edge"), np.zeros((9, 7))
    for y in range(9):
        for x in range(7):
            blurred[y, x] = kernel @ padded[y : y + 7, x : x + 7] @ kernel
    insertion = insertion_deletion(
        Toy(), of(heat), target=0, steps=7, blur=deviation, pixels=red(values), batch_size=3
    ).insertion
    mixed, expected = blurred.copy(), [blurred.sum()]
    queue = sorted(np.ndindex(9, 7), key=lambda place: -heat[place])
    for number, place in enumerate(queue, start=1):
        mixed[place] = values[place]
        if number % 9 == 0:
            expected.append(mixed.sum())
    assert np.abs(insertion.values - expected).max() < 1e-5
    assert insertion.values[-1] == pytest.approx(values.sum())
    assert insertion.fractions.tolist() == pytest.approx([step / 7 for step in range(8)])


def test_probabilities_are_watched_where_logits_are_of_classes() -> None:
    toy = Toy(record=Record())
    deletion = insertion_deletion(toy, of([[2.0, 1.0]]), target=0, steps=2, pixels=red([[2.0, 1.0]])).deletion
    assert deletion.values == pytest.approx([1 / (1 + np.exp(-3)), 1 / (1 + np.exp(-1)), 0.5])


def test_equal_heat_goes_in_reading_order() -> None:
    toy, values = Toy(), red(np.arange(1, 7).reshape(2, 3))
    insertion_deletion(toy, of(np.ones((2, 3))), target=0, steps=6, pixels=values)
    deleted = toy.model.shown[-1][:, 0].flatten(1)
    assert deleted.tolist() == [[0.0] * step + list(range(step + 1, 7)) for step in range(7)]


def test_perturbations_of_a_sum_are_known() -> None:
    # Of 100 pixels 50 are lit, and class 0 needs more than 25 of them. Lit ones first: 50 40 30 | 20 …; dark ones first:
    # 50 until half of the picture is masked, then 40 30 | 20 10.
    lit = np.random.default_rng(0).permutation(np.repeat([0.0, 1.0], 50)).reshape(10, 10)
    positive, negative = perturbation(Toy(Summing(25.5)), of(lit), target=0, pixels=red(lit))
    assert positive.values.tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 0, 0]
    assert negative.values.tolist() == [1, 1, 1, 1, 1, 1, 1, 1, 0, 0]
    assert positive.fractions.tolist() == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
    assert (positive.auc, negative.auc) == (pytest.approx(0.25), pytest.approx(0.75))


def test_the_greatest_area_of_a_perturbation_is_as_published() -> None:
    positive, negative = perturbation(Toy(Summing(-1.0)), of(np.ones((10, 10))), target=0, pixels=red(np.ones((10, 10))))
    assert (positive.auc, negative.auc) == (pytest.approx(0.9), pytest.approx(0.9))
    positive, _ = perturbation(Toy(Summing(-1.0)), of(np.ones((10, 10))), target=1, pixels=red(np.ones((10, 10))))
    assert positive.auc == 0


def test_pixels_are_masked_black_and_as_many_as_the_authors_mask() -> None:
    # int(224 · 224 · fraction), as in pertubation_eval_from_hdf5.py
    toy = Toy(preprocessing=replace(PLAIN, mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.1)))
    pixels = torch.full((3, 224, 224), 7.0)
    perturbation(toy, of(np.random.default_rng(0).random((224, 224))), target=0, pixels=pixels)
    shown = toy.model.shown[-1]
    black = (shown == torch.tensor([-2.0, -2.0, -3.0]).view(3, 1, 1)).all(1)
    assert black.sum((1, 2)).tolist() == [
        int(224 * 224 * fraction) for fraction in (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    ]
    perturbation(toy, of(np.ones((224, 224))), target=0, fill="mean", pixels=pixels)
    assert set(toy.model.shown[-1].unique().tolist()) == {0.0, 7.0}


def test_heat_of_patches_is_carried_to_pixels_first() -> None:
    explanation = of([[0.0, 1.0], [2.0, 3.0]], cell=(4, 4))
    toy, pixels = Toy(), red(np.ones((8, 8)))
    insertion_deletion(toy, explanation, target=0, steps=64, pixels=pixels)
    gone = [int(torch.nonzero(before.flatten() != after.flatten())[0]) for before, after in zip(*pairs(toy), strict=True)]
    assert gone == np.argsort(-explanation.on_input().ravel(), kind="stable").tolist()
    assert gone[0] == 6 * 8 + 6  # the first pixel as hot as the corner's patch


def pairs(toy: Toy) -> tuple[Tensor, Tensor]:
    """What was shown at every step of a deletion in steps of one pixel, and at the next."""
    shown = torch.cat(toy.model.shown[-3:])[-65:, 0]  # 65 variants in three batches
    return shown[:-1], shown[1:]


def test_what_a_model_watches_by_default(planted: Predictor) -> None:
    picture = planted_picture()
    best = int(planted(picture).indices[0])
    explanation = explain(planted, picture, method="occlusion", target=1 - best)
    ours = insertion_deletion(planted, explanation)
    assert ours.deletion.values[0] == pytest.approx(planted(picture).scores[1], abs=1e-6)
    free = explain(planted, picture, method="rollout")
    assert insertion_deletion(planted, free).deletion.values[0] == pytest.approx(planted(picture).scores[0], abs=1e-6)
    named = insertion_deletion(planted, free, target=planted.record.label(1 - best))
    assert named.deletion.values.tolist() != insertion_deletion(planted, free).deletion.values.tolist()


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=12).flatmap(lambda a: st.tuples(st.just(a), st.permutations(a))))
def test_spearman_is_scipys(rows: tuple[list[int], list[int]]) -> None:
    first, second = (np.array(row) for row in rows)
    if len(set(rows[0])) == 1:
        assert spearman(first, second) == 0
    else:
        assert spearman(first, second) == pytest.approx(spearmanr(first, second).statistic, abs=1e-12)


def test_spearman_in_closed_form() -> None:
    first, second = np.random.default_rng(0).permutation(20), np.random.default_rng(1).permutation(20)
    assert spearman(first, second) == pytest.approx(1 - 6 * ((first - second) ** 2).sum() / (20 * (20**2 - 1)))
    assert spearman(first, np.exp(first / 3.0)) == 1
    assert spearman(first, -first) == -1


def test_randomisation_leaves_the_callers_model_alone() -> None:
    model = tiny(num_classes=5)
    predictor = vitral.load(model, preprocessing=replace(AS_IT_IS, resize="exact", size=(32, 48)))
    picture = planted_picture()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = randomisation_sensitivity(predictor, picture, method="relevance", seed=3)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert predictor.model is model
    assert found.stages == ("nothing", "head", "norm", "blocks.2", "blocks.1", "blocks.0", "patch", "tokens and positions")
    assert found.correlations[0] == 1
    assert np.abs(found.correlations[-1]) < 0.7  # 24 patches: 0.7 is beyond three standard deviations of chance
    again, other = (randomisation_sensitivity(predictor, picture, method="relevance", seed=seed) for seed in (3, 4))
    assert again.correlations.tolist() == found.correlations.tolist() != other.correlations.tolist()
    assert json.loads(json.dumps(found.to_dict()))["stages"][0] == {"stage": "nothing", "correlation": 1.0}


def test_attention_does_not_notice_a_lost_head_but_gradients_do() -> None:
    predictor = vitral.load(tiny(num_classes=5), preprocessing=replace(AS_IT_IS, resize="exact", size=(32, 48)))
    seen = {name: randomisation_sensitivity(predictor, planted_picture(), method=name) for name in ("rollout", "relevance")}
    place = seen["rollout"].stages.index("norm")
    assert seen["rollout"].correlations[: place + 1].tolist() == pytest.approx([1.0] * (place + 1))
    assert (seen["rollout"].correlations[place + 1 :] < 1).all()
    assert seen["relevance"].correlations[1] < 0.999


def test_randomisation_keeps_mean_and_deviation_and_the_class(planted: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    models, targets = [], []

    def watched(predictor: Any, *arguments: Any, **options: Any) -> Explanation:
        models.append({name: value.clone() for name, value in predictor.model.state_dict().items()})
        targets.append(options["target"])
        return explain(predictor, *arguments, **options)

    monkeypatch.setattr(randomisation, "explain", watched)
    predictor = vitral.load(
        tiny(width=64, heads=2, mlp_width=96), preprocessing=replace(AS_IT_IS, resize="exact", size=(32, 48))
    )
    with torch.no_grad():
        predictor.model.blocks[0].mlp.up.weight += 3.0
    randomisation_sensitivity(predictor, planted_picture(), target=4)
    assert set(targets) == {4}
    last, first = models[-1]["blocks.0.mlp.up.weight"], models[0]["blocks.0.mlp.up.weight"]
    assert not torch.equal(last, first)
    assert last.std().item() == pytest.approx(first.std().item(), rel=0.05)
    assert abs((last.mean() - first.mean()).item()) < 4 * first.std().item() / first.numel() ** 0.5
    assert torch.equal(models[1]["blocks.0.mlp.up.weight"], first)  # only the head was lost by then
    targets.clear()
    randomisation_sensitivity(predictor, planted_picture())
    best = int(predictor(planted_picture()).indices[0])
    assert targets == [None] + [best] * (len(targets) - 1)  # the trained model's best, also where it is best no more


# ------------------------------------------------------------------------------------- against the picture


@pytest.mark.parametrize(
    ("box", "hit"),
    [
        ((20, 4, 24, 8), True),
        ((0, 0, 32, 24), True),
        ((0, 0, 7, 6), True),  # 15 to the left of x = 22
        ((0, 0, 6.99, 6), False),
        ((0, 15, 13, 24), True),  # 9 to the left and 9 below: 12.7 away
        ((0, 17, 11, 24), False),  # 11 and 11: 15.6
    ],
)
def test_pointing_at_planted_boxes(box: tuple[float, ...], hit: bool) -> None:
    heat = np.zeros((6, 8))
    heat[1, 5] = 1  # of patches of 4 × 4 pixels: the hottest point is (22, 6)
    assert pointing_game(of(heat, cell=(4, 4)), boxes=np.array([box])) is hit
    far = (0.0, 23.0, 1.0, 24.0)
    assert pointing_game(of(heat, cell=(4, 4)), boxes=np.array([far, box])) is hit


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1.0, 2.5, 4.0]))
def test_pointing_at_a_mask_is_the_distance_to_its_nearest_pixel(seed: int, tolerance: float) -> None:
    numbers = np.random.default_rng(seed)
    heat, mask = numbers.random((9, 11)), numbers.random((9, 11)) > 0.97
    mask[numbers.integers(9), numbers.integers(11)] = True
    y, x = np.unravel_index(heat.argmax(), heat.shape)
    # From the middle of the hottest pixel to the border of each pixel of the mask.
    gaps = [
        np.hypot(max(0, abs(row - y) - 0.5), max(0, abs(column - x) - 0.5)) for row, column in np.argwhere(mask).tolist()
    ]
    assert pointing_game(of(heat), mask=mask, tolerance=tolerance) is bool(min(gaps) <= tolerance)


def test_pointing_is_in_pixels_of_the_original() -> None:
    # A picture of 60 × 40 shrunk by one half, of which the middle 20 × 20 was seen: patch (0, 1) of 2 × 2 is at (30, 20).
    frame = Frame(picture=(60, 40), input=(20, 20), scale=(0.5, 0.5), offset=(5.0, 0.0))
    explanation = of([[0, 1], [0, 0]], cell=(10, 10), frame=frame)
    assert explanation.peak == (30, 20)
    assert pointing_game(explanation, boxes=np.array([[29, 19, 31, 21]]), tolerance=0.0)
    assert not pointing_game(explanation, boxes=np.array([[31, 19, 32, 21]]), tolerance=0.5)


def test_energy_is_the_share_of_heat_inside() -> None:
    heat = np.arange(12.0).reshape(3, 4)  # from 0, so nothing is taken off: 66 in all
    box = np.array([[1, 1, 3, 3]])  # 5 + 6 + 9 + 10
    assert energy_inside(of(heat), boxes=box) == pytest.approx(30 / 66)
    assert energy_inside(of(heat + 100), boxes=box) == pytest.approx(30 / 66)
    mask = np.zeros((3, 4), dtype=bool)
    mask[1:3, 1:3] = True
    assert energy_inside(of(heat), mask=mask) == pytest.approx(30 / 66)
    # Overlapping boxes count once; a pixel is inside if its centre is.
    assert energy_inside(of(heat), boxes=np.array([[1, 1, 3, 3], [1.5, 1.5, 2.6, 3]])) == pytest.approx(30 / 66)
    assert energy_inside(of(heat), boxes=np.array([[1.6, 1, 3, 3]])) == pytest.approx(16 / 66)
    assert energy_inside(of(heat), boxes=np.array([[1, 0, 3, 2]])) == pytest.approx((1 + 2 + 5 + 6) / 66)
    # Of signed heat what speaks for the class counts: -6 … 5 has 1 to 5, of which 3 and 4 are inside.
    assert energy_inside(of(heat - 6, signed=True), boxes=box) == pytest.approx(7 / 15)
    assert energy_inside(of(-1 - heat, signed=True), boxes=box) == 0
    assert energy_inside(of(np.ones((3, 4))), boxes=box) == 0


def test_only_what_the_model_saw_counts() -> None:
    # Columns 2 … 5 of a picture of 4 × 8 were seen. Beyond them no heat is, and no mistake either.
    frame = Frame(picture=(4, 8), input=(4, 4), offset=(0.0, 2.0))
    heat = np.zeros((4, 4))
    heat[:, 1] = 1
    explanation = of(heat, frame=frame)
    mask = np.zeros((4, 8), dtype=bool)
    mask[:, :4] = True
    assert energy_inside(explanation, mask=mask) == 1
    scores = segmentation_scores(explanation, mask)
    assert scores.pixel_accuracy == 12 / 16
    assert scores.miou == pytest.approx((4 / 8 + 8 / 12) / 2)
    unseen = np.zeros((4, 8), dtype=bool)
    unseen[:, 0] = True
    for measure in (lambda: energy_inside(explanation, mask=unseen), lambda: segmentation_scores(explanation, unseen)):
        with pytest.raises(UsageError, match="saw nothing of the thing"):
            measure()


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(2, 9))
def test_segmentation_is_brute_force(seed: int, levels: int) -> None:
    numbers = np.random.default_rng(seed)
    heat, mask = numbers.integers(0, levels, (7, 6)).astype(np.float64), numbers.random((7, 6)) > 0.6
    mask[0, 0], mask[0, 1] = True, False
    heat[0, 2], heat[0, 3] = 0, levels - 1
    scores = segmentation_scores(of(heat), mask)
    counts = {(found, true): 0 for found in (False, True) for true in (False, True)}
    for value, true in zip(heat.ravel(), mask.ravel(), strict=True):
        counts[bool(value > heat.mean()), bool(true)] += 1
    wrong = counts[True, False] + counts[False, True]
    unions = counts[True, True] + wrong, counts[False, False] + wrong
    assert scores.pixel_accuracy == pytest.approx(1 - wrong / 42)
    assert scores.miou == pytest.approx((counts[True, True] / unions[0] + counts[False, False] / unions[1]) / 2)
    found = (heat > heat.mean()).ravel()
    assert scores.miou == pytest.approx(jaccard_score(mask.ravel(), found, average="macro"))
    # As in the authors' get_ap_scores: both classes' channels in one list.
    level = heat.ravel() / (levels - 1)
    both = average_precision_score(np.r_[mask.ravel(), ~mask.ravel()], np.r_[level, 1 - level])
    assert scores.average_precision == pytest.approx(both, abs=1e-9)


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 30))
def test_average_precision_is_scikit_learns(seed: int, count: int, levels: int) -> None:
    numbers = np.random.default_rng(seed)
    scores, truth = numbers.integers(0, levels, count) / 7, numbers.random(count) > 0.5
    truth[numbers.integers(count)] = True
    assert average_precision(scores, truth) == pytest.approx(average_precision_score(truth, scores), abs=1e-12)


def test_flat_heat_finds_no_foreground() -> None:
    mask = np.zeros((4, 5), dtype=bool)
    mask[:, :2] = True
    scores = segmentation_scores(of(np.full((4, 5), 0.1)), mask)
    assert scores.pixel_accuracy == pytest.approx(0.6)
    assert scores.miou == pytest.approx((0 + 0.6) / 2)
    # Background entries (score 1, 12 of 20 true) come first, then foreground entries (score 0, 8 of 20).
    assert scores.average_precision == pytest.approx(12 / 20 * 12 / 20 + 8 / 20 * 20 / 40)


# ------------------------------------------------------------------------------------ heat that knows nothing


def test_random_heat_is_of_the_picture_and_the_seed(planted: Predictor) -> None:
    one, other = planted_picture(0), planted_picture(1)
    found = random_heat(planted, one)
    assert found.heat.shape == (4, 4)
    assert found.on_picture().shape == (32, 32)
    assert (random_heat(planted, one.copy()).heat == found.heat).all()
    assert (random_heat(planted, other).heat != found.heat).all()
    assert (random_heat(planted, one, seed=1).heat != found.heat).all()
    fine = random_heat(planted, one, per="pixel")
    assert (fine.heat.shape, fine.cell, fine.method) == ((32, 32), (1, 1), "random_pixels")
    assert abs(fine.heat.mean() - 0.5) < 4 / np.sqrt(12 * 32 * 32)


def test_the_gaussian_stands_in_the_middle(planted: Predictor) -> None:
    found = centred_gaussian(planted, planted_picture(), spread=0.25)
    assert (found.heat == found.heat[::-1]).all()
    assert (found.heat == found.heat.T).all()
    # Centres of the four patches of a side: 0.125, 0.375, … of it; half and one and a half deviations from the middle.
    inner, outer = np.exp(-0.5 * 0.5**2), np.exp(-0.5 * 1.5**2)
    assert found.heat[0] == pytest.approx([outer**2, outer * inner, outer * inner, outer**2], rel=1e-6)


# ------------------------------------------------------------------------------------------- many pictures


def test_intervals_cover_a_known_mean() -> None:
    numbers, covered = np.random.default_rng(0), 0
    for trial in range(200):
        low, high = bootstrap_interval(numbers.normal(3.0, 2.0, 40), resamples=300, seed=trial)
        covered += low <= 3.0 <= high
    assert 0.89 < covered / 200 < 0.99  # of 95 %; 200 trials scatter by 1.5 %, and percentiles are a little narrow


def test_an_interval_is_as_wide_as_the_standard_error_says() -> None:
    values = np.random.default_rng(0).normal(0, 1, 400)
    low, high = bootstrap_interval(values, level=0.9)
    assert high - low == pytest.approx(2 * 1.645 * values.std() / np.sqrt(400), rel=0.08)
    assert bootstrap_interval(values, level=0.9) == (low, high)
    assert bootstrap_interval(values, level=0.9, seed=1) != (low, high)
    assert bootstrap_interval([2.5]) == (2.5, 2.5)


def test_the_ranking_follows_its_rule() -> None:
    rows = {
        "a": {"insertion": (0.9, 0.7), "deletion": (0.1, 0.3), "pointing": (1.0,), "pixel_accuracy": (0.0,)},
        "b": {"insertion": (0.5, 0.5), "deletion": (0.2, 0.2), "pointing": (0.0,), "pixel_accuracy": (1.0,)},
        "c": {"insertion": (0.6, 0.6), "deletion": (0.4, 0.6), "pointing": (1.0,), "pixel_accuracy": (0.5,)},
    }
    found = Faithfulness(scores=rows, seconds=dict.fromkeys(rows, (1.0, 3.0)))
    # insertion: a 1, c 2, b 3; deletion: a and b share 1.5, c 3; pointing: a and c share 1.5, b 3.
    assert dict(found.ranking()) == pytest.approx({"a": 4 / 3, "c": 6.5 / 3, "b": 7.5 / 3})
    assert [name for name, _ in found.ranking()] == ["a", "c", "b"]
    assert found.pictures == {"insertion": 2, "deletion": 2, "pointing": 1, "pixel_accuracy": 1}
    assert found.estimate("a", "insertion").mean == pytest.approx(0.8)
    lines = found.table().splitlines()
    assert lines[0] == "| method | insertion ↑ | deletion ↓ | pointing ↑ | pixel accuracy | mean rank | s per picture |"
    assert [line.split(" | ")[0] for line in lines[3:]] == ["| a", "| c", "| b"]
    assert "**0.800** (0.70–0.90)" in lines[3]
    assert lines[3].endswith("| 1.33 | 2.000 |")
    assert "a" in repr(found)


def test_pairs_tell_apart_what_means_do_not() -> None:
    easy = np.random.default_rng(0).random(40)
    rows = {"better": {"insertion": tuple(easy + 0.05)}, "worse": {"insertion": tuple(easy)}}
    found = Faithfulness(scores=rows, seconds=dict.fromkeys(rows, (1.0,) * 40))
    assert found.estimate("better", "insertion").low < found.estimate("worse", "insertion").high
    difference = found.difference("better", "worse", "insertion")
    assert (difference.mean, difference.low, difference.high) == pytest.approx((0.05, 0.05, 0.05))


def red_mask() -> np.ndarray:
    mask = np.zeros((32, 32), dtype=bool)
    mask[8 * RED[0] : 8 * RED[0] + 8, 8 * RED[1] : 8 * RED[1] + 8] = True
    return mask


def test_methods_that_know_beat_those_that_do_not(planted: Predictor) -> None:
    samples = [Sample(planted_picture(seed), "red", mask=red_mask()) for seed in range(3)]
    calls: list[tuple[int, int]] = []
    found = evaluate(
        planted, samples, methods=["occlusion", "relevance"], steps=8, progress=lambda done, of: calls.append((done, of))
    )
    assert calls == [(done, 15) for done in range(1, 16)]
    assert list(found.scores) == ["occlusion", "relevance", *BASELINES]
    assert found.pictures == dict.fromkeys(MEASURES, 3)
    assert found.estimate("relevance", "pointing").mean == 1
    assert {name for name, _ in found.ranking()[:2]} == {"occlusion", "relevance"}
    for measure in ("insertion", "energy", "average_precision"):
        for baseline in BASELINES:
            assert found.difference("occlusion", baseline, measure).low > 0, (measure, baseline)
    again = evaluate(planted, samples, methods=["occlusion", "relevance"], steps=8)
    assert again.scores == found.scores


def test_an_evaluation_is_what_its_parts_say(planted: Predictor) -> None:
    samples = [Sample(planted_picture(0)), Sample(planted_picture(1), "green", boxes=np.array([[8, 24, 16, 32]]))]
    options: dict[str, Any] = {"methods": ["rollout", "saliency"], "steps": 4, "batch_size": 3}
    whole = evaluate(planted, samples, **options)
    parts = [evaluate(planted, [one], **options) for one in samples]
    joined = Faithfulness.joined([Faithfulness.from_dict(json.loads(json.dumps(one.to_dict()))) for one in parts])
    assert joined.scores == whole.scores
    assert joined.ranking() == whole.ranking()
    assert [len(joined.seconds[name]) for name in joined.scores] == [2] * 5
    assert whole.pictures == {
        "insertion": 2,
        "deletion": 2,
        "negative": 2,
        "positive": 2,
        "pointing": 1,
        "energy": 1,
    }
    pixels, _ = planted.prepare(samples[1].picture)
    explanation = explain(planted, samples[1].picture, method="saliency", target="green")
    alone = judge(planted, explanation, samples[1], steps=4, pixels=pixels)
    assert alone == pytest.approx({name: values[-1] for name, values in whole.scores["saliency"].items()}, abs=1e-6)
    with pytest.raises(UsageError, match="cannot be joined"):
        Faithfulness.joined([whole, evaluate(planted, samples, methods=["rollout"], steps=4)])
    with pytest.raises(UsageError, match="no evaluations"):
        Faithfulness.joined([])


def test_the_samples_class_is_watched_where_a_method_knows_none(planted: Predictor) -> None:
    picture = planted_picture()
    worse = 1 - int(planted(picture).indices[0])
    explanation = explain(planted, picture, method="rollout")
    found = judge(planted, explanation, Sample(picture, worse), steps=4)
    curves = insertion_deletion(planted, explanation, target=worse, steps=4)
    masked = perturbation(planted, explanation, target=worse)
    assert found == {
        "insertion": curves.insertion.auc,
        "deletion": curves.deletion.auc,
        "negative": masked.negative.auc,
        "positive": masked.positive.auc,
    }
    assert masked.positive.values[0] == 0


def test_what_is_told_but_not_ranked_leaves_no_best(planted: Predictor) -> None:
    found = evaluate(planted, [Sample(planted_picture(), mask=red_mask())], methods=[], measures=["pixel_accuracy"])
    assert found.ranking() == ()
    assert repr(found) == "Faithfulness(3 methods; pictures: pixel_accuracy on 1)"


def test_only_the_measures_asked_for_are_taken(planted: Predictor) -> None:
    sample = Sample(planted_picture(), np.int64(0), mask=red_mask(), boxes=np.array([[8, 24, 16, 32]]))
    found = evaluate(planted, [sample], methods=[], measures=["miou", "pointing"])
    assert found.pictures == {"pointing": 1, "miou": 1}
    assert list(found.scores) == list(BASELINES)


def test_options_reach_their_method(planted: Predictor) -> None:
    samples = [Sample(planted_picture())]
    options = {"rise": {"masks": 3, "seed": 5}}
    found = evaluate(planted, samples, methods=["rise"], measures=["deletion"], options=options, steps=4)
    explanation = explain(planted, samples[0].picture, method="rise", masks=3, seed=5)
    assert found.scores["rise"]["deletion"][0] == insertion_deletion(planted, explanation, steps=4).deletion.auc
    assert found.settings["options"] == options


def test_nothing_that_is_not_a_number_is_passed_on(planted: Predictor) -> None:
    picture = planted_picture()
    explanation = explain(planted, picture, method="rollout")
    heat = explanation.heat.copy()
    heat[1, 2] = np.nan
    with pytest.raises(UsageError, match="not finite"):
        replace(explanation, heat=heat)
    for call in (
        lambda: spearman(np.array([1.0, np.nan]), np.array([1.0, 2.0])),
        lambda: average_precision(np.array([np.inf]), np.array([True])),
        lambda: bootstrap_interval([1.0, float("nan")]),
        lambda: Faithfulness(scores={"a": {"miou": (float("nan"),)}}, seconds={"a": (1.0,)}),
    ):
        with pytest.raises(UsageError, match="not all finite"):
            call()


def test_what_cannot_be_evaluated_is_refused(planted: Predictor) -> None:
    picture = planted_picture()
    with pytest.raises(UsageError, match="no samples"):
        evaluate(planted, [])
    with pytest.raises(UnknownNameError, match="Did you mean 'rollout'"):
        evaluate(planted, [Sample(picture)], methods=["rolout"])
    with pytest.raises(UnknownNameError, match="Did you mean 'miou'"):
        evaluate(planted, [Sample(picture)], measures=["mIoU"])
    with pytest.raises(UnknownNameError, match="Did you mean 'masks'"):
        evaluate(planted, [Sample(picture)], methods=["rise"], options={"rise": {"mask": 3}})
    with pytest.raises(UnknownNameError, match="method 'rice'"):
        evaluate(planted, [Sample(picture)], methods=["rise"], options={"rice": {}})
    with pytest.raises(UsageError, match="No sample says where the thing is"):
        evaluate(planted, [Sample(picture)], measures=["miou"])
    with pytest.raises(UsageError, match="No measure"):
        evaluate(planted, [Sample(picture)], measures=[])
    for box in ((0, 0, 33, 10), (-1, 0, 5, 5), (0, 30, 5, 32.5)):
        with pytest.raises(UsageError, match=r"does not lie in the picture .* 32 × 32"):
            evaluate(planted, [Sample(picture, boxes=np.array([box]))], methods=[], measures=["pointing"])
    with pytest.raises(UsageError, match="16 × 32 pixels; the picture"):
        evaluate(planted, [Sample(picture, mask=red_mask()[:16])], methods=[], measures=["miou"])
    with pytest.raises(UsageError, match="The mask is empty"):
        evaluate(planted, [Sample(picture, mask=~red_mask() & red_mask())], methods=[], measures=["miou"])
    with pytest.raises(UsageError, match="There is no class 9"):
        evaluate(planted, [Sample(picture, 9)], methods=["rollout"])
    headless = vitral.load(tiny(num_classes=0), preprocessing=AS_IT_IS)
    with pytest.raises(UsageError, match="no classes"):
        evaluate(headless, [Sample(picture, 0)], methods=[])
    with pytest.raises(UsageError, match="no classes"):
        evaluate(headless, [Sample(picture)], methods=[])


def test_samples_without_sense_are_refused() -> None:
    picture = planted_picture()
    with pytest.raises(UsageError, match="A mask is boolean"):
        Sample(picture, mask=np.zeros((32, 32), dtype=np.uint8))
    for boxes in ([[3, 3, 3, 5]], [3, 3, 4, 5], [], [[0, 0, np.nan, 4]]):
        with pytest.raises(UsageError, match="Boxes are rows"):
            Sample(picture, boxes=np.array(boxes))


def test_measures_without_sense_are_refused(planted: Predictor) -> None:
    explanation = explain(planted, planted_picture(), method="rollout")
    box = np.array([[0, 0, 4, 4]])
    with pytest.raises(UsageError, match="given once"):
        pointing_game(explanation)
    with pytest.raises(UsageError, match="given once"):
        energy_inside(explanation, mask=red_mask(), boxes=box)
    for measure in (pointing_game, energy_inside, segmentation_scores):
        with pytest.raises(UsageError, match=r"A mask is boolean; one of uint8 came\. Pass a comparison such as mask > 0"):
            inspect.unwrap(measure)(explanation, mask=255 * red_mask().astype(np.uint8))  # type: ignore[operator]
    with pytest.raises(UsageError, match="tolerance"):
        pointing_game(explanation, boxes=box, tolerance=-1.0)
    with pytest.raises(UsageError, match="steps"):
        insertion_deletion(planted, explanation, steps=0)
    with pytest.raises(UsageError, match="blur"):
        insertion_deletion(planted, explanation, blur=0.0)
    with pytest.raises(UsageError, match="was not kept"):
        perturbation(planted, replace(explanation, picture=None))
    with pytest.raises(UsageError, match=r"input of \(32, 32\) pixels; one of \(16, 32\)"):
        perturbation(planted, explanation, pixels=torch.zeros(3, 16, 32))
    with pytest.raises(UsageError, match="spread"):
        centred_gaussian(planted, planted_picture(), spread=0.0)
    with pytest.raises(UsageError, match="none came"):
        bootstrap_interval([])
    with pytest.raises(UsageError, match="level"):
        bootstrap_interval([1.0], level=1.0)
    with pytest.raises(UsageError, match="at least one true"):
        average_precision(np.array([1.0]), np.array([False]))
    with pytest.raises(UsageError, match="two rows as long"):
        spearman(np.zeros(0), np.zeros(0))
    with pytest.raises(UnknownNameError, match="measure"):
        Faithfulness(scores={"a": {"iou": (1.0,)}}, seconds={"a": (1.0,)})


def test_a_published_network_is_explained_better_than_by_chance(shared: Path) -> None:
    predictor = vitral.load(shared / "weights" / "deit_tiny_patch16_224")
    samples = [Sample(str(shared / "data" / "photos" / "dog2.jpg"))]
    found = evaluate(predictor, samples, methods=["relevance"], measures=["insertion"], steps=8)
    assert found.difference("relevance", "random", "insertion").mean > 0.1


def test_every_method_can_be_evaluated(planted: Predictor) -> None:
    options = {"rise": {"masks": 8}, "smoothgrad": {"samples": 2}, "integrated_gradients": {"steps": 2, "max_steps": 2}}
    found = evaluate(planted, [Sample(planted_picture(), "red", mask=red_mask())], options=options, steps=2)
    assert list(found.scores) == [*METHODS, *BASELINES]
    assert all(set(one) == set(MEASURES) for one in found.scores.values())
