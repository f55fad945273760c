"""SegFormer: a hierarchy of maps, brought to one width and one size, and a single layer that mixes them.

Xie et al. 2021, "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers",
https://arxiv.org/abs/2105.15203, section 3.2 and equation 4. The encoder (`backbones/mit.py`) sees far enough by itself, so
that the decoder is made of linear layers alone:

    map 1 (c₁  n/4 ) ─► linear ──────────────┐
    map 2 (c₂  n/8 ) ─► linear ─► enlarge ───┤
    map 3 (c₃  n/16) ─► linear ─► enlarge ───┼─► concatenate ─► linear ─► norm ─► ReLU ─► classes (n/4)
    map 4 (c₄  n/32) ─► linear ─► enlarge ───┘

There is no nonlinearity before the norm, and a mean with weights, which enlarging is, changes places with a linear layer.
Here therefore both layers of a map are multiplied into one, which is applied before the map is enlarged; what was to be
concatenated is added. The answer is the same but for rounding. Of the 3.6 billion multiplications that the paper's decoder
of B0 does at 512 × 512 pixels, 0.9 remain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitral.base.config import check_choices
from vitral.layers.linear import Linear, unrecorded
from vitral.models.backbones import mit
from vitral.models.backbones.mit import MiT, MiTConfig
from vitral.models.network import MapConfig, check_ranges
from vitral.models.output import MapOutput
from vitral.models.segmentation.kinds import MapNetwork

__all__ = ["PAPERS", "VARIANTS", "SegFormer", "SegFormerConfig"]

# From least to most; what is beyond no machine could build, and a file that asks for it is refused at once.
_RANGES: dict[str, tuple[float, float]] = {
    "image_size": (1, 100_000),
    "channels": (1, 10_000),
    "num_classes": (1, 10_000_000),
    "decoder_width": (1, 100_000),
    "decoder_dropout": (0.0, 0.999),
}


@dataclass(frozen=True, kw_only=True)
class SegFormerConfig(MapConfig):
    """Everything that tells one SegFormer from another.

    Attributes:
        num_classes: classes of a cell; the published networks have ADE20K's 150 or Cityscapes' 19.
        backbone: the encoder. Its channels and size of pictures are always the segmenter's, and it has no classes.
        decoder_width: channels to which all maps are brought.
        decoder_dropout: probability of dropping a whole channel before the classifier in training.
    """

    image_size: tuple[int, int] = (512, 512)
    num_classes: int = 150
    backbone: MiTConfig = field(default_factory=lambda: MiTConfig(drop_path=0.1))
    decoder_width: int = 256
    decoder_dropout: float = 0.1

    def __post_init__(self) -> None:
        check_choices(self)
        check_ranges(self, _RANGES)
        backbone = replace(self.backbone, image_size=self.image_size, channels=self.channels, num_classes=0)
        object.__setattr__(self, "backbone", backbone)

    @property
    def stride(self) -> int:
        """Pixels from one token behind the last block to the next; the answer is finer."""
        return self.backbone.stride

    @property
    def width(self) -> int:
        """Channels of a token behind the last block."""
        return self.backbone.width

    @property
    def depth(self) -> int:
        """Number of blocks, all of them the encoder's."""
        return self.backbone.depth


class SegFormer(MapNetwork):
    """A SegFormer. Its answer has a cell for every 4 × 4 pixels.

    Args:
        config: which one.
    """

    config: SegFormerConfig

    def __init__(self, config: SegFormerConfig) -> None:
        super().__init__(config)
        self.backbone = MiT(config.backbone)
        self.decoder = _Decoder(config.backbone.widths, config.decoder_width)
        self.dropout = nn.Dropout2d(config.decoder_dropout)
        self.head = Linear(config.decoder_width, config.num_classes)

    @property
    def blocks(self) -> tuple[nn.Module, ...]:  # type: ignore[override]
        """The blocks of all stages of the encoder."""
        return self.backbone.blocks

    def forward(self, pixels: Float[Tensor, "b c y x"]) -> MapOutput:
        """Classes of places; see `MapNetwork`."""
        mixed = self.dropout(self.decoder(self.backbone.pyramid(pixels).maps))
        return MapOutput(self.head(mixed.movedim(1, -1)).movedim(-1, 1))

    def _fresh_head(self) -> None:
        self.head = Linear(self.config.decoder_width, self.config.num_classes).to(self.head.weight)


