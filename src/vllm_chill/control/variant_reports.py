"""What is decided on variants, told where people look: the status of their objects, and events.

The rule: a status is written when it says something else that matters, and what only grows older now and then. An
event is for what has become so: another decision, a condition that holds or no longer does.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

import structlog

from vllm_chill.control.reconciler import Reconciler, Rhythm
from vllm_chill.control.variant_sources import VariantSource
from vllm_chill.core.model_status import Condition
from vllm_chill.core.objects import Collection, Json, metadata
from vllm_chill.core.phrases import timestamp
from vllm_chill.core.saturation.decision import VariantDecision
from vllm_chill.core.saturation.report import Facts, conditions, status_of, write_after_seconds
from vllm_chill.errors import BackendError
from vllm_chill.ports import ObjectStore

_MOST_EVENTS = 10
_SOON_SECONDS = 0.001  # less than a clock may tell: to wait for it could be to wait for ever


@dataclass(frozen=True, slots=True)
class _Event:
    reason: str
    message: str
    warning: bool = False


@dataclass(slots=True)
class _Memory:
    """What was told of a variant already. `conditions` are their statuses and reasons, by type."""

    source: VariantSource
    facts: Facts
    conditions: dict[str, tuple[bool | None, str]]
    events: list[_Event] = field(default_factory=list)
    written_at: float = -math.inf
    version: int = 0
    status: Json = field(default_factory=dict)


class VariantReports:
    """The reports of all variants. `run` must be running. Times are seconds on the loop's clock."""

    def __init__(
        self,
        store: ObjectStore,
        namespaced: Callable[[str], Collection],
        *,
        interval_seconds: float,
        wall: Callable[[], datetime],
        rhythm: Rhythm | None = None,
    ) -> None:
        """`namespaced` is the collection of the variants in a namespace."""
        self._store = store
        self._namespaced = namespaced
        self._interval = interval_seconds
        self._wall = wall
        self._clock = asyncio.get_running_loop().time
        self._work = Reconciler(self._visit, failed=self._failed, rhythm=rhythm)
        self._memories: dict[str, _Memory] = {}
        self._complained: dict[str, str] = {}

    async def run(self) -> None:
        """Write what has changed, until cancelled."""
        await self._work.run()

    def report(self, source: VariantSource, facts: Facts) -> None:
        """Have this be what there is to report of a variant from now on."""
        memory = self._memories.get(source.key)
        held = {one.type: (one.status, one.reason) for one in conditions(facts)}
        if memory is None or memory.source.uid != source.uid:
            # What the object says already is not news to who reads its events.
            memory = self._memories[source.key] = _Memory(source, facts, _held_before(source))
            before = _decided_before(source)
        else:
            before = None if memory.facts.decision is None else memory.facts.decision.replicas
        memory.events += _events_of_conditions(memory.conditions, facts)
        memory.events += _events_of_decision(before, facts.decision)
        del memory.events[:-_MOST_EVENTS]
        memory.source, memory.facts, memory.conditions = source, facts, held
        self._work.add(source.key)

    def forget(self, key: str) -> None:
        """Take that a variant is gone."""
        self._memories.pop(key, None)
        self._complained.pop(key, None)

    async def _visit(self, key: str) -> float:
        memory = self._memories.get(key)
        if memory is None:
            return math.inf
        while memory.events:
            event = memory.events.pop(0)
            with contextlib.suppress(BackendError):  # the status and the log say it too
                await self._store.record(memory.source.about, event.reason, event.message, warning=event.warning)
        return await self._write(memory)

    async def _write(self, memory: _Memory) -> float:
        item, now = memory.source.item, self._clock()
        # The watch may not have told yet of what was written last.
        is_newer = memory.version > int(metadata(item)["resourceVersion"])
        before: Json = memory.status if is_newer else item.get("status") or {}
        after = status_of(memory.facts, before, metadata(item)["generation"], timestamp(self._wall()))
        least = write_after_seconds(before, after, self._interval)
        if least is None:
            return math.inf
        wait = memory.written_at + least - now
        if wait > _SOON_SECONDS:
            return wait
        memory.written_at = now
        collection = self._namespaced(memory.source.namespace)
        written = await self._store.patch_status(collection, memory.source.name, after)
        if written is not None:
            memory.version, memory.status = int(metadata(written)["resourceVersion"]), {**before, **after}
        return math.inf

    def _failed(self, key: str, error: BackendError, pause: float) -> None:
        if self._complained.get(key) != error.message:
            self._complained[key] = error.message
            structlog.get_logger("vllm_chill.variants").warning("not reported", variant=key, cause=error.message)


def _held_before(source: VariantSource) -> dict[str, tuple[bool | None, str]]:
    told = (source.item.get("status") or {}).get("conditions") or ()
    truth = {"True": True, "False": False}
    return {one.get("type"): (truth.get(one.get("status")), one.get("reason") or "") for one in told}


def _decided_before(source: VariantSource) -> int | None:
    told = ((source.item.get("status") or {}).get("desiredOptimizedAlloc") or {}).get("numReplicas")
    return told if isinstance(told, int) else None


def _events_of_conditions(before: dict[str, tuple[bool | None, str]], facts: Facts) -> list[_Event]:
    return [_event_of(one) for one in conditions(facts) if _is_news(before.get(one.type), one)]


def _is_news(before: tuple[bool | None, str] | None, now: Condition) -> bool:
    """Whether it is one that does not hold, and did or for another reason, or one that holds again."""
    if before == (now.status, now.reason) or now.status is None:
        return False
    return now.status is False or (before is not None and before[0] is False)


def _event_of(condition: Condition) -> _Event:
    return _Event(condition.reason, condition.message or condition.type, warning=condition.status is False)


def _events_of_decision(before: int | None, decision: VariantDecision | None) -> list[_Event]:
    if decision is None or decision.replicas == before or decision.replicas == decision.before:
        return []
    message = f"from {decision.before} to {decision.replicas} replicas ({decision.reason}): {decision.words}"
    return [_Event("ScalingDecision", message)]
