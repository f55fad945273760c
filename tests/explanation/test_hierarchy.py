"""Explanations of hierarchies and of networks without attention: by hand, by dense products, and on every family."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import vitral
from tests.explanation.conftest import AS_IT_IS
from tests.models.harness import stirred
from vitral.checkpoints.save import save_model
from vitral.cli.explain import explain as explain_command
from vitral.errors import UnknownNameError, UsageError
from vitral.explanation.capture import capture
from vitral.explanation.explain import explain
from vitral.explanation.methods import METHODS
from vitral.explanation.question import Question
from vitral.explanation.relevance import grad_cam, legrad, relevance
from vitral.explanation.report import explanation_page
from vitral.explanation.rollout import rollout
from vitral.explanation.statistics import head_distances, head_statistics, token_norms
from vitral.layers.attention import ScaledDotProduct
from vitral.layers.block import Block
from vitral.layers.mlp import Mlp
from vitral.models.catalogue import create_model
from vitral.models.network import MapConfig, Network
from vitral.models.output import EncoderOutput
from vitral.pipelines.predictor import Predictor

SMALL: dict[str, dict[str, Any]] = {
    "swin_ti": {"widths": (8, 16, 32, 64), "depths": (2, 1, 1, 1), "heads": (1, 2, 4, 4)},
    "pvt_v2_b0": {"widths": (8, 8, 10, 16), "depths": (1, 1, 1, 1), "mlp_ratios": (2, 2, 2, 2)},
    "cvt_13": {"widths": (8, 12, 12), "depths": (1, 1, 1), "heads": (1, 2, 3)},
    "xcit_nano_12_p16": {"width": 32, "depth": 2, "heads": 2, "mlp_width": 48, "class_depth": 1},
    "resnet18": {"stem_width": 8, "stage_channels": (8, 12, 16, 20), "depths": (1, 1, 1, 1), "block": "basic"},
    "vgg11": {"stage_channels": (4, 4, 8, 8, 8), "classifier_width": 16},
    "mixer_s16": {"width": 24, "depth": 2, "token_hidden": 8, "channel_hidden": 32},
}
"""A small network of each kind of looking: windows, fewer keys, strided keys, channels, convolutions, none at all."""

SIZE = (75, 130)


def small(name: str) -> Network:
    model = stirred(create_model(name, num_classes=5, image_size=(64, 64), **SMALL[name]))
    model.record = replace(model.record, preprocessing=AS_IT_IS)
    return model


@pytest.fixture(scope="module")
def networks() -> dict[str, Predictor]:
    return {name: vitral.load(small(name)) for name in SMALL}


def asked(model: Any, pixels: Tensor, target: list[int] | None = None) -> Question:
    with torch.no_grad():
        output = model(pixels)
    return Question(
        model=model,
        pixels=pixels,
        grid=output.grid,
        patch_size=model.config.patch_size,
        prefix=output.prefix,
        target=None if target is None else torch.tensor(target),
    )


# -- by hand ------------------------------------------------------------------------------------------------------------


class Told(nn.Module):
    """An attention whose map is told."""

    def __init__(self, map_: list[list[float]]) -> None:
        super().__init__()
        self.product = ScaledDotProduct(1.0)
        self.map = torch.tensor(map_)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        nothing, values = torch.zeros_like(tokens)[:, None], tokens[:, None]
        mixed: Tensor = self.product(nothing, nothing, values, self.map.log()[None, None])
        return mixed[:, 0]


@dataclass(frozen=True, kw_only=True)
class TwoStagesConfig(MapConfig):
    image_size: tuple[int, int] = (2, 4)
    num_classes: int = 2
    width: int = 3
    depth: int = 2

    @property
    def stride(self) -> int:
        return 2


class TwoStages(Network):
    """A grid of 2 × 4 pixels, an attention; then the mean of 2 × 2 as one token of 1 × 2, an attention."""

    def __init__(self, first: list[list[float]], second: list[list[float]]) -> None:
        super().__init__(TwoStagesConfig())
        self.blocks = nn.ModuleList(Block(Told(one), Mlp(3, 4), (nn.Identity(), nn.Identity())) for one in (first, second))
        self.head = nn.Linear(3, 2)

    def forward(self, pixels: Tensor) -> EncoderOutput:
        tokens = self.blocks[0](pixels.flatten(2).transpose(1, 2), (2, 4))
        merged = nn.functional.avg_pool2d(tokens.transpose(1, 2).unflatten(2, (2, 4)), 2).flatten(2).transpose(1, 2)
        tokens = self.blocks[1](merged, (1, 2))
        pooled = tokens.mean(1)
        return EncoderOutput(tokens, (1, 2), 0, pooled, self.head(pooled), ())

    def reset_head(self, num_classes: int) -> None:
        raise NotImplementedError


def rows(count: int, **asks: int) -> list[list[float]]:
    """Tokens that attend to themselves, but for some (t3=7: token 3 attends to token 7)."""
    found = torch.eye(count)
    for name, other in asks.items():
        found[int(name[1:])] = torch.eye(count)[other]
    return found.tolist()


def test_rollout_of_two_stages_by_hand() -> None:
    """Half of the left cell looks right, and of the first stage half of token 0 is token 7 (bottom right).

    Answer: mean of both cells, (1/2)(1/2, 1/2) + (1/2)(0, 1) = (1/4, 3/4). A cell is the mean of its four tokens: 1/16 on
    the left, 3/16 on the right. Token 0 hands half of its 1/16 to token 7.
    """
    model = TwoStages(rows(8, t0=7), rows(2, t0=1)).eval()
    heat = rollout(asked(model, torch.rand(1, 3, 2, 4))).values
    assert heat.shape == (1, 2, 4)
    expected = torch.tensor([[2, 2, 6, 6], [2, 2, 6, 6]]) / 32
    expected[0, 0] -= 1 / 32
    expected[1, 3] += 1 / 32
    torch.testing.assert_close(heat[0], expected)
    last = rollout(asked(model, torch.rand(1, 3, 2, 4)), start=1).values
    torch.testing.assert_close(last, torch.tensor([[[0.25, 0.75]]]))


# -- by dense products --------------------------------------------------------------------------------------------------


def merging(fine: tuple[int, int], coarse: tuple[int, int]) -> np.ndarray:
    """Every coarse token (row) as the mean of the fine ones in its 2 × 2 places that there are."""
    found = np.zeros((coarse[0] * coarse[1], fine[0] * fine[1]))
    for y in range(fine[0]):
        for x in range(fine[1]):
            found[y // 2 * coarse[1] + x // 2, y * fine[1] + x] = 1
    return found / found.sum(1, keepdims=True)


def dense(maps: list[np.ndarray], grids: list[tuple[int, int]], *, mean: bool) -> np.ndarray:
    """All layers' maps multiplied, from the finest tokens on: (A + I) / 2, or I + A; the mean row of what comes out."""
    flow, before = np.eye(grids[0][0] * grids[0][1])[None], grids[0]
    for map_, grid in zip(maps, grids, strict=True):
        if grid != before:
            flow = merging(before, grid) @ flow
        identity = np.eye(map_.shape[-1])
        flow = ((map_ / map_.sum(-1, keepdims=True) + identity) / 2 if mean else identity + map_) @ flow
        before = grid
    found: np.ndarray = flow.mean(1)
    return found


