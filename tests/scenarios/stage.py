"""A whole proxy in this process, over real sockets: the memory backend for the target, any server for the upstream."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import web
from prometheus_client import CollectorRegistry

from vllm_chill.adapters.engine_access import PLAIN, EngineAccess
from vllm_chill.adapters.memory import MemoryBackend
from vllm_chill.api.version import Build
from vllm_chill.app.targets import Record, hold_desk
from vllm_chill.app.tracing import proxy_handler
from vllm_chill.control.controller import ScaleController
from vllm_chill.control.knowledge import ModelKnowledge
from vllm_chill.control.knowledge import Served as ServedCommand
from vllm_chill.control.lease import Bounds
from vllm_chill.control.output_glance import OutputGlance
from vllm_chill.control.savings import Savings
from vllm_chill.control.sighted import SightedBackend
from vllm_chill.core.catalogue import Catalogue, ModelEntry
from vllm_chill.core.routing import Routes, parse_wake_paths
from vllm_chill.core.target import Asleep, Endpoint, Limits, Phase, TargetRef
from vllm_chill.errors import NotFound
from vllm_chill.ports import EngineOutput
from vllm_chill.proxy.affinity import Affinity
from vllm_chill.proxy.body import RequestBody
from vllm_chill.proxy.client_limits import ClientLimits
from vllm_chill.proxy.committed import Rewrite
from vllm_chill.proxy.handler import ProxyHandler, ProxyOptions
from vllm_chill.proxy.hold import Budget, HoldDesk
from vllm_chill.proxy.hold_terms import HoldOptions
from vllm_chill.proxy.relay import RelayTimeouts
from vllm_chill.proxy.served import Directory, Served
from vllm_chill.proxy.upstream import UpstreamPool
from vllm_chill.telemetry.ejections import EjectionRecord
from vllm_chill.telemetry.metrics import Metrics
from vllm_chill.telemetry.recorder import TargetRecorder
from vllm_chill.telemetry.start_record import StartRecord
from vllm_chill.web.admin import AdminApi
from vllm_chill.web.cors import Cors
from vllm_chill.web.doorkeeper import Doorkeeper
from vllm_chill.web.server import DEFAULT_LIMITS, ProxyServer

if TYPE_CHECKING:
    from vllm_chill.telemetry.spans import WakeSpans
    from vllm_chill.telemetry.tracing import Tracing

REF = TargetRef("test", "vllm")

FAST_LANE = ContextVar("FAST_LANE", default=True)
"""Whether a stage has the fast lane, where its caller does not say."""

UpstreamHandler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


async def echo(request: web.BaseRequest) -> web.StreamResponse:
    """Answer with what arrived."""
    body = await request.read()
    return web.json_response(
        {
            "method": request.method,
            "target": request.raw_path,
            "headers": [[k.decode(), v.decode()] for k, v in request._message.raw_headers],
            "size": len(body),
            "body": body[:1000].decode("latin-1"),
        }
    )


@dataclass
class Stage:
    """What a scenario has in hand."""

    url: str
    address: tuple[str, int]
    session: aiohttp.ClientSession
    controller: ScaleController
    backend: MemoryBackend
    metrics: Metrics
    starts: StartRecord
    server: ProxyServer
    desk: HoldDesk
    pool: UpstreamPool
    knowledge: ModelKnowledge
    hits: list[str] = field(default_factory=list)
    admin_url: str = ""
    wakes: WakeSpans | None = None

    def phase_is(self, kind: type[Phase]) -> bool:
        return isinstance(self.controller.target.phase, kind)

    async def get(self, path: str, **kwargs: Any) -> tuple[int, dict[str, Any]]:
        async with self.session.get(self.url + path, **kwargs) as response:
            return response.status, await response.json(content_type=None)

    async def post(self, path: str, **kwargs: Any) -> tuple[int, dict[str, Any]]:
        async with self.session.post(self.url + path, **kwargs) as response:
            return response.status, await response.json(content_type=None)

    async def until(self, holds: Callable[[], bool], seconds: float = 5) -> None:
        async with asyncio.timeout(seconds):
            while not holds():  # noqa: ASYNC110 - what is awaited is anything at all
                await asyncio.sleep(0.005)

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    async def raw(self, request: bytes) -> bytes:
        """Send these bytes on a new connection, and return all that comes until the connection ends."""
        reader, writer = await asyncio.open_connection(*self.address)
        writer.write(request)
        answer = await asyncio.wait_for(reader.read(), 5)
        writer.close()
        await writer.wait_closed()
        return answer


@contextlib.asynccontextmanager
async def stage(
    upstream: UpstreamHandler = echo,
    *,
    awake: bool = False,
    start: float = 0.05,
    stop: float = 0.0,
    idle: float = 300.0,
    limit: float = 1800.0,
    hold: float = 10.0,
    replay_bytes: int = 1 << 20,
    response: float | None = 10.0,
    fast: bool | None = None,
    terms: HoldOptions | None = None,
    bounds: Bounds | None = None,
    keep_abandoned: bool = True,
    orphan: float | None = None,
    wake_paths: str = "default",
    served: ServedCommand = lambda: None,
    ref: TargetRef = REF,
    rewrite_for: Callable[[web.BaseRequest, RequestBody], Rewrite | None] | None = None,
    affinity: Affinity | None = None,
    doorkeeper: Doorkeeper | None = None,
    cors: Cors | None = None,
    engines: EngineAccess = PLAIN,
    tls: ssl.SSLContext | None = None,
    upstream_tls: ssl.SSLContext | None = None,
    apart: bool = False,
    limits: ClientLimits = DEFAULT_LIMITS,
    tracing: Tracing | None = None,
    output: EngineOutput | None = None,
) -> AsyncIterator[Stage]:
    """A proxy that listens, with its target asleep or awake; `fast` says whether it has the fast lane, `served` what
    command a start runs, `apart` whether /proxy/ is at a port of its own, `tracing` what makes spans, and `output` what
    the engine writes.
    """
    hits: list[str] = []

    async def counted(request: web.BaseRequest) -> web.StreamResponse:
        hits.append(f"{request.method} {request.raw_path}")
        return await upstream(request)

    async with contextlib.AsyncExitStack() as stack:
        runner = web.ServerRunner(web.Server(counted, handler_cancellation=True, access_log=None), shutdown_timeout=0.1)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=upstream_tls).start()
        endpoint = Endpoint(*runner.addresses[0])
        backend = MemoryBackend(endpoint, start_seconds=start, stop_seconds=stop, replicas=int(awake))
        metrics = Metrics(CollectorRegistry(), "test")
        pool = UpstreamPool(orphan_seconds=orphan, access=engines)
        stack.push_async_callback(pool.aclose)
        starts = StartRecord(ref, metrics)
        sighted = SightedBackend(backend)
        savings = Savings()
        counting = savings.of(str(ref), lambda: 1)
        metrics.gpu_seconds.counted = lambda: savings.gpu_seconds
        controller = ScaleController(
            ref,
            Limits(idle, limit, keep_abandoned=keep_abandoned),
            sighted,
            Record((TargetRecorder(ref, metrics), starts, counting), pool),
            bounds,
            lambda: starts.retry_after(controller.now()),
        )
        controller.on_held = counting.looked
        controller.ejector.recorder = EjectionRecord(ref, metrics)
        metrics.follow(lambda: controller.target, controller.now, sees=lambda: sighted.sees)
        knowledge = ModelKnowledge(served)
        options = ProxyOptions(terms or HoldOptions(hold), replay_bytes, RelayTimeouts(2.0, response))
        budget = Budget(options.hold.body_budget)
        desk = hold_desk(controller, options.hold, budget, starts, knowledge)
        wakes = None if tracing is None else tracing.wakes(ref, controller.now)
        if wakes is not None:
            starts.on_change = wakes.changed
        glance = None if output is None else OutputGlance(output)
        directed = Served(controller, desk, starts, knowledge, affinity=affinity, wakes=wakes, output=glance)
        directory = Directory(budget, directed)
        rewrite = None if rewrite_for is None else lambda request, body, _: rewrite_for(request, body)
        routes = Routes(parse_wake_paths(wake_paths))
        handler = proxy_handler(tracing, routes, directory, pool, metrics, options, rewrite)
        admin = AdminApi(
            directory,
            handler.scrape,
            metrics,
            Build(version="test"),
            lambda: server.draining,
            routes,
        )
        has_lane = FAST_LANE.get() if fast is None else fast
        server = ProxyServer(
            admin.page.before(handler.proxy),
            admin.handle,
            metrics,
            handler.fast_lane if has_lane else None,
            routes,
            limits,
            doorkeeper=doorkeeper,
            cors=cors,
        )
        stack.push_async_callback(server.close)
        running = asyncio.create_task(controller.run())
        stack.push_async_callback(_cancelled, running)
        admin_url = ""
        if apart:
            [(admin_host, admin_port)] = await server.listen_apart("127.0.0.1", 0, tls)
            admin_url = f"{'http' if tls is None else 'https'}://{admin_host}:{admin_port}"
        [address] = await server.listen("127.0.0.1", 0, tls)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        await asyncio.sleep(0)
        url = f"{'http' if tls is None else 'https'}://{address[0]}:{address[1]}"
        yield Stage(
            url,
            address,
            session,
            controller,
            backend,
            metrics,
            starts,
            server,
            desk,
            pool,
            knowledge,
            hits,
            admin_url,
            wakes,
        )
        assert not running.done(), running.result()


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


def envelope(text: bytes | str) -> dict[str, Any]:
    """The inside of OpenAI's error envelope, checked for its shape."""
    body = json.loads(text)
    assert set(body) == {"error"}
    assert set(body["error"]) - {"request_id"} == {"message", "type", "code", "param"}  # what was no request has none
    return dict(body["error"])


