"""Convolutional vision transformers through the harness, and what is their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from tests.models.harness import Harness
from vitral.errors import UsageError
from vitral.explanation.capture import capture
from vitral.models.backbones.cvt import CvTConfig
from vitral.models.catalogue import create_model

SMALL = {"widths": (16, 16, 32), "depths": (1, 1, 2), "heads": (1, 2, 4), "mlp_ratio": 1.5}


class TestCvT(Harness):
    kinds: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cvt_13": SMALL,
        "cvt_21: in grey, without biases": {
            **SMALL,
            "channels": 1,
            "qkv_bias": False,
            "activation": "gelu",
            "drop_path": 0.1,
        },
    }
    bf16 = 4e-2  # a product is divided by the root of the whole width, so that maps are flat, and tokens nearly the same

    @torch.no_grad()
    def test_keys_are_fewer_and_the_class_token_is_among_those_of_the_last_stage(self, kind: str) -> None:
        model = self.small(kind)
        with capture(model) as maps:
            model(self.pictures(model, 2, (64, 48)))
        assert [one.shape for one in maps] == [
            (2, 1, 16 * 12, 8 * 6),
            (2, 2, 8 * 6, 4 * 3),
            (2, 4, 1 + 4 * 3, 1 + 2 * 2),
            (2, 4, 1 + 4 * 3, 1 + 2 * 2),
        ]
        for one in maps:
            torch.testing.assert_close(one.sum(-1), torch.ones(one.shape[:-1]))

    @torch.no_grad()
    def test_the_last_map_of_the_pyramid_is_what_the_norm_reads(self, kind: str) -> None:
        model = self.small(kind)
        pixels = self.pictures(model, 1, (64, 48))
        maps = model.pyramid(pixels).maps
        assert [one.shape[1:] for one in maps] == [(16, 16, 12), (16, 8, 6), (32, 4, 3)]
        normed = model.norm(maps[-1].flatten(2).transpose(1, 2))
        torch.testing.assert_close(normed, model(pixels).tokens[:, 1:])
        assert torch.equal(model.pyramid(pixels, [1]).maps[0], maps[1])

    def test_depths_go_through_the_stages(self, kind: str) -> None:
        depths = self.small(kind).depths()
        assert depths["stages.0.embedding.projection.conv.weight"] == 0
        assert depths["stages.1.embedding.projection.conv.weight"] == depths["stages.1.blocks.0.norm1.weight"] == 2
        assert depths["stages.2.class_token"] == depths["stages.2.blocks.0.norm1.weight"] == 3
        assert depths["norm.weight"] == depths["head.weight"] == 5


# Table 2 of the paper, in millions.
@pytest.mark.parametrize(("name", "millions"), [("cvt_13", 20.0), ("cvt_21", 31.6), ("cvt_w24", 277)])
def test_the_published_number_of_parameters(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = create_model(name)
    found = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert round(found, 1 if millions < 100 else None) == millions


@torch.no_grad()
@pytest.mark.parametrize("side", [3, 4, 5, 6, 7, 8, 30, 61, 62, 63, 64, 225])
def test_the_grid_is_that_of_the_convolutions(side: int) -> None:
    map_ = torch.zeros(1, 1, side, side)
    for kernel, stride, padding in ((7, 4, 2), (3, 2, 1), (3, 2, 1)):
        map_ = nn.Conv2d(1, 1, kernel, stride, padding)(map_)
    assert CvTConfig().grid_of((side, side)) == map_.shape[2:]


def test_a_picture_too_small_for_a_token_is_refused() -> None:
    model = TestCvT.small("cvt_13")
    assert model(torch.randn(1, 3, 3, 9)).grid == (1, 1)
    with pytest.raises(UsageError, match="2×9 pixels has no room for a first token, which takes 3×3"):
        model(torch.randn(1, 3, 2, 9))
    with pytest.raises(UsageError, match="takes pictures of 3 channels; 4 came"):
        model(torch.randn(1, 4, 32, 32))


def test_branches_are_dropped_in_the_last_stage_alone() -> None:
    model = create_model("cvt_13", **{**SMALL, "depths": (2, 1, 3), "drop_path": 0.2})
    assert [getattr(block.drop_path, "probability", 0.0) for block in model.blocks] == [0.0, 0.0, 0.0, 0.0, 0.1, 0.2]


@pytest.mark.usefixtures("unchecked")
def test_every_stage_has_its_number() -> None:
    with pytest.raises(UsageError, match="widths of a CvTConfig must be three whole numbers"):
        CvTConfig(widths=(64, 192))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"depths": (1, 0, 10)}, "depths must be from 1 to 1000"),
        ({"heads": (1, 5, 6)}, "A stage's width 192 is not a multiple of its heads 5"),
        ({"image_size": (2, 224)}, "image_size must be from 3 to 100000; .2, 224. came"),
        ({"mlp_ratio": 0.0}, "mlp_ratio must be from 0.01"),
    ],
)
def test_what_cannot_be_built_is_refused(wrong: dict[str, object], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        CvTConfig(**wrong)
