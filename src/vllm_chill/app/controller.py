"""The controller of variants, from its settings to its orderly end; and what of it runs within a proxy too."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from ssl import SSLContext
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, generate_latest

from vllm_chill.adapters.engine_loads import EngineLoads
from vllm_chill.adapters.kubernetes.client import ApiClient, connect
from vllm_chill.adapters.kubernetes.deployment import KubernetesBackend
from vllm_chill.adapters.kubernetes.kinds import KubernetesKinds
from vllm_chill.adapters.kubernetes.leases import KubernetesLease
from vllm_chill.adapters.kubernetes.objects import KubernetesObjects
from vllm_chill.adapters.kubernetes.reviews import KubernetesReviews
from vllm_chill.adapters.prometheus import Prometheus
from vllm_chill.adapters.prometheus_access import PrometheusAccess
from vllm_chill.adapters.prometheus_loads import PrometheusLoads
from vllm_chill.adapters.serving_certificate import from_files, self_signed
from vllm_chill.adapters.vllm import EngineScraper
from vllm_chill.api.variant_entries import MainSettings
from vllm_chill.control.autoscaler import Autoscalers
from vllm_chill.control.controller import ScaleController
from vllm_chill.control.direct import DirectTargets, MadeTarget
from vllm_chill.control.election import Election, new_identity
from vllm_chill.control.loads import LoadCollector
from vllm_chill.control.peering import Peering
from vllm_chill.control.prober import ProbingBackend
from vllm_chill.control.running import running
from vllm_chill.control.served_variants import ServedVariants
from vllm_chill.control.unserved import UnservedBackend, unserved
from vllm_chill.control.variant_configs import VariantConfigs
from vllm_chill.control.variant_fleets import Held
from vllm_chill.control.variant_view import VariantView
from vllm_chill.control.variants import Actuator, VariantOptions, Variants
from vllm_chill.core.catalogue import SERVICE_PORT
from vllm_chill.core.election import Terms
from vllm_chill.core.listening import ListenAddress, parse_listen_address
from vllm_chill.core.saturation.freshness import FRESH_SECONDS, GONE_SECONDS
from vllm_chill.core.target import Endpoint, Limits, Target, TargetRef
from vllm_chill.errors import SettingError
from vllm_chill.ports import LoadSource
from vllm_chill.settings.controller import ControllerSettings
from vllm_chill.telemetry.variant_metrics import ControllerMetrics
from vllm_chill.web.controller_server import ControllerServer

_TTL_SECONDS = 30.0
_IDLE_SECONDS, _START_SECONDS, _DRAIN_SECONDS = 300.0, 1800.0, 0.0


def run(
    settings: ControllerSettings, version: str, *, listening: Callable[[str, str, int], None] | None = None
) -> None:
    """`control` on an event loop of its own."""
    with asyncio.Runner() as runner:
        runner.run(control(settings, version, listening=listening))


async def control(
    settings: ControllerSettings, version: str, *, listening: Callable[[str, str, int], None] | None = None
) -> None:
    """Run the controller until SIGTERM or SIGINT. Logging is configured by the caller.

    `listening` is told what listens where, once it does: metrics and probes. Raises SettingError for what cannot work.
    """
    log = structlog.get_logger("vllm_chill")
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    metrics = ControllerMetrics(version, settings.controller_instance)
    async with contextlib.AsyncExitStack() as stack:
        api = await stack.enter_async_context(connect(settings.kubeconfig, timed=metrics.called))
        _check_source(settings)
        serving = ControllerServer(
            lambda: generate_latest(metrics.registry),
            lambda: True,
            KubernetesReviews(api) if settings.metrics_secure else None,
        )
        stack.push_async_callback(serving.close)
        await _listen(serving, settings, listening)

        async def lead() -> None:
            direct = DirectTargets(lambda ref: _target(api, ref))
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(direct.run())
                tasks.create_task(look_after(settings, api, metrics, actuator=direct))

        working = await stack.enter_async_context(running(_led(settings, api, metrics, lead)))
        log.info("controlling variants", namespace=settings.watch_namespace or "all", version=version)
        ending = await stack.enter_async_context(running(stopped.wait()))
        await asyncio.wait([working, ending], return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    log.info("ended")


async def control_within(
    settings: ControllerSettings,
    api: ApiClient,
    registry: CollectorRegistry,
    autoscalers: Autoscalers,
    peering: Peering | None,
) -> None:
    """Look after the variants of a proxy's namespace, until cancelled, and while it is the one of `peering` that leads;
    what is told of them is on its registry.
    """
    metrics = ControllerMetrics("", settings.controller_instance, registry)

    async def lead() -> None:
        direct = DirectTargets(lambda ref: _target(api, ref))
        actuator = ServedVariants(autoscalers, direct)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(direct.run())
            tasks.create_task(
                look_after(settings, api, metrics, actuator=actuator, held_here=actuator.held, inventory=False)
            )

    if peering is None:
        await _led(settings, api, metrics, lead)
    else:
        await peering.while_it_leads(lead, metrics.leads)


async def _led(
    settings: ControllerSettings,
    api: ApiClient,
    metrics: ControllerMetrics,
    lead: Callable[[], Coroutine[Any, Any, None]],
) -> None:
    """Run `lead` while this process leads, or at once where nobody else does."""
    if not settings.leader_elect:
        metrics.leads(True)
        await lead()
        return
    try:
        terms = Terms(
            settings.leader_election_lease_duration.total_seconds(),
            settings.leader_election_renew_deadline.total_seconds(),
            settings.leader_election_retry_period.total_seconds(),
        )
    except ValueError as error:
        raise SettingError(f"--leader-elect: {error}") from None
    lease = KubernetesLease(api, settings.controller_namespace, settings.leader_election_id)
    # What has not ended by then could decide beside the next leader.
    await Election(lease, new_identity(), terms, changed=metrics.leads, overdue=lambda: os._exit(1)).run(lead)


async def look_after(
    settings: ControllerSettings,
    api: ApiClient,
    metrics: ControllerMetrics,
    *,
    actuator: Actuator | None = None,
    held_here: Held = lambda *_: None,
    inventory: bool = True,
) -> None:
    """Look after the variants until cancelled; anew whenever the main ConfigMap says something else, as what is seen
    and measured is made from that. Without `inventory` no GPUs are counted, which takes rights for the whole cluster.
    """
    log = structlog.get_logger("vllm_chill.variants")
    configs = VariantConfigs(KubernetesObjects(api), settings.controller_namespace, partial(_over, settings))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(configs.run())
        while not configs.synced:
            await configs.changed()
        while True:
            main = configs.config.main
            now = _with(settings, main)
            try:
                async with open_source(now, main.epp_bearer_token) as source:
                    variants = _variants(now, main, api, source, configs, metrics, actuator, held_here, inventory)
                    async with running(variants.run()) as looking:
                        await _until_other(configs, main, looking)
            except SettingError as error:
                log.warning("the main ConfigMap cannot be used", cause=error.message)
                await configs.changed()


async def _until_other(configs: VariantConfigs, main: MainSettings, looking: asyncio.Task[None]) -> None:
    """Return when the main settings are others. Raises what `looking` raises."""
    while configs.config.main == main:
        async with running(configs.changed()) as changed:
            await asyncio.wait([changed, looking], return_when=asyncio.FIRST_COMPLETED)
        if looking.done():
            looking.result()
            return


# The settings that the main ConfigMap has too, by their names there.
_IN_MAP = {
    name: name
    for name in (
        *("prometheus_base_url", "prometheus_bearer_token", "prometheus_token_path", "prometheus_server_name"),
        *("prometheus_tls_insecure_skip_verify", "prometheus_ca_cert_path", "prometheus_client_cert_path"),
        *("prometheus_client_key_path", "scale_to_zero", "limited_mode", "node_selector"),
    )
} | {"interval_seconds": "interval"}


def _over(settings: ControllerSettings, main: MainSettings) -> MainSettings:
    """The main settings, with what flags and variables say in their place."""
    given = {
        there: value.total_seconds() if isinstance(value := getattr(settings, here), timedelta) else value
        for there, here in _IN_MAP.items()
        if here in settings.model_fields_set
    }
    return main.model_copy(update=given)


def _with(settings: ControllerSettings, main: MainSettings) -> ControllerSettings:
    """The settings, with what the main ConfigMap says where flags and variables do not."""
    said = {
        here: timedelta(seconds=value) if here == "interval" else value
        for there, here in _IN_MAP.items()
        if (value := getattr(main, there)) is not None
    }
    return settings.model_copy(update=said)


def _variants(
    settings: ControllerSettings,
    main: MainSettings,
    api: ApiClient,
    source: LoadSource,
    configs: VariantConfigs,
    metrics: ControllerMetrics,
    actuator: Actuator | None,
    held_here: Held,
    inventory: bool,
) -> Variants:
    """What looks after the variants, with all that it sees and is told by. Raises SettingError."""
    namespace = settings.watch_namespace or None
    store = KubernetesObjects(api)
    interval = settings.interval.total_seconds()
    try:
        view = VariantView(
            store, KubernetesKinds(api), namespace, node_selector=settings.node_selector, inventory=inventory
        )
    except ValueError as error:
        raise SettingError(f"--node-selector: {error}") from None

    def unasked(space: str, pod: str) -> None:
        view.owner_of(space, pod)  # it counts those that are nobody's

    loads = LoadCollector(
        source,
        now=asyncio.get_running_loop().time,
        ttl_seconds=main.cache_ttl_seconds or min(_TTL_SECONDS, interval / 2),
        fresh_seconds=main.fresh_seconds or FRESH_SECONDS,
        gone_seconds=main.gone_seconds or GONE_SECONDS,
        unasked=unasked,
    )
    options = VariantOptions(
        namespace,
        settings.controller_instance,
        interval,
        settings.max_concurrent_reconciles,
        settings.actuation == "direct",
    )
    return Variants(
        store,
        view,
        loads,
        configs,
        metrics,
        options=options,
        wall=lambda: datetime.now(UTC),
        actuator=actuator,
        held_here=held_here,
    )


def _check_source(settings: ControllerSettings) -> None:
    """Raise SettingError for what can be seen at once not to work."""
    if settings.prometheus_base_url:
        _access(settings)
    _token(settings.demand_token_path)


@contextlib.asynccontextmanager
async def open_source(settings: ControllerSettings, token: str | None = None) -> AsyncIterator[LoadSource]:
    """Where the load of replicas comes from; `token` is for the pages of who holds requests. Raises SettingError."""
    url = settings.prometheus_base_url
    if settings.metrics_source == "prometheus" and not url:
        raise SettingError("--metrics-source prometheus: give its address with --prometheus-base-url too")
    async with contextlib.AsyncExitStack() as stack:
        if url and settings.metrics_source != "pods":
            yield PrometheusLoads(await stack.enter_async_context(Prometheus(_access(settings))))
            return
        scraper = await stack.enter_async_context(EngineScraper())
        urls = [one.strip() for one in settings.demand_urls.split(",") if one.strip()]
        token = _token(settings.demand_token_path) or token
        yield await stack.enter_async_context(EngineLoads(scraper.scrape, held_urls=urls, token=token))


def _access(settings: ControllerSettings) -> PrometheusAccess:
    def path(text: str) -> Path | None:
        return Path(text) if text else None

    return PrometheusAccess(
        settings.prometheus_base_url,
        token=settings.prometheus_bearer_token or None,
        token_file=path(settings.prometheus_token_path),
        ca_file=path(settings.prometheus_ca_cert_path),
        certificate_file=path(settings.prometheus_client_cert_path),
        key_file=path(settings.prometheus_client_key_path),
        server_name=settings.prometheus_server_name or None,
        insecure_skip_verify=settings.prometheus_tls_insecure_skip_verify,
    )


def _token(path: str) -> str | None:
    if not path:
        return None
    try:
        return Path(path).read_text().strip()
    except (OSError, ValueError) as error:
        raise SettingError(f"--demand-token-path: {path} cannot be read: {error}") from None


async def _listen(
    serving: ControllerServer, settings: ControllerSettings, listening: Callable[[str, str, int], None] | None
) -> None:
    found = []
    metrics_at = _address("--metrics-bind-address", settings.metrics_bind_address)
    if metrics_at is not None:
        tls = _tls(settings, metrics_at) if settings.metrics_secure else None
        found += [("metrics", *at) for at in await serving.serve_metrics(metrics_at, tls)]
    probes_at = _address("--health-probe-bind-address", settings.health_probe_bind_address)
    if probes_at is not None:
        found += [("probes", *at) for at in await serving.serve_probes(probes_at)]
    for what, host, port in found:
        structlog.get_logger("vllm_chill").info("listening", what=what, host=host, port=port)
        if listening is not None:
            listening(what, host, port)


def _address(flag: str, text: str) -> ListenAddress | None:
    try:
        return parse_listen_address(text)
    except ValueError as error:
        raise SettingError(f"{flag}: {error}") from None


def _tls(settings: ControllerSettings, address: ListenAddress) -> SSLContext:
    folder = settings.metrics_cert_path
    if not folder:
        return self_signed(address.host or "localhost")
    return from_files(Path(folder, settings.metrics_cert_name), Path(folder, settings.metrics_cert_key))


def _target(api: ApiClient, ref: TargetRef) -> MadeTarget:
    """What scales a target directly, without being in the way of its requests."""
    endpoint = Endpoint(f"{ref.name}.{ref.namespace}", SERVICE_PORT)
    backend = UnservedBackend(KubernetesBackend(api, endpoint, explains=False), to_zero=True)
    limits = unserved(Limits(_IDLE_SECONDS, _START_SECONDS, drain_seconds=_DRAIN_SECONDS))
    controller = ScaleController(ref, limits, ProbingBackend(backend, None, direct=True), _Scales())
    return MadeTarget(controller, controller.run)


class _Scales:
    """ports.Recorder of what is written; decisions have told the rest."""

    def changed(self, before: Target, after: Target, now: float) -> None: ...
    def progressed(self, target: Target, now: float) -> None: ...
    def answered(self, now: float) -> None: ...
    def departed(self, endpoint: Endpoint) -> None: ...
    def held(self, seconds: float) -> None: ...

    def scaled(self, target: Target, replicas: int, error: str | None) -> None:
        log = structlog.get_logger("vllm_chill.variants")
        if error is None:
            log.info("scaled", target=str(target.ref), replicas=replicas)
        else:
            log.warning("scaling failed", target=str(target.ref), replicas=replicas, cause=error)
