"""Which parameters an optimiser treats how."""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["parameter_groups"]


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two parameter groups for an optimiser: the matrices, which decay, and all the rest, which does not.

    Decay pulls towards zero, which for a matrix means towards a simpler map. For the scale of a norm, a bias, an
    embedding of position or a class token zero is no simpler than another value, so those are left alone, as in the
    trainings of ViT and DeiT. What decays is therefore recognised by what it does and not by its name: it is the
    `weight` (or the fused `in_proj_weight`) of a layer, has two or more dimensions and is not a table to look up in.

    Args:
        model: the model; parameters that need no gradient are left out, shared ones come once.
        weight_decay: the decay of the first group.

    Returns:
        The groups in the form of `torch.optim`, the decaying one first; together they hold every trained parameter.
    """
    decaying: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    seen: set[nn.Parameter] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            is_matrix = name in {"weight", "in_proj_weight"} and parameter.ndim >= 2
            (decaying if is_matrix and not isinstance(module, nn.Embedding) else free).append(parameter)
    return [{"params": decaying, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
