"""The proxy's own routes. Nothing here wakes the target, but the operation that is there to do so."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import hdrs, web

from vllm_chill.api.models import ModelState
from vllm_chill.api.status import ProxyStatus, TargetStatus, phase_name, target_status
from vllm_chill.control.controller import ScaleController
from vllm_chill.control.knowledge import ModelKnowledge
from vllm_chill.core.routing import DEFAULT_ROUTES, METHODS, TABLE, Route, Routes
from vllm_chill.core.target import Asleep, Failed, Phase, Ready
from vllm_chill.errors import BadRequest, MethodNotAllowed, NotFound, StopFailed
from vllm_chill.telemetry.metrics import Metrics
from vllm_chill.telemetry.start_record import StartRecord
from vllm_chill.web.stand_in import STOOD_IN, PassBy, StandIn
from vllm_chill.web.waiting_page import WaitingPage, page_of


class AdminApi:
    """Every route but the one that wakes. `draining` tells whether the proxy is shutting down; `eta`, in how many
    seconds the target is likely to be ready, None where that is not known. `page` is what browsers are shown.
    """

    def __init__(
        self,
        controller: ScaleController,
        pass_by: PassBy,
        metrics: Metrics,
        version: str,
        draining: Callable[[], bool],
        starts: StartRecord,
        knowledge: ModelKnowledge,
        routes: Routes = DEFAULT_ROUTES,
    ) -> None:
        self._controller = controller
        self._metrics = metrics
        self._version = version
        self._draining = draining
        self._starts = starts
        self.page = WaitingPage(controller, starts, knowledge, routes)
        self._stand_in = StandIn(
            str(controller.target.ref), pass_by, knowledge, self._model_state, self._readyz, self.page.instead
        )
        self._handlers: dict[Route, Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]] = {
            Route.HEALTH: self._health,
            Route.READYZ: self._readyz,
            Route.HEALTH_CHECK: self._readyz,
            Route.ROBOTS: self._robots,
            Route.PROXY_METRICS: self._own_metrics,
            Route.PROXY_STATUS: self._status,
            Route.PROXY_VERSION: self._tell_version,
            Route.PROXY_START: self._start,
            Route.PROXY_STOP: self._stop,
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
            raise MethodNotAllowed(f"{route.value} takes {takes}, not {request.method}.")
        return await self._handlers[route](request)

    async def _health(self, _: web.BaseRequest) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.BaseRequest) -> web.Response:
        if self._draining():
            return web.Response(status=503, text="not ready: this proxy is shutting down\n")
        if not self._controller.synced:
            cause = self._target_status().cause or "it has not been asked for yet"
            return web.Response(status=503, text=f"not ready: the state of the target is not known: {cause}\n")
        return web.Response(text="ready\n")

    async def _robots(self, _: web.BaseRequest) -> web.Response:
        return web.Response(text="User-agent: *\nDisallow: /\n")

    async def _own_metrics(self, request: web.BaseRequest) -> web.Response:
        self._starts.settle(self._controller.target)
        body, content_type = self._metrics.exposition(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _status(self, request: web.BaseRequest) -> web.Response:
        if request.query.get("view") == "page":
            return self.page.tell()
        status = ProxyStatus(
            version=self._version,
            draining=self._draining(),
            targets=[self._target_status()],
        )
        return web.json_response(status.model_dump())

    async def _tell_version(self, _: web.BaseRequest) -> web.Response:
        return web.json_response({"version": self._version})

    async def _start(self, request: web.BaseRequest) -> web.Response:
        wait = _flag(request, "wait", default=True)
        await self._controller.wake(wait=wait)
        if (page := page_of(request)) is not None:
            return web.Response(status=303, headers={hdrs.LOCATION: page})
        ref, phase = self._controller.target.ref, self._controller.target.phase
        if isinstance(phase, Ready):
            return self._done(f"{ref} is ready.")
        return self._done(f"{ref} is waking; GET {Route.PROXY_STATUS.value} tells how far it is.", status=202)

    async def _stop(self, _: web.BaseRequest) -> web.Response:
        return self._stopped(await self._controller.stop())

    def _stopped(self, phase: Phase) -> web.Response:
        ref = self._controller.target.ref
        match phase:
            case Asleep():
                return self._done(f"{ref} is asleep.")
            case Failed(cause=cause):
                return self._done(f"{ref} is being scaled to 0: {cause}.")
            case Ready():
                raise StopFailed(f"{ref} is still awake: the backend did not scale it to 0; see the proxy's log.")
            case _:
                return self._done(f"{ref} was put to sleep, and requests that came meanwhile wake it again.")

    def _done(self, message: str, status: int = 200) -> web.Response:
        body = {"status": "success", "message": message, "target": self._target_status().model_dump()}
        return web.json_response(body, status=status)

    def _model_state(self) -> ModelState:
        now = self._controller.now()
        phase = self._controller.target.phase
        eta = self._starts.eta(now) if self._starts.current is not None else self._starts.history.whole
        return ModelState(phase_name(phase), None if isinstance(phase, Ready) else eta)

    def _target_status(self) -> TargetStatus:
        target = self._controller.target
        return target_status(target, self._controller.now(), self._controller.limits, self._starts.settle(target))


def _flag(request: web.BaseRequest, name: str, *, default: bool) -> bool:
    match request.query.get(name):
        case None:
            return default
        case "true" | "1" | "":
            return True
        case "false" | "0":
            return False
        case other:
            raise BadRequest(f'{name}="{other}" is not known; give true or false.')
