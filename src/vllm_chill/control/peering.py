"""One proxy among the others that serve the same targets: what it reports, what it reads, and what its controllers
are told of it.

The rule: what follows from the reports is `core.peers`; here they are written and read, in the order that it needs.
Nothing of this is on a request's way.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import structlog

from vllm_chill.control.running import running
from vllm_chill.core import peers
from vllm_chill.core.lifecycle import taken_down
from vllm_chill.core.peers import Demand, Peers, Report, Terms
from vllm_chill.core.target import Draining, Endpoint, Observation, Ready, Shared, SleepReason, Target
from vllm_chill.errors import BackendError, BackendRefused, BackendUnavailable
from vllm_chill.ports import PeerReports

_LOOK_SECONDS = 1.0
_CALL_SECONDS = 10.0
_REFUSED_SECONDS = 5.0
_PAUSE_SECONDS = 0.5
_FIRST_SECONDS = 10.0
"""For how long nobody is let in until the first report is written: after that it is served without one."""
_GOODBYE_SECONDS = 2.0
_ASKED = frozenset({SleepReason.STOPPED, SleepReason.SWITCHED})
"""Why a proxy that does not lead wants a target asleep: somebody asked it."""


class Led(Protocol):
    """The part of an Election that this has to do with."""

    @property
    def leads(self) -> bool: ...
    @property
    def holder(self) -> str: ...
    async def run(self, lead: Callable[[], Coroutine[Any, Any, None]]) -> None: ...


class SharedController(Protocol):
    """The part of a ScaleController that this has to do with."""

    fence: Callable[[], bool] | None
    used_elsewhere: Callable[[], bool] | None
    on_shared: Callable[[], None] | None

    @property
    def target(self) -> Target: ...
    @property
    def leaving(self) -> tuple[str, ...]: ...
    @property
    def seen(self) -> Observation | None: ...
    def outstanding(self, endpoint: Endpoint) -> int: ...
    def share(self, shared: Shared, used_at: float | None, avoided: frozenset[str]) -> None: ...
    def stop_soon(self) -> None: ...


@dataclass(slots=True)
class _Round:
    """One of our own. `announced` is when its report began to be written; `read`: the others' were read since."""

    name: str
    reason: SleepReason
    begun: float
    announced: float | None = None
    read: bool = False


