"""A real Chromium, Debian's own, for tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.async_api import Browser

CHROMIUM = shutil.which("chromium")


@pytest.fixture
async def chromium() -> AsyncIterator[Browser]:
    """A browser that is started for one test."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed; on Debian: apt-get install chromium")
    playwright = pytest.importorskip(
        "playwright.async_api", reason="playwright is not installed; pip install --group browser"
    )
    # Root has no sandbox to be put into.
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    async with playwright.async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        try:
            yield browser
        finally:
            await browser.close()
