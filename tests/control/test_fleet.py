"""Models that share GPUs, with the memory backend, on loop time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from tests.control.test_controller import Recording
from vllm_chill.adapters.memory import MemoryBackend
from vllm_chill.control.controller import ScaleController
from vllm_chill.control.fleet import Fleet
from vllm_chill.core.switching import Claim, Rules
from vllm_chill.core.target import Asleep, Endpoint, Limits, Phase, Queued, Ready, TargetRef, Waking
from vllm_chill.errors import HoldExpired, ModelNotFound, WakeFailed

pytestmark = pytest.mark.looptime(start=100)

RULES = Rules(residency_seconds=60, most_wait_seconds=300)


@dataclass
class Band:
    """Some models, each with its controller and backend; `most_awake` is how many ran at a time at the most."""

    fleet: Fleet
    controllers: dict[str, ScaleController]
    backends: dict[str, MemoryBackend]
    switches: list[tuple[str, str, bool]] = field(default_factory=list)

    def is_in(self, name: str, phase: type[Phase]) -> bool:
        return isinstance(self.controllers[name].target.phase, phase)

    def running(self) -> set[str]:
        return {name for name, backend in self.backends.items() if backend.seen.replicas or backend.seen.live}

    async def use(self, name: str, seconds: float, hold: float = 1000) -> float:
        """Ask a model for an answer that takes that long; when it began."""
        lease = await self.controllers[name].lease(hold)
        with lease:
            began = asyncio.get_running_loop().time()
            assert name in self.running()
            await asyncio.sleep(seconds)
            assert name in self.running(), "cut"
        return began


@asynccontextmanager
async def band(
    *claims: Claim, rules: Rules = RULES, start: float = 10, stop: float = 5, awake: tuple[str, ...] = ()
) -> AsyncIterator[Band]:
    switches: list[tuple[str, str, bool]] = []
    fleet = Fleet(rules, switched=lambda before, after, _, ok: switches.append((before, after, ok)))
    here = Band(fleet, {}, {}, switches)
    tasks = [asyncio.create_task(fleet.run())]
    for number, claim in enumerate(claims):
        backend = MemoryBackend(
            Endpoint("127.0.0.1", 9000 + number),
            start_seconds=start,
            stop_seconds=stop,
            replicas=int(claim.name in awake),
        )
        limits = Limits(300, 1800)
        controller = ScaleController(TargetRef("ai", claim.name), limits, backend, Recording())
        here.controllers[claim.name], here.backends[claim.name] = controller, backend
        fleet.add(claim, controller)
        tasks.append(asyncio.create_task(controller.run()))
    await asyncio.sleep(0.001)
    yield here
    for task in tasks:
        assert not task.done() or task.result() is None
        task.cancel()
    await asyncio.wait(tasks)


A, B, C = (Claim(name, group="rtx") for name in "abc")


async def test_a_wake_that_nobody_is_in_the_way_of_is_let_go_at_once() -> None:
    async with band(A, B) as here:
        assert await here.use("a", 1) == pytest.approx(110.0, abs=0.1)


async def test_two_that_exclude_each_other_never_run_together() -> None:
    async with band(A, B) as here:
        watching = asyncio.create_task(_never_more_than(here, 1))
        first, second = await asyncio.gather(here.use("a", 5), here.use("b", 5))
        watching.cancel()
        # a is ready at 110, resides until 170 and takes 5 s to end; b takes 10 s to start.
        assert first == pytest.approx(110, abs=0.1)
        assert second == pytest.approx(185, abs=0.1)
        assert here.switches == [("a", "b", True)]


async def test_a_switch_waits_for_the_streams_and_lets_no_more_in() -> None:
    async with band(A, B, awake=("a",)) as here:
        streams = [asyncio.create_task(here.use("a", 400)) for _ in range(20)]
        await asyncio.sleep(1)
        other = asyncio.create_task(here.use("b", 1))
        await asyncio.sleep(300)  # as long as b waits for a model that is used
        late = asyncio.create_task(here.use("a", 1))
        await asyncio.sleep(50)
        assert not late.done()
        assert here.is_in("b", Queued)
        await asyncio.gather(*streams)
        assert await other == pytest.approx(515, abs=1)
        assert await late > 515


async def test_everybody_who_waits_is_served_before_the_switch() -> None:
    async with band(A, B) as here:
        users = [asyncio.create_task(here.use("a", 20)) for _ in range(50)]
        await asyncio.sleep(1)
        other = asyncio.create_task(here.use("b", 1))
        began = await asyncio.gather(*users)
        assert max(began) < await other


async def test_two_clients_that_take_turns_switch_no_more_often_than_the_residency_allows() -> None:
    async with band(A, B, start=2, stop=1) as here:
        end = asyncio.get_running_loop().time() + 600

        async def client(name: str) -> int:
            count = 0
            while asyncio.get_running_loop().time() < end:
                await here.use(name, 0.5)
                count += 1
                await asyncio.sleep(0.1)
            return count

        counts = await asyncio.gather(client("a"), client("b"))
        assert min(counts) > 50
        assert 4 <= len(here.switches) <= 600 / 60


async def test_callers_that_give_up_and_come_again_do_not_lose_their_turn() -> None:
    async with band(A, B, awake=("a",)) as here:
        stream = asyncio.create_task(here.use("a", 1000))
        more = asyncio.create_task(_keep_using(here, "a", 2000))
        for _ in range(4):
            with pytest.raises(HoldExpired, match="a has them"):
                await here.use("b", 1, hold=60)
        await asyncio.sleep(1)
        with pytest.raises(HoldExpired):
            await here.use("b", 1, hold=70)
        assert here.is_in("a", type(here.controllers["a"].target.phase))
        await stream
        assert await here.use("b", 1, hold=120) > 0
        more.cancel()


async def test_a_budget_evicts_the_longest_unused_and_never_a_busy_one() -> None:
    rules = Rules(0, 300, {"": 2})
    x, y, z = (Claim(name) for name in "xyz")
    async with band(x, y, z, rules=rules, start=1, stop=1) as here:
        await here.use("x", 1)
        busy = asyncio.create_task(here.use("x", 500))
        await here.use("y", 1)
        await asyncio.sleep(10)
        await here.use("z", 1)
        assert here.running() == {"x", "z"}
        await busy


async def test_what_never_fits_is_told_so_at_once() -> None:
    async with band(Claim("vast", gpus=8), rules=Rules(60, 300, {"": 4})) as here:
        with pytest.raises(WakeFailed, match="needs 8 GPUs, and --gpu-budget has 4"):
            await here.use("vast", 1)


async def test_models_without_claims_on_each_other_wake_together() -> None:
    async with band(Claim("x"), Claim("y")) as here:
        for began in await asyncio.gather(here.use("x", 1), here.use("y", 1)):
            assert began == pytest.approx(110, abs=0.1)


async def test_what_runs_already_is_adopted_and_waits_for_nobody() -> None:
    async with band(A, B, awake=("a", "b")) as here:
        await asyncio.sleep(1)
        assert here.running() == {"a", "b"}
        for began in await asyncio.gather(here.use("a", 1), here.use("b", 1)):
            assert began == pytest.approx(101, abs=0.1)


async def test_a_switch_by_hand_puts_the_others_to_sleep_and_wakes_only_if_asked() -> None:
    async with band(A, B, awake=("a",)) as here:
        stream = asyncio.create_task(here.use("a", 30))
        await asyncio.sleep(1)
        switching = asyncio.create_task(here.fleet.switch("b", wake=False, wait=True))
        await asyncio.sleep(1)
        assert here.running() == {"a"}
        await stream
        await switching
        assert here.running() == set()
        assert here.fleet.active == "b"
        await here.fleet.switch("a", wake=True, wait=True)
        assert here.is_in("a", Ready)


async def test_what_is_replaced_is_so_while_nobody_uses_it_and_is_woken_again() -> None:
    async with band(A, awake=("a",)) as here:
        written: list[float] = []

        async def write() -> None:
            assert here.running() == set()
            written.append(asyncio.get_running_loop().time())

        stream = asyncio.create_task(here.use("a", 50))
        await asyncio.sleep(1)
        replacing = asyncio.create_task(here.controllers["a"].replaced(write, at_once=False))
        await asyncio.sleep(10)
        assert await here.use("a", 1) == pytest.approx(111, abs=0.2), "others are let in meanwhile"
        await stream
        await replacing
        assert written == [pytest.approx(155, abs=0.2)]
        await asyncio.sleep(11)
        assert here.is_in("a", Ready)


async def test_what_is_replaced_at_once_lets_nobody_in_and_cuts_nothing() -> None:
    async with band(A, awake=("a",)) as here:

        async def write() -> None:
            assert here.running() == set()

        stream = asyncio.create_task(here.use("a", 50))
        await asyncio.sleep(1)
        replacing = asyncio.create_task(here.controllers["a"].replaced(write, at_once=True))
        await asyncio.sleep(1)
        late = asyncio.create_task(here.use("a", 1))
        await stream
        await replacing
        assert await late == pytest.approx(165, abs=0.5)


async def test_a_replacement_of_what_sleeps_wakes_nothing() -> None:
    async with band(A) as here:

        async def write() -> None:
            assert here.running() == set()

        await here.controllers["a"].replaced(write, at_once=False)
        await asyncio.sleep(100)
        assert here.is_in("a", Asleep)


async def test_a_model_that_is_gone_tells_those_who_wait_and_lets_streams_end() -> None:
    async with band(A, B, awake=("a",)) as here:
        stream = asyncio.create_task(here.use("a", 50))
        waiting = asyncio.create_task(here.use("b", 1))
        await asyncio.sleep(1)
        here.controllers["b"].retire('The model "b" was deleted.')
        here.fleet.remove("b")
        with pytest.raises(ModelNotFound, match="was deleted"):
            await waiting
        here.controllers["a"].retire('The model "a" was deleted.')
        with pytest.raises(ModelNotFound):
            await here.use("a", 1)
        await stream
        await asyncio.sleep(10)
        assert here.running() == set()
        assert here.is_in("a", Asleep)


async def test_a_turn_outlasts_a_failed_start_of_the_one_before() -> None:
    async with band(A, B) as here:
        here.backends["a"].fail_start = "it exited with status 1"
        first = asyncio.create_task(here.use("a", 1))
        await asyncio.sleep(1)
        second = asyncio.create_task(here.use("b", 1))
        with pytest.raises(WakeFailed):
            await first
        assert await second == pytest.approx(120, abs=6)


async def _never_more_than(here: Band, count: int) -> None:
    while True:
        assert len(here.running()) <= count
        assert sum(here.is_in(name, Waking) or here.is_in(name, Ready) for name in here.controllers) <= count
        await asyncio.sleep(0.25)


async def _keep_using(here: Band, name: str, seconds: float) -> None:
    end = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < end:
        await here.use(name, 10, hold=2000)


async def test_all_replicas_of_a_model_count_and_it_may_have_what_is_left() -> None:
    rules = Rules(residency_seconds=0, budgets={"": 4})
    async with band(Claim("a"), Claim("b"), rules=rules, awake=("a",)) as here:
        here.controllers["a"].recommend("policy", 3)
        await asyncio.sleep(20)
        assert here.fleet.most_replicas("a") == 4
        assert here.fleet.most_replicas("b") == 1
        await here.use("b", 1)
        assert here.fleet.most_replicas("a") == 3
        assert here.running() == {"a", "b"}


async def test_replicas_that_leave_no_room_have_a_model_that_waits_wait() -> None:
    rules = Rules(residency_seconds=0, budgets={"": 3})
    async with band(Claim("a"), Claim("b"), rules=rules, awake=("a",)) as here:
        busy = asyncio.create_task(here.use("a", 100))
        await asyncio.sleep(0.1)
        here.controllers["a"].recommend("policy", 3)
        await asyncio.sleep(20)
        other = asyncio.create_task(here.use("b", 1))
        await asyncio.sleep(1)
        assert here.is_in("b", Queued)
        assert here.fleet.most_replicas("a") == 2
        here.controllers["a"].recommend("policy", 2)
        assert await other < 100 + 20 + 30
        await busy


async def test_nothing_is_said_of_a_model_that_takes_no_part() -> None:
    async with band(A) as here:
        assert here.fleet.most_replicas("a") is None
        assert here.fleet.most_replicas("nobody") is None
