"""Objects of the API parsed into facts, once; the rest of them is let go. What is left out is the usual."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm_chill.adapters.kubernetes.client import Json
from vllm_chill.core.objects import digest
from vllm_chill.core.pods import ContainerFacts, PodFacts, Unplaced
from vllm_chill.core.startup import WorkloadFacts
from vllm_chill.core.target import Endpoint

_REVISION = "pod-template-hash"
_IMAGES_OWN = ("vllm", "serve")
"""What vLLM's image runs where the Deployment does not say."""
# What the API server says of a pod that it will not take however often it is asked; a webhook's timeout is not there.
_FOR_GOOD = ("is forbidden", "is invalid", "exceeded quota")


@dataclass(frozen=True, slots=True)
class Workload:
    """A Deployment: its facts, and the label selector of its pods as a query has it.

    `command` is what its first container runs, as far as that is written, and `template` names its pod template.
    """

    facts: WorkloadFacts
    selector: str
    command: tuple[str, ...] = ()
    template: str = ""


def workload(deployment: Json) -> Workload:
    """The facts of a Deployment. A spec without replicas asks for one."""
    spec, status = deployment["spec"], deployment.get("status") or {}
    replicas = spec.get("replicas")
    # A status of an older spec tells of a start before this one.
    current = status.get("observedGeneration", 0) >= deployment["metadata"].get("generation", 0)
    facts = WorkloadFacts(1 if replicas is None else replicas, _refused(status) if current else None)
    template = spec.get("template") or {}
    return Workload(facts, label_selector(spec["selector"]), _command(template), digest(template))


def _command(template: Json) -> tuple[str, ...]:
    containers = (template.get("spec") or {}).get("containers") or [{}]
    command, args = containers[0].get("command") or _IMAGES_OWN, containers[0].get("args") or []
    return (*map(str, command), *map(str, args))


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


def pod_facts(pod: Json, deployment: str, port: int) -> PodFacts | None:
    """The facts of a pod, or None if it is not this Deployment's, whatever its labels say.

    A Deployment's pods belong to a ReplicaSet that is named for it and for the pod's template; that name is in the
    pod, so ReplicaSets need not be read. `port` is the Service's: see `engine_port`.
    """
    metadata, spec, status = pod["metadata"], pod.get("spec") or {}, pod.get("status") or {}
    revision = (metadata.get("labels") or {}).get(_REVISION, "")
    owners = metadata.get("ownerReferences") or []
    name = f"{deployment}-{revision}"
    if not any(o["kind"] == "ReplicaSet" and o.get("controller") and o["name"] == name for o in owners):
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
    )


def engine_port(spec: Json, service_port: int) -> int:
    """The port that a pod's engine listens on, as its spec tells; Services need not be read for it.

    The first container port that is called http, as in deploy/example; else one of the Service's own number; else
    the first that is declared; and if none is, the Service's.
    """
    ports: list[Json] = [
        port
        for container in spec.get("containers") or []
        for port in container.get("ports") or []
        if port.get("protocol", "TCP") == "TCP"
    ]
    called_http = [port["containerPort"] for port in ports if port.get("name") == "http"]
    numbers = [port["containerPort"] for port in ports]
    return int(next(iter(called_http or [n for n in numbers if n == service_port] or numbers), service_port))


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
