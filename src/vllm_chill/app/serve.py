"""A running proxy, from its settings to its orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import signal
import ssl
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from prometheus_client import CollectorRegistry

from vllm_chill.adapters.engine_access import PLAIN, EngineAccess
from vllm_chill.api.status import PeersStatus
from vllm_chill.api.version import Build
from vllm_chill.app import VERSION
from vllm_chill.app.access import Access
from vllm_chill.app.meters import Meters, open_meters
from vllm_chill.app.models import ServedModels
from vllm_chill.app.plan import Plan
from vllm_chill.app.reload import Reloads, Reread, reread
from vllm_chill.app.scaling import ProxyTargets
from vllm_chill.app.targets import TargetMaker
from vllm_chill.app.tracing import open_tracing, proxy_handler
from vllm_chill.app.world import Ground, open_ground
from vllm_chill.control.autoscaler import Autoscalers
from vllm_chill.control.collector import collect_at_leisure
from vllm_chill.control.fleet import Fleet
from vllm_chill.control.running import running
from vllm_chill.control.savings import Savings
from vllm_chill.core.target import Endpoint, Ready
from vllm_chill.errors import SettingError
from vllm_chill.ports import GpuStats, Recorder
from vllm_chill.proxy.client_limits import ClientLimits
from vllm_chill.proxy.hold import Budget
from vllm_chill.proxy.served import Directory
from vllm_chill.proxy.upstream import UpstreamPool
from vllm_chill.settings.plain import service_link
from vllm_chill.telemetry.bell import Bell
from vllm_chill.telemetry.logs import configure_logging, set_log_level
from vllm_chill.telemetry.metrics import Metrics
from vllm_chill.web.admin import AdminApi
from vllm_chill.web.gpu_stats import GpuStatsPage
from vllm_chill.web.savings import SavingsPage
from vllm_chill.web.server import ProxyServer

if TYPE_CHECKING:
    from vllm_chill.control.peering import Peering
    from vllm_chill.settings.serve import Settings  # which a proxy that runs has no need to import

_TURNS = 20


def build() -> Build:
    """Which build this is: whoever makes an image says so in its environment."""
    said = {
        name: value
        for name, variable in (("commit", "VLLM_CHILL_COMMIT"), ("build_date", "VLLM_CHILL_BUILD_DATE"))
        if (value := os.environ.get(variable))
    }
    return Build(version=VERSION, **said)


def gpu_sources(settings: Settings, directory: Directory, engines: EngineAccess = PLAIN) -> tuple[GpuStats, ...]:
    """Where GPU statistics come from, the best first."""
    from vllm_chill.adapters.gpu import DcgmStats, NvmlStats, VllmStats

    exporter = () if settings.gpu_stats_url is None else (DcgmStats(settings.gpu_stats_url),)
    return (NvmlStats(), *exporter, VllmStats(lambda: awake(directory), engines))


def awake(directory: Directory) -> Iterator[tuple[str, Endpoint]]:
    """The endpoints where requests go now, each with its target's name."""
    for served in directory:
        target = served.controller.target
        if isinstance(target.phase, Ready) and target.observed is not None:
            for endpoint in target.observed.endpoints:
                yield served.name, endpoint


def _meters(settings: Settings, engines: EngineAccess) -> AbstractAsyncContextManager[Meters]:
    return open_meters(
        pods=settings.backend == "kubernetes",
        gpu_stats_url=settings.gpu_stats_url,
        prometheus_url=settings.prometheus_url,
        token_file=None if settings.prometheus_token_file is None else Path(settings.prometheus_token_file),
        engines=engines,
    )


def _savings(ground: Ground) -> Savings:
    writer, peering = os.urandom(8).hex(), ground.peering
    if peering is None:
        return Savings(ground.savings_store(), writer)
    return Savings(ground.savings_store(), writer, led_until=peering.led_until)


def peers_status(peering: Peering | None) -> PeersStatus | None:
    """How this proxy stands to others."""
    if peering is None:
        return None
    return PeersStatus(
        identity=peering.identity,
        leads=peering.leads,
        leader=peering.leader or None,
        others=list(peering.others),
        trouble=peering.trouble,
    )


def _busy(directory: Directory) -> int:
    return sum(served.controller.target.waiting + served.controller.target.in_flight for served in directory)


