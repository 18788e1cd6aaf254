"""A start on Kubernetes, read off what the cluster says. Pure: facts of a workload and its pods in, an observation out.

The rule: a failure is only what waiting does not mend, and it never outweighs a pod that serves. A pull that may
succeed when it is tried again, a pod that no node has room for yet (a node may be added), one single crash: those are
waited for, with words for it in the progress. What no node has had room for too long is given up, and the start's own
deadline ends the rest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vllm_chill.core.pods import (
    ContainerFacts,
    PodFacts,
    has_begun,
    is_crash_loop,
    is_live,
    is_ready,
)
from vllm_chill.core.target import DEPLOYMENTS, Endpoint, Observation, Progress, Replica, Stage, TargetRef

UNSCHEDULABLE_SECONDS = 60.0
_MESSAGE_CHARACTERS = 300

_HINTS = {
    "ErrImagePull": "check the image's name and the pull secret",
    "ImagePullBackOff": "check the image's name and the pull secret",
    "ErrImageNeverPull": "the image is not on the node and imagePullPolicy is Never",
    "InvalidImageName": "correct the image's name",
    "CreateContainerConfigError": "check the Secrets and ConfigMaps that it names",
    "CreateContainerError": "check its command, mounts and security context",
    "RunContainerError": "check its command and its devices",
}
# What a registry or the way to it says when the next try, which the kubelet makes by itself, may well succeed.
_MAY_PASS = (
    "timeout",
    "timed out",
    "deadline exceeded",
    "connection refused",
    "connection reset",
    "unreachable",
    "eof",
    "temporary failure",
    "too many requests",
    "toomanyrequests",
    "internal server error",
    "bad gateway",
    "service unavailable",
)


@dataclass(frozen=True, slots=True)
class WorkloadFacts:
    """One Deployment, or what is like one: the replicas it asks for, why it cannot create pods, if it says so, and who
    else set the number, if that is told.
    """

    replicas: int
    refused: str | None = None
    replicas_by: str | None = None


@dataclass(frozen=True, slots=True)
class Terms:
    """Which target it is, where its Service is, and for how long a pod may find no node, in seconds."""

    ref: TargetRef
    endpoint: Endpoint
    unschedulable_seconds: float = UNSCHEDULABLE_SECONDS


def missing(ref: TargetRef) -> str:
    """The sentence for a target that is not there."""
    settings = ", or set --deployment and --namespace" if ref.resource == DEPLOYMENTS else ""
    return f"{ref.named} does not exist: create it{settings}"


def observation(terms: Terms, workload: WorkloadFacts | None, pods: Iterable[PodFacts], now: float) -> Observation:
    """What the target is at `now`. `pods` are those of the workload; requests go to its Service while one is ready."""
    if workload is None:
        return Observation(0, 0, failure=missing(terms.ref))
    pods = tuple(sorted(pods, key=lambda pod: (pod.created, pod.name)))
    live = tuple(pod for pod in pods if is_live(pod))
    members = tuple(Replica(pod.name, pod.endpoint, is_ready(pod), progress(pod), pod.restarts) for pod in live)
    terminating = sum(pod.terminating and not pod.ended for pod in pods)
    if workload.replicas == 0:
        return Observation(0, len(live), members=members, terminating=terminating, replicas_by=workload.replicas_by)
    furthest = max((member.progress for member in members), key=lambda at: at.stage, default=None)
    serving = frozenset(member.name for member in members if member.ready)
    return Observation(
        workload.replicas,
        len(live),
        endpoints=(terms.endpoint,) if serving else (),
        failure=None if serving else _failure(terms, workload, pods, now),
        serving=serving,
        members=members,
        progress=furthest or Progress(Stage.REQUESTED, _short(workload.refused or "")),
        terminating=terminating,
        replicas_by=workload.replicas_by,
    )


def gives_up_at(terms: Terms, pods: Iterable[PodFacts], now: float) -> float | None:
    """When an observation of the same facts will be another than at `now`; None if it never will."""
    times = (time for pod in pods if is_live(pod) and (time := _patience_ends(terms, pod)) is not None)
    return min((time for time in times if time > now), default=None)


def progress(pod: PodFacts) -> Progress:
    """How far the start of a live pod is, as its status and its events tell."""
    if pod.ready:
        return Progress(Stage.ANSWERING)
    if pod.unplaced is not None:
        return Progress(Stage.SCHEDULING, _short(pod.unplaced.words))
    if has_begun(pod):
        return Progress(Stage.STARTING, next(map(_last_end, filter(_is_down, pod.containers)), ""))
    if pod.pulling:
        return Progress(Stage.PULLING, _short(pod.pulling))
    for container in pod.containers:
        if container.waiting in {"ErrImagePull", "ImagePullBackOff"}:
            return Progress(Stage.PULLING, _short(f"{container.waiting}: {container.message}"))
    running = [container.name for container in pod.containers if container.init and container.running]
    return Progress(Stage.CREATING, f"init container {running[-1]} runs" if running else "")


def pod_failure(terms: Terms, pod: PodFacts, now: float) -> str | None:
    """Why this pod will not become ready by waiting, as a sentence without a full stop."""
    why = _no_room(terms, pod, now)
    for container in pod.containers:
        why = why or (_crash_loop(terms.ref, pod, container) if is_crash_loop(container) else _stuck(container))
    return why and f"pod {pod.name} cannot start: {why}"


def _failure(terms: Terms, workload: WorkloadFacts, pods: tuple[PodFacts, ...], now: float) -> str | None:
    live = [pod for pod in pods if is_live(pod)]
    if not live:
        # A pod on its way out may hold the quota that the next one waits for.
        refused = workload.refused if all(pod.ended for pod in pods) else None
        return refused and f"{terms.ref.named} cannot start a pod: {_short(refused)}"
    # Pods of an older template are on their way out; what ails them may be what the newer one mends.
    newest = max(live, key=lambda pod: pod.created).revision
    causes = [pod_failure(terms, pod, now) for pod in live if pod.revision == newest]
    return causes[0] if all(causes) else None


def _patience_ends(terms: Terms, pod: PodFacts) -> float | None:
    if pod.unplaced is None or not pod.unplaced.no_room or pod.unplaced.since is None:
        return None
    return pod.unplaced.since + terms.unschedulable_seconds


def _no_room(terms: Terms, pod: PodFacts, now: float) -> str | None:
    end = _patience_ends(terms, pod)
    if pod.unplaced is None or end is None or now < end:
        return None
    words = f": {_short(pod.unplaced.words)}" if pod.unplaced.words else ""
    return (
        f"Unschedulable: no node has had room for it for {terms.unschedulable_seconds:g} s{words}; make room, add a "
        "node, or raise --unschedulable-after to the time that a new node takes"
    )


def _crash_loop(ref: TargetRef, pod: PodFacts, container: ContainerFacts) -> str:
    times = "once" if container.restarts == 1 else f"{container.restarts} times"
    how = f"{container.waiting}: {_last_end(container)} and was restarted {times}"
    if container.log:
        return f"{how}; its last output was: {container.log}"
    return f"{how}; see `kubectl logs -n {ref.namespace} {pod.name} -c {container.name} --previous`"


def _is_down(container: ContainerFacts) -> bool:
    return not container.init and not container.running


def _last_end(container: ContainerFacts) -> str:
    code = "" if container.exit_code is None else f" with exit code {container.exit_code}"
    reason = f" ({container.exit_reason})" if container.exit_reason not in {"", "Error"} else ""
    return f"container {container.name} ended{code}{reason}"


def _stuck(container: ContainerFacts) -> str | None:
    hint = _HINTS.get(container.waiting or "")
    if hint is None or (container.waiting == "ErrImagePull" and _may_pass(container.message)):
        return None
    message = f"{_short(container.message)}; " if container.message else ""
    return f"{container.waiting}: container {container.name}: {message}{hint}"


def _may_pass(message: str) -> bool:
    return any(words in message.lower() for words in _MAY_PASS)


def _short(message: str) -> str:
    line = " ".join(message.split()).rstrip(".")
    return line if len(line) <= _MESSAGE_CHARACTERS else line[: _MESSAGE_CHARACTERS - 1] + "…"
