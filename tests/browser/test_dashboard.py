"""The dashboard in a real browser: what an operator sees of a working day, and what the buttons do."""

from __future__ import annotations

import asyncio
import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.dashboard_pictures import LOOKS
from tests.browser.dashboard_scene import BIG, CODER, MODELS, SAVINGS, model, scene, tell
from tests.browser.test_waiting_page import CONTRAST, ENGINE, Visit, visit
from tests.scenarios.stage import stage
from tests.serving import serving
from tests.web.several import TWO, several
from vllm_chill.core.access import Operators, Readers
from vllm_chill.core.keys import Key, Keys
from vllm_chill.core.target import Asleep, Failed, Ready, Waking
from vllm_chill.proxy.gate import Gate
from vllm_chill.web.doorkeeper import Doorkeeper

if TYPE_CHECKING:
    from playwright.async_api import Browser, Locator

pytestmark = [pytest.mark.slow, pytest.mark.browser]

CHAT = "/v1/chat/completions"
SHIFTS = """() => new Promise((done) => {
  let sum = 0;
  new PerformanceObserver((list) => {
    for (const shift of list.getEntries()) if (!shift.hadRecentInput) sum += shift.value;
  }).observe({ type: "layout-shift", buffered: true });
  setTimeout(() => done(sum), 200);
})"""


def card(tab: Visit, name: str) -> Locator:
    return tab.page.get_by_role("article", name=name, exact=True)


async def opened(tab: Visit, url: str, *, savings: Any = None, output: str | None = None) -> None:
    await tell(tab.page, savings=savings, output=output)
    await tab.page.goto(url + "/proxy/")


async def phase(tab: Visit, name: str, words: str) -> None:
    await card(tab, name).locator(".phase", has_text=re.compile(f"^{words}$")).wait_for(timeout=15_000)


def forgive(tab: Visit, *words: str) -> None:
    """Have the browser's own words on answers that were to be errors count for nothing."""
    tab.complaints = [text for text in tab.complaints if not any(word in text for word in words)]


async def test_a_target_is_woken_by_a_click_and_its_phases_are_seen_as_they_change(chromium: Browser) -> None:
    command = (*ENGINE, "--load-seconds", "3")
    async with serving("--stop-timeout", "1s", command=command) as proxy, visit(chromium) as tab:
        await opened(tab, proxy.url)
        name = str(await tab.page.get_by_role("article").get_attribute("aria-label"))
        await phase(tab, name, "Asleep")
        assert await tab.text("#total-awake") == "0"
        assert await tab.page.locator("#no-starts").is_visible()
        await tab.page.evaluate("window.stayed = true")
        await card(tab, name).get_by_role("button", name="Wake").click()
        await phase(tab, name, "Waking")
        await card(tab, name).locator(".doing", has_text="Starting the engine.").wait_for()
        await card(tab, name).locator(".times", has_text="2s so far").wait_for(timeout=15_000)
        assert await card(tab, name).get_by_role("button", name="Wake").count() == 0
        await phase(tab, name, "Ready")
        assert await tab.text("#news") == f"{name}: Ready"
        await tab.until("#starts .outcome", "ready")
        label = await tab.page.locator("#starts .stages").get_attribute("aria-label")
        assert "starting the engine" in str(label)
        assert await tab.text("#total-awake") == "1"
        assert await tab.page.evaluate("window.stayed"), "it changes in place"
        assert await tab.page.evaluate(SHIFTS) < 0.05, "nothing jumps"
        forgive(tab, "404")


async def test_to_look_wakes_nothing_and_what_is_missing_is_not_shown(chromium: Browser) -> None:
    async with several() as s, visit(chromium) as tab:
        await opened(tab, s.url)
        await phase(tab, "org/a", "Asleep")
        await tab.until("#nobody-waits", "Nobody waits")
        await tab.until("#no-starts", "None is over yet")
        await asyncio.sleep(1.5)
        assert not [backend for backend in s.backends.values() if backend.writes]
        assert await tab.page.locator("#savings-section, .output, #total-asleep-tile").all() != []
        for place in await tab.page.locator("#savings-section, .output, #total-asleep-tile, #total-saved-tile").all():
            assert not await place.is_visible()
        forgive(tab, "404")


