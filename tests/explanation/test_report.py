"""The page: what it tells of the maps is what the network written out has, and nothing on it can be more than text."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import struct
import zlib
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vitral
from tests.explanation.conftest import tiny
from tests.explanation.eager import Eager
from vitral.data.transforms import Preprocessing
from vitral.errors import PictureError, UnknownNameError, UsageError
from vitral.explanation import packing, report
from vitral.explanation.report import explanation_page
from vitral.pipelines.predictor import Predictor

Told = dict[str, Any]
NASTY = '</script><img src=x onerror="alert(1)">&\''


def predictor_of(name: str = "vit_ti16", seed: int = 0, labels: tuple[str, ...] = (), **options: Any) -> Predictor:
    """A small network with large random weights, and a picture's way into it."""
    model = tiny(name, seed, **options)
    grey = model.config.channels == 1
    model.record = replace(
        model.record,
        architecture=name,
        labels=labels,
        preprocessing=Preprocessing(
            resize="exact", size=model.config.image_size, mean=(0.5,) * (1 if grey else 3), std=(0.5,) * (1 if grey else 3)
        ),
    )
    return vitral.load(model)


def photo(height: int = 40, width: int = 60) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


class Read(HTMLParser):
    """A page as a parser of HTML reads it, with what its data blocks hold."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.blocks: dict[str, str] = {}
        self.closed = False
        self.feed(text)
        self.told: Told = json.loads(self.blocks["told"])
        self.bytes = zlib.decompress(base64.b64decode(self.blocks["packed"]))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.closed = False

    def handle_endtag(self, tag: str) -> None:
        self.closed = True

    def handle_data(self, data: str) -> None:
        tag, attributes = self.tags[-1] if self.tags and not self.closed else ("", {})
        if tag == "script":
            self.blocks[attributes.get("id") or attributes.get("type") or "net"] = data
        elif tag != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def array(self, place: Told) -> np.ndarray[Any, Any]:
        size, form = {"u1": (1, "B"), "f4": (4, "f")}[place["type"]]
        count = int(np.prod(place["shape"]))
        assert place["at"] % size == 0, "a typed array of the browser must begin at a multiple of its numbers' size"
        return np.array(struct.unpack_from(f"<{count}{form}", self.bytes, place["at"])).reshape(place["shape"])

    def shares(self, layer: int) -> np.ndarray[Any, Any]:
        """A layer's maps as the page has them: (heads, asking, asked), the tokens before the patches first."""
        told = self.told["layers"][layer]
        levels, peaks, prefix = (self.array(told[name]) for name in ("levels", "peaks", "prefix"))
        return np.concatenate([prefix, (levels / 255) ** 2 * peaks[..., None]], axis=2)


def read(predictor: Predictor, picture: Any = None, **options: Any) -> Read:
    return Read(explanation_page(predictor, photo() if picture is None else picture, **options))


def maps_written_out(predictor: Predictor, picture: Any = None) -> list[np.ndarray[Any, Any]]:
    pixels, _ = predictor.prepare(photo() if picture is None else picture)
    eager = Eager(predictor.model)  # type: ignore[arg-type]
    with torch.no_grad():
        eager(pixels[None])
    return [parts["attention"][0].numpy() for parts in eager.found.values()]


# -- the maps ---------------------------------------------------------------------------------------------------------

