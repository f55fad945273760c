"""A network whose reasons are known: every method that explains a class must point at them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import vitral
from tests.explanation.conftest import GREEN, RED, planted_model, planted_picture
from vitral.explanation.methods import METHODS
from vitral.pipelines.predictor import Predictor

CLASS_SPECIFIC = [name for name, method in METHODS.items() if method.needs_target]
OPTIONS: dict[str, dict[str, Any]] = {"occlusion": {"window": 1}, "rise": {"masks": 1500}}
PLACES = [((3, 1), (1, 2)), ((0, 0), (3, 3)), ((2, 3), (2, 0)), ((0, 2), (1, 1))]


def inside(peak: tuple[float, float], patch: tuple[int, int]) -> bool:
    return (int(peak[1] // 8), int(peak[0] // 8)) == patch


@pytest.mark.parametrize("method", CLASS_SPECIFIC)
def test_the_pointing_game_is_won_for_either_class(planted: Predictor, method: str) -> None:
    pictures = [planted_picture(seed, *patches) for seed, patches in enumerate(PLACES)]
    for target in (0, 1):
        found = vitral.explain(planted, pictures, method=method, target=target, **OPTIONS.get(method, {}))
        assert [inside(one.peak, patches[target]) for one, patches in zip(found, PLACES, strict=True)] == [True] * 4


@pytest.mark.parametrize("method", CLASS_SPECIFIC)
def test_two_classes_have_two_maps(planted: Predictor, method: str) -> None:
    red, green = (
        vitral.explain(planted, planted_picture(), method=method, target=name, **OPTIONS.get(method, {})).on_input()
        for name in ("red", "green")
    )
    for heat, own, other in ((red, RED, GREEN), (green, GREEN, RED)):
        of_patches = heat.reshape(4, 8, 4, 8).mean((1, 3))
        assert of_patches[own] > 1.2 * of_patches[other]
    assert np.corrcoef(red.ravel(), green.ravel())[0, 1] < 0.7


def test_attention_and_rollout_see_both(planted: Predictor) -> None:
    for method in ("attention", "rollout"):
        heat = vitral.explain(planted, planted_picture(), method=method).heat
        assert {tuple(map(int, np.unravel_index(place, (4, 4)))) for place in np.argsort(heat.ravel())[-2:]} == {RED, GREEN}


def test_heads_look_for_what_they_were_made_for(planted: Predictor) -> None:
    for head, patch in enumerate((RED, GREEN)):
        found = vitral.explain(planted, planted_picture(), method="attention", layer=0, head=head)
        assert inside(found.peak, patch)
        assert found.heat[patch] > 5 * np.median(found.heat)


def test_the_network_knows_its_colours() -> None:
    model, planted = planted_model(), vitral.load(planted_model())
    grey = torch.zeros(1, 3, 32, 32)
    assert model(grey).logits.tolist() == [[0.0, 0.0]]
    red = np.full((32, 32, 3), 127, dtype=np.uint8)
    red[:8, :8, 0] = 255
    assert planted(red).labels[0] == "red"
    assert planted(red[..., [1, 0, 2]]).labels[0] == "green"
