"""Scaling policies, as objects, as annotations and of models: each is read, and has the target that it names scaled.

The rule: what is to be is read off all that is known at this moment, however it came to be so: `_plan` gives each
target its one policy. A policy that cannot be used leaves the earlier version of it in force, and one that is gone
leaves its target to what its model or the settings say.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import structlog

from vllm_chill.api.kinds import MODEL
from vllm_chill.control.autoscaler import Autoscaler, Autoscalers, Controlled, Measures
from vllm_chill.control.policy_reports import PolicyReports, Reported
from vllm_chill.control.policy_sources import ANNOTATED, Sources, objects_of, policies_of
from vllm_chill.control.reconciler import Reconciler, Rhythm
from vllm_chill.core.objects import Collection, Json
from vllm_chill.core.scaling.claims import Claim, Rank, settle
from vllm_chill.core.scaling.policy import Policy
from vllm_chill.core.target import Resource, TargetRef
from vllm_chill.core.writers import scales
from vllm_chill.errors import BackendError, BackendRefused
from vllm_chill.ports import Kinds, ObjectStore

if TYPE_CHECKING:
    from vllm_chill.api.scaling_spec import ScaleTarget

_KIND_AGAIN_SECONDS = 60.0


def autoscalers_of(namespace: str) -> tuple[Collection, ...]:
    """The collections of what else scales in a namespace, the one that says the most first."""
    return (
        Collection("keda.sh/v1alpha1", "ScaledObject", "scaledobjects", namespace),
        Collection("autoscaling/v1", "HorizontalPodAutoscaler", "horizontalpodautoscalers", namespace),
    )


class ScaleTargets(Protocol):
    """The targets that a proxy serves, and those that it can scale besides."""

    @property
    def known(self) -> bool:
        """Whether it is known by now which models there are."""

    def served(self, model: str) -> str | None:
        """The name of the target that serves a model by this name; None if none does."""

    def own_policy(self, name: str) -> Policy | None:
        """What the model of a target says of its replicas by itself."""

    def make_target(self, ref: TargetRef) -> OwnTarget:
        """What scales a target that is not served; it is another one each time."""


class OwnTarget(NamedTuple):
    """What is made for a target that no request goes to through this proxy; it is scaled while `run` runs.

    Its controller has control.unserved.UnservedBackend, so that it is never taken to 0.
    """

    name: str
    controller: Controlled
    meter: Measures
    run: Callable[[], Coroutine[Any, Any, None]]


class Policies:
    """The policies of a namespace, and the autoscalers that they have. `run` must be running.

    Invariant: each autoscaler has the policy that `settle` gives its target, as of what was seen last.
    """

    def __init__(
        self,
        store: ObjectStore,
        autoscalers: Autoscalers,
        *,
        namespace: str,
        kinds: Kinds,
        targets: ScaleTargets,
        rhythm: Rhythm | None = None,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
        turn: asyncio.Event | None = None,
    ) -> None:
        """`wall` is the time of day, with a time zone. Nothing is written while `turn` is not set: that is another
        proxy's.
        """
        self._store = store
        self._autoscalers = autoscalers
        self._namespace = namespace
        self._kinds = kinds
        self._targets = targets
        self._wall = wall
        self._log = structlog.get_logger("vllm_chill.scaling")
        self._policies = policies_of(namespace)
        self._workloads = {resource: objects_of(resource, namespace) for resource in ANNOTATED}
        self._others = autoscalers_of(namespace)
        self._seen: dict[Collection, Mapping[str, Json]] = {}
        self._lost: dict[Collection, str] = {}
        self._reports = PolicyReports(store, self._policies, rhythm=rhythm, wall=wall, turn=turn)
        self._sources = Sources(self._reports.forget)
        self._resources: dict[tuple[str, str], Resource | str] = {
            (resource.api_version, resource.kind): resource for resource in ANNOTATED
        }
        self._looks = Reconciler(self._look_for_kind, rhythm=rhythm)
        self._own: dict[TargetRef, tuple[Autoscaler, asyncio.Task[None]]] = {}
        self._group: asyncio.TaskGroup | None = None
        self._planning = False
        autoscalers.on_change = self.changed

    async def run(self) -> None:
        """Follow the policies and what they are for, until cancelled."""
        try:
            async with asyncio.TaskGroup() as self._group:
                self._group.create_task(self._reports.run())
                self._group.create_task(self._looks.run())
                for collection in self._collections:
                    self._group.create_task(self._store.watch(collection, _Follower(self, collection)))
        finally:
            self._group = None

    @property
    def _collections(self) -> tuple[Collection, ...]:
        return self._policies, *self._workloads.values(), *self._others

    def changed(self) -> None:
        """Take that other targets, or other models, are served than before."""
        self._plan()

    # What the store tells.

    def seen(self, collection: Collection, objects: Mapping[str, Json]) -> None:
        """Take all objects of one of the collections."""
        before = self._seen.get(collection)
        self._seen[collection] = objects
        self._lost.pop(collection, None)
        if collection not in self._others:
            self._sources.take(collection, objects)
        elif before is not None and _targets(before) == _targets(objects):
            return
        self._plan()

    def lost(self, collection: Collection, cause: str) -> None:
        """Take that one of the collections cannot be seen at present; what was seen of it stays so."""
        if self._lost.get(collection) != cause:
            self._lost[collection] = cause
            # Few clusters have all of them.
            say = self._log.info if collection in self._others else self._log.warning
            say("what scaling goes by cannot be seen", what=collection.plural, cause=cause)
        self._plan()

    # Which target is scaled by what.

    def _plan(self) -> None:
        # Where one cannot be seen at all, as its kind is not installed, the others count.
        is_told = self._seen.keys() | self._lost.keys() >= set(self._collections)
        if self._group is None or self._planning or not is_told or not self._targets.known:
            return
        self._planning = True  # what is made here changes which autoscalers there are
        try:
            self._settle()
        finally:
            self._planning = False

    def _settle(self) -> None:
        absent: dict[str, str] = {}
        claims = [*self._claims(absent), *self._claims_of_models()]
        won = settle(claims)
        wanted = {target: claim for target, claim in won.items() if isinstance(target, TargetRef)}
        for ref in self._own.keys() - wanted.keys():
            self._end(ref)
        scalers = {target: self._scaler(target) for target in won}
        for name, scaler in self._autoscalers.items():
            if scaler not in scalers.values():
                self._unscaled(name, scaler)
        for target, claim in won.items():
            self._scaled_by(scalers[target], claim)
        for claim in claims:
            winner = won[claim.target]
            if winner is claim:
                self._report(claim.key, scalers[claim.target], claim.policy)
            else:
                self._report(claim.key, None, claim.policy, taken_by=winner.said)
        self._reports.keep((*(claim.key for claim in claims), *absent))
        for key, cause in absent.items():
            self._report(key, None, self._policy(key), absent=cause)

    def _claims(self, absent: dict[str, str]) -> Iterator[Claim]:
        for key, source in self._sources.items():
            if source.good is None:
                absent[key] = ""
                continue
            policy, named = source.good
            try:
                target = self._resolve(named)
            except BackendError as error:
                absent[key] = error.message
                continue
            yield Claim(key, source.said, target, policy, source.rank, source.created)

    def _claims_of_models(self) -> Iterator[Claim]:
        for name, scaler in self._autoscalers.items():
            policy = self._targets.own_policy(name) if scaler.fronted else None
            if policy is not None:
                yield Claim(f"model/{name}", f"the model {name}", name, policy, Rank.MODEL)

    def _resolve(self, named: ScaleTarget) -> str | TargetRef:
        """The name of the autoscaler of what a policy names, or the target that has yet to have one. Raises
        BackendError for what is not there.
        """
        if named.kind == MODEL.kind:
            return self._serving(named.name, f'there is no model "{named.name}"')
        ref = TargetRef(self._namespace, named.name, self._kind(named.full_api_version, named.kind))
        for name, scaler in self._autoscalers.items():
            if scaler.fronted and scaler.controller.target.ref == ref:
                return name
        there = self._seen.get(self._workloads[ref.resource]) if ref.resource in self._workloads else None
        if there is None or named.name in there:
            return ref
        # In place of a Deployment's name a model's is good too: it is known here what runs it.
        return self._serving(named.name, f"there is no {ref.named}, and no model of that name")

    def _serving(self, model: str, absence: str) -> str:
        name = self._targets.served(model)
        if name is None or name not in self._autoscalers:
            raise BackendRefused(absence)
        return name

    def _kind(self, api_version: str, kind: str) -> Resource:
        found = self._resources.get((api_version, kind))
        if isinstance(found, Resource):
            return found
        if found is None:
            self._looks.add(f"{api_version} {kind}")
        raise BackendRefused(found or f"the API server is being asked for the kind {kind} of {api_version}")

    async def _look_for_kind(self, key: str) -> float:
        api_version, _, kind = key.partition(" ")
        named = {(ref.full_api_version, ref.kind) for _, ref in self._good()}
        if (api_version, kind) not in named:
            self._resources.pop((api_version, kind), None)
            return math.inf
        before = self._resources.get((api_version, kind))
        try:
            found: Resource | str = await self._kinds.find(api_version, kind)
        except BackendError as error:
            found = error.message
        if found != before:
            self._resources[api_version, kind] = found
            self._plan()
        return math.inf if isinstance(found, Resource) else _KIND_AGAIN_SECONDS

    def _good(self) -> Iterator[tuple[Policy, ScaleTarget]]:
        return (source.good for source in self._sources.values() if source.good is not None)

    def _scaler(self, target: object) -> Autoscaler:
        if not isinstance(target, TargetRef):
            return self._autoscalers[str(target)]
        if target not in self._own:
            self._begin(target)
        return self._own[target][0]

    def _begin(self, ref: TargetRef) -> None:
        made = self._targets.make_target(ref)
        scaler = Autoscaler(made.name, made.controller, made.meter, wall=self._wall, fronted=False)

        async def run() -> None:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(made.run())
                tasks.create_task(scaler.run())

        assert self._group is not None
        self._own[ref] = scaler, self._group.create_task(run())
        self._autoscalers.add(scaler)

    def _end(self, ref: TargetRef) -> None:
        scaler, task = self._own.pop(ref)
        scaler.on_decision = None
        task.cancel()
        if self._autoscalers.get(scaler.name) is scaler:
            self._autoscalers.remove(scaler.name)

    def _unscaled(self, name: str, scaler: Autoscaler) -> None:
        if scaler.policy is not None:
            self._log.info("no longer scaled by a policy", target=name)
            scaler.policy = scaler.source = scaler.on_decision = None

    def _scaled_by(self, scaler: Autoscaler, claim: Claim) -> None:
        if scaler.policy is None or scaler.policy != claim.policy:
            self._log.info("scaled by a policy", target=scaler.name, policy=claim.said)
        scaler.policy, scaler.source = claim.policy, claim.said
        scaler.claimed(self._claimant(scaler.controller.target.ref))
        scaler.on_decision = partial(self._reports.changed, claim.key)

    def _claimant(self, ref: TargetRef) -> str | None:
        for collection in self._others:
            for name, item in self._seen.get(collection, {}).items():
                if scales(item, ref):
                    return f"{collection.named(name)} scales it too"
        return None

    # What is reported.

    def _policy(self, key: str) -> Policy | None:
        source = self._sources[key]
        return None if source.good is None else source.good[0]

    def _report(
        self, key: str, scaler: Autoscaler | None, policy: Policy | None, *,
        taken_by: str | None = None, absent: str | None = None,
    ) -> None:  # fmt: skip
        source = self._sources.get(key)
        about = self._about(scaler) if source is None else source.about
        is_object = source is not None and source.rank is Rank.OBJECT
        problems = () if source is None else source.problems
        if about is None:
            self._reports.forget(key)
        else:
            reported = Reported(about, is_object, scaler, policy, problems, taken_by, absent or None)
            self._reports.report(key, reported)

    def _about(self, scaler: Autoscaler | None) -> Json | None:
        """What a target's replicas are set in, if it is seen."""
        ref = None if scaler is None else scaler.controller.target.ref
        collection = None if ref is None else self._workloads.get(ref.resource)
        if ref is None or collection is None or ref.name not in self._seen.get(collection, {}):
            return None
        return {"apiVersion": collection.api_version, "kind": collection.kind, **self._seen[collection][ref.name]}


class _Follower:
    """ports.ObjectsObserver of one collection."""

    def __init__(self, policies: Policies, collection: Collection) -> None:
        self.seen = partial(policies.seen, collection)
        self.lost = partial(policies.lost, collection)


def _targets(objects: Mapping[str, Json]) -> dict[str, object]:
    return {name: (item.get("spec") or {}).get("scaleTargetRef") for name, item in objects.items()}
