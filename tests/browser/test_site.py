"""The site in a real browser: it can be read in both themes and on a phone, searched, copied from, and asks nobody."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.test_waiting_page import CONTRAST
from tests.docs.built_site import build_site

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

pytestmark = [pytest.mark.slow, pytest.mark.browser]

LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light", "viewport": {"width": 1360, "height": 900}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1360, "height": 900}},
    "phone": {"color_scheme": "dark", "viewport": {"width": 360, "height": 780}},
}
PAGES = ("", "tutorials/one-gpu-at-home/", "configuration/", "lifecycle/", "performance/")
TEXTS = ("article h1", "article p", "article a:not(.headerlink)", "article code")


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its base's name for it
        """Say nothing of what is asked for."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its URL, on this machine."""
    folder = build_site(tmp_path_factory.mktemp("site"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    serving.join()
    server.server_close()


@asynccontextmanager
async def visit(chromium: Browser, site: str, **look: Any) -> AsyncIterator[Page]:
    """A page that may ask nobody else, and complains of nothing."""
    context = await chromium.new_context(**look)
    page = await context.new_page()
    wrong: list[str] = []
    page.on(
        "request", lambda asked: None if asked.url.startswith((site, "data:", "blob:")) else wrong.append(asked.url)
    )
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    yield page
    await context.close()
    assert wrong == []


@pytest.mark.parametrize("look", LOOKS)
async def test_it_can_be_read(chromium: Browser, site: str, look: str) -> None:
    async with visit(chromium, site, **LOOKS[look]) as page:
        for path in PAGES:
            await page.goto(site + path)
            width = await page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
            assert width[0] <= width[1], f"{path}: nothing is wider than the screen"
            for selector in TEXTS:
                if await page.locator(selector).count():
                    assert await page.evaluate(CONTRAST, selector) >= 4.5, (path, selector)


async def test_its_picture_is_of_the_theme_that_is_chosen(chromium: Browser, site: str) -> None:
    async with visit(chromium, site, **LOOKS["light"]) as page:
        await page.goto(site)
        before = await page.locator("picture img").screenshot()
        await page.locator("label[title='Take the light theme']").click()
        await page.locator("label[title='Take the dark theme']").click()
        await page.wait_for_timeout(500)
        assert await page.locator("picture img").screenshot() != before


async def test_it_is_searched_without_anybody_else(chromium: Browser, site: str) -> None:
    async with visit(chromium, site, **LOOKS["light"]) as page:
        await page.goto(site)
        await page.locator("input[name=query]").click()
        await page.locator("input[name=query]").type("gateway", delay=20)
        found = page.locator(".md-search-result__link").first
        await found.wait_for(timeout=15_000)
        assert "ingress" in (await found.get_attribute("href") or "")


async def test_what_is_copied_is_what_is_typed(chromium: Browser, site: str) -> None:
    async with visit(chromium, site, **LOOKS["light"], permissions=["clipboard-read", "clipboard-write"]) as page:
        await page.goto(site + "tutorials/one-gpu-at-home/")
        block = page.locator(".highlight", has_text="vllm-chill --version")
        await block.hover()
        await block.locator("button").first.click()
        await page.wait_for_timeout(300)
        assert (await page.evaluate("navigator.clipboard.readText()")).strip() == "vllm-chill --version"
