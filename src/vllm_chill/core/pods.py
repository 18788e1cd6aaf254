"""Pods as values: what their status says, and what is remembered of them because it no longer says it.

The rule: facts are parsed once and never guessed; what they mean for a start is in `core.startup`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from vllm_chill.core.target import Endpoint

CRASHES_FORGIVEN = 1


@dataclass(frozen=True, slots=True)
class ContainerFacts:
    """One container of a pod: why it waits, if it does, and how its last run ended, if one has.

    `init`: one that runs before the others. `ended_at` names the moment of the last end, `ends` counts the ends that
    are remembered; `log` is the last of what a run that ended wrote, where that was read.
    """

    name: str
    waiting: str | None = None
    message: str = ""
    restarts: int = 0
    exit_code: int | None = None
    exit_reason: str = ""
    init: bool = False
    running: bool = False
    ended_at: str = ""
    ends: int = 0
    log: str = ""


@dataclass(frozen=True, slots=True)
class Unplaced:
    """That a pod has no node: the scheduler's words for it, once it has said any.

    `no_room`: the scheduler has tried and found no node, and `since` is since when that counts, in seconds.
    """

    words: str = ""
    no_room: bool = False
    since: float | None = None


@dataclass(frozen=True, slots=True)
class PodFacts:
    """One pod. `revision` names the pod template it is of; `created` sorts as text; `ended` is Succeeded or Failed.

    `endpoint` is its own address, None while it has none; `pulling` says which image is being pulled for it, where
    that is known. `doomed`: it is marked as one of the first to go when there are to be fewer.
    """

    name: str
    revision: str = ""
    created: str = ""
    ready: bool = False
    terminating: bool = False
    ended: bool = False
    containers: tuple[ContainerFacts, ...] = ()
    endpoint: Endpoint | None = None
    unplaced: Unplaced | None = None
    pulling: str = ""
    doomed: bool = False
    engine: str = ""

    @property
    def restarts(self) -> int:
        """How often its containers were started again, as far as is known."""
        return sum(max(container.restarts, container.ends) for container in self.containers if not container.init)


@dataclass(frozen=True, slots=True)
class PodPast:
    """What was seen of a pod before: since when no node has had room for it, and each container's ends.

    The time for which another pod of the workload was on its way out does not count. An end is kept as its moment and
    how many there were; they are counted because a kubelet that first speaks of a crash loop has restarted once.
    """

    no_room_since: float | None = None
    ends: Mapping[str, tuple[str, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ContainerRun:
    """One run of a container, by its pod, its name and how often that was restarted before. `part` says what of the pod
    it is, empty for the engine. `running`: it has not ended, as far as is known.
    """

    pod: str
    container: str
    number: int
    part: str = ""
    running: bool = False


def run_of(pod: PodFacts) -> ContainerRun | None:
    """The run of a pod whose output tells how it is: the engine's once that has begun; before, that of the init
    container that runs, or that last failed, or else that ended last. None if nothing has begun.
    """
    begun = [c for c in pod.containers if c.running or c.restarts or c.ended_at]
    engines = [c for c in begun if not c.init and c.name == pod.engine]
    inits = [c for c in begun if c.init]
    running = [c for c in inits if c.running]
    failed = [c for c in inits if c.exit_code not in (None, 0)]
    for found in (engines, running, failed, inits, begun):
        if found:
            container = found[-1]
            is_engine = not container.init and container.name == pod.engine
            part = "" if is_engine else f"container {container.name}"
            return ContainerRun(pod.name, container.name, container.restarts, part, container.running)
    return None


def is_live(pod: PodFacts) -> bool:
    """Whether the pod exists for the target: it has neither ended nor been told to."""
    return not pod.terminating and not pod.ended


def is_ready(pod: PodFacts) -> bool:
    """Whether the pod may get a request. A terminating pod may not, whatever its readiness probe says."""
    return pod.ready and is_live(pod)


def has_begun(pod: PodFacts) -> bool:
    """Whether all of its containers have been run, be it that they ended again."""
    containers = [container for container in pod.containers if not container.init]
    return bool(containers) and all(c.running or c.restarts or c.ended_at for c in containers)


def is_being_made(pod: PodFacts) -> bool:
    """Whether it has a node, and not all of its containers have been run: images may be pulled for it."""
    return is_live(pod) and pod.unplaced is None and not has_begun(pod)


def is_crash_loop(container: ContainerFacts) -> bool:
    """Whether it keeps ending; a single end is forgiven."""
    return container.waiting == "CrashLoopBackOff" and max(container.restarts, container.ends) > CRASHES_FORGIVEN


def remembered(past: Mapping[str, PodPast], pods: Mapping[str, PodFacts], now: float) -> dict[str, PodPast]:
    """The past of a workload's pods, by name, as they are seen at `now`; `past` is what was remembered before."""
    # The room that the next one waits for may be that of one on its way out.
    leaving = any(pod.terminating and not pod.ended for pod in pods.values())
    return {name: _remembered(past.get(name, PodPast()), pod, None if leaving else now) for name, pod in pods.items()}


def _remembered(past: PodPast, pod: PodFacts, counts_from: float | None) -> PodPast:
    since = None
    if pod.unplaced is not None and pod.unplaced.no_room and counts_from is not None:
        since = counts_from if past.no_room_since is None else past.no_room_since
    ends = dict(past.ends)
    for container in pod.containers:
        moment, count = ends.get(container.name, ("", 0))
        if container.ended_at not in {"", moment}:
            ends[container.name] = (container.ended_at, count + 1)
    return PodPast(since, ends)


def recalled(pod: PodFacts, past: PodPast) -> PodFacts:
    """The pod's facts with what is remembered of it."""
    unplaced = pod.unplaced and replace(pod.unplaced, since=past.no_room_since)
    containers = tuple(replace(c, ends=past.ends.get(c.name, ("", 0))[1]) for c in pod.containers)
    return replace(pod, unplaced=unplaced, containers=containers)