async def test_who_waits_appears_and_is_sent_away_by_a_click(chromium: Browser) -> None:
    async with stage(start=60, hold=60) as s, visit(chromium) as tab:
        await opened(tab, s.url)
        await tab.until("#nobody-waits", "Nobody waits")
        first, second = (asyncio.create_task(s.post(f"{CHAT}?q=1", json={"n": n})) for n in range(2))
        rows = tab.page.locator("#waiting tr")
        await rows.nth(1).wait_for()
        assert await rows.nth(0).locator("code").text_content() == f"POST {CHAT}"
        assert "starting the engine" in str(await rows.nth(0).text_content())
        assert await tab.text("#waiting-count") == "2"
        assert await tab.page.title() == "(2) vllm-chill"
        await rows.nth(0).get_by_role("button", name="Cancel").click()
        status, body = await asyncio.wait_for(first, 5)
        assert (status, body["error"]["code"]) == (499, "cancelled_by_operator")
        await tab.page.locator("#waiting-count", has_text=re.compile("^1$")).wait_for()
        assert await rows.count() == 1
        assert not second.done()
        s.backend.ready()
        assert (await second)[0] == 200
        await tab.until("#nobody-waits", "Nobody waits")
        forgive(tab, "404")


async def test_of_many_that_wait_some_are_shown_and_all_are_counted(chromium: Browser) -> None:
    async with stage(start=60, hold=60) as s, visit(chromium) as tab:
        asked = [asyncio.create_task(s.post(CHAT, json={})) for _ in range(130)]
        await s.until(lambda: s.controller.target.waiting == 130)
        await opened(tab, s.url)
        await tab.until("#waiting-more", "The next 100 are shown, and 30 more wait.")
        assert await tab.page.locator("#waiting tr").count() == 100
        for request in asked:
            request.cancel()
        forgive(tab, "404")


async def test_a_stop_asks_first(chromium: Browser) -> None:
    async with several(awake=["a", "b"]) as s, visit(chromium) as tab:
        lease = s.controller("a").lease_now()
        assert lease is not None
        await opened(tab, s.url)
        await phase(tab, "org/a", "Ready")
        stop = card(tab, "org/a").get_by_role("button", name="Put to sleep")
        for refusal in ("Escape", "Enter"):  # the button that does nothing has the focus
            await stop.click()
            dialog = tab.page.get_by_role("dialog", name="Put org/a to sleep?")
            await dialog.wait_for()
            assert "1 answer is under way; each ends first." in str(await dialog.text_content())
            await tab.page.keyboard.press(refusal)
            await dialog.wait_for(state="hidden")
            assert s.phase_is("a", Ready)
        await stop.click()
        await dialog.get_by_role("button", name="Put to sleep").click()
        await phase(tab, "org/a", "Going to sleep")
        lease.release()
        await phase(tab, "org/a", "Asleep")
        assert s.phase_is("b", Ready)
        forgive(tab, "404")


async def test_of_two_models_one_takes_the_place_of_the_other(chromium: Browser) -> None:
    async with several(awake=["b"], default="org/b", start=0.3) as s, visit(chromium) as tab:
        await opened(tab, s.url)
        await phase(tab, "org/b", "Ready")
        assert "default" in str(await card(tab, "org/b").locator(".names").text_content())
        assert await card(tab, "org/b").get_by_role("button", name="Switch to").count() == 0
        await card(tab, "org/a").get_by_role("button", name="Switch to").click()
        dialog = tab.page.get_by_role("dialog", name="Switch to org/a?")
        assert "org/b goes to sleep once the last answer has ended" in str(await dialog.text_content())
        await dialog.get_by_role("button", name="Switch", exact=True).click()
        await phase(tab, "org/b", "Asleep")
        await phase(tab, "org/a", "Ready")
        await card(tab, "org/a").locator(".names", has_text="default").wait_for()
        forgive(tab, "404")


