"""Everything goes wrong at once, and at its end nothing is left: no lease, no place, no byte of a budget, no task."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp.web import Server

from tests.proxy.wire import Peer, upstream_of
from tests.scenarios.stage import Stage, stage
from vllm_chill.control.lease import Bounds
from vllm_chill.core.target import Ready
from vllm_chill.errors import BackendUnavailable
from vllm_chill.proxy.aiohttp_seam import cut_off
from vllm_chill.proxy.fast_lane import FastServer
from vllm_chill.proxy.hold_terms import HoldOptions, JsonHold

KEPT = 20_000
BUDGET = 1_500_000
SEATS = 4
AT_A_TIME = 32
LANES = pytest.mark.parametrize("fast", [True, False], ids=["fast lane", "base"])
SECONDS = 0.4  # the longest that anything is let take

HEAD = b"HTTP/1.1 200 OK\r\n"
EVENTS = b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
PIECE = b"9\r\ndata: x\n\n\r\n"
JSON = b'Content-Type: application/json\r\nContent-Length: 11\r\n\r\n{"ok":true}'


class Upstream:
    """Answers in every way, and breaks off at every point."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    async def __call__(self, peer: Peer) -> None:
        while await self.answer(peer, await peer.head()):
            pass

    async def body(self, peer: Peer, head: bytes) -> None:
        if b"\r\nTransfer-Encoding:" in head:
            await peer.chunks()
        elif b"\r\nContent-Length: " in head:
            await peer.exactly(int(head.partition(b"\r\nContent-Length: ")[2].split(b"\r\n")[0]))

    async def pause(self) -> None:
        await asyncio.sleep(self.random.choice([0, 0, 0.001, 0.01, 0.05]))

    async def answer(self, peer: Peer, head: bytes) -> bool:
        """Answer one request; whether the connection goes on."""
        how = self.random.choice(
            ["json"] * 6
            + ["events"] * 4
            + ["early", "error", "close", "reset", "half a head", "half a body", "half a stream", "nonsense", "silence"]
            + ["to the close", "and close", "too much", "large"]
        )
        if how != "early":
            await self.body(peer, head)
        await self.pause()
        match how:
            case "json":
                await peer.send(HEAD + JSON)
            case "early" | "error":
                await peer.send(b"HTTP/1.1 413 No\r\nContent-Length: 2\r\n\r\nno")
                if how == "early":
                    await self.body(peer, head)
            case "events" | "half a stream":
                await peer.send(HEAD + EVENTS)
                for _ in range(self.random.randrange(5)):
                    await peer.send(PIECE)
                    await self.pause()
                if how == "half a stream":
                    self.hang_up(peer)
                    return False
                await peer.send(b"0\r\n\r\n")
            case "large":
                await peer.send(HEAD + b"Content-Length: 3000000\r\n\r\n")
                for _ in range(30):
                    await peer.send(b"x" * 100_000)
            case "silence":
                await asyncio.sleep(2 * SECONDS)
                return False
            case "half a head":
                await peer.send(HEAD + b"Content-Ty")
                self.hang_up(peer)
                return False
            case "half a body":
                await peer.send(HEAD + b"Content-Length: 10\r\n\r\nhel")
                await self.pause()
                self.hang_up(peer)
                return False
            case "to the close" | "and close":
                await peer.send(HEAD + (b"\r\nhello" if how == "to the close" else b"Connection: close\r\n" + JSON))
                return False
            case "too much":
                await peer.send(HEAD + JSON + b"HTTP/1.1 200 OK\r\n\r\n")
                return False
            case "nonsense":
                await peer.send(b"hello\r\n\r\n")
                return False
            case "close" | "reset":
                self.hang_up(peer)
                return False
        return True

    def hang_up(self, peer: Peer) -> None:
        cut_off(peer.writer.transport, reset=self.random.random() < 0.5)  # type: ignore[arg-type]


