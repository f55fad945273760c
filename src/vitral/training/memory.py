"""Gradient checkpointing: blocks whose inner values are computed again for the gradient instead of kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

__all__ = ["recomputed"]


@contextmanager
def recomputed(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """While this lasts, each block keeps its input only (Chen et al. 2016, https://arxiv.org/abs/1604.06174, section 3).

    Results and gradients are the same to the bit, random choices included.
    """
    changed = list(blocks)
    for block in changed:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in changed:
            del block.forward  # the class's own is there again