@pytest.mark.parametrize("size", [(56, 56), (61, 43)])
def test_rollout_through_windows_and_mergings(size: tuple[int, int]) -> None:
    model = small("swin_ti")
    pixels = torch.randn(2, 3, *size)
    with torch.no_grad(), capture(model) as seen:
        model(pixels)
    grids = [seen.grid(name) for name in seen.layers]
    assert seen.layers[0] == "stages.0.blocks.0.attention"
    assert grids == [(-(-size[0] // stride), -(-size[1] // stride)) for stride in (4, 4, 8, 16, 32)]
    expected = dense([map_.mean(1).double().numpy() for map_ in seen], grids, mean=True)
    heat = rollout(asked(model, pixels)).values
    assert heat.shape[1:] == grids[0]
    np.testing.assert_allclose(heat.flatten(1).numpy(), expected, atol=1e-6)
    torch.testing.assert_close(heat.sum((1, 2)), torch.ones(2))


def test_relevance_through_windows_and_mergings() -> None:
    model = small("swin_ti")
    pixels = torch.randn(2, 3, 61, 43)
    with capture(model, gradients=True) as seen:
        logits = model(pixels.clone().requires_grad_()).logits
    maps = list(seen)
    found = torch.autograd.grad(logits[0, 3] + logits[1, 1], maps)
    carried = [(by * map_).detach().clamp(min=0).mean(1).double().numpy() for by, map_ in zip(found, maps, strict=True)]
    expected = dense(carried, [seen.grid(name) for name in seen.layers], mean=False)
    heat = relevance(asked(model, pixels, [3, 1])).values.flatten(1).numpy()
    assert expected.std() > 0
    np.testing.assert_allclose(heat, expected, atol=1e-4 * np.abs(expected).max())


def test_rollout_where_keys_are_fewer() -> None:
    """A key of 2 × 2 tokens, remainders left out, hands on to each of its four a quarter of what is paid to it."""
    model = small("pvt_v2_b0")
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad(), capture(model) as seen:
        model(pixels)
    grids = [seen.grid(name) for name in seen.layers]
    assert [seen.asked_grid(name) for name in seen.layers] == [(2, 2)] * 4
    maps = []
    for map_, (high, wide) in zip(seen, grids, strict=True):
        spread = map_.mean(1).double().unflatten(-1, (2, 2)) / (high * wide // 4)
        maps.append(spread.repeat_interleave(high // 2, -2).repeat_interleave(wide // 2, -1).flatten(-2).numpy())
    expected = dense(maps, grids, mean=True)
    np.testing.assert_allclose(rollout(asked(model, pixels)).values.flatten(1).numpy(), expected, atol=1e-6)


def test_legrad_reads_the_last_stage_alone() -> None:
    model = small("swin_ti")
    pixels = torch.randn(1, 3, 64, 96)
    with capture(model, -1, parts=("attention", "residual_post"), gradients=True) as seen:
        model(pixels.clone().requires_grad_())
    score = model.read_tokens(seen[-1, "residual_post"].mean(1, keepdim=True))[0, 0, 2]
    [by] = torch.autograd.grad(score, [seen[-1]])
    expected = by.clamp(min=0).mean((1, 2)).view(1, 2, 3)
    torch.testing.assert_close(legrad(asked(model, pixels, [2])).values, expected, atol=1e-5, rtol=1e-3)


# -- class activation maps ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "swin_ti", "pvt_v2_b0", "mixer_s16"])
def test_grad_cam_is_the_class_activation_map(name: str) -> None:
    """Zhou et al. 2016, equation 2: where a mean is classified, a cell speaks for a class by weights times channels."""
    model: Any = small(name)
    pixels = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        output = model(pixels)
    cells = output.grid[0] * output.grid[1]
    likest = (output.tokens.mean(1) @ model.head.weight.T).argmax(1)  # classes that something speaks for
    weights = model.head.weight[likest].detach()
    expected = torch.einsum("bnd,bd->bn", output.tokens, weights).clamp(min=0) / cells
    found = grad_cam(asked(model, pixels, likest.tolist())).values
    assert found.shape[1:] == output.grid
    assert expected.std() > 0
    torch.testing.assert_close(found.flatten(1), expected, atol=1e-5 * float(expected.max()), rtol=1e-4)


@pytest.mark.parametrize(("layer", "stage"), [(0, 0), (2, 2), (-2, 2), ("stages.1", 1), (3, 3)])
def test_grad_cam_of_a_stage(layer: int | str, stage: int) -> None:
    model: Any = small("resnet18")
    pixels = torch.randn(2, 3, 61, 43)
    [map_] = model.pyramid(pixels, [stage]).maps
    map_ = map_.detach().requires_grad_()
    x = map_
    for later in model.stages[stage + 1 :]:
        x = later(x)
    output = model.read_out(x.flatten(2).transpose(1, 2), tuple(x.shape[2:]))
    [by] = torch.autograd.grad(output.logits[0, 1] + output.logits[1, 4], [map_])
    expected = (by.mean((2, 3), keepdim=True) * map_).sum(1).clamp(min=0).detach()
    found = grad_cam(asked(model, pixels, [1, 4]), layer=layer).values
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.max()), rtol=1e-3)
    assert not any(module._forward_hooks for module in model.modules())


def test_maps_that_are_not_there() -> None:
    question = asked(small("resnet18"), torch.randn(1, 3, 64, 64), [0])
    with pytest.raises(UsageError, match="no map 4 in a ResNet: it has 4, numbered 0 to 3"):
        grad_cam(question, layer=4)
    with pytest.raises(UnknownNameError, match=r"Did you mean 'stages\.1'"):
        grad_cam(question, layer="stage.1")
    with pytest.raises(UsageError, match="head gave no map"):
        grad_cam(asked(small("mixer_s16"), torch.randn(1, 3, 64, 64), [0]), layer="head")


# -- every family -------------------------------------------------------------------------------------------------------

OPTIONS = {
    "occlusion": {"window": 2, "stride": 2},
    "rise": {"masks": 4, "cells": 3},
    "smoothgrad": {"samples": 1},
    "integrated_gradients": {"steps": 4, "max_steps": 4},
}
LOOKING = ("swin_ti", "pvt_v2_b0", "cvt_13", "xcit_nano_12_p16")
UNREADABLE = {"cvt_13", "xcit_nano_12_p16", "vgg11"}
"""Their classifiers cannot read one token alone."""


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_on_every_family(name: str, method: str, networks: dict[str, Predictor]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    predictor = networks[name]
    if METHODS[method].attention and name not in LOOKING:
        with pytest.raises(
            UsageError, match=r"follows attention between tokens.*'grad_cam'.*'integrated_gradients'.*'rise'"
        ):
            explain(predictor, picture, method=method)
        return
    if method in ("logit_lens", "legrad") and name in UNREADABLE:
        with pytest.raises(UsageError, match="cannot read one token alone"):
            explain(predictor, picture, method=method)
        return
    found = explain(predictor, picture, method=method, **OPTIONS.get(method, {}))
    assert found.on_picture().shape == SIZE
    assert found.heat.max() > 0
    assert found.heat.std() > 0
    if found.cell != (1, 1):
        assert found.geometry.grid == found.heat.shape
        assert found.geometry.patch_size == found.cell
        for cells, high, side in zip(found.heat.shape, found.cell, SIZE, strict=True):
            assert abs(cells - side / high) <= 1
    finest = {"swin_ti": (19, 33), "pvt_v2_b0": (19, 33)}
    if method in ("rollout", "relevance") and name in finest:
        assert found.heat.shape == finest[name]


def test_attention_of_a_stage_from_one_of_its_tokens(networks: dict[str, Predictor]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    predictor = networks["swin_ti"]
    found = explain(predictor, picture, method="attention", layer=0, query=(8, 9))
    assert (found.heat.shape, found.cell) == ((19, 33), (4, 4))
    lit = np.argwhere(found.heat > 0)
    assert (lit.min(0).tolist(), lit.max(0).tolist()) == ([7, 7], [13, 13]), "its window, of 7 × 7 tokens"
    assert found.heat.sum() == pytest.approx(1, rel=1e-5)
    with pytest.raises(UsageError, match="grid of 19 × 33"):
        explain(predictor, picture, method="attention", layer=0, query=(19, 0))
    with pytest.raises(UsageError, match="channels attend to each other"):
        explain(networks["xcit_nano_12_p16"], picture, method="attention", layer=0)
    with pytest.raises(UsageError, match="the classifier reads those of the last stage"):
        explain(predictor, picture, method="logit_lens", layer=0)


@pytest.mark.parametrize("name", SMALL)
def test_a_page_of_every_family(name: str, networks: dict[str, Predictor]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (45, 70, 3), dtype=np.uint8)
    html = explanation_page(networks[name], picture, top_k=1)
    told = json.loads(re.search(r'<script[^>]*id="told"[^>]*>(.*?)</script>', html, re.DOTALL)[1])  # type: ignore[index]
    titles = [METHODS[one].title for one in METHODS if f"<p>{METHODS[one].title} (" in html]
    if name not in LOOKING:
        assert told["layers"] == []
        assert titles == ["Grad-CAM", "Saliency"]
        assert "Every layer, every head" not in html
        assert "attends to anything" in html
        return
    assert titles == ["Rollout", "Relevance", "Grad-CAM"]
    looks = [layer["heads"] for layer in told["layers"]]
    if name == "swin_ti":
        assert looks == [1, 1, 2, 4, 4]
        assert told["stages"] == [[12, 18], [6, 9], [3, 5], [2, 3]]
        assert "In 5 layers of 1 to 4 heads" in html
    cells = -(-told["grid"][0] // told["blocks"]["asking"]) * -(-told["grid"][1] // told["blocks"]["asking"])
    for layer in told["layers"]:
        rows = 1 if layer["pool"] else len(told["prefix"]) + cells
        assert layer["peaks"]["shape"] == [layer["heads"], rows]


def test_a_page_keeps_its_budget_on_a_coarser_grid(networks: dict[str, Predictor]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (45, 70, 3), dtype=np.uint8)
    html = explanation_page(networks["swin_ti"], picture, top_k=1, budget=12 * 15 * 15)
    told = json.loads(re.search(r'<script[^>]*id="told"[^>]*>(.*?)</script>', html, re.DOTALL)[1])  # type: ignore[index]
    assert told["grid"] == [3, 5]
    assert told["blocks"] == {"asking": 1, "asked": 1}
    assert "All maps are shown on 3 × 5" in html


def test_rows_on_the_pages_grid_stay_shares(networks: dict[str, Predictor]) -> None:
    from vitral.explanation.packing import _on_page

    model: Any = networks["pvt_v2_b0"].model
    with torch.no_grad(), capture(model) as seen:
        model(torch.randn(1, 3, *SIZE))
    for name in seen.layers:
        for grid in ((19, 33), (5, 9), (3, 5)):
            found = _on_page(seen[name], seen, name, grid, 0)
            assert found.shape[2:] == (grid[0] * grid[1],) * 2
            torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:-1]))


@pytest.mark.parametrize("name", ["swin_ti", "resnet18"])
def test_the_command_takes_it(name: str, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(picture)
    folder = save_model(small(name), tmp_path / "model")
    png, page = tmp_path / "heat.png", tmp_path / "page.html"
    explain_command(str(picture), str(folder), out=page, png=png, method=None, target=None, layer=None, head=None, top_k=1)
    assert Image.open(png).size[0] > 0
    assert page.read_text().startswith("<!DOCTYPE html>")


# -- numbers ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_distances_in_pixels_of_every_stage() -> None:
    model: Any = small("swin_ti")
    pixels = torch.randn(2, 3, 56, 60)
    with capture(model) as seen:
        model(pixels)
    found = head_distances(model, pixels)
    assert [len(heads) for heads in found] == [1, 1, 2, 4, 4]
    for name, stride, heads in zip(seen.layers, (4, 4, 8, 16, 32), found, strict=True):
        places = np.indices(seen.grid(name)).reshape(2, -1).T * stride
        apart = np.linalg.norm(places[:, None] - places[None], axis=-1)
        map_ = seen[name].double().numpy()
        expected = ((map_ * apart).sum(-1) / map_.sum(-1)).mean((0, 2))
        np.testing.assert_allclose(heads, expected, rtol=1e-5)
    with pytest.raises(UsageError, match=r"stages\.1\.blocks\.0\.attention has 2 of 56"):
        head_statistics(model, pixels)
    one = head_statistics(model, pixels, layers=[0, 1])
    assert one.layers == seen.layers[:2]
    assert one.tokens == 14 * 15
    np.testing.assert_allclose(one.distance, np.stack(found[:2]))


@torch.no_grad()
def test_distances_to_fewer_keys() -> None:
    """A key of 4 × 4 tokens lies in the middle of them."""
    model: Any = small("pvt_v2_b0")
    pixels = torch.randn(1, 3, 64, 64)
    with capture(model, 1) as seen:
        model(pixels)
    places = np.indices((8, 8)).reshape(2, -1).T * 8.0
    keys = np.array([[12.0, 12.0], [12.0, 44.0], [44.0, 12.0], [44.0, 44.0]])
    apart = np.linalg.norm(places[:, None] - keys[None], axis=-1)
    expected = (seen[1].double().numpy() * apart).sum(-1).mean((0, 2))
    np.testing.assert_allclose(head_distances(model, pixels)[1], expected, rtol=1e-5)


def test_norms_of_a_stages_tokens() -> None:
    model: Any = small("swin_ti")
    pixels = torch.randn(2, 3, 56, 60)
    found = token_norms(model, pixels, layer=0)
    assert (found.grid, found.prefix) == ((14, 15), ())
    with torch.no_grad(), capture(model, 0, parts="residual_post") as seen:
        model(pixels)
    np.testing.assert_allclose(found.patches.reshape(2, -1), seen[0].norm(dim=-1).numpy(), rtol=1e-5)
