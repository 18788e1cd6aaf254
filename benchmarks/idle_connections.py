"""What idle connections cost: memory for each, and how long a new request takes beside them.

    python benchmarks/idle_connections.py [--connections 10000] [--requests 500] [--json FILE]

The proxy is a process of its own, in front of an engine that answers at once. Connections are made in four ways, each
against a proxy of its own: those that never say a word; those that have asked once on the fast lane, and once in a way
that goes the long way; and those that have begun a head and do not go on (of which the proxy would be rid after
--request-head-timeout, which is set to an hour here). Then one client asks one request after another on a connection
of its own, and one on a new connection for each.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import resource
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.field import free_port

ENGINE = Path(__file__).parent / "upstream.py"
HOSTS = [f"127.0.0.{number}" for number in range(2, 12)]
PLAIN = b"POST /v1/audio/x HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}"
LONG_WAY = b"POST /v1/audio/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
WAYS = {
    "not a word each": b"",
    "no connections at all": None,
    "one request each, fast lane": PLAIN,
    "one request each, the long way": LONG_WAY,
    "half a head each": PLAIN[:40],
}


@contextlib.contextmanager
def proxy() -> Iterator[tuple[int, int]]:
    """A proxy that runs; its process and its port."""
    port = free_port()
    serve = [sys.executable, "-m", "vllm_chill", "serve", "--backend", "process", "--port", str(port)]
    flags = ["--host", "127.0.0.1", "--request-head-timeout", "1h", "--max-connections", "15000"]
    flags += ["--health-path", "/v1/models", "--state-dir", "", "--log-level", "error"]
    engine = [sys.executable, str(ENGINE), "{port}"]
    process = subprocess.Popen([*serve, *flags, "--shutdown-delay", "0", "--", *engine])
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if ask(port) == 200:
                    break
            time.sleep(0.05)
        yield process.pid, port
    finally:
        process.terminate()
        process.wait(20)


def ask(port: int, connection: http.client.HTTPConnection | None = None) -> int:
    connection = connection or http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", "/v1/audio/x", b"{}", {"Content-Type": "text/plain"})
    answer = connection.getresponse()
    answer.read()
    return answer.status


def proportional_kb(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("Pss:")))


def connections(port: int, count: int, first: bytes | None) -> list[socket.socket]:
    """As many connections, each of which has sent this."""
    if first is None:
        return []
    made = []
    for number in range(count):
        each = socket.socket()
        each.bind((HOSTS[number % len(HOSTS)], 0))
        each.connect(("127.0.0.1", port))
        each.sendall(first)
        if first.endswith((b"{}", b"0\r\n\r\n")):
            while not each.recv(65536):
                pass
        made.append(each)
    return made


def latency_ms(port: int, count: int, *, kept: bool) -> tuple[float, float]:
    """The median and the 99th percentile."""
    took = []
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30) if kept else None
    for _ in range(count):
        begun = time.perf_counter()
        if ask(port, connection) != 200:
            sys.exit("a request beside the idle connections was not answered")
        took.append(1000 * (time.perf_counter() - begun))
    took.sort()
    return statistics.median(took), took[int(len(took) * 0.99)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    found = {}
    print(f"{given.connections} connections                 KB each     ms, kept: median  p99     ms, new: median  p99")
    for name, first in WAYS.items():
        with proxy() as (pid, port):
            latency_ms(port, 200, kept=True)
            before = proportional_kb(pid)
            made = connections(port, given.connections, first)
            time.sleep(1)
            each = (proportional_kb(pid) - before) / len(made) if made else 0.0
            kept, new = latency_ms(port, given.requests, kept=True), latency_ms(port, given.requests, kept=False)
            found[name] = {"kb": each, "kept_ms": kept, "new_ms": new}
            print(f"{name:32} {each:8.2f} {kept[0]:18.2f} {kept[1]:7.2f} {new[0]:18.2f} {new[1]:7.2f}", flush=True)
            for one in made:
                one.close()
    if given.json:
        given.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
