"""Real-time detection transformer (RT-DETR), versions 1 and 2.

Zhao et al. 2024, "DETRs Beat YOLOs on Real-time Object Detection", https://arxiv.org/abs/2304.08069: a detector that needs
no suppression of doubles, made quick where DETR is slow. Its encoder attends on the coarsest map only (see
`models.detection.hybrid_encoder`); its queries begin as the cells of all maps that look most like an object (section 4.3),
and a few layers of a decoder with deformable attention move their boxes, each from where the one before left it (Zhu et al.
2021, Deformable DETR, section 4).

    picture ──► ResNet-D ──► strides 8, 16, 32 ──► hybrid encoder ──► memory ──┬──────────────► ask a few places
                                                                               └─► best 300 cells ──► decoder ──► boxes

Lv et al. 2024, "RT-DETRv2", https://arxiv.org/abs/2407.17140, keep the network and train it better; what they add is a
choice: every map may be asked at a number of places of its own (`points`), and places may be rounded to the nearest cell
(`sampling`), which devices without an interpolation on a grid can do. In training known objects are shown with noise beside
the queries (`models.detection.denoising`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vitral.base.boxes import Objects
from vitral.base.config import check_choices
from vitral.data.transforms import Preprocessing
from vitral.errors import UsageError
from vitral.layers.conv import ConvNorm
from vitral.layers.cross import CrossAttention
from vitral.layers.decoding import DecoderBlock, Perceptron
from vitral.layers.deformable import DeformableAttention, Sampling
from vitral.layers.linear import Linear
from vitral.layers.mlp import Activation
from vitral.layers.position import Grid
from vitral.models.backbones import resnet
from vitral.models.backbones.resnet import ResNet, ResNetConfig
from vitral.models.detection.denoising import Noise, NoisyObjects, noisy_objects, visibility
from vitral.models.detection.detector import Detector
from vitral.models.detection.hybrid_encoder import HybridEncoder, HybridEncoderConfig
from vitral.models.network import MapConfig, check_ranges
from vitral.models.output import Denoised, Predicted, SetOutput

__all__ = ["PAPERS", "RTDETR", "VARIANTS", "RTDETRConfig"]

_RANGES: dict[str, tuple[float, float]] = {
    "image_size": (1, 100_000),
    "channels": (1, 10_000),
    "num_classes": (1, 1_000_000),
    "width": (1, 100_000),
    "heads": (1, 10_000),
    "hidden": (1, 1_000_000),
    "decoder_depth": (1, 1_000),
    "evaluated_depth": (1, 1_000),
    "queries": (1, 1_000_000),
    "reach": (0.0, 100.0),
    "dropout": (0.0, 0.999),
}
_SIDE = 0.05  # of the box that a cell of the finest map proposes to begin with; of a coarser one twice as much, and so on
_EDGE = 0.01  # boxes whose centre is nearer than this to an edge, or whose side is smaller, are not begun with
_NEARLY = 1e-5  # from 0 and from 1: how near numbers come before their logits are taken


@dataclass(frozen=True, kw_only=True)
class RTDETRConfig(MapConfig):
    """Everything that tells one RT-DETR from another.

    Attributes:
        backbone: gives the maps; of its stages the last ones are taken, as many as `points` has numbers. Its channels and
            size of pictures are always the detector's, and it has no classes.
        encoder: the hybrid encoder.
        width: channels of a query, and of a cell that it asks.
        heads: heads of the decoder's attention.
        hidden: channels of the hidden layer in each of the decoder's blocks.
        activation: of that hidden layer.
        decoder_depth: the decoder's blocks.
        evaluated_depth: how many of them answer in evaluation mode; None for all. In training all are taught.
        queries: how many; a picture with fewer cells has fewer.
        points: for each map, at how many places a head asks it.
        sampling: what is found between cells.
        reach: how far the outermost place lies from the centre of a query's box as training begins, in its widths.
        noise: how known objects are shown in training.
        dropout: probability of dropping what a branch of the decoder says, in training.
    """

    image_size: tuple[int, int] = (640, 640)
    num_classes: int = 80
    backbone: ResNetConfig = field(default_factory=lambda: _on("resnet50d"))
    encoder: HybridEncoderConfig = field(default_factory=HybridEncoderConfig)
    width: int = 256
    heads: int = 8
    hidden: int = 1024
    activation: Activation = "relu"
    decoder_depth: int = 6
    evaluated_depth: int | None = None
    queries: int = 300
    points: tuple[int, ...] = (4, 4, 4)
    sampling: Sampling = "bilinear"
    reach: float = 0.5
    noise: Noise = field(default_factory=Noise)
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_choices(self)
        check_ranges(self, _RANGES)
        backbone = replace(self.backbone, image_size=self.image_size, channels=self.channels, num_classes=0)
        object.__setattr__(self, "backbone", backbone)
        if self.width % self.heads:
            raise UsageError(f"{self.width} channels cannot be shared among {self.heads} heads; take a multiple.")
        if not 1 <= len(self.points) <= len(self.backbone.depths) or min(self.points) < 1:
            raise UsageError(
                f"points has a number of 1 or more for each map that is taken, and the backbone makes "
                f"{len(self.backbone.depths)}; {self.points} came."
            )
        if self.evaluated_depth is not None and self.evaluated_depth > self.decoder_depth:
            raise UsageError(f"evaluated_depth is at most decoder_depth, {self.decoder_depth}; {self.evaluated_depth} came.")
        if self.backbone.dilated:
            raise UsageError("The maps of an RT-DETR halve from one to the next; dilated must be 0.")

    @property
    def depth(self) -> int:
        """Number of blocks, of backbone, encoder and decoder together."""
        return self.backbone.depth + self.encoder.depth + self.decoder_depth

    @property
    def stride(self) -> int:
        """Pixels from one cell of the coarsest map to the next."""
        return self.backbone.stride

    @property
    def levels(self) -> tuple[int, ...]:
        """The stages of the backbone whose maps are taken."""
        stages = len(self.backbone.depths)
        return tuple(range(stages - len(self.points), stages))


class RTDETR(Detector):
    """A real-time detection transformer.

    Args:
        config: which one.
    """

    config: RTDETRConfig

    def __init__(self, config: RTDETRConfig) -> None:
        super().__init__(config)
        width, depth = config.width, config.decoder_depth
        inputs = [config.backbone.stage_channels[level] for level in config.levels]
        self.backbone = ResNet(config.backbone)
        self.encoder = HybridEncoder(inputs, config.encoder)
        self.memory = nn.ModuleList(ConvNorm(config.encoder.width, width, 1) for _ in inputs)
        self.proposal = nn.Sequential(Linear(width, width), nn.LayerNorm(width))
        self.proposal_classes = Linear(width, config.num_classes)
        self.proposal_box = Perceptron((width, width, width, 4))
        self.noisy = _embedding(config) if config.noise.queries else None
        self.position = Perceptron((4, 2 * width, width))
        self.decoder = nn.ModuleList(_decoder_block(config) for _ in range(depth))
        self.classes = nn.ModuleList(Linear(width, config.num_classes) for _ in range(depth))
        self.boxes = nn.ModuleList(Perceptron((width, width, width, 4)) for _ in range(depth))
        _initialise(self)

    @property
    def blocks(self) -> tuple[nn.Module, ...]:  # type: ignore[override]
        """Those of the backbone, of the encoder and of the decoder."""
        return (*self.backbone.blocks, *self.encoder.blocks, *self.decoder)

    def forward(
        self,
        pixels: Float[Tensor, "b c y x"],
        mask: Bool[Tensor, "b y x"] | None = None,
        targets: Sequence[Objects] | None = None,
    ) -> SetOutput:
        """Look for objects; see `Detector`.

        Raises:
            UsageError: a mask that hides something. The network was made for pictures that fill its input, resized to it
                whatever their shape.
        """
        if mask is not None and bool(mask.any()):
            raise UsageError(
                "An RT-DETR looks at the whole of its input, and part of a picture's was filled up. Resize pictures to one "
                "size (resize='exact') before they are put into a batch."
            )
        maps = self.encoder(self.backbone.pyramid(pixels, self.config.levels).maps)
        grids = tuple((x.shape[2], x.shape[3]) for x in maps)
        memory = torch.cat(
            [project(x).flatten(2).transpose(1, 2) for project, x in zip(self.memory, maps, strict=True)], dim=1
        )
        queries, proposals = self._proposed(memory, grids)
        shown = None
        if self.training and targets is not None and self.noisy is not None:
            shown = noisy_objects(targets, self.config.num_classes, self.config.noise)
        if shown is None:
            layers, queries = self._decoded(queries, proposals.boxes.detach(), memory, grids)
            return SetOutput(*layers[-1], "sigmoid", queries, tuple(layers[:-1]), proposals)
        return self._denoised(shown, queries, proposals, memory, grids)

    def usual_preprocessing(self) -> Preprocessing | None:
        """The whole picture at the network's size, from 0 to 1, as the authors do."""
        nothing, one = (0.0,) * self.config.channels, (1.0,) * self.config.channels
        if self.config.channels not in (1, 3):
            return None
        return Preprocessing(resize="exact", size=self.config.image_size, interpolation="bilinear", mean=nothing, std=one)

    def reset_head(self, num_classes: int) -> None:
        """Put fresh classifiers for `num_classes` classes of objects in place of all present ones.

        Raises:
            UsageError: fewer than one class.
        """
        self.config = replace(self.config, num_classes=num_classes)
        self.record = replace(self.record, labels=())
        like, width = self.proposal_classes.weight, self.config.width
        self.proposal_classes = Linear(width, num_classes)
        self.classes = nn.ModuleList(Linear(width, num_classes) for _ in self.classes)
        if self.noisy is not None:
            self.noisy = _embedding(self.config).to(like.device, like.dtype)
        for head in (self.proposal_classes, *self.classes):
            _begin_unlikely(cast(Linear, head))
            head.to(like.device, like.dtype)

    def _proposed(self, memory: Float[Tensor, "b m d"], grids: tuple[Grid, ...]) -> tuple[Float[Tensor, "b q d"], Predicted]:
        """The cells that look most like an object, and what is said of them (Zhao et al. 2024, section 4.3).

        Returns:
            What the queries begin as, of which no gradient goes back to the encoder; and the proposals, through which it is
            taught.
        """
        anchors, begun = (torch.as_tensor(one, device=memory.device) for one in _anchors(grids))
        cells = self.proposal(memory * begun.to(memory.dtype))
        logits = self.proposal_classes(cells)
        best = logits.amax(-1).topk(min(self.config.queries, cells.shape[1]), dim=1).indices[..., None]
        chosen, logits = (one.gather(1, best.expand(-1, -1, one.shape[2])) for one in (cells, logits))
        # Boxes are in single precision at least: a bfloat16 of 0.6 is as coarse as a 256th of a picture.
        boxes = (self.proposal_box(chosen) + anchors[best[..., 0]]).sigmoid()
        return chosen.detach(), Predicted(logits, boxes)

    def _decoded(
        self,
        queries: Float[Tensor, "b q d"],
        reference: Float[Tensor, "b q 4"],
        memory: Float[Tensor, "b m d"],
        grids: tuple[Grid, ...],
        sees: Bool[Tensor, "1 1 q q"] | None = None,
    ) -> tuple[list[Predicted], Float[Tensor, "b q d"]]:
        """What every block says in training, and what the last one says in evaluation; and what queries have become."""
        depth = self.config.decoder_depth if self.training else self.config.evaluated_depth or self.config.decoder_depth
        said, before = [], reference
        for place, block in enumerate(cast(Sequence[DecoderBlock], self.decoder)[:depth]):
            positions = self.position(reference.to(queries.dtype))
            queries = block(queries, positions, reference[:, :, None], memory, grids, sees=sees)
            step = self.boxes[place](queries)
            refined = (step + _logit(reference)).sigmoid()
            if self.training or place == depth - 1:
                # In training a block also learns what would have been a better start for the next one ("look forward
                # twice", Zhang et al. 2023, DINO, section 3.5). The numbers are the same.
                boxes = (step + _logit(before)).sigmoid() if self.training else refined
                said.append(Predicted(self.classes[place](queries), boxes))
            reference, before = refined.detach(), refined
        return said, queries

    def _denoised(
        self,
        shown: NoisyObjects,
        queries: Float[Tensor, "b q d"],
        proposals: Predicted,
        memory: Float[Tensor, "b m d"],
        grids: tuple[Grid, ...],
    ) -> SetOutput:
        """Decode the queries with known objects beside them."""
        noisy, ordinary = shown.labels.shape[1], queries.shape[1]
        sees = visibility(noisy, shown.groups, ordinary, memory.device)[None, None]
        begun = cast(nn.Embedding, self.noisy)(shown.labels).to(queries.dtype)
        # The noise leaves some boxes without a side; none is quite 0 or 1.
        boxes = _logit(shown.boxes.to(proposals.boxes.dtype)).sigmoid()
        layers, found = self._decoded(
            torch.cat([begun, queries], dim=1), torch.cat([boxes, proposals.boxes.detach()], dim=1), memory, grids, sees
        )
        parts = [[one.split([noisy, ordinary], dim=1) for one in layer] for layer in layers]
        told = [Predicted(logits[1], places[1]) for logits, places in parts]
        denoised = tuple(Predicted(logits[0], places[0]) for logits, places in parts)
        return SetOutput(
            *told[-1],
            "sigmoid",
            found[:, noisy:],
            tuple(told[:-1]),
            proposals,
            Denoised(denoised, shown.rows, shown.objects, shown.groups),
        )


