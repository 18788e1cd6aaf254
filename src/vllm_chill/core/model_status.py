"""What a model's object says of it in its status: phase, conditions, figures, and a sentence. Pure.

The rule: the status is read off what is, every time anew; of the status before, only the times are kept that say since
when something is so. Times are seconds on the clock of the target's phases, but for `at`, which is a text as
Kubernetes has times.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from vllm_chill.core.catalogue import Clash
from vllm_chill.core.cold_start import doing
from vllm_chill.core.objects import Json
from vllm_chill.core.target import Draining, Failed, Limits, Queued, Ready, SleepReason, Target, Unknown, Waking

USED_SECONDS = 60.0
"""How much later a last use must be to be worth a write of its own."""


@dataclass(frozen=True, slots=True)
class Condition:
    """Something that is so or not, or (None) not known. `reason` is one word for programs, `message` a sentence."""

    type: str
    status: bool | None
    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class Memory:
    """What is remembered of a target's life: since when it is waking, how long its last wake took, when it was last
    used (or became ready); None for what is not known.
    """

    waking_since: float | None = None
    last_wake_seconds: float | None = None
    last_used: float | None = None

    def seen(self, target: Target, limits: Limits, now: float) -> Memory:
        """What is remembered once the target has been looked at."""
        match target.phase:
            case Waking(since=since, confirmed=confirmed):
                # One that was found awake and starting has begun before anybody looked.
                known = self.waking_since is not None or not confirmed
                return replace(self, waking_since=since if known and self.waking_since is None else self.waking_since)
            case Ready(since=since, idle_since=idle_since):
                woken = self
                if self.waking_since is not None:
                    woken = replace(self, waking_since=None, last_wake_seconds=since - self.waking_since)
                return replace(woken, last_used=now if target.in_flight or target.waiting else idle_since)
            case Draining(since=since, reason=SleepReason.IDLE):
                idle_since = since - limits.idle_seconds
                return replace(self, waking_since=None, last_used=max(idle_since, self.last_used or idle_since))
            case Draining() if target.in_flight:
                return replace(self, waking_since=None, last_used=now)
            case _:
                return replace(self, waking_since=None)


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a model. `problems` are those of its spec as it is now; `runs` says whether it, or an earlier
    version of it, is served, and `warnings` are about that. `workload` is the condition UpToDate. `last_used` is a
    text as Kubernetes has times.
    """

    problems: tuple[str, ...]
    runs: bool
    deleting: bool
    target: Target | None
    workload: Condition
    clashes: tuple[Clash, ...] = ()
    last_wake_seconds: float | None = None
    last_used: str | None = None
    warnings: tuple[str, ...] = ()


def status_of(facts: Facts, before: Mapping[str, Any], generation: int, at: str) -> Json:
    """The status to write; `before` is the one that is there, `at` the time now."""
    seen = facts.target.observed if facts.target is not None else None
    status: Json = {
        "phase": _phase(facts),
        "message": _message(facts),
        "observedGeneration": generation,
        "replicas": seen.live if seen is not None else 0,
        "conditions": conditions_since(_conditions(facts), before.get("conditions") or (), generation, at),
    }
    if facts.last_wake_seconds is not None:
        status["lastWakeSeconds"] = round(facts.last_wake_seconds, 1)
    if facts.last_used is not None:
        status["lastUsed"] = facts.last_used
    return status


def is_worth_writing(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether a status says something else than the one before; a last use that is a little later is nothing else."""
    if any(before.get(key) != value for key, value in after.items() if key != "lastUsed"):
        return True
    used, was_used = after.get("lastUsed"), before.get("lastUsed")
    if used is None or used == was_used:
        return False
    return was_used is None or abs(_time(used) - _time(was_used)) >= USED_SECONDS


def _time(text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0


def _phase(facts: Facts) -> str:
    if facts.deleting:
        return "Deleting"
    if not facts.runs:
        return "Invalid" if facts.problems else "Failed"
    return "Unknown" if facts.target is None else type(facts.target.phase).__name__


def _message(facts: Facts) -> str:
    says: list[str] = []
    if facts.problems:
        kept = "; its earlier version is served" if facts.runs else ""
        says.append(f"its spec is not accepted{kept}: {'; '.join(facts.problems)}")
    if facts.runs and facts.target is not None:
        says.append(_doing(facts.target))
    if facts.workload.status is False and not facts.problems:
        says.append(facts.workload.message)
    if facts.clashes:
        says.append(_clash(facts.clashes))
    return "; ".join(filter(None, says))


def _doing(target: Target) -> str:
    match target.phase:
        case Unknown(cause=str(cause)):
            return cause
        case Failed(cause=cause):
            return cause.rstrip(".")
        case Queued():
            return target.held_back or ""
        case Waking(trouble=trouble):
            progress = target.observed.progress if target.observed is not None else None
            words = doing(progress) if progress is not None else "waiting for a replica"
            return f"{words}; the last trouble was: {trouble}" if trouble else words
        case Draining(reason=reason):
            return reason.value
        case _:
            return ""


def _conditions(facts: Facts) -> tuple[Condition, ...]:
    if facts.problems:
        valid = Condition("Valid", False, "SpecNotAccepted", "; ".join(facts.problems))
    else:
        valid = Condition("Valid", True, "SpecAccepted", "; ".join(facts.warnings))
    clash = Condition("Clash", False, "NamesAreItsOwn")
    if facts.clashes:
        clash = Condition("Clash", True, "NamesTaken", _clash(facts.clashes))
    return valid, facts.workload, _available(facts), clash


def _available(facts: Facts) -> Condition:
    phase = _phase(facts)
    if facts.deleting or not facts.runs or facts.target is None:
        unknown = phase == "Unknown"
        return Condition("Available", None if unknown else False, "NotSeenYet" if unknown else phase)
    match facts.target.phase:
        case Unknown():
            return Condition("Available", None, "NotSeenYet", _doing(facts.target))
        case Ready():
            return Condition("Available", True, "Ready")
        case _:
            return Condition("Available", False, phase, _doing(facts.target))


def _clash(clashes: Iterable[Clash]) -> str:
    claims = ", ".join(f'"{clash.name}" is the name of {clash.owner}, which is older' for clash in clashes)
    return f"it is not served under every name: {claims}"


def conditions_since(
    conditions: Sequence[Condition], before: Iterable[Mapping[str, Any]], generation: int, at: str
) -> list[Json]:
    """Conditions as objects have them; one whose status is as in `before` has been so since then, any other since
    `at`.
    """
    known = {condition.get("type"): condition for condition in before}
    told = []
    for condition in conditions:
        status = "Unknown" if condition.status is None else str(condition.status)
        was = known.get(condition.type, {})
        since = was.get("lastTransitionTime") if was.get("status") == status else None
        told.append(
            {
                "type": condition.type,
                "status": status,
                "reason": condition.reason,
                "message": condition.message,
                "lastTransitionTime": since or at,
                "observedGeneration": generation,
            }
        )
    return told
