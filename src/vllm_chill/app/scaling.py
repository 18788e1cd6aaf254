"""What scaling policies are for: the targets that the proxy serves, and those that it scales besides."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from vllm_chill.app.meters import Meters
from vllm_chill.app.plan import Plan
from vllm_chill.app.world import World
from vllm_chill.control.controller import ScaleController
from vllm_chill.control.prober import ProbingBackend
from vllm_chill.control.sighted import SightedBackend
from vllm_chill.control.unserved import UnservedBackend, unserved
from vllm_chill.core.lifecycle import desired_replicas
from vllm_chill.core.scaling.policy import Policy
from vllm_chill.core.target import TargetRef
from vllm_chill.proxy.served import Directory
from vllm_chill.telemetry.metrics import Metrics
from vllm_chill.telemetry.recorder import TargetRecorder
from vllm_chill.telemetry.replica_metrics import Scaled

if TYPE_CHECKING:
    from vllm_chill.control.peering import Peering
    from vllm_chill.control.policies import OwnTarget


class ProxyTargets:
    """control.policies.ScaleTargets of one proxy. `world` is what a target runs on that the proxy does not serve."""

    def __init__(
        self,
        plan: Plan,
        directory: Directory,
        meters: Meters,
        metrics: Metrics,
        world: Callable[[TargetRef], World],
        peering: Peering | None = None,
    ) -> None:
        self._plan = plan
        self._directory = directory
        self._meters = meters
        self._metrics = metrics
        self._world = world
        self._peering = peering

    @property
    def known(self) -> bool:
        """Whether it is known by now which models there are."""
        return self._directory.unread is None

    def served(self, model: str) -> str | None:
        """The name of the target that serves a model by this name, or that loads it; None if none does."""
        only = self._directory.only
        if only is not None:
            return None if only.knowledge.models.find(model) is None else only.name
        found = self._directory.find(model)
        loading = (entry.name for entry in self._directory.catalogue if entry.model == model)
        return found.name if found is not None else next(loading, None)

    def own_policy(self, name: str) -> Policy | None:
        """What the model of a target says of its replicas by itself."""
        served = next((one for one in self._directory if one.name == name), None)
        if served is None or served.entry is None:
            return None
        from vllm_chill.api.scaling_policy import policy_of_model  # as late as there is a policy at all

        return policy_of_model(served.entry)

    def make_target(self, ref: TargetRef) -> OwnTarget:
        """What scales a target that is not served: it is never taken to 0, as nobody here could wake it."""
        from vllm_chill.control.policies import OwnTarget  # who asks for one has it already

        world = self._world(ref)
        backend = SightedBackend(world.backend)
        controller = ScaleController(
            ref,
            unserved(self._plan.limits),
            ProbingBackend(UnservedBackend(backend), None, direct=True),
            TargetRecorder(ref, self._metrics),
        )
        controller.observe_only = self._plan.observe_only
        if self._peering is not None:
            self._peering.add(controller)
        meter = self._meters.of(controller)
        self._metrics.follow(lambda: controller.target, controller.now, None, lambda: backend.sees)
        self._metrics.replicas.follow(
            ref, Scaled(meter.figures, controller.now, lambda: desired_replicas(controller.target))
        )

        async def run() -> None:
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(controller.run())
                    tasks.create_task(meter.run())
            finally:
                if self._peering is not None:
                    self._peering.remove(controller)
                await world.close()
                self._metrics.forget(ref)

        return OwnTarget(str(ref), controller, meter, run)
