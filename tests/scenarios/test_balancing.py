"""Three replicas behind a whole proxy, over real sockets, on both lanes."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.scenarios.stage import Stage, stage
from vllm_chill.control.lease import Bounds
from vllm_chill.core.target import Endpoint, Observation
from vllm_chill.proxy.affinity import Affinity
from vllm_chill.proxy.probe import Prober

CHAT = "/v1/chat/completions"
BY_PREFIX = Affinity(prefix_length=100)
BOUNDED = Bounds(load_factor=1.25)


@pytest.fixture(params=[True, False], ids=["fast lane", "base"])
def fast(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@dataclass
class Replica:
    """One engine. `hits` counts what has come, and `busy` what is being answered; it answers once `go_on` is set, with
    a first event before that if it streams.
    """

    name: str
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    hits: int = 0
    busy: int = 0
    status: int = 200
    healthy: bool = True
    endpoint: Endpoint = field(init=False)
    runner: web.ServerRunner | None = None

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/health":
            return web.Response(status=200 if self.healthy else 503)
        self.hits += 1
        self.busy += 1
        try:
            body = await request.content.read()
            if b'"stream": true' in body:
                return await self._stream(request)
            await self.go_on.wait()
            return web.json_response({"at": self.name}, status=self.status)
        finally:
            self.busy -= 1

    async def _stream(self, request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(f"data: {self.name}\n\n".encode())
        await self.go_on.wait()
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    async def start(self, port: int = 0) -> None:
        self.runner = web.ServerRunner(
            web.Server(self, handler_cancellation=True, access_log=None), shutdown_timeout=0.05
        )
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", port, reuse_address=True).start()
        self.endpoint = Endpoint(*self.runner.addresses[0][:2])

    async def die(self) -> None:
        """Take no connection any more, and break those that there are."""
        assert self.runner is not None
        server = self.runner.server
        for connection in list(server.connections) if server is not None else ():
            if connection.transport is not None:
                connection.transport.abort()
        await self.runner.cleanup()


@dataclass
class Three:
    """A proxy with three replicas that are ready."""

    s: Stage
    replicas: tuple[Replica, ...]

    def see(self, *replicas: Replica) -> None:
        endpoints = tuple(replica.endpoint for replica in replicas)
        self.s.controller.observed(Observation(len(endpoints), len(endpoints), endpoints))

    @property
    def hits(self) -> list[int]:
        return [replica.hits for replica in self.replicas]

    async def ask(self, content: str = "Hello", **headers: str) -> str:
        """One request; who has answered it."""
        status, answer = await self.s.post(CHAT, json=chat(content), headers=headers)
        assert status == 200, answer
        return str(answer["at"])


def chat(content: str, **more: object) -> dict[str, Any]:
    messages = [{"role": "system", "content": "Be."}, {"role": "user", "content": content}]
    return {"model": "m", "messages": messages, **more}


@contextlib.asynccontextmanager
async def three(*, fast: bool, awake: bool = True, running: bool = True, **kwargs: Any) -> AsyncIterator[Three]:
    async with contextlib.AsyncExitStack() as stack:
        replicas = tuple(Replica(name) for name in "abc")
        for replica in replicas:
            await replica.start()
            stack.push_async_callback(replica.die)
            if running:
                replica.go_on.set()
        s = await stack.enter_async_context(stage(awake=awake, fast=fast, **kwargs))
        prober = Prober(s.pool)

        async def look(endpoint: Endpoint) -> bool:
            return "200" in str(await prober.ask(endpoint, "/health", 1.0))

        s.controller.ejector.look = look
        s.controller.ejector.outliers.base_seconds = 0.2
        there = Three(s, replicas)
        if awake:
            there.see(*replicas)
        yield there
        await s.until(lambda: not s.controller.target.in_flight)
        assert not any(s.controller._seats.taken(replica.endpoint) for replica in replicas)


async def test_requests_are_spread_evenly(fast: bool) -> None:
    async with three(fast=fast, running=False) as t:
        asks = [asyncio.create_task(t.ask()) for _ in range(30)]
        await t.s.until(lambda: sum(t.hits) == 30)
        assert t.hits == [10, 10, 10]
        for replica in t.replicas:
            replica.go_on.set()
        assert Counter(await asyncio.gather(*asks)) == {"a": 10, "b": 10, "c": 10}


async def test_requests_one_after_the_other_are_spread_too(fast: bool) -> None:
    async with three(fast=fast) as t:
        for _ in range(9):
            await t.ask()
        assert t.hits == [3, 3, 3]


async def test_prompts_that_begin_alike_meet_and_others_are_spread(fast: bool) -> None:
    async with three(fast=fast, affinity=BY_PREFIX, bounds=BOUNDED) as t:
        begin = (
            "Of all the conversations this is one that begins with more than a hundred characters, as most of them do. "
        )
        homes: Counter[str] = Counter()
        for number in range(20):
            said = f"{number}: {begin}"
            assert len({await t.ask(said + turn) for turn in ("Yes?", "No?", "And then?")}) == 1
            homes[await t.ask(said)] += 1
        assert len(homes) == 3


async def test_requests_of_a_session_meet_whatever_they_say(fast: bool) -> None:
    async with three(fast=fast, affinity=Affinity("X-Session"), bounds=BOUNDED) as t:
        for number in range(10):
            session = {"X-Session": f"{number}"}
            assert len({await t.ask(f"{turn}", **session) for turn in range(4)}) == 1
        before = t.hits
        for turn in range(9):
            await t.ask(f"{turn}")
        assert [after - hits for after, hits in zip(t.hits, before, strict=True)] == [3, 3, 3]


async def test_no_replica_has_more_than_its_share_of_one_prompt(fast: bool) -> None:
    async with three(fast=fast, running=False, affinity=BY_PREFIX, bounds=BOUNDED) as t:
        asks = [asyncio.create_task(t.ask()) for _ in range(30)]
        await t.s.until(lambda: sum(t.hits) == 30)
        assert sorted(t.hits) == [4, 13, 13]
        for replica in t.replicas:
            replica.go_on.set()
        await asyncio.gather(*asks)


async def test_a_body_without_a_prompt_is_a_request_like_any_other(fast: bool) -> None:
    async with three(fast=fast, affinity=BY_PREFIX, bounds=BOUNDED) as t:
        for body in (b"", b"{", b"null", b"\xff", b'{"prompt":', b'{"messages":[7]}', b'{"model":"m"}'):
            async with t.s.session.post(t.s.url + CHAT, data=body) as response:
                assert response.status == 200
        assert sorted(t.hits) == [2, 2, 3]


async def test_a_large_body_goes_by_the_prompt_that_it_begins_with(fast: bool) -> None:
    async with three(fast=fast, affinity=BY_PREFIX, bounds=BOUNDED, replay_bytes=10_000) as t:
        home = await t.ask("Hello " * 50)
        for size in (100, 3_000, 100_000):
            assert {await t.ask("Hello " * 50 + "x" * size) for _ in range(3)} == {home}


async def test_a_body_in_chunks_goes_by_the_prompt_that_has_come(fast: bool) -> None:
    async with three(fast=fast, affinity=BY_PREFIX, bounds=BOUNDED) as t:
        home = await t.ask("Hello " * 50)
        data = json.dumps(chat("Hello " * 50)).encode()
        head = b"POST %b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n" % CHAT.encode()
        for _ in range(3):
            answer = await t.s.raw(head + b"%x\r\n%b\r\n" % (len(data), data) + b"0\r\n\r\n")
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["at"] == home


async def test_who_was_held_goes_by_its_prompt_too(fast: bool) -> None:
    async with three(fast=fast, awake=False, start=5, affinity=BY_PREFIX, bounds=BOUNDED) as t:
        asks = [asyncio.create_task(t.ask(f"{number}")) for number in range(9)]
        await t.s.until(lambda: t.s.controller.target.waiting == 9)
        t.see(*t.replicas)
        held = await asyncio.gather(*asks)
        warm = [await t.ask(f"{number}") for number in range(9)]
        assert sum(one == other for one, other in zip(held, warm, strict=True)) >= 5


async def test_a_replica_that_refuses_is_asked_no_more_until_its_health_page_says_so(fast: bool) -> None:
    async with three(fast=fast) as t:
        ill = t.replicas[1]
        await ill.die()
        assert Counter([await t.ask() for _ in range(12)]).keys() == {"a", "c"}
        assert t.s.metric("vllm_chill_replica_ejections_total", target="test/vllm") == 1
        assert list(t.s.controller.ejector.outliers.out) == [ill.endpoint]
        ill.healthy = False
        await ill.start(ill.endpoint.port)
        await asyncio.sleep(0.4)
        assert {await t.ask() for _ in range(6)} == {"a", "c"}
        ill.healthy = True
        await t.s.until(lambda: not t.s.controller.ejector.outliers.out)
        assert ill.hits == 0
        assert {await t.ask() for _ in range(6)} == {"a", "b", "c"}
        assert t.s.metric("vllm_chill_replica_ejections_total", target="test/vllm") == 1


async def test_a_replica_that_answers_with_gateway_errors_is_taken_out(fast: bool) -> None:
    async with three(fast=fast) as t:
        t.replicas[0].status = 503
        statuses = [(await t.s.post(CHAT, json=chat("Hello")))[0] for _ in range(30)]
        assert Counter(statuses) == {200: 25, 503: 5}
        t.replicas[0].status = 200
        await t.s.until(lambda: not t.s.controller.ejector.outliers.out)
        assert {await t.ask() for _ in range(3)} == {"a", "b", "c"}


async def test_an_answer_between_errors_keeps_a_replica_in(fast: bool) -> None:
    async with three(fast=fast) as t:
        for number in range(30):
            t.replicas[0].status = 200 if number % 12 == 9 else 503
            await t.s.post(CHAT, json=chat("Hello"))
        assert not t.s.controller.ejector.outliers.out


async def test_a_replica_that_dies_under_load_costs_no_request_that_has_no_byte_yet(fast: bool) -> None:
    async with three(fast=fast, affinity=BY_PREFIX, bounds=BOUNDED) as t:
        dying, done = t.replicas[1], asyncio.Event()

        async def client(number: int) -> list[int]:
            statuses = []
            while not done.is_set():
                async with t.s.session.post(t.s.url + CHAT, json=chat(f"{number}")) as response:
                    await response.read()
                    statuses.append(response.status)
            return statuses

        dying.go_on.clear()
        clients = [asyncio.create_task(client(number)) for number in range(24)]
        await t.s.until(lambda: dying.busy >= 5)
        await dying.die()
        before = sum(t.hits)
        await t.s.until(lambda: sum(t.hits) > before + 200)
        done.set()
        assert {status for statuses in await asyncio.gather(*clients) for status in statuses} == {200}
        assert t.s.metric("vllm_chill_replica_ejections_total", target="test/vllm") >= 1


async def test_a_terminating_replica_gets_nothing_new_and_its_streams_end_in_good_order(fast: bool) -> None:
    async with three(fast=fast, running=False) as t:
        streams = [await t.s.session.post(t.s.url + CHAT, json=chat("Hello", stream=True)) for _ in range(6)]
        assert t.hits == [2, 2, 2]
        leaving, *staying = t.replicas
        t.see(*staying)
        more: list[aiohttp.ClientResponse] = [
            await t.s.session.post(t.s.url + CHAT, json=chat("Hello", stream=True)) for _ in range(6)
        ]
        assert t.hits == [2, 5, 5]
        for replica in t.replicas:
            replica.go_on.set()
        texts = [await response.text() for response in streams + more]
        assert all(text.endswith("data: [DONE]\n\n") for text in texts)
        assert sum(f"data: {leaving.name}\n" in text for text in texts) == 2


async def test_an_upgrade_that_meets_a_dead_replica_is_the_last_that_does() -> None:
    async with three(fast=True) as t:
        await t.replicas[0].die()
        statuses = []
        for _ in range(6):
            headers = {"Connection": "Upgrade", "Upgrade": "some/1"}
            async with t.s.session.get(t.s.url + "/v1/realtime", headers=headers) as response:
                statuses.append(response.status)
        assert Counter(statuses) == {502: 1, 200: 5}


async def test_an_upload_that_meets_a_dead_replica_is_the_last_that_does(fast: bool) -> None:
    async with three(fast=fast, replay_bytes=1000) as t:
        await t.replicas[0].die()
        statuses = [(await t.s.post(CHAT, data=b"x" * 200_000))[0] for _ in range(6)]
        assert Counter(statuses) in ({502: 1, 200: 5}, {200: 6})
        assert t.s.metric("vllm_chill_replica_ejections_total", target="test/vllm") == 1
