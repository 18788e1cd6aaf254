from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_chill.core.routing import (
    DEFAULT_WAKE_PATHS,
    HEALTH_CHECKERS,
    METHODS,
    TABLE,
    Route,
    Routes,
    is_health_checker,
    parse_wake_paths,
    route_of,
)

ROWS = [
    ("POST", "/v1/chat/completions", Route.PROXIED),
    ("GET", "/v1/chat/completions", Route.PROXIED),
    ("POST", "/v1/chat/completions/batch", Route.PROXIED),
    ("POST", "/v1/chat/completionsish", Route.OTHER),
    ("GET", "/v1/responses/resp_1", Route.PROXIED),
    ("DELETE", "/v1/responses/resp_1", Route.PROXIED),
    ("POST", "/v1/audio/transcriptions", Route.PROXIED),
    ("POST", "/v1/messages/count_tokens", Route.PROXIED),
    ("GET", "/v1/realtime", Route.PROXIED),
    ("POST", "/tokenize", Route.PROXIED),
    ("HEAD", "/tokenize", Route.HEAD),
    ("TRACE", "/tokenize", Route.OTHER),
    ("OPTIONS", "/tokenize", Route.PREFLIGHT),
    ("OPTIONS", "/anything", Route.PREFLIGHT),
    ("OPTIONS", "/health", Route.PREFLIGHT),
    ("OPTIONS", "/proxy/operations/stop", Route.PROXY_STOP),
    ("GET", "/v1/models", Route.MODELS),
    ("HEAD", "/v1/models", Route.MODELS),
    ("POST", "/v1/models", Route.OTHER),
    ("GET", "/v1/models/org%2Fname", Route.MODEL),
    ("GET", "/v1/models/org/name", Route.MODEL),
    ("DELETE", "/v1/models/name", Route.OTHER),
    ("GET", "/health", Route.HEALTH),
    ("HEAD", "/health", Route.HEALTH),
    ("POST", "/health", Route.OTHER),
    ("GET", "/health/", Route.OTHER),
    ("GET", "/readyz", Route.READYZ),
    ("GET", "/ping", Route.PING),
    ("POST", "/ping", Route.PING),
    ("GET", "/metrics", Route.METRICS),
    ("GET", "/metrics/", Route.OTHER),
    ("GET", "/favicon.ico", Route.FAVICON),
    ("GET", "/robots.txt", Route.ROBOTS),
    ("GET", "/version", Route.OTHER),
    ("GET", "/", Route.OTHER),
    ("HEAD", "/", Route.OTHER),
    ("POST", "/completion", Route.OTHER),
    ("POST", "/sleep", Route.OTHER),
    ("GET", "/proxy/status", Route.PROXY_STATUS),
    ("DELETE", "/proxy/status", Route.PROXY_STATUS),
    ("GET", "/proxy/operations/stop", Route.PROXY_STOP),
    ("GET", "/proxy/models/available", Route.PROXY_AVAILABLE),
    ("HEAD", "/proxy/models/running", Route.PROXY_RUNNING),
    ("GET", "/proxy/models/switch", Route.PROXY_SWITCH),
    ("POST", "/proxy/stats", Route.PROXY_STATS),
    ("GET", "/proxy/scaling/metrics", Route.PROXY_SCALING_METRICS),
    ("GET", "/proxy/scaling/metrics/vllm-6c9f-x2x4k", Route.PROXY_SCALING_POD),
    ("GET", "/proxy/scaling/metrics/", Route.PROXY_OTHER),
    ("POST", "/proxy/scaling/replicas", Route.PROXY_SCALING_REPLICAS),
    ("DELETE", "/proxy/scaling/replicas", Route.PROXY_SCALING_REPLICAS),
    ("POST", "/proxy/scaling/replicas/a", Route.PROXY_OTHER),
    ("GET", "/proxy/scaling/policy", Route.PROXY_SCALING_POLICIES),
    ("GET", "/proxy/scaling/policy/org/name", Route.PROXY_SCALING_POLICY),
    ("PUT", "/proxy/scaling/policy/org%2Fname", Route.PROXY_SCALING_POLICY),
    ("GET", "/proxy/openapi.json", Route.PROXY_OPENAPI),
    ("POST", "/proxy/models", Route.PROXY_OTHER),
    ("POST", "/proxy/operations/halt", Route.PROXY_OTHER),
    ("POST", "/proxy/", Route.PROXY_DASHBOARD),
    ("GET", "/proxy", Route.PROXY_DASHBOARD),
    ("GET", "/proxy//", Route.PROXY_OTHER),
    ("GET", "/proxy/events", Route.PROXY_EVENTS),
    ("GET", "/proxy/requests", Route.PROXY_REQUESTS),
    ("HEAD", "/proxy/starts", Route.PROXY_STARTS),
    ("POST", "/proxy/operations/cancel", Route.PROXY_CANCEL),
    ("GET", "/proxyish", Route.OTHER),
]


