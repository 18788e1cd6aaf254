"""What many held requests cost: memory for each, and how long the event loop is busy at a stretch for all of them.

    python benchmarks/held.py [--waiting 1000,10000] [--cases json,streams] [--event-loop uvloop] [--json FILE]

The proxy has one core, and the load, the upstream and this program have the other. A first request wakes an engine
that does not start until it is told to; the others come at 4000 a second, are held, and then all end at once: answered
as the engine is there, refused as it fails, or left behind by a client that is gone.

A turn of the event loop is the time between two runs of a timer of 1 ms in the proxy's own process, which everybody
else waits for; beside it, how much CPU the proxy had in it, which other work on the machine does not lengthen. As seen
from outside, another process asks for /health every 2 ms.

The load client and the upstream are C programs of a folder that BENCH_TOOLS names (or ../shared/bench).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.field import OPENAI_HEADERS, body, free_port, pinned, tools

ROOT = Path(__file__).parent.parent
MEMORY_GOAL_KB = 10.0
TURN_GOAL_MS = 50.0
PULSE_SECONDS = 0.001
ASK_SECONDS = 0.002
ARRIVAL_US = 250
HOLD_SECONDS = 5.0
NOTED_MS = 3.0
BODY_BYTES = 1000


@dataclass(frozen=True, slots=True)
class Case:
    """One way to be held and to end. `ending` is what all of them are waiting for."""

    name: str
    ending: str
    settings: dict[str, str] = field(default_factory=dict)
    stream: bool = False


CASES = (
    Case("json", "answered"),
    Case("json, 256 in flight", "answered", {"max_in_flight": "256"}),
    Case("streams, told after 2 s", "answered", {"hold_heartbeat_after": "2s"}, stream=True),
    Case("json, the engine fails", "refused"),
    Case("json, the clients leave", "left"),
    Case("json, the long way", "answered", {"fast_lane": "off"}),
)


# --- in processes of their own ---


def serve(settings: dict[str, str], noted: Path, command: list[str]) -> None:
    """The proxy as `vllm-chill serve` runs it, with a timer that notes each long turn of its loop."""
    from vllm_chill.app.plan import Plan
    from vllm_chill.app.serve import run
    from vllm_chill.settings.serve import load_settings
    from vllm_chill.telemetry.logs import configure_logging

    loaded = load_settings(settings)
    configure_logging(loaded.log_format, loaded.log_level)
    notes = os.open(noted, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def began(_host: str, _port: int) -> None:
        loop = asyncio.get_running_loop()
        last = time.monotonic_ns(), time.thread_time_ns()

        def pulse() -> None:
            nonlocal last
            now = time.monotonic_ns(), time.thread_time_ns()
            note(notes, now[0], now[0] - last[0], now[1] - last[1])
            last = time.monotonic_ns(), time.thread_time_ns()
            loop.call_later(PULSE_SECONDS, pulse)

        pulse()

    run(Plan(loaded, tuple(command), name="engine"), listening=began)


def ask(port: int, noted: Path) -> None:
    """Ask for /health without a pause longer than ASK_SECONDS, and note each answer that took long."""
    notes = os.open(noted, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with socket.create_connection(("127.0.0.1", port)) as client:
        while True:
            begun = time.monotonic_ns()
            client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = b""
            while b"\r\n\r\nok" not in answer:
                got = client.recv(4096)
                if not got:
                    return
                answer += got
            now = time.monotonic_ns()
            note(notes, now, now - begun, 0)
            time.sleep(max(0.0, ASK_SECONDS - (now - begun) / 1e9))


def note(file: int, at_ns: int, took_ns: int, cpu_ns: int) -> None:
    if took_ns > NOTED_MS * 1e6:
        os.write(file, b"%d %d %d\n" % (at_ns, took_ns, cpu_ns))


def longest(noted: Path, begun_ns: int, ended_ns: int) -> tuple[float, float]:
    """The longest of what was noted in that time, in ms, and the most CPU of one, in ms."""
    noted_lines = noted.read_text().splitlines() if noted.exists() else []
    lines = [tuple(map(int, line.split())) for line in noted_lines]
    within = [(took, cpu) for at, took, cpu in lines if begun_ns < at and at - took < ended_ns]
    return max((took for took, _ in within), default=0) / 1e6, max((cpu for _, cpu in within), default=0) / 1e6


# --- one case ---


@dataclass(slots=True)
class Proxy:
    """A proxy that runs on core 0, with its engine behind a gate: one line into it and the engine starts or fails."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]
    gate: Path

    def status(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/proxy/status", timeout=30) as response:
            return dict(json.load(response)["targets"][0])

    def until_waiting(self, count: int, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while (waiting := self.status()["waiting"]) != count:
            if time.monotonic() > deadline:
                sys.exit(f"{waiting} requests are held, and {count} should be; see {self.folder}")
            time.sleep(0.05)

    def memory_kb(self) -> float:
        """Proportional set size."""
        lines = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text().splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith("Pss:")))

    def peak_mb(self) -> float:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith("VmHWM:"))) / 1024

    def open_gate(self, line: str) -> None:
        self.gate.write_text(f"{line}\n")


