"""A number of replicas that somebody asks for by hand, for a time. Pure.

The rule: it never leaves the policy's bounds, it says who wanted it, and it ends by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from vllm_chill.core.phrases import timestamp

_LONGEST_NAME = 200


@dataclass(frozen=True, slots=True)
class Override:
    """So many replicas from `at` to `until`, in seconds on the clock of the phases; `by` is who asked for it."""

    replicas: int
    by: str
    at: float
    until: float

    def holds(self, now: float) -> bool:
        """Whether it has not ended."""
        return now < self.until


def told(override: Override, now: float, wall: datetime) -> dict[str, Any]:
    """What objects say of it, the same at any later moment: replicas, by, and since and expires as RFC 3339 times.

    `wall` is the time of day at `now`.
    """
    return {
        "replicas": override.replicas,
        "by": override.by,
        "since": _text(wall + timedelta(seconds=override.at - now)),
        "expires": _text(wall + timedelta(seconds=override.until - now)),
    }


def read(said: Mapping[str, Any], now: float, wall: datetime) -> Override | None:
    """What `told` said once; None if it has ended by now, or is not to be understood."""
    try:
        until = _seconds(said["expires"], now, wall)
        since = _seconds(said.get("since") or said["expires"], now, wall)
        replicas, by = int(said["replicas"]), str(said.get("by") or "")[:_LONGEST_NAME]
    except (KeyError, TypeError, ValueError):
        return None
    override = Override(replicas, by, min(since, now), until)
    return override if replicas > 0 and override.holds(now) else None


def _seconds(text: object, now: float, wall: datetime) -> float:
    moment = datetime.fromisoformat(str(text))
    if moment.tzinfo is None:
        raise ValueError("a time without a zone")
    return now + (moment - wall).total_seconds()


def _text(moment: datetime) -> str:
    # To the nearest second, so that one override is told in the same words whenever it is told.
    return timestamp(moment + timedelta(seconds=0.5))
