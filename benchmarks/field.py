"""vllm-chill beside the proxies of its field: CPU per request and per chunk, rate, latency, memory, downloads.

    python benchmarks/field.py [--phases requests,chunks] [--rounds 5] [--json FILE]

Each proxy has one core and the load and the upstream have the other; the proxies take turns within each round, those
that wait are stopped, and figures are medians over the rounds. CPU comes from /proc (user and system); of vllm-chill
only the proxy's own process counts, as its upstream is its child. The load client and the upstream are C programs of a
folder that BENCH_TOOLS names (or ../shared/bench): load.c, stub.c and go-reverse-proxy/main.go.

Absolute figures of a shared machine are noise; the ratios to Go's ReverseProxy in the same run are what counts.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.peers import PEERS, Ground, Peer

Figures = dict[str, float]
TICKS = os.sysconf("SC_CLK_TCK")
GO = "Go ReverseProxy"
STREAM_SECONDS = 5  # at the lowest rate an answer of 100 tokens, as many as the shortest answers have
GIB = 1 << 30
SOURCE = Path(__file__).parent.parent / "src"
OPENAI_HEADERS = "Connection: keep-alive\r\n" + "".join(
    f"X-Stainless-{name}: {value}\r\n"
    for name, value in {
        "Lang": "python", "Package-Version": "1.50.0", "OS": "Linux", "Arch": "x64", "Runtime": "CPython",
        "Runtime-Version": "3.11.7", "Async": "false", "Retry-Count": "0",
    }.items()
)  # fmt: skip


def tools(folder: Path) -> None:
    """Build the C and Go programs into the folder. Exits where their sources are not."""
    source = Path(os.environ.get("BENCH_TOOLS", Path(__file__).parent.parent.parent / "shared" / "bench"))
    if not (source / "load.c").exists():
        sys.exit(f"no load.c in {source}; let BENCH_TOOLS name the folder with load.c and stub.c")
    for name in ("load", "stub"):
        subprocess.run(["cc", "-O3", "-o", folder / name, source / f"{name}.c"], check=True, stderr=subprocess.DEVNULL)
    if shutil.which("go") is not None:
        shutil.copytree(source / "go-reverse-proxy", folder / "go-reverse-proxy", copy_function=shutil.copyfile)
        (folder / "go-reverse-proxy").chmod(0o755)
        subprocess.run(["go", "build", "-o", "proxy", "."], cwd=folder / "go-reverse-proxy", check=True)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@dataclass
class Proxy:
    """A proxy that runs, pinned to core 0. `halt` and `go_on` stop and continue it while others are measured."""

    peer: Peer
    port: int
    process: subprocess.Popen[bytes]
    started: float = 0.0

    def cpu(self) -> float:
        """Seconds of CPU that its process has used, user and system."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def memory(self) -> float:
        """Proportional set size in KB."""
        lines = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text().splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith("Pss:")))

    def resident(self) -> float:
        """Resident set size in KB."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith("VmRSS:")))

    def halt(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        self.go_on()
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def pinned(core: int) -> Callable[[], None]:
    return lambda: os.sched_setaffinity(0, (core,))


def answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        question = json.dumps({"model": "m", "messages": [{"role": "user", "content": "@@mode=small@@"}]})
        connection.request("POST", "/v1/chat/completions", question, {"Content-Type": "application/json"})
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def start(peer: Peer, ground: Ground, source: Path = SOURCE) -> Proxy | None:
    """The proxy once it has answered a request; None where it is not installed. `source` is where vllm-chill is."""
    port = free_port()
    command = peer.command(ground, port)
    if command is None:
        return None
    begun = time.monotonic()
    log = (ground.folder / f"{peer.name}.log").open("wb")
    environment = os.environ | {"PYTHONPATH": str(source.absolute())}
    process = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=pinned(0), env=environment)
    proxy = Proxy(peer, port, process)
    while not answers(port):
        if process.poll() is not None or time.monotonic() - begun > 60:
            sys.exit(f"{peer.name} did not start; see {log.name}")
        time.sleep(0.005)
    proxy.started = time.monotonic() - begun
    return proxy


@dataclass
class Field:
    """The proxies of a run."""

    ground: Ground
    proxies: list[Proxy] = field(default_factory=list)

    def load(self, port: int, *arguments: object) -> Figures:
        """What the load client measured; it runs on core 1."""
        command = [str(self.ground.folder / "load"), "-p", str(port), *map(str, arguments)]
        done = subprocess.run(command, stdout=subprocess.PIPE, preexec_fn=pinned(1), check=True, timeout=300)
        figures: Figures = json.loads(done.stdout)
        return figures

    def take_turns(self, rounds: int, arguments: list[object], per: str) -> dict[str, Figures]:
        """Medians over the rounds, with `cpu_us` for each of `per` (reqs or chunks)."""
        found: dict[str, list[Figures]] = {proxy.peer.name: [] for proxy in self.proxies}
        for number in range(rounds):
            for proxy in self.proxies if number % 2 == 0 else reversed(self.proxies):
                proxy.go_on()
                self.load(proxy.port, "-c", 16, "-d", 0.4, "-b", body("mode=small"))
                before = proxy.cpu()
                figures = self.load(proxy.port, *arguments)
                figures["cpu_us"] = 1e6 * (proxy.cpu() - before) / max(1.0, figures[per])
                figures["failed"] = figures["errs"] + figures["non200"] + figures["sockerr"] + figures["seqerr"]
                found[proxy.peer.name].append(figures)
                proxy.halt()
        return {
            name: {key: statistics.median(figures[key] for figures in each) for key in each[0]}
            for name, each in found.items()
        }


@contextlib.contextmanager
def standing(ground: Ground, only: set[str]) -> Iterator[Field]:
    """Every proxy that is installed (of `only`, if any), stopped until it is its turn."""
    here = Field(ground)
    try:
        for peer in PEERS:
            if only and peer.name not in only:
                continue
            proxy = start(peer, ground)
            if proxy is None:
                print(f"{peer.name}: not installed, skipped")
                continue
            here.proxies.append(proxy)
            proxy.halt()
        yield here
    finally:
        for proxy in here.proxies:
            proxy.end()


def body(parameters: str, *, stream: bool = False) -> str:
    messages = [{"role": "user", "content": f"@@{parameters}@@ What is the capital of France?"}]
    return json.dumps({"model": "m", "stream": stream, "messages": messages, "max_tokens": 64})


def requests(here: Field, rounds: int) -> dict[str, Figures]:
    arguments = ["-c", 32, "-d", 2, "-b", body("mode=small"), "-H", OPENAI_HEADERS]
    return here.take_turns(rounds, arguments, "reqs")


def chunks(here: Field, rounds: int) -> dict[str, Figures]:
    found: dict[str, Figures] = {proxy.peer.name: {} for proxy in here.proxies}
    for rate in (5_000, 20_000, 40_000):
        streams = 250
        gap = 1_000_000 * streams // rate
        count = STREAM_SECONDS * 1_000_000 // gap
        sse = body(f"mode=sse,n={count},size=250,gap={gap}", stream=True)
        arguments = ["-c", streams, "-n", 1, "-s", max(20, gap // streams), "-b", sse, "-sse", count]
        for name, figures in here.take_turns(rounds, arguments, "chunks").items():
            found[name][f"cpu_us_{rate // 1000}k"] = figures["cpu_us"]
            found[name][f"p50_us_{rate // 1000}k"] = figures["lat50"]
            found[name]["failed"] = found[name].get("failed", 0.0) + figures["failed"]
    return found


def connections(here: Field, rounds: int) -> dict[str, Figures]:
    """A client's connection and one to the upstream, both new, for one request each that is kept waiting for 2 s."""
    arguments = ["-c", 2000, "-n", 1, "-s", 500, "-b", body("mode=hold,gap=2000000")]
    return here.take_turns(rounds, arguments, "reqs")


