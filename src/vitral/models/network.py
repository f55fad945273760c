"""What every network of the house offers, whatever its family: one page for whoever uses a network without asking which."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, TypeVar, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitral.data.transforms import Preprocessing
from vitral.errors import UnknownNameError, UsageError
from vitral.models.output import EncoderOutput, Level, Pyramid
from vitral.models.record import Record

__all__ = [
    "Blocks",
    "MapConfig",
    "Network",
    "NetworkConfig",
    "PlainConfig",
    "backbone_of",
    "check_ranges",
    "chosen_levels",
    "quarters",
]

_N = TypeVar("_N", bound="Network")


@runtime_checkable
class NetworkConfig(Protocol):
    """What the configuration of any family tells. It is a frozen dataclass; a family adds what is its own."""

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels the network is made for; pictures of other sizes are taken too."""

    @property
    def patch_size(self) -> tuple[int, int]:
        """Height and width, in pixels, of the piece of a picture that a token, or a cell of the last map, stands for."""

    @property
    def channels(self) -> int:
        """Channels of a picture."""

    @property
    def width(self) -> int:
        """Channels of a token behind the last block."""

    @property
    def depth(self) -> int:
        """Number of blocks."""

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


class Blocks(Protocol):
    """Modules in a row: a `ModuleList`, or a tuple of what lies in several stages."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[nn.Module]: ...

    def __getitem__(self, place: int, /) -> nn.Module: ...


@dataclass(frozen=True, kw_only=True)
class PlainConfig(ABC):
    """What the configurations share of networks whose answer is the mean of tokens, all of which are places of the picture.

    Attributes:
        image_size: height and width in pixels the network is made for; pictures of other sizes are taken too.
        channels: channels of a picture.
        num_classes: classes of the classifier; 0 for none.
    """

    image_size: tuple[int, int] = (224, 224)
    channels: int = 3
    num_classes: int = 1000

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the tokens of a picture of `image_size`."""
        return self.grid_of(self.image_size)

    @abstractmethod
    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the tokens of a picture of some (height, width)."""

    @property
    def pool(self) -> str:
        """What the classifier reads: the mean of all tokens."""
        return "mean"

    @property
    def prefix(self) -> int:
        """Tokens before those of the picture: none."""
        return 0

    @property
    def prefix_names(self) -> tuple[str, ...]:
        """What the tokens before those of the picture are called: there are none."""
        return ()


@dataclass(frozen=True, kw_only=True)
class MapConfig(PlainConfig):
    """What the configurations of networks share whose answer is read from one map: hierarchies, convolutions, their kin.

    The cells of that map are the tokens of such a network, in reading order.
    """

    @property
    def stride(self) -> int:
        """Pixels from one cell of the last map to the next."""
        return 32

    @property
    def patch_size(self) -> tuple[int, int]:
        """Height and width, in pixels, of what a cell of the last map stands for; it sees beyond on all sides."""
        return self.stride, self.stride

    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the last map of a picture of some (height, width); what remains of a cell is one."""
        return -(-size[0] // self.stride), -(-size[1] // self.stride)


class Network(nn.Module, ABC):
    """A network with everything that travels with it.

    Its parts are registered in the order in which a picture passes them.

    Attributes:
        config: which one it is.
        record: how pictures are prepared for it, what its classes are called, whence it came.
        blocks: what it repeats, the first one first: transformer blocks, residual blocks, or its layers where it has none.
        beside_blocks: names of lists of parts, kept apart from the blocks, of which the i-th belongs to block i.
        backbone_name: where the network lies within it that may have learned pictures before, for those that have one.
        tasks: what it can do, by the names of `tasks.catalogue.TASKS`, the first one unless told otherwise.

    Args:
        config: which one.
    """

    config: NetworkConfig
    record: Record
    blocks: Blocks
    beside_blocks: ClassVar[tuple[str, ...]] = ()
    backbone_name: ClassVar[str] = "backbone"
    tasks: ClassVar[tuple[str, ...]] = ("image-classification", "image-feature-extraction")

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.record = Record()

    @abstractmethod
    def forward(self, pixels: Float[Tensor, "b c y x"]) -> Any:
        """What the network makes of pictures of any one size.

        Returns:
            An `EncoderOutput` of a backbone, which encodes and classifies; for others see the page of their kind.
        """

    @abstractmethod
    def reset_head(self, num_classes: int) -> None:
        """Put fresh, small random classifiers for `num_classes` classes in place of the present ones; 0 removes them."""

    def read_out(self, tokens: Float[Tensor, "b n d"], grid: tuple[int, int]) -> EncoderOutput:
        """What the tokens behind the last block come to: normed, pooled, classified.

        Raises:
            UsageError: the network does not read its answer from tokens.
        """
        raise UsageError(f"A {type(self).__name__} does not read its answer from the tokens behind its last block.")

    def read_tokens(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n c"]:
        """The logits that every token behind a block would give, were it the whole picture's.

        Raises:
            UsageError: the model has no classifier, or none that could read a single token.
        """
        raise UsageError(f"The classifier of a {type(self).__name__} cannot read one token alone.")

    @property
    def levels(self) -> tuple[Level, ...]:
        """Every place where a map can be taken for `pyramid`, in the order of the network."""
        return ()

    def pyramid(self, pixels: Float[Tensor, "b c y x"], levels: Sequence[int] | None = None) -> Pyramid:
        """Maps from within, for detection and segmentation; the classifier is not computed.

        Args:
            pixels: prepared pictures of any one size.
            levels: which, by their places in `self.levels`; None for the usual ones.

        Raises:
            UsageError: the network makes no maps, or has no such level.
        """
        raise UsageError(f"A {type(self).__name__} makes no maps of a picture that could form a pyramid.")

    def tables_at(self, grid: tuple[int, int]) -> Mapping[str, Tensor]:
        """The parameters that hang on the grid (positions, relative biases), carried to another grid, by name."""
        return {}

    def usual_preprocessing(self) -> Preprocessing | None:
        """How pictures are prepared until a training or a file says otherwise; None for channels that no picture has.

        The whole picture at the network's size in [−1, 1], as the ViT paper's code does.
        """
        if self.config.channels not in (1, 3):
            return None
        middle = (0.5,) * self.config.channels
        return Preprocessing(resize="exact", size=self.config.image_size, interpolation="bilinear", mean=middle, std=middle)

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    def depths(self) -> dict[str, int]:
        """How deep each parameter lies, by name: 0 before the first block, i + 1 in block i, depth + 1 behind the last.

        A training that lets lower layers learn more slowly asks for this (Clark et al. 2020, ELECTRA, appendix B; Bao et al.
        2022, BEiT, appendix), and so does one that freezes everything up to some depth. What stands between two blocks
        belongs to the later one; what all blocks share, as one table of relative biases, stands before the first.
        """
        places = {id(block): place for place, block in enumerate(self.blocks)}
        inside = {name: places[id(module)] for name, module in self.named_modules() if id(module) in places}
        depths: dict[str, int] = {}
        reached, waiting = 0, []  # what stands before a block waits until one comes
        for name, _ in self.named_parameters():
            parts = name.split(".")
            above = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
            place = next((inside[one] for one in above if one in inside), None)
            if parts[0] in self.beside_blocks:
                depths[name] = int(parts[1]) + 1
            elif place is None:
                waiting.append(name)
            else:
                depths.update(dict.fromkeys(waiting, place + 1 if reached else 0))
                reached, waiting = place + 1, []
                depths[name] = reached
        return depths | dict.fromkeys(waiting, self.depth + 1)

    def depth_of(self, parameter: str) -> int:
        """How deep one parameter lies; see `depths`.

        Args:
            parameter: its name, as `named_parameters` has it.

        Raises:
            UnknownNameError: no parameter is called so.
        """
        depths = self.depths()
        if parameter not in depths:
            raise UnknownNameError("parameter", parameter, depths)
        return depths[parameter]

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
    if preprocessing.longest is not None:  # the shorter side to one length, unless the longer one came to be too long
        return replace(preprocessing, size=(min(new), min(new)), longest=max(new))
    before = preprocessing.input_size or old
    height, width = (max(1, round(side * to / of)) for side, of, to in zip(preprocessing.size, before, new, strict=True))
    return replace(preprocessing, size=(height, width), crop=None if preprocessing.crop is None else new)


def backbone_of(model: nn.Module) -> tuple[str, nn.Module] | None:
    """The network within a model that may have learned pictures before, and where it lies; None where there is none."""
    name = getattr(model, "backbone_name", "backbone")
    found: Any = model
    for part in name.split("."):
        found = getattr(found, part, None)
    return (name, found) if isinstance(found, nn.Module) else None


def quarters(depth: int) -> tuple[int, ...]:
    """The blocks at which the quarters of a network end, counted from 0; all of them where there are fewer than four."""
    return tuple(sorted({max(1, depth * part // 4) - 1 for part in (1, 2, 3, 4)}))


def chosen_levels(levels: Sequence[Level], asked: Sequence[int]) -> tuple[int, ...]:
    """Some of a network's levels, by their places; negative ones count from the end.

    Raises:
        UsageError: none, one that is not there, or not from the first to the last.
    """
    count = len(levels)
    chosen = tuple(place + count if -count <= place < 0 else place for place in asked)
    if not chosen or not all(0 <= place < count for place in chosen) or list(chosen) != sorted(set(chosen)):
        raise UsageError(
            f"Levels of a pyramid are different numbers from 0 to {count - 1}, smallest first; {tuple(asked)} came."
        )
    return chosen


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
