"""What everything that tells an engine's output must do, as tests: a subclass names the world in `world`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

import pytest

from vllm_chill.core.engine_output import Line
from vllm_chill.errors import ReplicaNotFound
from vllm_chill.ports import EngineOutput

SECRET = "sk-the-engines-own"


@dataclass(eq=False)
class Told:
    """An observer that keeps all it is told, and can be waited on."""

    lines: list[Line] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def wrote(self, line: Line) -> None:
        self.lines.append(line)
        self._changed.set()

    def lost(self, cause: str) -> None:
        self.losses.append(cause)
        self._changed.set()

    @property
    def texts(self) -> list[str]:
        return [line.text for line in self.lines]

    async def until(self, holds: Callable[[], bool], seconds: float = 10) -> None:
        async with asyncio.timeout(seconds):
            while not holds():
                self._changed.clear()
                await self._changed.wait()


class World(Protocol):
    """One engine, and hands to have it write. It does not run at first."""

    output: EngineOutput

    async def start(self) -> str:
        """Start a run of it; the name of its replica, once it may be told to write."""

    async def write(self, *chunks: bytes) -> None:
        """Have the run write these, and return once they are out."""

    async def end(self) -> None:
        """End the run, and its replica with it."""


@asynccontextmanager
async def followed(output: EngineOutput, lines: int = 100, replica: str | None = None) -> AsyncIterator[Told]:
    """What a follower is told."""
    told = Told()
    following = asyncio.create_task(output.follow(lines, told, replica))
    try:
        yield told
    finally:
        following.cancel()
        await asyncio.wait([following])
        assert following.cancelled(), following.exception()


async def texts(output: EngineOutput, count: int, lines: int = 100) -> Sequence[str]:
    """What is read, once there are so many lines."""
    async with asyncio.timeout(10):
        while len(found := await output.read(lines)) < count:  # noqa: ASYNC110 - as any reader would
            await asyncio.sleep(0.01)
    return [line.text for line in found]


class OutputContract:
    """Inherit, and give a fixture `world` that yields a World."""

    async def test_before_the_first_run_there_is_nothing(self, world: World) -> None:
        assert list(await world.output.read(100)) == []

    async def test_what_was_written_is_read_in_its_order_and_by_whom(self, world: World) -> None:
        replica = await world.start()
        await world.write(b"one\n", b"two\nthree\n")
        assert await texts(world.output, 3) == ["one", "two", "three"]
        assert {line.source for line in await world.output.read(100, replica)} == {replica}

    async def test_there_are_no_more_lines_than_asked_for_and_those_are_the_last(self, world: World) -> None:
        await world.start()
        await world.write(*(b"%d\n" % number for number in range(30)))
        await texts(world.output, 30)
        assert await texts(world.output, 3, lines=3) == ["27", "28", "29"]

    async def test_who_follows_is_told_what_was_and_what_comes_each_line_once(self, world: World) -> None:
        await world.start()
        await world.write(b"0\n1\n2\n")
        await texts(world.output, 3)
        async with followed(world.output, 2) as told:
            await told.until(lambda: told.texts == ["1", "2"])
            for number in range(3, 9):
                await world.write(b"%d\n" % number)
            await told.until(lambda: told.texts[-1] == "8")
            assert told.texts == [str(number) for number in range(1, 9)]

    async def test_who_follows_while_it_sleeps_is_told_of_the_next_run_and_the_one_after(self, world: World) -> None:
        async with followed(world.output) as told:
            first = await world.start()
            await world.write(b"first\n")
            await told.until(lambda: told.texts == ["first"])
            await world.end()
            second = await world.start()
            await world.write(b"second\n")
            await told.until(lambda: len(told.lines) == 2)
            assert [(line.replica, line.text) for line in told.lines] == [(first, "first"), (second, "second")]

    async def test_it_is_text_that_no_terminal_obeys(self, world: World) -> None:
        await world.start()
        await world.write(b"\x1b[31mred\x1b[0m \x1b]0;title\x07\xff\x9b2J\x00\x08end\r\n", "rtl \u202eevil\n".encode())
        assert await texts(world.output, 2) == ["red \ufffd\ufffd2Jend", "rtl evil"]

    async def test_a_long_line_comes_in_pieces_that_are_bounded(self, world: World) -> None:
        await world.start()
        await world.write(b"x" * 10_000 + b"\n", b"end\n")
        found = await texts(world.output, 4)
        assert max(map(len, found)) <= 4096
        assert "".join(found) == "x" * 10_000 + "end"

    @pytest.mark.parametrize("before", [0, 4080, 4090])
    async def test_the_engines_key_is_not_seen_wherever_it_is(self, world: World, before: int) -> None:
        await world.start()
        await world.write(b"y" * before + b"api_key=" + SECRET[:5].encode(), SECRET[5:].encode() + b":end\n")
        async with followed(world.output) as told:
            await told.until(lambda: "".join(told.texts).endswith("end"))
            assert "".join(told.texts) == "y" * before + "api_key=***:end"

    async def test_a_replica_that_there_is_not_is_an_error_with_those_there_are(self, world: World) -> None:
        replica = await world.start()
        await world.write(b"x\n")
        await texts(world.output, 1)
        with pytest.raises(ReplicaNotFound, match=replica):
            await world.output.read(10, "another")
        with pytest.raises(ReplicaNotFound, match=replica):
            await world.output.follow(10, Told(), "another")
