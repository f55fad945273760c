"""Pictures of a batch blended in pairs: mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019).

Row 0 is mixed with row 1, row 2 with row 3 and so on, and each pair has its own generator. What becomes of a pair therefore
depends on its two pictures and its generator alone, not on the batch it happens to be in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vitral.data.augment.chain import Augmentation
from vitral.errors import UsageError

__all__ = ["cut_window", "mix"]


def cut_window(size: tuple[int, int], keep: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """The rectangle that CutMix exchanges: (y0, y1, x0, x1) in pixels (Yun et al. 2019, eq. 2).

    Its sides are √(1 - keep) of the input's, its middle is uniform over the input, and it is cut off at the edges: so it may
    cover less than 1 - keep.

    Args:
        size: (height, width) of the input.
        keep: the share of the input that should stay, λ.
        rng: two numbers are drawn from it.
    """
    edges: list[int] = []
    for length, draw in zip(size, rng.random(2).tolist(), strict=True):
        side, middle = int(length * math.sqrt(1 - keep)), int(length * draw)
        edges += [max(middle - side // 2, 0), min(middle + (side + 1) // 2, length)]
    return edges[0], edges[1], edges[2], edges[3]


def mix(
    pixels: Float[Tensor, "b c y x"],
    targets: Float[Tensor, "b k"],
    generators: Sequence[np.random.Generator],
    augmentation: Augmentation,
) -> tuple[Float[Tensor, "b c y x"], Float[Tensor, "b k"]]:
    """Neighbours mixed, pictures and targets by the same share.

    With λ from Beta(α, α), mixup gives λ · own + (1 - λ) · neighbour (Zhang et al. 2018, eq. in sec. 1); CutMix exchanges a
    rectangle between the two and takes the share of pixels that stayed as λ.

    Args:
        pixels: the inputs. They are left as they are.
        targets: the probability of each class, soft or one-hot.
        generators: one for each pair of rows, so half as many as rows; an odd last row has none and stays as it is.
        augmentation: `mixup` and `cutmix` are α, 0 for none; `mix_probability` is how often a pair is mixed at all, and
            `cutmix_share` how often by CutMix where both are on.

    Raises:
        UsageError: another number of generators than of pairs.
    """
    pairs = len(pixels) // 2
    if len(generators) != pairs:
        raise UsageError(f"Mixing {len(pixels)} rows in pairs needs {pairs} generators, but {len(generators)} came.")
    if not augmentation.mixes:
        return pixels, targets
    mixed = pixels.clone()
    own = np.ones(pairs)  # λ of each pair
    blended = []
    for pair, rng in enumerate(generators):
        happens, which = rng.random(2).tolist()
        if happens >= augmentation.mix_probability:
            continue
        cuts = augmentation.mixup == 0 or (augmentation.cutmix > 0 and which < augmentation.cutmix_share)
        alpha = augmentation.cutmix if cuts else augmentation.mixup
        own[pair] = rng.beta(alpha, alpha)
        if cuts:
            height, width = pixels.shape[2:]
            y0, y1, x0, x1 = cut_window((height, width), own[pair], rng)
            first, second = 2 * pair, 2 * pair + 1
            mixed[first, :, y0:y1, x0:x1] = pixels[second, :, y0:y1, x0:x1]
            mixed[second, :, y0:y1, x0:x1] = pixels[first, :, y0:y1, x0:x1]
            own[pair] = 1 - (y1 - y0) * (x1 - x0) / (height * width)
        else:
            blended.append(pair)
    if blended:
        rows = torch.tensor(blended, device=pixels.device) * 2
        share = torch.tensor(own[blended], device=pixels.device, dtype=pixels.dtype)[:, None, None, None]
        one, other = pixels[rows], pixels[rows + 1]
        mixed[rows], mixed[rows + 1] = one * share + other * (1 - share), other * share + one * (1 - share)
    soft = targets.clone()
    share = torch.tensor(own, device=targets.device, dtype=targets.dtype)[:, None]
    one, other = targets[0 : 2 * pairs : 2], targets[1 : 2 * pairs : 2]
    soft[0 : 2 * pairs : 2], soft[1 : 2 * pairs : 2] = one * share + other * (1 - share), other * share + one * (1 - share)
    return mixed, soft
