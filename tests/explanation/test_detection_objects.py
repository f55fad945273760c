"""Explanations of objects against rules written out plainly, and against what the network itself computes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import vitral
from tests.models.detection import test_deformable_detr, test_detr, test_pyramidal, test_rtdetr, test_yolos
from tests.models.harness import stirred
from vitral.base.boxes import cxcywh_to_xyxy
from vitral.data.transforms import Preprocessing
from vitral.errors import UnknownNameError, UsageError
from vitral.explanation.capture import capture
from vitral.explanation.detection import OBJECT_METHODS, explain_objects, fitting_methods, usual_method
from vitral.explanation.look import gaze_of, look_at
from vitral.explanation.object_report import object_explanation_page
from vitral.explanation.object_result import draw_objects
from vitral.explanation.sampling import capture_samples
from vitral.models.catalogue import FAMILIES
from vitral.pipelines.predictor import Predictor

CONFIGS: dict[str, Any] = {
    "detr": test_detr.SMALL,
    "yolos": next(iter(test_yolos.TestYOLOS.kinds.values())),
    "deformable": test_deformable_detr.TestDeformableDETR.kinds["four maps"],
    "rtdetr": next(iter(test_rtdetr.TestRTDETR.kinds.values())),
    "fcos": next(iter(test_pyramidal.TestFCOS.kinds.values())),
    "faster": next(iter(test_pyramidal.TestFasterRCNN.kinds.values())),
}
SIZE = (96, 128)
LABELS = ("cat", "dog", "bird", "cow", "cup")
every = pytest.mark.parametrize("kind", CONFIGS)


def predictor_of(kind: str, dtype: Any = torch.float32) -> Predictor:
    config = CONFIGS[kind]
    model: Any = stirred(next(family for family in FAMILIES.values() if type(config) is family.config).build(config))
    prepared = Preprocessing(resize="exact", size=SIZE)
    model.record = replace(model.record, labels=LABELS, preprocessing=prepared)
    return vitral.load(model, threshold=0.0, top_k=4, dtype=dtype)


def picture(seed: int = 0, size: tuple[int, int] = (60, 90)) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 255, (6, 9, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC))


def batch_of(predictor: Predictor) -> Tensor:
    return predictor.prepare(picture())[0][None].to(predictor.dtype)


# -- what an object was read from -------------------------------------------------------------------------------------


@every
@torch.no_grad()
def test_the_row_of_an_object_says_what_the_object_is(kind: str) -> None:
    predictor = predictor_of(kind)
    found, output = predictor(picture()), predictor.model(batch_of(predictor))
    assert len(found) == len(found.queries) == 4
    for place in range(4):
        logits = output.logits[0, found.queries[place]].float()
        scores = logits.softmax(-1) if kind in ("detr", "yolos", "faster") else logits.sigmoid()
        score = scores[found.indices[place]]
        if getattr(output, "centerness", None) is not None:
            score = (score * output.centerness[0, found.queries[place]].sigmoid()).sqrt()
        assert score.item() == pytest.approx(found.scores[place], abs=1e-5)
        if kind != "faster":  # whose regions become another box for every class
            height, width = found.size
            box = cxcywh_to_xyxy(output.boxes[0, found.queries[place]].float()).numpy() * ([width, height] * 2)
            np.testing.assert_allclose(box.clip(0, [width, height] * 2), found.boxes[place], atol=1e-2)
    some = found[[2, 0]]
    assert sorted(some.queries.tolist()) == sorted(found.queries[[2, 0]].tolist())


# -- a look -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_look_of_detr_is_its_maps() -> None:
    predictor = predictor_of("detr")
    look = look_at(predictor, picture())
    with capture(predictor.model) as maps:
        predictor.model(batch_of(predictor))
    assert look.layers == 3
    assert look.grid == (6, 8)
    queries = look.detections.queries
    assert queries is not None
    for layer in range(3):
        cross = maps[f"decoder.{layer}.cross_attention"][0].numpy()
        among = maps[f"decoder.{layer}.attention"][0].numpy()
        for place in range(len(look)):
            of_query = cross[:, queries[place]].reshape(4, 6, 8)
            np.testing.assert_allclose(look.heat(place, layer), of_query.mean(0), atol=1e-6)
            np.testing.assert_allclose(look.heat(place, layer, 3), of_query[3], atol=1e-6)
            np.testing.assert_allclose(look.heat(place, layer, "max"), of_query.max(0), atol=1e-6)
            np.testing.assert_allclose(look.others(place, layer), among.mean(0)[queries[place]][queries], atol=1e-6)
            assert look.heat(place, layer).sum() == pytest.approx(1, abs=1e-5)
    on_picture = look.on_picture(0)
    assert on_picture.shape == (60, 90)
    row, column = np.unravel_index(look.heat(0).argmax(), (6, 8))
    down, across = np.unravel_index(on_picture.argmax(), (60, 90))
    assert abs((down + 0.5) / 60 - (row + 0.5) / 6) < 0.6 / 6
    assert abs((across + 0.5) / 90 - (column + 0.5) / 8) < 0.6 / 8
    with pytest.raises(UsageError, match="no object 4: there are 4"):
        look.heat(4)
    with pytest.raises(UsageError, match="no layer 3: there are 3"):
        look.heat(0, 3)
    with pytest.raises(UsageError, match="no head 9"):
        look.heat(0, 0, 9)
    with pytest.raises(UnknownNameError, match="'mean'"):
        look.heat(0, 0, "maen")
    with pytest.raises(UsageError, match="sample no places"):
        look.points(0)


@torch.no_grad()
def test_a_look_of_yolos_is_the_rows_of_its_detection_tokens() -> None:
    predictor = predictor_of("yolos")
    look = look_at(predictor, picture())
    config: Any = predictor.model.config
    with capture(predictor.model, -1) as maps:
        predictor.model(batch_of(predictor))
    rows = maps[-1][0].numpy()
    queries: Any = look.detections.queries
    for place in range(len(look)):
        row = rows[:, 1 + queries[place]].mean(0)
        np.testing.assert_allclose(look.heat(place).ravel(), row[1 + config.queries :], atol=1e-6)
        np.testing.assert_allclose(look.others(place), row[1 + queries], atol=1e-6)


@pytest.mark.parametrize("kind", ["deformable", "rtdetr"])
@torch.no_grad()
def test_a_look_of_a_network_that_samples_has_its_places(kind: str) -> None:
    predictor = predictor_of(kind)
    look = look_at(predictor, picture())
    with capture_samples(predictor.model) as found:
        predictor.model(batch_of(predictor))
    queries: Any = look.detections.queries
    last = found[look.gaze.across[-1]]
    for place in range(len(look)):
        points = look.points(place)
        np.testing.assert_allclose(points.xy, last.locations[0, queries[place]].numpy() * [90, 60], rtol=1e-5, atol=1e-3)
        np.testing.assert_allclose(points.weights.sum((1, 2)), 1, atol=1e-5)
        inside = last.locations[0, queries[place]].sub(0.5).abs().amax(-1)
        # What is sampled beyond the edges is on no cell; what is half a cell inside is on some wholly.
        sure = (points.weights * (inside < 0.5 - 0.5 / 2).numpy()).sum((1, 2)).mean()
        assert sure - 1e-5 <= look.heat(place).sum() <= 1 + 1e-5


@every
def test_networks_say_where_they_look(kind: str) -> None:
    gaze = gaze_of(predictor_of(kind).model)
    expected = {"detr": "maps", "yolos": "tokens", "deformable": "samples", "rtdetr": "samples"}
    assert gaze.kind == expected.get(kind, "none")
    assert usual_method(predictor_of(kind).model) == {
        "detr": "relevance",
        "yolos": "relevance",
        "deformable": "attention",
        "rtdetr": "attention",
    }.get(kind, "grad_cam")


# -- methods ----------------------------------------------------------------------------------------------------------


def test_relevance_of_detr_is_that_of_the_authors_rules() -> None:
    """Chefer et al. 2021, equations 5 to 10, with loops in place of products."""
    predictor = predictor_of("detr")
    found = explain_objects(predictor, picture(), method="relevance")
    model: Any = predictor.model
    with capture(model, gradients=True) as maps:
        output = model(batch_of(predictor).requires_grad_())
    for one in found[:2]:
        score = output.logits[0, one.query, one.target]
        names = list(maps.layers)
        slopes = dict(zip(names, torch.autograd.grad(score, [maps[name] for name in names], retain_graph=True), strict=True))
        mean = {name: (maps[name][0] * slopes[name][0]).detach().clamp(min=0).numpy().mean(0) for name in names}
        cells, queries = np.eye(48), np.eye(7)
        across = np.zeros((7, 48))
        for layer in range(2):
            cells = cells + mean[f"encoder.{layer}.attention"] @ cells

        def normed(relevance: np.ndarray) -> np.ndarray:
            result = np.eye(len(relevance))
            for i in range(len(relevance)):
                taken = relevance[i].copy()
                taken[i] -= 1
                if taken.sum() > 0:
                    result[i] += taken / taken.sum()
            return result

        for layer in range(3):
            own, cross = mean[f"decoder.{layer}.attention"], mean[f"decoder.{layer}.cross_attention"]
            queries, across = queries + own @ queries, across + own @ across
            across = across + np.einsum("pq,pm,mn->qn", normed(queries), cross, normed(cells))
        np.testing.assert_allclose(one.heat.ravel(), across[one.query], rtol=1e-3, atol=1e-6 * across.max())
        assert one.heat.max() > 0


def test_relevance_of_yolos_is_a_row_of_the_authors_rule() -> None:
    predictor = predictor_of("yolos")
    [one, *_] = explain_objects(predictor, picture(), method="relevance")
    model: Any = predictor.model
    with capture(model, gradients=True) as maps:
        output = model(batch_of(predictor).requires_grad_())
    slopes = torch.autograd.grad(output.logits[0, one.query, one.target], list(maps))
    relevance = torch.eye(maps[0].shape[-1])
    for weights, slope in zip(maps, slopes, strict=True):
        relevance = relevance + (weights * slope)[0].detach().clamp(min=0).mean(0) @ relevance
    expected = relevance[1 + one.query, 1 + model.config.queries :].reshape(one.heat.shape)
    np.testing.assert_allclose(one.heat, expected, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("kind", ["detr", "yolos", "deformable", "fcos"])
def test_gradient_times_input_is_how_the_score_grows_with_the_picture(kind: str) -> None:
    """The sum over all pixels of x · ∂s/∂x is the derivative of s(t · x) by t, at 1 (Euler)."""
    predictor = predictor_of(kind, torch.float64)
    [one, *_] = explain_objects(predictor, picture(), method="gradient_times_input", top_k=1)
    pixels, step = batch_of(predictor), 1e-4
    with torch.no_grad():
        ends = [predictor.model(pixels * (1 + sign * step)).logits[0, one.query, one.target].item() for sign in (1, -1)]
    assert one.heat.shape == SIZE
    assert one.signed
    slope = (ends[0] - ends[1]) / (2 * step)
    assert one.heat.sum() == pytest.approx(slope, rel=2e-2, abs=2e-3 * float(np.abs(one.heat).sum()))


@pytest.mark.parametrize("kind", ["fcos", "faster", "detr"])
def test_grad_cam_weighs_the_backbones_last_map(kind: str) -> None:
    predictor = predictor_of(kind)
    model: Any = predictor.model
    kept: list[Tensor] = []
    handle = model.backbone.blocks[-1].register_forward_hook(lambda _, __, output: kept.append(output))
    output = model(batch_of(predictor).requires_grad_())
    handle.remove()
    for one in explain_objects(predictor, picture(), method="grad_cam"):
        [slope] = torch.autograd.grad(output.logits[0, one.query, one.target], kept, retain_graph=True)
        expected = np.zeros(slope.shape[2:])
        for channel in range(slope.shape[1]):
            expected += slope[0, channel].mean().item() * kept[0][0, channel].detach().numpy()
        np.testing.assert_allclose(one.heat, expected.clip(min=0), atol=1e-5 * max(1e-3, np.abs(expected).max()), rtol=1e-3)
        side = SIZE[0] // one.heat.shape[0]
        assert one.cell == (side, side)


@every
def test_every_method_that_fits_explains_every_object(kind: str) -> None:
    predictor = predictor_of(kind)
    for method in fitting_methods(predictor.model):
        found: Any = vitral.explain(predictor, picture(), method=method, top_k=2)
        assert [one.place for one in found] == [0, 1]
        for one in found:
            assert one.method == method
            assert one.on_picture().shape == (60, 90)
            assert one.label == LABELS[one.target]
            assert json.loads(json.dumps(one.to_dict()))["box"] == pytest.approx(one.box.tolist())
        assert draw_objects(found, longest=90).size == (2 * 90 + 12, 60)
    for method in set(OBJECT_METHODS) - set(fitting_methods(predictor.model)):
        with pytest.raises(UsageError, match="These work: "):
            vitral.explain(predictor, picture(), method=method)


def test_which_objects_are_explained_and_what_is_refused() -> None:
    predictor = predictor_of("detr")
    explain: Callable[..., Any] = vitral.explain
    found = look_at(predictor, picture()).detections
    by_name = explain(predictor, picture(), target=found.labels[0])
    assert [one.place for one in by_name] == [place for place, label in enumerate(found.labels) if label == found.labels[0]]
    assert by_name[0].method == "relevance"
    assert [one.place for one in explain(predictor, picture(), target=[-1, 0], method="attention", layer=0, head=1)] == [
        3,
        0,
    ]
    several = explain(predictor, [picture(), picture(1)], method="attention", top_k=1)
    assert [len(one) for one in several] == [1, 1]
    assert explain(predictor, picture(), threshold=1.0) == []
    missing = next(label for label in LABELS if label not in found.labels)
    with pytest.raises(UsageError, match=f"No '{missing}' was found"):
        explain(predictor, picture(), target=missing)
    with pytest.raises(UnknownNameError, match="Unknown class 'zebra'"):
        explain(predictor, picture(), target="zebra")
    with pytest.raises(UsageError, match="There is no head 99"):
        object_explanation_page(predictor, picture(), method="attention", head=99)
    with pytest.raises(UsageError, match="There is no object 7"):
        explain(predictor, picture(), target=7)
    with pytest.raises(UnknownNameError, match="'attention'"):
        explain(predictor, picture(), method="atention")
    with pytest.raises(UnknownNameError, match="'layer'"):
        explain(predictor, picture(), method="attention", lyer=1)
    with pytest.raises(UnknownNameError, match=r"'backbone\.stem'"):
        explain(predictor, picture(), method="grad_cam", layer="backbone.stm")
    with pytest.raises(UsageError, match="threshold must be from 0 to 1"):
        explain(predictor, picture(), threshold=2.0)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in predictor.model.modules())


# -- the page ---------------------------------------------------------------------------------------------------------


def told_on(page: str) -> Any:
    return json.loads(re.search(r'<script type="application/json" id="told">(.*?)</script>', page, re.DOTALL)[1])  # type: ignore[index]


@pytest.mark.parametrize("kind", ["detr", "yolos", "deformable", "fcos"])
def test_a_page_holds_every_object_and_its_evidence(kind: str) -> None:
    predictor = predictor_of(kind)
    page = object_explanation_page(predictor, picture(), top_k=3)
    told, look = told_on(page), look_at(predictor, picture(), top_k=3)
    assert [one["box"] for one in told["objects"]] == [
        pytest.approx(box.tolist(), abs=0.01) for box in look.detections.boxes
    ]
    assert {one["name"] for one in told["methods"]} == set(fitting_methods(predictor.model))
    assert told["first"]["method"] == usual_method(predictor.model)
    assert len(re.findall(r'data-object="\d', page)) == 3
    if kind == "fcos":
        assert told["attention"] is None
    else:
        assert told["attention"]["levels"]["shape"] == [3, look.layers, 1 + look.across[0].shape[1], *look.grid]
        assert (told["attention"]["points"] is not None) == (kind == "deformable")
    assert not re.search(r"""(src|href)=["']?(http|//)""", page)


