"""The listening server: the whole chain of one request, and its orderly end.

The rule: every request ends in one place, where it is counted; every error becomes an answer in one place.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import structlog
from aiohttp import hdrs, web

from vllm_chill.core.routing import DEFAULT_ROUTES, Route, Routes, is_own
from vllm_chill.errors import AnswerableError, BadRequest, ChillError, InternalError, NotFound, RequestTooLarge
from vllm_chill.proxy.aiohttp_seam import ClientServer, connection_of, end_with_response
from vllm_chill.proxy.answer import answer
from vllm_chill.proxy.client_limits import ClientLimits
from vllm_chill.proxy.door import Refusal
from vllm_chill.proxy.fast_exchange import Counter, FastLane
from vllm_chill.proxy.fast_lane import FastServer
from vllm_chill.proxy.relay import ADDED, FIELDS, Added, Relayed
from vllm_chill.proxy.request_framing import too_large
from vllm_chill.proxy.request_id import IN_PLACE_OF, NAME, REQUEST_ID, RequestIds, id_of, text_of
from vllm_chill.proxy.upstream import KEEPALIVE
from vllm_chill.telemetry.metrics import Metrics
from vllm_chill.web.cors import Cors
from vllm_chill.web.doorkeeper import Doorkeeper

DEFAULT_LIMITS = ClientLimits()

_LOG = logging.getLogger("vllm_chill.server")

_CLIENT_LEFT = 499
_FIRST_SERVER_ERROR = 500
_HEAD_BYTES = 64 * 1024
_KEEPALIVE_SECONDS = 3630.0  # longer than any load balancer in front keeps its connections

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
LocalHandler = Callable[[Route, web.BaseRequest], Awaitable[web.StreamResponse]]


class ProxyServer:
    """One listening proxy. Invariant: `_active` requests are being handled at this moment.

    `draining` says whether it has begun to end.
    """

    def __init__(
        self,
        proxied: Handler,
        local: LocalHandler,
        metrics: Metrics,
        lane: Callable[[Counter], FastLane] | None = None,
        routes: Routes = DEFAULT_ROUTES,
        limits: ClientLimits = DEFAULT_LIMITS,
        *,
        doorkeeper: Doorkeeper | None = None,
        cors: Cors | None = None,
    ) -> None:
        """`lane` makes the fast lane of the proxied requests; None for none. `doorkeeper` lets requests in, None lets
        all of them. `cors` says which pages of other origins may ask; None leaves that to the engine.
        """
        self._routes = routes
        self._doorkeeper = doorkeeper
        self._cors = cors
        self._admin: web.ServerRunner | None = None
        self._limits = limits
        self._proxied = proxied
        self._local = local
        self._metrics = metrics
        self._count = metrics.requests.proxied.count
        self._clock = asyncio.get_running_loop().time
        self._log = structlog.get_logger(_LOG.name)
        self._ids = RequestIds()
        self._active = 0
        self._quiet = asyncio.Event()
        self.draining = False
        self._sites: list[web.TCPSite] = []
        self._runner = web.ServerRunner(self._server(lane), shutdown_timeout=1.0)

    def _server(self, lane: Callable[[Counter], FastLane] | None, handle: Handler | None = None) -> web.Server:
        options: dict[str, Any] = {
            "handler_cancellation": True,
            "auto_decompress": False,
            "access_log": None,
            "max_line_size": _HEAD_BYTES,
            "max_field_size": _HEAD_BYTES,
            "keepalive_timeout": _KEEPALIVE_SECONDS,
            "limits": self._limits,
            "refused": lambda error: self._metrics.refused.labels(error.code).inc(),
        }
        if lane is None:
            return ClientServer(handle or self._handle, **options)
        fast, largest = lane(self), self._limits.body_bytes
        ours = replace(
            fast,
            route_of=self._routes.route_of,
            body_bytes=fast.body_bytes if largest is None else min(fast.body_bytes, largest),
            largest_body=largest,
            gate=None if self._doorkeeper is None else self._doorkeeper.gate,
            pages_apart=self._cors is not None,
            new_id=self._ids.new,
        )
        return FastServer(self._handle, lane=ours, **options)

    async def listen(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> list[tuple[str, int]]:
        """Begin to accept connections, over TLS if there is a context; the addresses that are listened on. Raises
        OSError.
        """
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port, backlog=4096, ssl_context=tls)
        await site.start()
        self._sites.append(site)
        _watch_for_the_vanished(site)
        return [address[:2] for address in self._runner.addresses]

    async def listen_apart(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> list[tuple[str, int]]:
        """Have /proxy/ there and nowhere else, until `close`, as what drains is looked at too; else as `listen`, before
        which it is called.
        """
        self._admin = web.ServerRunner(self._server(None, self._handle_apart), shutdown_timeout=1.0)
        await self._admin.setup()
        site = web.TCPSite(self._admin, host, port, ssl_context=tls)
        await site.start()
        _watch_for_the_vanished(site)
        return [address[:2] for address in self._admin.addresses]

    async def drain(self, delay_seconds: float, timeout_seconds: float) -> bool:
        """End in order: say so on /readyz, accept for a while yet, then let what is there finish.

        Returns whether all of it finished in time.
        """
        self.draining = True
        await asyncio.sleep(delay_seconds)
        for site in self._sites:
            await site.stop()
        try:
            async with asyncio.timeout(timeout_seconds):
                while self._active:
                    self._quiet.clear()  # it was quiet for a moment before, perhaps
                    await self._quiet.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Close every connection that is left."""
        if self._admin is not None:
            await self._admin.cleanup()
        await self._runner.cleanup()

    async def _handle_apart(self, request: web.BaseRequest) -> web.StreamResponse:
        return await self._handle(request, apart=True)

    async def _handle(self, request: web.BaseRequest, *, apart: bool = False) -> web.StreamResponse:
        begun = self._clock()
        self._active += 1
        route, status = Route.PROXIED, _CLIENT_LEFT
        request_id = self._identify(request)
        try:
            try:
                agent = request.headers.get(hdrs.USER_AGENT, "")
                route = self._routes.route_for(request.method, _path(request), agent)
                if self._admin is not None:
                    _keep_apart(route, request, apart=apart)
                self._check_size(request)
                response = await self._answer(route, request)
            except AnswerableError as error:
                self.failed(request.method, request_id, error)
                response = _answered(request, error)
            except Refusal as refusal:
                self.failed(request.method, request_id, refusal.error)
                response = _answered(request, refusal.error)
            except (ConnectionError, asyncio.CancelledError):
                raise
            except Exception:
                response = answer(self.bug(request.method, request_id, route), request_id)
            else:
                if isinstance(response, Relayed) and response.failure is not None:
                    self.failed(request.method, request_id, response.failure)
            status = response.status
            self._finish(request, response)
            return response
        finally:
            self._metrics.request_ended(request.method, route, status, self._clock() - begun)
            self._active -= 1
            if self.draining and not self._active:
                self._quiet.set()

    def _identify(self, request: web.BaseRequest) -> bytes:
        """Give a request its id."""
        request_id, its_own = self._ids.of(request.headers.getall(NAME, ()))
        request[REQUEST_ID] = request_id
        if not its_own:
            request[ADDED] = Added(request_id, IN_PLACE_OF)
        return request_id

    async def _answer(self, route: Route, request: web.BaseRequest) -> web.StreamResponse:
        cors = self._cors if not is_own(route) and hdrs.ORIGIN in request.headers else None
        if cors is not None:
            if route is Route.PREFLIGHT:
                return cors.preflight(request)
            request[FIELDS] = cors.fields(request)
        if self._doorkeeper is not None:
            await self._doorkeeper.admit(route, request)
        return await (self._proxied(request) if route is Route.PROXIED else self._local(route, request))

    def _check_size(self, request: web.BaseRequest) -> None:
        largest = self._limits.body_bytes
        if largest is not None and (request.content_length or 0) > largest:
            raise too_large(largest)

    def begun(self) -> None:
        """Take that a proxied request is being handled."""
        self._active += 1

    def ended(self, method: str, status: int, begun: float) -> float:
        """Take that a proxied request is over, which had begun then; the time."""
        now = self._clock()
        self._count(method, status, now - begun)
        self._active -= 1
        if self.draining and not self._active:
            self._quiet.set()
        return now

    def handed_on(self) -> None:
        """Take that a proxied request which had begun is being handled by the server's own way."""
        self._active -= 1
        if self.draining and not self._active:
            self._quiet.set()

    def bug(self, method: str, request_id: bytes, route: Route = Route.PROXIED) -> AnswerableError:
        """Log the exception that is being handled, and how to answer it."""
        self._log.exception("a bug in vllm-chill", method=method, route=route.value, request_id=text_of(request_id))
        return InternalError("vllm-chill has a bug here, and its log says more. Please report it.")

    def failed(self, method: str, request_id: bytes, failure: ChillError) -> None:
        """Log what a request came to; what is for its client to mend only where all is logged."""
        mendable = isinstance(failure, AnswerableError) and failure.status < _FIRST_SERVER_ERROR
        if mendable and not _LOG.isEnabledFor(logging.DEBUG):
            return  # whoever refuses a flood has no time to find out that nobody hears of it
        said: dict[str, Any] = {"request_id": text_of(request_id), "method": method, "cause": failure.message}
        if isinstance(failure, AnswerableError):
            said |= {"status": failure.status, "code": failure.code}
        if mendable:
            self._log.debug("request refused", **said)
        else:
            self._log.info("request failed" if "status" in said else "response cut", **said)

    def _finish(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        if isinstance(response, Relayed):
            response.keep_alive = response.keep_alive and not self.draining
            return
        response.headers["Server"] = "vllm-chill"
        response.headers[NAME] = text_of(id_of(request))
        response.headers.update(request.get(FIELDS, {}))
        if self.draining or end_with_response(request):
            response.force_close()


def _keep_apart(route: Route, request: web.BaseRequest, *, apart: bool) -> None:
    """Raise NotFound for what is not at this port."""
    if is_own(route) and not apart:
        raise NotFound(f"there is nothing at {request.path}: this proxy has /proxy/ at its --admin-port.")
    if apart and not is_own(route):
        raise NotFound(f"there is nothing at {request.path}: this is the admin port, which has /proxy/ alone.")


def _watch_for_the_vanished(site: web.TCPSite) -> None:
    """Have the kernel notice clients that are gone without a word, as with upstreams: who is accepted inherits it."""
    for listening in getattr(site._server, "sockets", ()):
        # A copy: what uvloop gives out as a socket takes no options.
        with socket.fromfd(listening.fileno(), listening.family, listening.type) as copy:
            for option in KEEPALIVE:
                copy.setsockopt(*option)


def _answered(request: web.BaseRequest, error: AnswerableError) -> web.StreamResponse:
    connection, request_id = connection_of(request), id_of(request)
    if connection.has_refused_body:
        return connection.farewell(error, request_id)
    response = answer(error, request_id)
    if isinstance(error, RequestTooLarge):
        response.force_close()
    return response


def _path(request: web.BaseRequest) -> str:
    target = request.raw_path
    if target.startswith("/"):
        return target.partition("?")[0]
    if target == "*" or request.method == "CONNECT":
        raise BadRequest(f"{request.method} {target} cannot be forwarded; ask for a path that begins with /.")
    return request.rel_url.raw_path
