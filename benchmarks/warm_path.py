"""What the warm path costs: the proxy's CPU and the time it adds, side by side with the upstream asked directly.

    python benchmarks/warm_path.py [--rounds 5]

A whole `vllm-chill serve --backend process` stands in front of a light upstream, on the loopback address. Small JSON
requests go over connections that are kept, streams come in paced events; direct and through the proxy take turns, and
each figure is the median of the rounds. CPU is user and system time of the process, from /proc. Absolute times
belong to the machine and to what else it does: compare the columns of one run.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os
import re
import socket
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(_ROOT)]

from tests.serving import Serving, serving  # noqa: E402 - not an installed package

CONNECTIONS = 8
REQUESTS = 4000
ALONE = 2000
STREAMS = 64
CHUNKS = 100
EVERY_MS = 20
_MOST_SECONDS = 300

Address = tuple[str, int]


class Caller(asyncio.Protocol):
    """One connection that asks the same again and again, each time once the answer is whole.

    Invariant: `times` has the seconds of each answer, `events` the number of events in all of them.
    """

    def __init__(self, request: bytes, count: int) -> None:
        self._request = request
        self._left = count
        self._received = bytearray()
        self._begun = 0.0
        self.done = asyncio.get_running_loop().create_future()
        self.times: list[float] = []
        self.events = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ask()

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not _is_whole(self._received):
            return
        self.times.append(time.perf_counter() - self._begun)
        if not self._received.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"not answered: {bytes(self._received[:200])!r}")
        self.events += self._received.count(b"data: ")
        self._received.clear()
        self._left -= 1
        if self._left:
            self._ask()
        else:
            self._transport.close()
            self.done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(exc or ConnectionError("closed before the answer was whole"))

    def _ask(self) -> None:
        self._begun = time.perf_counter()
        self._transport.write(self._request)


_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


def _is_whole(answer: bytearray) -> bool:
    head = answer.find(b"\r\n\r\n")
    if head < 0:
        return False
    length = _LENGTH.search(answer, 0, head)
    return answer.endswith(b"\r\n0\r\n\r\n") if length is None else len(answer) >= head + 4 + int(length[1])


def request(*, streamed: bool) -> bytes:
    body = b'{"model": "m", "messages": [{"role": "user", "content": "How warm is it?"}], "max_tokens": 16}'
    fields = [
        b"Host: bench",
        b"User-Agent: OpenAI/Python 1.99.0",
        b"Authorization: Bearer sk-none",
        b"Accept: application/json",
        b"Accept-Encoding: gzip, deflate",
        b"Content-Type: application/json",
        b"Content-Length: %d" % len(body),
    ]
    if streamed:
        fields += [b"X-Chunks: %d" % CHUNKS, b"X-Every: %d" % EVERY_MS]
    return b"POST /v1/chat/completions HTTP/1.1\r\n%s\r\n\r\n%s" % (b"\r\n".join(fields), body)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Load:
    """So many connections, each of which asks `each` times."""

    connections: int
    each: int
    streamed: bool = False


@dataclass(frozen=True)
class Round:
    """One load on one way: CPU seconds per unit (a request, or an event of a stream), and the median time."""

    upstream_cpu: float
    proxy_cpu: float
    median: float


@dataclass(frozen=True)
class Ways:
    """The two ways to the upstream, and the processes on them."""

    direct: Address
    through: Address
    upstream_pid: int
    proxy_pid: int

    async def measure(self, way: Address, load: Load) -> Round:
        loop = asyncio.get_running_loop()
        question = request(streamed=load.streamed)
        before = cpu_seconds(self.upstream_pid), cpu_seconds(self.proxy_pid)
        callers = []
        for _ in range(load.connections):
            _, caller = await loop.create_connection(lambda: Caller(question, load.each), *way)
            callers.append(caller)
        await asyncio.gather(*(caller.done for caller in callers))
        after = cpu_seconds(self.upstream_pid), cpu_seconds(self.proxy_pid)
        units = sum(caller.events if load.streamed else len(caller.times) for caller in callers)
        if load.streamed and units != load.connections * load.each * CHUNKS:
            raise SystemExit(f"{units} events came, not {load.connections * load.each * CHUNKS}")
        used = [(end - start) / units for start, end in zip(before, after, strict=True)]
        return Round(used[0], used[1], statistics.median(t for caller in callers for t in caller.times))


async def compare(name: str, ways: Ways, load: Load, rounds: int) -> str:
    """A table of one load, direct and through the proxy in turn."""
    direct, through = [], []
    for _ in range(rounds):
        direct.append(await ways.measure(ways.direct, load))
        through.append(await ways.measure(ways.through, load))
    return f"{name}\n" + "\n".join(_rows(load, direct, through))


def _rows(load: Load, direct: Sequence[Round], through: Sequence[Round]) -> list[str]:
    unit = "event" if load.streamed else "request"
    yardstick = statistics.median(r.upstream_cpu for r in direct)
    cpu = statistics.median(r.proxy_cpu for r in through)
    rows = [
        f"  {f'CPU of the upstream per {unit}, asked directly':48}{yardstick * 1e6:8.1f} us",
        f"  {f'CPU of the proxy per {unit}':48}{cpu * 1e6:8.1f} us  {cpu / yardstick:6.2f} of the upstream's",
    ]
    if load.connections == 1:  # with more of them it is how long they wait for one another
        alone, between = (statistics.median(r.median for r in rounds) * 1e6 for rounds in (direct, through))
        rows += [
            f"  {'median time, asked directly':48}{alone:8.1f} us",
            f"  {'median time, through the proxy':48}{between:8.1f} us  {between - alone:+6.1f} us",
        ]
    return rows


async def tables(proxy: Serving, upstream_port: int, rounds: int) -> None:
    host, _, port = proxy.url.removeprefix("http://").rpartition(":")
    through = (host, int(port))
    # The first request wakes it.
    _, first = await asyncio.get_running_loop().create_connection(lambda: Caller(request(streamed=False), 50), *through)
    await first.done
    ways = Ways(("127.0.0.1", upstream_port), through, pid_of(upstream_port), proxy.process.pid)
    many, alone = Load(CONNECTIONS, REQUESTS // CONNECTIONS), Load(1, ALONE)
    print(await compare(f"small JSON, {CONNECTIONS} connections, {REQUESTS} requests a round", ways, many, rounds))
    print(await compare(f"small JSON, 1 connection, {ALONE} requests a round", ways, alone, rounds))
    name = f"streams, {STREAMS} at a time, {CHUNKS} events each, one every {EVERY_MS} ms"
    print(await compare(name, ways, Load(STREAMS, 1, streamed=True), rounds), flush=True)


def pid_of(port: int) -> int:
    """The process of the upstream that was started with this port."""
    marks = {str(Path(__file__).with_name("upstream.py")).encode(), str(port).encode()}
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = cmdline.read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended meanwhile
        # Its guard has them too, after its own.
        if marks <= set(arguments) and arguments[1] in marks:
            return int(cmdline.parent.name)
    raise SystemExit("the upstream does not run")


def free_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, choices=range(1, 21), metavar="1..20")
    rounds: int = parser.parse_args().rounds
    for event_loop in ("uvloop", "asyncio"):
        if event_loop == "uvloop" and importlib.util.find_spec("uvloop") is None:
            print("== uvloop is not installed")
            continue
        port = free_port()
        print(f"== vllm-chill --event-loop {event_loop}")
        flags = ("--event-loop", event_loop, "--target-port", str(port), "--idle-timeout", "10m")
        command = (sys.executable, str(Path(__file__).with_name("upstream.py")), "{port}")
        async with asyncio.timeout(_MOST_SECONDS), serving(*flags, command=command) as proxy:
            await tables(proxy, port, rounds)


if __name__ == "__main__":
    asyncio.run(main())
