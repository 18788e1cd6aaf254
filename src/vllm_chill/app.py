"""The whole program put together: settings in, a running proxy out."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry

from vllm_chill.control.collector import collect_at_leisure
from vllm_chill.control.controller import Bounds, ScaleController
from vllm_chill.control.knowledge import ModelKnowledge, Served
from vllm_chill.control.prober import Probing, ProbingBackend
from vllm_chill.core.models import check_model
from vllm_chill.core.routing import Routes, parse_wake_paths
from vllm_chill.core.target import Endpoint, Limits, Target, TargetRef
from vllm_chill.errors import SettingError
from vllm_chill.ports import ClusterBackend, Recorder, StartHistory
from vllm_chill.proxy.handler import ProxyHandler, ProxyOptions
from vllm_chill.proxy.hold import Budget, HoldDesk
from vllm_chill.proxy.hold_terms import HoldOptions, JsonHold
from vllm_chill.proxy.probe import Prober
from vllm_chill.proxy.relay import RelayTimeouts
from vllm_chill.proxy.served import Directory
from vllm_chill.proxy.served import Served as ServedTarget
from vllm_chill.proxy.upstream import UpstreamPool
from vllm_chill.settings import Settings, service_link
from vllm_chill.telemetry.metrics import Metrics
from vllm_chill.telemetry.recorder import TargetRecorder
from vllm_chill.telemetry.start_record import StartRecord
from vllm_chill.web.admin import AdminApi
from vllm_chill.web.server import ProxyServer

VERSION = version("vllm-chill")


@dataclass(frozen=True, slots=True)
class Plan:
    """What `serve` is asked to do, checked as a whole: settings that fit one another, and the command if any."""

    settings: Settings
    command: tuple[str, ...] = ()
    name: str = ""
    """What the command is called; its own name if not given."""

    def __post_init__(self) -> None:
        if self.settings.backend == "kubernetes" and self.command:
            raise SettingError(
                f"a command is given ({self.command[0]} ...), but --backend is kubernetes; "
                "add --backend process to run it"
            )
        if self.settings.backend == "process" and not self.command:
            raise SettingError(
                "--backend process needs the command to run; give it after --, as in: "
                "vllm-chill serve --backend process -- vllm serve Qwen/Qwen3-0.6B --port {port}"
            )
        if self.settings.backend == "process" and self.settings.readiness == "kubernetes":
            raise SettingError(
                "--readiness kubernetes waits for a pod's Ready condition, and with --backend process there is no pod; "
                "leave it out, and the command is asked by itself"
            )
        if self.settings.backend == "process" and self.settings.route == "service":
            raise SettingError(
                "--route service sends requests to a Service, and with --backend process there is none; leave it out"
            )

    @property
    def ref(self) -> TargetRef:
        """The target's name."""
        if self.settings.backend == "process":
            return TargetRef("process", self.name or self.command[0].rpartition("/")[2])
        return TargetRef(self.settings.namespace, self.settings.deployment)

    @property
    def routes(self) -> Routes:
        """Which requests wake the target."""
        return Routes(parse_wake_paths(self.settings.wake_paths))

    @property
    def direct(self) -> bool:
        """Whether requests go to the replicas' own addresses, and not to a Service or whatever stands in its place."""
        settings = self.settings
        if settings.backend == "process":
            return True
        if "route" in settings.model_fields_set:
            return settings.route == "pod"
        return is_service_of(settings.namespace, settings.target_host)

    @property
    def limits(self) -> Limits:
        """What bounds the target's life."""
        return Limits(
            self.settings.idle_timeout.total_seconds(),
            self.settings.start_timeout.total_seconds(),
            keep_abandoned=self.settings.wake_abandoned == "keep",
        )

    @property
    def bounds(self) -> Bounds:
        """How many may wait, and how many a replica has at a time."""
        return Bounds(self.settings.max_waiting, self.settings.max_in_flight or None)

    @property
    def options(self) -> ProxyOptions:
        """How requests are proxied."""
        s = self.settings
        return ProxyOptions(
            hold=HoldOptions(
                seconds=s.wake_timeout.total_seconds(),
                beat_after_seconds=s.hold_heartbeat_after.total_seconds(),
                beat_seconds=s.hold_heartbeat.total_seconds(),
                json=JsonHold(s.hold_json),
                body_budget=s.hold_body_budget,
                key_field=s.fairness_header,
                priority_keys=frozenset(key.strip() for key in s.priority_keys.split(",") if key.strip()),
            ),
            replay_bytes=s.replay_limit,
            timeouts=RelayTimeouts(s.connect_timeout.total_seconds(), s.response_timeout.total_seconds()),
            model_bytes=s.model_limit,
        )