def test_a_page_of_nothing_says_so_and_names_cannot_harm_it() -> None:
    predictor = predictor_of("detr")
    page = object_explanation_page(predictor, picture(), threshold=1.0)
    assert "was sure of nothing" in page
    assert told_on(page)["objects"] == []
    model: Any = predictor.model
    model.record = replace(model.record, labels=tuple(f"</script><b>{label}" for label in LABELS))
    page = object_explanation_page(vitral.load(model, threshold=0.0), picture(), top_k=1, method="attention", budget=200)
    assert "</script><b>" not in page
    assert told_on(page)["attention"]["heads"] == 0


def test_the_command_leaves_a_page_or_a_drawing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitral.cli import explain as cli

    monkeypatch.setattr(cli, "load", lambda *_, **__: predictor_of("detr"))
    Image.fromarray(picture()).save(tmp_path / "a.png")
    usual: dict[str, Any] = {"png": None, "method": None, "target": None, "layer": None, "head": None, "top_k": 2}
    asked = usual | {"threshold": 0.0}
    cli.explain(str(tmp_path / "a.png"), "detr", out=tmp_path / "page.html", **asked)
    assert len(told_on((tmp_path / "page.html").read_text("utf-8"))["objects"]) == 2
    cli.explain(str(tmp_path / "a.png"), "detr", out=tmp_path / "drawn.png", **asked)
    assert Image.open(tmp_path / "drawn.png").width > Image.open(tmp_path / "a.png").width
    with pytest.raises(UsageError, match="There is nothing to draw"):
        cli.explain(str(tmp_path / "a.png"), "detr", out=tmp_path / "none.png", **usual | {"threshold": 1.0})
    assert not (tmp_path / "none.png").exists()
