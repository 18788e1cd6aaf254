"""What targets run on: Deployments in a cluster, or commands on this machine; and who says which models there are."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import structlog

from vllm_chill.adapters.followed_file import Changes
from vllm_chill.adapters.mask import Mask
from vllm_chill.app.access import LOOK_SECONDS
from vllm_chill.app.plan import Plan
from vllm_chill.control.autoscaler import Autoscalers
from vllm_chill.control.controller import ScaleController
from vllm_chill.control.knowledge import Served
from vllm_chill.core.catalogue import ModelEntry
from vllm_chill.core.command import served_models, vllm_gpus
from vllm_chill.core.engine_output import secrets_of
from vllm_chill.core.gpu import visible_gpus
from vllm_chill.core.target import Endpoint, TargetRef
from vllm_chill.errors import SettingError
from vllm_chill.ports import Authorizer, CatalogueObserver, ClusterBackend, EngineOutput, SavingsStore, StartHistory
from vllm_chill.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from vllm_chill.adapters.models_file import FileModel
    from vllm_chill.adapters.process import Command, ProcessBackend
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

    `close` ends what the backend has begun. `gpus` are those of a replica, None where that is not known; `output` is
    what the engine writes, None where nothing tells that.
    """

    backend: ClusterBackend
    history: StartHistory | None
    served: Served
    close: Callable[[], Awaitable[None]]
    gpus: Callable[[], int | None] = lambda: None
    output: EngineOutput | None = None


class Ground(Protocol):
    """Where the targets of a proxy run."""

    @property
    def peering(self) -> Peering | None:
        """What makes this proxy one of several that serve the same targets; None where there can be but one."""

    def world(self, ref: TargetRef, entry: ModelEntry | None) -> World:
        """That of one target: the model's, or that of the settings."""

    def savings_store(self) -> SavingsStore | None:
        """Where what was saved is kept, if anywhere."""

    def authorizer(self) -> Authorizer | None:
        """Who knows what a token may do here, if anybody does."""

    def read_anew(self) -> None:
        """Have the file of models read anew, if there is one, whether it has changed or not."""

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
        self._models = {} if plan.catalogue is None else self._read_models(plan.catalogue)
        self._file = None if plan.catalogue is None else Changes(Path(plan.catalogue))
        self._processes: dict[str, tuple[ProcessBackend, Mask]] = {}
        self._observer: ModelsObserver | None = None
        self._log = structlog.get_logger("vllm_chill")

    def world(self, ref: TargetRef, entry: ModelEntry | None) -> World:
        from vllm_chill.adapters.process import ProcessBackend

        command = self._command_of(entry)
        log = structlog.get_logger("engine") if entry is None else structlog.get_logger("engine").bind(model=entry.name)
        mask = Mask(*secrets_of(command.argv, command.environment or {}), besides=self._mask)
        process = ProcessBackend(command, log.info, mask)
        if entry is not None:
            self._processes[entry.name] = (process, mask)
        history = _state_file(self._plan, command.argv)
        gpus = gpus_of_command(tuple(command.argv), command.environment or {}) if entry is None else entry.gpus
        return World(
            process,
            history,
            lambda: (process.command.argv, ""),
            process.close,
            gpus=lambda: gpus,
            output=process.output,
        )

    def _command_of(self, entry: ModelEntry | None) -> Command:
        from vllm_chill.adapters.process import Command

        settings = self._plan.settings
        # vLLM has a VLLM_PORT of its own with another meaning.
        environment = {name: value for name, value in os.environ.items() if name != "VLLM_PORT"}
        argv = self._plan.command
        if entry is not None:
            model = self._models[entry.name]
            argv = model.command
            environment |= model.environment
        return Command(
            argv,
            port=settings.target_port if entry is None and "target_port" in settings.model_fields_set else None,
            stop_seconds=settings.stop_timeout.total_seconds(),
            environment=environment,
        )

    def savings_store(self) -> SavingsStore | None:
        from vllm_chill.adapters.savings_file import SavingsFile

        folder, plan = _state_folder(self._plan), self._plan
        if folder is None:
            return None
        if plan.catalogue is not None:
            path = Path(plan.catalogue).absolute()
            return SavingsFile(folder, path.stem, ("models", str(path)))
        # The same model with other arguments is the same, and without a name the command itself is it.
        known = served_models(plan.command)
        what = plan.command if known is None else [model.id for model in known.models]
        return SavingsFile(folder, plan.ref.name, (str(plan.ref), *what))

    def _read_models(self, catalogue: str) -> dict[str, FileModel]:
        from vllm_chill.adapters.models_file import read_models

        models = read_models(
            Path(catalogue),
            gpu_count=self._plan.settings.gpu_count,
            cpu_offload_gb=self._plan.settings.cpu_offload_gb,
            warn=structlog.get_logger("vllm_chill").warning,
        )
        return {model.entry.name: model for model in models}

    def authorizer(self) -> Authorizer | None:
        return None

    async def tell_models(self, observer: ModelsObserver) -> None:
        self._observer = observer
        observer.catalogued([model.entry for model in self._models.values()])
        assert self._file is not None
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if self._file.settled():
                self.read_anew()

    def read_anew(self) -> None:
        if self._plan.catalogue is None or self._file is None or self._observer is None:
            return
        self._file.use()
        try:
            self._models = self._read_models(self._plan.catalogue)
        except SettingError as error:
            self._log.warning("the models before hold on", cause="; ".join(error.message.splitlines()))
            return
        # What runs goes on; the next run of it is of the command that there is now.
        for name in self._models.keys() & self._processes.keys():
            process, mask = self._processes[name]
            process.command = self._command_of(self._models[name].entry)
            for secret in secrets_of(process.command.argv, process.command.environment or {}):
                mask.add(secret)
        self._processes = {name: one for name, one in self._processes.items() if name in self._models}
        self._observer.catalogued([model.entry for model in self._models.values()])
        self._log.info("the file was read anew", file=f"--models {self._plan.catalogue}")

    async def control(self, autoscalers: Autoscalers, targets: ScaleTargets, metrics: Metrics) -> None:
        """There are none for the commands of this machine, each of which runs once at a time."""


def gpus_of_command(argv: tuple[str, ...], environment: Mapping[str, str]) -> int | None:
    """The GPUs that a command of this machine takes: no more than it sees, and of a vLLM as many as it is told to."""
    counts = [count for count in (visible_gpus(environment), vllm_gpus(argv)) if count is not None]
    return min(counts, default=None)


def _state_folder(plan: Plan) -> Path | None:
    from vllm_chill.adapters.state_file import default_folder

    named = plan.settings.state_dir
    if named == "":
        return None
    return default_folder(os.environ) if named is None else Path(named)


def _state_file(plan: Plan, argv: Sequence[str]) -> StartHistory | None:
    from vllm_chill.adapters.state_file import StateFile

    folder = _state_folder(plan)
    return None if folder is None else StateFile(folder, argv, structlog.get_logger("vllm_chill").warning)


def endpoint_of_settings(plan: Plan) -> Endpoint:
    """The Service of the one target, as the settings have it."""
    return Endpoint(plan.settings.target_host, plan.settings.target_port)