async def test_what_goes_wrong_is_told_in_its_card(chromium: Browser) -> None:
    async with several(awake=["a", "b"]) as s, visit(chromium) as tab:
        await opened(tab, s.url)
        await phase(tab, "org/a", "Ready")
        s.directory.replace(type(s.directory.catalogue)(TWO[1:]), [one for one in s.directory if one.name == "b"])
        await card(tab, "org/a").wait_for(state="hidden")
        await card(tab, "org/b").get_by_role("button", name="Put to sleep").click()
        await tab.page.route("**/operations/stop", lambda route: route.abort())
        await tab.page.get_by_role("dialog").get_by_role("button", name="Put to sleep").click()
        await card(tab, "org/b").get_by_role("alert").filter(has_text="does not answer").wait_for()
        assert s.phase_is("b", Ready)
        forgive(tab, "404", "ERR_FAILED")


def key(name: str, **more: Any) -> Key:
    return Key(name, hashlib.sha256(f"secret-{name}".encode()).digest(), **more)


async def sign_in(tab: Visit, secret: str) -> None:
    await tab.page.get_by_label("API key or token").fill(secret)
    await tab.page.keyboard.press("Enter")


async def test_where_a_key_is_needed_the_page_asks_for_it_and_keeps_it_in_its_tab(chromium: Browser) -> None:
    gate = Gate(Keys([key("ada"), key("root", admin=True)]), asyncio.get_running_loop().time)
    doors = Doorkeeper(gate, operators=Operators.KEYS, status=Readers.KEYS)
    async with several(doorkeeper=doors, start=60) as s, visit(chromium) as tab:
        await opened(tab, s.url)
        await tab.until("#sign-in-why", "This needs an API key")
        await sign_in(tab, "wrong")
        await tab.until("#sign-in-why", "The API key is not known here")
        assert await tab.page.evaluate("sessionStorage.length") == 0
        await sign_in(tab, "secret-ada")
        await phase(tab, "org/a", "Asleep")
        assert not await tab.page.is_visible("#sign-in")
        await card(tab, "org/a").get_by_role("button", name="Wake").click()
        refused = card(tab, "org/a").get_by_role("alert").filter(has_text='The key "ada" is no admin key')
        await refused.wait_for()
        assert s.phase_is("a", Asleep)
        await tab.page.reload()
        await phase(tab, "org/a", "Asleep")
        assert not await tab.page.is_visible("#sign-in"), "it is kept"
        await tab.page.get_by_role("button", name="Sign out").click()
        await tab.until("#sign-in-why", "This needs an API key")
        await sign_in(tab, "secret-root")
        await card(tab, "org/a").get_by_role("button", name="Wake").click()
        await phase(tab, "org/a", "Waking")
        assert not any("secret" in url for url in tab.asked)
        forgive(tab, "404", "401", "403")


async def test_nothing_hostile_is_more_than_text(chromium: Browser) -> None:
    bad = '<img src=x onerror="window.broken=1">"\'<script>window.broken=1</script>&amp;${7*7}'
    doc = {"target": bad, "model": bad, "gpus": 1, "total": SAVINGS["total"], "days": SAVINGS["models"][0]["days"]}
    entries = [model(bad, aliases=(bad + "2",), group=bad), model("constructor"), model("__proto__")]
    async with several(entries, start=0.01, hold=60) as s, visit(chromium) as tab:
        s.backends[bad].fail_start = bad
        await s.controller(bad).wake(wait=False)
        await s.until(bad, Failed)
        s.backends["constructor"].start_seconds = 60
        path = f"{CHAT}/%3Cimg%20src=x%20onerror=window.broken=1%3E\"'"
        waiting = asyncio.create_task(s.post(path, json={"model": "constructor"}))
        await s.until("constructor", Waking)
        await opened(tab, s.url, savings={**SAVINGS, "currency": "<b>", "models": [doc]}, output=bad)
        await card(tab, bad).wait_for()
        assert await card(tab, bad).locator("h3").text_content() == bad
        assert await card(tab, bad).locator("pre.cause").text_content() == bad
        await tab.until("#starts .why", bad)
        await tab.until("#savings th", bad)
        await tab.until("#waiting code", "%3Cimg%20src=x")
        await card(tab, bad).locator("summary").click()
        await card(tab, bad).locator("details pre", has_text=bad).wait_for()
        await card(tab, "__proto__").wait_for()
        await card(tab, "constructor").get_by_role("button", name="Put to sleep").click()
        await tab.page.keyboard.press("Escape")
        assert await tab.page.evaluate("window.broken") is None
        assert await tab.page.locator("img, b, article script").count() == 0
        waiting.cancel()


