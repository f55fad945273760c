"""The multilayer perceptron on pixels, through the harness that every backbone goes through, and against its formula."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch

from tests.models.harness import Harness
from vitral.errors import UsageError
from vitral.models.catalogue import create_model


class TestMLP(Harness):
    kinds: ClassVar[dict[str, dict[str, Any]]] = {
        "mlp_3x512": {"width": 16, "image_size": 12},
        "mlp_2x256: grey and oblong": {"width": 16, "image_size": (10, 14), "channels": 1, "activation": "gelu"},
    }
    has_pyramid = False


def test_it_is_matrices_and_rectifiers() -> None:
    model = create_model("mlp_3x512", num_classes=4, image_size=6, width=8, channels=2).eval()
    pixels = torch.randn(3, 2, 6, 6)
    vector = pixels.reshape(3, -1)
    for block in model.blocks:
        vector = (vector @ block[0].weight.T + block[0].bias).clamp(min=0)
    out = model(pixels)
    torch.testing.assert_close(out.pooled, vector)
    torch.testing.assert_close(out.logits, vector @ model.head.weight.T + model.head.bias)


def test_a_larger_picture_is_averaged_over_cells() -> None:
    """So that a picture whose pixels are repeated is the picture it was."""
    model = create_model("mlp_3x512", num_classes=4, image_size=6, width=8).eval()
    pixels = torch.randn(2, 3, 6, 6)
    larger = pixels.repeat_interleave(3, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(model(larger).logits, model(pixels).logits)
    assert not torch.allclose(model(pixels.roll(1, dims=3)).logits, model(pixels).logits)


def test_sizes_and_channels() -> None:
    with torch.device("meta"):
        count = sum(p.numel() for p in create_model("mlp_3x512").parameters())
    assert count == 3072 * 512 + 512 + 2 * (512 * 512 + 512) + 512 * 10 + 10
    with pytest.raises(UsageError, match="pictures of 3 channels; 1 came"):
        create_model("mlp_3x512")(torch.zeros(1, 1, 32, 32))
