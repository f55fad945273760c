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


def _rtdetr() -> Any:
    """One whose activations have a usual size and whose cells differ in score, so that no rounding chooses the queries."""
    model = transformers.RTDetrForObjectDetection(
        transformers.RTDetrConfig(num_labels=80, freeze_backbone_batch_norms=False)
    )
    torch.nn.init.normal_(model.model.enc_score_head.weight, std=0.1)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the statistics become those of the pictures it sees
    with torch.no_grad():
        model.train()(torch.randn(2, 3, 640, 640))
    return model


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
        lambda: _rtdetr(),
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
    """How far apart logits and boxes of two sets of queries are at most, each paired with its nearest.

    A tenth of the queries is left out: RT-DETR begins with the cells of the highest scores, which random weights make so
    equal that the last digit chooses between them.
    """
    mine, yours = (
        torch.cat([one[0], two[0]], dim=1) for one, two in ((ours.logits, ours.boxes), (theirs.logits, theirs.pred_boxes))
    )
    nearest = (mine[:, None] - yours[None]).abs().amax(-1).amin(1)
    return nearest.quantile(0.9).item()
