"""Vision transformer (ViT) and the relatives that differ from it by a part.

- ViT: Dosovitskiy et al. 2021, "An Image is Worth 16×16 Words", section 3.1, equations 1 to 4.
- DeiT: Touvron et al. 2021, "Training data-efficient image transformers", section 4: a distillation token.
- BEiT: Bao et al. 2022: relative position biases, LayerScale, mean pooling.
- MAE: He et al. 2022: the encoder, fine-tuned with mean pooling. DINO: Caron et al. 2021: the encoder.
- DINOv2: Oquab et al. 2023: LayerScale, SwiGLU at size g; with registers: Darcet et al. 2023.
- DINOv3: Siméoni et al. 2025: rotary positions.
- CLIP's picture side: Radford et al. 2021: a norm before the blocks. SigLIP's: attention pooling (Zhai et al. 2022).

For study, every block may attend in another way: in windows, along axes, linearly, …; see `layers.kinds`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vitral.base.config import check_choices
from vitral.errors import UsageError
from vitral.layers.attention import SelfAttention
from vitral.layers.block import Block, NormPlacement
from vitral.layers.kinds import ON_A_GRID, Kind, attention_of
from vitral.layers.linear import Linear
from vitral.layers.mlp import Activation, Mlp, SwiGLU
from vitral.layers.norm import LayerScale, Norm, norm_layer
from vitral.layers.patch import PatchEmbedding
from vitral.layers.pool import AttentionPool
from vitral.layers.position import RelativeBias, Rotary2d, Rotation, resample_grid, sinusoids_1d, sinusoids_2d
from vitral.models.network import Network, check_ranges, chosen_levels, quarters
from vitral.models.output import EncoderOutput, Level, Pyramid

__all__ = ["PAPERS", "VARIANTS", "ViT", "ViTConfig"]


# From least to most; what is beyond no machine could build, and a file that asks for it is refused at once.
_RANGES: dict[str, tuple[float, float]] = {
    "image_size": (1, 100_000),
    "patch_size": (1, 10_000),
    "channels": (1, 10_000),
    "width": (1, 100_000),
    "depth": (1, 1_000),
    "heads": (1, 10_000),
    "mlp_width": (1, 1_000_000),
    "window": (1, 10_000),
    "reduction": (1, 10_000),
    "features": (1, 1_000_000),
    "num_classes": (0, 10_000_000),
    "registers": (0, 10_000),
    "rotary_base": (1e-6, 1e12),
    "norm_eps": (0.0, 1.0),
    "layer_scale": (-1e6, 1e6),
    "representation": (1, 100_000),
    "dropout": (0.0, 0.999),
    "drop_path": (0.0, 0.999),
}


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Everything that tells one vision transformer from another.

    Attributes:
        image_size: height and width in pixels the position table is made for; pictures of other sizes are taken too.
        patch_size: height and width of a patch in pixels.
        channels: channels of a picture.
        width: channels d of a token.
        depth: number of blocks.
        heads: attention heads per block.
        mlp_width: hidden channels of the feed-forward networks.
        num_classes: classes of the classifier; 0 for none.
        class_token: whether a class token stands first.
        distillation_token: whether a distillation token follows (DeiT).
        distillation_head: whether that token has a classifier of its own.
        registers: number of register tokens.
        mask_token: whether there is a token that stands in for masked patches.
        patch_bias: whether the patch projection has a bias.
        position: absolute positions: a learned table, sinusoids along the sequence or on the grid, or none.
        prefix_positions: how many of the tokens before the patches have a row in the learned table.
        position_antialias: whether carrying the table to a smaller grid low-passes first (transformers: no; timm: yes).
        relative_bias: biases between patches: none, one table per block, or one for all (BEiT).
        rotary: whether queries and keys are turned by the patch's place.
        rotary_base: longest rotary period, in units of half the picture.
        norm: kind of normalisation.
        norm_eps: its epsilon.
        norm_placement: where the norms of a block stand.
        stem_norm: whether tokens are normalised before the first block (CLIP).
        final_norm: whether tokens are normalised after the last block.
        layer_scale: initial gain of LayerScale; None for no LayerScale.
        mlp: plain or gated feed-forward network.
        activation: nonlinearity of the plain one.
        qkv_bias, key_bias, qk_norm: see `layers.attention.SelfAttention`.
        attention: how every block attends: globally, or of another kind of `layers.kinds`.
        window: tokens along a side of a window, for windows (which are shifted in every other block).
        reduction: tokens along a side of what a key is made of, for spatial reduction.
        features: random features per head, for a Performer.
        pool: what the classifier reads: the class token, the mean over patches, both side by side, or attention pooling.
        pool_prefix: whether attention pooling also sees the tokens before the patches.
        pool_norm: whether the pooled vector is normalised.
        representation: width of a tanh layer before the classifier (section 3.1 of the ViT paper); None for none.
        dropout: probability of dropping channels of embeddings, attention weights and branches in training.
        drop_path: probability of dropping a branch of the last block in training, growing linearly with depth.
    """

    image_size: tuple[int, int] = (224, 224)
    patch_size: tuple[int, int] = (16, 16)
    channels: int = 3
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_width: int = 3072
    num_classes: int = 1000
    class_token: bool = True
    distillation_token: bool = False
    distillation_head: bool = False
    registers: int = 0
    mask_token: bool = False
    patch_bias: bool = True
    position: Literal["learned", "sinusoidal_1d", "sinusoidal_2d", "none"] = "learned"
    prefix_positions: int = 1
    position_antialias: bool = True
    relative_bias: Literal["none", "per_block", "shared"] = "none"
    rotary: bool = False
    rotary_base: float = 100.0
    norm: Norm = "layer"
    norm_eps: float = 1e-6
    norm_placement: NormPlacement = "pre"
    stem_norm: bool = False
    final_norm: bool = True
    layer_scale: float | None = None
    mlp: Literal["plain", "swiglu"] = "plain"
    activation: Activation = "gelu"
    qkv_bias: bool = True
    key_bias: bool = True
    qk_norm: bool = False
    attention: Kind = "global"
    window: int = 7
    reduction: int = 2
    features: int = 128
    pool: Literal["class", "mean", "class_and_mean", "attention"] = "class"
    pool_prefix: bool = False
    pool_norm: bool = False
    representation: int | None = None
    dropout: float = 0.0
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        check_choices(self)
        check_ranges(self, _RANGES)
        if self.width % self.heads:
            raise UsageError(f"width {self.width} is not a multiple of heads {self.heads}.")
        if min(self.grid) < 1:
            raise UsageError(f"image_size {self.image_size} is smaller than one patch of {self.patch_size}.")
        if self.rotary and (self.width // self.heads) % 4:
            raise UsageError(f"Rotary positions need heads of a multiple of 4 channels, not {self.width // self.heads}.")
        if self.position.startswith("sinusoidal") and self.width % 4:
            raise UsageError(f"Sinusoidal positions need a width that is a multiple of 4, not {self.width}.")
        if self.pool in ("class", "class_and_mean") and not self.class_token:
            raise UsageError(f"pool={self.pool!r} reads the class token, but class_token=False. Use 'mean' or 'attention'.")
        if self.mlp == "swiglu" and self.activation not in ("gelu", "silu"):
            raise UsageError(f"A swiglu network is gated by silu; activation={self.activation!r} came.")
        if self.distillation_head and not self.distillation_token:
            raise UsageError("distillation_head=True needs distillation_token=True.")
        if self.relative_bias != "none" and self.prefix != 1:
            raise UsageError(f"Relative position biases are defined for one class token; there are {self.prefix} tokens.")
        if not 0 <= self.prefix_positions <= self.prefix and self.position == "learned":
            raise UsageError(f"prefix_positions={self.prefix_positions}, but only {self.prefix} tokens precede the patches.")
        if self.attention != "global":
            self._check_kind()

    def _check_kind(self) -> None:
        """Refuse what only global attention can have."""
        if self.attention in ON_A_GRID and self.prefix:
            raise UsageError(
                f"attention={self.attention!r} looks at places on the grid, and the {', '.join(self.prefix_names)} before "
                "the patches has none. Use class_token=False, prefix_positions=0 and pool='mean', and neither distillation "
                "token nor registers."
            )
        alone = {
            "relative_bias": self.relative_bias != "none",
            "rotary": self.rotary,
            "qk_norm": self.qk_norm,
            "key_bias": not self.key_bias,
        }
        if any(alone.values()):
            fields = ", ".join(f"{field}={getattr(self, field)!r}" for field, used in alone.items() if used)
            raise UsageError(f"{fields} goes with attention='global' only; attention={self.attention!r} came.")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches of a picture of `image_size`."""
        return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]

    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches of a picture of some (height, width); less than a patch is left out."""
        return size[0] // self.patch_size[0], size[1] // self.patch_size[1]

    @property
    def prefix(self) -> int:
        """Tokens before the patches."""
        return self.class_token + self.distillation_token + self.registers

    @property
    def prefix_names(self) -> tuple[str, ...]:
        """What the tokens before the patches are called."""
        names = ["class"] * self.class_token + ["distillation"] * self.distillation_token
        return *names, *(f"register {number}" for number in range(1, self.registers + 1))

    @property
    def pooled_width(self) -> int:
        """Channels of what the classifier reads."""
        return self.representation or self.width * (2 if self.pool == "class_and_mean" else 1)


class ViT(Network):
    """A vision transformer.

    Args:
        config: which one.
    """

    config: ViTConfig
    beside_blocks = ("block_biases",)

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        width = config.width
        self.patch = self._patches()
        self.class_token = _token(1, width, config.class_token)
        self.distillation_token = _token(1, width, config.distillation_token)
        self.register_tokens = _token(config.registers, width, config.registers > 0)
        self.mask_token = _token(1, width, config.mask_token)
        rows = config.prefix_positions + config.grid[0] * config.grid[1]
        self.position_table = _token(rows, width, config.position == "learned")
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.stem_norm = self._norm() if config.stem_norm else nn.Identity()
        self.relative_bias = RelativeBias(config.grid, config.heads) if config.relative_bias == "shared" else None
        self.rotary = Rotary2d(width // config.heads, config.rotary_base) if config.rotary else None
        self.blocks = nn.ModuleList(self._block(index) for index in range(config.depth))
        per_block = config.depth if config.relative_bias == "per_block" else 0
        self.block_biases = nn.ModuleList(RelativeBias(config.grid, config.heads) for _ in range(per_block))
        self.norm = self._norm() if config.final_norm else nn.Identity()
        self.pool = self._attention_pool() if config.pool == "attention" else None
        self.pool_norm = self._norm() if config.pool_norm else nn.Identity()
        self.representation = (
            nn.Sequential(Linear(width, config.representation), nn.Tanh()) if config.representation else nn.Identity()
        )
        self.head = _classifier(config.pooled_width, config.num_classes)
        self.distillation_head = _classifier(width, config.num_classes * config.distillation_head)
        self.apply(_initialise)

    def forward(self, pixels: Float[Tensor, "b c y x"], mask: Bool[Tensor, "b p"] | None = None) -> EncoderOutput:
        """Encode pictures of any one size and classify them.

        Args:
            pixels: prepared pictures; see `layers.patch.PatchEmbedding` for sizes that the patch does not divide.
            mask: patches to be replaced by the mask token, for masked image modelling.
        """
        tokens, grid, _ = self._encoded(*self.embed(pixels, mask))
        return self.read_out(tokens, grid)

    @property
    def levels(self) -> tuple[Level, ...]:
        """One for each block: a plain vision transformer keeps one scale throughout."""
        high, wide = self.config.patch_size
        if high != wide:
            raise UsageError(f"Maps of a pyramid have one stride; patches of {high} × {wide} pixels give two.")
        return (Level(self.config.width, high),) * self.depth

    def pyramid(self, pixels: Float[Tensor, "b c y x"], levels: Sequence[int] | None = None) -> Pyramid:
        """The stream of tokens behind some blocks as maps, not normed; the classifier is not computed.

        Args:
            pixels: prepared pictures of any one size.
            levels: behind which blocks, counted from 0; None for the ends of the network's four quarters, as SETR
                (Zheng et al. 2021, section 3.2) and DPT (Ranftl et al. 2021, section 3) read them.
        """
        chosen = chosen_levels(self.levels, quarters(self.depth) if levels is None else levels)
        _, grid, kept = self._encoded(*self.embed(pixels), chosen)
        maps = tuple(tokens[:, self.config.prefix :].transpose(1, 2).unflatten(2, grid) for tokens in kept)
        return Pyramid(maps, tuple(self.levels[place].stride for place in chosen))

    def _encoded(
        self, tokens: Float[Tensor, "b n d"], grid: tuple[int, int], keep: Sequence[int] = ()
    ) -> tuple[Float[Tensor, "b n d"], tuple[int, int], list[Float[Tensor, "b n d"]]]:
        """The stream behind the last block, its grid, and the stream behind the blocks to be kept."""
        config = self.config
        shared = self.relative_bias(grid) if self.relative_bias is not None else None
        rotation: Rotation | None = self.rotary(grid, tokens) if self.rotary is not None else None
        own = (bias(grid) for bias in self.block_biases)  # one at a time: each is as large as an attention map
        kept = []
        for place, block in enumerate(self.blocks):
            bias = next(own) if config.relative_bias == "per_block" else shared
            tokens = block(tokens, *((bias, rotation) if config.attention == "global" else (grid,)))
            if place in keep:
                kept.append(tokens)
        return tokens, grid, kept

    def read_out(self, tokens: Float[Tensor, "b n d"], grid: tuple[int, int]) -> EncoderOutput:
        """What the tokens behind the last block come to: normed, pooled, classified (equation 4 of the ViT paper)."""
        tokens = self.norm(tokens)
        pooled = self.representation(self.pool_norm(self.pooled(tokens)))
        heads = [self.head(pooled)] if self.head is not None else []
        if self.distillation_head is not None:
            heads.append(self.distillation_head(tokens[:, 1]))
        logits = torch.stack(heads).mean(0) if len(heads) > 1 else next(iter(heads), None)
        return EncoderOutput(tokens, grid, self.config.prefix, pooled, logits, tuple(heads))

    def read_tokens(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n c"]:
        """The logits that every token of the residual stream would give, were it the whole picture's.

        Each takes the road of the pooled vector: last norm, pooling (of itself alone), representation, classifier. Behind
        the last block, where the class token is pooled, its row is that classifier's answer (a distilled DeiT has two, and
        this is the first).

        Raises:
            UsageError: the model has no classifier.
        """
        if self.head is None:
            raise UsageError("The model has no classifier to read tokens with.")
        alone = self.norm(tokens).flatten(0, 1).unsqueeze(1)
        if self.pool is not None:
            pooled = self.pool(alone)
        else:
            pooled = alone[:, 0].repeat(1, 2 if self.config.pool == "class_and_mean" else 1)
        logits: Tensor = self.head(self.representation(self.pool_norm(pooled)))
        return logits.unflatten(0, tokens.shape[:2])

    def embed(
        self, pixels: Float[Tensor, "b c y x"], mask: Bool[Tensor, "b p"] | None = None
    ) -> tuple[Float[Tensor, "b n d"], tuple[int, int]]:
        """What enters the first block, and the patches' grid (equation 1 of the ViT paper)."""
        patches, grid = self.patch(pixels)
        if mask is not None:
            if self.mask_token is None:
                raise UsageError("This model has no mask token. Build it with mask_token=True.")
            patches = torch.where(mask[:, :, None], self.mask_token.to(patches.dtype), patches)
        before: list[Tensor] = [
            t for t in (self.class_token, self.distillation_token, self.register_tokens) if t is not None
        ]
        prefix = torch.cat(before, dim=1) if before else None
        prefix_positions, patch_positions = self.positions(grid)
        if patch_positions is not None:
            patches = patches + patch_positions.to(patches)
        if prefix is not None:
            if prefix_positions is not None:
                placed = prefix_positions.shape[1]
                prefix = torch.cat([prefix[:, :placed] + prefix_positions, prefix[:, placed:]], dim=1)
            patches = torch.cat([prefix.expand(patches.shape[0], -1, -1).to(patches.dtype), patches], dim=1)
        return self.stem_norm(self.dropout(patches)), grid

    def positions(self, grid: tuple[int, int]) -> tuple[Float[Tensor, "1 k d"] | None, Float[Tensor, "1 p d"] | None]:
        """Absolute positions for the first tokens before the patches and for every patch of a grid."""
        config = self.config
        if config.position == "sinusoidal_1d":
            return None, sinusoids_1d(grid[0] * grid[1], config.width).unsqueeze(0)
        if config.position == "sinusoidal_2d":
            return None, sinusoids_2d(grid, config.width).unsqueeze(0)
        if self.position_table is None:
            return None, None
        prefix, patches = self.position_table.split([config.prefix_positions, config.grid[0] * config.grid[1]], dim=1)
        if grid != config.grid:
            patches = resample_grid(patches, config.grid, grid, antialias=config.position_antialias)
        return (prefix if config.prefix_positions else None), patches

    def tables_at(self, grid: tuple[int, int]) -> Mapping[str, Tensor]:
        """The position table and the tables of relative biases, carried to another grid, by name."""
        tables = {
            f"{name}.table": module.resampled(grid)
            for name, module in self.named_modules()
            if isinstance(module, RelativeBias)
        }
        if self.position_table is not None:
            tables["position_table"] = torch.cat([part for part in self.positions(grid) if part is not None], dim=1)
        return tables

    def pooled(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b e"]:
        """One vector per picture out of its tokens."""
        patches = tokens[:, self.config.prefix :]
        if self.pool is not None:
            return cast(Tensor, self.pool(tokens if self.config.pool_prefix else patches))
        if self.config.pool == "mean":
            return patches.mean(1)
        if self.config.pool == "class_and_mean":
            return torch.cat([tokens[:, 0], patches.mean(1)], dim=1)
        return tokens[:, 0]

    def reset_head(self, num_classes: int) -> None:
        """Put fresh, small random classifiers for `num_classes` classes in place of the present ones; 0 removes them."""
        device, dtype = self.patch.projection.weight.device, self.patch.projection.weight.dtype
        self.config = replace(self.config, num_classes=num_classes)
        self.record = replace(self.record, labels=())
        self.head = _classifier(self.config.pooled_width, num_classes)
        self.distillation_head = _classifier(self.config.width, num_classes * self.config.distillation_head)
        for head in (self.head, self.distillation_head):
            if head is not None:
                head.apply(_initialise).to(device, dtype)

    def _patches(self) -> PatchEmbedding:
        """What makes tokens; a hybrid puts its convolutions before it."""
        config = self.config
        return PatchEmbedding(config.channels, config.width, config.patch_size, bias=config.patch_bias)

    def _norm(self) -> nn.Module:
        return norm_layer(self.config.width, self.config.norm, self.config.norm_eps)

    def _block(self, index: int) -> Block:
        config = self.config
        mlp = (
            SwiGLU(config.width, config.mlp_width, dropout=config.dropout)
            if config.mlp == "swiglu"
            else Mlp(config.width, config.mlp_width, config.activation, dropout=config.dropout)
        )
        gain = config.layer_scale
        return Block(
            self._attention(index),
            mlp,
            (self._norm(), self._norm()),
            scales=None if gain is None else (LayerScale(config.width, gain), LayerScale(config.width, gain)),
            placement=config.norm_placement,
            drop_path=config.drop_path * index / max(config.depth - 1, 1),
        )

    def _attention(self, index: int) -> nn.Module:
        config = self.config
        if config.attention != "global":
            return attention_of(
                config.attention,
                config.width,
                config.heads,
                block=index,
                window=config.window,
                reduction=config.reduction,
                features=config.features,
                qkv_bias=config.qkv_bias,
                dropout=config.dropout,
            )
        return SelfAttention(
            config.width,
            config.heads,
            qkv_bias=config.qkv_bias,
            key_bias=config.key_bias,
            qk_norm=(config.norm, config.norm_eps) if config.qk_norm else None,
            dropout=config.dropout,
        )

    def _attention_pool(self) -> AttentionPool:
        config = self.config
        return AttentionPool(
            config.width, config.heads, config.mlp_width, config.activation, norm=config.norm, eps=config.norm_eps
        )


def _token(count: int, width: int, present: bool) -> nn.Parameter | None:
    """A learned vector for each of `count` tokens (1, count, width), if there are any."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(1, count, width), std=0.02)) if present else None


def _classifier(width: int, num_classes: int) -> Linear | None:
    return Linear(width, num_classes) if num_classes else None


def _initialise(module: nn.Module) -> None:
    """Weights from a normal distribution of deviation 0.02, biases zero (as DeiT's code starts)."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, AttentionPool):
        nn.init.trunc_normal_(module.query, std=0.02)


# Sizes: ViT table 1; Ti and S: DeiT table 1; g and G: Zhai et al. 2022, table 2.
_TI = ViTConfig(width=192, heads=3, mlp_width=768)
_S = ViTConfig(width=384, heads=6, mlp_width=1536)
_B = ViTConfig(width=768, heads=12, mlp_width=3072)
_L = ViTConfig(width=1024, depth=24, heads=16, mlp_width=4096)
_H = ViTConfig(width=1280, depth=32, heads=16, mlp_width=5120)
_GIANT = ViTConfig(width=1408, depth=40, heads=16, mlp_width=6144)
_GIGANTIC = ViTConfig(width=1664, depth=48, heads=16, mlp_width=8192)
_SIZES = {"ti": _TI, "s": _S, "b": _B, "l": _L, "h": _H, "g": _GIANT}


def _variants() -> dict[str, ViTConfig]:
    """The family's networks by the name everyone knows: every size at every patch, and each relative as published."""
    rows: dict[str, ViTConfig] = {}
    for letter, size in _SIZES.items():
        for patch in (8, 14, 16, 32):
            rows[f"vit_{letter}{patch}"] = replace(size, patch_size=(patch, patch))
    rows["vit_gigantic14"] = replace(_GIGANTIC, patch_size=(14, 14))

    for letter in ("ti", "s", "b"):
        deit = replace(_SIZES[letter], patch_size=(16, 16))
        rows[f"deit_{letter}16"] = deit
        rows[f"deit_{letter}16_distilled"] = replace(
            deit, distillation_token=True, distillation_head=True, prefix_positions=2
        )

    for letter, gain in (("b", 0.1), ("l", 1e-5)):
        rows[f"beit_{letter}16"] = replace(
            _SIZES[letter],
            key_bias=False,
            position="none",
            prefix_positions=0,
            relative_bias="per_block",
            layer_scale=gain,
            final_norm=False,
            pool="mean",
            pool_norm=True,
        )

    for letter, patch in (("b", 16), ("l", 16), ("h", 14)):
        rows[f"mae_{letter}{patch}"] = replace(
            _SIZES[letter], patch_size=(patch, patch), pool="mean", pool_norm=True, final_norm=False
        )
    for letter, patch in (("s", 16), ("s", 8), ("b", 16), ("b", 8)):
        rows[f"dino_{letter}{patch}"] = replace(_SIZES[letter], patch_size=(patch, patch), num_classes=0)

    # DINOv2's g is not the g of Zhai et al.: width 1536, 24 heads, a gated network of 2/3 · 4 · 1536 hidden channels.
    dinov2_g = replace(_GIANT, width=1536, heads=24, mlp="swiglu", mlp_width=4096)
    for letter, size in {"s": _S, "b": _B, "l": _L, "g": dinov2_g}.items():
        dinov2 = replace(
            size,
            image_size=(518, 518),
            patch_size=(14, 14),
            num_classes=0,
            mask_token=True,
            layer_scale=1.0,
            position_antialias=False,
        )
        rows[f"dinov2_{letter}14"] = dinov2
        rows[f"dinov2_{letter}14_registers"] = replace(dinov2, registers=4, position_antialias=True)

    for letter in ("s", "b", "l"):
        rows[f"dinov3_{letter}16"] = replace(
            _SIZES[letter],
            num_classes=0,
            registers=4,
            mask_token=True,
            position="none",
            prefix_positions=0,
            rotary=True,
            key_bias=False,
            layer_scale=1.0,
            norm_eps=1e-5,
        )

    for letter, patch in (("b", 16), ("b", 32), ("l", 14)):
        rows[f"clip_{letter}{patch}"] = replace(
            _SIZES[letter],
            num_classes=0,
            patch_size=(patch, patch),
            patch_bias=False,
            stem_norm=True,
            norm_eps=1e-5,
            activation="quick_gelu",
        )
    for letter in ("b", "l"):
        rows[f"siglip_{letter}16"] = replace(
            _SIZES[letter],
            image_size=(256, 256),
            num_classes=0,
            class_token=False,
            prefix_positions=0,
            pool="attention",
        )
    return rows


VARIANTS: dict[str, ViTConfig] = _variants()
"""Networks by name. `vit_b16` is B at patch 16; the letter stands for Ti, S, B, L, H or g."""

PAPERS = {
    "vit": "Dosovitskiy et al. 2021",
    "vit_g": "Zhai et al. 2022",
    "deit": "Touvron et al. 2021",
    "beit": "Bao et al. 2022",
    "mae": "He et al. 2022",
    "dino": "Caron et al. 2021",
    "dinov2": "Oquab et al. 2023",
    "dinov3": "Siméoni et al. 2025",
    "clip": "Radford et al. 2021",
    "siglip": "Zhai et al. 2023",
}
"""Beginning of a name → where the network was published; the longest that fits counts."""
