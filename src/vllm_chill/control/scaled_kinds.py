"""Targets that are neither Deployments nor StatefulSets: of these only the scale is known, so that is looked at.

The rule: the number and the pods' selector are what the scale says. The objects are watched for when to look; while
they cannot be watched, the scale is looked at now and then.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import NamedTuple

import structlog

from vllm_chill.control.reconciler import Reconciler, Rhythm
from vllm_chill.core.objects import Collection
from vllm_chill.core.saturation.targets import WorkloadSeen, scaled, workload_seen
from vllm_chill.core.target import Resource
from vllm_chill.errors import BackendRefused
from vllm_chill.ports import Kinds, ObjectStore

_LOOK_SECONDS = 15.0
_KIND_AGAIN_SECONDS = 60.0


class Named(NamedTuple):
    """A target as an object names it."""

    api_version: str
    kind: str
    namespace: str
    name: str


class ScaledKinds:
    """Follows the targets that are wanted. `tell` takes what one is now, None for one that is not there."""

    def __init__(
        self,
        store: ObjectStore,
        kinds: Kinds,
        namespace: str | None,
        tell: Callable[[Named, WorkloadSeen | None], None],
        *,
        rhythm: Rhythm | None = None,
    ) -> None:
        """The objects of `namespace` are followed; None for those of all."""
        self._store = store
        self._kinds = kinds
        self._namespace = namespace
        self._tell = tell
        self._wanted: dict[str, Named] = {}
        self._failures: dict[Named, str] = {}
        self._seen: dict[Resource, Mapping[str, WorkloadSeen]] = {}
        self._lost: dict[Resource, str] = {}
        self._watches: dict[Resource, asyncio.Task[None]] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._looks = Reconciler(self._look, rhythm=rhythm)
        self._log = structlog.get_logger("vllm_chill.variants")

    async def run(self) -> None:
        """Follow them until cancelled."""
        try:
            async with asyncio.TaskGroup() as self._tasks:
                await self._looks.run()
        finally:
            self._tasks = None
            self._watches.clear()

    def want(self, targets: Iterable[Named]) -> None:
        """Follow these targets, and no others."""
        wanted = {" ".join(target): target for target in targets}
        before, self._wanted = self._wanted, wanted
        for key in before.keys() - wanted.keys():
            self._failures.pop(before[key], None)
            self._tell(before[key], None)
        for key in wanted.keys() - before.keys():
            self._looks.add(key)

    def failure(self, target: Named) -> str | None:
        """Why a target cannot be scaled, a sentence without a full stop; None if it can, or nobody has looked yet."""
        return self._failures.get(target)

    def resource(self, target: Named) -> Resource | None:
        """The kind of a wanted target; None while it is not known."""
        known = (one for one in self._watches if (one.api_version, one.kind) == target[:2])
        return next(known, None)

    async def _look(self, key: str) -> float | None:
        target = self._wanted.get(key)
        if target is None:
            return math.inf
        try:
            resource = await self._kinds.find(target.api_version, target.kind)
            self._follow(resource)
            collection = Collection(resource.api_version, resource.kind, resource.plural, target.namespace)
            scale = await self._store.get_scale(collection, target.name)
        except BackendRefused as error:
            self._failures[target] = error.message
            self._tell(target, None)
            return _KIND_AGAIN_SECONDS
        self._failures.pop(target, None)
        if self._wanted.get(key) is not target:
            return math.inf
        if scale is None:
            self._tell(target, None)
        else:
            item = self._seen.get(resource, {}).get(self._key(target))
            self._tell(target, scaled(item or workload_seen(scale, target.api_version, target.kind), scale))
        return None if resource in self._seen else _LOOK_SECONDS

    def _follow(self, resource: Resource) -> None:
        if resource not in self._watches and self._tasks is not None:
            keep = partial(workload_seen, api_version=resource.api_version, kind=resource.kind)
            collection = Collection(resource.api_version, resource.kind, resource.plural, self._namespace, keep=keep)
            watching = self._store.watch(collection, _Follower(self, resource))
            self._watches[resource] = self._tasks.create_task(watching)

    def _key(self, target: Named) -> str:
        return target.name if self._namespace is not None else f"{target.namespace}/{target.name}"

    # What the store tells.

    def seen(self, resource: Resource, objects: Mapping[str, WorkloadSeen]) -> None:
        """Take all objects of a kind."""
        before, self._seen[resource] = self._seen.get(resource), objects
        self._lost.pop(resource, None)
        for key, target in self._wanted.items():
            if (target.api_version, target.kind) == (resource.api_version, resource.kind):
                name = self._key(target)
                if before is None or before.get(name) != objects.get(name):
                    self._looks.add(key)

    def lost(self, resource: Resource, cause: str) -> None:
        """Take that the objects of a kind cannot be seen: their scales are looked at all the same."""
        if self._lost.get(resource) != cause:
            self._lost[resource] = cause
            event = f"{resource.plural} cannot be watched: their scale is looked at every {_LOOK_SECONDS:g} s"
            self._log.info(event, cause=cause)
        self._seen.pop(resource, None)


class _Follower:
    """ports.ObjectsObserver of one kind."""

    def __init__(self, kinds: ScaledKinds, resource: Resource) -> None:
        self.seen = partial(kinds.seen, resource)
        self.lost = partial(kinds.lost, resource)
