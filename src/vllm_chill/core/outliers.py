"""Which replicas are taken out of the turn as they fail, and for how long: Envoy's outlier detection, on a target's own
replicas. Pure; time is a parameter.

The rule: it is the requests that tell that a replica is ill, and never a request that finds out whether it is well
again. A replica without another one beside it is never taken out.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from vllm_chill.core.target import Endpoint

GATEWAY_ERRORS = frozenset({502, 503, 504})
FIRST_GATEWAY_ERROR = min(GATEWAY_ERRORS)
CONSECUTIVE_GATEWAY_ERRORS = 5
BASE_EJECTION_SECONDS = 5.0
MOST_EJECTION_SECONDS = 60.0
FORGIVEN_SECONDS = 10.0
"""One ejection is forgotten for each so many seconds in which a replica has been in."""


@dataclass(frozen=True, slots=True)
class Ejection:
    """A replica is out since `since`, for `seconds` at least; `count` says how often it was, with this time."""

    endpoint: Endpoint
    since: float
    seconds: float
    count: int
    cause: str


@dataclass(frozen=True, slots=True)
class _Past:
    """How often it was out when it came back, and when that was."""

    count: int
    since: float

    def count_at(self, now: float) -> int:
        return max(0, self.count - int((now - self.since) / FORGIVEN_SECONDS))


class Outliers:
    """The replicas of one target. `out` are those that are out; `suspects` those whose last answer was a gateway error,
    each with how many of them came in a row. The n-th ejection lasts n times `base_seconds`, and at most a minute.
    """

    __slots__ = ("_past", "base_seconds", "out", "suspects")

    def __init__(self, base_seconds: float = BASE_EJECTION_SECONDS) -> None:
        self.base_seconds = base_seconds
        self.out: dict[Endpoint, Ejection] = {}
        self.suspects: dict[Endpoint, int] = {}
        self._past: dict[Endpoint, _Past] = {}

    def failed(self, endpoint: Endpoint, among: Collection[Endpoint], now: float, cause: str) -> Ejection | None:
        """Take that one took no connection, or broke it before it answered; its ejection, if that has begun now.

        `among` are all that are ready.
        """
        if endpoint in self.out or endpoint not in among or len(among) < 2:
            return None
        past = self._past.get(endpoint)
        count = 1 if past is None else past.count_at(now) + 1
        ejection = Ejection(endpoint, now, min(self.base_seconds * count, MOST_EJECTION_SECONDS), count, cause)
        self.out[endpoint] = ejection
        self.suspects.pop(endpoint, None)
        return ejection

    def answered(self, endpoint: Endpoint, status: int, among: Collection[Endpoint], now: float) -> Ejection | None:
        """Take the status of a response; its ejection, if that has begun now."""
        if status not in GATEWAY_ERRORS:
            self.suspects.pop(endpoint, None)
            return None
        if endpoint not in among:
            return None
        errors = self.suspects[endpoint] = self.suspects.get(endpoint, 0) + 1
        if errors < CONSECUTIVE_GATEWAY_ERRORS:
            return None
        return self.failed(endpoint, among, now, f"it answered {errors} requests in a row with a gateway error")

    def restored(self, ejection: Ejection, now: float) -> bool:
        """Take that the replica is well again; whether that ejection was on still."""
        if self.out.get(ejection.endpoint) is not ejection:
            return False
        del self.out[ejection.endpoint]
        self._past[ejection.endpoint] = _Past(ejection.count, now)
        return True

    def forget(self, endpoint: Endpoint) -> None:
        """The replica has departed; whatever comes at its address is another one."""
        for known in (self.out, self.suspects, self._past):
            known.pop(endpoint, None)
