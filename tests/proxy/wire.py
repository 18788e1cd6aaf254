"""Both ends of the relay on real sockets: an upstream that follows a script, the server, and a raw client."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

from vllm_chill.core.target import Endpoint
from vllm_chill.errors import AnswerableError, ChillError
from vllm_chill.proxy.aiohttp_seam import ClientServer
from vllm_chill.proxy.body import KEPT_BYTES, RequestBody
from vllm_chill.proxy.relay import Relayed, RelayTimeouts, relay
from vllm_chill.proxy.upstream import UpstreamPool

LOCALHOST = "127.0.0.1"
NOWHERE = Endpoint(LOCALHOST, 0)
NO_TIMEOUTS = RelayTimeouts()

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}"
OK = b"HTTP/1.1 200 OK\r\n"
HELLO = OK + b"Content-Length: 5\r\n\r\nhello"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
MIB = 1 << 20
BIG = os.urandom(MIB) * 12
TO_CHUNKS = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


@dataclass
class Peer:
    """One end of a connection: what it has read, and what it can write."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    left: bytes = b""

    async def head(self) -> bytes:
        return await self.reader.readuntil(b"\r\n\r\n")

    async def exactly(self, size: int) -> bytes:
        return await self.reader.readexactly(size)

    async def rest(self) -> bytes:
        return await self.reader.read()

    async def chunk(self) -> bytes:
        size = int((await self.reader.readuntil(b"\r\n")).split(b";")[0], 16)
        return (await self.reader.readexactly(size + 2))[:-2]

    async def chunks_of(self, size: int) -> bytes:
        """As many bytes of a chunked body; the rest of the last chunk is kept for the next call."""
        while len(self.left) < size:
            self.left += await self.chunk()
        body, self.left = self.left[:size], self.left[size:]
        return body

    async def chunks(self) -> bytes:
        """A chunked body without trailers."""
        body = b""
        while chunk := await self.chunk():
            body += chunk
        return body

    async def request(self) -> tuple[bytes, bytes]:
        """A request's head, and its body by the Content-Length in it."""
        head = await self.head()
        return head, await self.exactly(length_in(head))

    async def response(self) -> tuple[bytes, bytes]:
        head = await self.head()
        return head, await (self.chunks() if b"ransfer-" in head else self.exactly(length_in(head)))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def closed(self) -> bool:
        """Whether the other end closes, in whichever way."""
        try:
            return await self.reader.read(1) == b""
        except ConnectionError:
            return True

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        self.writer.transport.abort()


def length_in(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


Script = Callable[[Peer], Awaitable[None]]


def answering(*responses: bytes) -> Script:
    """Answers each request of a connection with the next response; the last one for good."""

    async def script(peer: Peer) -> None:
        left = list(responses)
        while True:
            await peer.request()
            await peer.send(left.pop(0) if len(left) > 1 else left[0])

    return script


def saying(response: bytes) -> Script:
    """Answers one request, and closes."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(response)

    return script


def waiting(first: bytes, gone: asyncio.Event, seen: asyncio.Event) -> Script:
    """Reads a request's head, says `first`, and then only watches for the end of the connection."""

    async def script(peer: Peer) -> None:
        await peer.head()
        try:
            await peer.send(first)
            seen.set()
            await peer.rest()
        finally:
            gone.set()

    return script


@dataclass
class Upstream:
    """A server that runs a script per connection; `connections` counts them, `failures` has what went wrong."""

    script: Script
    endpoint: Endpoint = NOWHERE
    connections: int = 0
    failures: list[BaseException] = field(default_factory=list)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            await self.script(Peer(reader, writer))
            writer.close()
            await writer.wait_closed()
        except (asyncio.CancelledError, ConnectionError, asyncio.IncompleteReadError):
            pass
        except BaseException as failure:
            self.failures.append(failure)
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def stop(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert not self.failures, self.failures


@dataclass
class Wire:
    """A client's way to the upstream: `relayed` has what came of each request, in order."""

    upstream: Upstream
    pool: UpstreamPool
    port: int = 0
    limit: int = KEPT_BYTES
    timeouts: RelayTimeouts = NO_TIMEOUTS
    relayed: list[Relayed | ChillError] = field(default_factory=list)
    requests: list[web.BaseRequest] = field(default_factory=list)
    replays: int = 0
    give_up_seconds: float | None = None
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requests.append(request)
        self._changed.set()
        body = RequestBody(request, self.limit)
        while True:
            try:
                async with asyncio.timeout(self.give_up_seconds):
                    relayed = await relay(request, body, self.upstream.endpoint, self.pool, self.timeouts)
            except AnswerableError as error:
                self.relayed.append(error)
                self._changed.set()
                if self.replays and body.replayable:
                    self.replays -= 1
                    continue
                return web.Response(status=error.status, text=error.code)
            self.relayed.append(relayed)
            self._changed.set()
            return relayed

    async def until(self, holds: Callable[[], object]) -> None:
        """Wait until something that handling a request brings about holds."""
        while not holds():
            self._changed.clear()
            await self._changed.wait()

    async def result(self, number: int = 1) -> Relayed | ChillError:
        """What came of a request, the first being 1."""
        await self.until(lambda: len(self.relayed) >= number)
        return self.relayed[number - 1]

    async def client(self) -> Peer:
        peer = Peer(*await asyncio.open_connection(LOCALHOST, self.port, limit=1 << 26))
        self._stack.callback(peer.reset)
        return peer


@asynccontextmanager
async def upstream_of(script: Script) -> AsyncIterator[Upstream]:
    upstream = Upstream(script)
    server = await asyncio.start_server(upstream.serve, LOCALHOST, 0, limit=1 << 26)
    upstream.endpoint = Endpoint(LOCALHOST, server.sockets[0].getsockname()[1])
    try:
        yield upstream
    finally:
        server.close()
        await upstream.stop()


@asynccontextmanager
async def wired(
    script: Script, *, limit: int = KEPT_BYTES, timeouts: RelayTimeouts = NO_TIMEOUTS
) -> AsyncIterator[Wire]:
    async with asyncio.timeout(20), AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(upstream_of(script))
        pool = UpstreamPool()
        stack.push_async_callback(pool.aclose)
        wire = Wire(upstream, pool, limit=limit, timeouts=timeouts, _stack=stack)
        server = ClientServer(wire.handle, handler_cancellation=True, auto_decompress=False, access_log=None)
        listening = await asyncio.get_running_loop().create_server(server, LOCALHOST, 0)
        stack.push_async_callback(server.shutdown, 0.1)
        stack.callback(listening.close)
        wire.port = listening.sockets[0].getsockname()[1]
        yield wire


async def settled(value: Callable[[], int]) -> int:
    """What a growing number comes to rest at."""
    last = -1
    while last != (now := value()):
        last = now
        await asyncio.sleep(0.1)
    return last
