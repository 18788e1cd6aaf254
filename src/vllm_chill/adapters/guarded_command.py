"""One run of a command under its guard, seen from the proxy: started, ended, gone.

The rule: three pipes are all there is between the two. Closing the lifeline kills, the end of the reports means
that nothing is left, and the output is read as fast as it comes, so that the command never waits for a reader.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Self

from vllm_chill.adapters import process_guard
from vllm_chill.adapters.mask import Mask
from vllm_chill.adapters.output_tail import OutputTail

# The loop serves requests too: a burst of output holds it for a few milliseconds at most.
_READ_BYTES = 16384
_LAST_READS = 64


@dataclass(frozen=True, slots=True)
class NotExecuted:
    """The command could not be executed at all; `number` is the errno of that."""

    number: int


@dataclass(frozen=True, slots=True)
class Exited:
    """The command ended by itself."""

    status: int


@dataclass(frozen=True, slots=True)
class Killed:
    """A signal ended the command."""

    number: int


@dataclass(frozen=True, slots=True)
class Unguarded:
    """The guard ended first, and with it the command."""


End = NotExecuted | Exited | Killed | Unguarded


class GuardedCommand:
    """A command that runs, and everything that it starts; use it with `async with`, whose end is its end.

    `ended` is done when the command has ended, with how; `gone` when nothing of it is left. Raises OSError if
    not even the guard can be started.
    """

    def __init__(
        self,
        argv: Sequence[str],
        take_line: Callable[[str], None],
        environment: Mapping[str, str] | None = None,
        mask: Mask | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[End] = self._loop.create_future()
        self.gone: asyncio.Future[None] = self._loop.create_future()
        self.output = OutputTail(take_line, mask)
        self._reports = b""
        self._command_pid: int | None = None
        # Not asyncio's subprocess: that kills with SIGKILL when it is closed early, and the guard must outlive us.
        self._guard = subprocess.Popen(  # noqa: S603 - the user's own command, without a shell on purpose
            [sys.executable, "-I", "-S", process_guard.__file__, *argv],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=environment,
        )
        self._lifeline, self._stdout, self._stderr = _pipes(self._guard)
        self._listen(self._stdout, self._hear)
        self._listen(self._stderr, self.output.feed)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        await self.gone

    def terminate(self) -> None:
        """Ask it to end: SIGTERM to its process group."""
        self._guard.terminate()

    def kill(self) -> None:
        """Kill all of it."""
        self._lifeline.close()

    def _listen(self, pipe: IO[bytes], take: Callable[[bytes], None]) -> None:
        os.set_blocking(pipe.fileno(), False)
        self._loop.add_reader(pipe.fileno(), self._read, pipe, take)

    def _read(self, pipe: IO[bytes], take: Callable[[bytes], None]) -> bool:
        """Read once, and return whether there may be more."""
        data: bytes | None = pipe.read(_READ_BYTES)
        if data is None:
            return False
        if not data:
            self._loop.remove_reader(pipe.fileno())
            pipe.close()
        take(data)
        return bool(data)

    def _hear(self, data: bytes) -> None:
        *lines, self._reports = (self._reports + data).split(b"\n")
        for line in lines:
            word, number = line.split()
            self._reported(word, int(number))
        if not data:
            self._guard_ended()

    def _reported(self, word: bytes, number: int) -> None:
        match word:
            case b"started":
                self._command_pid = number
            case b"refused":
                self._end(NotExecuted(number))
            case b"exited":
                self._end(Exited(number))
            case b"killed":
                self._end(Killed(number))

    def _end(self, end: End) -> None:
        if self.ended.done():
            return
        for _ in range(_LAST_READS):  # bounded: a worker may still be writing
            if self._stderr.closed or not self._read(self._stderr, self.output.feed):
                break
        self.output.feed(b"")
        self.ended.set_result(end)

    def _guard_ended(self) -> None:
        if not self.ended.done() and self._command_pid is not None:
            # The kernel has killed the command itself by now, for its parent died; its group is ours to kill.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._command_pid, signal.SIGKILL)
        self._end(Unguarded())
        if not self._stderr.closed:
            self._loop.remove_reader(self._stderr.fileno())
            self._stderr.close()
        self._lifeline.close()
        self._guard.wait()
        self.gone.set_result(None)


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes], IO[bytes]]:
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    return process.stdin, process.stdout, process.stderr
