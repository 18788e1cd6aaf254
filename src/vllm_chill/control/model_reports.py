"""The status of models, written: when it says something else than before, and not more often than it is read.

The rule: what is written is what is so at that moment, never what has happened; so what changes ten times within a
second is one write.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import structlog

from vllm_chill.control.reconciler import Reconciler
from vllm_chill.control.told import Complaints, Told
from vllm_chill.control.workloads import ModelController
from vllm_chill.core.model_status import USED_SECONDS, Facts, Memory, is_worth_writing, status_of
from vllm_chill.core.objects import Collection, Json, metadata
from vllm_chill.core.phrases import timestamp
from vllm_chill.errors import BackendError
from vllm_chill.ports import ObjectStore

_LEAST_SECONDS = 1.0


class ModelReports:
    """The status of each model that `changed` names. `run` must be running."""

    def __init__(
        self,
        store: ObjectStore,
        models: Collection,
        facts: Callable[[str], tuple[Json, Facts] | None],
        controller_of: Callable[[str], ModelController | None],
        wall_clock: Callable[[], float],
        turn: asyncio.Event | None = None,
    ) -> None:
        """`facts` has a model's object, and what is known of it but for what is remembered here. `turn` is that of the
        Reconciler.
        """
        self._store = store
        self._models = models
        self._facts = facts
        self._controller_of = controller_of
        self._wall_clock = wall_clock
        self._clock = asyncio.get_running_loop().time
        self._work = Reconciler(self._write, failed=self._failed, turn=turn)
        self._memories: dict[str, Memory] = {}
        self._told: dict[str, Told] = {}
        self._complaints = Complaints()

    async def run(self) -> None:
        """Write what has changed, until cancelled."""
        await self._work.run()

    def changed(self, name: str) -> None:
        """Take that something of a model is other than before."""
        self._remember(name)
        self._work.add(name)

    def forget(self, name: str) -> None:
        """Take that a model is gone."""
        self._memories.pop(name, None)
        self._told.pop(name, None)
        self._complaints.forget(name)

    def _remember(self, name: str) -> Memory:
        memory, controller = self._memories.get(name, Memory()), self._controller_of(name)
        if controller is not None:
            memory = self._memories[name] = memory.seen(controller.target, controller.limits, controller.now())
        return memory

    async def _write(self, name: str) -> float | None:
        told = self._told.get(name) or Told()
        wait = told.wait(_LEAST_SECONDS, self._clock())
        if wait:
            return wait
        found = self._facts(name)
        if found is None:
            return math.inf
        item, facts = found
        before = told.before(item)
        after = status_of(
            self._with_memory(facts, self._remember(name)), before, metadata(item)["generation"], self._text(0)
        )
        if is_worth_writing(before, after):
            self._told[name] = told
            told.written_at = self._clock()
            told.wrote(before, after, await self._store.patch_status(self._models, name, after))
            self._complaints.forget(name)
        return USED_SECONDS if self._is_used(facts) else None

    def _with_memory(self, facts: Facts, memory: Memory) -> Facts:
        used = None if memory.last_used is None else self._text(self._clock() - memory.last_used)
        return replace(facts, last_wake_seconds=memory.last_wake_seconds, last_used=used)

    def _is_used(self, facts: Facts) -> bool:
        return facts.target is not None and bool(facts.target.in_flight or facts.target.waiting)

    def _text(self, seconds_ago: float) -> str:
        return timestamp(datetime.fromtimestamp(self._wall_clock() - seconds_ago, UTC))

    def _failed(self, name: str, error: BackendError, pause: float) -> None:
        if self._complaints.is_new(name, error.message):
            structlog.get_logger("vllm_chill.models").warning("no status", model=name, cause=error.message)
