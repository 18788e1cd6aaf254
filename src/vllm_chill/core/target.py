"""A scale target as a value: which one it is, the phase of its life, and what was last seen of it.

Nothing here changes; `core.lifecycle.step` makes the next value from this one. Times are seconds on the
clock of whoever calls, and only ever compared with one another.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple

from msgspec import Struct


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind of object that can be scaled, as an API server has it. `group` is "" for the core group; `plural` is the
    kind as paths have it.
    """

    group: str
    version: str
    plural: str
    kind: str

    @property
    def api_version(self) -> str:
        """The version as objects say it, such as apps/v1."""
        return f"{self.group}/{self.version}" if self.group else self.version


DEPLOYMENTS = Resource("apps", "v1", "deployments", "Deployment")
STATEFUL_SETS = Resource("apps", "v1", "statefulsets", "StatefulSet")


@dataclass(frozen=True, slots=True)
class TargetRef:
    """The name of a scale target: an object in a namespace, mostly a Deployment, or a command on this machine.

    As text, which is what metrics and the log call it, a Deployment goes without its kind.
    """

    namespace: str
    name: str
    resource: Resource = DEPLOYMENTS

    @property
    def named(self) -> str:
        """The target for a sentence: with its kind."""
        return f"{self.resource.kind} {self.namespace}/{self.name}"

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.resource == DEPLOYMENTS else self.named


class Endpoint(NamedTuple):
    """Where requests go: a host name or IP address, and a TCP port. A tuple, as every request looks things up by it."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Stage(enum.IntEnum):
    """How far a cold start is, in the order of the stages; one that takes no time is not seen."""

    REQUESTED = 0
    """A replica is asked for and does not exist yet."""
    SCHEDULING = 1
    """It waits for a node with room."""
    PULLING = 2
    """Its image is being pulled."""
    CREATING = 3
    """Its container is being created."""
    STARTING = 4
    """The engine's process runs, and its port takes no connection."""
    LOADING = 5
    """The port takes connections, and the engine says that it is not healthy yet."""
    LISTING = 6
    """The engine is healthy, and its model is not listed yet."""
    ANSWERING = 7
    """The replica is ready, and no byte of a first answer has come."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a replica's start is; `detail` says more in words, such as the scheduler's, without a full stop."""

    stage: Stage
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Replica:
    """One replica that exists and is not terminating.

    `endpoint` is its own address, None while it has none. `ready` is the backend's own word for it (a pod's Ready
    condition); `progress` how far its start is; `restarts` how often its containers have been started again.
    """

    name: str
    endpoint: Endpoint | None
    ready: bool
    progress: Progress
    restarts: int = 0


@dataclass(frozen=True, slots=True)
class Observation:
    """What a backend sees of a target at one moment.

    `replicas` is the number asked for (a Deployment's spec.replicas); `live` how many exist and are not
    terminating; `endpoints` where requests can go now, empty while nothing is ready. `failure` says why the
    target will not become ready by waiting, and is None while it may. `serving` names the ready replicas, which
    may be several behind one endpoint. `members` are the replicas one by one, where the backend knows them;
    `progress` is how far the start is of the one that is farthest, None when nothing starts. `terminating` counts the
    replicas that are on their way out: they have their GPUs until they are gone. `replicas_by` names who set the number
    last if that was somebody else (a field manager), and is None where that cannot be told.
    """

    replicas: int
    live: int
    endpoints: tuple[Endpoint, ...] = ()
    failure: str | None = None
    serving: frozenset[str] = frozenset()
    members: tuple[Replica, ...] = ()
    progress: Progress | None = None
    terminating: int = 0
    replicas_by: str | None = None

    def departed_from(self, before: Observation) -> tuple[Endpoint, ...]:
        """The endpoints of `before` behind which a replica no longer serves: connections to them may lead to it.

        A replica's own address goes with that replica; an endpoint that is nobody's own (a Service's) with any of
        those that it stands for. The addresses of replicas that left before they were ready are among them.
        """
        ended = before.serving - self.serving
        own = dict.fromkeys(replica.endpoint for replica in before.members if replica.endpoint is not None)
        addresses = {replica.endpoint for replica in self.members}

        def departed(endpoint: Endpoint) -> bool:
            if endpoint not in before.endpoints:
                return endpoint not in self.endpoints and endpoint not in addresses
            if endpoint not in self.endpoints:
                return True
            if endpoint not in own:
                return bool(ended)
            return any(replica.endpoint == endpoint and replica.name in ended for replica in before.members)

        return tuple(endpoint for endpoint in dict.fromkeys((*before.endpoints, *own)) if departed(endpoint))