class Record:
    """Everybody who wants to know what happens to the target, as one recorder, and the pool of its connections."""

    def __init__(self, recorders: Sequence[Recorder], pool: UpstreamPool) -> None:
        self._recorders = recorders
        self._pool = pool

    def changed(self, before: Target, after: Target, now: float) -> None:
        for recorder in self._recorders:
            recorder.changed(before, after, now)

    def progressed(self, target: Target, now: float) -> None:
        for recorder in self._recorders:
            recorder.progressed(target, now)

    def answered(self, now: float) -> None:
        for recorder in self._recorders:
            recorder.answered(now)

    def departed(self, endpoint: Endpoint) -> None:
        self._pool.close_endpoint(endpoint)

    def held(self, seconds: float) -> None:
        for recorder in self._recorders:
            recorder.held(seconds)

    def scaled(self, target: Target, replicas: int, error: str | None) -> None:
        for recorder in self._recorders:
            recorder.scaled(target, replicas, error)


def hold_desk(
    controller: ScaleController,
    options: HoldOptions,
    budget: Budget,
    starts: StartRecord,
    knowledge: ModelKnowledge,
) -> HoldDesk:
    """Where requests wait, and what they are told: from the record of the starts, and what is known of the models."""

    def answered() -> None:
        if starts.awaits_answer:
            starts.answered(controller.now())

    return HoldDesk(
        controller,
        options,
        budget,
        lambda position: starts.describe(controller.now(), position or None),
        lambda: starts.retry_after(controller.now()),
        check=lambda call: check_model(call, knowledge.models),
        answered=answered,
    )


def is_service_of(namespace: str, host: str) -> bool:
    """Whether a host is named as a Service of the namespace is: its name, NAME.NAMESPACE, NAME.NAMESPACE.svc[.DOMAIN].

    The name alone cannot be an IPv4 address or a name of another domain, as those have dots.
    """
    match host.lower().rstrip(".").split("."):
        case [name]:
            return ":" not in name
        case [_, of, *rest]:
            return of == namespace and (not rest or rest[0] == "svc")
        case _:
            return False


@dataclass(frozen=True, slots=True)
class World:
    """What a target runs on: its backend, where it keeps what starts take, if anywhere, and what a start runs."""

    backend: ClusterBackend
    history: StartHistory | None
    served: Served


@contextlib.asynccontextmanager
async def open_world(plan: Plan) -> AsyncIterator[World]:
    """What the plan says the target runs on. Raises SettingError."""
    settings = plan.settings
    if settings.backend == "process":
        from vllm_chill.adapters.process import Command, ProcessBackend

        fixed = settings.target_port if "target_port" in settings.model_fields_set else None
        command = Command(
            plan.command,
            port=fixed,
            stop_seconds=settings.stop_timeout.total_seconds(),
            # vLLM has a VLLM_PORT of its own with another meaning.
            environment={name: value for name, value in os.environ.items() if name != "VLLM_PORT"},
        )
        engine = structlog.get_logger("engine")
        async with ProcessBackend(command, engine.info) as process:
            yield World(process, _state_file(plan), lambda: (plan.command, ""))
    else:
        # Imported when it is used: the client's models are a third of the proxy's memory.
        from vllm_chill.adapters.kubernetes.client import connect
        from vllm_chill.adapters.kubernetes.deployment import KubernetesBackend
        from vllm_chill.adapters.kubernetes.start_history import DeploymentHistory

        async with connect(settings.kubeconfig) as api:
            backend = KubernetesBackend(
                api,
                Endpoint(settings.target_host, settings.target_port),
                unschedulable_seconds=settings.unschedulable_after.total_seconds(),
            )
            history = None if settings.state_dir == "" else DeploymentHistory(api)
            yield World(backend, history, lambda: backend.served(plan.ref))


def _state_file(plan: Plan) -> StartHistory | None:
    from vllm_chill.adapters.state_file import StateFile, default_folder

    named = plan.settings.state_dir
    if named == "":
        return None
    folder = default_folder(os.environ) if named is None else Path(named)
    return StateFile(folder, plan.command, structlog.get_logger("vllm_chill").warning)


