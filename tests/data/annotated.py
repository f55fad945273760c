"""Small annotated pictures to read: in memory, and as the files of three formats written by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitral.base.image import Picture, read_picture
from vitral.data.objects import Annotations


class Remembered:
    """An `ObjectSet` of grey pictures in memory: the least that one must be able to do."""

    def __init__(
        self, objects: Sequence[Annotations], sizes: Sequence[tuple[int, int]], classes: Sequence[str], name: str = "set"
    ) -> None:
        self.objects, self.sizes, self.classes, self.name = list(objects), list(sizes), tuple(classes), name
        self.categories = tuple(3 * label + 2 for label in range(len(classes)))
        self.names = tuple(f"{name}-{index}.png" for index in range(len(objects)))

    def __len__(self) -> int:
        return len(self.objects)

    def where(self, index: int) -> str:
        return f"{self.name}/{self.names[index]}"

    def image_id(self, index: int) -> int:
        return 10 * index + 7

    def size_of(self, index: int) -> tuple[int, int] | None:
        return self.sizes[index]

    def read(self, index: int, *, at_least: tuple[int, int] | None = None) -> Picture:
        height, width = self.sizes[index]
        pixels = np.add.outer(np.arange(height), 3 * np.arange(width)).astype(np.uint8)
        return read_picture(pixels, name=self.where(index))

    def annotations(self, index: int) -> Annotations:
        return self.objects[index]


def boxed(boxes: Any, labels: Sequence[int] | None = None, *, crowd: Sequence[int] = (), first: int = 1) -> Annotations:
    """Annotations of boxes xyxy; rows in `crowd` are crowds."""
    corners = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    count = len(corners)
    sides = (corners[:, 2:] - corners[:, :2]).astype(np.float64)
    return Annotations(
        boxes=corners,
        labels=np.array(labels if labels is not None else [0] * count, dtype=np.int64),
        crowd=np.isin(np.arange(count), list(crowd)),
        areas=sides.prod(1),
        ids=np.arange(first, first + count, dtype=np.int64),
    )


def picture(path: Path, size: tuple[int, int] = (30, 40), shade: int = 90) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size[::-1], (shade, 20, 40)).save(path)


def coco(root: Path, told: Mapping[str, Any] | None = None, **changes: Any) -> Path:
    """A folder in COCO's format: two pictures, three objects, categories 5 and 18; `changes` replace lists of it."""
    whole: dict[str, Any] = {
        "images": [
            {"id": 9, "file_name": "a.jpg", "height": 30, "width": 40},
            {"id": 4, "file_name": "b.jpg", "height": 30, "width": 40},
        ],
        "annotations": [
            {"id": 1, "image_id": 4, "category_id": 18, "bbox": [1.5, 2.25, 10, 12.1], "area": 60.5, "iscrowd": 0,
             "segmentation": [[1.5, 2.25, 11.5, 2.25, 11.5, 14.35]]},
            {"id": 2, "image_id": 9, "category_id": 5, "bbox": [0, 0, 40, 30], "area": 1200, "iscrowd": 1,
             "segmentation": {"size": [30, 40], "counts": [0, 1200]}},
            {"id": 7, "image_id": 4, "category_id": 5, "bbox": [20, 10, 5, 5], "area": 25, "iscrowd": 0},
        ],
        "categories": [{"id": 18, "name": "dog"}, {"id": 5, "name": "airplane"}],
    }  # fmt: skip
    whole.update(changes)
    for name, shade in (("a.jpg", 40), ("b.jpg", 200)):
        picture(root / "val2017" / name, shade=shade)
    path = root / "annotations" / "instances_val2017.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told if told is not None else whole))
    return root


def voc_file(objects: str, size: tuple[int, int] = (30, 40), head: str = "") -> str:
    return (
        f"{head}<annotation><filename>x.jpg</filename><size><width>{size[1]}</width><height>{size[0]}</height>"
        f"<depth>3</depth></size>{objects}</annotation>"
    )


def voc_object(name: str, *box: object, difficult: int = 0) -> str:
    sides = "".join(f"<{side}>{value}</{side}>" for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{sides}</bndbox></object>"


def voc(root: Path, files: Mapping[str, str], splits: Mapping[str, str] | None = None) -> Path:
    """A folder in Pascal VOC's format: XML by the picture's stem, and lists by the split."""
    for number, (stem, content) in enumerate(files.items()):
        picture(root / "JPEGImages" / f"{stem}.jpg", shade=20 * number)
        (root / "Annotations").mkdir(exist_ok=True)
        (root / "Annotations" / f"{stem}.xml").write_text(content)
    for split, stems in (splits or {}).items():
        path = root / "ImageSets" / "Main" / f"{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(stems)
    return root


def yolo(root: Path, lines: Mapping[str, str | None], page: str | None = "names: [cat, dog]\ntrain: images/train\n") -> Path:
    """A folder in YOLO's format: lines by the picture's path below images/; None for no file."""
    for number, (name, content) in enumerate(lines.items()):
        picture(root / "images" / name, shade=20 * number)
        path = (root / "labels" / name).with_suffix(".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is not None:
            path.write_text(content)
    if page is not None:
        (root / "data.yaml").write_text(page)
    return root