@pytest.mark.parametrize(("method", "path", "route"), ROWS)
def test_a_request_has_its_route(method: str, path: str, route: Route) -> None:
    assert route_of(method, path) is route


def test_the_table_has_every_route() -> None:
    assert set(TABLE) == set(Route)
    assert {row[2] for row in ROWS} | {Route.CHECKED, Route.HEALTH_CHECK} | set(METHODS) == set(Route)


def test_only_the_paths_that_wake_and_the_operation_count_as_use() -> None:
    assert {route for route, entry in TABLE.items() if entry.wakes} == {Route.PROXIED, Route.PROXY_START}
    assert {route for route, entry in TABLE.items() if entry.prolongs} == {Route.PROXIED, Route.PROXY_START}


def test_whatever_does_not_wake_is_answered_by_the_proxy_while_the_target_sleeps() -> None:
    assert [route for route, entry in TABLE.items() if entry.asleep is None] == [Route.PROXIED]


_METHOD = st.sampled_from(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "BREW"])
_PATH = st.one_of(
    st.sampled_from([path.removesuffix("*") for path in DEFAULT_WAKE_PATHS] + [route.value for route in Route]),
    st.text(st.characters(min_codepoint=33, max_codepoint=126)).map("/".__add__),
).flatmap(lambda path: st.sampled_from([path, path + "/", path + "x", "/" + path]))


@given(_METHOD, _PATH, st.sampled_from(["", "curl/8.5", "kube-probe/1.33", "OpenAI/Python 2.1"]))
def test_a_wake_is_a_use_of_a_path_that_wakes_by_somebody_who_is_no_health_checker(
    method: str, path: str, agent: str
) -> None:
    route = Routes().route_for(method, path, agent)
    listed = any(path.startswith(p[:-1]) if p.endswith("*") else path == p for p in DEFAULT_WAKE_PATHS)
    used = method in {"GET", "POST", "PUT", "PATCH", "DELETE"}
    assert (route is Route.PROXIED) == (listed and used and not agent.startswith("kube-probe"))
    if route is not Route.PROXIED:
        assert not TABLE[route].wakes or path == Route.PROXY_START.value
    if route in METHODS and not path.startswith("/proxy/"):
        assert method in METHODS[route]


class TestWakePaths:
    def test_default_stands_for_the_engines_own_and_others_are_added(self) -> None:
        assert parse_wake_paths("default") == DEFAULT_WAKE_PATHS
        assert parse_wake_paths("/completion, default ,/ui/*,/completion") == (
            "/completion",
            *DEFAULT_WAKE_PATHS,
            "/ui/*",
        )

    @pytest.mark.parametrize(
        "text", ["", "default,", "completion", "/a b", "/a*b", "/*/b", "/a?b", "/ü", "defaults", "*"]
    )
    def test_what_is_no_path_is_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match="neither a path nor default"):
            parse_wake_paths(text)

    def test_a_path_wakes_alone_and_with_a_star_with_all_that_begin_so(self) -> None:
        routes = Routes(("/completion", "/ui/*"))
        assert routes.route_of("POST", "/completion") is Route.PROXIED
        assert routes.route_of("POST", "/completion/") is Route.OTHER
        assert routes.route_of("GET", "/ui/") is Route.PROXIED
        assert routes.route_of("GET", "/ui/a/b") is Route.PROXIED
        assert routes.route_of("GET", "/ui") is Route.OTHER
        assert routes.route_of("POST", "/v1/chat/completions") is Route.OTHER

    def test_all_paths_may_wake_but_not_the_proxys_own_nor_the_list_of_models(self) -> None:
        routes = Routes(("/*",))
        assert routes.route_of("GET", "/") is Route.PROXIED
        assert routes.route_of("POST", "/metrics") is Route.PROXIED
        for path in ("/proxy/x", "/v1/models", "/metrics", "/robots.txt"):
            assert not TABLE[routes.route_of("GET", path)].wakes