def latency(here: Field, rounds: int) -> dict[str, Figures]:
    arguments = ["-c", 10, "-r", 50, "-d", 3, "-b", body("mode=small"), "-H", OPENAI_HEADERS]
    direct = statistics.median(here.load(here.ground.upstream, *arguments)["tot50"] for _ in range(3))
    found = here.take_turns(rounds, arguments, "reqs")
    for figures in found.values():
        figures["added_p50_us"] = figures["tot50"] - direct
    return found


def memory(here: Field, _: int) -> dict[str, Figures]:
    found: dict[str, Figures] = {}
    for peer in (proxy.peer for proxy in here.proxies):
        found[peer.name] = {}
        for name, parameters, stream in (
            ("held_kb", "mode=hold,gap=8000000", False),
            ("stream_kb", "mode=sse,n=8,size=250,gap=1000000", True),
        ):
            proxy = start(peer, here.ground)
            assert proxy is not None
            try:
                here.load(proxy.port, "-c", 1, "-n", 3, "-b", body("mode=small"))
                idle = proxy.memory()
                count = 1000
                command = [str(here.ground.folder / "load"), "-p", str(proxy.port), "-c", str(count), "-n", "1"]
                load = subprocess.Popen(
                    [*command, "-s", "300", "-b", body(parameters, stream=stream)], stdout=subprocess.PIPE
                )
                time.sleep(4)
                found[peer.name][name] = (proxy.memory() - idle) / count
                found[peer.name]["idle_mb"] = idle / 1024
                out, _error = load.communicate(timeout=60)
                figures = json.loads(out)
                found[peer.name]["failed"] = found[peer.name].get("failed", 0.0) + figures["errs"] + figures["non200"]
            finally:
                proxy.end()
    return found


