"""Several proxies of one target, as they run, on loop time: nobody is ever cut, and what nobody uses sleeps."""

from __future__ import annotations

import asyncio
from random import Random

import looptime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.control.peer_world import IDLE, World, use
from vllm_chill.core.target import Asleep, Failed

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
@settings(max_examples=10, deadline=None)
def test_whatever_happens_nobody_is_cut_and_in_the_end_it_sleeps(seed: int, delay: float) -> None:
    _live(seed, delay)


@pytest.mark.slow
@pytest.mark.looptime(False)
@given(st.integers(0, 2**32), delays)
@settings(max_examples=300, deadline=None)
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
