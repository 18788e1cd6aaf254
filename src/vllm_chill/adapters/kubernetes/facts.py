"""Objects of the API parsed into facts, once; the rest of them is let go. What is left out is the usual."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vllm_chill.adapters.kubernetes.client import Json
from vllm_chill.adapters.kubernetes.deletion_costs import is_doomed
from vllm_chill.core.engine_port import engine_container, engine_port
from vllm_chill.core.gpu import requested_gpus
from vllm_chill.core.objects import digest
from vllm_chill.core.pods import ContainerFacts, PodFacts, Unplaced
from vllm_chill.core.startup import WorkloadFacts
from vllm_chill.core.target import DEPLOYMENTS, STATEFUL_SETS, Endpoint, TargetRef
from vllm_chill.core.writers import Writers, writers_of

_REVISION = "pod-template-hash"
_REVISION_OF_SETS = "controller-revision-hash"
_IMAGES_OWN = ("vllm", "serve")
"""What vLLM's image runs where the Deployment does not say."""
# What the API server says of a pod that it will not take however often it is asked; a webhook's timeout is not there.
_FOR_GOOD = ("is forbidden", "is invalid", "exceeded quota")


@dataclass(frozen=True, slots=True)
class Workload:
    """A Deployment, or what is like one: its facts, and the label selector of its pods as a query has it.

    `command` is what its first container runs, as far as that is written, and `template` names its pod template;
    `writers` own its number of replicas. `version` is the object's resource version, empty where it is not known.
    `gpus` are those that a pod asks for, None if it names none.
    """

    facts: WorkloadFacts
    selector: str
    command: tuple[str, ...] = ()
    template: str = ""
    writers: Writers = field(default_factory=Writers)
    version: str = ""
    gpus: int | None = None


def workload(deployment: Json) -> Workload:
    """The facts of a Deployment or a StatefulSet. A spec without replicas asks for one."""
    spec, status = deployment["spec"], deployment.get("status") or {}
    replicas = spec.get("replicas")
    # A status of an older spec tells of a start before this one.
    current = status.get("observedGeneration", 0) >= deployment["metadata"].get("generation", 0)
    facts = WorkloadFacts(1 if replicas is None else replicas, _refused(status) if current else None)
    template = spec.get("template") or {}
    return Workload(
        facts,
        label_selector(spec["selector"]),
        _command(template),
        digest(template),
        writers_of(deployment),
        str(deployment["metadata"].get("resourceVersion") or ""),
        _gpus(template),
    )


def _command(template: Json) -> tuple[str, ...]:
    containers = (template.get("spec") or {}).get("containers") or [{}]
    command, args = containers[0].get("command") or _IMAGES_OWN, containers[0].get("args") or []
    return (*map(str, command), *map(str, args))


def _gpus(template: Json) -> int | None:
    resources = [container.get("resources") or {} for container in (template.get("spec") or {}).get("containers") or []]
    # Of what cannot be shared a limit is a request too.
    found = [requested_gpus({**(one.get("requests") or {}), **(one.get("limits") or {})}) for one in resources]
    counts = [count for count in found if count is not None]
    return sum(counts) if counts else None


def label_selector(selector: Json) -> str:
    """A Deployment's spec.selector in the form of a labelSelector query."""
    terms = [f"{key}={value}" for key, value in (selector.get("matchLabels") or {}).items()]
    for term in selector.get("matchExpressions") or []:
        key, values = term["key"], ",".join(term.get("values") or [])
        match term["operator"]:
            case "Exists":
                terms.append(key)
            case "DoesNotExist":
                terms.append(f"!{key}")
            case operator:
                terms.append(f"{key} {'in' if operator == 'In' else 'notin'} ({values})")
    return ",".join(terms)


def pod_facts(pod: Json, target: TargetRef, port: int) -> PodFacts | None:
    """The facts of a pod, or None if it is not this target's, whatever its labels say.

    A Deployment's pods belong to a ReplicaSet that is named for it and for the pod's template; that name is in the
    pod, so ReplicaSets need not be read. A StatefulSet's are its own. What lies between other kinds and their pods is
    not known: there the labels count. `port` is the Service's: see `engine_port`.
    """
    metadata, spec, status = pod["metadata"], pod.get("spec") or {}, pod.get("status") or {}
    labels = metadata.get("labels") or {}
    revision = labels.get(_REVISION) or labels.get(_REVISION_OF_SETS, "")
    if not _is_of(metadata, target, revision):
        return None
    address = status.get("podIP")
    return PodFacts(
        name=metadata["name"],
        revision=revision,
        created=metadata.get("creationTimestamp") or "",
        ready=_is_ready(status),
        terminating=metadata.get("deletionTimestamp") is not None,
        ended=status.get("phase") in {"Succeeded", "Failed"},
        containers=tuple(
            _container(container, init=kind == "initContainerStatuses")
            for kind in ("initContainerStatuses", "containerStatuses")
            for container in status.get(kind) or []
        ),
        endpoint=Endpoint(address, engine_port(spec, port)) if address else None,
        unplaced=None if spec.get("nodeName") else _unplaced(status),
        doomed=is_doomed(pod),
        engine=engine_container(pod, port),
    )


def _is_of(pod: Json, target: TargetRef, revision: str) -> bool:
    match target.resource:
        case kind if kind == DEPLOYMENTS:
            owner = ("ReplicaSet", f"{target.name}-{revision}")
        case kind if kind == STATEFUL_SETS:
            owner = (kind.kind, target.name)
        case _:
            return True
    owners: list[Json] = pod.get("ownerReferences") or []
    return any(each.get("controller") and (each["kind"], each["name"]) == owner for each in owners)


def _container(status: Json, *, init: bool) -> ContainerFacts:
    state = status.get("state") or {}
    waiting: Json = state.get("waiting") or {}
    last: Json = state.get("terminated") or (status.get("lastState") or {}).get("terminated") or {}
    return ContainerFacts(
        name=status["name"],
        waiting=waiting.get("reason"),
        message=waiting.get("message") or "",
        restarts=status.get("restartCount") or 0,
        exit_code=last.get("exitCode"),
        exit_reason=last.get("reason") or "",
        init=init,
        running="running" in state,
        ended_at=last.get("finishedAt") or "",
    )


def _unplaced(status: Json) -> Unplaced:
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            # One that is held back on purpose has another reason, such as SchedulingGated.
            return Unplaced(condition.get("message") or "", no_room=condition.get("reason") == "Unschedulable")
    return Unplaced()


def _is_ready(status: Json) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions") or [])


def _refused(status: Json) -> str | None:
    conditions: list[dict[str, Any]] = status.get("conditions") or []
    for condition in conditions:
        message = condition.get("message") or ""
        if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
            return message if any(words in message for words in _FOR_GOOD) else None
    return None
