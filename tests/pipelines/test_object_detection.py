"""A detector through the corridor and the pipeline; see `brightest` for what it answers."""

from __future__ import annotations

from pathlib import Path
from types import GeneratorType
from typing import Any

import pytest
from PIL import Image

import vitral
from tests.pipelines.brightest import Brightest, painted
from vitral.errors import PictureError, UnknownNameError, UsageError
from vitral.pipelines.pipeline import ObjectDetectionPipeline
from vitral.pipelines.predictor import Predictor


@pytest.fixture
def lamps(tmp_path: Path) -> list[Path]:
    return painted(tmp_path)


def test_a_detector_finds_objects_unless_told_otherwise(lamps: list[Path]) -> None:
    predictor = Predictor(Brightest())
    assert predictor.task == "object-detection"
    result = predictor(lamps[0])
    assert result.labels == ("light",)
    assert result.boxes.tolist() == [[0, 0, 30, 40]]
    assert predictor(lamps[1]).boxes.tolist() == [[16, 0, 32, 64]]
    assert len(predictor(lamps[2])) == 2
    assert len(predictor(lamps[3])) == 0
    assert predictor(lamps[3], threshold=0.3).labels == ("thing",)
    assert predictor(lamps[2], threshold=0.0, top_k=1).labels == ("light",)


def test_the_pipeline_speaks_as_transformers_does(lamps: list[Path]) -> None:
    ours = vitral.pipeline("object-detection", model=Brightest())
    assert isinstance(vitral.pipeline(model=Brightest()), ObjectDetectionPipeline)
    (row,) = ours(lamps[0])
    assert list(row) == ["score", "label", "box"]
    assert row["label"] == "light"
    assert row["box"] == {"xmin": 0, "ymin": 0, "xmax": 30, "ymax": 40}
    assert {type(edge) for edge in row["box"].values()} == {int}
    assert row["score"] > 0.9
    assert ours(lamps[3]) == []
    assert ours(lamps, batch_size=4) == [ours(lamp) for lamp in lamps]
    stream = ours(iter(lamps), threshold=0.3)
    assert isinstance(stream, GeneratorType)
    assert [len(rows) for rows in stream] == [2, 2, 3, 1]
    usually = vitral.pipeline("object-detection", model=Brightest(), threshold=0.3, top_k=2)
    assert [len(rows) for rows in usually(lamps)] == [2, 2, 2, 1]


def test_edges_are_cut_to_whole_pixels(lamps: list[Path], tmp_path: Path) -> None:
    Image.new("RGB", (33, 47)).save(tmp_path / "odd.png")
    (row,) = vitral.pipeline(model=Brightest())(tmp_path / "odd.png", threshold=0.3)
    assert row["box"] == {"xmin": int(0.4 * 33), "ymin": int(0.3 * 47), "xmax": int(0.6 * 33), "ymax": int(0.7 * 47)}


def test_a_bad_file_of_many_is_a_record_and_alone_an_error(lamps: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    ours = vitral.pipeline(model=Brightest())
    assert sorted(ours([lamps[0], bad])[1]) == ["error", "name"]
    with pytest.raises(PictureError, match=r"bad\.png"):
        ours(bad)


@pytest.mark.parametrize("wrong", ["high", None, float("nan"), True])
def test_a_threshold_is_a_number(lamps: list[Path], wrong: Any, unchecked: None) -> None:
    with pytest.raises(UsageError, match="threshold"):
        vitral.pipeline(model=Brightest())(lamps[0], threshold=wrong)


def test_mistakes_are_refused_in_sentences(lamps: list[Path], checkpoint: Path) -> None:
    ours = vitral.pipeline(model=Brightest())
    with pytest.raises(UnknownNameError, match="'threshold'"):
        ours(lamps[0], treshold=0.3)
    with pytest.raises(UnknownNameError, match="'threshold'"):
        vitral.pipeline("object-detection", model=Brightest(), threshhold=0.3)
    with pytest.raises(UsageError, match=r"threshold must be from 0 to 1; 1\.5 came"):
        ours(lamps[0], threshold=1.5)
    with pytest.raises(UsageError, match="top_k"):
        ours(lamps[0], top_k=0)
    with pytest.raises(UsageError, match=r"Name a model: pipeline\('object-detection', model='facebook/detr-resnet-50'\)"):
        vitral.pipeline("object-detection")
    with pytest.raises(UsageError, match="A Brightest cannot do 'image-classification'; it can do 'object-detection'"):
        Predictor(Brightest(), task="image-classification")
    with pytest.raises(UsageError, match="A ViT cannot do 'object-detection'; it can do 'image-classification' or"):
        vitral.load(checkpoint, task="object-detection")
    with pytest.raises(UnknownNameError, match="object-detection"):
        vitral.load(checkpoint, task="object-detektion")
    with pytest.raises(UsageError, match="The Brightest knows no classes, so it finds nothing"):
        Predictor(Brightest(num_classes=0))
    broken = Brightest()
    broken.scale.data.fill_(float("nan"))
    with pytest.raises(UsageError, match="not finite numbers"):
        Predictor(broken)(lamps[0])
