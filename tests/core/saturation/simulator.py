"""Variants under a load, with the decider in the loop: requests are served as fast as the replicas can, and wait where
they cannot; replicas take their time to start, and whoever scales them takes its time to follow. Small and fast, so
that a thousand histories of hours can be played.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from random import Random

from vllm_chill.core.saturation.config import Config
from vllm_chill.core.saturation.decide import Memory, granted, propose
from vllm_chill.core.saturation.decision import ModelDecision
from vllm_chill.core.saturation.fleet import Fleet, ReplicaLoad, Variant, Zero

CYCLE_SECONDS = 30.0
LONG_AGO = -1e6


@dataclass(slots=True)
class Cluster:
    """The replicas of some variants, and the requests of one model. A capacity of 1 serves `rate` requests per second,
    at which its KV cache is full; what is served is spread over the replicas by their capacity. A replica is ready
    `start_seconds` after it was asked for, which is `follow_seconds` after it was decided. Every measurement is off by
    up to a part `noise` of it, and `lost` of them are missing.
    """

    random: Random
    variants: Sequence[Variant]
    start_seconds: float = 0.0
    follow_seconds: float = 0.0
    noise: float = 0.0
    lost: float = 0.0
    rate: float = 1.0
    zero: Zero = field(default_factory=Zero)
    began: dict[str, list[float]] = field(default_factory=dict)
    decided: list[tuple[float, Mapping[str, int]]] = field(default_factory=list)
    waiting: float = 0.0
    served: float = 0.0
    active_at: float | None = None
    woken_at: float | None = None

    def __post_init__(self) -> None:
        self.began = {one.key: [LONG_AGO] * one.replicas for one in self.variants}

    def ready(self, key: str, now: float) -> int:
        return sum(began + self.start_seconds <= now for began in self.began[key])

    def capacity(self, now: float) -> float:
        """What the replicas that are ready take on."""
        return sum(one.capacity * self.ready(one.key, now) for one in self.variants)

    def cost(self) -> float:
        return sum(one.cost * len(self.began[one.key]) for one in self.variants)

    def scale(self, key: str, replicas: int, now: float) -> None:
        """Those that are not ready go first, as they are the youngest."""
        before = self.began[key]
        if replicas and not any(self.began.values()):
            self.woken_at = now
        self.began[key] = [*before[:replicas], *[now] * (replicas - len(before))]

    def decide(self, decision: ModelDecision, now: float) -> None:
        self.decided.append((now, {key: one.replicas for key, one in decision.variants.items()}))
        due = [numbers for at, numbers in self.decided if at + self.follow_seconds <= now]
        self.decided = [one for one in self.decided if one[0] + self.follow_seconds > now]
        for numbers in due[-1:]:
            for key, replicas in numbers.items():
                if replicas != len(self.began[key]):
                    self.scale(key, replicas, now)

    def pass_time(self, seconds: float, load: float, now: float) -> None:
        """Requests come for a capacity of `load`."""
        most = self.capacity(now) * self.rate * seconds
        self.waiting += load * self.rate * seconds
        done = min(self.waiting, most)
        self.waiting -= done
        self.served = done / most if most else 0.0
        if load > 0 or self.waiting > 1e-9:
            self.active_at = now

    def fleet(self, now: float) -> Fleet:
        seen = tuple(self._seen(one, now) for one in self.variants)
        held = 0.0 if any(one.ready for one in seen) else self.waiting
        return Fleet("prod", "chat", seen, held, self.active_at, self.woken_at, self.zero)

    def _seen(self, variant: Variant, now: float) -> Variant:
        key, ready = variant.key, self.ready(variant.key, now)
        loads = (self._load(f"{key}-{index}", variant.capacity, now) for index in range(ready))
        told = tuple(load for load in loads if self.random.random() >= self.lost)
        return replace(variant, replicas=len(self.began[key]), ready=ready, loads=told)

    def _load(self, name: str, capacity: float, now: float) -> ReplicaLoad:
        queue = self.waiting * capacity / self.capacity(now)
        return ReplicaLoad(
            name,
            kv=min(1.0, self._measured(self.served)),
            queue=self._measured(queue),
            running=self.served * capacity * 10,
            age_seconds=5.0,
        )

    def _measured(self, value: float) -> float:
        return max(0.0, value * (1 + self.random.uniform(-self.noise, self.noise)))


@dataclass(slots=True)
class History:
    """What was decided, cycle by cycle, and what it cost."""

    decisions: list[ModelDecision] = field(default_factory=list)
    numbers: list[dict[str, int]] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)

    @property
    def totals(self) -> list[int]:
        return [sum(numbers.values()) for numbers in self.numbers]


def play(
    config: Config,
    cluster: Cluster,
    load: Callable[[float], float],
    seconds: float,
    *,
    memory: Memory | None = None,
    start: float = 0.0,
) -> tuple[History, Memory]:
    """What was decided while so many seconds passed; `load` is the capacity that requests ask for at a time."""
    history, memory, now = History(), memory or Memory(), start
    while now < start + seconds:
        cluster.pass_time(CYCLE_SECONDS, load(now), now)
        decision, memory = propose(config, cluster.fleet(now), memory, now)
        memory = granted(memory, decision, now)
        cluster.decide(decision, now)
        history.decisions.append(decision)
        history.numbers.append({key: one.replicas for key, one in decision.variants.items()})
        history.costs.append(cluster.cost())
        now += CYCLE_SECONDS
    return history, memory


def turns(numbers: Iterable[int]) -> int:
    """How often a number that grew shrank next, or the other way round."""
    moves = [after - before for before, after in pairwise(numbers) if after != before]
    return sum((one > 0) != (other > 0) for one, other in pairwise(moves))
