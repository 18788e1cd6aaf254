"""What is told of objects where people look: their status, and events about them. One way for all that report on them.

The rule: what was written last counts as what an object says until the watch tells of something newer, and what failed
is complained of once, until it is for another cause.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from vllm_chill.core.objects import Collection, Json, metadata
from vllm_chill.core.phrases import timestamp
from vllm_chill.errors import BackendError
from vllm_chill.ports import ObjectStore

_MOST_EVENTS = 10
_SHORTEST_SECONDS = 0.001  # less may not move the clock at all


@dataclass(frozen=True, slots=True)
class Event:
    """Something that is to be said of an object: a word for programs, and a sentence."""

    reason: str
    message: str
    warning: bool = False


@dataclass(slots=True)
class Told:
    """What was told of one object, when on the loop's clock; and the events that are still to be, oldest first."""

    events: list[Event] = field(default_factory=list)
    written_at: float = -math.inf
    version: int = 0
    status: Json = field(default_factory=dict)

    def add(self, events: Iterable[Event]) -> None:
        """Have these be said; of too many the last."""
        self.events += events
        del self.events[:-_MOST_EVENTS]

    def before(self, item: Json) -> Json:
        """What the object says: the watch may not have told yet of what was written last."""
        is_newer = self.version > int(metadata(item)["resourceVersion"])
        return self.status if is_newer else item.get("status") or {}

    def wrote(self, before: Json, after: Json, written: Json | None) -> None:
        """Take that a status was written; None for one whose object was gone."""
        if written is not None:
            self.version, self.status = int(metadata(written)["resourceVersion"]), {**before, **after}

    def wait(self, seconds: float, now: float) -> float:
        """In how long it is so many seconds since the last write; 0 if it is."""
        wait = self.written_at + seconds - now
        return max(wait, _SHORTEST_SECONDS) if wait > 0 else 0.0


class Teller:
    """Tells it to an API server. `wall` is the time of day, with a time zone."""

    def __init__(self, store: ObjectStore, wall: Callable[[], datetime]) -> None:
        self._store = store
        self._wall = wall
        self._clock = asyncio.get_running_loop().time

    async def say(self, about: Json, told: Told) -> None:
        """Record the events that are to be said of an object, which has its apiVersion and kind."""
        while told.events:
            event = told.events.pop(0)
            with contextlib.suppress(BackendError):  # the status and the log say it too
                await self._store.record(about, event.reason, event.message, warning=event.warning)

    async def write(
        self,
        collection: Collection,
        item: Json,
        told: Told,
        status_of: Callable[[Mapping[str, object], int, str], Json],
        least: Callable[[Json, Json], float | None],
    ) -> float:
        """Write an object's status if that is due; in how many seconds it will be, infinity if it says nothing new.

        `status_of` makes it from the one before, the generation and the time of day; `least` says how long after the
        last write it is to be written, None for never.
        """
        now, before = self._clock(), told.before(item)
        after = status_of(before, metadata(item)["generation"], timestamp(self._wall()))
        seconds = least(before, after)
        if seconds is None:
            return math.inf
        wait = told.wait(seconds, now)
        if wait:
            return wait
        told.written_at = now
        told.wrote(before, after, await self._store.patch_status(collection, metadata(item)["name"], after))
        return math.inf


class Complaints:
    """What was complained of, by what it is about."""

    def __init__(self) -> None:
        self._causes: dict[str, str] = {}

    def is_new(self, key: str, cause: str) -> bool:
        """Take that something failed; whether it was not for this cause the last time."""
        known = self._causes.get(key)
        self._causes[key] = cause
        return known != cause

    def forget(self, key: str) -> None:
        """Take that it went well, or is gone."""
        self._causes.pop(key, None)
