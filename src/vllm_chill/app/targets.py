"""What serves one target, put together: its controller, its desk, the record of its starts and what it is known to
serve, on the world that it runs on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from vllm_chill.app.meters import Meters
from vllm_chill.app.plan import Plan, TargetPlan
from vllm_chill.app.world import World
from vllm_chill.control.autoscaler import Autoscaler, Autoscalers
from vllm_chill.control.controller import ScaleController
from vllm_chill.control.fleet import Fleet
from vllm_chill.control.knowledge import ModelKnowledge
from vllm_chill.control.meter import Meter
from vllm_chill.control.output_glance import OutputGlance
from vllm_chill.control.prober import TIMEOUT_SECONDS, Probing, ProbingBackend
from vllm_chill.control.savings import Savings
from vllm_chill.control.sighted import SightedBackend
from vllm_chill.core.call import Call
from vllm_chill.core.lifecycle import desired_replicas
from vllm_chill.core.models import check_model
from vllm_chill.core.readiness import health_found
from vllm_chill.core.target import Endpoint, Stage, Target
from vllm_chill.ports import Recorder
from vllm_chill.proxy.hold import Budget, HoldDesk
from vllm_chill.proxy.hold_terms import HoldOptions
from vllm_chill.proxy.probe import Prober
from vllm_chill.proxy.served import Served
from vllm_chill.proxy.upstream import UpstreamPool
from vllm_chill.telemetry.ejections import EjectionRecord
from vllm_chill.telemetry.metrics import Metrics
from vllm_chill.telemetry.recorder import TargetRecorder
from vllm_chill.telemetry.replica_metrics import Scaled
from vllm_chill.telemetry.start_record import StartRecord

if TYPE_CHECKING:
    from vllm_chill.control.peering import Peering
    from vllm_chill.telemetry.tracing import Tracing


class Record:
    """Everybody who wants to know what happens to a target, as one recorder, and the pool of its connections."""

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
    *,
    one_of_many: bool = False,
) -> HoldDesk:
    """Where requests wait, and what they are told: from the record of the starts, and what is known of the models.

    `one_of_many`: whose a name is was looked up before.
    """

    def answered() -> None:
        if starts.awaits_answer:
            starts.answered(controller.now())

    def describe(position: int) -> str:
        return starts.describe(controller.now(), position or None, controller.target.held_back)

    def check(call: Call) -> None:
        if not one_of_many:
            check_model(call, knowledge.models)

    return HoldDesk(
        controller,
        options,
        budget,
        describe,
        lambda: starts.retry_after(controller.now()),
        check=check,
        answered=answered,
    )


def figures_of(autoscaler: Autoscaler, meter: Meter) -> Scaled:
    """What is told of a target's replicas as metrics."""
    controller = autoscaler.controller

    def recommended() -> int | None:
        return None if autoscaler.decision is None else autoscaler.decision.replicas

    return Scaled(meter.figures, controller.now, lambda: desired_replicas(controller.target), recommended)


def _wall() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Made:
    """A target that is served while `run` runs; that ends what it runs on when it is cancelled. `take` has it be served
    by another plan from now on, of the same target.
    """

    served: Served
    run: Callable[[], Coroutine[Any, Any, None]]
    take: Callable[[TargetPlan], None]


class TargetMaker:
    """Makes what serves targets of one proxy."""

    def __init__(
        self,
        plan: Plan,
        metrics: Metrics,
        pool: UpstreamPool,
        budget: Budget,
        meters: Meters,
        autoscalers: Autoscalers,
        recorders: Sequence[Recorder] = (),
        fleet: Fleet | None = None,
        peering: Peering | None = None,
        *,
        savings: Savings | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self._plan = plan
        self._metrics = metrics
        self._pool = pool
        self._budget = budget
        self._meters = meters
        self._autoscalers = autoscalers
        self._recorders = recorders
        self._fleet = fleet
        self._peering = peering
        self._savings = savings or Savings()
        self._tracing = tracing
        self._prober = Prober(pool)

    def take(self, plan: Plan) -> None:
        """Make by this plan from now on."""
        self._plan = plan

    def make(self, target: TargetPlan, world: World) -> Made:
        """What serves this target on that world."""
        starts = StartRecord(target.ref, self._metrics)
        knowledge = ModelKnowledge(world.served)
        settings = self._plan.settings
        probing = None
        if settings.readiness == "probe":
            probing = Probing(self._prober.ask, settings.health_path, lambda _, body: knowledge.listed(body))
        model = None if target.entry is None else target.entry.name
        stated = self._plan.gpus
        counting = self._savings.of(str(target.ref), world.gpus if stated is None else lambda: stated, model)
        backend = SightedBackend(world.backend)
        controller = ScaleController(
            target.ref,
            target.limits,
            ProbingBackend(backend, probing, direct=target.direct),
            Record((TargetRecorder(target.ref, self._metrics), starts, counting, *self._recorders), self._pool),
            target.bounds,
            lambda: starts.retry_after(controller.now()),
        )
        controller.observe_only = self._plan.observe_only
        controller.on_held = counting.looked
        if self._peering is not None:
            self._peering.add(controller)
        controller.ejector.look = self._is_healthy
        controller.ejector.recorder = EjectionRecord(target.ref, self._metrics)
        desk = hold_desk(controller, target.hold, self._budget, starts, knowledge, one_of_many=target.entry is not None)

        self._metrics.follow(lambda: controller.target, controller.now, model, lambda: backend.sees)
        wakes = None if self._tracing is None else self._tracing.wakes(target.ref, controller.now)
        if wakes is not None:
            starts.on_change = wakes.changed
        output = None if world.output is None else OutputGlance(world.output)
        affinity = self._plan.affinity
        served = Served(controller, desk, starts, knowledge, target.entry, affinity, wakes=wakes, output=output)
        meter = self._meters.of(controller)
        autoscaler = Autoscaler(served.name, controller, meter, wall=_wall)
        if self._fleet is not None:
            autoscaler.room = partial(self._fleet.most_replicas, served.name)
        self._metrics.replicas.follow(target.ref, figures_of(autoscaler, meter))

        async def run() -> None:
            self._autoscalers.add(autoscaler)
            try:
                async with asyncio.TaskGroup() as tasks:
                    if world.history is not None:
                        tasks.create_task(starts.keep(world.history))
                    tasks.create_task(controller.run())
                    tasks.create_task(meter.run())
                    tasks.create_task(autoscaler.run())
            finally:
                self._savings.forget(counting.name)
                self._autoscalers.remove(served.name)
                if wakes is not None:
                    wakes.close()
                if self._peering is not None:
                    self._peering.remove(controller)
                await world.close()
                if model is not None:
                    self._metrics.forget(target.ref)

        def take(plan: TargetPlan) -> None:
            autoscaler.rebase(plan.limits)
            controller.bounds = plan.bounds
            desk.options = plan.hold

        return Made(served, run, take)

    async def _is_healthy(self, endpoint: Endpoint) -> bool:
        answer = await self._prober.ask(endpoint, self._plan.settings.health_path, TIMEOUT_SECONDS)
        return health_found(answer) is Stage.LISTING
