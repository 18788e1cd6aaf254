"""All controllers that share GPUs: whose turn it is to be awake, and who makes room.

The rule: what is to happen is `core.switching.plan` of how all of them are at this moment; here is only who tells it
and who carries it out. A model that can be in another's way is held back from the start, and each of its wakes is let
go one by one, so two that exclude each other are never woken together, whatever their callers do.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

from vllm_chill.control.controller import ScaleController
from vllm_chill.core.switching import Claim, Plan, Rules, Standing, contends, excludes, most_replicas, plan, too_large
from vllm_chill.core.target import Asleep, Draining, Failed, Queued, Ready, SleepReason, Waking

_TURN = "turn"
_ITS_TURN = "it waits for its turn on the GPUs"

Switched = Callable[[str, str, float, bool], None]
"""Told of a switch that is over: from which model, to which, the seconds it took, and whether it came off."""


@dataclass(slots=True)
class _Member:
    """`wants_since` outlasts callers that give up, so that those who come again have not lost their turn."""

    claim: Claim
    controller: ScaleController
    wants_since: float | None = None
    last_wanted: float = -math.inf
    replaces: tuple[str, float] | None = None


class Fleet:
    """The models of one proxy. `active` is the one that was last switched to, or that runs by the settings. `run` must
    be running.
    """

    def __init__(self, rules: Rules, switched: Switched = lambda *_: None) -> None:
        self.active: str | None = None
        self.changed: Callable[[str], None] | None = None
        """Called with the name of a model whose controller has changed."""
        self._rules = rules
        self._switched = switched
        self._members: dict[str, _Member] = {}
        self._waits_for: dict[str, tuple[str, ...]] = {}
        self._news = asyncio.Event()
        self._clock = asyncio.get_running_loop().time

    def add(self, claim: Claim, controller: ScaleController) -> None:
        """Have a model take part, or take part with another claim than before."""
        member = self._members.get(claim.name)
        if member is None or member.controller is not controller:
            self._members[claim.name] = _Member(claim, controller)
            controller.on_change = partial(self._changed, claim.name)
        else:
            member.claim = claim
        if contends(claim, self._rules):
            controller.hold_back(_TURN, _ITS_TURN)
        else:
            controller.let_go(_TURN)
        self._news.set()

    def remove(self, name: str) -> None:
        """Have a model no longer take part; what becomes of it is told on."""
        member = self._members.pop(name, None)
        if member is not None:
            member.controller.awaited = False
        self._news.set()

    def _changed(self, name: str) -> None:
        self._news.set()
        if self.changed is not None:
            self.changed(name)

    async def run(self) -> None:
        """Carry out the plans, until cancelled."""
        while True:
            self._news.clear()
            again = self._review()
            try:
                async with asyncio.timeout_at(again):
                    await self._news.wait()
            except TimeoutError:
                continue

    def waits_for(self, name: str) -> tuple[str, ...]:
        """The models that are in its way while it waits for its turn."""
        return self._waits_for.get(name, ())

    def rivals(self, name: str) -> tuple[str, ...]:
        """The models that can never be awake together with this one."""
        own = self._members[name].claim
        others = (member.claim for member in self._members.values() if member.claim.name != name)
        return tuple(claim.name for claim in others if excludes(own, claim, self._rules))

    def most_replicas(self, name: str) -> int | None:
        """How many replicas the GPU budget has room for, beside the models that are awake or wait; None for any."""
        member = self._members.get(name)
        if member is None:
            return None
        others = [_standing(other) for other in self._members.values() if other is not member]
        return most_replicas(member.claim, others, self._rules)

    async def switch(self, name: str, *, wake: bool, wait: bool) -> None:
        """Make a model the active one: the one before, and those that it excludes, sleep once their leases have ended.

        It is woken only with `wake`. With `wait` it returns once that is done; raises what ScaleController.wake does.
        """
        own, before = self._members[name], self.active
        self.active = name
        leaving = {other for other in (before, *self.rivals(name)) if other in self._members and other != name}
        for other in leaving:
            self._members[other].controller.give_way(SleepReason.SWITCHED)
        if wake:
            if before is not None and before != name and not isinstance(own.controller.target.phase, Waking | Ready):
                own.replaces = before, self._clock()
            await own.controller.wake(wait=wait)
        elif wait:
            await asyncio.gather(*(self._members[other].controller.brought_down() for other in leaving))

    def _review(self) -> float | None:
        now = self._clock()
        for member in self._members.values():
            self._note(member, now)
        decided = plan([_standing(member) for member in self._members.values()], self._rules, now)
        self._waits_for = dict(decided.waits_for)
        for name, beneficiary in decided.leave.items():
            if self._leads(name):
                self._members[beneficiary].replaces = name, now
                self._members[name].controller.give_way(SleepReason.SWITCHED)
        for name in decided.start:
            if self._leads(name):
                self._members[name].controller.let_go(_TURN)  # for one wake: `_tell` holds back the next one
        self._tell(decided)
        return decided.look_again_at

    def _leads(self, name: str) -> bool:
        """Whether it is for this proxy to say whose turn it is, and not for another one that serves the same models."""
        return self._members[name].controller.target.shared.leads

    def _note(self, member: _Member, now: float) -> None:
        """Take over since when it waits, and what became of the switch to it."""
        phase = member.controller.target.phase
        if isinstance(phase, Queued):
            why = too_large(member.claim, self._rules)
            if why is not None:
                member.controller.refuse_wake(why)
                return
            if member.wants_since is None or now - member.last_wanted > self._rules.most_wait_seconds:
                member.wants_since = phase.since
            member.last_wanted = now
        elif isinstance(phase, Ready):
            member.wants_since = None
        if member.replaces is not None and isinstance(phase, Ready | Failed):
            before, since = member.replaces
            member.replaces = None
            self._switched(before, member.claim.name, now - since, isinstance(phase, Ready))

    def _tell(self, decided: Plan) -> None:
        """Have those that wait know for whom, and those in the way say when they are unused."""
        in_the_way = {name for names in decided.waits_for.values() for name in names}
        for name, member in self._members.items():
            member.controller.awaited = name in in_the_way
            if contends(member.claim, self._rules):
                names = decided.waits_for.get(name)
                member.controller.hold_back(_TURN, _ITS_TURN if names is None else self._in_its_way(names))

    def _in_its_way(self, names: Iterable[str]) -> str:
        words = [self._how(self._members[name]) for name in names]
        return f"it waits for its turn on the GPUs: {', and '.join(words)}"

    def _how(self, member: _Member) -> str:
        name = member.claim.name
        match member.controller.target.phase:
            case Waking():
                return f"{name} is waking on them"
            case Ready():
                return f"{name} has them"
            case Queued():
                return f"{name} is before it"
            case _:
                return f"{name} is on its way to sleep"


def _standing(member: _Member) -> Standing:
    controller, phase = member.controller, member.controller.target.phase
    holds = controller.runs
    unused_since, shared = None, controller.target.shared
    if controller.unused and shared.told and not shared.in_use:
        match phase:
            case Ready(idle_since=since):
                unused_since = since
            case Waking(since=since, for_callers=True):
                unused_since = since
    claim = member.claim
    if holds and (replicas := controller.replicas) > 1:
        claim = replace(claim, gpus=claim.gpus * replicas)
    return Standing(
        claim,
        holds=holds,
        wants_since=member.wants_since if isinstance(phase, Queued) else None,
        ready_since=phase.since if isinstance(phase, Ready) else None,
        unused_since=unused_since,
        leaving=holds and isinstance(phase, Draining | Asleep | Queued | Failed),
    )
