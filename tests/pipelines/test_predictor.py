from __future__ import annotations

import inspect
import io
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vitral
from vitral.base.image import read_picture as vitral_picture
from vitral.data.transforms import Preprocessing
from vitral.errors import PictureError, UnknownNameError, UsageError
from vitral.pipelines.predictor import Failure, Predictor, load


@pytest.fixture(scope="module")
def predictor(checkpoint: Path) -> Predictor:
    return load(checkpoint)


def test_the_corridor_equals_its_parts_done_by_hand(predictor: Predictor, photos: list[Path]) -> None:
    image = Image.open(photos[0]).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float().div(255).sub(0.5).div(0.5)
    with torch.no_grad():
        expected = predictor.model(pixels[None]).logits.softmax(1)[0]
    answer = predictor(photos[0])
    assert answer.labels == tuple("abcdefg"[index] for index in expected.argsort(descending=True))
    assert np.allclose(answer.scores, expected.sort(descending=True).values.numpy(), atol=1e-6)
    assert answer.size == (40, 60)
    assert answer.name == str(photos[0])


def test_every_kind_of_source_gives_the_same_answer(predictor: Predictor, photos: list[Path]) -> None:
    path = photos[1]
    image = Image.open(path)
    array = np.asarray(image)
    sources = [
        str(path),
        path,
        path.read_bytes(),
        io.BytesIO(path.read_bytes()),
        image,
        array,
        torch.from_numpy(array.copy()),
    ]
    scores = [predictor(source).scores for source in sources]
    assert all(np.array_equal(score, scores[0]) for score in scores)


def test_a_stream_equals_one_by_one_and_keeps_the_order(predictor: Predictor, photos: list[Path]) -> None:
    alone = [predictor(photo) for photo in photos]
    for batch_size, workers in ((1, 0), (5, 2), (64, 4)):
        streamed = list(predictor.stream(photos, batch_size=batch_size, workers=workers))
        assert [answer.name for answer in streamed] == [str(photo) for photo in photos]
        for one, other in zip(alone, streamed, strict=True):
            assert one.labels == other.labels
            assert np.allclose(one.scores, other.scores, atol=1e-6)


def test_inputs_of_several_sizes_share_a_stream(checkpoint: Path, photos: list[Path]) -> None:
    uncropped = load(checkpoint, preprocessing=Preprocessing(resize="shortest_edge", size=(32, 32)))
    alone = [uncropped(photo) for photo in photos]
    streamed = list(uncropped.stream(photos, batch_size=6))
    assert all(np.allclose(one.scores, other.scores, atol=1e-6) for one, other in zip(alone, streamed, strict=True))


