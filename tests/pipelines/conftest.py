"""A tiny checkpoint and pictures of mixed sizes, for every test of the corridor."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vitral


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT of seven classes whose answers differ between pictures."""
    torch.manual_seed(3)
    model = vitral.create_model("vit_ti16", width=32, heads=2, depth=2, mlp_width=64, image_size=32, num_classes=7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    model.record = replace(model.record, labels=tuple("abcdefg"))
    return vitral.save_model(model, tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Twelve pictures of four sizes in two formats."""
    folder = tmp_path_factory.mktemp("photos")
    numbers = np.random.default_rng(5)
    paths = []
    for index in range(12):
        height, width = [(40, 60), (64, 64), (97, 131), (33, 200)][index % 4]
        coarse = Image.fromarray(numbers.integers(0, 256, (5, 7, 3), dtype=np.uint8))
        path = folder / f"{index:02}.{'png' if index % 3 else 'jpg'}"
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(path)
        paths.append(path)
    return paths
