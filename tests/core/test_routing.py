from __future__ import annotations

import pytest

from vllm_chill.core.routing import METHODS, Route, route_of


@pytest.mark.parametrize(
    ("method", "path", "route"),
    [
        ("GET", "/health", Route.HEALTH),
        ("HEAD", "/health", Route.HEALTH),
        ("POST", "/health", Route.PROXIED),
        ("GET", "/health/", Route.PROXIED),
        ("GET", "/readyz", Route.READYZ),
        ("GET", "/metrics", Route.METRICS),
        ("GET", "/metrics/", Route.PROXIED),
        ("POST", "/v1/chat/completions", Route.PROXIED),
        ("GET", "/", Route.PROXIED),
        ("GET", "/proxy/status", Route.PROXY_STATUS),
        ("DELETE", "/proxy/status", Route.PROXY_STATUS),
        ("GET", "/proxy/operations/stop", Route.PROXY_STOP),
        ("POST", "/proxy/operations/halt", Route.PROXY_OTHER),
        ("POST", "/proxy/", Route.PROXY_OTHER),
        ("GET", "/proxy", Route.PROXY_OTHER),
        ("GET", "/proxyish", Route.PROXIED),
    ],
)
def test_a_request_has_its_route(method: str, path: str, route: Route) -> None:
    assert route_of(method, path) is route


def test_every_route_but_two_says_what_methods_it_takes() -> None:
    assert set(Route) - set(METHODS) == {Route.PROXY_OTHER, Route.PROXIED}