async def serve(
    plan: Plan,
    *,
    recorders: Sequence[Recorder] = (),
    listening: Callable[[str, int], None] | None = None,
    read: Reread | None = None,
) -> None:
    """Run the proxy until SIGTERM or SIGINT, then drain it. Logging is configured by the caller.

    `listening` is told the address once connections are accepted, and `read` reads the settings anew. Raises
    SettingError for what cannot work.
    """
    log = structlog.get_logger("vllm_chill")
    settings, options = plan.settings, plan.options
    if (link := service_link()) is not None:
        log.warning(
            "VLLM_PORT is ignored: Kubernetes wrote it for a Service called vllm",
            value=link,
            hint="set enableServiceLinks: false, or use --target-port",
        )
    reloads = Reloads(plan, read)
    stopped = _signals(reloads.ask)
    async with contextlib.AsyncExitStack() as stack:
        access = Access(settings)
        ground = await stack.enter_async_context(open_ground(plan, access.mask))
        metrics = Metrics(CollectorRegistry(), VERSION)
        await stack.enter_async_context(running(access.follow()))
        if (peering := ground.peering) is not None:
            metrics.follow_peers(lambda: peering.leads, lambda: len(peering.others))
        pool = UpstreamPool(orphan_seconds=settings.stream_idle_timeout.total_seconds() or None, access=access.engines)
        stack.push_async_callback(pool.aclose)
        budget = Budget(options.hold.body_budget)
        reloads.tell(partial(_take_process, budget))
        metrics.follow_configuration(lambda: reloads.successful, lambda: reloads.loaded_seconds)
        savings = _savings(ground)
        metrics.gpu_seconds.counted = lambda: savings.gpu_seconds
        await stack.enter_async_context(running(savings.run()))
        autoscalers = Autoscalers()
        meters = await stack.enter_async_context(_meters(settings, access.engines))
        fleet = None if plan.catalogue is None else Fleet(plan.rules, metrics.switched)
        tracing = await stack.enter_async_context(open_tracing(settings.otlp_traces_endpoint, VERSION))
        bell = Bell()
        maker = TargetMaker(
            plan,
            metrics,
            pool,
            budget,
            meters,
            autoscalers,
            (*recorders, bell),
            fleet,
            ground.peering,
            savings=savings,
            tracing=tracing,
        )
        reloads.tell(maker.take)
        if fleet is None:
            made = maker.make(plan.only, ground.world(plan.ref, None))
            directory, serve_targets = Directory(budget, made.served), made.run
            reloads.tell(lambda plan: made.take(plan.only))
        else:
            directory = Directory(budget, default=settings.model_id)
            models = ServedModels(
                plan,
                directory,
                fleet,
                lambda entry: maker.make(plan.of_model(entry), ground.world(entry.ref, entry)),
                autoscalers.review,
            )
            serve_targets = partial(models.run, partial(ground.tell_models, models))
            reloads.tell(models.take)
        targets = ProxyTargets(plan, directory, meters, metrics, lambda ref: ground.world(ref, None), ground.peering)

        async def work() -> None:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(serve_targets())
                if ground.peering is not None:
                    tasks.create_task(ground.peering.run())
                tasks.create_task(ground.control(autoscalers, targets, metrics))

        proxy = proxy_handler(tracing, plan.routes, directory, pool, metrics, options)
        savings_page = SavingsPage(savings, settings.gpu_hour_price, settings.currency)
        reloads.tell(lambda plan: savings_page.priced(plan.settings.gpu_hour_price, plan.settings.currency))
        admin = AdminApi(
            directory,
            proxy.scrape,
            metrics,
            build(),
            lambda: server.draining,
            plan.routes,
            switching=fleet,
            stats=GpuStatsPage(gpu_sources(settings, directory, access.engines)),
            savings=savings_page,
            scalers=autoscalers,
            override_ttl_seconds=settings.override_ttl.total_seconds(),
            peers=lambda: peers_status(ground.peering),
            bell=bell,
            configuration=lambda: reloads.status,
        )
        lane = proxy.fast_lane if settings.fast_lane == "on" else None
        server = ProxyServer(
            admin.page.before(proxy.proxy),
            admin.handle,
            metrics,
            lane,
            plan.routes,
            client_limits(plan),
            doorkeeper=access.doorkeeper(ground.authorizer),
            cors=access.cors,
        )
        stack.push_async_callback(server.close)
        if plan.reads_models_first:
            working = await stack.enter_async_context(running(work()))
            while directory.trouble is not None and not working.done():  # noqa: ASYNC110 - it takes a few turns
                await asyncio.sleep(0)
            _check_default(plan, directory)
            host, port = await _listen(server, settings, access.tls)
        else:
            host, port = await _listen(server, settings, access.tls)
            working = await stack.enter_async_context(running(work()))
            await _seen_at_once(directory)
        reloads.look_at(access.read_anew)
        reloads.look_at(ground.read_anew)
        await stack.enter_async_context(running(reloads.run()))
        there = collect_at_leisure(lambda: _busy(directory))
        await stack.enter_async_context(running(there))
        # What is here now stays, so no collection is to look at it again; a request leaves nothing for them.
        gc.collect()
        gc.freeze()
        log.info("listening", host=host, port=port, target=plan.title, backend=settings.backend, version=VERSION)
        if listening is not None:
            listening(host, port)
        await _until_stopped(server, reloads, working, stopped)


