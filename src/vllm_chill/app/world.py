"""What targets run on: Deployments in a cluster, or commands on this machine; and who says which models there are."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import structlog

from vllm_chill.adapters.mask import Mask
from vllm_chill.app.plan import Plan
from vllm_chill.control.autoscaler import Autoscalers
from vllm_chill.control.controller import ScaleController
from vllm_chill.control.knowledge import Served
from vllm_chill.core.catalogue import ModelEntry
from vllm_chill.core.engine_output import secrets_of
from vllm_chill.core.target import Endpoint, TargetRef
from vllm_chill.ports import Authorizer, CatalogueObserver, ClusterBackend, EngineOutput, StartHistory
from vllm_chill.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from vllm_chill.adapters.models_file import FileModel
    from vllm_chill.control.peering import Peering
    from vllm_chill.control.policies import ScaleTargets


class ModelsObserver(CatalogueObserver, Protocol):
    """Whoever serves the models of a catalogue."""

    def controller_of(self, name: str) -> ScaleController | None:
        """A model's controller, also while it ends."""

    def listen(self, changed: Callable[[str], None]) -> None:
        """Have this called with the name of each model whose controller has changed."""


@dataclass(frozen=True, slots=True)
class World:
    """What one target runs on: its backend, where it keeps what starts take, if anywhere, and what a start runs.

    `close` ends what the backend has begun. `output` is what the engine writes, None where nothing tells that.
    """

    backend: ClusterBackend
    history: StartHistory | None
    served: Served
    close: Callable[[], Awaitable[None]]
    output: EngineOutput | None = None


class Ground(Protocol):
    """Where the targets of a proxy run."""

    @property
    def peering(self) -> Peering | None:
        """What makes this proxy one of several that serve the same targets; None where there can be but one."""

    def world(self, ref: TargetRef, entry: ModelEntry | None) -> World:
        """That of one target: the model's, or that of the settings."""

    def authorizer(self) -> Authorizer | None:
        """Who knows what a token may do here, if anybody does."""

    async def tell_models(self, observer: ModelsObserver) -> None:
        """Tell which models there are, now and after each change, until cancelled; where there is a catalogue."""

    async def control(self, autoscalers: Autoscalers, targets: ScaleTargets, metrics: Metrics) -> None:
        """Have targets scaled by the policies and variants that there are, until cancelled."""


@contextlib.asynccontextmanager
async def open_ground(plan: Plan, mask: Mask) -> AsyncIterator[Ground]:
    """Where the plan has targets run; what `mask` hides is not seen of what engines write. Raises SettingError."""
    if plan.settings.backend == "process":
        yield _ThisMachine(plan, mask)
        return
    # Imported when it is used: the client's models are a third of the proxy's memory.
    from vllm_chill.app.cluster import open_cluster

    async with open_cluster(plan, mask) as cluster:
        yield cluster


class _ThisMachine:
    """Commands of this machine: the one that was given, or those of a file of models."""

    peering = None

    def __init__(self, plan: Plan, mask: Mask) -> None:
        self._plan = plan
        self._mask = mask
        self._models: dict[str, FileModel] = {}
        if plan.catalogue is not None:
            from vllm_chill.adapters.models_file import read_models

            models = read_models(
                Path(plan.catalogue),
                gpu_count=plan.settings.gpu_count,
                cpu_offload_gb=plan.settings.cpu_offload_gb,
                warn=structlog.get_logger("vllm_chill").warning,
            )
            self._models = {model.entry.name: model for model in models}

    def world(self, ref: TargetRef, entry: ModelEntry | None) -> World:
        from vllm_chill.adapters.process import Command, ProcessBackend

        settings = self._plan.settings
        # vLLM has a VLLM_PORT of its own with another meaning.
        environment = {name: value for name, value in os.environ.items() if name != "VLLM_PORT"}
        if entry is None:
            argv, log = self._plan.command, structlog.get_logger("engine")
        else:
            model = self._models[entry.name]
            argv, log = model.command, structlog.get_logger("engine").bind(model=entry.name)
            environment |= model.environment
        command = Command(
            argv,
            port=settings.target_port if entry is None and "target_port" in settings.model_fields_set else None,
            stop_seconds=settings.stop_timeout.total_seconds(),
            environment=environment,
        )
        process = ProcessBackend(command, log.info, Mask(*secrets_of(argv, environment), besides=self._mask))
        return World(process, _state_file(self._plan, argv), lambda: (argv, ""), process.close, process.output)

    def authorizer(self) -> Authorizer | None:
        return None

    async def tell_models(self, observer: ModelsObserver) -> None:
        observer.catalogued([model.entry for model in self._models.values()])
        await asyncio.get_running_loop().create_future()

    async def control(self, autoscalers: Autoscalers, targets: ScaleTargets, metrics: Metrics) -> None:
        """There are none for the commands of this machine, each of which runs once at a time."""


def _state_file(plan: Plan, argv: Sequence[str]) -> StartHistory | None:
    from vllm_chill.adapters.state_file import StateFile, default_folder

    named = plan.settings.state_dir
    if named == "":
        return None
    folder = default_folder(os.environ) if named is None else Path(named)
    return StateFile(folder, argv, structlog.get_logger("vllm_chill").warning)


def endpoint_of_settings(plan: Plan) -> Endpoint:
    """The Service of the one target, as the settings have it."""
    return Endpoint(plan.settings.target_host, plan.settings.target_port)
