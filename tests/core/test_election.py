"""Who leads: laws over random worlds, in which clocks drift and jump and calls are late, lost or half done."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vllm_chill.core.election import (
    Acquire,
    Candidate,
    Record,
    Renew,
    Terms,
    Wait,
    decide,
    observe,
    release,
    resigned,
    written,
)

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
TERMS = Terms(15, 10, 2)
EVENTS = ["die", "leave", "join", "storm", "calm"]


@dataclass
class Store:
    """A Lease that writes are compared and set on. `None` for a version is none."""

    record: Record | None = None
    version: int | None = None

    def write(self, version: int | None, record: Record) -> int | None:
        """The new version; None if it is another one by now."""
        if version != self.version:
            return None
        self.record, self.version = record, (self.version or 0) + 1
        return self.version


@dataclass(frozen=True)
class Pause:
    """So many seconds of the candidate's own clock."""

    seconds: float


@dataclass(frozen=True)
class Call:
    """Something to be done at the store; what is answered is None if nobody answers in time."""

    do: Callable[[Store], object]


Life = Generator[Pause | Call, object, None]


@dataclass
class Weather:
    """How calls fare at a time: each way takes up to `delay` seconds, and a part of them is lost on it."""

    random: Random
    delay: float
    lost: float

    def way(self) -> float | None:
        return None if self.random.random() < self.lost else self.random.uniform(0, self.delay)


@dataclass
class Actor:
    """A candidate that lives by its decisions, on a steady clock that runs at `rate` from `start`, and on a wall clock
    that shows anything.
    """

    world: World
    me: Candidate
    rate: float
    start: float
    version: int | None = None
    alive: bool = True
    leaving: bool = False
    stamped: datetime = NOON - timedelta(days=1)

    def now(self) -> float:
        return self.start + self.world.time * self.rate

    def wall(self) -> datetime:
        """A wall clock that is set by up to an hour, either way, and at times stands still; never the same twice."""
        random = self.world.random
        shown = NOON + timedelta(seconds=self.world.time + random.choice([0, random.uniform(-3600, 3600)]))
        self.stamped = max(shown, self.stamped + timedelta(microseconds=1))
        return self.stamped

    @property
    def leads(self) -> bool:
        return self.alive and self.me.leads(self.now())

    def live(self) -> Life:
        """As control.election does it."""
        while not self.leaving:
            if (self.version is None or not self.leads) and not (yield from self.read()):
                yield Pause(2)
                continue
            match decide(self.me, self.now(), self.wall()):
                case Wait(seconds):
                    yield Pause(max(seconds, 0.01))
                case Acquire(record) | Renew(record):
                    begun = self.now()
                    if (yield from self.write(record)):
                        self.me = written(self.me, record, begun)
                    yield Pause(2)
        self.me = resigned(self.me)
        given_back = release(self.me, self.wall())
        if given_back is not None:
            yield from self.write(given_back)

    def read(self) -> Generator[Call, object, bool]:
        answer = yield Call(lambda store: (store.version, store.record))
        if not isinstance(answer, tuple):
            return False
        self.version = answer[0]
        self.me = observe(self.me, answer[1], self.now())
        return True

    def write(self, record: Record) -> Generator[Call, object, bool]:
        version = self.version
        answer = yield Call(lambda store: (store.write(version, record),))
        self.version = answer[0] if isinstance(answer, tuple) else version
        return isinstance(answer, tuple) and answer[0] is not None


