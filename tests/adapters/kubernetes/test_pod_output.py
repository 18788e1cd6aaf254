"""What pods write, as ports.EngineOutput, of an API server that the test plays with its kubelet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial

import aiohttp
import pytest
from aiohttp import web

from tests.adapters.contract import Seen
from tests.adapters.kubernetes.conftest import Fixed
from tests.adapters.kubernetes.stub_api import Json, StubApi, status
from tests.adapters.output_contract import SECRET, OutputContract, Told, followed, texts
from vllm_chill.adapters.kubernetes.client import ApiClient
from vllm_chill.adapters.kubernetes.deployment import KubernetesBackend
from vllm_chill.adapters.kubernetes.watch import Pace
from vllm_chill.adapters.mask import Mask
from vllm_chill.core.engine_output import Line
from vllm_chill.core.target import Endpoint, TargetRef
from vllm_chill.errors import BackendRefused, BackendUnavailable

REF = TargetRef("ai-apps", "vllm")


@dataclass
class Run:
    """One run of a container: what it wrote, each write with its second, and whether it has ended."""

    writes: list[tuple[int, bytes]] = field(default_factory=list)
    ended: bool = False


class Kubelet(StubApi):
    """An API server with the logs of `runs`, by pod and container; `cut` breaks off who follows them too."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: dict[tuple[str, str], list[Run]] = {}
        self.queries: list[dict[str, str]] = []
        self.followers = 0
        self._second = 0
        self._changed = asyncio.Condition()
        self._cuts = 0

    async def begin(self, pod: str, container: str = "vllm") -> None:
        self.runs.setdefault((pod, container), []).append(Run())
        await self._tell()

    async def write(self, pod: str, data: bytes, container: str = "vllm") -> None:
        """Each line has a second of its own."""
        for line in data.splitlines(keepends=True):
            self._second += 1
            self.runs[pod, container][-1].writes.append((self._second, line))
        await self._tell()

    async def end(self, pod: str, container: str = "vllm") -> None:
        self.runs[pod, container][-1].ended = True
        await self._tell()

    async def cut_streams(self) -> None:
        self._cuts += 1
        await self._tell()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _log_of(self, request: web.Request) -> web.StreamResponse:
        query = dict(request.query)
        self.queries.append(query)
        runs = self.runs.get((request.path.split("/")[-2], query["container"]), [])
        number = -2 if query.get("previous") == "true" else -1
        if len(runs) < -number:
            return web.json_response(status(400, "container is waiting to start", "BadRequest"), status=400)
        run = runs[number]
        writes = run.writes
        if "sinceTime" in query:
            writes = [write for write in writes if _stamp(write[0])[:19] >= query["sinceTime"][:19]]
        if "tailLines" in query:
            writes = writes[-int(query["tailLines"]) :]
        stamped = query.get("timestamps") == "true"
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"".join(_line(write, stamped) for write in writes))
        if query.get("follow") == "true":
            await self._go_on(request, response, run, len(run.writes), stamped)
        return response

    async def _go_on(
        self, request: web.Request, response: web.StreamResponse, run: Run, told: int, stamped: bool
    ) -> None:
        self.followers += 1
        cuts = self._cuts
        try:
            while True:
                for write in run.writes[told:]:
                    await response.write(_line(write, stamped))
                told = len(run.writes)
                if self._cuts != cuts:
                    assert request.transport is not None
                    request.transport.abort()
                if run.ended or self._cuts != cuts:
                    return
                async with self._changed:
                    if told == len(run.writes) and not run.ended and self._cuts == cuts:
                        await self._changed.wait()
        finally:
            self.followers -= 1


def _stamp(second: int) -> str:
    return f"2026-01-01T00:{second // 60:02d}:{second % 60:02d}.5Z"


def _line(write: tuple[int, bytes], stamped: bool) -> bytes:
    return (f"{_stamp(write[0])} ".encode() if stamped else b"") + write[1]


def pod(name: str, *statuses: Json, init: tuple[Json, ...] = ()) -> Json:
    owner = {"kind": "ReplicaSet", "name": "vllm-abc", "controller": True}
    metadata = {"name": name, "labels": {"app": "vllm", "pod-template-hash": "abc"}, "ownerReferences": [owner]}
    proxy, vllm = {"name": "a-proxy"}, {"name": "vllm", "ports": [{"name": "http", "containerPort": 8000}]}
    spec = {"containers": [proxy, vllm], "nodeName": "node-0"}
    told = {"containerStatuses": [*statuses], "initContainerStatuses": [*init], "podIP": "10.0.0.7"}
    return {"kind": "Pod", "metadata": metadata, "spec": spec, "status": told}