def many_streams(here: Field, _: int) -> dict[str, Figures]:
    # Each stream takes two files of a proxy, and there is a limit to what one may open.
    count = min(10_000, (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 500) // 2)
    print(f"\n{count} streams at 2 chunks/s each")
    sse = body("mode=sse,n=20,size=250,gap=500000", stream=True)
    arguments = ["-c", count, "-n", 1, "-s", 100, "-b", sse, "-sse", 20]
    found = {}
    for proxy in here.proxies:
        if proxy.peer.name in {"HAProxy", "vllm-router"}:
            continue  # bounded by their own limits of connections
        proxy.go_on()
        figures = here.load(proxy.port, *arguments)
        figures["failed"] = figures["errs"] + figures["non200"] + figures["sockerr"] + figures["seqerr"]
        found[proxy.peer.name] = figures
        proxy.halt()
    return found


def download(here: Field, rounds: int) -> dict[str, Figures]:
    arguments = ["-c", 4, "-n", 8, "-m", "GET", "-P", "/v1/responses/x?@@mode=big,n=20000000@@"]
    return here.take_turns(rounds, arguments, "reqs")


def transfer(here: Field, rounds: int) -> dict[str, Figures]:
    """1 GiB down and up on one connection, and what a reader makes it keep that stops reading within 200 MB."""
    found: dict[str, list[Figures]] = {proxy.peer.name: [] for proxy in here.proxies}
    os.sched_setaffinity(0, (1,))
    for _ in range(rounds):
        for proxy in here.proxies:
            proxy.go_on()
            figures = {"failed": 0.0}
            for name, move in (("down_mbps", _download), ("up_mbps", _upload)):
                begun = time.monotonic()
                try:
                    figures["failed"] += move(proxy.port) != GIB
                except TimeoutError:
                    figures["failed"] += 1
                figures[name] = GIB / 1e6 / (time.monotonic() - begun)
            before = proxy.resident()
            with _asked(proxy.port, 200_000_000):
                time.sleep(2)
                figures["stalled_kb"] = proxy.resident() - before
            found[proxy.peer.name].append(figures)
            proxy.halt()
    os.sched_setaffinity(0, (0, 1))
    return {
        name: {key: statistics.median(figures[key] for figures in each) for key in each[0]}
        for name, each in found.items()
    }


def _asked(port: int, size: int) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=60)
    client.sendall(f"GET /v1/responses/x?@@mode=big,n={size}@@ HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return client


def _download(port: int) -> int:
    with _asked(port, GIB) as client:
        _, _, rest = client.recv(1 << 20).partition(b"\r\n\r\n")
        got, room = len(rest), memoryview(bytearray(1 << 20))
        while got < GIB and (size := client.recv_into(room)):
            got += size
        return got


def _upload(port: int) -> int:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        # An upstream that takes it and does no more, and a client without a copy: they share a core, and else they
        # would be what is measured. It answers once all has come.
        client.sendall(f"POST /v1/audio/x HTTP/1.1\r\nHost: x\r\nContent-Length: {GIB}\r\n\r\n".encode())
        with os.fdopen(os.memfd_create("piece"), "r+b") as piece:
            piece.truncate(1 << 20)
            for _ in range(GIB >> 20):
                client.sendfile(piece)
        return GIB if client.recv(65536).startswith(b"HTTP/1.1 200 ") else 0


def starts(here: Field, rounds: int) -> dict[str, Figures]:
    found: dict[str, list[float]] = {proxy.peer.name: [] for proxy in here.proxies}
    for _ in range(rounds):
        for peer in (proxy.peer for proxy in here.proxies):
            proxy = start(peer, here.ground)
            assert proxy is not None
            found[peer.name].append(proxy.started)
            proxy.end()
    return {name: {"start_s": statistics.median(each)} for name, each in found.items()}


PHASES: dict[str, tuple[Callable[[Field, int], dict[str, Figures]], tuple[str, ...]]] = {
    "requests": (requests, ("cpu_us", "rps", "failed")),
    "chunks": (chunks, ("cpu_us_5k", "cpu_us_20k", "cpu_us_40k", "p50_us_20k", "failed")),
    "latency": (latency, ("tot50", "tot99", "added_p50_us", "failed")),
    "memory": (memory, ("idle_mb", "held_kb", "stream_kb", "failed")),
    "streams": (many_streams, ("lat50", "lat99", "chunks", "failed")),
    "connections": (connections, ("cpu_us", "failed")),
    "download": (download, ("mbps", "failed")),
    "transfer": (transfer, ("down_mbps", "up_mbps", "stalled_kb", "failed")),
    "start": (starts, ("start_s",)),
}


def table(phase: str, found: dict[str, Figures], columns: tuple[str, ...]) -> str:
    """A table in Markdown, each figure with its ratio to Go's."""
    go = found.get(GO)
    lines = [f"| {phase} | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, figures in found.items():
        cells = []
        for column in columns:
            value = figures[column]
            ratio = f" ({value / go[column]:.2f} of Go's)" if go and go[column] and column != "failed" else ""
            cells.append(f"{value:,.1f}{ratio}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phases", default=",".join(PHASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", default="", help="names of proxies, separated by semicolons; all if empty")
    given = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tools(folder)
        upstream = free_port()
        stub = subprocess.Popen([str(folder / "stub"), str(upstream)], preexec_fn=pinned(1))
        try:
            only = {name.strip() for name in given.only.split(";") if name.strip()}
            with standing(Ground(folder, upstream), only) as here:
                for phase in given.phases.split(","):
                    measure, columns = PHASES[phase]
                    results[phase] = measure(here, given.rounds)
                    print(f"\n{table(phase, results[phase], columns)}", flush=True)
        finally:
            stub.kill()
            stub.wait()
    if given.json:
        given.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
