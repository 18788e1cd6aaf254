"""The meter with engines that answer by a script, on loop time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest

from vllm_chill.control.meter import Meter
from vllm_chill.core.engine_page import EngineSample
from vllm_chill.core.histogram import Histogram
from vllm_chill.core.scaling.signals import Aggregation, Metric, Sample, Signal
from vllm_chill.core.target import Endpoint, Progress, Replica, Stage
from vllm_chill.errors import BackendUnavailable

pytestmark = pytest.mark.looptime(start=100)

QUEUE, RUNNING = Signal(Metric.QUEUE_LENGTH), Signal(Metric.RUNNING_REQUESTS)
TOKENS = Signal(Metric.TOKENS_PER_SECOND, window_seconds=10)
TTFT = Signal(Metric.LATENCY, Aggregation.TTFT, percentile=50, window_seconds=30)
GPU = Signal(Metric.GPU_UTILIZATION)
QUERY = Signal(Metric.PROMQL, query="sum(up)")


def replica(name: str, *, ready: bool = True) -> Replica:
    return Replica(name, Endpoint(name, 8000), ready, Progress(Stage.ANSWERING))


@dataclass
class World:
    """Replicas and what they say. A replica without a sample does not answer; one that `hangs` takes four seconds."""

    replicas: list[Replica] = field(default_factory=list)
    says: dict[str, EngineSample] = field(default_factory=dict)
    hangs: set[str] = field(default_factory=set)
    asked: list[tuple[float, str]] = field(default_factory=list)
    answer: float | BackendUnavailable | None = None
    queries: list[float] = field(default_factory=list)
    gpus: dict[str, Sample] = field(default_factory=dict)

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def times(self, name: str) -> list[float]:
        return [at for at, asked in self.asked if asked == name]

    async def scrape(self, endpoint: Endpoint) -> EngineSample:
        self.asked.append((self.now, endpoint.host))
        await asyncio.sleep(4 if endpoint.host in self.hangs else 0.01)
        sample = self.says.get(endpoint.host)
        if sample is None or endpoint.host in self.hangs:
            raise BackendUnavailable(f"{endpoint} does not answer")
        return sample

    async def query(self, expression: str) -> float | None:
        assert expression == "sum(up)"
        self.queries.append(self.now)
        if isinstance(self.answer, BackendUnavailable):
            raise self.answer
        return self.answer

    @asynccontextmanager
    async def metered(self) -> AsyncIterator[Meter]:
        loop = asyncio.get_running_loop()
        meter = Meter(lambda: self.replicas, self.scrape, now=loop.time, gpu=self.gpus.get, query=self.query)
        running = asyncio.create_task(meter.run())
        yield meter
        assert not running.done()
        running.cancel()
        await asyncio.wait([running])
        assert running.cancelled()


def values(meter: Meter, signal: Signal) -> dict[str, float | None]:
    return {one.name: one.samples[signal].value if signal in one.samples else None for one in meter.members([signal])}


async def test_each_replica_is_scraped_every_five_seconds_or_so() -> None:
    world = World([replica("a"), replica("b")], {"a": EngineSample(1, 2), "b": EngineSample(3, 4)})
    async with world.metered() as meter:
        await asyncio.sleep(60)
        assert values(meter, QUEUE) == {"a": 2, "b": 4}
        for name in "ab":
            times = world.times(name)
            assert times[0] <= 101
            assert all(4.4 <= after - before <= 5.6 for before, after in pairwise(times))


async def test_replicas_that_come_at_once_are_not_scraped_at_once() -> None:
    names = [f"r{number}" for number in range(20)]
    world = World([replica(name) for name in names], dict.fromkeys(names, EngineSample(1, 2)))
    async with world.metered():
        await asyncio.sleep(30)
    assert len({at for at, _ in world.asked}) > len(world.asked) / 2


async def test_a_target_that_sleeps_is_asked_nothing() -> None:
    world = World([], {"a": EngineSample(1, 2)}, answer=1)
    async with world.metered() as meter:
        meter.of_target([QUERY])
        await asyncio.sleep(60)
        assert (world.asked, world.queries, meter.members([QUEUE]), meter.figures()) == ([], [], (), ())
        assert not meter.busy
        world.replicas = [replica("a")]
        await asyncio.sleep(3)
        assert world.asked
        assert world.queries


async def test_a_replica_that_is_not_ready_is_there_and_not_asked() -> None:
    world = World([replica("a", ready=False)], {"a": EngineSample(1, 2)})
    async with world.metered() as meter:
        await asyncio.sleep(20)
        assert not world.asked
        [reading] = meter.members([QUEUE])
        assert (reading.name, reading.ready_since, reading.samples) == ("a", None, {})


async def test_since_when_a_replica_is_ready_is_known_within_a_second() -> None:
    world = World([replica("a", ready=False)], {"a": EngineSample(1, 2)})
    async with world.metered() as meter:
        await asyncio.sleep(20)
        world.replicas = [replica("a")]
        await asyncio.sleep(30)
        [reading] = meter.members([])
        assert reading.ready_since is not None
        assert 120 <= reading.ready_since <= 121
        world.replicas = [replica("a", ready=False)]
        assert [reading.ready_since for reading in meter.members([])] == [None]
        world.replicas = [replica("a")]
        assert [reading.ready_since for reading in meter.members([])] == [150]


async def test_a_scrape_that_fails_is_missing_and_what_was_there_grows_old() -> None:
    world = World([replica("a"), replica("b")], {"a": EngineSample(1, 2)})
    async with world.metered() as meter:
        await asyncio.sleep(10)
        assert values(meter, QUEUE) == {"a": 2, "b": None}
        assert [one.failure for one in meter.figures()] == [None, "b:8000 does not answer"]
        del world.says["a"]
        [reading, _] = meter.members([QUEUE])
        await asyncio.sleep(100)
        assert meter.members([QUEUE])[0].samples == reading.samples
        assert reading.samples[QUEUE].at <= 110


async def test_one_that_hangs_holds_up_nobody_and_is_asked_once_at_a_time() -> None:
    world = World([replica("a"), replica("b")], {"a": EngineSample(1, 2)}, hangs={"b"})
    async with world.metered():
        await asyncio.sleep(60)
    assert len(world.times("a")) >= 11
    times = world.times("b")
    assert all(after - before >= 4 for before, after in pairwise(times))


async def test_a_replica_that_is_gone_is_forgotten_with_its_scrape() -> None:
    world = World([replica("a")], {}, hangs={"a"})
    async with world.metered() as meter:
        await asyncio.sleep(2)
        world.replicas = []
        assert meter.members([QUEUE]) == ()
        world.replicas = [replica("a")]
        world.hangs, world.says = set(), {"a": EngineSample(1, 7)}
        await asyncio.sleep(2)
        assert values(meter, QUEUE) == {"a": 7}


async def test_rates_come_of_what_changed_between_two_scrapes() -> None:
    world = World([replica("a")], {"a": EngineSample(generation_tokens=100)})
    async with world.metered() as meter:
        for _ in range(60):
            await asyncio.sleep(1)
            tokens = world.says["a"].generation_tokens
            assert tokens is not None
            world.says["a"] = EngineSample(generation_tokens=tokens + 30)
        found = values(meter, TOKENS)["a"]
        assert found == pytest.approx(30, rel=0.15)


async def test_a_latency_is_over_the_requests_of_all_replicas() -> None:
    none = Histogram((0.1, 0.2, 0.4), (0, 0, 0), 0, 0)
    world = World([replica("a"), replica("b")], dict.fromkeys("ab", EngineSample(1, 0, ttft=none)))
    async with world.metered() as meter:
        await asyncio.sleep(6)
        world.says["a"] = EngineSample(1, 0, ttft=Histogram((0.1, 0.2, 0.4), (30, 30, 30), 30, 3))
        world.says["b"] = EngineSample(1, 0, ttft=Histogram((0.1, 0.2, 0.4), (0, 0, 10), 10, 4))
        await asyncio.sleep(6)
        assert values(meter, TTFT) == {"a": pytest.approx(50), "b": pytest.approx(300)}
        assert meter.of_target([TTFT])[TTFT].value == pytest.approx(1000 * 0.1 * 20 / 30)
        assert meter.of_target([TTFT])[TTFT].at == min(one.samples[TTFT].at for one in meter.members([TTFT]))


async def test_without_requests_and_without_any_in_the_engines_the_latency_is_0() -> None:
    some = Histogram((0.1,), (5,), 5, 0.2)
    world = World([replica("a"), replica("b")], dict.fromkeys("ab", EngineSample(0, 0, ttft=some)))
    async with world.metered() as meter:
        await asyncio.sleep(12)
        assert meter.of_target([TTFT])[TTFT].value == 0
        world.says["b"] = replace(world.says["b"], waiting=1.0)
        await asyncio.sleep(6)
        assert meter.of_target([TTFT]) == {}


async def test_a_replica_that_is_silent_is_in_no_latency_of_the_target() -> None:
    none, slow = Histogram((0.1, 0.2), (0, 0), 0, 0), Histogram((0.1, 0.2), (0, 9), 9, 0)
    world = World([replica("a")], {"a": EngineSample(1, 0, ttft=none)})
    async with world.metered() as meter:
        await asyncio.sleep(6)
        world.says["a"] = EngineSample(1, 0, ttft=slow)
        await asyncio.sleep(6)
        assert meter.of_target([TTFT])[TTFT].value == pytest.approx(150)
        del world.says["a"]
        await asyncio.sleep(20)
        assert meter.of_target([TTFT]) == {}


async def test_it_is_busy_while_an_engine_has_requests_by_a_fresh_sample() -> None:
    world = World([replica("a"), replica("b")], {"a": EngineSample(0, 0), "b": EngineSample(0, 0)})
    async with world.metered() as meter:
        await asyncio.sleep(6)
        seen = [meter.busy]
        world.says["b"] = EngineSample(0, 1)
        await asyncio.sleep(6)
        seen.append(meter.busy)
        del world.says["b"]
        await asyncio.sleep(25)
        assert [*seen, meter.busy] == [False, True, False]


async def test_the_use_of_gpus_is_that_of_whoever_knows_it() -> None:
    world = World([replica("a"), replica("b"), replica("c", ready=False)], gpus={"a": Sample(80, 99)})
    world.gpus["c"] = Sample(3, 99)
    async with world.metered() as meter:
        assert [dict(one.samples) for one in meter.members([GPU])] == [{GPU: Sample(80, 99)}, {}, {}]
        assert meter.figures()[0].gpu_percent == Sample(80, 99)


async def test_an_expression_is_asked_from_when_somebody_wants_it_until_nobody_does() -> None:
    world = World([replica("a")], answer=42)
    async with world.metered() as meter:
        await asyncio.sleep(10)
        assert not world.queries
        for _ in range(10):
            meter.of_target([QUERY])
            await asyncio.sleep(15)
        found = meter.of_target([QUERY])[QUERY]
        assert (found.value, found.at >= 230) == (42, True)
        assert 9 <= len(world.queries) <= 12
        await asyncio.sleep(650)
        count = len(world.queries)
        await asyncio.sleep(600)
        assert len(world.queries) == count


@pytest.mark.parametrize("answer", [None, BackendUnavailable("no Prometheus")], ids=["no number", "no answer"])
async def test_an_expression_without_an_answer_keeps_the_one_before(answer: BackendUnavailable | None) -> None:
    world = World([replica("a")], answer=42)
    async with world.metered() as meter:
        meter.of_target([QUERY])
        await asyncio.sleep(5)
        before = meter.of_target([QUERY])
        assert before[QUERY].value == 42
        world.answer = answer
        await asyncio.sleep(60)
        assert meter.of_target([QUERY]) == before
        assert meter.trouble("sum(up)") == ("no Prometheus" if answer else None)


async def test_without_a_prometheus_an_expression_is_missing_and_it_is_said_why() -> None:
    meter = Meter(lambda: [replica("a")], World().scrape, now=asyncio.get_running_loop().time)
    running = asyncio.create_task(meter.run())
    assert meter.of_target([QUERY]) == {}
    await asyncio.sleep(30)
    assert meter.of_target([QUERY]) == {}
    assert meter.trouble("sum(up)") == "no Prometheus is known that could be asked"
    running.cancel()
    await asyncio.wait([running])