def _logit(boxes: Float[Tensor, "*b 4"]) -> Float[Tensor, "*b 4"]:
    """The inverse of the sigmoid, of numbers kept away from 0 and 1."""
    return (boxes.clamp(min=_NEARLY) / (1 - boxes).clamp(min=_NEARLY)).log()


@functools.lru_cache(maxsize=16)
def _anchors(grids: tuple[Grid, ...]) -> tuple[Float[np.ndarray[Any, Any], "m 4"], Bool[np.ndarray[Any, Any], "m 1"]]:
    """For every cell the logits of the box that it begins with, and whether it begins at all.

    A box in the middle of the cell, of a twentieth of the picture's sides on the finest map and twice as much on every next
    one. Cells at the edge, where logits would grow large, tell nothing and have a box beyond the picture's corner.
    """
    boxes = []
    for level, (rows, columns) in enumerate(grids):
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        middles = (torch.stack([x, y], dim=-1) + 0.5) / torch.tensor([columns, rows])
        boxes.append(torch.cat([middles, torch.full_like(middles, _SIDE * 2**level)], dim=-1).flatten(0, 1))
    cells = torch.cat(boxes)
    begun = ((cells > _EDGE) & (cells < 1 - _EDGE)).all(-1, keepdim=True)
    logits = (cells / (1 - cells)).log().where(begun, torch.finfo(cells.dtype).max)
    return logits.numpy(), begun.numpy()


