"""From 1 to N and back: a policy, a load that grows eightfold and goes, and a control plane that fails meanwhile."""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.cluster import api_server
from tests.cluster.cluster import Cluster, deployment
from tests.cluster.models import install_crd
from tests.cluster.serving import CHAT, caller, in_front_of, question
from tests.serving import Serving
from vllm_chill.adapters.kubernetes.watch import ListWatch, Outage, Snapshot
from vllm_chill.api.crd import POLICIES
from vllm_chill.api.scaling_policy import API_VERSION, KIND, PLURAL
from vllm_chill.core.objects import Json

pytestmark = pytest.mark.slow

POLLING = 5
SEATS = 4
LOAD_SECONDS = 1.0
TOKENS = 50  # a second's worth
# A replica starts within this, when seven of them do at once on a machine that has other things to do.
START_SECONDS = 30.0
SPEC: Json = {
    "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "vllm"},
    "minReplicas": 0,
    "maxReplicas": 10,
    "scalingRules": [
        {"metric": "queue_length", "threshold": 2.5},
        {"metric": "running_requests", "threshold": 3.5, "target": 3},
    ],
    "behavior": {
        "scaleUp": {"policies": [{"type": "Percent", "value": 900, "periodSeconds": 15}]},
        "scaleDown": {"stabilizationWindowSeconds": 10},
    },
    "pollingInterval": POLLING,
    "idleTimeout": "25s",
}


