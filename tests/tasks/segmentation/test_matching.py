"""Matching by masks against all permutations; points against reading maps everywhere."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from vitral.base.boxes import Objects
from vitral.errors import TrainingError
from vitral.models.output import PredictedMasks
from vitral.tasks.segmentation.matching import MaskCosts, match_masks
from vitral.tasks.segmentation.points import random_points, sampled, sampled_masks, uncertain_points

CLASSES = 3


def drawn(seed: int, queries: int, counts: list[int], layers: int) -> tuple[list[PredictedMasks], list[Objects]]:
    chance = torch.Generator().manual_seed(seed)
    said = [
        PredictedMasks(
            torch.randn(len(counts), queries, CLASSES + 1, generator=chance),
            3 * torch.randn(len(counts), queries, 4, 6, generator=chance),
        )
        for _ in range(layers)
    ]
    targets = [
        Objects(
            torch.randint(0, CLASSES, (count,), generator=chance),
            torch.rand(count, 4, generator=chance),
            torch.rand(count, 8, 12, generator=chance) < 0.3,
        )
        for count in counts
    ]
    return said, targets


def cost(layer: PredictedMasks, place: int, query: int, objects: Objects, one: int, costs: MaskCosts) -> float:
    """What a query costs as an object, in the words of the papers, at every cell of the network's map."""
    masks = objects.masks
    assert masks is not None
    wanted = masks[one, ::2, ::2].double()  # the nearest pixel of every cell
    said = layer.masks[place, query].double()
    p = said.sigmoid()
    right = torch.where(wanted > 0, p, 1 - p)
    error = -right.log()
    if costs.error == "focal":
        error = torch.where(wanted > 0, 0.25, 0.75) * (1 - right) ** 2 * error
    dice = 1 - (2 * (p * wanted).sum() + 1) / (p.sum() + wanted.sum() + 1)
    by_class = -layer.logits[place, query].double().softmax(-1)[objects.labels[one]]
    return float(costs.mask * error.mean() + costs.dice * dice + costs.classes * by_class)


@settings(max_examples=30)
@given(
    st.integers(0, 10_000),
    st.lists(st.integers(0, 3), min_size=1, max_size=3),
    st.integers(3, 4),
    st.sampled_from(["focal", "cross_entropy"]),
)
def test_no_other_assignment_is_cheaper(seed: int, counts: list[int], queries: int, masks: str) -> None:
    costs = MaskCosts(classes=2.0, mask=5.0, dice=5.0, error=masks)  # type: ignore[arg-type]
    layers, targets = drawn(seed, queries, counts, 2)
    pairs = match_masks(layers, targets, costs)
    assert [len(one) for one in pairs] == [len(counts)] * 2
    for layer, of_layer in zip(layers, pairs, strict=True):
        for place, (rows, chosen) in enumerate(of_layer):
            count = counts[place]
            assert sorted(chosen.tolist()) == list(range(count))
            assert rows.tolist() == sorted(set(rows.tolist()))
            table = [[cost(layer, place, q, targets[place], k, costs) for k in range(count)] for q in range(queries)]
            ours = sum(table[q][k] for q, k in zip(rows.tolist(), chosen.tolist(), strict=True))
            least = min(sum(table[q][k] for k, q in enumerate(some)) for some in permutations(range(queries), count))
            assert ours == pytest.approx(least, abs=1e-5)


def test_layers_of_other_sizes_are_matched_each_for_itself() -> None:
    (one, other), targets = drawn(3, 4, [2, 3], 2)
    finer = PredictedMasks(other.logits, F.interpolate(other.masks, scale_factor=2))
    pairs = match_masks([one, finer], targets, MaskCosts())
    for single, of_layer in (([one], pairs[0]), ([finer], pairs[1])):
        again = match_masks(single, targets, MaskCosts())[0]
        assert [tuple(x.tolist() for x in pair) for pair in again] == [tuple(x.tolist() for x in pair) for pair in of_layer]


def test_more_objects_than_queries_are_refused() -> None:
    layers, targets = drawn(1, 3, [1, 4], 1)
    with pytest.raises(TrainingError, match="Picture 1 of the batch shows 4 objects, but the model has 3 queries"):
        match_masks(layers, targets, MaskCosts())
    huge = [PredictedMasks(layers[0].logits, layers[0].masks * 0 + 3e38)]
    with pytest.raises(TrainingError, match="so large that what they cost is not finite"):
        match_masks(huge, [targets[0], targets[0]], MaskCosts())


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 9))
def test_points_of_masks_are_those_of_numbers(seed: int, height: int, width: int) -> None:
    chance = torch.Generator().manual_seed(seed)
    masks = torch.rand(4, height, width, generator=chance) < 0.5
    points = torch.rand(3, 20, 2, generator=chance)
    points[:, :4] = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.5, 0.5]])
    chosen = torch.tensor([2, 0, 2])
    expected = sampled(masks[chosen].float()[:, None], points)[:, 0]
    torch.testing.assert_close(sampled_masks(masks, points, chosen), expected, atol=2e-5, rtol=0)
    shared = sampled_masks(masks, points[:1], chosen)
    torch.testing.assert_close(shared, sampled(masks[chosen].float()[None], points[:1])[0], atol=2e-5, rtol=0)


def test_middles_of_cells_are_cells() -> None:
    maps = torch.randn(1, 2, 3, 5)
    y, x = torch.meshgrid((torch.arange(3) + 0.5) / 3, (torch.arange(5) + 0.5) / 5, indexing="ij")
    points = torch.stack([x, y], -1).reshape(1, 15, 2)
    torch.testing.assert_close(sampled(maps, points)[0], maps[0].flatten(1), atol=1e-5, rtol=0)
    torch.testing.assert_close(sampled_masks(maps[0] > 0, points, torch.arange(2)), (maps[0] > 0).flatten(1).float())


def test_most_points_are_where_the_mask_is_in_doubt() -> None:
    ramp = torch.linspace(-8, 8, 64).expand(2, 64, 64).clone()  # in doubt in the middle, from left to right
    points = uncertain_points(ramp, 400, 3.0, 0.75)
    assert points.shape == (2, 400, 2)
    assert 0 <= points.min() <= points.max() <= 1
    off = (points[..., 0] - 0.5).abs()
    # A quarter of 1200 points evenly spread lies within .125; along the edge, where there is nothing beyond, is doubt too.
    assert (off[:, :300] < 0.15).float().mean() > 0.95
    assert off[:, 300:].max() > 0.4
    torch.testing.assert_close(uncertain_points(ramp, 50, 3.0, 1.0).shape, (2, 50, 2))
    everywhere = uncertain_points(ramp, 4000, 1.0, 0.0)
    assert abs(everywhere.mean().item() - 0.5) < 0.01


def test_random_points_come_from_torchs_chance() -> None:
    torch.manual_seed(5)
    one = random_points(2, 3, torch.device("cpu"))
    torch.manual_seed(5)
    torch.testing.assert_close(torch.rand(2, 3, 2), one)
