"""Pictures that files list: what all sets of them have in common, whatever is known of each picture.

```
ListedPictures ── names, where, read, subset
    ├─ NumberedPictures      a JSON says the number and the size of each      COCO's objects, panoptic maps
    └─ PicturesWithLabels    each has a label file                            class maps, instance maps
```

Some of them can be set apart to judge by, chosen by their names alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

import numpy as np
from jaxtyping import Int64

from vitral.base.image import Picture, read_header, read_picture
from vitral.base.numbers import real_number
from vitral.data.object_source import Chosen, Problem, chosen_places
from vitral.data.pictures import PictureStore
from vitral.errors import UsageError

__all__ = ["ListedPictures", "NumberedPictures", "PicturesWithLabels", "rows_of", "set_apart", "with_held_out"]

_S = TypeVar("_S", bound="ListedPictures")
_P = TypeVar("_P")


@dataclass(frozen=True, kw_only=True, eq=False)
class ListedPictures:
    """Pictures that files list. It is small and can be copied into other processes: the pictures stay where they are.

    Args:
        name: what messages call the set.
        names: what each picture is called in its files.
        store: where the pictures lie, in the same order.
        problems: what was wrong in the files, and is left out.
    """

    name: str
    names: tuple[str, ...] = field(repr=False)
    store: PictureStore = field(repr=False)
    problems: tuple[Problem, ...] = field(default=(), repr=False)

    def __len__(self) -> int:
        return len(self.names)

    def where(self, index: int) -> str:
        """What messages call a picture: its path, or its archive's path and its own in there."""
        return self.store.where(self._place(index))

    def read(self, index: int, *, at_least: tuple[int, int] | None = None) -> Picture:
        """Read one picture.

        Args:
            index: which, from 0; negative from the end.
            at_least: (height, width) in pixels that are enough; see `vitral.base.image.read_picture`.

        Raises:
            IndexError: there is no such picture.
            PictureError: it is missing, damaged or too large.
        """
        place = self._place(index)
        return read_picture(self.store.source(place), name=self.store.where(place), at_least=at_least)

    def subset(self: _S, indices: Sequence[int] | np.ndarray, *, name: str | None = None) -> _S:
        """Some of the pictures with all that is known of them, in the order asked for.

        Args:
            indices: which, from 0.
            name: what messages call the new set; by default like this one.

        Raises:
            UsageError: an index that is no whole number, or for which there is no picture; or one that comes twice, where
                objects have ids of their own in the files.
        """
        return replace(self, name=name or self.name, **self._of(chosen_places(indices, self.name, len(self))))

    def _of(self, places: tuple[int, ...]) -> dict[str, Any]:
        """What a set of the pictures at some places has in its own fields."""
        return {"names": tuple(self.names[place] for place in places), "store": Chosen(self.store, places)}

    def _place(self, index: int) -> int:
        """An index counted from 0."""
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"{self.name} has {len(self):,} pictures; there is none at {index}.")
        return place


@dataclass(frozen=True, kw_only=True, eq=False)
class NumberedPictures(ListedPictures):
    """Pictures of which a list says the number, the size and what its classes are.

    Args:
        classes: the names of the classes, each once.
        categories: the number that each class has in its files.
        sizes: (height, width) of each picture as its files say it; zeros where they do not.
        image_ids: the number of each.
    """

    classes: tuple[str, ...]
    categories: tuple[int, ...]
    sizes: Int64[np.ndarray, "n 2"] = field(repr=False)
    image_ids: Int64[np.ndarray, " n"] = field(repr=False)

    def image_id(self, index: int) -> int:
        """The number of a picture in its files; counted from 1 where they have none."""
        return int(self.image_ids[self._place(index)])

    def size_of(self, index: int) -> tuple[int, int] | None:
        """(height, width) of a picture as its files say it, in pixels; None where they do not."""
        height, width = self.sizes[self._place(index)].tolist()
        return (height, width) if height else None

    def _of(self, places: tuple[int, ...]) -> dict[str, Any]:
        chosen = list(places)
        return {**super()._of(places), "sizes": self.sizes[chosen], "image_ids": self.image_ids[chosen]}


