"""Deformable DETR: a detection transformer whose queries look at a few places of several maps, and learn ten times as fast.

Zhu et al. 2021, "Deformable DETR: Deformable Transformers for End-to-End Object Detection",
https://arxiv.org/abs/2010.04159, section 4 and figure 1. Attention of all cells with all others allows DETR one coarse map;
deformable attention (`layers.deformable`) costs the same for every cell however many there are, so that four maps together
can be encoded, and small things found on the fine ones.

    stages 3, 4, 5 and one map more ──► project, norm ──► encoder ──► decoder ◄── queries, each at a point or box
                                                            └─(two stages)─► proposals ──► queries

With `refine` every block of the decoder corrects the boxes of the one before (section 4.2 and appendix A.3). With
`two_stage` the queries are not learned: every cell of the encoder proposes a box, and the best proposals become the queries.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vitral.base.boxes import Objects
from vitral.base.config import check_choices
from vitral.errors import UsageError
from vitral.layers.decoding import DecoderBlock, Perceptron, initialise_xavier
from vitral.layers.deformable import DeformableAttention
from vitral.layers.linear import Linear
from vitral.layers.mlp import Mlp
from vitral.layers.position import Grid
from vitral.models.backbones.resnet import ResNet, ResNetConfig
from vitral.models.detection.detector import Detector
from vitral.models.network import MapConfig, check_ranges
from vitral.models.output import Predicted, SetOutput

__all__ = [
    "PAPERS",
    "VARIANTS",
    "DeformableDETR",
    "DeformableDETRConfig",
    "DeformableEncoderBlock",
    "Proposals",
]

# From least to most; what is beyond no machine could build, and a file that asks for it is refused at once.
_RANGES: dict[str, tuple[float, float]] = {
    "image_size": (1, 100_000),
    "channels": (1, 10_000),
    "num_classes": (1, 10_000_000),
    "queries": (1, 1_000_000),
    "width": (32, 100_000),
    "heads": (1, 10_000),
    "mlp_width": (1, 1_000_000),
    "levels": (1, 16),
    "encoder_points": (1, 1_000),
    "decoder_points": (1, 1_000),
    "encoder_depth": (0, 1_000),
    "decoder_depth": (1, 1_000),
    "dropout": (0.0, 0.999),
}
_GROUPS = 32  # of the norms behind the projections
_PRIOR = 0.01  # how likely a class is before anything is learned (Lin et al. 2017, Focal Loss, section 4.1)
_SMALLEST, _LARGEST = 0.01, 0.99  # what a proposal begins with lies between, in all four numbers


@dataclass(frozen=True, kw_only=True)
class DeformableDETRConfig(MapConfig):
    """Everything that tells one Deformable DETR from another.

    Attributes:
        num_classes: classes of objects. The published networks have 91, the numbers of COCO's 80 categories going so far.
        backbone: the residual network before it. Its channels and size of pictures are always the detector's, and it has no
            classes.
        queries: how many objects can be found.
        width: channels d of a token and of a query.
        levels: maps that are looked at: 1 for the last of the residual network ("single scale"), 3 for its last three, and
            from 4 on for maps more, each half as high and wide as the one before.
        encoder_points: places of each map that a head looks at for a cell.
        decoder_points: the same for a query.
        encoder_depth: blocks of the encoder.
        decoder_depth: blocks of the decoder.
        heads: attention heads of every block.
        mlp_width: hidden channels of their feed-forward networks.
        refine: whether each block of the decoder corrects the boxes of the one before; each then has heads of its own.
        two_stage: whether queries begin as proposals of the encoder, which needs `refine`.
        dropout: probability of dropping attention weights, hidden channels and branches in training.
    """

    image_size: tuple[int, int] = (800, 1333)
    num_classes: int = 91
    backbone: ResNetConfig = field(default_factory=lambda: ResNetConfig(norm="frozen"))
    queries: int = 300
    width: int = 256
    levels: int = 4
    encoder_points: int = 4
    decoder_points: int = 4
    encoder_depth: int = 6
    decoder_depth: int = 6
    heads: int = 8
    mlp_width: int = 1024
    refine: bool = False
    two_stage: bool = False
    dropout: float = 0.1

    def __post_init__(self) -> None:
        check_choices(self)
        check_ranges(self, _RANGES)
        backbone = replace(self.backbone, image_size=self.image_size, channels=self.channels, num_classes=0)
        object.__setattr__(self, "backbone", backbone)
        if self.width % self.heads or self.width % _GROUPS:
            raise UsageError(
                f"width must be a multiple of heads and of {_GROUPS}; width {self.width} and heads {self.heads} came."
            )
        if self.levels == 2 or (self.levels > 1 and len(backbone.depths) < 3):
            raise UsageError(
                f"levels is 1, or 3 and more for a backbone of at least 3 stages; {self.levels} and "
                f"{len(backbone.depths)} stages came."
            )
        if self.two_stage and not self.refine:
            raise UsageError("Proposals of the encoder are boxes, which a decoder refines: two_stage needs refine=True.")

    @property
    def stride(self) -> int:
        """Pixels from one cell of the coarsest map to the next."""
        return self.backbone.stride * 2 ** max(0, self.levels - 3)

    @property
    def depth(self) -> int:
        """Number of blocks: of the residual network, the encoder and the decoder."""
        return self.backbone.depth + self.encoder_depth + self.decoder_depth


class _Cells(NamedTuple):
    """The cells of all maps, one map behind the other, and where they lie.

    Attributes:
        tokens: what they hold (b m d).
        grids: rows and columns of each map.
        centres: x and y of their middles in [0, 1] of the picture without what fills it up; beyond 1 outside of it.
        extents: width and height of the picture in [0, 1] of each map; None where every picture fills its maps.
        present: which cells are the picture's; None for all.
    """

    tokens: Float[Tensor, "b m d"]
    grids: tuple[Grid, ...]
    centres: Float[Tensor, "#b m 2"]
    extents: Float[Tensor, "b l 2"] | None
    present: Bool[Tensor, "b m"] | None

    def on_maps(self, places: Float[Tensor, "#b n c"]) -> Float[Tensor, "#b n #l c"]:
        """Points (x y) or boxes (cxcywh) in [0, 1] of the picture → of each map."""
        if self.extents is None:
            return places[:, :, None]
        return places[:, :, None] * self.extents.repeat(1, 1, places.shape[-1] // 2)[:, None]


class DeformableEncoderBlock(nn.Module):
    """Every cell looks at a few places of all maps, then a feed-forward network; each followed by a norm.

    Args:
        config: which network's.
    """

    def __init__(self, config: DeformableDETRConfig) -> None:
        super().__init__()
        self.attention = DeformableAttention(config.width, config.heads, config.levels, config.encoder_points)
        self.norm1 = nn.LayerNorm(config.width)
        self.mlp = Mlp(config.width, config.mlp_width, "relu", dropout=config.dropout)
        self.norm2 = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()

    def forward(
        self,
        tokens: Float[Tensor, "b m d"],
        positions: Float[Tensor, "#b m d"],
        reference: Float[Tensor, "#b m #l 2"],
        grids: Sequence[Grid],
        present: Bool[Tensor, "b m"] | None = None,
    ) -> Float[Tensor, "b m d"]:
        """Transform the cells; for the arguments see `DeformableAttention`.

        Args:
            tokens: the cells of all maps.
            positions: what tells one from another, added to what they ask.
            reference: where they stand on each map.
            grids: rows and columns of each map.
            present: which cells are the picture's.
        """
        found = self.attention(tokens + positions, reference, tokens, grids, present)
        tokens = self.norm1(tokens + self.dropout(found))
        normed: Tensor = self.norm2(tokens + self.mlp(tokens))
        return normed


class Proposals(nn.Module):
    """Every cell proposes a box, and the best ones become queries (Zhu et al. 2021, appendix A.4).

    Args:
        config: which network's.
    """

    def __init__(self, config: DeformableDETRConfig) -> None:
        super().__init__()
        width = config.width
        self.queries = config.queries
        self.projection = Linear(width, width)
        self.norm = nn.LayerNorm(width)
        # As published it has a number for every class, of which the first says whether there is an object.
        self.head = _class_head(config)
        self.box_head = _box_head(config, size=0.0)
        self.position = Linear(2 * width, 2 * width)
        self.position_norm = nn.LayerNorm(2 * width)

    def forward(
        self, cells: _Cells
    ) -> tuple[Predicted, Float[Tensor, "b q 4"], Float[Tensor, "b q d"], Float[Tensor, "b q d"]]:
        """Propose.

        Returns:
            What all cells say; the best boxes, cxcywh in [0, 1] of the picture, which no gradient passes; and what queries
            begin with there: positions and contents. A cell near the edge, or of no picture, proposes the box 1 1 1 1.
        """
        begin, valid = self._begin(cells)
        tokens = self.norm(self.projection(cells.tokens.masked_fill(~valid[..., None], 0.0)))
        logits = self.head(tokens)[..., :1]
        boxes = (self.box_head(tokens) + begin).sigmoid()
        best = logits[..., 0].topk(min(self.queries, logits.shape[1]), dim=1).indices
        chosen = boxes.detach().gather(1, best[..., None].expand(-1, -1, 4))
        told = self.position_norm(self.position(_sines(chosen, tokens.shape[-1]).to(tokens.dtype)))
        positions, contents = told.chunk(2, dim=-1)
        return Predicted(logits, boxes), chosen, positions, contents

    def _begin(self, cells: _Cells) -> tuple[Float[Tensor, "#b m 4"], Bool[Tensor, "#b m"]]:
        """The logits of the boxes that corrections are added to, and which cells have one.

        They lie at the middles of cells and are a twentieth of the picture on the finest map, twice as much on the next.
        """
        counts = [rows * columns for rows, columns in cells.grids]
        sizes = np.repeat(0.05 * 2.0 ** np.arange(len(counts), dtype=np.float32), counts)
        size = torch.as_tensor(sizes.astype(np.float32), device=cells.centres.device)[:, None]
        boxes = torch.cat([cells.centres, size.expand(*cells.centres.shape[:2], 2)], dim=-1)
        valid = ((boxes > _SMALLEST) & (boxes < _LARGEST)).all(-1)
        if cells.present is not None:
            valid = valid & cells.present
        return boxes.logit().masked_fill(~valid[..., None], torch.inf), valid


class DeformableDETR(Detector):
    """A deformable detection transformer.

    Args:
        config: which one.
    """

    config: DeformableDETRConfig

    def __init__(self, config: DeformableDETRConfig) -> None:
        super().__init__(config)
        width = config.width
        self.backbone = ResNet(config.backbone)
        self.projections = _projections(config)
        self.level_positions = nn.Embedding(config.levels, width)
        self.encoder = nn.ModuleList(DeformableEncoderBlock(config) for _ in range(config.encoder_depth))
        if config.two_stage:
            self.proposals = Proposals(config)
        else:
            self.queries = nn.Embedding(config.queries, 2 * width)  # positions, then contents
            self.reference = Linear(width, 2)
            nn.init.xavier_uniform_(self.reference.weight)
            nn.init.zeros_(self.reference.bias)
        self.decoder = nn.ModuleList(_decoder_block(config) for _ in range(config.decoder_depth))
        count = config.decoder_depth if config.refine else 1
        self.heads = nn.ModuleList(_class_head(config) for _ in range(count))
        # The first box is small; what refines it begins with no change.
        first = 0.0 if config.two_stage else -2.0
        self.box_heads = nn.ModuleList(_box_head(config, size=0.0 if place else first) for place in range(count))
        initialise_xavier(self.encoder)
        initialise_xavier(self.decoder)

    @property
    def blocks(self) -> tuple[nn.Module, ...]:  # type: ignore[override]
        """The blocks of the residual network, of the encoder and of the decoder."""
        return *self.backbone.blocks, *self.encoder, *self.decoder

    def forward(
        self,
        pixels: Float[Tensor, "b c y x"],
        mask: Bool[Tensor, "b y x"] | None = None,
        targets: Sequence[Objects] | None = None,
    ) -> SetOutput:
        """Look for objects; see `Detector`. What there is to be found is not asked for."""
        cells = self.encode(pixels, mask)
        proposals = None
        if self.config.two_stage:
            proposals, reference, positions, queries = self.proposals(cells)
        else:
            positions, contents = self.queries.weight[None].chunk(2, dim=-1)
            reference = self.reference(positions).float().sigmoid()
            queries = contents.expand(pixels.shape[0], -1, -1)
        told: list[Predicted] = []
        for place, block in enumerate(self.decoder):
            queries = block(queries, positions, cells.on_maps(reference), cells.tokens, cells.grids, cells.present)
            last, own = place == len(self.decoder) - 1, place if self.config.refine else 0
            if not (last or self.training or self.config.refine):
                continue
            boxes = _moved(self.box_heads[own](queries), reference)
            if last or self.training:
                told.append(Predicted(self.heads[own](queries), boxes))
            if self.config.refine:
                reference = boxes.detach()
        *auxiliary, (logits, boxes) = told
        return SetOutput(logits, boxes, "sigmoid", queries, tuple(auxiliary), proposals)

    def encode(self, pixels: Float[Tensor, "b c y x"], mask: Bool[Tensor, "b y x"] | None = None) -> _Cells:
        """The cells of a picture's maps behind the encoder, and where they lie.

        Args:
            pixels: prepared pictures.
            mask: True on what was filled up.
        """
        config = self.config
        maps = list(self.backbone.pyramid(pixels, [-1] if config.levels == 1 else [-3, -2, -1]).maps)
        last = maps[-1]
        for place, projection in enumerate(self.projections):
            if place < len(maps):
                maps[place] = projection(maps[place])
            else:
                last = projection(last)
                maps.append(last)
        grids = tuple((one.shape[2], one.shape[3]) for one in maps)
        tokens = torch.cat([one.flatten(2).transpose(1, 2) for one in maps], dim=1)
        cells = _laid_out(tokens, grids, mask)
        if cells.extents is None:
            sines = torch.as_tensor(_whole_sines(grids, config.width), device=tokens.device)
        else:
            sines = _sines(cells.centres.flip(-1), config.width)
        counts = torch.tensor([rows * columns for rows, columns in grids], device=tokens.device)
        levels = self.level_positions.weight.repeat_interleave(counts, dim=0, output_size=tokens.shape[1])
        positions, reference = sines.to(tokens.dtype) + levels, cells.on_maps(cells.centres)
        for block in self.encoder:
            tokens = block(tokens, positions, reference, grids, cells.present)
        return cells._replace(tokens=tokens)

    def reset_head(self, num_classes: int) -> None:
        """Put fresh, small random classifiers for `num_classes` classes in place of the present ones.

        Raises:
            UsageError: no classes.
        """
        like = self.reference.weight if not self.config.two_stage else self.proposals.projection.weight
        self.config = replace(self.config, num_classes=num_classes)
        self.record = replace(self.record, labels=())
        self.heads = nn.ModuleList(_class_head(self.config) for _ in self.heads).to(like.device, like.dtype)
        if self.config.two_stage:
            self.proposals.head = _class_head(self.config).to(like.device, like.dtype)


def _projections(config: DeformableDETRConfig) -> nn.ModuleList:
    """From the channels of each map to those of a token; maps beyond the residual network's own are made on the way."""
    channels = config.backbone.stage_channels[-1 if config.levels == 1 else -3 :]
    layers = [nn.Conv2d(inputs, config.width, 1) for inputs in channels]
    for place in range(config.levels - len(channels)):
        layers.append(nn.Conv2d(config.width if place else channels[-1], config.width, 3, 2, 1))
    for layer in layers:
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(cast(Tensor, layer.bias))
    return nn.ModuleList(nn.Sequential(layer, nn.GroupNorm(_GROUPS, config.width)) for layer in layers)


