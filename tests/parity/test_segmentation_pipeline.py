"""`pipeline("image-segmentation")` beside transformers' pipeline, from one folder on disk to labels, scores and masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image

import vitral
from tests.models.harness import stirred

LABELS = dict(enumerate(("sky", "road", "person", "dog", "car")))
SIZE = {"shortest_edge": 64, "longest_edge": 128}


def segformer() -> tuple[Any, Any]:
    config = hf.SegformerConfig(
        hidden_sizes=[8, 16, 20, 16],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 5, 2],
        decoder_hidden_size=24,
        id2label=LABELS,
    )
    return hf.SegformerForSemanticSegmentation(config), hf.SegformerImageProcessor(size={"height": 96, "width": 64})


def mask2former() -> tuple[Any, Any]:
    config = hf.Mask2FormerConfig(
        backbone_config=hf.SwinConfig(
            embed_dim=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 2, 2, 2],
            window_size=3,
            image_size=64,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        feature_size=32,
        mask_feature_size=24,
        hidden_dim=32,
        encoder_feedforward_dim=24,
        dim_feedforward=40,
        encoder_layers=1,
        decoder_layers=3,
        num_queries=12,
        num_attention_heads=4,
        id2label=LABELS,
    )
    return hf.Mask2FormerForUniversalSegmentation(config), hf.Mask2FormerImageProcessor(size=SIZE, size_divisor=32)


@pytest.fixture(scope="module", params=[segformer, mask2former])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    torch.manual_seed(0)
    model, processor = request.param()
    path = tmp_path_factory.mktemp("theirs")
    stirred(model)
    if request.param is segformer:  # so that no class is the likeliest everywhere
        with torch.no_grad():
            model.decode_head.classifier.bias -= model(torch.randn(1, 3, 96, 64)).logits.mean((0, 2, 3))
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return request.param.__name__, path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    numbers, paths = np.random.default_rng(2), []
    for place, (height, width) in enumerate([(60, 90), (131, 97)]):
        coarse = Image.fromarray(numbers.integers(0, 256, (5, 7, 3), dtype=np.uint8))
        path = tmp_path_factory.mktemp("photos") / f"{place}.png"
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(path)
        paths.append(str(path))
    return paths


def test_the_same_labels_scores_and_masks(case: tuple[str, Path], photos: list[str]) -> None:
    name, folder = case
    theirs, ours = hf.pipeline("image-segmentation", model=str(folder)), vitral.pipeline(model=folder)
    assert ours.task == "image-segmentation"
    told: dict[str, Any] = {"threshold": 0.2, "mask_threshold": 0.1, "overlap_mask_area_threshold": 0.1}
    found = 0
    for subtask in ("semantic",) if name == "segformer" else (None, "panoptic", "semantic"):
        for photo in photos:
            expected = theirs(photo, subtask=subtask, **told)
            answer = ours(photo, subtask=subtask, **told)
            assert [row["label"] for row in answer] == [row["label"] for row in expected]
            for one, other in zip(answer, expected, strict=True):
                assert one["score"] == (other["score"] and pytest.approx(other["score"], abs=1e-4))
                assert one["mask"].mode == other["mask"].mode
                assert one["mask"].size == other["mask"].size == Image.open(photo).size
                # Networks differ in the last digits, and pixels between two classes with them.
                assert (np.asarray(one["mask"]) != np.asarray(other["mask"])).mean() < 2e-3
                assert one["area"] == np.count_nonzero(np.asarray(one["mask"]))
            found += len(expected)
    assert found > 3
