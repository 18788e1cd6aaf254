"""How many replicas one target has while it is awake: what is measured of it, its policy, and a decision at each turn.

The rule: a decision is `core.scaling.decide` of what is at that moment, and it is only recommended; the controller
writes. Between 0 and 1 the controller decides by itself. Where somebody else scales the target too, nothing is
recommended. Times are seconds on the clock of the phases.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

import structlog

from vllm_chill.core.scaling import rivals
from vllm_chill.core.scaling.bound import scheduled
from vllm_chill.core.scaling.decide import State, decide, scaled
from vllm_chill.core.scaling.decision import Decision
from vllm_chill.core.scaling.demand import demand
from vllm_chill.core.scaling.override import Override
from vllm_chill.core.scaling.policy import Policy
from vllm_chill.core.scaling.signals import Readings, ReplicaReading, Sample, Signal
from vllm_chill.core.target import Limits, Ready, Target, Unknown, Waking
from vllm_chill.errors import BadRequest

_SOURCE = "policy"
_LOOK_SECONDS = 5.0
"""How often it is looked whether the engines are busy, and what the time has changed."""
_LEAST_SECONDS = 0.001  # less may not move the clock at all


class Controlled(Protocol):
    """The part of a ScaleController that an autoscaler has to do with."""

    limits: Limits
    observe_only: bool
    demand: Callable[[int], int] | None
    on_seen: Callable[[], None] | None

    @property
    def target(self) -> Target: ...
    def now(self) -> float: ...
    def recommend(self, source: str, replicas: int | None) -> None: ...
    def used(self) -> None: ...


class Measures(Protocol):
    """The part of a Meter that decisions rest on."""

    def members(self, signals: Collection[Signal]) -> Sequence[ReplicaReading]: ...
    def of_target(self, signals: Collection[Signal]) -> Mapping[Signal, Sample]: ...
    @property
    def busy(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Rescale:
    """The number of replicas was changed; `by` is who else did it, None if it was us. `why` is a clause."""

    before: int
    after: int
    at: float
    by: str | None
    why: str


class Autoscaler:
    """One target's. `run` must be running for anything to happen; it ends by cancellation.

    `name` is what the target is called in the API. `decision` is the last one since it woke, None before the first.
    `rescale` is the last change of its replicas that was seen.
    """

    def __init__(
        self,
        name: str,
        controller: Controlled,
        meter: Measures,
        *,
        wall: Callable[[], datetime],
        fronted: bool = True,
    ) -> None:
        """`wall` is the time of day, with a time zone. `fronted`: its requests come through this proxy, which can
        wake it; what nobody can wake is not put to sleep either.
        """
        self.name = name
        self.room: Callable[[], int | None] = lambda: None
        """How many replicas there are GPUs for; None for any number."""
        self.controller = controller
        self.meter = meter
        self.fronted = fronted
        self.source: str | None = None
        """What its policy comes from, for a sentence; None for what has no more to say than its name."""
        self.decision: Decision | None = None
        self.rescale: Rescale | None = None
        self.on_decision: Callable[[], None] | None = None
        """Called after each decision, and when replicas, an override or a conflict have changed."""
        self._wall = wall
        self._log = structlog.get_logger("vllm_chill.scaling")
        self._policy: Policy | None = None
        self._override: Override | None = None
        self._claimed: str | None = None
        self._rivalry = rivals.Rivalry()
        self._conflict: str | None = None
        self._adopted = self._is_blind = False
        self._state = State()
        self._replicas: int | None = None
        self._was_ready = False
        self._due = -math.inf
        self._floor = 0
        self._base = controller.limits
        self._bounded: Limits | None = None
        self._news = asyncio.Event()
        controller.on_seen = self._noticed

    # What it is told.

    @property
    def policy(self) -> Policy | None:
        """What it is scaled by; None: nothing is recommended, and its life is as its model or the settings say."""
        return self._policy

    @policy.setter
    def policy(self, policy: Policy | None) -> None:
        before, self._policy = self._policy, policy
        if policy == before:
            return
        if policy is None or before is None or policy.name != before.name:
            self._state = State()
        if policy is None:
            self.decision = self._override = None
            self.controller.recommend(_SOURCE, None)
        self.controller.demand = None if policy is None else self._demand
        self._decide_anew()

    @property
    def override(self) -> Override | None:
        """What somebody asked for by hand, while it holds."""
        if self._override is not None and not self._override.holds(self.controller.now()):
            return None
        return self._override

    def adjust(self, replicas: int, by: str, ttl_seconds: float) -> Override:
        """Have so many replicas for so long, whatever is measured; if it sleeps, from its next wake on.

        Raises BadRequest for a number outside of the policy's bounds, or where there is no policy.
        """
        policy = self._policy
        if policy is None:
            raise BadRequest(
                f"{self.name} has no scaling policy, so the number of its replicas is not decided here; give it one, "
                "or scale it with kubectl."
            )
        least, most = max(1, policy.min_replicas), policy.max_replicas
        if not least <= replicas <= most:
            bounds = f"{least}" if least == most else f"from {least} to {most}"
            raise BadRequest(f"{self.name} has {bounds} replicas by its policy, and {replicas} is outside of that.")
        now = self.controller.now()
        override = Override(replicas, by, now, now + ttl_seconds)
        self._log.info("adjusted", target=self.name, replicas=replicas, by=by, for_seconds=ttl_seconds)
        self.restore(override)
        return override

    def release(self) -> None:
        """End what was asked for by hand."""
        self.restore(None)

    def restore(self, override: Override | None) -> None:
        """Have what was asked for by hand before, or nothing."""
        self._override = override
        self._decide_anew()
        self._tell()

    def claimed(self, by: str | None) -> None:
        """Take that an object says that somebody else scales the target, as a clause; None: none does any more."""
        if by != self._claimed:
            self._claimed = by
            self._review_conflict()

    # What it says.

    @property
    def conflict(self) -> str | None:
        """Who else scales the target, as a clause; None while nobody does."""
        if self._policy is None or self.controller.observe_only:
            return None
        return self._claimed or self._rivalry.conflict(self.controller.now())

    def readings(self) -> Readings:
        """All that a decision rests on, at this moment."""
        signals = {rule.signal for rule in self._policy.rules} if self._policy is not None else set()
        target = self.controller.target
        return Readings(
            self.controller.now(),
            target.observed.replicas if target.observed is not None else 0,
            tuple(self.meter.members(signals)),
            self.meter.of_target(signals),
            target.waiting + target.shared.waiting,
            self.room(),
        )

    # What it does.

    async def run(self) -> None:
        """Decide at each turn while the target is awake, until cancelled."""
        while True:
            self._news.clear()
            wait = self._look()
            try:
                async with asyncio.timeout(wait):
                    await self._news.wait()
            except TimeoutError:
                continue

    def _look(self) -> float | None:
        """Do what is due; in how many seconds something may be due again, None if not before there is news."""
        now, policy, phase = self.controller.now(), self._policy, self.controller.target.phase
        self._floor = 0 if policy is None else scheduled(policy, self._wall())
        self._review_conflict()
        self._review_override(now)
        self._bound_life()
        if not isinstance(phase, Ready):
            if not isinstance(phase, Waking | Unknown):
                self._rest()
            return _LOOK_SECONDS if self._changes_by_itself else None
        if self.meter.busy:
            self.controller.used()
        if policy is None:
            return _LOOK_SECONDS
        if now >= self._due:
            self._due = now + policy.polling_seconds
            self._decide(policy)
        return min(max(_LEAST_SECONDS, self._due - now), _LOOK_SECONDS)

    @property
    def _changes_by_itself(self) -> bool:
        policy = self._policy
        return self._conflict is not None or self._override is not None or bool(policy and policy.schedules)

    def _decide_anew(self) -> None:
        self._due = -math.inf
        self._news.set()

    def _rest(self) -> None:
        """It sleeps, or is about to: what was measured before it is of no use when it wakes."""
        self._state = State()
        self.decision = None
        self._adopted = False
        self.controller.recommend(_SOURCE, None)

    def _decide(self, policy: Policy) -> None:
        before = self.decision
        readings = self.readings()
        self.decision, self._state = decide(policy, self._state, readings, self._wall(), self.override)
        self._adopted = False
        self._recommend(self.decision)
        self._log_news(policy, self.decision, before, readings.replicas)
        self._tell()

    def _log_news(self, policy: Policy, decision: Decision, before: Decision | None, current: int) -> None:
        same = decision.replicas == (current if before is None else before.replicas)
        # Nothing has been measured yet when it has just woken.
        is_blind = not decision.measured and before is not None
        if same and is_blind == self._is_blind:
            return
        self._is_blind = is_blind
        self._log.info(
            "decided",
            target=self.name,
            replicas=decision.replicas,
            before=current,
            policy=policy.name,
            trail=[f"{said.stage}: {said.replicas}, {said.reason}" for said in decision.trail],
            **({} if self._conflict is None else {"not_written": self._conflict}),
        )

    def _recommend(self, decision: Decision) -> None:
        if self.controller.observe_only:
            return
        hands_off = self._conflict is not None or (self._is_paused and self.override is None)
        self.controller.recommend(_SOURCE, None if hands_off else decision.replicas)

    @property
    def _is_paused(self) -> bool:
        return self._policy is not None and self._policy.paused

    def _demand(self, held: int) -> int:
        """How many replicas so many held callers wake; none besides the one if that is for somebody else to say."""
        policy, override = self._policy, self.override
        if policy is None or self._conflict is not None or self._adopted or self.controller.observe_only:
            return 0
        asked = override.replicas if override is not None else demand(policy, held, self._floor)
        room = self.room()
        return asked if room is None else min(asked, max(1, room))

    def _bound_life(self) -> None:
        """Have its limits be as the policy says, over what its model or the settings say."""
        if not self.fronted or self.controller.observe_only:
            return
        limits = self.controller.limits
        if limits is not self._bounded:
            self._base = limits
        wanted = self._wanted_life()
        if wanted != limits:
            self._bounded = self.controller.limits = wanted

    def rebase(self, limits: Limits) -> None:
        """Have its limits be these, but for what a policy says of them: that never ceases to hold in between."""
        self._base = limits
        is_bound = self.fronted and not self.controller.observe_only
        self._bounded = self.controller.limits = self._wanted_life() if is_bound else limits

    def _wanted_life(self) -> Limits:
        policy = self._policy
        if policy is None:
            return self._base
        # Where an object says that it scales from 1 on, to sleep and to wake is still ours.
        is_shared = self._claimed is not None and not self._is_kept_awake(policy)
        is_ours = self._conflict is None or (is_shared and self._rivalry.conflict(self.controller.now()) is None)
        return self._life(policy) if is_ours and not policy.paused else _left_alone(self._base)

    def _life(self, policy: Policy) -> Limits:
        if self._is_kept_awake(policy):
            return replace(self._base, idle_seconds=math.inf, always_on=True)
        idle = self._base.idle_seconds if policy.idle_seconds is None else policy.idle_seconds
        return replace(self._base, idle_seconds=idle, always_on=False)

    def _is_kept_awake(self, policy: Policy) -> bool:
        return max(policy.min_replicas, self._floor) > 0

    # What it sees.

    def _noticed(self) -> None:
        """Take that what is seen of the target, or its phase, has changed. Called before the controller writes."""
        target = self.controller.target
        if target.observed is not None:
            before, self._replicas = self._replicas, target.observed.replicas
            if before is not None and before != self._replicas:
                self._rescaled(before, self._replicas, target)
        is_ready = isinstance(target.phase, Ready)
        if is_ready != self._was_ready:
            self._was_ready = is_ready
            self._decide_anew()

    def _rescaled(self, before: int, after: int, target: Target) -> None:
        now, decision = self.controller.now(), self.decision
        by = rivals.written_by(target)
        decided = by is None and decision is not None and decision.replicas == after
        if by is None:
            self._rivalry = rivals.written_here(self._rivalry)
        elif self._policy is not None and not self.controller.observe_only:
            # What they wrote stays until the next decision; so two who disagree take turns, and no quick ones.
            self._adopted = True
            self.controller.recommend(_SOURCE, None)
            self._rivalry = rivals.wrote(self._rivalry, target.observed.replicas_by if target.observed else None, now)
        # A period of the policy's pace begins with the decision, so that the next one but a period later is past it.
        at = decision.at if decided and decision is not None and now - decision.at < self._polling else now
        self._state = scaled(self._state, before, after, at)
        why = decision.reason if decided and decision is not None else _why_awake(before, after, by)
        self.rescale = Rescale(before, after, now, by, why)
        self._review_conflict()
        self._tell()

    @property
    def _polling(self) -> float:
        return 0.0 if self._policy is None else self._policy.polling_seconds

    def _review_conflict(self) -> None:
        before, self._conflict = self._conflict, self.conflict
        if self._conflict == before:
            return
        if self._conflict is not None:
            self._log.warning("scaling conflict", target=self.name, cause=self._conflict)
            self.controller.recommend(_SOURCE, None)
        else:
            self._log.info("scaling conflict is over", target=self.name)
        self._decide_anew()
        self._tell()

    def _review_override(self, now: float) -> None:
        if self._override is not None and not self._override.holds(now):
            self._log.info("adjustment has ended", target=self.name, replicas=self._override.replicas)
            self.release()

    def _tell(self) -> None:
        if self.on_decision is not None:
            self.on_decision()


class Autoscalers(Mapping[str, Autoscaler]):
    """The autoscalers of one proxy, by the name of their target."""

    def __init__(self) -> None:
        self._by_name: dict[str, Autoscaler] = {}
        self.on_change: Callable[[], None] | None = None
        """Called when there is one more, or one less."""

    def __getitem__(self, name: str) -> Autoscaler:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._by_name))

    def __len__(self) -> int:
        return len(self._by_name)

    def add(self, autoscaler: Autoscaler) -> None:
        """Have one more, in place of one of the same name."""
        self._by_name[autoscaler.name] = autoscaler
        self.review()

    def remove(self, name: str) -> None:
        """No longer have it; nothing happens if there is none."""
        if self._by_name.pop(name, None) is not None:
            self.review()

    def find(self, name: str) -> Autoscaler | None:
        """The one of a target by its name, or as NAMESPACE/NAME; None if there is none."""
        found = self._by_name.get(name)
        named = (each for each in self._by_name.values() if str(each.controller.target.ref) == name)
        return found or next(named, None)

    def review(self) -> None:
        """Take that there are others than before, or that what a model says of its replicas may have changed."""
        if self.on_change is not None:
            self.on_change()


def _left_alone(base: Limits) -> Limits:
    """Limits by which it neither sleeps nor wakes by itself."""
    return replace(base, idle_seconds=math.inf, always_on=False)


def _why_awake(before: int, after: int, by: str | None) -> str:
    if by is not None:
        return f"{by} wrote it"
    if not after:
        return "it is put to sleep"
    return "it is woken" if not before else "its callers ask for as many"
