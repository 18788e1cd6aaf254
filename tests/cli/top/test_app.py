"""The view by its keys, in textual's own harness, before a proxy that says what a test has it say."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from aiohttp import web
from msgspec.json import encode
from msgspec.structs import replace
from textual.pilot import Pilot
from textual.widgets import Static

from tests.cli.serves import asks_no_more, serves
from tests.cli.top.statuses import EVERY, target
from tests.cli.top.test_summary import ANSWER, NOW
from vllm_chill.api.status import ProxyStatus
from vllm_chill.cli import feed
from vllm_chill.cli.asking import Proxy
from vllm_chill.cli.top.app import Question, Targets, Top
from vllm_chill.errors import NotAllowed


@dataclass
class Told:
    """A proxy that has no feed: what it is asked, and what it answers."""

    status: ProxyStatus = EVERY
    asked: list[str] = field(default_factory=list)
    refuses: str | None = None
    has_more: bool = False
    code: int = 200

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/proxy/status":
            if self.code != 200:
                return web.json_response({"error": {"message": "no."}}, status=self.code)
            return web.Response(body=encode(self.status), content_type="application/json")
        if request.path == "/proxy/savings" and self.has_more:
            return web.json_response(ANSWER)
        if request.path == "/proxy/logs" and self.has_more:
            return web.Response(text=f"first of {request.query['model']}\n\x1b[1mlast\x1b[0m line\n")
        if request.method == "POST":
            self.asked.append(f"{request.path_qs} {(await request.json())['model_id']}")
            if self.refuses is not None:
                return web.json_response({"error": {"message": self.refuses}}, status=503)
            done = {"status": "success", "message": "done", "target": {}}
            return web.json_response(done | {"target": self.status_of(0)})
        return web.json_response({"error": {"message": "there is nothing"}}, status=404)

    def status_of(self, index: int) -> Any:
        one = self.status.targets[index]
        return {"target": one.target, "phase": one.phase, "waiting": 0, "in_flight": 0}


@dataclass
class View:
    """The view, and hands for it."""

    app: Top
    pilot: Pilot[None]
    proxy: Told

    def shown(self, name: str) -> str:
        return "\n".join(
            str(one.content) for screen in self.app.screen_stack for one in screen.query(f"#{name}").results(Static)
        )

    @property
    def rows(self) -> list[str]:
        return [str(option.prompt) for option in self.app.screen_stack[0].query_one(Targets).options]

    def asks(self) -> bool:
        return isinstance(self.app.screen, Question)

    async def until(self, holds: Callable[[], bool]) -> None:
        for _ in range(500):
            if holds():
                return
            await self.pilot.pause(0.02)
        raise AssertionError(self.shown("head"), self.rows, self.shown("said"))

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)
        await self.pilot.pause()


@contextlib.asynccontextmanager
async def view(proxy: Told | None = None, size: tuple[int, int] = (81, 24)) -> AsyncIterator[View]:
    told = proxy or Told()
    async with serves(told) as url:
        app = Top(Proxy(url), today=lambda: NOW)
        async with app.run_test(size=size) as pilot:
            yield View(app, pilot, told)
        await asyncio.to_thread(asks_no_more, "feed")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "_POLL_SECONDS", 0.1)
    monkeypatch.setattr(feed, "_PAUSES_SECONDS", (0.05,))


async def test_what_the_proxy_says_is_shown_and_kept_up_with() -> None:
    async with view(Told(has_more=True)) as v:
        await v.until(lambda: len(v.rows) == 6)
        assert v.rows[1].splitlines()[0].split()[:2] == ["big", "waking"]
        assert "50%  loading the model" in v.rows[1]
        assert "6 targets: 2 ready" in v.shown("head")
        assert "SLEEPS IN" in v.shown("heading")
        await v.until(lambda: "today: 20.5 GPU-hours saved (25.62 USD)" in v.shown("head"))
        v.proxy.status = replace(EVERY, targets=[target("new", "ready")])
        await v.until(lambda: len(v.rows) == 1 and v.rows[0].startswith("new "))


async def test_what_is_selected_stays_so_when_rows_change_and_is_sorted() -> None:
    async with view() as v:
        await v.until(lambda: len(v.rows) == 6)
        targets = v.app.query_one(Targets)
        assert targets.selected == "ns/vllm-bad"
        await v.press("down", "down")
        assert targets.selected == "ns/vllm-coder"
        await v.press("s", "s")
        await v.until(lambda: "Sorted by waiting." in v.shown("said"))
        assert [row.split()[0] for row in v.rows] == ["big", "next", "coder", "bad", "idle", "r1"]
        assert (targets.selected, targets.highlighted) == ("ns/vllm-coder", 2)
        v.proxy.status = replace(EVERY, targets=[one for one in EVERY.targets if one.model != "coder"])
        await v.until(lambda: len(v.rows) == 5)
        assert targets.selected is not None


async def test_a_model_is_woken_at_once_and_put_to_sleep_after_a_question() -> None:
    async with view() as v:
        await v.until(lambda: len(v.rows) == 6)
        await v.press("w")
        await v.until(lambda: "bad is being woken." in v.shown("said"))
        await v.press("down", "down", "z")
        assert v.asks()
        await v.press("enter")
        assert not v.asks()
        await v.press("z", "y")
        await v.until(lambda: "coder is asleep." in v.shown("said"))
        assert v.proxy.asked == ["/proxy/operations/start?wait=false bad", "/proxy/operations/stop coder"]


async def test_what_the_proxy_says_against_it_is_shown() -> None:
    async with view(Told(refuses="it [red]cannot[/red] be")) as v:
        await v.until(lambda: len(v.rows) == 6)
        await v.press("w")
        await v.until(lambda: "it [red]cannot[/red] be" in v.shown("said"))


async def test_details_have_the_last_start_and_what_the_engine_wrote() -> None:
    async with view(Told(has_more=True)) as v:
        await v.until(lambda: len(v.rows) == 6)
        await v.press("down", "down", "enter")
        await v.until(lambda: "last start ready after 1m14s" in v.shown("details"))
        await v.until(lambda: "first of coder\nlast line" in v.shown("details"))
        await v.press("w")
        await v.until(lambda: v.proxy.asked == ["/proxy/operations/start?wait=false coder"])
        v.proxy.status = replace(EVERY, targets=[target("new")])
        await v.until(lambda: "It is no more." in v.shown("details"))
        await v.press("escape")
        assert len(v.rows) == 1


async def test_on_a_phone_there_are_no_columns() -> None:
    async with view(size=(37, 30)) as v:
        await v.until(lambda: len(v.rows) == 6)
        assert v.shown("heading").strip() == ""
        assert v.rows[1].splitlines()[:2] == [
            "big                       waking 32s",
            "  12 waiting, 0 in flight, replicas",
        ]
        await v.pilot.resize_terminal(100, 30)
        await v.until(lambda: "SLEEPS IN" in v.shown("heading"))


async def test_a_proxy_that_is_away_is_told_of_and_found_again() -> None:
    async with view() as v:
        await v.until(lambda: len(v.rows) == 6)
        v.proxy.code = 503
        await v.until(lambda: "It does not answer (no); it is asked again." in v.shown("head"))
        assert len(v.rows) == 6
        v.proxy.code = 200
        await v.until(lambda: "does not answer" not in v.shown("head"))


async def test_who_may_not_see_it_is_told_so_at_the_end() -> None:
    async with view(Told(code=401)) as v:
        await v.until(lambda: v.app.failed is not None)
        assert isinstance(v.app.failed, NotAllowed)


def test_today_is_the_real_one_where_nobody_says() -> None:
    assert Top(Proxy("http://127.0.0.1:1"))._today() <= datetime.now(UTC)
