"""Checkpoints made by hand, small enough to be spoilt one value at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor

from vitral.checkpoints.load import load_model
from vitral.errors import VitralError

__all__ = ["change", "json_of", "refusal", "state_of", "vit_folder", "write_state"]

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "intermediate_size": 48,
}


def vit_folder(folder: Path, **options: Any) -> Path:
    """A ViT with five classes in transformers' layout."""
    torch.manual_seed(0)
    hf.ViTForImageClassification(hf.ViTConfig(**SIZES, num_labels=5, **options)).save_pretrained(folder)
    return folder


def json_of(folder: Path, name: str = "config.json") -> dict[str, Any]:
    return json.loads((folder / name).read_text())


def change(folder: Path, name: str = "config.json", **values: Any) -> None:
    (folder / name).write_text(json.dumps({**json_of(folder, name), **values}))


def state_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def write_state(folder: Path, state: dict[str, Tensor]) -> None:
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def refusal(source: object, kind: type[VitralError] = VitralError, **options: Any) -> str:
    """The message with which a checkpoint is refused."""
    with pytest.raises(kind) as caught:
        load_model(source, **options)
    message = str(caught.value)
    assert len(message) > 20, "an error is a sentence"
    return message
