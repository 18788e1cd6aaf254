"""Objects of the API parsed into facts, once; the rest of them is let go. What is left out is the usual."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm_chill.adapters.kubernetes.client import Json
from vllm_chill.core.startup import ContainerFacts, PodFacts, WorkloadFacts

_REVISION = "pod-template-hash"
# What the API server says of a pod that it will not take however often it is asked; a webhook's timeout is not there.
_FOR_GOOD = ("is forbidden", "is invalid", "exceeded quota")


@dataclass(frozen=True, slots=True)
class Workload:
    """A Deployment: its facts, and the label selector of its pods as a query has it."""

    facts: WorkloadFacts
    selector: str


def workload(deployment: Json) -> Workload:
    """The facts of a Deployment. A spec without replicas asks for one."""
    spec = deployment["spec"]
    replicas = spec.get("replicas")
    facts = WorkloadFacts(1 if replicas is None else replicas, _refused(deployment.get("status") or {}))
    return Workload(facts, label_selector(spec["selector"]))


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


def pod_facts(pod: Json, deployment: str) -> PodFacts | None:
    """The facts of a pod, or None if it is not this Deployment's, whatever its labels say.

    A Deployment's pods belong to a ReplicaSet that is named for it and for the pod's template; that name is in the
    pod, so ReplicaSets need not be read.
    """
    metadata, status = pod["metadata"], pod.get("status") or {}
    revision = (metadata.get("labels") or {}).get(_REVISION, "")
    owners = metadata.get("ownerReferences") or []
    name = f"{deployment}-{revision}"
    if not any(o["kind"] == "ReplicaSet" and o.get("controller") and o["name"] == name for o in owners):
        return None
    return PodFacts(
        name=metadata["name"],
        revision=revision,
        created=metadata.get("creationTimestamp") or "",
        ready=_is_ready(status),
        terminating=metadata.get("deletionTimestamp") is not None,
        ended=status.get("phase") in {"Succeeded", "Failed"},
        containers=tuple(
            _container(container)
            for kind in ("initContainerStatuses", "containerStatuses")
            for container in status.get(kind) or []
        ),
    )


def _container(status: Json) -> ContainerFacts:
    waiting: Json = (status.get("state") or {}).get("waiting") or {}
    last: Json = (status.get("lastState") or {}).get("terminated") or {}
    return ContainerFacts(
        name=status["name"],
        waiting=waiting.get("reason"),
        message=waiting.get("message") or "",
        restarts=status.get("restartCount") or 0,
        exit_code=last.get("exitCode"),
        exit_reason=last.get("reason") or "",
    )


def _is_ready(status: Json) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions") or [])


def _refused(status: Json) -> str | None:
    conditions: list[dict[str, Any]] = status.get("conditions") or []
    for condition in conditions:
        message = condition.get("message") or ""
        if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
            return message if any(words in message for words in _FOR_GOOD) else None
    return None
