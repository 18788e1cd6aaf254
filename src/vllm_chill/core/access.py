"""Who may do what: what each route asks of a caller, and what is found when somebody with a token asks for something.

The rule: every route is in `NEEDS`, so that a new one is open to nobody by having been forgotten.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from vllm_chill.core.routing import Route


@dataclass(frozen=True, slots=True)
class Granted:
    """Whose token it is may have it."""


@dataclass(frozen=True, slots=True)
class Unauthenticated:
    """Nobody knows whose token it is."""


@dataclass(frozen=True, slots=True)
class Denied:
    """It is the token of `user`, who may not have it."""

    user: str


Access = Granted | Unauthenticated | Denied


class Need(enum.Enum):
    """What a route asks of a caller.

    NOTHING is answered to everybody, and by the proxy itself to who has no key. KEY is for who may use a model,
    ADMIN_KEY for who may do what else the engine can, METRICS and STATUS for who may read, OPERATE for who may have
    targets woken, stopped and scaled. LOGS is for who may read what engines write, in which prompts may be.
    """

    NOTHING = enum.auto()
    KEY = enum.auto()
    ADMIN_KEY = enum.auto()
    METRICS = enum.auto()
    STATUS = enum.auto()
    OPERATE = enum.auto()
    LOGS = enum.auto()


NEEDS: dict[Route, Need] = {
    Route.PROXIED: Need.KEY,
    Route.HEAD: Need.KEY,
    Route.MODELS: Need.KEY,
    Route.MODEL: Need.KEY,
    # What an engine has besides its API is its own control too: to load an adapter, to sleep, to be profiled.
    Route.OTHER: Need.ADMIN_KEY,
    Route.HEALTH: Need.NOTHING,
    Route.READYZ: Need.NOTHING,
    Route.PING: Need.NOTHING,
    Route.CHECKED: Need.NOTHING,
    Route.HEALTH_CHECK: Need.NOTHING,
    Route.ROBOTS: Need.NOTHING,
    Route.FAVICON: Need.NOTHING,
    Route.PREFLIGHT: Need.NOTHING,
    # The page is the same for everybody and knows nothing: it asks for what it shows, with the key that it asks for.
    Route.PROXY_DASHBOARD: Need.NOTHING,
    Route.METRICS: Need.METRICS,
    Route.PROXY_METRICS: Need.METRICS,
    Route.PROXY_STATUS: Need.STATUS,
    Route.PROXY_EVENTS: Need.STATUS,
    Route.PROXY_REQUESTS: Need.STATUS,
    Route.PROXY_STARTS: Need.STATUS,
    Route.PROXY_VERSION: Need.STATUS,
    Route.PROXY_AVAILABLE: Need.STATUS,
    Route.PROXY_RUNNING: Need.STATUS,
    Route.PROXY_SCALING_METRICS: Need.STATUS,
    Route.PROXY_SCALING_POD: Need.STATUS,
    Route.PROXY_SCALING_POLICIES: Need.STATUS,
    Route.PROXY_SCALING_POLICY: Need.STATUS,
    Route.PROXY_STATS: Need.STATUS,
    Route.PROXY_SAVINGS: Need.STATUS,
    Route.PROXY_LOGS: Need.LOGS,
    Route.PROXY_OPENAPI: Need.STATUS,
    Route.PROXY_OTHER: Need.STATUS,
    Route.PROXY_START: Need.OPERATE,
    Route.PROXY_STOP: Need.OPERATE,
    Route.PROXY_CANCEL: Need.OPERATE,
    Route.PROXY_SWITCH: Need.OPERATE,
    Route.PROXY_SCALING_REPLICAS: Need.OPERATE,
}


class Readers(enum.Enum):
    """Who may read what the proxy tells of itself: everybody, whoever has a key, or whoever may operate it."""

    ALL = "all"
    KEYS = "keys"
    ADMIN = "admin"


class Operators(enum.Enum):
    """Who may operate the proxy: everybody, whoever has an admin key, or whoever the cluster lets."""

    ALL = "none"
    KEYS = "keys"
    KUBERNETES = "kubernetes"
