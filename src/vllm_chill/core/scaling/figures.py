"""What is measured of one replica at this moment, for whoever wants to see it. Values."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vllm_chill.core.scaling.signals import Sample
from vllm_chill.core.scaling.track import Looked
from vllm_chill.core.target import Progress, Replica, Stage, Target


@dataclass(frozen=True, slots=True)
class ReplicaFigures:
    """One replica. `looked` is what was found at the last scrape that did not fail, None if there was none yet.

    `ready_since` is None while it is not ready; `gpu_percent` is how much its GPUs are used, 0 to 100, where that is
    told; `failure` says why the last scrape failed, None if it did not.
    """

    name: str
    ready_since: float | None
    looked: Looked | None = None
    gpu_percent: Sample | None = None
    failure: str | None = None


def measured_replicas(target: Target) -> tuple[Replica, ...]:
    """The replicas of a target that there are to be measured; `ready` says whether requests go to them.

    They are asked at their own addresses. Where a target has none to tell, what requests go to counts as one replica
    that is called as the target is. None while the target sleeps.
    """
    seen = target.observed
    if seen is None or not seen.replicas:
        return ()
    if any(replica.endpoint is not None for replica in seen.members) or not seen.endpoints:
        return tuple(replace(replica, ready=replica.name in seen.serving) for replica in seen.members)
    return (Replica(str(target.ref), seen.endpoints[0], ready=True, progress=Progress(Stage.ANSWERING)),)
