"""Behind an nginx that cuts what is silent for longer than a cold start takes: who comes through, and who does not.

All of them ask at once, as a start is the slow part; each test is about one of them.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.ingress.nginx import PROGRAM, nginx
from tests.serving import serving

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="nginx is not on this machine")


@dataclass(frozen=True, slots=True)
class Setting:
    """An nginx, a proxy behind it and how long the engine takes to start; `cut` is after how long nginx gives up."""

    cut: float
    start: float
    directives: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()


_SHORT = ("--hold-heartbeat-after", "1s", "--hold-heartbeat", "500ms")
SETTINGS = {
    "cut after 2 s": Setting(2, 3, ("proxy_read_timeout 2s", "proxy_http_version 1.1"), _SHORT),
    "cut after 2 s, by HTTP 1.0": Setting(2, 3, ("proxy_read_timeout 2s",), _SHORT),
    # Nothing is set, neither there nor here: nginx gives up after 60 s, and speaks HTTP/1.0.
    "cut after 60 s": Setting(60, 90),
}


@dataclass(slots=True)
class Answer:
    """What a client behind nginx got: when its head came, and each piece of its body, in seconds from its request."""

    status: int
    headers: dict[str, str]
    began: float
    pieces: list[tuple[float, bytes]]

    @property
    def body(self) -> bytes:
        return b"".join(piece for _, piece in self.pieces)

    @property
    def seconds(self) -> float:
        return self.pieces[-1][0]

    @property
    def longest_silence(self) -> float:
        times = [self.began, *(time for time, _ in self.pieces)]
        return max(later - sooner for sooner, later in itertools.pairwise(times))


@dataclass(slots=True)
class Outcome:
    """The answers, and what the proxy said of the silent one's place as soon as nginx had given up."""

    setting: Setting
    stream: Answer
    spaces: Answer
    silent: Answer
    retried: Answer
    impatient: Answer
    waiting_after_the_cut: int


async def ask(url: str, *, stream: bool = False, **headers: str) -> Answer:
    body = {"model": "demo", "stream": stream, "messages": [{"role": "user", "content": "Are you there?"}]}
    begun = time.monotonic()
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as session,
        session.post(url + "/v1/chat/completions", json=body, headers=headers) as response,
    ):
        answer = Answer(response.status, dict(response.headers), time.monotonic() - begun, [])
        async for piece in response.content.iter_any():
            answer.pieces.append((time.monotonic() - begun, piece))
        return answer


@asynccontextmanager
async def behind_nginx(folder: Path, setting: Setting, json_hold: str) -> AsyncIterator[tuple[str, str]]:
    """A proxy in front of an engine that sleeps, and an nginx before it: nginx's URL, and the proxy's own."""
    command = (
        *(sys.executable, "-m", "vllm_chill.demo_engine", "--port", "{port}"),
        *("--load-seconds", str(setting.start), "--tokens-per-second", "500"),
    )
    async with (
        serving("--hold-json", json_hold, *setting.flags, command=command) as proxy,
        nginx(folder / json_hold, proxy.url, setting.directives) as url,
    ):
        yield url, proxy.url


async def waiting_at(proxy: str, expected: int) -> int:
    """How many are held, once it is as expected or a second has passed."""
    deadline = time.monotonic() + 1
    async with aiohttp.ClientSession() as session:
        while True:
            async with session.get(proxy + "/proxy/status") as response:
                waiting = int((await response.json())["targets"][0]["waiting"])
            if waiting == expected or time.monotonic() > deadline:
                return waiting
            await asyncio.sleep(0.02)


async def patiently(url: str) -> Answer:
    """The first answer that is not nginx's own, however often that takes."""
    while (answer := await ask(url)).status == 504:
        pass
    return answer


async def everything(folder: Path, setting: Setting) -> Outcome:
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        silent_url, silent_proxy = await stack.enter_async_context(behind_nginx(folder, setting, "silent"))
        spaces_url, _ = await stack.enter_async_context(behind_nginx(folder, setting, "whitespace"))
        stream = tasks.create_task(ask(silent_url, stream=True))
        spaces = tasks.create_task(ask(spaces_url))
        impatient = tasks.create_task(ask(silent_url, Prefer="wait=1"))
        silent = await ask(silent_url)
        waiting = await waiting_at(silent_proxy, 1)
        retried = await patiently(silent_url)
        return Outcome(setting, await stream, await spaces, silent, retried, await impatient, waiting)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(setting, id=name, marks=[pytest.mark.slow] if setting.start > 60 else [])
        for name, setting in SETTINGS.items()
    ],
)
def outcome(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return asyncio.run(everything(tmp_path_factory.mktemp("nginx"), request.param))


def lines_of(answer: Answer) -> list[str]:
    return [line for line in answer.body.decode().split("\n") if line]


class TestAStream:
    def test_it_comes_through_whole(self, outcome: Outcome) -> None:
        answer = outcome.stream
        assert answer.status == 200
        assert answer.seconds > outcome.setting.start > outcome.setting.cut
        events = [line.removeprefix("data: ") for line in lines_of(answer) if not line.startswith(":")]
        assert events.pop() == "[DONE]"
        chunks = [json.loads(event)["choices"][0] for event in events]
        assert "".join(chunk["delta"]["content"] for chunk in chunks).startswith("This is vllm-chill's demo engine")
        assert chunks[-1]["finish_reason"] == "stop"

    def test_each_comment_comes_when_it_is_sent_and_says_what_is_waited_for(self, outcome: Outcome) -> None:
        answer = outcome.stream
        comments = [line for line in lines_of(answer) if line.startswith(":")]
        assert len(comments) >= 3
        for comment in comments:
            assert comment.startswith(": waking: "), comment
            assert "position " in comment
            assert comment.endswith(" so far"), "nothing is known of past starts"
        assert answer.longest_silence < outcome.setting.cut, "nginx does not gather them"


class TestJsonWithSpaces:
    def test_it_comes_through_and_is_json(self, outcome: Outcome) -> None:
        answer = outcome.spaces
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith("application/json")
        assert answer.seconds > outcome.setting.start
        assert answer.body.startswith(b"   ")
        completion: dict[str, Any] = json.loads(answer.body)
        assert completion["choices"][0]["finish_reason"] == "stop"
        assert answer.longest_silence < outcome.setting.cut


class TestSilentJson:
    def test_nginx_answers_504_in_the_proxys_place(self, outcome: Outcome) -> None:
        answer = outcome.silent
        assert answer.status == 504
        assert answer.headers["Server"].startswith("nginx")
        assert outcome.setting.cut * 0.9 < answer.seconds < outcome.setting.start

    def test_its_place_is_free_then(self, outcome: Outcome) -> None:
        assert outcome.waiting_after_the_cut == 1, "the stream's"

    def test_the_start_goes_on_and_a_later_request_is_answered(self, outcome: Outcome) -> None:
        assert outcome.retried.status == 200
        assert json.loads(outcome.retried.body)["choices"][0]["finish_reason"] == "stop"

    def test_one_that_says_how_long_it_waits_gets_the_proxys_own_answer(self, outcome: Outcome) -> None:
        answer = outcome.impatient
        assert answer.status == 503
        assert json.loads(answer.body)["error"]["code"] == "model_waking"
        assert int(answer.headers["Retry-After"]) >= 1
        assert answer.seconds < outcome.setting.cut
