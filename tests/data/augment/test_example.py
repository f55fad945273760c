"""An example holds together, and refuses what does not."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitral.data.augment.example import Chain, Example
from vitral.errors import UsageError

IMAGE = Image.new("RGB", (30, 20))  # 20 x 30
BOXES = np.array([[1, 2, 10, 12], [4, 4, 4, 9]], dtype=np.float32)
MASKS = np.zeros((2, 20, 30), dtype=bool)


def unchecked(kind: type, **fields: Any) -> None:
    """Make one as outside the tests, where no types are checked."""
    nothing = {"boxes": None, "masks": None, "class_map": None, "points": None, "kept": None, "ignore": 255}
    inspect.unwrap(kind.__init__)(object.__new__(kind), **({"image": IMAGE} | nothing | fields))  # type: ignore[misc]


def test_rows_are_numbered_where_there_are_objects() -> None:
    assert Example(image=IMAGE).kept is None
    kept = Example(image=IMAGE, boxes=BOXES, masks=MASKS).kept
    assert kept is not None
    assert kept.tolist() == [0, 1]
    kept = Example(image=IMAGE, masks=MASKS, kept=np.array([7, 3])).kept
    assert kept is not None
    assert kept.tolist() == [7, 3]


def test_size_is_height_then_width() -> None:
    assert Example(image=IMAGE).size == (20, 30)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"image": Image.new("RGBA", (30, 20))}, "RGB or L"),
        ({"boxes": np.array([[5, 2, 1, 12]], dtype=np.float32)}, "cxcywh"),
        ({"boxes": np.array([[5, 2, np.nan, 12]], dtype=np.float32)}, "finite"),
        ({"boxes": BOXES, "kept": np.array([0])}, "row per object"),
        ({"masks": np.zeros((2, 30, 20), dtype=bool)}, r"\(20, 30\)"),
        ({"class_map": np.zeros((30, 20), dtype=np.uint8)}, r"\(20, 30\)"),
        ({"class_map": np.zeros((20, 30), dtype=np.int8)}, "255, which a class_map of int8 cannot hold"),
        ({"points": np.array([[np.inf, 2]], dtype=np.float32)}, "finite"),
    ],
)
def test_what_does_not_fit_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        unchecked(Example, **fields)


def test_points_tell_whether_they_are_inside() -> None:
    points = np.array([[0, 0], [29.9, 19.9], [30, 5], [5, 20], [-0.1, 5]], dtype=np.float32)
    assert Example(image=IMAGE, points=points).points_inside.tolist() == [True, True, False, False, False]
    assert Example(image=IMAGE).points_inside.tolist() == []


def test_other_colours_keep_the_places() -> None:
    points = np.array([[1, 2]], dtype=np.float32)
    classes = np.zeros((20, 30), dtype=np.uint8)
    before = Example(image=IMAGE, boxes=BOXES, masks=MASKS, class_map=classes, points=points, ignore=9)
    after = before.with_image(Image.new("RGB", (30, 20), "red"))
    assert after.image.getpixel((0, 0)) == (255, 0, 0)
    for name in ("boxes", "masks", "class_map", "points", "kept", "ignore"):
        assert getattr(after, name) is getattr(before, name)


def test_a_chain_applies_its_steps_in_order_with_one_generator() -> None:
    seen: list[tuple[str, float]] = []

    def step(name: str) -> Any:
        def noted(example: Example, rng: np.random.Generator) -> Example:
            seen.append((name, rng.random()))
            return example

        return noted

    Chain((step("first"), step("second")))(Example(image=IMAGE), np.random.default_rng(1))
    draws = np.random.default_rng(1).random(2).tolist()
    assert seen == [("first", draws[0]), ("second", draws[1])]
