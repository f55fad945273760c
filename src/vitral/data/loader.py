"""Which picture stands where in a training, and batches of them: a pure function of the seed, whoever reads.

A training looks at one endless row of positions. Position → (picture, pass, repeat) is arithmetic over one permutation per
pass, so a training that stopped at step 420 goes on with the batch of step 421 without having read the others, and any
number of processes and workers, each reading its own positions, sees the same row:

    positions   0 1 2 3 4 5 6 7 │ 8 9 …            batch of step 0 │ of step 1, 8 to a batch
    process 0   0 1 2 3         │ 8 9 10 11
    process 1           4 5 6 7 │         12 …

Whatever happens to a picture at a position is drawn from a generator that is itself a function of (seed, pass, picture,
repeat). Batches are always full: the row runs on over the end of a pass.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int64
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vitral.base.chance import generator_of
from vitral.data.augment.chain import TrainingInput
from vitral.data.augment.mixing import mix
from vitral.data.pictures import BadPictures, PictureSet
from vitral.errors import PictureError, UsageError

__all__ = ["Batch", "Gathered", "Order", "Place", "Share", "batches", "gathered", "read_ahead"]

_T = TypeVar("_T")


class Place(NamedTuple):
    """What stands at a position.

    Attributes:
        picture: its index in the set.
        turn: which pass over the set, from 0.
        repeat: which of its appearances side by side, from 0 (repeated augmentation).
    """

    picture: int
    turn: int
    repeat: int


@dataclass(frozen=True, kw_only=True)
class Order:
    """The endless row of pictures.

    With repeats (Hoffer et al. 2020, "Augment your batch"), each picture stands `repeats` times within 2 · repeats
    positions, its neighbours in pairs (0, 1), (2, 3), … another picture of the same pass, since pairs are what gets mixed:
    a b a b a b c d c d c d for three.

    Attributes:
        count: pictures in the set.
        seed: fixes the permutations.
        repeats: appearances of each picture in a pass.
    """

    count: int
    seed: int
    repeats: int = 1

    def __getitem__(self, position: int) -> Place:
        pair, rest = divmod(position, 2 * self.repeats)
        turn, slot = divmod(2 * pair + rest % 2, self.count)
        return Place(int(_permutation(self.count, self.seed, turn)[slot]), turn, rest // 2)

    def generator(self, place: Place) -> np.random.Generator:
        """What everything that happens to a picture at a place is drawn from."""
        return generator_of(self.seed, place.turn, 1, place.picture, place.repeat)


@lru_cache(maxsize=3)  # the passes that a batch may touch
def _permutation(count: int, seed: int, turn: int) -> Int64[np.ndarray, " n"]:
    return generator_of(seed, turn, 0).permutation(count)


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which part of every batch is read here, and in which pieces.

    Attributes:
        batch_size: positions of a whole batch, over all processes.
        rank: which process this is.
        processes: how many there are.
        pieces: parts in which a process computes its share, one after the other.

    Raises:
        UsageError: a batch cannot be shared out evenly.
    """

    batch_size: int
    rank: int = 0
    processes: int = 1
    pieces: int = 1

    def __post_init__(self) -> None:
        parts = self.processes * self.pieces
        if self.batch_size % parts or (parts > 1 and self.batch_size // parts % 2):
            fitting = math.ceil(self.batch_size / (2 * parts)) * 2 * parts
            raise UsageError(
                f"A batch of {self.batch_size} cannot be shared out evenly, in pairs, over {self.processes} processes of "
                f"{self.pieces} parts each. Take a multiple of {2 * parts}, such as {fitting}."
            )

    def positions(self, step: int) -> list[range]:
        """The positions of a step that are read here, piece by piece."""
        own = self.batch_size // self.processes
        first, piece = step * self.batch_size + self.rank * own, own // self.pieces
        return [range(start, start + piece) for start in range(first, first + own, piece)]


@dataclass(frozen=True, eq=False)
class Batch:
    """A piece of a batch, ready for the model.

    Attributes:
        pixels: what the model takes.
        targets: the class of each, or the share of every class where pictures are mixed.
        skipped: sentences about pictures that could not be read and are left out.
    """

    pixels: Float[Tensor, "b c y x"]
    targets: Int[Tensor, " b"] | Float[Tensor, "b k"]
    skipped: tuple[str, ...] = ()

    def pin_memory(self) -> Batch:
        """The same in memory from which a GPU copies while it computes."""
        return Batch(self.pixels.pin_memory(), self.targets.pin_memory(), self.skipped)

    def __len__(self) -> int:
        return len(self.pixels)


# -- what all kinds of batches share --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Gathered(Generic[_T]):
    """What was read for a piece of a batch.

    Attributes:
        samples: what became of each picture.
        positions: where each stands in the row.
        skipped: sentences about pictures that could not be read and are left out.
    """

    samples: list[_T]
    positions: list[int]
    skipped: tuple[str, ...]


def gathered(
    order: Order, positions: range, read: Callable[[Place], _T], bad_pictures: BadPictures
) -> Gathered[_T] | PictureError:
    """Read what stands at some positions.

    Args:
        order: the row.
        positions: which.
        read: makes a sample of what stands at a place; it may raise a `PictureError`.
        bad_pictures: what that does.

    Returns:
        What was read; or the error that ends the reading, since an exception would lose its class on the way from a worker.
    """
    samples: list[_T] = []
    there: list[int] = []
    skipped: list[PictureError] = []
    for position in positions:
        try:
            samples.append(read(order[position]))
        except PictureError as error:
            if bad_pictures == "refuse":
                return error
            skipped.append(error)
            continue
        there.append(position)
    if not samples:
        return PictureError(skipped[0].name, f"{skipped[0].reason} No picture of its part of the batch could be read.")
    return Gathered(samples, there, tuple(map(str, skipped)))


def read_ahead(
    reader: Dataset[_T | PictureError], share: Share, *, steps: range, workers: int, pin_memory: bool
) -> Iterator[list[_T]]:
    """The batches of some steps, each in its pieces, read by any number of processes.

    Args:
        reader: positions → a piece of a batch, or the error that ends the reading. It travels to the workers whole.
        share: which part of each batch is wanted.
        steps: which steps; the first may be any.
        workers: processes that read ahead; 0 to read when asked.
        pin_memory: whether batches go to a GPU.

    Raises:
        PictureError: the one that the reader returned.
    """
    loader: DataLoader[Any] = DataLoader(
        reader,
        sampler=[piece for step in steps for piece in share.positions(step)],
        batch_size=None,
        num_workers=workers,
        worker_init_fn=_undisturbed,
        pin_memory=pin_memory,
    )
    pieces: list[_T] = []
    for one in loader:
        if isinstance(one, PictureError):
            raise one
        pieces.append(one)
        if len(pieces) == share.pieces:
            yield pieces
            pieces = []


def _undisturbed(_: int) -> None:
    """Leave it to the training what signals mean; a worker that died of one would take the last step's pictures along."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


# -- batches of labelled pictures -----------------------------------------------------------------------------------------


class _Reader(Dataset[Batch | PictureError]):
    """Positions → a batch. Travels to the workers whole."""

    def __init__(self, pictures: PictureSet, order: Order, prepare: TrainingInput, bad_pictures: BadPictures) -> None:
        self.pictures, self.order, self.prepare, self.bad_pictures = pictures, order, prepare, bad_pictures

    def __getitem__(self, positions: range) -> Batch | PictureError:
        def read(place: Place) -> Tensor:
            return self.prepare(self.pictures.read(place.picture), self.order.generator(place))

        found = gathered(self.order, positions, read, self.bad_pictures)
        if isinstance(found, PictureError):
            return found
        pixels = torch.stack(found.samples)
        targets = torch.from_numpy(self.pictures.labels[[self.order[position].picture for position in found.positions]])
        return self._mixed(pixels, targets, found.positions, found.skipped)

    def _mixed(self, pixels: Tensor, targets: Tensor, places: Sequence[int], skipped: tuple[str, ...]) -> Batch:
        """Neighbours blended, where the augmentation says so; the generator is that of the pair's position."""
        augmentation = self.prepare.augmentation
        if not augmentation.mixes:
            return Batch(pixels, targets, skipped)
        shares = F.one_hot(targets, len(self.pictures.classes)).float()
        there = set(places)
        paired = [row for row, place in enumerate(places) if place ^ 1 in there]  # one whose neighbour is missing stays pure
        generators = [generator_of(self.order.seed, places[row] // 2, 2) for row in paired[::2]]
        pixels[paired], shares[paired] = mix(pixels[paired], shares[paired], generators, augmentation)
        return Batch(pixels, shares, skipped)


def batches(
    pictures: PictureSet,
    prepare: TrainingInput,
    share: Share,
    *,
    seed: int,
    steps: range,
    workers: int = 0,
    bad_pictures: BadPictures = "refuse",
    pin_memory: bool = False,
) -> Iterator[list[Batch]]:
    """The batches of some steps, each in its pieces.

    Args:
        pictures: the set; what it holds must not change meanwhile.
        prepare: from a picture to the model's input.
        share: which part of each batch is wanted.
        seed: see `Order`.
        steps: which steps; the first may be any.
        workers: processes that read ahead; 0 to read when asked. The batches are the same.
        bad_pictures: what a picture that cannot be read does.
        pin_memory: whether batches go to a GPU.

    Raises:
        PictureError: a picture cannot be read, and `bad_pictures` is "refuse", or none of a piece can.
    """
    order = Order(count=len(pictures.labels), seed=seed, repeats=prepare.augmentation.repeats)
    reader = _Reader(pictures, order, prepare, bad_pictures)
    return read_ahead(reader, share, steps=steps, workers=workers, pin_memory=pin_memory)
