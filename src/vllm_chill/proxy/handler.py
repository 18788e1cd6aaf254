"""One proxied request: a lease, the relay, and at most one replay.

A connection that is refused is no replay, as nothing has been sent: a Service may know of a ready pod later than
this proxy does, so it is tried for a while.
"""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import hdrs, web
from aiohttp.http import HttpVersion11

from vllm_chill.control.controller import Lease, ScaleController
from vllm_chill.core.target import Endpoint
from vllm_chill.errors import ChillError, ExpectationFailed, UpstreamRefused, UpstreamReset
from vllm_chill.proxy.body import RequestBody
from vllm_chill.proxy.exchange import StaleConnection
from vllm_chill.proxy.fast_lane import BODY_BYTES, Counter, FastLane, tried
from vllm_chill.proxy.relay import RelayTimeouts, relay
from vllm_chill.proxy.tunnel import tunnel, upgrade_of
from vllm_chill.proxy.upstream import UpstreamPool
from vllm_chill.telemetry.metrics import Metrics

_NEWS_SECONDS = 1.0
"""How long the backend gets to tell of a death that a request has already met."""

_REFUSED_FIRST_SECONDS = 0.005
_REFUSED_MOST_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class ProxyOptions:
    """How requests are proxied: how long one is held, and how large a body is kept for a replay."""

    hold_seconds: float
    replay_bytes: int
    timeouts: RelayTimeouts


class ProxyHandler:
    """Proxies requests to one target."""

    def __init__(
        self, controller: ScaleController, pool: UpstreamPool, metrics: Metrics, options: ProxyOptions
    ) -> None:
        self._controller = controller
        self._pool = pool
        self._metrics = metrics
        self._options = options

    def fast_lane(self, counter: Counter) -> FastLane:
        """The way of plain requests past the server's tasks, to the same target."""

        def lease() -> Lease | None:
            return None if counter.draining else self._controller.lease_now()

        return FastLane(
            lease,
            self._metrics.responses_cut.inc,
            counter,
            self._pool,
            self._options.timeouts,
            min(BODY_BYTES, self._options.replay_bytes),
        )

    async def proxy(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer with what the target answers, once it is ready.

        Raises an AnswerableError while nothing has reached the client.
        """
        before = tried(request, take=True)
        expects = _expects_continue(request)
        if (protocol := upgrade_of(request)) is not None:
            with await self._lease() as lease:
                return await tunnel(request, protocol, lease.endpoint, self._options.timeouts)
        body = RequestBody(request, self._options.replay_bytes)
        stale = before is not None and isinstance(before.failure, StaleConnection)
        if before is not None and before.failure is not None and not stale:
            return await self._after(request, body, before.endpoint, before.failure)
        with await self._lease() as lease:
            if expects:
                await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            try:
                return await self._relay(request, body, lease, fresh=stale)
            except (UpstreamRefused, UpstreamReset) as error:
                failure = error
        return await self._after(request, body, lease.endpoint, failure)

    async def scrape(self, request: web.BaseRequest) -> web.StreamResponse | None:
        """Pass a request to the target without a use of it being counted; None if the target is not ready."""
        endpoint = self._controller.endpoint
        if endpoint is None:
            return None
        if _expects_continue(request):
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = RequestBody(request, self._options.replay_bytes)
        return await relay(request, body, endpoint, self._pool, self._options.timeouts)

    async def _lease(self) -> Lease:
        return self._controller.lease_now() or await self._controller.lease(self._options.hold_seconds)

    async def _after(
        self, request: web.BaseRequest, body: RequestBody, lost: Endpoint, failure: ChillError
    ) -> web.StreamResponse:
        """What follows on a first attempt's failure."""
        if not body.replayable or not isinstance(failure, UpstreamRefused | UpstreamReset):
            raise failure
        return await self._again(request, body, lost, failure)

    async def _again(
        self, request: web.BaseRequest, body: RequestBody, lost: Endpoint, failure: UpstreamRefused | UpstreamReset
    ) -> web.StreamResponse:
        # Nothing is lost, so it is held again and sent once more; being refused may take as long as a connection may.
        patience, pause, replayed = self._options.timeouts.connect_seconds, _REFUSED_FIRST_SECONDS, False
        while True:
            begun = self._controller.now()
            if isinstance(failure, UpstreamReset):
                self._metrics.replays.inc()
                replayed = True
                await self._news(lost, _NEWS_SECONDS)
            else:
                await self._news(lost, pause)
                patience -= self._controller.now() - begun
                pause = min(pause * 2, _REFUSED_MOST_SECONDS)
            with await self._lease() as lease:
                begun = self._controller.now()
                try:
                    return await self._relay(request, body, lease)
                except UpstreamReset as error:
                    if replayed or not body.replayable:
                        raise
                    failure = error
                except UpstreamRefused as error:
                    patience -= self._controller.now() - begun
                    if patience <= 0 or not body.replayable:
                        raise
                    failure = error
            lost = lease.endpoint

    async def _news(self, lost: Endpoint, within_seconds: float) -> None:
        if self._controller.endpoint == lost:
            await self._controller.changed(within_seconds)

    async def _relay(
        self, request: web.BaseRequest, body: RequestBody, lease: Lease, *, fresh: bool = False
    ) -> web.StreamResponse:
        response = await relay(request, body, lease.endpoint, self._pool, self._options.timeouts, fresh=fresh)
        if response.cut is not None:
            self._metrics.responses_cut.inc()
        return response


def _expects_continue(request: web.BaseRequest) -> bool:
    expect = request.headers.get(hdrs.EXPECT)
    if expect is None or request.version < HttpVersion11:
        return False
    if expect.lower() != "100-continue":
        raise ExpectationFailed(f'Expect: {expect} is not known; send "100-continue" or nothing.')
    return True
