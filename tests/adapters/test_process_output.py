"""What a command of this machine writes, as ports.EngineOutput."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.adapters.contract import Seen, is_gone
from tests.adapters.output_contract import SECRET, OutputContract, Told
from tests.adapters.writing_engine import END
from vllm_chill.adapters.mask import Mask
from vllm_chill.adapters.output_log import OutputLog
from vllm_chill.adapters.process import Command, ProcessBackend
from vllm_chill.core.engine_output import Line
from vllm_chill.core.target import TargetRef

REF = TargetRef("test", "process")
ENGINE = str(Path(__file__).with_name("writing_engine.py"))


class ProcessWorld:
    def __init__(self, pipe: Path) -> None:
        os.mkfifo(pipe)
        self._pipe = os.open(pipe, os.O_RDWR)
        command = Command((sys.executable, "-S", ENGINE, str(pipe)), port=1)
        self.printed: list[str] = []
        self.backend = ProcessBackend(command, self.printed.append, Mask(SECRET))
        self.output = self.backend.output
        self.seen = Seen()

    async def start(self) -> str:
        await self.backend.scale(REF, 1)
        return (await self.seen.until(lambda seen: bool(seen.members))).members[0].name

    async def write(self, *chunks: bytes) -> None:
        for chunk in chunks:
            os.write(self._pipe, chunk)

    async def end(self) -> None:
        os.write(self._pipe, END)
        await self.seen.until(is_gone)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[ProcessWorld]:
    world = ProcessWorld(tmp_path / "pipe")
    async with world.backend:
        watching = asyncio.create_task(world.backend.watch(REF, world.seen))
        yield world
        watching.cancel()


class TestProcessOutput(OutputContract):
    async def test_what_the_run_before_wrote_stays_and_a_failure_has_no_key(self, world: ProcessWorld) -> None:
        first = await world.start()
        await world.write(f"the key is {SECRET}\n".encode())
        told = Told()
        following = asyncio.create_task(world.output.follow(10, told))
        await told.until(lambda: bool(told.lines))
        following.cancel()
        await world.end()
        assert [*world.output.recent(10)] == [Line(first, "the key is ***")]
        assert world.printed == ["the key is ***"]
        assert world.seen.last is not None
        assert "the key is ***" in str(next(seen.failure for seen in world.seen.observations if seen.failure))


class TestOutputLog:
    def test_it_keeps_no_more_than_its_bounds(self) -> None:
        log = OutputLog()
        for number in range(3000):
            log.wrote(Line("run-1", str(number)))
        assert [line.text for line in log.recent(5000)] == [str(number) for number in range(2000, 3000)]
        for _ in range(100):
            log.wrote(Line("run-2", "x" * 4096))
        assert sum(len(line.text) for line in log.recent(5000)) <= 128 << 10

    def test_one_line_is_kept_however_long(self) -> None:
        log = OutputLog()
        log.wrote(Line("run-1", "x" * (200 << 10)))
        assert len(log.recent(10)) == 1
