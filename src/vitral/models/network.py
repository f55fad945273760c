"""What every network of the house offers, whatever its family: one page for whoever uses a network without asking which."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Protocol, TypeVar, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitral.data.transforms import Preprocessing
from vitral.errors import UnknownNameError, UsageError
from vitral.models.output import EncoderOutput
from vitral.models.record import Record

__all__ = ["Network", "NetworkConfig", "check_ranges"]

_N = TypeVar("_N", bound="Network")


@runtime_checkable
class NetworkConfig(Protocol):
    """What the configuration of any family tells. It is a frozen dataclass; a family adds what is its own."""

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels the network is made for; pictures of other sizes are taken too."""

    @property
    def patch_size(self) -> tuple[int, int]:
        """Height and width, in pixels, of the piece of a picture that a token stands for."""

    @property
    def channels(self) -> int:
        """Channels of a picture."""

    @property
    def width(self) -> int:
        """Channels of a token."""

    @property
    def depth(self) -> int:
        """Number of blocks."""

    @property
    def heads(self) -> int:
        """Attention heads per block."""

    @property
    def num_classes(self) -> int:
        """Classes of the classifier; 0 for none."""

    @property
    def pool(self) -> str:
        """What the classifier reads: "class", "mean", "class_and_mean", or "attention" for what a pool picks out."""

    @property
    def prefix(self) -> int:
        """Tokens before the patches."""

    @property
    def prefix_names(self) -> tuple[str, ...]:
        """What they are called."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the tokens of a picture of `image_size`."""

    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the tokens of a picture of some (height, width)."""


class Network(nn.Module, ABC):
    """A network with everything that travels with it.

    Attributes:
        config: which one it is.
        record: how pictures are prepared for it, what its classes are called, whence it came.
        blocks: its transformer blocks, the first one first.
        before_blocks: parts that stand before the first block, by the beginning of their parameters' names.
        beside_blocks: lists of parts of which the i-th belongs to block i.

    Args:
        config: which one.
    """

    config: NetworkConfig
    record: Record
    blocks: nn.ModuleList
    before_blocks: ClassVar[tuple[str, ...]] = ()
    beside_blocks: ClassVar[tuple[str, ...]] = ("blocks",)

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.record = Record()

    @abstractmethod
    def forward(self, pixels: Float[Tensor, "b c y x"]) -> EncoderOutput:
        """Encode pictures of any one size and classify them."""

    @abstractmethod
    def read_out(self, tokens: Float[Tensor, "b n d"], grid: tuple[int, int]) -> EncoderOutput:
        """What the tokens behind the last block come to: normed, pooled, classified."""

    @abstractmethod
    def read_tokens(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n c"]:
        """The logits that every token of the residual stream would give, were it the whole picture's.

        Raises:
            UsageError: the model has no classifier.
        """

    @abstractmethod
    def reset_head(self, num_classes: int) -> None:
        """Put fresh, small random classifiers for `num_classes` classes in place of the present ones; 0 removes them."""

    @abstractmethod
    def tables_at(self, grid: tuple[int, int]) -> Mapping[str, Tensor]:
        """The parameters that hang on the grid (positions, relative biases), carried to another grid, by name."""

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    def depth_of(self, parameter: str) -> int:
        """How deep a parameter lies: 0 before the first block, i + 1 in block i, depth + 1 behind the last block.

        A training that lets lower layers learn more slowly asks for this (Clark et al. 2020, ELECTRA, appendix B; Bao et al.
        2022, BEiT, appendix), and so does one that freezes everything up to some depth. What all blocks share, as one
        table of relative biases, stands before the first.

        Args:
            parameter: its name, as `named_parameters` has it.

        Raises:
            UnknownNameError: no parameter is called so.
        """
        try:
            self.get_parameter(parameter)
        except AttributeError:
            raise UnknownNameError("parameter", parameter, [name for name, _ in self.named_parameters()]) from None
        part, _, rest = parameter.partition(".")
        if part in self.beside_blocks:
            return int(rest.partition(".")[0]) + 1
        return 0 if part in self.before_blocks else self.depth + 1

    @torch.no_grad()
    def resized(self: _N, image_size: int | tuple[int, int]) -> _N:
        """A network of the same weights that is made for pictures of another size; this one stays as it is.

        Its tables of positions are resampled once, as fine-tuning at another resolution begins (Dosovitskiy et al. 2021,
        section 3.2), and are its own to be trained; it answers as this one does to pictures of that size. The record's
        preprocessing follows, a margin around the crop growing with it.

        Args:
            image_size: (height, width) in pixels; one number for squares.

        Raises:
            UsageError: a size that the network cannot have.
        """
        size = (image_size, image_size) if isinstance(image_size, int) else image_size
        config: Any = replace(cast(Any, self.config), image_size=size)
        with torch.device("meta"):
            model = type(self)(config)
        state = {**self.state_dict(), **self.tables_at(config.grid)}
        model.load_state_dict({name: tensor.detach().clone() for name, tensor in state.items()}, assign=True)
        for name, parameter in self.named_parameters():
            model.get_parameter(name).requires_grad_(parameter.requires_grad)
        prepared = self.record.preprocessing
        if prepared is not None:
            prepared = _for_size(prepared, self.config.image_size, size)
        model.record = replace(self.record, preprocessing=prepared)
        return model.train(self.training)


def _for_size(preprocessing: Preprocessing, old: tuple[int, int], new: tuple[int, int]) -> Preprocessing:
    """The same preparation at another size: what is resized to and what is cut out keep their proportion."""
    before = preprocessing.input_size or old
    height, width = (max(1, round(side * to / of)) for side, of, to in zip(preprocessing.size, before, new, strict=True))
    return replace(preprocessing, size=(height, width), crop=None if preprocessing.crop is None else new)


def check_ranges(config: Any, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Refuse fields of a configuration that are no numbers, or out of their range.

    Args:
        config: a dataclass. Fields called `…_size` hold two numbers, `…_channels` any number of them, others one or None.
        ranges: least and greatest value by field; whole numbers where the least one is whole.

    Raises:
        UsageError: naming the field.
    """
    for field, (low, high) in ranges.items():
        value, pair, many = getattr(config, field), field.endswith("_size"), field.endswith("_channels")
        several = isinstance(value, tuple) and (many or (pair and len(value) == 2))
        kinds: Any = int if isinstance(low, int) else int | float
        for number in value if several else () if value is None else (value,):
            if not isinstance(number, kinds) or isinstance(number, bool) or several != (pair or many):
                kind = "whole numbers" if many else "a whole number" if kinds is int else "a number"
                raise UsageError(f"{field} must be {'two whole numbers' if pair else kind}; {value!r} came.")
            if not low <= number <= high:
                raise UsageError(f"{field} must be from {low} to {high}; {value!r} came.")
