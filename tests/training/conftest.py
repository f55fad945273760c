"""Small sets of pictures to train on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitral.data.pictures import PictureSet
from vitral.data.splits import read_pictures

COLOURS = {"green": (40, 200, 60), "red": (210, 50, 40), "violet": (120, 40, 200)}


def write_pictures(root: Path, each: int = 12, size: int = 8, noise: float = 40.0) -> Path:
    """A folder per class of noisy pictures in the colour that the class is named after."""
    rng = np.random.default_rng(5)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for number in range(each):
            pixels = np.array(colour) + rng.normal(0, noise, (size, size, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / name / f"{number:03d}.png")
    return root


@pytest.fixture(scope="session")
def colours_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("sets") / "colours")


@pytest.fixture(scope="session")
def colours(colours_folder: Path) -> PictureSet:
    """36 pictures of 8x8, three classes."""
    return read_pictures(colours_folder)