class _Decoder(nn.Module):
    """What mixes the maps (equation 4, first to third line).

    The parts are held as they were published, one layer for each map and one for all of them; see the top of the page for
    how they are used.

    Args:
        inputs: channels of each map, the finest first.
        width: channels d of what is made of them.
    """

    def __init__(self, inputs: Sequence[int], width: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Linear(channels, width) for channels in inputs)
        self.fuse = nn.Conv2d(len(inputs) * width, width, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        nn.init.kaiming_normal_(self.fuse.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, maps: Sequence[Float[Tensor, "b _ _ _"]]) -> Float[Tensor, "b d i j"]:
        """One map of the finest one's size.

        Args:
            maps: from fine to coarse.
        """
        weights, bias = self._products()
        if not self.norm.training:  # with fixed statistics the norm is one more factor
            variance, mean = cast(Tensor, self.norm.running_var), cast(Tensor, self.norm.running_mean)
            gain = self.norm.weight * torch.rsqrt(variance + self.norm.eps)
            weights = [weight * gain[:, None] for weight in weights]
            bias = (bias - mean) * gain + self.norm.bias
        # A cell's channels lie side by side, so that turning them to the back and to the front again needs no copy.
        mixed = F.linear(maps[0].movedim(1, -1), weights[0], bias).movedim(-1, 1)
        size = (mixed.shape[2], mixed.shape[3])
        for one, weight in zip(maps[1:], weights[1:], strict=True):
            projected = F.linear(one.movedim(1, -1), weight).movedim(-1, 1)
            enlarged = F.interpolate(projected, size, mode="bilinear", align_corners=False)
            mixed = mixed.add_(enlarged) if unrecorded(mixed) else mixed + enlarged
        return F.relu(self.norm(mixed) if self.norm.training else mixed, inplace=True)

    def _products(self) -> tuple[list[Float[Tensor, "d _"]], Float[Tensor, " d"]]:
        """For each map the one matrix that both of its layers come to, and the bias of all together."""
        # The authors concatenate the coarsest map first.
        parts = self.fuse.weight.flatten(1).chunk(len(self.projections), dim=1)[::-1]
        layers = [(part, cast(nn.Linear, layer)) for part, layer in zip(parts, self.projections, strict=True)]
        bias = torch.cat([part @ layer.bias[:, None] for part, layer in layers], dim=1).sum(1)
        return [part @ layer.weight for part, layer in layers], bias


_B0 = SegFormerConfig(backbone=replace(mit.VARIANTS["mit_b0"], drop_path=0.1))


def _larger(name: str) -> SegFormerConfig:
    return replace(_B0, backbone=replace(mit.VARIANTS[name], drop_path=0.1), decoder_width=768)


# Section 4.1 and table 1: trained on ADE20K, the largest one with larger crops.
VARIANTS: dict[str, SegFormerConfig] = {
    "segformer_b0": _B0,
    "segformer_b1": replace(_larger("mit_b1"), decoder_width=256),
    "segformer_b2": _larger("mit_b2"),
    "segformer_b3": _larger("mit_b3"),
    "segformer_b4": _larger("mit_b4"),
    "segformer_b5": replace(_larger("mit_b5"), image_size=(640, 640)),
}
"""Networks by name, that of their encoder."""

PAPERS = {"segformer": "Xie et al. 2021"}
"""Beginning of a name → where the network was published."""
