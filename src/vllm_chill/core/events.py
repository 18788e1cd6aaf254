"""What can happen to a target: callers come and go, the backend tells, operators ask, time passes, writes end."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_chill.core.target import Observation, Shared, SleepReason


@dataclass(frozen=True, slots=True)
class Arrived:
    """A caller begins to wait for a lease."""


@dataclass(frozen=True, slots=True)
class Granted:
    """A waiting caller gets its lease; legal while the target is ready."""


@dataclass(frozen=True, slots=True)
class Left:
    """A waiting caller gives up."""


@dataclass(frozen=True, slots=True)
class Released:
    """A lease ends."""


@dataclass(frozen=True, slots=True)
class Observed:
    """The backend tells what it sees."""

    observation: Observation


@dataclass(frozen=True, slots=True)
class Lost:
    """The backend cannot see the target at present."""

    cause: str


@dataclass(frozen=True, slots=True)
class WakeAsked:
    """An operator wants the target awake, whether or not a request waits."""


@dataclass(frozen=True, slots=True)
class StopAsked:
    """An operator wants the target asleep as soon as its leases have ended."""


@dataclass(frozen=True, slots=True)
class WayGiven:
    """It is to sleep as soon as its leases have ended, for something else than an operator's wish."""

    reason: SleepReason


@dataclass(frozen=True, slots=True)
class HeldBack:
    """It may not be woken from now on, for this cause; None: it may again. What runs goes on."""

    cause: str | None


@dataclass(frozen=True, slots=True)
class WakeRefused:
    """It waits for its turn, and will never have one, for this cause."""

    cause: str


@dataclass(frozen=True, slots=True)
class Recommended:
    """So many replicas are wanted while it is awake, at least 1; None: as many as there are."""

    replicas: int | None


@dataclass(frozen=True, slots=True)
class Used:
    """Its engines are busy with what no lease is for: somebody reaches them by another way."""


@dataclass(frozen=True, slots=True)
class PeersTold:
    """What is known of the other proxies is this, and the target was in use there at `used_at`; None if never."""

    shared: Shared
    used_at: float | None = None


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class ScaleStarted:
    """The backend is being told a number of replicas, from this moment on."""

    replicas: int


@dataclass(frozen=True, slots=True)
class Scaled:
    """The backend took the number of replicas; what was last observed is at least as new as that."""

    replicas: int


@dataclass(frozen=True, slots=True)
class ScaleFailed:
    """The backend did not take the number; `final` if asking again would change nothing."""

    replicas: int
    cause: str
    final: bool


Event = (
    Arrived
    | Granted
    | Left
    | Released
    | Observed
    | Lost
    | WakeAsked
    | StopAsked
    | WayGiven
    | HeldBack
    | WakeRefused
    | Recommended
    | Used
    | PeersTold
    | Tick
    | ScaleStarted
    | Scaled
    | ScaleFailed
)
