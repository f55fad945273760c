"""The page about segments in a real browser: it opens from a file without a network, and does what hands and keys ask."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.explanation.test_segmentation_explained import picture, predictor_of
from vitral.explanation import segment_report
from vitral.explanation.page_parts import resource
from vitral.explanation.segment_look import look_at_segments
from vitral.explanation.segment_report import segment_explanation_page

api = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra `dev`, to drive a browser")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs chromium or google-chrome on the PATH")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=BROWSER, args=["--headless", "--no-sandbox", "--disable-gpu"], timeout=60_000
        )
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    kind, fragment = request.param
    (tmp_path / "page.html").write_text(segment_explanation_page(predictor_of(kind), picture()), encoding="utf-8")
    page = browser.new_context(viewport={"width": 1100, "height": 900}, offline=True).new_page()
    page.set_default_timeout(15_000)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto((tmp_path / "page.html").as_uri() + fragment)
    page.wait_for_selector("body.awake", state="attached")
    yield page
    assert said == []


def pressed(page: Any, kind: str) -> Any:
    chosen = page.locator(f'[data-{kind}][aria-pressed="true"]')
    return chosen.get_attribute(f"data-{kind}") if chosen.count() else None


def click_at(page: Any, x: float, y: float) -> None:
    """Click on a pixel of the picture, which is 90 wide and 60 high."""
    box = page.locator("#stage").bounding_box()
    page.mouse.click(box["x"] + box["width"] * x / 90, box["y"] + box["height"] * y / 60)


@pytest.mark.parametrize("page", [("segmenter", "#segment=1&method=attention&layer=4")], indirect=True)
def test_segments_and_patches_are_chosen_by_hand_and_by_key(page: Any) -> None:
    look = look_at_segments(predictor_of("segmenter"), picture())
    assert pressed(page, "segment") == "1"
    assert "its class's token took" in page.inner_text("#saying")
    share = look.heat(1, 4).sum()
    assert f"{100 * share:.1f}" in page.inner_text("#saying")
    page.keyboard.press("Shift+L")
    assert "layer 3" in page.inner_text("#saying")
    page.keyboard.press("Escape")
    assert pressed(page, "segment") is None
    x, y = next((x, y) for y in range(2, 58) for x in range(2, 88) if look.asked[2].mask[y - 1 : y + 2, x - 1 : x + 2].all())
    click_at(page, x + 0.5, y + 0.5)
    assert pressed(page, "segment") == "2"
    click_at(page, x + 0.5, y + 0.5)
    assert pressed(page, "segment") is None
    page.click('[data-method="patch"]')
    click_at(page, 40, 20)
    patch = page.locator("#marks .patch").last
    left, top = (float(patch.get_attribute(side)) for side in "xy")
    assert (left, top) == pytest.approx((90 / 83 * 8 * 4, 60 / 61 * 8 * 2), abs=1e-2)
    assert "none gave more than" in page.inner_text("#saying")
    page.focus('[data-segment="0"]')
    page.keyboard.press("ArrowDown")
    assert pressed(page, "segment") == "1"
    assert pressed(page, "method") == "relevance"


@pytest.mark.parametrize("page", [("mask2former", "#segment=0")], indirect=True)
def test_masks_of_queries_are_seen_layer_by_layer(page: Any) -> None:
    look = look_at_segments(predictor_of("mask2former"), picture())
    assert page.locator("#masks button").count() == look.times == 5
    page.locator("#masks button").nth(1).click()
    assert pressed(page, "method") == "mask"
    label, chance = look.said(0, 1)
    said = page.inner_text("#saying").replace("\u00a0", " ")
    assert "drawing 1" in said
    assert f"took itself for {label} ({100 * chance:.1f} %)" in said
    assert label in page.locator("#masks small").nth(1).inner_text()
    before = page.evaluate("document.getElementById('stage').toDataURL()")
    page.keyboard.press("l")
    assert "drawing 2" in page.inner_text("#saying")
    assert page.evaluate("document.getElementById('stage').toDataURL()") != before
    assert "drawn=2" in page.url
    page.locator("#layers button").last.click()
    assert "its query took 100" in page.inner_text("#saying")


def opened(browser: Any, text: str, path: Path) -> Any:
    path.write_text(text, encoding="utf-8")
    page = browser.new_context(viewport={"width": 1100, "height": 900}, offline=True).new_page()
    page.goto(path.as_uri())
    return page


@pytest.mark.parametrize("kind", ["segmenter", "segformer"])
def test_a_pixel_is_shown_and_counted(kind: str, browser: Any, tmp_path: Path) -> None:
    page = opened(browser, segment_explanation_page(predictor_of(kind), picture(), target=(40, 30)), tmp_path / "page.html")
    page.wait_for_selector("body.awake", state="attached")
    assert "at (40, 30)" in page.inner_text("#saying")
    assert page.locator("#layers button").count() > 0
    assert page.locator("#marks .cross").count() == 2
    assert "; one pixel is explained here." in page.inner_text(".lead")
    assert page.locator("#failed").is_hidden()
    page.keyboard.press("Escape")
    assert page.inner_text("#saying").startswith("1 pixel. ")


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("function explore(bytes, picture) {", "function explore(bytes, picture) { null.nothing();", "null"),
        ("function explore(bytes, picture) {", "function explore(bytes, picture) { const", "SyntaxError"),
        ("await picture.decode();", "await Promise.reject(new Error('no such picture'));", "no such picture"),
    ],
)
def test_a_script_that_fails_says_so(
    old: str, new: str, why: str, browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment_report, "resource", lambda name: resource(name).replace(old, new))
    page = opened(browser, segment_explanation_page(predictor_of("segformer"), picture()), tmp_path / "page.html")
    page.wait_for_selector("#failed", state="visible", timeout=5_000)
    told = page.inner_text("#failed")
    assert told.startswith("The script of this page failed (")
    assert why in told
    assert page.locator("#asleep").is_hidden()


def test_it_is_said_that_the_page_is_being_unpacked(browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = "await new Promise(() => {}); await picture.decode();"
    monkeypatch.setattr(segment_report, "resource", lambda name: resource(name).replace("await picture.decode();", slow))
    page = opened(browser, segment_explanation_page(predictor_of("segformer"), picture()), tmp_path / "page.html")
    page.wait_for_function("document.getElementById('asleep').textContent")
    assert page.inner_text("#asleep") == "Unpacking what this page shows…"
