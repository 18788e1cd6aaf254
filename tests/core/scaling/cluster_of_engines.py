"""Engines under a load, with a scaler in the loop: requests come at random, wait, run and end; replicas take their time
to start. Small and fast, so that a thousand histories of an hour can be played.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

from tests.core.scaling.readings import LONG_AGO, QUEUE, RUNNING, WALL
from vllm_chill.core.scaling.decide import State, decide, scaled
from vllm_chill.core.scaling.policy import Policy
from vllm_chill.core.scaling.signals import Readings, ReplicaReading, Sample

POLL_SECONDS = 15.0


@dataclass(slots=True)
class Engines:
    """`seats` requests run at a time in each replica, for `service_seconds` on average; a replica is ready after
    `start_seconds`. Every measurement is off by up to a part `noise` of it.
    """

    random: Random
    seats: int
    service_seconds: float
    start_seconds: float
    noise: float = 0.0
    began: list[float] = field(default_factory=lambda: [LONG_AGO])
    waiting: int = 0
    running: float = 0.0

    def ready(self, now: float) -> int:
        return sum(began + self.start_seconds <= now for began in self.began)

    def scale(self, replicas: int, now: float) -> None:
        """The youngest go first, as they are the ones with the fewest requests."""
        self.began = [*self.began[:replicas], *[now] * (replicas - len(self.began))]

    def pass_time(self, seconds: float, arrivals_per_second: float, now: float) -> None:
        mean = arrivals_per_second * seconds
        self.waiting += max(0, round(self.random.gauss(mean, math.sqrt(mean))))
        turnover = seconds / self.service_seconds
        served = min(self.waiting, round(self.ready(now) * self.seats * turnover))
        self.waiting -= served
        self.running = served / turnover  # on average over the time, by Little's law

    def read(self, now: float) -> Readings:
        ready = self.ready(now)
        members = tuple(self._read(began, ready, now) for began in self.began)
        return Readings(now, len(self.began), members, held=0 if ready else self.waiting)

    def _read(self, began: float, ready: int, now: float) -> ReplicaReading:
        if began + self.start_seconds > now:
            return ReplicaReading("starting", None)
        loads = {QUEUE: self.waiting / ready, RUNNING: self.running / ready}
        samples = {signal: Sample(self._measured(value), now) for signal, value in loads.items()}
        return ReplicaReading("ready", began + self.start_seconds, samples)

    def _measured(self, value: float) -> float:
        return max(0.0, value * (1 + self.random.uniform(-self.noise, self.noise)))


def play(policy: Policy, engines: Engines, arrivals: Callable[[float], float], seconds: float) -> list[int]:
    """The replicas that were decided on, poll by poll."""
    state, decided, now = State(), [], 0.0
    while now < seconds:
        engines.pass_time(POLL_SECONDS, arrivals(now), now)
        decision, state = decide(policy, state, engines.read(now), WALL)
        state = scaled(state, len(engines.began), decision.replicas, now)
        engines.scale(decision.replicas, now)
        decided.append(decision.replicas)
        now += POLL_SECONDS
    return decided


def turns(replicas: Sequence[int]) -> int:
    """How often a number that grew shrank next, or the other way round."""
    moves = [after - before for before, after in pairwise(replicas) if after != before]
    return sum((one > 0) != (other > 0) for one, other in pairwise(moves))
