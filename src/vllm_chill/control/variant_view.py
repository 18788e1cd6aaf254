"""What a cluster has of the targets of variants: each with its pods, and the GPUs that are free.

The rule: everything is followed by watches and kept as little as is needed, so that a look costs no call; what cannot
be seen for a while stays as it was seen last, but for the free GPUs, of which there must not be too many.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import structlog

from vllm_chill.control.reconciler import Rhythm
from vllm_chill.control.scaled_kinds import Named, ScaledKinds
from vllm_chill.core.objects import Collection, Json
from vllm_chill.core.saturation.gpus import NodeSeen, free, node_seen
from vllm_chill.core.saturation.index import Key, TargetIndex, set_seen
from vllm_chill.core.saturation.targets import PodSeen, TargetFacts, WorkloadSeen, pod_seen, target_facts, workload_seen
from vllm_chill.core.selectors import selector
from vllm_chill.core.target import DEPLOYMENTS, STATEFUL_SETS, Resource
from vllm_chill.ports import Kinds, ObjectStore

_SETTLE_SECONDS = 0.1  # what changes together is told together
_PODS, _EVERYONES_PODS, _NODES = "pods", "pods of all namespaces", "nodes"

_Take = Callable[[Any, Any], Iterable[Key]]
"""Takes what is kept of an object, before and now, None for one that is not there; the targets that changes."""


def _nobody(namespace: str, kind: str, name: str) -> None:
    """Nobody wants to know."""


class VariantView:
    """What is seen in one namespace, or in all.

    `on_change` is told of each Deployment, each StatefulSet, and each wanted target of another kind, that is other than
    before, or whose pods are. `misses` counts how often `owner_of` was asked for a pod that is no replica of any.
    """

    def __init__(
        self,
        store: ObjectStore,
        kinds: Kinds,
        namespace: str | None = None,
        *,
        node_selector: str = "",
        inventory: bool = True,
        rhythm: Rhythm | None = None,
    ) -> None:
        """None for `namespace`: all of them. Only GPUs on nodes that `node_selector` selects count as free; without
        `inventory` none are counted, and pods of other namespaces need not be seen. Raises ValueError for a selector
        that is none.
        """
        self.on_change: Callable[[str, str, str], None] = _nobody
        self.misses = 0
        self._store = store
        self._index = TargetIndex()
        self._others = ScaledKinds(store, kinds, namespace, self._take_other, rhythm=rhythm)
        self._inventory = inventory
        self._collections = self._followed(namespace, node_selector)
        self._seen: dict[str, Mapping[str, Any]] = {}
        self._lost: dict[str, str] = {}
        self._changed: dict[Key, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._free: Mapping[str, int] | None = None  # as of the last pod and node
        self._log = structlog.get_logger("vllm_chill.variants")

    async def run(self) -> None:
        """Follow everything until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._others.run())
                for what, (collection, take) in self._collections.items():
                    tasks.create_task(self._store.watch(collection, _Follower(self, what, take)))
        finally:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def want(self, targets: Iterable[Named]) -> None:
        """Follow these targets where they are neither Deployments nor StatefulSets, which are followed in any case."""
        known = {(kind.api_version, kind.kind) for kind in (DEPLOYMENTS, STATEFUL_SETS)}
        self._others.want(target for target in targets if (target.api_version, target.kind) not in known)

    @property
    def known(self) -> bool:
        """Whether all that is followed was seen once, or is known not to be visible."""
        return self._seen.keys() | self._lost.keys() >= self._collections.keys()

    @property
    def troubles(self) -> Mapping[str, str]:
        """What cannot be seen at present, and why each of it: sentences without a full stop."""
        return self._lost

    def failure(self, target: Named) -> str | None:
        """Why a target of another kind cannot be followed, a sentence without a full stop; None if it can."""
        return self._others.failure(target)

    def resource(self, target: Named) -> Resource | None:
        """The kind of a wanted target; None while it is not known."""
        own = (kind for kind in (DEPLOYMENTS, STATEFUL_SETS) if (kind.api_version, kind.kind) == target[:2])
        return next(own, None) or self._others.resource(target)

    def target(self, namespace: str, kind: str, name: str) -> TargetFacts | None:
        """What a target is now; None if it is not there."""
        key = Key(namespace, kind, name)
        seen = self._index.target(key)
        return None if seen is None else target_facts(seen, tuple(self._index.pods_of(key)), self._node)

    def owner_of(self, namespace: str, pod: str) -> Key | None:
        """The target that a pod is a replica of; None, and a miss, for a pod that is none's or is not there."""
        seen = self._index.pod(namespace, pod)
        found = None if seen is None else next(self._index.targets_of(seen), None)
        if found is None:
            self.misses += 1
        return found

    def free_gpus(self) -> Mapping[str, int] | None:
        """How many GPUs are free, by accelerator ("" on nodes that do not name theirs); None while nodes, or the pods
        of all namespaces, cannot be seen, and where they are not followed.
        """
        pods = _EVERYONES_PODS if _EVERYONES_PODS in self._collections else _PODS
        visible = self._seen.keys() - self._lost.keys()
        if not self._inventory or not visible >= {_NODES, pods}:
            return None
        if self._free is None:
            taking: Iterable[PodSeen] = self._seen[pods].values()
            self._free = free(self._seen[_NODES].values(), ((pod.node, pod.gpus) for pod in taking if pod.node))
        return self._free

    # What is followed.

    def _followed(self, namespace: str | None, node_selector: str) -> dict[str, tuple[Collection, _Take | None]]:
        sets = Collection("apps/v1", "ReplicaSet", "replicasets", namespace, metadata_only=True, keep=set_seen)
        nodes = Collection("v1", "Node", "nodes", keep=partial(node_seen, chosen=selector(node_selector)))
        pods = Collection("v1", "Pod", "pods", namespace, keep=pod_seen)
        followed: dict[str, tuple[Collection, _Take | None]] = {
            sets.plural: (sets, self._index.take_set),
            _PODS: (pods, self._index.take_pod),
            _NODES: (nodes, self._take_node),
        }
        for kind in (DEPLOYMENTS, STATEFUL_SETS):
            keep = partial(workload_seen, api_version=kind.api_version, kind=kind.kind)
            collection = Collection(kind.api_version, kind.kind, kind.plural, namespace, keep=keep)
            followed[kind.plural] = collection, self._index.take_target
        if self._inventory and namespace is not None:
            followed[_EVERYONES_PODS] = Collection("v1", "Pod", "pods", keep=_takes_gpus), None
        return followed

    # What the store tells.

    def seen(self, what: str, take: _Take | None, objects: Mapping[str, Any]) -> None:
        """Take what is kept of all objects of a collection."""
        before, self._seen[what] = self._seen.get(what, {}), objects
        if what in {_NODES, _PODS, _EVERYONES_PODS}:
            self._free = None
        self._lost.pop(what, None)
        if take is None:
            return
        for key, now in objects.items():
            was = before.get(key)
            if was is not now and was != now:
                self._changes(take(was, now))
        for key in before.keys() - objects.keys():
            self._changes(take(before[key], None))

    def cannot_see(self, what: str, cause: str) -> None:
        """Take that one of the collections cannot be seen at present."""
        if self._lost.get(what) != cause:
            self._lost[what] = cause
            self._log.warning("what variants are scaled by cannot be seen", what=what, cause=cause)

    def _take_node(self, was: NodeSeen | None, now: NodeSeen | None) -> Iterator[Key]:
        if was is None or now is None or was.gpus != now.gpus:
            for name in {each.name for each in (was, now) if each is not None}:
                yield from self._index.on_node(name)

    def _take_other(self, target: Named, now: WorkloadSeen | None) -> None:
        was = self._index.target(Key(target.namespace, target.kind, target.name))
        self._changes(self._index.take_target(was, now))

    def _node(self, name: str) -> NodeSeen | None:
        return self._seen.get(_NODES, {}).get(name)

    # Who is told.

    def _changes(self, keys: Iterable[Key]) -> None:
        self._changed.update(dict.fromkeys(keys))
        if self._changed and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_SETTLE_SECONDS, self._settle)

    def _settle(self) -> None:
        self._timer = None
        changed, self._changed = self._changed, {}
        for key in changed:
            self.on_change(*key)


class _Follower:
    """ports.ObjectsObserver of one collection."""

    def __init__(self, view: VariantView, what: str, take: _Take | None) -> None:
        self.seen = partial(view.seen, what, take)
        self.lost = partial(view.cannot_see, what)


def _takes_gpus(pod: Json) -> PodSeen | None:
    """What is kept of a pod that takes GPUs; None for any other."""
    seen = pod_seen(pod)
    return seen if seen is not None and seen.gpus and seen.node else None
