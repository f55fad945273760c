"""Deformable attention against the paper's equations, written out cell by cell, and against transformers'."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.deformable_detr.configuration_deformable_detr import DeformableDetrConfig
from transformers.models.deformable_detr.modeling_deformable_detr import DeformableDetrMultiscaleDeformableAttention
from transformers.models.rt_detr_v2.configuration_rt_detr_v2 import RTDetrV2Config
from transformers.models.rt_detr_v2.modeling_rt_detr_v2 import RTDetrV2MultiscaleDeformableAttention

from vitral.errors import UsageError
from vitral.layers import deformable
from vitral.layers.deformable import DeformableAttention, Sampling, WeightedSamples

GRIDS = ((5, 7), (3, 2), (1, 1))
CELLS = sum(rows * columns for rows, columns in GRIDS)


def stirred(layer: DeformableAttention) -> DeformableAttention:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0, 0.5)
    return layer.eval()


def samples(count: int = 4, points: int = 3, beyond: float = 0.4) -> tuple[Tensor, Tensor, Tensor]:
    """Values, locations that lie beyond the edges too, and weights, of two pictures and three heads of five channels."""
    values = torch.randn(2, CELLS, 3, 5)
    locations = torch.rand(2, count, 3, len(GRIDS), points, 2) * (1 + 2 * beyond) - beyond
    weights = torch.rand(2, count, 3, len(GRIDS), points)
    return values, locations, weights


def looked_up(values: Tensor, locations: Tensor, weights: Tensor, sampling: Sampling) -> Tensor:
    """Cell by cell, in plain Python."""
    batch, count, heads, _, points, _ = locations.shape
    found = torch.zeros(batch, count, heads, values.shape[-1])
    for b, n, h in itertools.product(range(batch), range(count), range(heads)):
        start = 0
        for level, (rows, columns) in enumerate(GRIDS):
            for point in range(points):
                x, y = locations[b, n, h, level, point].tolist()
                if sampling == "discrete":
                    j = min(max(math.floor(x * columns + 0.5), 0), columns - 1)
                    i = min(max(math.floor(y * rows + 0.5), 0), rows - 1)
                    shares = {(i, j): 1.0}
                else:
                    x, y = x * columns - 0.5, y * rows - 0.5
                    corners = itertools.product((math.floor(y), math.floor(y) + 1), (math.floor(x), math.floor(x) + 1))
                    shares = {(i, j): (1 - abs(y - i)) * (1 - abs(x - j)) for i, j in corners}
                for (i, j), share in shares.items():
                    if 0 <= i < rows and 0 <= j < columns:
                        found[b, n, h] += weights[b, n, h, level, point] * share * values[b, start + i * columns + j, h]
            start += rows * columns
    return found


@pytest.mark.parametrize("sampling", ["bilinear", "discrete"])
def test_places_are_looked_up_as_by_hand(sampling: Sampling) -> None:
    given = samples()
    expected = looked_up(*given, sampling)
    layer = WeightedSamples(sampling)
    torch.testing.assert_close(layer(*given, GRIDS), expected, atol=1e-5, rtol=1e-5)
    elsewhere = {"bilinear": deformable._on_maps, "discrete": deformable._gathered}[sampling]
    torch.testing.assert_close(elsewhere(*given, GRIDS), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sampling", ["bilinear", "discrete"])
def test_many_places_are_looked_up_in_pieces(sampling: Sampling, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, given = WeightedSamples(sampling), samples(count=23)
    whole = layer(*given, GRIDS)
    calls: list[int] = []
    in_bags = deformable._in_bags

    def counted(values: Tensor, locations: Tensor, *rest: Any) -> Tensor:
        calls.append(locations.shape[1])
        return in_bags(values, locations, *rest)

    monkeypatch.setattr(deformable, "_in_bags", counted)
    monkeypatch.setattr(deformable, "_PIECE", 5 * given[2][:, :1].numel())
    with torch.no_grad():
        pieces = layer(*given, GRIDS)
    assert calls == [5, 5, 5, 5, 3]
    assert torch.equal(pieces, whole)
    assert torch.equal(layer(*given, GRIDS), whole)  # with a gradient recorded: at once
    assert calls[5:] == [23]


def test_both_roads_have_the_same_gradients() -> None:
    given = [one.requires_grad_() for one in samples()]
    weight = torch.randn(2, 4, 3, 5)
    slopes = [
        torch.autograd.grad((road(*given, GRIDS) * weight).sum(), given) for road in (WeightedSamples(), deformable._on_maps)
    ]
    for ours, expected in zip(*slopes, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
        assert expected.abs().max() > 0


def test_slopes_are_those_of_the_numbers() -> None:
    """Numerically, in double precision, away from the lines between cells where there is no slope."""
    values, locations, weights = (one.double() for one in samples(count=2, points=1, beyond=0.0))
    values, locations, weights = values[:1, :, :2, :2], locations[:1, :, :2], weights[:1, :, :2]
    sides = torch.tensor([[columns, rows] for rows, columns in GRIDS], dtype=torch.float64)[:, None]
    cells = locations * sides
    locations = (cells.floor() + 0.1 + 0.3 * (cells - cells.floor())) / sides
    given = [one.requires_grad_() for one in (values, locations, weights)]
    assert torch.autograd.gradcheck(lambda *x: WeightedSamples()(*x, GRIDS), given, eps=1e-6, atol=1e-6)


def test_far_away_lies_nothing_and_what_is_no_number_stays_none() -> None:
    values, locations, weights = samples()
    for far in (1e6, -1e12, 1e30, torch.inf, -torch.inf):
        assert torch.equal(
            WeightedSamples()(values, torch.full_like(locations, far), weights, GRIDS), torch.zeros(2, 4, 3, 5)
        )
    locations[0, 1, 2, 0, 1, 0] = torch.nan
    found = WeightedSamples()(values, locations, weights, GRIDS)
    assert found[0, 1, 2].isnan().all()
    assert found.isnan().sum() == 5


def peer(width: int, heads: int, points: int) -> DeformableDetrMultiscaleDeformableAttention:
    config = DeformableDetrConfig(d_model=width, num_feature_levels=len(GRIDS))
    return DeformableDetrMultiscaleDeformableAttention(config, num_heads=heads, n_points=points)


def given_the_weights_of(theirs: Any, ours: DeformableAttention) -> None:
    names = {
        "sampling_offsets": ours.offsets,
        "attention_weights": ours.weights,
        "value_proj": ours.value,
        "output_proj": ours.projection,
    }
    with torch.no_grad():
        for name, layer in names.items():
            getattr(theirs, name).load_state_dict(layer.state_dict())


def asked(theirs: Any, asking: Tensor, reference: Tensor, memory: Tensor, present: Tensor | None = None) -> Any:
    shapes = torch.tensor(GRIDS)
    starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])
    return theirs(
        asking,
        attention_mask=present,
        encoder_hidden_states=memory,
        reference_points=reference,
        spatial_shapes=shapes,
        spatial_shapes_list=list(GRIDS),
        level_start_index=starts,
    )


@torch.no_grad()
@pytest.mark.parametrize("coordinates", [2, 4], ids=["points", "boxes"])
def test_it_is_transformers(coordinates: int) -> None:
    ours, theirs = stirred(DeformableAttention(32, 4, len(GRIDS), 3)), peer(32, 4, 3)
    given_the_weights_of(theirs, ours)
    asking, memory = torch.randn(2, 6, 32), torch.randn(2, CELLS, 32)
    reference, present = torch.rand(2, 6, len(GRIDS), coordinates), torch.rand(2, CELLS) > 0.3
    for seen in (None, present):
        expected, weights = asked(theirs, asking, reference, memory, seen)
        caught: list[Tensor] = []
        hook = ours.samples.register_forward_hook(lambda _, inputs, __, into=caught: into.extend(inputs[1:3]))
        torch.testing.assert_close(ours(asking, reference, memory, GRIDS, seen), expected, atol=1e-5, rtol=1e-5)
        hook.remove()
        locations, counted = caught
        assert locations.shape == (2, 6, 4, len(GRIDS), 3, 2)
        torch.testing.assert_close(counted, weights, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(counted.sum((-1, -2)), torch.ones(2, 6, 4))
    for one in (reference[:, :, :1], reference[:1]):  # the same on all maps, or in all pictures
        expected = asked(theirs, asking, one.expand_as(reference), memory)[0]
        torch.testing.assert_close(ours(asking, one, memory, GRIDS), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("sampling", ["bilinear", "discrete"])
@pytest.mark.parametrize("reach", [0.5, 0.8])
def test_it_is_transformers_second_rt_detr(sampling: Sampling, reach: float) -> None:
    ours = stirred(DeformableAttention(32, 4, len(GRIDS), 2, sampling=sampling, reach=reach))
    config = RTDetrV2Config(
        d_model=32,
        decoder_attention_heads=4,
        decoder_n_points=2,
        decoder_n_levels=len(GRIDS),
        decoder_method={"bilinear": "default"}.get(sampling, sampling),
        decoder_offset_scale=reach,
    )
    theirs = RTDetrV2MultiscaleDeformableAttention(config)
    given_the_weights_of(theirs, ours)
    asking, memory, boxes = torch.randn(2, 6, 32), torch.randn(2, CELLS, 32), torch.rand(2, 6, 1, 4)
    expected = asked(theirs, asking, boxes, memory)[0]
    torch.testing.assert_close(ours(asking, boxes, memory, GRIDS), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_maps_may_have_different_numbers_of_places() -> None:
    """The same as if all had most of them, the ones too many with a weight that softmax makes nothing of."""
    few, many = stirred(DeformableAttention(32, 4, 3, (2, 4, 1), reach=0.5)), DeformableAttention(32, 4, 3, 4)
    assert few.weights.out_features == 4 * 7
    there = torch.tensor([place < count for count in few.points for place in range(4)])
    many.value.load_state_dict(few.value.state_dict())
    many.projection.load_state_dict(few.projection.state_dict())
    many.weights.weight.zero_()
    many.weights.bias.fill_(-torch.inf)
    many.weights.weight.unflatten(0, (4, 12))[:, there] = few.weights.weight.unflatten(0, (4, 7))
    many.weights.bias.unflatten(0, (4, 12))[:, there] = few.weights.bias.unflatten(0, (4, 7))
    scale = torch.tensor([4 / count for count in few.points for _ in range(count)])[:, None]  # in boxes, steps are shorter
    many.offsets.weight.unflatten(0, (4, 12, 2))[:, there] = few.offsets.weight.unflatten(0, (4, 7, 2)) * scale[..., None]
    many.offsets.bias.unflatten(0, (4, 12, 2))[:, there] = few.offsets.bias.unflatten(0, (4, 7, 2)) * scale
    asking, memory, boxes = torch.randn(2, 6, 32), torch.randn(2, CELLS, 32), torch.rand(2, 6, 1, 4)
    torch.testing.assert_close(few(asking, boxes, memory, GRIDS), many(asking, boxes, memory, GRIDS), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_it_begins_as_transformers_does() -> None:
    ours, theirs = DeformableAttention(32, 8, 3, 4), peer(32, 8, 4)
    directions = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]  # figure 5 of the authors' page
    expected = torch.tensor([[[(x * k, y * k) for k in range(1, 5)] for _ in range(3)] for x, y in directions]).float()
    torch.testing.assert_close(ours.offsets.bias.view(8, 3, 4, 2), expected, atol=1e-5, rtol=0)
    for layer in (ours.offsets.weight, ours.weights.weight, ours.weights.bias, ours.value.bias, ours.projection.bias):
        assert not layer.any()
    assert ours.value.weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.1)
    given_the_weights_of(theirs, ours)  # which has as many
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


@torch.no_grad()
def test_half_precision_knows_where_it_looks() -> None:
    ours = stirred(DeformableAttention(32, 4, len(GRIDS), 3))
    asking, memory, points = torch.randn(2, 6, 32), torch.randn(2, CELLS, 32), torch.rand(2, 6, 1, 2)
    whole = ours(asking, points, memory, GRIDS)
    caught: list[Tensor] = []
    ours.samples.register_forward_hook(lambda _, inputs, __: caught.append(inputs[1]))
    half = ours.to(torch.bfloat16)(asking.bfloat16(), points, memory.bfloat16(), GRIDS)
    assert half.dtype == torch.bfloat16
    assert caught[0].dtype == torch.float32
    assert ((half.float() - whole).norm() / whole.norm()).item() < 4e-2


def test_it_can_be_exported_and_says_the_same() -> None:
    for sampling in ("bilinear", "discrete"):
        ours = stirred(DeformableAttention(32, 4, len(GRIDS), 3, sampling=sampling))
        given = torch.randn(2, 6, 32), torch.rand(2, 6, 1, 4), torch.randn(2, CELLS, 32), GRIDS
        program = torch.export.export(ours, given)
        assert not any("embedding_bag" in str(node.target) for node in program.graph.nodes)
        torch.testing.assert_close(program.module()(*given), ours(*given), atol=1e-5, rtol=1e-5)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match="10 channels cannot be shared among 4 heads"):
        DeformableAttention(10, 4, 3)
    with pytest.raises(UsageError, match=r"at least 1 for each of 3 levels; \(4, 4\) came"):
        DeformableAttention(12, 4, 3, (4, 4))
    with pytest.raises(UsageError, match="at least 1 for each of 3 levels; 0 came"):
        DeformableAttention(12, 4, 3, 0)
    layer = DeformableAttention(12, 4, 3)
    asking, memory, points = torch.randn(1, 2, 12), torch.randn(1, CELLS, 12), torch.rand(1, 2, 1, 2)
    with pytest.raises(UsageError, match="asks 3 maps; 2 of 41 cells together and a memory of 42 came"):
        layer(asking, points, memory, GRIDS[:2])
    with pytest.raises(UsageError, match="points of 2 numbers or at boxes of 4; 3 came"):
        layer(asking, torch.rand(1, 2, 1, 3), memory, GRIDS)
