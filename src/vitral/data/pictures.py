"""Labelled pictures: a set that knows its classes, and where each picture lies; nothing is decoded before it is asked for.

```
PictureSet ── labels, classes          what a training or an evaluation needs to know
    └─ places ──> PictureStore         where the pictures lie: Files in a folder, an Archive, Arrays in memory
```

A set is small and can be copied into other processes: it holds names, labels and places, and no open picture.
`vitral.data.splits` makes sets from folders, archives and manifests.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64, UInt8

from vitral.base.image import Picture, PictureSource, read_picture
from vitral.base.numbers import as_integer
from vitral.errors import UsageError

__all__ = ["Arrays", "BadPictures", "Files", "PictureSet", "PictureStore"]

BadPictures = Literal["refuse", "skip"]
"""What a training does about a picture that cannot be read.

"refuse": it ends with the `PictureError` that names the picture and the reason. "skip": the picture is left out, and named
once; nothing else takes its place, so the others keep their order. Run `vitral data check` first, and neither is needed.
"""


@runtime_checkable
class PictureStore(Protocol):
    """Where pictures lie. It can be copied into another process and be read there, and by several threads at once."""

    @property
    def names(self) -> Sequence[str]:
        """What the pictures are called in their source: relative paths with forward slashes, the same on every machine."""
        ...

    def where(self, place: int) -> str:
        """What messages call a picture: as much of a path as finds it again."""
        ...

    def source(self, place: int) -> PictureSource:
        """What `read_picture` reads it from.

        Raises:
            PictureError: there is nothing to read from.
        """
        ...


@dataclass(frozen=True, eq=False)
class Files:
    """Pictures that are files of their own.

    Args:
        root: the folder that their names start from, as the user named it.
        names: their paths from there, with forward slashes.
    """

    root: Path
    names: Sequence[str] = field(repr=False)

    def __post_init__(self) -> None:
        # Worker processes may have gone elsewhere, so what is read is absolute; what is shown stays as it was typed.
        object.__setattr__(self, "_absolute", self.root.absolute())

    def where(self, place: int) -> str:
        """The path of a file."""
        return str(self.root / self.names[place])

    def source(self, place: int) -> Path:
        """The absolute path of a file, whether or not it is there."""
        return self._absolute / self.names[place]  # type: ignore[attr-defined]


@dataclass(frozen=True, eq=False)
class Arrays:
    """Grey pictures in memory, all of one size.

    Args:
        title: what messages call all of them together.
        names: what they are called.
        pictures: 0 is black, 255 white.
    """

    title: str
    names: Sequence[str] = field(repr=False)
    pictures: UInt8[np.ndarray, "n y x"] = field(repr=False)

    def where(self, place: int) -> str:
        """The title and the name of a picture."""
        return f"{self.title}/{self.names[place]}"

    def source(self, place: int) -> UInt8[np.ndarray, "y x"]:
        """The pixels of a picture."""
        return self.pictures[place]


@dataclass(frozen=True, kw_only=True, eq=False)
class PictureSet:
    """Pictures and the class of each.

    `len(pictures)` is their number, `pictures[3]` a picture with its label: so a set is a dataset to torch's DataLoader,
    and a stream to a Vitral pipeline.

    Args:
        name: what messages call the set.
        classes: the names of the classes, each once.
        labels: the class of each picture, a place in `classes`.
        places: the place of each picture in `store`.
        store: where the pictures lie; sets that were cut from one another share it.

    Raises:
        UsageError: a class is there twice, or a label stands for none.
    """

    name: str
    classes: tuple[str, ...]
    labels: Int64[np.ndarray, " n"]
    places: Int64[np.ndarray, " n"]
    store: PictureStore

    def __repr__(self) -> str:
        return f"<PictureSet {self.name}: {len(self):,} pictures of {len(self.classes):,} classes>"

    def __post_init__(self) -> None:
        if len(self.labels) != len(self.places):
            raise UsageError(f"{self.name} has {len(self.labels)} labels for {len(self.places)} pictures.")
        for one in self.classes:
            if any("\ud800" <= sign <= "\udfff" for sign in one):  # bytes that are no UTF-8; no file of ours could hold them
                raise UsageError(f"{self.name} has a class whose name is not valid Unicode, {one!r}. Rename its folder.")
        if len(set(self.classes)) < len(self.classes):
            twice = sorted({name for name in self.classes if self.classes.count(name) > 1})
            raise UsageError(f"{self.name} names a class twice: {', '.join(map(repr, twice[:10]))}.")
        if len(self) and not 0 <= self.labels.min() <= self.labels.max() < len(self.classes):
            raise UsageError(
                f"The labels of {self.name} lie in [{self.labels.min()}, {self.labels.max()}], but its "
                f"{len(self.classes)} classes are counted from 0."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Picture, int]:
        return self.read(index), int(self.labels[index])

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What each picture is called in its source: its path from there, the same on every machine."""
        return tuple(self.store.names[place] for place in self.places.tolist())

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the classes, the names and the labels, in their order (SHA-256, 64 hexadecimal digits).

        Two sets with one fingerprint hold the same samples under the same numbers, wherever they lie. The pixels are not
        part of it: they would have to be read.
        """
        digest = hashlib.sha256(json.dumps([self.classes, self.names]).encode())
        digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()

    @property
    def counts(self) -> Int64[np.ndarray, " c"]:
        """How many pictures each class has."""
        return np.bincount(self.labels, minlength=len(self.classes)).astype(np.int64)

    def where(self, index: int) -> str:
        """What messages call a picture: its path, or its archive's path and its own in there."""
        return self.store.where(int(self.places[index]))

    def read(self, index: int, *, at_least: tuple[int, int] | None = None) -> Picture:
        """Read one picture.

        Args:
            index: which, from 0; negative from the end.
            at_least: (height, width) in pixels that are enough; see `vitral.base.image.read_picture`.

        Raises:
            IndexError: there is no such picture.
            PictureError: it is missing, damaged or too large; the message names it and the reason.
        """
        place = int(self.places[index])
        return read_picture(self.store.source(place), name=self.store.where(place), at_least=at_least)

    def subset(self, indices: Sequence[int] | np.ndarray, *, name: str | None = None) -> PictureSet:
        """Some of the pictures, in the order asked for, with the same classes.

        Args:
            indices: which, from 0. One that comes twice is there twice.
            name: what messages call the new set; by default like this one.

        Raises:
            UsageError: an index that is no whole number, or for which there is no picture.
        """
        wanted = [as_integer(index) for index in (indices.tolist() if isinstance(indices, np.ndarray) else indices)]
        for given, whole in zip(indices, wanted, strict=True):
            if whole is None or not 0 <= whole < len(self):
                raise UsageError(f"{self.name} has pictures 0 to {len(self) - 1}; {given!r} is none of them.")
        chosen = np.array(wanted, dtype=np.int64)
        return replace(self, name=name or self.name, labels=self.labels[chosen], places=self.places[chosen])
