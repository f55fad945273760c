"""Rollout against all paths counted one by one."""

from __future__ import annotations

import inspect
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.explanation.conftest import question, tiny
from tests.parity.peers import pictures
from vitral.errors import UnknownNameError, UsageError
from vitral.explanation.capture import capture
from vitral.explanation.maps import fused
from vitral.explanation.rollout import roll_out, rollout


def random_maps(layers: int, tokens: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, tokens, tokens, generator=generator).mul(3).softmax(-1) for _ in range(layers)]


def test_one_layer_is_the_mean_of_attention_and_identity() -> None:
    [attention] = random_maps(1, 5)
    assert torch.allclose(roll_out([attention]), (attention + torch.eye(5)) / 2, atol=1e-7)


def test_it_sums_over_all_paths() -> None:
    """Rollout's own definition: the flow from token a to token z is the sum over all paths of the product of their edges."""
    maps = random_maps(3, 4)
    edges = [((one + torch.eye(4)) / 2).double().numpy()[0] for one in maps]
    by_paths = np.zeros((4, 4))
    for path in itertools.product(range(4), repeat=4):
        by_paths[path[3], path[0]] += edges[0][path[1], path[0]] * edges[1][path[2], path[1]] * edges[2][path[3], path[2]]
    assert np.abs(roll_out(maps)[0].numpy() - by_paths).max() < 1e-6


@given(
    layers=st.integers(1, 4),
    tokens=st.integers(1, 12),
    discard=st.floats(0, 0.999),
    seed=st.integers(0, 99),
)
def test_rows_sum_to_one_whatever_is_discarded(layers: int, tokens: int, discard: float, seed: int) -> None:
    flow = roll_out(random_maps(layers, tokens, seed), discard=discard)
    assert flow.sum(-1).sub(1).abs().max() < 1e-5
    assert flow.min() >= 0


def test_what_is_discarded_is_the_weakest() -> None:
    attention = torch.tensor([[[0.5, 0.3, 0.15, 0.05]] * 4])
    kept = torch.tensor([0.625, 0.375, 0.0, 0.0])
    assert torch.allclose(roll_out([attention], discard=0.5)[0], (kept.expand(4, 4) + torch.eye(4)) / 2, atol=1e-7)


@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
@pytest.mark.parametrize("start", [0, 1, -1])
@pytest.mark.parametrize("discard", [0.0, 0.9])
@pytest.mark.parametrize(
    "options", [{}, {"pool": "mean"}, {"class_token": False, "prefix_positions": 0, "pool": "attention"}]
)
def test_heat_is_what_the_answer_took(fusion: str, start: int, discard: float, options: dict[str, object]) -> None:
    model = tiny(**options)
    pixels = pictures(32, 48, 2)
    found = rollout(question(model, pixels), fusion=fusion, start=start, discard=discard).values  # type: ignore[arg-type]
    with capture(model) as maps:
        model(pixels)
    fuse = {"mean": np.mean, "max": np.max, "min": np.min}[fusion]
    inside = [name for name in maps.layers if name.startswith("blocks")][start:]
    prefix, flow = model.config.prefix, np.eye(24 + model.config.prefix)[None]
    for name in inside:
        one = fuse(maps[name].numpy().astype(np.float64), axis=1)
        if discard:
            weakest = np.sort(one, axis=-1)[..., int(one.shape[-1] * discard) - 1][..., None]
            one = np.where(one <= weakest, 0, one)
        one = one / one.sum(-1, keepdims=True)
        flow = (one + np.eye(one.shape[-1])) / 2 @ flow
    if model.config.pool == "attention":
        read = (fuse(maps["pool"].numpy().astype(np.float64), axis=1) @ flow)[:, 0]
    else:
        read = flow[:, 0] if model.config.pool == "class" else flow[:, prefix:].mean(1)
    assert found.shape == (2, 4, 6)
    assert np.abs(found.numpy().reshape(2, -1) - read[:, prefix:]).max() < 1e-5


def test_bad_options_are_refused() -> None:
    asked = question(tiny(), pictures(32, 48))
    with pytest.raises(UsageError, match="start=3, but the model has 3 layers, numbered 0 to 2"):
        rollout(asked, start=3)
    with pytest.raises(UsageError, match="discard must be from 0 to below 1"):
        rollout(asked, discard=1.0)
    with pytest.raises(UnknownNameError, match="Did you mean 'mean'"):
        inspect.unwrap(fused)(random_maps(1, 2)[0], "meen")
    with pytest.raises(UsageError, match="no attention maps"):
        roll_out([])
