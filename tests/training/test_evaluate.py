"""An evaluation against the predictor's own answers, PyTorch's losses, and counting by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from vitral.base.image import read_picture
from vitral.data.pictures import Files, PictureSet
from vitral.data.transforms import Preprocessing
from vitral.errors import PictureError, UnknownNameError, UsageError
from vitral.models.catalogue import create_model
from vitral.models.record import Record
from vitral.pipelines.predictor import Predictor
from vitral.training.evaluate import Evaluation, evaluate

CLASSES = ("owl", "cat", "dog")
SIZES = ((40, 50), (33, 32), (64, 32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures of noise, of three sizes."""
    place = tmp_path_factory.mktemp("pictures")
    numbers = np.random.default_rng(0)
    for number in range(10):
        pixels = numbers.integers(0, 256, (*SIZES[number % 3], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
    return place


def pictures_of(folder: Path, classes: tuple[str, ...] = CLASSES, labels: Any = None, names: Any = None) -> PictureSet:
    names = [f"{number}.png" for number in range(10)] if names is None else names
    labels = np.arange(len(names)) % len(classes) if labels is None else np.array(labels)
    return PictureSet(
        name="noise/test",
        classes=classes,
        labels=labels.astype(np.int64),
        places=np.arange(len(names), dtype=np.int64),
        store=Files(folder, names),
    )


def network(labels: tuple[str, ...] = CLASSES, **record: Any) -> Any:
    """A small vision transformer in training mode, one part of it frozen in evaluation mode, that drops paths."""
    torch.manual_seed(1)
    model: Any = create_model(
        "vit_ti16", width=32, heads=2, depth=2, mlp_width=64, image_size=32, num_classes=len(labels), drop_path=0.5
    )
    nn.init.normal_(model.head.weight)
    told = {"labels": labels, "preprocessing": Preprocessing(resize="exact", size=(32, 32))} | record
    model.record = replace(model.record, **told)
    model.train()
    model.blocks[0].eval()
    return model


class Fixed(nn.Module):
    """Says what it is told to, picture by picture; or what is wrong with it."""

    def __init__(self, logits: Tensor, labels: tuple[str, ...] = CLASSES, **record: Any) -> None:
        super().__init__()
        self.answers, self.next = logits, 0
        self.config = SimpleNamespace(num_classes=logits.shape[1])
        told = {"labels": labels, "preprocessing": Preprocessing(resize="exact", size=(4, 4))} | record
        self.record = Record(**told)

    def forward(self, pixels: Tensor) -> SimpleNamespace:
        self.next += len(pixels)
        return SimpleNamespace(logits=self.answers[self.next - len(pixels) : self.next])


@pytest.mark.parametrize("resize", ["exact", "none"])
def test_it_says_what_the_predictor_says(folder: Path, resize: Any) -> None:
    model, pictures = network(preprocessing=Preprocessing(resize=resize, size=(32, 32))), pictures_of(folder)
    found = evaluate(model, pictures, batch_size=4)
    predictor = Predictor(model, top_k=None)
    for row in range(10):
        answer = predictor(folder / f"{row}.png")
        np.testing.assert_allclose(found.scores[row, answer.indices], answer.scores, atol=1e-6)
    assert found.names == tuple(f"{row}.png" for row in range(10))
    assert found.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    assert (found.classes, found.data, len(found)) == (CLASSES, "noise/test", 10)
    assert found.scores.std() > 0.1  # a model that says something


def test_numbers_are_pytorchs_and_those_counted_by_hand(folder: Path) -> None:
    logits = 3 * torch.randn(10, 3)
    found = evaluate(Fixed(logits), pictures_of(folder), batch_size=3)
    labels = torch.arange(10) % 3
    assert found.nll == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-6)
    assert found.top1 == int((logits.argmax(1) == labels).sum()) / 10
    assert found.top5 == 1.0
    assert found.brier == pytest.approx(((logits.softmax(1) - F.one_hot(labels)) ** 2).sum(1).mean().item(), rel=1e-6)
    assert found.confusion.sum() == 10
    assert np.trace(found.confusion) == round(10 * found.top1)
    wrong = [row for row in range(10) if logits[row].argmax() != labels[row]]
    wrong.sort(key=lambda row: -logits.softmax(1)[row].max().item())
    assert found.worst().tolist() == wrong
    assert found.worst(2).tolist() == wrong[:2]
    told = json.loads(json.dumps(found.to_dict()))
    assert told["pictures"] == 10
    assert told["top1"] == found.top1
    assert told["intervals"]["nll"][0] < found.nll < told["intervals"]["nll"][1]
    assert [row["label"] for row in told["classes"]] == list(CLASSES)
    assert sum(row["count"] for row in told["confusions"]) == len(wrong)
    assert found.intervals(3) == found.intervals(3) != found.intervals(4)
    assert repr(found) == f"Evaluation(Fixed on noise/test: top-1 {found.top1:.1%} of 10 pictures)"


def test_the_model_and_the_random_numbers_are_left_as_they_were(folder: Path) -> None:
    model = network()
    modes = [part.training for part in model.modules()]
    before, state = [one.detach().clone() for one in model.parameters()], torch.random.get_rng_state()
    found = evaluate(model, pictures_of(folder), device="cpu")
    assert [part.training for part in model.modules()] == modes
    assert any(modes)
    assert not all(modes)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(one, two) for one, two in zip(before, model.parameters(), strict=True))
    assert all(one.requires_grad for one in model.parameters())
    # Nothing was dropped: the same again, and in batches of another size.
    np.testing.assert_allclose(evaluate(model, pictures_of(folder), batch_size=3).scores, found.scores, atol=1e-6)
    with pytest.raises(PictureError):
        evaluate(model, pictures_of(folder, names=["0.png", "gone.png", "1.png"]), batch_size=1)
    assert [part.training for part in model.modules()] == modes


