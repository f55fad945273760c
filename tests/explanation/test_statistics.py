"""Distances, entropies, likeness and norms against closed forms, loops over every pair, and planted outliers."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import Module

import vitral
from vitral.errors import UsageError
from vitral.explanation.capture import capture
from vitral.explanation.statistics import (
    OUTLIER_RATIO,
    attention_distance,
    attention_entropy,
    head_similarity,
    head_statistics,
    token_norms,
)
from vitral.layers.attention import ScaledDotProduct


def tiny(**changed: Any) -> Any:
    """A small vision transformer on a grid of 4 × 3 patches."""
    parts: dict[str, Any] = {"image_size": (32, 24), "patch_size": (8, 8), "width": 32, "depth": 3, "heads": 2}
    return vitral.create_model("vit_ti16", **parts | {"mlp_width": 48, "num_classes": 5} | changed).eval()


def looped_distance(attention: Any, grid: tuple[int, int], patch_size: tuple[int, int], prefix: int) -> float:
    """Mean attention distance of one map, pair by pair."""
    rows = []
    for n, (r, s) in enumerate(np.ndindex(grid), start=prefix):
        weighted = total = 0.0
        for m, (i, j) in enumerate(np.ndindex(grid), start=prefix):
            weight = float(attention[n][m])
            weighted += weight * math.hypot((r - i) * patch_size[0], (s - j) * patch_size[1])
            total += weight
        rows.append(weighted / total)
    return sum(rows) / len(rows)


# Distance


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize(("grid", "patch_size"), [((4, 4), (16, 16)), ((3, 5), (8, 12)), ((1, 6), (14, 14))])
def test_distance_is_the_loop_over_all_pairs(grid: tuple[int, int], patch_size: tuple[int, int], prefix: int) -> None:
    tokens = prefix + grid[0] * grid[1]
    maps = (3 * torch.randn(2, 3, tokens, tokens)).softmax(-1)
    found = attention_distance(maps, grid, patch_size, prefix)
    assert found.shape == (2, 3)
    for b, h in np.ndindex(2, 3):
        assert found[b, h].item() == pytest.approx(looped_distance(maps[b, h], grid, patch_size, prefix), rel=1e-5)


def test_distance_of_uniform_attention_on_a_line_is_known() -> None:
    # Mean distance between two of n places on a line, spaced by w: w · (n² − 1) / 3n.
    n, w = 9, 16
    maps = torch.full((1, 1, n, n), 1 / n)
    expected = w * (n * n - 1) / (3 * n)
    assert attention_distance(maps, (1, n), (8, w)).item() == pytest.approx(expected, rel=1e-6)
    assert attention_distance(maps, (n, 1), (w, 8)).item() == pytest.approx(expected, rel=1e-6)


def test_a_patch_that_looks_at_itself_looks_no_distance_and_one_that_looks_right_looks_one_patch() -> None:
    assert attention_distance(torch.eye(12)[None, None], (3, 4), (16, 16)).item() == 0
    right = torch.zeros(1, 1, 4, 4)
    right[0, 0, torch.arange(3), torch.arange(1, 4)] = 1
    right[0, 0, 3, 2] = 1
    assert attention_distance(right, (1, 4), (7, 13)).item() == pytest.approx(13)


def test_attention_to_the_class_token_does_not_count_and_what_it_asks_does_not_either() -> None:
    maps = (3 * torch.randn(1, 2, 13, 13)).softmax(-1)
    before = attention_distance(maps, (3, 4), (16, 16), prefix=1)
    sink = maps.clone()
    sink[..., 1:, 1:] *= 0.1  # nine tenths of each patch's attention move to the class token
    sink[..., 1:, 0] = 1 - sink[..., 1:, 1:].sum(-1)
    sink[..., 0, :] = 1 / 13
    torch.testing.assert_close(attention_distance(sink, (3, 4), (16, 16), prefix=1), before)


def test_a_patch_that_attends_the_class_token_alone_is_left_out_but_not_all_of_them() -> None:
    maps = torch.full((1, 1, 5, 5), 0.2)
    expected = looped_distance(maps[0, 0], (1, 4), (8, 8), 1)
    others = [sum(abs(n - m) * 8 for m in range(4)) / 4 for n in range(4)]
    assert expected == pytest.approx(sum(others) / 4)
    maps[0, 0, 2] = torch.tensor([1.0, 0, 0, 0, 0])
    found = attention_distance(maps, (1, 4), (8, 8), prefix=1).item()
    assert found == pytest.approx((others[0] + others[2] + others[3]) / 3)
    maps[0, 0, :, 0], maps[0, 0, :, 1:] = 1.0, 0.0
    with pytest.raises(UsageError, match="none of its attention to patches"):
        attention_distance(maps, (1, 4), (8, 8), prefix=1)


def test_maps_of_other_tokens_are_refused() -> None:
    with pytest.raises(UsageError, match=r"between 13 tokens are needed \(1 before 3 × 4 patches\); they are 1 × 13"):
        attention_distance(torch.ones(1, 1, 1, 13), (3, 4), (8, 8), prefix=1)
    with pytest.raises(UsageError, match="are 12 × 12"):
        attention_distance(torch.ones(1, 1, 12, 12), (3, 4), (8, 8), prefix=1)


# Entropy


@pytest.mark.parametrize("m", [1, 2, 197])
def test_entropy_of_uniform_attention_is_the_logarithm(m: int) -> None:
    assert attention_entropy(torch.full((1, 2, 3, m), 1 / m)).numpy() == pytest.approx(math.log(m), abs=1e-5)


def test_entropy_of_certainty_is_zero_and_zeros_count_nothing() -> None:
    assert attention_entropy(torch.eye(7)[None, None]).item() == 0
    halves = torch.zeros(1, 1, 4, 6)
    halves[..., :2] = 0.5
    assert attention_entropy(halves).item() == pytest.approx(math.log(2))


def test_entropy_is_the_mean_over_asking_tokens() -> None:
    maps = torch.randn(2, 3, 5, 8).softmax(-1)
    found = attention_entropy(maps)
    for b, h in np.ndindex(2, 3):
        rows = [-sum(float(a) * math.log(float(a)) for a in row) for row in maps[b, h]]
        assert found[b, h].item() == pytest.approx(sum(rows) / 5, rel=1e-5)


# Likeness


def test_heads_are_compared_by_the_cosine_of_their_maps() -> None:
    maps = torch.randn(2, 3, 5, 8).softmax(-1)
    found = head_similarity(maps)
    assert found.shape == (2, 3, 3)
    for b, one, other in np.ndindex(2, 3, 3):
        x, y = maps[b, one].flatten().double().numpy(), maps[b, other].flatten().double().numpy()
        assert found[b, one, other].item() == pytest.approx(x @ y / np.sqrt((x @ x) * (y @ y)), abs=1e-6)


def test_equal_heads_are_wholly_alike_and_heads_that_share_nothing_are_not() -> None:
    one, other = torch.zeros(2, 3, 4).unbind()
    one[:, 0], other[:, 3] = 1, 1
    found = head_similarity(torch.stack([one, one, other])[None])[0]
    torch.testing.assert_close(found, torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]]))
    with pytest.raises(UsageError, match="is zero, so it has no cosine"):
        head_similarity(torch.stack([one, one * 0])[None])


def test_numbers_that_are_not_finite_do_not_pass() -> None:
    maps = torch.full((1, 1, 4, 4), 0.25)
    maps[0, 0, 1, 1] = math.nan
    for measure in (lambda: attention_distance(maps, (2, 2), (8, 8)), lambda: attention_entropy(maps)):
        with pytest.raises(UsageError, match="not finite"):
            measure()
    with pytest.raises(UsageError, match="not finite"):
        head_similarity(maps)


# A whole network


class Pooling(Module):
    """A network whose only attention pools."""

    def __init__(self) -> None:
        super().__init__()
        whole = tiny(pool="attention")
        self.config, self.pool = whole.config, whole.pool
        self.eval()


@pytest.mark.parametrize(
    "changed", [{}, {"registers": 2}, {"class_token": False, "prefix_positions": 0, "pool": "attention"}]
)
@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_a_networks_statistics_are_those_of_its_maps(changed: dict[str, Any], batch_size: int) -> None:
    model, pixels = tiny(**changed), 3 * torch.randn(3, 3, 32, 40)
    found = head_statistics(model, pixels, batch_size=batch_size)
    with torch.no_grad(), capture(model) as maps:
        model(pixels)
    assert found.layers == ("blocks.0.attention", "blocks.1.attention", "blocks.2.attention")
    assert found.distance.shape == found.entropy.shape == (3, 2)
    assert found.similarity.shape == (3, 2, 2)
    for place, name in enumerate(found.layers):
        of_layer = maps[name]
        for head in range(2):
            loops = [looped_distance(of_layer[b, head], (4, 5), (8, 8), model.config.prefix) for b in range(3)]
            assert found.distance[place, head] == pytest.approx(sum(loops) / 3, rel=1e-5)
        np.testing.assert_allclose(found.entropy[place], attention_entropy(of_layer).mean(0), rtol=1e-5)
        np.testing.assert_allclose(found.similarity[place], head_similarity(of_layer).mean(0), rtol=1e-5)
    assert (found.tokens, found.pictures) == (model.config.prefix + 20, 3)
    assert (found.entropy <= math.log(found.tokens) + 1e-5).all()
    assert repr(found) == "HeadStatistics(3 layers of 2 heads, 3 pictures)"


def test_the_model_is_left_as_it_was_and_no_map_is_kept() -> None:
    model, pixels = tiny(), torch.randn(2, 3, 32, 24)
    before = model(pixels).logits
    found = head_statistics(model, pixels)
    assert torch.equal(model(pixels).logits, before)
    assert not any(module._forward_hooks for module in model.modules())
    assert found.distance.dtype == found.entropy.dtype == found.similarity.dtype == np.float64


def test_maps_of_one_layer_at_a_time_are_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    compute, alive = ScaledDotProduct.weights, []

    def watched(*given: Any) -> Tensor:
        gc.collect()
        alive.append([each.shape for each in gc.get_objects() if type(each) is Tensor and each.shape[-2:] == (13, 13)])
        return compute(*given)

    monkeypatch.setattr(ScaledDotProduct, "weights", watched)
    head_statistics(tiny(depth=4), torch.randn(3, 3, 32, 24), batch_size=2)
    assert alive == [[]] * 8, "four layers of two batches, each computed when the maps of the one before were gone"


def test_what_cannot_be_measured_is_a_sentence() -> None:
    model, pixels = tiny(), torch.randn(1, 3, 32, 24)
    with pytest.raises(UsageError, match="no pictures"):
        head_statistics(model, pixels[:0])
    with pytest.raises(UsageError, match="at least 1; 0 came"):
        head_statistics(model, pixels, batch_size=0)
    with pytest.raises(UsageError, match=r"Call model\.eval\(\) first"):
        head_statistics(model.train(), pixels)
    with pytest.raises(UsageError, match=r"Call model\.eval\(\) first"):
        token_norms(model, pixels)
    with pytest.raises(UsageError, match="no blocks whose heads"):
        head_statistics(Pooling(), pixels)


# Norms


@contextmanager
def planted(model: Any, layer: int, picture: int, token: int | slice, length: float) -> Iterator[None]:
    """A token behind one block, or several, drawn out to a length, all others brought to length 10."""

    def draw_out(_: Module, inputs: Any, output: Tensor) -> Tensor:
        lengths = torch.full(output.shape[:2], 10.0)
        lengths[picture, token] = length
        return output / output.norm(dim=-1, keepdim=True) * lengths[..., None]

    handle = model.blocks[layer].register_forward_hook(draw_out)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("layer", [-1, 0, "blocks.1"])
def test_a_planted_outlier_is_found_where_it_lies(layer: int | str) -> None:
    model, pixels = tiny(registers=2), torch.randn(2, 3, 32, 24)
    number = {-1: 2, 0: 0, "blocks.1": 1}[layer]
    with planted(model, number, picture=1, token=3 + 7, length=200):
        found = token_norms(model, pixels, layer=layer)
    assert found.layer == f"blocks.{number}.attention"
    assert found.threshold == pytest.approx(OUTLIER_RATIO * 10)
    assert np.argwhere(found.outliers).tolist() == [[1, 2, 1]]
    assert found.norms.shape == (2, 15)
    assert found.patches[1, 2, 1] == pytest.approx(200, rel=1e-5)
    assert found.prefix == ("class", "register 1", "register 2")
    assert "1 of 24 patches above 30" in repr(found)


def test_long_tokens_before_the_patches_are_no_outliers_and_do_not_move_the_threshold() -> None:
    model, pixels = tiny(registers=20), torch.randn(1, 3, 32, 24)
    with planted(model, 2, picture=0, token=slice(0, 21), length=1e6):
        found = token_norms(model, pixels)
    assert found.threshold == pytest.approx(30)
    assert not found.outliers.any()
    np.testing.assert_allclose(found.norms[0, :21], 1e6, rtol=1e-5)


def test_norms_are_those_of_the_stream_before_the_last_norm() -> None:
    model, pixels = tiny(), torch.randn(2, 3, 40, 24)
    found = token_norms(model, pixels)
    with torch.no_grad():
        tokens = model.embed(pixels)[0]
        for block in model.blocks:
            tokens = block(tokens)
    np.testing.assert_allclose(found.norms, tokens.square().sum(-1).sqrt(), rtol=1e-5)
    assert found.patches.shape == (2, 5, 3)
    # Behind the last norm they would say nothing: all of one length, √d.
    np.testing.assert_allclose(model.norm(tokens).detach().norm(dim=-1), math.sqrt(32), rtol=1e-2)


def test_a_threshold_can_be_given_and_must_be_positive() -> None:
    model, pixels = tiny(), torch.randn(1, 3, 32, 24)
    with planted(model, 2, picture=0, token=5, length=100):
        assert token_norms(model, pixels, threshold=150.0).outliers.sum() == 0
        assert token_norms(model, pixels, threshold=9.9).outliers.sum() == 12
    for wrong in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UsageError, match="threshold must be a positive number"):
            token_norms(model, pixels, threshold=wrong)


def test_the_default_threshold_is_not_moved_by_a_few_outliers() -> None:
    model, pixels = tiny(), torch.randn(1, 3, 32, 24)
    for length in (100, 1e4):
        with planted(model, 2, picture=0, token=5, length=length):
            assert token_norms(model, pixels).threshold == pytest.approx(30)


def test_the_histogram_counts_every_patch_once() -> None:
    model, pixels = tiny(), torch.randn(3, 3, 32, 24)
    with planted(model, 2, picture=0, token=5, length=100):
        counts, edges = token_norms(model, pixels).histogram(bins=20)
    expected = np.zeros(20)
    expected[19] = 1  # 100, the last bin's end
    expected[2 if counts[2] else 1] = 35  # 10, on an edge up to rounding
    assert counts.tolist() == expected.tolist()
    np.testing.assert_allclose(edges, np.linspace(0, 100, 21), rtol=1e-5)
    with pytest.raises(UsageError, match="bins must be"):
        token_norms(model, pixels).histogram(bins=0)


def test_tokens_that_are_not_finite_do_not_pass() -> None:
    model, pixels = tiny(), torch.randn(1, 3, 32, 24)
    pixels[0, 0, 0, 0] = math.nan
    with pytest.raises(UsageError, match="not finite"):
        token_norms(model, pixels)
    with pytest.raises(UsageError, match="not finite"):
        head_statistics(model, pixels)


def test_early_layers_of_a_trained_network_look_near_and_late_ones_far(shared: Path) -> None:
    # The finding of figure 7 right: the reach of heads grows with depth, and early ones differ among themselves.
    predictor = vitral.load(shared / "weights" / "deit_tiny_patch16_224")
    names = [shared / "data" / "photos" / name for name in ("dog1.jpg", "dog2.jpg", "astronaut.jpg")]
    pixels = torch.stack([predictor.prepare(name)[0] for name in names])
    found = head_statistics(predictor.model, pixels)
    assert found.distance[:2].min() < 40 < found.distance[-4:].min()
    assert np.ptp(found.distance[:4]) > 2 * np.ptp(found.distance[-4:])
    assert not token_norms(predictor.model, pixels).outliers.any(), "networks this small have no outliers (section 2.1)"
