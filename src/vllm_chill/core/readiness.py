"""Which replicas are ready: what the backend says of them, and what probes have found.

The rule: a replica that a probe has found ready is ready, whether or not the backend says so yet, and stays it until
its container starts again or the backend takes back a Ready that it had given; from then on the backend's word alone
counts. So nobody waits for a kubelet's next look, and nobody overrules what it has seen since.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from vllm_chill.core.target import Endpoint, Observation, Progress, Replica, Stage

MODELS_PATH = "/v1/models"

_PAUSE_FIRST_SECONDS = 0.1
_PAUSE_MOST_SECONDS = 1.0
_EAGER_SECONDS = 60.0
_JITTER = 0.2
_NOT_PROGRAMMED = "it answers, and its Service waits for its Ready condition"


@dataclass(frozen=True, slots=True)
class Refused:
    """There was no connection to be had."""


@dataclass(frozen=True, slots=True)
class Unclear:
    """There was a connection, and no whole HTTP response on it in time."""


@dataclass(frozen=True, slots=True)
class Answered:
    """There was a response; `body` is empty if it was larger than is read."""

    status: int
    body: bytes = b""


Answer = Refused | Unclear | Answered


def health_found(answer: Answer) -> Stage | None:
    """How far a start is by the answer to a GET of the health path: LISTING if it is healthy, None if not known."""
    match answer:
        case Refused():
            return None
        case Answered(status=200):
            return Stage.LISTING
        case _:
            return Stage.LOADING


def list_found(answer: Answer) -> Stage | None:
    """How far the start of a healthy engine is by the answer to a GET of MODELS_PATH.

    Only a list without a model, or no proper answer, is to be waited for. An engine that has no such list, or shows
    it to nobody without a key, is as ready as can be seen.
    """
    match answer:
        case Refused():
            return None
        case Answered(status=200, body=body):
            return Stage.LISTING if _models(body) == [] else Stage.ANSWERING
        case Answered(status=status) if status < 500:
            return Stage.ANSWERING
        case _:
            return Stage.LISTING


def lists_models(answer: Answer) -> bool:
    """Whether the answer is a list with a model in it, in OpenAI's form."""
    return isinstance(answer, Answered) and answer.status == 200 and bool(_models(answer.body))


def _models(body: bytes) -> list[object] | None:
    try:
        listing = json.loads(body)
    except (ValueError, RecursionError):
        return None
    models = listing.get("data") if isinstance(listing, dict) else None
    return models if isinstance(models, list) else None


def pause_seconds(age_seconds: float, chance: float) -> float:
    """From the start of one look to the start of the next, at a replica that has been looked at for so long.

    A tenth of a second, and after the first minute in proportion to the age, up to a second: so a wait is never made
    longer by more than a 600th of itself, or a tenth of a second. `chance` (0 to 1) takes a fifth off, or adds one.
    """
    grown = _PAUSE_FIRST_SECONDS * max(1.0, age_seconds / _EAGER_SECONDS)
    return min(_PAUSE_MOST_SECONDS, grown) * (1 - _JITTER + 2 * _JITTER * chance)


@dataclass(frozen=True, slots=True)
class Probe:
    """What one prober looks at: a replica at its address, in the `run`-th life of its containers."""

    name: str
    endpoint: Endpoint
    run: int


@dataclass(frozen=True, slots=True)
class _Known:
    """One replica as it was last told, and what probes have found of it: None is that it takes no connection.

    `doubted`: the backend has taken its Ready back in this run.
    """

    replica: Replica
    run: int = 0
    found: Stage | None = None
    doubted: bool = False

    def told(self, now: Replica) -> _Known:
        before = self.replica
        began_anew = (
            now.restarts != before.restarts
            or now.endpoint != before.endpoint
            or now.progress.stage < Stage.STARTING <= before.progress.stage
        )
        if began_anew:
            return _Known(now, self.run + 1)
        return replace(self, replica=now, doubted=self.doubted or (before.ready and not now.ready))

    @property
    def ready(self) -> bool:
        return self.replica.ready or (self.found is Stage.ANSWERING and not self.doubted)

    @property
    def probe(self) -> Probe | None:
        """What there is still to find out. Of what the backend calls ready: only whether its address is right."""
        replica = self.replica
        done = self.found is not None if replica.ready else self.doubted or self.found is Stage.ANSWERING
        return None if done or replica.endpoint is None else Probe(replica.name, replica.endpoint, self.run)

    def progress(self, *, direct: bool) -> Progress:
        """How far its start is, by whoever has seen more of it."""
        told, found = self.replica.progress, self.found
        if self.replica.ready or (direct and self.ready):
            found = Stage.ANSWERING
        elif found is Stage.ANSWERING:
            return told if self.doubted else Progress(found, _NOT_PROGRAMMED)
        return told if found is None or found <= told.stage else Progress(found)


@dataclass(frozen=True, slots=True)
class Readiness:
    """A target as the backend told it last, and what probes have found of its replicas.

    `probed`: there are probes. `direct`: requests go to the replicas' own addresses; else to where the backend says,
    which is a Service, and that one waits for the backend's word whatever a probe finds.
    """

    probed: bool
    direct: bool
    seen: Observation | None = None
    _known: Mapping[str, _Known] = field(default_factory=dict)

    def told(self, seen: Observation) -> Readiness:
        """After the backend has told what it sees."""
        known = {}
        for replica in seen.members:
            before = self._known.get(replica.name)
            known[replica.name] = _Known(replica) if before is None else before.told(replica)
        return replace(self, seen=seen, _known=known)

    def found(self, probe: Probe, stage: Stage | None) -> Readiness:
        """After a probe has found that; what is found of a replica that is no more, or lives anew, is let go."""
        known = self._known.get(probe.name)
        if known is None or known.probe != probe or known.found is stage:
            return self
        return replace(self, _known={**self._known, probe.name: replace(known, found=stage)})

    @property
    def probes(self) -> frozenset[Probe]:
        """What is to be looked at now."""
        if not self.probed or self.seen is None or not self.seen.replicas:
            return frozenset()
        return frozenset(known.probe for known in self._known.values() if known.probe is not None)

    @property
    def observation(self) -> Observation:
        """What the target is, all in all. There must have been an observation."""
        seen = self.seen
        assert seen is not None
        if not seen.replicas or not seen.members:
            return seen
        members = tuple(
            replace(known.replica, progress=known.progress(direct=self.direct)) for known in self._known.values()
        )
        merged = replace(seen, members=members, progress=max((replica.progress for replica in members), key=_stage))
        if not self.direct:
            return merged
        ready = tuple(known.replica for known in self._known.values() if known.ready)
        own = tuple(dict.fromkeys(self._own_addresses()))
        endpoints = own or (seen.endpoints if ready else ())
        if not endpoints:
            return replace(merged, endpoints=(), serving=frozenset())
        return replace(merged, endpoints=endpoints, serving=frozenset(replica.name for replica in ready), failure=None)

    def _own_addresses(self) -> Iterator[Endpoint]:
        """Of the replicas that are ready; one that no probe has reached may have another port than is thought."""
        for known in self._known.values():
            endpoint = known.replica.endpoint
            if known.ready and endpoint is not None and (known.found is not None or not self.probed):
                yield endpoint


def _stage(progress: Progress) -> Stage:
    return progress.stage
