"""The page in a real browser: it opens from a file without a network, and does what hands ask of it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.explanation.test_report import NASTY, photo, predictor_of
from vitral.explanation.capture import capture
from vitral.explanation.report import explanation_page
from vitral.pipelines.predictor import Predictor

api = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra `dev`, to drive a browser")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs chromium or google-chrome on the PATH")

ROWS, COLUMNS, PREFIX = 4, 6, 3  # of the network most tests look into: a class token and two registers


@dataclass
class Opened:
    """A page in the browser, and what it did unasked.

    Attributes:
        page: playwright's.
        asked: the addresses it asked for, its own aside.
        refused: those of them that it did not get, and why.
        said: what its console and its errors say.
    """

    page: Any
    asked: list[str] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def saying(self) -> str:
        """The live text, once the next picture is drawn."""
        self.page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return str(self.page.inner_text("#saying")).replace("\u00a0", " ")

    def hint(self) -> str:
        self.saying()
        return str(self.page.inner_text("#hint")).replace("\u00a0", " ")

    def at(self, row: int, column: int, canvas: str = "#stage") -> tuple[float, float]:
        """The middle of a patch on the screen; the whole picture is seen in these tests."""
        self.page.locator(canvas).scroll_into_view_if_needed()
        box = self.page.locator(canvas).bounding_box()
        return box["x"] + (column + 0.5) * box["width"] / COLUMNS, box["y"] + (row + 0.5) * box["height"] / ROWS

    def hover(self, row: int, column: int) -> str:
        self.page.mouse.move(*self.at(row, column))
        return self.saying()

    def click(self, row: int, column: int) -> str:
        self.page.mouse.click(*self.at(row, column))
        return self.saying()

    def pixels(self, canvas: str = "#stage") -> str:
        self.saying()
        return str(self.page.locator(canvas).first.evaluate("(canvas) => canvas.toDataURL()"))

    def key(self, *keys: str) -> str:
        for key in keys:
            self.page.keyboard.press(key)
        return self.saying()


Open = Callable[..., Opened]


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    labels = ("red kite", "großer Bär", NASTY, "d", "e", "f", "g")
    return predictor_of(registers=2, labels=labels)


@pytest.fixture(scope="module")
def written(predictor: Predictor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    photo().save(folder / "<b>bold.png")
    (folder / "page.html").write_text(
        explanation_page(predictor, folder / "<b>bold.png", top_k=7, method="relevance"), encoding="utf-8"
    )
    return folder / "page.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=BROWSER, args=["--headless", "--no-sandbox", "--disable-gpu"], timeout=30_000
        )
        yield running
        running.close()


@pytest.fixture
def opened(browser: Any, written: Path) -> Iterator[Open]:
    """Opens a page, the one of most tests if none is named; afterwards nothing may have been fetched or complained of."""
    pages: list[Opened] = []
    contexts = []

    def open_page(path: Path = written, *, script: str = "", width: int = 1100, **options: Any) -> Opened:
        context = browser.new_context(viewport={"width": width, "height": 800}, offline=True, **options)
        context.set_default_timeout(8000)
        contexts.append(context)
        one = Opened(context.new_page())
        one.page.on("request", lambda request: one.asked.append(request.url))
        one.page.on("requestfailed", lambda request: one.refused.append((request.url, request.failure)))
        one.page.on("console", lambda message: one.said.append(message.text))
        one.page.on("pageerror", lambda error: one.said.append(str(error)))
        one.page.on("dialog", lambda dialog: (one.said.append("a dialog"), dialog.dismiss()))
        if script:
            one.page.add_init_script(script)
        one.page.goto(path.as_uri())
        one.page.wait_for_selector("body.awake, #asleep:not(:empty)", state="attached")
        one.asked.remove(path.as_uri())
        pages.append(one)
        return one

    yield open_page
    for one in pages:
        assert [address for address in one.asked if not address.startswith("data:")] == []
        assert one.said == []
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def maps(predictor: Predictor) -> np.ndarray[Any, Any]:
    """(layers, heads, asking, asked), from `capture`."""
    pixels, _ = predictor.prepare(photo())
    with torch.no_grad(), capture(predictor.model) as captured:
        predictor.model(pixels[None])
    return torch.cat(list(captured)).double().numpy()


def told_by(text: str) -> tuple[str, str, str, float]:
    """Where, who, whom and how much of the patches: the live text taken apart."""
    found = re.fullmatch(r"(Layer \d+, .+?): (.+?) attends most to (?:.+; of the patches, to )?(.+), ([\d.]+) %\.", text)
    assert found, text
    return found[1], found[2], found[3], float(found[4]) / 100


def expected_of(row: np.ndarray[Any, Any], who: str) -> tuple[str, float]:
    best = int(row[PREFIX:].argmax())
    name = f"patch {divmod(best, COLUMNS)}"
    return "itself" if name == who else name, float(row[PREFIX + best])


def test_the_live_text_says_what_was_captured(opened: Open, maps: np.ndarray[Any, Any]) -> None:
    page = opened()
    layer = 2  # two thirds of three layers up
    where, who, whom, share = told_by(page.saying())
    assert (where, who) == (f"Layer {layer}, mean of heads", "the class token")
    name, most = expected_of(maps[layer].mean(0)[0], who)
    assert whom == name
    assert share == pytest.approx(most, rel=0.01)  # each head is rounded to 8 bits
    page.page.fill("#head", "1")
    page.page.fill("#layer", "1")
    for row, column in ((0, 0), (2, 3), (3, 5)):
        where, who, whom, share = told_by(page.hover(row, column))
        assert (where, who) == ("Layer 1, head 1", f"patch ({row}, {column})")
        name, most = expected_of(maps[1, 1, PREFIX + row * COLUMNS + column], who)
        assert whom == name
        assert share == pytest.approx(most, rel=0.0051)  # three digits: the greatest share itself is not rounded


def test_a_token_before_the_patches_is_named_where_it_gets_most(opened: Open, maps: np.ndarray[Any, Any]) -> None:
    page = opened()
    page.page.fill("#head", "0")
    found = 0
    for layer in range(3):
        page.page.fill("#layer", str(layer))
        for patch in range(0, ROWS * COLUMNS, 7):
            text = page.hover(*divmod(patch, COLUMNS))
            row = maps[layer, 0, PREFIX + patch]
            first = int(row[:PREFIX].argmax())
            to_prefix = row[:PREFIX].max() > row[PREFIX:].max()
            name = ("the class token", "register 1", "register 2")[first]
            assert (f"attends most to {name}, {100 * row[first]:#.3g} %;" in text) == to_prefix
            found += to_prefix
    assert found


def test_pointing_changes_the_picture_and_leaving_brings_it_back(opened: Open) -> None:
    page = opened()
    resting, text = page.pixels(), page.saying()
    page.hover(1, 1)
    one = page.pixels()
    page.hover(2, 4)
    other = page.pixels()
    assert len({resting, one, other}) == 3
    page.page.mouse.move(1, 1)
    assert page.pixels() == resting
    assert page.saying() == text


def test_a_click_holds_a_patch_and_others_tell_their_share(opened: Open, maps: np.ndarray[Any, Any]) -> None:
    page = opened()
    page.page.fill("#layer", "0")
    page.page.fill("#head", "0")
    held = page.click(1, 2)
    assert "patch (1, 2)" in held
    assert page.hover(3, 4) == held
    share = maps[0, 0, PREFIX + 1 * COLUMNS + 2, PREFIX + 3 * COLUMNS + 4]
    found = re.fullmatch(r"Patch \(3, 4\): ([\d.]+) %\.", page.hint())
    assert found
    peak = maps[0, 0, PREFIX + 1 * COLUMNS + 2, PREFIX:].max()
    assert float(found[1]) / 100 == pytest.approx(share, abs=np.sqrt(share * peak) / 255 + peak / 255**2 + 0.006 * share)
    page.click(3, 4)
    assert "patch (3, 4)" in page.saying()
    page.click(3, 4)  # lets it go
    assert "patch (0, 0)" in page.hover(0, 0)


def test_buttons_take_the_tokens_before_the_patches(opened: Open, maps: np.ndarray[Any, Any]) -> None:
    page = opened()
    buttons = page.page.locator("#tokens button")
    assert [text.split(" ")[0] for text in buttons.all_inner_texts()] == ["class", "register", "register"]
    buttons.nth(2).click()
    _, who, whom, share = told_by(page.saying())
    assert who == "register 2"
    name, most = expected_of(maps[2].mean(0)[2], who)
    assert (whom, share) == (name, pytest.approx(most, rel=0.01))
    assert buttons.evaluate_all("(all) => all.map((one) => one.ariaPressed)") == ["false", "false", "true"]
    given = float(str(buttons.nth(0).inner_text()).replace("\u00a0", " ").split()[-2])
    assert given / 100 == pytest.approx(maps[2].mean(0)[2, 0], rel=0.0051)
    assert "register 2" in page.hover(0, 0)


def test_the_keyboard_does_all_that_a_hand_does(opened: Open) -> None:
    page = opened()
    page.page.focus("#stage")
    assert "patch (2, 4)" in page.key("ArrowRight")  # from the middle, (2, 3)
    assert "patch (1, 3)" in page.key("ArrowUp", "ArrowLeft")
    assert "patch (3, 0)" in page.key(*["ArrowDown"] * 9, *["ArrowLeft"] * 9)  # no farther than the edge
    assert "patch (3, 0)" in page.key("Enter")
    assert "patch (3, 0)" in page.key("ArrowRight")
    assert page.hint().startswith("Patch (3, 1): ")
    assert page.key("Shift+L").startswith("Layer 1, ")
    assert page.key("l", "l", "l").startswith("Layer 2, ")
    assert page.key("h").startswith("Layer 2, head 0: ")
    assert page.key("h", "h").startswith("Layer 2, head 1: ")
    assert page.key("Shift+H").startswith("Layer 2, head 0: ")
    assert page.key("m").startswith("Layer 2, mean of heads: ")
    with_lines = page.pixels()
    page.key("g")
    assert page.pixels() != with_lines
    assert "the class token" in page.key("Escape")
    assert page.page.evaluate("document.activeElement.id") == "stage"


def test_everything_can_be_reached_with_the_tab_key(opened: Open) -> None:
    page = opened()
    found = []
    for _ in range(12):
        page.page.keyboard.press("Tab")
        found.append(page.page.evaluate("document.activeElement.id || document.activeElement.className"))
    for name in ("stage", "token", "layer", "head", "strength", "lines", "map current", "atlas"):
        assert name in found
    assert found.count("map current") == 1  # one stop for all maps of the wall


def test_sliders_and_the_box_redraw(opened: Open) -> None:
    page = opened()
    seen = {page.pixels()}
    for control, value in (("#layer", "0"), ("#head", "1"), ("#strength", "20")):
        page.page.fill(control, value)
        seen.add(page.pixels())
    page.page.uncheck("#lines")
    seen.add(page.pixels())
    assert len(seen) == 5
    assert page.saying().startswith("Layer 0, head 1: ")
    assert page.page.inner_text("#layer-name") == "0"
    assert page.page.inner_text("#head-name") == "1"


def test_the_wall_shows_and_sets_layer_and_head(opened: Open, maps: np.ndarray[Any, Any]) -> None:
    page = opened()
    assert page.page.locator("#wall .map").count() == 3 * (2 + 1)
    page.hover(1, 1)
    colours = (
        page.page.get_by_label("Layer 1, head 0")
        .locator("canvas")
        .evaluate("(one) => Array.from(one.getContext('2d').getImageData(0, 0, one.width, one.height).data)")
    )
    brightness = np.array(colours).reshape(ROWS, COLUMNS, 4)[..., :3].sum(-1).ravel()
    row = maps[1, 0, PREFIX + 1 * COLUMNS + 1, PREFIX:]
    # Inferno grows brighter all the way, so the order of the maps is the order of the colours.
    apart = np.abs(row[:, None] - row) > 0.02 * row.max()
    assert (np.sign(row[:, None] - row) == np.sign(brightness[:, None] - brightness))[apart].all()
    page.page.get_by_label("Layer 1, head 0").click()
    assert page.saying().startswith("Layer 1, head 0: ")
    assert page.page.input_value("#layer") == "1"
    assert page.page.input_value("#head") == "0"
    page.key("ArrowRight", "ArrowDown")
    assert page.page.evaluate("document.activeElement.ariaLabel") == "Layer 2, head 1"
    assert page.key("ArrowUp", "ArrowUp", "ArrowLeft").startswith("Layer 1, head 0: ")
    page.page.get_by_label("Layer 0, mean of heads").click()
    assert page.saying().startswith("Layer 0, mean of heads: ")


def test_a_dot_of_the_chart_sets_layer_and_head(opened: Open) -> None:
    page = opened()
    page.page.locator('circle[data-layer="1"][data-head="0"]').click(force=True)
    where = page.saying().split(":")[0]
    assert where in ("Layer 1, head 0", "Layer 1, head 1")  # dots may lie upon each other
    assert page.page.locator("circle.current").count() == 1


def test_maps_of_positions_follow_the_pointer(opened: Open) -> None:
    page = opened()
    before = page.pixels("#likeness")
    page.page.mouse.move(*page.at(0, 5, "#atlas"))
    assert page.page.inner_text("#alike").startswith("Patch (0, 5) is most like ")
    assert page.pixels("#likeness") != before
    page.page.focus("#atlas")
    page.key("ArrowDown", "ArrowLeft")
    assert page.page.inner_text("#alike").startswith("Patch (1, 4) is most like ")


def test_heat_is_drawn_on_every_card(opened: Open) -> None:
    page = opened()
    page.saying()
    drawn = page.page.locator("canvas[data-heat]").evaluate_all("(all) => all.map((one) => one.toDataURL())")
    assert len(set(drawn)) == 8  # seven classes and rollout, no two alike


def test_what_strangers_wrote_stays_text(opened: Open) -> None:
    page = opened()
    assert page.page.locator("main img, main b >> text=bold").count() == 0
    assert page.page.inner_text("h1") == "<b>bold.png, as the model sees it"
    assert page.page.get_by_text(NASTY).count() == 2


def test_the_policy_holds_against_what_was_slipped_in(opened: Open, written: Path, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    slipped = "<script>document.title = 'stolen'</script><img src='http://127.0.0.1:9/a.png' onerror='document.title = 1'>"
    path.write_text(written.read_text("utf-8").replace("</main>", f"{slipped}</main>"), encoding="utf-8")
    page = opened(path)
    assert "the class token" in page.saying()
    assert page.page.title() == "<b>bold.png, as the model sees it"
    assert page.refused == [("http://127.0.0.1:9/a.png", "csp")]
    assert len(page.said) >= 2
    assert all("Content Security Policy" in complaint for complaint in page.said)
    page.asked.clear()
    page.said.clear()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_phone_shows_all_of_it(opened: Open, dark: bool) -> None:
    page = opened(width=360, has_touch=True, is_mobile=True, color_scheme="dark" if dark else "light")
    assert page.page.evaluate("document.documentElement.scrollWidth") <= 360
    page.page.touchscreen.tap(*page.at(2, 1))
    assert "patch (2, 1)" in page.saying()
    assert page.hint().startswith("Held.") or page.hint().startswith("Patch (2, 1)")
    page.page.touchscreen.tap(*page.at(0, 3))
    assert "patch (0, 3)" in page.saying()
    ground = page.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground))) < 200) == dark


def test_a_browser_that_cannot_unpack_is_told(opened: Open) -> None:
    page = opened(script="delete window.DecompressionStream")
    assert "lacks DecompressionStream" in page.page.inner_text("#asleep")
    assert not page.page.is_visible("#stage")
    assert page.page.is_visible(".classes")


OTHERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "pool": ({"name": "siglip_b16"}, {}),
    "blocks": ({}, {"budget": 600}),
    "uneven blocks": ({"registers": 1}, {"budget": 60}),
    "no classes, no positions": ({"num_classes": 0, "position": "none", "prefix_positions": 0}, {}),
    "grey and tiny": ({"image_size": (8, 12), "patch_size": (2, 2), "channels": 1, "class_token": False, "pool": "mean",
                       "prefix_positions": 0}, {}),
    "signed": ({}, {"method": "integrated_gradients", "steps": 2, "top_k": 1}),
    "one patch": ({"image_size": (8, 8)}, {"top_k": 1}),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_other_networks_open_too(opened: Open, tmp_path: Path, kind: str) -> None:
    options, wishes = OTHERS[kind]
    path = tmp_path / "page.html"
    path.write_text(explanation_page(predictor_of(**options), photo(), **wishes), encoding="utf-8")
    page = opened(path)
    text = page.saying()
    if kind == "pool":
        assert text.startswith("Attention pooling, mean of heads: the pool’s query attends most to patch ")
        assert "patch (1, 1)" not in page.hover(1, 1).split("attends")[0]
        assert re.match(r"Patch \(1, 1\): [\d.]+ %\.", page.hint())
        page.page.fill("#layer", "2")
        assert page.hover(1, 1).startswith("Layer 2, mean of heads: patch (1, 1) attends most to ")
    elif "blocks" in kind:
        assert " attends most to " in text
        size = 2 if kind == "blocks" else 4
        where = "(0–1, 2–3)" if size == 2 else "(0–3, 0–3)"
        assert f"patches {where} attend most to " in page.hover(0, 2)
        page.page.focus("#stage")
        assert f": patches {where}" not in page.key("ArrowRight", "ArrowRight")
    else:
        assert "attends most to" in text
    assert page.page.evaluate("document.documentElement.scrollWidth") <= 1100
