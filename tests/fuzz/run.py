"""A fuzz run against a whole proxy: clients and an upstream that send damaged bytes, over real sockets.

    python -m tests.fuzz.run [--inputs 100000] [--seed 1] [--lane on|off] [--loop asyncio|uvloop]

Each input is one connection: bytes from the corpus, damaged and cut at random, to a proxy in this process, whose
upstream answers with bytes that are damaged too; the client may leave at any time. What counts as a crash is an
exception that reaches the event loop, an error in the log, and a bug that is told as one. What counts as a leak is
anything that is left of a batch once it is over: a lease, a held byte, a request, a task, an open file. The same seed
gives the same bytes.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.fuzz.corpus import pieces, request, response
from tests.proxy.wire import Peer, upstream_of
from tests.scenarios.stage import Stage, stage
from vllm_chill.core.target import Observation
from vllm_chill.errors import AnswerableError
from vllm_chill.proxy.aiohttp_seam import cut_off
from vllm_chill.proxy.client_limits import ClientLimits

LIMITS = ClientLimits(head_seconds=0.5, body_seconds=0.5, send_seconds=1.0, body_bytes=20_000, connections=None)
AT_A_TIME = 24
BATCH = 240
PATIENCE_SECONDS = 20.0


@dataclass
class Figures:
    """What came of a run."""

    inputs: int = 0
    crashes: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    resident_kb: list[int] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def growth_kb(self) -> float:
        """By how many KB memory grew for 1000 inputs in the second half of the run; the first is for caches to fill."""
        half = self.resident_kb[len(self.resident_kb) // 2 :]
        if len(half) < 4:
            return 0.0
        slope = statistics.linear_regression(range(len(half)), half).slope
        return slope * 1000 / BATCH


def resident_kb() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS")))


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a number is all that is wanted


class Upstream:
    """Reads whatever comes, and answers with whatever."""

    def __init__(self, rng: random.Random) -> None:
        self.random = rng

    async def __call__(self, peer: Peer) -> None:
        rng = self.random
        while await peer.reader.read(1 << 16):
            for piece in pieces(rng, response(rng)):
                await peer.send(piece)
                if rng.random() < 0.2:
                    await asyncio.sleep(0.001)
            match rng.randrange(6):
                case 0:
                    cut_off(peer.writer.transport, reset=True)  # type: ignore[arg-type]
                    return
                case 1:
                    return


async def one(rng: random.Random, s: Stage, figures: Figures) -> None:
    """One connection, from its first byte to its end."""
    data = request(rng)
    cut, patience = pieces(rng, data), rng.choice([0.0, 0.005, 0.05, 0.3])
    leave = rng.randrange(4)
    peer = Peer(*await asyncio.open_connection(*s.address))
    answer = b""
    try:
        for piece in cut:
            peer.writer.write(piece)
            if rng.random() < 0.3:
                await asyncio.sleep(0)
        if leave == 0 and peer.writer.can_write_eof():
            peer.writer.write_eof()
        async with asyncio.timeout(patience):
            while piece := await peer.reader.read(1 << 16):
                answer += piece
    except (TimeoutError, OSError):
        pass
    finally:
        cut_off(peer.writer.transport, reset=leave == 1)  # type: ignore[arg-type]
    figures.inputs += 1
    figures.answers[answer[9:12].decode("latin-1") or "none"] += 1


async def fuzz(inputs: int, seed: int, *, fast: bool = True) -> Figures:
    """Run so many inputs."""
    figures, rng = Figures(), random.Random(seed)
    loop, begun = asyncio.get_running_loop(), time.monotonic()
    before, heard = loop.get_exception_handler(), _Heard(figures.crashes)
    loop.set_exception_handler(lambda _, context: _crashed(figures.crashes, context))
    logging.getLogger().addHandler(heard)
    try:
        async with (
            upstream_of(Upstream(random.Random(seed + 1))) as upstream,
            stage(fast=fast, awake=True, limits=LIMITS, replay_bytes=1000, response=2.0, hold=2.0) as s,
        ):
            s.controller.observed(Observation(1, 1, (upstream.endpoint,)))
            s.server.bug = partial(_bug, s.server.bug, figures.crashes)  # type: ignore[method-assign]
            await batch(rng, s, figures, BATCH)
            await left(s)
            tasks, files = len(asyncio.all_tasks()), open_files()
            while figures.inputs < inputs and not figures.crashes and not figures.leaks:
                await batch(rng, s, figures, min(BATCH, inputs - figures.inputs))
                figures.leaks += await left(s)
                if (now := len(asyncio.all_tasks())) > tasks + 2 * AT_A_TIME:
                    figures.leaks.append(f"{now} tasks, {tasks} before")
                if (now := open_files()) > files + 2 * AT_A_TIME:
                    figures.leaks.append(f"{now} open files, {files} before")
                gc.collect()
                figures.resident_kb.append(resident_kb())
    finally:
        loop.set_exception_handler(before)
        logging.getLogger().removeHandler(heard)
    figures.seconds = time.monotonic() - begun
    return figures


async def batch(rng: random.Random, s: Stage, figures: Figures, size: int) -> None:
    """So many inputs, some at a time."""
    room = asyncio.Semaphore(AT_A_TIME)

    async def in_turn(mine: random.Random) -> None:
        async with room:
            await one(mine, s, figures)

    async with asyncio.timeout(PATIENCE_SECONDS + size), asyncio.TaskGroup() as tasks:
        for _ in range(size):
            tasks.create_task(in_turn(random.Random(rng.random())))


async def left(s: Stage) -> list[str]:
    """What is left of a batch, once it had the time to end."""

    def found() -> dict[str, Any]:
        target = s.controller.target
        counts = {"in flight": target.in_flight, "waiting": target.waiting, "requests": s.server._active}
        return {name: number for name, number in counts.items() if number} | (
            {"held bytes": s.desk.budget.taken} if s.desk.budget.taken else {}
        )

    try:
        await s.until(lambda: not found(), PATIENCE_SECONDS)
    except TimeoutError:
        return [f"{number} {name}" for name, number in found().items()]
    return []


def _bug(log: Callable[..., AnswerableError], crashes: list[str], *args: Any) -> AnswerableError:
    """Take that there is a bug, and log it."""
    crashes.append(f"a bug: {sys.exc_info()[1]!r}")
    return log(*args)


class _Heard(logging.Handler):
    """Takes whatever is logged as an error for a crash, such as a traceback of the server's."""

    def __init__(self, crashes: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._crashes = crashes

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self._crashes.append(f"{record.getMessage()}: {type(error).__name__}: {error}")


def _crashed(crashes: list[str], context: dict[str, Any]) -> None:
    error, message = context.get("exception"), context.get("message", "")
    # asyncio's streams, on which both ends here are, keep the reason of a loss in a future that nobody asks.
    if not (isinstance(error, OSError) and message == "Future exception was never retrieved"):
        crashes.append(f"{message}: {type(error).__name__}: {error}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lane", choices=["on", "off"], default="on")
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    given = parser.parse_args()
    factory = None
    if given.loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        figures = runner.run(fuzz(given.inputs, given.seed, fast=given.lane == "on"))
    print(f"inputs {figures.inputs} in {figures.seconds:.0f} s, seed {given.seed}, lane {given.lane}, {given.loop}")
    print("answers", dict(figures.answers.most_common(12)))
    print(f"crashes {len(figures.crashes)}, leaks {len(figures.leaks)}", *figures.crashes[:3], *figures.leaks[:3])
    print(f"memory {figures.growth_kb:+.1f} KB for each 1000 inputs in the second half")
    sys.exit(bool(figures.crashes or figures.leaks))


if __name__ == "__main__":
    main()
