"""Mix Transformer (MiT): the encoder of SegFormer, which classifies too.

Xie et al. 2021, "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers",
https://arxiv.org/abs/2105.15203, section 3.1: windows that overlap, attention to a smaller map, and a depthwise convolution
in the feed-forward network, which stands in for positions. PVT v2, of the same weeks, came to the very same block; what
differs are the sizes. The hidden layers of a MiT have four times its width in all stages, and no network of the family
attends to means. So the network is that of `pvt.py`, and its page the one to read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from vitral.errors import UsageError
from vitral.models.backbones.pvt import PVTConfig, PVTv2

__all__ = ["PAPERS", "VARIANTS", "MiT", "MiTConfig"]


@dataclass(frozen=True, kw_only=True)
class MiTConfig(PVTConfig):
    """Everything that tells one Mix Transformer from another: the fields of a `PVTConfig`, `linear` being False always.

    Attributes:
        mlp_ratios: hidden channels of the feed-forward networks in multiples of the stage's width.
    """

    mlp_ratios: tuple[int, ...] = (4, 4, 4, 4)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.linear:
            raise UsageError("A Mix Transformer has no linear attention. Take one of PVT v2's (pvt_v2_b2_li).")


class MiT(PVTv2):
    """A Mix Transformer.

    Args:
        config: which one.
    """

    config: MiTConfig


_B2 = MiTConfig()

# The authors' code (mix_transformer.py), which gives the numbers of parameters of the paper's table 1.
VARIANTS: dict[str, MiTConfig] = {
    "mit_b0": replace(_B2, widths=(32, 64, 160, 256), depths=(2, 2, 2, 2)),
    "mit_b1": replace(_B2, depths=(2, 2, 2, 2)),
    "mit_b2": _B2,
    "mit_b3": replace(_B2, depths=(3, 4, 18, 3)),
    "mit_b4": replace(_B2, depths=(3, 8, 27, 3)),
    "mit_b5": replace(_B2, depths=(3, 6, 40, 3)),
}
"""Networks by name."""

PAPERS = {"mit": "Xie et al. 2021"}
"""Beginning of a name → where the network was published."""