def test_processes_that_read_change_nothing(folder: Path) -> None:
    model, names = network(), [*(f"{number}.png" for number in range(10)), "gone.png"]
    here = evaluate(model, pictures_of(folder, names=names), batch_size=4, bad_pictures="skip")
    there = evaluate(model, pictures_of(folder, names=names), batch_size=4, bad_pictures="skip", workers=2)
    np.testing.assert_array_equal(here.scores, there.scores)
    assert here.names == there.names
    assert here.skipped == there.skipped
    assert len(here.skipped) == 1


def test_half_precision_is_near_and_its_probabilities_are_single(folder: Path) -> None:
    model, pictures = network(), pictures_of(folder)
    single, half = evaluate(model, pictures), evaluate(model, pictures, dtype="bfloat16")
    assert half.scores.dtype == np.float32
    np.testing.assert_allclose(half.scores.sum(1), 1, atol=1e-6)
    apart = np.abs(half.scores - single.scores).max()
    assert 1e-7 < apart < 0.05
    whole = evaluate(model.to(torch.bfloat16), pictures)  # weights in half precision need no word
    np.testing.assert_allclose(whole.scores, single.scores, atol=0.05)


def test_a_picture_that_cannot_be_read_ends_it_or_is_named(folder: Path) -> None:
    (folder / "broken.png").write_bytes(b"no picture")
    names = ["0.png", "broken.png", "1.png", "gone.png", "2.png"]
    pictures, model = pictures_of(folder, names=names), network()
    with pytest.raises(PictureError, match=r"broken\.png: "):
        evaluate(model, pictures)
    seen: list[tuple[int, int]] = []
    found = evaluate(model, pictures, bad_pictures="skip", batch_size=2, on_progress=lambda *done: seen.append(done))
    assert found.names == ("0.png", "1.png", "2.png")
    assert found.places.tolist() == [0, 2, 4]
    assert found.labels.tolist() == [0, 2, 1]
    assert ["broken.png: " in found.skipped[0], "gone.png: " in found.skipped[1]] == [True, True]
    assert seen == [(2, 5), (4, 5), (5, 5)]
    np.testing.assert_allclose(found.scores, evaluate(model, pictures_of(folder)).scores[:3], atol=1e-6)
    with pytest.raises(UsageError, match="None of the 1 pictures of noise/test could be read"):
        evaluate(model, pictures_of(folder, names=["broken.png"]), bad_pictures="skip")


def test_large_jpegs_are_read_as_wanted(folder: Path, tmp_path: Path) -> None:
    Image.effect_noise((800, 600), 60).convert("RGB").save(tmp_path / "large.jpg", quality=95)
    model = network(preprocessing=Preprocessing(resize="exact", size=(16, 16)), labels=CLASSES)
    pictures = pictures_of(tmp_path, names=["large.jpg"])
    fast, exact = evaluate(model, pictures), evaluate(model, pictures, decoding="exact")
    for found, decoding in ((fast, "fast"), (exact, "exact")):
        answer: Any = Predictor(network(preprocessing=model.record.preprocessing), decoding=decoding)  # type: ignore[arg-type]
        expected = answer(tmp_path / "large.jpg", top_k=3)
        np.testing.assert_allclose(found.scores[0, expected.indices], expected.scores, atol=1e-6)
    assert (fast.scores != exact.scores).any()
    assert read_picture(tmp_path / "large.jpg", at_least=(80, 80)).reduced


# Whose class is whose


