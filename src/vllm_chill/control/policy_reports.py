"""What scaling policies do, told where people look: the status of their objects, events, and overrides kept.

The rule: a status is written when it says something else that matters, and figures not more often than they are
decided by. What was asked for by hand is kept where the policy is, so that it outlasts this proxy.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial

import structlog

from vllm_chill.control.autoscaler import Autoscaler, Rescale
from vllm_chill.control.policy_sources import ANNOTATED, objects_of
from vllm_chill.control.reconciler import Reconciler, Rhythm
from vllm_chill.control.told import Complaints, Event, Teller, Told
from vllm_chill.core.objects import Collection, Json, annotations_of, metadata
from vllm_chill.core.phrases import timestamp
from vllm_chill.core.scaling.override import Override, read, told
from vllm_chill.core.scaling.policy import Policy
from vllm_chill.core.scaling.report import Facts, status_of, write_after_seconds
from vllm_chill.errors import BackendError, BackendRefused
from vllm_chill.ports import ObjectStore

OVERRIDE = "vllm-chill.io/override"
"""The annotation that keeps what was asked for by hand, where the policy has no object."""
_POLLING_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Reported:
    """What there is to report of a policy. `about` is its object; or, if not `is_object`, what the replicas of its
    target are set in.

    `scaler` is the target's, None where it has none or is scaled by another policy. The others are as in Facts.
    """

    about: Json
    is_object: bool
    scaler: Autoscaler | None
    policy: Policy | None
    problems: tuple[str, ...] = ()
    taken_by: str | None = None
    absent: str | None = None


@dataclass(slots=True)
class _Memory:
    """What was told of a policy already. Times are put into words once, as they would differ by a second else."""

    rescale: Rescale | None = None
    last_scale: str | None = None
    conflict: str | None = None
    override: Override | None = None
    override_said: Json | None = None
    override_kept: str | None = None
    problems: tuple[str, ...] = ()
    taken_by: str | None = None
    told: Told = field(default_factory=Told)


class PolicyReports:
    """The reports of all policies of a namespace. `run` must be running."""

    def __init__(
        self,
        store: ObjectStore,
        policies: Collection,
        *,
        rhythm: Rhythm | None,
        wall: Callable[[], datetime],
        turn: asyncio.Event | None = None,
    ) -> None:
        """`turn` is that of the Reconciler."""
        self._store = store
        self._policies = policies
        self._wall = wall
        self._teller = Teller(store, wall)
        self._work = Reconciler(self._visit, failed=self._failed, rhythm=rhythm, turn=turn)
        self._reported: dict[str, Reported] = {}
        self._memories: dict[str, _Memory] = {}
        self._complaints = Complaints()

    async def run(self) -> None:
        """Write what has changed, until cancelled."""
        await self._work.run()

    def report(self, key: str, reported: Reported) -> None:
        """Have this be what there is to report of a policy from now on."""
        before = self._reported.get(key)
        self._reported[key] = reported
        if before is None or before.scaler is not reported.scaler:
            self._begin(key, reported)
        self.changed(key)

    def changed(self, key: str) -> None:
        """Take that something of a policy, or of its target, is other than before."""
        if key in self._reported:
            self._take(self._reported[key], self._memories[key])
            self._work.add(key)

    def keep(self, keys: Iterable[str]) -> None:
        """Take that there are no policies but these."""
        for key in self._reported.keys() - set(keys):
            self.forget(key)

    def forget(self, key: str) -> None:
        """Take that a policy is gone."""
        self._reported.pop(key, None)
        self._memories.pop(key, None)
        self._complaints.forget(key)

    def _begin(self, key: str, reported: Reported) -> None:
        """Take a policy's target over as it is; what was asked for by hand before goes on."""
        memory = self._memories.setdefault(key, _Memory())
        scaler = reported.scaler
        if scaler is None:
            return
        memory.rescale = scaler.rescale
        memory.override_kept = None if reported.is_object else annotations_of(reported.about).get(OVERRIDE)
        override = scaler.override or _kept(reported, scaler.controller.now(), self._wall())
        memory.override, memory.override_said = override, self._said(scaler, override)
        if override is not scaler.override:
            scaler.restore(override)

    # What has happened.

    def _take(self, reported: Reported, memory: _Memory) -> None:
        """Have events of what is other than it was told."""
        if reported.problems != memory.problems:
            memory.problems = reported.problems
            self._take_problems(reported, memory)
        if reported.taken_by != memory.taken_by:
            memory.taken_by = reported.taken_by
            if reported.taken_by is not None:
                memory.told.add([Event("Conflict", f"its target is scaled by {reported.taken_by}", warning=True)])
        if reported.scaler is not None:
            self._take_changes(reported.scaler, memory)

    def _take_problems(self, reported: Reported, memory: _Memory) -> None:
        if reported.problems:
            kept = "; its earlier version is in force" if reported.policy is not None else ""
            message = f"it is not accepted{kept}: {'; '.join(reported.problems)}"
            memory.told.add([Event("NotAccepted", message, warning=True)])

    def _take_changes(self, scaler: Autoscaler, memory: _Memory) -> None:
        rescale, conflict, override = scaler.rescale, scaler.conflict, scaler.override
        if rescale is not None and rescale is not memory.rescale:
            memory.rescale = rescale
            memory.last_scale = timestamp(self._wall() + timedelta(seconds=rescale.at - scaler.controller.now()))
            memory.told.add([_event_of(rescale)])
        if conflict != memory.conflict:
            memory.conflict = conflict
            memory.told.add([_event_of_conflict(conflict)])
        if override is not memory.override:
            memory.override, memory.override_said = override, self._said(scaler, override)
            memory.told.add([_event_of_override(override, memory.override_said)])

    def _said(self, scaler: Autoscaler, override: Override | None) -> Json | None:
        return None if override is None else told(override, scaler.controller.now(), self._wall())

    # What is written.

    async def _visit(self, key: str) -> float:
        reported = self._reported.get(key)
        if reported is None:
            return math.inf
        memory = self._memories[key]
        await self._teller.say(reported.about, memory.told)
        if reported.is_object:
            return await self._write(reported, memory)
        await self._keep_override(reported, memory)
        return math.inf

    async def _write(self, reported: Reported, memory: _Memory) -> float:
        polling = _POLLING_SECONDS if reported.policy is None else reported.policy.polling_seconds
        return await self._teller.write(
            self._policies,
            reported.about,
            memory.told,
            partial(status_of, _facts(reported, memory)),
            partial(write_after_seconds, polling_seconds=polling),
        )

    async def _keep_override(self, reported: Reported, memory: _Memory) -> None:
        if reported.scaler is None:
            return
        text = None if memory.override_said is None else json.dumps(memory.override_said)
        if text == memory.override_kept:
            return
        change = {"metadata": {"annotations": {OVERRIDE: text}}}
        with contextlib.suppress(BackendRefused):  # without the right to, it ends with this proxy
            await self._store.patch(self._collection_of(reported.about), metadata(reported.about)["name"], change)
        memory.override_kept = text

    def _collection_of(self, item: Json) -> Collection:
        resource = next(each for each in ANNOTATED if each.kind == item["kind"])
        return objects_of(resource, metadata(item)["namespace"])

    def _failed(self, key: str, error: BackendError, pause: float) -> None:
        if self._complaints.is_new(key, error.message):
            structlog.get_logger("vllm_chill.scaling").warning("not reported", policy=key, cause=error.message)


