"""`GET /proxy/events`: how the targets are, sent again whenever that changes, to those who listen.

The rule: nothing is done while nobody listens, and all listeners get the same bytes. Nothing is kept for one that is
slow: once it takes bytes again, it gets what is newest then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
from aiohttp import hdrs, web

from vllm_chill.api.status import ProxyStatus
from vllm_chill.core.routing import Route
from vllm_chill.errors import TooManyListeners

MOST_LISTENERS = 64
LOOK_SECONDS = 0.25
"""How often it is looked whether something has changed that rings no bell, such as how many wait; and how far apart two
events are, at least.
"""
BEAT_SECONDS = 5.0
"""How often a status is sent that has not changed: its times go on, and who listens sees that the proxy lives."""
STARTING_SECONDS = 1.0
"""The same while a start is under way."""

_RETRY_MILLISECONDS = 1000
_RETRY_AFTER_SECONDS = 5
_HEADERS = {
    hdrs.CONTENT_TYPE: "text/event-stream; charset=utf-8",
    hdrs.CACHE_CONTROL: "no-store",
    "X-Accel-Buffering": "no",
    hdrs.SERVER: "vllm-chill",
}


class Newest:
    """The newest event, made when it is asked for. `status` is what it tells; `signs` is another value once that has
    changed in more than its times, and is cheap to have. Times are seconds on any clock.

    `is_last`: the proxy shuts down, and there is no event after this one.
    """

    def __init__(
        self, status: Callable[[], ProxyStatus], signs: Callable[[], Any], *, look_seconds: float = LOOK_SECONDS
    ) -> None:
        self._status = status
        self._signs = signs
        self.look_seconds = look_seconds
        self.event: bytes | None = None
        self.is_last = False
        self._seen: Any = None
        self._looked_at = self._made_at = 0.0
        self._beat_seconds = BEAT_SECONDS

    def at(self, now: float, *, rung: bool = False) -> bytes:
        """The event to have been told of now; `rung`: something has changed since it was asked for last."""
        if self.event is None:
            return self._made(now, self._signs())
        if now < self.soonest or (now - self._looked_at < self.look_seconds and not rung):
            return self.event
        self._looked_at = now
        signs = self._signs()
        if signs != self._seen or now - self._made_at >= self._beat_seconds:
            return self._made(now, signs)
        return self.event

    @property
    def soonest(self) -> float:
        """When there can be another event."""
        return self._made_at + self.look_seconds

    def forget(self) -> None:
        """Take that nobody listens: the next event is a new one."""
        self.event = self._seen = None

    def _made(self, now: float, signs: Any) -> bytes:
        status = self._status()
        self._seen, self._looked_at, self._made_at = signs, now, now
        starting = any(target.start is not None for target in status.targets)
        self._beat_seconds = STARTING_SECONDS if starting else BEAT_SECONDS
        self.is_last = status.draining
        self.event = b"event: status\ndata: %b\n\n" % msgspec.json.encode(status)
        return self.event


class Feed:
    """Those who listen, and what they are told. Invariant: at most `most` of them."""

    def __init__(self, newest: Newest, *, most: int = MOST_LISTENERS) -> None:
        self._newest = newest
        self._most = most
        self._clock = asyncio.get_running_loop().time
        self._rung = asyncio.Event()
        self.listeners = 0

    def ring(self) -> None:
        """Take that something has changed."""
        if self.listeners:
            self._rung.set()

    async def follow(self, request: web.BaseRequest) -> web.StreamResponse:
        """Tell a listener, until it leaves or this proxy shuts down. Raises TooManyListeners."""
        with self._place():
            response = web.StreamResponse(headers=_HEADERS)
            await response.prepare(request)
            if request.method == hdrs.METH_HEAD:
                return response
            await response.write(b"retry: %d\n\n" % _RETRY_MILLISECONDS)
            told: bytes | None = None
            while True:
                news = self._look()
                if news is not told:
                    told = news
                    await response.write(news)  # which waits for a client that is slow
                if self._newest.is_last:
                    return response
                await self._pause(told)

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self.listeners >= self._most:
            message = f"{self._most} follow these events already; GET {Route.PROXY_STATUS.value} tells the same once."
            raise TooManyListeners(message, retry_after_seconds=_RETRY_AFTER_SECONDS)
        self.listeners += 1
        try:
            yield
        finally:
            self.listeners -= 1
            if not self.listeners:
                self._newest.forget()

    def _look(self) -> bytes:
        now = self._clock()
        rung = self._rung.is_set() and now >= self._newest.soonest
        if rung:
            self._rung.clear()
        return self._newest.at(now, rung=rung)

    async def _pause(self, told: bytes) -> None:
        """Until it may be time for another event than the one that was told."""
        soonest = self._newest.soonest - self._clock()
        if soonest > 0:
            await asyncio.sleep(soonest)
            if self._newest.event is not told:
                return  # another listener was first, and the bell was for all
        try:
            async with asyncio.timeout(self._newest.look_seconds):
                await self._rung.wait()
        except TimeoutError:
            return
