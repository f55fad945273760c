"""Batches of segmented pictures, for networks of either kind: a pure function of the seed, whoever reads.

Networks of maps are taught the class of every pixel, networks of masks the pixels of every object, segment or class. Which
picture stands where, and how processes and workers share the reading, is the arithmetic of `vitral.data.loader`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64, Integer
from torch import Tensor
from torch.utils.data import Dataset

from vitral.base.boxes import Objects
from vitral.base.image import Picture
from vitral.base.masks import boxes_of
from vitral.base.numbers import whole_number
from vitral.data.augment.chain import fill_colour, input_of, levels_of
from vitral.data.augment.example import Chain, Example
from vitral.data.label_files import other_size
from vitral.data.loader import Order, Place, Share, gathered, read_ahead
from vitral.data.object_augment import ObjectAugmentation
from vitral.data.object_loader import PackedTargets, pinned, stacked, targets_of, widened
from vitral.data.objects import Annotations, ObjectSet
from vitral.data.pictures import BadPictures
from vitral.data.segment_augment import SegmentAugmentation
from vitral.data.segments import ClassMapSet, SegmentSet
from vitral.data.transforms import Preprocessing
from vitral.errors import PictureError, UnknownNameError, UsageError

__all__ = ["SegmentBatch", "SegmentInput", "SegmentSample", "SegmentTargets", "segment_batches"]

SegmentTargets = Literal["map", "masks", "classes"]
"""What a network is taught of a picture.

