"""Patches, filters and positions against cutting by hand, scikit-learn, and loops over every pair."""

from __future__ import annotations

import math
from inspect import unwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

import vitral
from vitral.errors import UnknownNameError, UsageError
from vitral.explanation.embeddings import filter_components, patch_pictures, position_similarity
from vitral.layers.position import rotate


def tiny(**changed: Any) -> Any:
    """A small vision transformer on a grid of 4 × 3 patches."""
    parts: dict[str, Any] = {"image_size": (32, 24), "patch_size": (8, 8), "width": 32, "depth": 2, "heads": 2}
    return vitral.create_model("vit_ti16", **parts | {"mlp_width": 48, "num_classes": 5} | changed).eval()


def biased(kind: str, **changed: Any) -> Any:
    """One that tells positions by relative biases, which are not zero as they are at birth."""
    model = tiny(relative_bias=kind, **{"position": "none", "prefix_positions": 0} | changed)
    for name, values in model.named_parameters():
        if "bias" in name and name.endswith("table"):
            torch.nn.init.normal_(values)
    return model


def every_pair(grid: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    return [(*one, *other) for one in np.ndindex(grid) for other in np.ndindex(grid)]


# Patches


@pytest.mark.parametrize("size", [(32, 24), (39, 31), (8, 5)])
@pytest.mark.parametrize("patch_size", [(8, 5), (4, 4)])
def test_patches_are_cut_from_the_top_left_and_the_remainder_is_left_out(
    size: tuple[int, int], patch_size: tuple[int, int]
) -> None:
    pixels = torch.randn(3, *size)
    patches = patch_pictures(pixels, patch_size)
    height, width = patch_size
    assert patches.shape == (size[0] // height, size[1] // width, 3, height, width)
    for i, j in np.ndindex(*patches.shape[:2]):
        cut = pixels[:, i * height : (i + 1) * height, j * width : (j + 1) * width]
        assert torch.equal(patches[i, j], cut)


def test_patches_are_what_the_model_projects_token_by_token() -> None:
    model, pixels = tiny(), torch.randn(3, 37, 30)
    tokens, grid = model.patch(pixels[None])
    patches = patch_pictures(pixels, model.config.patch_size)
    assert patches.shape[:2] == grid
    weight, bias = model.patch.projection.weight, model.patch.projection.bias
    projected = patches.flatten(0, 1).flatten(1) @ weight.flatten(1).T + bias
    torch.testing.assert_close(projected, tokens[0], atol=1e-5, rtol=1e-5)


def test_one_number_means_square_patches_and_nothing_is_copied() -> None:
    pixels = torch.randn(1, 16, 24)
    patches = patch_pictures(pixels, 8)
    assert torch.equal(patches, patch_pictures(pixels, (8, 8)))
    assert patches.untyped_storage().data_ptr() == pixels.untyped_storage().data_ptr()


def test_pictures_below_one_patch_and_patches_of_nothing_are_refused() -> None:
    with pytest.raises(UsageError, match="7×20 pixels is smaller than one patch of 8×8"):
        patch_pictures(torch.zeros(3, 7, 20), 8)
    with pytest.raises(UsageError, match=r"at least 1; \(8, 0\) came"):
        patch_pictures(torch.zeros(3, 7, 20), (8, 0))


# Filters


def test_filter_components_are_scikit_learns() -> None:
    model = tiny(width=48)
    filters = model.patch.projection.weight.detach().double().flatten(1).numpy()
    theirs = PCA(n_components=10, svd_solver="full").fit(filters)
    found = filter_components(model, count=10)
    assert found.components.shape == (10, 3, 8, 8)
    np.testing.assert_allclose(found.components.reshape(10, -1), theirs.components_, atol=1e-9)
    np.testing.assert_allclose(found.shares, theirs.explained_variance_ratio_, atol=1e-12)


def test_filter_components_are_orthonormal_and_their_greatest_number_is_positive() -> None:
    flat = filter_components(tiny(), count=20).components.reshape(20, -1)
    np.testing.assert_allclose(flat @ flat.T, np.eye(20), atol=1e-10)
    assert (flat[np.arange(20), np.abs(flat).argmax(1)] > 0).all()


def test_a_planted_direction_is_the_first_component_whatever_is_added_to_all_filters() -> None:
    model = tiny()
    direction = torch.randn(3, 8, 8)
    direction /= direction.norm()
    strengths = torch.linspace(-5, 5, 32)
    with torch.no_grad():
        model.patch.projection.weight.copy_(7.0 + strengths[:, None, None, None] * direction)
    found = filter_components(model)
    assert len(found) == 1, "thirty-two filters along one line differ in one direction, and rounding is none"
    sign = torch.sign(direction.flatten()[direction.abs().argmax()]).item()
    np.testing.assert_allclose(found.components[0], sign * direction.numpy(), atol=1e-5)
    np.testing.assert_allclose(found.shares, [1.0], atol=1e-6)


def test_there_are_no_more_components_than_filters_less_one_and_all_explain_everything() -> None:
    found = filter_components(tiny(), count=1000)
    assert len(found) == 31
    assert found.shares.sum() == pytest.approx(1)
    assert (np.diff(found.shares) <= 0).all()
    assert repr(found) == "FilterComponents(31 components, 100.0% of the variance)"


def test_filters_that_cannot_be_taken_apart_are_refused() -> None:
    model = tiny()
    torch.nn.init.constant_(model.patch.projection.weight, 0.1)
    with pytest.raises(UsageError, match="all the same"):
        filter_components(model)
    torch.nn.init.constant_(model.patch.projection.weight, math.nan)
    with pytest.raises(UsageError, match="not finite"):
        filter_components(model)
    with pytest.raises(UsageError, match="A Linear has no patch embedding"):
        filter_components(torch.nn.Linear(2, 2))
    with pytest.raises(UsageError, match="at least 1; 0 came"):
        filter_components(tiny(), count=0)


# Positions


@pytest.mark.parametrize("grid", [None, (4, 3), (5, 6)])
@pytest.mark.parametrize("position", ["learned", "sinusoidal_1d", "sinusoidal_2d"])
def test_absolute_positions_are_compared_by_cosine(position: str, grid: tuple[int, int] | None) -> None:
    model = tiny(position=position)
    found = position_similarity(model, grid)
    grid = grid or (4, 3)
    vectors = model.positions(grid)[1].detach().double()[0].unflatten(0, grid).numpy()
    assert found.grid == grid
    assert found.values.shape == (*grid, *grid)
    for r, s, i, j in every_pair(grid):
        one, other = vectors[r, s], vectors[i, j]
        cosine = sum(one * other) / math.sqrt(sum(one * one) * sum(other * other))
        assert found.values[r, s, i, j] == pytest.approx(cosine, abs=1e-9)
    assert (found.kind, found.label, found.limits) == ("absolute", "Cosine similarity", (-1.0, 1.0))
    assert ("learned" in found.title) == (position == "learned")


def test_the_class_tokens_position_is_left_out() -> None:
    model = tiny()
    before = position_similarity(model).values
    with torch.no_grad():
        model.position_table[:, 0] = 100.0
    assert np.array_equal(position_similarity(model).values, before)
    with torch.no_grad():
        model.position_table[:, 1] = 100.0
    assert not np.array_equal(position_similarity(model).values, before)


@pytest.mark.parametrize("grid", [(4, 3), (2, 5)])
def test_rotary_positions_are_compared_by_what_rotation_leaves_of_a_product(grid: tuple[int, int]) -> None:
    model = tiny(rotary=True, position="none", prefix_positions=0)
    found = position_similarity(model, grid)
    # Two vectors that are equal and evenly spread, turned by the model's own rotation, and multiplied.
    patches = grid[0] * grid[1]
    even = torch.ones(1, 1, patches, 16, dtype=torch.float64)
    turned = rotate(even, model.rotary(grid, even))[0, 0].numpy()
    for n, (i, j) in enumerate(np.ndindex(grid)):
        for m, (r, s) in enumerate(np.ndindex(grid)):
            assert found.values[i, j, r, s] == pytest.approx(float(turned[n] @ turned[m]) / 16, abs=1e-6)
    assert found.kind == "rotary"
    np.testing.assert_allclose(np.einsum("ijij->ij", found.values), 1, atol=1e-6)


def test_rotary_similarity_is_the_papers_angles_channel_by_channel() -> None:
    # DINOv3, section 3.2, written out: patch centres on [−1, 1], four periods per axis and head of 16 channels.
    model, grid = tiny(rotary=True, position="none", prefix_positions=0, rotary_base=50.0), (4, 3)
    found = position_similarity(model, grid)
    for r, s, i, j in every_pair(grid):
        apart = (2 * (i - r) / grid[0], 2 * (j - s) / grid[1])
        cosines = [math.cos(2 * math.pi * side / 50.0 ** (4 * c / 16)) for side in apart for c in range(4)]
        assert found.values[r, s, i, j] == pytest.approx(sum(cosines) / 8, abs=1e-5)


@pytest.mark.parametrize("grid", [None, (3, 5)])
@pytest.mark.parametrize("head", [0, 1, -1, None])
@pytest.mark.parametrize("kind", ["shared", "per_block"])
def test_relative_biases_are_shown_as_they_are(kind: str, head: int | None, grid: tuple[int, int] | None) -> None:
    model = biased(kind)
    found = position_similarity(model, grid, layer=1, head=head)
    grid = grid or (4, 3)
    module = model.relative_bias if kind == "shared" else model.block_biases[1]
    bias = module(grid)[0].detach().double().numpy()
    for n, (r, s) in enumerate(np.ndindex(grid), start=1):
        for m, (i, j) in enumerate(np.ndindex(grid), start=1):
            expected = bias[head, n, m] if head is not None else (bias[0, n, m] + bias[1, n, m]) / 2
            assert found.values[r, s, i, j] == pytest.approx(expected, abs=1e-9)
    assert (found.kind, found.label, found.limits) == ("relative_bias", "Bias (logits)", None)
    where = "all layers" if kind == "shared" else "blocks.1"
    assert found.title == f"Relative position bias ({where}, {'mean over heads' if head is None else f'head {head % 2}'})"


def test_the_bias_of_the_trained_grid_is_the_tables_row_of_the_offset() -> None:
    model = biased("per_block")
    table = model.block_biases[0].table.detach().double().numpy()[:-3].reshape(7, 5, 2)
    values = position_similarity(model, head=1).values
    for r, s, i, j in every_pair((4, 3)):
        assert values[r, s, i, j] == table[r - i + 3, s - j + 2, 1]


def test_layers_are_found_by_number_and_name_and_the_first_is_the_default() -> None:
    model = biased("per_block")
    first, last = position_similarity(model).values, position_similarity(model, layer=-1).values
    assert np.array_equal(first, position_similarity(model, layer="blocks.0").values)
    assert np.array_equal(last, position_similarity(model, layer="blocks.1.attention").values)
    assert not np.array_equal(first, last)
    again = position_similarity(model, layer=np.int64(1), head=np.int64(1))
    assert np.array_equal(again.values, position_similarity(model, layer=1, head=1).values)
    assert again.title.endswith("(blocks.1, head 1)")


def test_of_several_kinds_the_absolute_comes_first_and_each_can_be_asked_for() -> None:
    model = biased("per_block", position="learned", prefix_positions=1, rotary=True)
    assert position_similarity(model).kind == "absolute"
    for kind in ("absolute", "rotary", "relative_bias"):
        assert position_similarity(model, kind=kind).kind == kind
    assert position_similarity(tiny(rotary=True, position="none", prefix_positions=0)).kind == "rotary"
    assert position_similarity(biased("shared")).kind == "relative_bias"
    with pytest.raises(UsageError, match=r'the same for all layers and heads\. Pass kind="relative_bias" for its biases'):
        position_similarity(model, head=0)
    assert position_similarity(model, head=0, kind="relative_bias").kind == "relative_bias"


def test_what_cannot_be_told_is_a_sentence() -> None:
    with pytest.raises(UsageError, match="This model tells no positions"):
        position_similarity(tiny(position="none", prefix_positions=0))
    with pytest.raises(UsageError, match="has no rotary positions, but absolute"):
        position_similarity(tiny(), kind="rotary")
    with pytest.raises(UnknownNameError, match="Did you mean 'rotary'"):
        unwrap(position_similarity)(tiny(), kind="rotari")  # past the tests' own check of annotations
    with pytest.raises(UsageError, match="same for all layers and heads"):
        position_similarity(tiny(), layer=0)
    with pytest.raises(UsageError, match="There is no head 2: the model has 2"):
        position_similarity(biased("shared"), head=2)
    with pytest.raises(UsageError, match="There is no layer 2"):
        position_similarity(biased("per_block"), layer=2)
    with pytest.raises(UsageError, match=r"both at least 1; \(0, 3\) came"):
        position_similarity(tiny(), (0, 3))
    with pytest.raises(UsageError, match="A Linear does not tell positions"):
        position_similarity(torch.nn.Linear(2, 2))
    model = tiny()
    torch.nn.init.zeros_(model.position_table)
    with pytest.raises(UsageError, match="zero or not finite, so it has no cosine"):
        position_similarity(model)


def test_a_model_in_half_precision_is_compared_in_double() -> None:
    model = tiny().bfloat16()
    found = position_similarity(model)
    np.testing.assert_allclose(np.einsum("ijij->ij", found.values), 1, atol=1e-12)
    assert filter_components(model).components.dtype == np.float64
    assert repr(found) == "PositionSimilarity(Position embeddings (learned): cosine similarity, 4 × 3 patches)"


def test_neighbours_are_alike_in_a_trained_network(shared: Path) -> None:
    # The finding of figure 7 of the ViT paper: closer patches have more similar embeddings; rows and columns show.
    model = vitral.load_model(shared / "weights" / "deit_tiny_patch16_224")
    values = position_similarity(model).values
    patch = values[7, 7]
    assert patch[7, 7] == pytest.approx(1)
    near = np.mean([patch[6, 7], patch[8, 7], patch[7, 6], patch[7, 8]])
    far = np.mean([patch[0, 0], patch[0, 13], patch[13, 0], patch[13, 13]])
    assert near > far + 0.3
    assert patch[7].mean() > patch[3].mean() + 0.1
    assert patch[:, 7].mean() > patch[:, 3].mean() + 0.1
