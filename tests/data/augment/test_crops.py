"""Several views of one picture: as many, as large and as different as asked."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vitral.base.chance import generator_of
from vitral.data.augment.crops import MultiCrop, dino_crops
from vitral.data.augment.example import Chain, Example
from vitral.data.augment.geometry import Flip, RandomResizedCrop
from vitral.errors import UsageError

IMAGE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (60, 80, 3), dtype=np.uint8))


def test_views_are_torchvision_sized_crops_in_order() -> None:
    crops = MultiCrop(
        global_count=2,
        local_count=3,
        global_crop=RandomResizedCrop(size=(32, 40), scale=(0.4, 1.0)),
        local_crop=RandomResizedCrop(size=(12, 10), scale=(0.05, 0.4)),
    )
    views = crops(Example(image=IMAGE), generator_of(1))
    assert [view.size for view in views] == [(32, 40)] * 2 + [(12, 10)] * 3
    assert len({np.asarray(view.image).tobytes() for view in views}) == 5


def test_each_large_view_has_its_own_chain_and_boxes_follow() -> None:
    mirror = Chain((Flip(probability=1.0),))
    whole = RandomResizedCrop(size=(60, 80), scale=(1.0, 1.0), ratio=(4 / 3, 4 / 3))
    crops = MultiCrop(local_count=0, global_crop=whole, global_chains=(Chain(), mirror))
    boxes = np.array([[10, 5, 30, 25]], dtype=np.float32)
    plain, mirrored = crops(Example(image=IMAGE, boxes=boxes), generator_of(1))
    assert np.array_equal(plain.image, IMAGE)
    assert np.array_equal(mirrored.image, IMAGE.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    assert mirrored.boxes is not None
    assert mirrored.boxes.tolist() == [[50, 5, 70, 25]]


def test_dinos_views_are_reproducible_and_differ_between_keys() -> None:
    crops = dino_crops(local_count=4, global_size=32, local_size=16)
    one, same, other = (crops(Example(image=IMAGE), generator_of(key)) for key in (1, 1, 2))
    assert [view.size for view in one] == [(32, 32)] * 2 + [(16, 16)] * 4
    assert all(np.array_equal(a.image, b.image) for a, b in zip(one, same, strict=True))
    assert not any(np.array_equal(a.image, b.image) for a, b in zip(one, other, strict=True))


def test_a_wrong_number_of_chains_is_refused() -> None:
    with pytest.raises(UsageError, match="one for each of the 2"):
        MultiCrop(global_chains=(Chain(), Chain(), Chain()))
    with pytest.raises(UsageError, match="global_count"):
        MultiCrop(global_count=0)
