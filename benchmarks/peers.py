"""The peers, importable beside a CPU build of PyTorch, and tiny folders of weights and pictures to measure with."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter

# torchvision's Linux wheel expects operators that a CPU build of PyTorch does not bring.
for operator in ("nms", "qnms"):
    with contextlib.suppress(RuntimeError):
        torch.library.define(f"torchvision::{operator}", "(Tensor a, Tensor b, float c) -> Tensor")

import timm
import transformers

__all__ = ["SIZES", "photographs", "timm_vit", "transformers_vit", "weights"]

SIZES = {
    "Ti": ("vit_ti16", "vit_tiny_patch16_224", 192, 3),
    "S": ("vit_s16", "vit_small_patch16_224", 384, 6),
    "B": ("vit_b16", "vit_base_patch16_224", 768, 12),
}


def timm_vit(size: str) -> Any:
    """timm's network of a size, random weights."""
    return timm.create_model(SIZES[size][1]).eval()


def transformers_vit(size: str) -> Any:
    """transformers' network of a size, random weights, fused attention."""
    _, _, width, heads = SIZES[size]
    config = transformers.ViTConfig(
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        num_labels=1000,
        attn_implementation="sdpa",
    )
    return transformers.ViTForImageClassification(config).eval()


def weights(folder: Path, size: str, seed: int = 0) -> Path:
    """A folder in transformers' layout with a random network whose answers differ between pictures."""
    torch.manual_seed(seed)
    model = transformers_vit(size)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 1.5 / parameter[0].numel() ** 0.5)
    model.save_pretrained(folder)
    transformers.ViTImageProcessorPil().save_pretrained(folder)
    return folder


def photographs(folder: Path, count: int, height: int = 3000, width: int = 4000, seed: int = 0) -> list[Path]:
    """JPEGs with the statistics that matter for decoding and resizing: edges, texture, colour, sensor noise."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in range(count):
        numbers = np.random.default_rng([seed, index])
        coarse = Image.fromarray(numbers.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize(
            (width, height), Image.BICUBIC
        )
        shapes = Image.fromarray(numbers.integers(0, 256, (90, 120), dtype=np.uint8)).resize((width, height), Image.NEAREST)
        mixed = Image.composite(coarse, coarse.filter(ImageFilter.GaussianBlur(9)), shapes)
        noisy = np.asarray(mixed).astype(np.int16) + numbers.integers(-9, 10, (height, width, 3), dtype=np.int16)
        path = folder / f"photo-{index:03}.jpg"
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=88)
        paths.append(path)
    return paths
