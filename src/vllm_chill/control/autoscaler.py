"""How many replicas one target has while it is awake: what is measured of it, its policy, and a decision at each turn.

The rule: a decision is `core.scaling.decide` of what is at that moment, and it is only recommended; the controller
writes. Between 0 and 1 the controller decides by itself. Times are seconds on the clock of the phases.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Protocol

from vllm_chill.core.scaling.decision import Decision
from vllm_chill.core.scaling.override import Override
from vllm_chill.core.scaling.policy import Policy
from vllm_chill.core.scaling.signals import Readings, ReplicaReading, Sample, Signal
from vllm_chill.core.target import Limits, Target
from vllm_chill.errors import BadRequest


class Controlled(Protocol):
    """The part of a ScaleController that an autoscaler has to do with."""

    limits: Limits
    demand: Callable[[int], int] | None

    @property
    def target(self) -> Target: ...
    def now(self) -> float: ...
    def recommend(self, source: str, replicas: int | None) -> None: ...
    def used(self) -> None: ...
    async def changed(self, within_seconds: float) -> None: ...


class Measures(Protocol):
    """The part of a Meter that decisions rest on."""

    def members(self, signals: Collection[Signal]) -> Sequence[ReplicaReading]: ...
    def of_target(self, signals: Collection[Signal]) -> Mapping[Signal, Sample]: ...
    @property
    def busy(self) -> bool: ...


class Autoscaler:
    """One target's. `run` must be running for anything to happen; it ends by cancellation.

    `name` is what the target is called in the API. `decision` is the last one, None before the first.
    """

    def __init__(self, name: str, controller: Controlled, meter: Measures, *, wall: Callable[[], datetime]) -> None:
        self.name = name
        self.controller = controller
        self.meter = meter
        self.decision: Decision | None = None
        self.on_decision: Callable[[], None] | None = None
        """Called after each decision, and when an override or a conflict has begun or ended."""
        self._wall = wall
        self._policy: Policy | None = None
        self._override: Override | None = None

    @property
    def policy(self) -> Policy | None:
        """What it is scaled by; None: nothing is recommended."""
        return self._policy

    @policy.setter
    def policy(self, policy: Policy | None) -> None:
        self._policy = policy

    @property
    def override(self) -> Override | None:
        """What somebody asked for by hand, while it holds."""
        if self._override is not None and not self._override.holds(self.controller.now()):
            return None
        return self._override

    @property
    def conflict(self) -> str | None:
        """Who else scales the target, as a sentence without a full stop; None while nobody does."""
        return None

    def readings(self) -> Readings:
        """All that a decision rests on, at this moment."""
        signals = {rule.signal for rule in self._policy.rules} if self._policy is not None else set()
        target = self.controller.target
        return Readings(
            self.controller.now(),
            target.observed.replicas if target.observed is not None else 0,
            tuple(self.meter.members(signals)),
            self.meter.of_target(signals),
            target.waiting,
        )

    def adjust(self, replicas: int, by: str, ttl_seconds: float) -> Override:
        """Have so many replicas for so long, whatever is measured; from its next wake on if it sleeps.

        Raises BadRequest for a number outside of the policy's bounds, or where there is no policy.
        """
        policy = self._policy
        if policy is None:
            raise BadRequest(f"{self.name} has no scaling policy, so the number of its replicas cannot be adjusted.")
        least, most = max(1, policy.min_replicas), policy.max_replicas
        if not least <= replicas <= most:
            raise BadRequest(f"{self.name} has from {least} to {most} replicas by its policy; {replicas} is outside.")
        now = self.controller.now()
        self._override = Override(replicas, by, now, now + ttl_seconds)
        return self._override

    def release(self) -> None:
        """End what was asked for by hand."""
        self._override = None

    async def run(self) -> None:
        """Decide at each turn while the target is awake, until cancelled."""
        raise NotImplementedError


class Autoscalers(Mapping[str, Autoscaler]):
    """The autoscalers of one proxy, by the name of their target."""

    def __init__(self) -> None:
        self._by_name: dict[str, Autoscaler] = {}

    def __getitem__(self, name: str) -> Autoscaler:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._by_name))

    def __len__(self) -> int:
        return len(self._by_name)

    def add(self, autoscaler: Autoscaler) -> None:
        """Have one more, in place of one of the same name."""
        self._by_name[autoscaler.name] = autoscaler

    def remove(self, name: str) -> None:
        """No longer have it; nothing happens if there is none."""
        self._by_name.pop(name, None)

    def find(self, name: str) -> Autoscaler | None:
        """The one of a target by its name, or as NAMESPACE/NAME; None if there is none."""
        found = self._by_name.get(name)
        named = (each for each in self._by_name.values() if str(each.controller.target.ref) == name)
        return found or next(named, None)
