"""`vllm-chill doctor`: what `serve` would be asked to do, held against the cluster or the machine that it would run on.

The rule: nothing is written, woken or started, and no check that fails keeps another one from being made.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from vllm_chill.adapters import machine as here
from vllm_chill.adapters.engine_access import PLAIN, EngineAccess
from vllm_chill.adapters.kubernetes.client import ApiClient, ApiError, Unreachable, connect
from vllm_chill.adapters.kubernetes.surroundings import Surroundings, server_of
from vllm_chill.adapters.models_file import read_models
from vllm_chill.adapters.state_file import default_folder
from vllm_chill.app.access import Access
from vllm_chill.app.plan import Plan, is_service_of
from vllm_chill.core.doctor import access, checks
from vllm_chill.core.doctor.finding import CouldNotLook, Finding, Objects
from vllm_chill.core.doctor.machine import OF_A_MACHINE, OF_BOTH, Machine, NamedFile, Program
from vllm_chill.core.doctor.picture import Asked
from vllm_chill.core.doctor.proxies import Proxy, proxies_of
from vllm_chill.errors import SettingError
from vllm_chill.settings.parts import env_of, flag_of
from vllm_chill.settings.plain import parse_controllers
from vllm_chill.settings.serve import Settings, load_settings

_LOOPBACK = ("127.", "localhost", "::1")
_SECRET = ("api_keys_file", "tls_key", "upstream_api_key_file", "prometheus_token_file")
_FILES = (*_SECRET, "tls_cert", "upstream_ca_file")
_OWN = {*_FILES, "kubeconfig", "state_dir", "namespace", "host", "port", "log_format", "log_level"}
"""What of a proxy's settings is a matter of its pod alone."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found, and of what: `about` is a clause, `settings_of` the proxy whose settings were taken, if any."""

    about: str
    findings: tuple[Finding, ...]
    settings_of: str | None = None


async def diagnose(flags: Mapping[str, str], command: tuple[str, ...], account: str | None = None) -> Diagnosis:
    """Look at what is around a proxy with these flags. `account` is the ServiceAccount whose rights are asked for, as
    NAME or NAMESPACE/NAME. Raises SettingError for settings that `serve` would not take either.
    """
    settings = load_settings(flags)
    plan = Plan(settings, command)
    if settings.backend == "process":
        findings = tuple(checks.found_by(OF_A_MACHINE, await _machine(plan)))
        return Diagnosis(f"{plan.title} on this machine", findings)
    try:
        async with connect(settings.kubeconfig) as api:
            return await _of_cluster(api, plan, flags, account)
    except SettingError as error:
        return _only(plan, access.CREDENTIALS.name, access.no_credentials(error.message))


async def _of_cluster(api: ApiClient, plan: Plan, flags: Mapping[str, str], account: str | None) -> Diagnosis:
    namespace = plan.settings.namespace
    try:
        server = await server_of(api)
    except ApiError as error:
        return _only(plan, access.SERVER.name, access.refused(error.status, error.message))
    except Unreachable as error:
        return _only(plan, access.SERVER.name, access.no_answer(str(error)))
    around = Surroundings(api, namespace)
    deployments = await around.deployments()
    plan, proxy = _as_served(plan, flags, deployments)
    if account is None and proxy is not None:
        account = proxy.account
    if account is not None and "/" not in account:
        account = f"{namespace}/{account}"
    named = _named_files(load_settings(flags))
    picture = await around.picture(_asked(plan), server, deployments, account, _engine_access(plan.settings))
    findings = (*checks.examine(_asked(plan), picture), *checks.found_by(OF_BOTH, Machine(named=named)))
    return Diagnosis(f"{_what(plan)} in {namespace}, {server.url}", findings, None if proxy is None else proxy.name)


def _only(plan: Plan, check: str, finding: Finding) -> Diagnosis:
    return Diagnosis(f"{_what(plan)} in {plan.settings.namespace}", (replace(finding, check=check),))


def _what(plan: Plan) -> str:
    return f"Deployment {plan.settings.deployment}" if plan.catalogue is None else "VLLMModel objects"


def _as_served(plan: Plan, flags: Mapping[str, str], deployments: Objects) -> tuple[Plan, Proxy | None]:
    """What a proxy of the namespace is asked to do, where it is one for what was asked of; flags and variables that are
    given here count before its own.
    """
    try:
        proxies = proxies_of(deployments)
    except CouldNotLook:
        return plan, None
    given = plan.settings.model_fields_set
    for proxy in proxies:
        told = _told(proxy)
        if "deployment" in given and told.get("deployment", "vllm") != plan.settings.deployment:
            continue
        try:
            return Plan(load_settings({**{name: told[name] for name in told if name not in given}, **flags})), proxy
        except SettingError:  # a newer one may have others; what is given here does by itself
            continue
    return plan, None