def _decoder_block(config: DeformableDETRConfig) -> DecoderBlock:
    """One whose queries look at a few places of all maps."""
    places = DeformableAttention(config.width, config.heads, config.levels, config.decoder_points)
    return DecoderBlock(config.width, config.heads, config.mlp_width, cross_attention=places, dropout=config.dropout)


def _class_head(config: DeformableDETRConfig) -> Linear:
    """A logit for each class, every class being as unlikely at first as most are of most queries."""
    head = Linear(config.width, config.num_classes)
    nn.init.constant_(head.bias, -math.log((1 - _PRIOR) / _PRIOR))
    return head


def _box_head(config: DeformableDETRConfig, size: float) -> Perceptron:
    """What is added to the logits of a box: nothing at first, and `size` to its width and height."""
    head = Perceptron((config.width, config.width, config.width, 4))
    last = cast(Linear, head.layers[-1])
    nn.init.zeros_(last.weight)
    with torch.no_grad():
        last.bias.copy_(torch.tensor([0.0, 0.0, size, size]))
    return head


def _moved(change: Float[Tensor, "b q 4"], reference: Float[Tensor, "#b q c"]) -> Float[Tensor, "b q 4"]:
    """Boxes cxcywh from a change of logits and the points or boxes it is added to (appendix A.3)."""
    before = reference.logit(eps=1e-5)
    return (change + F.pad(before, (0, 4 - before.shape[-1]))).sigmoid()


