"""The cost of a network: held against PyTorch's counter on every family, published figures, and sums done by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vitral.errors import UsageError
from vitral.models.catalogue import CATALOGUE, FAMILIES, create_model
from vitral.models.network import Network
from vitral.models.profile import Cost, Counter, profile


def hollow(name: str, **fields: Any) -> Network:
    """A network without memory for its weights."""
    with torch.device("meta"):
        return create_model(name, **fields)


def smallest(family: str) -> str:
    """The network of a family with the fewest numbers in its configuration's product of width and depth."""
    variants = FAMILIES[family].variants
    return min(variants, key=lambda name: variants[name].width * variants[name].depth * variants[name].grid[0])


# Where a family's own size means thousands of steps one after the other.
SIZES = {"lstm": (8, 8)}


def test_regions_cannot_be_counted_beforehand() -> None:
    with pytest.raises(UsageError, match="depends on what it sees"):
        profile(hollow("fasterrcnn_r50_fpn", image_size=(64, 64)))


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "faster_rcnn"])
def test_every_family_costs_what_pytorchs_counter_says(family: str) -> None:
    name = smallest(family)
    own = CATALOGUE[name].config.image_size
    model = hollow(name, image_size=SIZES.get(family, (min(own[0], 64), min(own[1], 64))))
    cost = profile(model)
    assert cost.multiply_adds > 0
    assert 2 * cost.multiply_adds == cost.torch_flops
    assert cost.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_pytorchs_counter_is_asked_itself() -> None:
    model = hollow("cct_2_3x2_32").eval()
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(2, 3, 32, 32, device="meta"))
    assert profile(model, batch=2).torch_flops == counter.get_total_flops() > 0


# Our name → torchvision's, whose weights carry their multiply-adds in 10⁹ ("_ops") as measured by its authors.
TORCHVISION = {
    "vit_b16": "ViT_B_16_Weights",
    "alexnet": "AlexNet_Weights",
    "vgg11": "VGG11_Weights",
    "resnet18": "ResNet18_Weights",
    "resnet50": "ResNet50_Weights",
    "swin_ti": "Swin_T_Weights",
}


@pytest.mark.parametrize("name", [name for name in TORCHVISION if name in CATALOGUE])
def test_papers_flops_are_our_multiply_adds(name: str) -> None:
    told = getattr(torchvision.models, TORCHVISION[name]).IMAGENET1K_V1.meta
    cost = profile(hollow(name), 224)
    assert cost.parameters == told["num_params"]
    assert cost.multiply_adds / 1e9 == pytest.approx(told["_ops"], rel=1e-3)  # theirs are rounded to 10⁶
    if name == "resnet50":  # Radosavovic et al. 2020 count 11.1 million activations
        assert round(cost.activations / 1e6, 1) == 11.1


def test_a_vision_transformer_by_hand() -> None:
    model = hollow("vit_ti16", depth=2, width=32, heads=2, mlp_width=64, image_size=32, num_classes=5)
    tokens, width = 4 + 1, 32
    products = 2 * tokens * tokens * width
    block = tokens * (4 * width * width + 2 * width * 64) + products
    cost = profile(model)
    assert cost.multiply_adds == 4 * 3 * 16 * 16 * width + 2 * block + 5 * width
    assert cost.attention == 2 * products
    maps = 2 * tokens * tokens + tokens * width  # weights of both heads, mixed values
    assert cost.activations == 4 * width + 2 * (tokens * (3 * width + width + 64 + width) + maps) + 5


def test_batches_and_sizes() -> None:
    model = hollow("vit_ti16", depth=1)
    one, four = profile(model, 64), profile(model, (64, 64), batch=4)
    assert one.size == four.size == (64, 64)
    assert four.batch == 4
    assert four.multiply_adds == 4 * one.multiply_adds
    assert four.activations == 4 * one.activations
    assert profile(model).size == (224, 224)
    with pytest.raises(UsageError, match="smaller than one patch"):
        profile(model, 8)
    with pytest.raises(UsageError, match="batch must be a whole number of at least 1"):
        profile(model, batch=0)


