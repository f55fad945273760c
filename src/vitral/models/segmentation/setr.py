"""Segmentation transformer (SETR): a plain vision transformer reads the picture, and a few convolutions lay out what it saw.

Zheng et al. 2021, "Rethinking Semantic Segmentation from a Sequence-to-Sequence Perspective with Transformers",
https://arxiv.org/abs/2012.15840, section 3. No map is ever made smaller: behind the patches, every block sees the whole
picture. Three decoders make classes of the tokens (section 3.3, figure 1):

- naive: one convolution, and the map is enlarged at once.
- PUP, progressive upsampling: four convolutions, the map twice as large behind each.
- MLA, multi-level aggregation: maps from behind four blocks, from the last to the first each added to the next, go through
  convolutions of their own and are read side by side.

Auxiliary heads read the blocks further down, in training only. As in mmsegmentation, whose weights are the ones in use,
naive and PUP have three that are built like the decoder, and MLA has a linear classifier for each aggregated map.

Classifiers are 1 × 1 convolutions, before and behind which bilinear enlargement gives the same: classification comes first
here, as there are fewer cells then, and fewer classes than channels.

Sizes that the patch does not divide are filled up; see `models.segmentation.borders`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitral.base.config import check_choices
from vitral.errors import UsageError
from vitral.layers.conv import ConvNorm
from vitral.models.backbones.vit import VARIANTS as PLAIN
from vitral.models.backbones.vit import ViT, ViTConfig
from vitral.models.network import check_ranges, chosen_levels
from vitral.models.output import Level, MapOutput
from vitral.models.segmentation.borders import cut_back, filled_up
from vitral.models.segmentation.heads import classifier, initialise_head, normed
from vitral.models.segmentation.transformer import TransformerConfig, TransformerNetwork

__all__ = ["PAPERS", "SETR", "VARIANTS", "SETRConfig"]

# From least to most; what is beyond no machine could build, and a file that asks for it is refused at once.
_RANGES: dict[str, tuple[float, float]] = {
    "image_size": (1, 100_000),
    "channels": (1, 10_000),
    "num_classes": (1, 10_000_000),
    "decoder_width": (1, 100_000),
    "branch_width": (1, 100_000),
    "convolutions": (1, 100),
    "auxiliary_convolutions": (1, 100),
}


@dataclass(frozen=True, kw_only=True)
class SETRConfig(TransformerConfig):
    """Everything that tells one SETR from another.

    Attributes:
        num_classes: classes of pixels; the published networks have Cityscapes' 19 or ADE20K's 150.
        backbone: the vision transformer. Its channels and size of pictures are always the segmenter's, and it has neither
            classes nor a last norm.
        decoder: what makes classes of tokens.
        levels: behind which blocks, counted from 0, maps are taken. The last one is the decoder's, but for MLA, which reads
            all of them; the auxiliary heads read the others.
        decoder_width: channels of the decoder's convolutions.
        convolutions: how many there are, of naive and PUP.
        kernel: side of their windows.
        auxiliary: whether there are auxiliary heads.
        auxiliary_convolutions: how many convolutions each has, of naive and PUP.
        branch_width: channels that MLA's decoder has for each of its maps.
    """

    image_size: tuple[int, int] = (768, 768)
    num_classes: int = 19
    backbone: ViTConfig = field(default_factory=lambda: PLAIN["vit_l16"])
    decoder: Literal["naive", "pup", "mla"] = "naive"
    levels: tuple[int, ...] = (9, 14, 19, 23)
    decoder_width: int = 256
    convolutions: int = 1
    kernel: Literal[1, 3] = 1
    auxiliary: bool = True
    auxiliary_convolutions: int = 1
    branch_width: int = 128

    def __post_init__(self) -> None:
        check_choices(self)
        check_ranges(self, _RANGES)
        self._fit_backbone(final_norm=False)
        chosen_levels((Level(self.width, self.stride),) * self.depth, self.levels)
        if min(self.levels) < 0:
            raise UsageError(f"levels are numbers of blocks from 0; {self.levels} came.")


class SETR(TransformerNetwork):
    """A segmentation transformer.

    Args:
        config: which one.
    """

    config: SETRConfig

    def __init__(self, config: SETRConfig) -> None:
        super().__init__(config)
        self.backbone = ViT(config.backbone)
        self.neck = _Aggregation(config) if config.decoder == "mla" else None
        self.auxiliary_heads = nn.ModuleList()
        if config.auxiliary and config.decoder == "mla":
            self.auxiliary_heads.extend(classifier(config.decoder_width, config.num_classes) for _ in config.levels)
        elif config.auxiliary:
            heads = (_UpHead(config, config.auxiliary_convolutions, 4) for _ in config.levels[:-1])
            self.auxiliary_heads.extend(heads)
        self.head: _UpHead | _BranchHead = (
            _BranchHead(config)
            if config.decoder == "mla"
            else _UpHead(config, config.convolutions, 2 if config.decoder == "pup" else 4)
        )
        for part in (self.neck, self.auxiliary_heads, self.head):
            if part is not None:
                initialise_head(part)

    def forward(self, pixels: Float[Tensor, "b c y x"]) -> MapOutput:
        """Classes of places; the map has a cell for four by four pixels, PUP's for each pixel. See `MapNetwork`."""
        filled = filled_up(pixels, self.config.stride)
        last = self.config.levels[-1:] if self.neck is None and not self.training else self.config.levels
        maps: Sequence[Tensor] = self.backbone.pyramid(filled, last).maps
        if self.neck is not None:
            maps = self.neck(maps)
        logits = self.head(maps if self.neck is not None else maps[-1])
        auxiliary: list[Tensor] = []
        if self.training:
            for head, one in zip(self.auxiliary_heads, maps, strict=False):
                auxiliary.append(cut_back(head(one), filled, pixels))
        return MapOutput(cut_back(logits, filled, pixels), tuple(auxiliary))

    def _fresh_head(self) -> None:
        for head in (self.head, *self.auxiliary_heads):
            if isinstance(head, _UpHead | _BranchHead):
                head.classifier = classifier(head.classifier.in_channels, self.config.num_classes)
        if self.neck is not None:
            self.auxiliary_heads = nn.ModuleList(
                classifier(self.config.decoder_width, self.config.num_classes) for _ in self.auxiliary_heads
            )
        self.to(self.backbone.patch.projection.weight)


