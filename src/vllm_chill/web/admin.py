"""The proxy's own routes. Nothing here wakes a target, but the operations that are there to do so."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING

from aiohttp import hdrs, web
from msgspec import to_builtins

from vllm_chill.api.choice import OperationAsked, OperationDone
from vllm_chill.api.status import ConfigurationStatus, PeersStatus, ProxyStatus, TargetStatus
from vllm_chill.api.version import Build
from vllm_chill.core.routing import DEFAULT_ROUTES, METHODS, TABLE, Route, Routes
from vllm_chill.core.target import Asleep, Failed, Phase, Ready
from vllm_chill.errors import MethodNotAllowed, NotFound, StopFailed
from vllm_chill.proxy.served import Directory, Served
from vllm_chill.telemetry.bell import Bell
from vllm_chill.telemetry.metrics import Metrics
from vllm_chill.web import asked
from vllm_chill.web.gpu_stats import GpuStatsPage
from vllm_chill.web.models_api import ModelsApi, Switching
from vllm_chill.web.savings import SavingsPage
from vllm_chill.web.scaled import Scaler
from vllm_chill.web.stand_in import STOOD_IN, PassBy, StandIn
from vllm_chill.web.targets import chosen, name_of, status_of, unnamed
from vllm_chill.web.waiting_page import WaitingPage, page_of

if TYPE_CHECKING:
    from vllm_chill.web.engine_logs import EngineLogs
    from vllm_chill.web.feed import Feed
    from vllm_chill.web.held import HeldApi
    from vllm_chill.web.scaling_api import ScalingApi
    from vllm_chill.web.wake_history import HistoryPage

NO_SCALERS: Mapping[str, Scaler] = MappingProxyType({})

_EXAMPLE = '{"model_id": "NAME"}, or none'


class AdminApi:
    """Every route but the one that wakes. `draining` tells whether the proxy is shutting down. `page` is what browsers
    are shown. `switching` is None where there is no catalogue. `scalers` are by the name of their target, and what they
    are told to do holds for `override_ttl_seconds`. `bell` rings when there is something to tell whoever follows.
    """

    def __init__(
        self,
        directory: Directory,
        pass_by: PassBy,
        metrics: Metrics,
        build: Build,
        draining: Callable[[], bool],
        routes: Routes = DEFAULT_ROUTES,
        *,
        switching: Switching | None = None,
        stats: GpuStatsPage | None = None,
        savings: SavingsPage | None = None,
        scalers: Mapping[str, Scaler] = NO_SCALERS,
        override_ttl_seconds: float = 3600.0,
        peers: Callable[[], PeersStatus | None] = lambda: None,
        bell: Bell | None = None,
        configuration: Callable[[], ConfigurationStatus | None] = lambda: None,
    ) -> None:
        self._directory = directory
        self._metrics = metrics
        self._build = build
        self._draining = draining
        self._peers = peers
        self._bell = bell
        self._configuration = configuration
        self._switching = switching
        self.page = WaitingPage(directory, routes)
        self._stand_in = StandIn(directory, pass_by, self._readyz, self.page.instead)
        models = ModelsApi(directory, switching)
        self._scalers = scalers
        self._override_ttl_seconds = override_ttl_seconds
        self._handlers: dict[Route, Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]] = {
            Route.HEALTH: self._health,
            Route.READYZ: self._readyz,
            Route.HEALTH_CHECK: self._readyz,
            Route.ROBOTS: self._robots,
            Route.PROXY_METRICS: self._own_metrics,
            Route.PROXY_DASHBOARD: self._dashboard,
            Route.PROXY_STATUS: self._status,
            Route.PROXY_EVENTS: lambda request: self._feed.follow(request),
            Route.PROXY_REQUESTS: lambda request: self._held.tell(request),
            Route.PROXY_STARTS: lambda request: self._history.tell(request),
            Route.PROXY_VERSION: self._tell_version,
            Route.PROXY_START: self._start,
            Route.PROXY_STOP: self._stop,
            Route.PROXY_CANCEL: lambda request: self._held.cancel(request),
            Route.PROXY_AVAILABLE: models.available,
            Route.PROXY_RUNNING: models.running,
            Route.PROXY_SWITCH: models.switch,
            Route.PROXY_SCALING_METRICS: lambda request: self._scaling.metrics(request),
            Route.PROXY_SCALING_POD: lambda request: self._scaling.pod_metrics(request),
            Route.PROXY_SCALING_REPLICAS: lambda request: self._scaling.replicas(request),
            Route.PROXY_SCALING_POLICIES: lambda request: self._scaling.policies(request),
            Route.PROXY_SCALING_POLICY: lambda request: self._scaling.policy(request),
            Route.PROXY_STATS: (stats or GpuStatsPage()).tell,
            Route.PROXY_SAVINGS: (savings or SavingsPage()).tell,
            Route.PROXY_LOGS: lambda request: self._logs.tell(request),
            Route.PROXY_OPENAPI: self._describe,
        }

    async def handle(self, route: Route, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request to any route but the one that wakes."""
        if route in STOOD_IN:
            return await self._stand_in.handle(route, request)
        if route is Route.PROXY_OTHER:
            known = ", ".join(r.value for r in METHODS if r.value.startswith("/proxy/"))
            raise NotFound(f"there is nothing at {request.path}; the proxy's own paths are {known}.")
        methods = TABLE[route].methods
        if methods and request.method not in methods:
            takes = " or ".join(sorted(methods))
            raise MethodNotAllowed(f"{route.value} takes {takes}, not {request.method}.", methods)
        return await self._handlers[route](request)

    async def _health(self, _: web.BaseRequest) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.BaseRequest) -> web.Response:
        if self._draining():
            return web.Response(status=503, text="not ready: this proxy is shutting down\n")
        if (trouble := self._directory.unread) is not None:
            return web.Response(status=503, text=f"not ready: the models are not known: {trouble}\n")
        for served in self._directory:
            if not served.controller.synced:
                what = "the target" if self._directory.only is not None else served.name
                cause = status_of(served).cause or "it has not been asked for yet"
                return web.Response(status=503, text=f"not ready: the state of {what} is not known: {cause}\n")
        return web.Response(text="ready\n")

    async def _robots(self, _: web.BaseRequest) -> web.Response:
        return web.Response(text="User-agent: *\nDisallow: /\n")

    async def _own_metrics(self, request: web.BaseRequest) -> web.Response:
        for served in self._directory:
            served.starts.settle(served.controller.target)
        body, content_type = self._metrics.exposition(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _status(self, request: web.BaseRequest) -> web.Response:
        if request.query.get("view") == "page":
            return self.page.tell(request)
        return web.json_response(to_builtins(self._proxy_status()))

    def _proxy_status(self) -> ProxyStatus:
        default = unnamed(self._directory) if self._directory.only is None else None
        return ProxyStatus(
            version=self._build.version,
            draining=self._draining(),
            default_model=None if default is None else name_of(self._directory, default),
            trouble=self._directory.unread,
            peers=self._peers(),
            configuration=self._configuration(),
            targets=[self._status_of(served) for served in self._directory],
        )

    def _signs(self) -> tuple[object, ...]:
        """What is another value once the status has changed in more than its times."""
        directory, scalers = self._directory, self._scalers
        return (
            self._draining(),
            self._peers(),
            self._configuration(),
            directory.default,
            directory.unread,
            [
                (served, served.controller.target, served.starts.starts, scalers[served.name].decision)
                if served.name in scalers
                else (served, served.controller.target, served.starts.starts)
                for served in directory
            ],
        )

    async def _dashboard(self, request: web.BaseRequest) -> web.Response:
        from vllm_chill.web.dashboard import page  # what nobody looks at costs no start, here and below

        return await page(request)

    async def _tell_version(self, _: web.BaseRequest) -> web.Response:
        return web.json_response(to_builtins(self._build))

    async def _describe(self, _: web.BaseRequest) -> web.Response:
        from vllm_chill.web.openapi import document  # what nobody asks for costs no start

        return web.json_response(document(self._build.version))

    async def _start(self, request: web.BaseRequest) -> web.Response:
        wait = asked.flag(request, "wait", default=True)
        served = await self._meant(request)
        await served.controller.wake(wait=wait)
        if (page := page_of(request)) is not None:
            return web.Response(status=303, headers={hdrs.LOCATION: page})
        if isinstance(served.controller.target.phase, Ready):
            return self._done(served, f"{served.name} is ready.")
        tells = f"GET {Route.PROXY_STATUS.value} tells how far it is."
        return self._done(served, f"{served.name} is waking; {tells}", status=202)

    async def _stop(self, request: web.BaseRequest) -> web.Response:
        served = await self._meant(request)
        return self._stopped(served, await served.controller.stop())

    async def _meant(self, request: web.BaseRequest) -> Served:
        wish = await asked.body(request, OperationAsked, _EXAMPLE)
        name = wish.model_id if wish is not None else None
        return chosen(self._directory, name or request.query.get("model_id"))

    def _stopped(self, served: Served, phase: Phase) -> web.Response:
        match phase:
            case Asleep():
                return self._done(served, f"{served.name} is asleep.")
            case Failed(cause=cause):
                return self._done(served, f"{served.name} is being scaled to 0: {cause}.")
            case Ready():
                raise StopFailed(
                    f"{served.name} is still awake: the backend did not scale it to 0; see the proxy's log."
                )
            case _:
                return self._done(
                    served, f"{served.name} was put to sleep, and requests that came meanwhile wake it again."
                )

    def _done(self, served: Served, message: str, status: int = 200) -> web.Response:
        done = OperationDone(message=message, target=self._status_of(served))
        return web.json_response(to_builtins(done), status=status)

    def _status_of(self, served: Served) -> TargetStatus:
        waits_for = () if self._switching is None or served.entry is None else self._switching.waits_for(served.name)
        scaler = self._scalers.get(served.name)
        return status_of(served, waits_for, None if scaler is None else scaler.decision)

    @cached_property
    def _feed(self) -> Feed:
        from vllm_chill.web.feed import Feed, Newest

        feed = Feed(Newest(self._proxy_status, self._signs))
        if self._bell is not None:
            self._bell.rings = feed.ring
        return feed

    @cached_property
    def _held(self) -> HeldApi:
        from vllm_chill.web.held import HeldApi

        return HeldApi(self._directory)

    @cached_property
    def _history(self) -> HistoryPage:
        from vllm_chill.web.wake_history import HistoryPage

        return HistoryPage(self._directory)

    @cached_property
    def _logs(self) -> EngineLogs:
        from vllm_chill.web.engine_logs import EngineLogs  # what nobody asks for costs no start

        return EngineLogs(self._directory, self._draining)

    @cached_property
    def _scaling(self) -> ScalingApi:
        from vllm_chill.web.scaling_api import ScalingApi  # what nobody asks for costs no start

        return ScalingApi(self._directory, self._scalers, override_ttl_seconds=self._override_ttl_seconds)
