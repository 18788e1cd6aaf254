"""Several proxies of one target, as they run, on loop time: nobody is ever cut, and what nobody uses sleeps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from random import Random

import looptime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from tests.control.peer_world import IDLE, Proxy, World, now, use
from vllm_chill.core.target import Asleep, Draining, Failed

pytestmark = pytest.mark.looptime(start=100)


async def a_while(world: World) -> None:
    """Random callers come to random proxies, which come, go, are killed, and lose their way to the API server."""
    random, users = world.random, set[asyncio.Task[None]]()
    for _ in range(random.randint(1, 3)):
        world.start()
    for _ in range(random.randint(5, 25)):
        await asyncio.sleep(random.choice([0.05, 1.0, 3.0, IDLE * 0.99, IDLE * 1.01, IDLE * 2]))
        proxy = random.choice(world.proxies)
        match random.randint(0, 11):
            case 0 if len(world.proxies) < 4:
                world.start()
            case 1 if len(world.proxies) > 1:
                await world.kill(proxy)
            case 2 if len(world.proxies) > 1 and proxy.controller.unused:
                await world.stop(proxy)
            case 3:
                for each in world.proxies:
                    each.road.away = True
                await asyncio.sleep(random.uniform(1, 90))
                for each in world.proxies:
                    each.road.away = False
            case 4:
                # Longer, and the others would take it for gone.
                proxy.road.away = True
                await asyncio.sleep(random.uniform(1, 12))
                proxy.road.away = False
            case 5 if not isinstance(proxy.controller.target.phase, Asleep):
                proxy.controller.stop_soon()
            case _:
                for _ in range(random.randint(1, 3)):
                    users.add(asyncio.ensure_future(use(random.choice(world.proxies), random.uniform(0, 40))))
        assert not world.engine.cut, world.engine.writes
        assert not world.broken()
    for user in users:
        user.cancel()
    await asyncio.wait(users) if users else None


delays = st.sampled_from([0.0, 0.05, 0.3, 1.4])


@pytest.mark.looptime(False)  # each history has a loop of its own
@given(st.integers(0, 2**32), delays)
@settings(max_examples=6, deadline=None)
def test_whatever_happens_nobody_is_cut_and_in_the_end_it_sleeps(seed: int, delay: float) -> None:
    _live(seed, delay)


@pytest.mark.slow
@pytest.mark.looptime(False)
@given(st.integers(0, 2**32), delays)
@settings(max_examples=100, deadline=None)
def test_the_same_many_times(seed: int, delay: float) -> None:
    _live(seed, delay)


def _live(seed: int, delay: float) -> None:
    async def live() -> None:
        world = World(Random(seed), delay=delay)
        try:
            await a_while(world)
            await asyncio.sleep(IDLE + 120)
            assert not world.broken()
            assert not world.engine.cut
            assert world.engine.seen.replicas == 0
            assert all(isinstance(proxy.controller.target.phase, Asleep | Failed) for proxy in world.proxies)
        finally:
            await world.close()

    with asyncio.Runner(loop_factory=lambda: looptime.new_event_loop(start=100)) as runner:
        runner.run(live())


async def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - loop time costs nothing
            await asyncio.sleep(0.1)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World(Random(1), delay=0.05)
    yield world
    assert not world.broken()
    assert not world.engine.cut
    await world.close()


async def two(world: World) -> tuple[Proxy, Proxy]:
    """Two proxies that know of one another: the one that leads, and the other."""
    leader = world.start()
    await until(lambda: leader.peering.leads)
    other = world.start()
    await until(lambda: leader.peering.others == (other.name,) and other.peering.others == (leader.name,))
    return leader, other


def numbers(world: World) -> list[int]:
    return [replicas for _, replicas in world.engine.writes]


async def test_two_that_wake_it_at_once_are_one_write_that_counts(world: World) -> None:
    pair = await two(world)
    await asyncio.gather(*(use(proxy, 1) for proxy in pair for _ in range(50)))
    assert numbers(world) == [1]
    assert [proxy.served for proxy in pair] == [50, 50]


async def test_a_stream_through_one_keeps_it_awake_and_idle_counts_from_its_end(world: World) -> None:
    leader, other = await two(world)
    await asyncio.gather(use(other, 5 * IDLE), use(leader, 1))
    ended = now()
    await until(lambda: numbers(world) == [1, 0])
    assert ended + IDLE - 0.1 <= now() <= ended + IDLE + 3
    assert leader.troubles == other.troubles == []


async def test_a_proxy_is_sure_to_have_led_until_it_was_last_seen_to(world: World) -> None:
    leader, other = await two(world)
    assert leader.peering.led_until(now()) == now()
    assert other.peering.led_until(now()) < now() - 1e6
    leader.road.away = True
    await until(lambda: not leader.peering.leads)
    lost = leader.peering.led_until(now())
    assert now() - 2 <= lost <= now()
    await asyncio.sleep(30)
    assert leader.peering.led_until(now()) == lost
    assert other.peering.led_until(now()) == now()
    leader.road.away = False


async def test_when_the_leader_is_killed_the_other_leads_and_waits_for_those_whom_it_served(world: World) -> None:
    leader, other = await two(world)
    served = asyncio.ensure_future(use(leader, 3600))
    await until(lambda: leader.served == 1)
    await until(lambda: other.controller.target.shared.in_use)
    await world.kill(leader)
    killed = now()
    await until(lambda: other.peering.leads)
    assert now() - killed <= 15 + 2 + 0.5
    await until(lambda: other.peering.others == ())
    assert 19 <= now() - killed <= 31, "its last report may be 10 s old"
    assert numbers(world) == [1]
    await until(lambda: numbers(world) == [1, 0])
    served.cancel()


async def test_a_proxy_that_ends_in_order_is_waited_for_by_nobody(world: World) -> None:
    leader, other = await two(world)
    await world.stop(leader)
    await until(lambda: other.peering.leads and other.peering.others == (), seconds=3)


async def test_nobody_is_let_in_until_the_others_know_of_it(world: World) -> None:
    await two(world)
    await use(world.proxies[0], 0)
    late = world.start(delay=2.0)
    user = asyncio.ensure_future(use(late, 0))
    await until(lambda: bool(late.controller.endpoints) or late.served > 0)
    assert late.name in world.reports.reports
    await user
    assert late.troubles == []


async def test_who_cannot_tell_the_others_serves_and_puts_nothing_to_sleep(world: World) -> None:
    proxy = world.start()
    proxy.road.refuses = "leases is forbidden"
    with capture_logs() as logs:
        await use(proxy, 0)
        await asyncio.sleep(10 * IDLE)
    assert proxy.served == 1
    assert numbers(world) == [1]
    assert proxy.peering.trouble == "leases is forbidden"
    assert [log["log_level"] for log in logs if log["event"].startswith("nothing is put to sleep")] == ["error"]
    proxy.road.refuses = None
    await until(lambda: numbers(world) == [1, 0])


async def test_while_the_api_server_is_away_nobody_is_cut_and_after_it_it_sleeps(world: World) -> None:
    leader, other = await two(world)
    await asyncio.gather(use(leader, 0), use(other, 0))
    for proxy in world.proxies:
        proxy.road.away = True
    await use(other, 10 * IDLE)
    assert numbers(world) == [1]
    for proxy in world.proxies:
        proxy.road.away = False
    back = now()
    await until(lambda: numbers(world) == [1, 0])
    assert now() - back <= IDLE + 20


async def test_when_the_api_server_is_back_nobody_is_taken_for_gone_who_could_not_report(world: World) -> None:
    leader, other = await two(world)
    await use(leader, 0)
    stream = asyncio.ensure_future(use(other, 12 * IDLE))
    await asyncio.sleep(1)
    for proxy in world.proxies:
        proxy.road.away = True
    await asyncio.sleep(5 * IDLE)
    leader.road.away = False
    await until(lambda: leader.peering.leads)
    await asyncio.sleep(8)
    other.road.away = False
    await stream
    assert numbers(world) == [1]
    await until(lambda: numbers(world) == [1, 0])


async def test_who_came_a_moment_ago_is_found_though_the_watch_is_late(world: World) -> None:
    leader = world.start()
    await until(lambda: leader.peering.leads)
    await use(leader, 0)
    leader.road.behind = 12.0
    await asyncio.sleep(IDLE - 5)
    late = world.start()
    await use(late, 2 * IDLE)
    assert late.troubles == []
    assert numbers(world) == [1]


@pytest.mark.parametrize("after", [0.0, 0.05, 0.1, 0.15, 0.2, 0.25])
async def test_who_comes_while_it_is_taken_down_is_served_before_or_after_that(world: World, after: float) -> None:
    leader, other = await two(world)
    await asyncio.gather(use(leader, 0), use(other, 0))
    async with asyncio.timeout(2 * IDLE):
        while not isinstance(leader.controller.target.phase, Draining):  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.02)
    await asyncio.sleep(after)
    await use(other, 5)
    assert other.served == 2
    assert other.troubles == []


@pytest.mark.parametrize("asked", ["leader", "other"])
async def test_an_operator_may_ask_any_proxy_to_stop_it(world: World, asked: str) -> None:
    leader, other = await two(world)
    await use(leader, 0)
    streaming = asyncio.ensure_future(use(other, 12))
    await asyncio.sleep(1)
    await {"leader": leader, "other": other}[asked].controller.stop()
    assert streaming.done()
    assert numbers(world) == [1, 0]


async def test_a_replica_that_is_to_go_is_waited_for_as_long_as_any_proxy_uses_it(world: World) -> None:
    leader, other = await two(world)
    await use(leader, 0)
    leader.controller.recommend("policy", 3)
    await until(lambda: len(other.controller.endpoints) == 3)
    streams = [asyncio.ensure_future(use(other, 30)) for _ in range(3)]
    await asyncio.sleep(1)
    leader.controller.recommend("policy", 1)
    await until(lambda: len(other.controller.endpoints) == 1, seconds=5)
    assert world.engine.seen.replicas == 3
    await asyncio.gather(*streams)
    await until(lambda: world.engine.seen.replicas == 1, seconds=5)


async def test_a_follower_recommends_to_nobody(world: World) -> None:
    leader, other = await two(world)
    await use(leader, 0)
    other.controller.recommend("policy", 3)
    await asyncio.sleep(5)
    assert numbers(world) == [1]


async def test_what_only_one_may_do_is_done_by_the_one_that_leads(world: World) -> None:
    leader, other = await two(world)
    doing: list[str] = []

    async def work(name: str) -> None:
        doing.append(name)
        try:
            await asyncio.sleep(3600)
        finally:
            doing.remove(name)

    tasks = [asyncio.create_task(p.peering.while_it_leads(partial(work, p.name))) for p in (leader, other)]
    await asyncio.sleep(1)
    assert doing == [leader.name]
    leader.road.away = True
    await until(lambda: doing == [other.name])
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert doing == []
