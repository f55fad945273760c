"""A multilayer perceptron on pixels: what was there before convolutions, and what every other network is measured against.

Rosenblatt 1958; trained by backpropagation since Rumelhart et al. 1986, "Learning representations by back-propagating
errors". Every pixel of a picture is an input of its own. Nothing tells the network that neighbours are neighbours, and a
picture moved by a pixel is another picture: the prior knowledge that convolutions have and attention learns.

    pixels (c y x) ──► mean over cells, to image_size ──► one long vector ──► linear, relu ──► … ──► classifier

Pictures of other sizes than `image_size` are averaged over cells, or their pixels repeated, until they have that size
(adaptive average pooling), as the first layer has one weight for each pixel.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitral.base.config import check_choices
from vitral.errors import UsageError
from vitral.layers.linear import Linear
from vitral.layers.mlp import Activation, Nonlinearity
from vitral.models.network import Network, PlainConfig, check_ranges
from vitral.models.output import EncoderOutput

__all__ = ["MLP", "PAPERS", "VARIANTS", "MLPConfig"]

_RANGES: dict[str, tuple[float, float]] = {
    "image_size": (1, 10_000),
    "channels": (1, 10_000),
    "width": (1, 1_000_000),
    "depth": (1, 1_000),
    "num_classes": (0, 10_000_000),
    "dropout": (0.0, 0.999),
}


@dataclass(frozen=True, kw_only=True)
class MLPConfig(PlainConfig):
    """Everything that tells one multilayer perceptron from another.

    Attributes:
        image_size: height and width in pixels that pictures are brought to.
        width: channels d of each hidden layer.
        depth: number of hidden layers.
        activation: nonlinearity behind each hidden layer.
        dropout: probability of dropping a hidden channel in training.
    """

    image_size: tuple[int, int] = (32, 32)
    width: int = 512
    depth: int = 3
    num_classes: int = 10
    activation: Activation = "relu"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_choices(self)
        check_ranges(self, _RANGES)

    @property
    def patch_size(self) -> tuple[int, int]:
        """Height and width of what the one token stands for: the whole picture."""
        return self.image_size

    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of tokens of a picture of any (height, width): one."""
        return 1, 1


class MLP(Network):
    """A multilayer perceptron. The last hidden layer is given as the picture's only token.

    Args:
        config: which one.
    """

    config: MLPConfig

    def __init__(self, config: MLPConfig) -> None:
        super().__init__(config)
        pixels = config.channels * config.image_size[0] * config.image_size[1]
        widths = [pixels, *[config.width] * config.depth]
        self.blocks = nn.ModuleList(
            nn.Sequential(Linear(before, after), Nonlinearity(config.activation), nn.Dropout(config.dropout))
            for before, after in itertools.pairwise(widths)
        )
        self.head = Linear(config.width, config.num_classes) if config.num_classes else None
        self.apply(_initialise)

    def forward(self, pixels: Float[Tensor, "b c y x"]) -> EncoderOutput:
        """Encode pictures of any one size and classify them."""
        if pixels.shape[1] != self.config.channels:
            raise UsageError(f"The model takes pictures of {self.config.channels} channels; {pixels.shape[1]} came.")
        if tuple(pixels.shape[2:]) != self.config.image_size:
            pixels = F.adaptive_avg_pool2d(pixels, self.config.image_size)
        tokens = pixels.flatten(1).unsqueeze(1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.read_out(tokens, (1, 1))

    def read_out(self, tokens: Float[Tensor, "b n d"], grid: tuple[int, int]) -> EncoderOutput:
        """What the last hidden layer comes to: classified."""
        pooled = tokens.mean(1)
        logits = self.head(pooled) if self.head is not None else None
        return EncoderOutput(tokens, grid, 0, pooled, logits, () if logits is None else (logits,))

    def reset_head(self, num_classes: int) -> None:
        """Put a fresh, small random classifier for `num_classes` classes in place of the present one; 0 removes it."""
        like = next(self.parameters())
        self.config = replace(self.config, num_classes=num_classes)
        self.record = replace(self.record, labels=())
        self.head = Linear(self.config.width, num_classes) if num_classes else None
        if self.head is not None:
            self.head.apply(_initialise).to(like.device, like.dtype)


@torch.no_grad()
def _initialise(module: nn.Module) -> None:
    """Normal distributions of variance 2 / fan-in, which rectified layers keep alive (He et al. 2015, equation 10)."""
    if isinstance(module, nn.Linear):
        nn.init.kaiming_normal_(module.weight)
        nn.init.zeros_(module.bias)


VARIANTS: dict[str, MLPConfig] = {
    "mlp_2x256": MLPConfig(depth=2, width=256),
    "mlp_3x512": MLPConfig(depth=3, width=512),
    "mlp_3x2048": MLPConfig(depth=3, width=2048),
}
"""Networks by name. `mlp_3x512` has 3 hidden layers of 512 channels, for pictures of 32 × 32 pixels."""

PAPERS = {"mlp": "Rumelhart et al. 1986"}
"""Beginning of a name → where the network was published; the longest that fits counts."""
