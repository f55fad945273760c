"""What the parity tests share: random weights that show a difference, and a measure of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitral.checkpoints.load import load_model
from vitral.models.backbones.vit import ViT

__all__ = ["assert_same", "bits", "load", "pictures", "randomised"]


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """Weights so large that a part left out, or two exchanged, changes the result; in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            mean, deviation = (0.0, 0.2) if parameter.ndim > 1 else (0.5, 0.3)
            parameter.normal_(mean, deviation, generator=generator)
    return network.eval()


def pictures(height: int, width: int, count: int = 1) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(height * width))


def assert_same(ours: Tensor | None, theirs: Tensor | None, tolerance: float = 1e-4) -> None:
    """At most `tolerance` apart, in units of the largest number (but of one, where all are smaller)."""
    assert ours is not None
    assert theirs is not None
    assert ours.shape == theirs.shape
    scale = max(1.0, theirs.abs().max().item())
    assert (ours - theirs).abs().max().item() <= tolerance * scale


def load(source: str | Path, **options: Any) -> ViT:
    model = load_model(source, **options)
    assert isinstance(model, ViT)
    assert not model.training
    return model


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
