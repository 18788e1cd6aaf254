"""Which models may be awake together, whose turn it is, and who makes room. Pure.

The rule: nobody who has a GPU is asked to give it up while it answers: it is put to sleep once nobody uses it, and
after a wait that has become too long it takes no new requests, so that those it has can end. So a switch cuts no
stream, and two callers who take turns do not spend the GPU on loading.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_BUDGET = re.compile(r"(?:([^=,\s]+)\s*=\s*)?([0-9]{1,6})")


@dataclass(frozen=True, slots=True)
class Claim:
    """What a model needs to be awake. At most one of a `group` is; `gpus` are taken from `pool`. `kept`: it is never
    put to sleep for another.
    """

    name: str
    group: str | None = None
    gpus: int = 1
    pool: str = ""
    kept: bool = False


@dataclass(frozen=True, slots=True)
class Standing:
    """How a model is at one moment. Times are seconds on one clock.

    `holds`: something of it runs or may yet, so that its GPUs are taken; the claim's are then those of all its
    replicas. `wants_since`: it waits for its turn since
    then. `ready_since` and `unused_since` are None where it is not ready, or is used. `leaving`: it is on its way out.
    """

    claim: Claim
    holds: bool = False
    wants_since: float | None = None
    ready_since: float | None = None
    unused_since: float | None = None
    leaving: bool = False


@dataclass(frozen=True, slots=True)
class Rules:
    """`budgets` has the GPUs of each pool that is bounded. Times in seconds."""

    residency_seconds: float = 60.0
    most_wait_seconds: float = 300.0
    budgets: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now: those in `start` may be woken; those in `leave` are to give way, each for a model that waits.
    `waits_for` names for each that goes on waiting those that are in its way. `look_again_at`: when time alone will
    change this.
    """

    start: tuple[str, ...] = ()
    leave: Mapping[str, str] = field(default_factory=dict)
    waits_for: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    look_again_at: float | None = None


def parse_gpu_budget(text: str) -> dict[str, int]:
    """GPUs by pool from `8` (the pool with no name) or `a100=8,l4=4`; none from an empty text. Raises ValueError."""
    budgets: dict[str, int] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        found = _BUDGET.fullmatch(item)
        if found is None:
            raise ValueError(f"{item!r} is neither a number nor POOL=NUMBER")
        budgets[found[1] or ""] = int(found[2])
    return budgets


def contends(claim: Claim, rules: Rules) -> bool:
    """Whether this model can be in another's way, so that it has to wait for its turn."""
    return claim.group is not None or claim.pool in rules.budgets


def too_large(claim: Claim, rules: Rules) -> str | None:
    """Why a model can never be woken under these rules, as a clause without a full stop; None if it can."""
    budget = rules.budgets.get(claim.pool)
    if budget is None or claim.gpus <= budget:
        return None
    pool = f" in pool {claim.pool}" if claim.pool else ""
    return f"it needs {claim.gpus} GPUs, and --gpu-budget has {budget}{pool}"


def excludes(one: Claim, other: Claim, rules: Rules) -> bool:
    """Whether these two can never be awake together."""
    if one.group is not None and one.group == other.group:
        return True
    budget = rules.budgets.get(one.pool)
    if budget is None or one.pool != other.pool or not one.gpus or not other.gpus:
        return False
    return one.gpus + other.gpus > budget


