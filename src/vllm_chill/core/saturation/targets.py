"""What a cluster's objects say of the targets of variants, and what is kept of each. Pure.

The rule: of an object only what is needed here is kept, as a cluster has thousands of pods; anything may be missing in
one, and nothing here raises for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from typing import Any

from vllm_chill.core.engine_port import metrics_port
from vllm_chill.core.objects import Json, labels_of, metadata
from vllm_chill.core.saturation.gpus import NodeSeen, accelerator_name, gpus_of
from vllm_chill.core.saturation.ownership import Owner, controller_of
from vllm_chill.core.saturation.places import PodPlace
from vllm_chill.core.target import Endpoint

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class PodSeen:
    """A pod that has not ended. `since` is since when it is ready or not, in seconds since 1970; `live`: nobody has
    told it to end. `gpus` are those that it takes on `node`, by resource; without a node that is "".
    """

    namespace: str
    name: str
    uid: str
    owner: Owner | None
    labels: Labels
    endpoint: Endpoint | None
    ready: bool
    since: float | None
    live: bool
    node: str
    gpus: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class WorkloadSeen:
    """What has a scale: a Deployment, a StatefulSet, or anything else. `replicas` it is asked to have; `existing` and
    `ready` are what it says that it has. `gpus` are those of one replica by its template, and `accelerator` is the one
    that its template asks for, "" and 0 if it has none. `selector` is that of its pods, for what is not known to own
    them, else None.
    """

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str
    owner: Owner | None
    labels: Labels
    version: str
    generation: int
    deleted: bool
    replicas: int
    existing: int
    ready: int | None
    gpus: int
    accelerator: str
    selector: str | None = None

    @property
    def at_any_version(self) -> WorkloadSeen:
        """The same but for what each write changes."""
        return replace(self, version="")


@dataclass(frozen=True, slots=True)
class TargetPod:
    """A replica that exists, and is not on its way out; `since` is since when it is ready or not, in seconds since
    1970, None where nobody says. `placed`: it has a node.
    """

    place: PodPlace
    ready: bool
    since: float | None = None
    placed: bool = True


@dataclass(frozen=True, slots=True)
class TargetFacts:
    """What a target is at one moment. `replicas` it is asked to have, `existing` are there, and `ready` of them are
    ready; one of them has `gpus` GPUs, 1 where nothing is said. `accelerator` is that of the nodes of its pods, most of
    them if they differ, else what its pods ask for; "" if that is not known. `deleted`: it is on its way out, and
    `version` is its resourceVersion.
    """

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str
    version: str
    generation: int
    deleted: bool
    replicas: int
    existing: int
    ready: int
    gpus: int
    accelerator: str
    labels: Mapping[str, str]
    pods: tuple[TargetPod, ...] = ()

    @property
    def ready_places(self) -> tuple[PodPlace, ...]:
        """Where its ready pods are."""
        return tuple(pod.place for pod in self.pods if pod.ready)

    @property
    def unplaced(self) -> int:
        """How many of the replicas that it is asked to have take no GPU on any node yet."""
        return max(0, self.replicas - sum(pod.placed for pod in self.pods))


def pod_seen(pod: Json) -> PodSeen | None:
    """What is kept of a pod; None for one that has ended."""
    of, spec, status = metadata(pod), pod.get("spec") or {}, pod.get("status") or {}
    if status.get("phase") in {"Succeeded", "Failed"}:
        return None
    ready: Mapping[str, Any] = next(
        (each for each in status.get("conditions") or () if each.get("type") == "Ready"), {}
    )
    address = status.get("podIP")
    return PodSeen(
        namespace=of.get("namespace", ""),
        name=of["name"],
        uid=of.get("uid", ""),
        owner=controller_of(pod),
        labels=_labels(pod),
        endpoint=Endpoint(address, metrics_port(pod)) if address else None,
        ready=ready.get("status") == "True",
        since=_seconds(ready.get("lastTransitionTime")),
        live=not of.get("deletionTimestamp"),
        node=spec.get("nodeName") or "",
        gpus=gpus_of(spec),
    )


def workload_seen(item: Json, api_version: str, kind: str) -> WorkloadSeen:
    """What is kept of a Deployment or a StatefulSet, or of what is made like one. Without a number it asks for one."""
    of, spec, status = metadata(item), item.get("spec") or {}, item.get("status") or {}
    replicas = spec.get("replicas")
    template = spec.get("template")
    pods: Mapping[str, Any] = (template.get("spec") if isinstance(template, dict) else None) or {}
    return WorkloadSeen(
        api_version=api_version,
        kind=kind,
        namespace=of.get("namespace", ""),
        name=of["name"],
        uid=of.get("uid", ""),
        owner=controller_of(item),
        labels=_labels(item),
        version=of.get("resourceVersion", ""),
        generation=of.get("generation", 0),
        deleted=bool(of.get("deletionTimestamp")),
        replicas=replicas if isinstance(replicas, int) else 1,
        existing=status.get("replicas") or 0,
        ready=status.get("readyReplicas") or 0,
        gpus=sum(count for _, count in gpus_of(pods)),
        accelerator=_asked_for(pods),
    )


def scaled(seen: WorkloadSeen, scale: Json) -> WorkloadSeen:
    """The same, of which only the scale tells how many there are, and by what selector its pods are found."""
    spec, status = scale.get("spec") or {}, scale.get("status") or {}
    return replace(
        seen,
        replicas=spec.get("replicas") or 0,
        existing=status.get("replicas") or 0,
        ready=None,
        selector=status.get("selector") or None,
    )


def target_facts(seen: WorkloadSeen, pods: Sequence[PodSeen], node: Callable[[str], NodeSeen | None]) -> TargetFacts:
    """What a target is, with those of its pods that are live; `node` is what is known of a node by its name."""
    live = sorted((pod for pod in pods if pod.live), key=lambda pod: pod.name)
    of_pods = max((sum(count for _, count in pod.gpus) for pod in live), default=0)
    return TargetFacts(
        api_version=seen.api_version,
        kind=seen.kind,
        namespace=seen.namespace,
        name=seen.name,
        uid=seen.uid,
        version=seen.version,
        generation=seen.generation,
        deleted=seen.deleted,
        replicas=seen.replicas,
        existing=seen.existing,
        ready=sum(pod.ready for pod in live) if seen.ready is None else seen.ready,
        gpus=seen.gpus or of_pods or 1,
        accelerator=_accelerator(live, node) or seen.accelerator,
        labels=dict(seen.labels),
        pods=tuple(TargetPod(PodPlace(pod.name, pod.endpoint), pod.ready, pod.since, bool(pod.node)) for pod in live),
    )


def _accelerator(pods: Sequence[PodSeen], node: Callable[[str], NodeSeen | None]) -> str:
    found: Counter[str] = Counter()
    for pod in pods:
        on = node(pod.node)
        if on is not None:
            found[on.accelerator(resource for resource, _ in pod.gpus)] += 1
    del found[""]
    return min(found, key=lambda name: (-found[name], name), default="")


def _asked_for(spec: Mapping[str, Any]) -> str:
    """The accelerator whose nodes a pod is for: by its nodeSelector."""
    chosen: Mapping[str, Any] = spec.get("nodeSelector") or {}
    named = (value for key, value in chosen.items() if key.endswith(("/gpu.product", "/gpu.product-name")))
    return next((accelerator_name(str(value)) for value in named), "")


def _labels(item: Json) -> Labels:
    return _same(tuple(sorted(labels_of(item).items())))


@lru_cache(maxsize=4096)
def _same(labels: Labels) -> Labels:
    """The labels that were seen before, if these are the same: pods of one template have them in common."""
    return labels


def _seconds(moment: object) -> float | None:
    try:
        return datetime.fromisoformat(str(moment)).timestamp()
    except ValueError:
        return None