# A class token, registers, no token at all, a token that distils, and a pool that asks (and sees the patches alone).
KINDS: dict[str, Told] = {
    "class": {},
    "registers": {"registers": 2},
    "patches": {"class_token": False, "prefix_positions": 0, "pool": "mean"},
    "distilled": {"name": "deit_ti16_distilled"},
    "pool": {"name": "siglip_b16"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_maps_are_those_of_the_network_written_out(kind: str) -> None:
    predictor = predictor_of(**KINDS[kind])
    page, expected = read(predictor), maps_written_out(predictor)
    assert len(page.told["layers"]) == len(expected)
    for layer, maps in enumerate(expected):
        found = page.shares(layer)
        assert found.shape == maps.shape
        prefix = maps.shape[2] - 4 * 6
        peaks = maps[..., prefix:].max(-1, keepdims=True)
        np.testing.assert_allclose(found[..., :prefix], maps[..., :prefix], rtol=2e-5, atol=1e-7)
        # Half a level of a square root: |a − b| ≤ √a / 255 · √peak and a little, but a level more below the peak's own.
        allowed = (
            np.sqrt(maps[..., prefix:] * peaks) / 255 + peaks / 255**2 + 0.0081 * peaks * (maps[..., prefix:] > 0.99 * peaks)
        )
        assert (np.abs(found - maps)[..., prefix:] <= allowed).all()
        # What the page says in words is exact: which patch is attended most, and how much.
        np.testing.assert_array_equal(found[..., prefix:].argmax(-1), maps[..., prefix:].argmax(-1))
        np.testing.assert_allclose(found[..., prefix:].max(-1), peaks[..., 0], rtol=2e-5)


def test_layers_are_named_as_the_library_numbers_them() -> None:
    page = read(predictor_of("siglip_b16"))
    assert [layer["name"] for layer in page.told["layers"]] == ["Layer 0", "Layer 1", "Layer 2", "Attention pooling"]
    assert [layer["pool"] for layer in page.told["layers"]] == [False, False, False, True]
    assert page.told["first"]["layer"] == 3
    assert read(predictor_of(registers=1)).told["prefix"] == ["the class token", "register 1"]


def test_a_head_that_gives_patches_nothing_shows_nothing() -> None:
    shares = torch.zeros(1, 1, 3, 3)
    shares[..., 0] = 1
    rows = packing.gathered(shares, grid=(1, 2), prefix=1, asking=1, asked=1)
    assert rows.levels.max() == 0
    assert rows.peaks.max() == 0
    assert rows.prefix.min() == 1


@pytest.mark.parametrize("sizes", [(1, 1), (2, 1), (2, 2), (3, 2), (4, 3), (6, 6)])
def test_blocks_average_who_asks_and_sum_who_is_asked(sizes: tuple[int, int]) -> None:
    grid, prefix, (asking, asked) = (4, 6), 2, sizes
    maps = torch.rand(1, 2, 26, 26, dtype=torch.float64).softmax(-1)
    rows = packing.gathered(maps, grid=grid, prefix=prefix, asking=asking, asked=asked)

    def blocks(size: int) -> list[list[int]]:
        return [
            [row * 6 + column for row in range(top, min(top + size, 4)) for column in range(left, min(left + size, 6))]
            for top in range(0, 4, size)
            for left in range(0, 6, size)
        ]

    askers = [[0], [1], *([prefix + patch for patch in block] for block in blocks(asking))]
    whole = maps[0].numpy()
    for head in range(2):
        for row, group in enumerate(askers):
            mean = np.mean([whole[head, token] for token in group], axis=0)
            sums = [sum(mean[prefix + patch] for patch in block) for block in blocks(asked)]
            np.testing.assert_allclose(rows.prefix[head, row], mean[:prefix], rtol=1e-5)
            np.testing.assert_allclose(rows.peaks[head, row], max(sums), rtol=1e-5)
            levels = 255 * np.sqrt(np.array(sums) / max(sums))
            assert np.abs(rows.levels[head, row] - levels).max() <= (1.0 if len(sums) > 1 else 0.01)


def test_a_large_network_stays_within_its_budget_and_says_so() -> None:
    predictor = predictor_of()
    whole = read(predictor)
    assert whole.told["blocks"] == {"asking": 1, "asked": 1}
    assert "To keep this page small" not in whole.text
    for budget, blocks in ((3600, (1, 1)), (3599, (2, 1)), (600, (2, 2)), (120, (3, 3)), (1, (6, 6))):
        page = read(predictor, budget=budget)
        assert page.told["blocks"] == {"asking": blocks[0], "asked": blocks[1]}, budget
        count = sum(int(np.prod(layer["levels"]["shape"])) for layer in page.told["layers"])
        assert count <= budget or blocks == (6, 6)
        if blocks != (1, 1):
            assert f"averaged over {blocks[0]} × {blocks[0]} patches" in page.text
        # However they are gathered, a row's shares remain shares of one.
        np.testing.assert_allclose(page.shares(0).sum(-1), 1, atol=0.02)


@pytest.mark.parametrize("budget", [0, -1, True])
def test_a_budget_is_a_number_of_numbers(budget: Any) -> None:
    with pytest.raises(UsageError, match="budget must be a whole number"):
        packing.block_sizes((4, 4), 1, 6, budget)


def test_a_page_of_a_small_vit_at_224_has_at_most_5_mb() -> None:
    # Its 6 heads × 12 layers × 197² maps, were they pure noise, which no packing makes smaller; and the largest picture.
    store = packing.Store()
    noise = np.random.default_rng(0)
    assert packing.block_sizes((14, 14), 1, 6 * 12, 8_000_000) == (1, 1)
    store.add(noise.integers(0, 256, (72, 197, 196), dtype=np.uint8))
    store.add(noise.random((72, 197, 2)).astype(np.float32))
    store.add(noise.integers(0, 256, (196, 196), dtype=np.uint8))
    picture = Image.fromarray(noise.integers(0, 256, (report._LONGEST, report._LONGEST, 3), dtype=np.uint8))
    rest = sum(len(report._resource(name)) for name in ("report.js", "report.css")) + 60_000
    assert len(store.packed()) + len(report.page.picture_address(picture, photo=True)) + rest < 5_000_000


# -- the picture ------------------------------------------------------------------------------------------------------


def test_the_picture_lies_where_the_model_saw_it() -> None:
    model = tiny(image_size=(32, 32))
    model.record = replace(model.record, preprocessing=Preprocessing(resize="shortest_edge", size=(32, 32), crop=(32, 32)))
    told = read(vitral.load(model), photo(100, 200)).told["picture"]
    assert told["seen"] == [50, 0, 150, 100]  # the middle square
    assert told["view"] == [25, 0, 175, 100]  # and a quarter of it to either side
    assert told["box"] == told["view"]
    assert told["origin"] == [50, 0]
    assert told["patch"] == [25, 25]
    assert not told["smooth"]  # 32 × 32 pixels are shown as such


def test_what_is_beyond_the_picture_is_seen_too() -> None:
    model = tiny(image_size=(32, 32))
    model.record = replace(model.record, preprocessing=Preprocessing(resize="none", crop=(32, 32)))
    told = read(vitral.load(model), photo(16, 32)).told["picture"]
    assert told["seen"] == [0, -8, 32, 24]
    assert told["view"] == [0, -8, 32, 24]
    assert told["box"] == [0, 0, 32, 16]


def test_a_picture_that_patches_do_not_fill() -> None:
    model = tiny()
    model.record = replace(model.record, preprocessing=Preprocessing(resize="none"))
    page = read(vitral.load(model), photo(39, 50))
    assert page.told["grid"] == [4, 6]
    assert page.told["picture"]["seen"] == [0, 0, 48, 32]
    assert "What is faded was cropped away" in page.text


def test_a_tiny_picture_keeps_every_pixel() -> None:
    digit = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    predictor = predictor_of(image_size=(8, 8), patch_size=(2, 2), channels=1)
    for picture in (digit, digit.repeat(16, 0).repeat(16, 1)):  # as it is, and as a file that can be looked at
        told = read(predictor, picture).told["picture"]
        head, _, packed = told["address"].partition(",")
        assert head == "data:image/png;base64"
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(packed))))
        np.testing.assert_array_equal(shown, digit)
        assert not told["smooth"]


