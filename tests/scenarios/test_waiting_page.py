"""Browsers in front of a target that is not ready: who is shown the page, and what it wakes."""

from __future__ import annotations

import asyncio
import html
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from msgspec import structs

from tests.scenarios.stage import FAST_LANE, Stage, stage
from vllm_chill.control.knowledge import Served
from vllm_chill.core.target import Asleep, Draining, Failed, Observation, Ready, Waking
from vllm_chill.errors import BackendUnavailable

BROWSER = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,*/*;q=0.8",
}
START = "/proxy/operations/start?wait=false"
COMMAND: Served = lambda: (["vllm", "serve", "org/a"], "1")  # noqa: E731


@pytest.fixture(autouse=True, params=[True, False], ids=["fast lane", "base"])
def lane(request: pytest.FixtureRequest) -> Iterator[None]:
    """Everything passes both ways."""
    token = FAST_LANE.set(request.param)
    yield
    FAST_LANE.reset(token)


@asynccontextmanager
async def everything_wakes(**more: Any) -> AsyncIterator[Stage]:
    async with stage(wake_paths="/*", **more) as s:
        await s.until(lambda: s.controller.synced)
        yield s


async def browse(s: Stage, path: str = "/", **headers: str) -> tuple[aiohttp.ClientResponse, str]:
    async with s.session.get(s.url + path, headers=BROWSER | headers, allow_redirects=False) as response:
        return response, await response.text()


def title(page: str) -> str:
    [text] = re.findall(r"<h1[^>]*>(.*?)</h1>", page)
    return str(text)


class TestAPathThatWakes:
    async def test_a_browser_wakes_the_target_and_is_not_held(self) -> None:
        async with everything_wakes(start=60) as s:
            response, page = await browse(s)
            assert (response.status, response.content_type) == (503, "text/html")
            assert response.headers["Cache-Control"] == "no-store"
            assert response.headers["Vary"] == "Accept"
            assert int(response.headers["Retry-After"]) > 0
            assert "default-src 'none'" in response.headers["Content-Security-Policy"]
            assert response.headers["Server"] == "vllm-chill"
            assert title(page) == "Waking up"
            await s.until(lambda: s.backend.writes == [1])
            assert (s.controller.target.waiting, s.hits) == (0, [])
            assert s.metric("vllm_chill_requests_total", method="GET", route="proxied", status="503") == 1

    async def test_it_is_let_in_once_the_target_is_ready(self) -> None:
        async with everything_wakes(start=0.05) as s:
            await browse(s, "/ui?tab=1")
            await s.until(lambda: s.phase_is(Ready))
            response, body = await browse(s, "/ui?tab=1")
            assert (response.status, response.content_type) == (200, "application/json")
            assert '"/ui?tab=1"' in body
            assert "Content-Security-Policy" not in response.headers

    async def test_awake_its_visits_count_as_use(self) -> None:
        async with everything_wakes(awake=True) as s:
            phase = s.controller.target.phase
            assert isinstance(phase, Ready)
            await browse(s)
            await s.until(lambda: not s.controller.target.in_flight)
            after = s.controller.target.phase
            assert isinstance(after, Ready)
            assert after.idle_since > phase.idle_since

    async def test_the_page_tells_of_those_who_wait(self) -> None:
        async with everything_wakes(start=60) as s:
            callers = [asyncio.create_task(s.get("/x")) for _ in range(2)]
            await s.until(lambda: s.controller.target.waiting == 2)
            assert "2 requests wait" in (await browse(s))[1]
            for caller in callers:
                caller.cancel()

    async def test_a_browser_that_comes_before_it_sleeps_is_let_in(self) -> None:
        async with everything_wakes(awake=True, idle=0.05) as s:
            s.backend.fail_next = [BackendUnavailable("connection refused")]
            await s.until(lambda: s.phase_is(Draining))
            assert (await browse(s))[0].status == 200
            assert s.backend.writes == []

    async def test_while_it_goes_to_sleep_it_is_woken_again(self) -> None:
        async with everything_wakes(awake=True, stop=0.2, idle=0.05, start=60) as s:
            await s.until(lambda: s.backend.writes == [0])
            _, page = await browse(s)
            assert title(page) == "Going to sleep"
            assert "woken again once it is down" in page
            await s.until(lambda: s.phase_is(Waking))

    async def test_what_is_fetched_ahead_of_time_wakes_nothing(self) -> None:
        async with everything_wakes() as s:
            for purpose in (
                {"Sec-Purpose": "prefetch"},
                {"Sec-Purpose": "prefetch;prerender"},
                {"Purpose": "prefetch"},
            ):
                response, page = await browse(s, **purpose)
                assert (response.status, title(page)) == (503, "Asleep")
            await asyncio.sleep(0.02)
            assert s.backend.writes == []


class TestAnyOtherPath:
    async def test_a_browser_wakes_nothing_and_is_shown_a_button(self) -> None:
        async with stage() as s:
            for path in ("/", "/docs", "/v1/other"):
                response, page = await browse(s, path)
                assert (response.status, title(page)) == (503, "Asleep")
                assert f'<form method="post" action="{html.escape(START)}">' in page
                assert "does not wake it by itself" in page
            await asyncio.sleep(0.02)
            assert s.phase_is(Asleep)
            assert s.backend.writes == []
            assert s.metric("vllm_chill_requests_total", method="GET", route="other", status="503") == 3

    async def test_the_button_wakes_and_comes_back_to_the_page(self) -> None:
        async with stage(start=0.05) as s:
            headers = BROWSER | {"Referer": s.url + "/docs?a=b#c"}
            async with s.session.post(s.url + START, headers=headers, allow_redirects=False) as response:
                assert (response.status, response.headers["Location"]) == (303, "/docs?a=b")
            await s.until(lambda: s.phase_is(Ready))
            assert (await browse(s, "/docs?a=b"))[0].status == 200

    @pytest.mark.parametrize(
        "referer",
        ["http://elsewhere/docs", "", "//elsewhere", "{url}//elsewhere", "{url}/\\elsewhere", "http://[", "{url}"],
    )
    async def test_the_button_never_leads_elsewhere(self, referer: str) -> None:
        async with stage() as s:
            headers = BROWSER | {"Referer": referer.replace("{url}", s.url)}
            async with s.session.post(s.url + START, headers=headers, allow_redirects=False) as response:
                assert response.status == 202
                assert "Location" not in response.headers

    async def test_a_program_that_starts_it_is_told_as_ever(self) -> None:
        async with stage() as s:
            headers = {"Referer": s.url + "/docs"}
            async with s.session.post(s.url + START, headers=headers) as response:
                assert response.status == 202
                assert (await response.json())["status"] == "success"

    async def test_the_models_are_listed_as_ever(self) -> None:
        async with stage(served=COMMAND) as s:
            response, _ = await browse(s, "/v1/models")
            assert (response.status, response.content_type) == (200, "application/json")

    async def test_the_icon_and_the_crawlers_are_answered_as_ever(self) -> None:
        async with stage() as s:
            assert (await browse(s, "/favicon.ico"))[0].status == 204
            assert (await browse(s, "/robots.txt"))[0].status == 200


class TestAFailedWake:
    CAUSE = 'no <b>such</b> model: "org/a" & <script>alert(1)</script>'

    async def test_its_cause_is_shown_as_text_and_not_tried_again_within_the_pause(self) -> None:
        async with everything_wakes(start=0.01) as s:
            s.backend.fail_start = self.CAUSE
            await browse(s)
            await s.until(lambda: s.phase_is(Failed))
            for _ in range(5):
                response, page = await browse(s)
                assert title(page) == "Could not be woken"
                assert html.escape(self.CAUSE) in page
                assert "<b>" not in page
                assert re.search(r"It can be tried again in [1-5]s\.", page)
                assert 1 <= int(response.headers["Retry-After"]) <= 5
                assert "http-equiv" not in page, "it would try again by itself"
            assert s.backend.writes == [1]

    async def test_elsewhere_the_page_looks_again_by_itself(self) -> None:
        async with stage(start=0.01) as s:
            s.backend.fail_start = self.CAUSE
            await s.post("/v1/completions", json={})
            response, page = await browse(s)
            assert (response.status, title(page)) == (503, "Could not be woken")
            assert "http-equiv" in page
            assert s.backend.writes == [1]

    async def test_a_visit_after_the_pause_tries_again(self) -> None:
        async with everything_wakes(start=0.01) as s:
            s.backend.fail_start = "no such model"
            await browse(s)
            await s.until(lambda: s.phase_is(Failed))
            s.backend.fail_start = None
            failed = s.controller.target
            assert isinstance(failed.phase, Failed)
            over = replace(failed.phase, retry_at=s.controller.now())
            s.controller._target = structs.replace(failed, phase=over)
            _, page = await browse(s)
            assert title(page) == "Waking up"
            await s.until(lambda: s.phase_is(Ready))
            assert (await browse(s))[0].status == 200


class TestATargetThatIsNotKnown:
    async def test_it_says_so_with_the_cause(self) -> None:
        async with everything_wakes() as s:
            s.controller._target = type(s.controller.target)(s.controller.target.ref)
            assert title((await browse(s))[1]) == "Not known yet"
            s.controller.lost("the API server is away")
            response, page = await browse(s)
            assert (response.status, title(page)) == (503, "Not known yet")
            assert "the API server is away" in page
            assert response.headers["Retry-After"] == "5"
            s.controller.observed(Observation(0, 0))
            assert s.backend.writes == []


class TestWhoIsNoBrowser:
    @pytest.mark.parametrize(
        "headers",
        [
            pytest.param({"Accept": "*/*"}, id="curl"),
            pytest.param({"Accept": "application/json"}, id="an SDK"),
            pytest.param({"Accept": "application/json, text/html"}, id="who takes HTML if need be"),
            pytest.param(BROWSER | {"Sec-Fetch-Mode": "cors"}, id="a page's script"),
            pytest.param(
                {"Accept": "text/html, image/gif, image/jpeg, */*; q=0.2", "User-Agent": "Java/21.0.1"}, id="Java"
            ),
        ],
    )
    async def test_it_is_held_and_answered(self, headers: dict[str, str]) -> None:
        async with everything_wakes(start=0.05) as s:
            status, body = await s.get("/ui", headers=headers)
            assert (status, body["target"]) == (200, "/ui")
        async with stage() as s:
            status, body = await s.get("/ui", headers=headers)
            assert (status, body["error"]["code"]) == (404, "not_found")

    async def test_head_and_post_are_as_ever(self) -> None:
        async with everything_wakes(start=0.05) as s:
            async with s.session.head(s.url + "/", headers=BROWSER) as response:
                assert (response.status, await response.read()) == (200, b"")
            assert s.backend.writes == []
            assert (await s.post("/", headers=BROWSER, json={}))[0] == 200

    async def test_a_health_checker_that_takes_html_is_answered_as_one(self) -> None:
        async with everything_wakes() as s:
            response, body = await browse(s, **{"User-Agent": "UptimeRobot/2.0"})
            assert (response.status, body) == (200, "ready\n")
            assert s.backend.writes == []