def container(name: str = "vllm", restarts: int = 0, *, running: bool = True) -> Json:
    state = {"running": {}} if running else {"waiting": {"reason": "CrashLoopBackOff"}}
    last: Json = {"terminated": {"exitCode": 1, "finishedAt": f"00:0{restarts}"}} if not running or restarts else {}
    return {"name": name, "restartCount": restarts, "state": state, "lastState": last}


def is_last(told: Told, text: str) -> bool:
    return told.texts[-1:] == [text]


class KubernetesWorld:
    """A Deployment whose pods come and go as the test says."""

    def __init__(self, kubelet: Kubelet, backend: KubernetesBackend, seen: Seen) -> None:
        self.kubelet = kubelet
        self.output = backend.output(REF)
        self.output._again_seconds = 0.02
        self.seen = seen
        self._pod = ""
        self._count = 0
        self._unfinished = b""

    async def start(self) -> str:
        self._count += 1
        self._pod = f"vllm-abc-{self._count}"
        await self.kubelet.begin(self._pod)
        await self.put(pod(self._pod, container("a-proxy"), container()))
        return self._pod

    async def put(self, item: Json) -> None:
        """Write a pod, and wait until it is seen so."""
        count = len(self.seen.observations)
        await self.kubelet.put(item)
        async with asyncio.timeout(5):
            while len(self.seen.observations) == count:  # noqa: ASYNC110 - a turn or two
                await asyncio.sleep(0.005)

    async def write(self, *chunks: bytes) -> None:
        whole, end, self._unfinished = (self._unfinished + b"".join(chunks)).rpartition(b"\n")
        await self.kubelet.write(self._pod, whole + end)

    async def end(self) -> None:
        await self.kubelet.end(self._pod)
        await self.kubelet.delete(self._pod)


@pytest.fixture
async def kubelet() -> AsyncIterator[Kubelet]:
    kubelet = Kubelet()
    await kubelet.start()
    yield kubelet
    await kubelet.stop()


@pytest.fixture
async def world(kubelet: Kubelet, session: aiohttp.ClientSession) -> AsyncIterator[KubernetesWorld]:
    spec = {"replicas": 1, "selector": {"matchLabels": {"app": "vllm"}}}
    await kubelet.put({"kind": "Deployment", "metadata": {"name": "vllm"}, "spec": spec})
    credentials = Fixed(kubelet.url)
    api = ApiClient(session, credentials, await credentials.load(), call_seconds=2)
    backend = KubernetesBackend(
        api, Endpoint("vllm-svc", 80), pace=Pace(pause_first_seconds=0.02, pause_most_seconds=0.1), mask=Mask(SECRET)
    )
    seen = Seen()
    watching = asyncio.create_task(backend.watch(REF, seen))
    await seen.until(lambda _: True)
    yield KubernetesWorld(kubelet, backend, seen)
    watching.cancel()
    await asyncio.wait([watching])


