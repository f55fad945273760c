"""Explanations of segments against rules written out plainly, and against what the network itself computes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import vitral
from tests.models.harness import stirred
from tests.models.segmentation import (
    test_detr_masks,
    test_fcn,
    test_mask2former,
    test_maskformer,
    test_segformer,
    test_segmenter,
    test_setr,
    test_transunet,
    test_unet,
    test_upernet,
)
from vitral.base.frame import Frame
from vitral.base.masks import decode_rle
from vitral.data.transforms import Preprocessing
from vitral.errors import UnknownNameError, UsageError
from vitral.explanation.capture import capture
from vitral.explanation.rollout import roll_out
from vitral.explanation.segment_look import look_at_segments, read_at, segment_gaze, share_of_cells
from vitral.explanation.segment_report import segment_explanation_page
from vitral.explanation.segmentation import (
    SEGMENT_METHODS,
    explain_segment_look,
    explain_segments,
    fitting_segment_methods,
    usual_segment_method,
)
from vitral.models.catalogue import FAMILIES
from vitral.models.network import MapConfig
from vitral.models.output import MapOutput
from vitral.models.segmentation.kinds import MapNetwork
from vitral.pipelines.predictor import Predictor

CONFIGS: dict[str, Any] = {
    "setr": test_setr.SMALL,
    "segmenter": test_segmenter.TestSegmenter.kinds["mask"],
    "segformer": test_segformer.SMALL,
    "upernet": test_upernet.SMALL,
    "transunet": test_transunet.SMALL,
    "unet": test_unet.SMALL,
    "vgg": test_fcn.SMALL_VGG,
    "maskformer": test_maskformer.SMALL,
    "mask2former": test_mask2former.SMALL,
    "detr": test_detr_masks.SMALL,
}
QUERIES = ("maskformer", "mask2former", "detr")
SIZE = (61, 83)
LABELS = ("cat", "dog", "bird", "cow", "cup")
every = pytest.mark.parametrize("kind", CONFIGS)


@cache
def predictor_of(kind: str, size: tuple[int, int] = SIZE) -> Predictor:
    config = CONFIGS[kind]
    model: Any = stirred(next(family for family in FAMILIES.values() if type(config) is family.config).build(config))
    model.record = replace(model.record, labels=LABELS, preprocessing=Preprocessing(resize="exact", size=size))
    if kind in QUERIES:
        with torch.no_grad():
            (model.detr if kind == "detr" else model).head.bias[-1] -= 20  # nobody says nothing
        return vitral.load(model, threshold=0.0, mask_threshold=0.0, overlap_mask_area_threshold=0.0)
    predictor = vitral.load(model)
    head: Any = {"segmenter": lambda: model.head.mask_norm, "segformer": lambda: model.head}.get(kind, lambda: None)()
    if head is not None:  # every class is to be seen somewhere
        with torch.no_grad():
            logits = model(batch_of(predictor)).logits[0].flatten(1)
            scale = 1.0 if kind == "segmenter" else 4 / logits.std(1)
            if kind == "segformer":
                head.weight *= scale[:, None]
            head.bias.copy_((head.bias - logits.mean(1)) * scale)
    return predictor


def picture(seed: int = 0, size: tuple[int, int] = (60, 90)) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 255, (6, 9, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC))


def batch_of(predictor: Predictor) -> Tensor:
    return predictor.prepare(picture())[0][None]


def weights_by(model: nn.Module, batch: Tensor, score: Callable[[Any], Tensor]) -> dict[str, np.ndarray]:
    """What each attention carries, the mean over heads of (∇A ⊙ A)⁺."""
    with capture(model, gradients=True) as maps:
        output = model(batch.clone().requires_grad_())
    names = list(maps.layers)
    slopes = torch.autograd.grad(score(output), [maps[name] for name in names], allow_unused=True)
    return {
        name: (maps[name][0] * slope[0]).detach().clamp(min=0).mean(0).numpy()
        for name, slope in zip(names, slopes, strict=True)
        if slope is not None
    }


# -- where a mask lies ------------------------------------------------------------------------------------------------


def test_the_mean_over_a_mask_is_read_as_an_enlarged_map_is() -> None:
    values = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 7))).float()
    mask = np.random.default_rng(1).random((33, 41)) > 0.7
    frame = Frame(picture=(33, 41), input=(20, 28), scale=(20 / 33, 28 / 41))
    enlarged = F.interpolate(values[None, None], (33, 41), mode="bilinear", align_corners=False)[0, 0]
    found = (values * read_at(mask, frame, (5, 7))).sum().item()
    assert found == pytest.approx(enlarged[torch.from_numpy(mask)].mean().item(), abs=1e-5)
    shares = share_of_cells(mask, frame, (5, 7), (4, 4))
    expected = np.zeros((5, 7))
    for row, column in zip(*np.nonzero(mask), strict=True):
        expected[int((row + 0.5) * 20 / 33 // 4), int((column + 0.5) * 28 / 41 // 4)] += 1 / mask.sum()
    np.testing.assert_allclose(shares, expected, atol=1e-6)


# -- a look -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("kind", QUERIES)
def test_a_look_of_queries_is_their_maps_and_masks(kind: str) -> None:
    predictor = predictor_of(kind)
    model: Any = predictor.model
    look = look_at_segments(predictor, picture())
    assert look.gaze.kind == "queries"
    assert look.gaze.picture_first == (kind == "mask2former")
    with capture(model) as maps:
        output = model(batch_of(predictor))
    for layer, (name, among) in enumerate(zip(look.gaze.across, look.gaze.among, strict=True)):
        for place, one in enumerate(look.asked):
            heat = look.heat(place, layer, 1)
            np.testing.assert_allclose(heat.ravel(), maps[name][0, 1, one.query], atol=1e-6)
            assert look.heat(place, layer).sum() == pytest.approx(1, abs=1e-5)
            others: Any = look.others(place, layer)
            queries = [other.query for other in look.asked]
            np.testing.assert_allclose(others, maps[among][0, :, one.query].mean(0)[queries], atol=1e-6)
    layers = [output] if kind == "detr" else model.layer_outputs(batch_of(predictor))
    assert look.times == len(layers)
    for place, one in enumerate(look.asked):
        np.testing.assert_allclose(look.drawn(place), output.masks[0, one.query].sigmoid(), atol=1e-6)
        assert look.said(place) == (one.label, pytest.approx(one.score, abs=1e-5))
        for time, told in enumerate(layers):
            np.testing.assert_allclose(look.drawn(place, time), told.masks[0, one.query].sigmoid(), atol=1e-5)
            assert look.said(place, time)[1] == pytest.approx(told.logits[0, one.query].softmax(-1).max().item(), abs=1e-5)
    covered = np.sum([one.mask for one in look.asked], axis=0)
    assert (covered == 1).all()  # every pixel is of one query


@torch.no_grad()
def test_a_look_of_segmenter_is_the_rows_of_its_classes() -> None:
    predictor = predictor_of("segmenter")
    look = look_at_segments(predictor, picture(), pixels=[(40, 20)])
    assert len(look) > 2
    assert look.gaze.classes == look.gaze.across[-2:]
    with capture(predictor.model) as maps:
        output: Any = predictor.model(batch_of(predictor))
    for place, one in enumerate(look.asked):
        np.testing.assert_allclose(look.drawn(place), output.logits[0].softmax(0)[one.index], atol=1e-6)
        for layer in (-2, -1):
            # The grid of 8 × 8 pixels: (60, 90) became (61, 83), and these (64, 88).
            asking = one.index if one.pixel is None else 5 + 11 * int(20.5 * 61 / 60 // 8) + int(40.5 * 83 / 90 // 8)
            row = maps[look.gaze.across[layer]][0, :, asking]
            np.testing.assert_allclose(look.heat(place, layer, 2).ravel(), row[2, 5:], atol=1e-6)
            others: Any = look.others(place, layer, "max")
            np.testing.assert_allclose(others, row[:, [other.index for other in look.asked]].amax(0), atol=1e-6)
            taken = look.among[layer]
            assert taken is not None
            assert taken[place].mean(0).sum() + look.heat(place, layer).sum() == pytest.approx(1, abs=1e-5)
    assert look.others(0, 0) is None


@torch.no_grad()
def test_patches_of_a_segment_ask_together() -> None:
    predictor = predictor_of("segformer")
    look = look_at_segments(predictor, picture(), top_k=2)
    grids = [(16, 21), (8, 11), (8, 11), (4, 6), (2, 3)]
    assert [one.shape[2:] for one in look.across] == grids
    with capture(predictor.model, -2) as maps:
        predictor.model(batch_of(predictor))
    for place, one in enumerate(look.asked):
        shares = share_of_cells(one.mask, look.seen.frame, (4, 6), (16, 16)).flatten()
        assert look.cells[3] == (16, 16)
        for head in range(5):
            row = shares @ maps[-2][0, head]
            assert look.heat(place, 3, head).sum() == pytest.approx(row.sum().item(), abs=1e-5)
        assert [look.heat(place, layer).sum() for layer in range(5)] == pytest.approx([1] * 5, abs=1e-5)
    assert look.on_picture(0).shape == (60, 90)


@torch.no_grad()
def test_what_fills_a_picture_up_leaves_maps_as_they_are() -> None:
    own = look_at_segments(predictor_of("setr"), picture(), pixels=[(40, 20)])
    model: Any = predictor_of("setr").model
    pixels = F.pad(batch_of(predictor_of("setr")), (0, 96 - 83, 0, 64 - 61))
    with capture(model) as maps:
        model(pixels)
    place = len(own) - 1
    token = 1 + 6 * int(20.5 * 61 / 60 // 16) + int(40.5 * 83 / 90 // 16)
    for layer in range(own.layers):
        np.testing.assert_allclose(own.heat(place, layer).ravel(), maps[layer][0, :, token, 1:].mean(0), atol=1e-6)
    look = look_at_segments(predictor_of("detr", (64, 96)), picture())
    pixels = predictor_of("detr", (64, 96)).prepare(picture())[0][None]
    mask = torch.zeros(1, 96, 128, dtype=torch.bool)
    mask[:, 64:], mask[:, :, 96:] = True, True
    detr: Any = predictor_of("detr", (64, 96)).model
    with capture(detr, look.gaze.across) as maps:
        detr(F.pad(pixels, (0, 32, 0, 32)), mask)
    for layer, name in enumerate(look.gaze.across):
        laid = maps[name][0].unflatten(-1, (3, 4))
        for place, one in enumerate(look.asked):
            assert laid[:, one.query, 2:].sum() == laid[:, one.query, :, 3:].sum() == 0
            np.testing.assert_allclose(laid[:, one.query, :2, :3].sum((1, 2)), 1, atol=1e-5)
            # The residual network's borders are others where zeros follow, but for that it is the same look.
            np.testing.assert_allclose(laid[:, one.query, :2, :3].mean(0), look.heat(place, layer), atol=1e-2)


# -- methods ----------------------------------------------------------------------------------------------------------


class Linear(MapNetwork):
    """Every cell of 4 × 4 pixels is told by one linear layer, and looks at nothing else."""

    class Config(MapConfig):
        stride, width, depth = 4, 3, 1  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__(Linear.Config(image_size=(16, 24), num_classes=3))
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([nn.Conv2d(3, 3, 4, 4)])

    def forward(self, pixels: Tensor) -> MapOutput:
        return MapOutput(self.blocks[0](pixels))

    def reset_head(self, num_classes: int) -> None:
        raise NotImplementedError


def test_evidence_of_a_linear_network_is_its_weights_times_the_picture() -> None:
    model: Any = Linear()
    model.record = replace(model.record, labels=LABELS[:3], preprocessing=Preprocessing(resize="exact", size=(16, 24)))
    predictor = vitral.load(model)
    shown = picture(size=(16, 24))
    pixels, _ = predictor.prepare(shown)
    segments: Any = vitral.explain(predictor, shown, method="gradient_times_input")
    segments += vitral.explain(predictor, shown, method="gradient_times_input", target=(11, 6))
    logits = F.interpolate(model(pixels[None]).logits, (16, 24), mode="bilinear", align_corners=False)[0]
    kernel = model.blocks[0].weight.detach()
    for one in segments:
        mask = torch.from_numpy(one.mask)
        assert one.heat.sum() + model.blocks[0].bias[one.target].item() == pytest.approx(
            logits[one.target][mask].mean().item(), abs=1e-5
        )
        # What the mean takes from every cell is spread over its pixels as the kernel is.
        taken = read_at(one.mask, one.geometry.frame, (4, 6)).repeat_interleave(4, 0).repeat_interleave(4, 1)
        expected = (pixels * kernel[one.target].repeat(1, 4, 6) * taken).sum(0)
        np.testing.assert_allclose(one.heat, expected, atol=1e-6)
    assert segments[-1].mask.sum() == 1
    assert segments[-1].pixel == (11, 6)
    [cam] = explain_segments(predictor, shown, method="grad_cam", target=(11, 6))
    slope = read_at(cam.mask, cam.geometry.frame, (4, 6)).mean()
    np.testing.assert_allclose(cam.heat, (logits_of(model, pixels)[cam.target] * slope).clamp(min=0), atol=1e-6)
    assert fitting_segment_methods(model) == ("grad_cam", "gradient_times_input")


@torch.no_grad()
def logits_of(model: Any, pixels: Tensor) -> Tensor:
    return model(pixels[None]).logits[0]  # type: ignore[no-any-return]


def test_relevance_of_patches_is_the_authors_rule_without_the_identity() -> None:
    predictor = predictor_of("setr")
    for target in (0, (40, 20)):
        [one] = explain_segments(predictor, picture(), method="relevance", target=target)
        read = read_at(one.mask, one.geometry.frame, SIZE)
        carried = weights_by(predictor.model, batch_of(predictor), lambda out: (out.logits[0, one.target] * read).sum())  # noqa: B023
        relevance = np.eye(25)
        for attention in carried.values():
            relevance = relevance + attention @ relevance
        shares = np.append(0, share_of_cells(one.mask, one.geometry.frame, (4, 6), (16, 16)))
        expected = shares @ (relevance - np.eye(25))
        np.testing.assert_allclose(one.heat.ravel(), expected[1:], rtol=1e-3, atol=1e-4 * expected.max())
        assert one.heat.max() > 0


def test_relevance_of_a_class_comes_from_its_token_and_its_patches() -> None:
    predictor = predictor_of("segmenter")
    [one] = explain_segments(predictor, picture(), target=1)
    read = read_at(one.mask, one.geometry.frame, SIZE)
    carried = weights_by(predictor.model, batch_of(predictor), lambda out: (out.logits[0, one.target] * read).sum())
    *backbone, first, last = carried.values()
    decoder = (np.eye(93) + last) @ (np.eye(93) + first)
    start = np.zeros(93)
    start[one.target] = 0.5
    start[5:] = 0.5 * share_of_cells(one.mask, one.geometry.frame, (8, 11), (8, 8)).numpy().ravel()
    row = np.append(0, (start @ decoder)[5:])
    for attention in reversed(backbone):
        row = row + row @ attention
    expected = row[1:] - start[5:]
    np.testing.assert_allclose(one.heat.ravel(), expected, rtol=1e-3, atol=1e-4 * expected.max())
    assert one.method == "relevance"


def test_relevance_of_a_masked_query_follows_maps_of_all_sizes() -> None:
    """Chefer et al. 2021, equations 7 to 10, a map of each size by itself; queries ask the picture first."""
    predictor = predictor_of("mask2former")
    [one] = explain_segments(predictor, picture(), method="relevance", target=0)
    carried = weights_by(predictor.model, batch_of(predictor), lambda out: out.logits[0, one.query, one.target])
    queries, across = np.eye(7), {24: np.zeros((7, 24)), 6: np.zeros((7, 6)), 88: np.zeros((7, 88))}
    for layer in range(len(one.look.gaze.across)):
        asked = carried[f"decoder.{layer}.cross_attention"]
        taken = queries - np.eye(7)
        sums = taken.sum(1, keepdims=True)
        normed = np.where(sums > 0, taken / np.where(sums > 0, sums, 1), 0) + np.eye(7)
        across[asked.shape[1]] += normed.T @ asked
        own = carried[f"decoder.{layer}.attention"]
        queries = queries + own @ queries
        across = {count: found + own @ found for count, found in across.items()}
    expected = across[88][one.query].reshape(8, 11)
    for count, grid in ((24, (4, 6)), (6, (2, 3))):
        side = 8 // grid[0]
        coarse = across[count][one.query].reshape(grid)
        for i, j in np.ndindex(*grid):
            own = expected[side * i : side * i + side, side * j : side * j + side]
            own += coarse[i, j] / own.size
    np.testing.assert_allclose(one.heat, expected, rtol=2e-3, atol=1e-4 * expected.max())
    assert one.heat.max() > 0


@torch.no_grad()
def test_rollout_is_the_row_of_the_patches_it_asks_by() -> None:
    predictor = predictor_of("transunet")
    [one] = explain_segments(predictor, picture(), method="rollout", target=(40, 20))
    with capture(predictor.model) as maps:
        predictor.model(batch_of(predictor))
    expected = roll_out([one_.mean(1) for one_ in maps])[0, 6 * int(20.5 * 61 / 60 // 16) + int(40.5 * 83 / 90 // 16)]
    np.testing.assert_allclose(one.heat.ravel(), expected, atol=1e-6)
    for kind in ("segformer", "upernet"):  # every stage is read, and nothing is lost on the way
        [one] = explain_segments(predictor_of(kind), picture(), method="rollout", target=0)
        assert one.heat.shape == (16, 21)
        assert one.heat.sum() == pytest.approx(1, abs=1e-5)


def test_of_a_query_its_class_or_its_mask_is_explained() -> None:
    predictor = predictor_of("maskformer")
    model: Any = predictor.model
    batch = batch_of(predictor).requires_grad_()
    output = model(batch)
    explain: Callable[..., Any] = vitral.explain
    [by_class] = explain(predictor, picture(), method="gradient_times_input", target=0)
    [by_mask] = explain(predictor, picture(), method="gradient_times_input", target=0, score="mask")
    [pixel] = explain(predictor, picture(), method="gradient_times_input", target=(40, 20))
    read = read_at(by_mask.mask, by_mask.geometry.frame, output.masks.shape[2:])
    at = read_at(pixel.mask, pixel.geometry.frame, output.masks.shape[2:])
    scores = [
        (by_class, output.logits[0, by_class.query, by_class.target]),
        (by_mask, (output.masks[0, by_mask.query] * read).sum()),
        (pixel, (output.masks[0, pixel.query] * at).sum()),
    ]
    for one, score in scores:
        [slope] = torch.autograd.grad(score, [batch], retain_graph=True)
        expected = (slope * batch)[0].sum(0).detach()
        np.testing.assert_allclose(one.heat, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


@every
def test_every_method_that_fits_explains_segments_and_pixels(kind: str) -> None:
    predictor = predictor_of(kind)
    look = look_at_segments(predictor, picture(), pixels=[(40.5, 20.0)], top_k=1)
    methods = fitting_segment_methods(predictor.model)
    for method, found in explain_segment_look(predictor, look, methods, (0, 1)).items():
        assert [one.pixel for one in found] == [None, (40.5, 20.0)]
        for one in found:
            assert one.method == method
            assert one.on_picture().shape == (60, 90)
            assert one.label == LABELS[one.target or 0]
            told = json.loads(json.dumps(one.to_dict()))
            np.testing.assert_array_equal(decode_rle(told["mask"]), one.mask)
            assert one.draw(longest=90).size == (90, 60)
    gaze = {"unet": "none", "vgg": "none"} | dict.fromkeys(QUERIES, "queries")
    assert segment_gaze(predictor.model).kind == gaze.get(kind, "patches")
    usual = {"unet": "grad_cam", "vgg": "gradient_times_input"}
    assert usual_segment_method(predictor.model) == usual.get(kind, "relevance")
    for method in set(SEGMENT_METHODS) - set(fitting_segment_methods(predictor.model)):
        with pytest.raises(UsageError, match="These work: "):
            vitral.explain(predictor, picture(), method=method)


def test_which_segments_are_explained_and_what_is_refused() -> None:
    predictor = predictor_of("segformer")
    explain: Callable[..., Any] = vitral.explain
    look = look_at_segments(predictor, picture())
    assert [one.area for one in look.asked] == sorted((one.area for one in look.asked), reverse=True)
    by_name = explain(predictor, picture(), target=look.labels[1], method="attention", layer=0, head=0)
    assert [one.place for one in by_name] == [1]
    np.testing.assert_allclose(by_name[0].heat, look.heat(1, 0, 0), atol=1e-6)
    several = explain(predictor, [picture(), picture(1)], method="attention", top_k=1)
    assert [len(one) for one in several] == [1, 1]
    assert explain(predictor, picture(), threshold=1.0) == []
    for wrong, told in (
        (99, "There is no segment 99"),
        ((99.0, 0.0), "is beyond <array>, which is 90 pixels wide"),
        ([(1, 2, 3)], "A pixel is"),
    ):
        with pytest.raises(UsageError, match=told):
            explain(predictor, picture(), target=wrong)
    with pytest.raises(UnknownNameError, match="Unknown class 'sky'"):
        explain(predictor, picture(), target="sky")
    with pytest.raises(UnknownNameError, match="'attention'"):
        explain(predictor, picture(), method="atention")
    with pytest.raises(UnknownNameError, match="'layer'"):
        explain(predictor, picture(), method="attention", lyer=1)
    with pytest.raises(UsageError, match="score= is for networks whose queries draw masks"):
        explain(predictor, picture(), method="relevance", score="mask")
    with pytest.raises(UnknownNameError, match="'mask'"):
        explain(predictor_of("detr"), picture(), method="relevance", score="mark")
    with pytest.raises(UsageError, match="no layer 7: there are 5"):
        look.heat(0, 7)
    with pytest.raises(UsageError, match="no segment 9"):
        look.heat(9)
    with pytest.raises(UsageError, match="no attention to be looked at"):
        look_at_segments(predictor_of("unet"), picture()).heat(0)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in predictor.model.modules())


# -- the page ---------------------------------------------------------------------------------------------------------


def told_on(page: str) -> Any:
    return json.loads(re.search(r'<script type="application/json" id="told">(.*?)</script>', page, re.DOTALL)[1])  # type: ignore[index]


@pytest.mark.parametrize("kind", ["segmenter", "mask2former", "unet"])
def test_a_page_holds_every_segment_and_its_evidence(kind: str) -> None:
    predictor = predictor_of(kind)
    target: Any = [0, (40, 20)]
    page = segment_explanation_page(predictor, picture(), target=target)
    told, look = told_on(page), look_at_segments(predictor, picture())
    assert [one["pixel"] for one in told["segments"]] == [None, [40, 20]]
    assert told["segments"][0]["box"] == list(look.asked[0].box)
    assert {one["name"] for one in told["methods"]} == set(fitting_segment_methods(predictor.model))
    assert len(re.findall(r'data-segment="\d', page)) == 2
    assert len(told["attention"]) == look.layers
    assert len(told["masks"]) == look.times
    for layer, one in enumerate(told["attention"]):
        assert one["levels"]["shape"] == [2, 1 + look.across[layer].shape[1], *look.across[layer].shape[2:]]
    assert len(told["patches"]) == (5 if kind == "segmenter" else 0)
    assert not re.search(r"""(src|href)=["']?(http|//)""", page)


