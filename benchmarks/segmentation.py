"""Segmenters beside transformers': the same network, the same answers; answers are compared before times are."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import peers  # noqa: F401 - defines the operators that torchvision and timm miss, and so comes first
import torch
import transformers
from timing import interleaved

import vitral
from vitral.base.frame import Frame, Seen
from vitral.models.catalogue import CATALOGUE
from vitral.models.output import MaskOutput
from vitral.models.record import Record
from vitral.tasks.segmentation.decode import Options, decode

__all__ = ["segmentation"]

_STAGES = ["stage1", "stage2", "stage3", "stage4"]

# name → (its name here, what is told of transformers, side of the picture, rounds, the logits of both)
_CASES: dict[str, tuple[str, Callable[[], Any], int, int, tuple[str, ...]]] = {
    "SegFormer-B0": (
        "segformer_b0",
        lambda: transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(num_labels=150)),
        512,
        15,
        ("logits",),
    ),
    "Mask2Former-Swin-T": (
        "mask2former_swin_ti",
        lambda: transformers.Mask2FormerForUniversalSegmentation(
            transformers.Mask2FormerConfig(
                backbone_config=transformers.SwinConfig(
                    embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=7, out_features=_STAGES
                ),
                num_labels=133,
            )
        ),
        384,
        9,
        ("class_queries_logits", "masks_queries_logits"),
    ),
}

_QUERIES, _CLASSES, _MASK, _PICTURE = 100, 133, (480, 640), (1200, 900)


def segmentation(quick: bool) -> dict[str, object]:
    """Milliseconds of each network at batch 1, and of reading things and stuff from masks, and how much longer transformers
    takes than Vitral.
    """
    found: dict[str, object] = {}
    for name, (ours, theirs, side, rounds, logits) in _CASES.items():
        row = f"{name}, batch 1, {side}x{side}"
        if not any(one == ours or one.startswith(f"{ours}_") for one in CATALOGUE):
            found[row] = f"Skipped: Vitral has no {ours} yet."
            continue
        found[row] = _network(name, theirs, side, 3 if quick else rounds, logits)
    for kept in (20, _QUERIES):
        sizes = f"{_MASK[0]}x{_MASK[1]} to {_PICTURE[0]}x{_PICTURE[1]}"
        found[f"panoptic post-processing, {kept} of {_QUERIES} queries kept, {sizes}"] = _panoptic(kept, 3 if quick else 7)
    return found


def _network(name: str, theirs: Callable[[], Any], side: int, rounds: int, logits: tuple[str, ...]) -> dict[str, object]:
    """One network, from one folder in both libraries."""
    torch.manual_seed(0)
    reference = theirs().eval()
    with tempfile.TemporaryDirectory() as folder:
        reference.save_pretrained(Path(folder))
        ours = vitral.load_model(folder).eval()
    pixels = torch.randn(1, 3, side, side)
    with torch.inference_mode():
        said, expected = ours(pixels), reference(pixels)
        apart = max(
            (getattr(said, mine) - getattr(expected, yours)).abs().max().item()
            for mine, yours in zip(("logits", "masks"), logits, strict=False)
        )
        if not apart < 1e-3:
            raise SystemExit(f"{name}: Vitral and transformers differ by {apart}; timing them means nothing.")
        seconds = interleaved({"vitral": lambda: ours(pixels), "transformers": lambda: reference(pixels)}, rounds)
    return {
        "seconds": seconds,
        "transformers / vitral": seconds["transformers"] / seconds["vitral"],
        "largest difference": apart,
    }


def _panoptic(kept: int, rounds: int) -> dict[str, object]:
    """Things and stuff from masks alone: the queries that are kept share the picture as those of a trained network do.

    Each has the places that are nearer to its centre than to any other's.
    """
    numbers = torch.Generator().manual_seed(0)
    logits = torch.randn(1, _QUERIES, _CLASSES + 1, generator=numbers)
    classes = torch.randint(0, _CLASSES, (_QUERIES,), generator=numbers)
    classes[kept:] = _CLASSES  # nothing
    logits[0, torch.arange(_QUERIES), classes] += 9
    centre = torch.rand(_QUERIES, 2, 1, 1, generator=numbers)
    y, x = (torch.linspace(0, 1, side) for side in _MASK)
    away = ((y[:, None] - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2).sqrt()
    first, second = away[:kept].topk(2, dim=0, largest=False).values
    nearest = torch.where(away == first, second, first)  # of the others
    masks = (60 * (nearest - away)).clamp(-9, 9)[None] + 0.2 * torch.randn(1, _QUERIES, *_MASK, generator=numbers)
    order = torch.randperm(_QUERIES, generator=numbers)
    logits, masks = logits[:, order], masks[:, order]
    output = MaskOutput(logits, masks, torch.zeros(1, _QUERIES, 1))
    theirs = SimpleNamespace(class_queries_logits=logits, masks_queries_logits=masks)
    scale = tuple(side / length for side, length in zip(_MASK, _PICTURE, strict=True))
    seen = [Seen("picture", Frame(picture=_PICTURE, input=_MASK, scale=(scale[0], scale[1])))]
    processor, options = transformers.MaskFormerImageProcessor(), Options(threshold=0.8)
    told = {"threshold": 0.8, "label_ids_to_fuse": set(), "target_sizes": [_PICTURE]}
    with torch.inference_mode():
        [said], [expected] = (
            decode(output, seen, Record(), options),
            processor.post_process_panoptic_segmentation(theirs, **told),
        )
        same = float(np.mean(said.segment_map == expected["segmentation"].numpy()))
        rows = [(part.id, part.index) for part in said.segments]
        if same < 1 - 1e-6 or rows != [(part["id"], part["label_id"]) for part in expected["segments_info"]]:
            raise SystemExit(f"Segments differ from transformers' in {1 - same:.2%} of the pixels; times mean nothing.")
        seconds = interleaved(
            {
                "vitral": lambda: decode(output, seen, Record(), options),
                "transformers": lambda: processor.post_process_panoptic_segmentation(theirs, **told),
            },
            rounds,
        )
    return {
        "seconds": seconds,
        "transformers / vitral": seconds["transformers"] / seconds["vitral"],
        "segments": len(rows),
        "same pixels": same,
    }
