"""Scores, answers and their drawings against closed forms."""

from __future__ import annotations

import inspect
import json

import numpy as np
import pytest
import torch
from PIL import Image

from vitral.base.draw import draw_bars
from vitral.base.frame import Frame, Seen
from vitral.base.image import read_picture
from vitral.errors import UnknownNameError, UsageError
from vitral.models.output import EncoderOutput
from vitral.models.record import Record
from vitral.tasks.classification.result import Classification, Options, decode, scores_of

LOGITS = torch.tensor([[0.0, 2.0, 1.0], [3.0, -1.0, 0.5]])
RECORD = Record(labels=("cat", "dog", "owl"))


def output(logits: torch.Tensor) -> EncoderOutput:
    return EncoderOutput(torch.zeros(2, 1, 4), (0, 0), 1, torch.zeros(2, 4), logits, (logits,))


def frame(height: int, width: int) -> Frame:
    return Frame(picture=(height, width), input=(8, 8))


@pytest.fixture
def answer() -> Classification:
    picture = read_picture(np.full((20, 30, 3), 200, np.uint8))
    return decode(output(LOGITS), [Seen("one", frame(20, 30), picture), Seen("two", frame(5, 5))], RECORD)[0]


def test_scores_are_the_closed_forms() -> None:
    values = LOGITS.double().numpy()
    softmax = np.exp(values) / np.exp(values).sum(1, keepdims=True)
    assert np.allclose(scores_of(LOGITS, "default", RECORD), softmax, atol=1e-7)
    assert np.allclose(scores_of(LOGITS, "sigmoid", RECORD), 1 / (1 + np.exp(-values)), atol=1e-7)
    assert np.allclose(scores_of(LOGITS, "default", Record(problem="multi_label")), 1 / (1 + np.exp(-values)), atol=1e-7)
    assert np.allclose(scores_of(LOGITS[:, :1], "default", RECORD), 1 / (1 + np.exp(-values[:, :1])), atol=1e-7)
    assert torch.equal(scores_of(LOGITS, "none", RECORD), LOGITS)


def test_best_first(answer: Classification) -> None:
    assert answer.labels == ("dog", "owl", "cat")
    assert answer.indices.tolist() == [1, 2, 0]
    assert answer.scores.tolist() == pytest.approx([0.66524, 0.24473, 0.09003], abs=1e-5)


def test_choosing(answer: Classification) -> None:
    assert answer.top(2).labels == ("dog", "owl")
    assert answer.top(None).labels == answer.labels
    assert len(answer.top(9)) == 3
    assert answer[answer.scores > 0.2].labels == ("dog", "owl")
    assert answer[-1].labels == ("cat",)
    assert answer[1:].indices.tolist() == [2, 0]
    with pytest.raises(UsageError, match="top_k"):
        answer.top(0)


def test_it_is_frozen_and_plain(answer: Classification) -> None:
    with pytest.raises(AttributeError):
        answer.labels = ()  # type: ignore[misc]
    told = json.loads(json.dumps(answer.to_dict()))
    assert told["size"] == [20, 30]
    assert told["classes"][0] == {"label": "dog", "score": pytest.approx(0.66524, abs=1e-5), "index": 1}
    assert repr(answer) == "Classification(one: dog 0.665, owl 0.245, cat 0.090)"


def test_drawing_leaves_the_picture_as_it_is(answer: Classification) -> None:
    assert answer.picture is not None
    before = answer.picture.array.copy()
    drawn = np.asarray(answer.draw(top=2))
    assert np.array_equal(answer.picture.array, before)
    assert drawn.shape[0] > 20
    assert (drawn == (0, 114, 178)).all(-1).any()


def test_a_bar_is_as_long_as_its_score() -> None:
    sheet = np.asarray(draw_bars(Image.new("RGB", (640, 100), "white"), [("half", 0.5), ("whole", 1.0)]))
    blue = (sheet == (0, 114, 178)).all(-1)
    lengths = sorted({int(row.sum()) for row in blue if row.sum() > 20})
    assert lengths[-1] == pytest.approx(612, abs=6)
    assert min(lengths, key=lambda length: abs(length - 306)) == pytest.approx(306, abs=6)


def test_names_of_classes_nobody_named() -> None:
    seen = [Seen("one", frame(1, 1)), Seen("two", frame(1, 1))]
    answers = decode(output(LOGITS), seen, Record(), Options(top_k=1))
    assert [answer.labels for answer in answers] == [("LABEL_1",), ("LABEL_0",)]


def test_options_out_of_range_are_refused() -> None:
    unchecked = inspect.unwrap(Options.__init__)
    for options, error in (
        ({"top_k": 0}, UsageError),
        ({"top_k": True}, UsageError),
        ({"function": "sofmax"}, UnknownNameError),
    ):
        with pytest.raises(error):
            unchecked(Options.__new__(Options), **options)
