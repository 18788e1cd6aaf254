"""Objects that no server keeps, faithfully: the object store of tests and the measure of what one must do.

It keeps to what an API server does as far as the contract has it: versions, generations, applied fields and whose they
are, finalizers, a status of its own. `others` is what the outside world does to an object.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from vllm_chill.core.objects import Collection, Json, metadata
from vllm_chill.errors import BackendConflict, BackendError
from vllm_chill.ports import ObjectsObserver

_T = TypeVar("_T")
_CREATED = "2026-01-01T00:00:00Z"
# Lists of a workload whose items are merged one by one; all others are replaced as a whole.
_KEYS = {"containers": "name", "env": "name", "ownerReferences": "uid", "ports": "port", "volumes": "name"}


@dataclass(frozen=True, slots=True)
class Said:
    """One event as it was said, and how often."""

    about: str
    reason: str
    message: str
    warning: bool
    count: int = 1


@dataclass(eq=False, slots=True)
class _Watch:
    collection: Collection
    observer: ObjectsObserver
    told: dict[str, Any] | None = None


class MemoryObjects:
    """ports.ObjectStore. `said` are the events, oldest first; `writes` what was done to which object, and `reads`
    how often one was looked at. `fail_next` is what the next writes raise, one by one, and `fail_applies` what every
    apply raises.
    """

    def __init__(self) -> None:
        self._objects: dict[Collection, dict[str, Json]] = defaultdict(dict)
        self._applied: dict[tuple[Collection, str], Json] = {}
        self._observers: dict[Collection, list[_Watch]] = defaultdict(list)
        self._lost: dict[Collection, str] = {}
        self._versions = itertools.count(1)
        self.said: list[Said] = []
        self.writes: list[tuple[str, str]] = []
        self.reads = 0
        self.fail_next: list[BackendError] = []
        self.fail_applies: BackendError | None = None

    async def watch(self, collection: Collection, observer: ObjectsObserver) -> None:
        watch = _Watch(collection, observer)
        self._observers[collection].append(watch)
        try:
            self._tell(watch)
            await asyncio.get_running_loop().create_future()
        finally:
            self._observers[collection].remove(watch)

    async def get(self, collection: Collection, name: str) -> Json | None:
        self.reads += 1
        await asyncio.sleep(0)
        return copy.deepcopy(self._objects[collection].get(name))

    async def get_scale(self, collection: Collection, name: str) -> Json | None:
        found = await self.get(collection, name)
        return None if found is None else _scale(found)

    async def apply(self, collection: Collection, item: Json, *, dry_run: bool = False) -> Json:
        await self._reach("apply" if not dry_run else "", item["metadata"]["name"])
        if self.fail_applies is not None:
            raise self.fail_applies
        name = item["metadata"]["name"]
        before, applied = self._objects[collection].get(name), self._applied.get((collection, name), {})
        version = metadata(item).get("resourceVersion")
        if version is not None and (before is None or before["metadata"]["resourceVersion"] != version):
            raise BackendConflict(f"{collection.named(name)} has been modified")
        item = copy.deepcopy(item)
        item["metadata"].pop("resourceVersion", None)
        after = _merged(_without(before or {}, applied, item), item)
        if dry_run:
            return after if before is None else {**after, "metadata": {**before["metadata"], **after["metadata"]}}
        self._applied[collection, name] = item
        return await _answered(self._store(collection, name, before, after))

    async def delete(self, collection: Collection, name: str, uid: str) -> None:
        await self._reach("delete", name)
        found = self._objects[collection].get(name)
        if found is not None and found["metadata"]["uid"] == uid:
            self._delete(collection, name)

    async def patch(self, collection: Collection, name: str, change: Json) -> Json | None:
        await self._reach("patch", name)
        main = {key: value for key, value in change.items() if key != "status"}
        return await _answered(self._patch(collection, name, main))

    async def patch_status(self, collection: Collection, name: str, status: Json) -> Json | None:
        await self._reach("status", name)
        return await _answered(self._patch(collection, name, {"status": status}))

    async def record(self, about: Json, reason: str, message: str, *, warning: bool = False) -> None:
        await asyncio.sleep(0)
        name = about["metadata"]["name"]
        for i, said in enumerate(self.said):
            if (said.about, said.reason, said.message, said.warning) == (name, reason, message, warning):
                self.said[i] = Said(name, reason, message, warning, said.count + 1)
                return
        self.said.append(Said(name, reason, message, warning))

    # What others do.

    def create(self, collection: Collection, item: Json) -> Json:
        """Somebody else creates an object."""
        assert item["metadata"]["name"] not in self._objects[collection]
        return self._store(collection, item["metadata"]["name"], None, copy.deepcopy(item))

    def change(self, collection: Collection, name: str, change: Json) -> Json:
        """Somebody else merges a change into an object, its status too."""
        changed = self._patch(collection, name, change)
        assert changed is not None
        return changed

    def remove(self, collection: Collection, name: str) -> None:
        """Somebody else deletes an object."""
        self._delete(collection, name)

    def read(self, collection: Collection, name: str) -> Json | None:
        """The object as it is."""
        return copy.deepcopy(self._objects[collection].get(name))

    def lose(self, collection: Collection, cause: str) -> None:
        """The collection can no longer be seen."""
        self._lost[collection] = cause
        self._tell_all(collection)

    def find(self, collection: Collection) -> None:
        """It can be seen, as after an outage."""
        self._lost.pop(collection, None)
        self._tell_all(collection)

    def _tell_all(self, collection: Collection) -> None:
        for within in {collection, replace(collection, namespace=None)}:
            for watch in tuple(self._observers[within]):
                self._tell(watch)

    def _all(self, collection: Collection) -> dict[str, Json]:
        """The objects of a collection, those of all namespaces if it is in none, by their key."""
        within = [collection]
        if collection.namespace is None:
            within = [each for each in self._objects if replace(each, namespace=None) == collection]
        return {collection.key(item): item for each in within for item in self._objects[each].values()}

    def _tell(self, watch: _Watch) -> None:
        collection = watch.collection
        if collection in self._lost:
            watch.told = None
            watch.observer.lost(self._lost[collection])
            return
        kept = {key: collection.kept(_told(item, collection)) for key, item in self._all(collection).items()}
        objects = {key: item for key, item in kept.items() if item is not None}
        if objects != watch.told:
            watch.told = objects
            watch.observer.seen(copy.deepcopy(objects))

    async def _reach(self, doing: str, name: str) -> None:
        await asyncio.sleep(0)
        if doing and self.fail_next:
            raise self.fail_next.pop(0)
        if doing:
            self.writes.append((doing, name))

    def _patch(self, collection: Collection, name: str, change: Json) -> Json | None:
        before = self._objects[collection].get(name)
        if before is None:
            return None
        change = copy.deepcopy(change)
        version = (change.get("metadata") or {}).pop("resourceVersion", None)
        if version is not None and version != before["metadata"]["resourceVersion"]:
            raise BackendConflict(f"{collection.named(name)} has been modified")
        return self._store(collection, name, before, _patched(before, change))

    def _store(self, collection: Collection, name: str, before: Json | None, after: Json) -> Json:
        if before is not None and after == before:
            return copy.deepcopy(before)
        after = copy.deepcopy(after)
        kept = after.setdefault("metadata", {})
        version = str(next(self._versions))
        if before is None:
            kept.update(uid=f"uid-{version}", generation=1, creationTimestamp=_CREATED)
            if collection.namespace is not None:
                kept["namespace"] = collection.namespace
        elif after.get("spec") != before.get("spec"):
            kept["generation"] = before["metadata"]["generation"] + 1
        kept["resourceVersion"] = version
        self._objects[collection][name] = after
        if kept.get("deletionTimestamp") and not kept.get("finalizers"):
            self._forget(collection, name)
        self._tell_all(collection)
        return copy.deepcopy(after)

    def _delete(self, collection: Collection, name: str) -> None:
        found = self._objects[collection][name]
        if found["metadata"].get("finalizers"):
            self._patch(collection, name, {"metadata": {"deletionTimestamp": _CREATED}})
        else:
            self._forget(collection, name)
            self._tell_all(collection)

    def _forget(self, collection: Collection, name: str) -> None:
        del self._objects[collection][name]
        self._applied.pop((collection, name), None)


def _told(item: Json, collection: Collection) -> Json:
    """What a server tells of an object: all, or its metadata."""
    item = copy.deepcopy(item)
    return {"metadata": item["metadata"]} if collection.metadata_only else item


def _scale(item: Json) -> Json:
    spec, status = item.get("spec") or {}, item.get("status") or {}
    labels = (spec.get("selector") or {}).get("matchLabels") or {}
    selector = ",".join(f"{key}={value}" for key, value in labels.items())
    replicas = spec.get("replicas", 1)
    return {
        "apiVersion": "autoscaling/v1",
        "kind": "Scale",
        "metadata": {key: item["metadata"][key] for key in ("name", "namespace", "uid", "resourceVersion")},
        "spec": {"replicas": replicas} if replicas else {},
        "status": {"replicas": status.get("replicas", 0), "selector": selector},
    }


async def _answered(item: _T) -> _T:
    """The answer to a write, which may come after the watch has told of it."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return item