def test_a_lower_threshold_is_advised_only_where_it_finds_more(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = predictor_of("mask2former")
    for predictor in (predictor_of("segformer"), masks):  # classes need no threshold; that of the masks is 0
        monkeypatch.setattr(predictor, "record", replace(predictor.record, labels=(*LABELS, "sky")))
        with pytest.raises(UsageError, match=r"No 'sky' was found in <array>, but .*[^.]\.$") as told:
            vitral.explain(predictor, picture(), target="SKY")
        assert "threshold" not in str(told.value)
    with pytest.raises(UsageError, match=r"A lower threshold finds more\.$"):
        vitral.explain(masks, picture(), target="dog", threshold=0.99)
    with pytest.raises(UnknownNameError, match="'dog'"):
        vitral.explain(masks, picture(), target="dogs")


@pytest.mark.parametrize(
    ("option", "sentence"), [({"head": 99}, "There is no head 99"), ({"layer": 99}, "There is no layer 99")]
)
def test_a_page_opens_at_no_head_or_layer_that_is_not_there(option: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        segment_explanation_page(predictor_of("mask2former"), picture(), method="attention", **option)


def test_names_cannot_harm_a_page_and_heads_are_left_out_where_they_are_too_many() -> None:
    predictor = predictor_of("mask2former")
    model: Any = predictor.model
    before, model.record = model.record, replace(model.record, labels=tuple(f"</script><b>{label}" for label in LABELS))
    try:
        page = segment_explanation_page(
            vitral.load(model, threshold=0.0, mask_threshold=0.0), picture(), top_k=1, budget=200
        )
    finally:
        model.record = before
    assert "</script><b>" not in page
    assert {one["heads"] for one in told_on(page)["attention"]} == {0}
    page = segment_explanation_page(predictor, picture(), threshold=1.0)
    assert "was sure of nothing" in page
    assert told_on(page)["segments"] == []


def test_the_command_leaves_a_page_or_a_drawing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitral.cli import explain as cli

    monkeypatch.setattr(cli, "load", lambda *_, **__: predictor_of("unet"))
    Image.fromarray(picture()).save(tmp_path / "a.png")
    asked: dict[str, Any] = {"png": None, "method": None, "layer": None, "head": None, "top_k": 2}
    cli.explain(str(tmp_path / "a.png"), "unet", out=tmp_path / "pixel.html", target="40,20", **asked)
    [one] = told_on((tmp_path / "pixel.html").read_text("utf-8"))["segments"]
    assert one["pixel"] == [40, 20]
    cli.explain(str(tmp_path / "a.png"), "unet", out=tmp_path / "drawn.png", target="0", **asked)
    assert Image.open(tmp_path / "drawn.png").size == (160, 107)
    with pytest.raises(UsageError, match=r"There is nothing to draw: nothing was found to be explained\.$"):
        cli.explain(str(tmp_path / "a.png"), "x", out=tmp_path / "none.png", target=None, threshold=1.0, **asked)
    with pytest.raises(UsageError, match="are for segmenters that draw masks"):
        cli.explain(str(tmp_path / "a.png"), "x", out=tmp_path / "none.png", target=None, mask_threshold=0.3, **asked)
    masks = vitral.load(predictor_of("mask2former").model, threshold=0.0)
    monkeypatch.setattr(cli, "load", lambda *_, **__: masks)
    with pytest.raises(UsageError, match=r"nothing was found to be explained\.$"):  # all of which 0 is the least
        cli.explain(str(tmp_path / "a.png"), "x", out=tmp_path / "none.png", target=None, overlap_threshold=1.0, **asked)
    assert masks.options.overlap_mask_area_threshold == 1.0
    assert not (tmp_path / "none.png").exists()