def _told(proxy: Proxy) -> dict[str, str]:
    told = {}
    for name, field in Settings.model_fields.items():
        text = proxy.says(flag_of(name).removeprefix("--"), env_of(field), "")
        if text and name not in _OWN:
            told[name] = text
    # Its files are in its pod, and what asks for them is nothing that is looked at.
    return {name: text for name, text in told.items() if text != "keys"} | (
        {"admin_auth": "kubernetes"} if told.get("admin_auth") == "keys" else {}
    )


def _asked(plan: Plan) -> Asked:
    settings = plan.settings
    service = None
    if is_service_of(settings.namespace, settings.target_host):
        service = settings.target_host.lower().partition(".")[0]
    return Asked(
        namespace=settings.namespace,
        deployment=settings.deployment,
        host=settings.target_host,
        service=service,
        port=settings.target_port,
        health_path=settings.health_path,
        direct=plan.direct,
        idle_seconds=settings.idle_timeout.total_seconds(),
        wake_seconds=settings.wake_timeout.total_seconds(),
        start_seconds=settings.start_timeout.total_seconds(),
        drain_seconds=settings.drain_timeout.total_seconds(),
        shutdown_delay_seconds=settings.shutdown_delay.total_seconds(),
        unschedulable_seconds=settings.unschedulable_after.total_seconds(),
        recommends=plan.observe_only,
        elects=settings.leader_elect == "on",
        lease=plan.lease_name,
        of_models=plan.catalogue is not None,
        scales_variants="variants" in parse_controllers(settings.controllers),
        guarded=settings.admin_auth != "none",
        admin_port=settings.admin_port,
        upstream_key=settings.upstream_api_key_file is not None,
    )


def _engine_access(settings: Settings) -> EngineAccess:
    try:
        return Access(settings).engines
    except SettingError:  # the file is a finding of its own
        return PLAIN


async def _machine(plan: Plan) -> Machine:
    settings = plan.settings
    programs, trouble = _programs(plan)
    state = settings.state_dir
    folder = default_folder(os.environ) if state is None else Path(state)
    guarded = settings.api_keys_file is not None
    addresses = [("--port", settings.host, settings.port)]
    if settings.admin_port is not None:
        addresses.append(("--admin-port", settings.admin_host or settings.host, settings.admin_port))
    found = [await here.listening(*address) for address in addresses if address[2]]
    if plan.command and "target_port" in settings.model_fields_set and not any(one.chill for one in found):
        # While a proxy runs the port may be that of its engine.
        found.append(await here.listening("--target-port", "127.0.0.1", settings.target_port))
    return Machine(
        programs=programs,
        models_trouble=trouble,
        listening=tuple(found),
        gpus=await here.gpus(),
        engines=here.engines(),
        files=here.open_files(),
        uvloop=here.has_uvloop(),
        wants_uvloop=settings.event_loop == "uvloop",
        state_trouble="" if state == "" else here.folder_trouble(folder),
        named=_named_files(settings),
        open_host="" if guarded or settings.host.startswith(_LOOPBACK) else settings.host,
    )


def _programs(plan: Plan) -> tuple[tuple[Program, ...], str]:
    settings = plan.settings
    if plan.catalogue is None:
        port = settings.target_port if "target_port" in settings.model_fields_set else None
        return (Program(plan.command, here.is_program(plan.command[0], os.environ), port=port),), ""
    try:
        models = read_models(Path(plan.catalogue), gpu_count=settings.gpu_count, cpu_offload_gb=settings.cpu_offload_gb)
    except SettingError as error:
        return (), error.message
    environment = dict(os.environ)
    return tuple(
        Program(one.command, here.is_program(one.command[0], {**environment, **one.environment}), one.entry.name)
        for one in models
    ), ""


def _named_files(settings: Settings) -> tuple[NamedFile, ...]:
    named = [
        here.named_file(flag_of(name), path, secret=name in _SECRET)
        for name in _FILES
        if (path := getattr(settings, name)) is not None
    ]
    if any(one.trouble for one in named):
        return tuple(named)
    try:
        Access(settings)
    except SettingError as error:
        flag = next((one.flag for one in named if one.flag in error.message), named[0].flag)
        return tuple(replace(one, trouble=error.message) if one.flag == flag else one for one in named)
    return tuple(named)