def _laid_out(tokens: Float[Tensor, "b m d"], grids: tuple[Grid, ...], mask: Bool[Tensor, "b y x"] | None) -> _Cells:
    """Where cells lie. A cell is the picture's if the pixel is that stands where the cell begins."""
    centres = torch.as_tensor(_centres(grids), device=tokens.device)[None]
    if mask is None:
        return _Cells(tokens, grids, centres, None, None)
    down, across = ~mask[:, None, :, 0], ~mask[:, None, 0]
    shares = [
        torch.cat([F.interpolate(a.float(), cells).mean(-1) for a, cells in ((across, columns), (down, rows))], dim=1)
        for rows, columns in grids
    ]
    extents = torch.stack(shares, dim=1)
    counts = torch.tensor([rows * columns for rows, columns in grids], device=tokens.device)
    centres = centres / extents.repeat_interleave(counts, dim=1, output_size=tokens.shape[1])
    return _Cells(tokens, grids, centres, extents, (centres < 1).all(-1))


@functools.lru_cache(maxsize=16)
def _centres(grids: tuple[Grid, ...]) -> Float[np.ndarray, "m 2"]:
    """x and y of the middles of all cells, in [0, 1] of their maps, in reading order."""
    found = []
    for grid in grids:
        rows, columns = ((np.arange(side, dtype=np.float32) + np.float32(0.5)) / np.float32(side) for side in grid)
        found.append(np.stack(np.meshgrid(columns, rows), axis=-1).reshape(-1, 2))
    return np.concatenate(found).astype(np.float32)


