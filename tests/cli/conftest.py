"""A tiny checkpoint with three classes, a folder of pictures, and the command line to try them on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from vitral.checkpoints.save import save_model
from vitral.cli.main import app
from vitral.data.transforms import Preprocessing
from vitral.models.catalogue import create_model

LABELS = ("red kite", "großer Bär", "a label much longer than any bar leaves room for, as ImageNet's often are")


def tiny(num_classes: int) -> Any:
    torch.manual_seed(0)
    model: Any = create_model("vit_ti16", width=32, heads=2, depth=1, mlp_width=64, image_size=32, num_classes=num_classes)
    labels = LABELS[:num_classes]
    model.record = replace(model.record, labels=labels, preprocessing=Preprocessing(resize="exact", size=(32, 32)))
    return model


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of three classes, with random weights."""
    return save_model(tiny(3), tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without a classifier."""
    return save_model(tiny(0), tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with two pictures, one below it of the same name, and a file that is no picture but says so."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    numbers = np.random.default_rng(0)
    for name in ("a.png", "b.jpg", "more/a.png"):
        Image.fromarray(numbers.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"this is no picture")
    return folder


@pytest.fixture
def vitral() -> Callable[..., Result]:
    """Run a command in this process."""
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words], prog_name="vitral")
