"""What is decided on variants, told where people look: the status of their objects, and events.

The rule: a status is written when it says something else that matters, and what only grows older now and then. An
event is for what has become so: another decision, a condition that holds or no longer does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

import structlog

from vllm_chill.control.reconciler import Reconciler, Rhythm
from vllm_chill.control.told import Complaints, Event, Teller, Told
from vllm_chill.control.variant_sources import VariantSource
from vllm_chill.core.model_status import Condition
from vllm_chill.core.objects import Collection
from vllm_chill.core.saturation.decision import VariantDecision
from vllm_chill.core.saturation.report import Facts, conditions, status_of, write_after_seconds
from vllm_chill.errors import BackendError
from vllm_chill.ports import ObjectStore


@dataclass(slots=True)
class _Memory:
    """What was told of a variant already. `conditions` are their statuses and reasons, by type."""

    source: VariantSource
    facts: Facts
    conditions: dict[str, tuple[bool | None, str]]
    told: Told = field(default_factory=Told)


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
        self._teller = Teller(store, wall)
        self._namespaced = namespaced
        self._interval = interval_seconds
        self._work = Reconciler(self._visit, failed=self._failed, rhythm=rhythm)
        self._memories: dict[str, _Memory] = {}
        self._complaints = Complaints()

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
            before = source.decided
        else:
            before = None if memory.facts.decision is None else memory.facts.decision.replicas
        memory.told.add(_events_of_conditions(memory.conditions, facts) + _events_of_decision(before, facts.decision))
        memory.source, memory.facts, memory.conditions = source, facts, held
        self._work.add(source.key)

    def forget(self, key: str) -> None:
        """Take that a variant is gone."""
        self._memories.pop(key, None)
        self._complaints.forget(key)

    async def _visit(self, key: str) -> float:
        memory = self._memories.get(key)
        if memory is None:
            return math.inf
        await self._teller.say(memory.source.about, memory.told)
        return await self._teller.write(
            self._namespaced(memory.source.namespace),
            memory.source.item,
            memory.told,
            partial(status_of, memory.facts),
            partial(write_after_seconds, polling_seconds=self._interval),
        )

    def _failed(self, key: str, error: BackendError, pause: float) -> None:
        if self._complaints.is_new(key, error.message):
            structlog.get_logger("vllm_chill.variants").warning("not reported", variant=key, cause=error.message)


def _held_before(source: VariantSource) -> dict[str, tuple[bool | None, str]]:
    told = (source.item.get("status") or {}).get("conditions") or ()
    truth = {"True": True, "False": False}
    return {one.get("type"): (truth.get(one.get("status")), one.get("reason") or "") for one in told}


def _events_of_conditions(before: dict[str, tuple[bool | None, str]], facts: Facts) -> list[Event]:
    return [_event_of(one) for one in conditions(facts) if _is_news(before.get(one.type), one)]


def _is_news(before: tuple[bool | None, str] | None, now: Condition) -> bool:
    """Whether it is one that does not hold, and did or for another reason, or one that holds again."""
    if before == (now.status, now.reason) or now.status is None:
        return False
    return now.status is False or (before is not None and before[0] is False)


def _event_of(condition: Condition) -> Event:
    return Event(condition.reason, condition.message or condition.type, warning=condition.status is False)


def _events_of_decision(before: int | None, decision: VariantDecision | None) -> list[Event]:
    if decision is None or decision.replicas == before or decision.replicas == decision.before:
        return []
    message = f"from {decision.before} to {decision.replicas} replicas ({decision.reason}): {decision.words}"
    return [Event("ScalingDecision", message)]