class SleepReason(enum.Enum):
    """Why a target is put to sleep."""

    IDLE = "idle"
    STOPPED = "stopped"
    ELSEWHERE = "scaled to 0 by someone else"
    ABANDONED = "nobody waited for it any more"
    SWITCHED = "another model takes its GPUs"
    REPLACED = "it starts again as its model now has it"
    RETIRED = "its model is gone"
    GIVEN_UP = "its start has failed"


@dataclass(frozen=True, slots=True)
class Unknown:
    """The backend has not yet said anything; `cause` is why, once that is known."""

    cause: str | None = None


@dataclass(frozen=True, slots=True)
class Asleep:
    """No replicas, nobody waits."""

    since: float


@dataclass(frozen=True, slots=True)
class Queued:
    """It is wanted, and held back: no replicas until that ends. `for_callers` as in Waking."""

    since: float
    for_callers: bool = False


@dataclass(frozen=True, slots=True)
class Waking:
    """At least one replica is wanted, none is ready.

    `confirmed`: the backend has been seen with a replica asked for since this phase began; a zero after that
    is someone else's. `trouble` is the last passing failure of the backend. `for_callers`: it was callers who woke
    it, and no operator has asked for it since.
    """

    since: float
    confirmed: bool
    trouble: str | None = None
    for_callers: bool = False


class Ready(Struct, frozen=True):
    """Requests are served. `idle_since` is when the last of them ended, or when the target became ready. A Struct, as
    Target is.
    """

    since: float
    idle_since: float


@dataclass(frozen=True, slots=True)
class Draining:
    """No new request is admitted; zero replicas are wanted once the last lease has ended.

    `confirmed`: the backend has been seen with zero asked for since this phase began. `wake_again`: an operator
    wants it awake right after.
    """

    since: float
    reason: SleepReason
    confirmed: bool
    wake_again: bool = False


@dataclass(frozen=True, slots=True)
class Failed:
    """The target will not become ready by waiting, and its replicas are given back.

    A request at or after `retry_at` wakes it again. `confirmed` as in Draining.
    """

    since: float
    cause: str
    retry_at: float
    confirmed: bool


Phase = Unknown | Asleep | Queued | Waking | Ready | Draining | Failed


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds a target's life, in seconds.

    `idle_seconds` of infinity: it is never put to sleep for being idle. `always_on`: it is woken without a caller.
    `keep_abandoned`: a wake goes on although the last caller that waited for it has left.
    `retry_first_seconds` and `retry_most_seconds` are the back-off between failed wakes: the first pause, and the
    bound that doubling stops at. `drain_seconds` is how long a replica that is to go may take to end its leases.
    """

    idle_seconds: float
    start_seconds: float
    retry_first_seconds: float = 5.0
    retry_most_seconds: float = 300.0
    keep_abandoned: bool = True
    always_on: bool = False
    drain_seconds: float = 600.0


class Shared(Struct, frozen=True):
    """How a target is shared with the other proxies that serve it: its peers.

    `leads`: this proxy may have any number of replicas written; else it may wake it, and no more. `told`: every peer
    has told lately how it uses the target. `in_use`: at one of them somebody has a lease, or waits; so many wait.
    `agreed`: every peer lets nobody in, and has no lease, until the target is at zero. `yields`: this proxy is to let
    nobody in, as another one takes the target to zero for this reason.
    """

    leads: bool = True
    told: bool = True
    in_use: bool = False
    waiting: int = 0
    agreed: bool = True
    yields: SleepReason | None = None


ALONE = Shared()
"""How it is with no other proxy."""


class Target(Struct, frozen=True):
    """One scale target, whole. A Struct, as each request makes two of them; `msgspec.structs.replace` changes one.

    `waiting` counts callers before their lease, `in_flight` leases; `sent` is the number of replicas that the
    backend is being told at this moment, if any; `failures` counts the failed wakes in a row. `held_back` says why it
    may not be woken now, None if it may. `recommended` is the number of replicas that is wanted while it is awake, None
    for as many as there are.
    """

    ref: TargetRef
    phase: Phase = Unknown()
    waiting: int = 0
    in_flight: int = 0
    observed: Observation | None = None
    sent: int | None = None
    failures: int = 0
    held_back: str | None = None
    recommended: int | None = None
    shared: Shared = ALONE
