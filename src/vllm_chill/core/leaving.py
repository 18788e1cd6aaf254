"""Which replicas go when there are to be fewer, and how they are seen off. Pure.

The rule: what serves nobody goes first, then what has the fewest leases; who was chosen stays chosen while there is
one to choose, so that its leases come to an end. A replica that is to go gets no new request from that moment.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import replace

from vllm_chill.core.target import Endpoint, Observation, Replica


def to_go(
    members: Collection[Replica],
    count: int,
    leases: Callable[[Endpoint], int],
    chosen: Collection[str] = (),
    *,
    ordered: bool = False,
) -> tuple[str, ...]:
    """The names of `count` replicas that are to go, first to go first; `chosen` were chosen before.

    `ordered`: the last by number go, as a StatefulSet has it, whatever they do.
    """

    def rank(replica: Replica) -> tuple[int, ...]:
        number = _number(replica.name)
        if ordered:
            return (-number,)
        taken = leases(replica.endpoint) if replica.endpoint is not None else 0
        return (replica.name not in chosen, replica.ready or bool(taken), taken, replica.progress.stage)

    return tuple(replica.name for replica in sorted(members, key=rank)[: max(0, count)])


def _number(name: str) -> int:
    found = re.search(r"-([0-9]+)$", name)
    return int(found[1]) if found else 0


def endpoints_of(members: Collection[Replica], names: Collection[str]) -> tuple[Endpoint, ...]:
    """The own addresses of these replicas."""
    return tuple(r.endpoint for r in members if r.name in names and r.endpoint is not None)


def without(seen: Observation, names: Collection[str]) -> Observation:
    """What is seen, with no new request for these replicas; as it is if there would be nowhere else to go."""
    if not names:
        return seen
    gone = endpoints_of(seen.members, names)
    endpoints = tuple(endpoint for endpoint in seen.endpoints if endpoint not in gone)
    return replace(seen, endpoints=endpoints) if endpoints and endpoints != seen.endpoints else seen
