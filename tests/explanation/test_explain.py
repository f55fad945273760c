"""The one call: targets, batches, precisions, and what is refused."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vitral
from tests.explanation.conftest import AS_IT_IS, planted_picture, tiny
from vitral.data.transforms import Preprocessing
from vitral.errors import PictureError, UnknownNameError, UsageError
from vitral.explanation.methods import DEFAULT, METHODS
from vitral.pipelines.predictor import Predictor

QUICK: dict[str, dict[str, Any]] = {"smoothgrad": {"samples": 2}, "rise": {"masks": 8}, "occlusion": {"window": 2}}
NUMBERS = np.random.default_rng(3)
PHOTO = np.asarray(
    Image.fromarray(NUMBERS.integers(0, 256, (6, 9, 3), dtype=np.uint8)).resize((90, 60), Image.Resampling.BICUBIC)
)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return vitral.load(tiny(), preprocessing=Preprocessing(resize="shortest_edge", size=(40, 40), crop=(32, 48)))


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_of_any_sizes_is_as_its_pictures_alone(predictor: Predictor, method: str) -> None:
    pictures = [PHOTO, PHOTO[::-1].copy(), PHOTO[:50]]
    targets = [4, None, 0] if METHODS[method].needs_target else None
    together = vitral.explain(predictor, pictures, method=method, target=targets, **QUICK.get(method, {}))
    for place, one in enumerate(together):
        target = targets[place] if targets else None
        alone = vitral.explain(predictor, pictures[place], method=method, target=target, **QUICK.get(method, {}))
        assert one.heat.shape == alone.heat.shape
        assert np.abs(one.heat - alone.heat).max() <= 2e-4 * np.abs(alone.heat).max()
        assert one.target == alone.target
        assert one.geometry == alone.geometry
        assert one.on_picture().shape == pictures[place].shape[:2]


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_tells_the_same_story(planted: Predictor, method: str) -> None:
    low = vitral.load(planted.model.__class__(planted.model.config), preprocessing=AS_IT_IS, dtype="bfloat16")
    low.model.load_state_dict(planted.model.state_dict())
    options = {"occlusion": {"window": 1}}.get(method, QUICK.get(method, {}))
    target = 1 if METHODS[method].needs_target else None
    found = vitral.explain(low, planted_picture(), method=method, target=target, **options).on_input()
    expected = vitral.explain(planted, planted_picture(), method=method, target=target, **options).on_input()
    assert found.dtype == np.float32
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.9


def test_a_target_is_the_best_class_or_a_place_or_a_name_or_a_function(planted: Predictor) -> None:
    picture = planted_picture()
    best = planted(picture)
    found = vitral.explain(planted, picture)
    assert (found.target, found.label, found.method) == (best.indices[0], best.labels[0], DEFAULT)
    assert found.score == pytest.approx(float(best.scores[0]), abs=1e-6)
    by_name, by_place = (vitral.explain(planted, picture, target=one) for one in ("green", 1))
    by_function = vitral.explain(planted, picture, target=lambda output: output.logits[:, 1])
    assert np.array_equal(by_name.heat, by_place.heat)
    assert np.allclose(by_function.heat, by_name.heat)
    assert (by_name.label, by_function.label, by_function.score) == ("green", None, None)
    assert by_name.score == pytest.approx(1 - vitral.explain(planted, picture, target="red").score, abs=1e-6)


@pytest.mark.parametrize(
    ("method", "asked"),
    [
        ("relevance", {"target": 1}),
        ("attention", {"layer": 0, "head": 1, "query": 3}),
        ("grad_cam", {"layer": 0, "target": 0}),
        ("rollout", {"start": 0}),
        ("legrad", {"start": 0, "target": 1}),
    ],
)
def test_numpys_and_torchs_whole_numbers_are_numbers(planted: Predictor, method: str, asked: dict[str, int]) -> None:
    expected = vitral.explain(planted, planted_picture(), method=method, **asked)  # type: ignore[arg-type]
    for kind in (np.int64, np.uint8, torch.tensor):
        others: Any = {name: kind(number) for name, number in asked.items()}
        found = vitral.explain(planted, planted_picture(), method=method, **others)
        assert np.array_equal(found.heat, expected.heat)
        assert found.target == expected.target
        assert found.target is None or type(found.target) is int


def test_every_picture_may_have_its_own_target(planted: Predictor) -> None:
    pictures = [planted_picture(), planted_picture(1)]
    expected = [vitral.explain(planted, picture, target=one).heat for picture, one in zip(pictures, (1, 0), strict=True)]
    for targets in ([1, 0], ("green", "red"), np.array([1, 0]), torch.tensor([1, 0])):
        found = vitral.explain(planted, pictures, target=targets)
        assert np.allclose([one.heat for one in found], expected, atol=1e-6)
    assert [one.target for one in vitral.explain(planted, pictures, target=np.int64(1))] == [1, 1]


def test_one_picture_may_be_explained_for_several_classes(planted: Predictor) -> None:
    both = vitral.explain(planted, planted_picture(), target=["green", 0])
    assert [one.label for one in both] == ["green", "red"]
    memory = io.BytesIO()
    Image.fromarray(planted_picture()).save(memory, "PNG")
    memory.seek(0)  # what can be read but once is read but once
    again = vitral.explain(planted, memory, target=["green", 0])
    assert all(np.array_equal(one.heat, other.heat) for one, other in zip(again, both, strict=True))
    assert np.array_equal(both[1].heat, vitral.explain(planted, planted_picture(), target=0).heat)


def test_what_was_asked_of_a_method_is_told(planted: Predictor) -> None:
    found = vitral.explain(planted, planted_picture(), method="attention", layer=0, head=1, query=(1, 2))
    assert "attention(query=(1, 2), layer=0, head=1)" in repr(found)
    assert found.to_dict()["options"] == {"query": "(1, 2)", "layer": 0, "head": 1}


def test_long_lists_are_computed_in_parts(planted: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, forward = [], planted.model.forward
    monkeypatch.setattr(planted.model, "forward", lambda pixels: sizes.append(len(pixels)) or forward(pixels))
    found = vitral.explain(planted, [planted_picture(seed) for seed in range(20)], method="rollout")
    assert len(found) == 20
    assert max(sizes) == 16


def test_two_threads_do_not_see_each_others_pictures(planted: Predictor) -> None:
    from concurrent.futures import ThreadPoolExecutor

    images = [planted_picture(0), planted_picture(1, (0, 0), (3, 3))]
    expected = [vitral.explain(planted, image, method="rollout").heat for image in images]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda n: (n % 2, vitral.explain(planted, images[n % 2], method="rollout").heat), range(60)))
    assert all(np.array_equal(heat, expected[place]) for place, heat in found)


def test_a_model_in_training_is_not_explained(planted: Predictor) -> None:
    planted.model.train()
    try:
        with pytest.raises(UsageError, match="training mode"):
            vitral.explain(planted, planted_picture())
    finally:
        planted.model.eval()


def test_methods_that_know_no_class_name_none(planted: Predictor) -> None:
    found = vitral.explain(planted, planted_picture(), method="rollout")
    assert (found.target, found.label, found.score) == (None, None, None)


def test_a_model_without_classes_has_attention_and_rollout() -> None:
    predictor = vitral.load(tiny("dinov2_s14_registers", num_classes=0), preprocessing=AS_IT_IS)
    picture = np.zeros((32, 48, 3), np.uint8)
    assert vitral.explain(predictor, picture, method="rollout").heat.shape == (4, 6)
    with pytest.raises(UsageError, match="no classes, and 'grad_cam' explains one"):
        vitral.explain(predictor, picture)
    assert vitral.explain(predictor, picture, target=lambda output: output.pooled[:, 0]).heat.shape == (4, 6)


def test_the_caller_may_have_switched_gradients_off(planted: Predictor) -> None:
    expected = vitral.explain(planted, planted_picture()).heat
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            assert np.array_equal(vitral.explain(planted, planted_picture()).heat, expected)


def test_nothing_of_the_predictor_changes(planted: Predictor) -> None:
    before = {name: one.clone() for name, one in planted.model.state_dict().items()}
    scores = planted(planted_picture()).scores
    for method in METHODS:
        vitral.explain(planted, planted_picture(), method=method, **QUICK.get(method, {}))
    assert all(torch.equal(one, before[name]) for name, one in planted.model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in planted.model.parameters())
    assert np.array_equal(planted(planted_picture()).scores, scores)


def test_a_multi_label_score_is_a_sigmoid() -> None:
    from dataclasses import replace

    model = tiny()
    model.record = replace(model.record, problem="multi_label")
    predictor = vitral.load(model, preprocessing=AS_IT_IS)
    picture = PHOTO[:32, :48]
    scores = predictor(picture)
    found = vitral.explain(predictor, picture, target=5, method="saliency")
    assert found.score == pytest.approx(float(scores.scores[list(scores.indices).index(5)]), abs=1e-6)


@pytest.mark.parametrize(
    ("asked", "kind", "sentence"),
    [
        ({"method": "relevence"}, UnknownNameError, "Unknown method 'relevence'. Did you mean 'relevance'"),
        ({"target": 2}, UsageError, "There is no class 2: the model has 2, numbered 0 to 1."),
        ({"target": -1}, UsageError, "There is no class -1: the model has 2"),
        ({"target": "blue"}, UnknownNameError, "Unknown class 'blue'"),
        ({"target": "grean"}, UnknownNameError, "Did you mean 'green'"),
        ({"layer": 99, "method": "attention"}, UsageError, "There is no layer 99: the model has 1"),
        ({"method": "relevance", "layer": 0}, UnknownNameError, "Unknown option of the relevance method 'layer'"),
        (
            {"method": "rise", "mask": 3},
            UnknownNameError,
            "option of the rise method 'mask'. Did you mean 'masks'",
        ),
        ({"method": "rollout", "target": lambda output: 0}, UsageError, "knows no target"),
    ],
)
def test_bad_requests_are_answered_in_a_sentence(planted: Predictor, asked: Any, kind: Any, sentence: str) -> None:
    with pytest.raises(kind, match=re.escape(sentence)):
        vitral.explain(planted, planted_picture(), **asked)


def test_wrong_things_are_refused(planted: Predictor, tmp_path: Path) -> None:
    with pytest.raises(PictureError):
        vitral.explain(planted, tmp_path / "nothing.png")
    with pytest.raises(UsageError, match="1 targets came for 2 pictures"):
        vitral.explain(planted, [planted_picture()] * 2, target=[0])


def test_a_model_in_a_predictors_place_is_refused() -> None:
    import inspect

    from vitral.explanation.explain import explain

    with pytest.raises(UsageError, match="A predictor was expected; a str came"):
        inspect.unwrap(explain)("checkpoint", "photo.jpg")  # type: ignore[call-overload]


def test_the_catalogue_names_paper_and_options() -> None:
    assert METHODS["rise"].options == ("masks", "cells", "keep", "seed", "batch_size")
    assert [name for name, one in METHODS.items() if not one.needs_target] == ["attention", "rollout"]
    assert all(method.paper and method.find.__doc__ for method in METHODS.values())
    assert DEFAULT in METHODS
