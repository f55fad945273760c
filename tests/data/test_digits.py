"""The handwritten digits against scikit-learn's own reading and the counts published with the set."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from vitral.data.digits import read_digits
from vitral.errors import MissingExtraError

# optdigits.names of the UCI repository, "Class Distribution", test set.
PUBLISHED_COUNTS = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_every_published_digit_is_in_exactly_one_part() -> None:
    sklearn = pytest.importorskip("sklearn.datasets")
    source = sklearn.load_digits()
    train, held_out = read_digits()
    pictures = np.concatenate([train.pictures, held_out.pictures])
    labels = np.concatenate([train.labels, held_out.labels])

    assert np.bincount(labels).tolist() == PUBLISHED_COUNTS
    ours = sorted(zip((pictures / 255 * 16).round().astype(int).reshape(-1, 64).tolist(), labels, strict=True))
    theirs = sorted(zip(source.images.astype(int).reshape(-1, 64).tolist(), source.target, strict=True))
    assert ours == theirs


def test_pictures_are_bytes_from_paper_to_full_ink() -> None:
    for part in read_digits():
        assert part.pictures.dtype == np.uint8
        assert part.labels.dtype == np.int64
        assert part.pictures.shape == (len(part), 8, 8)
        assert (part.pictures.min(), part.pictures.max()) == (0, 255)
        assert len(np.unique(part.pictures)) == 17


def test_a_fifth_of_every_digit_is_held_out() -> None:
    _, held_out = read_digits()
    for count, held in zip(PUBLISHED_COUNTS, np.bincount(held_out.labels), strict=True):
        assert held == round(count / 5)


def test_the_split_is_the_same_every_time() -> None:
    for first, second in zip(read_digits(), read_digits(), strict=True):
        assert np.array_equal(first.pictures, second.pictures)
        assert np.array_equal(first.labels, second.labels)


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r"vitral\[demo\]"):
        read_digits()