@dataclass
class Load:
    """Callers that ask one streamed answer after another. `ttft` has when each answer began to come, and after how
    long; `failed` what did not end well.
    """

    url: str
    session: aiohttp.ClientSession
    ttft: list[tuple[float, float]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    answered: int = 0
    _callers: list[asyncio.Task[None]] = field(default_factory=list)

    def grow_to(self, callers: int) -> None:
        while len(self._callers) < callers:
            self._callers.append(asyncio.create_task(self._call()))

    async def end(self) -> None:
        """Have each caller end with the answer that it has begun."""
        callers, self._callers = self._callers, []
        await asyncio.gather(*callers)

    async def _call(self) -> None:
        while asyncio.current_task() in self._callers:
            began = time.monotonic()
            body = question(TOKENS, stream=True)
            try:
                async with self.session.post(self.url + CHAT, json=body) as response:
                    first = await response.content.readany()
                    self.ttft.append((time.monotonic(), time.monotonic() - began))
                    rest = first + await response.content.read()
                if response.status != 200 or not rest.endswith(b"data: [DONE]\n\n"):
                    self.failed.append(f"{response.status}: {rest[-200:]!r}")
            except aiohttp.ClientError as error:
                self.failed.append(repr(error))
            self.answered += 1

    def typical_ttft(self, since: float) -> float:
        """The median of the answers that began then or later, in seconds."""
        return statistics.median(seconds for at, seconds in self.ttft if at >= since)


class Replicas:
    """Each number of replicas that was asked for, with when it was seen first."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.asked: list[tuple[float, int]] = []
        self._changed = asyncio.Event()

    @property
    def numbers(self) -> list[int]:
        return [number for _, number in self.asked]

    async def watch(self) -> None:
        path = f"/apis/apps/v1/namespaces/{self._cluster.namespace}/deployments"
        watch: ListWatch[int] = ListWatch(self._cluster.api, path, {}, lambda item: int(item["spec"]["replicas"]))
        async with aclosing(watch.steps()) as steps:
            async for step in steps:
                match step:
                    case Snapshot() if not self.asked or self.asked[-1][1] != step.objects["vllm"]:
                        self.asked.append((time.monotonic(), step.objects["vllm"]))
                        self._changed.set()
                    case Snapshot() | Outage():
                        pass

    async def until(self, number: int, seconds: float) -> float:
        """When so many were asked for last, once they are."""
        async with asyncio.timeout(seconds):
            while not self.asked or self.asked[-1][1] != number:
                self._changed.clear()
                await self._changed.wait()
        return self.asked[-1][0]


@dataclass
class Stage:
    cluster: Cluster
    proxy: Serving
    load: Load
    replicas: Replicas
    muted: Path
    policy_path: str

    async def policy(self) -> Json:
        return await self.cluster.api.call("GET", self.policy_path)

    async def until_condition(self, kind: str, status: str, seconds: float = 60) -> Json:
        """The policy's condition, once it is so."""

        def holds(items: list[Json]) -> bool:
            return any(one["type"] == kind and one["status"] == status for one in _conditions(items))

        items = await self.cluster.until(f"/apis/{API_VERSION}", PLURAL, holds, seconds=seconds)
        return next(one for one in _conditions(items) if one["type"] == kind)

    async def until_ready(self, replicas: int, seconds: float = START_SECONDS) -> None:
        def holds(pods: list[Json]) -> bool:
            ready = [c for pod in pods for c in pod["status"].get("conditions", ()) if c["type"] == "Ready"]
            return len([c for c in ready if c["status"] == "True"]) == replicas

        await self.cluster.until_pods(holds, seconds=seconds)


def _conditions(items: list[Json]) -> list[Json]:
    return [one for item in items for one in item.get("status", {}).get("conditions", ())]


@asynccontextmanager
async def stage(cluster: Cluster, folder: Path, **spec: Any) -> AsyncIterator[Stage]:
    """A sleeping engine with a few seats, a policy for it, and the proxy in front."""
    stub = Path(os.environ.get("CONTROL_PLANE", "")) / "stub_vllm.py"
    if not stub.is_file():
        pytest.skip("needs the control plane's stub of vLLM: let tests/cluster/run start a control plane")
    muted = folder / "muted"
    engine = deployment("vllm", 0, {"STUB_LOAD_SECONDS": f"{LOAD_SECONDS}"})
    [container] = engine["spec"]["template"]["spec"]["containers"]
    container["image"] = "stub"
    container["command"] = [sys.executable, str(Path(__file__).with_name("muted_engine.py")), str(stub), str(muted)]
    container["args"] = ["--model", "stub", "--max-num-seqs", str(SEATS)]
    engine["spec"]["strategy"] = {"type": "RollingUpdate"}
    await cluster.create(engine)
    path = await create_policy(cluster, {**SPEC, **spec})
    replicas = Replicas(cluster)
    watching = asyncio.create_task(replicas.watch())
    async with in_front_of(cluster, "--idle-timeout", "1h", "--route", "pod") as proxy, caller() as session:
        load = Load(proxy.url, session)
        here = Stage(cluster, proxy, load, replicas, muted, path)
        try:
            await here.until_condition("Active", "True")
            yield here
        finally:
            watching.cancel()
            await load.end()
    assert all(0 <= number <= SPEC["maxReplicas"] for number in replicas.numbers)


async def create_policy(cluster: Cluster, spec: Json, name: str = "vllm") -> str:
    """A policy in the cluster's namespace, and its path."""
    await install_crd(cluster.api, POLICIES)
    collection = f"/apis/{API_VERSION}/namespaces/{cluster.namespace}/{PLURAL}"
    body = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "spec": spec}
    await cluster.api.call("POST", collection, body=body)
    return f"{collection}/{name}"


def _silent(load: Load) -> None:
    assert load.failed == []


