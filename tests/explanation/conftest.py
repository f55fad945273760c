"""Networks for the explanations: one whose reasons are known, and pairs of ours and transformers' with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

import vitral
from tests.parity.peers import randomised
from vitral.data.transforms import Preprocessing
from vitral.explanation.question import Question
from vitral.models.backbones.vit import ViT
from vitral.pipelines.predictor import Predictor

AS_IT_IS = Preprocessing(resize="none", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
RED, GREEN = (3, 1), (1, 2)
"""Rows and columns of the patches that speak for either class."""


def planted_model() -> ViT:
    """Class 0 is "red", class 1 is "green", and only a red or a green patch is a reason.

    Channels of a token: 0 how red its patch is, 1 how green, 2 and 3 constants, 4 and 5 what was found of either colour. One
    head looks for red and brings it to channel 4, the other for green and to channel 5; the classifier reads both.
    """
    model = vitral.create_model(
        "vit_ti16",
        image_size=(32, 32),
        patch_size=(8, 8),
        width=8,
        heads=2,
        depth=1,
        mlp_width=8,
        num_classes=2,
        position="none",
        prefix_positions=0,
        final_norm=False,
    )
    model.record = replace(model.record, labels=("red", "green"), preprocessing=AS_IT_IS)
    block: Any = model.blocks[0]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.zero_()
        mean = 1 / (2 * 8 * 8)
        model.patch.projection.weight[0, 0], model.patch.projection.weight[0, 1] = mean, -mean
        model.patch.projection.weight[1, 1], model.patch.projection.weight[1, 0] = mean, -mean
        model.patch.projection.bias[2:4] = torch.tensor([1.0, -1.0])
        model.class_token[0, 0, 2:4] = torch.tensor([2.0, -2.0])
        queries, keys, values = block.attention.qkv.weight.view(3, 2, 4, 8)
        for head in range(2):
            queries[head, 0, 2], queries[head, 0, 3] = 1.0, -1.0  # a class token asks louder than a patch
            keys[head, 0, head] = 1.5
            values[head, 0, head] = 1.0
            block.attention.projection.weight[4 + head, 4 * head] = 1.0
            model.head.weight[head, [head, 4 + head]] = torch.tensor([1.0, 4.0])
    return model.eval()


def planted_picture(seed: int = 0, red: tuple[int, int] = RED, green: tuple[int, int] = GREEN) -> np.ndarray:
    """A grey picture with a little noise, a red patch and a green one."""
    picture = np.full((32, 32, 3), 127.0) + np.random.default_rng(seed).normal(0, 4, (32, 32, 3))
    for channel, (row, column) in enumerate((red, green)):
        picture[8 * row : 8 * row + 8, 8 * column : 8 * column + 8, channel] = 220
    return picture.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def planted() -> Predictor:
    return vitral.load(planted_model())


def tiny(name: str = "vit_ti16", seed: int = 0, **options: Any) -> ViT:
    """A small network with large random weights."""
    small = {"image_size": (32, 48), "patch_size": (8, 8), "width": 32, "heads": 2, "depth": 3, "mlp_width": 48}
    model: Any = randomised(vitral.create_model(name, **{"num_classes": 7, **small, **options}), seed)
    return model  # type: ignore[no-any-return]


def question(model: ViT, pixels: torch.Tensor, target: Any = None) -> Question:
    output = model(pixels)
    return Question(
        model=model,
        pixels=pixels,
        grid=output.grid,
        patch_size=model.config.patch_size,
        prefix=output.prefix,
        target=torch.tensor(target) if isinstance(target, list) else target,
    )


Pair = tuple[ViT, torch.nn.Module]


@pytest.fixture(scope="session", params=["class", "registers", "mean"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Ours and transformers' network with the same weights, read from the class token, with registers, from the mean."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 64, "patch_size": 16}
    build: dict[str, Callable[[], Any]] = {
        "class": lambda: hf.ViTForImageClassification(hf.ViTConfig(**sizes, intermediate_size=48, num_labels=7)),
        "registers": lambda: hf.Dinov2WithRegistersForImageClassification(
            hf.Dinov2WithRegistersConfig(**sizes, num_register_tokens=3, num_labels=7)
        ),
        "mean": lambda: hf.BeitForImageClassification(
            hf.BeitConfig(**sizes, intermediate_size=48, num_labels=7, use_relative_position_bias=True)
        ),
    }
    theirs = randomised(build[request.param]())
    theirs.set_attn_implementation("eager")
    folder = tmp_path_factory.mktemp("pair")
    theirs.save_pretrained(folder)
    ours: Any = vitral.load_model(folder)
    return ours, theirs
