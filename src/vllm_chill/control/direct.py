"""Targets that have as many replicas as somebody decides elsewhere, from 0 on: variants whose actuation is direct.

The rule: what is decided is a recommendation to the target's controller, which writes. A number that somebody else
wrote stays until the next decision, and where that goes on, nothing is written here. Times are seconds on the clock of
the phases.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple, Protocol

import structlog

from vllm_chill.core.scaling import rivals
from vllm_chill.core.target import Draining, Ready, SleepReason, Target, TargetRef, Unknown, Waking
from vllm_chill.errors import AnswerableError

_SOURCE = "variant"


class Steered(Protocol):
    """The part of a ScaleController that this has to do with."""

    on_seen: Callable[[], None] | None
    on_change: Callable[[], None] | None

    @property
    def target(self) -> Target: ...
    def now(self) -> float: ...
    def recommend(self, source: str, replicas: int | None) -> None: ...
    def give_way(self, reason: SleepReason) -> None: ...
    def wake_for_nobody(self) -> None: ...


class DirectTarget:
    """One target. `conflict` tells of a change in who else scales it."""

    def __init__(self, controller: Steered) -> None:
        self._controller = controller
        self._wanted: int | None = None
        self._is_pending = False
        self._replicas: int | None = None
        self._rivalry = rivals.Rivalry()
        self._log = structlog.get_logger("vllm_chill.scaling")
        controller.on_seen = self._noticed
        controller.on_change = self._settle

    @property
    def conflict(self) -> str | None:
        """Who else scales the target, as a clause; None while nobody does."""
        return self._rivalry.conflict(self._controller.now())

    def have(self, replicas: int | None) -> None:
        """Have so many replicas from now on; None: as many as there are."""
        self._wanted = replicas
        self._is_pending = True
        self._settle()

    def _settle(self) -> None:
        if not self._is_pending:
            return
        if self._wanted is None or self.conflict is not None:
            self._is_pending = False
            self._controller.recommend(_SOURCE, None)
            return
        match self._controller.target.phase:
            case Unknown() | Draining():
                return
            case Waking() | Ready():
                self._is_pending = False
                if self._wanted:
                    self._controller.recommend(_SOURCE, self._wanted)
                else:
                    self._controller.give_way(SleepReason.IDLE)
            case _ if self._wanted:
                self._wake(self._wanted)
            case _:
                self._is_pending = False

    def _wake(self, replicas: int) -> None:
        try:
            self._is_pending = False
            self._controller.wake_for_nobody()
        except AnswerableError as error:
            self._is_pending = True
            self._log.info("not woken yet", target=str(self._controller.target.ref), cause=str(error))
            return
        self._controller.recommend(_SOURCE, replicas)

    def _noticed(self) -> None:
        """Take that what is seen of the target has changed. Called before the controller writes."""
        target = self._controller.target
        if target.observed is None:
            return
        before, self._replicas = self._replicas, target.observed.replicas
        if before is None or before == self._replicas:
            return
        if rivals.written_by(target) is None:
            self._rivalry = rivals.written_here(self._rivalry)
            return
        known = self.conflict
        self._rivalry = rivals.wrote(self._rivalry, target.observed.replicas_by, self._controller.now())
        self._is_pending = False
        self._controller.recommend(_SOURCE, None)
        if self.conflict is not None and known is None:
            self._log.warning("scaling conflict", target=str(target.ref), cause=self.conflict)


class MadeTarget(NamedTuple):
    """What is made for a target: it is scaled while `run` runs. Its controller has control.unserved.UnservedBackend."""

    controller: Steered
    run: Callable[[], Coroutine[Any, Any, None]]


class DirectTargets:
    """All that are scaled directly. `run` must be running for anything to happen."""

    def __init__(self, make: Callable[[TargetRef], MadeTarget]) -> None:
        self._make = make
        self._targets: dict[TargetRef, tuple[DirectTarget, asyncio.Task[None]]] = {}
        self._group: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Scale what is to be scaled, until cancelled."""
        try:
            async with asyncio.TaskGroup() as self._group:
                await asyncio.get_running_loop().create_future()
        finally:
            self._group = None
            self._targets.clear()

    def have(self, ref: TargetRef, replicas: int) -> str | None:
        """Have a target have so many replicas. Why it is not done, as a clause; None if it is."""
        if self._group is None:
            return "nothing is scaled at the moment"
        if ref not in self._targets:
            made = self._make(ref)
            self._targets[ref] = DirectTarget(made.controller), self._group.create_task(made.run())
        target, _ = self._targets[ref]
        target.have(replicas)
        return target.conflict

    def leave(self, ref: TargetRef) -> None:
        """Scale a target no longer; it stays as it is."""
        found = self._targets.pop(ref, None)
        if found is not None:
            found[0].have(None)
            found[1].cancel()
