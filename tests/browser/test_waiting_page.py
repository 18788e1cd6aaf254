"""The page in a real browser: what a person sees from a visit at zero to the engine's own page.

With SCREENSHOTS=DIR the pictures that are looked at are written there.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from tests.scenarios.stage import Stage, stage
from tests.serving import serving
from vllm_chill.core.past_starts import PastStarts
from vllm_chill.core.target import Asleep, Failed, Progress, Ready, TargetRef, Waking
from vllm_chill.core.target import Stage as StartStage

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

pytestmark = [pytest.mark.slow, pytest.mark.browser]

ENGINE = (sys.executable, str(Path(__file__).with_name("engine_with_a_page.py")), "--port", "{port}")
OWN_PAGE = "The engine's own page"
MILLISECONDS = 1000
PAST = '{"version":1,"whole":95.0,"stages":{"requested":[0.1,1],"starting":[20,1],"loading":[75,1]}}'


class Visit:
    """One tab. `asked` has what it has asked for, `complaints` what the browser finds wrong with it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.asked: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda message: self._console(message.text))

    def _console(self, text: str) -> None:
        if "503" not in text:  # which the page itself is
            self.complaints.append(text)

    async def text(self, of: str) -> str:
        return str(await self.page.text_content(of))

    async def until(self, of: str, text: str, seconds: float = 15) -> None:
        """Return once this element is seen with this text in it."""
        place = self.page.locator(of, has_text=text)
        await place.wait_for(state="visible", timeout=seconds * MILLISECONDS)


@asynccontextmanager
async def visit(browser: Browser, **options: Any) -> AsyncIterator[Visit]:
    context = await browser.new_context(**options)
    try:
        visit = Visit(await context.new_page())
        yield visit
        assert visit.complaints == []
    finally:
        await context.close()


async def test_a_person_at_zero_sees_what_is_waited_for_and_is_let_in(chromium: Browser) -> None:
    command = (*ENGINE, "--load-seconds", "4")
    async with serving("--wake-paths", "/*", "--stop-timeout", "1s", command=command) as proxy:
        async with visit(chromium) as tab:
            response = await tab.page.goto(proxy.url)
            assert response is not None
            assert response.status == 503
            assert await tab.text("h1") == "Waking up"
            await tab.page.evaluate("window.stayed = true")
            await tab.until("#doing", "Starting the engine")
            await tab.until("#elapsed", "2s so far")
            assert await tab.page.is_hidden("#left"), "nothing is known of it yet"
            assert await tab.page.evaluate("window.stayed"), "it changes in place"
            assert (await proxy.status())["waiting"] == 0, "a browser is not held"
            await tab.until("h1", OWN_PAGE)
            assert {url.removeprefix(proxy.url) for url in tab.asked} == {"/", "/proxy/status?view=page"}
        async with visit(chromium) as tab:
            await tab.page.goto(proxy.url)
            assert await tab.text("h1") == OWN_PAGE

        async with visit(chromium) as tab:
            await tab.page.request.post(proxy.url + "/proxy/operations/stop")
            await tab.page.goto(proxy.url)
            await tab.until("#left", "left")
            assert re.fullmatch(r"about [1-5]s left", await tab.text("#left"))
            first = float(await tab.page.evaluate("document.getElementById('bar').value"))
            await tab.until("#elapsed", "3s so far")
            assert float(await tab.page.evaluate("document.getElementById('bar').value")) > first
            await tab.until("h1", OWN_PAGE)