@contextlib.contextmanager
def proxy(case: Case, folder: Path, event_loop: str) -> Iterator[Proxy]:
    port, gate = free_port(), folder / "gate"
    os.mkfifo(gate)
    # It reads its orders from the gate; only then is there anything that listens.
    engine = f'read order < {gate}; [ "$order" = start ] || exit 1; exec taskset -c 1 {folder.parent}/stub {{port}}'
    settings = {
        "backend": "process", "host": "127.0.0.1", "port": str(port), "max_waiting": "20000", "wake_timeout": "10m",
        "idle_timeout": "1h", "stop_timeout": "1s", "shutdown_delay": "0", "state_dir": "", "log_level": "error",
        "event_loop": event_loop, **case.settings,
    }  # fmt: skip
    command = [sys.executable, __file__, "--serve", json.dumps(settings), str(folder / "turns"), "sh", "-c", engine]
    log = (folder / "proxy.log").open("wb")
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    process = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=pinned(0), env=environment)
    try:
        while not _listens(port):
            if process.poll() is not None:
                sys.exit((folder / "proxy.log").read_text())
            time.sleep(0.02)
        yield Proxy(folder, port, process, gate)
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


def prompt(case: Case) -> str:
    """A body of BODY_BYTES that has the stub answer as the case wants it."""
    parameters = "mode=sse,n=3,size=250,gap=1000" if case.stream else "mode=small"
    short = body(parameters, stream=case.stream)
    return short.replace("What", "x" * (BODY_BYTES - len(short)) + "What")


