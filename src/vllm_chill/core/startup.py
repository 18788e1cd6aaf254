"""A start on Kubernetes, read off what the cluster says. Pure: facts of a workload and its pods in, an observation out.

The rule: a failure is only what waiting does not mend, and it never outweighs a pod that serves. An image that is
still being pulled, a pod that no node has room for yet (a node may be added), one single crash: those are waited
for; the start's own deadline ends them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vllm_chill.core.target import Endpoint, Observation, TargetRef

CRASHES_FORGIVEN = 1
_MESSAGE_CHARACTERS = 300

_HINTS = {
    "ImagePullBackOff": "check the image's name and the pull secret",
    "ErrImageNeverPull": "the image is not on the node and imagePullPolicy is Never",
    "InvalidImageName": "correct the image's name",
    "CreateContainerConfigError": "check the Secrets and ConfigMaps that it names",
    "CreateContainerError": "check its command, mounts and security context",
    "RunContainerError": "check its command and its devices",
}


@dataclass(frozen=True, slots=True)
class ContainerFacts:
    """One container of a pod: why it waits, if it does, and how its last run ended, if one has."""

    name: str
    waiting: str | None = None
    message: str = ""
    restarts: int = 0
    exit_code: int | None = None
    exit_reason: str = ""


@dataclass(frozen=True, slots=True)
class PodFacts:
    """One pod. `revision` names the pod template it is of; `created` sorts as text; `ended` is Succeeded or Failed."""

    name: str
    revision: str = ""
    created: str = ""
    ready: bool = False
    terminating: bool = False
    ended: bool = False
    containers: tuple[ContainerFacts, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkloadFacts:
    """One Deployment: the replicas it asks for, and why it cannot create pods, if it says so."""

    replicas: int
    refused: str | None = None


def is_live(pod: PodFacts) -> bool:
    """Whether the pod exists for the target: it has neither ended nor been told to."""
    return not pod.terminating and not pod.ended


def is_ready(pod: PodFacts) -> bool:
    """Whether the pod may get a request. A terminating pod may not, whatever its readiness probe says."""
    return pod.ready and is_live(pod)


def missing(ref: TargetRef) -> str:
    """The sentence for a Deployment that is not there."""
    return f"Deployment {ref} does not exist: create it, or set --deployment and --namespace"


def observation(
    ref: TargetRef, workload: WorkloadFacts | None, pods: Iterable[PodFacts], endpoint: Endpoint
) -> Observation:
    """What the target is. `pods` are those of the workload; requests go to `endpoint` while one of them is ready."""
    if workload is None:
        return Observation(0, 0, failure=missing(ref))
    pods = tuple(pods)
    live = tuple(pod for pod in pods if is_live(pod))
    if workload.replicas == 0:
        return Observation(0, len(live))
    if serving := frozenset(pod.name for pod in live if is_ready(pod)):
        return Observation(workload.replicas, len(live), (endpoint,), serving=serving)
    return Observation(workload.replicas, len(live), failure=_failure(ref, workload, pods, live))


def pod_failure(ref: TargetRef, pod: PodFacts) -> str | None:
    """Why this pod will not become ready by waiting, as a sentence without a full stop."""
    for container in pod.containers:
        why = _crash_loop(ref, pod, container) if container.waiting == "CrashLoopBackOff" else _stuck(container)
        if why is not None:
            return f"pod {pod.name} cannot start: {container.waiting}: {why}"
    return None


def _failure(
    ref: TargetRef, workload: WorkloadFacts, pods: tuple[PodFacts, ...], live: tuple[PodFacts, ...]
) -> str | None:
    if not live:
        # A pod on its way out may hold the quota that the next one waits for.
        refused = workload.refused if all(pod.ended for pod in pods) else None
        return refused and f"Deployment {ref} cannot start a pod: {_short(refused)}"
    # Pods of an older template are on their way out; what ails them may be what the newer one mends.
    newest = max(live, key=lambda pod: pod.created).revision
    causes = [pod_failure(ref, pod) for pod in live if pod.revision == newest]
    return causes[0] if all(causes) else None


def _crash_loop(ref: TargetRef, pod: PodFacts, container: ContainerFacts) -> str | None:
    if container.restarts <= CRASHES_FORGIVEN:
        return None
    code = "" if container.exit_code is None else f" with exit code {container.exit_code}"
    reason = f" ({container.exit_reason})" if container.exit_reason not in {"", "Error"} else ""
    logs = f"kubectl logs -n {ref.namespace} {pod.name} -c {container.name} --previous"
    return f"container {container.name} ended{code}{reason} and was restarted {container.restarts} times; see `{logs}`"


def _stuck(container: ContainerFacts) -> str | None:
    hint = _HINTS.get(container.waiting or "")
    if hint is None:
        return None
    message = f"{_short(container.message)}; " if container.message else ""
    return f"container {container.name}: {message}{hint}"


def _short(message: str) -> str:
    line = " ".join(message.split()).rstrip(".")
    return line if len(line) <= _MESSAGE_CHARACTERS else line[: _MESSAGE_CHARACTERS - 1] + "…"