def test_global_attention_is_quadratic_in_the_pixels() -> None:
    model = hollow("vit_ti16", depth=1, class_token=False, prefix_positions=0, pool="mean")
    small, large = profile(model, 224), profile(model, 448)
    assert large.attention == 16 * small.attention
    assert large.multiply_adds < 16 * small.multiply_adds


@pytest.mark.skipif("swin_ti" not in CATALOGUE, reason="needs Swin, which the catalogue does not have yet")
def test_attention_in_windows_is_linear_in_the_pixels() -> None:
    model = hollow("swin_ti", depths=(2, 1, 1, 1))
    small, large = profile(model, 224), profile(model, 448)
    assert large.attention == 4 * small.attention


def test_the_network_is_left_as_it_is() -> None:
    model = create_model("cct_2_3x2_32", num_classes=3)
    model.blocks[0].eval()
    before = [parameter.clone() for parameter in model.parameters()]
    profile(model)
    assert model.training
    assert not model.blocks[0].training
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert profile(model) == profile(hollow("cct_2_3x2_32", num_classes=3))


class Products(nn.Module):
    """Every product that is no layer of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x @ x.mT
        y = torch.einsum("bnd,bmd->bnm", x, x) + y
        y = torch.einsum("...nd, ...md -> ...nm", x, x) + y
        y = torch.bmm(x, x.mT) + torch.baddbmm(y, x, x.mT) + torch.matmul(x, x.mT)
        return torch.addmm(y[0], x[0], x[0].mT) + x[0].mm(x[0].mT)


@pytest.mark.parametrize(
    ("part", "shape"),
    [
        (nn.Conv1d(4, 6, 3, groups=2), (2, 4, 9)),
        (nn.Conv2d(4, 8, (3, 5), stride=2, padding=1, dilation=2, groups=4), (2, 4, 17, 13)),
        (nn.Conv3d(2, 3, 2), (1, 2, 4, 5, 6)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (2, 4, 5, 7)),
        (nn.Linear(5, 7), (2, 3, 5)),
        (nn.LSTM(5, 7, 2, bidirectional=True, batch_first=True), (2, 3, 5)),
        (nn.LSTM(5, 7, proj_size=3), (4, 3, 5)),
        (nn.GRU(5, 7), (4, 3, 5)),
        (nn.RNN(5, 7), (4, 3, 5)),
        (Products(), (3, 4, 5)),
    ],
    ids=lambda one: type(one).__name__ if isinstance(one, nn.Module) else "",
)
def test_parts_cost_what_pytorchs_counter_says(part: nn.Module, shape: tuple[int, ...]) -> None:
    theirs = FlopCounterMode(display=False)
    with Counter() as ours, theirs:
        part.to("meta")(torch.empty(shape, device="meta"))
    assert 2 * ours.multiply_adds == theirs.get_total_flops() > 0
    assert ours.attention == 0
    assert ours.activations > 0


def test_an_einsum_that_cannot_be_counted_is_refused() -> None:
    x = torch.ones(2, 2)
    with Counter(), pytest.raises(UsageError, match="Only products of two tensors"):
        torch.einsum("ab,bc,cd->ad", x, x, x)
    with Counter() as counter:
        torch.einsum("ab->ba", x)
    assert (counter.multiply_adds, counter.activations) == (0, 0)


def test_what_the_counter_says_otherwise_is_told() -> None:
    cost = Cost(size=(1, 1), batch=1, parameters=1, multiply_adds=5, attention=0, activations=1, torch_flops=10)
    assert cost.agrees
    other = Cost(size=(1, 1), batch=1, parameters=1, multiply_adds=5, attention=0, activations=1, torch_flops=12)
    assert not other.agrees
