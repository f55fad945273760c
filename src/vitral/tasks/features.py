"""Image features: the tokens a model makes of a picture, and one vector for the whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from vitral.base.frame import Seen
from vitral.base.image import Picture
from vitral.models.output import EncoderOutput
from vitral.models.record import Record

__all__ = ["Features", "Options", "decode"]


@dataclass(frozen=True, eq=False)
class Features:
    """What a model makes of one picture.

    Attributes:
        name: the picture's path, address or description.
        size: its height and width in pixels.
        tokens: every token after the last norm (n d); `prefix` tokens, then the patches in reading order.
        pooled: one vector for the picture (e).
        grid: rows and columns of patches.
        prefix: how many tokens stand before the patches.
        picture: the picture itself, where it was kept.
    """

    name: str
    size: tuple[int, int]
    tokens: Float[Tensor, "n d"]
    pooled: Float[Tensor, " e"]
    grid: tuple[int, int]
    prefix: int
    picture: Picture | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def feature_map(self) -> Float[Tensor, "d i j"]:
        """The patches' tokens laid out as a picture."""
        return self.tokens[self.prefix :].T.unflatten(1, self.grid)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "name": self.name,
            "size": list(self.size),
            "grid": list(self.grid),
            "prefix": self.prefix,
            "pooled": self.pooled.tolist(),
            "tokens": self.tokens.tolist(),
        }


@dataclass(frozen=True, kw_only=True)
class Options:
    """Features have no options."""


def decode(output: EncoderOutput, seen: Sequence[Seen], record: Record, options: Options | None = None) -> list[Features]:
    """Results of a batch; see `tasks.classification.result.decode` for the arguments."""
    tokens, pooled = output.tokens.float().cpu(), output.pooled.float().cpu()
    return [
        Features(one.name, one.frame.picture, row, vector, output.grid, output.prefix, one.picture)
        for one, row, vector in zip(seen, tokens, pooled, strict=True)
    ]
