"""Deployments in a cluster as what targets run on: the one of the settings, or those of the VLLMModel objects."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import structlog

from vllm_chill.adapters.kubernetes.client import ApiClient, connect
from vllm_chill.adapters.kubernetes.deployment import KubernetesBackend
from vllm_chill.adapters.kubernetes.kinds import KubernetesKinds
from vllm_chill.adapters.kubernetes.leases import KubernetesLease
from vllm_chill.adapters.kubernetes.objects import KubernetesObjects
from vllm_chill.adapters.kubernetes.peer_leases import KubernetesPeers
from vllm_chill.adapters.kubernetes.reviews import KubernetesReviews
from vllm_chill.adapters.kubernetes.rights import (
    Right,
    missing_rights,
    rights_of_models,
    rights_of_peers,
    rights_of_policies,
)
from vllm_chill.adapters.kubernetes.savings_map import SavingsMap, map_name
from vllm_chill.adapters.kubernetes.start_history import DeploymentHistory
from vllm_chill.adapters.mask import Mask
from vllm_chill.app.plan import Plan
from vllm_chill.app.world import ModelsObserver, World, endpoint_of_settings
from vllm_chill.control.autoscaler import Autoscalers
from vllm_chill.control.election import Election, new_identity
from vllm_chill.control.peering import Peering
from vllm_chill.core.catalogue import SERVICE_PORT, ModelEntry
from vllm_chill.core.command import vllm_gpus
from vllm_chill.core.election import lease_terms_of
from vllm_chill.core.peers import terms_of
from vllm_chill.core.target import Endpoint, TargetRef
from vllm_chill.ports import Authorizer
from vllm_chill.settings.plain import parse_controllers
from vllm_chill.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from vllm_chill.control.policies import ScaleTargets


@contextlib.asynccontextmanager
async def open_cluster(plan: Plan, mask: Mask) -> AsyncIterator[Cluster]:
    """A connection to the API server that the plan names; what `mask` hides is not seen of what pods write. Raises
    SettingError.
    """
    async with connect(plan.settings.kubeconfig) as api:
        yield Cluster(plan, api, mask)


class Cluster:
    """The cluster as app.world.Ground."""

    def __init__(self, plan: Plan, api: ApiClient, mask: Mask) -> None:
        self._plan = plan
        self._mask = mask
        self._api = api
        self.peering = _peering(plan, api) if plan.settings.leader_elect == "on" else None

    def world(self, ref: TargetRef, entry: ModelEntry | None) -> World:
        settings = self._plan.settings
        own = Endpoint(f"{ref.name}.{ref.namespace}", SERVICE_PORT)
        service = endpoint_of_settings(self._plan) if entry is None and ref == self._plan.ref else own
        backend = KubernetesBackend(
            self._api,
            service,
            unschedulable_seconds=settings.unschedulable_after.total_seconds(),
            mask=self._mask,
        )
        history = None if settings.state_dir == "" else DeploymentHistory(self._api)

        def gpus() -> int | None:
            if (asked := backend.gpus(ref)) is not None:
                return asked
            if entry is not None:
                return entry.gpus
            served = backend.served(ref)
            return None if served is None else vllm_gpus(served[0])

        output = backend.output(ref)
        return World(backend, history, lambda: backend.served(ref), _nothing, gpus=gpus, output=output)

    def savings_store(self) -> SavingsMap | None:
        settings = self._plan.settings
        if settings.state_dir == "":
            return None
        return SavingsMap(self._api, settings.namespace, map_name(self._plan.lease_name))

    def authorizer(self) -> Authorizer:
        return KubernetesReviews(self._api)

    def read_anew(self) -> None:
        """Models are objects here, which are watched."""

    async def tell_models(self, observer: ModelsObserver) -> None:
        # What reads objects is imported by who has them: it is a twentieth of the proxy's memory.
        from vllm_chill.api.workload import WorkloadDefaults
        from vllm_chill.control.models import ModelReconciler

        settings = self._plan.settings
        reconciler = ModelReconciler(
            KubernetesObjects(self._api),
            observer,
            observer.controller_of,
            namespace=settings.namespace,
            defaults=WorkloadDefaults(
                settings.gpu_count, settings.cpu_offload_gb, settings.start_timeout.total_seconds()
            ),
            grace_seconds=settings.drain_timeout.total_seconds(),
            turn=self._turn,
        )
        observer.listen(reconciler.changed)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._look_for_rights())
            tasks.create_task(reconciler.run())

    async def control(self, autoscalers: Autoscalers, targets: ScaleTargets, metrics: Metrics) -> None:
        controllers = parse_controllers(self._plan.settings.controllers)
        async with asyncio.TaskGroup() as tasks:
            if self.peering is not None:
                tasks.create_task(self._complain_of_missing(rights_of_peers(self._plan.settings.namespace)))
            if "policies" in controllers:
                tasks.create_task(self._follow_policies(autoscalers, targets))
            if "variants" in controllers:
                tasks.create_task(self._look_after_variants(autoscalers, metrics))

    async def _look_after_variants(self, autoscalers: Autoscalers, metrics: Metrics) -> None:
        from vllm_chill.app.controller import control_within
        from vllm_chill.settings.controller import load_controller_settings

        serving = self._plan.settings
        given = {"watch_namespace": serving.namespace}
        if self.peering is not None:
            given["leader_elect"] = "false"  # the proxies have elected one already
        if "POD_NAMESPACE" not in os.environ:
            given["controller_namespace"] = serving.namespace
        if serving.prometheus_url is not None:
            given["prometheus_base_url"] = serving.prometheus_url
        if serving.prometheus_token_file is not None:
            given["prometheus_token_path"] = serving.prometheus_token_file
        await control_within(load_controller_settings(given), self._api, metrics.registry, autoscalers, self.peering)

    async def _follow_policies(self, autoscalers: Autoscalers, targets: ScaleTargets) -> None:
        settings, log = self._plan.settings, structlog.get_logger("vllm_chill")
        first, *more = rights_of_policies(settings.namespace)
        for complaint in await missing_rights(self._api, (first,)):
            if complaint == first.complaint:
                log.info("scaling policies are not followed", cause=complaint)
                if self._plan.catalogue is None:
                    return  # models have bounds of their own, which count all the same
        from vllm_chill.control.policies import Policies

        policies = Policies(
            KubernetesObjects(self._api),
            autoscalers,
            namespace=settings.namespace,
            kinds=KubernetesKinds(self._api),
            targets=targets,
            turn=self._turn,
        )
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._complain_of_missing(tuple(more)))
            tasks.create_task(policies.run())

    @property
    def _turn(self) -> asyncio.Event | None:
        return None if self.peering is None else self.peering.turn

    async def _look_for_rights(self) -> None:
        await self._complain_of_missing(rights_of_models(self._plan.settings.namespace))

    async def _complain_of_missing(self, rights: tuple[Right, ...]) -> None:
        log = structlog.get_logger("vllm_chill")
        for complaint in await missing_rights(self._api, rights):
            log.warning(complaint)


def _peering(plan: Plan, api: ApiClient) -> Peering:
    settings, name = plan.settings, plan.lease_name
    identity, lease_seconds = new_identity(), settings.lease_duration.total_seconds()
    lease = KubernetesLease(api, settings.namespace, name)
    election = Election(lease, identity, lease_terms_of(lease_seconds))
    terms = terms_of(lease_seconds)
    reports = KubernetesPeers(api, settings.namespace, name, gone_seconds=terms.gone_seconds)
    return Peering(reports, election, identity, terms)


async def _nothing() -> None:
    """What there is belongs to the cluster, and outlives this proxy."""