@dataclass
class World:
    """Everything that happens, in its order, in seconds of no clock."""

    random: Random
    weather: Weather
    store: Store = field(default_factory=Store)
    time: float = 0.0
    actors: list[Actor] = field(default_factory=list)
    led: list[tuple[float, str]] = field(default_factory=list)
    _events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _order: itertools.count[int] = field(default_factory=itertools.count)

    def at(self, time: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._order), do))

    def join(self, name: str, rate: float) -> Actor:
        actor = Actor(self, Candidate(name, TERMS), rate, self.random.uniform(0, 1e6))
        self.actors.append(actor)
        life = actor.live()
        self.at(self.time, lambda: self._go_on(actor, life, None))
        return actor

    def _go_on(self, actor: Actor, life: Life, answer: object) -> None:
        if not actor.alive:
            return
        try:
            step = life.send(answer)
        except StopIteration:
            return
        match step:
            case Pause(seconds):
                self.at(self.time + seconds / actor.rate, lambda: self._go_on(actor, life, None))
            case Call(do):
                self._call(actor, life, do)

    def _call(self, actor: Actor, life: Life, do: Callable[[Store], object]) -> None:
        answered = False

        def answer(what: object) -> None:
            nonlocal answered
            if not answered:
                answered = True
                self._go_on(actor, life, what)

        def arrive() -> None:
            what = do(self.store)
            back = self.weather.way()
            if back is not None:
                self.at(self.time + back, lambda: answer(what))

        self.at(self.time + TERMS.call_seconds / actor.rate, lambda: answer(None))
        there = self.weather.way()
        if there is not None:
            self.at(self.time + there, arrive)

    def run(self, until: float) -> None:
        while self._events and self._events[0][0] <= until:
            self.time, _, do = heapq.heappop(self._events)
            do()
            leaders = [actor.me.identity for actor in self.actors if actor.leads]
            assert len(leaders) <= 1, f"{leaders} lead at {self.time}"
            if leaders and (not self.led or self.led[-1][1] != leaders[0]):
                self.led.append((self.time, leaders[0]))
        self.time = until

    @property
    def leader(self) -> Actor | None:
        return next((actor for actor in self.actors if actor.leads), None)


def a_world(seed: int, *, delay: float, lost: float, drift: float, candidates: int = 3) -> World:
    random = Random(seed)
    world = World(random, Weather(random, delay, lost))
    for i in range(candidates):
        world.join(f"c{i}", random.uniform(1 - drift, 1 + drift))
    return world


@given(
    seed=st.integers(0, 2**32),
    delay=st.sampled_from([0.01, 0.5, 4.0, 12.0]),
    lost=st.sampled_from([0.0, 0.1, 0.4]),
    events=st.lists(
        st.tuples(st.floats(0, 40), st.sampled_from(["die", "leave", "join", "storm", "calm"])), max_size=8
    ),
)
@settings(max_examples=300, deadline=None)
def test_two_never_lead_at_a_time_and_one_does_once_it_is_calm(
    seed: int, delay: float, lost: float, events: list[tuple[float, str]]
) -> None:
    world = a_world(seed, delay=delay, lost=lost, drift=0.15)
    for number, (pause, what) in enumerate(events):
        world.run(world.time + pause)
        match what, world.leader:
            case "die", Actor() as leader:
                leader.alive = False
            case "leave", Actor() as leader:
                leader.leaving = True
            case "join", _:
                world.join(f"j{number}", world.random.uniform(0.85, 1.15))
            case "storm", _:
                world.weather.lost = 1.0
            case "calm", _:
                world.weather.lost = lost
    world.weather.lost, world.weather.delay = 0.0, 0.01
    world.join("last", 1.0)
    # What is under way is late by as much as it was before.
    world.run(world.time + delay)
    begun = len(world.led)
    world.run(world.time + (TERMS.lease_seconds + 2 * TERMS.retry_seconds + 2 * TERMS.call_seconds) / 0.85)
    assert world.leader is not None
    assert len(world.led) <= begun + 2


@given(seed=st.integers(0, 2**32), after=st.floats(0, 100))
@example(seed=0, after=0.0)
def test_when_the_leader_dies_another_leads_within_the_lease_and_one_period(seed: int, after: float) -> None:
    world = a_world(seed, delay=0.01, lost=0.0, drift=0.0)
    world.run(5 + after)
    leader = world.leader
    assert leader is not None
    assert [name for _, name in world.led] == [leader.me.identity], "the one that was first has led all the time"
    leader.alive = False
    world.run(world.time + TERMS.lease_seconds + TERMS.retry_seconds + 0.1)
    assert world.leader is not None


@given(seed=st.integers(0, 2**32))
def test_when_the_leader_leaves_another_leads_within_two_periods(seed: int) -> None:
    """One until the leader sees that it is to leave, and one until another one looks."""
    world = a_world(seed, delay=0.01, lost=0.0, drift=0.0)
    world.run(20)
    assert world.leader is not None
    world.leader.leaving = True
    world.run(world.time + 2 * TERMS.retry_seconds + 0.1)
    assert world.leader is not None
    assert len(world.led) == 2


def leader_at(now: float, *, identity: str = "a") -> Candidate:
    acquire = decide(Candidate(identity, TERMS), now, NOON)
    assert isinstance(acquire, Acquire)
    return written(Candidate(identity, TERMS), acquire.record, now)