def _merged(live: Any, item: Any, key: str = "") -> Any:
    """What applying `item` makes of `live`."""
    if isinstance(live, Mapping) and isinstance(item, Mapping):
        return {**live, **{name: _merged(live.get(name), value, name) for name, value in item.items()}}
    if isinstance(live, list) and isinstance(item, list) and key in _KEYS:
        named = {each.get(_KEYS[key]): each for each in live}
        for each in item:
            named[each.get(_KEYS[key])] = _merged(named.get(each.get(_KEYS[key])), each)
        return list(named.values())
    return copy.deepcopy(item)


def _without(live: Any, applied: Any, item: Any, key: str = "") -> Any:
    """`live` less what was `applied` before and `item` no longer says."""
    if isinstance(live, Mapping) and isinstance(applied, Mapping) and isinstance(item, Mapping):
        kept = {name: value for name, value in live.items() if name not in applied or name in item}
        return {name: _without(value, applied.get(name), item.get(name), name) for name, value in kept.items()}
    if isinstance(live, list) and isinstance(applied, list) and isinstance(item, list) and key in _KEYS:
        names, still = ({each.get(_KEYS[key]): each for each in items} for items in (applied, item))
        known = ((each.get(_KEYS[key]), each) for each in live)
        return [_without(each, names.get(n), still.get(n)) for n, each in known if n not in names or n in still]
    return live


def _patched(live: Any, change: Any) -> Any:
    """RFC 7386."""
    if not isinstance(change, Mapping):
        return change
    base = dict(live) if isinstance(live, Mapping) else {}
    for name, value in change.items():
        if value is None:
            base.pop(name, None)
        else:
            base[name] = _patched(base.get(name), value)
    return base
