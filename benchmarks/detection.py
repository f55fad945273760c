"""Detectors beside transformers': the same network in single precision; answers are compared before times are."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peers  # noqa: F401 - defines the operators that torchvision and timm miss, and so comes first
import torch
import transformers
from timing import interleaved

import vitral

__all__ = ["detection"]

# name → (what is told of transformers, (height, width) of the picture, rounds)
_CASES: dict[str, tuple[Callable[[], Any], tuple[int, int], int]] = {
    "DETR-R50": (
        lambda: transformers.DetrForObjectDetection(
            transformers.DetrConfig(
                use_timm_backbone=False,
                use_pretrained_backbone=False,
                backbone=None,
                backbone_config=transformers.ResNetConfig(out_features=["stage4"]),
                num_labels=91,
            )
        ),
        (800, 1066),
        9,
    ),
    "YOLOS-Ti": (
        lambda: transformers.YolosForObjectDetection(
            transformers.YolosConfig(
                hidden_size=192,
                num_attention_heads=3,
                intermediate_size=768,
                image_size=[800, 1333],
                use_mid_position_embeddings=False,
                num_labels=91,
            )
        ),
        (512, 864),
        15,
    ),
    "RT-DETR-R50": (
        lambda: transformers.RTDetrForObjectDetection(transformers.RTDetrConfig(num_labels=80)),
        (640, 640),
        9,
    ),
}


def detection(quick: bool) -> dict[str, object]:
    """Milliseconds of each network in both libraries at batch 1, and how much longer transformers takes than Vitral."""
    found: dict[str, object] = {}
    for name, (theirs, size, rounds) in _CASES.items():
        torch.manual_seed(0)
        reference = theirs().eval()
        with tempfile.TemporaryDirectory() as folder:
            reference.save_pretrained(Path(folder))
            ours = vitral.load_model(folder)
        pixels = torch.randn(1, 3, *size)
        contenders: dict[str, Callable[[], object]] = {
            label: lambda run=network, x=pixels: run(x) for label, network in (("vitral", ours), ("transformers", reference))
        }
        with torch.inference_mode():
            apart = _apart(ours(pixels), reference(pixels))
            if not apart < 1e-3:
                raise SystemExit(f"{name}: Vitral and transformers differ by {apart}; timing them means nothing.")
            seconds = interleaved(contenders, 3 if quick else rounds)
        found[f"{name}, batch 1, {size[0]}x{size[1]}"] = {
            "seconds": seconds,
            "transformers / vitral": seconds["transformers"] / seconds["vitral"],
            "largest difference": apart,
        }
    return found


def _apart(ours: Any, theirs: Any) -> float:
    """The largest difference of logits and boxes between two sets of queries, each paired with its nearest.

    Queries that are chosen by score change places where two scores differ in the last digit only, as random weights' do.
    """
    mine, yours = (
        torch.cat([one[0], two[0]], dim=1) for one, two in ((ours.logits, ours.boxes), (theirs.logits, theirs.pred_boxes))
    )
    return torch.cdist(mine, yours, p=float("inf")).min(1).values.max().item()
