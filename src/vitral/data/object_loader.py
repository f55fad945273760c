"""Batches of annotated pictures, padded to a common size: a pure function of the seed, whoever reads.

Which picture stands where, and how processes and workers share the reading, is the arithmetic of `vitral.data.loader`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
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

__all__ = ["ObjectBatch", "ObjectInput", "object_batches", "padded"]


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
        return input_of(after.image, self._levels), _targets(after, labels)


def _targets(example: Example, labels: np.ndarray) -> Objects:
    """What a model is taught about an example."""
    boxes = np.zeros((0, 4), dtype=np.float32) if example.boxes is None else example.boxes
    whole = np.array(example.size[::-1], dtype=np.float32)
    told = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2 / whole, (boxes[:, 2:] - boxes[:, :2]) / whole], axis=1)
    masks = None if example.masks is None else torch.from_numpy(np.ascontiguousarray(example.masks))
    return Objects(torch.from_numpy(np.array(labels, dtype=np.int64)), torch.from_numpy(told), masks)


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
        targets = tuple(
            Objects(one.labels.pin_memory(), one.boxes.pin_memory(), None if one.masks is None else one.masks.pin_memory())
            for one in self.targets
        )
        mask = None if self.mask is None else self.mask.pin_memory()
        return ObjectBatch(self.pixels.pin_memory(), mask, targets, self.skipped)

    def __len__(self) -> int:
        return len(self.pixels)

    def __reduce__(self) -> tuple[Any, ...]:
        """Between processes a batch is a handful of tensors, however many pictures it has: each costs an open file."""
        masks = [one.masks for one in self.targets if one.masks is not None]
        return _unpacked, (
            self.pixels,
            self.mask,
            torch.cat([one.labels for one in self.targets]) if self.targets else torch.zeros(0, dtype=torch.int64),
            torch.cat([one.boxes for one in self.targets]) if self.targets else torch.zeros(0, 4),
            torch.cat(masks) if len(masks) == len(self.targets) and masks else None,
            [len(one.labels) for one in self.targets],
            self.skipped,
        )


def _unpacked(
    pixels: Tensor,
    mask: Tensor | None,
    labels: Tensor,
    boxes: Tensor,
    masks: Tensor | None,
    counts: list[int],
    skipped: tuple[str, ...],
) -> ObjectBatch:
    """The batch that was taken apart for the way."""
    pieces = [[None] * len(counts) if masks is None else masks.split(counts), labels.split(counts), boxes.split(counts)]
    targets = tuple(Objects(label, box, own) for own, label, box in zip(*pieces, strict=True))
    return ObjectBatch(pixels, mask, targets, skipped)


def padded(samples: Sequence[tuple[Float[Tensor, "c _y _x"], Objects]], skipped: tuple[str, ...] = ()) -> ObjectBatch:
    """Inputs of any sizes as one batch, each in the left top corner of the size that holds them all.

    Args:
        samples: inputs and their objects.
        skipped: see `ObjectBatch`.
    """
    sizes = [tuple(pixels.shape[1:]) for pixels, _ in samples]
    height, width = max(size[0] for size in sizes), max(size[1] for size in sizes)
    if all(size == (height, width) for size in sizes):
        return ObjectBatch(torch.stack([one for one, _ in samples]), None, tuple(told for _, told in samples), skipped)
    pixels = samples[0][0].new_zeros((len(samples), len(samples[0][0]), height, width))
    mask = torch.ones((len(samples), height, width), dtype=torch.bool)
    targets = []
    for row, ((one, told), (tall, wide)) in enumerate(zip(samples, sizes, strict=True)):
        pixels[row, :, :tall, :wide] = one
        mask[row, :tall, :wide] = False
        if told.masks is not None:
            whole = told.masks.new_zeros((len(told.masks), height, width))
            whole[:, :tall, :wide] = told.masks
            told = told._replace(masks=whole)
        targets.append(told)
    return ObjectBatch(pixels, mask, tuple(targets), skipped)


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