class TestHealthCheckers:
    @pytest.mark.parametrize(
        "agent",
        [
            *HEALTH_CHECKERS,
            "kube-probe/1.33",
            "ELB-HealthChecker/2.0",
            "GoogleHC/1.0",
            "Consul Health Check",
            "Envoy/HC",
            "Prometheus/3.5.0",
            "Blackbox Exporter/0.27.0",
            "Uptime-Kuma/2.0.2",
            "Mozilla/5.0+(compatible; UptimeRobot/2.0; http://www.uptimerobot.com/)",
            "Mozilla/5.0 (compatible;Cloudflare-Healthchecks/1.0;+https://www.cloudflare.com/; healthcheck-id: 1)",
            "Pingdom.com_bot_version_1.4_(http://www.pingdom.com/)",
        ],
    )
    def test_one_that_is_known_is_known_in_text_and_in_bytes(self, agent: str) -> None:
        assert is_health_checker(agent)
        assert is_health_checker(agent.encode())

    @pytest.mark.parametrize(
        "agent",
        [
            "",
            "Go-http-client/1.1",
            "curl/8.5.0",
            "python-requests/2.32",
            "OpenAI/Python 2.1.0",
            "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36",
            "my-chat (tested with Prometheus/3)",
        ],
    )
    def test_what_people_use_is_none(self, agent: str) -> None:
        assert not is_health_checker(agent)
        assert not is_health_checker(agent.encode())

    def test_it_is_told_from_a_caller_where_a_caller_would_wake_or_find_nothing(self) -> None:
        routes = Routes()
        assert routes.route_for("POST", "/v1/completions", "Envoy/HC") is Route.CHECKED
        assert routes.route_for("HEAD", "/v1/completions", "Envoy/HC") is Route.HEALTH_CHECK
        assert routes.route_for("GET", "/", "Envoy/HC") is Route.HEALTH_CHECK
        assert routes.route_for("GET", "/metrics", "Prometheus/3.5") is Route.METRICS
        assert routes.route_for("GET", "/v1/models", "Prometheus/3.5") is Route.MODELS
        assert routes.route_for("POST", "/proxy/operations/start", "Envoy/HC") is Route.PROXY_START


@pytest.mark.parametrize(
    "path",
    [
        "/proxy/scaling/metrics/../../../v1/x",
        "/proxy/scaling/metrics/..",
        "/proxy/scaling/policy/a/./b",
        "/proxy/scaling/policy/a/%2e%2E/b",
        "/proxy/scaling/policy/a%2f..%2fb",
        "/proxy/scaling/policy/..%5Cb",
    ],
)
def test_no_name_under_proxy_leads_up_and_out_of_it(path: str) -> None:
    assert route_of("GET", path) is Route.PROXY_OTHER


@pytest.mark.parametrize("name", ["ns/vllm", "org/llama-3.1", "a..b", "a.", ".a", "org%2Fa.b"])
def test_a_name_under_proxy_may_have_dots_and_slashes(name: str) -> None:
    assert route_of("GET", f"/proxy/scaling/policy/{name}") is Route.PROXY_SCALING_POLICY


@pytest.mark.parametrize(
    ("path", "wake_path"),
    [
        ("/v1/chat/completions", "/v1/chat/completions"),
        ("/v1/audio/speech", "/v1/audio/*"),
        ("/v1/models", None),
    ],
)
def test_a_path_is_one_of_those_that_wake_or_none(path: str, wake_path: str | None) -> None:
    assert Routes().wake_path(path) == wake_path
