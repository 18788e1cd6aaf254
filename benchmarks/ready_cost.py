"""What readiness costs: the time from the engine's open port to the first byte of the answer that was held for it.

    python benchmarks/ready_cost.py [--wakes 20]

It starts a control plane on this machine as tests/cluster/run does (or takes the one that KUBECONFIG names, whose node
must run pods on this machine) and wakes a light upstream again and again by one request to `vllm-chill serve`, with
each way of knowing that a pod is ready. The upstream takes half a second to nine and a half to listen; its readiness
probe has the period that Kubernetes gives one by default, ten seconds, so a kubelet is late by any part of that.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp

_ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(_ROOT)]

from benchmarks.hold_cost import light, namespace  # noqa: E402 - not an installed package
from tests.cluster.cluster import Cluster  # noqa: E402
from tests.cluster.serving import CHAT, in_front_of  # noqa: E402

GOAL_MS = 250
_LOAD_SECONDS = "0.5-9.5"
_PERIOD_SECONDS = 10
_WAKE_SECONDS = 60
_WAYS = {
    "--readiness probe --route pod": ("--readiness", "probe", "--route", "pod"),
    "--readiness kubernetes --route pod": ("--readiness", "kubernetes", "--route", "pod"),
    "--readiness kubernetes --route service": ("--readiness", "kubernetes", "--route", "service"),
}


@dataclass(frozen=True)
class Wake:
    """One wake, in milliseconds from the moment at which the upstream began to listen."""

    upstream: float
    client: float


async def wake(url: str) -> Wake:
    """One request to a target at zero."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    body = b'{"messages": []}'
    fields = b"Host: proxy\r\nContent-Type: application/json\r\nContent-Length: %d" % len(body)
    writer.write(b"POST %s HTTP/1.1\r\n%s\r\n\r\n%s" % (CHAT.encode(), fields, body))
    answer = await reader.read(65536)
    answered_ns = time.monotonic_ns()
    writer.close()
    if not answer.startswith(b"HTTP/1.1 200"):
        raise SystemExit(f"a wake failed: {answer.decode(errors='replace')}")
    arrived_ns = json.loads(answer.partition(b"\r\n\r\n")[2])["arrived_ns"]
    async with aiohttp.ClientSession() as session, session.get(url + "/began") as response:
        began_ns = json.loads(await response.read())["began_ns"]
    return Wake((arrived_ns - began_ns) / 1e6, (answered_ns - began_ns) / 1e6)


async def wakes(cluster: Cluster, flags: Sequence[str], count: int) -> list[Wake]:
    """So many wakes, each from no pod at all."""
    found = []
    async with in_front_of(cluster, "--idle-timeout", "1s", *flags) as proxy:
        await proxy.until_logged("found asleep")
        for number in range(1, count + 1):
            async with asyncio.timeout(_WAKE_SECONDS):
                found.append(await wake(proxy.url))
                await proxy.until_logged("asleep", number)
                await cluster.until_pods(lambda pods: not pods)
    return found


async def measured(count: int) -> dict[str, list[Wake]]:
    """The wakes of each way."""
    found = {}
    for way, flags in _WAYS.items():
        async with namespace() as cluster:
            body = light()
            [container] = body["spec"]["template"]["spec"]["containers"]
            container["command"].append(_LOAD_SECONDS)
            container["readinessProbe"]["periodSeconds"] = _PERIOD_SECONDS
            await cluster.create(body)
            found[way] = await wakes(cluster, flags, count)
    return found


def rows(way: str, found: Sequence[Wake]) -> list[str]:
    lines = [f"{f'== {way}, {len(found)} wakes, ms':62}{'median':>9}{'p95':>9}{'max':>9}"]
    for name, values in (
        ("the port opens -> first byte at the upstream", [w.upstream for w in found]),
        ("the port opens -> first byte at the client", [w.client for w in found]),
    ):
        ordered = sorted(values)
        p95 = ordered[math.ceil(0.95 * len(ordered)) - 1]
        lines.append(f"{name:62}{statistics.median(ordered):9.1f}{p95:9.1f}{ordered[-1]:9.1f}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wakes", type=int, default=20, choices=range(2, 201), metavar="2..200")
    count: int = parser.parse_args().wakes
    if not os.environ.get("KUBECONFIG"):
        plane = str(_ROOT / "tests" / "cluster" / "control-plane")
        os.environ["PYTHON"] = sys.executable
        os.execv(plane, [plane, sys.executable, str(Path(__file__).resolve()), *sys.argv[1:]])
    found = asyncio.run(measured(count))
    for way, wakes_of_it in found.items():
        print("\n".join(rows(way, wakes_of_it)))
    worst = max(w.client for w in found[next(iter(_WAYS))])
    verdict = "met" if worst <= GOAL_MS else "MISSED"
    print(f"the goal with probes is at most {GOAL_MS} ms from the open port to the client, each time: {verdict}")


if __name__ == "__main__":
    main()
