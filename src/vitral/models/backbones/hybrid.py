"""Hybrids: a vision transformer whose patches are cut from the map of a residual network.

Dosovitskiy et al. 2021, "An Image is Worth 16×16 Words", https://arxiv.org/abs/2010.11929, section 3.1, "Hybrid
architecture": the third stage of BiT's ResNet-50 has nine units and no fourth follows, so that its map has a stride of 16
pixels; every cell of it is a patch. Steiner et al. 2021, "How to train your ViT?", https://arxiv.org/abs/2106.10270, section
3, adds hybrids on all four stages (stride 32), and one, R+Ti/16, on the root alone.

Sizes of pictures follow the trunk: what remains of a stride at the bottom and at the right is a cell of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from vitral.base.config import check_choices
from vitral.errors import UsageError
from vitral.layers.patch import PatchEmbedding
from vitral.models.backbones.bit_resnet import BitTrunk
from vitral.models.backbones.vit import VARIANTS as PLAIN
from vitral.models.backbones.vit import ViT, ViTConfig
from vitral.models.network import check_ranges, chosen_levels, quarters
from vitral.models.output import Level, Pyramid

__all__ = ["PAPERS", "VARIANTS", "HybridConfig", "HybridViT"]

_STAGES = 8  # more would have a stride of thousands of pixels


@dataclass(frozen=True, kw_only=True)
class HybridConfig(ViTConfig):
    """Everything that tells one hybrid from another.

    `patch_size` is that of a token in pixels of the picture: the stride of the trunk times the side of the pieces that are
    cut from its map.

    Attributes:
        trunk_depths: units in every stage of the trunk; none for the root alone.
        trunk_width: channels behind the trunk's root, a multiple of 32.
    """

    trunk_depths: tuple[int, ...] = (3, 4, 9)
    trunk_width: int = 64

    def __post_init__(self) -> None:
        check_choices(self)
        check_ranges(self, {"trunk_width": (32, 100_000)})
        if len(self.trunk_depths) > _STAGES or not all(0 < depth <= 1_000 for depth in self.trunk_depths):
            raise UsageError(f"trunk_depths must be up to {_STAGES} numbers from 1 to 1000; {self.trunk_depths!r} came.")
        if self.trunk_width % 32:
            raise UsageError(f"trunk_width must be a multiple of 32; {self.trunk_width} came.")
        if any(side < self.trunk_stride or side % self.trunk_stride for side in self.patch_size):
            raise UsageError(
                f"patch_size of a hybrid must be a multiple of its trunk's stride, {self.trunk_stride} pixels; "
                f"{self.patch_size} came."
            )
        super().__post_init__()

    @property
    def trunk_stride(self) -> int:
        """Pixels from one cell of the trunk's last map to the next."""
        return 4 * 2 ** max(len(self.trunk_depths) - 1, 0)

    @property
    def cells(self) -> tuple[int, int]:
        """Height and width of a patch in cells of the trunk's last map."""
        return self.patch_size[0] // self.trunk_stride, self.patch_size[1] // self.trunk_stride

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches of a picture of `image_size`."""
        return self.grid_of(self.image_size)

    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches of a picture of some (height, width).

        What remains of a stride of the trunk is a cell; less than a patch of cells is left out.
        """
        high, wide = (-(-side // self.trunk_stride) for side in size)
        return high // self.cells[0], wide // self.cells[1]


class HybridViT(ViT):
    """A vision transformer on the map of a residual network.

    Args:
        config: which one.
    """

    config: HybridConfig

    def _patches(self) -> PatchEmbedding:
        config = self.config
        self.trunk = BitTrunk(config.channels, config.trunk_depths, config.trunk_width)
        return PatchEmbedding(self.trunk.levels[-1].channels, config.width, config.cells, bias=config.patch_bias)

    def embed(
        self, pixels: Float[Tensor, "b c y x"], mask: Bool[Tensor, "b p"] | None = None
    ) -> tuple[Float[Tensor, "b n d"], tuple[int, int]]:
        """What enters the first block, and the patches' grid.

        Raises:
            UsageError: the channels are not the model's, or the picture is smaller than one patch.
        """
        return super().embed(self._maps(pixels)[-1], mask)

    @property
    def levels(self) -> tuple[Level, ...]:
        """Those of the trunk, then one for each block."""
        return *self.trunk.levels, *super().levels

    def pyramid(self, pixels: Float[Tensor, "b c y x"], levels: Sequence[int] | None = None) -> Pyramid:
        """Maps of the trunk, and the stream of tokens behind some blocks as maps, not normed; no classifier is computed.

        Args:
            pixels: prepared pictures of any one size.
            levels: which, by their places in `levels`; None for four as DPT-Hybrid reads them (Ranftl et al. 2021, section
                3.1): the trunk's stages but the last, then the ends of the transformer's last quarters.
        """
        before = len(self.trunk.levels)
        if levels is None:
            stages = range(1, before - 1)
            levels = [*stages, *(before + place for place in quarters(self.depth)[len(stages) - 4 :])]
        chosen = chosen_levels(self.levels, levels)
        maps = self._maps(pixels)
        taken = [maps[place] for place in chosen if place < before]
        if chosen[-1] >= before:
            inside = [place - before for place in chosen if place >= before]
            _, grid, kept = self._encoded(*super().embed(maps[-1]), inside)
            taken += [tokens[:, self.config.prefix :].transpose(1, 2).unflatten(2, grid) for tokens in kept]
        return Pyramid(tuple(taken), tuple(self.levels[place].stride for place in chosen))

    def _maps(self, pixels: Float[Tensor, "b c y x"]) -> tuple[Float[Tensor, "b _ _ _"], ...]:
        """What the trunk gives for pictures of which at least one patch is left."""
        high, wide = pixels.shape[2:]
        if min(high, wide) < 1 or min(self.config.grid_of((high, wide))) < 1:
            raise UsageError(
                f"A picture of {high}×{wide} pixels is smaller than one patch of "
                f"{self.config.patch_size[0]}×{self.config.patch_size[1]}. Enlarge it first."
            )
        maps: tuple[Tensor, ...] = self.trunk(pixels)
        return maps


def _on(plain: str, depths: tuple[int, ...], patch: int) -> HybridConfig:
    """A vision transformer of the catalogue's sizes on a trunk."""
    sizes = PLAIN[plain]
    return HybridConfig(
        width=sizes.width,
        depth=sizes.depth,
        heads=sizes.heads,
        mlp_width=sizes.mlp_width,
        patch_size=(patch, patch),
        trunk_depths=depths,
    )


VARIANTS: dict[str, HybridConfig] = {
    "r50_vit_b16": _on("vit_b16", (3, 4, 9), 16),
    "r26_vit_s32": _on("vit_s32", (2, 2, 2, 2), 32),
    "r26_vit_b32": _on("vit_b32", (2, 2, 2, 2), 32),
    "r50_vit_l32": _on("vit_l32", (3, 4, 6, 3), 32),
    # "16" as its publishers call it: pieces of 8 × 8 cells of 4 pixels.
    "r_vit_ti16": _on("vit_ti16", (), 32),
}
"""Networks by name. `r50_vit_b16` is ViT-B on the first three stages of a ResNet-50, a token for every 16 pixels."""

PAPERS = {"r": "Steiner et al. 2021", "r50_vit_b16": "Dosovitskiy et al. 2021"}
"""Beginning of a name → where the network was published; the longest that fits counts."""
