"""Which requests wake the target, which keep it awake, and who answers the others. Pure: a method and a path in, a
route out.

The rule: only a use wakes, and only a use counts. `TABLE` says so for every route; the code, the page in docs and the
tests are made from it.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from dataclasses import dataclass


class Route(enum.Enum):
    """A route of the proxy: the bounded set that metrics and logs are labelled with.

    PROXIED wakes the target and takes a lease.
    """

    PROXIED = "proxied"
    MODELS = "/v1/models"
    MODEL = "/v1/models/*"
    PREFLIGHT = "preflight"
    HEAD = "head"
    CHECKED = "checked"
    HEALTH_CHECK = "health-check"
    HEALTH = "/health"
    READYZ = "/readyz"
    PING = "/ping"
    METRICS = "/metrics"
    FAVICON = "/favicon.ico"
    ROBOTS = "/robots.txt"
    PROXY_DASHBOARD = "/proxy/"
    PROXY_METRICS = "/proxy/metrics"
    PROXY_STATUS = "/proxy/status"
    PROXY_EVENTS = "/proxy/events"
    PROXY_REQUESTS = "/proxy/requests"
    PROXY_STARTS = "/proxy/starts"
    PROXY_VERSION = "/proxy/version"
    PROXY_START = "/proxy/operations/start"
    PROXY_STOP = "/proxy/operations/stop"
    PROXY_CANCEL = "/proxy/operations/cancel"
    PROXY_AVAILABLE = "/proxy/models/available"
    PROXY_RUNNING = "/proxy/models/running"
    PROXY_SWITCH = "/proxy/models/switch"
    PROXY_SCALING_METRICS = "/proxy/scaling/metrics"
    PROXY_SCALING_POD = "/proxy/scaling/metrics/{pod}"
    PROXY_SCALING_REPLICAS = "/proxy/scaling/replicas"
    PROXY_SCALING_POLICIES = "/proxy/scaling/policy"
    PROXY_SCALING_POLICY = "/proxy/scaling/policy/{model}"
    PROXY_STATS = "/proxy/stats"
    PROXY_SAVINGS = "/proxy/savings"
    PROXY_LOGS = "/proxy/logs"
    PROXY_OPENAPI = "/proxy/openapi.json"
    PROXY_OTHER = "/proxy/*"
    OTHER = "other"


_READ = frozenset({"GET", "HEAD"})
_POST = frozenset({"POST"})
_SET = frozenset({"POST", "DELETE"})
_USES = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE"})
_ANY: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Entry:
    """What is so of a route. `methods` are those that it takes, none for any; `path` says which paths are its own.

    `asleep` and `awake` say what the proxy answers itself while the target is not ready and while it is; None: the
    target answers, after a wake if it sleeps.
    """

    methods: frozenset[str]
    path: str
    asleep: str | None = None
    awake: str | None = None
    wakes: bool = False
    prolongs: bool = False


def _own(methods: frozenset[str], path: str, answer: str, *, wakes: bool = False, prolongs: bool = False) -> Entry:
    return Entry(methods, path, answer, answer, wakes, prolongs)


_READINESS = "200 once the target's state is known, 503 while shutting down"

TABLE: dict[Route, Entry] = {
    Route.PROXY_DASHBOARD: _own(_READ, "/proxy/", "the dashboard, a page for browsers; /proxy leads to it"),
    Route.PROXY_METRICS: _own(_READ, "/proxy/metrics", "its metrics"),
    Route.PROXY_STATUS: _own(_READ, "/proxy/status", "the state of every target"),
    Route.PROXY_EVENTS: _own(_READ, "/proxy/events", "the same again whenever it changes, as a stream of events"),
    Route.PROXY_REQUESTS: _own(_READ, "/proxy/requests", "the requests that are held"),
    Route.PROXY_STARTS: _own(_READ, "/proxy/starts", "the newest starts of every target that are over"),
    Route.PROXY_VERSION: _own(_READ, "/proxy/version", "its version"),
    Route.PROXY_START: _own(
        _POST, "/proxy/operations/start", "200 once the target is ready, or why not", wakes=True, prolongs=True
    ),
    Route.PROXY_STOP: _own(_POST, "/proxy/operations/stop", "200 once the target is asleep"),
    Route.PROXY_CANCEL: _own(_POST, "/proxy/operations/cancel", "200 once a request that is held was sent away"),
    Route.PROXY_AVAILABLE: _own(_READ, "/proxy/models/available", "every model that it serves, and how it is"),
    Route.PROXY_RUNNING: _own(_READ, "/proxy/models/running", "the models that have their GPUs now"),
    Route.PROXY_SWITCH: _own(_POST, "/proxy/models/switch", "200; it wakes the model only if it is asked to"),
    Route.PROXY_SCALING_METRICS: _own(_READ, "/proxy/scaling/metrics", "what is measured of every replica"),
    Route.PROXY_SCALING_POD: _own(_READ, "/proxy/scaling/metrics/{pod}", "what is measured of one replica, or 404"),
    Route.PROXY_SCALING_REPLICAS: _own(
        _SET, "/proxy/scaling/replicas", "200; it has so many replicas for a while once it is awake, or no longer"
    ),
    Route.PROXY_SCALING_POLICIES: _own(_READ, "/proxy/scaling/policy", "every scaling policy, and what it has decided"),
    Route.PROXY_SCALING_POLICY: _own(
        _READ, "/proxy/scaling/policy/{model}", "a model's scaling policy, and what it has decided, or 404"
    ),
    Route.PROXY_STATS: _own(_READ, "/proxy/stats", "statistics of the GPUs, or 503 and how to have them"),
    Route.PROXY_SAVINGS: _own(_READ, "/proxy/savings", "GPU-hours asleep and awake, and who waited, by model and day"),
    Route.PROXY_LOGS: _own(_READ, "/proxy/logs", "what an engine writes, as text"),
    Route.PROXY_OPENAPI: _own(_READ, "/proxy/openapi.json", "what these routes take and answer, as OpenAPI"),
    Route.PROXY_OTHER: _own(_ANY, "/proxy/*", "404 with the paths that there are, or 405"),
    Route.HEALTH: _own(_READ, "/health", "200 while the process lives"),
    Route.READYZ: _own(_READ, "/readyz", _READINESS),
    Route.ROBOTS: _own(_READ, "/robots.txt", "200, which turns crawlers away"),
    Route.METRICS: Entry(_READ, "/metrics", "200 with a comment"),
    Route.PING: Entry(_READ | _POST, "/ping", _READINESS),
    Route.FAVICON: Entry(_READ, "/favicon.ico", "204"),
    Route.MODELS: Entry(_READ, "/v1/models", "the models that are known"),
    Route.MODEL: Entry(_READ, "/v1/models/*", "the model, if it is known, or 404"),
    Route.PREFLIGHT: Entry(frozenset({"OPTIONS"}), "any path", "204; a CORS preflight may go on"),
    Route.CHECKED: Entry(_USES, "the paths that wake, asked by a health checker", _READINESS),
    Route.HEALTH_CHECK: _own(_ANY, "any other path, asked by a health checker", _READINESS),
    Route.PROXIED: Entry(_USES, "the paths that wake", wakes=True, prolongs=True),
    Route.HEAD: Entry(frozenset({"HEAD"}), "the paths that wake", "200 without a body"),
    Route.OTHER: Entry(_ANY, "any other path", "404, and a browser is shown a page"),
}
"""In the order in which they are looked for: the first that fits is the route."""

METHODS: dict[Route, frozenset[str]] = {
    route: entry.methods for route, entry in TABLE.items() if entry.methods and route.value == entry.path
}
"""What each route with a path of its own takes."""

_LOCAL = {route.value: route for route in METHODS if not route.value.endswith(("*", "}"))}
_LOCAL["/proxy"] = Route.PROXY_DASHBOARD
_NAMED = {route.value.partition("{")[0]: route for route in METHODS if route.value.endswith("}")}
_MODEL = "/v1/models/"

DEFAULT_WAKE_PATHS = (
    "/v1/chat/completions",
    "/v1/chat/completions/*",
    "/v1/completions",
    "/v1/completions/*",
    "/v1/responses",
    "/v1/responses/*",
    "/v1/embeddings",
    "/v1/audio/*",
    "/v1/realtime",
    "/v1/messages",
    "/v1/messages/*",
    "/v1/systemone",
    "/v1/score",
    "/v1/rerank",
    "/v2/embed",
    "/v2/rerank",
    "/cohere/v2/*",
    "/pooling",
    "/classify",
    "/score",
    "/rerank",
    "/generative_scoring",
    "/tokenize",
    "/detokenize",
    "/invocations",
    "/inference/v1/generate",
)
"""Where vLLM 0.32 does work for a caller (vllm/entrypoints, every router but those that control or describe it)."""

_DEFAULT = "default"
_WAKE_PATH = re.compile(r"/[!-~]*")


def parse_wake_paths(text: str) -> tuple[str, ...]:
    """The paths in a comma-separated list, in which `default` stands for DEFAULT_WAKE_PATHS.

    A path that ends with `*` is all paths that begin so. Raises ValueError for what is no such list.
    """
    paths: list[str] = []
    for item in text.split(","):
        path = item.strip()
        if path == _DEFAULT:
            paths += DEFAULT_WAKE_PATHS
        elif _WAKE_PATH.fullmatch(path) and not re.search(r"[?#]|\*.", path):
            paths.append(path)
        else:
            raise ValueError(f"{path!r} is neither a path nor {_DEFAULT}")
    return tuple(dict.fromkeys(paths))


class Routes:
    """The routes of one proxy; they differ between proxies by the paths that wake."""

    __slots__ = ("_exact", "_prefixes", "wake_paths")

    def __init__(self, wake_paths: Iterable[str] = DEFAULT_WAKE_PATHS) -> None:
        """`wake_paths` are as `parse_wake_paths` gives them."""
        self.wake_paths = tuple(wake_paths)
        self._exact = frozenset(path for path in self.wake_paths if not path.endswith("*"))
        self._prefixes = tuple(path[:-1] for path in self.wake_paths if path.endswith("*"))

    def route_of(self, method: str, path: str) -> Route:
        """The route of a request that no health checker has sent; `path` is the raw path without its query.

        The proxy's pages are its own only for the methods that they take; everything under /proxy/ is its own
        whatever the method, so that a mistyped one never reaches the target.
        """
        if path.startswith("/proxy/") or path == "/proxy":
            return _LOCAL.get(path) or _named(path)
        local = _LOCAL.get(path)
        if local is not None and method in METHODS[local]:
            return local
        if method == "OPTIONS":
            return Route.PREFLIGHT
        if path.startswith(_MODEL) and method in METHODS[Route.MODEL]:
            return Route.MODEL
        if path in self._exact or path.startswith(self._prefixes):
            if method in _USES:
                return Route.PROXIED
            if method == "HEAD":
                return Route.HEAD
        return Route.OTHER

    def wake_path(self, path: str) -> str | None:
        """The one among `wake_paths` that this path is, with its * at the end if it has one."""
        if path in self._exact:
            return path
        return next((f"{prefix}*" for prefix in self._prefixes if path.startswith(prefix)), None)

    def route_for(self, method: str, path: str, user_agent: str) -> Route:
        """The route of a request, whoever has sent it."""
        route = self.route_of(method, path)
        checked = _CHECKED.get(route)
        return checked if checked is not None and is_health_checker(user_agent) else route


def is_own(route: Route) -> bool:
    """Whether it is one of those under /proxy/."""
    return route.value.startswith("/proxy/")


def _named(path: str) -> Route:
    """The proxy's own route whose path ends with a name, which may have slashes in it, as a model's has.

    No name has a segment of dots. What stands in front may have taken them for a way up and out of /proxy/, which it
    would not have let through.
    """
    if _DOTS.search(path):
        return Route.PROXY_OTHER
    for prefix, route in _NAMED.items():
        if path.startswith(prefix) and path != prefix:
            return route
    return Route.PROXY_OTHER


_SLASH = r"(?:/|%2[fF]|%5[cC]|\\)"
_DOTS = re.compile(rf"{_SLASH}(?:\.|%2[eE]){{1,2}}(?:{_SLASH}|$)")
_CHECKED = {
    Route.PROXIED: Route.CHECKED,
    Route.HEAD: Route.HEALTH_CHECK,
    Route.OTHER: Route.HEALTH_CHECK,
}

HEALTH_CHECKERS = (
    "kube-probe/",
    "ELB-HealthChecker/",
    "Amazon-Route53-Health-Check-Service",
    "GoogleHC",
    "GoogleStackdriverMonitoring-UptimeChecks",
    "Load Balancer Agent",
    "Edge Health Probe",
    "Cloudflare-Healthchecks/",
    "Cloudflare-Traffic-Manager/",
    "DigitalOcean Uptime Probe",
    "Consul Health Check",
    "Envoy/HC",
    "Prometheus/",
    "Blackbox Exporter/",
    "Blackbox-Exporter/",
    "vm_promscrape",
    "GrafanaAgent/",
    "Alloy/",
    "Telegraf/",
    "Datadog Agent/",
    "Datadog/Synthetics",
    "NewRelicPinger/",
    "check_http/",
    "Zabbix",
    "Gatus/",
    "Checkly/",
    "Uptime-Kuma/",
    "UptimeRobot/",
    "Pingdom.com_bot",
    "HetrixTools",
    "Better Uptime Bot",
    "Better Stack",
)
"""How the User-Agent of each known health checker begins. No plain HTTP library's is among them: users have those."""

# Some say "Mozilla/5.0 (compatible; NAME/1.0; ...)".
_HEALTH_CHECKER = rf"(?:Mozilla/5\.0[ +]\(compatible; ?)?(?:{'|'.join(map(re.escape, HEALTH_CHECKERS))})"
_IN_TEXT = re.compile(_HEALTH_CHECKER)
_IN_BYTES = re.compile(_HEALTH_CHECKER.encode("ascii"))


def is_health_checker(user_agent: bytes | str) -> bool:
    """Whether this User-Agent is that of a program that only asks whether something is there."""
    if isinstance(user_agent, bytes):
        return _IN_BYTES.match(user_agent) is not None
    return _IN_TEXT.match(user_agent) is not None


DEFAULT_ROUTES = Routes()


def route_of(method: str, path: str) -> Route:
    """The route of a request where the default paths wake; as `Routes.route_of`."""
    return DEFAULT_ROUTES.route_of(method, path)
