"""Batches of segmented pictures: what is taught fits the pixels, and the row is the same for everybody."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.segmented import label_file, numbers, pairs, panoptic
from vitral.base.boxes import cxcywh_to_xyxy
from vitral.data.augment.example import Example
from vitral.data.loader import Order, Share
from vitral.data.object_augment import ObjectAugmentation
from vitral.data.segment_augment import SegmentAugmentation
from vitral.data.segment_loader import SegmentBatch, SegmentInput, segment_batches
from vitral.data.segments import read_segments
from vitral.data.synthetic import SegmentedScenes, SyntheticScenes
from vitral.data.transforms import Preprocessing
from vitral.errors import PictureError, UnknownNameError, UsageError

PREPROCESSING = Preprocessing(size=(32, 32), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
SCENES = SegmentedScenes(scenes=SyntheticScenes(count=5, size=(40, 56)))
STILL = ObjectAugmentation(resize="exact", flip=0.0)


def batch_of(pictures: Any, prepare: SegmentInput, size: int = 4, **options: Any) -> SegmentBatch:
    return next(segment_batches(pictures, prepare, Share(batch_size=size), seed=0, steps=range(1), **options))[0]


def equal(one: SegmentBatch, other: SegmentBatch) -> bool:
    def flat(batch: SegmentBatch) -> list[torch.Tensor | None]:
        targets = [part for told in batch.targets or () for part in told]
        return [batch.pixels, batch.mask, batch.class_map, *targets]

    return all(
        (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))
        for a, b in zip(flat(one), flat(other), strict=True)
    )


def test_a_class_map_is_that_of_the_pixels() -> None:
    prepare = SegmentInput(SegmentAugmentation(colour=0.0), PREPROCESSING, (32, 48))
    found = batch_of(SCENES, prepare)
    assert found.pixels.shape == (4, 3, 32, 48)
    assert found.class_map is not None
    assert (found.class_map.shape, found.class_map.dtype) == ((4, 32, 48), torch.int64)
    assert found.mask is None
    assert found.targets is None
    order = Order(count=5, seed=0)
    for row in range(4):  # the same by hand: the chain with the generator of the place
        place = order[row]
        scene = SCENES.scenes.scene(place.picture)
        after = prepare.chain(Example(image=scene.picture.image, class_map=scene.class_map), order.generator(place))
        np.testing.assert_array_equal(found.class_map[row], after.class_map)
        mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
        values = (torch.from_numpy(np.array(after.image)) / 255 - mean) / std
        torch.testing.assert_close(found.pixels[row].permute(1, 2, 0), values)


def test_masks_of_classes_are_the_class_map_taken_apart() -> None:
    taught = {
        kind: batch_of(SCENES, SegmentInput(SegmentAugmentation(), PREPROCESSING, (32, 32), kind))  # type: ignore[arg-type]
        for kind in ("map", "classes")
    }
    maps, masks = taught["map"].class_map, taught["classes"].targets
    assert maps is not None
    assert masks is not None
    assert torch.equal(taught["map"].pixels, taught["classes"].pixels)
    for row, told in enumerate(masks):
        assert told.labels.tolist() == [label for label in maps[row].unique().tolist() if label != 255]
        assert told.masks is not None
        for label, mask in zip(told.labels, told.masks, strict=True):
            assert torch.equal(mask, maps[row] == label)


def test_segments_follow_with_tight_boxes_and_without_crowds(tmp_path: Path) -> None:
    for augmentation in (SegmentAugmentation(), ObjectAugmentation(resize="jitter", jitter=(0.5, 2.0))):
        found = batch_of(SCENES, SegmentInput(augmentation, PREPROCESSING, (32, 48), "masks"))
        assert found.targets is not None
        assert found.class_map is None
        for row, told in enumerate(found.targets):
            own = torch.ones(32, 48, dtype=torch.bool) if found.mask is None else ~found.mask[row]
            width, height = int(own.any(0).sum()), int(own.any(1).sum())
            assert told.masks is not None
            assert told.masks.shape[1:] == found.pixels.shape[2:]
            assert (told.masks.sum(0) <= 1).all()
            for box, mask in zip(cxcywh_to_xyxy(told.boxes), told.masks, strict=True):
                rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
                edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                torch.testing.assert_close(box * torch.tensor([width, height, width, height]), torch.tensor(edges).float())
    (one,) = read_segments(panoptic(tmp_path)).sets.values()
    told = batch_of(one, SegmentInput(STILL, PREPROCESSING, (12, 16), "masks"), 1).targets
    assert told is not None
    assert told[0].labels.tolist() == [1, 2]  # a dog and grass, and no crowd of dogs
    maps = batch_of(one, SegmentInput(STILL, PREPROCESSING, (12, 16)), 1).class_map
    assert maps is not None
    np.testing.assert_array_equal(maps[0], one.class_map(0))  # type: ignore[union-attr]


def test_pictures_of_several_sizes_are_filled_up_and_ignored_there(tmp_path: Path) -> None:
    maps = {"a": numbers(0, [0, 1], (10, 20)), "b": numbers(1, [0, 1], (14, 8))}
    (one,) = read_segments(pairs(tmp_path, maps)).sets.values()
    shortest = ObjectAugmentation(resize="shortest", sides=(8,), longest=None, flip=0.0)
    found = batch_of(one, SegmentInput(shortest, PREPROCESSING), 2)
    assert found.mask is not None
    assert found.class_map is not None
    assert found.pixels.shape[2:] == (14, 16)
    assert (found.class_map[found.mask] == 255).all()
    assert (found.class_map[~found.mask] < 2).all()
    assert (found.pixels.permute(0, 2, 3, 1)[found.mask] == 0).all()


@pytest.mark.parametrize("kind", ["map", "masks"])
def test_the_row_is_the_same_for_any_workers_processes_and_start(kind: Any) -> None:
    prepare = SegmentInput(SegmentAugmentation(), PREPROCESSING, (24, 32), kind)

    def row(share: Share, workers: int = 0, steps: range = range(3)) -> list[SegmentBatch]:
        return [
            one for pieces in segment_batches(SCENES, prepare, share, seed=3, steps=steps, workers=workers) for one in pieces
        ]

    whole = row(Share(batch_size=4))
    assert all(map(equal, whole, row(Share(batch_size=4), workers=1)))
    assert equal(whole[2], row(Share(batch_size=4), steps=range(2, 3))[0])
    assert equal(pickle.loads(pickle.dumps(whole[0])), whole[0])
    parts = [row(Share(batch_size=4, rank=rank, processes=2)) for rank in range(2)]
    for step, batch in enumerate(whole):
        assert torch.equal(batch.pixels, torch.cat([part[step].pixels for part in parts]))
    assert not torch.equal(whole[0].pixels, whole[1].pixels)


def test_labels_that_do_not_fit_are_refused_or_left_out(tmp_path: Path) -> None:
    root = pairs(tmp_path, {"a": numbers(0, [0, 1]), "b": numbers(1, [0, 1])})
    label_file(root / "labels" / "a.png", numbers(0, [0, 1, 9]))
    one = read_segments(root, classes=["x", "y"]).sets["train"]
    prepare = SegmentInput(SegmentAugmentation(), PREPROCESSING, (8, 8))
    with pytest.raises(PictureError, match=r"labels/a\.png: \d+ pixels? holds? 9, which is no class"):
        batch_of(one, prepare, 2)
    with pytest.raises(PictureError, match=r"labels/a\.png"):
        batch_of(one, prepare, 2, workers=1)
    found = batch_of(one, prepare, 2, bad_pictures="skip")
    assert len(found) == 1
    assert "which is no class" in found.skipped[0]
    label_file(root / "labels" / "a.png", numbers(0, [0, 1], (12, 17)))
    with pytest.raises(PictureError, match=r"a\.jpg: It has 12 × 16 pixels .* but its labels have 12 × 17.*the same size"):
        batch_of(one, prepare, 2)
    label_file(root / "labels" / "a.png", numbers(0, [0, 1], (16, 12)))
    with pytest.raises(PictureError, match=r"its labels have 16 × 12\. Pictures are turned upright as their EXIF says"):
        batch_of(one, prepare, 2)


@pytest.mark.usefixtures("unchecked")
def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    prepare = SegmentInput(STILL, PREPROCESSING, (8, 8), "masks")
    classes = read_segments(pairs(tmp_path, {"a": numbers(0, [0, 1])})).sets["train"]
    with pytest.raises(UsageError, match="no single objects"):
        batch_of(classes, prepare, 1)
    objects = SyntheticScenes(count=2, size=(32, 32), with_masks=True)
    with pytest.raises(UsageError, match="not the class of every pixel"):
        batch_of(objects, SegmentInput(STILL, PREPROCESSING, (8, 8)), 1)
    with pytest.raises(UsageError, match="comes without masks"):
        batch_of(SyntheticScenes(count=2, size=(32, 32)), prepare, 1)
    with pytest.raises(UsageError, match="has no pictures"):
        batch_of(SyntheticScenes(count=0), prepare, 1)
    with pytest.raises(UsageError, match="needs the size"):
        SegmentInput(SegmentAugmentation(), PREPROCESSING)
    with pytest.raises(UnknownNameError, match="Did you mean 'masks'"):
        SegmentInput(STILL, PREPROCESSING, (8, 8), "mask")  # type: ignore[arg-type]
