"""What proxies that serve the same targets tell one another, and what follows from it for a target. Pure.

Each proxy keeps one report: how much each of its targets is used. Only the elected leader takes a target to zero, and
only so: it announces it in its report, as a round; then it reads all the reports that there are; each peer that sees
the round lets nobody in any more and, once it has no lease, says in its own report that it yields to this round; when
all live peers do, the leader writes. A proxy that comes meanwhile has written its report before it reads those of the
others, so that either the leader finds it or it finds the round: no caller can be let in between.

No clocks are compared: how old a report is counts from when its version was first seen here, and while reports cannot
be seen nobody grows old. A round is good for a few seconds after it was announced, and is then announced anew; whoever
yields does so for longer than a write that rests on it can be on its way.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from vllm_chill.core.target import Shared, SleepReason


@dataclass(frozen=True, slots=True)
class Terms:
    """In seconds: how often a report is written although nothing has changed; for how long one is taken for what is;
    after how long without a new one its proxy is gone; for how long a round is good for a write; and for how long it is
    yielded to, which is longer by more than a write can take.
    """

    report_seconds: float = 10.0
    fresh_seconds: float = 15.0
    gone_seconds: float = 30.0
    round_seconds: float = 5.0
    yield_seconds: float = 20.0


def terms_of(lease_seconds: float) -> Terms:
    """The terms that go with the leader's lease: 15 s, Kubernetes' own default, give those above."""
    return Terms(lease_seconds * 2 / 3, lease_seconds, lease_seconds * 2)


@dataclass(frozen=True, slots=True)
class Demand:
    """How one proxy uses a target: callers that wait, leases, and for how many seconds it has been used by none (None
    where that is not known).

    `round` and `reason`: it takes the target to zero, in this round and for this reason. `yields`: the round of a peer
    that it lets nobody in for, with no lease left. `leaving`: the replicas that are to go, by name; `left`: those of a
    peer's that it has no lease on, and gives none. `stop`: somebody asked it to put the target to sleep.
    """

    waiting: int = 0
    in_flight: int = 0
    idle_seconds: float | None = None
    round: str = ""
    reason: str = ""
    yields: str = ""
    leaving: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    stop: bool = False

    @property
    def in_use(self) -> bool:
        return self.waiting > 0 or self.in_flight > 0


UNUSED = Demand()
_UNREADABLE = Demand(in_flight=1)
"""What is made of a report that cannot be read: everything may be in use."""

Demands = Mapping[str, Demand]
"""By target, as text. What is not in it is not in use, and yields to nobody."""


@dataclass(frozen=True, slots=True)
class Report:
    """One proxy's, as it was written. `version` is another after each write. `demands` is None if it cannot be read."""

    identity: str
    version: str
    demands: Demands | None = None

    def of(self, target: str) -> Demand:
        return _UNREADABLE if self.demands is None else self.demands.get(target, UNUSED)


def to_text(demands: Demands) -> str:
    """Demands as a report has them: JSON, without what is as it is by default."""
    said = {target: _said(demand) for target, demand in demands.items()}
    return json.dumps(said, separators=(",", ":"), sort_keys=True)


def _said(demand: Demand) -> dict[str, Any]:
    return {name: value for name, value in asdict(demand).items() if value != getattr(UNUSED, name)}