def test_classes_are_matched_by_name_in_any_order_and_by_one_of_several(folder: Path) -> None:
    labels = ("tabby, tabby cat", "Great Owl", "hound, dog", "zebra")
    pictures = pictures_of(folder, classes=("DOG", "great owl", "tabby"))
    found = evaluate(Fixed(torch.eye(4)[[2, 1, 0, 2, 1, 3, 2, 1, 0, 2]] * 9, labels), pictures)
    assert found.labels.tolist() == [2, 1, 0, 2, 1, 0, 2, 1, 0, 2]
    assert found.classes == labels
    assert found.top1 == 0.9  # row 5 was called a zebra, which the set does not have
    assert found.per_class.said.tolist() == [2, 3, 4, 1]


def test_a_model_without_names_is_matched_by_numbers(folder: Path) -> None:
    found = evaluate(Fixed(torch.eye(3)[torch.arange(10) % 3], ()), pictures_of(folder))
    assert (found.classes, found.top1) == (CLASSES, 1.0)
    with pytest.raises(UsageError, match="4 classes without names and noise/test has 3"):
        evaluate(Fixed(torch.zeros(10, 4), ()), pictures_of(folder))


def test_a_class_without_pictures_need_not_be_known(folder: Path) -> None:
    pictures = pictures_of(folder, classes=("owl", "unicorn", "dog"), labels=[0, 2] * 5)
    assert evaluate(Fixed(torch.zeros(10, 3)), pictures).labels.tolist() == [0, 2] * 5


@pytest.mark.parametrize(
    ("model", "classes", "said"),
    [
        (
            lambda: Fixed(torch.zeros(10, 3)),
            ("owl", "cat", "dgo"),
            r"1 of the classes .* Unknown class 'dgo'. Did you mean 'dog'\? Name",
        ),
        (
            lambda: Fixed(torch.zeros(10, 3)),
            ("x", "y", "z"),
            r"^3 of the classes of noise/test do not fit the 3 of the model, the first: Unknown class 'x'\. "
            r"Known: cat, [^.]*owl\. Name the classes of the pictures as the model does\.$",
        ),
        (lambda: Fixed(torch.zeros(10, 2)), CLASSES, "Class 2 is not one of the 2 of the model"),
        (
            lambda: Fixed(torch.zeros(10, 3), ("cat, tabby", "owl", "dog")),
            ("cat", "owl", "tabby"),
            "'cat' and 'tabby' of noise/test are one class of the model, 'cat, tabby'",
        ),
        (lambda: Fixed(torch.zeros(10, 3), problem="multi_label"), CLASSES, "problem is 'multi_label'"),
        (lambda: Fixed(torch.zeros(10, 3), preprocessing=None), CLASSES, "Nobody said how pictures are prepared"),
        (lambda: Fixed(torch.zeros(10, 0), ()), CLASSES, "A model of 0 classes"),
        (lambda: nn.Linear(2, 2), CLASSES, "A Linear is not one of Vitral's models"),
    ],
)
def test_what_does_not_fit_is_refused(folder: Path, model: Callable[[], nn.Module], classes: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        evaluate(model(), pictures_of(folder, classes=classes))


def test_logits_that_are_no_numbers_name_their_picture(folder: Path) -> None:
    logits = torch.zeros(10, 3)
    logits[6, 1] = float("nan")
    with pytest.raises(UsageError, match=r"logits for .*6\.png are not finite"):
        evaluate(Fixed(logits), pictures_of(folder), batch_size=4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 0}, "batch_size must be"),
        ({"workers": -1}, "workers must be"),
        ({"device": "cuda:77"}, "This machine has no cuda:77"),
        ({"dtype": "bfloat15"}, "Did you mean 'bfloat16'"),
    ],
)
def test_options_out_of_range_are_refused(folder: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        evaluate(Fixed(torch.zeros(10, 3)), pictures_of(folder), **options)


def test_misspelt_choices_are_refused(folder: Path) -> None:
    unchecked: Any = evaluate.__wrapped__
    while hasattr(unchecked, "__wrapped__"):
        unchecked = unchecked.__wrapped__
    for options in ({"bad_pictures": "skp"}, {"decoding": "exct"}):
        with pytest.raises(UnknownNameError, match="Did you mean"):
            unchecked(Fixed(torch.zeros(10, 3)), pictures_of(folder), **options)


def test_no_pictures_are_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="holds no pictures"):
        evaluate(Fixed(torch.zeros(0, 3)), pictures_of(folder, names=[]))


def test_an_evaluation_whose_parts_do_not_fit_is_refused() -> None:
    whole: dict[str, Any] = {
        "data": "d",
        "model": "m",
        "classes": ("a", "b"),
        "names": ("x", "y"),
        "labels": np.array([0, 1]),
        "scores": np.full((2, 2), 0.5, dtype=np.float32),
        "places": np.array([0, 1]),
    }
    assert Evaluation(**whole).top1 == 0.5
    for part in ({"names": ("x",)}, {"classes": ("a", "b", "c")}, {"labels": np.array([0, 2])}):
        with pytest.raises(UsageError):
            Evaluation(**whole | part)
