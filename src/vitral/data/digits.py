"""1,797 handwritten digits that come with scikit-learn, so that a first training needs no download.

They are the test set of "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998, UCI repository,
https://doi.org/10.24432/C50P49): forms filled in by 13 writers, scanned to 32x32 bits and counted in blocks of 4x4, so
each of the 8x8 values is how many of 16 pixels carry ink.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt8

from vitral.data.pictures import Arrays, PictureSet
from vitral.errors import MissingExtraError

__all__ = ["Digits", "digit_pictures", "read_digits"]


@dataclass(frozen=True, slots=True, eq=False)
class Digits:
    """Pictures of digits and which digit each is.

    Attributes:
        pictures: grey, 0 for paper to 255 for full ink; the sixteenths of the source times 255 / 16, rounded, which
            keeps all 17 values apart.
        labels: the digit, 0 to 9.
    """

    pictures: UInt8[np.ndarray, "n 8 8"]
    labels: Int64[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.labels)


def read_digits() -> tuple[Digits, Digits]:
    """The digits to train on and the fifth held out to judge by.

    Held out is the middle one of every five pictures of a digit, in the order of the source: the same pictures on every
    machine, and each digit in the same share. The writers are not told apart in the source, so all of them may
    occur in both parts.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "demo", "read the handwritten digits that come with it") from error

    source = load_digits()
    pictures = np.rint(source.images * (255 / 16)).astype(np.uint8)
    labels = source.target.astype(np.int64)
    held_out = np.zeros(len(labels), dtype=bool)
    for digit in range(10):
        held_out[np.flatnonzero(labels == digit)[2::5]] = True
    return Digits(pictures[~held_out], labels[~held_out]), Digits(pictures[held_out], labels[held_out])


def digit_pictures() -> tuple[PictureSet, PictureSet]:
    """The two parts of `read_digits` as labelled pictures: to train on, and held out.

    They are 8x8 grey pictures in memory, light on dark as in the source, of the classes "0" to "9".

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    train, held_out = read_digits()
    return _labelled(train, "train"), _labelled(held_out, "test")


def _labelled(part: Digits, split: str) -> PictureSet:
    names = tuple(f"{split}/{number:04}" for number in range(len(part)))
    return PictureSet(
        name=f"digits/{split}",
        classes=tuple("0123456789"),
        labels=part.labels,
        places=np.arange(len(part), dtype=np.int64),
        store=Arrays("digits", names, part.pictures),
    )
