"""The residual network that feeds hybrids: BiT's ResNet without its classifier.

He et al. 2016, "Deep Residual Learning", with the two changes of Kolesnikov et al. 2020, "Big Transfer (BiT)",
https://arxiv.org/abs/1912.11370, section 3.1: standardised convolutions, and group instead of batch normalisation. As in
the ViT paper's code (google-research/vision_transformer, vit_jax/models_resnet.py) norms follow their convolutions, the
stride is in a unit's 3 × 3 convolution, and borders are padded by need, so that a stride s makes ⌈n / s⌉ of n rows.

    picture ─► 7×7, stride 2 ─► level 0 ─► 3×3 max, stride 2 ─► stage 1 ─► level 1 ─► stage 2 ─► level 2 ─► …
                                stride 2                                   stride 4              stride 8

Segmentation reads the levels on the way as skip connections (Chen et al. 2021, TransUNet; Ranftl et al. 2021, DPT).
TransUNet's own trunk differs by what a `TrunkKind` tells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitral.errors import UsageError
from vitral.layers.standardised import StandardisedConv2d
from vitral.models.output import Level

__all__ = ["BIT", "EVEN", "BitTrunk", "TrunkKind"]

_GROUPS = 32
_EXPANSION = 4


@dataclass(frozen=True, kw_only=True)
class TrunkKind:
    """In what published trunks of the same tensors differ.

    Attributes:
        even: whether borders of convolutions are padded by half a window on both sides, and those of the pooling not at all,
            instead of by need.
        filter_eps: added to the variance of a filter.
        norm_eps: epsilon of the norms, but for those of shortcuts where `alone`.
        alone: whether the norm of a shortcut's convolution takes every channel by itself, with an epsilon of 1e-5.
    """

    even: bool = False
    filter_eps: float = 1e-8
    norm_eps: float = 1e-5
    alone: bool = False


BIT = TrunkKind()
"""That of the ViT paper's hybrids."""

EVEN = TrunkKind(even=True, filter_eps=1e-5, norm_eps=1e-6, alone=True)
"""That of the TransUNet authors' code."""


class BitTrunk(nn.Module):
    """Root and stages of BiT's ResNet.

    Attributes:
        levels: channels and stride of every map that it gives.

    Args:
        channels: channels of a picture.
        depths: units in every stage; without any, the trunk is the root and its pooling.
        width: channels behind the root, a multiple of 32; stage s has 4 · 2ˢ⁻¹ times as many.
        kind: whose trunk it is.
    """

    levels: tuple[Level, ...]

    def __init__(self, channels: int, depths: tuple[int, ...], width: int = 64, kind: TrunkKind = BIT) -> None:
        super().__init__()
        self.kind = kind
        if width % _GROUPS:
            raise UsageError(f"A trunk's channels are normalised in {_GROUPS} groups, of which {width} is no multiple.")
        self.root = _convolution(kind, channels, width, 7, stride=2)
        self.root_norm = nn.GroupNorm(_GROUPS, width, eps=kind.norm_eps)
        levels, inputs = [Level(width, 2)], width
        self.stages = nn.ModuleList()
        for stage, depth in enumerate(depths):
            outputs = _EXPANSION * width * 2**stage
            first = _Unit(kind, inputs, outputs, 1 if stage == 0 else 2, changes=True)
            self.stages.append(nn.Sequential(first, *(_Unit(kind, outputs, outputs) for _ in range(depth - 1))))
            levels.append(Level(outputs, 4 * 2**stage))
            inputs = outputs
        self.levels = tuple(levels) if depths else (*levels, Level(width, 4))

    def forward(self, pixels: Float[Tensor, "b c y x"]) -> tuple[Float[Tensor, "b _ _ _"], ...]:
        """The map of every level, fine to coarse.

        Raises:
            UsageError: the channels are not those of the trunk's pictures.
        """
        taken = self.root.in_channels
        if pixels.shape[1] != taken:
            raise UsageError(f"The model takes pictures of {taken} channels; {pixels.shape[1]} came.")
        # The channels of a pixel lie side by side from here on: convolutions on a CPU are quicker so.
        x = self.root(pixels.contiguous(memory_format=torch.channels_last))
        maps = [F.relu(self.root_norm(x))]
        if self.kind.even:
            x = F.max_pool2d(maps[0], 3, 2)
        else:  # an odd side is padded on both ends, an even one only behind, where a window may stand out
            x = F.max_pool2d(maps[0], 3, 2, (maps[0].shape[2] % 2, maps[0].shape[3] % 2), ceil_mode=True)
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return tuple(maps) if len(self.stages) else (*maps, x)


class _Unit(nn.Module):
    """A bottleneck: 1 × 1 to a quarter of the channels, 3 × 3, 1 × 1 back, and a shortcut (He et al. 2016, figure 5).

    Args:
        kind: of the trunk.
        inputs: channels that come.
        outputs: channels that go.
        stride: of the 3 × 3 convolution, and of the shortcut.
        changes: whether the shortcut is a convolution, as it is at the beginning of every stage.
    """

    def __init__(self, kind: TrunkKind, inputs: int, outputs: int, stride: int = 1, *, changes: bool = False) -> None:
        super().__init__()
        inner, eps = outputs // _EXPANSION, kind.norm_eps
        self.shortcut = _convolution(kind, inputs, outputs, 1, stride) if changes else None
        alone = (outputs, outputs) if kind.alone else (_GROUPS, outputs, eps)
        self.shortcut_norm = nn.GroupNorm(*alone) if changes else None
        self.conv1, self.norm1 = _convolution(kind, inputs, inner, 1), nn.GroupNorm(_GROUPS, inner, eps)
        self.conv2, self.norm2 = _convolution(kind, inner, inner, 3, stride), nn.GroupNorm(_GROUPS, inner, eps)
        self.conv3, self.norm3 = _convolution(kind, inner, outputs, 1), nn.GroupNorm(_GROUPS, outputs, eps)

    def forward(self, x: Float[Tensor, "b c y x"]) -> Float[Tensor, "b d i j"]:
        """Apply the unit."""
        shortcut = x
        if self.shortcut is not None and self.shortcut_norm is not None:
            shortcut = self.shortcut_norm(self.shortcut(x))
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        return F.relu(self.norm3(self.conv3(y)) + shortcut)


class _EvenConv2d(StandardisedConv2d):
    """A standardised convolution whose borders are padded by half a window on both sides."""

    def forward(self, input: Float[Tensor, "b c y x"]) -> Float[Tensor, "b d i j"]:
        """Apply the layer."""
        filters = self.weight.flatten(1)
        weight = F.layer_norm(filters, filters.shape[1:], eps=self.eps).view_as(self.weight)
        return F.conv2d(input, weight, None, self.stride, self.kernel_size[0] // 2)


def _convolution(kind: TrunkKind, inputs: int, outputs: int, kernel: int, stride: int = 1) -> StandardisedConv2d:
    made = _EvenConv2d if kind.even else StandardisedConv2d
    return made(inputs, outputs, kernel, stride, eps=kind.filter_eps)
