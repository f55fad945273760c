"""A linear layer that takes the quickest road the machine has, with the same parameters and the same numbers."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["Linear", "unrecorded"]

# Multiplications from which oneDNN's kernel makes up for the 14 µs that preparing it takes.
_WORTHWHILE = 2**24
_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def unrecorded(x: Tensor) -> bool:
    """Whether a layer may take a road of its own: nothing differentiates, traces, compiles or recasts what it does."""
    return not (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        or torch.is_autocast_enabled(x.device.type)
        or torch._C._functorch.peek_interpreter_stack() is not None  # torch.func: vmap, jvp, …
    )


class Linear(nn.Linear):
    """input · weightᵀ + bias.

    Without gradients, in single precision, on a CPU, it calls oneDNN's kernel, which adds the bias while it multiplies.
    PyTorch's ordinary road first writes the bias into fresh memory and then adds the product to it; on a ViT that costs
    a tenth to a third more. In training, under autocast, on other devices and precisions, compiled or exported it is
    `torch.nn.Linear`.
    """

    def forward(self, input: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        """Apply the layer."""
        if input.numel() * self.out_features >= _WORTHWHILE and _for_onednn(input, self.weight):
            return cast(Tensor, torch.ops.mkldnn._linear_pointwise(input, self.weight, self.bias, "none", [], ""))
        return F.linear(input, self.weight, self.bias)


def _for_onednn(input: Tensor, weight: Tensor) -> bool:
    return (
        _ONEDNN
        and input.device.type == weight.device.type == "cpu"
        and input.dtype == weight.dtype == torch.float32
        and type(weight) is nn.Parameter
        and unrecorded(input)
    )
