"""The page about objects in a real browser: it opens from a file without a network, and does what hands and keys ask."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.explanation.test_detection_objects import picture, predictor_of
from vitral.explanation.look import look_at
from vitral.explanation.object_report import object_explanation_page

api = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra `dev`, to drive a browser")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs chromium or google-chrome on the PATH")


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Any]:
    (tmp_path / "page.html").write_text(
        object_explanation_page(predictor_of("deformable"), picture(), top_k=3), encoding="utf-8"
    )
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=BROWSER, args=["--headless", "--no-sandbox", "--disable-gpu"], timeout=30_000
        )
        page = browser.new_context(viewport={"width": 1100, "height": 900}, offline=True).new_page()
        page.set_default_timeout(8000)
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto((tmp_path / "page.html").as_uri() + "#object=1&method=attention&layer=0")
        page.wait_for_selector("body.awake", state="attached")
        yield page
        assert said == []
        browser.close()


def test_objects_methods_and_layers_are_chosen_by_hand_and_by_key(page: Any) -> None:
    look = look_at(predictor_of("deformable"), picture(), top_k=3)
    pressed = '[data-object][aria-pressed="true"]'

    def chosen() -> Any:
        return page.get_attribute(pressed, "data-object") if page.locator(pressed).count() else None

    def pixels() -> str:
        return str(page.evaluate("document.getElementById('stage').toDataURL()"))

    assert chosen() == "1"
    assert "layer 0" in page.inner_text("#saying")
    dots = page.locator("#marks .dot").evaluate_all(
        "(all) => all.map((one) => [one.cx.baseVal.value, one.cy.baseVal.value])"
    )
    places = look.points(1, 0).xy.reshape(-1, 2)
    assert 0 < len(dots) <= len(places)
    for dot in dots:
        assert abs(places - dot).sum(1).min() < 1e-2
    before = pixels()
    page.keyboard.press("l")
    assert "layer 1" in page.inner_text("#saying")
    assert pixels() != before
    page.keyboard.press("o")
    assert chosen() == "2"
    page.focus('[data-object="2"]')
    page.keyboard.press("ArrowUp")
    assert chosen() == "1"
    page.click('[data-method="grad_cam"]')
    assert page.locator("#marks .dot").count() == 0
    assert "object=1" in page.url
    page.keyboard.press("Escape")
    assert chosen() is None
    assert page.locator("#marks .box").count() == page.locator("#marks .tag").count() == 3
    page.locator("#marks .box").last.click(position={"x": 2, "y": 2})
    assert chosen() is not None
    page.locator("#layers button").last.click()
    assert "method=attention" in page.url
    assert f"layer {look.layers - 1}" in page.inner_text("#saying")
