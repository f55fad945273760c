"""`pipeline("object-detection")` beside transformers' pipeline, from one folder on disk to labels, scores and boxes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers as hf
from PIL import Image

import vitral
from tests.models.harness import stirred

LABELS = {0: "N/A", 1: "person", 2: "cat", 3: "dog"}
BACKBONE = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "out_features": ["stage2"]}
SIZE = {"shortest_edge": 48, "longest_edge": 80}


def detr() -> tuple[Any, Any]:
    config = hf.DetrConfig(
        use_timm_backbone=False,
        backbone_config=hf.ResNetConfig(**BACKBONE),
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        num_queries=12,
        id2label=LABELS,
    )
    return hf.DetrForObjectDetection(config), hf.DetrImageProcessor(size=SIZE)


def yolos() -> tuple[Any, Any]:
    config = hf.YolosConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=[64, 80],
        num_detection_tokens=12,
        use_mid_position_embeddings=False,
        id2label=LABELS,
    )
    return hf.YolosForObjectDetection(config), hf.YolosImageProcessor(size=SIZE)


@pytest.fixture(scope="module", params=[detr, yolos])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, processor = request.param()
    path = tmp_path_factory.mktemp("theirs")
    stirred(model).save_pretrained(path)
    processor.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Pictures of three sizes, one so long that its longer side counts."""
    numbers, paths = np.random.default_rng(2), []
    for place, (height, width) in enumerate([(60, 90), (131, 97), (40, 160), (60, 90)]):
        coarse = Image.fromarray(numbers.integers(0, 256, (5, 7, 3), dtype=np.uint8))
        path = tmp_path_factory.mktemp("photos") / f"{place}.png"
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(path)
        paths.append(str(path))
    return paths


def test_the_same_labels_scores_and_boxes(folder: Path, photos: list[str]) -> None:
    theirs, ours = hf.pipeline("object-detection", model=str(folder)), vitral.pipeline("object-detection", model=folder)
    found = ours(photos, threshold=0.05, batch_size=4)
    assert sum(map(len, found)) > 10
    for photo, answer in zip(photos, found, strict=True):
        expected = sorted(theirs(photo, threshold=0.05), key=lambda row: -row["score"])
        width, height = Image.open(photo).size
        assert len(answer) == len(expected)
        assert [row["label"] for row in answer] == [row["label"] for row in expected]
        for one, other in zip(answer, expected, strict=True):
            assert list(one) == list(other)
            assert abs(one["score"] - other["score"]) < 1e-4
            for edge, place in other["box"].items():
                limit = width if edge.startswith("x") else height
                assert isinstance(one["box"][edge], int)
                assert abs(one["box"][edge] - min(max(place, 0), limit)) <= 1
    assert ours(photos[0]) == [row for row in ours(photos[0], threshold=0.0) if row["score"] > 0.5]


def test_sizes_in_one_batch_equal_one_by_one(folder: Path, photos: list[str]) -> None:
    predictor = vitral.load(folder, threshold=0.05)
    assert predictor.task == "object-detection"
    for one, other in zip(predictor.stream(photos, batch_size=4), map(predictor, photos), strict=True):
        assert one.labels == other.labels
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
        np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-2)
        assert other.draw().size == Image.open(other.name).size
