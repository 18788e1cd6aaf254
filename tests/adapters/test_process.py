from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.adapters.contract import BackendContract, Seen, is_gone, is_ready
from tests.probing import probed
from vllm_chill.adapters.process import Command, ProcessBackend
from vllm_chill.core.target import Endpoint, Observation, Progress, Replica, Stage, TargetRef
from vllm_chill.errors import BackendRefused, BackendUnavailable, SettingError
from vllm_chill.ports import ClusterBackend
from vllm_chill.proxy.upstream import UpstreamPool

SMALL_ENGINE = (sys.executable, "-S", str(Path(__file__).with_name("small_engine.py")), "--port", "{port}")
REF = TargetRef("test", "process")


@dataclass
class Lines:
    """The output of a command, and the process ids in it."""

    all: list[str] = field(default_factory=list)

    def take(self, line: str) -> None:
        self.all.append(line)

    def pids(self, kind: str) -> list[int]:
        return [int(line.split()[1]) for line in self.all if re.fullmatch(rf"{kind} \d+", line)]

    @property
    def engine(self) -> int:
        return self.pids("engine")[-1]


class ProcessWorld:
    def __init__(self, broken: Path) -> None:
        self.broken = broken
        self.ref = REF
        self.lines = Lines()
        self.process = ProcessBackend(Command((*SMALL_ENGINE, "--unless", str(broken))), self.lines.take)
        self.backend: ClusterBackend = self.process

    async def kill(self) -> None:
        os.kill(self.lines.engine, signal.SIGKILL)

    async def break_start(self) -> None:
        self.broken.touch()


class TestProcessBackend(BackendContract):
    @pytest.fixture
    async def world(self, tmp_path: Path) -> AsyncIterator[ProcessWorld]:
        world = ProcessWorld(tmp_path / "broken")
        async with world.process, aclosing(UpstreamPool()) as pool:
            world.backend = probed(world.process, pool)
            yield world


@dataclass
class Started:
    """A backend that is watched by way of a prober, with all that it said."""

    backend: ProcessBackend
    lines: Lines
    seen: Seen
    watching: asyncio.Task[None]

    async def scale(self, replicas: int) -> None:
        await self.backend.scale(REF, replicas)

    async def until_ready(self) -> Observation:
        await self.scale(1)
        return await self.seen.until(is_ready)

    async def failure(self) -> str:
        failed = await self.seen.until(lambda o: o.failure is not None)
        assert failed.failure is not None
        return failed.failure


Start = Callable[[Command], Started]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    started: list[Started] = []
    async with aclosing(UpstreamPool()) as pool:

        def start(command: Command) -> Started:
            lines, seen = Lines(), Seen()
            backend = ProcessBackend(command, lines.take)
            watching = asyncio.create_task(probed(backend, pool).watch(REF, seen))
            started.append(Started(backend, lines, seen, watching))
            return started[-1]

        yield start
        for target in started:
            await target.backend.close()
            target.watching.cancel()


def small_engine(*arguments: str, port: int | None = None, stop_seconds: float = 5.0) -> Command:
    return Command((*SMALL_ENGINE, *arguments), port=port, stop_seconds=stop_seconds)


def python(script: str) -> Command:
    return Command((sys.executable, "-S", "-c", script, "{port}"))


