"""Positions of the tokens before the patches: the same function, stated in another layout's terms."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import nn

from vitral.models.backbones.vit import ViT

__all__ = ["with_prefix_positions"]


@torch.no_grad()
def with_prefix_positions(model: ViT, count: int) -> ViT:
    """A model that computes the same, whose position table has rows for `count` of the tokens before the patches.

    A row that goes is added to its token; a row that comes is zero. DINOv2 with registers has a row for the class token
    in transformers' files and none in timm's.

    Args:
        model: a model with a learned position table; it is left as it is.
        count: rows wanted, from 0 to the number of tokens before the patches.
    """
    present = model.config.prefix_positions
    if count == present or model.position_table is None:
        return model
    changed = copy.deepcopy(model)
    tokens = [t for t in (changed.class_token, changed.distillation_token, changed.register_tokens) if t is not None]
    rows, patches = model.position_table[:, :present], model.position_table[:, present:]
    place = 0
    for token in tokens:
        for index in range(token.shape[1]):
            if count <= place < present:
                token[:, index] += rows[:, place]
            place += 1
    kept = rows[:, :count]
    added = rows.new_zeros(1, max(count - present, 0), rows.shape[2])
    changed.position_table = nn.Parameter(torch.cat([kept, added, patches], dim=1))
    changed.config = replace(model.config, prefix_positions=count)
    return changed