def _embedding(config: RTDETRConfig) -> nn.Embedding:
    """A vector for every class that known objects are shown as; for what is only there to fill up, zeros."""
    return nn.Embedding(config.num_classes + 1, config.width, padding_idx=config.num_classes)


def _begin_unlikely(head: Linear) -> None:
    """Let a classifier begin by giving every class a hundredth (Lin et al. 2017, focal loss, section 4.1)."""
    nn.init.constant_(head.bias, -math.log(99))


def _initialise(model: RTDETR) -> None:
    """As in the authors' code: boxes begin where they are put, classes are unlikely, other layers as PyTorch has them."""
    for head in (model.proposal_classes, *model.classes):
        _begin_unlikely(cast(Linear, head))
    for boxes in (model.proposal_box, *model.boxes):
        last = cast(Linear, cast(Perceptron, boxes).layers[-1])
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    for layer in (model.proposal[0], *model.position.layers):
        nn.init.xavier_uniform_(cast(Linear, layer).weight)
    for attention in (part for part in model.modules() if isinstance(part, CrossAttention)):
        for layer in (attention.query, attention.key, attention.value):
            # As one matrix of three times as many rows, which PyTorch's own attention draws them as.
            nn.init.xavier_uniform_(layer.weight, gain=math.sqrt(0.5))
        for layer in (attention.query, attention.key, attention.value, attention.projection):
            nn.init.zeros_(layer.bias)
    for block in cast(Sequence[DecoderBlock], model.decoder):
        nn.init.xavier_uniform_(block.mlp.up.weight)
        nn.init.xavier_uniform_(block.mlp.down.weight)