def _take_process(budget: Budget, plan: Plan) -> None:
    """Have what is of the whole process be as the plan says."""
    budget.most = plan.options.hold.body_budget
    set_log_level(plan.settings.log_level)


def _check_default(plan: Plan, directory: Directory) -> None:
    if directory.default is not None and directory.find(directory.default) is None:
        raise SettingError(
            f'--model-id: "{directory.default}" is none of the models of {plan.catalogue}; give one of '
            f"{directory.catalogue.names}"
        )


async def _seen_at_once(directory: Directory) -> None:
    """Return when the targets have been seen, if that takes no more than some turns, as with a command of this machine:
    whoever is told that it listens finds them known.
    """
    for _ in range(_TURNS):
        if all(served.controller.synced for served in directory):
            return
        await asyncio.sleep(0)


async def _listen(server: ProxyServer, settings: Settings, tls: ssl.SSLContext | None) -> tuple[str, int]:
    if settings.admin_port is not None:
        host = settings.admin_host or settings.host
        with _listened_on(host, settings.admin_port, "--admin-host or --admin-port"):
            apart = await server.listen_apart(host, settings.admin_port, tls)
        structlog.get_logger("vllm_chill").info("listening for operators", host=apart[0][0], port=apart[0][1])
    with _listened_on(settings.host, settings.port, "--host or --port"):
        addresses = await server.listen(settings.host, settings.port, tls)
    return addresses[0]


@contextlib.contextmanager
def _listened_on(host: str, port: int, flags: str) -> Iterator[None]:
    """Have it said in a sentence why an address cannot be listened on."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise SettingError(f"cannot listen on {host} port {port}: {reason}; give another {flags}") from error


def begin(settings: Settings, command: tuple[str, ...]) -> None:
    """What `vllm-chill serve` does, once it is known what it is asked to do. Raises SettingError."""
    plan = Plan(settings, command)
    configure_logging(settings.log_format, settings.log_level)
    run(plan, read=partial(reread, tuple(sys.argv[1:])))


def run(
    plan: Plan,
    *,
    recorders: Sequence[Recorder] = (),
    listening: Callable[[str, int], None] | None = None,
    read: Reread | None = None,
) -> None:
    """`serve` on an event loop of its own: uvloop's where it is installed, unless the settings say otherwise."""
    _raise_file_limit()
    with asyncio.Runner(loop_factory=_loop_factory(plan.settings)) as runner:
        runner.run(serve(plan, recorders=recorders, listening=listening, read=read))


def client_limits(plan: Plan) -> ClientLimits:
    """The limits of clients; as many connections as leave a file for each request's other one, where none is said."""
    limits = plan.client_limits
    if limits.connections is not None:
        return limits
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return limits if soft == resource.RLIM_INFINITY else replace(limits, connections=max(1, soft // 2))


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


def _signals(reload: Callable[[], None]) -> asyncio.Queue[signal.Signals]:
    """The signals that ask for an end, from now on; SIGHUP has `reload` called, unless the terminal is gone."""
    stopped: asyncio.Queue[signal.Signals] = asyncio.Queue()
    loop, had_terminal = asyncio.get_running_loop(), sys.stderr.isatty()

    def hung_up() -> None:
        if had_terminal and not _has_terminal():
            stopped.put_nowait(signal.SIGHUP)
        else:
            reload()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.put_nowait, number)
    loop.add_signal_handler(signal.SIGHUP, hung_up)
    return stopped


def _has_terminal() -> bool:
    try:
        os.tcgetpgrp(sys.stderr.fileno())
    except OSError:
        return False
    return True


async def _until_stopped(
    server: ProxyServer,
    reloads: Reloads,
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
    settings = reloads.plan.settings
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