@functools.lru_cache(maxsize=16)
def _whole_sines(grids: tuple[Grid, ...], width: int) -> Float[np.ndarray, "1 m d"]:
    """The positions of pictures that fill their maps, as plain numbers."""
    with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
        return _sines(torch.as_tensor(_centres(grids))[None].flip(-1), width).numpy()


def _sines(places: Float[Tensor, "b n c"], width: int) -> Float[Tensor, "b n e"]:
    """Half of `width` channels for each number in [0, 1], sines and cosines in turn, at wavelengths from 1 to 10000.

    Carion et al. 2020, DETR, section A.4; cells are told apart by their middles here.
    """
    half = width // 2
    periods = 10_000 ** (torch.arange(0, half, 2, dtype=torch.float32, device=places.device) / half)
    angles = (2 * math.pi * places.float())[..., None] / periods
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(2)


_R50 = DeformableDETRConfig()
_REFINE = replace(_R50, refine=True)

VARIANTS: dict[str, DeformableDETRConfig] = {
    "deformable_detr_r50": _R50,
    "deformable_detr_r50_single_scale": replace(_R50, levels=1),
    "deformable_detr_r50_dc5": replace(_R50, levels=1, backbone=replace(_R50.backbone, dilated=1)),
    "deformable_detr_r50_refine": _REFINE,
    "deformable_detr_r50_two_stage": replace(_REFINE, two_stage=True),
}
"""Networks by name: one map or four, the last one of the residual network kept larger, refined boxes, proposals."""

PAPERS = {"deformable_detr": "Zhu et al. 2021"}
"""Beginning of a name → where the network was published."""