def test_a_photograph_is_kept_small(tmp_path: Path) -> None:
    photo(1500, 2000).save(tmp_path / "large.png")
    told = read(predictor_of(image_size=(128, 128), patch_size=(32, 32)), tmp_path / "large.png").told["picture"]
    assert told["address"].startswith("data:image/jpeg;base64,")
    assert told["box"] == [0, 0, 2000, 1500]
    assert told["smooth"]


# -- what is written --------------------------------------------------------------------------------------------------


def test_classes_stand_with_their_probabilities() -> None:
    predictor = predictor_of(labels=tuple("abcdefg"))
    page = read(predictor, top_k=3)
    with torch.no_grad():
        logits = Eager(predictor.model)(predictor.prepare(photo())[0][None])[0]  # type: ignore[arg-type]
    scores = (logits.exp() / logits.exp().sum()).numpy()
    for place in np.argsort(-scores)[:3]:
        assert (
            page.text.count(f"{'abcdefg'[place]} {scores[place]:.1%}".replace("%", " %")) == 3
        )  # above, and explained twice
    assert len(page.told["heats"]) == 7  # three classes by two methods, and rollout
    assert page.text.count("Rollout (Abnar and Zuidema 2020)") == 1


def test_heat_is_the_explanation_s() -> None:
    predictor = predictor_of(labels=tuple("abcdefg"))
    page = read(predictor, top_k=1, target="c", method="integrated_gradients", steps=4)
    heat = page.told["heats"][0]
    expected = vitral.explain(predictor, photo(), method="integrated_gradients", target=2, steps=4).clipped
    assert heat["signed"]
    np.testing.assert_allclose(heat["over"], [0, 0, 60, 40], atol=1e-9)
    levels = page.array(heat["levels"])
    assert levels.shape == expected.shape == (32, 48)
    np.testing.assert_allclose(
        (levels / 255 - 0.5) * 2 * np.abs(expected).max(), expected, atol=np.abs(expected).max() / 250
    )
    assert "Red speaks for the class" in page.text