class _UpHead(nn.Module):
    """A norm, then convolutions behind each of which the map is enlarged, then classes (section 3.3, (1) and (2)).

    Args:
        config: of the segmenter.
        convolutions: how many.
        scale: how many times as large a map becomes behind each.
    """

    def __init__(self, config: SETRConfig, convolutions: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.norm = nn.LayerNorm(config.width, eps=config.backbone.norm_eps)
        widths = (config.width, *(config.decoder_width,) * convolutions)
        self.convolutions = nn.ModuleList(
            ConvNorm(inputs, outputs, config.kernel, activation="relu") for inputs, outputs in pairwise(widths)
        )
        self.classifier = classifier(config.decoder_width, config.num_classes)

    def forward(self, x: Float[Tensor, "b d i j"]) -> Float[Tensor, "b c _ _"]:
        """The logits of a map, enlarged."""
        x = normed(x, self.norm)
        for place, convolution in enumerate(self.convolutions):
            x = convolution(x if place == 0 else _enlarged(x, self.scale))
        return _enlarged(self.classifier(x), self.scale)


class _Aggregation(nn.Module):
    """Maps of several blocks, those of later ones added to those of earlier ones (section 3.3, (3), figure 1 c).

    Args:
        config: of the segmenter.
    """

    def __init__(self, config: SETRConfig) -> None:
        super().__init__()
        width, count = config.decoder_width, len(config.levels)
        self.norms = nn.ModuleList(nn.LayerNorm(config.width, eps=config.backbone.norm_eps) for _ in range(count))
        self.projections = nn.ModuleList(ConvNorm(config.width, width, 1, activation="relu") for _ in range(count))
        self.convolutions = nn.ModuleList(ConvNorm(width, width, 3, activation="relu") for _ in range(count))

    def forward(self, maps: Sequence[Float[Tensor, "b d i j"]]) -> list[Float[Tensor, "b w i j"]]:
        """The aggregated maps, that of the last block first."""
        projected = [
            projection(normed(one, norm)) for one, norm, projection in zip(maps, self.norms, self.projections, strict=True)
        ]
        sums = [projected[-1]]
        for one in reversed(projected[:-1]):
            sums.append(sums[-1] + one)
        return [convolution(one) for one, convolution in zip(sums, self.convolutions, strict=True)]


class _BranchHead(nn.Module):
    """Two convolutions for each of several maps, which are then read side by side.

    Args:
        config: of the segmenter.
    """

    def __init__(self, config: SETRConfig) -> None:
        super().__init__()
        width = config.branch_width
        self.branches = nn.ModuleList(
            nn.Sequential(
                ConvNorm(config.decoder_width, width, 3, activation="relu"), ConvNorm(width, width, 3, activation="relu")
            )
            for _ in config.levels
        )
        self.classifier = classifier(len(config.levels) * width, config.num_classes)

    def forward(self, maps: Sequence[Float[Tensor, "b w i j"]]) -> Float[Tensor, "b c _ _"]:
        """The logits, four times as large as the maps."""
        seen = torch.cat([branch(one) for branch, one in zip(self.branches, maps, strict=True)], dim=1)
        return _enlarged(self.classifier(seen), 4)


def _enlarged(x: Float[Tensor, "b c i j"], scale: int) -> Float[Tensor, "b c _ _"]:
    return F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)


# Table 1 of the paper: T-Large and T-Base. Which blocks are read is the authors' choice, by the decoder and the depth.
_DECODERS: dict[str, dict[str, Any]] = {
    "naive": {"decoder": "naive"},
    "pup": {"decoder": "pup", "convolutions": 4, "kernel": 3, "auxiliary_convolutions": 2},
    "mla": {"decoder": "mla"},
}
_LEVELS = {
    ("l", "up"): (9, 14, 19, 23),
    ("l", "mla"): (5, 11, 17, 23),
    ("b", "up"): (4, 7, 9, 11),
    ("b", "mla"): (2, 5, 8, 11),
}


def _variants() -> dict[str, SETRConfig]:
    """Each decoder on either size of transformer. MLA's has no class token."""
    rows = {}
    for letter in ("l", "b"):
        plain = replace(PLAIN[f"vit_{letter}16"], position_antialias=False)
        for name, options in _DECODERS.items():
            backbone = replace(plain, class_token=False, prefix_positions=0, pool="mean") if name == "mla" else plain
            levels = _LEVELS[letter, "mla" if name == "mla" else "up"]
            rows[f"setr_{name}_{letter}16"] = SETRConfig(backbone=backbone, levels=levels, **options)
    return rows


VARIANTS: dict[str, SETRConfig] = _variants()
"""Networks by name: the decoder, the transformer's size and its patch; pictures of Cityscapes' 768 pixels."""

PAPERS = {"setr": "Zheng et al. 2021"}
"""Beginning of a name → where the network was published."""
