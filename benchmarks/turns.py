"""Runs vllm-chill with the long turns of its event loop noted.

    python benchmarks/turns.py FILE controller [FLAGS]

A line of FILE is when a turn ended, in nanoseconds of the monotonic clock, and how much CPU it had: what everybody else
waits for, and what other work on the machine does not lengthen.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

NOTED_NS = 1_000_000


def noting(notes: int, turn: Callable[[asyncio.BaseEventLoop], None]) -> Callable[[asyncio.BaseEventLoop], None]:
    """The turn, and a note of it if it was long."""

    def noted(loop: asyncio.BaseEventLoop) -> None:
        begun = time.thread_time_ns()
        turn(loop)
        took = time.thread_time_ns() - begun
        if took > NOTED_NS:
            os.write(notes, b"%d %d\n" % (time.monotonic_ns(), took))

    return noted


def longest_ms(notes: Path, begun_ns: int, ended_ns: int) -> float:
    """The longest turn that ended in that time; 0 if none is noted."""
    lines = [tuple(map(int, line.split())) for line in notes.read_text().splitlines()]
    return max((took for at, took in lines if begun_ns <= at <= ended_ns), default=0) / 1e6


def main() -> None:
    notes = os.open(sys.argv.pop(1), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    # Waiting for what is next is part of a turn, and costs no CPU.
    name = "_run_once"
    setattr(asyncio.BaseEventLoop, name, noting(notes, getattr(asyncio.BaseEventLoop, name)))
    from vllm_chill.__main__ import main as vllm_chill

    vllm_chill()


if __name__ == "__main__":
    main()