def test_a_model_without_classes_is_still_worth_a_page() -> None:
    page = read(predictor_of("dinov2_s14", num_classes=0))
    assert "Why these classes" not in page.text
    assert "From the answer back to the patches" in page.text
    assert len(page.told["heats"]) == 1
    assert not [tag for tag, attributes in page.tags if attributes.get("class") == "classes"]
    assert len(read(predictor_of("dinov2_s14", num_classes=0), method="attention").told["heats"]) == 2
    with pytest.raises(UsageError, match="The model has no classes; leave target='a' out"):
        read(predictor_of("dinov2_s14", num_classes=0), target="a")


def test_positions_are_compared_or_left_out() -> None:
    predictor = predictor_of()
    page = read(predictor)
    told = page.told["positions"]
    table = predictor.model.get_parameter("position_table").detach().double()[0, 1:].numpy()
    unit = table / np.sqrt((table**2).sum(1, keepdims=True))
    cosines = unit @ unit.T
    values = told["low"] + page.array(told["levels"]) / 255 * (told["high"] - told["low"])
    np.testing.assert_allclose(values, cosines, atol=(cosines.max() - cosines.min()) / 500)
    assert "Position embeddings (learned)" in page.text
    blind = read(predictor_of(position="none", prefix_positions=0))
    assert blind.told["positions"] is None
    assert "What it knows of places" not in blind.text


def test_dots_of_the_chart_are_where_the_distances_are() -> None:
    predictor = predictor_of()
    page = read(predictor)
    rows, columns = np.divmod(np.arange(24), 6)
    apart = 8 * np.hypot(rows[:, None] - rows, columns[:, None] - columns)
    dots = {
        (int(given["data-layer"] or 0), int(given["data-head"] or 0)): float(given["cy"] or 0)
        for tag, given in page.tags
        if tag == "circle"
    }
    told = [float(found) for found in re.findall(r"Layer \d, head \d: ([\d.]+) pixels", page.text)]
    expected = []
    for maps in maps_written_out(predictor):
        inside = maps[:, 1:, 1:] / maps[:, 1:, 1:].sum(-1, keepdims=True)
        expected += list((inside * apart).sum(-1).mean(-1))
    np.testing.assert_allclose(told, expected, atol=0.06)
    slope, start = np.polyfit(expected, list(dots.values()), 1)
    assert slope < 0  # up is far
    np.testing.assert_allclose(start + slope * np.array(expected), list(dots.values()), atol=0.06)