async def test_a_start_that_fails_says_why_and_the_next_try_lets_in(chromium: Browser, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.touch()
    command = (*ENGINE, "--unless", str(broken))
    async with serving("--wake-paths", "/*", command=command) as proxy, visit(chromium) as tab:
        await tab.page.goto(proxy.url)
        await tab.until("h1", "Could not be woken")
        assert "<b>tiny</b> & <script>" in await tab.text("#cause")
        assert await tab.page.title() == "Could not be woken"
        await tab.until("#doing", "It can be tried again in")
        assert await tab.page.is_hidden("#act")
        broken.unlink()
        await tab.until("#act", "Try again")
        assert len([line for line in proxy.log if line["event"] == "waking"]) == 1, "it does not try by itself"
        await tab.page.click("#act")
        await tab.until("h1", OWN_PAGE)


async def test_where_nothing_wakes_a_button_does(chromium: Browser) -> None:
    async with serving(command=(*ENGINE, "--load-seconds", "1")) as proxy, visit(chromium) as tab:
        await tab.page.goto(proxy.url)
        await tab.until("h1", "Asleep")
        await asyncio.sleep(1.5)
        assert (await proxy.status())["phase"] == "asleep"
        assert await tab.text("h1") == "Asleep"
        await tab.page.click("text=From a program")
        assert f"curl {proxy.url}/v1/chat/completions" in await tab.text("details pre")
        await tab.page.click("#act")
        await tab.until("h1", "Waking up")
        await tab.until("h1", OWN_PAGE)


async def test_all_of_it_works_without_a_script(chromium: Browser) -> None:
    async with (
        serving(command=(*ENGINE, "--load-seconds", "4")) as proxy,
        visit(chromium, java_script_enabled=False) as tab,
    ):
        await tab.page.goto(proxy.url + "/?a=b")
        await tab.page.click("#act")
        await tab.until("h1", "Waking up")
        assert tab.page.url == proxy.url + "/?a=b"
        await tab.until("h1", OWN_PAGE)
        assert not [url for url in tab.asked if "status" in url]


async def test_without_a_script_a_failed_wake_is_not_repeated_by_a_tab_that_is_left_open(chromium: Browser) -> None:
    async with stage(wake_paths="/*", start=0.5) as s, visit(chromium, java_script_enabled=False) as tab:
        s.backend.fail_start = "no such model"
        await tab.page.goto(s.url)
        await tab.until("h1", "Could not be woken")
        await asyncio.sleep(8)
        assert s.backend.writes == [1]
        s.backend.fail_start = None
        await tab.page.click("noscript a")
        await tab.until("body", '"target": "/"')


async def test_a_proxy_that_is_away_for_a_moment_is_waited_for(chromium: Browser) -> None:
    async with stage(wake_paths="/*", start=60) as s, visit(chromium) as tab:
        await tab.page.goto(s.url)
        await tab.page.route("**/proxy/status*", lambda route: route.abort())
        await tab.until("#doing", "The proxy does not answer")
        await tab.page.unroute("**/proxy/status*")
        await tab.until("#doing", "Starting the engine")
        s.backend.ready()
        await tab.until("body", '"target": "/"')
        tab.complaints = [text for text in tab.complaints if "net::ERR_FAILED" not in text]


async def test_where_the_status_is_not_let_through_the_page_is_loaded_again(chromium: Browser) -> None:
    async with stage(wake_paths="/*", start=60) as s, visit(chromium) as tab:
        await tab.page.route("**/proxy/status*", lambda route: route.fulfill(status=404))
        await tab.page.goto(s.url)
        await asyncio.sleep(2)
        s.backend.ready()
        await tab.until("body", '"target": "/"')
        tab.complaints = [text for text in tab.complaints if "404" not in text]


async def test_a_tab_that_is_left_open_does_not_wake_what_was_put_to_sleep(chromium: Browser) -> None:
    async with stage(wake_paths="/*", start=60) as s, visit(chromium) as tab:
        await tab.page.goto(s.url)
        await s.until(lambda: s.phase_is(Waking))
        await s.controller.stop()
        await tab.until("h1", "Asleep")
        await asyncio.sleep(1.5)
        assert s.phase_is(Asleep)
        s.backend.start_seconds = 0.05
        await tab.page.click("#act")
        await s.until(lambda: s.phase_is(Ready))
        await tab.until("body", '"target": "/"')


async def test_once_the_target_is_known_the_visit_wakes_it(chromium: Browser) -> None:
    async with stage(wake_paths="/*", start=60) as s, visit(chromium) as tab:
        await s.until(lambda: s.phase_is(Asleep))
        seen = s.controller.target.observed
        assert seen is not None
        s.controller._target = type(s.controller.target)(s.controller.target.ref)
        s.controller.lost("the API server is away")
        await tab.page.goto(s.url)
        await tab.until("h1", "Not known yet")
        assert await tab.text("#cause") == "the API server is away"
        s.controller.observed(seen)
        await tab.until("h1", "Waking up")


# --- how it looks ---

CONTRAST = """(selector) => {
  const channels = (color) => color.match(/[0-9.]+/g).slice(0, 3).map(Number);
  const light = (color) => {
    const [r, g, b] = channels(color).map((c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const element = document.querySelector(selector);
  let behind = element;
  while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
  const [a, b] = [light(getComputedStyle(element).color), light(getComputedStyle(behind).backgroundColor)];
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}"""
TEXTS = ("#name", "h1", "#doing", "#cause", "#told", ".act", "summary", "details pre")
LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light", "viewport": {"width": 900, "height": 560}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 900, "height": 560}},
    "phone": {"color_scheme": "light", "viewport": {"width": 320, "height": 640}, "device_scale_factor": 2},
}


async def in_phase(s: Stage, phase: Literal["waking", "failed", "asleep"]) -> None:
    s.starts.starts = replace(s.starts.starts, past=PastStarts.parse(PAST))
    await s.until(lambda: s.phase_is(Asleep))
    if phase == "failed":
        s.backend.start_seconds = 0.01
        s.backend.fail_start = (
            "the command ended with status 1; its last output was: Loading weights\n"
            f'  File "/opt/{"vllm/" * 30}loader.py", line 300, in load\n'
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
        )
        await s.controller.wake(wait=False)
        await s.until(lambda: s.phase_is(Failed))
    elif phase == "waking":
        # As if it had begun 31 seconds ago.
        clock = s.controller._clock
        s.controller._clock = lambda: clock() - 31
        await s.controller.wake(wait=False)
        await s.until(lambda: s.backend.seen.replicas == 1)
        s.controller._clock = lambda: clock() - 10
        s.controller.observed(replace(s.backend.seen, progress=Progress(StartStage.LOADING)))
        s.controller._clock = clock


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("phase", ["waking", "failed", "asleep"])
async def test_it_can_be_read(chromium: Browser, phase: Literal["waking", "failed", "asleep"], look: str) -> None:
    served = lambda: (["vllm", "serve", "Qwen/Qwen3-0.6B"], "1")  # noqa: E731
    ref = TargetRef("ai-apps", "vllm")
    async with stage(start=60, served=served, ref=ref) as s, visit(chromium, **LOOKS[look]) as tab:
        await in_phase(s, phase)
        await tab.page.goto(s.url)
        await asyncio.sleep(1.2)
        folder = os.environ.get("SCREENSHOTS")
        if folder:
            await tab.page.screenshot(path=Path(folder) / f"waiting-page-{phase}-{look}.png")
        await tab.page.click("summary")
        width = await tab.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert width[0] <= width[1], "nothing is wider than the screen"
        for selector in TEXTS:
            assert await tab.page.evaluate(CONTRAST, selector) >= 4.5, selector
