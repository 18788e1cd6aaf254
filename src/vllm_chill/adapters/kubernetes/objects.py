"""Objects of any kind on an API server: watched whole, applied as their field manager, deleted, spoken of in events.

The rule: every write says what it rests on (a resource version, a uid) where resting on something old would do harm,
and none is tried again here: whoever wanted it looks at what is and decides anew.
"""

from __future__ import annotations

import datetime
from contextlib import aclosing
from typing import Any
from urllib.parse import quote

from vllm_chill.adapters.kubernetes.client import ApiClient, ApiError, Json, Query, Unreachable, not_logged_in
from vllm_chill.adapters.kubernetes.watch import ListWatch, Outage, Pace, Snapshot
from vllm_chill.core.objects import Collection, digest, metadata
from vllm_chill.core.phrases import timestamp
from vllm_chill.core.target import TargetRef
from vllm_chill.errors import BackendConflict, BackendError, BackendRefused, BackendUnavailable
from vllm_chill.ports import ObjectsObserver

MANAGER = "vllm-chill"
"""Who vllm-chill is among those that write fields of an object."""
_MANIFESTS = "deploy/models and deploy/policies have them all"
_MESSAGE_CHARACTERS = 1024  # the most that the API takes for an event's message


class KubernetesObjects:
    """ports.ObjectStore. `pace` is that of the watches."""

    def __init__(self, api: ApiClient, pace: Pace | None = None) -> None:
        self._api = api
        self._pace = pace or Pace()

    async def watch(self, collection: Collection, observer: ObjectsObserver) -> None:
        objects: ListWatch[Any] = ListWatch(
            self._api, path_of(collection), {}, lambda item: collection.kept(_without_managers(item)), self._pace,
            metadata_only=collection.metadata_only, key=collection.key,
        )  # fmt: skip
        told: dict[str, Any] | None = None
        async with aclosing(objects.steps()) as steps:
            async for step in steps:
                match step:
                    case Outage(cause, absent=absent):
                        told = None
                        observer.lost(_absence(collection) if absent else cause)
                    case Snapshot():
                        before, told = told, dict(step.objects)
                        if told != before:
                            observer.seen(told)

    async def get(self, collection: Collection, name: str) -> Json | None:
        return await self._call_one("GET", collection, name)

    async def get_scale(self, collection: Collection, name: str) -> Json | None:
        return await self._call_one("GET", collection, name, part="/scale")

    async def apply(self, collection: Collection, item: Json, *, dry_run: bool = False) -> Json:
        query = {"fieldManager": MANAGER, "force": "true", **({"dryRun": "All"} if dry_run else {})}
        name = metadata(item)["name"]
        path = f"{path_of(collection)}/{quote(name)}"
        return await self._call("PATCH", path, collection.named(name), query=query, body=item, patch="apply")

    async def delete(self, collection: Collection, name: str, uid: str) -> None:
        terms = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        try:
            await self._call_one("DELETE", collection, name, {"kind": "DeleteOptions", "apiVersion": "v1", **terms})
        except BackendConflict:
            return  # it is another object's name by now

    async def patch(self, collection: Collection, name: str, change: Json) -> Json | None:
        return await self._call_one("PATCH", collection, name, change)

    async def patch_status(self, collection: Collection, name: str, status: Json) -> Json | None:
        return await self._call_one("PATCH", collection, name, {"status": status}, "/status")

    async def record(self, about: Json, reason: str, message: str, *, warning: bool = False) -> None:
        event = _event(about, reason, message, "Warning" if warning else "Normal")
        # An event of a cluster-wide object belongs in this namespace: that is where it is looked for.
        events = Collection("v1", "Event", "events", metadata(about).get("namespace") or "default")
        name = event["metadata"]["name"]
        before = await self._call_one("GET", events, name)
        if before is not None:
            again = {"count": int(before.get("count") or 1) + 1, "lastTimestamp": event["lastTimestamp"]}
            if await self._call_one("PATCH", events, name, again) is not None:
                return
        event["metadata"]["namespace"] = events.namespace
        await self._call("POST", path_of(events), events.named(name), body=event)

    async def _call_one(
        self, method: str, collection: Collection, name: str, body: Json | None = None, part: str = ""
    ) -> Json | None:
        """The server's answer for one object; None if there is no such object."""
        try:
            return await self._call(
                method, f"{path_of(collection)}/{quote(name)}{part}", collection.named(name), body=body
            )
        except _NotThere:
            return None

    async def _call(
        self, method: str, path: str, what: str, *, query: Query | None = None, body: Json | None = None,
        patch: str = "merge",
    ) -> Json:  # fmt: skip
        try:
            return _without_managers(await self._api.call(method, path, query=query, body=body, patch=patch))
        except ApiError as error:
            raise _refusal(_DOING[method], what, error) from error
        except Unreachable as error:
            raise BackendUnavailable(str(error)) from error


class _NotThere(BackendRefused):
    """There is no such object, or nowhere that it could be."""


_DOING = {"GET": "read", "PATCH": "written", "DELETE": "deleted", "POST": "created"}


def path_of(collection: Collection) -> str:
    """The path of a collection."""
    root = "/apis/" if "/" in collection.api_version else "/api/"
    namespace = "" if collection.namespace is None else f"/namespaces/{quote(collection.namespace)}"
    return f"{root}{collection.api_version}{namespace}/{collection.plural}"


def collection_of(ref: TargetRef) -> str:
    """The path of the collection that a target is in."""
    kind = ref.resource
    return path_of(Collection(kind.api_version, kind.kind, kind.plural, ref.namespace))


def _without_managers(item: Json) -> Json:
    # Who wrote which field is a third of an object, and of use to the API server alone.
    (item.get("metadata") or {}).pop("managedFields", None)
    return item


def _absence(collection: Collection) -> str:
    what = f"the API server does not know {collection.plural} of {collection.api_version}"
    return f"{what}: {collection.absent}" if collection.absent else what


def _event(about: Json, reason: str, message: str, kind: str) -> Json:
    who = metadata(about)
    object_reference = {
        "apiVersion": about["apiVersion"],
        "kind": about["kind"],
        "name": who["name"],
        "uid": who["uid"],
        **({"namespace": who["namespace"]} if who.get("namespace") else {}),
    }
    message = message if len(message) <= _MESSAGE_CHARACTERS else message[: _MESSAGE_CHARACTERS - 1] + "…"
    now = timestamp(datetime.datetime.now(datetime.UTC))
    return {
        "apiVersion": "v1",
        "kind": "Event",
        # The same said again is the same object.
        "metadata": {"name": f"{who['name']}.{digest([object_reference, kind, reason, message])}"},
        "involvedObject": object_reference,
        "reason": reason,
        "message": message,
        "type": kind,
        "count": 1,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "source": {"component": MANAGER},
    }


def _refusal(doing: str, what: str, error: ApiError) -> BackendError:
    said = error.message.rstrip(".")
    match error.status:
        case 401:
            return not_logged_in(error)
        case 403 if '" cannot ' in said:
            return BackendRefused(f"{what} cannot be {doing}: {said}; grant it that right ({_MANIFESTS})")
        case 404:
            return _NotThere(f"{what} cannot be {doing}: {said}")
        case 409:
            return BackendConflict(f"{what} could not be {doing} just now: {said}")
        case 408 | 429:
            return BackendUnavailable(f"{what} could not be {doing} just now: {said}; try again")
        case status if status >= 500:
            return BackendUnavailable(f"{what} could not be {doing} ({status}): {said}; try again")
        case status:
            return BackendRefused(f"{what} cannot be {doing} ({status}): {said}")
