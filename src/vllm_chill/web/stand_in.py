"""Who answers for the target what does not wake it: the target itself while it is ready, the proxy while it is not.

The rule: nothing here takes a lease, so nothing here wakes the target or keeps it awake.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Protocol
from urllib.parse import unquote

from aiohttp import hdrs, web

from vllm_chill.api.models import ModelState, model_card, model_list
from vllm_chill.control.knowledge import ModelKnowledge
from vllm_chill.core.models import model_not_found
from vllm_chill.core.routing import TABLE, Route
from vllm_chill.errors import NotFound

PassBy = Callable[[web.BaseRequest], Awaitable[web.StreamResponse | None]]


class Page(Protocol):
    """Makes a page of how the target is, for a request that asks for one."""

    def __call__(self, request: web.BaseRequest, *, wakes: bool) -> web.Response | None: ...


_PROMETHEUS_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
_PATH_CHARACTERS = 200
_MODELS = Route.MODELS.value + "/"


class StandIn:
    """Answers for one target, whose name is `ref`.

    `pass_by` relays a request without a lease, or gives None while the target is not ready; `state` tells how the
    target is; `readyz` answers a health checker; `page` is what a browser is shown, None for whoever is none.
    """

    def __init__(
        self,
        ref: str,
        pass_by: PassBy,
        knowledge: ModelKnowledge,
        state: Callable[[], ModelState],
        readyz: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        page: Page,
    ) -> None:
        self._ref = ref
        self._pass_by = pass_by
        self._knowledge = knowledge
        self._state = state
        self._readyz = readyz
        self._page = page

    async def handle(self, route: Route, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request to a route that is the target's while it is awake."""
        passed = await self._pass_by(request)
        if passed is not None:
            return passed
        match route:
            case Route.MODELS:
                return web.json_response(model_list(self._knowledge.models, self._state(), time.time()))
            case Route.MODEL:
                return self._model(request)
            case Route.PREFLIGHT:
                return _preflight(request)
            case Route.METRICS:
                return self._no_metrics()
            case Route.HEAD:
                return web.Response()
            case Route.FAVICON:
                return web.Response(status=204)
            case Route.CHECKED | Route.PING:
                return await self._readyz(request)
            case _:
                page = self._page(request, wakes=False)
                if page is not None:
                    return page
                raise NotFound(
                    f"{self._ref} is not awake, and {_shown(request.path)} does not wake it; ask again once it is, "
                    "or have the path among --wake-paths."
                )

    def _model(self, request: web.BaseRequest) -> web.Response:
        name = unquote(request.raw_path.partition("?")[0].partition(_MODELS)[2])
        known = self._knowledge.models
        model = known.find(name)
        if model is None:
            raise model_not_found(name, known)
        return web.json_response(model_card(model, self._state(), time.time()))

    def _no_metrics(self) -> web.Response:
        state = self._state().state
        text = f"# {self._ref} is {state}: vLLM has no metrics now, and this scrape does not wake it.\n"
        return web.Response(text=text, headers={hdrs.CONTENT_TYPE: _PROMETHEUS_TEXT})


STOOD_IN = frozenset(route for route, entry in TABLE.items() if entry.asleep is not None and entry.awake is None)
"""The routes that this is for."""


def _preflight(request: web.BaseRequest) -> web.Response:
    """Let a browser go on: the request itself gets the engine's own answer, which says who may read it."""
    headers = {hdrs.ALLOW: _METHODS}
    origin = request.headers.get(hdrs.ORIGIN)
    method = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_METHOD)
    if origin is not None and method is not None:
        headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
        headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = method
        headers[hdrs.VARY] = hdrs.ORIGIN
        asked = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS)
        if asked is not None:
            headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = asked
    return web.Response(status=204, headers=headers)


def _shown(path: str) -> str:
    return path if len(path) <= _PATH_CHARACTERS else path[: _PATH_CHARACTERS - 1] + "…"
