"""A look at every picture before a training does: what cannot be read, what is odd, what is there twice.

A damaged file found after three hours of training costs three hours; a picture in both splits makes a good score a lie, and
tells nobody. Everything is read once, by threads, and only facts are kept: a size, a mode, a digest of the pixels.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from PIL import Image, ImageFile

from vitral.base.device import default_workers
from vitral.base.image import PictureSource
from vitral.base.numbers import whole_number
from vitral.data.pictures import PictureSet
from vitral.data.splits import Splits, all_splits
from vitral.errors import PictureError, UsageError

__all__ = ["DataReport", "OddSize", "Range", "Sample", "Unreadable", "check"]

_TINY = 16  # pixels: one patch of most vision transformers
_THIN = 5.0  # times longer than wide: a square crop sees less than a fifth
_FAR = 4.0  # times larger or smaller than the median, in each direction
_TOGETHER = 32  # pictures that a thread reads before it reports
_AHEAD = 4  # such bundles that wait for each thread


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


@dataclass(frozen=True, kw_only=True)
class Range:
    """The least, the middle and the greatest of some lengths, in pixels."""

    least: int
    median: float
    most: int


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
    threads = default_workers() if workers is None else whole_number("workers", workers)
    sets = _sets(data)
    total = sum(map(len, sets.values()))
    seen: dict[str, list[_Seen]] = {split: [_Seen()] * len(pictures) for split, pictures in sets.items()}
    done = 0
    for split, begin, found in _read(sets, threads):
        seen[split][begin : begin + len(found)] = found
        done += len(found)
        if on_progress is not None:
            on_progress(done, total)
    return _report(sets, seen)


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


# -- reading ----------------------------------------------------------------------------------------------------------


def _read(sets: Mapping[str, PictureSet], threads: int) -> Iterator[tuple[str, int, list[_Seen]]]:
    """Facts about all pictures, in bundles, as they come: the split, the first one's index, and the facts."""
    bundles = ((split, begin) for split, pictures in sets.items() for begin in range(0, len(pictures), _TOGETHER))

    def work(split: str, begin: int) -> tuple[str, int, list[_Seen]]:
        pictures = sets[split]
        return split, begin, [_look(pictures, index) for index in range(begin, min(begin + _TOGETHER, len(pictures)))]

    with ThreadPoolExecutor(threads, thread_name_prefix="vitral-check") as pool:
        waiting: set[Future[tuple[str, int, list[_Seen]]]] = set()
        try:
            for split, begin in bundles:
                waiting.add(pool.submit(work, split, begin))
                if len(waiting) >= threads * _AHEAD:
                    ready, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in ready)
            while waiting:
                ready, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in ready)
        finally:
            for future in waiting:
                future.cancel()


def _look(pictures: PictureSet, index: int) -> _Seen:
    """Read one picture and keep the facts."""
    try:
        picture = pictures.read(index)
    except PictureError as error:
        return _Seen(trouble=error.reason)
    # A picture that needed no conversion is still the decoder's own; any other is asked once more what it was.
    untouched = isinstance(picture.image, ImageFile.ImageFile)
    mode = "RGB" if untouched else _mode(pictures.store.source(int(pictures.places[index])))
    digest = hashlib.sha256(f"{picture.size}".encode())
    digest.update(np.ascontiguousarray(picture.array).data)
    return _Seen(picture.size, mode, digest.digest())


def _mode(source: PictureSource) -> str:
    """The mode in which a picture is stored, by its header alone."""
    if isinstance(source, np.ndarray):
        return "L"
    with Path(source).open("rb") if isinstance(source, str | Path) else io.BytesIO(source) as file:  # type: ignore[arg-type]
        begin = file.read(16)
        file.seek(0)
        for kind in Image.ID:  # not Image.open, which warns of large pictures through filters that threads share
            decoder, accepts = Image.OPEN[kind]
            if accepts is not None and accepts(begin) is True:
                mode = decoder(file, "").mode
                return "16 bit" if mode.startswith("I;16") else mode
    return "unknown"


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
        heights=_range(sizes[:, 0]),
        widths=_range(sizes[:, 1]),
        odd=tuple(
            OddSize(split=split, name=sets[split].where(index), size=one.size, reason=reason)
            for (split, index, one), reason in zip(readable, reasons, strict=True)
            if reason
        ),
        modes=dict(Counter(one.mode for _, _, one in readable).most_common()),
        **_same(sets, readable),
    )


def _range(lengths: Int64[np.ndarray, " n"]) -> Range | None:
    if not len(lengths):
        return None
    return Range(least=int(lengths.min()), median=float(np.median(lengths)), most=int(lengths.max()))


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


def _same(
    sets: Mapping[str, PictureSet], readable: Iterable[tuple[str, int, _Seen]]
) -> dict[str, tuple[tuple[Sample, ...], ...]]:
    """The groups of pictures that have the same pixels, in the order of their first ones."""
    by_digest: dict[bytes, list[tuple[str, int]]] = {}
    for split, index, one in readable:
        by_digest.setdefault(one.digest, []).append((split, index))

    def sample(split: str, index: int) -> Sample:
        pictures = sets[split]
        return Sample(split=split, name=pictures.where(index), label=pictures.classes[pictures.labels[index]])

    twins, leaks, disputed = [], [], []
    for places in by_digest.values():
        if len(places) < 2:
            continue
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
