"""Connections to upstreams, and the pool that keeps them between requests.

A connection belongs to one exchange at a time and tells it what arrives; between two it waits in the pool, where
any byte from the upstream ends it.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from typing import Protocol, cast

from vllm_chill.adapters.engine_access import PLAIN, EngineAccess
from vllm_chill.adapters.keepalive import keepalive
from vllm_chill.core.target import Endpoint
from vllm_chill.errors import ChillError, UpstreamRefused, UpstreamReset

IDLE_LIMIT = 256
IDLE_SECONDS = 4.0

# A model may think for long and a node that died says nothing either: only the kernel can tell them apart.
KEEPALIVE = keepalive(idle_seconds=30, interval_seconds=10, probes=3)


class Exchange(Protocol):
    """Who a connection tells what happens to it."""

    def received(self, data: bytes) -> None:
        """Bytes of the response."""

    def ended(self, error: Exception | None) -> None:
        """The connection is gone: closed by the upstream in good order (None), or broken."""

    @property
    def sent(self) -> int:
        """How many bytes of the response have been passed on."""

    def fail(self, failure: ChillError) -> None:
        """End it here, with the connection."""


class UpstreamConnection(asyncio.Protocol):
    """One keep-alive connection to an endpoint. TCP_NODELAY is asyncio's default.

    `exchange` is who has it, None while it waits in the pool. `reused` says that it has served a request before:
    the upstream may then close it, having been idle, before it sees the next one. `loop` is kept because to ask for
    the running one is a system call (getpid) on Python 3.11.
    """

    __slots__ = (
        "_drained",
        "_home",
        "_lost",
        "_reading",
        "_resumed",
        "exchange",
        "loop",
        "reused",
        "transport",
        "writing_paused",
    )

    transport: asyncio.Transport

    def __init__(self, home: _Home, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.exchange: Exchange | None = None
        self.reused = False
        self._home = home
        self._reading = True
        self.writing_paused = False
        self._resumed: Callable[[], None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._lost: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._home.open.add(self)
        connection = transport.get_extra_info("socket")
        for option in KEEPALIVE:
            connection.setsockopt(*option)

    def data_received(self, data: bytes) -> None:
        if self.exchange is not None:
            self.exchange.received(data)
        else:
            self._home.idle.pop(self, None)
            self.transport.abort()

    def eof_received(self) -> None:
        # Here and not in connection_lost, which waits until what is still to be written has been.
        self._end(None)
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc)
        self._home.open.discard(self)
        self.resume_writing()
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(None)

    def _end(self, error: Exception | None) -> None:
        self._home.idle.pop(self, None)
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.ended(error)

    def pause_reading(self) -> bool:
        """Whether this call has paused it."""
        if not self._reading or self.transport.is_closing():
            return False
        self._reading = False
        self.transport.pause_reading()
        return True

    def resume_reading(self) -> None:
        if not self._reading:
            self._reading = True
            if not self.transport.is_closing():
                self.transport.resume_reading()

    def pause_writing(self) -> None:
        self.writing_paused = True

    def when_writable(self, call: Callable[[], None]) -> None:
        """Call once the upstream takes bytes again; one call at a time. To be used while `writing_paused`."""
        self._resumed = call

    def resume_writing(self) -> None:
        self.writing_paused = False
        resumed, self._resumed = self._resumed, None
        if resumed is not None:
            resumed()
        drained, self._drained = self._drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)

    def writelines(self, pieces: list[bytes]) -> None:
        # Joined here: asyncio's own writelines does not pause the writer in Python 3.12.0 to 3.12.8 and 3.13.0 to
        # 3.13.1 (CVE-2024-12254), and a client could then fill the memory with a body that the upstream does not read.
        self.transport.write(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    async def drain(self) -> None:
        """Until the upstream takes more bytes, or the connection is gone. For one caller at a time."""
        while self.writing_paused and not self.transport.is_closing():
            self._drained = self.loop.create_future()
            await self._drained

    async def wait_closed(self) -> None:
        """Until the connection is gone. The transport must be closing, or be about to be."""
        if self in self._home.open:
            if self._lost is None:
                self._lost = self.loop.create_future()
            await asyncio.shield(self._lost)


def why_refused(endpoint: Endpoint, error: OSError | UnicodeError, timeout_seconds: float) -> str:
    """The sentence for a connection that could not be made."""
    if isinstance(error, TimeoutError):
        return f"{endpoint} took no connection within {timeout_seconds:g} s; see whether the model server is running"
    if isinstance(error, OSError) and error.errno in {errno.EMFILE, errno.ENFILE}:
        return f"no connection to {endpoint} can be made: the proxy has as many files open as it may (see ulimit -n)"
    return f"{endpoint} took no connection ({error}); see whether the model server is running"


class _Home:
    """The connections to one endpoint. `idle` has them with the time since when, the latest last.

    A home that is closed takes none back.
    """

    __slots__ = ("closed", "idle", "open")

    def __init__(self) -> None:
        self.closed = False
        self.idle: dict[UpstreamConnection, float] = {}
        self.open: set[UpstreamConnection] = set()


class UpstreamPool:
    """Idle keep-alive connections per endpoint, the latest used first, so that those not needed grow old.

    At most `idle_limit` wait per endpoint, and none is used that has waited for longer than `idle_seconds` (the
    default is below the 5 s after which vLLM's server closes an idle connection).

    A response from a replica that has gone is given up once nothing of it has come for `orphan_seconds` (None: never):
    an engine that is ended may leave its streams open and silent.

    `access` is how engines are spoken to: over TLS or not, and with which key, which is for who sends a request.
    """

    def __init__(
        self,
        *,
        idle_limit: int = IDLE_LIMIT,
        idle_seconds: float = IDLE_SECONDS,
        orphan_seconds: float | None = None,
        access: EngineAccess = PLAIN,
    ) -> None:
        self.access = access
        self._orphan_seconds = orphan_seconds
        self._orphans: dict[UpstreamConnection, tuple[int, float]] = {}
        self._orphan_watch: asyncio.TimerHandle | None = None
        self._idle_limit = idle_limit
        self._idle_seconds = idle_seconds
        self._homes: dict[Endpoint, _Home] = {}
        self._leaving: set[_Home] = set()
        self._sweep: asyncio.TimerHandle | None = None
        self._closed = False
        self.on_close: Callable[[Endpoint], None] = lambda _: None
        """Called when an endpoint's replica is going."""

    def take(self, endpoint: Endpoint) -> UpstreamConnection | None:
        """An idle connection, if there is one."""
        home = self._homes.get(endpoint)
        while home is not None and home.idle:
            connection, since = home.idle.popitem()
            if connection.loop.time() - since <= self._idle_seconds and not connection.transport.is_closing():
                return connection
            connection.transport.abort()
        return None

    async def connect(self, endpoint: Endpoint, timeout_seconds: float) -> UpstreamConnection:
        """A new connection. Raises UpstreamRefused."""
        home = self._homes.get(endpoint)
        if home is None:
            home = self._homes[endpoint] = _Home()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_seconds):
                _, connection = await loop.create_connection(
                    lambda: UpstreamConnection(home, loop), endpoint.host, endpoint.port, **self.access.tls_options
                )
        except (OSError, UnicodeError) as error:
            raise UpstreamRefused(why_refused(endpoint, error, timeout_seconds)) from error
        return connection

    def release(self, connection: UpstreamConnection) -> None:
        """Take back a connection whose exchange is over, both ways, in good order."""
        home = connection._home
        connection.exchange = None
        if home.closed or len(home.idle) >= self._idle_limit or connection.transport.is_closing():
            connection.transport.abort()
            return
        if not connection._reading:
            connection.resume_reading()
        connection.reused = True
        home.idle[connection] = connection.loop.time()
        if self._sweep is None:
            self._sweep = connection.loop.call_later(self._idle_seconds, self._close_old)

    def close_endpoint(self, endpoint: Endpoint) -> None:
        """The endpoint's replica is going: close its idle connections now, and those in use after their response."""
        self.on_close(endpoint)
        home = self._homes.pop(endpoint, None)
        if home is None:
            return
        home.closed = True
        self._leaving = {leaving for leaving in self._leaving if leaving.open} | {home}
        for connection in home.idle:
            connection.transport.abort()
        home.idle.clear()
        if self._orphan_seconds is not None and self._orphan_watch is None and home.open:
            self._watch_orphans()

    def _watch_orphans(self) -> None:
        """Give up the responses of gone replicas that have been silent for too long, and look again in a while."""
        loop, seconds = asyncio.get_running_loop(), self._orphan_seconds
        assert seconds is not None
        now, before = loop.time(), self._orphans
        self._orphans = {}
        for home in self._leaving:
            for connection in list(home.open):
                exchange = connection.exchange
                if exchange is None:
                    continue
                sent, since = before.get(connection, (-1, now))
                if exchange.sent != sent:
                    since = now
                if now - since >= seconds:
                    exchange.fail(UpstreamReset(f"the replica is gone, and was silent for {seconds:g} s; try again"))
                else:
                    self._orphans[connection] = exchange.sent, since
        self._orphan_watch = loop.call_later(seconds / 4, self._watch_orphans) if self._orphans else None

    async def aclose(self) -> None:
        """Close every connection, those in use too, and return once they are closed."""
        for timer in (self._sweep, self._orphan_watch):
            if timer is not None:
                timer.cancel()
        for endpoint in list(self._homes):
            self.close_endpoint(endpoint)
        for home in self._leaving:
            for connection in home.open:
                connection.transport.abort()
        for home in self._leaving:
            for connection in list(home.open):
                await connection.wait_closed()

    def _close_old(self) -> None:
        loop = asyncio.get_running_loop()
        oldest = loop.time() - self._idle_seconds
        for home in self._homes.values():
            old = [connection for connection, since in home.idle.items() if since <= oldest]
            for connection in old:
                del home.idle[connection]
                connection.transport.abort()
        waiting = any(home.idle for home in self._homes.values())
        self._sweep = loop.call_later(self._idle_seconds, self._close_old) if waiting else None