class TestWhatTheScriptAsksFor:
    async def test_the_same_words_as_the_page_and_nothing_is_woken(self) -> None:
        async with stage(start=60) as s:
            await s.until(lambda: s.controller.synced)
            _, page = await browse(s)
            async with s.session.get(s.url + "/proxy/status?view=page") as response:
                assert response.headers["Cache-Control"] == "no-store"
                said = await response.json()
            assert (said["phase"], said["title"], said["action"]) == ("asleep", title(page), "Wake it")
            assert html.escape(said["doing"]) in page
            assert s.backend.writes == []

    async def test_the_status_itself_is_as_ever(self) -> None:
        async with stage() as s:
            assert "targets" in (await s.get("/proxy/status?view=x"))[1]


class TestTheExample:
    async def test_it_is_for_this_proxy_and_its_model(self) -> None:
        async with stage(served=lambda: (["vllm", "serve", "o'a <b>"], "1")) as s:
            _, page = await browse(s)
            example = html.unescape(page).partition("curl ")[2]
            assert example.startswith(s.url + "/v1/chat/completions")
            assert "<b>" not in page

    async def test_what_a_client_says_of_the_host_is_not_taken_at_its_word(self) -> None:
        async with stage() as s:
            _, page = await browse(s, Host="a'$(rm -rf)<b>")
            assert "rm -rf" not in page
            _, page = await browse(s, Host="chill.example", **{"X-Forwarded-Proto": "https"})
            assert "https://chill.example/v1/chat/completions" in page

    async def test_where_another_path_wakes_it_is_that_one(self) -> None:
        async with stage(wake_paths="/team-a/*") as s:
            assert "/team-a/ " in html.unescape((await browse(s))[1])