class Engine:
    """One model's server, which says which one it is. `hits` has what has come, and `adapters` what it has loaded.

    `refusal` is its answer to whoever wants an adapter loaded, None for it does so, after `load_seconds`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.hits: list[tuple[str, bytes]] = []
        self.loads: list[dict[str, Any]] = []
        self.adapters: dict[str, str] = {}
        self.load_seconds = 0.0
        self.refusal: tuple[int, dict[str, Any]] | None = None

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.headers.get("Upgrade"):
            socket = web.WebSocketResponse()
            await socket.prepare(request)
            await socket.send_str(self.name)
            await socket.close()
            return socket
        body = await request.content.read()
        if request.path == "/v1/load_lora_adapter":
            return await self._load(json.loads(body))
        self.hits.append((f"{request.method} {request.raw_path}", body))
        return web.json_response({"at": self.name, "size": len(body)})

    async def _load(self, asked: dict[str, Any]) -> web.Response:
        """As vLLM 0.32 does (vllm/entrypoints/openai/models/serving.py)."""
        self.loads.append(asked)
        await asyncio.sleep(self.load_seconds)
        if self.refusal is not None:
            return web.json_response(self.refusal[1], status=self.refusal[0])
        name = asked["lora_name"]
        if name in self.adapters and not asked.get("load_inplace"):
            message = f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place,"
            error = {"message": message, "type": "InvalidUserInput", "param": None, "code": 400}
            return web.json_response({"error": error}, status=400)
        self.adapters[name] = asked["lora_path"]
        return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")


@dataclass
class OneOf:
    """One model of several."""

    engine: Engine
    backend: MemoryBackend
    served: Served

    @property
    def controller(self) -> ScaleController:
        return self.served.controller

    @property
    def is_asleep(self) -> bool:
        return isinstance(self.controller.target.phase, Asleep) and not self.backend.writes


@dataclass
class Models:
    """What a scenario of several models has in hand."""

    url: str
    address: tuple[str, int]
    session: aiohttp.ClientSession
    directory: Directory
    metrics: Metrics
    server: ProxyServer
    pool: UpstreamPool
    of: dict[str, OneOf]

    async def post(self, path: str, **kwargs: Any) -> tuple[int, dict[str, Any]]:
        async with self.session.post(self.url + path, **kwargs) as response:
            return response.status, await response.json(content_type=None)

    async def chat(self, model: object, **more: object) -> tuple[int, dict[str, Any]]:
        return await self.post("/v1/chat/completions", json={"model": model, **more})

    async def until(self, holds: Callable[[], bool], seconds: float = 5) -> None:
        async with asyncio.timeout(seconds):
            while not holds():  # noqa: ASYNC110 - what is awaited is anything at all
                await asyncio.sleep(0.005)

    @property
    def at_rest(self) -> bool:
        """Whether nothing of any request is left."""
        return (
            not self.server._active
            and not self.directory.budget.taken
            and all(not one.controller.target.in_flight and not one.controller.target.waiting for one in self.directory)
        )


@contextlib.asynccontextmanager
async def models_stage(
    *entries: ModelEntry,
    awake: bool = True,
    start: float = 0.05,
    hold: float = 10.0,
    replay_bytes: int = 1 << 20,
    model_bytes: int = 32 << 20,
    body_budget: int = 256 << 20,
    default: str | None = None,
    fast: bool | None = None,
    bounds: Bounds | None = None,
    doorkeeper: Doorkeeper | None = None,
    engines: EngineAccess = PLAIN,
) -> AsyncIterator[Models]:
    """A proxy of several models, each with an engine of its own; all awake, or all asleep."""
    async with contextlib.AsyncExitStack() as stack:
        metrics = Metrics(CollectorRegistry(), "test")
        pool = UpstreamPool(access=engines)
        stack.push_async_callback(pool.aclose)
        terms = HoldOptions(hold, body_budget=body_budget)
        directory = Directory(Budget(terms.body_budget), default=default)
        models: dict[str, OneOf] = {}
        for entry in entries:
            engine = Engine(entry.name)
            runner = web.ServerRunner(web.Server(engine, access_log=None), shutdown_timeout=0.1)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            backend = MemoryBackend(Endpoint(*runner.addresses[0]), start_seconds=start, replicas=int(awake))
            starts = StartRecord(entry.ref, metrics)
            recorder = Record((TargetRecorder(entry.ref, metrics), starts), pool)
            controller = ScaleController(entry.ref, Limits(300, 1800), backend, recorder, bounds)
            knowledge = ModelKnowledge()
            desk = hold_desk(controller, terms, directory.budget, starts, knowledge)
            models[entry.name] = OneOf(engine, backend, Served(controller, desk, starts, knowledge, entry))
            running = asyncio.create_task(controller.run())
            stack.push_async_callback(_cancelled, running)
        directory.replace(Catalogue(entries), [one.served for one in models.values()])
        options = ProxyOptions(terms, replay_bytes, RelayTimeouts(2.0, 10.0), model_bytes)
        handler = ProxyHandler(directory, pool, metrics, options)
        has_lane = FAST_LANE.get() if fast is None else fast
        admin = AdminApi(directory, handler.scrape, metrics, Build(version="test"), lambda: server.draining)
        server = ProxyServer(
            handler.proxy,
            _nothing_else if doorkeeper is None else admin.handle,
            metrics,
            handler.fast_lane if has_lane else None,
            doorkeeper=doorkeeper,
        )
        stack.push_async_callback(server.close)
        [address] = await server.listen("127.0.0.1", 0)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        while not all(one.controller.synced for one in models.values()):  # noqa: ASYNC110 - within a few turns
            await asyncio.sleep(0)
        url = f"http://{address[0]}:{address[1]}"
        yield Models(url, address, session, directory, metrics, server, pool, models)
        async with asyncio.timeout(5):
            while server._active or directory.budget.taken:  # noqa: ASYNC110 - the last of a request may take a moment
                await asyncio.sleep(0.005)


async def _nothing_else(route: object, request: web.BaseRequest) -> web.StreamResponse:
    raise NotFound("there is nothing here but models.")
