"""Batches of annotated pictures, padded to a common size: a pure function of the seed, whoever reads.

Which picture stands where, and how processes and workers share the reading, is the arithmetic of `vitral.data.loader`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor
from torch.utils.data import Dataset

from vitral.base.boxes import Objects
from vitral.base.image import Picture
from vitral.base.numbers import whole_number
from vitral.data.augment.chain import fill_colour, input_of, levels_of
from vitral.data.augment.example import Chain, Example
from vitral.data.loader import Order, Place, Share, gathered, read_ahead
from vitral.data.object_augment import ObjectAugmentation
from vitral.data.object_source import out_of_picture, outside
from vitral.data.objects import Annotations, ObjectSet
from vitral.data.pictures import BadPictures
from vitral.data.transforms import Preprocessing
from vitral.errors import PictureError, UsageError

__all__ = [
    "ObjectBatch",
    "ObjectInput",
    "PackedTargets",
    "object_batches",
    "padded",
    "pinned",
    "stacked",
    "targets_of",
    "widened",
]


@dataclass(frozen=True)
class ObjectInput:
    """An annotated picture as a detector's input and targets, augmented. It travels to other processes (it can be pickled).

    Values are normalised exactly as `preprocessing` does it; how it resizes and crops is for prediction and plays no part
    here. Crowds are left out of the targets.

    Args:
        augmentation: what may happen.
        preprocessing: whose mean, std and scale are taken; one mean for a model that sees grey.
        image_size: (height, width) of the input in pixels, where the augmentation has it said (`augmentation.sized`); else
            it counts for nothing and may be None.

    Raises:
        UsageError: a size that is none, or none where one is needed.
    """

    augmentation: ObjectAugmentation
    preprocessing: Preprocessing
    image_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.image_size is not None:
            if len(self.image_size) != 2:
                raise UsageError(f"image_size of an ObjectInput must be (height, width), but is {self.image_size!r}.")
            for side in self.image_size:
                whole_number("image_size of an ObjectInput", side)
        self.augmentation.chain(self.image_size)

    @cached_property
    def chain(self) -> Chain:
        """What happens to a picture before it becomes a tensor."""
        return self.augmentation.chain(self.image_size, fill_colour(self.preprocessing))

    @cached_property
    def _levels(self) -> Float32[np.ndarray, "c 256"]:
        return levels_of(self.preprocessing)

    def __call__(
        self, picture: Picture, annotations: Annotations, rng: np.random.Generator
    ) -> tuple[Float[Tensor, "c y x"], Objects]:
        """The input and what is to be found in it: a pure function of all three; it draws from the generator.

        Raises:
            PictureError: a box reaches out of the picture.
            UsageError: the picture was read at reduced size, in which its boxes are not.
        """
        if picture.reduced:
            raise UsageError(f"{picture.name} was read at reduced size, where its boxes do not fit. Read it whole.")
        single = ~annotations.crowd
        height, width = picture.size
        limits = np.array([width, height, width, height], dtype=np.float32)
        for box, own in zip(annotations.boxes.tolist(), annotations.ids.tolist(), strict=True):
            if outside(box, picture.size):
                raise PictureError(picture.name, f"Annotation {own} does not fit. {out_of_picture(box, picture.size)}")
        boxes = annotations.boxes[single].clip(0, limits)  # files round outwards by up to a pixel
        masks = None if annotations.masks is None else annotations.masks[single]
        image = picture.image if len(self._levels) == 3 else picture.image.convert("L")
        after = self.chain(Example(image=image, boxes=boxes, masks=masks), rng)
        labels = annotations.labels[single][after.kept]
        return input_of(after.image, self._levels), targets_of(after, labels)


def targets_of(example: Example, labels: Int64[np.ndarray, " k"]) -> Objects:
    """What a model is taught about an example.

    Args:
        example: the picture with boxes, and perhaps masks.
        labels: the class of each object that it still has.
    """
    boxes = np.zeros((0, 4), dtype=np.float32) if example.boxes is None else example.boxes
    whole = np.array(example.size[::-1], dtype=np.float32)
    told = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2 / whole, (boxes[:, 2:] - boxes[:, :2]) / whole], axis=1)
    masks = None if example.masks is None else torch.from_numpy(np.ascontiguousarray(example.masks))
    return Objects(torch.from_numpy(np.array(labels, dtype=np.int64)), torch.from_numpy(told), masks)


def pinned(targets: Sequence[Objects]) -> tuple[Objects, ...]:
    """Targets in memory from which a GPU copies while it computes."""
    return tuple(
        Objects(one.labels.pin_memory(), one.boxes.pin_memory(), None if one.masks is None else one.masks.pin_memory())
        for one in targets
    )


class PackedTargets(NamedTuple):
    """Targets as a handful of tensors, however many pictures they are for: each tensor costs an open file on its way.

    Attributes:
        labels: the classes of all objects, one picture after the other.
        boxes: likewise.
        masks: likewise; None where there are none.
        counts: how many objects each picture has.
    """

    labels: Tensor
    boxes: Tensor
    masks: Tensor | None
    counts: list[int]

    @classmethod
    def of(cls, targets: Sequence[Objects]) -> PackedTargets:
        """Pack them."""
        masks = [one.masks for one in targets if one.masks is not None]
        return cls(
            torch.cat([one.labels for one in targets]) if targets else torch.zeros(0, dtype=torch.int64),
            torch.cat([one.boxes for one in targets]) if targets else torch.zeros(0, 4),
            torch.cat(masks) if len(masks) == len(targets) and masks else None,
            [len(one.labels) for one in targets],
        )

    def unpacked(self) -> tuple[Objects, ...]:
        """The targets of each picture."""
        masks = [None] * len(self.counts) if self.masks is None else self.masks.split(self.counts)
        each = zip(self.labels.split(self.counts), self.boxes.split(self.counts), masks, strict=True)
        return tuple(Objects(*one) for one in each)


@dataclass(frozen=True, eq=False)
class ObjectBatch:
    """A piece of a batch, ready for the model.

    Attributes:
        pixels: what the model takes; zero beyond a picture's own input, at the right and at the bottom.
        mask: True on that padding; None where there is none.
        targets: the objects of each picture, in [0, 1] of its own input, without padding; masks are those of `pixels`.
        skipped: sentences about pictures that could not be read and are left out.
    """

    pixels: Float[Tensor, "b c y x"]
    mask: Bool[Tensor, "b y x"] | None
    targets: tuple[Objects, ...]
    skipped: tuple[str, ...] = ()

    def pin_memory(self) -> ObjectBatch:
        """The same in memory from which a GPU copies while it computes."""
        mask = None if self.mask is None else self.mask.pin_memory()
        return ObjectBatch(self.pixels.pin_memory(), mask, pinned(self.targets), self.skipped)

    def __len__(self) -> int:
        return len(self.pixels)

    def __reduce__(self) -> tuple[Any, ...]:
        """Between processes a batch is a handful of tensors, however many pictures it has: each costs an open file."""
        return _unpacked, (self.pixels, self.mask, tuple(PackedTargets.of(self.targets)), self.skipped)


def _unpacked(pixels: Tensor, mask: Tensor | None, packed: tuple[Any, ...], skipped: tuple[str, ...]) -> ObjectBatch:
    """The batch that was taken apart for the way."""
    return ObjectBatch(pixels, mask, PackedTargets(*packed).unpacked(), skipped)


def stacked(inputs: Sequence[Float[Tensor, "c _y _x"]]) -> tuple[Float[Tensor, "b c y x"], Bool[Tensor, "b y x"] | None]:
    """Inputs of any sizes in the left top corner of the size that holds them all, zero beyond.

    Returns:
        All of them, and a mask that is True on what fills them up; None where nothing does.
    """
    sizes = [tuple(one.shape[1:]) for one in inputs]
    height, width = max(size[0] for size in sizes), max(size[1] for size in sizes)
    if all(size == (height, width) for size in sizes):
        return torch.stack(list(inputs)), None
    pixels = inputs[0].new_zeros((len(inputs), len(inputs[0]), height, width))
    mask = torch.ones((len(inputs), height, width), dtype=torch.bool)
    for row, (one, (tall, wide)) in enumerate(zip(inputs, sizes, strict=True)):
        pixels[row, :, :tall, :wide] = one
        mask[row, :tall, :wide] = False
    return pixels, mask


def widened(told: Objects, size: tuple[int, int]) -> Objects:
    """Objects of an input that is filled up to (height, width): their masks have nothing there."""
    if told.masks is None or told.masks.shape[1:] == size:
        return told
    whole = told.masks.new_zeros((len(told.masks), *size))
    whole[:, : told.masks.shape[1], : told.masks.shape[2]] = told.masks
    return told._replace(masks=whole)


def padded(samples: Sequence[tuple[Float[Tensor, "c _y _x"], Objects]], skipped: tuple[str, ...] = ()) -> ObjectBatch:
    """Inputs of any sizes as one batch, each in the left top corner of the size that holds them all.

    Args:
        samples: inputs and their objects.
        skipped: see `ObjectBatch`.
    """
    pixels, mask = stacked([one for one, _ in samples])
    size = pixels.shape[2], pixels.shape[3]
    return ObjectBatch(pixels, mask, tuple(widened(told, size) for _, told in samples), skipped)


class _Reader(Dataset["ObjectBatch | PictureError"]):
    """Positions → a batch. Travels to the workers whole."""

    def __init__(self, pictures: ObjectSet, order: Order, prepare: ObjectInput, bad_pictures: BadPictures) -> None:
        self.pictures, self.order, self.prepare, self.bad_pictures = pictures, order, prepare, bad_pictures

    def __getitem__(self, positions: range) -> ObjectBatch | PictureError:
        def read(place: Place) -> tuple[Tensor, Objects]:
            picture, annotations = self.pictures.read(place.picture), self.pictures.annotations(place.picture)
            return self.prepare(picture, annotations, self.order.generator(place))

        found = gathered(self.order, positions, read, self.bad_pictures)
        return found if isinstance(found, PictureError) else padded(found.samples, found.skipped)


def object_batches(
    pictures: ObjectSet,
    prepare: ObjectInput,
    share: Share,
    *,
    seed: int,
    steps: range,
    workers: int = 0,
    bad_pictures: BadPictures = "refuse",
    pin_memory: bool = False,
) -> Iterator[list[ObjectBatch]]:
    """The batches of some steps, each in its pieces.

    Args:
        pictures: the set; what it holds must not change meanwhile.
        prepare: from a picture to the model's input and targets.
        share: which part of each batch is wanted.
        seed: see `vitral.data.loader.Order`.
        steps: which steps; the first may be any.
        workers: processes that read ahead; 0 to read when asked. The batches are the same.
        bad_pictures: what a picture that cannot be read does.
        pin_memory: whether batches go to a GPU.

    Raises:
        UsageError: a set without pictures.
        PictureError: a picture cannot be read, and `bad_pictures` is "refuse", or none of a piece can.
    """
    if not len(pictures):
        raise UsageError(f"{pictures.name} has no pictures to make batches of.")
    reader = _Reader(pictures, Order(count=len(pictures), seed=seed), prepare, bad_pictures)
    return read_ahead(reader, share, steps=steps, workers=workers, pin_memory=pin_memory)