def test_the_first_one_makes_the_lease() -> None:
    assert decide(Candidate("a", TERMS), 0, NOON) == Acquire(
        Record("a", 15, "2026-01-01T12:00:00.000000Z", "2026-01-01T12:00:00.000000Z", 0)
    )


def test_a_renewal_says_since_when_it_is_held() -> None:
    renew = decide(leader_at(0), 2, NOON + timedelta(seconds=2))
    assert renew == Renew(Record("a", 15, "2026-01-01T12:00:00.000000Z", "2026-01-01T12:00:02.000000Z", 0))


def test_it_leads_from_before_the_write_and_not_from_the_answer() -> None:
    leader = leader_at(100)
    assert leader.leads(109.9)
    assert not leader.leads(110)


def test_whoever_sees_a_lease_for_the_first_time_waits_for_all_of_it_whatever_its_times_say() -> None:
    old = Record("gone", 15, "2001-01-01T00:00:00.000000Z", "2001-01-01T00:00:00.000000Z", 4)
    candidate = observe(Candidate("a", TERMS), old, 100)
    assert decide(candidate, 100, NOON) == Wait(2)
    assert decide(observe(candidate, old, 114), 114, NOON) == Wait(1)
    acquire = decide(observe(candidate, old, 115), 115, NOON)
    assert isinstance(acquire, Acquire)
    assert (acquire.record.holder, acquire.record.transitions) == ("a", 5)


def test_a_lease_counts_for_as_long_as_its_holder_wrote() -> None:
    candidate = observe(Candidate("a", TERMS), Record("b", 60, renewed="x"), 0)
    assert decide(candidate, 59, NOON) == Wait(1)


def test_a_lease_that_says_no_duration_counts_for_ours() -> None:
    candidate = observe(Candidate("a", TERMS), Record("b", 0, renewed="x"), 0)
    assert decide(candidate, 14, NOON) == Wait(1)


def test_a_lease_that_was_given_back_is_taken_at_once() -> None:
    given_back = release(leader_at(0), NOON)
    assert given_back is not None
    assert (given_back.holder, given_back.lease_seconds) == ("", 1)
    assert isinstance(decide(observe(Candidate("b", TERMS), given_back, 0), 0, NOON), Acquire)


def test_what_another_holds_is_not_given_back() -> None:
    assert release(Candidate("a", TERMS), NOON) is None
    assert release(observe(leader_at(0), Record("b", 15, renewed="x"), 1), NOON) is None


def test_a_leader_that_sees_another_hold_the_lease_leads_no_more() -> None:
    seen = observe(leader_at(0), Record("b", 15, renewed="x"), 1)
    assert not seen.leads(1)
    assert decide(seen, 1, NOON) == Wait(2)


def test_a_leader_whose_lease_was_deleted_makes_it_again() -> None:
    assert isinstance(decide(observe(leader_at(0), None, 1), 1, NOON), Renew)


@pytest.mark.parametrize("seen", [Record("b", 15, renewed="x"), Record("a", 15, renewed="x"), Record("", 1)])
def test_whoever_sees_a_lease_deleted_waits_for_whoever_held_it_last(seen: Record) -> None:
    """Which need not be the one that was seen last."""
    candidate = observe(observe(Candidate("a", TERMS), seen, 0), None, 100)
    length = seen.lease_seconds
    assert isinstance(decide(candidate, 100 + length - 0.5, NOON), Wait)
    assert isinstance(decide(observe(candidate, None, 100 + length), 100 + length, NOON), Acquire)


def test_what_was_its_own_before_it_is_taken_at_once() -> None:
    late = resigned(leader_at(0))
    assert not late.leads(1)
    acquire = decide(late, 11, NOON)
    assert isinstance(acquire, Acquire)
    assert acquire.record.transitions == 0


@pytest.mark.parametrize(
    ("terms", "problem"),
    [
        ((10, 10, 2), r"the lease duration \(10 s\) must be longer than the renew deadline \(10 s\)"),
        ((15, 2.4, 2), r"the renew deadline \(2.4 s\) must be longer than 1.2 times the retry period \(2 s\)"),
        ((15, 10, 0), r"the retry period \(0 s\) must be longer than zero"),
    ],
)
def test_terms_that_cannot_work_are_told(terms: tuple[float, float, float], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Terms(*terms)


def test_a_lease_of_a_part_of_a_second_is_written_as_no_less() -> None:
    acquire = decide(Candidate("a", replace(TERMS, lease_seconds=14.2)), 0, NOON)
    assert isinstance(acquire, Acquire)
    assert acquire.record.lease_seconds == 15
