"""A proxy of several models over real sockets, each on a memory backend of its own, and who switches between them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web
from prometheus_client import CollectorRegistry

from vllm_chill.adapters.memory import MemoryBackend
from vllm_chill.api.version import Build
from vllm_chill.app.targets import Record, hold_desk
from vllm_chill.control.controller import ScaleController
from vllm_chill.control.knowledge import ModelKnowledge
from vllm_chill.core.catalogue import Adapter, Catalogue, ModelEntry
from vllm_chill.core.routing import Routes, parse_wake_paths
from vllm_chill.core.scaling.decision import Decision
from vllm_chill.core.scaling.override import Override
from vllm_chill.core.scaling.policy import Policy
from vllm_chill.core.scaling.signals import ReplicaReading, Sample, Signal
from vllm_chill.core.target import Endpoint, Limits, Phase, SleepReason, TargetRef
from vllm_chill.errors import BadRequest, ChillError
from vllm_chill.ports import GpuStats
from vllm_chill.proxy.handler import ProxyHandler, ProxyOptions
from vllm_chill.proxy.hold import Budget
from vllm_chill.proxy.hold_terms import HoldOptions
from vllm_chill.proxy.relay import RelayTimeouts
from vllm_chill.proxy.served import Directory, Served
from vllm_chill.proxy.upstream import UpstreamPool
from vllm_chill.telemetry.metrics import Metrics
from vllm_chill.telemetry.recorder import TargetRecorder
from vllm_chill.telemetry.start_record import StartRecord
from vllm_chill.web.admin import AdminApi
from vllm_chill.web.doorkeeper import Doorkeeper
from vllm_chill.web.gpu_stats import GpuStatsPage
from vllm_chill.web.server import ProxyServer


def entry(name: str, **more: Any) -> ModelEntry:
    """The model `name`, which is served as org/NAME."""
    return ModelEntry(name, TargetRef("test", f"vllm-{name}"), f"org/{name}", f"weights/{name}", **more)


TWO = (
    entry(
        "a",
        aliases=("alpha",),
        adapters=(Adapter("a-sql", "/adapters/sql"),),
        group="gpu",
        gpus=2,
        created="2026-01-31T12:00:00Z",
        facts={"maxModelLen": 4096, "toolCallParser": "hermes", "reasoningParser": ""},
    ),
    entry("b", group="gpu", created="2026-02-01T12:00:00Z"),
)


@dataclass
class FakeFleet:
    """web.models_api.Switching over one group, which all are in."""

    directory: Directory
    waiting: dict[str, tuple[str, ...]] = field(default_factory=dict)
    fails: ChillError | None = None
    active: str | None = None

    def rivals(self, name: str) -> tuple[str, ...]:
        return tuple(served.name for served in self.directory if served.name != name)

    def waits_for(self, name: str) -> tuple[str, ...]:
        return self.waiting.get(name, ())

    async def switch(self, name: str, *, wake: bool, wait: bool) -> None:
        if self.fails is not None:
            raise self.fails
        leaving = [one.controller for one in self.directory if one.name != name]
        for controller in leaving:
            controller.give_way(SleepReason.SWITCHED)
        wanted = self.directory.find(name)
        assert wanted is not None
        if wait:
            for controller in leaving:
                while controller.runs:
                    await controller.changed(0.01)
        if wake:
            await wanted.controller.wake(wait=wait)


@dataclass
class FakeMeter:
    """What is measured of one target."""

    readings: dict[str, ReplicaReading] = field(default_factory=dict)
    of_all: dict[Signal, Sample] = field(default_factory=dict)
    busy: bool = False

    def members(self, signals: Collection[Signal]) -> tuple[ReplicaReading, ...]:
        return tuple(self.readings.values())

    def of_target(self, signals: Collection[Signal]) -> dict[Signal, Sample]:
        return {signal: self.of_all[signal] for signal in signals if signal in self.of_all}


@dataclass
class FakeScaler:
    """web.scaling_api.Scaler with nothing behind it; as an autoscaler, it keeps what is set within its bounds."""

    controller: ScaleController
    policy: Policy | None = None
    meter: FakeMeter = field(default_factory=FakeMeter)
    decision: Decision | None = None
    override: Override | None = None
    conflict: str | None = None
    source: str | None = None
    fronted: bool = True

    def adjust(self, replicas: int, by: str, ttl_seconds: float) -> Override:
        assert self.policy is not None
        if not max(1, self.policy.min_replicas) <= replicas <= self.policy.max_replicas:
            raise BadRequest(f"it has from {self.policy.min_replicas} to {self.policy.max_replicas} replicas")
        now = self.controller.now()
        self.override = Override(replicas, by, now, now + ttl_seconds)
        return self.override

    def release(self) -> None:
        self.override = None


@dataclass
class Several:
    """What a test has in hand."""

    url: str
    session: aiohttp.ClientSession
    directory: Directory
    metrics: Metrics
    fleet: FakeFleet
    backends: dict[str, MemoryBackend]
    hits: list[str]
    scalers: dict[str, FakeScaler]

    def scaled(self, name: str, policy: Policy | None = None, **more: Any) -> FakeScaler:
        """Have a target scaled."""
        self.scalers[name] = FakeScaler(self.controller(name), policy, **more)
        return self.scalers[name]

    def controller(self, name: str) -> ScaleController:
        served = self.directory.find(name)
        assert served is not None
        return served.controller

    def phase_is(self, name: str, kind: type[Phase]) -> bool:
        return isinstance(self.controller(name).target.phase, kind)

    async def ask(self, method: str, path: str, **kwargs: Any) -> tuple[int, Any]:
        """The status, and the body: JSON as what it says, anything else as text."""
        async with self.session.request(method, self.url + path, **kwargs) as response:
            text = await response.text()
            return response.status, json.loads(text) if response.content_type == "application/json" else text

    async def get(self, path: str, **kwargs: Any) -> tuple[int, Any]:
        return await self.ask("GET", path, **kwargs)

    async def post(self, path: str, **kwargs: Any) -> tuple[int, Any]:
        return await self.ask("POST", path, **kwargs)

    async def until(self, name: str, kind: type[Phase], seconds: float = 5) -> None:
        async with asyncio.timeout(seconds):
            while not self.phase_is(name, kind):
                await self.controller(name).changed(0.01)


@contextlib.asynccontextmanager
async def several(
    entries: Sequence[ModelEntry] = TWO,
    *,
    awake: Sequence[str] = (),
    default: str | None = None,
    read: bool = True,
    start: float = 0.02,
    stop: float = 0.0,
    wake_paths: str = "default",
    sources: Sequence[GpuStats] = (),
    doorkeeper: Doorkeeper | None = None,
    hold: float = 10.0,
) -> AsyncIterator[Several]:
    """A proxy of these models, of which those `awake` are ready; `read` says whether its catalogue has been read."""
    hits: list[str] = []

    async def upstream(request: web.BaseRequest) -> web.StreamResponse:
        name = next(name for name, port in ports.items() if port == request.url.port)
        hits.append(f"{name} {request.method} {request.raw_path}")
        return web.json_response({"engine": name, "target": request.raw_path})

    async with contextlib.AsyncExitStack() as stack:
        runner = web.ServerRunner(
            web.Server(upstream, handler_cancellation=True, access_log=None), shutdown_timeout=0.1
        )
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        pool = UpstreamPool()
        stack.push_async_callback(pool.aclose)
        metrics, budget = Metrics(CollectorRegistry(), "test"), Budget(1 << 20)
        options = ProxyOptions(HoldOptions(hold), 1 << 20, RelayTimeouts(2.0, 10.0))
        directory = Directory(budget, default=default)
        backends: dict[str, MemoryBackend] = {}
        ports: dict[str, int] = {}
        targets = []
        for one in entries:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            endpoint = Endpoint(*runner.addresses[-1][:2])
            ports[one.name] = endpoint.port
            backend = MemoryBackend(endpoint, start_seconds=start, stop_seconds=stop, replicas=int(one.name in awake))
            backends[one.name] = backend
            starts = StartRecord(one.ref, metrics)
            record = Record((TargetRecorder(one.ref, metrics), starts), pool)
            controller = ScaleController(one.ref, Limits(300, 1800), backend, record)
            metrics.follow(lambda controller=controller: controller.target, controller.now, one.served)  # type: ignore[misc]
            knowledge = ModelKnowledge()
            desk = hold_desk(controller, options.hold, budget, starts, knowledge)
            targets.append(Served(controller, desk, starts, knowledge, one))
            running = asyncio.create_task(controller.run())
            stack.push_async_callback(_cancelled, running)
        if read:
            directory.replace(Catalogue(entries), targets)
        fleet, scalers = FakeFleet(directory), dict[str, FakeScaler]()
        handler = ProxyHandler(directory, pool, metrics, options)
        routes = Routes(parse_wake_paths(wake_paths))
        admin = AdminApi(
            directory,
            handler.scrape,
            metrics,
            Build(version="test"),
            lambda: server.draining,
            routes,
            switching=fleet,
            stats=GpuStatsPage(sources),
            scalers=scalers,
            override_ttl_seconds=600,
        )
        server = ProxyServer(
            admin.page.before(handler.proxy), admin.handle, metrics, handler.fast_lane, routes, doorkeeper=doorkeeper
        )
        stack.push_async_callback(server.close)
        [address] = await server.listen("127.0.0.1", 0)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        await asyncio.sleep(0)
        yield Several(f"http://{address[0]}:{address[1]}", session, directory, metrics, fleet, backends, hits, scalers)


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
