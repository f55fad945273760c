"""Hybrids of convolutions and a vision transformer: the harness, the trunk, and the numbers of parameters."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch

from tests.models.harness import Harness, assert_close
from vitral.errors import UsageError
from vitral.models.backbones.bit_resnet import BitTrunk
from vitral.models.backbones.hybrid import VARIANTS, HybridConfig
from vitral.models.catalogue import create_model

SMALL: dict[str, Any] = {"width": 16, "depth": 2, "heads": 2, "mlp_width": 24, "trunk_width": 32, "image_size": 64}


class TestHybrid(Harness):
    kinds: ClassVar[dict[str, dict[str, Any]]] = {
        "r50_vit_b16": {**SMALL, "trunk_depths": (1, 2, 1)},
        "r26_vit_s32": {**SMALL, "trunk_depths": (1, 1, 1, 1), "pool": "mean", "class_token": False, "prefix_positions": 0},
        "r_vit_ti16": {**SMALL, "channels": 1},
        "r50_vit_b16: pieces": {**SMALL, "trunk_depths": (1, 1), "patch_size": (16, 16), "image_size": (48, 80)},
    }
    bf16 = 4e-2  # group norms of few cells magnify what is rounded


# timm's, for a thousand classes; of R50+ViT-B/16 as a whole see Dosovitskiy et al., table 7.
COUNTS = {
    "r50_vit_b16": 98_659_112,
    "r26_vit_s32": 36_431_912,
    "r26_vit_b32": 101_383_976,
    "r50_vit_l32": 328_994_856,
    "r_vit_ti16": 6_337_704,
}


@pytest.mark.parametrize("name", VARIANTS)
def test_sizes_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == COUNTS[name]


@torch.no_grad()
def test_the_trunk_gives_a_map_for_every_stride() -> None:
    trunk = BitTrunk(3, (1, 1, 1), 32)
    maps = trunk(torch.randn(1, 3, 70, 33))
    assert [tuple(one.shape[1:]) for one in maps] == [(32, 35, 17), (128, 18, 9), (256, 9, 5), (512, 5, 3)]
    assert [(level.channels, level.stride) for level in trunk.levels] == [(32, 2), (128, 4), (256, 8), (512, 16)]
    alone = BitTrunk(3, (), 32)
    assert [tuple(one.shape[1:]) for one in alone(torch.randn(1, 3, 70, 33))] == [(32, 35, 17), (32, 18, 9)]
    assert [level.stride for level in alone.levels] == [2, 4]


@torch.no_grad()
def test_a_pyramid_joins_the_trunk_and_the_blocks() -> None:
    model = TestHybrid.small("r50_vit_b16", depth=8)
    pixels = torch.randn(1, 3, 70, 33)
    found = model.pyramid(pixels)
    assert found.strides == (4, 8, 16, 16)
    everything = model.pyramid(pixels, range(len(model.levels)))
    assert len(everything.maps) == 4 + 8
    for one, place in zip(found.maps, (1, 2, 4 + 5, 4 + 7), strict=True):
        assert torch.equal(one, everything.maps[place])
    maps = model.trunk(pixels)
    assert all(torch.equal(one, other) for one, other in zip(maps, everything.maps, strict=False))
    normed = model.norm(found.maps[-1].flatten(2).transpose(1, 2))
    assert_close(normed, model(pixels).tokens[:, 1:], 1e-5)
    assert torch.equal(model.pyramid(pixels, [0]).maps[0], maps[0])
    whole = TestHybrid.small("r26_vit_s32", depth=4)
    assert whole.pyramid(pixels).strides == (4, 8, 16, 32)


@torch.no_grad()
def test_a_hybrid_is_a_plain_transformer_of_the_trunks_map() -> None:
    model = TestHybrid.small("r50_vit_b16: pieces")
    plain = create_model("vit_ti16", num_classes=5, channels=256, width=16, depth=2, heads=2, mlp_width=24,
                         image_size=(6, 10), patch_size=2).eval()  # fmt: skip
    state = model.state_dict()
    plain.load_state_dict({name: tensor for name, tensor in state.items() if not name.startswith("trunk.")})
    pixels = torch.randn(2, 3, 48, 80)
    assert_close(model(pixels).logits, plain(model.trunk(pixels)[-1]).logits, 1e-6)


@torch.no_grad()
def test_what_a_filter_is_multiplied_with_or_shifted_by_is_forgotten() -> None:
    model = TestHybrid.small("r50_vit_b16")
    pixels = torch.randn(1, 3, 64, 64)
    before = model(pixels).logits
    for parameter in model.trunk.parameters():
        if parameter.ndim == 4:
            parameter.mul_(3).add_(0.5)
    assert_close(model(pixels).logits, before, 1e-4)


def test_masked_patches_are_replaced_behind_the_trunk() -> None:
    model = TestHybrid.small("r50_vit_b16", mask_token=True)
    pixels = torch.randn(1, 3, 64, 64)
    all_masked = torch.ones(1, 16, dtype=torch.bool)
    with torch.no_grad():
        assert torch.equal(model(pixels, all_masked).logits, model(pixels + 1, all_masked).logits)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patch_size": (24, 16)}, r"a multiple of its trunk's stride, 16 pixels; \(24, 16\) came"),
        ({"trunk_width": 40}, "trunk_width must be a multiple of 32; 40 came"),
        ({"trunk_depths": (3, 0)}, r"trunk_depths must be up to 8 numbers from 1 to 1000; \(3, 0\) came"),
        ({"trunk_depths": (1,) * 9}, "trunk_depths must be up to 8 numbers"),
        ({"heads": 7}, "width 768 is not a multiple of heads 7"),
        ({"image_size": (16, 8), "patch_size": (32, 32)}, "smaller than one patch"),
    ],
    ids=str,
)
def test_configurations_that_cannot_be_are_refused_in_a_sentence(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        HybridConfig(**fields)


def test_pictures_that_cannot_be_are_refused() -> None:
    model = TestHybrid.small("r26_vit_s32")
    with pytest.raises(UsageError, match="The model takes pictures of 3 channels; 1 came"):
        model(torch.zeros(1, 1, 64, 64))
    with pytest.raises(UsageError, match="A picture of 70×100 pixels is smaller than one patch of 128×128"):
        TestHybrid.small("r26_vit_s32", patch_size=128, image_size=128)(torch.zeros(1, 3, 70, 100))
    with pytest.raises(UsageError, match="normalised in 32 groups, of which 48 is no multiple"):
        BitTrunk(3, (1,), 48)
