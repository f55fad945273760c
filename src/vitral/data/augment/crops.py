"""Several views of one picture, for learning without labels: multi-crop (Caron et al. 2020, SwAV, sec. 3.2)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from vitral.base.numbers import whole_number
from vitral.data.augment.colour import ColourJitter, GaussianBlur, Grayscale, Solarize
from vitral.data.augment.example import Augment, Chain, Example
from vitral.data.augment.geometry import Flip, RandomResizedCrop
from vitral.errors import UsageError

__all__ = ["MultiCrop", "dino_crops"]


@dataclass(frozen=True, kw_only=True)
class MultiCrop:
    """Some large views of much of a picture, and many small ones of little of it.

    Args:
        global_count: how many large views.
        local_count: how many small views.
        global_crop: how a large view is cut out and resized.
        local_crop: how a small one is.
        global_chains: what else happens to each large view, one chain per view; or one chain for all of them.
        local_chain: what else happens to every small view.

    Raises:
        UsageError: a field out of its range.
    """

    global_count: int = 2
    local_count: int = 8
    global_crop: RandomResizedCrop = field(default=RandomResizedCrop(size=(224, 224), scale=(0.4, 1.0)))
    local_crop: RandomResizedCrop = field(default=RandomResizedCrop(size=(96, 96), scale=(0.05, 0.4)))
    global_chains: tuple[Augment, ...] = (Chain(),)
    local_chain: Augment = field(default=Chain())

    def __post_init__(self) -> None:
        whole_number("global_count of a MultiCrop", self.global_count)
        whole_number("local_count of a MultiCrop", self.local_count, least=0)
        if len(self.global_chains) not in (1, self.global_count):
            raise UsageError(
                f"global_chains of a MultiCrop must be one chain, or one for each of the {self.global_count} large views, "
                f"but are {len(self.global_chains)}."
            )

    def __call__(self, example: Example, rng: np.random.Generator) -> list[Example]:
        """The large views, then the small ones."""
        chains = self.global_chains * (self.global_count if len(self.global_chains) == 1 else 1)
        large = [chain(self.global_crop(example, rng), rng) for chain in chains]
        return large + [self.local_chain(self.local_crop(example, rng), rng) for _ in range(self.local_count)]


def dino_crops(
    *,
    local_count: int = 8,
    global_size: int = 224,
    local_size: int = 96,
    global_scale: tuple[float, float] = (0.4, 1.0),
    local_scale: tuple[float, float] = (0.05, 0.4),
) -> MultiCrop:
    """The views of DINO (Caron et al. 2021, app. C and the published `DataAugmentationDINO`).

    All are flipped with even odds, jittered in colour (probability 0.8) and sometimes grey (0.2). The first large view is
    always blurred, the second rarely (0.1) but solarised at times (0.2), small views are blurred with even odds.

    Args:
        local_count: how many small views; 8 in the paper's code, 10 for its best ViT-B.
        global_size: side of the two large views, in pixels.
        local_size: side of the small ones.
        global_scale: lowest and highest share of the picture's area in a large view.
        local_scale: likewise in a small one.
    """
    base: tuple[Augment, ...] = (
        Flip(probability=0.5),
        ColourJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, probability=0.8),
        Grayscale(probability=0.2),
    )
    return MultiCrop(
        local_count=local_count,
        global_crop=RandomResizedCrop(size=(global_size, global_size), scale=global_scale),
        local_crop=RandomResizedCrop(size=(local_size, local_size), scale=local_scale),
        global_chains=(
            Chain((*base, GaussianBlur(probability=1.0))),
            Chain((*base, GaussianBlur(probability=0.1), Solarize(probability=0.2))),
        ),
        local_chain=Chain((*base, GaussianBlur(probability=0.5))),
    )