def test_one_bad_file_is_one_failure(predictor: Predictor, photos: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(photos[0].read_bytes()[:200])
    mixed = [photos[0], bad, tmp_path / "missing.png", photos[2]]
    answers = list(predictor.stream(mixed, batch_size=2))
    assert [isinstance(answer, Failure) for answer in answers] == [False, True, True, False]
    assert answers[1].name == str(bad)
    assert "no such file" in answers[2].error
    with pytest.raises(PictureError, match=r"bad\.jpg"):
        list(predictor.stream(mixed, batch_size=2, on_error="raise"))
    assert all(isinstance(answer, Failure) for answer in predictor.stream([bad, bad, bad], batch_size=2))


def test_pictures_are_kept_only_when_asked_for(predictor: Predictor, photos: list[Path]) -> None:
    plain, kept = next(predictor.stream(photos)), next(predictor.stream(photos, keep_pictures=True))
    with pytest.raises(UsageError, match="was not kept"):
        plain.draw()
    assert kept.draw(top=3).size[0] >= 60


def test_a_generator_is_drawn_two_batches_ahead_and_no_further(predictor: Predictor, photos: list[Path]) -> None:
    drawn = []

    def camera():  # type: ignore[no-untyped-def]
        for index in range(100):
            drawn.append(index)
            yield photos[index % len(photos)]

    stream = predictor.stream(camera(), batch_size=4)
    next(stream)
    assert len(drawn) <= 3 * 4
    stream.close()
    assert len(drawn) <= 3 * 4


def test_fast_decoding_changes_little_and_exact_nothing(checkpoint: Path, tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(numbers).resize((1600, 1200), Image.Resampling.BICUBIC).save(tmp_path / "big.jpg", quality=92)
    fast, exact = load(checkpoint)(tmp_path / "big.jpg"), load(checkpoint, decoding="exact")(tmp_path / "big.jpg")
    assert fast.size == exact.size == (1200, 1600)
    assert fast.picture is not None
    assert fast.picture.reduced
    assert exact.picture is not None
    assert not exact.picture.reduced
    assert fast.labels[0] == exact.labels[0]
    assert np.abs(fast.scores - exact.scores).max() < 0.02


def test_features_are_the_models_own(checkpoint: Path, photos: list[Path]) -> None:
    encoder = load(checkpoint, task="image-feature-extraction")
    features = encoder(photos[0])
    assert features.grid == (2, 2)
    assert features.prefix == 1
    assert features.tokens.shape == (5, 32)
    assert torch.equal(features.feature_map[:, 1, 0], features.tokens[3])
    assert torch.equal(features.pooled, features.tokens[0])
    features.tokens.requires_grad_(True).sum().backward()  # ordinary tensors, fit for training on


def test_bad_requests_are_answered_in_a_sentence(checkpoint: Path, photos: list[Path]) -> None:
    with pytest.raises(UnknownNameError, match="'device'"):
        load(checkpoint, devise="cpu")
    with pytest.raises(UnknownNameError, match="image-classification"):
        load(checkpoint, task="classification-image")
    unchecked = inspect.unwrap(Predictor.__init__)  # the tests' own type checks would speak first
    with pytest.raises(UnknownNameError, match="'exact'"):
        unchecked(Predictor.__new__(Predictor), vitral.load_model(checkpoint), decoding="exakt")
    with pytest.raises(UsageError, match="no classifier"):
        load(checkpoint, num_classes=0, task="image-classification")
    with pytest.raises(UsageError, match="no cuda"):
        load(checkpoint, device="cuda:7")
    with pytest.raises(UsageError, match="batch_size"):
        list(load(checkpoint).stream(photos, batch_size=0))


def test_a_model_without_a_record_says_what_is_missing() -> None:
    model = vitral.create_model("vit_ti16", width=32, heads=2, depth=1, mlp_width=64, channels=5, num_classes=2)
    with pytest.raises(UsageError, match="Pass preprocessing"):
        load(model)


def test_broken_weights_do_not_give_a_number(checkpoint: Path, photos: list[Path]) -> None:
    predictor = load(checkpoint)
    with torch.no_grad():
        predictor.model.head.bias[0] = float("nan")
    with pytest.raises(UsageError, match="not finite"):
        predictor(photos[0])


def test_a_camera_may_write_the_next_picture_into_the_same_array(predictor: Predictor) -> None:
    numbers = np.random.default_rng(1)
    frames = [numbers.integers(0, 256, (48, 48, 3), dtype=np.uint8) for _ in range(20)]

    def camera() -> Iterator[np.ndarray]:
        buffer = np.empty_like(frames[0])
        for frame in frames:
            buffer[:] = frame
            yield buffer

    for answer, frame in zip(predictor.stream(camera(), batch_size=3, workers=2), frames, strict=True):
        assert np.allclose(answer.scores, predictor(frame).scores, atol=1e-6)


def test_answers_before_an_exception_of_the_source_arrive(predictor: Predictor, photos: list[Path]) -> None:
    def broken() -> Iterator[Path]:
        yield from photos[:6]
        raise ConnectionError("the camera is gone")

    answers = []
    with pytest.raises(ConnectionError, match="camera"):
        answers.extend(predictor.stream(broken(), batch_size=4))
    stream = predictor.stream(broken(), batch_size=4)
    assert [next(stream).name for _ in range(6)] == [str(photo) for photo in photos[:6]]


def test_what_is_no_picture_is_one_failure_of_many(checkpoint: Path, photos: list[Path]) -> None:
    script = (
        "import sys, vitral\n"
        "answers = list(vitral.load(sys.argv[1]).stream([sys.argv[2], {'no': 'picture'}, sys.argv[2]]))\n"
        "print(*[type(answer).__name__ for answer in answers], answers[1].name)\n"
    )
    # In a process of its own: here the tests' type checks would speak first.
    run = [sys.executable, "-c", script, str(checkpoint), str(photos[0])]
    said = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    assert said.split() == ["Classification", "Failure", "Classification", "<dict>"]


def test_one_picture_is_no_stream(predictor: Predictor, photos: list[Path]) -> None:
    with pytest.raises(UsageError, match=r"is one\. Put it into a list"):  # not one failure per letter
        predictor.stream(str(photos[0]))


def test_numbers_stay_numbers(checkpoint: Path, photos: list[Path]) -> None:
    model = vitral.load_model(checkpoint)
    model.record = replace(model.record, problem="regression")
    with torch.no_grad():
        predictor = load(model)
        pixels, _ = predictor.preprocessing(vitral_picture(photos[0]))
        expected = model(pixels[None]).logits[0].sort(descending=True).values
    assert np.allclose(predictor(photos[0]).scores, expected.numpy(), atol=1e-6)
