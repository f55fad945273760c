"""Compact transformers are looked into as all others: their maps, their pool, and where a planted reason lies."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import vitral
from tests.explanation.conftest import AS_IT_IS
from tests.parity.compact import answer, random_state
from vitral.checkpoints.load import load_model
from vitral.data.transforms import Preprocessing
from vitral.explanation.capture import capture
from vitral.explanation.embeddings import position_similarity
from vitral.explanation.explain import explain
from vitral.explanation.geometry import TokenGeometry
from vitral.explanation.methods import METHODS
from vitral.explanation.report import explanation_page
from vitral.explanation.statistics import head_statistics
from vitral.models.backbones.cct import CCT
from vitral.pipelines.predictor import Predictor


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return random_state(width=128, depth=3, mlp=96, tokens=64, classes=7)


@pytest.fixture(scope="module")
def model(state: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> CCT:
    path = tmp_path_factory.mktemp("compact") / "cct.pth"
    torch.save(state, path)
    loaded = load_model(path)
    assert isinstance(loaded, CCT)
    loaded.record = replace(loaded.record, preprocessing=AS_IT_IS)
    return loaded


def test_the_maps_are_those_of_plain_arithmetic(model: CCT, state: dict[str, torch.Tensor]) -> None:
    pixels = torch.randn(2, 3, 32, 32)
    expected: dict[str, torch.Tensor] = {}
    answer(state, pixels, heads=2, maps=expected)
    with torch.no_grad(), capture(model) as maps:
        output = model(pixels)
        told = output.logits
    assert maps.layers == ("blocks.0.attention", "blocks.1.attention", "blocks.2.attention", "pool")
    assert maps.pool == "pool"
    for name, found in expected.items():
        assert maps[name].shape == ((2, 1, 1, 64) if name == "pool" else (2, 2, 64, 64))
        torch.testing.assert_close(maps[name].sum(-1), torch.ones(maps[name].shape[:-1]))
        torch.testing.assert_close(maps[name].double(), found, atol=1e-6, rtol=1e-4)
    with capture(model, gradients=True):
        torch.testing.assert_close(model(pixels.requires_grad_()).logits.detach(), told, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_stream_is_the_sum_of_what_is_captured(model: CCT) -> None:
    parts = ("residual_pre", "attention_output", "residual_mid", "mlp_output", "residual_post", "attention_input")
    with capture(model, 1, parts=parts) as seen:
        model(torch.randn(1, 3, 32, 32))
    block = model.blocks[1]
    found = {part: seen[1, part] for part in parts}
    torch.testing.assert_close(found["attention_input"], block.norm1(found["residual_pre"]))
    torch.testing.assert_close(found["residual_mid"], block.norm2(found["residual_pre"] + found["attention_output"]))
    torch.testing.assert_close(found["residual_post"], found["residual_mid"] + found["mlp_output"])


OPTIONS = {"occlusion": {"stride": 2, "window": 3}, "rise": {"masks": 20}, "smoothgrad": {"samples": 2}}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(32, 32), (27, 38)], ids=str)
def test_every_method_answers_at_any_size(method: str, size: tuple[int, int], model: CCT) -> None:
    predictor = vitral.load(model)
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    target = 4 if METHODS[method].needs_target else None
    found = explain(predictor, picture, method=method, target=target, **OPTIONS.get(method, {}))
    per_patch = found.cell == (4, 4)
    assert found.heat.shape == (model.config.grid_of(size) if per_patch else size)
    assert found.heat.std() > 0
    assert found.on_picture().shape == size
    wide, high = found.draw().size
    assert wide / high == pytest.approx(size[1] / size[0], rel=0.01)


def test_integrated_gradients_are_complete(model: CCT) -> None:
    """Sundararajan et al. 2017, proposition 1: heat sums to the difference between the picture's score and grey's."""
    predictor = vitral.load(model)
    picture = np.random.default_rng(1).integers(100, 150, (32, 32, 3), dtype=np.uint8)
    found = explain(predictor, picture, method="integrated_gradients", target=3)
    pixels, _ = predictor.prepare(picture)
    with torch.no_grad():
        logits = model(torch.stack([pixels, torch.zeros_like(pixels)])).logits[:, 3]
    assert found.heat.sum() == pytest.approx((logits[0] - logits[1]).item(), rel=0.06)


def planted() -> Predictor:
    """Class 0 is "red", class 1 is "green": the convolution sees either colour, and the pool looks for both."""
    model = vitral.create_model(
        "cct_7_3x1_32", image_size=(32, 32), width=8, heads=2, depth=1, mlp_width=8, num_classes=2
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.zero_()
        filters = model.tokenizer.convolutions[0].weight
        filters[0, :2, 1, 1], filters[1, :2, 1, 1] = torch.tensor([1.0, -1.0]), torch.tensor([-1.0, 1.0])
        model.position_table[..., 2:4] = torch.tensor([2.0, -2.0])  # so that a norm keeps grey small
        _, _, values = model.blocks[0].attention.qkv.weight.chunk(3)
        values.copy_(0.1 * torch.eye(8))
        model.blocks[0].attention.projection.weight.copy_(torch.eye(8))
        model.pool.score.weight[0, :2] = 3.0
        model.head.weight[0, 0] = model.head.weight[1, 1] = 4.0
    model.record = replace(model.record, labels=("red", "green"), preprocessing=AS_IT_IS)
    return vitral.load(model)


@pytest.mark.parametrize(
    "method", ["grad_cam", "relevance", "legrad", "saliency", "integrated_gradients", "occlusion", "logit_lens"]
)
def test_a_planted_reason_is_found(method: str) -> None:
    picture = (127 + np.random.default_rng(0).normal(0, 4, (32, 32, 3))).clip(0, 255).astype(np.uint8)
    places = {"red": (6, 20), "green": (22, 8)}
    for channel, (row, column) in enumerate(places.values()):
        picture[row : row + 4, column : column + 4, channel] = 220
    predictor = planted()
    for label, (row, column) in places.items():
        found = explain(predictor, picture, method=method, target=label)
        x, y = found.peak
        # Convolution and pooling see a pixel or two beyond a cell.
        assert column - 2 <= x <= column + 6, (label, found.peak)
        assert row - 2 <= y <= row + 6, (label, found.peak)


def test_attention_and_rollout_show_what_the_pool_looks_for() -> None:
    picture = np.full((32, 32, 3), 127, np.uint8)
    picture[10:14, 20:24, 0] = 220
    predictor = planted()
    for method in ("attention", "rollout"):
        heat = explain(predictor, picture, method=method).heat
        assert heat.shape == (16, 16)
        assert heat.sum() == pytest.approx(1, rel=1e-4)
        hot = np.argwhere(heat > heat.mean() + heat.std())
        assert hot.min(0).tolist() == [5, 10]
        assert hot.max(0).tolist() in ([6, 11], [7, 12])  # the pooling's window reaches one pixel further


def test_cells_tile_the_input_and_end_where_it_does(model: CCT) -> None:
    predictor = vitral.load(model)
    _, seen = predictor.prepare(np.zeros((30, 41, 3), np.uint8))
    geometry = TokenGeometry.of(model, model.config.grid_of((30, 41)), seen.frame)
    covered = np.zeros((30, 41), int)
    for token, (x0, y0, x1, y1) in enumerate(geometry.rectangles.astype(int)):
        covered[y0:y1, x0:x1] += 1
        assert geometry.token_at((x0 + x1) / 2, (y0 + y1) / 2) == token
    assert (covered == 1).all()
    assert geometry.rectangle(-1) == (40, 28, 41, 30)
    assert geometry.token_at(40.9, 29.9) == len(geometry) - 1
    assert geometry.token_at(41.5, 29.9) is geometry.token_at(40.9, 30.5) is None
    # Where the strides divide the input, a cell is the input divided by the grid.
    assert geometry.rectangle(0) == (0, 0, 4, 4)


def test_the_page_and_the_statistics_take_it(model: CCT) -> None:
    model.record = replace(model.record, preprocessing=Preprocessing(size=(32, 32)))
    predictor = vitral.load(model)
    picture = np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8)
    told = explanation_page(predictor, picture, top_k=1)
    assert "Attention pooling" in told
    assert "in 8 × 8 patches" in told
    statistics = head_statistics(model, torch.randn(2, 3, 32, 32))
    assert statistics.distance.shape == (3, 2)
    table = model.position_table[0].detach().double()
    cosines = torch.nn.functional.cosine_similarity(table[:, None], table[None], dim=-1)
    similar = position_similarity(model)
    assert similar.kind == "absolute"
    np.testing.assert_allclose(similar.values.reshape(64, 64), cosines.numpy(), atol=1e-6)