async def ended(pid: int, seconds: float = 2) -> bool:
    """Wait until the process has ended and say whether it did in that time."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, over.set)
    try:
        async with asyncio.timeout(seconds):
            await over.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    return True


# The command


async def test_the_port_in_the_arguments_is_the_one_of_the_endpoint(start: Start) -> None:
    target = start(small_engine())
    ready = await target.until_ready()
    with socket.create_connection((ready.endpoints[0].host, ready.endpoints[0].port)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.1 200"


async def test_only_the_port_is_replaced_in_braces(start: Start) -> None:
    target = start(small_engine("--", '{"temperature": 0}', "{host}", "at={port}"))
    ready = await target.until_ready()
    assert target.lines.all[0] == f"""arguments ['{{"temperature": 0}}', '{{host}}', 'at={ready.endpoints[0].port}']"""


async def test_a_fixed_port_is_used(start: Start) -> None:
    port = free_port()
    ready = await start(small_engine(port=port)).until_ready()
    assert ready.endpoints[0].port == port


async def test_a_fixed_port_that_is_taken_names_who_is_to_blame(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        target = start(small_engine(port=port))
        await target.scale(1)
        assert (await target.failure()).startswith(f"port {port} is taken by another program; ")
        assert target.backend.seen == Observation(0, 0, failure=await target.failure())
    await target.until_ready()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@pytest.mark.parametrize("argv", [(), ("vllm", "serve", "--port", "8000")], ids=["nothing", "no {port}"])
def test_a_command_whose_port_nobody_knows_is_refused(argv: tuple[str, ...]) -> None:
    with pytest.raises(SettingError, match=r"\{port\}"):
        Command(argv)


async def test_a_command_that_is_not_there_says_so(start: Start) -> None:
    target = start(Command(("no-such-engine", "{port}")))
    await target.scale(1)
    assert await target.failure() == 'the command "no-such-engine" was not found; is it installed, and on the PATH?'
    assert target.backend.seen.live == 0


async def test_a_command_that_may_not_be_executed_says_so(start: Start, tmp_path: Path) -> None:
    (tmp_path / "engine").write_text("#!/bin/sh\n")
    target = start(Command((str(tmp_path / "engine"), "{port}")))
    await target.scale(1)
    assert await target.failure() == f'the command "{tmp_path}/engine" could not be executed: Permission denied'


async def test_it_runs_once_at_most(start: Start) -> None:
    target = start(small_engine())
    with pytest.raises(BackendRefused, match="runs once, not 2 times"):
        await target.scale(2)


# What it tells of what runs


async def test_what_runs_is_a_replica_with_its_address_before_it_listens(start: Start) -> None:
    port = free_port()
    target = start(small_engine("--load-seconds", "60", port=port))
    await target.scale(1)
    assert target.backend.seen == Observation(1, 0, progress=Progress(Stage.REQUESTED))
    await target.seen.until(lambda o: o.live == 1)
    starting = Progress(Stage.STARTING)
    replica = Replica("run-1", Endpoint("127.0.0.1", port), ready=False, progress=starting)
    assert target.backend.seen == Observation(1, 1, members=(replica,), progress=starting)


async def test_each_run_is_another_replica(start: Start) -> None:
    target = start(small_engine(port=free_port()))
    first = await target.until_ready()
    await target.scale(0)
    assert target.backend.seen == Observation(0, 1)
    await target.seen.until(is_gone)
    second = await target.until_ready()
    assert first.endpoints == second.endpoints
    assert [first.serving, second.serving] == [frozenset({"run-1"}), frozenset({"run-2"})]


async def test_it_is_asked_until_it_is_ready_and_not_after_that(start: Start) -> None:
    target = start(small_engine("--busy", "2"))
    await target.until_ready()
    await asyncio.sleep(0.25)
    answered = [line for line in target.lines.all if "answered" in line]
    assert answered == ["answered 503 Busy"] * 2 + ["answered 200 OK"] * 2


# Its end by itself


async def test_a_death_tells_its_status_and_last_lines(start: Start) -> None:
    target = start(python("for i in range(30): print('line', i)\nraise SystemExit('no CUDA device')"))
    await target.scale(1)
    lines = "\n".join(f"line {i}" for i in range(11, 30))
    assert await target.failure() == f"the command exited with status 1; its last output was: {lines}\nno CUDA device"
    await target.seen.until(is_gone)


async def test_a_death_without_a_word_is_told_too(start: Start) -> None:
    target = start(python("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"))
    await target.scale(1)
    assert await target.failure() == "the command was killed by SIGSEGV; it had written nothing"


async def test_a_death_after_ready_takes_the_workers_with_it(start: Start) -> None:
    target = start(small_engine("--workers", "2", "--stubborn"))
    await target.until_ready()
    os.kill(target.lines.engine, signal.SIGKILL)
    assert "the command was killed by SIGKILL" in await target.failure()
    assert target.seen.last is not None
    assert target.seen.last.replicas == 0
    assert target.seen.last.endpoints == ()
    await target.seen.until(is_gone)
    assert all([await ended(pid, 0) for pid in target.lines.pids("worker")])


async def test_a_failure_is_told_once_and_the_next_start_is_free_of_it(start: Start) -> None:
    target = start(small_engine("--workers", "1"))
    await target.until_ready()
    os.kill(target.lines.engine, signal.SIGKILL)
    await target.failure()
    await target.until_ready()
    assert len([o for o in target.seen.observations if o.failure is not None]) == 1


async def test_the_death_of_the_guard_is_the_death_of_the_command(start: Start) -> None:
    target = start(small_engine("--workers", "1"))
    await target.until_ready()
    os.kill(parent(target.lines.engine), signal.SIGKILL)
    assert "the guard of the command was killed" in await target.failure()
    assert all([await ended(pid) for pid in (target.lines.engine, *target.lines.pids("worker"))])


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


# Its output


async def test_output_without_a_newline_does_not_block_it(start: Start) -> None:
    target = start(python("import os\nfor _ in range(4): os.write(1, b'x' * 65536)\nraise SystemExit(3)"))
    await target.scale(1)
    failure = await target.failure()
    assert failure.startswith("the command exited with status 3; its last output was: xxx")
    assert len(failure) < 5000
    assert "".join(target.lines.all) == "x" * 4 * 65536


async def test_output_that_is_not_text_is_passed_on_as_far_as_it_is(start: Start) -> None:
    script = r"import os; os.write(2, b'\x1b[1;36mblue\x1b[0m \xff\xfe\n\r\n 10%\r 20%\rcaf\xc3'); os.write(1, b'\xa9')"
    target = start(python(script))
    await target.scale(1)
    await target.failure()
    assert target.lines.all == ["blue \N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}", " 10%", " 20%", "café"]


async def test_it_has_no_input_and_a_session_of_its_own(start: Start) -> None:
    target = start(python("import os, sys; print(sys.stdin.read() == '', os.getsid(0) == os.getpid())"))
    await target.scale(1)
    await target.failure()
    assert target.lines.all == ["True True"]


# Its end on demand


async def test_it_ends_by_sigterm_workers_included(start: Start) -> None:
    target = start(small_engine("--workers", "2", "--stop-seconds", "0.1"))
    await target.until_ready()
    await target.scale(0)
    assert target.seen.last == Observation(0, 1)
    await target.seen.until(is_gone)
    assert all(o.failure is None for o in target.seen.observations)
    assert all([await ended(pid, 0) for pid in (target.lines.engine, *target.lines.pids("worker"))])


async def test_what_ignores_sigterm_is_killed_after_the_stop_timeout(start: Start) -> None:
    target = start(small_engine("--workers", "1", "--own-session", "--stubborn", stop_seconds=0.3))
    await target.until_ready()
    began = time.monotonic()
    await target.scale(0)
    await target.seen.until(is_gone)
    assert 0.3 <= time.monotonic() - began < 2
    assert all([await ended(pid, 0) for pid in (target.lines.engine, *target.lines.pids("worker"))])


async def test_it_can_be_ended_while_it_loads(start: Start) -> None:
    target = start(small_engine("--load-seconds", "60"))
    await target.scale(1)
    await target.scale(0)
    await target.seen.until(is_gone)
    await target.scale(1)
    await target.seen.until(lambda o: o.live == 1)
    await target.scale(0)
    await target.seen.until(is_gone)
    assert not any(o.endpoints for o in target.seen.observations)


async def test_a_start_waits_for_the_end_of_the_one_before(start: Start) -> None:
    target = start(small_engine("--stop-seconds", "0.5", "--workers", "1", port=free_port()))
    await target.until_ready()
    first = target.lines.engine
    began = time.monotonic()
    await target.scale(0)
    await target.scale(1)
    assert time.monotonic() - began < 0.1
    requested = Progress(Stage.REQUESTED)
    assert target.seen.last == Observation(1, 1, progress=requested)
    await target.seen.until(is_ready)
    assert Observation(1, 0, progress=requested) in target.seen.observations
    starts = [index for index, line in enumerate(target.lines.all) if line.startswith("arguments")]
    assert target.lines.all.index("stopped") < starts[1]
    assert await ended(first, 0)


async def test_a_watch_that_ends_leaves_it_running(start: Start) -> None:
    target = start(small_engine())
    await target.until_ready()
    target.watching.cancel()
    await asyncio.wait([target.watching])
    assert not await ended(target.lines.engine, 0)


async def test_closed_it_is_gone_and_starts_no_more(start: Start) -> None:
    target = start(small_engine("--workers", "1"))
    await target.until_ready()
    await target.backend.close()
    assert is_gone(target.backend.seen)
    assert all([await ended(pid, 0) for pid in (target.lines.engine, *target.lines.pids("worker"))])
    with pytest.raises(BackendUnavailable):
        await target.scale(1)


def test_a_loop_that_ends_without_closing_leaves_nothing() -> None:
    lines = Lines()

    async def forget() -> None:
        backend, seen = ProcessBackend(small_engine("--stubborn", "--workers", "1"), lines.take), Seen()
        watching = asyncio.create_task(probed(backend, UpstreamPool()).watch(REF, seen))
        await backend.scale(REF, 1)
        await seen.until(is_ready)
        watching.cancel()

    asyncio.run(forget())
    for pid in (lines.engine, *lines.pids("worker")):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


# The end of the proxy


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
@pytest.mark.parametrize("manner", ["plain", "--stubborn", "--own-session"])
async def test_nothing_outlives_the_proxy(number: signal.Signals, manner: str) -> None:
    engine = [*SMALL_ENGINE, "--workers", "2", *([manner] if manner != "plain" else [])]
    proxy = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.adapters.proxy_to_kill", *engine),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    lines = Lines()
    assert proxy.stdout is not None
    async with asyncio.timeout(20):
        while "ready" not in lines.all:
            lines.take((await proxy.stdout.readline()).decode().strip())
        proxy.send_signal(number)
        pids = (lines.engine, *lines.pids("worker"))
        assert len(pids) == 3
        assert [pid for pid in pids if not await ended(pid)] == []
        await proxy.communicate()