class TestPodOutput(OutputContract):
    async def test_the_container_that_serves_is_read_whatever_comes_first(self, world: KubernetesWorld) -> None:
        await world.start()
        await world.write(b"x\n")
        await texts(world.output, 1)
        assert {query["container"] for query in world.kubelet.queries} == {"vllm"}

    async def test_an_init_container_is_followed_while_it_runs_and_then_the_engine(
        self, world: KubernetesWorld
    ) -> None:
        await world.kubelet.begin("vllm-abc-1", "download")
        await world.kubelet.write("vllm-abc-1", b"50%\n", "download")
        waits = {"name": "vllm", "restartCount": 0, "state": {"waiting": {"reason": "PodInitializing"}}}
        await world.put(pod("vllm-abc-1", waits, init=(container("download"),)))
        async with followed(world.output) as told:
            await told.until(lambda: told.lines == [Line("vllm-abc-1", "50%", "container download")])
            await world.kubelet.end("vllm-abc-1", "download")
            await world.kubelet.begin("vllm-abc-1")
            await world.kubelet.write("vllm-abc-1", b"INFO vLLM\n")
            done = {"name": "download", "restartCount": 0, "state": {"terminated": {"exitCode": 0, "finishedAt": "1"}}}
            await world.put(pod("vllm-abc-1", container(), init=(done,)))
            await told.until(lambda: told.lines[-1] == Line("vllm-abc-1", "INFO vLLM"))

    async def test_after_a_crash_the_run_before_is_read_too(self, world: KubernetesWorld) -> None:
        replica = await world.start()
        await world.write(b"CUDA out of memory\n")
        await world.kubelet.end(replica)
        await world.kubelet.begin(replica)
        await world.put(pod(replica, container(restarts=1)))
        await world.write(b"again\n")
        found = [Line(replica, "CUDA out of memory", "the run before"), Line(replica, "again")]
        assert await world.output.read(100) == found
        assert await world.output.read(1) == found[1:]
        async with followed(world.output) as told:
            await told.until(lambda: told.lines == found)

    async def test_a_container_that_is_started_again_is_followed_from_its_beginning(
        self, world: KubernetesWorld
    ) -> None:
        replica = await world.start()
        async with followed(world.output) as told:
            await world.write(b"first\n")
            await told.until(lambda: told.texts == ["first"])
            await world.kubelet.end(replica)
            await world.put(pod(replica, container(running=False)))
            await world.kubelet.begin(replica)
            await world.write(b"second\n")
            await world.put(pod(replica, container(restarts=1)))
            await told.until(lambda: told.texts == ["first", "second"])

    async def test_a_stream_that_breaks_off_goes_on_where_it_was(self, world: KubernetesWorld) -> None:
        await world.start()
        async with followed(world.output) as told:
            for number in range(6):
                await world.write(b"%d\n" % number)
                await told.until(partial(is_last, told, str(number)))
                if number % 2:
                    await world.kubelet.cut_streams()
            assert told.texts == [str(number) for number in range(6)]
            assert len(told.losses) == 2

    async def test_a_crash_is_told_after_its_pod_has_gone(self, world: KubernetesWorld) -> None:
        replica = await world.start()
        await world.write(b"CUDA out of memory\n")
        await world.kubelet.begin(replica)  # the log of the run before is read where there is one
        await world.put(pod(replica, container(restarts=2, running=False)))
        await world.seen.until(lambda seen: seen.failure is not None)
        await world.kubelet.delete(replica)
        await world.seen.until(lambda seen: seen.live == 0)
        assert await world.output.read(100) == [Line(replica, "CUDA out of memory", "before it crashed")]
        await world.start()
        assert await world.output.read(100) == []

    async def test_without_the_right_it_says_so(self, world: KubernetesWorld) -> None:
        await world.start()
        world.kubelet.forbidden.add("log")
        with pytest.raises(BackendRefused, match=r'grant the verb "get" on "pods/log" \(deploy/rbac.yaml has it\)'):
            await world.output.read(10)
        with pytest.raises(BackendRefused, match="pods/log"):
            await world.output.follow(10, Told())

    async def test_a_node_that_does_not_answer_is_told_and_asked_again(self, world: KubernetesWorld) -> None:
        await world.start()
        await world.write(b"x\n")
        refusal = status(500, "dial tcp 10.0.0.1:10250: connect: connection refused", "InternalError")
        world.kubelet.refusals = [(500, refusal)]
        with pytest.raises(BackendUnavailable, match="connection refused"):
            await world.output.read(10)
        world.kubelet.refusals = [(500, refusal)]
        async with followed(world.output) as told:
            await told.until(lambda: told.texts == ["x"])
            assert len(told.losses) == 1

    async def test_a_run_before_that_cannot_be_read_at_once_is_read_later(self, world: KubernetesWorld) -> None:
        replica = await world.start()
        await world.write(b"first\n")
        await world.kubelet.begin(replica)
        await world.put(pod(replica, container(restarts=1)))
        world.kubelet.refusals = [(502, status(502, "the node is away", "Bad Gateway"))]
        async with followed(world.output) as told:
            await world.write(b"second\n")
            await told.until(lambda: told.texts == ["first", "second"])
            assert len(told.losses) == 1

    async def test_nothing_is_asked_for_that_nobody_reads(self, world: KubernetesWorld) -> None:
        await world.start()
        async with followed(world.output) as told:
            await world.write(b"x\n")
            await told.until(lambda: bool(told.lines))
        async with asyncio.timeout(5):
            while world.kubelet.followers:  # noqa: ASYNC110 - a turn or two
                await asyncio.sleep(0.005)
        assert len(world.kubelet.queries) == 1
