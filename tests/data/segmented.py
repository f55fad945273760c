"""Small segmented pictures to read, written by hand in the layouts that people publish."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def photo(path: Path, size: tuple[int, int] = (12, 16), seed: int = 0) -> None:
    """A picture of noise, as PNG or JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def numbers(seed: int, values: Sequence[int], size: tuple[int, int] = (12, 16)) -> np.ndarray:
    """A map in which every value has a pixel."""
    rng = np.random.default_rng(seed)
    found = rng.choice(np.array(values), size)
    found.reshape(-1)[: len(values)] = values
    return found


def label_file(path: Path, values: np.ndarray, mode: str = "L") -> None:
    """A label file: grey, with a palette, of 16 bits, or in colours where the values are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if mode == "P":
        image = Image.fromarray(values.astype(np.uint8)).convert("L")
        image = Image.frombytes("P", image.size, image.tobytes())
        image.putpalette([(7 * place) % 256 for place in range(768)])
    elif mode == "16":
        image = Image.fromarray(values.astype(np.uint16))
    else:
        image = Image.fromarray(values.astype(np.uint8))
    image.save(path)


def pairs(root: Path, maps: Mapping[str, np.ndarray], pictures: str = "images", labels: str = "labels") -> Path:
    """Pictures and grey label files of the same stems; a stem may have folders."""
    for seed, (stem, values) in enumerate(maps.items()):
        photo(root / pictures / f"{stem}.jpg", values.shape[:2], seed)
        label_file(root / labels / f"{stem}.png", values)
    return root


def panoptic(root: Path, **changes: Any) -> Path:
    """COCO's panoptic form: a picture of two dogs (one a crowd) on grass, with void; `changes` replace lists of the JSON."""
    ids = np.zeros((12, 16), dtype=np.int64)
    ids[:, 8:] = 70_000  # grass
    ids[2:6, 2:6] = 300  # a dog
    ids[8:, 1:4] = 5  # a crowd of dogs
    told: dict[str, Any] = {
        "images": [{"id": 42, "file_name": "a.jpg", "height": 12, "width": 16}],
        "annotations": [
            {
                "image_id": 42,
                "file_name": "a.png",
                "segments_info": [
                    {"id": 300, "category_id": 18, "iscrowd": 0, "area": 16, "bbox": [2, 2, 4, 4]},
                    {"id": 5, "category_id": 18, "iscrowd": 1, "area": 12, "bbox": [1, 8, 3, 4]},
                    {"id": 70_000, "category_id": 193, "iscrowd": 0, "area": 96, "bbox": [8, 0, 8, 12]},
                ],
            }
        ],
        "categories": [
            {"id": 193, "name": "grass", "isthing": 0},
            {"id": 18, "name": "dog", "isthing": 1},
            {"id": 1, "name": "person", "isthing": 1},
        ],
    } | changes
    photo(root / "val2017" / "a.jpg")
    coloured = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1)
    label_file(root / "annotations" / "panoptic_val2017" / "a.png", coloured)
    (root / "annotations" / "panoptic_val2017.json").write_text(json.dumps(told))
    return root
