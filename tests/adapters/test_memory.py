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