"map": the class of every pixel. "masks": a mask for each object or segment. "classes": a mask for each class that is there,
as MaskFormer learns classes of pixels (Cheng et al. 2021, sec. 3.3).
"""


class SegmentSample(NamedTuple):
    """What becomes of one picture.

    Attributes:
        pixels: the network's input.
        class_map: the class of every pixel of it, where that is taught.
        targets: objects, segments or classes with their masks, where those are.
    """

    pixels: Float[Tensor, "c y x"]
    class_map: Int64[Tensor, "y x"] | None
    targets: Objects | None


@dataclass(frozen=True)
class SegmentInput:
    """A segmented picture as a network's input and what it is taught, augmented. It travels to other processes.

    Values are normalised exactly as `preprocessing` does it; how it resizes and crops is for prediction and plays no part
    here. Crowds are left out of objects, and stay in class maps.

    Args:
        augmentation: what may happen.
        preprocessing: whose mean, std and scale are taken; one mean for a model that sees grey.
        image_size: (height, width) of the input in pixels, where the augmentation has it said (`augmentation.sized`); else
            it counts for nothing and may be None.
        targets: what is taught.

    Raises:
        UnknownNameError: no such targets.
        UsageError: a size that is none, or none where one is needed.
    """

    augmentation: SegmentAugmentation | ObjectAugmentation
    preprocessing: Preprocessing
    image_size: tuple[int, int] | None = None
    targets: SegmentTargets = "map"

    def __post_init__(self) -> None:
        if self.targets not in get_args(SegmentTargets):
            raise UnknownNameError("targets of a SegmentInput", self.targets, get_args(SegmentTargets))
        if self.image_size is not None:
            if len(self.image_size) != 2:
                raise UsageError(f"image_size of a SegmentInput must be (height, width), but is {self.image_size!r}.")
            for side in self.image_size:
                whole_number("image_size of a SegmentInput", side)
        self.augmentation.chain(self.image_size)

    @cached_property
    def chain(self) -> Chain:
        """What happens to a picture before it becomes a tensor."""
        return self.augmentation.chain(self.image_size, fill_colour(self.preprocessing))

    @cached_property
    def _levels(self) -> Float32[np.ndarray, "c 256"]:
        return levels_of(self.preprocessing)

    def check(self, pictures: SegmentSet) -> None:
        """Refuse a set that does not know what is to be taught.

        Raises:
            UsageError: it knows no classes of pixels, or no masks.
        """
        if self.targets != "masks" and not isinstance(pictures, ClassMapSet):
            raise UsageError(
                f"{pictures.name} knows objects and not the class of every pixel. Teach it masks: targets='masks'."
            )
        if self.targets == "masks" and not isinstance(pictures, ObjectSet):
            raise UsageError(
                f"{pictures.name} knows the class of every pixel and no single objects. Teach it a mask for each class: "
                "targets='classes'; or its class map: targets='map'."
            )

    def read(self, pictures: SegmentSet, index: int, rng: np.random.Generator) -> SegmentSample:
        """One picture of a set as the network's input, with what it is taught.

        Raises:
            PictureError: the picture or its labels are missing or damaged, or do not fit each other.
            UsageError: the set has no masks.
        """
        picture = pictures.read(index)
        annotations = class_map = None
        if self.targets == "masks" and isinstance(pictures, ObjectSet):
            annotations = pictures.annotations(index)
            if annotations.masks is None:
                raise UsageError(f"{pictures.name} comes without masks. Read it with `read_segments`, or with_masks=True.")
        if isinstance(pictures, ClassMapSet) and (annotations is None or isinstance(self.augmentation, SegmentAugmentation)):
            class_map = pictures.class_map(index)  # beside masks it is only for choosing a window
        ignore = pictures.ignore if isinstance(pictures, ClassMapSet) else 255
        return self(picture, rng, class_map=class_map, annotations=annotations, ignore=ignore)

    def __call__(
        self,
        picture: Picture,
        rng: np.random.Generator,
        *,
        class_map: Integer[np.ndarray, "y x"] | None = None,
        annotations: Annotations | None = None,
        ignore: int = 255,
    ) -> SegmentSample:
        """The input and what is taught of it: a pure function of all; it draws from the generator.

        Args:
            picture: the picture, read whole.
            rng: what chance is drawn from.
            class_map: the class of every pixel of it.
            annotations: its objects or segments, with masks.
            ignore: what the class map holds where nothing is known.

        Raises:
            PictureError: map or masks are of another size than the picture.
            UsageError: the picture was read at reduced size.
        """
        if picture.reduced:
            raise UsageError(f"{picture.name} was read at reduced size, where its labels do not fit. Read it whole.")
        for known in (class_map, None if annotations is None else annotations.masks):
            if known is not None and known.shape[-2:] != picture.size:
                raise PictureError(picture.name, other_size(picture.size, known.shape[-2:]))
        image = picture.image if len(self._levels) == 3 else picture.image.convert("L")
        example = Example(image=image, class_map=class_map, ignore=ignore)
        labels = np.zeros(0, dtype=np.int64)
        if annotations is not None:
            single = ~annotations.crowd
            masks = None if annotations.masks is None else annotations.masks[single]
            height, width = picture.size
            limits = np.array([width, height, width, height], dtype=np.float32)
            labels = annotations.labels[single]
            example = replace(example, boxes=annotations.boxes[single].clip(0, limits), masks=masks)
        after = self.chain(example, rng)
        pixels = input_of(after.image, self._levels)
        if self.targets == "map":
            return SegmentSample(pixels, _map_of(after), None)
        if self.targets == "masks":
            return SegmentSample(pixels, None, _objects(after, labels))
        return SegmentSample(pixels, None, _classes(after))


def _map_of(example: Example) -> Int64[Tensor, "y x"]:
    """The class of every pixel, as torch's losses take it."""
    if example.class_map is None:
        raise UsageError("A class map is to be taught, but none came with the picture.")
    return torch.from_numpy(example.class_map.astype(np.int64))


def _objects(example: Example, labels: Int64[np.ndarray, " k"]) -> Objects:
    """What is left of the objects; their boxes are the tightest around the pixels that are."""
    if example.masks is None or example.kept is None:
        raise UsageError("Masks are to be taught, but none came with the picture.")
    stays = example.masks.any(axis=(1, 2))
    return _masked(example, example.masks[stays], labels[example.kept[stays]])


def _classes(example: Example) -> Objects:
    """A mask for each class that is there."""
    if example.class_map is None:
        raise UsageError("Masks of classes are to be taught, but no class map came with the picture.")
    there = np.unique(example.class_map)
    there = there[there != example.ignore]
    return _masked(example, example.class_map == there[:, None, None], there.astype(np.int64))


def _masked(example: Example, masks: Bool[np.ndarray, "k y x"], labels: Int64[np.ndarray, " k"]) -> Objects:
    return targets_of(Example(image=example.image, boxes=boxes_of(masks), masks=masks), labels)


