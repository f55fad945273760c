"""Pictures of sizes that a network's patches do not divide, and maps of them.

They are filled up with zeros on the right and below, and what is said there is cut off again, as the authors of Segmenter do
(Strudel et al. 2021). So every logit lies where its pixels are.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

__all__ = ["cut_back", "filled_up"]


def filled_up(pixels: Float[Tensor, "b c y x"], multiple: int) -> Float[Tensor, "b c v u"]:
    """Pictures with zeros on the right and below, so that both sides are multiples of so many pixels."""
    down, across = (-side % multiple for side in pixels.shape[2:])
    return F.pad(pixels, (0, across, 0, down)) if down or across else pixels


def cut_back(
    logits: Float[Tensor, "b k i j"], filled: Float[Tensor, "b c v u"], pixels: Float[Tensor, "b c y x"]
) -> Float[Tensor, "b k _ _"]:
    """A map of pictures that were filled up, as one of the pictures.

    Where nothing was filled up it stays as it is, and may be coarse. Else it is brought to a cell for each pixel first,
    bilinearly, as no coarser cut would meet the picture's edge.

    Args:
        logits: a map that covers the whole of what the network saw.
        filled: what the network saw.
        pixels: the pictures.
    """
    if filled.shape == pixels.shape:
        return logits
    size = (filled.shape[2], filled.shape[3])
    if logits.shape[2:] != filled.shape[2:]:
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    return logits[..., : pixels.shape[2], : pixels.shape[3]]
