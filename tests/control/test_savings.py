"""What a proxy counts and keeps, alone and among others, on loop time and with a wall clock that goes with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from random import Random

import looptime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from tests.control.peer_world import IDLE, Proxy, World
from vllm_chill.adapters.memory import MemoryBackend
from vllm_chill.adapters.memory_savings import MemorySavings
from vllm_chill.control.controller import ScaleController
from vllm_chill.control.running import running
from vllm_chill.control.savings import Savings, TargetSavings
from vllm_chill.core.savings import Tally
from vllm_chill.core.savings_ledger import KeptText, Ledger
from vllm_chill.core.target import Asleep, Endpoint, Limits, Observation, Ready, Shared, Target, TargetRef, Waking
from vllm_chill.errors import BackendUnavailable

HOUR = 3600.0
REF = TargetRef("ai-apps", "vllm")
NAME = str(REF)
MIDNIGHT = datetime(2026, 11, 22, tzinfo=UTC).timestamp()
TODAY, TOMORROW = date(2026, 11, 22), date(2026, 11, 23)

pytestmark = pytest.mark.looptime(start=0)


def now() -> float:
    return asyncio.get_running_loop().time()


def wall() -> float:
    """The wall clock: midnight when the loop begins."""
    return MIDNIGHT + now()


class Weak(MemorySavings):
    """A store whose next calls go wrong. `silent`: so many writes come to pass, and nobody is told so."""

    def __init__(self) -> None:
        super().__init__()
        self.fails: list[Exception] = []
        self.silent = 0
        self.seconds = 0.0

    async def read(self) -> KeptText | None:
        await asyncio.sleep(self.seconds)
        if self.fails:
            raise self.fails.pop(0)
        return await super().read()

    async def write(self, text: str, before: KeptText | None) -> None:
        await asyncio.sleep(self.seconds / 2)
        await super().write(text, before)
        await asyncio.sleep(self.seconds / 2)
        if self.silent:
            self.silent -= 1
            raise BackendUnavailable("the API server did not answer in time")

    @property
    def ledger(self) -> Ledger:
        return Ledger() if self.kept is None else Ledger.parse(self.kept.text)

    @property
    def total(self) -> Tally:
        return self.ledger.of(NAME).total


def close(one: Tally, other: Tally, within: float = 0.01) -> bool:
    numbers = ((one.asleep, one.awake, one.waited), (other.asleep, other.awake, other.waited))
    return (one.callers, one.wakes) == (other.callers, other.wakes) and numbers[0] == pytest.approx(
        numbers[1], abs=within
    )


@dataclass
class Alone:
    """One proxy of one target, which takes 60 s to start and has 4 GPUs."""

    savings: Savings
    counting: TargetSavings
    controller: ScaleController

    async def use(self, seconds: float) -> None:
        with self.controller.lease_now() or await self.controller.lease(600):
            await asyncio.sleep(seconds)


@asynccontextmanager
async def alone(store: MemorySavings | None, *, gpus: int | None = 4, idle: float = HOUR) -> AsyncIterator[Alone]:
    savings = Savings(store, f"p{now()}", wall=wall)
    counting = savings.of(NAME, lambda: gpus)
    backend = MemoryBackend(Endpoint("127.0.0.1", 1), start_seconds=60)
    controller = ScaleController(REF, Limits(idle, 1800), backend, counting)
    controller.on_held = counting.looked
    async with running(savings.run()) as keeping:
        async with running(controller.run()):
            await asyncio.sleep(0)
            yield Alone(savings, counting, controller)
        assert not keeping.done()


async def at(hours: float) -> None:
    await asyncio.sleep(hours * HOUR - now())


async def test_a_scripted_day_agrees_with_hand_arithmetic_over_restarts() -> None:
    """4 GPUs, an idle timeout of an hour, starts of a minute; the proxy is started anew twice, asleep and awake."""
    store = Weak()
    async with alone(store) as first:
        await at(8)
        # Three callers wake it at 08:00 and wait 60 s, 60 s and 30 s; the last answer ends at 09:01.
        users = [asyncio.ensure_future(first.use(HOUR)) for _ in range(2)]
        await asyncio.sleep(30)
        users.append(asyncio.ensure_future(first.use(60)))
        await asyncio.gather(*users)
        # Asleep at 10:01.
        await at(12)
    day = (8 + (12 - 10 - 1 / 60)) * HOUR * 4
    assert close(store.total, Tally(asleep=day, awake=(2 + 1 / 60) * HOUR * 4, waited=150, callers=3, wakes=1), 10)
    async with alone(store) as second:
        await at(23.5)
        # Awake from 23:30 until 00:32 of the next day.
        await second.use(60)
        await at(25)
    ledger = store.ledger
    assert ledger.since == MIDNIGHT
    assert list(ledger.accounts) == [NAME]
    days = ledger.of(NAME).days
    assert list(days) == [TODAY, TOMORROW]
    asleep = (8 + (23.5 - 10 - 1 / 60)) * HOUR * 4
    awake = (2 + 1 / 60 + 0.5) * HOUR * 4
    assert close(days[TODAY], Tally(asleep, awake, waited=210, callers=4, wakes=2), 10)
    late = 32 * 60 * 4
    assert close(days[TOMORROW], Tally(asleep=HOUR * 4 - late, awake=late), 10)
    # All of the time is there: 25 hours of 4 GPUs.
    assert ledger.of(NAME).total.asleep + ledger.of(NAME).total.awake == pytest.approx(25 * HOUR * 4, abs=0.1)


async def test_it_is_written_every_few_minutes_and_not_more_often_than_once_in_one() -> None:
    store = Weak()
    async with alone(store, idle=5) as here:
        await asyncio.sleep(HOUR)
        # The first when it is seen to be asleep, and then one in 5 minutes.
        assert store.writes in (12, 13)
        before = store.writes
        for _ in range(20):
            await here.use(1)
            await asyncio.sleep(10)
        assert store.writes - before <= 25
        assert store.total.asleep + store.total.awake >= (now() - 300) * 4


async def test_what_was_counted_since_the_last_write_is_told_at_once() -> None:
    async with alone(Weak()) as here:
        await asyncio.sleep(7.5)
        assert close(here.savings.ledger.of(NAME).total, Tally(asleep=30))
        assert [(one.target, one.asleep, one.awake) for one in here.savings.gpu_seconds] == [(NAME, 30, 0)]


async def test_a_proxy_that_is_killed_loses_what_it_has_not_written() -> None:
    store = Weak()
    async with alone(store) as here:
        await asyncio.sleep(HOUR)
        killed = store.kept
    assert killed is not None
    lost = HOUR * 4 - Ledger.parse(killed.text).of(NAME).total.asleep
    assert 0 <= lost <= 300 * 4
    assert here.savings.ledger.of(NAME).total.asleep == pytest.approx(HOUR * 4)


async def test_a_write_that_came_to_pass_unheard_is_not_added_twice() -> None:
    store = Weak()
    store.silent = 3
    async with alone(store) as here:
        await asyncio.sleep(HOUR)
        assert store.silent == 0
        assert here.savings.ledger.of(NAME).total.asleep == pytest.approx(HOUR * 4)
        store.silent = 1
    store.silent = 0
    assert store.total.asleep <= HOUR * 4 + 0.1


async def test_what_a_write_did_unheard_is_known_to_whoever_asks() -> None:
    store = Weak()
    async with alone(store) as here:
        store.silent = 1
        await asyncio.sleep(70)
        assert store.silent == 0
        assert (await here.savings.refreshed()).of(NAME).total.asleep == pytest.approx(280)


async def test_the_last_write_goes_on_where_the_end_broke_off_another() -> None:
    store = Weak()
    async with alone(store) as here:
        await asyncio.sleep(59)
        store.seconds = 2
        await asyncio.sleep(3.5)  # in the middle of a write
        store.seconds = 0
    assert store.total.asleep == pytest.approx(62.5 * 4)
    assert here.savings.ledger.of(NAME).total.asleep == pytest.approx(62.5 * 4)


async def test_a_store_that_is_away_is_told_of_once_and_nothing_is_lost() -> None:
    store = Weak()
    store.fails = [BackendUnavailable("away")] * 5
    with capture_logs() as logs:
        async with alone(store):
            await asyncio.sleep(HOUR)
    assert [(line["event"], line["cause"]) for line in logs] == [("what was saved is not kept", "away")]
    assert store.total.asleep == pytest.approx(HOUR * 4)


async def test_a_store_that_hangs_holds_up_neither_who_asks_nor_the_end() -> None:
    store = Weak()
    async with alone(store) as here:
        await asyncio.sleep(30)
        store.seconds = 1e6
        begun = now()
        assert (await here.savings.refreshed()).of(NAME).total.asleep == pytest.approx((now()) * 4)
        assert now() - begun <= 2
        with capture_logs() as logs:
            begun = now()
    assert now() - begun <= 5.1
    assert [line["event"] for line in logs] == []


async def test_what_cannot_be_read_is_not_written_over() -> None:
    store = Weak()
    store.kept = KeptText('{"version": 2}', "1")
    with capture_logs() as logs:
        async with alone(store) as here:
            await asyncio.sleep(HOUR)
            assert here.savings.ledger.of(NAME).total.asleep == pytest.approx(HOUR * 4)
    assert store.kept == KeptText('{"version": 2}', "1")
    [line] = logs
    assert "it is of version 2, and this one knows 1; move it away" in line["cause"]


async def test_an_empty_text_is_nothing() -> None:
    store = Weak()
    store.kept = KeptText("", "1")
    async with alone(store):
        await asyncio.sleep(10)
    assert store.total.asleep == pytest.approx(40)


async def test_without_a_store_it_is_counted_while_the_proxy_runs() -> None:
    async with alone(None) as here:
        await at(1)
        assert (await here.savings.refreshed()).of(NAME).total.asleep == pytest.approx(4 * HOUR)


@pytest.mark.parametrize(("gpus", "counts"), [(None, 1), (0, 0), (8, 8)])
async def test_gpus_that_are_not_known_count_as_one(gpus: int | None, counts: int) -> None:
    async with alone(None, gpus=gpus) as here:
        await asyncio.sleep(10)
        account = here.savings.ledger.of(NAME)
        assert (account.gpus, account.total.asleep) == (gpus, 10 * counts)


async def test_a_target_that_is_gone_is_counted_no_longer_and_what_was_stays() -> None:
    async with alone(None) as here:
        await asyncio.sleep(10)
        here.savings.forget(NAME)
        await asyncio.sleep(10)
        assert here.savings.ledger.of(NAME).total.asleep == 40
        assert list(here.savings.gpu_seconds) == []


async def test_a_wall_clock_that_is_set_makes_no_time_and_takes_none() -> None:
    set_by = 0.0
    savings = Savings(wall=lambda: wall() + set_by)
    counting = savings.of(NAME, lambda: 1)
    counting.looked(Target(REF, Asleep(0), observed=Observation(0, 0)), now())
    for set_by in (0.0, 1e6, -1e6, 1e12, -1e12, 5.0):
        await asyncio.sleep(100)
        assert savings.ledger.of(NAME).total.asleep == pytest.approx(now()), set_by


# Among others.


def target(replicas: int, *, leads: bool) -> Target:
    phase = Ready(0, 0) if replicas else Asleep(0)
    return Target(REF, phase, observed=Observation(replicas, replicas), shared=Shared(leads=leads))


async def test_what_passed_while_it_stood_still_is_counted_by_who_led_meanwhile() -> None:
    """It led until 10, and finds at 100 that it does not."""
    savings = Savings(led_until=lambda now: min(now, 10.0), wall=wall)
    counting = savings.of(NAME, lambda: 1)
    counting.looked(target(0, leads=True), now())
    await asyncio.sleep(100)
    assert savings.ledger.of(NAME).total == Tally(asleep=10)
    counting.looked(target(0, leads=False), now())
    await asyncio.sleep(100)
    assert savings.ledger.of(NAME).total == Tally(asleep=10)


async def test_who_does_not_lead_counts_its_callers_and_no_gpu_time() -> None:
    savings = Savings(wall=wall)
    counting = savings.of(NAME, lambda: 1)
    counting.looked(target(0, leads=False), now())
    counting.changed(target(0, leads=False), Target(REF, Waking(0, confirmed=False)), now())
    await asyncio.sleep(100)
    counting.held(30)
    counting.looked(target(1, leads=False), now())
    assert savings.ledger.of(NAME).total == Tally(waited=30, callers=1)


@dataclass
class Counted:
    """What a world of proxies comes to, and what it should."""

    store: Weak = field(default_factory=Weak)
    savings: dict[str, Savings] = field(default_factory=dict)
    keeping: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    waits: list[float] = field(default_factory=list)

    def start(self, world: World) -> Proxy:
        """One more proxy, which counts."""
        proxies: list[Proxy] = []
        begun = now()

        def led_until(now: float) -> float:
            return proxies[0].peering.led_until(now) if proxies else now

        savings = Savings(
            self.store, f"{begun}/{len(self.savings)}", led_until=led_until, wall=wall, least_seconds=5, most_seconds=20
        )
        counting = savings.of(NAME, lambda: 1)
        proxy = world.start(recorder=counting)
        proxies.append(proxy)
        proxy.controller.on_held = counting.looked
        self.savings[proxy.name] = savings
        self.keeping[proxy.name] = asyncio.ensure_future(savings.run())
        return proxy

    async def stop(self, world: World, proxy: Proxy) -> None:
        await world.stop(proxy)
        self.keeping[proxy.name].cancel()
        await asyncio.wait([self.keeping.pop(proxy.name)])

    async def use(self, proxy: Proxy, seconds: float) -> None:
        """One request; how long it is held for a wake is noted."""
        begun = now()
        lease = proxy.controller.lease_now()
        if lease is None:
            lease = await proxy.controller.lease(300)
            phase = proxy.controller.target.phase
            assert isinstance(phase, Ready)
            if (waited := max(0.0, phase.since - begun)) >= 0.01:
                self.waits.append(waited)
        with lease:
            await asyncio.sleep(seconds)


async def a_while_of_counting(world: World, counted: Counted) -> float:
    """Callers come to any of two or three proxies; some are stopped in order and replaced. How long it took."""
    random, begun, users = world.random, now(), set[asyncio.Task[None]]()
    proxies = [counted.start(world) for _ in range(random.randint(2, 3))]
    for _ in range(random.randint(4, 10)):
        await asyncio.sleep(random.choice([0.5, 3.0, IDLE * 0.99, IDLE * 2, 90.0]))
        match random.randint(0, 4):
            case 0 if (proxy := random.choice(proxies)).controller.unused:
                await counted.stop(world, proxy)
                proxies.remove(proxy)
                proxies.append(counted.start(world))
            case 1:
                counted.store.silent = 2
            case _:
                users |= {
                    asyncio.ensure_future(counted.use(random.choice(proxies), random.uniform(0, 40)))
                    for _ in range(random.randint(1, 4))
                }
    await asyncio.gather(*users)
    counted.store.silent = 0
    for proxy in proxies:
        await counted.stop(world, proxy)
    return now() - begun


@pytest.mark.looptime(False)  # each history has a loop of its own
def test_several_proxies_count_nothing_twice_and_lose_no_caller() -> None:
    _count(1)


@pytest.mark.slow
@pytest.mark.looptime(False)
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1 << 32))
def test_the_same_many_times(seed: int) -> None:
    _count(seed)


def _count(seed: int) -> None:
    async def count() -> None:
        world, counted = World(Random(seed), delay=0.05), Counted()
        took = await a_while_of_counting(world, counted)
        total = counted.store.total
        assert total.callers == len(counted.waits)
        assert total.waited == pytest.approx(sum(counted.waits), abs=0.05)
        # While nobody leads nobody counts; never do two.
        assert total.asleep + total.awake <= took + 0.1
        assert total.wakes <= sum(replicas == 1 for _, replicas in world.engine.writes)

    with asyncio.Runner(loop_factory=lambda: looptime.new_event_loop(start=0)) as runner:
        runner.run(count())


async def test_two_proxies_that_stay_lose_nothing_at_all() -> None:
    world, counted = World(Random(7), delay=0.05), Counted()
    first, second = counted.start(world), counted.start(world)
    async with asyncio.timeout(60):
        while not (first.peering.leads or second.peering.leads):  # noqa: ASYNC110 - loop time costs nothing
            await asyncio.sleep(0.1)
    led = now()
    await asyncio.sleep(100)
    await asyncio.gather(counted.use(first, 10), counted.use(second, 100), counted.use(second, 5))
    await asyncio.sleep(100)
    for proxy in (first, second):
        assert len((await counted.savings[proxy.name].refreshed()).accounts) == 1
    took = now() - led
    await counted.stop(world, first)
    await counted.stop(world, second)
    total = counted.store.total
    assert total.asleep + total.awake == pytest.approx(took, abs=5)
    assert (total.callers, total.wakes) == (3, 1)
    assert total.awake == pytest.approx(2 + 100 + IDLE, abs=5)
