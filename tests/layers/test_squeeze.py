"""Squeeze-and-excitation against torchvision's and timm's."""

from __future__ import annotations

import pytest
import torch
from timm.layers import SqueezeExcite
from torch import nn
from torchvision.ops import SqueezeExcitation as TorchvisionSqueezeExcitation

from vitral.layers.squeeze import SqueezeExcitation


def names_of(ours: SqueezeExcitation, *theirs: str) -> dict[str, torch.Tensor]:
    state = {name: tensor.normal_(0, 0.5) for name, tensor in ours.state_dict().items()}
    pairs = zip(("reduce", "expand"), theirs, strict=True)
    return {f"{their}.{part}": state[f"{our}.{part}"] for our, their in pairs for part in ("weight", "bias")}


@pytest.mark.parametrize(("activation", "gate"), [("relu", "sigmoid"), ("silu", "sigmoid"), ("relu", "hard_sigmoid")])
@torch.no_grad()
def test_it_is_torchvisions_and_timms(activation: str, gate: str) -> None:
    ours = SqueezeExcitation(24, 6, activation=activation, gate=gate)
    kinds = {"relu": nn.ReLU, "silu": nn.SiLU, "sigmoid": nn.Sigmoid, "hard_sigmoid": nn.Hardsigmoid}
    torchvision = TorchvisionSqueezeExcitation(24, 6, kinds[activation], kinds[gate])
    torchvision.load_state_dict(names_of(ours, "fc1", "fc2"))
    timm = SqueezeExcite(24, rd_channels=6, act_layer=kinds[activation], gate_layer=kinds[gate])
    timm.load_state_dict(torchvision.state_dict())
    x = torch.randn(2, 24, 5, 7)
    torch.testing.assert_close(ours(x), torchvision(x), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(ours(x), timm(x), atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_where_a_thing_lies_does_not_matter() -> None:
    ours, x = SqueezeExcitation(8, 2), torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(ours(x.roll((2, 3), dims=(2, 3))), ours(x).roll((2, 3), dims=(2, 3)))
