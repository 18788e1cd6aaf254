"""What the checks of a cluster are given: what the proxy is asked to do, and what was read of the cluster. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vllm_chill.core.doctor.finding import Objects, Unseen
from vllm_chill.core.doctor.rights import Need
from vllm_chill.core.objects import Json
from vllm_chill.core.target import TargetRef


@dataclass(frozen=True, slots=True)
class Asked:
    """The settings that matter here. `service` is the name of the Service that `host` stands for, None if it is none of
    the namespace's. `direct`: requests go to the pods' own addresses. `recommends`: somebody else is to scale.
    `elects`: proxies agree on who puts to sleep, by the Lease of the name `lease`. `of_models`: there are VLLMModels in
    place of the one Deployment. `guarded`: operators are asked who they are. `upstream_key`: the engine is given a key
    of the proxy's.
    """

    namespace: str = "ai-apps"
    deployment: str = "vllm"
    host: str = "vllm-svc"
    service: str | None = "vllm-svc"
    port: int = 80
    health_path: str = "/health"
    direct: bool = True
    idle_seconds: float = 300.0
    wake_seconds: float = 120.0
    start_seconds: float = 1800.0
    drain_seconds: float = 600.0
    shutdown_delay_seconds: float = 5.0
    unschedulable_seconds: float = 60.0
    recommends: bool = False
    elects: bool = True
    lease: str = "vllm-chill"
    of_models: bool = False
    scales_variants: bool = False
    guarded: bool = False
    admin_port: int | None = None
    upstream_key: bool = False

    @property
    def ref(self) -> TargetRef:
        """The target's name."""
        return TargetRef(self.namespace, self.deployment)


@dataclass(frozen=True, slots=True)
class Server:
    """The API server: where it is, its version, and by how many seconds its clock is ahead of this machine's."""

    url: str
    version: str = ""
    ahead_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Rights:
    """Which rights `subject` has; `missing` are those that it lacks of all that were asked for, and `role` what to call
    the Role that has them.
    """

    subject: str
    missing: frozenset[Need]
    asked: tuple[Need, ...]


@dataclass(frozen=True, slots=True)
class EngineAnswer:
    """What a ready replica answers: the status of its health page and of its list of models, and the names in that.

    `trouble` says why it could not be asked.
    """

    pod: str
    url: str
    health: int | None = None
    listing: int | None = None
    models: tuple[str, ...] = ()
    trouble: str = ""


Named = Mapping[str, "Json | Unseen | None"]
"""Objects by name: None for one that is not there."""


@dataclass(frozen=True, slots=True)
class Picture:
    """What was read of the cluster, all of it in the target's namespace but nodes and StorageClasses.

    `target` is None if there is no such Deployment; then `elsewhere` names the namespaces that have one. `history` is
    what is kept of past starts. `models` is None if the server knows no VLLMModel. Of Secrets nothing is read but that
    they are there.
    """

    server: Server
    target: Json | Unseen | None = None
    history: str | None = None
    rights: Rights | Unseen = field(default_factory=lambda: Unseen("rights were not asked for"))
    elsewhere: tuple[str, ...] = ()
    deployments: Objects = ()
    services: Objects = ()
    ingresses: Objects = ()
    nodes: Objects = ()
    storage_classes: Objects = ()
    claims: Objects = ()
    quotas: Objects = ()
    horizontal_autoscalers: Objects = ()
    scaled_objects: Objects = ()
    variants: Objects = ()
    policies: Objects = ()
    budgets: Objects = ()
    network_policies: Objects = ()
    config_maps: Named = field(default_factory=dict)
    secrets: Named = field(default_factory=dict)
    accounts: Named = field(default_factory=dict)
    models: Objects | None = ()
    engines: tuple[EngineAnswer, ...] | Unseen = ()