def _kept(reported: Reported, now: float, wall: datetime) -> Override | None:
    """What was asked for by hand, as it was kept with the policy."""
    if reported.is_object:
        return read((reported.about.get("status") or {}).get("override") or {}, now, wall)
    try:
        said = json.loads(annotations_of(reported.about).get(OVERRIDE) or "{}")
    except ValueError:
        return None
    return read(said, now, wall) if isinstance(said, dict) else None


def _facts(reported: Reported, memory: _Memory) -> Facts:
    scaler, said = reported.scaler, memory.override_said
    facts = Facts(reported.problems, reported.policy, reported.absent, reported.taken_by)
    if scaler is None:
        return facts
    return replace(
        facts,
        target=scaler.controller.target,
        decision=scaler.decision,
        conflict=scaler.conflict,
        override=None if said is None else {key: said[key] for key in ("replicas", "by", "expires")},
        last_scale=memory.last_scale,
        fronted=scaler.fronted,
        observe_only=scaler.controller.observe_only,
        at=scaler.controller.now(),
    )


def _event_of(rescale: Rescale) -> Event:
    if rescale.by is not None:
        return Event("ScaledElsewhere", f"{rescale.by} scaled it from {rescale.before} to {rescale.after}")
    return Event("SuccessfulRescale", f"New size: {rescale.after}; reason: {rescale.why}")


def _event_of_conflict(conflict: str | None) -> Event:
    if conflict is None:
        return Event("ConflictOver", "nobody else scales the target any more")
    return Event("Conflict", f"{conflict}; nothing is written until it no longer does", warning=True)


def _event_of_override(override: Override | None, said: Json | None) -> Event:
    if override is None or said is None:
        return Event("AdjustmentEnded", "the number of replicas is decided by what is measured again")
    by = f" by {override.by}" if override.by else ""
    return Event("Adjusted", f"set to {override.replicas}{by} until {said['expires']}")
