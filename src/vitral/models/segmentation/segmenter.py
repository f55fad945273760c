"""Segmenter: a vision transformer whose classes are tokens too, each of which draws its mask.

Strudel et al. 2021, "Segmenter: Transformer for Semantic Segmentation", https://arxiv.org/abs/2105.05633, section 3. Two
decoders stand behind a vision transformer (section 3.2):

- linear: every patch is classified by itself.
- mask: a learned token for each class goes through a few more blocks beside the patches. The product of a class's token and
  a patch's, both of length one, says how well they agree; the classes of a patch are normalised over each other.

In the blocks of the mask decoder the tokens of the classes stand first, then the patches in reading order: row c of an
attention map there, behind the classes' columns, shows where class c looks; `Segmenter.decode` gives the tokens themselves.
The authors put the classes last, which changes nothing, as nothing in these blocks hangs on the order.

Sizes that the patch does not divide are filled up, as the authors do; see `models.segmentation.borders`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitral.base.config import check_choices
from vitral.data.transforms import INCEPTION_MEAN, INCEPTION_STD, Preprocessing
from vitral.errors import UsageError
from vitral.layers.attention import SelfAttention
from vitral.layers.block import Block
from vitral.layers.linear import Linear
from vitral.layers.mlp import Mlp
from vitral.models.backbones.vit import VARIANTS as PLAIN
from vitral.models.backbones.vit import ViT, ViTConfig
from vitral.models.network import check_ranges
from vitral.models.output import MapOutput
from vitral.models.segmentation.borders import cut_back, filled_up
from vitral.models.segmentation.transformer import TransformerConfig, TransformerNetwork

__all__ = ["PAPERS", "VARIANTS", "Decoded", "Segmenter", "SegmenterConfig"]

# From least to most; what is beyond no machine could build, and a file that asks for it is refused at once.
_RANGES: dict[str, tuple[float, float]] = {
    "image_size": (1, 100_000),
    "channels": (1, 10_000),
    "num_classes": (1, 1_000_000),
    "decoder_depth": (1, 1_000),
    "decoder_dropout": (0.0, 0.999),
    "decoder_drop_path": (0.0, 0.999),
}
_EPS = 1e-5  # of the decoder's norms, whatever the backbone's is


@dataclass(frozen=True, kw_only=True)
class SegmenterConfig(TransformerConfig):
    """Everything that tells one Segmenter from another.

    Attributes:
        num_classes: classes of pixels; the published networks have ADE20K's 150 and others.
        backbone: the vision transformer. Its channels and size of pictures are always the segmenter's, and it has no
            classes.
        decoder: "linear", or "mask" for tokens of classes.
        decoder_depth: blocks of the mask decoder, of the backbone's width and heads.
        decoder_dropout: probability of dropping attention weights, hidden channels and branches there in training.
        decoder_drop_path: probability of dropping a branch of its last block in training, growing linearly with depth.
    """

    image_size: tuple[int, int] = (512, 512)
    num_classes: int = 150
    backbone: ViTConfig = field(default_factory=lambda: PLAIN["vit_b16"])
    decoder: Literal["linear", "mask"] = "mask"
    decoder_depth: int = 2
    decoder_dropout: float = 0.1
    decoder_drop_path: float = 0.0

    def __post_init__(self) -> None:
        check_choices(self)
        check_ranges(self, _RANGES)
        self._fit_backbone()

    @property
    def depth(self) -> int:
        """Number of blocks, those of the mask decoder included."""
        return self.backbone.depth + (self.decoder_depth if self.decoder == "mask" else 0)


class Decoded(NamedTuple):
    """What the mask decoder's blocks made of classes and patches.

    Attributes:
        classes: the token of every class behind the last norm (b c d).
        patches: that of every patch, in reading order (b n d).
    """

    classes: Float[Tensor, "b c d"]
    patches: Float[Tensor, "b n d"]


class Segmenter(TransformerNetwork):
    """A vision transformer with a linear or a mask decoder.

    Args:
        config: which one.
    """

    config: SegmenterConfig

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__(config)
        self.backbone = ViT(config.backbone)
        self.head: Linear | _MaskDecoder = (
            _MaskDecoder(config) if config.decoder == "mask" else Linear(config.width, config.num_classes)
        )
        self.head.apply(_initialise)

    @property
    def blocks(self) -> tuple[nn.Module, ...]:  # type: ignore[override]
        """The blocks of the vision transformer and of the mask decoder."""
        return *self.backbone.blocks, *(self.head.blocks if isinstance(self.head, _MaskDecoder) else ())

    def forward(self, pixels: Float[Tensor, "b c y x"]) -> MapOutput:
        """Classes of places; the map has a cell for each patch. See `MapNetwork`."""
        filled = filled_up(pixels, self.config.stride)
        patches, grid = self._encoded(filled)
        if isinstance(self.head, _MaskDecoder):
            logits = self.head.masks(self.head(patches))
        else:
            logits = self.head(patches).transpose(1, 2)
        return MapOutput(cut_back(logits.unflatten(2, grid), filled, pixels))

    def decode(self, pixels: Float[Tensor, "b c y x"]) -> Decoded:
        """The tokens of the classes and the patches that the masks are made of.

        Args:
            pixels: prepared pictures of any one size; patches are those of the pictures filled up.

        Raises:
            UsageError: the network classifies patches without tokens of classes.
        """
        if not isinstance(self.head, _MaskDecoder):
            raise UsageError("A Segmenter with a linear decoder has no tokens of classes. Use one whose name ends in _mask.")
        decoded: Decoded = self.head(self._encoded(filled_up(pixels, self.config.stride))[0])
        return decoded

    def _encoded(self, filled: Float[Tensor, "b c y x"]) -> tuple[Float[Tensor, "b n d"], tuple[int, int]]:
        """The patches behind the vision transformer, and their grid."""
        encoded = self.backbone(filled)
        return encoded.tokens[:, encoded.prefix :], encoded.grid

    def usual_preprocessing(self) -> Preprocessing | None:
        """The whole picture at the network's size: in [−1, 1], but as ImageNet's are for a distilled DeiT, as published."""
        usual = super().usual_preprocessing()
        if usual is None or self.config.channels != 3 or self.config.backbone.distillation_token:
            return usual
        return replace(usual, mean=INCEPTION_MEAN, std=INCEPTION_STD)

    def _fresh_head(self) -> None:
        if isinstance(self.head, _MaskDecoder):
            self.head.fresh_classes(self.config.num_classes)
        else:
            self.head = Linear(self.config.width, self.config.num_classes)
            self.head.apply(_initialise)
        self.to(self.backbone.patch.projection.weight)


class _MaskDecoder(nn.Module):
    """Tokens of classes beside those of patches, and the masks that they draw (section 3.2, "Mask transformer").

    Args:
        config: of the segmenter.
    """

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        width, depth, dropout = config.width, config.decoder_depth, config.decoder_dropout
        self.projection = Linear(width, width)
        self.class_tokens = _class_tokens(config.num_classes, width)
        self.blocks = nn.ModuleList(
            Block(
                SelfAttention(width, config.backbone.heads, dropout=dropout),
                Mlp(width, 4 * width, dropout=dropout),
                (nn.LayerNorm(width, eps=_EPS), nn.LayerNorm(width, eps=_EPS)),
                drop_path=config.decoder_drop_path * index / max(depth - 1, 1),
            )
            for index in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=_EPS)
        self.patch_projection = Linear(width, width, bias=False)
        self.class_projection = Linear(width, width, bias=False)
        self.mask_norm = nn.LayerNorm(config.num_classes, eps=_EPS)

    def fresh_classes(self, num_classes: int) -> None:
        """Put fresh tokens of classes, and a fresh norm over them, in place."""
        self.class_tokens = _class_tokens(num_classes, self.projection.out_features)
        self.mask_norm = nn.LayerNorm(num_classes, eps=_EPS)

    def forward(self, patches: Float[Tensor, "b n d"]) -> Decoded:
        """Let classes and patches look at each other."""
        projected = self.projection(patches)
        tokens = torch.cat([self.class_tokens.expand(len(projected), -1, -1).to(projected.dtype), projected], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens)
        count = self.class_tokens.shape[1]
        return Decoded(tokens[:, :count], tokens[:, count:])

    def masks(self, decoded: Decoded) -> Float[Tensor, "b c n"]:
        """The logits of every class for every patch."""
        classes = F.normalize(self.class_projection(decoded.classes), dim=-1)
        patches = F.normalize(self.patch_projection(decoded.patches), dim=-1)
        normed: Tensor = self.mask_norm(patches @ classes.transpose(1, 2))
        return normed.transpose(1, 2)


def _class_tokens(count: int, width: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(1, count, width), std=0.02))


def _initialise(module: nn.Module) -> None:
    """Weights from a normal distribution of deviation 0.02, biases zero."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _on(plain: str, decoder: Literal["linear", "mask"], size: int = 512) -> SegmenterConfig:
    """A decoder on a transformer of the catalogue."""
    backbone = replace(PLAIN[plain], norm_eps=1e-5, position_antialias=False, drop_path=0.1)
    return SegmenterConfig(backbone=backbone, decoder=decoder, image_size=(size, size))


