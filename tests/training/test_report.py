"""Pages about trainings: what stands on them is what the journal and the evaluation say, and they stand alone."""

from __future__ import annotations

import base64
import io
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitral.data.pictures import Arrays, Files, PictureSet
from vitral.errors import UsageError
from vitral.training.evaluate import Evaluation
from vitral.training.report import MOST_POINTS, evaluation_page, training_page

NASTY = "<script>alert('x')</script>&\""
VOID = {"meta", "img", "line", "circle", "polyline", "rect", "br"}


class Read(HTMLParser):
    """What a page holds; complains about tags that do not close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.open, self.words = text, list[str](), list[str]()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data.split()

    @property
    def said(self) -> str:
        """All text, with single blanks."""
        return " ".join(self.words)

    @property
    def pictures(self) -> list[Image.Image]:
        found = [str(given["src"]).partition(",")[2] for tag, given in self.tags if tag == "img"]
        return [Image.open(io.BytesIO(base64.b64decode(address, validate=True))) for address in found]

    def facts(self) -> dict[str, str]:
        return dict(re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd>", self.text))

    def line(self, title: str, kind: str = "first") -> np.ndarray:
        """The points (n 2) of a line, in the drawing's units."""
        chart = next(part for part in self.text.split("<figure")[1:] if f"<figcaption>{title}" in part)
        [points] = re.findall(rf'<polyline class="{kind}" points="([^"]+)"', chart)
        return np.array([pair.split(",") for pair in points.split()], dtype=float)


def evaluated(classes: int = 4, count: int = 200, **given: Any) -> tuple[Evaluation, PictureSet]:
    """A classifier that is often right, and the small grey pictures it was asked about."""
    numbers = np.random.default_rng(0)
    labels = numbers.integers(0, classes, count)
    logits = 2 * numbers.standard_normal((count, classes))
    logits[np.arange(count), labels] += 3
    powers = np.exp(logits)
    names = tuple(f"{number}.png" for number in range(count))
    told: dict[str, Any] = {
        "data": "noise/test",
        "model": "net",
        "classes": tuple(f"class {number}" for number in range(classes)),
        "names": names,
        "labels": labels,
        "scores": (powers / powers.sum(1, keepdims=True)).astype(np.float32),
        "places": np.arange(count),
    }
    evaluation = Evaluation(**told | given)
    store = Arrays("noise", names, numbers.integers(0, 256, (count, 8, 9), dtype=np.uint8))
    pictures = PictureSet(name="noise/test", classes=evaluation.classes, labels=labels, places=np.arange(count), store=store)
    return evaluation, pictures