def from_text(text: str) -> Demands | None:
    """The demands that a report has; None if it cannot be read. What a later version may say besides is passed over."""
    try:
        return {str(target): _demand(said) for target, said in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None


_MOST = 1e15
"""More than any number here can be."""


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MOST


def _is_seconds(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value <= _MOST  # type: ignore[operator]


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


_CAN_BE: Mapping[str, Callable[[object], bool]] = {
    "waiting": _is_count,
    "in_flight": _is_count,
    "idle_seconds": _is_seconds,
    "round": _is_text,
    "reason": _is_text,
    "yields": _is_text,
    "leaving": _are_names,
    "left": _are_names,
    "stop": lambda value: isinstance(value, bool),
}


def _demand(said: Mapping[str, Any]) -> Demand:
    found: dict[str, Any] = {}
    for name, value in said.items():
        can_be = _CAN_BE.get(name)
        if can_be is None:
            continue
        if not can_be(value):
            raise TypeError(f"{name} is {value!r}")
        found[name] = tuple(value) if isinstance(value, list) else value
    return Demand(**found)


@dataclass(frozen=True, slots=True)
class _Known:
    """A proxy's report, and when this version of it was first seen."""

    report: Report
    since: float


@dataclass(frozen=True, slots=True)
class _Round:
    """A peer's round, and when it was first seen."""

    name: str
    reason: SleepReason
    since: float


@dataclass(frozen=True, slots=True)
class Peers:
    """What one proxy knows of the others. Times are of its own steady clock, in seconds.

    `own` is since when its own report has been seen as it is, None while no reports can be seen: what is known of the
    others is not older than that.
    """

    identity: str
    terms: Terms = Terms()
    own: _Known | None = None
    others: Mapping[str, _Known] = field(default_factory=dict)
    rounds: Mapping[str, _Round] = field(default_factory=dict)


def observe(peers: Peers, reports: Mapping[str, Report], now: float) -> Peers:
    """What it knows once it has seen these reports, its own among them, which are all that there are."""
    own = reports.get(peers.identity)
    known = None if own is None else _known(peers.own, own, now)
    # Who could not be seen for a while has not been silent: the others' time begins again.
    blind = not _sees(peers, now)
    others = {
        identity: _known(None if blind else peers.others.get(identity), report, now)
        for identity, report in reports.items()
        if identity != peers.identity
    }
    after = replace(peers, own=known, others=others)
    return replace(after, rounds=_rounds(after, peers.rounds, now))


def lost(peers: Peers) -> Peers:
    """What it knows once the reports cannot be seen any more."""
    return replace(peers, own=None)


def _known(before: _Known | None, report: Report, now: float) -> _Known:
    return before if before is not None and before.report.version == report.version else _Known(report, now)


def _sees(peers: Peers, now: float) -> bool:
    return peers.own is not None and now - peers.own.since < peers.terms.fresh_seconds


def _rounds(peers: Peers, before: Mapping[str, _Round], now: float) -> dict[str, _Round]:
    found: dict[str, _Round] = {}
    for _, known in sorted(peers.others.items()):
        for target, demand in (known.report.demands or {}).items():
            if demand.round and target not in found:
                last = before.get(target)
                same = last is not None and last.name == demand.round
                found[target] = last if last and same else _Round(demand.round, _reason(demand.reason), now)
    return found


def _reason(name: str) -> SleepReason:
    return SleepReason.__members__.get(name, SleepReason.ELSEWHERE)


def gone(peers: Peers, now: float) -> tuple[Report, ...]:
    """The reports of proxies that are gone."""
    if not _sees(peers, now):
        return ()
    return tuple(k.report for k in peers.others.values() if now - k.since >= peers.terms.gone_seconds)


def _live(peers: Peers, now: float) -> tuple[_Known, ...]:
    least = -float("inf") if not _sees(peers, now) else now - peers.terms.gone_seconds
    return tuple(known for known in peers.others.values() if known.since > least)


def live(peers: Peers, now: float) -> tuple[str, ...]:
    """Who the other proxies are."""
    return tuple(sorted(known.report.identity for known in _live(peers, now)))


def told(peers: Peers, now: float) -> bool:
    """Whether every live peer has told lately how it uses its targets."""
    oldest = now - peers.terms.fresh_seconds
    return _sees(peers, now) and all(known.since > oldest for known in _live(peers, now))


def yielded_to(peers: Peers, target: str, now: float) -> str:
    """The round for which nobody may be let in; empty for none."""
    found = peers.rounds.get(target)
    return found.name if found is not None and now < found.since + peers.terms.yield_seconds else ""


def leaving(peers: Peers, target: str, now: float) -> frozenset[str]:
    """The replicas that peers want to go."""
    return frozenset(name for known in _live(peers, now) for name in known.report.of(target).leaving)


def are_used(peers: Peers, target: str, replicas: tuple[str, ...], now: float) -> bool:
    """Whether a peer may have leases on one of these replicas that are to go."""
    wanted = set(replicas)
    return not all(wanted <= set(known.report.of(target).left) for known in _live(peers, now))


def agrees(peers: Peers, target: str, round_name: str, now: float) -> bool:
    """Whether every live peer yields to this round."""
    return told(peers, now) and all(known.report.of(target).yields == round_name for known in _live(peers, now))


def stop_asked(peers: Peers, target: str, now: float) -> bool:
    """Whether somebody has asked a peer to put the target to sleep."""
    return any(known.report.of(target).stop for known in _live(peers, now))


def shared(peers: Peers, target: str, now: float, *, leads: bool, agreed: bool) -> Shared:
    """How the target is shared at this moment."""
    found = peers.rounds.get(target)
    demands = [known.report.of(target) for known in _live(peers, now)]
    return Shared(
        leads=leads,
        told=told(peers, now),
        in_use=any(demand.in_use for demand in demands),
        waiting=sum(demand.waiting for demand in demands),
        agreed=agreed,
        yields=found.reason if found is not None and yielded_to(peers, target, now) else None,
    )


def used_at(peers: Peers, target: str) -> float | None:
    """When a peer used the target last, at the latest; None if none has."""
    uses = (_last_use(known, known.report.of(target)) for known in peers.others.values())
    return max((at for at in uses if at is not None), default=None)


def _last_use(known: _Known, demand: Demand) -> float | None:
    if demand.in_use:
        return known.since
    return None if demand.idle_seconds is None else known.since - demand.idle_seconds