async def test_a_load_that_grows_eightfold_has_the_replicas_it_needs_and_gives_them_back(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with stage(cluster, tmp_path) as here:
        here.load.grow_to(1)
        await here.replicas.until(1, 20)
        await here.until_ready(1)
        here.load.grow_to(3)
        await asyncio.sleep(4 * POLLING)
        assert here.replicas.numbers == [0, 1]  # three callers at four seats
        calm = here.load.typical_ttft(time.monotonic() - 2 * POLLING)

        began = time.monotonic()
        here.load.grow_to(24)
        asked = await here.replicas.until(8, 4 * POLLING)
        await here.until_ready(8)
        recovered = time.monotonic()
        await asyncio.sleep(2 * POLLING)
        busy = here.load.typical_ttft(recovered + 2)
        assert here.replicas.numbers == [0, 1, 8]
        # The engines are scraped every 5 s, and looked at every polling interval.
        assert asked - began <= 2 * POLLING + 1
        assert busy < calm + 0.5

        gone = time.monotonic()
        await here.load.end()
        fewer = await here.replicas.until(1, 60)
        asleep = await here.replicas.until(0, 60)
        assert here.replicas.numbers[:3] == [0, 1, 8]
        assert sorted(here.replicas.numbers[2:], reverse=True) == here.replicas.numbers[2:]
        _silent(here.load)
        events = await cluster.api.call("GET", f"/api/v1/namespaces/{cluster.namespace}/events")
        said = [event["message"] for event in events["items"] if event["involvedObject"]["name"] == "vllm"]
        assert any("8" in message and "queue_length" in message for message in said)
        with capsys.disabled():
            print(  # noqa: T201
                f"\n{here.load.answered} answers; 8 replicas were asked for {asked - began:.1f} s after the load grew, "
                f"and ready after {recovered - began:.1f} s; TTFT {calm * 1e3:.0f} ms before, {busy * 1e3:.0f} ms "
                f"after; back to 1 {fewer - gone:.1f} s after the load had gone, to 0 after {asleep - gone:.1f} s"
            )


async def test_a_burst_at_zero_wakes_as_many_as_it_needs_at_once(cluster: Cluster, tmp_path: Path) -> None:
    async with stage(cluster, tmp_path) as here:
        here.load.grow_to(10)
        await here.replicas.until(4, 20)
        assert here.replicas.numbers == [0, 4]  # ten that wait, at 2.5 for each
        await here.until_ready(4)
        _silent(here.load)


async def test_an_api_server_that_dies_and_metrics_that_fail_lose_nothing(
    cluster: Cluster, control_plane: Path, tmp_path: Path
) -> None:
    async with stage(cluster, tmp_path) as here:
        here.load.grow_to(1)
        await here.until_ready(1)
        here.load.grow_to(24)
        await here.replicas.until(8, 60)
        await here.until_ready(8)

        here.muted.touch()
        missing = await here.until_condition("MetricsAvailable", "False", 90)
        assert missing["reason"]
        async with api_server.away(control_plane):
            await asyncio.sleep(2 * POLLING)
        await api_server.answers(cluster.api)
        await asyncio.sleep(2 * POLLING)
        assert here.replicas.numbers[-1] == 8

        here.muted.unlink()
        await here.until_condition("MetricsAvailable", "True")
        await asyncio.sleep(2 * POLLING)
        assert here.replicas.numbers[-1] == 8
        await here.load.end()
        await here.replicas.until(0, 90)
        _silent(here.load)
        assert here.replicas.numbers[:3] == [0, 1, 8]
        assert sorted(here.replicas.numbers[2:], reverse=True) == here.replicas.numbers[2:]


async def test_status_says_what_is_so(cluster: Cluster, tmp_path: Path) -> None:
    async with stage(cluster, tmp_path, minReplicas=2, maxReplicas=2) as here:
        await here.replicas.until(2, 20)
        await here.until_ready(2)
        await here.until_condition("MetricsAvailable", "True")
        status = (await here.policy())["status"]
        assert (status["currentReplicas"], status["desiredReplicas"]) == (2, 2)
        assert {one["metric"] for one in status["metrics"]} == {"queue_length", "running_requests"}
        assert status["trail"]
        conditions = {one["type"]: one["status"] for one in status["conditions"]}
        assert conditions["AbleToScale"] == conditions["Active"] == "True"
        assert conditions["Conflict"] == "False"


async def test_somebody_who_always_writes_back_is_told_of_and_left_alone(cluster: Cluster, tmp_path: Path) -> None:
    async with stage(cluster, tmp_path, minReplicas=3, maxReplicas=3) as here:
        await here.replicas.until(3, 20)

        async def write_back() -> None:
            while True:
                if here.replicas.numbers[-1] != 2:
                    await cluster.scale(2)
                await asyncio.sleep(0.5)

        rival = asyncio.create_task(write_back())
        conflict = await here.until_condition("Conflict", "True", 90)
        assert conflict["message"]
        written = len(here.replicas.numbers)
        await asyncio.sleep(4 * POLLING)
        assert len(here.replicas.numbers) == written
        assert here.replicas.numbers[-1] == 2
        rival.cancel()
