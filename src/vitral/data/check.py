"""A look at every picture before a training does: what cannot be read, what is odd, what is there twice.

A damaged file found after three hours of training costs three hours; a picture in both splits makes a good score a lie, and
tells nobody. Everything is read once, by threads, and only facts are kept: a size, a mode, a digest of the pixels.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64
from PIL import ImageFile

from vitral.base.image import read_header
from vitral.data.look import Range, digest_of, look_at_all, range_of, same_pixels
from vitral.data.pictures import PictureSet
from vitral.data.splits import Splits, all_splits
from vitral.errors import PictureError, UsageError

__all__ = ["DataReport", "OddSize", "Sample", "Unreadable", "check"]

_TINY = 16  # pixels: one patch of most vision transformers
_THIN = 5.0  # times longer than wide: a square crop sees less than a fifth
_FAR = 4.0  # times larger or smaller than the median, in each direction


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A picture as reports name it.

    Attributes:
        split: the split it is in.
        name: where it lies, as messages call it.
        label: the name of its class.
    """

    split: str
    name: str
    label: str


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    """A picture that cannot be read.

    Attributes:
        split: the split it is in.
        name: where it lies.
        reason: a sentence that says what is wrong with it.
    """

    split: str
    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class OddSize:
    """A picture of a size unlike the others'.

    Attributes:
        split: the split it is in.
        name: where it lies.
        size: (height, width) in pixels.
        reason: "tiny": a side is shorter than 16 pixels, though the median's is not; "thin": a side is more than five
            times the other; "small" or "large": the square root of its area is more than four times off the median's.
    """

    split: str
    name: str
    size: tuple[int, int]
    reason: str