def test_nothing_from_outside_becomes_markup(tmp_path: Path) -> None:
    path = tmp_path / "<img src=x onerror=alert(1)>&'\".png"
    photo().save(path)
    predictor = predictor_of(labels=(NASTY, "<!--", "&lt;b&gt;", "<script>", "x" * 300, "\u2028", "g"))
    predictor.record = replace(predictor.record, architecture=NASTY)
    text = explanation_page(predictor, path, top_k=7)
    page = Read(text)
    tags = [tag for tag, _ in page.tags]
    assert "img" not in tags
    assert tags.count("script") == 4
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert NASTY in page.text
    assert f"{path.name}, as the model sees it" in page.text
    assert str(tmp_path) not in unescape(text)  # a page is passed on; folders are nobody's business


def test_a_name_that_is_no_unicode(tmp_path: Path) -> None:
    assert report.called("folder/\udce9.png").encode() == b"?.png"
    assert report.called("https://example.org/a%20b.jpg?size=3") == "a b.jpg"
    assert report.called("<bytes>") == "The picture"
    assert report.called("/") == "picture"


def test_nothing_is_fetched_and_only_our_script_runs() -> None:
    text = explanation_page(predictor_of(), photo())
    page = Read(text)
    policy = next(given["content"] for tag, given in page.tags if tag == "meta" and "http-equiv" in given)
    digests = [base64.b64encode(hashlib.sha256(page.blocks[one].encode()).digest()).decode() for one in ("net", "module")]
    scripts = " ".join(f"'sha256-{digest}'" for digest in digests)
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {scripts}"
    for tag, given in page.tags:
        assert not {"src", "href", "srcset", "action"} & given.keys(), tag
        assert tag not in ("link", "iframe", "object", "base", "form")
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


# -- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"method": "relevanc"}, UnknownNameError, "'relevance'"),
        ({"method": "relevance", "layer": 2}, UnknownNameError, "option of the relevance method 'layer'"),
        ({"top_k": 0}, UsageError, "top_k must be a whole number"),
        ({"target": 7}, UsageError, "There is no class 7"),
        ({"target": 1, "method": "rollout"}, UsageError, "The method 'rollout' knows no class"),
    ],
    ids=str,
)
def test_mistakes_are_told_as_sentences(options: Told, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=re.escape(sentence)):
        explanation_page(predictor_of(), photo(), **options)


def test_a_picture_that_cannot_be_read() -> None:
    with pytest.raises(PictureError):
        explanation_page(predictor_of(), b"no picture")


def test_maps_that_are_no_numbers_are_not_shown() -> None:
    predictor = predictor_of()
    with torch.no_grad():
        predictor.model.get_parameter("blocks.1.attention.qkv.weight")[0, 0] = float("nan")
    with pytest.raises(UsageError, match="not a finite number"):
        explanation_page(predictor, photo())


def test_maps_of_another_kind_are_refused() -> None:
    with pytest.raises(UsageError, match="5 × 9 tokens does not fit"):
        packing.gathered(torch.rand(1, 1, 5, 9), grid=(2, 2), prefix=1, asking=1, asked=1)


def test_every_step_is_told() -> None:
    steps: list[str] = []
    explanation_page(predictor_of(labels=tuple("abcdefg")), photo(), top_k=1, on_step=steps.append)
    assert steps[0] == "looking"
    assert steps[-1] == "writing"
    assert [step for step in steps if step.startswith(("Grad-CAM: ", "Relevance: "))]
