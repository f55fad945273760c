"""Batches of annotated pictures: targets in parts of each picture's own input, padding, and the same row for everybody."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.annotated import Remembered, boxed, coco
from vitral.base.boxes import cxcywh_to_xyxy
from vitral.data.loader import Order, Share
from vitral.data.object_augment import ObjectAugmentation
from vitral.data.object_loader import ObjectBatch, ObjectInput, object_batches
from vitral.data.objects import read_objects
from vitral.data.synthetic import SyntheticScenes
from vitral.data.transforms import Preprocessing
from vitral.errors import PictureError, UsageError

PREPROCESSING = Preprocessing(size=(32, 32), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
STILL = ObjectAugmentation(resize="exact", flip=0.0)
VARIED = ObjectAugmentation(sides=(40, 56, 72), longest=100, crop_sides=(64,), crop_range=(32, 60), hue=0.1)


def equal(one: ObjectBatch, other: ObjectBatch) -> bool:
    masks = (one.mask is None) == (other.mask is None) and (one.mask is None or torch.equal(one.mask, other.mask))
    return (
        masks
        and torch.equal(one.pixels, other.pixels)
        and all(
            torch.equal(a.labels, b.labels) and torch.equal(a.boxes, b.boxes)
            for a, b in zip(one.targets, other.targets, strict=True)
        )
    )


def test_targets_are_parts_of_the_input_and_crowds_are_left_out() -> None:
    one = boxed([[10, 5, 30, 25], [0, 0, 40, 30], [-0.5, 20, 10, 30.5]], [2, 1, 0], crowd=[1])
    scenes = Remembered([one], [(30, 40)], ["a", "b", "c"])
    prepare = ObjectInput(STILL, PREPROCESSING, (60, 20))
    pixels, told = prepare(scenes.read(0), one, np.random.default_rng(0))
    assert pixels.shape == (3, 60, 20)
    assert told.labels.tolist() == [2, 0]
    expected = torch.tensor([[0.5, 0.5, 0.5, 2 / 3], [0.125, 5 / 6, 0.25, 1 / 3]])
    torch.testing.assert_close(told.boxes, expected)
    whole = ObjectInput(STILL, PREPROCESSING, (30, 40))
    values = torch.from_numpy(scenes.read(0).array.copy()).permute(2, 0, 1) / 255
    mean, std = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1), torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1)
    torch.testing.assert_close(whole(scenes.read(0), one, np.random.default_rng(0))[0], (values - mean) / std)


def test_a_box_that_does_not_fit_ends_the_training() -> None:
    one = Remembered([boxed([[10, 5, 60, 25]])], [(30, 40)], ["a"])
    with pytest.raises(PictureError, match=r"set/set-0.png: Annotation 1 does not fit. .* reaches out"):
        next(object_batches(one, ObjectInput(STILL, PREPROCESSING, (8, 8)), Share(batch_size=1), seed=0, steps=range(1)))


def test_pictures_of_several_sizes_are_padded() -> None:
    sizes = [(30, 40), (44, 20), (10, 12)]
    still = ObjectAugmentation(resize="shortest", sides=(20,), longest=None, flip=0.0)
    objects = [boxed([[0, 0, width, height]], [row]) for row, (height, width) in enumerate(sizes)]
    some = Remembered(objects, sizes, ["a", "b", "c"])
    (batch,) = next(object_batches(some, ObjectInput(still, PREPROCESSING), Share(batch_size=3), seed=0, steps=range(1)))
    order = [Order(count=3, seed=0)[place].picture for place in range(3)]
    own = [[(20, 26), (44, 20), (20, 24)][index] for index in order]
    assert batch.pixels.shape == (3, 3, 44, 26)
    assert batch.mask is not None
    for row, (height, width) in enumerate(own):
        assert (~batch.mask[row]).sum() == height * width
        assert not batch.mask[row, :height, :width].any()
        assert (batch.pixels[row][:, batch.mask[row]] == 0).all()
        assert batch.targets[row].labels.tolist() == [order[row]]
        torch.testing.assert_close(batch.targets[row].boxes, torch.tensor([[0.5, 0.5, 1.0, 1.0]]))
    assert len(batch) == 3


def test_masks_follow_and_agree_with_boxes() -> None:
    scenes = SyntheticScenes(count=6, size=(48, 64), with_masks=True)
    prepare = ObjectInput(VARIED, PREPROCESSING)
    (batch,) = next(object_batches(scenes, prepare, Share(batch_size=6), seed=1, steps=range(1)))
    seen = 0
    for row, told in enumerate(batch.targets):
        own = batch.mask[row] if batch.mask is not None else torch.zeros(batch.pixels.shape[2:], dtype=torch.bool)
        width, height = int((~own).any(0).sum()), int((~own).any(1).sum())
        assert told.masks is not None
        assert told.masks.shape[1:] == batch.pixels.shape[2:]
        for box, mask in zip(cxcywh_to_xyxy(told.boxes), told.masks, strict=True):
            rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
            outline = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
            assert (box * torch.tensor([width, height, width, height]) - outline).abs().max() < 2.5
            seen += 1
    assert seen > 5
    again = pickle.loads(pickle.dumps(batch))
    assert equal(batch, again)
    assert torch.equal(again.targets[2].masks, batch.targets[2].masks)


def test_the_row_is_the_same_for_any_workers_processes_and_start() -> None:
    scenes = SyntheticScenes(count=7, size=(48, 64))
    prepare = ObjectInput(ObjectAugmentation(resize="exact", hue=0.1, iou_crop=0.5), PREPROCESSING, (32, 40))

    def row(share: Share, workers: int = 0, steps: range = range(3)) -> list[ObjectBatch]:
        return [
            one for pieces in object_batches(scenes, prepare, share, seed=3, steps=steps, workers=workers) for one in pieces
        ]

    whole = row(Share(batch_size=4))
    assert all(map(equal, whole, row(Share(batch_size=4), workers=2)))
    assert equal(whole[2], row(Share(batch_size=4), steps=range(2, 3))[0])
    parts = [row(Share(batch_size=4, rank=rank, processes=2)) for rank in range(2)]
    for step, batch in enumerate(whole):
        assert torch.equal(batch.pixels, torch.cat([part[step].pixels for part in parts]))
        assert [len(one.labels) for one in batch.targets] == [len(o.labels) for part in parts for o in part[step].targets]
    pieces = row(Share(batch_size=4, pieces=2))
    assert torch.equal(whole[0].pixels, torch.cat([one.pixels for one in pieces[:2]]))
    turns = {Order(count=7, seed=3)[place].picture for place in range(7)}
    assert turns == set(range(7))


def test_bad_pictures_are_refused_or_left_out(tmp_path: Path) -> None:
    root = coco(tmp_path)
    (root / "val2017" / "a.jpg").write_bytes(b"broken")
    pictures = read_objects(root).sets["val"]
    prepare, share = ObjectInput(STILL, PREPROCESSING, (8, 8)), Share(batch_size=2)
    with pytest.raises(PictureError, match=r"a\.jpg"):
        next(object_batches(pictures, prepare, share, seed=0, steps=range(1)))
    (batch,) = next(object_batches(pictures, prepare, share, seed=0, steps=range(1), bad_pictures="skip"))
    assert len(batch) == 1
    assert "a.jpg" in batch.skipped[0]
    assert batch.mask is None


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    prepare = ObjectInput(STILL, PREPROCESSING, (8, 8))
    with pytest.raises(UsageError, match="has no pictures"):
        object_batches(Remembered([], [], ["a"]), prepare, Share(batch_size=2), seed=0, steps=range(1))
    with pytest.raises(UsageError, match="needs the size of the input"):
        ObjectInput(STILL, PREPROCESSING)
    pictures = read_objects(coco(tmp_path)).sets["val"]
    from PIL import Image

    Image.new("RGB", (400, 300)).save(tmp_path / "big.jpg")
    from vitral.base.image import read_picture

    reduced = read_picture(tmp_path / "big.jpg", at_least=(30, 40))
    with pytest.raises(UsageError, match="read at reduced size"):
        prepare(reduced, pictures.annotations(0), np.random.default_rng(0))