def first(port: int, text: str) -> socket.socket:
    """The request that wakes it."""
    client = socket.create_connection(("127.0.0.1", port), timeout=120)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(text)}\r\n\r\n"
    client.sendall((head + text).encode())
    return client


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of a case: from when to when, and the longest turn, its CPU, and the longest answer from outside."""

    seconds: float
    turn_ms: float
    turn_cpu_ms: float
    health_ms: float


@dataclass(frozen=True, slots=True)
class Found:
    """What one case has shown."""

    case: str
    event_loop: str
    waiting: int
    ended_well: int
    ended_badly: int
    kb_each: float
    peak_mb: float
    arrival: Stretch
    hold: Stretch
    ending: Stretch


def measure(case: Case, count: int, tooled: Path, event_loop: str) -> Found:
    folder = tooled / f"{case.name}-{count}".replace(" ", "-").replace(",", "")
    folder.mkdir()
    with contextlib.ExitStack() as stack:
        here = stack.enter_context(proxy(case, folder, event_loop))
        text = prompt(case)
        waker = stack.enter_context(first(here.port, text))
        here.until_waiting(1)
        time.sleep(1)
        before = here.memory_kb()
        asker = subprocess.Popen(
            [sys.executable, __file__, "--ask", str(here.port), str(folder / "health")], preexec_fn=pinned(1)
        )
        stack.callback(_end, asker)

        def stretch(begun: int) -> Stretch:
            now = time.monotonic_ns()
            time.sleep(0.2)  # what is noted is noted at its end
            outside, _ = longest(folder / "health", begun, now)
            return Stretch((now - begun) / 1e9, *longest(folder / "turns", begun, now), outside)

        begun = time.monotonic_ns()
        load = subprocess.Popen(
            [
                *(str(tooled / "load"), "-p", str(here.port), "-c", str(count - 1), "-n", "1"),
                *("-s", str(ARRIVAL_US), "-b", text, "-H", OPENAI_HEADERS),
            ],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, preexec_fn=pinned(1),
        )  # fmt: skip
        stack.callback(_end, load)
        here.until_waiting(count)
        arrival = stretch(begun)
        begun = time.monotonic_ns()
        time.sleep(HOLD_SECONDS)
        kb_each = (here.memory_kb() - before) / (count - 1) - BODY_BYTES / 1024
        hold = stretch(begun)
        begun = time.monotonic_ns()
        well, badly = ENDINGS[case.ending](here, load, waker)
        ending = stretch(begun)
        return Found(case.name, event_loop, count, well, badly, kb_each, here.peak_mb(), arrival, hold, ending)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
    process.wait()


def answered(here: Proxy, load: subprocess.Popen[bytes], waker: socket.socket) -> tuple[int, int]:
    """All of them get an answer, as the engine starts: how many did, and how many did not."""
    here.open_gate("start")
    figures = json.loads(load.communicate(timeout=300)[0])
    broken = figures["errs"] + figures["non200"] + figures["sockerr"] + figures["seqerr"]
    woken = waker.recv(65536).startswith(b"HTTP/1.1 200 ")
    return int(figures["reqs"] - broken) + woken, int(broken) + (not woken)


def refused(here: Proxy, load: subprocess.Popen[bytes], waker: socket.socket) -> tuple[int, int]:
    """All of them get 503, as the engine ends."""
    here.open_gate("fail")
    figures = json.loads(load.communicate(timeout=300)[0])
    broken = figures["errs"] + figures["sockerr"] + figures["reqs"] - figures["non200"]
    told = waker.recv(65536).startswith(b"HTTP/1.1 503 ")
    return int(figures["non200"]) + told, int(broken) + (not told)


def left(here: Proxy, load: subprocess.Popen[bytes], _: socket.socket) -> tuple[int, int]:
    """All of them but the first are gone at once, and their places free."""
    count = here.status()["waiting"]
    load.kill()
    here.until_waiting(1)
    return count - 1, 0


ENDINGS: dict[str, Callable[[Proxy, subprocess.Popen[bytes], socket.socket], tuple[int, int]]] = {
    "answered": answered,
    "refused": refused,
    "left": left,
}


# --- all of them ---


def table(found: list[Found]) -> str:
    lines = [
        f"{'':28}{'held':>7}{'KB each':>9}{'longest turn, ms (of it CPU)':>38}{'/health, ms':>18}{'ended':>13}",
        f"{'':44}{'arriving':>14}{'held':>14}{'ending':>14}{'held':>8}{'ending':>8}{'in s':>8}{'badly':>7}",
    ]
    for each in found:
        turns = [
            f"{f'{part.turn_ms:.0f} ({part.turn_cpu_ms:.0f})':>14}" for part in (each.arrival, each.hold, each.ending)
        ]
        lines.append(
            f"{each.case:28}{each.waiting:7}{each.kb_each:9.1f}{''.join(turns)}"
            f"{each.hold.health_ms:8.0f}{each.ending.health_ms:8.0f}{each.ending.seconds:8.1f}{each.ended_badly:7}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--waiting", default="1000,10000", help="how many are held, with commas between")
    parser.add_argument("--cases", default="", help="names of cases or how they begin, with semicolons between; all")
    parser.add_argument("--event-loop", default="uvloop", choices=("uvloop", "asyncio"))
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    arguments = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    counts = [int(count) for count in arguments.waiting.split(",")]
    if hard < max(counts) + 500:
        sys.exit(f"a process may open {hard} files here, and {max(counts)} held requests take more")
    wanted = tuple(name for name in arguments.cases.split(";") if name)
    found = []
    with tempfile.TemporaryDirectory() as name:
        tools(Path(name))
        os.sched_setaffinity(0, (1,))
        for count in counts:
            for case in CASES:
                if not wanted or case.name.startswith(wanted):
                    print(f"{case.name}, {count} ...", file=sys.stderr)
                    found.append(measure(case, count, Path(name), arguments.event_loop))
    print(f"== --event-loop {arguments.event_loop}")
    print(table(found))
    released = [each for each in found if not each.case.endswith("leave")]
    print(verdict(f"at most {MEMORY_GOAL_KB:g} KB and its body for each", found, lambda f: f.kb_each <= MEMORY_GOAL_KB))
    print(verdict("no error", found, lambda f: not f.ended_badly))
    print(
        verdict(
            f"no turn above {TURN_GOAL_MS:g} ms as they are released",
            released,
            lambda f: f.ending.turn_ms <= TURN_GOAL_MS,
        )
    )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([asdict(each) for each in found], indent=1))


def verdict(goal: str, found: list[Found], met: Callable[[Found], bool]) -> str:
    missed = [f"{each.waiting} of {each.case}" for each in found if not met(each)]
    return f"the goal is {goal}: " + (f"MISSED by {'; '.join(missed)}" if missed else "met")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--serve", settings, noted, *command]:
            serve(json.loads(settings), Path(noted), command)
        case ["--ask", port, noted]:
            ask(int(port), Path(noted))
        case _:
            main()
