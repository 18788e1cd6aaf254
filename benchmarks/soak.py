"""The proxy at half its load and with everything else that clients do, to see whether it grows or holds anybody up.

    python benchmarks/soak.py [--minutes 30] [--json FILE]

Two models. One is asked for small answers at half the rate that the proxy can do, and for streams, some of which are
left early. The other sleeps after two seconds without use, and eight callers wake it every ten seconds. Beside them
there are uploads and downloads of megabytes, downloads that are left, connections for one request each, heads that are
illegal, heads and bodies that never go on, and bodies that are too large. The upstream is that of benchmarks/field.py.

A client of its own asks for /health twenty times a second, on one connection: what it waits is the event loop's lag,
and its own. Each ten seconds the resident memory and the open files of the proxy are noted. They are printed by the
minute; the slope is that of a line through the last two thirds, as the first is for caches to fill.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.field import OPENAI_HEADERS, Field, Proxy, body, free_port, pinned, start, tools
from benchmarks.peers import Ground, Peer

_EVERY_SECONDS = 10.0
_LOAD_SECONDS = 60
_PROBES_PER_SECOND = 20
_MEGABYTE = 1_000_000
_GOAL_LAG_MS = 20.0

Client = Callable[["Mix"], Awaitable[str]]


@dataclass
class Soak:
    """What a run has seen: `samples` are seconds, KB resident and open files; `lags` are seconds."""

    samples: list[tuple[float, float, int]] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)
    counted: Counter[str] = field(default_factory=Counter)

    def slope(self) -> tuple[float, float]:
        """KB and files per hour, over the last two thirds."""
        times, resident, files = zip(*self.samples[len(self.samples) // 3 :], strict=True)
        return tuple(statistics.linear_regression(times, each).slope * 3600 for each in (resident, files))  # type: ignore[return-value]

    def lag(self, part: float) -> float:
        """Milliseconds that so much of the probes waited at most."""
        return sorted(self.lags)[min(len(self.lags) - 1, int(part * len(self.lags)))] * 1e3


class Mix:
    """Clients that are not those of a benchmark: each of them does one thing and says how it ended."""

    def __init__(self, port: int, soak: Soak) -> None:
        self._port = port
        self._soak = soak
        self._rng = random.Random(1)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for every, client in _CLIENTS:
                tasks.create_task(self._again_and_again(every, client))

    async def _again_and_again(self, every: float, client: Client) -> None:
        async with asyncio.TaskGroup() as tasks:
            while True:
                tasks.create_task(self._once(client))
                await asyncio.sleep(self._rng.uniform(0.5, 1.5) * every)

    async def _once(self, client: Client) -> None:
        try:
            async with asyncio.timeout(90):
                ended = await client(self)
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            ended = type(error).__name__
        self._soak.counted[f"{client.__name__.strip('_').replace('_', ' ')}: {ended}"] += 1

    async def ask(self, sent: bytes, *, read: int = 1 << 30, wait: float = 0.0) -> str:
        """The status of what is answered, when so much of it has been read, or all, or nothing comes for `wait` s."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(sent)
            await writer.drain()
            if wait:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        return _status(await reader.read(65536))
                return "left"
            first = await reader.readuntil(b"\r\n\r\n")
            got = 0
            while got < read and (piece := await reader.read(1 << 18)):
                got += len(piece)
            return _status(first)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def woken(self) -> str:
        ended = await asyncio.gather(*(self.ask(_question("other", "mode=small")) for _ in range(8)))
        return " ".join(sorted(set(ended)))


def _status(answer: bytes) -> str:
    return answer[9:12].decode() or "closed"


def _request(head: str, *, close: bool = True) -> bytes:
    lines = [head, "Host: x", *(["Connection: close"] if close else [])]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _question(model: str, parameters: str) -> bytes:
    asked = body(parameters).replace('"model": "m"', f'"model": "{model}"')
    head = f"POST /v1/chat/completions HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {len(asked)}"
    return _request(head) + asked.encode()


