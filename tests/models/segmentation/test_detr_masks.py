"""DETR with masks through the harness, and what is its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch

from tests.models.harness import assert_close
from tests.models.segmentation.harness import SegmentationHarness
from vitral.base.frame import Frame, Seen
from vitral.errors import UsageError
from vitral.layers.joint_attention import JointAttentionMaps
from vitral.models.backbones.resnet import ResNetConfig
from vitral.models.catalogue import CATALOGUE, create_model
from vitral.models.output import MaskOutput
from vitral.models.segmentation.detr_masks import MaskedDETRConfig
from vitral.tasks.detection.decode import decode
from vitral.tasks.detection.result import Options

TINY = ResNetConfig(block="basic", stem_width=8, stage_channels=(8, 12, 16, 16), depths=(1, 1, 1, 1), norm="frozen")
SMALL = MaskedDETRConfig(
    image_size=(64, 96),
    num_classes=5,
    backbone=TINY,
    queries=7,
    width=32,
    encoder_depth=1,
    decoder_depth=2,
    heads=8,
    mlp_width=48,
)


class TestMaskedDETR(SegmentationHarness):
    kinds: ClassVar[Mapping[str, Any]] = {"small": SMALL}
    maps: ClassVar[Mapping[str, int]] = {"small": 5}
    auxiliary: ClassVar[Mapping[str, int]] = {"small": 0}
    # The first self-attention of the decoder sees queries that are nothing yet: all tell the same, so that it does not
    # matter who is asked, and nothing is what they tell it of. A group of one channel or two forgets what is added to it.
    idle = (
        r"detr\.decoder\.0\.attention\.(query|key)\..*",
        r"detr\.decoder\.0\.attention\.value\.weight",
        r".*\.key\.bias",
    )

    def test_it_is_a_network(self, kind: str) -> None:
        """Its pictures have no size of their own, as those of a detector have none; all else holds."""
        model = self.small(kind)
        prepared = model.usual_preprocessing()
        assert (prepared.resize, prepared.size, prepared.longest) == ("shortest_edge", (64, 64), 96)
        assert model.tasks == ("image-segmentation", "object-detection")
        assert model.config == self.kinds[kind] == replace(model.config)
        assert model.depth == model.config.depth == len(list(model.blocks)) == 7
        depths = model.depths()
        assert set(depths) == {name for name, _ in model.named_parameters()}
        assert depths["detr.backbone.stem.conv.weight"] == 0
        assert depths["attention_maps.query.weight"] == depths["mask_head.last.weight"] == 8

    @torch.no_grad()
    def test_objects_are_read_from_it_as_from_the_detector_within(self, kind: str) -> None:
        model = self.small(kind)
        pixels = self.pictures(model, 2, (61, 83))
        out, within = model(pixels), model.detr(pixels)
        assert_close(out.logits, within.logits, 1e-5)
        seen = [Seen(str(place), Frame(picture=(61, 83), input=(61, 83))) for place in range(2)]
        every = Options(threshold=0.0)
        found, expected = (decode(one, seen, model.record, every) for one in (out, within))
        for one, other in zip(found, expected, strict=True):
            assert len(one) == 7
            assert one.labels == other.labels
            assert_close(torch.as_tensor(one.boxes), torch.as_tensor(other.boxes), 1e-4)


def test_masks_without_boxes_are_no_objects() -> None:
    out = MaskOutput(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 8))
    seen = [Seen("one", Frame(picture=(16, 16), input=(16, 16)))]
    with pytest.raises(UsageError, match="draws masks and no boxes"):
        decode(out, seen, create_model("detr_r50_panoptic", **{"backbone.depths": (1, 1, 1, 1), "width": 32}).record)


@torch.no_grad()
def test_all_heads_and_places_share_one_softmax() -> None:
    torch.manual_seed(0)
    layer = JointAttentionMaps(8, 2)
    queries, cells = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    seen = torch.tensor([[True, True, False, True, False], [True] * 5])
    maps = layer(queries, cells, seen[:, None, None])
    assert maps.shape == (2, 3, 2, 5)
    assert_close(maps.sum((2, 3)), torch.ones(2, 3), 1e-6)
    assert not maps[0, :, :, ~seen[0]].any()
    for picture in range(2):
        for query in range(3):  # by hand
            asking = layer.query(queries[picture, query])
            likeness = torch.stack(
                [
                    layer.key(cells[picture, place]).view(2, 4).mul(asking.view(2, 4)).sum(1) / 2
                    for place in range(5)
                    if seen[picture, place]
                ]
            )
            expected = likeness.flatten().softmax(0).view_as(likeness).T
            assert_close(maps[picture, query][:, seen[picture]], expected, 1e-6)
    assert_close(layer(queries, cells), layer(queries, cells, torch.ones(2, 1, 1, 5, dtype=torch.bool)), 1e-6)
    with pytest.raises(UsageError, match="8 channels of queries cannot be shared among 3 heads"):
        JointAttentionMaps(8, 3)


def test_the_published_number_of_parameters() -> None:
    """The detectors', with 250 classes, and what the layers of the authors' code (models/segmentation.py) come to."""
    for name, detector in (("detr_r50_panoptic", "detr_r50"), ("detr_r101_panoptic", "detr_r101")):
        with torch.device("meta"):
            model, plain = (CATALOGUE[one].build(CATALOGUE[one].config) for one in (name, detector))
        counts = [sum(one.numel() for one in network.parameters()) for network in (model, plain)]
        classes = (250 - 91) * (256 + 1)
        maps = 2 * (256 * 256 + 256)
        head = sum(
            (9 * before * after + after) + 2 * after
            for before, after in ((264, 264), (264, 128), (128, 64), (64, 32), (32, 16))
        )
        adapters = 1024 * 128 + 128 + 512 * 64 + 64 + 256 * 32 + 32
        assert counts[0] - counts[1] == classes + maps + head + adapters + 9 * 16 + 1


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (
            {"backbone": ResNetConfig(stage_channels=(256, 512, 1024), depths=(1, 1, 1))},
            "of 4 stages; .* 3 stages, a width of 256 and 8 heads came",
        ),
        ({"width": 24, "heads": 8}, "4 stages, a width of 24 and 8 heads came"),
        ({"width": 48, "heads": 8}, "4 stages, a width of 48 and 8 heads came"),
        ({"width": 32, "heads": 4}, "4 stages, a width of 32 and 4 heads came"),
        ({"queries": 0}, "queries must be from 1"),
    ],
)
def test_what_cannot_be_built_is_refused(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        MaskedDETRConfig(**wrong)
