"""One proxied request: leases and the relay, until an answer is on its way."""

from __future__ import annotations

from aiohttp import hdrs, web
from aiohttp.http import HttpVersion11

from vllm_chill.control.controller import ScaleController
from vllm_chill.errors import ChillError, ExpectationFailed, UpstreamRefused, UpstreamReset
from vllm_chill.proxy.attempts import Attempts, ProxyOptions
from vllm_chill.proxy.body import RequestBody
from vllm_chill.proxy.fast_exchange import Counter, FastLane
from vllm_chill.proxy.relay import relay
from vllm_chill.proxy.tunnel import tunnel, upgrade_of
from vllm_chill.proxy.upstream import UpstreamPool
from vllm_chill.telemetry.metrics import Metrics

__all__ = ["ProxyHandler", "ProxyOptions"]


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
        return FastLane(
            self._controller.lease_now,
            self._attempts,
            self._metrics.responses_cut.inc,
            counter,
            self._pool,
            self._options.timeouts,
            self._options.replay_bytes,
        )

    async def proxy(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer with what the target answers, once it is ready.

        Raises an AnswerableError while nothing has reached the client.
        """
        expects = _expects_continue(request)
        attempts = self._attempts()
        if (protocol := upgrade_of(request)) is not None:
            with await attempts.lease() as lease:
                return await tunnel(request, protocol, lease.endpoint, self._options.timeouts)
        body = RequestBody(request, self._options.replay_bytes)
        failure: ChillError
        while True:
            with await attempts.lease() as lease:
                if expects:
                    expects = False
                    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                try:
                    response = await relay(request, body, lease.endpoint, self._pool, self._options.timeouts)
                except (UpstreamRefused, UpstreamReset) as error:
                    failure = error
                else:
                    if response.cut is not None:
                        self._metrics.responses_cut.inc()
                    return response
            await attempts.after(failure, lease.endpoint, replayable=body.replayable)

    async def scrape(self, request: web.BaseRequest) -> web.StreamResponse | None:
        """Pass a request to the target without a use of it being counted; None if the target is not ready."""
        endpoint = self._controller.endpoint
        if endpoint is None:
            return None
        body = RequestBody(request, self._options.replay_bytes)
        return await relay(request, body, endpoint, self._pool, self._options.timeouts)

    def _attempts(self) -> Attempts:
        return Attempts(self._controller, self._metrics, self._options)


def _expects_continue(request: web.BaseRequest) -> bool:
    expect = request.headers.get(hdrs.EXPECT)
    if expect is None or request.version < HttpVersion11:
        return False
    if expect.lower() != "100-continue":
        raise ExpectationFailed(f'Expect: {expect} is not known; send "100-continue" or nothing.')
    return True
