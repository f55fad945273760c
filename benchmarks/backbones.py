"""Backbones beside their peers: the same network in single precision; answers are compared before times are."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peers  # noqa: F401 - defines the operators that torchvision and timm miss, and so comes first
import timm
import torch
import torchvision
import transformers
from timing import interleaved

import vitral

__all__ = ["backbones"]

# name → (what is told of transformers, timm's name, torchvision's name, (batch, height, width) of the pictures, rounds)
_CASES: dict[str, tuple[Any, str, str, list[tuple[int, int, int]], int]] = {
    "Swin-T": (
        lambda: transformers.SwinForImageClassification(transformers.SwinConfig(num_labels=1000)),
        "swin_tiny_patch4_window7_224",
        "swin_t",
        [(1, 224, 224), (8, 224, 224)],
        21,
    ),
    "ResNet-50": (
        lambda: transformers.ResNetForImageClassification(transformers.ResNetConfig(num_labels=1000)),
        "resnet50",
        "resnet50",
        [(1, 224, 224), (8, 224, 224), (1, 800, 1066)],
        15,
    ),
}


def backbones(quick: bool) -> dict[str, object]:
    """Milliseconds of each network in each library, and how much longer the faster peer takes than Vitral."""
    found: dict[str, object] = {}
    for name, (theirs, timm_name, torchvision_name, shapes, rounds) in _CASES.items():
        torch.manual_seed(0)
        reference = theirs().eval()
        with tempfile.TemporaryDirectory() as folder:
            reference.save_pretrained(Path(folder))
            ours = vitral.load_model(folder)
        beside: dict[str, Any] = {
            "transformers": reference,
            "timm": timm.create_model(timm_name).eval(),
            "torchvision": getattr(torchvision.models, torchvision_name)().eval(),
        }
        for batch, height, width in shapes:
            pixels = torch.randn(batch, 3, height, width)
            networks = {"vitral": ours, **beside}
            if (height, width) != (224, 224):
                networks = {kept: networks[kept] for kept in networks if kept != "timm" or name != "Swin-T"}
            contenders: dict[str, Callable[[], object]] = {
                label: lambda run=network, x=pixels: run(x) for label, network in networks.items()
            }
            with torch.inference_mode():
                apart = (ours(pixels).logits - reference(pixels).logits).abs().max().item()
                if not apart < 1e-3:
                    raise SystemExit(f"{name}: Vitral and transformers differ by {apart}; timing them means nothing.")
                seconds = interleaved(contenders, 3 if quick else rounds)
            best = min(value for label, value in seconds.items() if label != "vitral")
            found[f"{name}, batch {batch}, {height}x{width}"] = {
                "seconds": seconds,
                "best peer / vitral": best / seconds["vitral"],
                "transformers / vitral": seconds["transformers"] / seconds["vitral"],
                "largest difference of logits": apart,
            }
    return found