async def _one_request(mix: Mix) -> str:
    return await mix.ask(_question("m", "mode=small"))


async def _upload(mix: Mix) -> str:
    said = json.dumps({"model": "m", "input": "x" * 3 * _MEGABYTE})
    head = f"POST /v1/embeddings HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {len(said)}"
    return await mix.ask(_request(head) + said.encode())


async def _download(mix: Mix) -> str:
    return await mix.ask(_question("m", f"mode=big,n={5 * _MEGABYTE}"))


async def _left_download(mix: Mix) -> str:
    return await mix.ask(_question("m", f"mode=big,n={20 * _MEGABYTE}"), read=_MEGABYTE)


async def _illegal_head(mix: Mix) -> str:
    return await mix.ask(_request("GET /v1/models HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3"))


async def _half_a_head(mix: Mix) -> str:
    return await mix.ask(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConte", wait=5)


async def _half_a_body(mix: Mix) -> str:
    return await mix.ask(_question("m", "mode=small")[:-40], wait=5)


async def _too_large(mix: Mix) -> str:
    return await mix.ask(_request("POST /v1/embeddings HTTP/1.1\r\nContent-Length: 99999999999"))


async def _unknown_model(mix: Mix) -> str:
    return await mix.ask(_question("none-of-them", "mode=small"))


async def _woken_from_zero(mix: Mix) -> str:
    return await mix.woken()


async def _status_page(mix: Mix) -> str:
    return await mix.ask(_request("GET /proxy/status HTTP/1.1"))


async def _metrics(mix: Mix) -> str:
    return await mix.ask(_request("GET /proxy/metrics HTTP/1.1"))


# Seconds from one to the next, on the mean.
_CLIENTS: tuple[tuple[float, Client], ...] = (
    (0.1, _one_request),
    (1.0, _upload),
    (1.0, _download),
    (2.0, _left_download),
    (0.5, _illegal_head),
    (0.5, _half_a_head),
    (1.0, _half_a_body),
    (2.0, _too_large),
    (1.0, _unknown_model),
    (10.0, _woken_from_zero),
    (1.0, _status_page),
    (5.0, _metrics),
)


def probe(port: int, soak: Soak, over: threading.Event) -> None:
    """Note how long /health takes, until it is `over`."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    while not over.wait(1 / _PROBES_PER_SECOND):
        begun = time.perf_counter()
        connection.request("GET", "/health")
        connection.getresponse().read()
        soak.lags.append(time.perf_counter() - begun)


def loads(folder: Path, port: int, rate: float) -> list[subprocess.Popen[bytes]]:
    """Start a minute of requests, of streams, and of streams that are left early."""
    load = [str(folder / "load"), "-p", str(port)]
    sse = body("mode=sse,n=100,size=250,gap=20000", stream=True)
    kinds = (
        ["-c", "32", "-r", f"{rate:.0f}", "-d", str(_LOAD_SECONDS), "-b", body("mode=small"), "-H", OPENAI_HEADERS],
        ["-c", "20", "-d", str(_LOAD_SECONDS), "-b", sse, "-sse", "100"],
        ["-c", "4", "-r", "4", "-d", str(_LOAD_SECONDS), "-b", sse, "-abort", "5"],
    )
    return [subprocess.Popen([*load, *kind], stdout=subprocess.PIPE, preexec_fn=pinned(1)) for kind in kinds]


def open_files(proxy: Proxy) -> int:
    return len(list(Path(f"/proc/{proxy.process.pid}/fd").iterdir()))


async def watch(proxy: Proxy, folder: Path, rate: float, minutes: float, soak: Soak) -> None:
    begun = time.monotonic()
    while time.monotonic() < begun + minutes * 60:
        running = loads(folder, proxy.port, rate)
        while any(process.poll() is None for process in running):
            await asyncio.sleep(_EVERY_SECONDS)
            soak.samples.append((time.monotonic() - begun, proxy.resident(), open_files(proxy)))
        for process in running[:2]:  # who leaves early calls that an error
            figures = json.loads(process.communicate()[0])
            soak.counted["requests"] += figures["reqs"]
            soak.counted["chunks"] += figures["chunks"]
            soak.counted["failed"] += figures["errs"] + figures["non200"] + figures["seqerr"]
        running[2].communicate()
        at, resident, files = soak.samples[-1]
        print(
            f"{at / 60:5.1f} min  {resident / 1024:6.1f} MB  {files:4d} files  lag p99 {soak.lag(0.99):.1f} ms",
            flush=True,
        )


async def run(proxy: Proxy, folder: Path, rate: float, minutes: float, soak: Soak) -> None:
    over = threading.Event()
    probing = asyncio.create_task(asyncio.to_thread(probe, proxy.port, soak, over))
    mixing = asyncio.create_task(Mix(proxy.port, soak).run())
    try:
        await watch(proxy, folder, rate, minutes, soak)
    finally:
        mixing.cancel()
        over.set()
        await asyncio.wait([mixing, probing])
    probing.result()


def two_models(folder: Path) -> Peer:
    """vllm-chill with one model that stays and one that sleeps; the upstream of each is its child, on core 1."""
    engine = ["taskset", "-c", "1", str(folder / "stub"), "{port}"]
    models = {
        "m": {"modelName": "m", "command": engine, "idleTimeout": "2h"},
        "other": {"modelName": "other", "command": engine, "idleTimeout": "2s"},
    }
    (folder / "models.yaml").write_text(json.dumps({"models": models}))

    def command(_: Ground, port: int) -> list[str]:
        serve = [sys.executable, "-m", "vllm_chill", "serve", "--backend", "process", "--host", "127.0.0.1"]
        engines = ["--models", str(folder / "models.yaml"), "--health-path", "/v1/models", "--stop-timeout", "1s"]
        return [
            *serve,
            "--port",
            str(port),
            *engines,
            "--state-dir",
            "",
            "--log-level",
            "error",
            "--shutdown-delay",
            "0",
        ]

    return Peer("vllm-chill", command)


def tell(soak: Soak) -> None:
    print(f"{soak.counted.pop('requests'):,} requests, {soak.counted.pop('chunks'):,} chunks, ", end="")
    print(f"{soak.counted.pop('failed')} failed; and others, as they ended:")
    for name, count in sorted(soak.counted.items()):
        print(f"  {name:28} {count:7,}")
    resident, files = soak.slope()
    print(f"slope {resident:+.0f} KB and {files:+.1f} files an hour")
    lag = soak.lag(0.99)
    print(f"/health: median {soak.lag(0.5):.2f} ms, p99 {lag:.1f} ms, longest {max(soak.lags) * 1e3:.0f} ms")
    print(f"the goal is a p99 below {_GOAL_LAG_MS:.0f} ms: {'met' if lag < _GOAL_LAG_MS else 'MISSED'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    soak = Soak()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tools(folder)
        ground = Ground(folder, free_port())
        proxy = start(two_models(folder), ground)
        assert proxy is not None
        try:
            most = Field(ground).load(proxy.port, "-c", 32, "-d", 3, "-b", body("mode=small"), "-H", OPENAI_HEADERS)
            rate = most["rps"] / 2
            print(f"{rate:.0f} requests/s, half of {most['rps']:.0f}; 20 streams of 50 chunks/s; and the others")
            os.sched_setaffinity(0, (1,))
            asyncio.run(run(proxy, folder, rate, given.minutes, soak))
        finally:
            proxy.end()
    if given.json:
        given.json.write_text(json.dumps({"samples": soak.samples, "counted": soak.counted, "p99_ms": soak.lag(0.99)}))
    tell(soak)


if __name__ == "__main__":
    main()
