"""Faster R-CNN, RetinaNet and FCOS as detectors of the house."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from tests.models.detection.harness import DetectorHarness, filled_up
from tests.models.harness import assert_close
from vitral.base.boxes import cxcywh_to_xyxy, iou
from vitral.errors import UsageError
from vitral.models.backbones.resnet import ResNetConfig
from vitral.models.detection import faster_rcnn, fcos, retinanet
from vitral.models.detection.detector import Detector

_BACKBONE = ResNetConfig(block="basic", stem_width=8, stage_channels=(8, 8, 16, 16), depths=(1, 1, 1, 1), num_classes=0)
_FROZEN = replace(_BACKBONE, norm="frozen")
_SMALL: dict[str, Any] = {"pyramid_width": 64, "num_classes": 5}


class _Dense(DetectorHarness):
    reach = None  # what fills a batch up is seen through windows that overlap, and by group norms
    set_of_queries = False

    def told(self, out: Any) -> Iterator[Tensor]:
        yield out.logits
        yield out.offsets
        if out.centerness is not None:
            yield out.centerness

    @torch.no_grad()
    def test_an_answer_for_every_anchor(self, kind: str) -> None:
        model = self.small(kind)
        for size in self.sizes:
            out = model(self.pictures(model, 2, size))
            assert out.logits.shape == (2, len(out.anchors), 5)
            assert out.offsets.shape == out.boxes.shape == (2, len(out.anchors), 4)
            assert sum(out.counts) == len(out.anchors)
            assert out.sizes.tolist() == [list(size)] * 2

    @torch.no_grad()
    def test_boxes_are_of_the_picture_without_what_fills_it_up(self, kind: str) -> None:
        model = self.small(kind)
        small, large = self.pictures(model, 1, (64, 96))[0], self.pictures(model, 1, (128, 96))[0]
        out = model(*filled_up([small, large], (128, 96)))
        assert out.sizes.tolist() == [[64, 96], [128, 96]]
        unfilled = out._replace(sizes=torch.tensor([[128.0, 96.0]] * 2)).boxes
        torch.testing.assert_close(out.boxes[0], unfilled[0] * torch.tensor([1.0, 2.0, 1.0, 2.0]))


class TestRetinaNet(_Dense):
    kinds: ClassVar = {
        "v1": retinanet.RetinaNetConfig(**_SMALL, backbone=_FROZEN),
        "v2": replace(retinanet.VARIANTS["retinanet_r50_fpn_v2"], **_SMALL, backbone=_BACKBONE),
    }


class TestFCOS(_Dense):
    kinds: ClassVar = {"fcos": fcos.FCOSConfig(**_SMALL, backbone=_FROZEN)}


class TestFasterRCNN(DetectorHarness):
    reach = None
    set_of_queries = False
    kinds: ClassVar = {
        "v1": faster_rcnn.FasterRCNNConfig(**_SMALL, backbone=_FROZEN, head_width=24, proposals=20, training_proposals=30),
        "v2": replace(
            faster_rcnn.VARIANTS["fasterrcnn_r50_fpn_v2"],
            **_SMALL,
            backbone=_BACKBONE,
            head_convolutions=1,
            head_width=24,
            proposals=20,
            training_proposals=30,
        ),
    }

    def told(self, out: Any) -> Iterator[Tensor]:
        yield out.logits
        yield out.offsets
        yield out.proposing.logits
        yield out.proposing.offsets

    @torch.no_grad()
    def test_a_picture_alone_is_answered_as_in_a_batch(self, kind: str) -> None:
        model = self.small(kind)
        pixels = self.pictures(model, 3, self.sizes[1])
        together = model(pixels)
        for place in range(3):
            alone = model(pixels[place : place + 1])
            valid = together.valid[place]
            assert alone.valid.all()
            assert_close(alone.regions[0], together.regions[place][valid], 1e-4)
            assert_close(alone.logits[0], together.logits[place][valid], 1e-4)
            assert_close(alone.boxes[0], together.boxes[place][valid], 1e-4)

    @torch.no_grad()
    def test_half_precision_stays_close(self, kind: str) -> None:
        """Of the first look: what is proposed hangs on the last digit of scores."""
        model = self.small(kind)
        pixels = self.pictures(model, 2, self.sizes[0])
        whole = model(pixels).proposing.logits
        half = model.to(torch.bfloat16)(pixels.to(torch.bfloat16))
        assert half.logits.dtype == torch.bfloat16
        assert ((half.proposing.logits.float() - whole).norm() / whole.norm()).item() < self.bf16

    @torch.no_grad()
    def test_rows_that_are_no_regions_say_nothing(self, kind: str) -> None:
        model = self.small(kind)
        out = model(*filled_up([self.pictures(model, 1, size)[0] for size in ((20, 24), (128, 160))], (128, 160)))
        missing = ~out.valid
        assert missing.any()
        assert out.valid.any(1).all()
        assert (out.logits[missing].argmax(-1) == 5).all()
        inside = out.regions[out.valid]
        assert (inside >= 0).all()
        for place in range(2):
            assert (out.regions[place].amax(0).view(2, 2) <= out.sizes[place].flip(0)).all()

    @torch.no_grad()
    def test_objects_join_the_proposals_in_training(self, kind: str) -> None:
        model = self.small(kind, training_regions=8).train()
        targets = self.targets(3)
        torch.manual_seed(0)
        out = model(self.pictures(model, 3, (96, 96)), targets=targets)
        assert out.valid.sum(1).max() <= 8
        for place, objects in enumerate(targets):
            if len(objects.boxes):
                boxes = cxcywh_to_xyxy(objects.boxes) * 96
                # Two of eight may hold an object, and each object holds itself.
                held = (iou(boxes, out.regions[place][out.valid[place]]) >= 0.5).any(0)
                assert 1 <= held.sum() <= 2


CONFIGS = {"faster_rcnn": faster_rcnn.FasterRCNNConfig, "retinanet": retinanet.RetinaNetConfig, "fcos": fcos.FCOSConfig}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_configurations_that_make_no_sense_are_refused(config: Any) -> None:
    with pytest.raises(UsageError, match="four stages"):
        config(backbone=ResNetConfig(stage_channels=(8, 8), depths=(1, 1)))
    with pytest.raises(UsageError, match="anchor_sides are five"):
        config(anchor_sides=(1, 2))
    with pytest.raises(UsageError, match="num_classes must be from 1"):
        config(num_classes=0)
    assert config(channels=1).backbone.channels == 1


def test_a_detector_keeps_a_class_and_groups_fit() -> None:
    model: Detector = fcos.FCOS(TestFCOS.kinds["fcos"])
    with pytest.raises(UsageError, match="one class of objects or more"):
        model.reset_head(0)
    with pytest.raises(UsageError, match="32 groups, into which 40"):
        fcos.FCOS(replace(TestFCOS.kinds["fcos"], pyramid_width=40))
