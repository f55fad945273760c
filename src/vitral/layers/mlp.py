"""The position-wise feed-forward network of a transformer block, plain and gated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitral.layers.linear import Linear, unrecorded

__all__ = ["ACTIVATIONS", "Activation", "Mlp", "Nonlinearity", "SwiGLU"]

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "silu", "relu"]
"""GELU (Hendrycks and Gimpel 2016), its tanh and its sigmoid approximation, SiLU, ReLU."""

# A hidden layer of more bytes than this gets fresh memory from the system each time (glibc's allocator keeps no larger
# pieces), which takes longer than what is computed there; it is computed in pieces of so many bytes instead.
_LARGE, _PIECE = 2**25, 2**22

_Function = Callable[[Tensor], Tensor]

# Each with its form that overwrites its argument, where PyTorch has one.
ACTIVATIONS: dict[str, tuple[_Function, _Function | None]] = {
    "gelu": (F.gelu, torch.ops.aten.gelu_),
    "gelu_tanh": (
        lambda x: F.gelu(x, approximate="tanh"),
        lambda x: torch.ops.aten.gelu_(x, approximate="tanh"),
    ),
    "quick_gelu": (lambda x: x * torch.sigmoid(1.702 * x), None),
    "silu": (F.silu, lambda x: F.silu(x, inplace=True)),
    "relu": (F.relu, lambda x: F.relu(x, inplace=True)),
}


class Nonlinearity(nn.Module):
    """An activation that overwrites its argument when no gradient is recorded.

    The hidden layer of a transformer's feed-forward network is its largest tensor: on a CPU, fetching fresh memory for a
    second one costs several times the arithmetic of the activation (a seventh of a ViT-S at batch 8).
    """

    def __init__(self, name: Activation) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Apply the activation; `x` must not be used again by the caller."""
        plain, overwriting = ACTIVATIONS[self.name]
        return overwriting(x) if overwriting and unrecorded(x) else plain(x)


class Mlp(nn.Module):
    """Up, nonlinearity, down (Vaswani et al. 2017, section 3.3).

    Args:
        width: channels d of a token.
        hidden: channels of the hidden layer.
        activation: the nonlinearity.
        bias: whether the linear layers have a bias.
        dropout: probability of dropping a channel after either layer in training.
    """

    def __init__(
        self, width: int, hidden: int, activation: Activation = "gelu", *, bias: bool = True, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.up = Linear(width, hidden, bias=bias)
        self.nonlinearity = Nonlinearity(activation)
        self.down = Linear(hidden, width, bias=bias)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Transform every token on its own."""
        tokens, row = x.numel() // x.shape[-1], self.up.out_features * x.element_size()
        if tokens * row > _LARGE and unrecorded(x) and not self._watched():
            rows = x.reshape(tokens, -1)
            out = rows.new_empty(tokens, self.down.out_features)
            step = max(1, min(_PIECE, _LARGE) // row)
            for start in range(0, tokens, step):
                out[start : start + step] = self(rows[start : start + step])
            return out.view(*x.shape[:-1], -1)
        hidden = self.up(x)
        if self.up._forward_hooks:  # whoever watches the hidden layer keeps what it saw
            hidden = hidden.clone()
        return self.dropout(self.down(self.dropout(self.nonlinearity(hidden))))

    def _watched(self) -> bool:
        """Whether somebody looks at it or at a part of it, and should see it whole."""
        return any(part._forward_hooks or part._forward_pre_hooks for part in self.modules())


class SwiGLU(nn.Module):
    """A gated feed-forward network: down(silu(gate(x)) · up(x)) (Shazeer 2020, equation 6).

    Gate and up projection are one matrix, gate first, as DINOv2 stores them.

    Args:
        width: channels d of a token.
        hidden: channels of the gated hidden layer (the joint projection gives twice as many).
        bias: whether the linear layers have a bias.
        dropout: probability of dropping an output channel in training.
    """

    def __init__(self, width: int, hidden: int, *, bias: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.gate_up = Linear(width, 2 * hidden, bias=bias)
        self.nonlinearity = Nonlinearity("silu")
        self.down = Linear(hidden, width, bias=bias)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Transform every token on its own."""
        hidden = self.gate_up(x)
        if self.gate_up._forward_hooks:
            hidden = hidden.clone()
        gate, up = hidden.chunk(2, dim=-1)
        return self.dropout(self.down(self.nonlinearity(gate) * up))
