"""The collecting of loads on loop time, from a source that answers when it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import pytest

from vllm_chill.control.loads import LoadCollector
from vllm_chill.core.saturation.fleet import ReplicaLoad
from vllm_chill.core.saturation.places import EngineLoad, LoadReading, PodPlace
from vllm_chill.core.target import Endpoint
from vllm_chill.errors import BackendUnavailable

pytestmark = pytest.mark.looptime(start=0)

A, B = PodPlace("a", Endpoint("10.0.0.1", 8000)), PodPlace("b", Endpoint("10.0.0.2", 8000))
LOAD = EngineLoad(kv=0.5, queue=0, running=0, successes=0)


@dataclass
class Source:
    """ports.LoadSource: it answers after `seconds`, with `reading` or an error. `asked` are the questions so far."""

    reading: LoadReading = field(default_factory=lambda: LoadReading({"a": LOAD, "b": LOAD}))
    seconds: float = 1.0
    error: Exception | None = None
    asked: list[tuple[str, ...]] = field(default_factory=list)
    given_up: int = 0
    asking: set[tuple[str, str]] = field(default_factory=set)

    async def read(self, namespace: str, pods: Sequence[PodPlace]) -> LoadReading:
        assert namespace in {"ns", "other"}
        self.asked.append(tuple(pod.name for pod in pods))
        places = {(namespace, str(pod)) for pod in pods}
        assert not self.asking & places
        self.asking |= places
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        finally:
            self.asking -= places
        if self.error is not None:
            raise self.error
        return self.reading


@dataclass
class Stage:
    source: Source = field(default_factory=Source)
    unasked: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        clock = asyncio.get_running_loop().time
        self.collector = LoadCollector(self.source, now=clock, unasked=lambda *pod: self.unasked.append(pod))

    def kv(self, *pods: PodPlace) -> dict[str, float | None]:
        return {load.name: load.kv for load in self.collector.loads("ns", pods)}


@pytest.fixture
async def stage() -> Stage:
    return Stage()


async def test_what_the_source_says_is_known_with_its_age_from_the_moment_of_the_answer(stage: Stage) -> None:
    await stage.collector.collect("ns", [A])
    await asyncio.sleep(10)
    expected = ReplicaLoad("a", 0.5, 0, 0, age_seconds=10)
    assert stage.collector.loads("ns", [A, B]) == (expected,)
    assert stage.collector.failure is None


async def test_within_the_time_to_live_nothing_is_asked_again(stage: Stage) -> None:
    await stage.collector.collect("ns", [A])
    await asyncio.sleep(3)
    await stage.collector.collect("ns", [A])
    assert stage.source.asked == [("a",)]
    await asyncio.sleep(30)
    await stage.collector.collect("ns", [A])
    assert stage.source.asked == [("a",), ("a",)]


async def test_one_that_is_asked_for_at_the_pace_of_the_time_to_live_is_asked_each_time(stage: Stage) -> None:
    for _ in range(4):
        await stage.collector.collect("ns", [A])
        await asyncio.sleep(29)
    assert stage.source.asked == [("a",)] * 4


async def test_callers_at_the_same_time_share_one_question(stage: Stage) -> None:
    await asyncio.gather(*(stage.collector.collect("ns", [A]) for _ in range(20)))
    assert stage.source.asked == [("a",)]
    assert stage.kv(A) == {"a": 0.5}


async def test_only_pods_that_are_not_being_asked_are_asked(stage: Stage) -> None:
    await asyncio.gather(stage.collector.collect("ns", [A]), stage.collector.collect("ns", [A, B]))
    assert stage.source.asked == [("a",), ("b",)]
    assert stage.kv(A, B) == {"a": 0.5, "b": 0.5}


async def test_pods_of_one_name_in_two_namespaces_are_two(stage: Stage) -> None:
    await stage.collector.collect("ns", [A])
    assert stage.collector.loads("other", [A]) == ()
    await stage.collector.collect("other", [A])
    assert stage.source.asked == [("a",), ("a",)]


async def test_a_caller_that_leaves_does_not_take_the_answer_from_others(stage: Stage) -> None:
    first = asyncio.create_task(stage.collector.collect("ns", [A]))
    second = asyncio.create_task(stage.collector.collect("ns", [A]))
    await asyncio.sleep(0.5)
    first.cancel()
    await second
    assert stage.kv(A) == {"a": 0.5}


async def test_a_question_that_nobody_waits_for_is_given_up_and_may_be_asked_again_at_once(stage: Stage) -> None:
    caller = asyncio.create_task(stage.collector.collect("ns", [A]))
    await asyncio.sleep(0.5)
    caller.cancel()
    await asyncio.wait([caller])
    await asyncio.sleep(0)
    assert stage.source.given_up == 1
    await stage.collector.collect("ns", [A])
    assert stage.kv(A) == {"a": 0.5}


@pytest.mark.parametrize("seed", range(5))
async def test_however_many_come_and_leave_no_pod_is_asked_twice_at_a_time_nor_too_often(
    seed: int, stage: Stage
) -> None:
    chance, places = Random(seed), [PodPlace(str(i), Endpoint("10.0.0.1", i)) for i in range(6)]
    stage.source.reading = LoadReading({place.name: LOAD for place in places}, failures={"5": "it is starting"})
    begins = dict[tuple[str, str], list[float]]()
    ask, clock = stage.source.read, asyncio.get_running_loop().time

    async def read(namespace: str, pods: Sequence[PodPlace]) -> LoadReading:
        begun = clock()
        reading = await ask(namespace, pods)
        for pod in pods:
            begins.setdefault((namespace, pod.name), []).append(begun)
        return reading

    stage.source.read = read  # type: ignore[method-assign]

    async def call() -> None:
        await asyncio.sleep(chance.uniform(0, 200))
        pods = chance.sample(places, chance.randint(0, 6))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(chance.choice([0.5, 10])):
                await stage.collector.collect(chance.choice(["ns", "other"]), pods)

    await asyncio.gather(*(call() for _ in range(200)))
    assert not stage.source.asking
    assert stage.source.given_up > 0
    for (_, name), moments in begins.items():
        least = 4.5 if name == "5" else 27
        assert all(after - before >= least for before, after in itertools.pairwise(moments))


async def test_a_source_that_cannot_be_asked_leaves_what_it_said_to_grow_old(stage: Stage) -> None:
    await stage.collector.collect("ns", [A])
    stage.source.error = BackendUnavailable("it is away")
    await asyncio.sleep(40)
    await stage.collector.collect("ns", [A])
    assert stage.collector.failure == "it is away"
    assert [load.stale for load in stage.collector.loads("ns", [A])] == [False]
    await asyncio.sleep(30)
    await stage.collector.collect("ns", [A])
    assert [load.stale for load in stage.collector.loads("ns", [A])] == [True]
    await asyncio.sleep(240)
    assert stage.collector.loads("ns", [A]) == ()


async def test_a_source_that_is_back_is_asked_soon(stage: Stage) -> None:
    stage.source.error = BackendUnavailable("it is away")
    await stage.collector.collect("ns", [A])
    await stage.collector.collect("ns", [A])
    assert len(stage.source.asked) == 1
    stage.source.error = None
    await asyncio.sleep(5)
    await stage.collector.collect("ns", [A])
    assert (stage.collector.failure, stage.kv(A)) == (None, {"a": 0.5})


async def test_a_pod_that_says_nothing_is_a_failure_with_its_sentence_and_asked_again_soon(stage: Stage) -> None:
    stage.source.reading = LoadReading({"a": LOAD}, failures={"b": "it is starting"})
    await stage.collector.collect("ns", [A, B])
    assert stage.collector.failures("ns", [A, B]) == {"b": "it is starting"}
    assert stage.kv(A, B) == {"a": 0.5}
    stage.source.reading = LoadReading({"b": LOAD})
    await asyncio.sleep(5)
    await stage.collector.collect("ns", [A, B])
    assert stage.source.asked[-1] == ("b",)
    assert stage.collector.failures("ns", [A, B]) == {}


async def test_what_a_source_gets_wrong_is_raised_for_all_who_wait(stage: Stage) -> None:
    stage.source.error = ZeroDivisionError()
    both = await asyncio.gather(*(stage.collector.collect("ns", [A]) for _ in range(2)), return_exceptions=True)
    assert [type(each) for each in both] == [ZeroDivisionError] * 2


async def test_a_pod_of_the_same_name_at_another_place_is_another_engine(stage: Stage) -> None:
    stage.source.reading = LoadReading({"a": EngineLoad(kv=0.9, successes=9)})
    await stage.collector.collect("ns", [A])
    again = PodPlace("a", Endpoint("10.0.0.9", 8000))
    stage.source.reading = LoadReading(failures={"a": "it is starting"})
    await stage.collector.collect("ns", [again])
    assert stage.source.asked == [("a",), ("a",)]
    assert stage.kv(again) == {}
    assert stage.collector.active_at("ns", [again]) == 1


async def test_what_the_pod_before_says_late_is_not_taken_for_the_next_ones(stage: Stage) -> None:
    first = asyncio.create_task(stage.collector.collect("ns", [A]))
    await asyncio.sleep(0.5)
    again = PodPlace("a", Endpoint("10.0.0.9", 8000))
    stage.source.reading = LoadReading({"a": EngineLoad(kv=0.1)})
    stage.source.seconds = 5
    second = asyncio.create_task(stage.collector.collect("ns", [again]))
    await first
    assert stage.kv(again) == {}
    await second
    assert stage.kv(again) == {"a": 0.1}


async def test_it_was_active_when_any_of_the_pods_was(stage: Stage) -> None:
    assert stage.collector.active_at("ns", [A]) is None
    await stage.collector.collect("ns", [A, B])
    assert stage.collector.active_at("ns", [A, B]) is None
    stage.source.reading = LoadReading({"a": LOAD, "b": EngineLoad(queue=0, running=0, successes=1)})
    await asyncio.sleep(30)
    await stage.collector.collect("ns", [A, B])
    stage.source.reading = LoadReading({"a": LOAD, "b": EngineLoad(queue=0, running=0, successes=1)})
    await asyncio.sleep(30)
    await stage.collector.collect("ns", [A, B])
    assert stage.collector.active_at("ns", [A, B]) == 32
    assert stage.collector.active_at("ns", [A]) is None


async def test_a_pod_that_nobody_asks_for_is_forgotten(stage: Stage) -> None:
    stage.source.reading = LoadReading({"a": EngineLoad(running=1), "b": LOAD})
    await stage.collector.collect("ns", [A, B])
    for _ in range(11):
        await asyncio.sleep(30)
        await stage.collector.collect("ns", [B])
    assert stage.collector.active_at("ns", [A]) is None
    assert stage.collector.active_at("ns", [B]) is None
    assert len(stage.collector._pods) == 1


async def test_who_waits_is_asked_for_without_any_pod_and_more_often(stage: Stage) -> None:
    stage.source.reading = LoadReading(held={"m": 2.0}, held_by_target={"ns/t": 3.0})
    await stage.collector.collect("ns", [])
    assert (stage.collector.held("m"), stage.collector.held_by_target("ns", "t")) == (2, 3)
    assert (stage.collector.held("other"), stage.collector.held_by_target("ns", "other")) == (0, 0)
    await stage.collector.collect("ns", [])
    assert len(stage.source.asked) == 1
    await asyncio.sleep(5)
    stage.source.reading = LoadReading(held={"m": 1.0})
    await stage.collector.collect("ns", [])
    assert stage.source.asked == [(), ()]
    assert (stage.collector.held("m"), stage.collector.held_by_target("ns", "t")) == (1, 0)


async def test_who_waited_may_still_wait_while_somebody_cannot_be_asked_but_not_for_long(stage: Stage) -> None:
    stage.source.reading = LoadReading(held={"m": 2.0})
    await stage.collector.collect("ns", [])
    stage.source.reading = LoadReading(failures={"http://proxy/metrics": "it is away"})
    await asyncio.sleep(30)
    await stage.collector.collect("ns", [])
    assert stage.collector.held("m") == 2
    await asyncio.sleep(30)
    assert stage.collector.held("m") is None


async def test_of_two_answers_about_who_waits_the_newer_counts(stage: Stage) -> None:
    stage.source.reading = LoadReading(held={"m": 2.0})
    await stage.collector.collect("ns", [])
    stage.source.reading = LoadReading(held={"m": 0.0})
    await stage.collector.collect("other", [])
    assert stage.collector.held("m") == 0


async def test_pods_that_nobody_asked_for_are_told(stage: Stage) -> None:
    await stage.collector.collect("ns", [A])
    assert stage.unasked == [("ns", "b")]
    await stage.collector.collect("ns", [B])
    await asyncio.sleep(30)
    await stage.collector.collect("ns", [A])
    assert stage.unasked == [("ns", "b")]
