"""The idle watchdog: it sleeps to the next deadline of a target, then says Tick."""

from __future__ import annotations

from typing import Protocol


class Timed(Protocol):
    """What has deadlines: a controller."""

    @property
    def deadline(self) -> float | None: ...
    @property
    def review_seconds(self) -> float: ...
    def now(self) -> float: ...
    def tick(self) -> None: ...
    async def changed(self, within_seconds: float) -> None: ...


_LONGEST_SLEEP_SECONDS = 3600.0
_LEAST_SLEEP_SECONDS = 0.001  # less may not move the clock at all


async def keep_time(target: Timed) -> None:
    """Tick at each deadline of `target`, until cancelled.

    Its `review_seconds` is the shortest time in which a target without a deadline can come to have one that is due
    while its phase stays the same: a target in use becomes idle no sooner than its idle timeout from now. So
    no request has to tell the watchdog anything.
    """
    while True:
        deadline = target.deadline
        wait = target.review_seconds if deadline is None else deadline - target.now()
        if wait > 0:
            await target.changed(within_seconds=min(max(wait, _LEAST_SLEEP_SECONDS), _LONGEST_SLEEP_SECONDS))
        if target.deadline is not None:
            target.tick()