@dataclass(frozen=True, kw_only=True, eq=False)
class PicturesWithLabels(ListedPictures):
    """Pictures with a label file each.

    Args:
        labels: where the label files lie, in the order of the pictures.
    """

    labels: PictureStore = field(repr=False)

    def size_of(self, index: int) -> tuple[int, int]:
        """(height, width) of a picture's label file, in pixels, by its header alone.

        Raises:
            PictureError: it is missing, or no picture.
        """
        place = self._place(index)
        return read_header(self.labels.source(place), name=self.labels.where(place)).stored

    def _of(self, places: tuple[int, ...]) -> dict[str, Any]:
        return {**super()._of(places), "labels": Chosen(self.labels, places)}


def rows_of(
    starts: Int64[np.ndarray, " m"], places: Sequence[int]
) -> tuple[Int64[np.ndarray, " k"], Int64[np.ndarray, " p"]]:
    """The rows that some pictures have in a table of all pictures' rows.

    Args:
        starts: the first row of each picture, and behind the last picture's last one.
        places: which pictures, in the order asked for.

    Returns:
        The rows, and what `starts` is in a table of them alone.
    """
    rows = [np.arange(*starts[place : place + 2]) for place in places]
    return np.concatenate([np.zeros(0, dtype=np.int64), *rows]), np.cumsum([0, *map(len, rows)], dtype=np.int64)


def set_apart(names: Sequence[str], share: float) -> tuple[list[int], list[int]]:
    """Some of a set's pictures, chosen by their names alone: another order, or another machine, chooses the same.

    Args:
        names: what the pictures are called.
        share: how many are set apart, in parts of all; at least one and not all.

    Returns:
        The places of those to learn from, and of those set apart, each from low to high.

    Raises:
        UsageError: no share between 0 and 1, or fewer than two pictures.
    """
    part = _share(share)
    if len(names) < 2:
        raise UsageError(f"Of {len(names)} pictures none can be held out.")
    order = sorted(range(len(names)), key=lambda place: hashlib.sha256(names[place].encode("utf-8", "replace")).digest())
    apart = frozenset(order[: min(max(round(part * len(names)), 1), len(names) - 1)])
    return [place for place in range(len(names)) if place not in apart], sorted(apart)


def with_held_out(splits: _P, share: float, path: object) -> _P:
    """Splits without a val, in which a share of the training pictures becomes one; see `set_apart`.

    Args:
        splits: a dataclass of train, val and test, such as `vitral.data.objects.ObjectSplits`.
        share: how many are set apart, in parts of all.
        path: what messages call the source.

    Raises:
        UsageError: no share between 0 and 1; there is a val already; nothing is there that could be held out.
    """
    _share(share)
    there: Any = splits
    if there.val is not None:
        raise UsageError(
            f"{path} has a split val with {len(there.val):,} pictures to judge by. Leave held_out out to use it."
        )
    train = there.train
    if train is None:
        raise UsageError(f"{path} has no split train of which pictures could be held out, only {', '.join(there.sets)}.")
    if len(train) < 2 or not isinstance(train, ListedPictures):
        raise UsageError(f"{train.name} has {len(train)} pictures, of which none can be held out.")
    learned, judged = set_apart(train.names, share)
    held_out = train.subset(judged, name=f"{train.name}, held out")
    return cast(_P, replace(there, train=train.subset(learned), val=held_out))


def _share(share: float) -> float:
    """A share of pictures.

    Raises:
        UsageError: it is none.
    """
    part = real_number("held_out", share)
    if not 0 < part < 1:
        raise UsageError(f"A share to hold out must lie between 0 and 1, both excluded; {share!r} came.")
    return part
