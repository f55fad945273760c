"""Segmenters through the corridor and the pipeline; see `lit` for what they answer."""

from __future__ import annotations

from pathlib import Path
from types import GeneratorType

import numpy as np
import pytest
from PIL import Image

import vitral
from tests.pipelines.brightest import Brightest, painted
from tests.pipelines.lit import Lit, LitMasks
from vitral.base.masks import decode_rle
from vitral.errors import UnknownNameError, UsageError
from vitral.pipelines.pipeline import ImageSegmentationPipeline
from vitral.pipelines.predictor import Predictor


@pytest.fixture
def lamps(tmp_path: Path) -> list[Path]:
    return painted(tmp_path)


def half(path: Path) -> np.ndarray:
    """Where a picture is bright."""
    return np.asarray(Image.open(path))[..., 0] > 127


def test_a_segmenter_says_classes_or_segments(lamps: list[Path]) -> None:
    predictor = Predictor(Lit())
    assert predictor.task == "image-segmentation"
    for lamp in lamps:
        np.testing.assert_array_equal(predictor(lamp).class_map, half(lamp))
    masks = Predictor(LitMasks())
    assert [(part.label, part.area) for part in masks(lamps[0]).segments] == [("dark", 1200), ("light", 1200)]
    np.testing.assert_array_equal(masks(lamps[0], subtask="semantic").class_map, half(lamps[0]))
    assert masks(lamps[0], subtask="instance", threshold=0.2).labels == ("dark", "light", "thing")
    answers = masks.stream(lamps, batch_size=3)
    assert [len(answer) for answer in answers] == [2, 2, 1, 1]


def test_the_pipeline_speaks_as_transformers_does(lamps: list[Path]) -> None:
    ours = vitral.pipeline("image-segmentation", model=Lit())
    assert isinstance(vitral.pipeline(model=Lit()), ImageSegmentationPipeline)
    rows = ours(lamps[0])
    assert [(row["score"], row["label"], row["area"]) for row in rows] == [(None, "dark", 1200), (None, "light", 1200)]
    for row, expected in zip(rows, (~half(lamps[0]), half(lamps[0])), strict=True):
        assert list(row) == ["score", "label", "mask", "area", "rle"]
        assert row["mask"].mode == "L"
        assert row["mask"].size == (60, 40)
        np.testing.assert_array_equal(np.asarray(row["mask"]), 255 * expected)
        np.testing.assert_array_equal(decode_rle(row["rle"]), expected)
    assert [len(answer) for answer in ours(lamps, batch_size=4)] == [2, 2, 1, 1]
    stream = ours(iter(lamps))
    assert isinstance(stream, GeneratorType)
    assert [len(answer) for answer in stream] == [2, 2, 1, 1]


def test_thresholds_and_subtasks_are_told(lamps: list[Path]) -> None:
    ours = vitral.pipeline(model=LitMasks())
    assert [row["label"] for row in ours(lamps[0])] == ["dark", "light"]
    assert ours(lamps[0])[0]["score"] == pytest.approx(np.exp(9) / (np.exp(9) + 3), abs=1e-5)
    assert [row["label"] for row in ours(lamps[0], threshold=0.995)] == ["dark"]
    assert [row["label"] for row in ours(lamps[0], subtask="instance", threshold=0.2)] == ["dark", "light", "thing"]
    assert ours(lamps[0], subtask="instance", threshold=0.2)[2]["area"] == 2400
    assert [row["score"] for row in ours(lamps[0], subtask="semantic")] == [None, None]
    usually = vitral.pipeline(model=LitMasks(), threshold=0.995)
    assert len(usually(lamps[0])) == 1


def test_a_class_map_comes_along_where_asked(lamps: list[Path]) -> None:
    told = vitral.pipeline(model=Lit())(lamps[0], class_map=True)
    assert list(told) == ["segments", "class_map"]
    np.testing.assert_array_equal(told["class_map"], half(lamps[0]))
    masks = vitral.pipeline(model=LitMasks(), class_map=True)
    np.testing.assert_array_equal(masks(lamps[0])["class_map"], half(lamps[0]))
    assert len(masks(lamps[0])["segments"]) == 2
    nothing = masks(lamps[0], threshold=1.0)
    assert nothing["segments"] == []
    assert (nothing["class_map"] == 255).all()
    with pytest.raises(UsageError, match="objects may overlap"):
        vitral.pipeline(model=LitMasks())(lamps[0], subtask="instance", class_map=True)


@pytest.mark.usefixtures("unchecked")
def test_misuse_is_refused(lamps: list[Path]) -> None:
    ours = vitral.pipeline("image-segmentation", model=LitMasks())
    with pytest.raises(UnknownNameError, match="Did you mean 'mask_threshold'"):
        ours(lamps[0], mask_treshold=0.5)
    with pytest.raises(UnknownNameError, match="Did you mean 'panoptic'"):
        ours(lamps[0], subtask="panoptics")
    for name in ("threshold", "mask_threshold", "overlap_mask_area_threshold"):
        with pytest.raises(UsageError, match=f"{name} must be from 0 to 1"):
            ours(lamps[0], **{name: 1.5})
    with pytest.raises(UsageError, match="needs a network that draws a mask"):
        vitral.pipeline(model=Lit())(lamps[0], subtask="panoptic")
    with pytest.raises(UsageError, match="class_map must be True or False"):
        ours(lamps[0], class_map="yes")
    with pytest.raises(UsageError, match="cannot do 'image-segmentation'"):
        vitral.pipeline("image-segmentation", model=Brightest())
    with pytest.raises(UsageError, match="segformer"):
        vitral.pipeline("image-segmentation")
