"""Who leads, by a Lease that all candidates can read and write: what one of them does next. Pure.

The rule, as in client-go's leader election: whether a lease has run out is judged by how long ago, on the observer's
own steady clock, its record was last seen to change. The times in a record are for people: no two machines' clocks are
ever compared, so it does not matter what they show. What matters is that they run at about the same rate: two never
lead at a time as long as no clock is faster than another by more than `lease / renew_deadline`, 1.5 by default.

Every write rests on the record that was read before it (the store compares and sets), and whoever leads counts the
time that is left from before its last write began, not from when it was answered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import datetime

from vllm_chill.core.objects import Json
from vllm_chill.core.phrases import micro_timestamp

_JITTER = 1.2
"""By how much longer than the retry period the renew deadline must be, as client-go has it."""
_UNKNOWN = "unknown: the Lease was deleted"


@dataclass(frozen=True, slots=True)
class Terms:
    """How long a lease is good for without being renewed; how long after the last renewal its holder leads; how often
    it renews, and everybody else looks. In seconds; the defaults are those of Kubernetes' own controllers.

    Raises ValueError, a sentence, where they cannot work.
    """

    lease_seconds: float = 15.0
    renew_deadline_seconds: float = 10.0
    retry_seconds: float = 2.0

    def __post_init__(self) -> None:
        if not self.lease_seconds > self.renew_deadline_seconds:
            raise ValueError(
                f"the lease duration ({self.lease_seconds:g} s) must be longer than the renew deadline "
                f"({self.renew_deadline_seconds:g} s)"
            )
        if not self.renew_deadline_seconds > _JITTER * self.retry_seconds:
            raise ValueError(
                f"the renew deadline ({self.renew_deadline_seconds:g} s) must be longer than {_JITTER:g} times the "
                f"retry period ({self.retry_seconds:g} s)"
            )
        if not self.retry_seconds > 0:
            raise ValueError(f"the retry period ({self.retry_seconds:g} s) must be longer than zero")

    @property
    def call_seconds(self) -> float:
        """How long one call of the store may take: half of the renew deadline, so that there is time for another."""
        return self.renew_deadline_seconds / 2


def lease_terms_of(lease_seconds: float) -> Terms:
    """The terms of a lease that is good for so long, in the proportions of Kubernetes' own controllers."""
    return Terms(lease_seconds, lease_seconds * 2 / 3, lease_seconds * 2 / 15)


@dataclass(frozen=True, slots=True)
class Record:
    """What a Lease says: who holds it ("" for nobody), for how many seconds from its last change, since when, when it
    was renewed (both RFC 3339, for people), and how often it has gone from one to another.
    """

    holder: str = ""
    lease_seconds: int = 0
    acquired: str = ""
    renewed: str = ""
    transitions: int = 0


@dataclass(frozen=True, slots=True)
class Acquire:
    """Write this record: nobody else holds the lease."""

    record: Record


@dataclass(frozen=True, slots=True)
class Renew:
    """Write this record: the lease is held."""

    record: Record


@dataclass(frozen=True, slots=True)
class Wait:
    """Look again after so many seconds at the latest: somebody else holds the lease until then."""

    seconds: float


Move = Acquire | Renew | Wait


@dataclass(frozen=True, slots=True)
class StoredLease:
    """A record as a store has it. `item` is the store's own: what it needs to write over this and nothing newer."""

    record: Record
    item: Json


@dataclass(frozen=True, slots=True)
class Candidate:
    """One that may lead, and what it knows. `seen` is the record as it was last read or written, and `changed_at` when
    it was first so; it leads until `leads_until`. Both times are of its own steady clock, in seconds.

    `identity` is to be no other process's, not even the same pod's after a restart.
    """

    identity: str
    terms: Terms = Terms()
    seen: Record | None = None
    changed_at: float = -math.inf
    leads_until: float = -math.inf

    @property
    def holder(self) -> str:
        """Who is seen to hold the lease, whether or not it has run out; empty for nobody."""
        return "" if self.seen is None else self.seen.holder

    def leads(self, now: float) -> bool:
        """Whether it may act as the leader at this moment."""
        return now < self.leads_until


def observe(candidate: Candidate, record: Record | None, now: float) -> Candidate:
    """What it knows once it has read this record; None if there is no Lease."""
    if record is None:
        if candidate.seen is None or candidate.leads(now):
            return candidate
        # Whoever held a Lease that was deleted does not know it yet, so it is waited for as if it had just renewed.
        record = Record(_UNKNOWN, candidate.seen.lease_seconds)
    if record == candidate.seen:
        return candidate
    still_leads = record.holder == candidate.identity
    return replace(
        candidate,
        seen=record,
        changed_at=now,
        leads_until=candidate.leads_until if still_leads else -math.inf,
    )


def decide(candidate: Candidate, now: float, wall: datetime) -> Move:
    """What to do after what was observed last.

    `wall`, with a time zone, is what the record says to people. It must be another each time, whatever the clock shows:
    who watches would take a record that says again what it said before for one that was not renewed.
    """
    if candidate.leads(now):
        return Renew(_record_of(candidate, wall))
    left = _seconds_left(candidate, now)
    return Wait(min(left, candidate.terms.retry_seconds)) if left > 0 else Acquire(_record_of(candidate, wall))


def written(candidate: Candidate, record: Record, begun: float) -> Candidate:
    """What it knows once its record has been written; `begun` is when it began to write, before any of it was sent."""
    leads_until = begun + candidate.terms.renew_deadline_seconds
    return replace(candidate, seen=record, changed_at=begun, leads_until=leads_until)


def resigned(candidate: Candidate) -> Candidate:
    """What it knows once it has ceased to lead: the lease may be its own yet."""
    return replace(candidate, leads_until=-math.inf)


def release(candidate: Candidate, wall: datetime) -> Record | None:
    """The record that lets the next one lead at once; None if the lease is not this candidate's to give back.

    It is to be written only once nothing is done any more that only a leader may do.
    """
    if candidate.seen is None or candidate.holder != candidate.identity:
        return None
    # A lease of no length cannot be written.
    return replace(candidate.seen, holder="", lease_seconds=1, renewed=micro_timestamp(wall))


def _seconds_left(candidate: Candidate, now: float) -> float:
    """How long somebody else may yet hold the lease."""
    seen = candidate.seen
    if seen is None or seen.holder in {"", candidate.identity}:
        return 0.0
    # Its holder ends by its own terms, which it has written down.
    return candidate.changed_at + (seen.lease_seconds or candidate.terms.lease_seconds) - now


def _record_of(candidate: Candidate, wall: datetime) -> Record:
    before = candidate.seen or Record()
    renewed = micro_timestamp(wall)
    lease_seconds = math.ceil(candidate.terms.lease_seconds)
    if before.holder == candidate.identity:
        return replace(before, lease_seconds=lease_seconds, renewed=renewed)
    transitions = 0 if candidate.seen is None else before.transitions + 1
    return Record(candidate.identity, lease_seconds, renewed, renewed, transitions)
