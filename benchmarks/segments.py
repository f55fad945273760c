"""The pictures of the guide to segmentation: what is known of pixels, what a small network says of them, and why.

    python benchmarks/segments.py truth               # drawn scenes, by class, by object and by segment
    python benchmarks/segments.py answers run/best    # what a checkpoint of `--recipe synthetic_panoptic` says of others
    python benchmarks/segments.py reasons run/best    # and what it looked at

Each writes the picture that docs/guides/segmentation.md shows.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image
from scipy.optimize import linear_sum_assignment

import vitral
from vitral.base.image import Picture
from vitral.data.segments import PanopticSet
from vitral.data.synthetic import SegmentedScenes, SyntheticScenes
from vitral.pipelines.predictor import Predictor
from vitral.tasks.segmentation.result import Instances, Panoptic, Segment, Segmentation

__all__ = ["answers", "reasons", "truth"]

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
GAP = 8  # pixels between pictures
TIMES = 3  # as large as scenes are, what is shown of a network that sees small ones


def truth() -> Image.Image:
    """Three scenes side by side; below each the class of every pixel, then its objects, then its segments."""
    drawn = SyntheticScenes(count=40, size=(240, 360), seed=4, number=(2, 5), overlap=0.3, grounds=2, noise=0, clutter=2)
    scenes = SegmentedScenes(scenes=drawn)
    columns = []
    for place in (12, 17, 20):
        picture, there = scenes.read(place), scenes.annotations(place)
        things = np.array(scenes.things)[there.labels]
        by_class = Segmentation(picture.name, picture.size, scenes.class_map(place), scenes.classes, picture=picture)
        assert there.masks is not None
        objects = Instances(
            picture.name,
            picture.size,
            there.masks[things],
            np.ones(int(things.sum()), dtype=np.float32),
            tuple(scenes.classes[label] for label in there.labels[things]),
            there.labels[things],
            picture,
        )
        columns.append([picture.image, by_class.draw(), objects.draw(), known(scenes, place, picture).draw()])
    return sheet(list(zip(*columns, strict=True)))


def answers(checkpoint: str) -> Image.Image:
    """The first scenes of a seed that was not learned from; below each what is there, and what the network says."""
    predictor = vitral.load(checkpoint)
    scenes = unseen(predictor)
    columns = []
    for place in range(4):
        picture = enlarged(scenes.read(place))
        both = in_one_order(known(scenes, place, picture), cast(Panoptic, predictor(picture.image)))
        columns.append([picture.image, *(one.draw() for one in both)])
    return sheet(list(zip(*columns, strict=True)))


def reasons(checkpoint: str) -> Image.Image:
    """What the network looked at for the first segments of a scene, by the usual method."""
    predictor = vitral.load(checkpoint)
    found: Any = vitral.explain(predictor, enlarged(unseen(predictor).read(3)).image)
    return sheet([[one.draw() for one in found[:4]]])


def unseen(predictor: Predictor) -> SegmentedScenes:
    """Scenes as large as what the network was made for."""
    height, width = cast(Any, predictor.model).config.image_size
    return SegmentedScenes(scenes=SyntheticScenes(count=40, size=(height, width), seed=77))


def known(scenes: PanopticSet, place: int, picture: Picture) -> Panoptic:
    """What is there, segment by segment, for a picture of a whole number of times the scene's size."""
    there = scenes.annotations(place)
    assert there.masks is not None
    times = picture.size[0] // there.masks.shape[1]
    segment_map = np.zeros(there.masks.shape[1:], dtype=np.int32)
    segments = []
    for number, (mask, label, box) in enumerate(zip(there.masks, there.labels.tolist(), there.boxes, strict=True), start=1):
        segment_map[mask] = number
        left, top, right, bottom = (times * side for side in box.tolist())
        segments.append(
            Segment(
                id=number,
                index=label,
                label=scenes.classes[label],
                score=1.0,
                fused=not scenes.things[label],
                area=times * times * int(mask.sum()),
                box=(left, top, right, bottom),
            )
        )
    return Panoptic(
        picture.name, picture.size, segment_map.repeat(times, axis=0).repeat(times, axis=1), tuple(segments), picture
    )


def in_one_order(there: Panoptic, said: Panoptic) -> tuple[Panoptic, Panoptic]:
    """What is there and what was said, those that lie on each other first: a segment's place decides upon its colour."""
    masks = [[one.segment_map == segment.id for segment in one.segments] for one in (there, said)]
    shared = np.array([[(true & own).sum() / (true | own).sum() for own in masks[1]] for true in masks[0]])
    pairs = zip(*linear_sum_assignment(shared.reshape(len(masks[0]), len(masks[1])), maximize=True), strict=True)
    first = [(true, own) for true, own in pairs if shared[true, own] > 0.1]
    orders = [dict.fromkeys(column) for column in zip(*first, strict=True)] or [{}, {}]
    return tuple(  # type: ignore[return-value]
        replace(one, segments=tuple(one.segments[place] for place in order | dict.fromkeys(range(len(one.segments)))))
        for one, order in zip((there, said), orders, strict=True)
    )


def enlarged(picture: Picture, times: int = TIMES) -> Picture:
    """A picture so many times as high and as wide."""
    size = times * picture.size[0], times * picture.size[1]
    return Picture(picture.image.resize(size[::-1], Image.Resampling.BICUBIC), size, picture.name)


def sheet(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Pictures side by side, row below row, each row as high as its highest."""
    width = max(sum(image.width + GAP for image in row) for row in rows) - GAP
    height = sum(max(image.height for image in row) + GAP for row in rows) - GAP
    page, top = Image.new("RGB", (width, height), "white"), 0
    for row in rows:
        left = 0
        for image in row:
            page.paste(image, (left, top))
            left += image.width + GAP
        top += max(image.height for image in row) + GAP
    return page


def written(page: Image.Image, name: str, *, most: int = 150_000, width: int = 1100) -> Path:
    """Write a page as a JPEG of at most so many bytes."""
    page = page.resize((width, round(page.height * width / page.width)), Image.Resampling.LANCZOS)
    for quality in range(90, 30, -4):
        content = io.BytesIO()
        page.save(content, "JPEG", quality=quality, optimize=True)
        if content.tell() < most:
            break
    path = PICTURES / f"{name}.jpg"
    path.write_bytes(content.getvalue())
    return path


def main() -> None:
    """Draw what is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=("truth", "answers", "reasons"))
    parser.add_argument("checkpoint", nargs="?", help="of what is to answer; drawn scenes of 128 pixels suit it")
    given = parser.parse_args()
    if given.name == "truth":
        print(written(truth(), "segments"))
    elif given.checkpoint is None:
        parser.error("a checkpoint is needed")
    elif given.name == "answers":
        print(written(answers(given.checkpoint), "segments-answers"))
    else:
        print(written(reasons(given.checkpoint), "explain-segments"))


if __name__ == "__main__":
    main()
