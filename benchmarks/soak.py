"""The proxy at half its load for as long as it takes to see whether memory or file descriptors grow.

    python benchmarks/soak.py [--minutes 30] [--json FILE]

Small requests at half the rate that the proxy can do, and streams of which some are left early, against the upstream
of benchmarks/field.py. Each ten seconds it notes the resident memory and the open files of the proxy. It prints them
by the minute, and how the last third of the run differs from the middle one: the first is for caches to fill.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.field import OPENAI_HEADERS, Field, Proxy, body, free_port, pinned, start, tools
from benchmarks.peers import PEERS, Ground

_EVERY_SECONDS = 10.0
_LOAD_SECONDS = 60


def sample(proxy: Proxy) -> tuple[int, int]:
    """Resident memory in KB, and open files."""
    status = Path(f"/proc/{proxy.process.pid}/status").read_text().splitlines()
    resident = int(next(line.split()[1] for line in status if line.startswith("VmRSS")))
    return resident, len(list(Path(f"/proc/{proxy.process.pid}/fd").iterdir()))


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


def watch(proxy: Proxy, folder: Path, rate: float, minutes: float) -> tuple[list[tuple[int, int]], dict[str, float]]:
    """The samples of the whole run, and what the load clients counted."""
    samples: list[tuple[int, int]] = []
    counted = {"reqs": 0.0, "chunks": 0.0, "failed": 0.0}
    end = time.monotonic() + minutes * 60
    while time.monotonic() < end:
        running = loads(folder, proxy.port, rate)
        while any(process.poll() is None for process in running):
            time.sleep(_EVERY_SECONDS)
            samples.append(sample(proxy))
        for process in running[:2]:  # who leaves early calls that an error
            figures = json.loads(process.communicate()[0])
            counted["reqs"] += figures["reqs"]
            counted["chunks"] += figures["chunks"]
            counted["failed"] += figures["errs"] + figures["non200"] + figures["seqerr"]
        running[2].communicate()
        resident, files = samples[-1]
        print(f"{len(samples) * _EVERY_SECONDS / 60:5.1f} min  {resident / 1024:6.1f} MB  {files:4d} files", flush=True)
    return samples, counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tools(folder)
        ground = Ground(folder, free_port())
        proxy = start(PEERS[0], ground)
        assert proxy is not None
        try:
            most = Field(ground).load(proxy.port, "-c", 32, "-d", 3, "-b", body("mode=small"), "-H", OPENAI_HEADERS)
            rate = most["rps"] / 2
            print(f"{rate:.0f} requests/s, half of {most['rps']:.0f}; 20 streams of 50 chunks/s; 4 a second left early")
            samples, counted = watch(proxy, folder, rate, given.minutes)
        finally:
            proxy.end()
    third = len(samples) // 3
    middle, last = samples[third : 2 * third], samples[2 * third :]
    grown = [statistics.median(s[i] for s in last) - statistics.median(s[i] for s in middle) for i in (0, 1)]
    print(
        f"{counted['reqs']:,.0f} requests, {counted['chunks']:,.0f} chunks, {counted['failed']:.0f} failed; the last "
        f"third against the middle one: {grown[0]:+.0f} KB, {grown[1]:+.0f} files"
    )
    if given.json:
        given.json.write_text(json.dumps({"samples": samples, "counted": counted}))


if __name__ == "__main__":
    main()
