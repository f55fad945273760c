"""RT-DETR through the harness; its encoder, its queries, its noise against closed forms; the published sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from tests.models.detection.harness import DetectorHarness
from tests.models.harness import stirred
from vitral.base.boxes import Objects, cxcywh_to_xyxy
from vitral.errors import UsageError
from vitral.explanation.capture import capture
from vitral.layers.repvgg import RepConvNorm
from vitral.models.backbones.resnet import ResNetConfig
from vitral.models.catalogue import CATALOGUE
from vitral.models.detection.denoising import Noise, noisy_objects, visibility
from vitral.models.detection.hybrid_encoder import HybridEncoder, HybridEncoderConfig
from vitral.models.detection.rtdetr import RTDETR, RTDETRConfig

TINY = ResNetConfig(
    block="basic",
    stem="deep",
    stem_width=8,
    stage_channels=(8, 12, 16, 24),
    depths=(1, 1, 1, 1),
    pooled=True,
    projected=True,
)
SMALL = RTDETRConfig(
    image_size=(128, 128),
    num_classes=5,
    backbone=TINY,
    encoder=HybridEncoderConfig(width=24, heads=2, hidden=20, expansion=0.5, fusion_depth=2),
    width=32,
    heads=4,
    hidden=24,
    decoder_depth=3,
    queries=9,
    points=(2, 2, 2),
    noise=Noise(queries=8),
)


class TestRTDETR(DetectorHarness):
    kinds: ClassVar[Mapping[str, Any]] = {
        "frozen": replace(SMALL, backbone=replace(TINY, norm="frozen")),
        "uneven, discrete, in grey": replace(SMALL, channels=1, points=(1, 3, 2), sampling="discrete"),
    }
    reach = None
    # Softmax forgets what all keys have in common; and places that are rounded do not move by little steps.
    idle = (r".*\.key\.bias",)
    bf16 = 0.3  # which cells are the best depends on digits that half precision does not have

    def test_a_picture_alone_is_answered_as_in_a_batch(self, kind: str) -> None:
        if self.kinds[kind].sampling == "discrete":
            pytest.skip("The last digit of a place decides on which of two cells it falls.")
        super().test_a_picture_alone_is_answered_as_in_a_batch(kind)

    def test_gradients_reach_every_parameter_and_the_picture(self, kind: str) -> None:
        kept = type(self).idle
        try:
            if self.kinds[kind].sampling == "discrete":
                type(self).idle = (*kept, r"decoder\.\d+\.cross_attention\.offsets\..*")
            super().test_gradients_reach_every_parameter_and_the_picture(kind)
        finally:
            type(self).idle = kept

    def test_a_mask_that_hides_something_is_refused(self, kind: str) -> None:
        model = self.small(kind)
        mask = torch.zeros(1, 64, 64, dtype=torch.bool)
        mask[:, 60:] = True
        with pytest.raises(UsageError, match="Resize pictures to one size"):
            model(self.pictures(model, 1, (64, 64)), mask)

    @torch.no_grad()
    def test_only_the_first_blocks_answer_where_so_configured(self, kind: str) -> None:
        model = self.small(kind)
        pixels = self.pictures(model, 1, (64, 96))
        model.config = replace(model.config, evaluated_depth=2)
        short = model(pixels)
        model.config = replace(model.config, decoder_depth=2)
        model.decoder = model.decoder[:2]
        assert torch.equal(short.boxes, model(pixels).boxes)

    @torch.no_grad()
    def test_a_picture_of_fewer_cells_has_fewer_queries(self, kind: str) -> None:
        model = self.small(kind)
        assert model(self.pictures(model, 1, (8, 8))).boxes.shape == (1, 3, 4)  # a cell on each map

    @torch.no_grad()
    def test_attention_can_be_looked_at(self, kind: str) -> None:
        model = self.small(kind)
        with capture(model) as maps:
            model(self.pictures(model, 1, (96, 64)))
        assert [one.shape[2:] for one in maps] == [(6, 6), *[(9, 9)] * 3]

    def test_a_head_of_no_classes_is_refused(self, kind: str) -> None:
        with pytest.raises(UsageError, match="num_classes must be from 1"):
            self.small(kind).reset_head(0)


# Table 2 of the paper, and of RT-DETRv2's, in millions, cut as the authors cut them.
PUBLISHED = {"r18": 20, "r34": 31, "r50_m": 36, "r50": 42, "r101": 76}


@pytest.mark.parametrize("size", PUBLISHED)
def test_the_published_number_of_parameters(size: str) -> None:
    first, second = CATALOGUE[f"rtdetr_{size}"], CATALOGUE[f"rtdetrv2_{size}"]
    with torch.device("meta"):
        model = first.build(first.config)
    assert sum(parameter.numel() for parameter in model.parameters()) // 10**6 == PUBLISHED[size]
    assert second.config == first.config
    assert (first.paper, second.paper) == ("Zhao et al. 2024", "Lv et al. 2024")


@torch.no_grad()
@pytest.mark.parametrize("activation", ["none", "relu", "silu"])
def test_two_branches_are_one_convolution(activation: Any) -> None:
    layer: Any = stirred(RepConvNorm(6, activation))  # type: ignore[arg-type]
    plain = {"none": nn.Identity(), "relu": nn.ReLU(), "silu": nn.SiLU()}[activation]
    x, shortcut = torch.randn(2, 2, 6, 7, 5)

    def apart() -> torch.Tensor:
        return layer.norm(layer.conv(x)) + layer.point.norm(layer.point.conv(x))

    calls: list[str] = []
    torch.testing.assert_close(layer(x), plain(apart()))
    torch.testing.assert_close(layer(x, shortcut), plain(apart() + shortcut))
    for part in (layer.conv, layer.point, layer.point.conv):  # whoever listens hears both branches
        handle = part.register_forward_hook(lambda *_: calls.append("heard"))
        torch.testing.assert_close(layer(x), plain(apart()))
        assert calls.pop() == "heard"
        calls.clear()
        handle.remove()
    layer(x)
    assert not calls
    layer.point.conv.weight.mul_(2)  # and what was made of the old weights is forgotten
    torch.testing.assert_close(layer(x), plain(apart()))
    layer.point.norm.running_var.mul_(3)
    torch.testing.assert_close(layer(x), plain(apart()))
    assert set(layer.state_dict()) == {
        f"{branch}{part}"
        for branch in ("", "point.")
        for part in ("conv.weight", *(f"norm.{name}" for name in layer.norm.state_dict()))
    }


def test_two_branches_learn_as_two() -> None:
    layer = RepConvNorm(4, "silu").train()
    x = torch.randn(3, 4, 5, 5)
    expected = nn.functional.silu(nn.BatchNorm2d(4)(layer.conv(x)) + nn.BatchNorm2d(4)(layer.point.conv(x)))
    out = layer(x)
    torch.testing.assert_close(out, expected)
    out.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in layer.parameters())


@torch.no_grad()
def test_maps_of_odd_sizes_meet() -> None:
    """What is doubled is cut where the finer map ends: of the odd cell there is half."""
    encoder: Any = stirred(HybridEncoder((4, 6), HybridEncoderConfig(width=8, heads=2, hidden=8, depth=0)))  # type: ignore[arg-type]
    fine, coarse = torch.randn(1, 4, 5, 7), torch.randn(1, 6, 3, 4)
    lateral = encoder.laterals[0](encoder.projections[1](coarse))
    doubled = lateral.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, :5, :7]
    first = encoder.down[0](doubled, encoder.projections[0](fine))
    second = encoder.up[0](encoder.strides[0](first), lateral)
    for one, expected in zip(encoder([fine, coarse]), (first, second), strict=True):
        torch.testing.assert_close(one, expected)


@torch.no_grad()
def test_queries_are_the_cells_that_look_most_like_an_object() -> None:
    model: Any = TestRTDETR.small("frozen")
    grids = ((6, 5), (3, 3), (2, 2))
    memory = torch.randn(2, 43, 32)
    queries, proposals = model._proposed(memory, grids)
    for picture in range(2):
        found = []
        for level, (rows, columns) in enumerate(grids):
            for row in range(rows):
                for column in range(columns):
                    token = memory[picture, len(found)]
                    box = torch.tensor([(column + 0.5) / columns, (row + 0.5) / rows, 0.05 * 2**level, 0.05 * 2**level])
                    cell = model.proposal(token)
                    logits = model.proposal_classes(cell)
                    found.append((logits.max().item(), cell, logits, (model.proposal_box(cell) + box.logit()).sigmoid()))
        best = sorted(found, key=lambda one: -one[0])[:9]
        for place, (_, cell, logits, box) in enumerate(best):
            torch.testing.assert_close(queries[picture, place], cell)
            torch.testing.assert_close(proposals.logits[picture, place], logits)
            torch.testing.assert_close(proposals.boxes[picture, place], box)


@torch.no_grad()
def test_cells_at_the_edge_of_a_large_map_begin_nothing() -> None:
    model: Any = TestRTDETR.small("frozen")
    memory = torch.randn(1, 60 * 3, 32)
    large = model._proposed(memory, ((60, 3),))
    memory[:, :3], memory[:, -3:] = 100.0, -100.0  # rows whose middle is a 120th of the picture from its edge
    for one, other in zip(large, model._proposed(memory, ((60, 3),)), strict=True):
        torch.testing.assert_close(one, other)


def known(*counts: int, classes: int = 5) -> tuple[Objects, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(
        Objects(
            torch.randint(classes, (many,), generator=generator),
            torch.cat([torch.full((many, 2), 0.5), 0.1 + 0.2 * torch.rand(many, 2, generator=generator)], dim=1),
        )
        for many in counts
    )


def test_near_queries_are_near_and_far_ones_far() -> None:
    targets = known(3, 0, 2, classes=7)
    shown = noisy_objects(targets, 7, Noise(queries=300, labels=0.5, boxes=0.8))
    assert shown is not None
    assert (shown.groups, shown.labels.shape) == (100, (3, 600))
    changed = []
    for picture, one in enumerate(targets):
        rows, objects = shown.rows[picture], shown.objects[picture]
        assert len(rows) == len(objects) == 100 * len(one.labels)
        for distance, low in ((rows, 0.0), (rows + 3, 1.0)):  # a group's far queries stand behind its near ones
            boxes, true = shown.boxes[picture, distance], one.boxes[objects]
            whole = (boxes[:, 2:] > 0).all(1)  # far edges may cross, and then nothing is left between them
            boxes, true = boxes[whole], true[whole]
            moved = (cxcywh_to_xyxy(boxes) - cxcywh_to_xyxy(true)).abs() / (true[:, 2:].repeat(1, 2) / 2 * 0.8)
            if len(rows):
                assert whole.float().mean() > (0.99 if distance is rows else 0.1)
                assert low - 1e-4 <= moved.min() < low + 0.05
                assert low + 0.95 < moved.max() <= low + 1 + 1e-4
            changed.append(shown.labels[picture, distance] != one.labels[objects])
    # A quarter is given a random class, of which a seventh is the old one.
    assert torch.cat(changed).float().mean().item() == pytest.approx(0.25 * 6 / 7, abs=0.04)
    assert (shown.labels[1] == 7).all()  # a picture without objects shows nothing
    assert shown.boxes.min() >= 0


def test_without_noise_objects_are_themselves() -> None:
    targets = known(2, 1)
    shown = noisy_objects(targets, 7, Noise(queries=5, labels=0.0, boxes=0.0))
    assert shown is not None
    assert shown.groups == 2
    for picture, one in enumerate(targets):
        rows, objects = shown.rows[picture], shown.objects[picture]
        assert torch.equal(shown.labels[picture, rows], one.labels[objects])
        assert torch.equal(shown.boxes[picture, rows], one.boxes[objects])
    assert shown.rows[1].tolist() == [0, 4]
    assert noisy_objects(known(0, 0), 7, Noise()) is None
    assert noisy_objects(targets, 7, Noise(queries=0)) is None
    crowded = noisy_objects(known(9), 7, Noise(queries=4))
    assert crowded is not None
    assert crowded.groups == 1
    with pytest.raises(UsageError, match="from 0 to 1; "):
        noisy_objects((Objects(torch.tensor([0, 2]), torch.rand(2, 4)),), 2, Noise())


def test_who_sees_whom() -> None:
    sees = visibility(6, 2, 3, torch.device("cpu")).numpy()
    expected = np.zeros((9, 9), dtype=bool)
    expected[:3, :3] = expected[3:6, 3:6] = True
    expected[:, 6:] = True
    assert (sees == expected).all()


def test_what_is_shown_does_not_reach_the_ordinary_queries() -> None:
    model = TestRTDETR.small("frozen")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    pixels = torch.randn(2, 3, 64, 96)
    model.train()
    without, shown = model(pixels), model(pixels, targets=known(2, 1))
    assert without.denoising is None
    assert shown.denoising is not None
    assert len(shown.denoising.layers) == 3
    torch.testing.assert_close(shown.logits, without.logits)
    torch.testing.assert_close(shown.boxes, without.boxes)
    assert model(pixels, targets=known(0, 0)).denoising is None
    assert model.eval()(pixels, targets=known(2, 1)).denoising is None


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"width": 30}, "30 channels cannot be shared among 4 heads"),
        ({"points": (2, 0, 2)}, "points has a number of 1 or more"),
        ({"points": (1,) * 5}, "the backbone makes 4"),
        ({"evaluated_depth": 4}, "at most decoder_depth, 3; 4 came"),
        ({"backbone": replace(TINY, dilated=1)}, "dilated must be 0"),
        ({"queries": 0}, "queries must be from 1"),
        ({"sampling": "discreet"}, "discrete"),
    ],
)
def test_what_cannot_be_built_is_refused(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        replace(SMALL, **wrong)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"width": 30}, "multiple of both"),
        ({"expansion": 0.001}, "leave none to fuse maps in"),
        ({"fusion_activation": "sliu"}, "silu"),
    ],
)
def test_an_encoder_that_cannot_be_built_is_refused(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        HybridEncoderConfig(**wrong)


def test_the_backbone_is_made_for_the_same_pictures() -> None:
    config = RTDETRConfig(image_size=(320, 480), channels=1)
    assert (config.backbone.image_size, config.backbone.channels, config.backbone.num_classes) == ((320, 480), 1, 0)
    assert (config.grid, config.levels, config.depth) == ((10, 15), (1, 2, 3), 16 + 1 + 6)
    assert isinstance(RTDETR(replace(SMALL, noise=Noise(queries=0))).noisy, type(None))
