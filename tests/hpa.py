"""What a HorizontalPodAutoscaler makes of one external metric: kube-controller-manager's arithmetic, as values.

It has what an external metric goes through in pkg/controller/podautoscaler of Kubernetes 1.33: the ratio and its
tolerance, the stabilization windows, the policies, the bounds. Versions before differ by `Tolerance.before_1_33`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

SYNC_SECONDS = 15.0
"""How often it looks: --horizontal-pod-autoscaler-sync-period."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """By what part a metric may be off its target before anything is done about it."""

    up: float = 0.1
    down: float = 0.1
    before_1_33: bool = False
    """A metric that is off by just a tenth is near enough since 1.33; before, in floats, 0.9 was and 1.1 was not."""

    def swallows(self, ratio: float) -> bool:
        """Whether this ratio of what is to what should be counts as 1."""
        if self.before_1_33:
            return abs(1.0 - ratio) <= self.up
        return 1.0 - self.down <= ratio <= 1.0 + self.up


@dataclass(frozen=True, slots=True)
class Policy:
    """By how much it may change within a period."""

    kind: str
    value: int
    period: float


@dataclass(frozen=True, slots=True)
class Rules:
    """One direction of its behavior."""

    window: float
    policies: tuple[Policy, ...]
    select: str = "Max"

    @classmethod
    def of(cls, given: dict[str, Any], window: float, policies: tuple[Policy, ...]) -> Self:
        """From a manifest; what it leaves out is as the API server fills it in."""
        told = [Policy(one["type"], one["value"], one["periodSeconds"]) for one in given.get("policies", ())]
        return cls(
            given.get("stabilizationWindowSeconds", window), tuple(told) or policies, given.get("selectPolicy", "Max")
        )


_ALL = Policy("Percent", 100, 15)
UP = Rules(0, (Policy("Pods", 4, 15), _ALL))
DOWN = Rules(300, (_ALL,))


@dataclass(frozen=True, slots=True)
class Autoscaler:
    """What a HorizontalPodAutoscaler says, with one external metric; and what it remembers, both oldest first:
    (when, replicas asked for) and (when, by how many it was changed).
    """

    kind: str = "AverageValue"
    target: float = 1.0
    least: int = 1
    most: int = 10
    up: Rules = UP
    down: Rules = DOWN
    tolerance: Tolerance = field(default_factory=Tolerance)
    asks: tuple[tuple[float, int], ...] = ()
    changes: tuple[tuple[float, int], ...] = ()

    @classmethod
    def of(cls, manifest: dict[str, Any]) -> Self:
        """From a manifest of autoscaling/v2, or from a ScaledObject of KEDA, which makes such a one of it."""
        spec = manifest["spec"]
        if manifest["kind"] == "ScaledObject":
            [trigger] = spec["triggers"]
            kind, target = trigger["metricType"], trigger["metadata"]["threshold"]
            behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
            # What is between 0 and 1 is KEDA's own matter.
            least, most = max(1, spec["minReplicaCount"]), spec["maxReplicaCount"]
        else:
            [metric] = spec["metrics"]
            kind = metric["external"]["target"]["type"]
            target = metric["external"]["target"][kind[0].lower() + kind[1:]]
            behavior, least, most = spec["behavior"], spec["minReplicas"], spec["maxReplicas"]
        up = Rules.of(behavior.get("scaleUp", {}), UP.window, UP.policies)
        down = Rules.of(behavior.get("scaleDown", {}), DOWN.window, DOWN.policies)
        return cls(kind, float(target), least, most, up, down)

    def asked(self, metric: float, current: int, ready: int | None = None) -> int:
        """How many replicas the metric alone asks for, of which `ready` are ready (all of them, if not given)."""
        if self.kind == "AverageValue":
            near = current > 0 and self.tolerance.swallows(metric / (self.target * current))
            return current if near else math.ceil(metric / self.target)
        ratio = metric / self.target
        if current == 0:
            return math.ceil(ratio)
        return current if self.tolerance.swallows(ratio) else math.ceil(ratio * (current if ready is None else ready))

    def look(self, now: float, metric: float | None, current: int, ready: int | None = None) -> tuple[int, Self]:
        """How many replicas there are to be, and what it remembers then. `metric` None: it cannot be had."""
        if current == 0 and self.least > 0:
            return 0, self  # ScalingDisabled
        if not self.least <= current <= self.most:
            return self._changed(now, current, min(max(current, self.least), self.most))
        if metric is None:
            return current, self
        wanted = self.asked(metric, current, ready)
        after = replace(self, asks=(*self.asks, (now, wanted)))
        low = min([wanted, *(n for at, n in self.asks if at > now - self.up.window)])
        high = max([wanted, *(n for at, n in self.asks if at > now - self.down.window)])
        steady = min(max(current, low), high)
        return after._changed(now, current, self._paced(now, current, steady))

    def _changed(self, now: float, current: int, replicas: int) -> tuple[int, Self]:
        if replicas == current:
            return current, self
        return replicas, replace(self, changes=(*self.changes, (now, replicas - current)))

    def _paced(self, now: float, current: int, wanted: int) -> int:
        if wanted > current:
            allowed = [_above(self._began(now, current, one), one) for one in self.up.policies]
            limit = {"Max": max(allowed), "Min": min(allowed), "Disabled": current}[self.up.select]
            return min(wanted, self.most, max(current, limit))
        allowed = [_below(self._began(now, current, one), one) for one in self.down.policies]
        limit = {"Max": min(allowed), "Min": max(allowed), "Disabled": current}[self.down.select]
        return max(wanted, self.least, min(current, limit))

    def _began(self, now: float, current: int, policy: Policy) -> int:
        """How many there were when the period began."""
        return current - sum(by for at, by in self.changes if at > now - policy.period)


def _above(began: int, policy: Policy) -> int:
    return began + policy.value if policy.kind == "Pods" else math.ceil(began * (1 + policy.value / 100))


def _below(began: int, policy: Policy) -> int:
    return began - policy.value if policy.kind == "Pods" else int(began * (1 - policy.value / 100))


def course(autoscaler: Autoscaler, metrics: Sequence[float | None], current: int) -> tuple[int, ...]:
    """How many replicas there are after each look, if all are ready by the next."""
    numbers = []
    for i, metric in enumerate(metrics):
        current, autoscaler = autoscaler.look(i * SYNC_SECONDS, metric, current)
        numbers.append(current)
    return tuple(numbers)
