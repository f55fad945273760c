"""What becomes of a class when parts of the picture are hidden. No gradient, no look inside: it works for any network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vitral.base.numbers import real_number, whole_number
from vitral.errors import UsageError
from vitral.explanation.question import Heat, Question

__all__ = ["occlusion", "rise"]


def occlusion(question: Question, *, window: int | None = None, stride: int | None = None, batch_size: int = 32) -> Heat:
    """How far the probability falls when a grey square hides a place (Zeiler and Fergus 2014, section 4.2).

    A patch's heat is the mean over all squares that hide it.

    Args:
        question: what to explain.
        window: side of the square in patches; by default a fifth of the grid's shorter side.
        stride: patches from one square to the next, no more than its side; by default a third of it, at least one.
        batch_size: hidden variants computed at once.
    """
    rows, columns = question.grid
    window = max(1, round(min(rows, columns) / 5)) if window is None else whole_number("window", window)
    stride = max(1, window // 3) if stride is None else whole_number("stride", stride)
    batch_size = whole_number("batch_size", batch_size)
    if window > min(rows, columns):
        raise UsageError(f"window={window} does not fit a grid of {rows} × {columns} patches.")
    if stride > window:
        raise UsageError(f"stride={stride} would leave patches that no square of window={window} hides.")
    corners = [(row, column) for row in _starts(rows, window, stride) for column in _starts(columns, window, stride)]
    hidden = torch.stack([_square(question.grid, *corner, window) for corner in corners])
    height, width = question.patch_size
    heats = []
    for place in range(len(question.pixels)):
        alone = question.alone(place)
        whole = alone.probability_seen(torch.ones(1, 1, 1))
        left = [
            alone.probability_seen(1 - some.repeat_interleave(height, 1).repeat_interleave(width, 2))
            for some in hidden.split(batch_size)
        ]
        heats.append(torch.einsum("s,sij->ij", whole - torch.cat(left), hidden) / hidden.sum(0))
    return Heat(torch.stack(heats))


def _starts(length: int, window: int, stride: int) -> list[int]:
    """Where squares begin along a side, the last flush with its end."""
    return sorted({*range(0, length - window + 1, stride), length - window})


def _square(grid: tuple[int, int], row: int, column: int, window: int) -> Float[Tensor, "i j"]:
    square = torch.zeros(grid)
    square[row : row + window, column : column + window] = 1
    return square


def rise(
    question: Question, *, masks: int = 1000, cells: int = 7, keep: float = 0.5, seed: int = 0, batch_size: int = 32
) -> Heat:
    """RISE (Petsiuk et al. 2018, equation 4): a pixel's mean probability over the random masks that leave it seen.

    Their equation 6 divides by how often a pixel is expected to be seen; here it is divided by how often it was, which has
    the same mean. Else chance shows: with a thousand masks, heat on photographs correlated up to 0.5 with the masks alone.

    Args:
        question: what to explain.
        masks: how many; the paper takes 4000 for VGG-16 and 8000 for ResNet-50.
        cells: cells along either side of the coarse random grid that is enlarged, smoothly and at a random shift.
        keep: probability that a cell is seen.
        seed: of the masks, which are the same for every picture.
        batch_size: masked variants computed at once.
    """
    masks, cells = whole_number("masks", masks), whole_number("cells", cells)
    batch_size = whole_number("batch_size", batch_size)
    if not 0 < real_number("keep", keep) < 1:
        raise UsageError(f"keep must be between 0 and 1; {keep!r} came.")
    generator = torch.Generator().manual_seed(seed)
    height, width = question.pixels.shape[2:]
    totals, coverage = torch.zeros(len(question.pixels), height, width), torch.zeros(height, width)
    for done in range(0, masks, batch_size):
        seen = _soft_masks(min(batch_size, masks - done), cells, keep, (height, width), generator)
        coverage += seen.sum(0)
        for place, total in enumerate(totals):
            total += torch.einsum("s,syx->yx", question.alone(place).probability_seen(seen), seen)
    return Heat(totals / coverage.clamp(min=torch.finfo(coverage.dtype).tiny))


def _soft_masks(
    count: int, cells: int, keep: float, size: tuple[int, int], generator: torch.Generator
) -> Float[Tensor, "s y x"]:
    """Coarse random grids, enlarged bilinearly and cut out at a random shift (section 3.2).

    A grid has one cell more along either side than fit the picture, where the paper stretches as many as fit by so much.
    """
    coarse = (torch.rand(count, 1, cells + 1, cells + 1, generator=generator) < keep).float()
    cell = [-(-side // cells) for side in size]
    large = F.interpolate(coarse, size=[(cells + 1) * side for side in cell], mode="bilinear", align_corners=False)[:, 0]
    shifts = torch.stack([torch.randint(side, (count,), generator=generator) for side in cell], dim=1).tolist()
    return torch.stack([one[y : y + size[0], x : x + size[1]] for one, (y, x) in zip(large, shifts, strict=True)])
