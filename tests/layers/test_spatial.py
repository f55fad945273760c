"""CBAM against timm's."""

from __future__ import annotations

import pytest
import torch
from timm.layers.cbam import CbamModule

from vitral.layers.spatial import CBAM


@pytest.mark.parametrize(("reduced", "kernel"), [(None, 7), (6, 3)])
@pytest.mark.parametrize("training", [False, True])
@torch.no_grad()
def test_it_is_timms(reduced: int | None, kernel: int, training: bool) -> None:
    ours = CBAM(32, reduced, kernel=kernel).train(training)
    theirs = CbamModule(32, rd_channels=reduced, spatial_kernel_size=kernel).train(training)
    for name, tensor in ours.state_dict().items():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 2) if name.endswith("running_var") else tensor.normal_(0, 0.5)
    names = {"channel.reduce": "channel.fc1", "channel.expand": "channel.fc2"}
    names |= {"spatial.convolution": "spatial.conv.conv", "spatial.norm": "spatial.conv.bn"}
    state = {}
    for name, tensor in ours.state_dict().items():
        part, _, rest = name.rpartition(".")
        state[f"{names[part]}.{rest}"] = tensor.clone()
    theirs.load_state_dict(state, strict=True)
    x = torch.randn(2, 32, 9, 6)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)
    if training:  # the statistics move alike
        torch.testing.assert_close(ours.spatial.norm.running_mean, theirs.spatial.conv.bn.running_mean)


def test_gradients_reach_every_parameter() -> None:
    ours = CBAM(16)
    ours(torch.randn(2, 16, 5, 5)).square().sum().backward()
    assert ours.channel.reduce.out_channels == 1
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in ours.parameters())
