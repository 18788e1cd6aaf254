from __future__ import annotations

import pytest

from tests.adapters.contract import BackendContract
from vllm_chill.adapters.memory import MemoryBackend
from vllm_chill.core.target import Endpoint, TargetRef


class MemoryWorld:
    def __init__(self) -> None:
        self.backend = MemoryBackend(Endpoint("127.0.0.1", 1), start_seconds=0.01, stop_seconds=0.01)
        self.ref = TargetRef("test", "memory")

    async def kill(self) -> None:
        self.backend.die("killed")

    async def break_start(self) -> None:
        self.backend.fail_start = "it cannot start"


class TestMemoryBackend(BackendContract):
    @pytest.fixture
    def world(self) -> MemoryWorld:
        return MemoryWorld()


@pytest.mark.parametrize(
    ("doomed", "left"),
    [
        pytest.param((), ["memory-1", "memory-2"], id="the newest, if none is"),
        pytest.param(("memory-1",), ["memory-2", "memory-3"], id="those that are"),
        pytest.param(("memory-1", "memory-2", "memory-3"), ["memory-1", "memory-2"], id="as many as must, if all are"),
        pytest.param(("memory-9",), ["memory-1", "memory-2"], id="the newest, if there is none such"),
    ],
)
async def test_the_doomed_go_first(doomed: tuple[str, ...], left: list[str]) -> None:
    backend = MemoryBackend(Endpoint("127.0.0.1", 1), replicas=3)
    await backend.scale(TargetRef("test", "memory"), 2, doomed=doomed)
    assert [replica.name for replica in backend.seen.members] == left
