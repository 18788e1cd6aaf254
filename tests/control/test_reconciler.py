"""The work loop over keys, on loop time: laws over random histories, then its rhythm."""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import looptime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_chill.control.reconciler import Reconciler, Rhythm, pause_seconds
from vllm_chill.errors import BackendError, BackendRefused, BackendUnavailable

pytestmark = pytest.mark.looptime(start=100)

RHYTHM = Rhythm(pause_first_seconds=1, pause_most_seconds=8, resync_seconds=1000)
KEYS = "abc"


@dataclass
class Visits:
    """What is visited: each visit takes `seconds`, and fails while `failing` says so of its key."""

    seconds: float = 0.0
    failing: set[str] = field(default_factory=set)
    begun: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    under_way: set[str] = field(default_factory=set)
    answer: float | None = None

    async def __call__(self, key: str) -> float | None:
        assert key not in self.under_way, "two visits of one key at a time"
        self.begun[key].append(asyncio.get_running_loop().time())
        self.under_way.add(key)
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.under_way.discard(key)
        if key in self.failing:
            raise BackendUnavailable("it is away")
        return self.answer


@asynccontextmanager
async def running(visit: Callable[[str], Awaitable[float | None]], workers: int = 4) -> AsyncIterator[Reconciler]:
    reconciler = Reconciler(visit, workers=workers, rhythm=RHYTHM, chance=lambda: 0.0)
    task = asyncio.create_task(reconciler.run())
    try:
        yield reconciler
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


@dataclass(frozen=True)
class Named:
    """A key is named after a pause; `stops_failing` or begins to."""

    pause: float
    key: str
    failing: bool


HISTORIES = st.lists(
    st.builds(Named, st.sampled_from([0.0, 0.1, 0.5, 3.0]), st.sampled_from(KEYS), st.booleans()), max_size=30
)


@pytest.mark.looptime(False)  # each history has a loop of its own
@given(history=HISTORIES, seconds=st.sampled_from([0.0, 0.2, 1.0]), workers=st.integers(1, 3))
@settings(max_examples=200, deadline=None)
def test_no_key_is_lost_and_none_is_visited_twice_at_a_time(history: list[Named], seconds: float, workers: int) -> None:
    async def live() -> None:
        visits, named = Visits(seconds), {}
        async with running(visits, workers=workers) as reconciler:
            for event in history:
                await asyncio.sleep(event.pause)
                (visits.failing.add if event.failing else visits.failing.discard)(event.key)
                named[event.key] = asyncio.get_running_loop().time()
                reconciler.add(event.key)
            await asyncio.sleep(len(KEYS) * 2 * seconds + 0.001)
            for key, time in named.items():
                assert visits.begun[key][-1] >= time
            visits.failing.clear()
            await asyncio.sleep(RHYTHM.pause_most_seconds + len(KEYS) * 2 * seconds + 0.001)
            quiet = {key: len(begun) for key, begun in visits.begun.items()}
            await asyncio.sleep(RHYTHM.resync_seconds / 2)
            assert quiet == {key: len(begun) for key, begun in visits.begun.items()}

    with asyncio.Runner(loop_factory=lambda: looptime.new_event_loop(start=0)) as runner:
        runner.run(live())


@given(failures=st.integers(1, 10_000), chance=st.floats(0, 1))
def test_the_pause_grows_to_its_bound_and_never_goes_below_half(failures: int, chance: float) -> None:
    pause = pause_seconds(RHYTHM, failures, chance)
    assert RHYTHM.pause_first_seconds / 2 <= pause <= RHYTHM.pause_most_seconds
    assert pause_seconds(RHYTHM, failures + 1, chance) >= pause


async def test_many_changes_of_a_key_are_one_visit() -> None:
    visits = Visits(1)
    async with running(visits) as reconciler:
        for _ in range(100):
            reconciler.add("a")
        await asyncio.sleep(0.5)
        for _ in range(100):
            reconciler.add("a")
        await asyncio.sleep(5)
        assert visits.begun["a"] == [100, 101]


async def test_a_key_that_fails_is_tried_again_after_longer_and_longer_pauses() -> None:
    visits, told = Visits(failing={"a"}), []

    def failed(key: str, error: BackendError, pause: float) -> None:
        told.append((key, error.message, pause))

    reconciler = Reconciler(visits, rhythm=RHYTHM, failed=failed, chance=lambda: 0.0)
    task = asyncio.create_task(reconciler.run())
    reconciler.add("a")
    await asyncio.sleep(30)
    assert visits.begun["a"] == [100, 101, 103, 107, 115, 123]
    assert told[:3] == [("a", "it is away", 1), ("a", "it is away", 2), ("a", "it is away", 4)]
    visits.failing.clear()
    await asyncio.sleep(5)
    visits.failing.add("a")
    reconciler.add("a")
    await asyncio.sleep(1.5)
    assert visits.begun["a"][-2:] == [135, 136]
    task.cancel()
    await asyncio.wait([task])


async def test_keys_that_fail_do_not_hold_up_others() -> None:
    visits = Visits(failing=set("bcdefghij"))
    async with running(visits, workers=2) as reconciler:
        for key in "bcdefghija":
            reconciler.add(key)
        await asyncio.sleep(0.01)
        assert visits.begun["a"] == [100]


async def test_a_key_in_its_pause_that_is_named_is_visited_at_once() -> None:
    visits = Visits(failing={"a"})
    async with running(visits) as reconciler:
        reconciler.add("a")
        await asyncio.sleep(0.2)
        reconciler.add("a")
        await asyncio.sleep(0.1)
        assert visits.begun["a"] == pytest.approx([100, 100.2])


async def test_a_key_is_looked_at_again_when_its_visit_asks_for_it_or_at_the_resync() -> None:
    visits = Visits(answer=5)
    async with running(visits) as reconciler:
        reconciler.add("a")
        await asyncio.sleep(4)
        visits.answer = None
        await asyncio.sleep(RHYTHM.resync_seconds + 2)
        assert visits.begun["a"] == [100, 105, 1105]
        visits.answer = math.inf
        await asyncio.sleep(10 * RHYTHM.resync_seconds)
        assert visits.begun["a"] == [100, 105, 1105, 2105]


async def test_the_sooner_of_two_times_counts() -> None:
    visits = Visits(answer=math.inf)
    async with running(visits) as reconciler:
        reconciler.add_after("a", 9)
        reconciler.add_after("a", 3)
        reconciler.add_after("a", 6)
        await asyncio.sleep(20)
        assert visits.begun["a"] == [103]


async def test_a_bug_with_one_key_ends_nothing() -> None:
    seen = []

    async def visit(key: str) -> float | None:
        seen.append(key)
        if key == "a":
            raise KeyError("status")
        return None

    async with running(visit) as reconciler:
        reconciler.add("a")
        reconciler.add("b")
        await asyncio.sleep(1.5)
        assert seen == ["a", "b", "a"]


async def test_what_asking_again_will_not_change_is_asked_again_all_the_same() -> None:
    calls = []

    async def visit(key: str) -> float | None:
        calls.append(key)
        raise BackendRefused("no such right")

    async with running(visit) as reconciler:
        reconciler.add("a")
        await asyncio.sleep(3.5)
        assert len(calls) == 3
