"""One picture that shows what an augmentation does: examples side by side, with what is known of places drawn onto them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vitral.base.chance import generator_of
from vitral.base.numbers import whole_number
from vitral.data.augment.example import Augment, Example
from vitral.data.transforms import Preprocessing
from vitral.errors import UsageError

__all__ = ["as_image", "sheet", "variants"]

_INK, _PAPER = (24, 32, 46), (255, 255, 255)
# Okabe and Ito's palette, which colour-blind people tell apart; an object keeps its colour through every augmentation.
_COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
_GAP, _LINE = 8, 22


def variants(augment: Augment, example: Example, count: int, *, seed: int = 0) -> list[Example]:
    """What an augmentation makes of an example, several times over.

    Args:
        augment: the augmentation.
        example: what it is applied to.
        count: how often.
        seed: variant i is drawn from `generator_of(seed, i)`.

    Raises:
        UsageError: fewer than one.
    """
    return [augment(example, generator_of(seed, place)) for place in range(whole_number("count", count))]


def as_image(pixels: Float[Tensor, "c y x"], preprocessing: Preprocessing) -> Image.Image:
    """A model's input as a picture again; what lies beyond black and white is cut off.

    Args:
        pixels: normalised, three channels or one.
        preprocessing: how they were normalised.
    """
    mean, std = torch.tensor([preprocessing.mean, preprocessing.std]).view(2, -1, 1, 1)
    levels = ((pixels * std + mean) / preprocessing.scale).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(
        levels.permute(1, 2, 0).squeeze(2).numpy() if len(levels) == 1 else levels.permute(1, 2, 0).numpy()
    )


def sheet(tiles: Sequence[tuple[str, Example | Image.Image]], *, columns: int = 4, side: int = 160) -> Image.Image:
    """Examples side by side, each with its title, and its masks, boxes and points drawn onto it.

    Args:
        tiles: a title (it may be empty) and an example, or just a picture, each.
        columns: how many stand in a row.
        side: the longer side of a tile, in pixels; pictures are resized to it.

    Raises:
        UsageError: nothing to show, or columns or a side below 1.
    """
    whole_number("columns", columns), whole_number("side", side)
    if not tiles:
        raise UsageError("A sheet needs at least one example to show, but got none.")
    drawn = [(title, _drawn(example, side)) for title, example in tiles]
    line = _LINE if any(title for title, _ in drawn) else 0
    columns, tall = min(columns, len(drawn)), max(image.height for _, image in drawn)
    rows = -(-len(drawn) // columns)
    whole = Image.new("RGB", (_GAP + columns * (side + _GAP), _GAP + rows * (tall + line + _GAP)), _PAPER)
    pen, font = ImageDraw.Draw(whole), ImageFont.load_default(size=13)
    for place, (title, image) in enumerate(drawn):
        row, column = divmod(place, columns)
        left, top = _GAP + column * (side + _GAP), _GAP + row * (tall + line + _GAP)
        pen.text((left + side / 2, top + 2), title, _INK, font=font, anchor="ma")
        whole.paste(image, (left + (side - image.width) // 2, top + line + (tall - image.height) // 2))
    return whole


def _drawn(example: Example | Image.Image, side: int) -> Image.Image:
    """A copy at the tile's size with everything known of places on it."""
    example = Example(image=example) if isinstance(example, Image.Image) else example
    scale = side / max(example.size)
    size = max(1, round(example.image.width * scale)), max(1, round(example.image.height * scale))
    image = example.image.convert("RGB").resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)
    names = [] if example.kept is None else example.kept.tolist()
    colours = [_COLOURS[name % len(_COLOURS)] for name in names]
    for mask, colour in zip([] if example.masks is None else example.masks, colours, strict=False):
        veil = Image.fromarray(mask.astype(np.uint8) * 100).resize(size, Image.Resampling.NEAREST)
        image.paste(colour, (0, 0), veil)
    pen = ImageDraw.Draw(image)
    for box, colour in zip([] if example.boxes is None else (example.boxes * scale).tolist(), colours, strict=False):
        pen.rectangle(
            [round(box[0]), round(box[1]), max(round(box[2]) - 1, 0), max(round(box[3]) - 1, 0)], outline=colour, width=3
        )
    for x, y in [] if example.points is None else (example.points * scale).tolist():
        pen.ellipse([x - 4, y - 4, x + 4, y + 4], fill=_PAPER, outline=_INK, width=2)
    return image
