"""Who answers for a target what does not wake it: the target itself while it is ready, the proxy while it is not.

The rule: nothing here takes a lease, so nothing here wakes a target or keeps it awake. Of several targets the one is
meant that the query names (`?model=`), else that of requests which name none; the list of models is the proxy's own.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Protocol
from urllib.parse import unquote

from aiohttp import hdrs, web

from vllm_chill.api.models import entry_cards, listing, model_card, model_list
from vllm_chill.core.keys import Key
from vllm_chill.core.models import Models, model_not_found
from vllm_chill.core.routing import TABLE, Route
from vllm_chill.errors import NotFound
from vllm_chill.proxy.handler import api_key_of
from vllm_chill.proxy.served import Directory, Served, refused
from vllm_chill.web.targets import state_of, unnamed

PassBy = Callable[[web.BaseRequest, Served], Awaitable[web.StreamResponse | None]]


class Page(Protocol):
    """Makes a page of how its target is, for a request that asks for one."""

    def __call__(self, request: web.BaseRequest, *, wakes: bool) -> web.Response | None: ...


KEPT_HERE = web.RequestKey("vllm_chill.kept_here", bool)
"""Where a request says that the proxy is to answer it by itself, as its caller is nobody to the engine."""

_PROMETHEUS_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
_PATH_CHARACTERS = 200
_MODELS = Route.MODELS.value + "/"


class StandIn:
    """Answers for the targets of one proxy.

    `pass_by` relays a request to a target without a lease, or gives None while that is not ready; `readyz` answers a
    health checker; `page` is what a browser is shown, None for whoever is none.
    """

    def __init__(
        self,
        directory: Directory,
        pass_by: PassBy,
        readyz: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        page: Page,
    ) -> None:
        self._directory = directory
        self._pass_by = pass_by
        self._readyz = readyz
        self._page = page

    async def handle(self, route: Route, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request to a route that is the target's while it is awake."""
        key = api_key_of(request)
        if self._directory.only is None and route in (Route.MODELS, Route.MODEL):
            return web.json_response(self._listing(key) if route is Route.MODELS else self._card(_named(request), key))
        served = self._meant(route, request)
        limited = key is not None and key.models is not None and route in (Route.MODELS, Route.MODEL)
        here = limited or request.get(KEPT_HERE, False)
        passed = None if here or served is None else await self._pass_by(request, served)
        if passed is not None:
            return passed
        match route:
            case Route.MODELS:
                assert served is not None
                return web.json_response(model_list(_usable(served, key), state_of(served), time.time()))
            case Route.MODEL:
                assert served is not None
                return _known_model(served, _named(request), key)
            case Route.PREFLIGHT:
                return _preflight(request)
            case Route.METRICS:
                return self._no_metrics(served)
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
                raise self._not_found(served, _shown(request.path))

    def _meant(self, route: Route, request: web.BaseRequest) -> Served | None:
        if self._directory.only is not None:
            return self._directory.only
        name = request.query.get("model")
        if name is None:
            return unnamed(self._directory)
        served = self._directory.find(name)
        if served is None and route in (Route.METRICS, Route.OTHER):
            raise self._directory.not_found(name)
        return served

    def _listing(self, key: Key | None) -> dict[str, object]:
        self._directory.require_read()
        cards = (card for served in self._directory for card in self._cards(served, key))
        return listing(cards)

    def _card(self, name: str, key: Key | None) -> dict[str, object]:
        if key is not None and key.models is not None:
            served = self._directory.choose(name, key).served
        else:
            found = self._directory.find(name)
            if found is None:
                self._listing(key)
                raise self._directory.not_found(name)
            served = found
        return next(iter(self._cards(served, None, name)))

    def _cards(self, served: Served, key: Key | None, name: str | None = None) -> Iterator[dict[str, object]]:
        """A target's model by this name, or by each of those that requests with this key may call it."""
        entry = served.entry
        assert entry is not None
        if name is None:
            leading = self._directory.catalogue.names_of(entry)
            names = tuple(one for one in leading if one in entry.names) or leading
            if key is not None:
                names = tuple(one for one in names if self._directory.may_use(key, served, one))
        else:
            names = (name,)
        return entry_cards(entry, names, served.knowledge.models, state_of(served), time.time())

    def _no_metrics(self, served: Served | None) -> web.Response:
        if served is not None:
            state = state_of(served).state
            text = f"# {served.name} is {state}: vLLM has no metrics now, and this scrape does not wake it.\n"
        else:
            known = self._directory.catalogue.names or "none is known"
            text = f"# Several models are served here: ask for the metrics of one with ?model=NAME ({known}).\n"
        return web.Response(text=text, headers={hdrs.CONTENT_TYPE: _PROMETHEUS_TEXT})

    def _not_found(self, served: Served | None, path: str) -> NotFound:
        if served is not None:
            return NotFound(
                f"{served.name} is not awake, and {path} does not wake it; ask again once it is, "
                "or have the path among --wake-paths."
            )
        known = self._directory.catalogue.names or "none is known"
        return NotFound(f"{path} wakes nothing and is not the proxy's own; say whose it is with ?model=NAME: {known}")


STOOD_IN = frozenset(route for route, entry in TABLE.items() if entry.asleep is not None and entry.awake is None)
"""The routes that this is for."""


def _named(request: web.BaseRequest) -> str:
    return unquote(request.raw_path.partition("?")[0].partition(_MODELS)[2])


def _usable(served: Served, key: Key | None) -> Models:
    """The models of a target that are known, of those that the key may use."""
    known = served.knowledge.models
    if key is None or key.models is None:
        return known
    return replace(known, models=tuple(model for model in known.models if key.may_use((model.id,))))


def _known_model(served: Served, name: str, key: Key | None) -> web.Response:
    if key is not None and not key.may_use((name,)):
        raise refused(key, name)
    known = _usable(served, key)
    model = known.find(name)
    if model is None:
        raise model_not_found(name, known.names)
    return web.json_response(model_card(model, state_of(served), time.time()))


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