def journal(steps: int, epochs: int = 4) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{"event": "start", "device": "cpu", "network": {"parameters": 136}}]
    for step in range(1, steps + 1):
        noise = math.sin(step * 12.9898) / 5
        rows.append({"event": "step", "step": step, "loss": 2 - step / steps + noise, "learning_rate": 1e-3 * step / steps})
        rows[-1] |= {"pictures_per_second": 500.0 + noise, "seconds": step / 10, "epoch": epochs * step / steps}
        if step * epochs % steps == 0:
            held = {"top1": 0.5 * step / steps, "top5": 0.5 + 0.25 * step / steps, "loss": 2.5 - step / steps}
            rows.append({"event": "epoch", "epoch": step * epochs // steps, "step": step, "loss": 2.0, "held_out": held})
    return [*rows, {"event": "end", "seconds": steps / 10}]


RECIPE = {"name": "small", "learning_rate": 1e-3, "augment": {"flip": 0.5, "sizes": (8, 9)}, "mixup": None}


def test_both_pages_stand_alone() -> None:
    evaluation, pictures = evaluated()
    for text in (evaluation_page(evaluation, pictures), training_page(journal(40), evaluation, pictures, RECIPE)):
        page = Read(text)
        assert {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object"} == set()
        assert re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?(?:https?:)?//", text) == []
        assert all(given.get("alt") for tag, given in page.tags if tag == "img")
        assert "prefers-color-scheme: dark" in text
        assert len(page.pictures) == 24


def test_the_numbers_on_the_page_are_the_evaluations() -> None:
    evaluation, pictures = evaluated(classes=6, skipped=("gone.png: There is no such file.",))
    page = Read(evaluation_page(evaluation, pictures))
    facts, ends = page.facts(), evaluation.intervals()
    assert facts["Top-1"] == f"{evaluation.top1:.1%} ({ends['top1'][0]:.1%} to {ends['top1'][1]:.1%})"
    assert facts["Top-5"].startswith(f"{evaluation.top5:.1%}")
    assert facts["Cross-entropy"].startswith(f"{evaluation.nll:.3f} nats")
    assert facts["Calibration error"] == f"{evaluation.ece:.1%}; in bins of equal number {evaluation.adaptive_ece:.1%}"
    assert facts["Pictures"] == "200, and 1 skipped"
    assert f"<h1>{evaluation.top1:.1%} of noise/test, named rightly</h1>" in page.text
    assert "gone.png: There is no such file." in page.said
    hits = [int(count) for count in re.findall(r'<td class="hit"[^>]*>(\d+)', page.text)]
    assert hits == np.diag(evaluation.confusion).tolist()
    shares = [float(share) for share in re.findall(r"--share: ([\d.]+)%\"></i>", page.text)]
    assert shares == pytest.approx(sorted(100 * evaluation.per_class.recall), abs=0.051)
    sure, right = evaluation.confidence.mean(), evaluation.top1
    verdict = "too sure" if sure - right > 0.01 else "too cautious" if right - sure > 0.01 else "about as sure"
    assert f"It was {sure:.1%} sure on average" in page.said
    assert verdict in page.said
    assert "Top-5" not in Read(evaluation_page(*evaluated(classes=5))).facts()


def test_the_worst_mistakes_are_shown_as_they_are() -> None:
    evaluation, pictures = evaluated()
    page = Read(evaluation_page(evaluation, pictures))
    captions = re.findall(r"<figcaption><span>class (\d) → class (\d)</span> <small>(\d+)%, truth (\d+)%", page.text)
    worst = evaluation.worst(24)
    assert len(captions) == len(worst) == 24
    for image, row, (true, said, sure, truth) in zip(page.pictures, worst.tolist(), captions, strict=True):
        assert np.array_equal(np.asarray(image.convert("L")), pictures.store.pictures[row])  # type: ignore[attr-defined]
        assert (int(true), int(said)) == (evaluation.labels[row], evaluation.scores[row].argmax())
        assert int(sure) == pytest.approx(100 * evaluation.scores[row].max(), abs=0.51)
        assert int(truth) == pytest.approx(100 * evaluation.scores[row, int(true)], abs=0.51)
    assert f"{int((evaluation.answers != evaluation.labels).sum())} mistakes in 200 pictures" in page.said


def test_pictures_left_out_move_no_other_into_their_place() -> None:
    whole, pictures = evaluated()
    kept = np.arange(1, 200, 2)
    names = tuple(whole.names[row] for row in kept)
    part = replace(whole, names=names, labels=whole.labels[kept], scores=whole.scores[kept], places=kept)
    page = Read(evaluation_page(part, pictures))
    first = pictures.store.pictures[2 * part.worst(1)[0] + 1]  # type: ignore[attr-defined]
    assert np.array_equal(np.asarray(page.pictures[0].convert("L")), first)
    other = pictures.subset(np.arange(199, -1, -1))
    with pytest.raises(UsageError, match="not those of noise/test in the same order"):
        evaluation_page(part, other)
    with pytest.raises(UsageError, match="Give the set that was evaluated"):
        evaluation_page(part, pictures.subset(np.arange(50)))


def test_photographs_are_small_and_one_that_is_gone_is_named(tmp_path: Path) -> None:
    evaluation, _ = evaluated(count=120, names=tuple(f"{number % 3}.jpg" for number in range(120)))
    for number in (0, 1):
        Image.effect_noise((500, 300), 60).convert("RGB").save(tmp_path / f"{number}.jpg")
    store = Files(tmp_path, evaluation.names)
    pictures = PictureSet(
        name="p", classes=evaluation.classes, labels=evaluation.labels, places=evaluation.places, store=store
    )
    page = Read(evaluation_page(evaluation, pictures))
    rows = [row for row in evaluation.worst(24).tolist() if row % 3 < 2]
    assert [(one.format, one.size) for one in page.pictures] == [("JPEG", (128, 77))] * len(rows)
    assert "No longer there: " in page.said
    assert f"{tmp_path / '2.jpg'}" in page.said


def test_of_many_classes_the_most_confused_are_shown() -> None:
    evaluation, _ = evaluated(classes=30, count=900)
    page = Read(evaluation_page(evaluation))
    assert "<table" not in page.text
    assert page.pictures == []
    off = evaluation.confusion - np.diag(np.diag(evaluation.confusion))
    most = np.sort(off.ravel())[::-1][:20]
    found = re.findall(r"<span>class (\d+) → class (\d+)</span><small>(\d+) of (\d+)</small>", page.text)
    assert [int(count) for _, _, count, _ in found] == most.tolist()
    assert all(off[int(true), int(said)] == int(count) for true, said, count, _ in found)
    assert all((evaluation.labels == int(true)).sum() == int(total) for true, _, _, total in found)
    recall = np.diag(evaluation.confusion) / evaluation.confusion.sum(1)
    listed = re.findall(r"<span>class (\d+)</span><small>(\d+)% of", page.text)
    assert [int(share) for _, share in listed[:20]] == [
        round(100 * share) for share in [*np.sort(recall)[:10], *np.sort(recall)[:-11:-1]]
    ]
    assert len(listed) == 50  # ten, ten, and all thirty folded away


def test_labels_of_several_names_are_short_where_that_is_enough() -> None:
    names = ("tench, Tinca tinca", "crane, bird", "crane, machine", "ox")
    heads = re.findall(r'<th scope="col"[^>]*>([^<]*)</th>', evaluation_page(replace(evaluated()[0], classes=names)))
    assert heads == ["tench", "crane, bird", "crane, machine", "ox"]


def test_curves_go_where_the_journal_says() -> None:
    page = Read(training_page(journal(40), None, None, RECIPE))
    x, y = page.line("Held-out accuracy", "first").T
    np.testing.assert_allclose(np.diff(x), np.diff(x)[0], atol=0.11)
    x, again = page.line("Held-out accuracy", "second").T
    # The edges are 0 and 1, 140 units apart.
    np.testing.assert_allclose((150 - y) / 140, [0.125, 0.25, 0.375, 0.5], atol=0.001)
    np.testing.assert_allclose((150 - again) / 140, [0.5625, 0.625, 0.6875, 0.75], atol=0.001)
    x, y = page.line("Loss", "first").T
    losses = np.array([row["loss"] for row in journal(40) if row["event"] == "step"])
    slope, start = np.polyfit(losses, y, 1)
    np.testing.assert_allclose(start + slope * losses, y, atol=0.06)
    assert len(page.line("Loss", "second")) == 4
    rates = page.line("Learning rate")[:, 1]
    np.testing.assert_allclose(np.diff(rates), np.diff(rates).mean(), atol=0.11)
    assert "Pictures per second" in page.said
    assert "<h1>50.0% of the pictures held out, named rightly</h1>" in page.text
    assert "small: 40 steps, 4 epochs in 4 seconds." in page.said
    facts = page.facts()
    assert (facts["learning_rate"], facts["augment.flip"], facts["augment.sizes"]) == ("0.001", "0.5", "8, 9")
    assert (facts["mixup"], facts["network.parameters"]) == ("none", "136")
    assert "options</summary>" not in page.text
    long = RECIPE | {f"option_{number}": number % 2 == 0 for number in range(30)}
    page = Read(training_page(journal(40), None, None, long))
    assert "<summary>All 35 options</summary>" in page.text
    assert (page.facts()["option_4"], page.facts()["option_5"]) == ("yes", "no")


def test_long_lines_keep_their_spikes_and_get_a_running_mean() -> None:
    rows = journal(5000)
    spike = next(row for row in rows if row.get("step") == 3333 and row["event"] == "step")
    spike["loss"] = 2.9
    page = Read(training_page(rows, None, None, RECIPE))
    raw, mean = page.line("Loss", "faint"), page.line("Loss", "first")
    assert 400 < len(raw) <= MOST_POINTS
    assert 400 < len(mean) <= MOST_POINTS
    losses = np.array([row["loss"] for row in rows if row["event"] == "step"])
    top = 3.0  # the round number above all losses
    np.testing.assert_allclose(raw[:, 1].min(), 150 - 140 * 2.9 / top, atol=0.06)
    [[window]] = [re.findall(r"the mean over (\d+) rows", page.said)]
    assert re.search(r"Of 5,000 rows, the least and the greatest of every \d+ are drawn", page.said)
    half = int(window) // 2
    steps = np.rint(1 + (mean[:, 0] - mean[0, 0]) / (mean[-1, 0] - mean[0, 0]) * 4999).astype(int)
    expected = [losses[max(0, step - 1 - half) : step + half].mean() for step in steps]
    # A tenth of a unit across is about two steps, over which the mean hardly moves.
    np.testing.assert_allclose((150 - mean[:, 1]) / 140 * top, expected, atol=0.02)
    assert mean[0, 0] == raw[0, 0]
    assert mean[-1, 0] == raw[-1, 0]


def test_losses_that_are_no_numbers_and_steps_taken_twice() -> None:
    rows = journal(40)
    steps = [row for row in rows if row["event"] == "step"]
    steps[3]["loss"], steps[7]["loss"] = "NaN", float("inf")
    rows += [{**steps[20], "loss": 0.5}]  # it went on from step 20, and took step 21 again
    page = Read(training_page(rows, None, None, RECIPE))
    line = page.line("Loss", "first")
    assert len(line) == 38
    assert line[:, 1].argmax() == 18  # step 21, behind two that are left out
    assert "Left out of the line, as no finite numbers: 2 losses." in page.said


def test_what_is_drawn_at_the_edge_is_said() -> None:
    rows = journal(200)
    next(row for row in rows if row["event"] == "step")["loss"] = 40.0
    page = Read(training_page(rows, None, None, RECIPE))
    assert page.line("Loss", "faint")[0, 1] == 10.0  # the upper edge
    assert re.search(r"Losses above (2\.4|3), up to 40, are drawn at the upper edge\.", page.said)
    assert "upper edge" not in Read(training_page(journal(200), None, None, RECIPE)).said


def test_a_journal_of_nothing_is_told_as_such() -> None:
    page = Read(training_page([], None, None, {}))
    assert "The journal tells of no step yet." in page.said
    assert "How network learned" in page.said
    only = Read(training_page([{"event": "epoch", "epoch": 1.0, "step": 9, "loss": 1.5, "held_out": None}], None, None, {}))
    assert len(only.line("Loss")) == 1
    with pytest.raises(UsageError, match="Row 1 of the journal says no event"):
        training_page([{"event": "start"}, {"step": 1}], None, None, {})


def test_nothing_strangers_wrote_becomes_markup() -> None:
    evaluation, pictures = evaluated(data=NASTY, model=NASTY, skipped=(NASTY,))
    nasty = replace(evaluation, classes=tuple(f"{NASTY}{number}" for number in range(4)))
    rows = [{"event": "start", NASTY: NASTY}, *journal(10)]
    for text in (
        evaluation_page(nasty, pictures, title=NASTY),
        training_page(rows, nasty, pictures, {NASTY: NASTY, "name": NASTY, "nested": {NASTY: [NASTY]}}),
    ):
        assert "<script" not in text
        assert not re.search(r'="[^"]*<', text)
        Read(text)


@pytest.mark.parametrize(
    ("held", "chart", "title"),
    [
        ({"ap": 0.25, "ap50": 0.5, "ap75": 0.2}, "Held-out average precision", "25.0% average precision held out"),
        ({"miou": 0.35, "pixel_accuracy": 0.8, "mean_accuracy": 0.5}, "Held-out pixels", "35.0% mean IoU held out"),
        (
            {"pq": 0.45, "sq": 0.8, "rq": 0.5, "pq_things": 0.4},
            "Held-out panoptic quality",
            "45.0% panoptic quality held out",
        ),
    ],
)
def test_what_detectors_and_segmenters_reached_is_drawn(held: dict[str, float], chart: str, title: str) -> None:
    rows = [{"event": "epoch", "epoch": float(one), "step": one, "loss": 1.0, "held_out": held} for one in (1, 2)]
    told = training_page(rows, None, None, {"name": "x"})
    assert f"<h1>{title}</h1>" in told
    assert f"{chart}; at last" in told
    assert all(f"{value:.1%}" in told for name, value in held.items() if name != "pq_things")
