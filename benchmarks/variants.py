"""What the controller of variants costs, by how many variants it looks after, of ten replicas each.

    python benchmarks/variants.py [--variants 0,25,50,100,200] [--interval 10] [--cycles 6] [--limited] [--json FILE]

The API server and the Prometheus are real. Variants, Deployments, ReplicaSets, pods and nodes are objects without
anything that acts on them, in five namespaces; half of the variants are in pairs, each pair of one model. The
Prometheus scrapes a page with vLLM's series of all replicas, whose values move a little each time, and the
controller's own page. `vllm-chill controller` is a process of its own, with the credentials that a pod has.

CPU is the user's and the system's time of that process alone. A cycle is one decision on every model: here they are
short, and the controller's own are of 60 s (`--interval 60`). Then every replica comes to be loaded at once, and 40 s
later, or one cycle and a half, it is counted how many decisions came of it, and what all of that time cost. A turn is
the longest that the event loop had the CPU at a stretch.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

_ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(_ROOT)]

from benchmarks.api_server import ApiServer, api_server, free_ports, missing  # noqa: E402 - not an installed package
from benchmarks.turns import longest_ms  # noqa: E402
from tests import real_prometheus  # noqa: E402
from tests.cluster.models import install_crd  # noqa: E402
from vllm_chill.adapters.kubernetes.client import ApiClient, Json  # noqa: E402
from vllm_chill.adapters.kubernetes.objects import path_of  # noqa: E402
from vllm_chill.api.crd import VARIANTS  # noqa: E402
from vllm_chill.control.variant_sources import variants_of  # noqa: E402
from vllm_chill.core.objects import Collection  # noqa: E402

CPU_GOAL_M, MEMORY_GOAL_MIB, GOAL_VARIANTS = 100, 128, 100
REPLICAS = 10
_NAMESPACES = 5
_NODE_GPUS = 8
_SCRAPE_SECONDS = 5
_AT_A_TIME = 16
_SETTLE_SECONDS = 20
_CHANGE_SECONDS = 40
_START_SECONDS = 180.0
_QUERIES = "prometheus_http_requests_total"
_HOME = "workload-variant-autoscaler-system"
_AS_A_POD = """
mount -t tmpfs none /run && mkdir -p /run/secrets/kubernetes.io &&
cp -r "$1" /run/secrets/kubernetes.io/serviceaccount && shift && exec "$@"
"""

# --- what there is ---


@dataclass(frozen=True, slots=True)
class One:
    """The variant of this number."""

    number: int
    of: int

    @property
    def name(self) -> str:
        return f"variant-{self.number:03}"

    @property
    def model(self) -> str:
        """Of the first half, two have one model."""
        return f"org/model-{self.number // 2 * 2 if self.number < self.of // 2 else self.number:03}"

    @property
    def namespace(self) -> str:
        return f"models-{self.number // 2 % _NAMESPACES}"

    @property
    def pods(self) -> tuple[str, ...]:
        return tuple(f"{self.name}-5d8f7c9b6-{replica:05}" for replica in range(REPLICAS))


class Objects:
    """What is written of so many variants."""

    def __init__(self, api: ApiClient, count: int) -> None:
        self._api = api
        self._turns = asyncio.Semaphore(_AT_A_TIME)
        self.all = tuple(One(number, count) for number in range(count))

    async def write(self) -> None:
        for namespace in (_HOME, *(f"models-{number}" for number in range(_NAMESPACES))):
            await self._create(Collection("v1", "Namespace", "namespaces"), namespace, {})
        await install_crd(self._api, VARIANTS)
        nodes = range(-(-len(self.all) * REPLICAS // _NODE_GPUS))
        await self._all(self._node(number) for number in nodes)
        await self._all(self._variant(one) for one in self.all)

    async def _all(self, work: Iterable[Coroutine[Any, Any, None]]) -> None:
        async def in_turn(one: Coroutine[Any, Any, None]) -> None:
            async with self._turns:
                await one

        async with asyncio.TaskGroup() as tasks:
            for one in work:
                tasks.create_task(in_turn(one))

    async def _node(self, number: int) -> None:
        nodes, gpus = Collection("v1", "Node", "nodes"), {"nvidia.com/gpu": str(_NODE_GPUS + 1)}
        product = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3" if number % 2 else "NVIDIA-A100-SXM4-80GB"}
        await self._create(nodes, f"node-{number}", {}, labels=product)
        await self._status(nodes, f"node-{number}", {"capacity": gpus, "allocatable": gpus})

    async def _variant(self, one: One) -> None:
        labels = {"app": one.name}
        container = {
            "name": "vllm",
            "image": "vllm/vllm-openai:v0.11.0",
            "args": ["--model", one.model],
            "ports": [{"name": "http", "containerPort": 8000}],
            "resources": {"limits": {"nvidia.com/gpu": "1"}},
        }
        spec = {"replicas": REPLICAS, "selector": {"matchLabels": labels}}
        template = {"metadata": {"labels": labels}, "spec": {"containers": [container]}}
        count = {"replicas": REPLICAS, "readyReplicas": REPLICAS}
        deployments = Collection("apps/v1", "Deployment", "deployments", one.namespace)
        sets = Collection("apps/v1", "ReplicaSet", "replicasets", one.namespace)
        pods = Collection("v1", "Pod", "pods", one.namespace)
        owner = await self._create(deployments, one.name, {**spec, "template": template})
        await self._status(deployments, one.name, count)
        owner = await self._create(sets, f"{one.name}-5d8f7c9b6", {**spec, "template": template}, owner=owner)
        for replica, pod in enumerate(one.pods):
            node = (one.number * REPLICAS + replica) // _NODE_GPUS
            described = {"containers": [container], "nodeName": f"node-{node}"}
            await self._create(pods, pod, described, labels=labels, owner=owner)
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            ready = [{"type": "Ready", "status": "True", "lastTransitionTime": now}]
            address = f"10.{one.number}.0.{replica + 1}"
            await self._status(pods, pod, {"phase": "Running", "podIP": address, "conditions": ready})
        wanted = {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": one.name},
            "modelID": one.model,
            "variantCost": f"{10 + one.number % 2}.0",
            "minReplicas": 1,
            "maxReplicas": 2 * REPLICAS,
        }
        await self._create(variants_of(one.namespace), one.name, wanted)

    async def _create(
        self, where: Collection, name: str, spec: Json, *, labels: Json | None = None, owner: Json | None = None
    ) -> Json:
        of: Json = {"name": name, "labels": labels or {}}
        if owner is not None:
            found = {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "uid": owner["metadata"]["uid"]}
            of["ownerReferences"] = [{**found, "name": owner["metadata"]["name"], "controller": True}]
        item = {"apiVersion": where.api_version, "kind": where.kind, "metadata": of, "spec": spec}
        return await self._api.call("POST", path_of(where), body=item)

    async def _status(self, where: Collection, name: str, status: Json) -> None:
        await self._api.call("PATCH", f"{path_of(where)}/{name}/status", body={"status": status})


# --- what is measured of it ---

_PAGE = (_ROOT / "tests" / "engine" / "vllm-metrics.txt").read_text()
_READ = (
    *("vllm:kv_cache_usage_perc", "vllm:num_requests_waiting", "vllm:num_requests_running"),
    *("vllm:request_success_total", "vllm:cache_config_info"),
)


class Engines:
    """The series of all replicas that the controller asks for, on one page, as a real vLLM writes each.

    Invariant: nothing is to be decided while they are not `busy`, and something on every model once they are.
    """

    def __init__(self, variants: Sequence[One]) -> None:
        self.busy = False
        self._chance = random.Random(0)
        self._answered = 0
        lines = [re.fullmatch(r"([\w:]+)\{(.*)\} \S+", line) for line in _PAGE.splitlines()]
        series = [line.groups() for line in lines if line is not None and line[1] in _READ]
        self._lines = [
            (name, f'{name}{{namespace="{one.namespace}",pod="{pod}",{self._labels(labels, one)}}}')
            for one in variants
            for pod in one.pods
            for name, labels in series
        ]

    @staticmethod
    def _labels(labels: str, one: One) -> str:
        size = labels.replace('num_gpu_blocks="None"', 'num_gpu_blocks="4096"')
        return re.sub(r'model_name="[^"]*"', f'model_name="{one.model}"', size)

    def page(self) -> str:
        self._answered += 7
        return "".join(f"{series} {self._value(name)}\n" for name, series in self._lines)

    def _value(self, name: str) -> float:
        moved = self._chance.random()
        match name:
            case "vllm:kv_cache_usage_perc":
                return (0.76 if self.busy else 0.64) + 0.02 * moved
            case "vllm:num_requests_waiting":
                return float(moved > 0.5)
            case "vllm:num_requests_running":
                return 20 + round(10 * moved)
            case "vllm:request_success_total":
                return self._answered
            case _:
                return 1.0


@contextlib.asynccontextmanager
async def scraped(engines: Engines, controller: int, folder: Path, interval: int) -> AsyncIterator[int]:
    """The port of a Prometheus that scrapes the engines, and the controller at this port."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(text=engines.page())

    [port] = free_ports(1)
    application = web.Application()
    application.router.add_get("/metrics", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    jobs = [
        {"job_name": "engines", "honor_labels": True, "scrape_interval": f"{_SCRAPE_SECONDS}s",
         "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]},
        {"job_name": "controller", "scrape_interval": f"{interval}s",
         "static_configs": [{"targets": [f"127.0.0.1:{controller}"]}]},
    ]  # fmt: skip
    try:
        async with real_prometheus.running(folder, {"scrape_configs": jobs}) as found:
            yield found
    finally:
        await runner.cleanup()


# --- the controller ---


@dataclass(frozen=True, slots=True)
class Reading:
    """The controller at a moment: its CPU in seconds, and what was counted from its start on."""

    at_ns: int
    cpu: float
    calls: Counter[str]
    queries: float
    visits: float
    decisions: float


@dataclass(slots=True)
class Controller:
    """`vllm-chill controller` that runs."""

    pid: int
    metrics: str
    prometheus: str
    session: aiohttp.ClientSession

    async def read(self) -> Reading:
        cpu, at = time.clock_gettime_ns(~self.pid << 3 | 2), time.monotonic_ns()  # the CPU clock of that process
        own, asked = await self._samples(self.metrics), await self._samples(self.prometheus)
        calls = Counter[str]()
        for name, of, value in own:
            if name == "rest_client_requests_total":
                calls[of["method"]] += int(value)
        queries = (of["handler"] == "/api/v1/query" and value for name, of, value in asked if name == _QUERIES)
        visits = (value for name, _, value in own if name == "controller_runtime_reconcile_total")
        decisions = (value for name, _, value in own if name == "wva_replica_scaling_total")
        return Reading(at, cpu / 1e9, calls, sum(queries), sum(visits), sum(decisions))

    async def until_told(self, variants: int) -> None:
        """Back when something is told of every variant."""
        async with asyncio.timeout(_START_SECONDS):
            while True:
                with contextlib.suppress(aiohttp.ClientError):
                    own = await self._samples(self.metrics)
                    if sum(name == "wva_saturation_level" for name, _, _ in own) >= variants:
                        return
                await asyncio.sleep(1)

    async def _samples(self, url: str) -> list[tuple[str, dict[str, str], float]]:
        async with self.session.get(url) as response:
            text = await response.text()
        families = text_string_to_metric_families(text)
        return [(sample.name, sample.labels, sample.value) for family in families for sample in family.samples]

    def memory(self) -> tuple[float, float, float]:
        """Resident now, of that its own share, and the most that was resident; in MiB."""
        found = dict(re.findall(r"(\w+): +(\d+) kB", Path(f"/proc/{self.pid}/smaps_rollup").read_text()))
        peak = dict(re.findall(r"(\w+):\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text()))
        return int(found["Rss"]) / 1024, int(found["Pss"]) / 1024, int(peak["VmHWM"]) / 1024


@contextlib.asynccontextmanager
async def controlling(
    server: ApiServer, prometheus: int, metrics: int, notes: Path, flags: Sequence[str]
) -> AsyncIterator[Controller]:
    """One, with the credentials of a pod where a pod has them."""
    command = [
        *(sys.executable, str(_ROOT / "benchmarks" / "turns.py"), str(notes), "controller"),
        *("--prometheus-base-url", f"http://127.0.0.1:{prometheus}", "--metrics-secure=false"),
        *("--metrics-bind-address", f"127.0.0.1:{metrics}", "--health-probe-bind-address", "0", *flags),
    ]
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ}
    process = await asyncio.create_subprocess_exec(
        *("unshare", "-rm", "sh", "-c", _AS_A_POD, "sh", str(server.account), *command),
        env={**kept, **server.environ, "NO_PROXY": "127.0.0.1"},
        stderr=DEVNULL,
    )
    try:
        async with aiohttp.ClientSession() as session:
            own, asked = (f"http://127.0.0.1:{port}/metrics" for port in (metrics, prometheus))
            yield Controller(process.pid, own, asked, session)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


# --- one measurement ---


@dataclass(frozen=True, slots=True)
class Measured:
    """So many variants. CPU is in milliseconds, memory in MiB; `calls` and `queries` are of one steady cycle,
    `change_calls` of all that changed.
    """

    variants: int
    interval: int
    cycle_cpu: float
    cycle_turn: float
    visits: float
    calls: dict[str, float]
    queries: float
    changes: float
    change_cpu: float
    change_turn: float
    change_calls: dict[str, int]
    rss: float
    pss: float
    peak: float

    @property
    def cpu_m(self) -> float:
        """In thousandths of a core."""
        return self.cycle_cpu / self.interval


async def measured(count: int, interval: int, cycles: int, flags: Sequence[str]) -> Measured:
    """One server, one Prometheus and one controller, for so many variants."""
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="variants-")))
        server = await stack.enter_async_context(api_server())
        objects = Objects(server.api, count)
        await objects.write()
        engines = Engines(objects.all)
        [metrics] = free_ports(1)
        prometheus = await stack.enter_async_context(scraped(engines, metrics, folder, interval))
        await asyncio.sleep(3 * _SCRAPE_SECONDS)  # a rate needs two scrapes
        notes = folder / "turns"
        notes.touch()
        flags = ("--interval", f"{interval}s", *flags)
        controller = await stack.enter_async_context(controlling(server, prometheus, metrics, notes, flags))
        await controller.until_told(count)
        await asyncio.sleep(max(_SETTLE_SECONDS, interval))
        began = await controller.read()
        await asyncio.sleep(cycles * interval)
        steady = await controller.read()
        engines.busy = True
        changing = max(_CHANGE_SECONDS, 3 * interval // 2)
        await asyncio.sleep(changing)
        changed = await controller.read()
        cycle = (steady.cpu - began.cpu) / cycles
        return Measured(
            count,
            interval,
            1000 * cycle,
            longest_ms(notes, began.at_ns, steady.at_ns),
            (steady.visits - began.visits) / cycles,
            {verb: calls / cycles for verb, calls in sorted((steady.calls - began.calls).items())},
            (steady.queries - began.queries) / cycles,
            changed.decisions - steady.decisions,
            1000 * (changed.cpu - steady.cpu),
            longest_ms(notes, steady.at_ns, changed.at_ns),
            dict(sorted((changed.calls - steady.calls).items())),
            *controller.memory(),
        )


# --- what is printed ---


def lines(found: Measured) -> Iterator[str]:
    def by_verb(calls: Mapping[str, float], digits: int) -> str:
        return " ".join(f"{verb} {count:.{digits}f}" for verb, count in calls.items()) or "none"

    yield (
        f"{found.variants:8}{found.cycle_cpu:10.0f}{found.cpu_m:9.1f}{found.cycle_turn:6.0f}{found.visits:8.0f}"
        f"{found.queries:9.0f}{found.rss:8.0f}{found.pss:6.0f}{found.peak:6.0f}   {by_verb(found.calls, 1)}"
    )
    if found.changes:
        yield (
            f"{'changed:':>10} {found.changes:.0f} decisions, {found.change_cpu:.0f} ms of CPU in all,"
            f" the longest turn {found.change_turn:.0f} ms, {by_verb(found.change_calls, 0)}"
        )


HEAD = (
    f"{'':8}{'a cycle':>10}{'':9}{'turn':>6}{'':17}{'resident, MiB':>20}   the API server's\n"
    f"variants{'CPU, ms':>10}{'CPU, m':>9}{'ms':>6}{'visits':>8}{'queries':>9}{'now':>8}{'own':>6}{'most':>6}"
    "   calls in a cycle"
)


def verdicts(all_found: Sequence[Measured]) -> Iterator[str]:
    none = next((found.cycle_cpu for found in all_found if not found.variants), 0.0)
    each = [
        f"{(found.cycle_cpu - none) / found.variants:.1f} of {found.variants}" for found in all_found if found.variants
    ]
    yield f"ms of a cycle for each variant: {', '.join(each)}"
    for found in all_found:
        if found.variants == GOAL_VARIANTS:
            cpu = "met" if found.cpu_m < CPU_GOAL_M else "MISSED"
            memory = "met" if found.peak < MEMORY_GOAL_MIB else "MISSED"
            yield f"the goal is less than {CPU_GOAL_M}m CPU for {GOAL_VARIANTS} variants: {cpu}"
            yield f"the goal is less than {MEMORY_GOAL_MIB} MiB for them: {memory}"


async def all_measured(counts: Sequence[int], interval: int, cycles: int, flags: Sequence[str]) -> list[Measured]:
    print(HEAD, flush=True)
    found = []
    for count in counts:
        found.append(await measured(count, interval, cycles, flags))
        print("\n".join(lines(found[-1])), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", default="0,25,50,100,200", help="how many, 0 to 250 each, with commas")
    parser.add_argument("--interval", type=int, default=10, help="seconds from one cycle to the next")
    parser.add_argument("--cycles", type=int, default=6, help="how many are measured")
    parser.add_argument("--limited", action="store_true", help="have them grow only as far as there are GPUs")
    parser.add_argument("--json", type=Path, help="where the figures go too")
    wanted = parser.parse_args()
    counts = [int(text) for text in wanted.variants.split(",")]
    if not all(0 <= count <= 250 for count in counts):
        parser.error("--variants: 0 to 250")
    lacking = missing() or (None if shutil.which("prometheus") else "no prometheus on this machine: Debian has it")
    if lacking:
        raise SystemExit(f"skipped: {lacking}")
    flags = ("--limited-mode",) if wanted.limited else ()
    found = asyncio.run(all_measured(counts, wanted.interval, wanted.cycles, flags))
    print("\n".join(verdicts(found)))
    if wanted.json:
        wanted.json.write_text(json.dumps([asdict(one) for one in found], indent=1))


if __name__ == "__main__":
    main()
