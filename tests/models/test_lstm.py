"""The recurrent baseline, through the harness that every backbone goes through, and against its equations."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from tests.models.harness import Harness
from vitral.errors import UsageError
from vitral.models.catalogue import create_model


class TestLSTM(Harness):
    kinds: ClassVar[dict[str, dict[str, Any]]] = {
        "lstm_2x256": {"width": 16, "image_size": 16},
        "lstm_2x256_rows": {"width": 16, "image_size": (9, 16), "cell": 2},
        "bilstm_2x256: three layers": {"width": 16, "image_size": 16, "depth": 3, "cell": 8},
        "bilstm_2x256_rows": {"width": 16, "image_size": 12, "channels": 1},
    }
    has_pyramid = False


def by_hand(cells: nn.LSTM, steps: Tensor, suffix: str = "") -> Tensor:
    """Hochreiter and Schmidhuber's cell with the forget gate of Gers et al. 2000, a step at a time."""
    w, u = getattr(cells, f"weight_ih_l0{suffix}"), getattr(cells, f"weight_hh_l0{suffix}")
    shift = getattr(cells, f"bias_ih_l0{suffix}") + getattr(cells, f"bias_hh_l0{suffix}")
    state = memory = torch.zeros(len(steps), u.shape[1])
    states = []
    for step in steps.unbind(1):
        gate, forget, cell, output = (step @ w.T + state @ u.T + shift).chunk(4, dim=1)
        memory = forget.sigmoid() * memory + gate.sigmoid() * cell.tanh()
        state = output.sigmoid() * memory.tanh()
        states.append(state)
    return torch.stack(states, dim=1)


@torch.no_grad()
def test_it_reads_patches_in_reading_order() -> None:
    model = create_model("lstm_2x256", num_classes=3, width=8, image_size=8, depth=1).eval()
    pixels = torch.randn(2, 3, 8, 12)
    patches = pixels.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(2, 6, -1)
    steps = patches @ model.patch.projection.weight.flatten(1).T + model.patch.projection.bias
    states = by_hand(model.blocks[0].cells, steps)
    out = model(pixels)
    assert out.grid == (2, 3)
    torch.testing.assert_close(out.tokens, states)
    torch.testing.assert_close(out.logits, states.mean(1) @ model.head.weight.T + model.head.bias)


@torch.no_grad()
def test_in_both_directions_the_second_half_reads_from_the_end() -> None:
    model = create_model("bilstm_2x256_rows", num_classes=3, width=8, image_size=5, depth=1).eval()
    pixels = torch.randn(2, 3, 7, 5)
    steps, _ = model.patch(pixels)
    back = by_hand(model.blocks[0].cells, steps.flip(1), "_reverse").flip(1)
    torch.testing.assert_close(model(pixels).tokens, torch.cat([by_hand(model.blocks[0].cells, steps), back], dim=2))


@torch.no_grad()
def test_forwards_the_first_step_knows_nothing_of_later_ones() -> None:
    for name, knows in (("lstm_2x256", False), ("bilstm_2x256", True)):
        model = create_model(name, num_classes=3, width=8, image_size=16).eval()
        pixels = torch.randn(1, 3, 16, 16)
        changed = pixels.clone()
        changed[:, :, 12:, 12:] += 1
        before, after = model(pixels).tokens, model(changed).tokens
        assert (not torch.equal(before[:, 0], after[:, 0])) == knows
        assert not torch.equal(before[:, -1], after[:, -1])


def test_nothing_is_forgotten_at_first() -> None:
    cells = create_model("lstm_2x256", width=8).blocks[1].cells
    bias = cells.bias_ih_l0 + cells.bias_hh_l0
    assert bias.tolist() == [0.0] * 8 + [1.0] * 8 + [0.0] * 16
    weight = cells.weight_hh_l0.detach()
    torch.testing.assert_close(weight.T @ weight, torch.eye(8), atol=1e-5, rtol=0)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match="must be even; 255 came"):
        create_model("bilstm_2x256", width=255)
    with pytest.raises(UsageError, match="smaller than what one step reads"):
        create_model("lstm_2x256", image_size=3)
    with pytest.raises(UsageError, match="smaller than one patch of 4×4"):
        create_model("lstm_2x256", width=8)(torch.zeros(1, 3, 32, 3))
