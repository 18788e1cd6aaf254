"""Objects of an API server as plain values: JSON-able dicts, and the collections that they are in. Pure.

The rule: what an object says is read leniently (anything may be missing), and nothing here changes one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]

# What a server writes by itself, and what scaling writes: no part of what an object is meant to be.
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_SERVERS_OWN = ("creationTimestamp", "generation", "managedFields", "resourceVersion", "selfLink", "uid")


@dataclass(frozen=True, slots=True)
class Collection:
    """The objects of one kind, in a namespace or (None) in all of them, or of a kind that is cluster-wide.
    `api_version` is as objects say it (`apps/v1`), `plural` as paths do. `absent` says what to do about a server that
    does not know the kind, without a full stop.

    `metadata_only`: a watch is told of objects' names, labels and annotations alone, and of no other change. That is
    for the many objects of a kind that anybody has, where few are of interest. With `keep` a watch tells what that
    makes of each object in its place, and leaves out those that it makes None of; it is not to change an object, and a
    change that it does not show is not told. With both, it is given no more than an object's metadata, with its owners.
    """

    api_version: str
    kind: str
    plural: str
    namespace: str | None = None
    absent: str = ""
    metadata_only: bool = field(default=False, compare=False)
    keep: Callable[[Json], Any] | None = field(default=None, compare=False)

    def key(self, item: Mapping[str, Any]) -> str:
        """What a watch calls an object: its name, and NAMESPACE/NAME where it follows a kind in all namespaces."""
        of = metadata(item)
        if self.namespace is None and of.get("namespace"):
            return f"{of['namespace']}/{of['name']}"
        return str(of["name"])

    def kept(self, item: Json) -> Any:
        """What a watch tells of an object; None for nothing."""
        if self.keep is not None:
            return self.keep(item)
        return only_metadata(item, self) if self.metadata_only else item

    def named(self, name: str) -> str:
        """One of its objects, for a sentence."""
        return f"{self.kind} {name}" if self.namespace is None else f"{self.kind} {self.namespace}/{name}"


def metadata(item: Mapping[str, Any]) -> Mapping[str, Any]:
    """An object's metadata."""
    return item.get("metadata") or {}


def only_metadata(item: Mapping[str, Any], collection: Collection) -> Json:
    """What is told of an object where only its metadata is asked for."""
    of = metadata(item)
    kept = {key: of[key] for key in ("name", "namespace", "uid", "labels") if key in of}
    # What kubectl last applied is all of the object once more.
    annotations = {key: value for key, value in annotations_of(item).items() if key != _LAST_APPLIED}
    return {
        "apiVersion": collection.api_version,
        "kind": collection.kind,
        "metadata": {**kept, "annotations": annotations},
    }


def labels_of(item: Mapping[str, Any]) -> Mapping[str, str]:
    """An object's labels."""
    return metadata(item).get("labels") or {}


def annotations_of(item: Mapping[str, Any]) -> Mapping[str, str]:
    """An object's annotations."""
    return metadata(item).get("annotations") or {}


def is_owned_by(item: Mapping[str, Any], uid: str) -> bool:
    """Whether an object names the one with this uid as an owner."""
    return any(owner.get("uid") == uid for owner in metadata(item).get("ownerReferences") or ())


def meant(item: Mapping[str, Any]) -> Json:
    """An object without its status and what the server writes by itself."""
    kept = {key: value for key, value in item.items() if key not in {"metadata", "status"}}
    own = {key: value for key, value in metadata(item).items() if key not in _SERVERS_OWN}
    return {**kept, "metadata": own}


def digest(value: object) -> str:
    """A short name for a JSON-able value: equal values have equal names."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def differences(before: object, after: object, path: str = "") -> tuple[str, ...]:
    """The paths at which two JSON-able values differ, such as `spec.template.spec.containers[0].args`. As in all of
    Kubernetes a field that is null is one that is not there.
    """
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        keys = dict.fromkeys((*before, *after))
        found = (differences(before.get(key), after.get(key), f"{path}.{key}".lstrip(".")) for key in keys)
        return tuple(where for each in found for where in each)
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after) and _are_objects(before):
        pairs = enumerate(zip(before, after, strict=True))
        return tuple(where for i, pair in pairs for where in differences(*pair, f"{path}[{i}]"))
    return () if before == after else (path,)


def _are_objects(items: list[Any]) -> bool:
    return all(isinstance(item, Mapping) for item in items)