class Client:
    """One connection, with what a client may do on it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def request(self) -> bytes:
        choice = self.random.choice
        document: dict[str, Any] = {"model": "m", "stream": choice([True, True, False])}
        document["prompt"] = "x" * choice([0, 0, 10, 1000, KEPT, 100_000, 400_000])
        body = choice([json.dumps(document).encode()] * 8 + [b"", b"x" * 500, b"{broken", b"x" * 500_000])
        fields = [
            b"Content-Type: application/json" if body[:1] == b"{" else b"Content-Type: audio/wav",
            choice([b""] * 6 + [b"Prefer: wait=0", b"X-Wake-Timeout: 20ms", b"X-Wake-Timeout: x", b"Prefer: wait=1"]),
            choice([b""] * 8 + [b"Connection: close", b"Expect: 100-continue", b"X: \xff"]),
            choice([b""] * 2 + [b"Authorization: Bearer %d" % number for number in range(4)]),
        ]
        version = choice([b"1.1"] * 9 + [b"1.0"])
        if self.random.random() < 0.1:
            fields.append(b"Transfer-Encoding: chunked")
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
        else:
            fields.append(b"Content-Length: %d" % len(body))
        method = b"POST" if self.random.random() < 0.95 else b"GET"
        line = method + b" /v1/completions HTTP/" + version
        return b"\r\n".join([line, b"Host: a", *filter(None, fields), b"", b""]) + body

    async def run(self, s: Stage) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(SECONDS * self.random.choice([0.05, 0.3, 1, 2, 4, 8])):
                await self.talk(s)

    async def talk(self, s: Stage) -> None:
        reader, writer = await asyncio.open_connection(*s.address)
        reading = asyncio.create_task(self.read(reader))
        try:
            for _ in range(self.random.choice([1, 1, 2, 3])):
                data = b"".join(self.request() for _ in range(self.random.choice([1, 1, 1, 2, 4])))
                cuts = sorted(self.random.randrange(len(data)) for _ in range(self.random.choice([0, 1, 2, 5])))
                for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
                    writer.write(data[start:end])
                    await writer.drain()
                    await asyncio.sleep(self.random.choice([0, 0, 0.002, 0.02]))
                if self.random.random() < 0.15:
                    return
                await asyncio.sleep(self.random.choice([0, 0.01, 0.1]))
            if self.random.random() < 0.1:
                writer.write_eof()
            await asyncio.wait([reading], timeout=SECONDS)
        finally:
            reading.cancel()
            if self.random.random() < 0.5:
                writer.close()
            else:
                cut_off(writer.transport, reset=True)  # type: ignore[arg-type]
            await asyncio.wait([reading])

    async def read(self, reader: asyncio.StreamReader) -> None:
        if self.random.random() < 0.1:
            await asyncio.sleep(SECONDS)
        with contextlib.suppress(ConnectionError):
            while await reader.read(1 << 16):
                pass


@dataclass
class Weather:
    """What happens to the target meanwhile."""

    s: Stage
    random: random.Random
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    async def run(self) -> None:
        backend = self.s.backend
        while True:
            await asyncio.sleep(self.random.choice([0.01, 0.05, 0.1]))
            match self.random.choice(
                ["calm"] * 30 + ["down", "up", "die", "unready", "away", "stop", "wake", "nobody"]
            ):
                case "down":
                    backend.set_replicas(0)
                case "up":
                    backend.set_replicas(1)
                case "die" if backend.seen.replicas:
                    backend.die("it died")
                case "unready" if self.s.phase_is(Ready):
                    backend.unready()
                    await asyncio.sleep(0.01)
                    if backend.seen.replicas:
                        backend.ready()
                case "away":
                    backend.fail_next.append(BackendUnavailable("away"))
                case "stop":
                    self.ask(self.s.post("/proxy/operations/stop"))
                case "wake":
                    self.ask(self.s.post("/proxy/operations/start"))
                case "nobody":
                    self.ask(self.s.get("/v1/models"))

    def ask(self, question: Any) -> None:
        async def asked() -> None:
            with contextlib.suppress(aiohttp.ClientError, ValueError, TimeoutError):
                await asyncio.wait_for(question, 2)

        task = asyncio.create_task(asked())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


def left_over(s: Stage, server: Server, others: set[asyncio.Task[Any]]) -> dict[str, object]:
    """What is still held by somebody: nothing, once everybody has left. `others` are tasks of others."""
    controller = s.controller
    loop: Any = asyncio.get_running_loop()
    timers = [handle for handle in loop._scheduled if not handle.cancelled()]
    names = [getattr(timer._callback, "__qualname__", "") for timer in timers]
    homes = [*s.pool._homes.values(), *s.pool._leaving]
    return {
        "waiting": controller.target.waiting,
        "in the room": len(controller._room),
        "in flight": controller.target.in_flight,
        "seats": sum(map(controller._seats.taken, controller.endpoints)),
        "budget": s.desk.budget.taken,
        "active": s.server._active,
        "connections on the lane": len(server.fast) if isinstance(server, FastServer) else 0,
        "connections of aiohttp": len(server.connections),
        "connections in use": sum(len(home.open) - len(home.idle) for home in homes),
        "tasks": [task for task in asyncio.all_tasks() - others if not task.done()],
        "timers": [name for name in names if name.endswith(("._beat", "._time_out", ".abort"))],
    }


@dataclass
class Storm:
    """A proxy in bad weather."""

    s: Stage
    seed: int

    async def clients(self, count: int) -> None:
        """So many of them, not all at a time."""
        places = asyncio.Semaphore(AT_A_TIME)

        async def client(number: int) -> None:
            async with places:
                await Client(self.seed * 1000 + number).run(self.s)

        await asyncio.gather(*(client(number) for number in range(count)))


@asynccontextmanager
async def storm(seed: int, *, fast: bool, json_hold: JsonHold = JsonHold.SILENT) -> AsyncIterator[Storm]:
    """A proxy in bad weather; at the end, when its clients have left, nothing is left of them."""
    troubles: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: troubles.append(context))
    terms = HoldOptions(seconds=SECONDS, beat_after_seconds=0.02, beat_seconds=0.01, json=json_hold, body_budget=BUDGET)
    async with (
        asyncio.timeout(60),
        upstream_of(Upstream(seed)) as upstream,
        stage(
            start=0.05, stop=0.02, idle=0.3, limit=1, replay_bytes=KEPT, response=SECONDS, fast=fast, terms=terms,
            bounds=Bounds(24, SEATS), keep_abandoned=seed % 2 == 0,
        ) as s,
    ):  # fmt: skip
        s.backend.endpoint = upstream.endpoint
        server = s.server._runner._server
        assert isinstance(server, Server)
        tasks = asyncio.all_tasks()
        weather = Weather(s, random.Random(seed))
        blowing = asyncio.create_task(weather.run())
        yield Storm(s, seed)
        blowing.cancel()
        await asyncio.wait([blowing, *weather.tasks])
        await s.session.close()

        def left() -> dict[str, object]:
            return left_over(s, server, tasks | upstream._tasks)

        none = {name: type(value)() for name, value in left().items()}
        with contextlib.suppress(TimeoutError):
            await s.until(lambda: left() == none, 3)
        assert left() == none
    gc.collect()
    assert not troubles


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("json_hold", [JsonHold.SILENT, JsonHold.WHITESPACE])
@LANES
async def test_whatever_happens_nothing_is_left_of_it(fast: bool, json_hold: JsonHold, seed: int) -> None:
    async with storm(seed, fast=fast, json_hold=json_hold) as it:
        await it.clients(160)
        assert it.s.metric("vllm_chill_requests_total", method="POST", route="proxied", status="200") > 0


# Python 3.11 drops a socket that it has accepted as the server is closed, and leaves it to the collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("seed", [3, 4, 5])
@LANES
async def test_whatever_is_going_on_the_end_ends_it(fast: bool, seed: int) -> None:
    async with storm(seed, fast=fast) as it:
        sending = asyncio.create_task(it.clients(64))
        await asyncio.sleep(0.1 * seed)
        await it.s.server.drain(0, 0.1)
        await it.s.server.close()
        assert not it.s.server._active
        await sending
