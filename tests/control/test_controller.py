"""The controller with the memory backend, on loop time: an hour costs nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from vllm_chill.adapters.memory import MemoryBackend
from vllm_chill.control.controller import ScaleController
from vllm_chill.control.lease import Bounds, Lease, Ticket
from vllm_chill.core.admission import Priority
from vllm_chill.core.target import (
    Asleep,
    Draining,
    Endpoint,
    Failed,
    Limits,
    Observation,
    Phase,
    Progress,
    Ready,
    Target,
    TargetRef,
    Waking,
)
from vllm_chill.core.target import Stage as StartStage
from vllm_chill.errors import BackendRefused, BackendUnavailable, HoldExpired, TargetUnknown, TooManyWaiting, WakeFailed

pytestmark = pytest.mark.looptime(start=100)

HERE = Endpoint("127.0.0.1", 8000)
REF = TargetRef("ai-apps", "vllm")


@dataclass
class Recording:
    """A recorder that keeps what it is told."""

    phases: list[str] = field(default_factory=list)
    holds: list[float] = field(default_factory=list)
    scales: list[tuple[int, str | None]] = field(default_factory=list)
    departures: list[Endpoint] = field(default_factory=list)
    progress: list[Progress | None] = field(default_factory=list)
    order: list[str] = field(default_factory=list)

    def changed(self, before: Target, after: Target, now: float) -> None:
        self.phases.append(type(after.phase).__name__)
        self.order.append(type(after.phase).__name__)

    def progressed(self, target: Target, now: float) -> None:
        assert target.observed is not None
        progress = target.observed.progress
        self.progress.append(progress)
        self.order.append("" if progress is None else progress.stage.name)

    def answered(self, now: float) -> None:
        raise AssertionError("the proxy tells this")

    def departed(self, endpoint: Endpoint) -> None:
        self.departures.append(endpoint)

    def held(self, seconds: float) -> None:
        self.holds.append(seconds)

    def scaled(self, target: Target, replicas: int, error: str | None) -> None:
        self.scales.append((replicas, error))


@dataclass
class Stage:
    controller: ScaleController
    backend: MemoryBackend
    recording: Recording

    def phase_is(self, kind: type[Phase]) -> bool:
        return isinstance(self.controller.target.phase, kind)

    async def lease(self, hold: float = 120) -> Lease:
        return await self.controller.lease(hold)

    async def callers(self, count: int, hold: float = 120) -> list[Lease | BaseException]:
        return await asyncio.gather(*(self.lease(hold) for _ in range(count)), return_exceptions=True)


@asynccontextmanager
async def running(
    *,
    start: float = 60,
    stop: float = 0,
    replicas: int = 0,
    idle: float = 300,
    limit: float = 1800,
    bounds: Bounds | None = None,
    keep_abandoned: bool = True,
) -> AsyncIterator[Stage]:
    backend = MemoryBackend(HERE, start_seconds=start, stop_seconds=stop, replicas=replicas)
    recording = Recording()
    limits = Limits(idle, limit, keep_abandoned=keep_abandoned)
    controller = ScaleController(REF, limits, backend, recording, bounds, lambda: 42)
    task = asyncio.create_task(controller.run())
    await asyncio.sleep(0.001)
    yield Stage(controller, backend, recording)
    assert not task.done() or task.result() is None
    task.cancel()
    await asyncio.wait([task])


async def test_five_hundred_callers_at_zero_are_one_write_and_all_are_served() -> None:
    async with running() as stage:
        leases = await stage.callers(500)
        assert all(isinstance(lease, Lease) and lease.endpoint == HERE for lease in leases)
        assert stage.backend.writes == [1]
        assert stage.controller.target.in_flight == 500
        assert stage.recording.holds == pytest.approx([60] * 500)


async def test_a_warm_lease_waits_for_nothing() -> None:
    async with running(replicas=1) as stage:
        lease = stage.controller.lease_now()
        assert lease is not None
        assert stage.controller.target.in_flight == 1
        lease.release()
        lease.release()
        assert stage.controller.target.in_flight == 0


async def test_asleep_there_is_no_lease_now() -> None:
    async with running() as stage:
        assert stage.controller.lease_now() is None
        assert stage.phase_is(Asleep)


async def test_a_failed_wake_fails_all_callers_with_its_reason() -> None:
    async with running() as stage:
        stage.backend.fail_start = "CUDA out of memory"
        for error in await stage.callers(50):
            assert isinstance(error, WakeFailed)
            assert "CUDA out of memory" in error.message
            assert error.retry_after_seconds == 5
        assert stage.controller.target.waiting == 0


async def test_a_wake_that_is_refused_says_why() -> None:
    async with running() as stage:
        stage.backend.fail_next = [BackendRefused("no right to patch deployments/scale")]
        with pytest.raises(WakeFailed, match="no right to patch"):
            await stage.lease()


async def test_a_passing_trouble_is_tried_again_while_the_callers_wait() -> None:
    async with running() as stage:
        stage.backend.fail_next = [BackendUnavailable("connection refused")] * 4
        await stage.lease()
        assert stage.recording.scales == [(1, "connection refused")] * 4 + [(1, None)]


async def test_a_client_that_leaves_does_not_stop_the_wake() -> None:
    async with running() as stage:
        caller = asyncio.create_task(stage.lease())
        await asyncio.sleep(10)
        caller.cancel()
        await asyncio.wait([caller])
        assert stage.controller.target.waiting == 0
        await asyncio.sleep(51)
        assert stage.phase_is(Ready)


async def test_a_hold_expires_and_the_wake_goes_on() -> None:
    async with running(start=600) as stage:
        with pytest.raises(HoldExpired, match=r"still waking after 120 s") as error:
            await stage.lease(hold=120)
        assert error.value.retry_after_seconds == 42
        await asyncio.sleep(481)
        assert stage.phase_is(Ready)


async def test_a_start_that_takes_too_long_fails_and_gives_the_gpu_back() -> None:
    async with running(start=10_000, limit=1800) as stage:
        with pytest.raises(WakeFailed, match="not ready 1800 s after"):
            await stage.lease(hold=5000)
        await asyncio.sleep(1)
        assert stage.backend.writes == [1, 0]


async def test_idle_for_the_whole_timeout_and_not_a_moment_less() -> None:
    async with running(replicas=1) as stage:
        await asyncio.sleep(299.9)
        assert stage.phase_is(Ready)
        await asyncio.sleep(0.2)
        assert stage.phase_is(Asleep)
        assert stage.backend.writes == [0]


async def test_a_lease_longer_than_the_idle_timeout_is_never_cut() -> None:
    async with running(replicas=1) as stage:
        lease = await stage.lease()
        await asyncio.sleep(10_000)
        assert stage.phase_is(Ready)
        lease.release()
        await asyncio.sleep(299.9)
        assert stage.phase_is(Ready)
        await asyncio.sleep(0.2)
        assert stage.phase_is(Asleep)


async def test_each_use_begins_the_idle_time_anew() -> None:
    async with running(replicas=1) as stage:
        for _ in range(5):
            await asyncio.sleep(250)
            (await stage.lease()).release()
        assert stage.backend.writes == []
        await asyncio.sleep(300.1)
        assert stage.backend.writes == [0]


async def test_it_is_not_put_to_sleep_while_the_backend_cannot_be_asked_how_it_is() -> None:
    async with running(replicas=1) as stage:
        stage.backend.unseen = BackendUnavailable("connection refused")
        await asyncio.sleep(1000)
        assert stage.phase_is(Draining)
        assert stage.backend.writes == []
        assert set(stage.recording.scales) == {(0, "connection refused")}
        stage.backend.unseen = None
        await asyncio.sleep(5)
        assert stage.phase_is(Asleep)
        assert stage.backend.writes == [0]


async def test_who_comes_while_the_backend_is_asked_is_served_at_once() -> None:
    async with running(replicas=1) as stage:
        stage.backend.unseen, stage.backend.unseen_seconds = BackendUnavailable("it did not answer within 10 s"), 10
        await asyncio.sleep(305)
        assert stage.phase_is(Draining)
        began = asyncio.get_running_loop().time()
        (await stage.lease()).release()
        assert asyncio.get_running_loop().time() == began
        assert stage.phase_is(Ready)
        await asyncio.sleep(290)
        assert stage.backend.writes == []


async def test_a_backend_that_comes_back_is_asked_again_within_seconds() -> None:
    async with running(start=0) as stage:
        stage.backend.fail_next = [BackendUnavailable("connection refused")] * 1000
        waiting = asyncio.create_task(stage.lease(hold=3000))
        await asyncio.sleep(1000)
        stage.backend.fail_next = []
        async with asyncio.timeout(4.1):
            await waiting


async def test_a_backend_that_asks_to_be_left_alone_is() -> None:
    async with running(start=0) as stage:
        stage.backend.fail_next = [BackendUnavailable("too many requests", retry_after_seconds=20)] * 3
        began = asyncio.get_running_loop().time()
        await stage.lease()
        assert asyncio.get_running_loop().time() == pytest.approx(began + 60)


async def test_a_caller_during_the_sleep_is_served_after_a_new_wake() -> None:
    async with running(replicas=1, stop=20) as stage:
        await asyncio.sleep(301)
        assert stage.phase_is(Draining)
        await stage.lease()
        assert stage.backend.writes == [0, 1]


async def test_scaled_up_by_someone_else_serves_without_a_write() -> None:
    async with running() as stage:
        stage.backend.set_replicas(1)
        await stage.lease()
        assert stage.recording.scales == []


async def test_scaled_down_by_someone_else_stays_down_until_a_caller_comes() -> None:
    async with running(replicas=1) as stage:
        stage.backend.set_replicas(0)
        await asyncio.sleep(1000)
        assert stage.phase_is(Asleep)
        await stage.lease()
        assert stage.recording.scales == [(1, None)]


async def test_a_death_fails_nobody_who_comes_later() -> None:
    async with running(replicas=1) as stage:
        stage.backend.die("it exited with status 137")
        assert stage.phase_is(Failed)
        await stage.lease()


async def test_an_operator_stops_it_when_its_leases_have_ended() -> None:
    async with running(replicas=1) as stage:
        lease = await stage.lease()
        stopping = asyncio.create_task(stage.controller.stop())
        await asyncio.sleep(1000)
        assert not stopping.done()
        lease.release()
        assert isinstance(await stopping, Asleep)


async def test_an_operator_wakes_it_and_is_told_when_it_is_ready() -> None:
    async with running() as stage:
        await stage.controller.wake(wait=True)
        assert stage.phase_is(Ready)
        assert stage.controller.target.in_flight == 0


async def test_an_operator_need_not_wait() -> None:
    async with running() as stage:
        await stage.controller.wake(wait=False)
        assert stage.phase_is(Waking)


async def test_an_operator_is_told_why_it_cannot_wake() -> None:
    async with running() as stage:
        stage.backend.fail_start = "no such model"
        with pytest.raises(WakeFailed, match="no such model"):
            await stage.controller.wake(wait=True)


async def test_while_nothing_is_known_a_caller_is_told_so_at_once() -> None:
    backend = MemoryBackend(HERE)
    controller = ScaleController(REF, Limits(300, 1800), backend, Recording())
    controller.lost("the API server refuses connections")
    assert not controller.synced
    with pytest.raises(TargetUnknown, match="refuses connections"):
        await controller.lease(120)
    with pytest.raises(TargetUnknown, match="refuses connections"):
        await controller.wake(wait=False)


async def test_readiness_lost_and_found_needs_no_write() -> None:
    async with running(replicas=1) as stage:
        stage.backend.unready()
        caller = asyncio.create_task(stage.lease())
        await asyncio.sleep(5)
        assert not caller.done()
        stage.backend.ready()
        (await caller).release()
        assert stage.recording.scales == []


async def test_connections_to_a_replica_that_departs_are_not_kept() -> None:
    async with running(replicas=1) as stage:
        stage.controller.observed(Observation(1, 1, (HERE,), serving=frozenset({"old"})))
        stage.recording.departures.clear()
        for serving in (frozenset({"old", "new"}), frozenset({"new"})):
            stage.controller.observed(Observation(1, len(serving), (HERE,), serving=serving))
        assert stage.recording.departures == [HERE]
        assert stage.phase_is(Ready)
        stage.backend.unready()
        assert stage.recording.departures == [HERE, HERE]


class TestTheWaitingRoom:
    async def test_more_callers_than_may_wait_are_told_when_to_come_again(self) -> None:
        async with running(bounds=Bounds(waiting=3)) as stage:
            waiting = [asyncio.create_task(stage.lease()) for _ in range(3)]
            await asyncio.sleep(1)
            with pytest.raises(TooManyWaiting) as refused:
                await stage.lease()
            assert refused.value.retry_after_seconds == 42
            assert stage.controller.target.waiting == 3
            waiting.pop().cancel()
            await asyncio.sleep(0)
            waiting.append(asyncio.create_task(stage.lease()))
            leases = await asyncio.gather(*waiting)
            assert len(leases) == stage.controller.target.in_flight == 3

    async def test_no_replica_has_more_than_it_may_and_the_rest_follow_as_places_come_free(self) -> None:
        async with running(bounds=Bounds(in_flight=4)) as stage:
            served: list[int] = []

            async def caller(number: int) -> None:
                with await stage.lease():
                    assert stage.controller.target.in_flight <= 4
                    served.append(number)
                    await asyncio.sleep(10)

            begun = asyncio.get_running_loop().time()
            await asyncio.gather(*(caller(number) for number in range(20)))
            assert served == list(range(20))
            assert asyncio.get_running_loop().time() - begun == pytest.approx(60 + 5 * 10)
            assert stage.controller.target.waiting == stage.controller.target.in_flight == 0

    async def test_nobody_overtakes_those_who_wait_for_a_place(self) -> None:
        async with running(replicas=1, bounds=Bounds(in_flight=1)) as stage:
            first = stage.controller.lease_now()
            assert first is not None
            assert stage.controller.lease_now() is None
            second = asyncio.create_task(stage.lease())
            await asyncio.sleep(0)
            first.release()
            assert stage.controller.lease_now() is None
            (await second).release()
            assert stage.controller.lease_now() is not None

    async def test_keys_take_turns_and_classes_go_first(self) -> None:
        async with running(bounds=Bounds(in_flight=1)) as stage:
            served: list[str] = []

            async def caller(name: str, key: str, priority: Priority) -> None:
                with await stage.controller.lease(120, Ticket(key, priority)):
                    served.append(name)

            names = ["a1", "a2", "a3", "b1", "a4", "b2"]
            callers = [caller(name, name[0], Priority.NORMAL) for name in names]
            callers += [caller("low", "c", Priority.LOW), caller("high", "d", Priority.HIGH)]
            await asyncio.gather(*callers)
            assert served == ["high", "a1", "b1", "a2", "b2", "a3", "a4", "low"]

    async def test_a_place_in_the_order_is_told_and_gets_better(self) -> None:
        async with running(bounds=Bounds(in_flight=1)) as stage:
            tickets = [Ticket() for _ in range(3)]
            tasks = [asyncio.create_task(stage.controller.lease(120, ticket)) for ticket in tickets]
            await asyncio.sleep(1)
            assert [stage.controller.position(ticket) for ticket in tickets] == [1, 2, 3]
            (await tasks[0]).release()
            await asyncio.sleep(2)
            assert [stage.controller.position(ticket) for ticket in tickets] == [0, 0, 1]
            (await tasks[1]).release()
            (await tasks[2]).release()

    async def test_a_caller_that_leaves_as_its_lease_comes_gives_it_back(self) -> None:
        async with running(replicas=1, bounds=Bounds(in_flight=1)) as stage:
            first = stage.controller.lease_now()
            assert first is not None
            second = asyncio.create_task(stage.lease())
            await asyncio.sleep(0)
            first.release()
            stage.controller._serve_waiting()
            second.cancel()
            await asyncio.wait([second])
            assert stage.controller.target.in_flight == stage.controller.target.waiting == 0

    async def test_of_ten_thousand_few_are_let_in_within_one_turn_of_the_loop(self) -> None:
        async with running(bounds=Bounds(waiting=10_000)) as stage:
            tasks = [asyncio.create_task(stage.lease()) for _ in range(10_000)]
            await asyncio.sleep(59)
            turns, before = [], 0
            while not all(task.done() for task in tasks):
                await asyncio.sleep(0 if stage.phase_is(Ready) else 1)
                turns.append(stage.controller.target.in_flight - before)
                before = stage.controller.target.in_flight
            assert max(turns) <= 2 * 32
            assert before == 10_000

    async def test_however_many_come_meanwhile_few_are_let_in_within_one_turn_of_the_loop(self) -> None:
        async with running(bounds=Bounds(waiting=10_000)) as stage:
            tasks = [asyncio.create_task(stage.lease()) for _ in range(5_000)]
            await asyncio.sleep(59)
            turns, before = [], 0
            while not all(task.done() for task in tasks):
                if len(tasks) < 8_000 and stage.phase_is(Ready):
                    tasks += [asyncio.create_task(stage.lease()) for _ in range(50)]
                await asyncio.sleep(0 if stage.phase_is(Ready) else 1)
                turns.append(stage.controller.target.in_flight - before)
                before = stage.controller.target.in_flight
            assert max(turns) <= 2 * 64
            assert before == len(tasks) == 8_000

    async def test_requests_go_to_the_replica_that_has_the_fewest(self) -> None:
        async with running(replicas=1) as stage:
            there = Endpoint("127.0.0.2", 8000)
            stage.controller.observed(Observation(2, 2, (HERE, there)))
            leases = [stage.controller.lease_now() for _ in range(4)]
            endpoints = [lease.endpoint for lease in leases if lease is not None]
            assert endpoints == [HERE, there, HERE, there]
            assert leases[0] is not None
            leases[0].release()
            again = stage.controller.lease_now()
            assert again is not None
            assert again.endpoint == HERE

    async def test_another_replica_than_that_which_failed_is_taken_if_there_is_one(self) -> None:
        async with running(replicas=1) as stage:
            there = Endpoint("127.0.0.2", 8000)
            for endpoints, besides, taken in (
                ((HERE, there), HERE, there),
                ((HERE, there), there, HERE),
                ((HERE,), HERE, HERE),
            ):
                stage.controller.observed(Observation(len(endpoints), len(endpoints), endpoints))
                for _ in range(3):
                    lease = stage.controller.lease_now(besides)
                    assert lease is not None
                    assert lease.endpoint == taken

    async def test_a_replica_that_comes_lets_in_those_who_wait_for_a_place(self) -> None:
        async with running(replicas=1, bounds=Bounds(in_flight=1)) as stage:
            assert stage.controller.lease_now() is not None
            second = asyncio.create_task(stage.lease())
            await asyncio.sleep(0)
            there = Endpoint("127.0.0.2", 8000)
            stage.controller.observed(Observation(2, 2, (HERE, there)))
            assert (await second).endpoint == there


async def test_a_wake_that_somebody_was_told_of_goes_on_although_those_who_wait_leave() -> None:
    async with running(keep_abandoned=False) as stage:
        caller = asyncio.create_task(stage.lease())
        await asyncio.sleep(10)
        stage.controller.wake_for_nobody()
        caller.cancel()
        await asyncio.wait([caller])
        await asyncio.sleep(51)
        assert stage.phase_is(Ready)


async def test_the_recorder_is_told_when_the_progress_changes_and_only_then() -> None:
    async with running() as stage:
        pulling, waiting = Progress(StartStage.PULLING), Progress(StartStage.SCHEDULING, "no node")
        for seen in (None, waiting, waiting, pulling, pulling, None):
            stage.controller.observed(Observation(0, 0, progress=seen))
        assert stage.recording.progress == [waiting, pulling, None]


async def test_a_phase_is_told_before_the_progress_that_came_with_it() -> None:
    async with running() as stage:
        stage.controller.observed(Observation(1, 1, progress=Progress(StartStage.LOADING)))
        assert stage.recording.order[-2:] == ["Waking", "LOADING"]
