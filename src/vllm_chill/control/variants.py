"""The variants of models: each model is looked at as a whole, decided on, and what comes of it is told or done.

The rule: a model's key says only where to look. What is decided rests on all that is known at that moment: objects,
targets, pods, what was measured of them, and what was decided before. Nothing is awaited between looking and deciding.
Times are seconds on the loop's clock.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

import structlog

from vllm_chill.control.loads import LoadCollector
from vllm_chill.control.reconciler import Reconciler, Rhythm
from vllm_chill.control.scaled_kinds import Named
from vllm_chill.control.told import Complaints
from vllm_chill.control.variant_configs import VariantConfigs
from vllm_chill.control.variant_fleets import Fleets, Held, Member
from vllm_chill.control.variant_index import VariantIndex
from vllm_chill.control.variant_reports import VariantReports
from vllm_chill.control.variant_sources import VariantSource, VariantSources, variants_of
from vllm_chill.control.variant_view import VariantView
from vllm_chill.core.objects import Json
from vllm_chill.core.phrases import timestamp
from vllm_chill.core.saturation import decide
from vllm_chill.core.saturation.decision import Direction, ModelDecision, VariantDecision
from vllm_chill.core.saturation.fleet import Fleet, Variant
from vllm_chill.core.saturation.limit import limit
from vllm_chill.core.saturation.places import PodPlace
from vllm_chill.core.saturation.report import Facts
from vllm_chill.core.saturation.spec import VariantSpec
from vllm_chill.core.target import TargetRef
from vllm_chill.errors import BackendError
from vllm_chill.ports import ObjectStore
from vllm_chill.telemetry.variant_metrics import ControllerMetrics, VariantFigures

_ZERO_SECONDS = 2.0
"""How often it is looked whether somebody waits for a model that has no replica."""
_UNSEEN_SECONDS = 1.0


class Actuator(Protocol):
    """Whoever has targets have as many replicas as was decided. Calls return at once and never raise."""

    def have(self, ref: TargetRef, replicas: int) -> str | None:
        """Have a target have so many. Why it is not done, as a clause; None if it is."""

    def leave(self, ref: TargetRef) -> None:
        """Scale a target no longer; it stays as it is."""


class Nobody:
    """An Actuator for where every decision is only told."""

    def have(self, ref: TargetRef, replicas: int) -> str | None:
        """Nothing is done."""
        return "this controller only tells what it decides"

    def leave(self, ref: TargetRef) -> None:
        """There is nothing to leave."""


@dataclass(frozen=True, slots=True)
class VariantOptions:
    """How variants are looked after: those of a namespace or (None) of all, those of a controller `instance` or ("")
    all; each model every `interval_seconds`, and when something of it changes, so many at a time. `direct`: a variant
    that does not say is scaled here.
    """

    namespace: str | None = None
    instance: str = ""
    interval_seconds: float = 60.0
    workers: int = 4
    direct: bool = False


@dataclass(slots=True)
class _Model:
    """What was decided on a model, and what that leaves behind."""

    memory: decide.Memory
    fleet: Fleet | None = None
    decision: ModelDecision | None = None


class Variants:
    """All variants that are this controller's. `run` must be running.

    Invariant: what is told of a variant is what was decided on its model last.
    """

    def __init__(
        self,
        store: ObjectStore,
        view: VariantView,
        loads: LoadCollector,
        configs: VariantConfigs,
        metrics: ControllerMetrics,
        *,
        options: VariantOptions,
        wall: Callable[[], datetime],
        actuator: Actuator | None = None,
        held_here: Held = lambda *_: None,
        rhythm: Rhythm | None = None,
    ) -> None:
        """`wall` is the time of day, with a time zone. `configs` are run by whoever made them."""
        self._store = store
        self._view = view
        self._loads = loads
        self._configs = configs
        self._metrics = metrics
        self._options = options
        self._wall = wall
        self._actuator = actuator or Nobody()
        self._now = asyncio.get_running_loop().time
        self._log = structlog.get_logger("vllm_chill.variants")
        self._fleets = Fleets(loads, held_here, self._now)
        self._sources = VariantSources(options.instance)
        interval = options.interval_seconds
        self._reports = VariantReports(store, variants_of, interval_seconds=interval, wall=wall, rhythm=rhythm)
        self._work = Reconciler(self._visit, workers=options.workers, rhythm=rhythm, failed=self._failed)
        metrics.depth.set_function(lambda: self._work.depth)
        self._models: dict[str, _Model] = {}
        self._index = VariantIndex()
        self._direct: dict[str, TargetRef] = {}
        self._complaints = Complaints()
        self._misses = 0
        self._lost: str | None = None
        view.on_change = self._target_changed
        configs.on_change = self._config_changed

    async def run(self) -> None:
        """Look after the variants, until cancelled. What was told of them stays."""
        async with asyncio.TaskGroup() as tasks:
            for work in (self._reports.run(), self._work.run(), self._view.run()):
                tasks.create_task(work)
            tasks.create_task(self._store.watch(variants_of(self._options.namespace), self))

    # What the store tells: ports.ObjectsObserver of the variants.

    def seen(self, objects: Mapping[str, Json]) -> None:
        """Take all variants that there are."""
        self._lost = None
        changed = self._sources.take(objects)
        for key in changed:
            self._variant_changed(key)
        for key in self._metrics.variants.told - self._sources.keys():
            self._metrics.variants.forget(key)  # it went while nobody looked
        if changed:  # most of what is seen are statuses that were written here
            self._configs.follow({source.namespace for source in self._sources.values()})
            self._view.want(named(one.good) for one in self._sources.values() if one.good is not None)

    def lost(self, cause: str) -> None:
        """Take that the variants cannot be seen at present; those that were seen are looked after as they were."""
        if cause != self._lost:
            self._lost = cause
            self._log.warning("variants cannot be seen", cause=cause)

    def _variant_changed(self, key: str) -> None:
        source, before = self._sources.get(key), self._index.model_of(key)
        self._index.drop(key)
        if source is None:
            self._forget(key)
        elif source.good is None:
            self._reports.report(source, Facts(problems=source.problems))
        else:
            self._index.put(key, f"{source.namespace}|{source.good.model_id}", source.good)
        for model in {before, self._index.model_of(key)}:
            if model is not None:
                self._work.add(model)

    def _target_changed(self, namespace: str, kind: str, name: str) -> None:
        for model in map(self._index.model_of, self._index.of_target(namespace, kind, name)):
            if model is not None:
                self._work.add(model)

    def _config_changed(self) -> None:
        for model in self._index.models:
            self._work.add(model)

    def _forget(self, key: str) -> None:
        self._metrics.variants.forget(key)
        self._reports.forget(key)
        self._fleets.forget_variant(key)
        self._leave(key)

    # One visit.

    async def _visit(self, model: str) -> float | None:
        begun, failed = self._now(), True
        try:
            pause = await self._look_after(model)
            failed = False
        finally:
            self._metrics.visited(self._now() - begun, failed)
            self._metrics.missed(self._view.misses - self._misses)
            self._misses = self._view.misses
        self._complaints.forget(model)
        return pause

    async def _look_after(self, model: str) -> float:
        namespace, _, model_id = model.partition("|")
        members = self._members(model)
        if not members:
            self._models.pop(model, None)
            self._fleets.forget(model)
            return math.inf
        if not (self._view.known and self._configs.synced):
            return _UNSEEN_SECONDS  # a target that is not seen yet is not one that is gone
        await self._loads.collect(namespace, _pods(members))
        fleet = self._decide_on(model, namespace, model_id)
        interval = self._options.interval_seconds
        return interval if fleet is None or fleet.replicas else min(_ZERO_SECONDS, interval)

    def _members(self, model: str) -> tuple[Member, ...]:
        own = (self._sources[key] for key in self._index.of_model(model))
        return tuple(
            Member(
                source,
                source.good,
                self._view.target(source.namespace, source.good.target.kind, source.good.target.name),
                self._taken_by(source),
            )
            for source in sorted(own, key=lambda each: each.key)
            if source.good is not None
        )

    def _taken_by(self, source: VariantSource) -> str | None:
        """The older variant that scales the same target."""
        assert source.good is not None
        target = source.good.target
        called_so = (self._sources[key] for key in self._index.of_target(source.namespace, target.kind, target.name))
        rivals = (other for other in called_so if other.good is not None and other.good.target == target)
        first = min(rivals, key=lambda each: (each.created, each.key))
        return None if first is source else first.name

    def _decide_on(self, key: str, namespace: str, model_id: str) -> Fleet | None:
        members = self._members(key)  # anew: they may have changed while they were measured
        there = [member for member in members if member.target is not None and member.taken_by is None]
        decision = fleet = None
        if there:
            fleet, decision = self._decided(key, namespace, model_id, there)
        for member in members:
            variant = _of(member, fleet)
            own = None if decision is None or variant is None else decision.variants.get(variant.key)
            if variant is None or own is None:
                self._untold(member)
            else:
                self._told(member, variant, own)
        return fleet

    def _decided(
        self, key: str, namespace: str, model_id: str, members: Sequence[Member]
    ) -> tuple[Fleet, ModelDecision]:
        now, configs = self._now(), self._configs.config
        model = self._models.get(key)
        if model is None:
            model = self._models[key] = _Model(self._restored(members, now))
        config = configs.config_for(namespace, model_id)
        fleet = self._fleets.fleet(key, namespace, model_id, members, configs)
        decision, memory = decide.propose(config, fleet, model.memory, now)
        if config.enable_limiter:
            decision = self._limited(key, fleet, decision)
        model.memory = decide.granted(memory, decision, now)
        model.fleet, model.decision = fleet, decision
        return fleet, decision

    def _restored(self, members: Iterable[Member], now: float) -> decide.Memory:
        """What was decided before this controller began, as the objects say."""
        said = {member.source.name: member.source.decided for member in members}
        desired = {name: replicas for name, replicas in said.items() if replicas is not None}
        return decide.restored(decide.Memory(), desired, now)

    def _limited(self, key: str, fleet: Fleet, decision: ModelDecision) -> ModelDecision:
        free = self._view.free_gpus() if _grows(decision) else None
        if free is None:
            return decision
        # What others were granted, or asked for, and do not have yet is not free either.
        others = [
            (model.fleet, model.decision)
            for other, model in self._models.items()
            if other != key and model.fleet is not None and model.decision is not None
            if _grows(model.decision) or any(variant.unplaced for variant in model.fleet.variants)
        ]
        return limit([*others, (fleet, decision)], free)[-1]

    # What becomes of a decision.

    def _told(self, member: Member, variant: Variant, own: VariantDecision) -> None:
        source, wall = member.source, self._wall()
        # People know it by the name that they gave it.
        variant = replace(variant, accelerator=member.spec.accelerator or variant.accelerator)
        figures = VariantFigures(
            source.name,
            source.namespace,
            variant.accelerator,
            own.before,
            own.replicas,
            own.saturation,
            wall.timestamp(),
        )
        known = self._metrics.variants.desired(source.key)
        if known is None:
            known = source.decided
        self._metrics.variants.tell(source.key, figures)
        if own.direction is not Direction.NONE and known != own.replicas:
            self._metrics.variants.scaled(source.key, own.direction, own.reason)
            self._log.info(
                "decided",
                variant=source.key,
                replicas=own.replicas,
                before=own.before,
                trail=[f"{step.stage}: {step.text}" for step in own.trail],
            )
        hindered = self._carry_out(member, own.replicas)
        self._reports.report(
            source,
            Facts(
                problems=source.problems,
                spec=member.spec,
                resolved=True,
                variant=variant,
                decision=own,
                decided=timestamp(wall),
                applied=hindered is None,
                source_failure=self._loads.failure,
                failure=hindered,
            ),
        )

    def _untold(self, member: Member) -> None:
        self._metrics.variants.forget(member.source.key)
        self._leave(member.source.key)
        resolved = member.target is not None
        facts = Facts(
            problems=member.source.problems, spec=member.spec, resolved=resolved, taken_by=member.taken_by,
            trouble=self._view.failure(named(member.spec)) or "",
        )  # fmt: skip
        self._reports.report(member.source, facts)

    def _carry_out(self, member: Member, replicas: int) -> str | None:
        key, target = member.source.key, member.target
        assert target is not None
        direct = self._options.direct if member.spec.direct is None else member.spec.direct
        resource = self._view.resource(named(member.spec))
        if not direct or resource is None:
            self._leave(key)
            return None if not direct else "its kind is being looked for"
        ref = TargetRef(member.source.namespace, target.name, resource)
        if self._direct.get(key, ref) != ref:
            self._leave(key)
        self._direct[key] = ref
        return self._actuator.have(ref, replicas)

    def _leave(self, key: str) -> None:
        ref = self._direct.pop(key, None)
        if ref is not None:
            self._actuator.leave(ref)

    def _failed(self, model: str, error: BackendError, pause: float) -> None:
        if self._complaints.is_new(model, error.message):
            self._log.warning("model not looked after", model=model, cause=error.message, again_in=round(pause, 1))


def named(spec: VariantSpec) -> Named:
    """A variant's target, as it is looked for."""
    return Named(spec.target.api_version, spec.target.kind, spec.namespace, spec.target.name)


def _grows(decision: ModelDecision) -> bool:
    return any(variant.direction is Direction.UP for variant in decision.variants.values())


def _of(member: Member, fleet: Fleet | None) -> Variant | None:
    if fleet is None or member.taken_by is not None:
        return None
    return next((variant for variant in fleet.variants if variant.key == member.spec.name), None)


def _pods(members: Iterable[Member]) -> list[PodPlace]:
    return [place for member in members for place in member.ready]
