"""Writes the pictures of the dashboard that docs/dashboard.md shows.

usage: python -m tests.browser.dashboard_pictures [FOLDER]    (docs/img; needs the groups browser and bench)
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.browser.conftest import CHROMIUM
from tests.browser.dashboard_scene import scene, tell

if TYPE_CHECKING:
    from playwright.async_api import Browser

LOOKS: dict[str, dict[str, Any]] = {
    f"{scheme}-{name}": {"color_scheme": scheme, **size}
    for scheme in ("light", "dark")
    for name, size in (
        ("desktop", {"viewport": {"width": 1280, "height": 800}}),
        ("phone", {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}),
    )
}
SHOWN = {"desktop": (1280, 1450), "phone": (390, 1260)}


async def picture(browser: Browser, url: str, look: str, path: Path) -> None:
    """A picture of the dashboard at this address, once it has told all."""
    from PIL import Image

    context = await browser.new_context(**LOOKS[look], locale="en-US", timezone_id="UTC", reduced_motion="reduce")
    page = await context.new_page()
    await tell(page)
    await page.goto(f"{url}/proxy/")
    await page.locator("#link[data-state=live]").wait_for()
    await page.locator("#savings-section").wait_for()
    await page.locator("#waiting tr").first.wait_for()
    await page.locator("summary", has_text="Loading").first.wait_for()
    await asyncio.sleep(0.5)
    width, height = SHOWN[look.partition("-")[2]]
    await page.screenshot(path=path, full_page=True, clip={"x": 0, "y": 0, "width": width, "height": height})
    await context.close()
    with Image.open(path) as whole:
        whole.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


async def main(folder: Path) -> None:
    from playwright.async_api import async_playwright

    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    async with async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        for look in LOOKS:
            path = folder / f"dashboard-{look}.png"
            async with scene() as s:
                await picture(browser, s.url, look, path)
            sys.stdout.write(f"{path}\n")
        await browser.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/img")))
