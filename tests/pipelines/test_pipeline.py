from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import GeneratorType

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import vitral
from vitral.errors import PictureError, UnknownNameError, UsageError


@pytest.fixture(scope="module")
def in_their_layout(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vitral.save_model(vitral.load_model(checkpoint), tmp_path_factory.mktemp("theirs"), layout="transformers")


@pytest.fixture(scope="module")
def theirs(in_their_layout: Path):  # type: ignore[no-untyped-def]
    return transformers.pipeline("image-classification", model=str(in_their_layout))


@pytest.fixture(scope="module")
def ours(in_their_layout: Path) -> vitral.pipelines.pipeline.Pipeline:
    return vitral.pipeline("image-classification", model=in_their_layout)


def close(ours: list[dict], theirs: list[dict], tolerance: float = 1e-5) -> bool:
    return [row["label"] for row in ours] == [row["label"] for row in theirs] and all(
        abs(one["score"] - other["score"]) < tolerance for one, other in zip(ours, theirs, strict=True)
    )


def test_answers_equal_transformers(ours, theirs, photos: list[Path]) -> None:  # type: ignore[no-untyped-def]
    for options in ({}, {"top_k": 3}, {"function_to_apply": "sigmoid"}, {"function_to_apply": "none", "top_k": 2}):
        expected = theirs([str(photo) for photo in photos], **options)
        answers = ours([str(photo) for photo in photos], batch_size=5, **options)
        assert all(close(one, other) for one, other in zip(answers, expected, strict=True)), options
    one = ours(str(photos[0]))
    assert close(one, theirs(str(photos[0])))
    assert list(one[0]) == list(theirs(str(photos[0]))[0])
    assert isinstance(one[0]["score"], float)


def test_features_equal_transformers(in_their_layout: Path, photos: list[Path]) -> None:
    theirs = transformers.pipeline("image-feature-extraction", model=str(in_their_layout))
    ours = vitral.pipeline("image-feature-extraction", model=in_their_layout)
    expected = np.asarray(theirs(str(photos[0])))
    assert np.allclose(np.asarray(ours(str(photos[0]))), expected, atol=1e-5)
    tensor = ours(photos[0], return_tensors=True)
    assert tensor.shape == expected.shape
    assert torch.equal(ours(photos[0], pool=True, return_tensors=True), tensor[:, 0])


def test_the_published_deit_tiny_agrees_on_photographs(shared: Path, tmp_path: Path) -> None:
    model = vitral.load_model(shared / "weights/deit_tiny_patch16_224")
    vitral.save_model(model, tmp_path, layout="transformers")
    ours = vitral.pipeline("image-classification", model=tmp_path)
    theirs = transformers.pipeline("image-classification", model=str(tmp_path))
    photographs = sorted((shared / "data/photos").rglob("*.jpg"))
    assert len(photographs) >= 3
    for photograph in photographs:
        assert close(ours(photograph), theirs(str(photograph)), 1e-4)


def test_all_classes_for_none(ours, photos: list[Path]) -> None:  # type: ignore[no-untyped-def]
    answer = ours(photos[0], top_k=None)
    assert len(answer) == 7
    assert sum(row["score"] for row in answer) == pytest.approx(1, abs=1e-6)
    assert len(ours(photos[0], top_k=50)) == 7


def test_lists_folders_patterns_and_arrays_give_lists(ours, photos: list[Path], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    expected = ours(photos)
    folder = photos[0].parent
    assert isinstance(expected, list)
    assert ours(str(folder)) == expected
    assert ours(folder / "*") == ours(sorted(photos))
    assert len(ours(str(folder / "*.png"))) == 8
    batch = np.stack([np.asarray(Image.open(photos[1])), np.asarray(Image.open(photos[5]))])
    assert [close(one, other) for one, other in zip(ours(batch), [expected[1], expected[5]], strict=True)] == [True, True]
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(PictureError, match="no picture files"):
        ours(tmp_path)


def test_generators_and_datasets_give_generators(ours, photos: list[Path]) -> None:  # type: ignore[no-untyped-def]
    expected = ours(photos)

    class Dataset:
        def __len__(self) -> int:
            return len(photos)

        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            return Image.open(photos[index]), 0

    def pictures() -> Iterator[dict[str, Path]]:
        for photo in photos:
            yield {"image": photo}

    for stream in (ours(iter(photos), batch_size=5), ours(Dataset(), batch_size=5), ours(pictures(), batch_size=5)):
        assert isinstance(stream, GeneratorType)
        assert all(close(one, other) for one, other in zip(stream, expected, strict=True))


def test_a_bad_file_of_many_is_a_record_and_alone_an_error(ours, photos: list[Path], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"GIF89a")
    first, record, last = ours([photos[0], bad, photos[1]])
    assert close(first, ours(photos[0]))
    assert close(last, ours(photos[1]))
    assert sorted(record) == ["error", "name"]
    assert record["name"] == str(bad)
    with pytest.raises(PictureError, match=r"bad\.png"):
        ours(bad)


def test_misspelt_words_are_refused_with_the_nearest(in_their_layout: Path, ours, photos: list[Path]) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UnknownNameError, match="'top_k'"):
        ours(photos[0], topk=2)
    with pytest.raises(UnknownNameError, match="'batch_size'"):
        vitral.pipeline("image-classification", model=in_their_layout, batchsize=2)
    with pytest.raises(UnknownNameError, match="image-classification"):
        vitral.pipeline("image-clasification", model=in_their_layout)
    with pytest.raises(UnknownNameError, match="'softmax'"):
        ours(photos[0], function_to_apply="softmaks")
    with pytest.raises(UnknownNameError, match="'return_tensors'"):
        vitral.pipeline("image-feature-extraction", model=in_their_layout)(photos[0], return_tensor=True)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"top_k": 0}, "top_k"),
        ({"top_k": True}, "top_k"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_bad_values_are_refused(ours, photos: list[Path], options: dict, sentence: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError, match=sentence):
        ours(photos, **options)


def test_what_cannot_be_had_is_said(in_their_layout: Path) -> None:
    with pytest.raises(UsageError, match="never runs code"):
        vitral.pipeline("image-classification", model=in_their_layout, trust_remote_code=True)
    with pytest.raises(UsageError, match="'pt'"):
        vitral.pipeline("image-classification", model=in_their_layout, framework="tf")
    with pytest.raises(UsageError, match="Name a model"):
        vitral.pipeline("image-feature-extraction")
    with pytest.raises(UsageError, match="No picture came"):
        vitral.pipeline(model=in_their_layout)(None)


def test_a_processor_of_ones_own(in_their_layout: Path, photos: list[Path]) -> None:
    squeezed = {"size": {"height": 32, "width": 32}, "resample": 0, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]}
    ours = vitral.pipeline("image-classification", model=in_their_layout, image_processor=squeezed, top_k=None)
    pixels = torch.from_numpy(np.asarray(Image.open(photos[1]).resize((32, 32), Image.Resampling.NEAREST)).copy())
    with torch.no_grad():
        expected = ours.model(pixels.permute(2, 0, 1)[None] / 255).logits.softmax(1)[0].max()
    assert ours(photos[1])[0]["score"] == pytest.approx(float(expected), abs=1e-6)


def test_bfloat16_is_close(in_their_layout: Path, ours, photos: list[Path]) -> None:  # type: ignore[no-untyped-def]
    half = vitral.pipeline("image-classification", model=in_their_layout, dtype="bfloat16", top_k=None)
    exact = {row["label"]: row["score"] for row in ours(photos[0], top_k=None)}
    assert max(abs(row["score"] - exact[row["label"]]) for row in half(photos[0])) < 0.03