class Peering:
    """One proxy. `run` must be running. Invariant: each controller knows what followed from the reports seen last."""

    def __init__(
        self,
        store: PeerReports,
        election: Led,
        identity: str,
        terms: Terms | None = None,
    ) -> None:
        self._store = store
        self._election = election
        self._terms = terms or Terms()
        self._peers = Peers(identity, self._terms)
        self._clock = asyncio.get_running_loop().time
        self._log = structlog.get_logger("vllm_chill.peers")
        self._controllers: dict[str, SharedController] = {}
        self._rounds: dict[str, _Round] = {}
        self._names = 0
        self._stops: frozenset[str] = frozenset()
        self._written: Mapping[str, Demand] | None = None
        self._written_at = 0.0
        self._begun = self._clock()
        self._is_known = False
        self._led_at = -math.inf
        self._trouble: str | None = None
        self._cleared: dict[str, str] = {}
        self.turn = asyncio.Event()
        """Set while this proxy leads."""
        self._over = asyncio.Event()
        """Set while it does not."""
        self._news = asyncio.Event()

    # Whom it looks after.

    def add(self, controller: SharedController) -> None:
        """Have a target shared."""
        key = str(controller.target.ref)
        self._controllers[key] = controller
        controller.on_shared = self._news.set
        controller.fence = partial(self._is_agreed, key)
        controller.used_elsewhere = partial(self._is_used_elsewhere, key)
        self._share(key, controller, self._clock())
        self._news.set()

    def remove(self, controller: SharedController) -> None:
        """No longer have it shared."""
        key = str(controller.target.ref)
        if self._controllers.get(key) is controller:
            del self._controllers[key]
            self._rounds.pop(key, None)
            self._news.set()

    # What it says.

    @property
    def leads(self) -> bool:
        """Whether this proxy is the one that puts targets to sleep, at this moment."""
        return self._election.leads and self._is_known and self._trouble is None

    def led_until(self, now: float) -> float:
        """Until when, at most until now, it is sure to have led: what became of that while this process stood still is
        seen only afterwards.
        """
        return now if self.leads else min(now, self._led_at)

    @property
    def identity(self) -> str:
        """Who this proxy is to the others."""
        return self._peers.identity

    @property
    def leader(self) -> str:
        """Who leads, as far as is known; empty for nobody."""
        return self._election.holder

    @property
    def others(self) -> tuple[str, ...]:
        """Who the other proxies are."""
        return peers.live(self._peers, self._clock())

    @property
    def trouble(self) -> str | None:
        """Why the others cannot be told of this proxy's callers, so that it puts nothing to sleep; None if they can."""
        return self._trouble

    # What it does.

    async def run(self) -> None:
        """Report, follow the reports, and stand for election, until cancelled; then say goodbye."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._store.watch(self))
                tasks.create_task(self._keep_reporting())
                tasks.create_task(self._election.run(self._lead))
        finally:
            await self._say_goodbye()

    async def while_it_leads(
        self, work: Callable[[], Coroutine[Any, Any, None]], led: Callable[[bool], None] = lambda _: None
    ) -> None:
        """Have this done while this proxy leads, anew each time that it comes to lead, until cancelled. `led` is told
        when that changes. What `work` raises is raised here.
        """
        while True:
            await self.turn.wait()
            led(True)
            try:
                async with running(self._over.wait()) as over, running(work()) as working:
                    await asyncio.wait([working, over], return_when=asyncio.FIRST_COMPLETED)
            finally:
                led(False)
            if not working.cancelled():
                return working.result()

    def seen(self, reports: Mapping[str, Report]) -> None:
        """Take all reports that there are."""
        self._peers = peers.observe(self._peers, reports, self._clock())
        self._review()
        self._news.set()

    def lost(self, cause: str) -> None:
        """Take that the reports cannot be seen at present."""
        self._log.warning("the reports of other proxies cannot be seen", cause=cause)
        self._peers = peers.lost(self._peers)
        self._review()

    async def _lead(self) -> None:
        self._news.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self._review()

    async def _keep_reporting(self) -> None:
        while True:
            self._news.clear()
            self._review()
            try:
                async with asyncio.timeout(_CALL_SECONDS):
                    await self._report()
            except BackendError as error:
                await self._failed(error)
            except TimeoutError:
                late = f"a report was neither written nor read within {_CALL_SECONDS:g} s"
                await self._failed(BackendUnavailable(late))
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_SECONDS):
                        await self._news.wait()

    async def _report(self) -> None:
        """Write what is to be told, and read what the others have told where something rests on that."""
        demands = self._demands(self._clock())
        if self._is_due(demands):
            rounds = [own for own in self._rounds.values() if own.announced is None]
            begun = self._clock()
            await self._store.write(self.identity, demands)
            self._written, self._written_at = demands, begun
            for own in rounds:
                own.announced = begun
        unread = [own for own in self._rounds.values() if own.announced is not None and not own.read]
        if unread or not self._is_known:
            self.seen(await self._store.read())
            for own in unread:
                own.read = True
        if not self._is_known:
            self._is_known = True
            self._log.info("known to other proxies", identity=self.identity, others=self.others)
        self._trouble = None
        self._review()
        for report in peers.gone(self._peers, self._clock()) if self.leads else ():
            await self._clear_away(report)

    async def _clear_away(self, report: Report) -> None:
        """Remove what a proxy that is gone has left. Without the right to, it stays, and is in nobody's way."""
        if self._cleared.get(report.identity) == report.version:
            return
        self._cleared[report.identity] = report.version
        self._log.info("a proxy is gone", identity=report.identity)
        with contextlib.suppress(BackendError):
            await self._store.remove(report)

    async def _failed(self, error: BackendError) -> None:
        """Take that the others could not be told, or not be asked, and wait a little."""
        for_good = isinstance(error, BackendRefused)
        if not self._is_known and (for_good or self._clock() - self._begun >= _FIRST_SECONDS):
            self._is_known = True
        if (for_good or self._is_known) and self._trouble != error.message:
            self._trouble = error.message
            event = "nothing is put to sleep: other proxies cannot be told who is served here"
            (self._log.error if for_good else self._log.warning)(event, cause=error.message)
        self._review()
        await asyncio.sleep(_REFUSED_SECONDS if for_good else _PAUSE_SECONDS)

    async def _say_goodbye(self) -> None:
        """Have nobody wait for this proxy's report to run out."""
        with contextlib.suppress(BackendError, TimeoutError):
            async with asyncio.timeout(_GOODBYE_SECONDS):
                own = (await self._store.read()).get(self.identity)
                if own is not None:
                    await self._store.remove(own)

    # What follows from the reports.

    def _review(self) -> None:
        now = self._clock()
        leads = self.leads
        if leads:
            self._led_at = now
        self._begin_rounds(now)
        for key, controller in tuple(self._controllers.items()):
            self._share(key, controller, now)
        if leads:
            self._stop_for_others(now)
        (self.turn.set if leads else self.turn.clear)()
        (self._over.clear if leads else self._over.set)()

    def _begin_rounds(self, now: float) -> None:
        for key, controller in self._controllers.items():
            reason = taken_down(controller.target) if self.leads else None
            if reason is None:
                self._rounds.pop(key, None)
                continue
            own = self._rounds.get(key)
            if own is None or now >= own.begun + self._terms.round_seconds:
                self._names += 1
                self._rounds[key] = _Round(f"{self.identity}/{self._names}", reason, now)
                self._news.set()

    def _is_agreed(self, key: str) -> bool:
        """Whether the target may be written to zero at this moment."""
        now, own = self._clock(), self._rounds.get(key)
        return (
            own is not None
            and own.read
            and own.announced is not None
            and now < own.announced + self._terms.round_seconds
            and self.leads
            and peers.agrees(self._peers, key, own.name, now)
        )

    def _is_used_elsewhere(self, key: str) -> bool:
        """Whether a peer may have leases on the replicas that are to go."""
        return peers.are_used(self._peers, key, self._controllers[key].leaving, self._clock())

    def _share(self, key: str, controller: SharedController, now: float) -> None:
        shared = peers.shared(self._peers, key, now, leads=self.leads, agreed=self._is_agreed(key))
        if not self._is_known:
            shared = Shared(leads=False, told=False, agreed=False, yields=shared.yields or SleepReason.ELSEWHERE)
        avoided = frozenset[str]() if self.leads else peers.leaving(self._peers, key, now)
        controller.share(shared, peers.used_at(self._peers, key), avoided)

    def _stop_for_others(self, now: float) -> None:
        asked = frozenset(key for key in self._controllers if peers.stop_asked(self._peers, key, now))
        for key in asked - self._stops:
            self._controllers[key].stop_soon()
        self._stops = asked

    # What is reported.

    def _demands(self, now: float) -> dict[str, Demand]:
        found = {key: self._demand(key, controller, now) for key, controller in self._controllers.items()}
        # What it has no controller for is in nobody's way here.
        for key, foreign in self._peers.rounds.items():
            if key not in found and peers.yielded_to(self._peers, key, now):
                found[key] = Demand(yields=foreign.name)
        return {key: demand for key, demand in found.items() if demand != peers.UNUSED}

    def _demand(self, key: str, controller: SharedController, now: float) -> Demand:
        target, own = controller.target, self._rounds.get(key)
        phase, used = target.phase, target.waiting or target.in_flight
        idle = now - phase.idle_since if isinstance(phase, Ready) and not used else None
        stopped = isinstance(phase, Draining) and phase.reason in _ASKED and not target.shared.leads
        return Demand(
            waiting=target.waiting,
            in_flight=target.in_flight,
            idle_seconds=None if idle is None else round(idle, 3),
            round="" if own is None else own.name,
            reason="" if own is None else own.reason.name,
            yields=self._yields(key, target, now),
            leaving=controller.leaving if target.shared.leads else (),
            left=self._left(key, controller, now),
            stop=stopped,
        )

    def _yields(self, key: str, target: Target, now: float) -> str:
        """The round that it yields to: nobody is let in, and nobody has a lease."""
        if target.in_flight or target.shared.yields is None:
            return ""
        return peers.yielded_to(self._peers, key, now)

    def _left(self, key: str, controller: SharedController, now: float) -> tuple[str, ...]:
        """The replicas of a peer's that are to go, and that nobody has a lease on here."""
        names = peers.leaving(self._peers, key, now)
        if not names:
            return ()
        seen = controller.seen
        members = seen.members if seen is not None else ()
        used = {one.name for one in members if one.endpoint is not None and controller.outstanding(one.endpoint)}
        return tuple(sorted(names - used))

    def _is_due(self, demands: Mapping[str, Demand]) -> bool:
        """Whether what is reported is to be written now."""
        if self._written is None or self._clock() - self._written_at >= self._terms.report_seconds:
            return True
        return {key: _matter(one) for key, one in demands.items()} != {
            key: _matter(one) for key, one in self._written.items()
        }


def _matter(demand: Demand) -> tuple[object, ...]:
    """What of a demand is told at once; the rest can wait until there is a report anyway."""
    return (
        demand.waiting > 0,
        demand.in_use,
        demand.round,
        demand.yields,
        demand.leaving,
        demand.left,
        demand.stop,
    )
