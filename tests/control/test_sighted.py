"""It is known whether a backend tells how its target is, and what it tells is passed on as it is."""

from __future__ import annotations

import asyncio

import pytest

from tests.adapters.contract import Seen
from tests.control.scaling_stage import HERE, REF
from vllm_chill.adapters.memory import MemoryBackend
from vllm_chill.control.sighted import SightedBackend
from vllm_chill.errors import BackendUnavailable

pytestmark = pytest.mark.looptime(start=100)


async def test_it_sees_from_the_first_observation_until_a_loss_and_from_the_next_one_on() -> None:
    inner, seen = MemoryBackend(HERE, replicas=1), Seen()
    backend = SightedBackend(inner)
    sight = [backend.sees]
    watching = asyncio.create_task(backend.watch(REF, seen))
    await asyncio.sleep(0)
    sight.append(backend.sees)
    inner.lose("the API server is away")
    sight.append(backend.sees)
    await backend.scale(REF, 2)
    sight.append(backend.sees)
    assert sight == [False, True, False, True]
    assert (seen.losses, inner.writes) == (["the API server is away"], [2])
    assert [one.replicas for one in seen.observations] == [1, 2]
    watching.cancel()
    await asyncio.wait([watching])


async def test_what_cannot_be_caught_up_with_is_passed_on() -> None:
    inner = MemoryBackend(HERE)
    inner.unseen = BackendUnavailable("it is away")
    with pytest.raises(BackendUnavailable, match="it is away"):
        await SightedBackend(inner).catch_up(REF)
