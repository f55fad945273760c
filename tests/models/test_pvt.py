"""Pyramid vision transformers: the harness, sizes of stages, and the numbers of parameters that were published."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from tests.models.harness import Harness, assert_close
from vitral.errors import UsageError
from vitral.models.backbones.pvt import VARIANTS, PVTConfig, PVTv2
from vitral.models.catalogue import create_model

SMALL: dict[str, Any] = {
    "widths": (8, 16, 20, 16),
    "depths": (1, 2, 1, 1),
    "heads": (1, 2, 5, 2),
    "mlp_ratios": (3, 2, 2, 2),
}


class TestPVT(Harness):
    kinds: ClassVar[dict[str, dict[str, Any]]] = {
        "pvt_v2_b2": SMALL,
        "pvt_v2_b2_li": SMALL,
        "pvt_v2_b2: three stages": {
            "widths": (8, 16, 20),
            "depths": (1, 1, 2),
            "heads": (1, 2, 5),
            "reductions": (3, 2, 2),
            "mlp_ratios": (2, 2, 1),
            "qkv_bias": False,
            "channels": 1,
        },
    }
    sizes = ((64, 64), (61, 43), (9, 3), (75, 130))


# The authors' README (classification), in millions.
PUBLISHED = {
    "pvt_v2_b0": 3.67,
    "pvt_v2_b1": 14.01,
    "pvt_v2_b2": 25.36,
    "pvt_v2_b2_li": 22.55,
    "pvt_v2_b3": 45.24,
    "pvt_v2_b4": 62.56,
    "pvt_v2_b5": 81.96,
}


@pytest.mark.parametrize("name", VARIANTS)
def test_sizes_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert round(count / 1e6, 2) == pytest.approx(PUBLISHED[name], abs=0.011)


@torch.no_grad()
def test_stages_halve_the_map_and_a_pyramid_holds_them_all() -> None:
    model = TestPVT.small("pvt_v2_b2")
    pixels = torch.randn(1, 3, 70, 33)
    pyramid = model.pyramid(pixels)
    assert [tuple(one.shape[1:]) for one in pyramid.maps] == [(8, 18, 9), (16, 9, 5), (20, 5, 3), (16, 3, 2)]
    assert pyramid.strides == (4, 8, 16, 32)
    out = model(pixels)
    assert torch.equal(out.feature_map, pyramid.maps[-1])
    assert_close(out.pooled, pyramid.maps[-1].mean((2, 3)), 1e-6)
    assert torch.equal(model.pyramid(pixels, [1]).maps[0], pyramid.maps[1])
    with pytest.raises(UsageError, match="Levels of a pyramid are different numbers from 0 to 3"):
        model.pyramid(pixels, [4])


@torch.no_grad()
def test_every_token_is_read_as_if_all_tokens_were_it() -> None:
    model = TestPVT.small("pvt_v2_b2")
    stream = torch.randn(2, 6, 16)
    read = model.read_tokens(stream)
    for place in range(6):
        everywhere = stream[:, place : place + 1].expand_as(stream)
        assert_close(read[:, place], model.read_out(everywhere, (2, 3)).logits, 1e-5)
    model.reset_head(0)
    with pytest.raises(UsageError, match=r"The model has no classifier to read tokens with\."):
        model.read_tokens(stream)


def test_deeper_parameters_lie_deeper() -> None:
    depths = TestPVT.small("pvt_v2_b2").depths()
    assert depths["stages.0.embedding.projection.weight"] == 0
    assert depths["stages.0.blocks.0.attention.query.weight"] == 1
    assert depths["stages.1.embedding.projection.weight"] == depths["stages.1.blocks.0.mlp.up.weight"] == 2
    assert depths["stages.3.norm.weight"] == depths["head.weight"] == 6


def test_a_fresh_network_starts_as_published() -> None:
    model = create_model("pvt_v2_b0")
    for module in model.modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.2)
        if isinstance(module, nn.Conv2d):
            seen = module.out_channels * module.kernel_size[0] * module.kernel_size[1] // module.groups
            assert module.weight.std().item() == pytest.approx((2 / seen) ** 0.5, rel=0.15)
        if isinstance(module, nn.Linear | nn.Conv2d):
            assert module.bias is None or not module.bias.any()


def test_dropping_acts_in_training_only_and_branches_are_dropped_more_with_depth() -> None:
    options: dict[str, Any] = {**SMALL, "drop_path": 0.4, "attention_dropout": 0.3, "dropout": 0.1}
    model = create_model("pvt_v2_b2", num_classes=5, **options).eval()
    assert isinstance(model, PVTv2)
    rates = [getattr(block.drop_path, "probability", 0.0) for block in model.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert {block.attention.product.dropout for block in model.blocks} == {0.3}
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(pixels).logits, model(pixels).logits)
        model.train()
        assert not torch.equal(model(pixels).logits, model(pixels).logits)


def test_an_exported_network_computes_the_same() -> None:
    model = TestPVT.small("pvt_v2_b2")
    batch = torch.export.Dim("batch", min=1, max=64)
    pixels = torch.randn(2, 3, 64, 64)
    exported = torch.export.export(model, (pixels,), dynamic_shapes={"pixels": {0: batch}}).module()
    with torch.no_grad():
        for count in (2, 5):
            pixels = torch.randn(count, 3, 64, 64)
            assert_close(exported(pixels).logits, model(pixels).logits, 1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"widths": (64, 128)}, r"depths must be a number from 1 to 1000 for each .* \(64, 128\) name"),
        ({"heads": (1, 2, 5, 0)}, "heads must be a number from 1 to 10000"),
        ({"heads": (1, 2, 5, 7)}, "width 512 of a stage is not a multiple of its heads 7"),
        ({"widths": (), "depths": ()}, "widths must be a number from 1"),
        ({"norm_eps": 2.0}, "norm_eps must be from 0.0 to 1.0; 2.0 came"),
        ({"image_size": (0, 32)}, r"image_size must be from 1 to 100000; \(0, 32\) came."),
    ],
    ids=str,
)
def test_configurations_that_cannot_be_are_refused_in_a_sentence(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        PVTConfig(**fields)


def test_pictures_of_other_channels_are_refused() -> None:
    with pytest.raises(UsageError, match="The model takes pictures of 3 channels; 1 came"):
        TestPVT.small("pvt_v2_b2")(torch.zeros(1, 1, 32, 32))
