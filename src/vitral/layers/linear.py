"""A linear layer that takes the quickest road the machine has, with the same parameters and the same numbers."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["Linear"]

_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class Linear(nn.Linear):
    """input · weightᵀ + bias.

    Without gradients, in single precision, on a CPU, it calls oneDNN's kernel, which adds the bias while it multiplies.
    PyTorch's ordinary road first writes the bias into fresh memory and then adds the product to it; on a ViT that costs
    a tenth to a third more. Everywhere else (training, other devices and precisions, compiling, exporting) it is
    `torch.nn.Linear`.
    """

    def forward(self, input: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        """Apply the layer."""
        if (
            not _ONEDNN
            or torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
            or input.dtype != torch.float32
            or self.weight.dtype != torch.float32
            or input.device.type != "cpu"
            or self.weight.device.type != "cpu"
            or input.numel() == 0
        ):
            return F.linear(input, self.weight, self.bias)
        return cast(Tensor, torch.ops.mkldnn._linear_pointwise(input, self.weight, self.bias, "none", [], ""))
