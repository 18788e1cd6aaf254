"""The prober with the memory backend and an engine that answers by a script, on loop time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random

import pytest

from tests.adapters.contract import BackendContract, Seen
from vllm_chill.adapters.memory import MemoryBackend
from vllm_chill.control.prober import Probing, ProbingBackend
from vllm_chill.core.readiness import Answer, Answered, Refused, Unclear
from vllm_chill.core.target import Endpoint, Stage, TargetRef

pytestmark = pytest.mark.looptime(start=100)

HERE = Endpoint("10.0.0.1", 8000)
REF = TargetRef("ai-apps", "vllm")
LIST = b'{"object": "list", "data": [{"id": "tiny"}]}'
FOREVER = 1e6


@dataclass
class Engine:
    """Listens from `listens` on, is healthy from `healthy` on and has its model from `listed` on, in loop time.

    A question to an address that hangs takes all of its time.
    """

    listens: float = 0
    healthy: float = 0
    listed: float = 0
    hangs: bool = False
    asked: list[tuple[float, str]] = field(default_factory=list)

    async def ask(self, endpoint: Endpoint, path: str, timeout_seconds: float) -> Answer:
        now = asyncio.get_running_loop().time()
        assert endpoint == HERE
        self.asked.append((now, path))
        await asyncio.sleep(timeout_seconds if self.hangs else 0.001)
        if self.hangs or now < self.listens:
            return Refused() if now < self.listens else Unclear()
        if path == "/health":
            return Answered(200 if now >= self.healthy else 503)
        return Answered(200, LIST if now >= self.listed else b'{"data": []}')

    @property
    def looks(self) -> list[float]:
        return [at for at, path in self.asked if path != "/v1/models"]


@dataclass
class Watched:
    backend: MemoryBackend
    probing: ProbingBackend
    seen: Seen
    lists: list[tuple[Endpoint, bytes]]

    async def wake(self) -> None:
        await self.probing.scale(REF, 1)

    async def until_ready(self) -> float:
        """Wait until it is ready; the time then."""
        await self.seen.until(lambda o: bool(o.endpoints), seconds=10_000)
        return asyncio.get_running_loop().time()

    @property
    def stages(self) -> list[Stage]:
        """The stages that were told, each once."""
        told = [o.progress.stage for o in self.seen.observations if o.progress is not None]
        return list(dict.fromkeys(told))


@asynccontextmanager
async def watched(engine: Engine, *, health_path: str = "/health", word: float = FOREVER) -> AsyncIterator[Watched]:
    """A target at zero, whose backend calls it ready `word` seconds after it was asked for."""
    backend, seen = MemoryBackend(HERE, start_seconds=word), Seen()
    lists: list[tuple[Endpoint, bytes]] = []
    how = Probing(engine.ask, health_path, lambda endpoint, body: lists.append((endpoint, body)), Random(1))
    probing = ProbingBackend(backend, how, direct=True)
    watching = asyncio.create_task(probing.watch(REF, seen))
    await seen.until(lambda _: True)
    try:
        yield Watched(backend, probing, seen, lists)
    finally:
        assert not watching.done()
        watching.cancel()
        await asyncio.wait([watching])
        assert watching.cancelled()
        assert len(asyncio.all_tasks()) == 1, "no prober outlives the watch"


async def test_ready_a_tenth_of_a_second_after_the_port_answers_however_late_the_backend_is() -> None:
    engine = Engine(listens=130.05, healthy=130.05, listed=130.05)
    async with watched(engine) as stage:
        await stage.wake()
        assert 130.05 <= await stage.until_ready() < 130.05 + 0.13
        assert stage.seen.last is not None
        assert stage.seen.last.endpoints == (HERE,)


async def test_each_stage_is_told_and_a_model_that_is_not_listed_is_waited_for() -> None:
    engine = Engine(listens=105, healthy=110, listed=115)
    async with watched(engine) as stage:
        await stage.wake()
        assert 115 <= await stage.until_ready() < 115.13
        assert stage.stages == [Stage.STARTING, Stage.LOADING, Stage.LISTING, Stage.ANSWERING]
        assert stage.lists == [(HERE, LIST)]


async def test_a_refused_connection_is_tried_again_at_the_cadence_with_jitter() -> None:
    engine = Engine(listens=FOREVER)
    async with watched(engine) as stage:
        await stage.wake()
        await asyncio.sleep(30)
    pauses = [after - before for before, after in zip(engine.looks, engine.looks[1:], strict=False)]
    assert engine.looks[0] == pytest.approx(100, abs=0.01), "at once"
    assert all(0.079 < pause < 0.121 for pause in pauses)
    assert len({round(pause, 3) for pause in pauses}) > 20
    assert sum(pauses) / len(pauses) == pytest.approx(0.1, abs=0.005)


async def test_after_the_first_minute_it_looks_less_often_and_once_a_second_at_the_least() -> None:
    engine = Engine(listens=FOREVER)
    async with watched(engine) as stage:
        await stage.wake()
        await asyncio.sleep(1200)
    pauses = {before: after - before for before, after in zip(engine.looks, engine.looks[1:], strict=False)}
    assert all(0.079 < pause < 0.121 for at, pause in pauses.items() if at < 160)
    assert all(0.39 < pause < 0.61 for at, pause in pauses.items() if 398 < at < 402)
    assert all(0.79 < pause < 1.21 for at, pause in pauses.items() if at > 700)


async def test_one_that_hangs_costs_its_timeout_only() -> None:
    engine = Engine(hangs=True)
    async with watched(engine) as stage:
        await stage.wake()
        await asyncio.sleep(10)
        assert engine.looks == pytest.approx([100 + second for second in range(10 + 1)][: len(engine.looks)], abs=0.1)
        assert len(engine.looks) >= 10
        engine.hangs = False
        assert await stage.until_ready() < 111.2


async def test_a_replica_that_is_ready_is_asked_no_more() -> None:
    engine = Engine()
    async with watched(engine) as stage:
        await stage.wake()
        await stage.until_ready()
        await asyncio.sleep(1000)
        assert [path for _, path in engine.asked] == ["/health", "/v1/models"]


async def test_the_health_path_is_the_one_that_was_set() -> None:
    engine = Engine(listens=FOREVER)
    async with watched(engine, health_path="/ping") as stage:
        await stage.wake()
        await asyncio.sleep(1)
        assert {path for _, path in engine.asked} == {"/ping"}


async def test_the_backends_word_is_enough_for_an_engine_that_is_never_healthy() -> None:
    engine = Engine(healthy=FOREVER)
    async with watched(engine, word=10) as stage:
        await stage.wake()
        assert await stage.until_ready() == pytest.approx(110, abs=0.01)
        asked = len(engine.asked)
        await asyncio.sleep(1000)
        assert len(engine.asked) == asked


async def test_a_replica_that_leaves_is_asked_no_more_and_the_next_one_anew() -> None:
    engine = Engine(listens=FOREVER)
    async with watched(engine) as stage:
        await stage.wake()
        await asyncio.sleep(300)
        await stage.probing.scale(REF, 0)
        asked = len(engine.asked)
        await asyncio.sleep(300)
        assert len(engine.asked) == asked
        await stage.wake()
        await asyncio.sleep(10)
        assert len(engine.asked) - asked == pytest.approx(100, abs=10)


async def test_a_restart_is_waited_out() -> None:
    engine = Engine()
    async with watched(engine) as stage:
        await stage.wake()
        await stage.until_ready()
        engine.listens = engine.healthy = engine.listed = 150
        stage.backend.restart()
        assert stage.seen.last is not None
        assert not stage.seen.last.endpoints
        assert 150 <= await stage.until_ready() < 150.13


async def test_a_ready_that_is_taken_back_is_not_overruled() -> None:
    engine = Engine()
    async with watched(engine, word=5) as stage:
        await stage.wake()
        await stage.until_ready()
        await asyncio.sleep(10)
        stage.backend.unready()
        await asyncio.sleep(1000)
        assert stage.seen.last is not None
        assert not stage.seen.last.endpoints
        stage.backend.ready()
        assert stage.seen.last.endpoints == (HERE,)


async def test_a_loss_is_passed_on_and_the_prober_goes_on() -> None:
    engine = Engine(listens=105)
    async with watched(engine) as stage:
        await stage.wake()
        stage.backend.lose("the API server is away")
        assert stage.seen.losses == ["the API server is away"]
        assert await stage.until_ready() < 105.13


async def test_what_is_seen_again_after_a_loss_is_told_again() -> None:
    async with watched(Engine(listens=FOREVER)) as stage:
        await stage.wake()
        told = len(stage.seen.observations)
        stage.backend.lose("the API server is away")
        stage.backend.unready()
        assert len(stage.seen.observations) == told + 1, "unready it was before, so this is what was seen last"


async def test_what_changes_nothing_is_told_once() -> None:
    engine = Engine(listens=FOREVER)
    async with watched(engine) as stage:
        await stage.wake()
        await asyncio.sleep(100)
        assert len(stage.seen.observations) == 2
        stage.backend.lose("the API server is away")
        assert stage.backend.seen == stage.seen.last
        await asyncio.sleep(100)
        assert len(stage.seen.observations) == 2, "a look that finds nothing new is no news of the backend"


async def test_several_replicas_have_a_prober_each() -> None:
    engine = Engine(listens=FOREVER)
    async with watched(engine) as stage:
        await stage.probing.scale(REF, 3)
        await asyncio.sleep(0.05)
        assert len(engine.asked) == 3


async def test_the_replicas_that_should_go_are_told_to_the_backend() -> None:
    async with watched(Engine()) as stage:
        await stage.probing.scale(REF, 2)
        await stage.probing.scale(REF, 1, doomed=["memory-1"])
        assert [replica.name for replica in stage.backend.seen.members] == ["memory-2"]


async def test_by_the_backends_word_alone_nobody_is_asked() -> None:
    backend, seen = MemoryBackend(HERE, start_seconds=10), Seen()
    alone = ProbingBackend(backend, None, direct=True)
    watching = asyncio.create_task(alone.watch(REF, seen))
    await alone.scale(REF, 1)
    await asyncio.sleep(9.9)
    assert seen.last is not None
    assert not seen.last.endpoints
    await asyncio.sleep(0.2)
    assert seen.last.endpoints == (HERE,)
    watching.cancel()


class ProbedMemory:
    """A memory backend that never calls anything ready, and probes that do."""

    def __init__(self) -> None:
        self.ref = REF
        self.inner = MemoryBackend(HERE, start_seconds=0.05, stop_seconds=0.01)
        self.backend = ProbingBackend(self.inner, Probing(self.ask), direct=True)
        self.broken = False

    async def ask(self, endpoint: Endpoint, path: str, timeout_seconds: float) -> Answer:
        await asyncio.sleep(0)
        return Refused() if self.broken else Answered(200, LIST)

    async def kill(self) -> None:
        self.inner.die("killed")

    async def break_start(self) -> None:
        self.broken = True
        self.inner.fail_start = "it cannot start"


class TestProbingBackend(BackendContract):
    @pytest.fixture
    def world(self) -> ProbedMemory:
        return ProbedMemory()
