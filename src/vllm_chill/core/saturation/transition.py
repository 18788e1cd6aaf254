"""What was decided for a variant, and how far its target and its replicas have come since. Pure.

The rule: a variant that is on its way counts as having arrived, until it has taken too long; from then on it counts as
what it is, and no other variant waits for it. What somebody else asks of a target is taken for decided.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from vllm_chill.core.cold_start import duration
from vllm_chill.core.saturation.decision import Step
from vllm_chill.core.saturation.fleet import Variant

_HPA_TOLERANCE = 0.1  # HPA leaves a target as it is that is this near (horizontal-pod-autoscaler-tolerance)


@dataclass(frozen=True, slots=True)
class Decided:
    """What is remembered of one variant: so many `replicas` were decided, and `seen` is what its target was asked to
    have when it was last looked at, None if it was not since a restart. It is on its way since `since`, or has arrived
    as of then. `refused` is 1 if its target did not follow when it was to grow, -1 if it did not when it was to
    shrink, and 0 once it has changed.
    """

    replicas: int
    seen: int | None
    since: float
    refused: int = 0


@dataclass(frozen=True, slots=True)
class Place:
    """Where one variant is: `arrived`: what was decided, what its target is asked to have and what is ready are one.
    `late`: they are not, and have not been for too long.
    """

    variant: Variant
    decided: Decided
    arrived: bool
    late: bool
    waited_seconds: float = 0.0

    @property
    def anticipated(self) -> int:
        """How many replicas it counts as."""
        if self.late:
            return self.variant.ready
        return max(self.variant.replicas, self.decided.replicas)

    @property
    def base(self) -> int:
        """The number that growth is added to. A step that HPA took for too small stands, for the next to be larger."""
        if self.late and self._lacks_pods:
            return self.anticipated
        return max(self.decided.replicas, self.anticipated)

    @property
    def going(self) -> int:
        """How many of those that are ready, and counted, will go by what was decided before."""
        return max(0, min(self.variant.ready, self.anticipated) - self.decided.replicas)

    @property
    def grows_last(self) -> bool:
        """Whether others are to grow before it, for replicas that it was to get have not come."""
        return self.decided.refused > 0 or (self.late and self._lacks_pods)

    @property
    def shrinks_last(self) -> bool:
        """Whether others are to shrink before it, for replicas of it that were to go have not gone."""
        return self.decided.refused < 0

    @property
    def may_shrink(self) -> bool:
        """Whether more of its replicas may go."""
        return self.arrived or self.late

    @property
    def starting(self) -> bool:
        """Whether replicas of it are on their way and may still come."""
        return not self.arrived and not self.late and self.variant.ready < self.anticipated

    def step(self, timeout: float) -> Step | None:
        """What there is to say of it, nothing if it has arrived."""
        if self.arrived:
            return None
        variant, decided = self.variant, self.decided.replicas
        what = f"{decided} decided, {variant.replicas} asked for, {variant.ready} ready"
        if self.late:
            text = f"{what} for more than {duration(timeout)}, so it counts as {self.anticipated}"
        else:
            text = f"{what} since {duration(self.waited_seconds)}, so it counts as {self.anticipated} for now"
        return Step("collect", text, decided)

    @property
    def _lacks_pods(self) -> bool:
        return self.variant.ready < self.variant.replicas


def place(variant: Variant, before: Decided | None, timeout: float, now: float) -> Place:
    """Where the variant is, by what was remembered of it; `timeout` is how long it may be on its way, in seconds."""
    decided = _followed(variant, before, now)
    if variant.ready == variant.replicas == decided.replicas:
        return Place(variant, replace(decided, since=now), arrived=True, late=False)
    waited = now - decided.since
    if waited < timeout:
        return Place(variant, decided, arrived=False, late=False, waited_seconds=waited)
    if decided.replicas != variant.replicas and not _swallowed(decided.replicas, variant.replicas):
        refused = 1 if decided.replicas > variant.replicas else -1
        decided = replace(decided, replicas=variant.replicas, refused=refused)
    arrived = variant.ready == decided.replicas
    return Place(variant, decided, arrived=arrived, late=not arrived, waited_seconds=waited)


def untouched(variant: Variant, before: Decided | None, now: float) -> Decided:
    """What was decided, whatever somebody else asks of its target."""
    if before is None:
        return Decided(variant.replicas, variant.replicas, now)
    return replace(before, seen=variant.replicas)


def adopted(place: Place, now: float) -> Place:
    """What its target is asked to have, taken for decided."""
    variant = place.variant
    arrived = variant.ready == variant.replicas
    return Place(variant, Decided(variant.replicas, variant.replicas, now), arrived=arrived, late=False)


def _followed(variant: Variant, before: Decided | None, now: float) -> Decided:
    new = Decided(variant.replicas, variant.replicas, now)
    if before is None:
        return new
    if before.seen is None:  # whether it sleeps is not ours to undo after a restart
        return new if bool(before.replicas) != bool(variant.replicas) else replace(before, seen=variant.replicas)
    if variant.replicas == before.seen:
        return before
    towards = sorted((before.seen, before.replicas))
    if towards[0] <= variant.replicas <= towards[1]:
        return replace(before, seen=variant.replicas, since=now, refused=0)
    return new


def _swallowed(decided: int, replicas: int) -> bool:
    return replicas > 0 and abs(decided / replicas - 1) <= _HPA_TOLERANCE
