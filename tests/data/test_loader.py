"""The endless row of pictures, its shares, and batches read from it by any number of hands."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.training.conftest import write_pictures
from vitral.data.augment.chain import Augmentation, TrainingInput
from vitral.data.loader import Batch, Order, Share, batches
from vitral.data.pictures import PictureSet
from vitral.data.splits import read_pictures
from vitral.data.transforms import Preprocessing
from vitral.errors import PictureError, UsageError


@given(count=st.integers(1, 40), seed=st.integers(0, 99), repeats=st.integers(1, 4))
def test_every_pass_shows_every_picture_as_often(count: int, seed: int, repeats: int) -> None:
    order = Order(count=count, seed=seed, repeats=repeats)
    passes = 2 * count * repeats * 2  # pairs of repeats end with a pass after every other one
    places = [order[position] for position in range(passes)]
    counted = Counter((place.turn, place.picture) for place in places)
    assert set(counted.values()) == {repeats}
    assert len({(place.turn, place.picture, place.repeat) for place in places}) == passes
    assert {place.turn for place in places} == {0, 1, 2, 3}


@given(count=st.integers(2, 40), repeats=st.integers(1, 4), pair=st.integers(0, 500))
def test_neighbours_in_a_pair_are_different_pictures_within_a_pass(count: int, repeats: int, pair: int) -> None:
    order = Order(count=count, seed=1, repeats=repeats)
    one, other = order[2 * pair], order[2 * pair + 1]
    assert one.turn != other.turn or one.picture != other.picture


def test_passes_differ_and_seeds_differ() -> None:
    def row(seed: int, turn: int) -> list[int]:
        order = Order(count=50, seed=seed)
        return [order[position].picture for position in range(50 * turn, 50 * turn + 50)]

    assert row(0, 0) == row(0, 0)
    assert len({tuple(row(seed, turn)) for seed in range(3) for turn in range(3)}) == 9


def test_the_order_is_uniform() -> None:
    """Each picture comes first about as often as any other: χ² of 9 degrees of freedom below its 99.9 % quantile, 27.9."""
    firsts = Counter(Order(count=10, seed=seed)[0].picture for seed in range(2000))
    assert sum((firsts[index] - 200) ** 2 / 200 for index in range(10)) < 27.9


@given(
    pieces=st.sampled_from([1, 2, 3]), processes=st.sampled_from([1, 2, 4]), step=st.integers(0, 9), pairs=st.integers(1, 3)
)
def test_shares_make_up_the_batch(pieces: int, processes: int, step: int, pairs: int) -> None:
    size = 2 * pairs * pieces * processes
    shares = [Share(batch_size=size, rank=rank, processes=processes, pieces=pieces) for rank in range(processes)]
    read = [position for share in shares for piece in share.positions(step) for position in piece]
    assert read == list(range(step * size, step * size + size))


def test_a_batch_that_splits_a_pair_is_refused_with_one_that_does_not() -> None:
    with pytest.raises(UsageError, match=r"batch of 50 .* Take a multiple of 8, such as 56"):
        Share(batch_size=50, processes=2, pieces=2)


# Three workers on two processors are what is to be tried.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

PREPARED = Preprocessing(size=(8, 8))
MIXED = Augmentation(crop_scale=(0.5, 1.0), rand_augment=1, erase=0.5, mixup=0.8, cutmix=1.0, repeats=2)


@pytest.fixture
def pictures(tmp_path: Path) -> PictureSet:
    return read_pictures(write_pictures(tmp_path / "set", each=5))


def flat(found: list[list[Batch]]) -> tuple[torch.Tensor, torch.Tensor]:
    pieces = [piece for step in found for piece in step]
    return torch.cat([piece.pixels for piece in pieces]), torch.cat([piece.targets for piece in pieces])


def read_all(pictures: PictureSet, share: Share, steps: range = range(4), workers: int = 0) -> list[list[Batch]]:
    prepare = TrainingInput(MIXED, PREPARED, (8, 8))
    return list(batches(pictures, prepare, share, seed=3, steps=steps, workers=workers))


def test_any_number_of_workers_pieces_and_processes_reads_the_same(pictures: PictureSet) -> None:
    pixels, targets = flat(read_all(pictures, Share(batch_size=8)))
    for workers in (1, 3):
        other = flat(read_all(pictures, Share(batch_size=8), workers=workers))
        assert torch.equal(other[0], pixels)
        assert torch.equal(other[1], targets)
    pieces = read_all(pictures, Share(batch_size=8, pieces=2))
    assert [len(step) for step in pieces] == [2, 2, 2, 2]
    assert torch.equal(flat(pieces)[0], pixels)
    ranks = [read_all(pictures, Share(batch_size=8, rank=rank, processes=2)) for rank in (0, 1)]
    joined = torch.cat([step[0].pixels for pair in zip(*ranks, strict=True) for step in pair])
    assert torch.equal(joined, pixels)


def test_beginning_in_the_middle_is_having_read_the_rest(pictures: PictureSet) -> None:
    pixels, targets = flat(read_all(pictures, Share(batch_size=6), range(7)))
    later = flat(read_all(pictures, Share(batch_size=6), range(5, 7)))
    assert torch.equal(later[0], pixels[30:])
    assert torch.equal(later[1], targets[30:])


def test_targets_are_the_classes_of_the_pictures(pictures: PictureSet) -> None:
    still = TrainingInput(Augmentation(crop="none", flip=0.0), PREPARED, (8, 8))
    order = Order(count=15, seed=3)
    ((batch,),) = batches(pictures, still, Share(batch_size=10), seed=3, steps=range(1))
    for row in range(10):
        index = order[row].picture
        assert int(batch.targets[row]) == pictures.labels[index]
        torch.testing.assert_close(batch.pixels[row], PREPARED(pictures.read(index))[0])


def test_one_whose_neighbour_is_missing_stays_pure(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "set", each=5)
    broken = root / "green/002.png"
    broken.write_bytes(b"nothing")
    pictures = read_pictures(root)
    bad = [str(name) for name in pictures.names].index("green/002.png")
    order = Order(count=15, seed=3)
    at = next(position for position in range(30) if order[position].picture == bad)
    augmentation = Augmentation(crop="none", flip=0.0, mixup=1.0)
    whole = write_pictures(tmp_path / "whole", each=5)
    for policy_set, expected in ((pictures, 29), (read_pictures(whole), 30)):
        prepare = TrainingInput(augmentation, PREPARED, (8, 8))
        steps = list(batches(policy_set, prepare, Share(batch_size=10), seed=3, steps=range(3), bad_pictures="skip"))
        pixels, targets = flat(steps)
        if expected == 29:
            left, left_targets, skipped = pixels, targets, [one for step in steps for piece in step for one in piece.skipped]
    assert "green/002.png" in skipped[0]
    assert len(skipped) == 30 - len(left)
    neighbour = at ^ 1
    row = neighbour - (neighbour > at)
    assert sorted(left_targets[row].tolist()) == [0.0, 0.0, 1.0]
    others = [position for position in range(30) if order[position].picture != bad and order[position ^ 1].picture != bad]
    rows = [position - sum(order[before].picture == bad for before in range(position)) for position in others]
    assert torch.equal(left[rows], pixels[others])
    assert torch.equal(left_targets[rows], targets[others])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_cannot_be_read_is_named(pictures: PictureSet, tmp_path: Path, workers: int) -> None:
    (tmp_path / "set/red/001.png").write_bytes(b"")
    with pytest.raises(PictureError, match=r"red/001.png"):
        read_all(pictures, Share(batch_size=6), workers=workers)


def test_a_piece_of_which_nothing_can_be_read_ends_even_a_skipping_training(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "set", each=2)
    for path in root.rglob("*.png"):
        path.write_bytes(b"")
    prepare = TrainingInput(Augmentation(), PREPARED, (8, 8))
    share = Share(batch_size=4)
    with pytest.raises(PictureError, match="No picture of its part of the batch could be read"):
        list(batches(read_pictures(root), prepare, share, seed=0, steps=range(1), bad_pictures="skip"))


def test_labels_are_whole_numbers_until_pictures_are_mixed(pictures: PictureSet) -> None:
    assert flat(read_all(pictures, Share(batch_size=8)))[1].dtype == torch.float32
    assert np.allclose(flat(read_all(pictures, Share(batch_size=8)))[1].sum(1), 1)