def _decoder_block(config: RTDETRConfig) -> DecoderBlock:
    """One whose queries ask a few places of the maps, in the reach of their boxes."""
    width, heads, points = config.width, config.heads, config.points
    places = DeformableAttention(width, heads, len(points), points, sampling=config.sampling, reach=config.reach)
    return DecoderBlock(width, heads, config.hidden, config.activation, cross_attention=places, dropout=config.dropout)


def _on(name: str, *, learns: bool = False) -> ResNetConfig:
    """A backbone; small ones are trained with norms that learn, large ones keep those of the classifier they began as."""
    return replace(resnet.VARIANTS[name], norm="batch" if learns else "frozen", projected=True, num_classes=0)


_HALF = HybridEncoderConfig(expansion=0.5)
_R50 = RTDETRConfig()
_SIZES: dict[str, RTDETRConfig] = {
    "r18": replace(_R50, backbone=_on("resnet18d", learns=True), encoder=_HALF, decoder_depth=3),
    "r34": replace(_R50, backbone=_on("resnet34d", learns=True), encoder=_HALF, decoder_depth=4),
    "r50_m": replace(_R50, encoder=_HALF, evaluated_depth=3),
    "r50": _R50,
    "r101": replace(_R50, backbone=_on("resnet101d"), encoder=HybridEncoderConfig(width=384, hidden=2048)),
}

VARIANTS: dict[str, RTDETRConfig] = {
    **{f"rtdetr_{size}": config for size, config in _SIZES.items()},
    **{f"rtdetrv2_{size}": config for size, config in _SIZES.items()},
    **{f"rtdetrv2_{size}_dsp": replace(_SIZES[size], sampling="discrete") for size in ("r18", "r34", "r50_m", "r50")},
}
"""Networks by name: of the backbone, "m" for one whose encoder is half as wide inside, "dsp" for places that are rounded."""

PAPERS = {"rtdetr": "Zhao et al. 2024", "rtdetrv2": "Lv et al. 2024"}
"""Beginning of a name → where the network was published; the longest that fits counts."""