@dataclass(frozen=True, kw_only=True, eq=False)
class DataReport:
    """What a look at every picture found.

    Attributes:
        classes: the names of the classes.
        counts: for each split, how many pictures each class has, those that cannot be read among them.
        unreadable: what cannot be read.
        heights: of all that can be read; None if nothing can.
        widths: likewise.
        odd: pictures of sizes unlike the others'.
        modes: how many pictures are of each kind, the commonest first, by Pillow's names ("RGB", "L" for grey, "P" for a
            palette, "CMYK", …) and "16 bit". All are read as RGB.
        twins: groups of pictures with the same pixels within a split.
        leaks: groups of pictures with the same pixels in several splits.
        disputed: groups of pictures with the same pixels under several labels; these are among the twins or leaks too.
    """

    classes: tuple[str, ...]
    counts: dict[str, tuple[int, ...]]
    unreadable: tuple[Unreadable, ...]
    heights: Range | None
    widths: Range | None
    odd: tuple[OddSize, ...]
    modes: dict[str, int]
    twins: tuple[tuple[Sample, ...], ...]
    leaks: tuple[tuple[Sample, ...], ...]
    disputed: tuple[tuple[Sample, ...], ...]

    @property
    def total(self) -> int:
        """How many pictures there are."""
        return sum(map(sum, self.counts.values()))

    def without_pictures(self, split: str) -> tuple[str, ...]:
        """The classes that have no picture in a split."""
        return tuple(name for name, count in zip(self.classes, self.counts[split], strict=True) if not count)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain dictionaries, lists, numbers and strings, ready for JSON."""

        def groups(found: tuple[tuple[Sample, ...], ...]) -> list[list[dict[str, str]]]:
            return [[dict(vars(sample)) for sample in group] for group in found]

        return {
            "total": self.total,
            "classes": list(self.classes),
            "counts": {split: dict(zip(self.classes, counts, strict=True)) for split, counts in self.counts.items()},
            "without_pictures": {split: list(self.without_pictures(split)) for split in self.counts},
            "unreadable": [dict(vars(one)) for one in self.unreadable],
            "heights": dict(vars(self.heights)) if self.heights else None,
            "widths": dict(vars(self.widths)) if self.widths else None,
            "odd": [vars(one) | {"size": list(one.size)} for one in self.odd],
            "modes": dict(self.modes),
            "twins": groups(self.twins),
            "leaks": groups(self.leaks),
            "disputed": groups(self.disputed),
        }


@dataclass(frozen=True, slots=True)
class _Seen:
    """What is kept of a picture: its size, its mode and a digest of its pixels; or why it could not be read."""

    size: tuple[int, int] = (0, 0)
    mode: str = ""
    digest: bytes = b""
    trouble: str | None = None


def check(
    data: str | os.PathLike[str] | PictureSet | Splits | Mapping[str, PictureSet],
    *,
    workers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> DataReport:
    """Read every picture once and report.

    Args:
        data: a source (see `vitral.data.splits.all_splits`), of which every split is read; or sets of pictures.
        workers: threads that read; as many as there are processors, up to 8, unless told.
        on_progress: called with how many pictures are read and how many there are, now and then.

    Raises:
        UsageError: the source cannot be understood, the sets do not have the same classes, or `workers` is no number of
            threads.
    """
    sets = _sets(data)

    def look(split: str, index: int) -> _Seen:
        return _look(sets[split], index)

    lengths = {split: len(pictures) for split, pictures in sets.items()}
    return _report(sets, look_at_all(lengths, look, workers=workers, on_progress=on_progress))


def _sets(data: str | os.PathLike[str] | PictureSet | Splits | Mapping[str, PictureSet]) -> dict[str, PictureSet]:
    """The sets to read, by the names of their splits."""
    if isinstance(data, str | os.PathLike):
        return all_splits(data)
    if isinstance(data, Splits):
        named = {"train": data.train, "held out": data.held_out, "test": data.test}
        return {name: pictures for name, pictures in named.items() if pictures is not None}
    sets = {data.name: data} if isinstance(data, PictureSet) else dict(data)
    if not sets:
        raise UsageError("No set of pictures came. Give a folder, an archive, a manifest, or sets of pictures.")
    if len({pictures.classes for pictures in sets.values()}) > 1:
        raise UsageError(f"The sets {', '.join(sets)} do not have the same classes in the same order.")
    return sets


def _look(pictures: PictureSet, index: int) -> _Seen:
    """Read one picture and keep the facts."""
    try:
        picture = pictures.read(index)
    except PictureError as error:
        return _Seen(trouble=error.reason)
    # A picture that needed no conversion is still the decoder's own; any other is asked once more what it was.
    untouched = isinstance(picture.image, ImageFile.ImageFile)
    mode = "RGB" if untouched else read_header(pictures.store.source(int(pictures.places[index]))).mode
    return _Seen(picture.size, "16 bit" if mode.startswith("I;16") else mode, digest_of(picture))


# -- reporting --------------------------------------------------------------------------------------------------------


def _report(sets: Mapping[str, PictureSet], seen: Mapping[str, list[_Seen]]) -> DataReport:
    """What all the facts come to."""
    readable = [
        (split, index, one) for split, found in seen.items() for index, one in enumerate(found) if one.trouble is None
    ]
    sizes = np.array([one.size for _, _, one in readable], dtype=np.int64).reshape(-1, 2)
    reasons = _odd(sizes) if len(sizes) else []
    return DataReport(
        classes=next(iter(sets.values())).classes,
        counts={split: tuple(pictures.counts.tolist()) for split, pictures in sets.items()},
        unreadable=tuple(
            Unreadable(split=split, name=sets[split].where(index), reason=one.trouble)
            for split, found in seen.items()
            for index, one in enumerate(found)
            if one.trouble is not None
        ),
        heights=range_of(sizes[:, 0].tolist()),
        widths=range_of(sizes[:, 1].tolist()),
        odd=tuple(
            OddSize(split=split, name=sets[split].where(index), size=one.size, reason=reason)
            for (split, index, one), reason in zip(readable, reasons, strict=True)
            if reason
        ),
        modes=dict(Counter(one.mode for _, _, one in readable).most_common()),
        **_same(sets, seen),
    )


def _odd(sizes: Int64[np.ndarray, "n 2"]) -> list[str]:
    """What is odd about each size; "" where nothing is. See `OddSize`."""
    short, long = sizes.min(axis=1), sizes.max(axis=1)
    side = np.sqrt(sizes.prod(axis=1))
    middle = np.median(side)
    tests = {
        "tiny": (short < _TINY) & (np.median(short) >= _TINY),
        "thin": long > _THIN * short,
        "small": side * _FAR < middle,
        "large": side > _FAR * middle,
    }
    return np.select(list(tests.values()), list(tests), default="").tolist()


def _same(sets: Mapping[str, PictureSet], seen: Mapping[str, list[_Seen]]) -> dict[str, tuple[tuple[Sample, ...], ...]]:
    """The groups of pictures that have the same pixels, in the order of their first ones."""

    def sample(split: str, index: int) -> Sample:
        pictures = sets[split]
        return Sample(split=split, name=pictures.where(index), label=pictures.classes[pictures.labels[index]])

    twins, leaks, disputed = [], [], []
    for places in same_pixels({split: [one.digest for one in found] for split, found in seen.items()}):
        group = tuple(sample(split, index) for split, index in places)
        for split in dict.fromkeys(one.split for one in group):
            within = tuple(one for one in group if one.split == split)
            if len(within) > 1:
                twins.append(within)
        if len({one.split for one in group}) > 1:
            leaks.append(group)
        if len({one.label for one in group}) > 1:
            disputed.append(group)
    return {"twins": tuple(twins), "leaks": tuple(leaks), "disputed": tuple(disputed)}
