"""What every backend must do, as tests: a subclass names the world in `world`, and pytest runs the suite on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Protocol

import pytest

from vllm_chill.core.target import Observation, TargetRef
from vllm_chill.ports import ClusterBackend


@dataclass
class Seen:
    """An observer that keeps all it is told, and can be waited on."""

    observations: list[Observation] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def observed(self, observation: Observation) -> None:
        self.observations.append(observation)
        self._changed.set()

    def lost(self, cause: str) -> None:
        self.losses.append(cause)
        self._changed.set()

    @property
    def last(self) -> Observation | None:
        return self.observations[-1] if self.observations else None

    async def until(self, holds: Callable[[Observation], bool], seconds: float = 20) -> Observation:
        """Wait until the last observation is one of which `holds` is true."""
        async with asyncio.timeout(seconds):
            while self.last is None or not holds(self.last):
                self._changed.clear()
                await self._changed.wait()
        return self.last

    async def until_lost(self, times: int = 1, seconds: float = 20) -> str:
        """Wait until it could not be seen so many times; the last cause."""
        async with asyncio.timeout(seconds):
            while len(self.losses) < times:
                self._changed.clear()
                await self._changed.wait()
        return self.losses[-1]


class World(Protocol):
    """One backend with a target that exists and is asleep, and hands to do things to it from outside."""

    backend: ClusterBackend
    ref: TargetRef

    async def kill(self) -> None:
        """End the running replica behind the backend's back, so that it does not come back by itself soon."""

    async def break_start(self) -> None:
        """See to it that the next start fails for good, saying "cannot start" somewhere in its cause."""


def is_ready(seen: Observation) -> bool:
    return bool(seen.endpoints) and seen.replicas == 1


def is_gone(seen: Observation) -> bool:
    return seen.replicas == 0 and seen.live == 0


class BackendContract:
    """Inherit, and give a fixture `world` that yields a World."""

    @pytest.fixture
    async def seen(self, world: World) -> AsyncIterator[Seen]:
        seen = Seen()
        watching = asyncio.create_task(world.backend.watch(world.ref, seen))
        await seen.until(lambda _: True)
        yield seen
        watching.cancel()
        await asyncio.wait([watching])
        assert watching.cancelled()

    async def test_the_first_observation_is_what_is(self, world: World, seen: Seen) -> None:
        assert seen.observations[0] == Observation(0, 0)

    async def test_scaled_up_it_becomes_ready_with_an_endpoint(self, world: World, seen: Seen) -> None:
        await world.backend.scale(world.ref, 1)
        ready = await seen.until(is_ready)
        assert ready.live == 1
        assert ready.failure is None
        assert len(ready.endpoints) == 1

    async def test_when_scale_returns_the_write_has_been_observed(self, world: World, seen: Seen) -> None:
        await world.backend.scale(world.ref, 1)
        assert seen.last is not None
        assert seen.last.replicas == 1
        await world.backend.scale(world.ref, 0)
        assert seen.last.replicas == 0

    async def test_caught_up_what_was_written_has_been_observed(self, world: World, seen: Seen) -> None:
        await world.backend.scale(world.ref, 1)
        await world.backend.catch_up(world.ref)
        assert seen.last is not None
        assert seen.last.replicas == 1

    async def test_scaled_down_it_is_gone_and_never_ready_on_the_way(self, world: World, seen: Seen) -> None:
        await world.backend.scale(world.ref, 1)
        await seen.until(is_ready)
        await world.backend.scale(world.ref, 0)
        mark = len(seen.observations)
        assert seen.last is not None
        assert seen.last.endpoints == ()
        await seen.until(is_gone)
        assert all(o.endpoints == () for o in seen.observations[mark:])

    async def test_scaling_to_what_is_changes_nothing(self, world: World, seen: Seen) -> None:
        await world.backend.scale(world.ref, 0)
        assert all(o == Observation(0, 0) for o in seen.observations)
        await world.backend.scale(world.ref, 1)
        await seen.until(is_ready)
        await world.backend.scale(world.ref, 1)
        assert is_ready(seen.observations[-1])

    async def test_it_can_be_woken_again_and_again(self, world: World, seen: Seen) -> None:
        for _ in range(3):
            await world.backend.scale(world.ref, 1)
            await seen.until(is_ready)
            await world.backend.scale(world.ref, 0)
            await seen.until(is_gone)

    async def test_a_wake_right_after_a_sleep_becomes_ready(self, world: World, seen: Seen) -> None:
        await world.backend.scale(world.ref, 1)
        await seen.until(is_ready)
        await world.backend.scale(world.ref, 0)
        await world.backend.scale(world.ref, 1)
        await seen.until(is_ready)

    async def test_a_death_is_seen(self, world: World, seen: Seen) -> None:
        await world.backend.scale(world.ref, 1)
        await seen.until(is_ready)
        await world.kill()
        await seen.until(lambda o: not o.endpoints)

    async def test_a_start_that_cannot_succeed_says_why(self, world: World, seen: Seen) -> None:
        await world.break_start()
        await world.backend.scale(world.ref, 1)
        failed = await seen.until(lambda o: o.failure is not None)
        assert failed.failure is not None
        assert "cannot start" in failed.failure
        assert failed.endpoints == ()

    async def test_a_watch_that_ends_can_be_begun_anew(self, world: World) -> None:
        for _ in range(2):
            seen = Seen()
            watching = asyncio.create_task(world.backend.watch(world.ref, seen))
            await seen.until(lambda _: True)
            watching.cancel()
            await asyncio.wait([watching])
