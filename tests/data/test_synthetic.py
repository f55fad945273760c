"""Drawn scenes: labels that agree with each other and with what an independent page finds in them."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torchvision.ops import masks_to_boxes

from vitral.data.objects import ObjectSet
from vitral.data.synthetic import MATERIALS, SHAPES, SyntheticScenes
from vitral.errors import UnknownNameError, UsageError


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"overlap": 1.0, "number": (8, 12), "size": (64, 96)},
        {"number": (0, 0)},
        {"grounds": 1, "noise": 0.0, "texture": 1.0},
    ],
)
def test_all_labels_agree(options: dict[str, object]) -> None:
    scenes = SyntheticScenes(count=12, **options)  # type: ignore[arg-type]
    assert isinstance(scenes, ObjectSet)
    for index in range(len(scenes)):
        scene = scenes.scene(index)
        count = len(scene.labels)
        assert scenes.number[0] <= count <= scenes.number[1] or count < scenes.number[0] == 8
        assert scene.picture.size == scene.class_map.shape == scene.panoptic.shape == scenes.size
        assert scene.masks.sum(0).max(initial=0) <= 1  # no pixel is of two
        assert (scene.areas >= 9).all()
        np.testing.assert_array_equal(scene.areas, scene.masks.sum((1, 2)))
        if count:
            boxes = masks_to_boxes(torch.from_numpy(scene.masks)).numpy()
            np.testing.assert_array_equal(scene.boxes, boxes + np.array([0, 0, 1, 1]))  # its corners are both inside
        things = scene.class_map < len(SHAPES)
        np.testing.assert_array_equal(things, scene.masks.any(0))
        for mask, label in zip(scene.masks, scene.labels, strict=True):
            assert set(scene.class_map[mask].tolist()) == {label}
        np.testing.assert_array_equal(np.unique(scene.panoptic), np.arange(1, len(scene.segments) + 1))
        np.testing.assert_array_equal(scene.segments[:count], scene.labels)
        np.testing.assert_array_equal(scene.segments[scene.panoptic - 1], scene.class_map)
        assert scene.segments.max() < len(SHAPES) + len(MATERIALS)
        assert len(scenes.stuff) == len(MATERIALS)


def test_a_scene_is_a_function_of_seed_and_number() -> None:
    one, longer, other = SyntheticScenes(count=3), SyntheticScenes(count=9), SyntheticScenes(count=3, seed=1)
    kept = [one.scene(index) for index in (2, 0, 1)]
    again = pickle.loads(pickle.dumps(longer))
    for scene, index in zip(kept, (2, 0, 1), strict=True):
        np.testing.assert_array_equal(scene.picture.array, again.scene(index).picture.array)
        assert scene.caption == again.scene(index).caption
        assert (scene.picture.array != other.scene(index).picture.array).any()
    np.testing.assert_array_equal(one.read(-1).array, one.read(2).array)
    with pytest.raises(IndexError, match="has 3 scenes; there is none at 3"):
        one.scene(3)


def test_without_overlap_every_shape_is_whole() -> None:
    """Areas of whole shapes of circumradius r, by geometry: πr², 2r², 3√3/4 r², 3√3/2 r², π(1 - 0.55²)r²."""
    share = {"disc": np.pi, "square": 2.0, "triangle": 1.299, "hexagon": 2.598, "ring": np.pi * (1 - 0.55**2)}
    for shape, expected in share.items():
        scenes = SyntheticScenes(count=3, size=(200, 200), shapes=(shape,), number=(1, 1), overlap=0, scale=(0.6, 0.6))
        for index in range(3):
            assert scenes.scene(index).areas[0] == pytest.approx(expected * 60**2, rel=0.02)
    scenes = SyntheticScenes(count=20, overlap=0.0, number=(4, 6), rotation=0.0, shapes=("disc",), scale=(0.2, 0.2))
    for index in range(20):
        scene = scenes.scene(index)
        sides = scene.boxes[:, 2:] - scene.boxes[:, :2]
        np.testing.assert_allclose(scene.areas, np.pi / 4 * sides.prod(1), rtol=0.12)


def test_the_caption_counts() -> None:
    scenes = SyntheticScenes(count=30, number=(0, 4), shapes=("cross", "disc"))
    words = {"no": 0, "a": 1, "an": 1, "two": 2, "three": 3, "four": 4}
    for index in range(30):
        scene = scenes.scene(index)
        before, after = scene.caption.rstrip(".").rsplit(" on ", 1)
        assert after.endswith(" ground")
        parts = before.lower().replace(" and ", ", ").split(", ")
        total = sum(words[part.split()[0]] for part in parts if part != "nothing")
        assert total == len(scene.labels)


def test_annotations_are_those_of_the_scene() -> None:
    scenes = SyntheticScenes(count=4, with_masks=True)
    ids = [number for index in range(4) for number in scenes.annotations(index).ids.tolist()]
    assert len(set(ids)) == len(ids)
    found, scene = scenes.annotations(1), scenes.scene(1)
    assert found.masks is not None
    np.testing.assert_array_equal(found.masks, scene.masks)
    np.testing.assert_array_equal(found.boxes, scene.boxes)
    assert SyntheticScenes(count=4).annotations(1).masks is None
    assert scenes.size_of(0) == (128, 128)
    assert [scenes.image_id(index) for index in range(2)] == [1, 2]


@pytest.mark.parametrize(
    "options",
    [{"number": (3, 2)}, {"scale": (0.0, 0.5)}, {"overlap": 2.0}, {"noise": -1.0}, {"grounds": 3}, {"size": (8, 8)},
     {"shapes": ()}, {"shapes": ("disc", "disc")}, {"count": -1}],
)  # fmt: skip
def test_options_out_of_their_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="SyntheticScenes"):
        SyntheticScenes(**options)  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="Did you mean 'disc'"):
        SyntheticScenes(shapes=("disk",))
