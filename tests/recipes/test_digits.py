"""The digits recipe: its numbers against the pictures, its training against what it promises."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn", reason="needs the extra `demo`")

from vitral.checkpoints.load import load_model
from vitral.data.digits import read_digits
from vitral.recipes.catalogue import train
from vitral.recipes.digits import digits


def test_mean_and_deviation_are_those_of_the_pictures_trained_on() -> None:
    learned_from, _ = read_digits()
    recipe = digits()
    assert recipe.mean is not None
    assert recipe.std is not None
    assert (learned_from.pictures / 255).mean() == pytest.approx(recipe.mean[0], abs=5e-4)
    assert (learned_from.pictures / 255).std() == pytest.approx(recipe.std[0], abs=5e-4)


def test_the_model_survives_saving(tmp_path: Path) -> None:
    trained = train("digits", recipe="digits", quick=True, epochs=1, out=tmp_path / "run")
    again = load_model(tmp_path / "run/last")
    pixels = torch.randn(3, 1, 8, 8)
    with torch.inference_mode():
        assert torch.equal(again(pixels).logits, trained.model(pixels).logits)
    record = again.record
    assert record.labels == tuple("0123456789")  # type: ignore[union-attr]
    assert record.preprocessing == trained.model.record.preprocessing  # type: ignore[union-attr]
    assert record.training.pictures == 1438  # type: ignore[union-attr]
    assert record.training.top1 == trained.evaluation.top1  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_recipe_reaches_what_it_promises(seed: int) -> None:
    trained = train("digits", recipe="digits", seed=seed)
    assert trained.evaluation is not None
    assert trained.evaluation.top1 >= 0.97
