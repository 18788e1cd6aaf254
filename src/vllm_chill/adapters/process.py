"""A command on this machine as a scale target: 1 starts it, 0 ends it. The embedded default.

The rule: `scale` only says what is wanted and tells it; one task, `_keep`, sees one run of the command after the
other from its start until nothing of it is left, so two runs never share a GPU. What runs is told as a replica with
its address; whether it is ready only the engine itself can say, to whoever asks it (control.prober).
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

from vllm_chill.adapters.guarded_command import End, Exited, GuardedCommand, Killed, NotExecuted, Unguarded
from vllm_chill.adapters.mask import Mask
from vllm_chill.adapters.output_log import OutputLog
from vllm_chill.core.engine_output import Line
from vllm_chill.core.target import Endpoint, Observation, Progress, Replica, Stage, TargetRef
from vllm_chill.errors import BackendRefused, BackendUnavailable, SettingError
from vllm_chill.ports import Observer

_PORT = "{port}"
_REQUESTED = Progress(Stage.REQUESTED)
_STARTING = Progress(Stage.STARTING)


@dataclass(frozen=True, slots=True)
class Command:
    """What to run, and the address of this machine that it listens on.

    Each `{port}` in `argv` becomes a port that is free at that start, or `port` if that is given; nothing else in
    braces is touched. `environment` replaces the proxy's own. After SIGTERM it has `stop_seconds` to end. Raises
    SettingError if nobody could know the port.
    """

    argv: tuple[str, ...]
    host: str = "127.0.0.1"
    port: int | None = None
    stop_seconds: float = 30.0
    environment: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if not self.argv:
            raise SettingError("there is no command to run; give it after --, as in: -- vllm serve MODEL --port {port}")
        if self.port is None and not any(_PORT in argument for argument in self.argv):
            raise SettingError(
                "the command does not say where its port goes; write {port} there, as in: --port {port},"
                " or give the port that it listens on with --target-port"
            )

    def listening_on(self, port: int) -> tuple[str, ...]:
        """The arguments with the port in its place."""
        return tuple(argument.replace(_PORT, str(port)) for argument in self.argv)


class ProcessBackend:
    """One command that starts and ends as told. Invariant: what `watch` told last is `self.seen`.

    Each line of the command's output goes to `take_line`, which returns at once and never raises, and `output` keeps
    the newest of them; what `mask` hides is in neither. The command outlives a `watch`, but not the proxy: `close`, or
    the end of `async with`, ends it. `command` is what the next run is of, and may be replaced.
    """

    def __init__(self, command: Command, take_line: Callable[[str], None], mask: Mask | None = None) -> None:
        self.output = OutputLog()
        self._mask = mask
        self.seen = Observation(0, 0)
        self.command = command
        self._take_line = take_line
        self._observer: Observer | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._unwanted: asyncio.Future[None] | None = None
        self._runs = itertools.count(1)
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the command, and return once nothing of it is left; nothing is started after this."""
        self._closed = True
        self._end()
        if self._keeper is not None:
            await asyncio.wait({self._keeper})

    async def watch(self, ref: TargetRef, observer: Observer) -> None:
        self._observer = observer
        observer.observed(self.seen)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self._observer = None

    async def scale(self, ref: TargetRef, replicas: int, *, doomed: Sequence[str] = ()) -> None:
        if replicas > 1:
            raise BackendRefused(f"a command on this machine runs once, not {replicas} times; ask for 1")
        if replicas and self._closed:
            raise BackendUnavailable("the proxy is being ended, and its command with it")
        if replicas and not self.seen.replicas:
            self._begin()
        elif not replicas and self.seen.replicas:
            self._end()

    async def catch_up(self, ref: TargetRef) -> None:
        """What there is of it is known here at once."""

    def _begin(self) -> None:
        self._tell(replace(self.seen, replicas=1, failure=None, progress=_REQUESTED))
        if self._keeper is None or self._keeper.done():
            self._keeper = asyncio.create_task(self._keep())

    def _end(self) -> None:
        if self._unwanted is not None and not self._unwanted.done():
            self._unwanted.set_result(None)
        self._tell(replace(self.seen, replicas=0, members=(), progress=None))

    async def _keep(self) -> None:
        while self.seen.replicas:
            # A new one for each run: what ended the run before must not end this one.
            unwanted = self._unwanted = asyncio.get_running_loop().create_future()
            name = f"run-{next(self._runs)}"
            try:
                run, endpoint = self._start(name)
            except BackendRefused as refused:
                self._tell(Observation(0, 0, failure=refused.message))
                continue
            async with run:
                replica = Replica(name, endpoint, ready=False, progress=_STARTING)
                self._tell(Observation(1, 1, members=(replica,), progress=_STARTING))
                await self._see_through(run, unwanted)
            if self.seen.live:
                # A failure is told once: told again after the next wake has begun, it would be taken for that one's.
                self._tell(replace(self.seen, live=0, failure=None))

    def _start(self, name: str) -> tuple[GuardedCommand, Endpoint]:
        def take(line: str) -> None:
            self._take_line(line)
            self.output.wrote(Line(name, line))

        endpoint = Endpoint(self.command.host, _free_port(self.command))
        argv = self.command.listening_on(endpoint.port)
        try:
            return GuardedCommand(argv, take, self.command.environment, self._mask), endpoint
        except OSError as error:
            raise BackendRefused(f"the command could not be started: {error.strerror}") from error

    async def _see_through(self, run: GuardedCommand, unwanted: asyncio.Future[None]) -> None:
        ends: set[asyncio.Future[Any]] = {run.ended, unwanted}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if unwanted.done():
            run.terminate()
            await asyncio.wait({run.gone}, timeout=self.command.stop_seconds)
        else:
            end = run.ended.result()
            failure = _why_ended(end, self.command, run.output.text())
            # Told before all of it is gone, for the endpoint serves nobody any more.
            live = 0 if run.gone.done() or isinstance(end, NotExecuted) else 1
            self._tell(Observation(0, live, failure=failure))

    def _tell(self, seen: Observation) -> None:
        if seen == self.seen:
            return
        self.seen = seen
        if self._observer is not None:
            self._observer.observed(seen)


def _free_port(command: Command) -> int:
    family = socket.AF_INET6 if ":" in command.host else socket.AF_INET
    try:
        with socket.create_server((command.host, command.port or 0), family=family) as server:
            port: int = server.getsockname()[1]
            return port
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise BackendRefused(
                f"port {command.port} is taken by another program; end that one, or leave --target-port out and"
                " write {port} in the command, which then becomes a free port"
            ) from error
        where = f"{command.host}, port {command.port}" if command.port else command.host
        raise BackendRefused(f"nothing can listen on {where}: {error.strerror}") from error


def _why_ended(end: End, command: Command, output: str) -> str:
    match end:
        case NotExecuted(errno.ENOENT):
            return f'the command "{command.argv[0]}" was not found; is it installed, and on the PATH?'
        case NotExecuted(number):
            return f'the command "{command.argv[0]}" could not be executed: {os.strerror(number)}'
        case Exited(status):
            how = f"the command exited with status {status}"
        case Killed(signal.SIGKILL):
            how = "the command was killed by SIGKILL (perhaps the machine ran out of memory)"
        case Killed(number):
            how = f"the command was killed by {_signal_name(number)}"
        case Unguarded():
            how = "the guard of the command was killed, and the command with it"
    return f"{how}; its last output was: {output}" if output else f"{how}; it had written nothing"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
