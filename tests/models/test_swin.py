"""Swin Transformers: what every network must do, their sizes, and what their configurations refuse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch

from tests.models.harness import Harness, assert_close
from vitral.errors import UsageError
from vitral.models.backbones.swin import VARIANTS, Swin, SwinConfig
from vitral.models.catalogue import create_model

TINY: dict[str, Any] = {
    "image_size": (64, 64),
    "widths": (8, 16, 32),
    "depths": (2, 2, 1),
    "heads": (2, 2, 4),
    "windows": ((4, 4), (4, 4), (4, 4)),
}


class TestSwin(Harness):
    kinds: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "swin_ti": TINY,
        "swin_ti: positions, oblong windows": {
            **TINY,
            "position": "learned",
            "windows": ((4, 2), (3, 5), (2, 2)),
            "qkv_bias": False,
        },
        "swin_ti: as in timm": {**TINY, "shift_rule": "always", "shift_first": True, "rest": "left_out"},
        "swinv2_ti_w8_256": TINY,
        "swinv2_ti_w8_256: fine-tuned": {**TINY, "pretrained_windows": ((2, 2), (3, 3), (4, 4)), "shift_rule": "both_sides"},
    }

    def test_a_network_made_for_another_size_answers_as_this_one(self) -> None:
        for kind in self.kinds:
            model = self.small(kind)
            other = model.resized((80, 112))
            pixels = self.pictures(model, 1, (80, 112))
            with torch.no_grad():
                assert_close(other(pixels).logits, model(pixels).logits, 1e-5)

    @torch.no_grad()
    def test_a_pyramid_is_of_the_stages_and_the_last_one_is_what_is_normed(self) -> None:
        model = self.small("swin_ti")
        pixels = self.pictures(model, 2, (61, 43))
        found = model.pyramid(pixels)
        assert found.strides == (4, 8, 16)
        assert [tuple(one.shape[1:]) for one in found.maps] == [(8, 16, 11), (16, 8, 6), (32, 4, 3)]
        last = found.maps[-1].flatten(2).transpose(1, 2)
        assert torch.equal(model.read_out(last, (4, 3)).logits, model(pixels).logits)
        assert_close(model.read_tokens(last).mean(1), model(pixels).logits, 1e-6)


# As published: the paper's code prints the first four, torchvision documents the second version's, in which it counts
# biases of keys, too, which it sets to zero.
COUNTS = {
    "swin_ti": 28_288_354,
    "swin_s": 49_606_258,
    "swin_b": 87_768_224,
    "swin_l": 196_532_476,
    "swinv2_ti_w8_256": 28_351_570,
    "swinv2_s_w8_256": 49_737_442,
    "swinv2_b_w8_256": 87_930_848,
}


@pytest.mark.parametrize("name", COUNTS)
def test_published_numbers_of_parameters(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    config = model.config
    keys = (
        sum(width * depth for width, depth in zip(config.widths, config.depths, strict=True)) if config.version == 2 else 0
    )
    assert sum(parameter.numel() for parameter in model.parameters()) + keys == COUNTS[name]


def test_every_variant_tells_of_maps_that_its_windows_fill() -> None:
    for name, config in VARIANTS.items():
        for grid, window in zip(config.maps_of(config.image_size), config.windows, strict=True):
            assert all(side % span == 0 for side, span in zip(grid, window, strict=True)), name
        assert config.grid == config.windows[-1], name  # the last stage is one window


def test_fresh_branches_of_version_2_are_nothing_yet() -> None:
    model = create_model("swinv2_ti_w8_256", **TINY).eval()
    tokens = torch.randn(1, 256, 8)
    assert torch.equal(model.blocks[1](tokens, (16, 16)), tokens)


def test_branches_are_dropped_the_more_the_deeper() -> None:
    model = Swin(SwinConfig(**TINY, drop_path=0.4))
    rates = [getattr(block.drop_path, "probability", 0.0) for block in model.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"heads": (3, 2, 4)}, "width 8 is not a multiple of its heads 3"),
        ({"depths": (2, 2)}, "depths must tell of 3 stages"),
        ({"windows": ((4, 4), (4, 0), (4, 4))}, "windows must be from 1 to 1000"),
        ({"pretrained_windows": ((4, 4),) * 3}, "pretrained_windows are of version 2"),
        ({"rest": "left_out", "image_size": (64, 3)}, "smaller than one patch of 4"),
        ({"widths": ()}, "has 1 to 8 stages"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_fits_no_network_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace(SwinConfig(**TINY), **changed)
