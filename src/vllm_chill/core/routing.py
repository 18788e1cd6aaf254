"""Which requests the proxy answers itself, and which go to the target. Pure: a method and a path in, a route out."""

from __future__ import annotations

import enum


class Route(enum.Enum):
    """A route of the proxy: the bounded set that metrics and logs are labelled with.

    Only PROXIED wakes the target and keeps it awake.
    """

    HEALTH = "/health"
    READYZ = "/readyz"
    METRICS = "/metrics"
    PROXY_METRICS = "/proxy/metrics"
    PROXY_STATUS = "/proxy/status"
    PROXY_VERSION = "/proxy/version"
    PROXY_START = "/proxy/operations/start"
    PROXY_STOP = "/proxy/operations/stop"
    PROXY_OTHER = "/proxy/*"
    PROXIED = "proxied"


_READ = frozenset({"GET", "HEAD"})
_POST = frozenset({"POST"})

METHODS: dict[Route, frozenset[str]] = {
    Route.HEALTH: _READ,
    Route.READYZ: _READ,
    Route.METRICS: _READ,
    Route.PROXY_METRICS: _READ,
    Route.PROXY_STATUS: _READ,
    Route.PROXY_VERSION: _READ,
    Route.PROXY_START: _POST,
    Route.PROXY_STOP: _POST,
}

_LOCAL = {route.value: route for route in METHODS}


def route_of(method: str, path: str) -> Route:
    """The route of a request; `path` is the raw path without its query.

    The probes' paths are the proxy's own only for the methods that probes use; everything under /proxy/ is
    its own whatever the method, so that a mistyped one never wakes a GPU.
    """
    if path.startswith("/proxy/") or path == "/proxy":
        return _LOCAL.get(path, Route.PROXY_OTHER)
    route = _LOCAL.get(path, Route.PROXIED)
    return route if route is Route.PROXIED or method in METHODS[route] else Route.PROXIED