def most_replicas(claim: Claim, others: Sequence[Standing], rules: Rules) -> int | None:
    """How many replicas this model may have beside the others as they are; None for any number, and never none.

    What another one that waits would need is left for it, so that replicas give way to models.
    """
    budget = rules.budgets.get(claim.pool)
    if budget is None or not claim.gpus:
        return None
    in_pool = (one for one in others if one.claim.pool == claim.pool)
    wanted = sum(one.claim.gpus for one in in_pool if one.holds or one.wants_since is not None)
    return max(1, (budget - wanted) // claim.gpus)


def plan(standings: Sequence[Standing], rules: Rules, now: float) -> Plan:
    """Who may be woken at `now`, and who gives way for whom. Those that wait are served in the order that they came.

    A model that cannot be woken under the rules at all is passed over.
    """
    turn = _Turn(standings, rules, now)
    wanting = (one for one in standings if one.wants_since is not None and not one.holds)
    for one in sorted(wanting, key=lambda one: (one.wants_since, one.claim.name)):
        if too_large(one.claim, rules) is None:
            turn.take(one)
    again = None if turn.look_again_at == math.inf else turn.look_again_at
    return Plan(tuple(turn.start), turn.leave, turn.waits_for, again)


class _Turn:
    """One plan in the making. `_taken` has those whose GPUs are not free, the ones that start now among them;
    `_ahead` those that wait and came earlier.
    """

    def __init__(self, standings: Sequence[Standing], rules: Rules, now: float) -> None:
        self.start: list[str] = []
        self.leave: dict[str, str] = {}
        self.waits_for: dict[str, tuple[str, ...]] = {}
        self.look_again_at = math.inf
        self._rules = rules
        self._now = now
        self._taken = [one for one in standings if one.holds]
        self._ahead: list[Standing] = []

    def take(self, one: Standing) -> None:
        """Start it, or have it wait and see to it that it can be started later."""
        rivals = [other for other in self._taken if self._same_group(one, other)]
        before = [other for other in self._ahead if self._is_before(one, other)]
        crowd = self._crowd(one)
        if not rivals and not before and not crowd:
            self.start.append(one.claim.name)
            self._taken.append(one)
            return
        if not before:
            for rival in rivals:
                self._ask(rival, one, forced=True)
            for other in self._evicted(one, [other for other in crowd if other not in rivals]):
                self._ask(other, one, forced=False)
        in_the_way = dict.fromkeys(other.claim.name for other in (*before, *rivals, *crowd))
        self.waits_for[one.claim.name] = tuple(in_the_way)
        self._ahead.append(one)

    def _same_group(self, one: Standing, other: Standing) -> bool:
        return one.claim.group is not None and one.claim.group == other.claim.group

    def _is_before(self, one: Standing, other: Standing) -> bool:
        """Whether `other`, which waits too, is first: always in a group, and in a pool once it has waited too long."""
        if self._same_group(one, other):
            return True
        same_pool = one.claim.pool == other.claim.pool and one.claim.pool in self._rules.budgets
        return same_pool and self._has_waited(other)

    def _crowd(self, one: Standing) -> list[Standing]:
        """Those in its pool, if there is no room for it beside them."""
        budget = self._rules.budgets.get(one.claim.pool)
        if budget is None or not one.claim.gpus:
            return []
        crowd = [other for other in self._taken if other.claim.pool == one.claim.pool and other.claim.gpus]
        return crowd if sum(other.claim.gpus for other in crowd) + one.claim.gpus > budget else []

    def _evicted(self, one: Standing, crowd: list[Standing]) -> list[Standing]:
        """Whom to put to sleep for it: the longest unused one that is enough, or as many of the longest as are."""
        if not crowd:
            return []
        budget = self._rules.budgets[one.claim.pool]
        in_pool = (other for other in self._taken if other.claim.pool == one.claim.pool)
        free = budget - sum(other.claim.gpus for other in in_pool if not self._is_leaving(other))
        lacking = one.claim.gpus - free
        if lacking <= 0:
            return []  # it is on its way already
        unused = [
            other
            for other in crowd
            if other.unused_since is not None and not other.claim.kept and not self._is_leaving(other)
        ]
        unused.sort(key=lambda other: (other.unused_since, other.claim.name))
        for other in unused:
            if other.claim.gpus >= lacking:
                return [other]
        chosen: list[Standing] = []
        for other in unused:
            chosen.append(other)
            lacking -= other.claim.gpus
            if lacking <= 0:
                return chosen
        return []  # not even all of them are enough: nobody sleeps for nothing

    def _is_leaving(self, one: Standing) -> bool:
        return one.leaving or one.claim.name in self.leave

    def _ask(self, holder: Standing, one: Standing, *, forced: bool) -> None:
        """Have a holder give way, now or when it is time; `forced`: also while it is used, after a wait."""
        if self._is_leaving(holder) or holder.claim.kept or holder.claim.name in self.start:
            return
        if holder.unused_since is None and (not forced or holder.ready_since is None):
            return
        at = self._now if holder.ready_since is None else holder.ready_since + self._rules.residency_seconds
        if holder.unused_since is None:
            assert one.wants_since is not None
            at = max(at, one.wants_since + self._rules.most_wait_seconds)
        if at <= self._now:
            self.leave[holder.claim.name] = one.claim.name
        else:
            self.look_again_at = min(self.look_again_at, at)

    def _has_waited(self, one: Standing) -> bool:
        assert one.wants_since is not None
        at = one.wants_since + self._rules.most_wait_seconds
        if at > self._now:
            self.look_again_at = min(self.look_again_at, at)
        return at <= self._now
