"""The page of all models in a real browser: it tells how each is while it is looked at, and its buttons wake."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser.test_waiting_page import CONTRAST, LOOKS, visit
from tests.web.several import TWO, Several, entry, several
from vllm_chill.core.target import Asleep, Ready, Waking

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

pytestmark = [pytest.mark.slow, pytest.mark.browser]


async def states(page: Page) -> list[str]:
    return [str(text) for text in await page.locator("li .state").all_text_contents()]


async def until(s: Several, page: Page, name: str, state: str) -> None:
    await page.locator(f'li[data-name="{name}"] .state', has_text=state).wait_for(timeout=10_000)


async def test_a_person_wakes_one_by_its_button_and_sees_it_become_ready(chromium: Browser) -> None:
    async with several(awake=["b"], start=60) as s, visit(chromium) as tab:
        await tab.page.goto(s.url)
        tab.complaints.clear()  # the page itself is 404
        assert await states(tab.page) == ["asleep", "ready"]
        assert await tab.page.locator("button:visible").count() == 1
        await tab.page.evaluate("window.stayed = true")
        await tab.page.click("button:visible")
        await until(s, tab.page, "a", "waking")
        assert s.phase_is("a", Waking)
        s.backends["a"].ready()
        await until(s, tab.page, "a", "ready")
        assert await tab.page.locator("button:visible").count() == 0
        assert await tab.page.evaluate("window.stayed"), "it changes in place"
        await s.controller("b").stop()
        await until(s, tab.page, "b", "asleep")
        assert s.backends["b"].writes == [0], "to look wakes nothing"


async def test_a_model_that_comes_is_shown(chromium: Browser) -> None:
    async with several([*TWO, entry("c")]) as s, visit(chromium) as tab:
        everything, catalogue = list(s.directory), s.directory.catalogue
        s.directory.replace(type(catalogue)(TWO), everything[:2])
        await tab.page.goto(s.url)
        assert len(await states(tab.page)) == 2
        s.directory.replace(catalogue, everything)
        await until(s, tab.page, "c", "asleep")
        tab.complaints.clear()


async def test_without_scripts_the_button_comes_back_to_the_page(chromium: Browser) -> None:
    async with several(start=0.01) as s, visit(chromium, java_script_enabled=False) as tab:
        await tab.page.goto(s.url + "/ui")
        await tab.page.click("button >> nth=0")
        await s.until("a", Ready)
        assert tab.page.url == s.url + "/ui"
        assert s.phase_is("b", Asleep)
        tab.complaints.clear()


@pytest.mark.parametrize("look", LOOKS)
async def test_it_can_be_read(chromium: Browser, look: str) -> None:
    long = entry("deepseek-r1-distill-qwen-32b-fp8-dynamic-with-a-very-long-name-" + "x" * 60)
    async with several([*TWO, long], awake=["b"]) as s, visit(chromium, **LOOKS[look]) as tab:
        await tab.page.goto(s.url)
        if folder := os.environ.get("SCREENSHOTS"):
            await tab.page.screenshot(path=Path(folder) / f"models-page-{look}.png")
        width = await tab.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert width[0] <= width[1], "nothing is wider than the screen"
        for selector in ("#name", "h1", ".state", "b", ".act"):
            assert await tab.page.evaluate(CONTRAST, selector) >= 4.5, selector
        tab.complaints.clear()
