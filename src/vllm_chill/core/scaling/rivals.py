"""Others who write a target's number of replicas, and when that is a conflict. Pure.

The rule: one write of somebody else's is adopted until the next decision, and is no more than that. What writes again
and again is a conflict, and so is one write of a tool that is known to: then nothing is written here until it has been
quiet for a while, and longer each time that it was not over yet. So there is never an endless fight.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from vllm_chill.core.target import Draining, SleepReason, Target

WRITES = 3
WINDOW_SECONDS = 300.0
"""So many writes within that time are a conflict, whoever does them."""
SLOW_WINDOW_SECONDS = 3600.0
"""And so many within that, if each of them takes back what was written here."""
QUIET_SECONDS = 600.0
"""How long nobody else may have written for a first conflict to be over; it doubles with each that follows."""
_QUIET_MOST_SECONDS = 86400.0
_REMEMBERED_SECONDS = 86400.0
_SOMEBODY = "somebody else"

# Field managers as they are told: HPA is a part of the controller manager; a client that does not name itself is called
# by the first part of its user agent.
_TOOLS = {
    "kube-controller-manager": "a HorizontalPodAutoscaler",
    "hpa-controller": "a HorizontalPodAutoscaler",
    "keda": "KEDA",
    "keda-operator": "KEDA",
    "argocd": "Argo CD",
    "argocd-controller": "Argo CD",
    "argocd-application-controller": "Argo CD",
    "gitops-engine": "Argo CD",
    "kustomize-controller": "Flux",
    "helm-controller": "Flux",
    "fleetagent": "Rancher Fleet",
    "fleet-agent": "Rancher Fleet",
    "config-sync": "Config Sync",
    "configsync.gke.io": "Config Sync",
    "workload-variant-autoscaler": "the Workload Variant Autoscaler",
    "knative": "Knative",
}


@dataclass(frozen=True, slots=True)
class _Write:
    at: float
    undid: bool


@dataclass(frozen=True, slots=True)
class Rivalry:
    """What was seen of other writers. `quiet_until` is when the last conflict is over, or was; None before the first.

    `quiet_seconds` is how long that one asks for; `by` is who wrote last, and `ours` says whether it was written here
    since.
    """

    writes: tuple[_Write, ...] = ()
    by: str | None = None
    ours: bool = False
    since: float | None = None
    quiet_until: float | None = None
    quiet_seconds: float = QUIET_SECONDS

    def conflict(self, now: float) -> str | None:
        """Who else writes, as a clause; None while that is no conflict."""
        if self.quiet_until is None or now >= self.quiet_until:
            return None
        return f"{named(self.by)} scales it too"


def named(by: str | None) -> str:
    """A field manager, for a sentence."""
    tool = _tool(by)
    if tool is not None:
        return f"{tool} ({by})"
    return by or _SOMEBODY


def wrote(rivalry: Rivalry, by: str | None, now: float) -> Rivalry:
    """What is known once somebody else has written a number; `by` is their field manager, None if it is not told."""
    kept = tuple(write for write in rivalry.writes if now - write.at < SLOW_WINDOW_SECONDS)
    seen = replace(rivalry, writes=(*kept, _Write(now, rivalry.ours)), by=by, ours=False)
    if rivalry.conflict(now) is not None:
        return replace(seen, quiet_until=now + rivalry.quiet_seconds)
    again = rivalry.quiet_until is not None and now - rivalry.quiet_until < _REMEMBERED_SECONDS
    if not (again or _tool(by) is not None or _is_often(seen.writes, now)):
        return seen
    quiet = min(rivalry.quiet_seconds * 2, _QUIET_MOST_SECONDS) if again else QUIET_SECONDS
    return replace(seen, since=now, quiet_until=now + quiet, quiet_seconds=quiet)


def written_here(rivalry: Rivalry) -> Rivalry:
    """What is known once a number was written here: what somebody else writes next takes it back."""
    return rivalry if rivalry.ours else replace(rivalry, ours=True)


def written_by(target: Target) -> str | None:
    """Who else wrote the number of replicas that is seen, None if it was us, as far as can be told."""
    seen = target.observed
    assert seen is not None
    if seen.replicas in (target.sent, target.recommended):
        return None
    if seen.replicas_by is not None:
        return named(seen.replicas_by)
    if not seen.replicas:
        elsewhere = isinstance(target.phase, Draining) and target.phase.reason is SleepReason.ELSEWHERE
        return named(None) if elsewhere else None
    return named(None)


def _is_often(writes: tuple[_Write, ...], now: float) -> bool:
    soon = sum(now - write.at < WINDOW_SECONDS for write in writes)
    return soon >= WRITES or sum(write.undid for write in writes) >= WRITES


def _tool(by: str | None) -> str | None:
    return None if by is None else _TOOLS.get(by.partition("/")[0].lower())
