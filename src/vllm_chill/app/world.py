"""What targets run on: a Deployment in a cluster, or a command on this machine."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import structlog

from vllm_chill.app.plan import Plan
from vllm_chill.control.knowledge import Served
from vllm_chill.core.target import Endpoint
from vllm_chill.ports import ClusterBackend, StartHistory


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
