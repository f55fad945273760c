"""Mix Transformers through the harness, and what tells them from pyramid vision transformers."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, ClassVar

import pytest
import torch
import transformers as hf

from tests.models.harness import Harness, assert_close
from vitral.errors import UsageError
from vitral.models.backbones.mit import VARIANTS, MiT, MiTConfig
from vitral.models.backbones.pvt import PVTConfig, PVTv2
from vitral.models.catalogue import create_model

SMALL: dict[str, Any] = {"widths": (8, 16, 20, 16), "depths": (1, 2, 1, 1), "heads": (1, 2, 5, 2)}


class TestMiT(Harness):
    kinds: ClassVar[dict[str, dict[str, Any]]] = {"mit_b2": SMALL}
    sizes = ((64, 64), (61, 43), (9, 3), (75, 130))


@pytest.mark.parametrize("name", VARIANTS)
def test_sizes_are_those_of_transformers(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
        config = VARIANTS[name]
        sizes = {"hidden_sizes": list(config.widths), "depths": list(config.depths), "num_labels": 1000}
        theirs = hf.SegformerForImageClassification(hf.SegformerConfig(**sizes))  # type: ignore[arg-type]
    assert sum(one.numel() for one in model.parameters()) == sum(one.numel() for one in theirs.parameters())


@torch.no_grad()
def test_a_pyramid_vision_transformer_of_the_same_sizes_is_the_same_network() -> None:
    model = TestMiT.small("mit_b2")
    known: dict[str, Any] = {field.name: getattr(model.config, field.name) for field in fields(PVTConfig)}
    other = PVTv2(PVTConfig(**known))
    other.load_state_dict(model.state_dict())
    pixels = torch.randn(1, 3, 61, 43)
    assert_close(model(pixels).logits, other.eval()(pixels).logits, 1e-6)
    assert type(model) is MiT


def test_there_is_none_with_linear_attention() -> None:
    with pytest.raises(UsageError, match="A Mix Transformer has no linear attention"):
        MiTConfig(linear=True)