async def serve(
    plan: Plan, *, recorders: Sequence[Recorder] = (), listening: Callable[[str, int], None] | None = None
) -> None:
    """Run the proxy until SIGTERM or SIGINT, then drain it. Logging is configured by the caller.

    `listening` is told the address once connections are accepted. Raises SettingError for what cannot work.
    """
    log = structlog.get_logger("vllm_chill")
    settings, options = plan.settings, plan.options
    if (link := service_link()) is not None:
        log.warning(
            "VLLM_PORT is ignored: Kubernetes wrote it for a Service called vllm",
            value=link,
            hint="set enableServiceLinks: false, or use --target-port",
        )
    stopped = _signals()
    async with contextlib.AsyncExitStack() as stack:
        world = await stack.enter_async_context(open_world(plan))
        metrics = Metrics(CollectorRegistry(), VERSION)
        pool = UpstreamPool(orphan_seconds=settings.stream_idle_timeout.total_seconds() or None)
        stack.push_async_callback(pool.aclose)
        starts = StartRecord(plan.ref, metrics)
        if world.history is not None:
            await stack.enter_async_context(_running(starts.keep(world.history)))
        knowledge = ModelKnowledge(world.served)
        probing = None
        if settings.readiness == "probe":
            probing = Probing(Prober(pool).ask, settings.health_path, lambda _, body: knowledge.listed(body))
        backend = ProbingBackend(world.backend, probing, direct=plan.direct)
        controller = ScaleController(
            plan.ref,
            plan.limits,
            backend,
            Record((TargetRecorder(metrics), starts, *recorders), pool),
            plan.bounds,
            lambda: starts.retry_after(controller.now()),
        )
        metrics.follow(lambda: controller.target, controller.now)
        budget = Budget(options.hold.body_budget)
        desk = hold_desk(controller, options.hold, budget, starts, knowledge)
        directory = Directory(budget, ServedTarget(controller, desk, starts, knowledge))
        proxy = ProxyHandler(directory, pool, metrics, options)
        admin = AdminApi(
            controller, proxy.scrape, metrics, VERSION, lambda: server.draining, starts, knowledge, plan.routes
        )
        lane = proxy.fast_lane if settings.fast_lane == "on" else None
        server = ProxyServer(admin.page.before(proxy.proxy), admin.handle, metrics, lane, plan.routes)
        stack.push_async_callback(server.close)
        host, port = await _listen(server, settings)
        running = await stack.enter_async_context(_running(controller.run()))
        there = collect_at_leisure(lambda: controller.target.waiting + controller.target.in_flight)
        await stack.enter_async_context(_running(there))
        # What is here now stays, so no collection is to look at it again; a request leaves nothing for them.
        gc.collect()
        gc.freeze()
        log.info("listening", host=host, port=port, target=str(plan.ref), backend=settings.backend, version=VERSION)
        if listening is not None:
            listening(host, port)
        await _until_stopped(server, settings, running, stopped)


@contextlib.asynccontextmanager
async def _running(work: Coroutine[None, None, None]) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _listen(server: ProxyServer, settings: Settings) -> tuple[str, int]:
    try:
        addresses = await server.listen(settings.host, settings.port)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise SettingError(
            f"cannot listen on {settings.host} port {settings.port}: {reason}; give another --host or --port"
        ) from error
    return addresses[0]


def run(plan: Plan, *, recorders: Sequence[Recorder] = (), listening: Callable[[str, int], None] | None = None) -> None:
    """`serve` on an event loop of its own: uvloop's where it is installed, unless the settings say otherwise."""
    _raise_file_limit()
    with asyncio.Runner(loop_factory=_loop_factory(plan.settings)) as runner:
        runner.run(serve(plan, recorders=recorders, listening=listening))


def _raise_file_limit() -> None:
    """Let this process open as many files as it may: each request has two, and the usual 1024 are gone at once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # a hard limit above the kernel's own
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _loop_factory(settings: Settings) -> Callable[[], asyncio.AbstractEventLoop]:
    if settings.event_loop == "asyncio":
        return asyncio.new_event_loop
    try:
        import uvloop
    except ImportError:
        if settings.event_loop == "uvloop":
            raise SettingError(
                "uvloop is not installed; install vllm-chill[uvloop], or use --event-loop auto"
            ) from None
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def _signals() -> asyncio.Queue[signal.Signals]:
    """The signals that ask for an end, from now on."""
    stopped: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.put_nowait, number)
    return stopped


async def _until_stopped(
    server: ProxyServer,
    settings: Settings,
    running: asyncio.Task[None],
    stopped: asyncio.Queue[signal.Signals],
) -> None:
    log = structlog.get_logger("vllm_chill")
    first = asyncio.create_task(stopped.get())
    await asyncio.wait([first, running], return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        first.cancel()
        running.result()
        return
    delay = 0.0 if first.result() is signal.SIGINT else settings.shutdown_delay.total_seconds()
    log.info("draining", signal=first.result().name, drain_timeout_seconds=settings.drain_timeout.total_seconds())
    drain = asyncio.create_task(server.drain(delay, settings.drain_timeout.total_seconds()))
    again = asyncio.create_task(stopped.get())
    await asyncio.wait([drain, again], return_when=asyncio.FIRST_COMPLETED)
    if not drain.done():
        log.warning("stopped at once, as asked for a second time")
    elif drain.result():
        log.info("drained")
    else:
        log.warning("requests are cut off: they took longer than --drain-timeout")
    for task in (drain, again):
        task.cancel()
    await asyncio.wait([drain, again])