@dataclass(frozen=True, eq=False)
class SegmentBatch:
    """A piece of a batch, ready for the network.

    Attributes:
        pixels: what the network takes; zero beyond a picture's own input, at the right and at the bottom.
        mask: True on that padding; None where there is none.
        class_map: the class of every pixel, ignored on the padding; None where masks are taught.
        targets: what each picture shows, boxes in [0, 1] of its own input and masks of all of `pixels`; None where a map is
            taught.
        skipped: sentences about pictures that could not be read and are left out.
    """

    pixels: Float[Tensor, "b c y x"]
    mask: Bool[Tensor, "b y x"] | None
    class_map: Int64[Tensor, "b y x"] | None
    targets: tuple[Objects, ...] | None
    skipped: tuple[str, ...] = ()

    def pin_memory(self) -> SegmentBatch:
        """The same in memory from which a GPU copies while it computes."""
        mask, class_map = (None if one is None else one.pin_memory() for one in (self.mask, self.class_map))
        targets = None if self.targets is None else pinned(self.targets)
        return SegmentBatch(self.pixels.pin_memory(), mask, class_map, targets, self.skipped)

    def __len__(self) -> int:
        return len(self.pixels)

    def __reduce__(self) -> tuple[Any, ...]:
        """Between processes a batch is a handful of tensors, however many pictures it has: each costs an open file."""
        packed = None if self.targets is None else tuple(PackedTargets.of(self.targets))
        return _unpacked, (self.pixels, self.mask, self.class_map, packed, self.skipped)


def _unpacked(
    pixels: Tensor,
    mask: Tensor | None,
    class_map: Tensor | None,
    packed: tuple[Any, ...] | None,
    skipped: tuple[str, ...],
) -> SegmentBatch:
    """The batch that was taken apart for the way."""
    return SegmentBatch(pixels, mask, class_map, None if packed is None else PackedTargets(*packed).unpacked(), skipped)


def _filled_up(samples: Sequence[SegmentSample], ignore: int, skipped: tuple[str, ...]) -> SegmentBatch:
    """Samples of any sizes as one batch."""
    pixels, mask = stacked([one.pixels for one in samples])
    size = pixels.shape[2], pixels.shape[3]
    if samples[0].targets is not None:
        targets = tuple(widened(one.targets, size) for one in samples if one.targets is not None)
        return SegmentBatch(pixels, mask, None, targets, skipped)
    class_map = torch.full((len(samples), *size), ignore, dtype=torch.int64)
    for row, one in enumerate(samples):
        if one.class_map is not None:
            class_map[row, : one.class_map.shape[0], : one.class_map.shape[1]] = one.class_map
    return SegmentBatch(pixels, mask, class_map, None, skipped)


class _Reader(Dataset["SegmentBatch | PictureError"]):
    """Positions → a batch. Travels to the workers whole."""

    def __init__(self, pictures: SegmentSet, order: Order, prepare: SegmentInput, bad_pictures: BadPictures) -> None:
        self.pictures, self.order, self.prepare, self.bad_pictures = pictures, order, prepare, bad_pictures

    def __getitem__(self, positions: range) -> SegmentBatch | PictureError:
        def read(place: Place) -> SegmentSample:
            return self.prepare.read(self.pictures, place.picture, self.order.generator(place))

        found = gathered(self.order, positions, read, self.bad_pictures)
        if isinstance(found, PictureError):
            return found
        return _filled_up(found.samples, getattr(self.pictures, "ignore", 255), found.skipped)


def segment_batches(
    pictures: SegmentSet,
    prepare: SegmentInput,
    share: Share,
    *,
    seed: int,
    steps: range,
    workers: int = 0,
    bad_pictures: BadPictures = "refuse",
    pin_memory: bool = False,
) -> Iterator[list[SegmentBatch]]:
    """The batches of some steps, each in its pieces.

    Args:
        pictures: the set; what it holds must not change meanwhile.
        prepare: from a picture to the network's input and what it is taught.
        share: which part of each batch is wanted.
        seed: see `vitral.data.loader.Order`.
        steps: which steps; the first may be any.
        workers: processes that read ahead; 0 to read when asked. The batches are the same.
        bad_pictures: what a picture does that cannot be read, or whose labels cannot be understood.
        pin_memory: whether batches go to a GPU.

    Raises:
        UsageError: a set without pictures, or one that does not know what is to be taught.
        PictureError: a picture cannot be read, or its labels say what is no class, and `bad_pictures` is "refuse"; or none
            of a piece can.
    """
    if not len(pictures):
        raise UsageError(f"{pictures.name} has no pictures to make batches of.")
    prepare.check(pictures)
    reader = _Reader(pictures, Order(count=len(pictures), seed=seed), prepare, bad_pictures)
    return read_ahead(reader, share, steps=steps, workers=workers, pin_memory=pin_memory)