# Tables 3 and 5 of the paper; the largest sees larger pictures.
VARIANTS: dict[str, SegmenterConfig] = {
    "segmenter_vit_ti16_linear": _on("vit_ti16", "linear"),
    "segmenter_vit_ti16_mask": _on("vit_ti16", "mask"),
    "segmenter_vit_s32_linear": _on("vit_s32", "linear"),
    "segmenter_vit_s16_linear": _on("vit_s16", "linear"),
    "segmenter_vit_s16_mask": _on("vit_s16", "mask"),
    "segmenter_vit_b32_linear": _on("vit_b32", "linear"),
    "segmenter_vit_b16_linear": _on("vit_b16", "linear"),
    "segmenter_vit_b16_mask": _on("vit_b16", "mask"),
    "segmenter_vit_b8_linear": _on("vit_b8", "linear"),
    "segmenter_vit_l16_linear": _on("vit_l16", "linear", 640),
    "segmenter_vit_l16_mask": _on("vit_l16", "mask", 640),
    "segmenter_deit_b16_linear": _on("deit_b16_distilled", "linear"),
    "segmenter_deit_b16_mask": _on("deit_b16_distilled", "mask"),
}
"""Networks by name: the transformer, its size and its patch, and the decoder. Authors' "Seg-B-Mask/16" is vit_b16_mask."""

PAPERS = {"segmenter": "Strudel et al. 2021"}
"""Beginning of a name → where the network was published."""