async def test_a_proxy_that_is_away_is_waited_for(chromium: Browser) -> None:
    async with stage(start=0.01) as s, visit(chromium) as tab:
        await opened(tab, s.url)
        await tab.until("#link", "live")
        await phase(tab, "test/vllm", "Asleep")
        await tab.page.route("**/proxy/events", lambda route: route.abort())
        connections = s.server._runner.server
        assert connections is not None
        for connection in connections.connections:
            if connection.transport is not None:
                connection.transport.abort()
        await tab.until("#link", "no answer, trying again")
        await s.controller.wake(wait=True)
        await tab.page.unroute("**/proxy/events")
        await tab.until("#link", "live")
        await phase(tab, "test/vllm", "Ready")
        forgive(tab, "404", "ERR_")


async def test_the_last_lines_of_the_engine_are_shown_while_it_starts(chromium: Browser) -> None:
    async with several(start=60) as s, visit(chromium) as tab:
        await opened(tab, s.url, output="one\ntwo\nthe last line\n")
        await s.controller("a").wake(wait=False)
        await phase(tab, "org/a", "Waking")
        summary = card(tab, "org/a").locator("summary", has_text="output: the last line")
        await summary.wait_for()
        await summary.click()
        await card(tab, "org/a").locator("details pre", has_text="one\ntwo\nthe last line").wait_for()
        assert {url.partition("model=")[2] for url in tab.asked if "logs" in url} == {"org%2Fa"}
        forgive(tab, "404")


TEXTS = (
    *("h1", "#version", "#link", "dt", "dd", "h2", "h3", ".names", ".doing", ".times", ".count", "thead th", "td"),
    *("#legend li", ".why", ".cause", "summary", "button.plain", "article button:not(.plain)"),
    *(f'[data-phase="{name}"] .phase' for name in ("waking", "ready", "asleep", "failed")),
    *(f'.outcome[data-is="{name}"]' for name in ("ready", "failed", "stopped")),
)
NAMELESS = """() => {
  const nameless = (node) => !node.getAttribute("aria-label") && !node.textContent.trim() && !node.labels?.length;
  const all = [...document.querySelectorAll("button, input, summary, progress, [role=img]")];
  return all.filter((node) => node.checkVisibility() && nameless(node)).length;
}"""


@pytest.mark.parametrize("look", LOOKS)
async def test_it_can_be_read(chromium: Browser, look: str) -> None:
    async with scene() as s, visit(chromium, **LOOKS[look]) as tab:
        await opened(tab, s.url, savings=SAVINGS, output="a line")
        await tab.until("#savings-section", "Saved")
        await tab.page.locator("#waiting tr").nth(2).wait_for()
        await tab.page.locator("#starts tr").nth(5).wait_for()
        width = await tab.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert width[0] <= width[1], "nothing is wider than the screen"
        for selector in TEXTS:
            assert await tab.page.evaluate(CONTRAST, selector) >= 4.5, selector
        assert await tab.page.evaluate(NAMELESS) == 0
        assert await tab.page.get_by_role("article").count() == len(MODELS)
        await card(tab, CODER).get_by_role("button", name="Put to sleep").focus()
        await tab.page.keyboard.press("Enter")
        await tab.page.get_by_role("dialog").wait_for()
        await tab.page.keyboard.press("Tab")
        assert await tab.page.evaluate("document.activeElement.id") == "ask-yes"
        await tab.page.keyboard.press("Escape")
        assert s.phase_is(BIG, Failed)


def test_the_pictures_of_the_page_are_there() -> None:
    folder = Path(__file__).parents[2] / "docs" / "img"
    for look in LOOKS:
        assert (folder / f"dashboard-{look}.png").stat().st_size < 150_000
