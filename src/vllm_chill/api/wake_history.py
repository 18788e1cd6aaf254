"""What `GET /proxy/starts` answers."""

from __future__ import annotations

from msgspec import Struct

from vllm_chill.api.status import PastStartStatus, past_start_status
from vllm_chill.core.cold_start import ColdStart


class OneStart(PastStartStatus, frozen=True, kw_only=True):
    """A start that is over, with the time at which it began."""

    began: str
    """As RFC 3339 has it, in UTC."""


class TargetStarts(Struct, frozen=True, kw_only=True):
    """The starts of one target."""

    target: str
    model: str | None
    """What the catalogue calls it, where there is one."""
    starts: list[OneStart]
    """The newest first: 20 at the most, and none from before this proxy began."""


class WakeHistory(Struct, frozen=True, kw_only=True):
    """The whole answer."""

    targets: list[TargetStarts]


def one_start(start: ColdStart, began: str) -> OneStart:
    """A start that is over."""
    past = past_start_status(start)
    return OneStart(
        outcome=past.outcome,
        total_seconds=past.total_seconds,
        stages=past.stages,
        stopped_at=past.stopped_at,
        detail=past.detail,
        cause=past.cause,
        began=began,
    )
