"""Who sets the number of replicas of an object besides us, as the object and other autoscalers tell. Pure.

The rule: nobody is named on a guess. Servers before Kubernetes 1.22 do not record who writes through a scale, so there
the record of an object that was just seen may be older than the number: it counts only once it is seen to change
together with the number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from vllm_chill.core.objects import metadata
from vllm_chill.core.target import DEPLOYMENTS, TargetRef

_API_VERSION, _KIND = DEPLOYMENTS.api_version, DEPLOYMENTS.kind


@dataclass(frozen=True, slots=True)
class Writer:
    """A field manager that owns the number of replicas. `time` is when it last wrote anything of the object, sorts as
    text, and is empty where the server does not say (it does not of those that write through a scale).
    """

    manager: str
    time: str = ""


@dataclass(frozen=True, slots=True)
class Writers:
    """Who owns an object's number of replicas, by its metadata.managedFields. Several do if they wrote the same number.

    `of_scales`: the server records who writes through a scale.
    """

    owners: frozenset[Writer] = frozenset()
    of_scales: bool = False


@dataclass(frozen=True, slots=True)
class Written:
    """A number of replicas, and who set it if that was not us, as far as that can be told."""

    replicas: int
    writers: Writers
    by: str | None


def writers_of(item: Mapping[str, Any]) -> Writers:
    """The writers of an object's spec.replicas, which is where all that have a scale but a few have the number."""
    entries: Iterable[Mapping[str, Any]] = metadata(item).get("managedFields") or ()
    return Writers(
        frozenset(Writer(_manager(entry), entry.get("time") or "") for entry in entries if _has_replicas(entry)),
        # The same release that began to record scales began to name subresources; each controller writes a status.
        of_scales=any(entry.get("subresource") for entry in entries),
    )


def written(before: Written | None, replicas: int, writers: Writers, own: str) -> Written:
    """The number as it is seen now, after what was seen of the same object before, if it was; `own` is who we are."""
    return Written(replicas, writers, _by(before, replicas, writers, own))


def _by(before: Written | None, replicas: int, writers: Writers, own: str) -> str | None:
    if writers.of_scales:
        return _latest(writers.owners, own)
    if before is None:
        return None
    if replicas == before.replicas:
        return before.by
    return _latest(writers.owners - before.writers.owners, own)


def _latest(owners: frozenset[Writer], own: str) -> str | None:
    """Who wrote last of these; None if we have written the same number."""
    if not owners or any(owner.manager == own for owner in owners):
        return None
    # One without a time wrote through a scale, which took the field from all others: they came later.
    return max(owners, key=lambda owner: (owner.time, owner.manager)).manager


def _manager(entry: Mapping[str, Any]) -> str:
    return str(entry.get("manager") or "unknown")


def _has_replicas(entry: Mapping[str, Any]) -> bool:
    return "f:replicas" in ((entry.get("fieldsV1") or {}).get("f:spec") or {})


def scales(autoscaler: Mapping[str, Any], ref: TargetRef) -> bool:
    """Whether a HorizontalPodAutoscaler, a KEDA ScaledObject, or whatever else has a spec.scaleTargetRef scales this
    target. As KEDA has it, a reference without a kind is one to a Deployment. Versions of a group are of the same.
    """
    target: Mapping[str, Any] = (autoscaler.get("spec") or {}).get("scaleTargetRef") or {}
    api_version, kind = str(target.get("apiVersion") or ""), str(target.get("kind") or _KIND)
    if not api_version and kind in {_KIND, "StatefulSet"}:
        api_version = _API_VERSION
    group = api_version.rpartition("/")[0]
    found = (metadata(autoscaler).get("namespace"), target.get("name"), group, kind)
    return found == (ref.namespace, ref.name, ref.resource.group, ref.resource.kind)
