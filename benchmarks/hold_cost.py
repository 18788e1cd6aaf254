"""What the hold costs: the time from a pod's Ready to the first byte of the held request at it.

    python benchmarks/hold_cost.py [--wakes 20]

It starts a control plane on this machine as tests/cluster/run does (or takes the one that KUBECONFIG names, whose node
must run pods on this machine) and wakes a light upstream again and again by one request to `vllm-chill serve`. Ready is
when a watch of the benchmark's own is told that the pod is: the API server tells the proxy at the same moment.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import secrets
import statistics
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

_ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(_ROOT)]

from tests.cluster.cluster import Cluster, deployment  # noqa: E402 - not an installed package
from tests.cluster.serving import CHAT, in_front_of  # noqa: E402
from vllm_chill.adapters.kubernetes.client import Json, connect  # noqa: E402

GOAL_MS = 20
_WAKE_SECONDS = 30


@dataclass(frozen=True)
class Ready:
    """When a pod became ready: told by the watch (time.monotonic_ns), and its own word for it (seconds, UTC)."""

    told_ns: int
    own_seconds: float


@dataclass(frozen=True)
class Wake:
    """One wake, in milliseconds from the pod's Ready."""

    upstream: float
    client: float
    upstream_by_pods_word: float


class Watcher:
    """A watch of a namespace's pods that is no part of the proxy. Invariant: `ready` is each pod's first Ready."""

    def __init__(self, cluster: Cluster) -> None:
        self._api = cluster.api
        self._path = f"/api/v1/namespaces/{cluster.namespace}/pods"
        self.ready: list[Ready] = []
        self._seen: set[str] = set()
        self._changed = asyncio.Event()

    async def run(self) -> None:
        async with self._api.stream(self._path, {"watch": "1", "timeoutSeconds": 3600}) as response:
            async for line in response.content:
                self._take(line, time.monotonic_ns())

    async def until(self, count: int) -> Ready:
        while len(self.ready) < count:
            self._changed.clear()
            await self._changed.wait()
        return self.ready[count - 1]

    def _take(self, line: bytes, told_ns: int) -> None:
        pod = json.loads(line)["object"]
        conditions = pod["status"].get("conditions") or []
        since = next(
            (c["lastTransitionTime"] for c in conditions if c["type"] == "Ready" and c["status"] == "True"), ""
        )
        if since and pod["metadata"]["uid"] not in self._seen:
            self._seen.add(pod["metadata"]["uid"])
            self.ready.append(Ready(told_ns, datetime.fromisoformat(since).timestamp()))
            self._changed.set()


async def wake(url: str, watcher: Watcher, number: int) -> Wake:
    """One request to a target at zero."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    body = b'{"messages": []}'
    fields = b"Host: proxy\r\nContent-Type: application/json\r\nContent-Length: %d" % len(body)
    writer.write(b"POST %s HTTP/1.1\r\n%s\r\n\r\n%s" % (CHAT.encode(), fields, body))
    answer = await reader.read(65536)
    answered_ns, wall_offset = time.monotonic_ns(), time.time() - time.monotonic()
    writer.close()
    if not answer.startswith(b"HTTP/1.1 200"):
        raise SystemExit(f"a wake failed: {answer.decode(errors='replace')}")
    ready = await watcher.until(number)
    arrived_ns = json.loads(answer.partition(b"\r\n\r\n")[2])["arrived_ns"]
    by_word = arrived_ns / 1e9 + wall_offset - ready.own_seconds
    return Wake((arrived_ns - ready.told_ns) / 1e6, (answered_ns - ready.told_ns) / 1e6, by_word * 1e3)


async def wakes(count: int) -> list[Wake]:
    """So many wakes of one target, each from no pod at all."""
    async with namespace() as cluster:
        await cluster.create(light())
        watcher = Watcher(cluster)
        watching = asyncio.create_task(watcher.run())
        async with in_front_of(cluster, "--idle-timeout", "200ms") as proxy:
            await proxy.until_logged("found asleep")
            found = []
            for number in range(1, count + 1):
                async with asyncio.timeout(_WAKE_SECONDS):
                    found.append(await wake(proxy.url, watcher, number))
                    await proxy.until_logged("asleep", number)
                    await cluster.until_pods(lambda pods: not pods)
        watching.cancel()
        await asyncio.wait([watching])
        return found


@asynccontextmanager
async def namespace() -> AsyncIterator[Cluster]:
    """A fresh namespace, deleted afterwards."""
    kubeconfig, name = Path(os.environ["KUBECONFIG"]), f"chill-bench-{secrets.token_hex(4)}"
    async with connect(str(kubeconfig)) as api:
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        await api.call("POST", "/api/v1/namespaces", body=body)
        try:
            yield Cluster(api, kubeconfig, name)
        finally:
            await api.call("DELETE", f"/api/v1/namespaces/{name}")


def light() -> Json:
    """A Deployment of the light upstream, which the control plane's node runs as a process."""
    body = deployment("vllm", 0, {})
    [container] = body["spec"]["template"]["spec"]["containers"]
    command = [sys.executable, str(Path(__file__).with_name("upstream.py")), "8000"]
    container.update({"image": "upstream", "command": command, "args": []})
    return body


def table(found: Sequence[Wake]) -> str:
    rows = [
        ("Ready told by the watch -> first byte at the upstream", [w.upstream for w in found]),
        ("Ready told by the watch -> first byte at the client", [w.client for w in found]),
        ("the pod's own word for it -> first byte at the upstream (*)", [w.upstream_by_pods_word for w in found]),
    ]
    lines = [f"{f'milliseconds, {len(found)} wakes':62}{'median':>9}{'p95':>9}{'max':>9}"]
    for name, values in rows:
        ordered = sorted(values)
        p95 = ordered[math.ceil(0.95 * len(ordered)) - 1]
        lines.append(f"{name:62}{statistics.median(ordered):9.1f}{p95:9.1f}{ordered[-1]:9.1f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wakes", type=int, default=20, choices=range(2, 201), metavar="2..200")
    wanted: int = parser.parse_args().wakes
    if not os.environ.get("KUBECONFIG"):
        plane = str(_ROOT / "tests" / "cluster" / "control-plane")
        os.environ["PYTHON"] = sys.executable
        os.execv(plane, [plane, sys.executable, str(Path(__file__).resolve()), *sys.argv[1:]])
    found = asyncio.run(wakes(wanted))
    median = statistics.median(w.upstream for w in found)
    print(table(found))
    print("(*) in whole seconds, rounded down: up to 1000 ms of it are no time at all")
    print(
        f"the goal is a median of {GOAL_MS} ms from Ready to the upstream: {'met' if median <= GOAL_MS else 'MISSED'}"
    )


if __name__ == "__main__":
    main()
