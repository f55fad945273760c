"""Which token is which patch, and where it lies in the picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Float, Shaped
from torch import nn

from vitral.base.frame import Frame
from vitral.base.numbers import as_integer
from vitral.errors import UsageError
from vitral.explanation.stages import cell_of

__all__ = ["TokenGeometry"]


@dataclass(frozen=True)
class TokenGeometry:
    """The tokens of one picture: those before the patches, then the patches in reading order.

    A token that convolutions made stands for a cell of the input, and is treated as if that were its patch, though they
    have seen beyond it. The last row and column of cells may reach beyond the input, and end where it does.

    Attributes:
        prefix: what the tokens before the patches are called: ("class", "register 1", …).
        grid: rows and columns of patches.
        patch_size: (height, width) of a patch in pixels of the model's input.
        frame: the way from the model's input back to the picture.
    """

    prefix: tuple[str, ...]
    grid: tuple[int, int]
    patch_size: tuple[int, int]
    frame: Frame

    @classmethod
    def of(cls, model: nn.Module, grid: tuple[int, int], frame: Frame) -> TokenGeometry:
        """The geometry of a picture that a model saw on a grid of patches, or of cells of an earlier stage.

        Tokens of an earlier stage have none before them.
        """
        config: Any = model.config
        last = tuple(grid) == tuple(config.grid_of(frame.input))
        return cls(config.prefix_names if last else (), grid, cell_of(model, grid, frame.input), frame)

    def __len__(self) -> int:
        """How many tokens there are."""
        return len(self.prefix) + self.grid[0] * self.grid[1]

    def name(self, token: SupportsIndex) -> str:
        """What a token is: "class", "patch (3, 4)"."""
        place = self._checked(token)
        return self.prefix[place] if place < len(self.prefix) else f"patch {self.patch(place)}"

    def patch(self, token: SupportsIndex) -> tuple[int, int]:
        """Row and column of a token's patch.

        Raises:
            UsageError: there is no such token, or it is none of a patch.
        """
        place = self._checked(token)
        if place < len(self.prefix):
            raise UsageError(f"Token {place} is the {self.prefix[place]} token; patches begin at token {len(self.prefix)}.")
        return divmod(place - len(self.prefix), self.grid[1])

    def token(self, row: SupportsIndex, column: SupportsIndex) -> int:
        """The token of the patch in a row and a column, both counted from 0 (or, negative, from the end).

        Raises:
            UsageError: there is no such patch.
        """
        (rows, columns), down, across = self.grid, as_integer(row), as_integer(column)
        if down is None or across is None or not (-rows <= down < rows and -columns <= across < columns):
            raise UsageError(f"There is no patch ({row}, {column}) in a grid of {rows} rows and {columns} columns.")
        return len(self.prefix) + down % rows * columns + across % columns

    def token_at(self, x: float, y: float) -> int | None:
        """The token whose patch covers a point (x, y) of the picture, in pixels; None where no patch does."""
        across, down = self.frame.to_input(np.array([x, y])).tolist()
        row, column = down // self.patch_size[0], across // self.patch_size[1]
        inside = 0 <= row < self.grid[0] and 0 <= column < self.grid[1]  # which no infinity is
        inside = inside and down < self.frame.input[0] and across < self.frame.input[1]
        return self.token(int(row), int(column)) if inside else None

    def rectangle(self, token: SupportsIndex) -> tuple[float, float, float, float]:
        """Where a token's patch lies in the picture: (x0, y0, x1, y1) in pixels."""
        x0, y0, x1, y1 = self.rectangles[self.token(*self.patch(token)) - len(self.prefix)].tolist()
        return x0, y0, x1, y1

    @property
    def rectangles(self) -> Float[np.ndarray, "p 4"]:
        """Where every patch lies in the picture: (x0, y0, x1, y1) in pixels, in reading order."""
        height, width = self.patch_size
        rows, columns = (places.ravel() for places in np.indices(self.grid))
        corners = np.stack([columns * width, rows * height, (columns + 1) * width, (rows + 1) * height], axis=1)
        corners = np.minimum(corners, np.tile(self.frame.input[::-1], 2))
        return self.frame.boxes_to_picture(corners)

    def layout(self, values: Shaped[Any, "*b n"]) -> Shaped[Any, "*b i j"]:
        """Values of all tokens, or of the patches alone, laid out as the patches lie (arrays and tensors)."""
        patches = self.grid[0] * self.grid[1]
        if values.shape[-1] not in (len(self), patches):
            raise UsageError(f"There are {len(self)} tokens, {patches} of them patches; {values.shape[-1]} values came.")
        return values[..., values.shape[-1] - patches :].reshape(*values.shape[:-1], *self.grid)

    def _checked(self, token: SupportsIndex) -> int:
        place = as_integer(token)
        if place is None or not -len(self) <= place < len(self):
            raise UsageError(f"There is no token {token}: there are {len(self)}, numbered 0 to {len(self) - 1}.")
        return place % len(self)
