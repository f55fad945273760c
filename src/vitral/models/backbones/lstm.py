"""A recurrent network that reads a picture as a text: row by row, or patch by patch.

Hochreiter and Schmidhuber 1997, "Long Short-Term Memory"; in both directions: Graves and Schmidhuber 2005; pixels and rows
of a picture as a sequence: Graves et al. 2007, and, for classification, Le et al. 2015. It is what sequences were read
with before attention: what it knows of the first patch has passed through every later one, n steps one after the other,
while attention takes one.

    rows or patches ──► linear ──► lstm ──► lstm ──► … ──► mean over the steps ──► classifier
      1 2 3 … n                    →→→→     →→→→
                                   (←←←←)   (←←←←)

As a sequence has any length, patches take pictures of any size. A row must have as many pixels as the first layer has
weights: pictures of another width are averaged to it across (adaptive average pooling), and have any height.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitral.base.config import check_choices
from vitral.errors import UsageError
from vitral.layers.linear import Linear
from vitral.layers.patch import PatchEmbedding
from vitral.models.network import Network, PlainConfig, check_ranges
from vitral.models.output import EncoderOutput

__all__ = ["LSTM", "PAPERS", "VARIANTS", "LSTMConfig", "Recurrence"]

_RANGES: dict[str, tuple[float, float]] = {
    "image_size": (1, 100_000),
    "channels": (1, 10_000),
    "cell": (1, 10_000),
    "width": (1, 100_000),
    "depth": (1, 100),
    "num_classes": (0, 10_000_000),
    "dropout": (0.0, 0.999),
}


@dataclass(frozen=True, kw_only=True)
class LSTMConfig(PlainConfig):
    """Everything that tells one recurrent network from another.

    Attributes:
        reads: what one step reads: square patches in reading order, or whole rows from the top.
        cell: pixels along a side of a patch, or rows read at a step.
        width: channels d of a step; of both directions together where there are two.
        depth: number of recurrent layers.
        bidirectional: whether every layer also reads from the end.
        dropout: probability of dropping a channel between layers in training.
    """

    image_size: tuple[int, int] = (32, 32)
    reads: Literal["patches", "rows"] = "patches"
    cell: int = 4
    width: int = 256
    depth: int = 2
    bidirectional: bool = False
    num_classes: int = 10
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_choices(self)
        check_ranges(self, _RANGES)
        if self.bidirectional and self.width % 2:
            raise UsageError(f"Two directions share the width, which must be even; {self.width} came.")
        if min(self.grid) < 1:
            raise UsageError(f"image_size {self.image_size} is smaller than what one step reads, {self.patch_size}.")

    @property
    def patch_size(self) -> tuple[int, int]:
        """Height and width, in pixels, of what one step reads."""
        return self.cell, self.cell if self.reads == "patches" else self.image_size[1]

    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of steps of a picture of some (height, width); what is less than a step is left out."""
        return size[0] // self.cell, size[1] // self.cell if self.reads == "patches" else 1


class Recurrence(nn.Module):
    """One layer of long short-term memory, forwards or in both directions.

    Args:
        width: channels d of what comes and of what goes.
        bidirectional: whether half of the channels read from the end.
        dropout: probability of dropping a channel of what goes, in training.
    """

    def __init__(self, width: int, *, bidirectional: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        hidden = width // 2 if bidirectional else width
        self.cells = nn.LSTM(width, hidden, batch_first=True, bidirectional=bidirectional)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, steps: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Read the steps one after the other."""
        states, _ = self.cells(steps)
        return self.dropout(states)


class LSTM(Network):
    """A recurrent network. The states of its last layer are given as tokens.

    Args:
        config: which one.
    """

    config: LSTMConfig

    def __init__(self, config: LSTMConfig) -> None:
        super().__init__(config)
        self.patch = PatchEmbedding(config.channels, config.width, config.patch_size)
        self.blocks = nn.ModuleList(
            Recurrence(config.width, bidirectional=config.bidirectional, dropout=config.dropout) for _ in range(config.depth)
        )
        self.head = Linear(config.width, config.num_classes) if config.num_classes else None
        self.apply(_initialise)

    def forward(self, pixels: Float[Tensor, "b c y x"]) -> EncoderOutput:
        """Encode pictures of any one size and classify them."""
        made_for = self.config.image_size[1]
        if self.config.reads == "rows" and pixels.shape[3] != made_for:
            pixels = F.adaptive_avg_pool2d(pixels, (pixels.shape[2], made_for))
        tokens, grid = self.patch(pixels)
        for block in self.blocks:
            tokens = block(tokens)
        return self.read_out(tokens, grid)

    def read_out(self, tokens: Float[Tensor, "b n d"], grid: tuple[int, int]) -> EncoderOutput:
        """What the states of the last layer come to: averaged, classified."""
        pooled = tokens.mean(1)
        logits = self.head(pooled) if self.head is not None else None
        return EncoderOutput(tokens, grid, 0, pooled, logits, () if logits is None else (logits,))

    def read_tokens(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n c"]:
        """The logits that every step would give, were it the whole picture's.

        Raises:
            UsageError: the model has no classifier.
        """
        if self.head is None:
            raise UsageError("The model has no classifier to read tokens with.")
        return self.head(tokens)

    def reset_head(self, num_classes: int) -> None:
        """Put a fresh, small random classifier for `num_classes` classes in place of the present one; 0 removes it."""
        like = self.patch.projection.weight
        self.config = replace(self.config, num_classes=num_classes)
        self.record = replace(self.record, labels=())
        self.head = Linear(self.config.width, num_classes) if num_classes else None
        if self.head is not None:
            self.head.apply(_initialise).to(like.device, like.dtype)


def _initialise(module: nn.Module) -> None:
    """Recurrent weights orthogonal, so that what is remembered neither grows nor fades at first (Saxe et al. 2014).

    The biases of the forget gates begin at one, so that at first nothing is forgotten (Jozefowicz et al. 2015).
    """
    if isinstance(module, nn.LSTM):
        for name, parameter in module.named_parameters():
            if name.startswith("weight_hh"):
                nn.init.orthogonal_(parameter)
            elif name.startswith("weight_ih"):
                nn.init.xavier_uniform_(parameter)
            else:
                nn.init.zeros_(parameter)
                if name.startswith("bias_ih"):  # input, forget, cell, output: a quarter each
                    parameter.data[module.hidden_size : 2 * module.hidden_size].fill_(1.0)
    elif isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


VARIANTS: dict[str, LSTMConfig] = {
    "lstm_2x256": LSTMConfig(),
    "lstm_2x256_rows": LSTMConfig(reads="rows", cell=1),
    "bilstm_2x256": LSTMConfig(bidirectional=True),
    "bilstm_2x256_rows": LSTMConfig(reads="rows", cell=1, bidirectional=True),
}
"""Networks by name. `lstm_2x256` has 2 layers of 256 channels, for pictures of 32 × 32 pixels in patches of 4 × 4."""

PAPERS = {"lstm": "Hochreiter and Schmidhuber 1997", "bilstm": "Graves and Schmidhuber 2005"}
"""Beginning of a name → where the network was published; the longest that fits counts."""
