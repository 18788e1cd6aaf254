"""How many requests a caller may send: a token bucket. Pure; the time is a parameter.

The rule: the whole state is the moment at which the bucket is full again if nothing more is taken, which is one number
and needs nobody to refill it (the generic cell rate algorithm, ITU-T I.371).
"""

from __future__ import annotations

from dataclasses import dataclass

NEVER_USED = float("-inf")
"""When the bucket is full again from which nothing was ever taken."""

_PRECISION_SECONDS = 1e-6  # so that a sum of many intervals, rounded, refuses nobody who is in time


@dataclass(frozen=True, slots=True)
class RateLimit:
    """So many requests in a minute, of which `burst` may come at once. Both are at least 1."""

    per_minute: int
    burst: int

    @property
    def interval_seconds(self) -> float:
        """After how long one more may come."""
        return 60.0 / self.per_minute


def wait_seconds(limit: RateLimit, full_at: float, now: float) -> float:
    """In how many seconds the next request may come; 0 for now."""
    wait = max(full_at, now) + (1 - limit.burst) * limit.interval_seconds - now
    return wait if wait > _PRECISION_SECONDS else 0.0


def spent(limit: RateLimit, full_at: float, now: float) -> float:
    """When the bucket is full again once one more has been let through now."""
    return max(full_at, now) + limit.interval_seconds
