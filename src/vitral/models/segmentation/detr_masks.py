"""DETR with masks: every object that it finds is outlined, and so is every kind of stuff.

Carion et al. 2020, "End-to-End Object Detection with Transformers", https://arxiv.org/abs/2005.12872, section 4.2 and
figure 8. Things and stuff alike are queries of a detector (`detection/detr.py`). Where a query's object lies, a layer of
attention shows on the encoder's map; a small network with the residual network's maps at its side makes it sixteen times
finer, for every query on its own:

    query ─► attention over the encoder's cells (h maps) ─┐
    projected last map ───────────────────────────────────┴─► 3×3 ─► 3×3 ─► enlarge ─► 3×3 ─► … ─► 3×3 ─► mask (n/4)
    maps at n/16, n/8, n/4 ─► 1×1, added after each enlargement ─────────────┘

What does not depend on the query is computed once for all of a picture's queries, and not for each of them: the three 1 × 1
convolutions and, as a convolution is linear, that part of the first 3 × 3 one which reads the projected map. The answer is
the same but for rounding, at a third of the multiplications. With nothing to learn from, queries pass the network a few at a
time, so that a picture of 800 × 1066 pixels takes some dozens of megabytes and not gigabytes.

The authors train the detector first, and then the parts of this page on it as it is: what the decoder's earlier layers say
has no masks, and is not told.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vitral.data.transforms import Preprocessing
from vitral.errors import UsageError
from vitral.layers.joint_attention import JointAttentionMaps
from vitral.models.backbones.resnet import ResNetConfig
from vitral.models.detection import detr
from vitral.models.detection.detr import DETR, DETRConfig
from vitral.models.output import MaskOutput
from vitral.models.segmentation.kinds import MaskNetwork

__all__ = ["PAPERS", "VARIANTS", "MaskedDETR", "MaskedDETRConfig"]

_STAGES = 4
_GROUPS = 8  # of channels that are normalised together, and fewer where there are not so many
# Numbers of the largest map of queries that pass the mask head together. More no longer fit into a processor's cache.
_TOGETHER = 2**21


@dataclass(frozen=True, kw_only=True)
class MaskedDETRConfig(DETRConfig):
    """Everything that tells one DETR with masks from another: the fields of a `DETRConfig`.

    Attributes:
        num_classes: of things and stuff, without "nothing". The published networks have 250, the numbers of COCO's 133
            categories going up to 200.
    """

    num_classes: int = 250

    def __post_init__(self) -> None:
        super().__post_init__()
        widths = (self.width + self.heads, *_widths(self.width))
        if len(self.backbone.stage_channels) != _STAGES or self.width % 16 or any(one % min(_GROUPS, one) for one in widths):
            raise UsageError(
                f"A DETR with masks stands on a residual network of {_STAGES} stages; its width halves four times, and what "
                f"is left each time is divided into {_GROUPS} groups, as are its width and heads together. "
                f"{len(self.backbone.stage_channels)} stages, a width of {self.width} and {self.heads} heads came."
            )


def _widths(width: int) -> list[int]:
    """Channels of the mask head's maps, from the last map on."""
    return [width // 2**place for place in range(1, _STAGES + 1)]


class MaskedDETR(MaskNetwork):
    """A detection transformer with masks. They have a cell for every 4 × 4 pixels.

    Args:
        config: which one.
    """

    config: MaskedDETRConfig
    backbone_name: ClassVar[str] = "detr.backbone"
    tasks: ClassVar[tuple[str, ...]] = ("image-segmentation", "object-detection")

    def __init__(self, config: MaskedDETRConfig) -> None:
        super().__init__(config)
        self.detr = DETR(config)
        self.attention_maps = JointAttentionMaps(config.width, config.heads)
        self.mask_head = _MaskHead(config)

    @property
    def blocks(self) -> tuple[nn.Module, ...]:  # type: ignore[override]
        """The blocks of the residual network, of the encoder and of the decoder."""
        return self.detr.blocks

    def usual_preprocessing(self) -> Preprocessing | None:
        """As of the detector."""
        return self.detr.usual_preprocessing()

    def forward(self, pixels: Float[Tensor, "b c y x"], mask: Bool[Tensor, "b y x"] | None = None) -> MaskOutput:
        """Classes, boxes and masks of queries; see `MaskNetwork`."""
        *finer, last = self.detr.backbone.pyramid(pixels).maps
        cells = self.detr.projected(last)
        memory, positions, seen = self.detr.encode_map(cells, mask)
        *_, queries = self.detr.decode(memory, positions, seen)
        queries = self.detr.norm(queries)
        logits, boxes = self.detr.predicted(queries)
        found = self.attention_maps(queries, memory, seen).unflatten(-1, cells.shape[2:])
        masks = self.mask_head(cells, found, finer[::-1])
        return MaskOutput(logits, masks, queries, boxes=boxes, instances="partition")

    def _fresh_head(self) -> None:
        self.detr.reset_head(self.config.num_classes)


class _MaskHead(nn.Module):
    """From what a query attends to, to its mask (figure 8).

    Args:
        config: of the network.
    """

    def __init__(self, config: MaskedDETRConfig) -> None:
        super().__init__()
        width, inputs = config.width, config.width + config.heads
        widths = _widths(width)
        beside = config.backbone.stage_channels[-2::-1]
        self.first = _NormedConv(inputs, inputs)
        self.second = _NormedConv(inputs, widths[0])
        self.adapters = nn.ModuleList(nn.Conv2d(*sizes, 1) for sizes in zip(beside, widths, strict=False))
        self.finer = nn.ModuleList(_NormedConv(*sizes) for sizes in itertools.pairwise(widths))
        self.last = nn.Conv2d(widths[-1], 1, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(
        self,
        cells: Float[Tensor, "b d i j"],
        found: Float[Tensor, "b q h i j"],
        beside: list[Float[Tensor, "b _ _ _"]],
    ) -> Float[Tensor, "b q y x"]:
        """The logits of masks, of the size of the finest map.

        Args:
            cells: the projected last map.
            found: where on it each query looks.
            beside: the maps before it, from coarse to fine.
        """
        weight, bias = self.first.conv.weight, self.first.conv.bias
        shared = F.conv2d(cells, weight[:, : cells.shape[1]], bias, padding=1)
        adapted = [adapter(one) for adapter, one in zip(self.adapters, beside, strict=True)]
        largest = max(one[0].numel() for one in adapted)
        many = found.shape[1] if torch.is_grad_enabled() else max(1, _TOGETHER // largest)
        masks = []
        for place, some in enumerate(found.unbind(0)):
            maps = [one[place : place + 1] for one in (shared, *adapted)]
            masks.append(torch.cat([self._masks(few, *maps) for few in some.split(many)]))
        return torch.stack(masks)

    def _masks(
        self, found: Float[Tensor, "q h i j"], shared: Float[Tensor, "1 e i j"], *adapted: Float[Tensor, "1 _ _ _"]
    ) -> Float[Tensor, "q y x"]:
        """The masks of some of a picture's queries."""
        weight = self.first.conv.weight[:, -found.shape[1] :]
        x = self.second(self.first.normed(shared + F.conv2d(found, weight, padding=1)))
        for beside, layer in zip(adapted, self.finer, strict=True):
            x = layer(beside + F.interpolate(x, beside.shape[2:], mode="nearest"))
        masks: Tensor = self.last(x)
        return masks[:, 0]


class _NormedConv(nn.Module):
    """A 3 × 3 convolution, group normalisation (Wu and He 2018), ReLU.

    Args:
        inputs: channels c of the map.
        outputs: channels d of the result.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm = nn.GroupNorm(min(_GROUPS, outputs), outputs)

    def forward(self, x: Float[Tensor, "b c y x"]) -> Float[Tensor, "b d y x"]:
        """Apply the layer."""
        return self.normed(self.conv(x))

    def normed(self, x: Float[Tensor, "b d y x"]) -> Float[Tensor, "b d y x"]:
        """What follows the convolution."""
        return F.relu(self.norm(x))


def _of(name: str) -> MaskedDETRConfig:
    base = detr.VARIANTS[name].backbone
    return MaskedDETRConfig(backbone=ResNetConfig(depths=base.depths, norm="frozen", dilated=base.dilated))


VARIANTS: dict[str, MaskedDETRConfig] = {
    "detr_r50_panoptic": _of("detr_r50"),
    "detr_r101_panoptic": _of("detr_r101"),
    "detr_r50_dc5_panoptic": _of("detr_r50_dc5"),
}
"""Networks by name: the detector they stand on."""

PAPERS = {"detr": "Carion et al. 2020"}
"""Beginning of a name → where the network was published."""
