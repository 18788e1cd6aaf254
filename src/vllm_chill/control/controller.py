"""The one writer of a scale target: it holds the value, hands out leases, and has the backend follow.

The rule: `_apply` assigns the target, and besides it only the short way of a lease (core.warm: the same steps, at
once); neither awaits, so no lock is needed and no decision rests on a stale read. Only this class calls
`backend.scale`. The wake belongs to the controller's own task; a
caller that leaves abandons nothing but its own wait.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator

from vllm_chill.control import refusals
from vllm_chill.control.ejection import Ejector
from vllm_chill.control.lease import Bounds, Lease, Ticket
from vllm_chill.control.leavers import Leavers
from vllm_chill.control.watchdog import keep_time
from vllm_chill.core import leaving, warm
from vllm_chill.core.admission import WaitingRoom
from vllm_chill.core.balancing import HashedSeats, Seats
from vllm_chill.core.events import (
    Arrived,
    Event,
    Granted,
    HeldBack,
    Left,
    Lost,
    Observed,
    PeersTold,
    Recommended,
    Released,
    Scaled,
    ScaleFailed,
    ScaleStarted,
    StopAsked,
    Tick,
    Used,
    WakeAsked,
    WakeRefused,
    WayGiven,
)
from vllm_chill.core.lifecycle import (
    Refuse,
    Serve,
    Wait,
    admits,
    desired_replicas,
    next_deadline,
    replicas_held,
    step,
)
from vllm_chill.core.target import (
    STATEFUL_SETS,
    Draining,
    Endpoint,
    Limits,
    Observation,
    Phase,
    Ready,
    Shared,
    SleepReason,
    Target,
    TargetRef,
    Unknown,
    Waking,
)
from vllm_chill.errors import (
    AnswerableError,
    BackendError,
    BackendRefused,
    BackendUnavailable,
    ModelNotFound,
    TooManyWaiting,
)
from vllm_chill.ports import ClusterBackend, Recorder

_RETRY_FIRST_SECONDS = 0.5
_RETRY_MOST_SECONDS = 4.0  # a backend that has come back is to be asked again within 10 s
_RETRY_AFTER_HOLD_SECONDS = 10
_POSITIONS_SECONDS = 1.0
_GATHER_SECONDS = 0.05
"""How long callers are counted before a wake is written, where many of them wake several replicas."""

_REPLACEMENT, _RETIREMENT = "replacement", "retirement"
_AT_ONCE = 32
"""How many callers are let in within one turn of the loop: each of them then takes its turn to send its request."""


class ScaleController:
    """One target's controller. `run` must be running for anything to happen; it ends by cancellation."""

    def __init__(
        self,
        ref: TargetRef,
        limits: Limits,
        backend: ClusterBackend,
        recorder: Recorder,
        bounds: Bounds | None = None,
        retry_after: Callable[[], int] = lambda: _RETRY_AFTER_HOLD_SECONDS,
    ) -> None:
        """`retry_after` is in how many seconds a caller that cannot wait here should come again."""
        self._target = Target(ref)
        self._limits = limits
        self._bounds = bounds or Bounds()
        self._retry_after = retry_after
        self._backend = backend
        self._recorder = recorder
        self._clock = asyncio.get_running_loop().time
        self._room: WaitingRoom[Ticket] = WaitingRoom()
        self.ejector = Ejector(lambda: self.endpoints, self._serve_soon)
        self._seats = _seats(self._bounds, self.ejector)
        self._serving: asyncio.Handle | None = None
        self._positions: dict[Ticket, int] = {}
        self._positions_at = -math.inf
        self._watchers: set[asyncio.Future[None]] = set()
        self._holders_back: dict[str, str] = {}
        self._retired: ModelNotFound | None = None
        self._still: set[asyncio.Future[None]] = set()
        self.on_change: Callable[[], None] | None = None
        """Called when its phase, or what is seen of it, has changed; and when it is unused, if that is `awaited`."""
        self.awaited = False
        self.on_seen: Callable[[], None] | None = None
        """Called when its phase, or what is seen of it, has changed, before anything is written for it."""
        self.on_held: Callable[[Target, float], None] | None = None
        """Called when the target may have another number of replicas than before, with the target and the time."""
        self.demand: Callable[[int], int] | None = None
        """How many replicas so many waiting callers are reason enough to wake."""
        self.observe_only = False
        """Whether the number of replicas is for somebody else to write."""
        self.on_shared: Callable[[], None] | None = None
        """Called when something has changed that other proxies are to be told of at once."""
        self.fence: Callable[[], bool] | None = None
        """Whether other proxies let it be written to zero at this moment; None without others."""
        self.used_elsewhere: Callable[[], bool] | None = None
        """Whether other proxies may have leases on the replicas that are to go; None without others."""
        self._avoided: frozenset[str] = frozenset()
        self._seen: Observation | None = None
        self._recommender: str | None = None
        self._write_wanted = asyncio.Event()
        self._leavers = Leavers(self._seats.taken, self._write_wanted.set, ordered=ref.resource == STATEFUL_SETS)

    @property
    def target(self) -> Target:
        """The target as it is now."""
        return self._target

    @property
    def limits(self) -> Limits:
        """What bounds the target's life."""
        return self._limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._limits = limits
        _wake_all(self._watchers)  # the watchdog counts anew
        self.tick()

    @property
    def bounds(self) -> Bounds:
        """How many callers may wait, and how many requests a replica has."""
        return self._bounds

    @bounds.setter
    def bounds(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._seats.limit = bounds.in_flight
        self._serve_soon()

    @property
    def synced(self) -> bool:
        """Whether the backend has told the state of the target."""
        return not isinstance(self._target.phase, Unknown)

    @property
    def endpoint(self) -> Endpoint | None:
        """Where the target can be reached now, without a lease; None while it is not ready."""
        endpoints = self.endpoints
        return endpoints[0] if endpoints else None

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Where the target's replicas can be reached now; empty while it is not ready."""
        admission = admits(self._target, self._clock())
        return admission.endpoints if isinstance(admission, Serve) else ()

    def now(self) -> float:
        """The time on the clock of the target's phases, in seconds."""
        return self._clock()

    async def run(self) -> None:
        """Follow the backend, write to it, and keep the deadlines, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._backend.watch(self._target.ref, self))
            tasks.create_task(self._actuate())
            tasks.create_task(keep_time(self))
            tasks.create_task(self.ejector.run())

    # What the backend tells (ports.Observer), and the clock.

    def observed(self, observation: Observation) -> None:
        """Take what the target is now."""
        before, self._seen = self._seen, observation
        self._apply(Observed(self._offered(observation)))
        if observation.progress != (None if before is None else before.progress):
            self._recorder.progressed(self._target, self._clock())
        if before is not None:
            for endpoint in observation.departed_from(before):
                self._recorder.departed(endpoint)
                self._seats.forget(endpoint)
                self.ejector.forget(endpoint)

    def lost(self, cause: str) -> None:
        """Take that the target cannot be seen at present."""
        self._apply(Lost(cause))

    def tick(self) -> None:
        """Take that time has passed."""
        self._apply(Tick())

    @property
    def review_seconds(self) -> float:
        """The shortest time in which it can come to have a deadline that is due, while its phase stays the same."""
        return self._limits.idle_seconds

    @property
    def deadline(self) -> float | None:
        """When a tick will change something, if nothing else does before."""
        return next_deadline(self._target, self._limits)

    # What callers ask for.

    def lease_now(self, besides: Endpoint | None = None, key: int | None = None) -> Lease | None:
        """A lease if the target is ready, a replica has room and nobody waits, without waiting; not on the replica
        `besides` if there is another. `key` is that of the request in core.balancing, if it has one.
        """
        leased = warm.leased(self._target)
        if leased is None:
            return None
        assert leased.observed is not None
        endpoint = self._seats.take(leased.observed.endpoints, key, besides)
        if endpoint is None:
            return None
        self._target = leased
        return Lease(endpoint, self._release)

    def eject(self, endpoint: Endpoint, cause: str) -> None:
        """Take a replica that took no connection, or broke it before it answered, out of the turn for a while; `cause`
        is a clause.
        """
        self.ejector.failed(endpoint, cause)

    @property
    def full(self) -> bool:
        """Whether no more callers may wait."""
        return len(self._room) >= self._bounds.waiting

    def too_many(self) -> TooManyWaiting:
        """The answer to a caller that may not wait, as too many do already."""
        seconds = self._retry_after()
        message = f"{len(self._room)} requests wait for {self._target.ref} already; try again in {seconds} s."
        return TooManyWaiting(message, retry_after_seconds=seconds)

    async def lease(self, hold_seconds: float, ticket: Ticket | None = None) -> Lease:
        """A lease, held back until the target is ready and has room, in the order of `core.admission`.

        Raises HoldExpired after `hold_seconds`, WakeFailed when waiting is of no use, TargetUnknown while the backend
        cannot tell the target's state, TooManyWaiting if no more callers may wait, and ModelNotFound if it is retired.
        """
        if self._retired is not None:
            raise self._retired
        if self.full:
            raise self.too_many()
        ticket = ticket or Ticket()
        begun = ticket.since = self._clock()
        ticket.until = begun + hold_seconds
        self._room.join(ticket)
        self._apply(Arrived())
        if self._serving is None:
            self._serve_waiting()
        lease = None
        try:
            async with asyncio.timeout(hold_seconds):
                lease = await ticket.lease
        except TimeoutError:
            raise refusals.hold_expired(self._target, self._clock(), hold_seconds, self._retry_after()) from None
        finally:
            if ticket in self._room:
                self._room.leave(ticket)
                self._apply(Left())
            elif lease is None and not ticket.lease.cancelled() and ticket.lease.exception() is None:
                ticket.lease.result().release()  # it came as the caller left
            self._recorder.held(self._clock() - begun)
        return lease

    def wake_for_nobody(self) -> None:
        """Wake the target for a caller that will come again rather than wait. Raises what tells it that it cannot.

        The wake goes on although those who wait for it leave: this one has been told so.
        """
        admission = admits(self._target, self._clock())
        if isinstance(admission, Refuse) and (admission.retry_after_seconds or isinstance(self._target.phase, Unknown)):
            raise refusals.refusal(self._target, admission)
        self._apply(WakeAsked())

    def position(self, ticket: Ticket) -> int:
        """The place in the order of those who wait, from 1 for who is next; 0 for who does not. Up to 1 s old."""
        now = self._clock()
        if now - self._positions_at >= _POSITIONS_SECONDS or ticket not in self._positions:
            self._positions = {ticket: place for place, ticket in enumerate(self._room.order(), 1)}
            self._positions_at = now
        return self._positions.get(ticket, 0)

    def waiters(self) -> Iterator[Ticket]:
        """Those who wait, in their order: to be read at once, before anybody comes or leaves."""
        return self._room.order()

    def turn_away(self, ticket: Ticket, error: AnswerableError) -> bool:
        """Have one who waits be told this error in place of a lease; whether it waited at all."""
        if ticket not in self._room:
            return False
        self._room.leave(ticket)
        self._apply(Left())
        if not ticket.lease.done():
            ticket.lease.set_exception(error)
        return True

    async def wake(self, *, wait: bool) -> None:
        """Wake the target for an operator; with `wait`, return when it is ready.

        Raises as `lease` does, with the start's own deadline in place of a hold.
        """
        if isinstance(self._target.phase, Unknown):
            raise refusals.unknown(self._target)
        self._apply(WakeAsked())
        if wait:
            (await self.lease(self._limits.start_seconds)).release()

    async def stop(self) -> Phase:
        """Put the target to sleep once its leases have ended; returns the phase that it came to.

        That is Asleep; Waking if callers waited meanwhile; Ready if the backend refused; Failed if callers
        had waited for a wake that this ended.
        """
        if isinstance(self._target.phase, Unknown):
            raise refusals.unknown(self._target)
        self._apply(StopAsked())
        while isinstance(self._target.phase, Draining):
            await self._turn(self._watchers)
        return self._target.phase

    # What others that want its GPUs ask for, and who makes its workload.

    @property
    def unused(self) -> bool:
        """Whether nobody waits for it and nobody has a lease."""
        return not self._target.waiting and not self._target.in_flight

    @property
    def runs(self) -> bool:
        """Whether anything of it is there, or is about to be: its GPUs are not free."""
        seen = self._target.observed
        return (
            isinstance(self._target.phase, Waking | Ready)
            or bool(self._target.sent)
            or (seen is not None and bool(seen.replicas or seen.live or seen.terminating))
        )

    @property
    def replicas(self) -> int:
        """How many replicas have GPUs, or are about to: those that are asked for, and those that are there."""
        return replicas_held(self._target)

    def hold_back(self, by: str, cause: str) -> None:
        """Keep it from being woken, until `by` lets it go; what runs goes on. `cause` is a clause."""
        self._holders_back[by] = cause
        self._hold_back()

    def let_go(self, by: str) -> None:
        """No longer keep it from being woken."""
        if self._holders_back.pop(by, None) is not None:
            self._hold_back()

    def _hold_back(self) -> None:
        cause = next(iter(self._holders_back.values()), None)
        if cause != self._target.held_back:
            self._apply(HeldBack(cause))

    def refuse_wake(self, cause: str) -> None:
        """Tell those who wait while it is held back that it will never be let go; `cause` as for `hold_back`."""
        self._apply(WakeRefused(cause))

    def give_way(self, reason: SleepReason) -> None:
        """Put it to sleep once its leases have ended; who comes meanwhile waits."""
        self._apply(WayGiven(reason))

    # Who decides on more than one replica.

    def recommend(self, source: str, replicas: int | None) -> None:
        """Have so many replicas while it is awake; None: as many as there are. Asleep it changes nothing.

        One source at a time has a say: another one's word counts once the first has said None.
        """
        if self._recommender not in (None, source):
            return
        self._recommender = None if replicas is None else source
        if replicas is None or isinstance(self._target.phase, Waking | Ready):
            self._apply(Recommended(replicas))

    def used(self) -> None:
        """Take that its engines are busy with what no lease is for: it is not idle."""
        self._apply(Used())

    # What it shares with other proxies.

    @property
    def seen(self) -> Observation | None:
        """What the backend has told last."""
        return self._seen

    def share(self, shared: Shared, used_at: float | None, avoided: frozenset[str]) -> None:
        """Take what is known of the other proxies: when they used it last, and which replicas they want to go."""
        phase = self._target.phase
        if shared != self._target.shared or (isinstance(phase, Ready) and used_at and used_at > phase.idle_since):
            before = self._target.shared
            self._apply(PeersTold(shared, used_at))
            _wake_all(self._watchers)  # the watchdog counts anew
            if before.yields is not shared.yields:
                self._serve_soon()
        if avoided != self._avoided:
            self._avoided = avoided
            if self._seen is not None:
                self._apply(Observed(self._offered(self._seen)))
        if self._leavers.names:
            self._write_wanted.set()

    def stop_soon(self) -> None:
        """Put it to sleep once its leases have ended, for an operator who asked another proxy."""
        self._apply(StopAsked())

    def outstanding(self, endpoint: Endpoint) -> int:
        """How many leases there are on the replica at this address."""
        return self._seats.taken(endpoint)

    @property
    def leaving(self) -> tuple[str, ...]:
        """The names of the replicas that are to go, and get no new request."""
        return self._leavers.names

    def _see_off(self) -> None:
        seen, phase = self._seen, self._target.phase
        wanted = desired_replicas(self._target) if isinstance(phase, Ready) else None
        if self._leavers.review(seen, wanted, self._limits.drain_seconds) and seen is not None:
            self._apply(Observed(self._offered(seen)))

    def _offered(self, seen: Observation) -> Observation:
        """What is seen, with no new request for replicas that are to go."""
        return leaving.without(seen, self._avoided.union(self._leavers.names))

    async def replaced(self, write: Callable[[], Awaitable[None]], *, at_once: bool) -> None:
        """Have `write` change what a start runs, while nothing runs; it is woken again if it was awake.

        That is at once if it sleeps or is still waking, else as soon as nobody uses it; with `at_once` nobody is let in
        any more meanwhile. Raises what `write` raises.
        """
        self.hold_back(_REPLACEMENT, "what it runs is being changed")
        woken = False
        try:
            while self.runs:
                phase = self._target.phase
                if isinstance(phase, Waking) or (isinstance(phase, Ready) and (at_once or self.unused)):
                    woken = True
                    self.give_way(SleepReason.REPLACED)
                await self._turn(self._still)
            await write()
        finally:
            self.let_go(_REPLACEMENT)
        if woken:
            self._apply(WakeAsked())

    async def brought_down(self) -> None:
        """Return once nothing of it runs, or it has been kept awake."""
        while self.runs and not isinstance(self._target.phase, Waking | Ready):
            await self._turn(self._still)

    async def at_rest(self) -> None:
        """Return once nothing of it runs, and nobody uses it."""
        while self.runs or not self.unused:
            await self._turn(self._still)

    def retire(self, cause: str) -> None:
        """Its model is gone for good: nobody is let in, who waits is told `cause`, and it sleeps once its leases have
        ended.
        """
        self._retired = ModelNotFound(cause)
        self.hold_back(_RETIREMENT, "its model is gone")
        self._serve_soon()
        self.give_way(SleepReason.RETIRED)

    async def changed(self, within_seconds: float) -> None:
        """Return when the phase has changed, or after that long."""
        try:
            async with asyncio.timeout(within_seconds):
                await self._turn(self._watchers)
        except TimeoutError:
            return

    def _serve_waiting(self) -> None:
        """Let those who are next in on the target, or tell them why not: some at a time, for the loop has others."""
        self._serving = None
        for _ in range(_AT_ONCE):
            if not self._room:
                return
            if self._retired is not None:
                self._refuse_next(self._retired)
                continue
            match admits(self._target, self._clock()):
                case Wait():
                    return
                case Refuse() as refuse:
                    self._refuse_next(refusals.refusal(self._target, refuse))
                case Serve(endpoints):
                    ticket = self._room.first
                    assert ticket is not None
                    endpoint = self._seats.take(endpoints, ticket.key_of_replica)
                    if endpoint is None:
                        return
                    self._room.next()
                    self._apply(Granted())
                    lease = Lease(endpoint, self._release)
                    if ticket.lease.done():
                        lease.release()
                    else:
                        ticket.lease.set_result(lease)
        self._serve_soon()

    def _refuse_next(self, refusal: AnswerableError) -> None:
        ticket = self._room.next()
        assert ticket is not None
        self._apply(Left())
        if not ticket.lease.done():
            ticket.lease.set_exception(refusal)

    def _serve_soon(self) -> None:
        if self._room and self._serving is None:
            self._serving = asyncio.get_running_loop().call_soon(self._serve_waiting)

    def _release(self, endpoint: Endpoint) -> None:
        self._seats.give_back(endpoint)
        if self._leavers.names:
            self._write_wanted.set()
        released = warm.released(self._target, self._clock())
        if released is None:
            self._apply(Released())
            self._serve_soon()
        else:
            self._target = released
            if (self.awaited or self._still) and not released.in_flight:
                self._tell_change()

    # The one assignment, and who hears of it.

    def _apply(self, event: Event) -> None:
        before, now = self._target, self._clock()
        after = self._target = self._with_demand(step(before, event, now, self._limits), now)
        if after.phase is not before.phase:
            self._phase_changed(before, after, now)
        elif after.observed is not before.observed:
            self._serve_soon()  # a replica may have come, and with it room
        if after.phase is not before.phase or after.observed is not before.observed:
            self._tell_change()
        if self.on_held is not None and _may_hold_others(before, after):
            self.on_held(after, now)
        if self._leavers.names or after.recommended is not None:
            self._see_off()
        if self.on_shared is not None and (after.phase is not before.phase or _is_news_to_others(before, after)):
            self.on_shared()
        if self._wanted() is not None:
            self._write_wanted.set()

    def _with_demand(self, target: Target, now: float) -> Target:
        if self.demand is None or not isinstance(target.phase, Waking):
            return target
        asked = self.demand(target.waiting + target.shared.waiting)
        if asked <= (target.recommended or 1):
            return target
        return step(target, Recommended(asked), now, self._limits)

    def _tell_change(self) -> None:
        if self.on_seen is not None:
            self.on_seen()
        if self._still:
            _wake_all(self._still)
        if self.on_change is not None:
            self.on_change()

    def _phase_changed(self, before: Target, after: Target, now: float) -> None:
        if type(after.phase) is not type(before.phase):
            self._recorder.changed(before, after, now)
            _wake_all(self._watchers)
        if not isinstance(admits(after, now), Wait):
            self._serve_soon()

    async def _turn(self, queue: set[asyncio.Future[None]]) -> None:
        turn = asyncio.get_running_loop().create_future()
        queue.add(turn)
        try:
            await turn
        finally:
            queue.discard(turn)

    # The backend follows.

    def _wanted(self) -> int | None:
        target = self._target
        if self.observe_only or target.sent is not None or target.observed is None:
            return None
        desired, replicas = desired_replicas(target), target.observed.replicas
        if desired == replicas or (desired and desired < replicas and self._awaits_leavers()):
            return None
        return desired

    def _awaits_leavers(self) -> bool:
        """Whether a replica that is to go has leases, here or elsewhere, and time for them."""
        if self._leavers.awaited(self._seen, self.endpoints):
            return True
        return self._leavers.have_time and self.used_elsewhere is not None and self.used_elsewhere()

    async def _actuate(self) -> None:
        while True:
            await self._write_wanted.wait()
            self._write_wanted.clear()
            pause = _RETRY_FIRST_SECONDS
            if self.demand is not None and isinstance(self._target.phase, Waking):
                await asyncio.sleep(_GATHER_SECONDS)
            while (replicas := self._wanted()) is not None:
                least = await self._write(replicas)
                if least is None:
                    break
                await self._pause(max(pause, least), replicas)
                pause = min(pause * 2, _RETRY_MOST_SECONDS)

    async def _write(self, replicas: int) -> float | None:
        """Have the backend ask for so many; None when that is done or no longer wanted, else how long to pause."""
        try:
            if self._target.observed is not None and replicas < self._target.observed.replicas:
                # Nobody is held meanwhile: until it is written, who comes keeps it awake.
                await self._backend.catch_up(self._target.ref)
                if self._wanted() != replicas:
                    return None
            if replicas == 0 and self.fence is not None and not self.fence():
                return 0.0  # it is no longer agreed, or this process stood still for a moment
            self._apply(ScaleStarted(replicas))
            await self._backend.scale(self._target.ref, replicas, doomed=self._leavers.names)
        except BackendError as error:
            self._apply(ScaleFailed(replicas, error.message, final=isinstance(error, BackendRefused)))
            self._recorder.scaled(self._target, replicas, error.message)
            return error.retry_after_seconds if isinstance(error, BackendUnavailable) else 0.0
        self._apply(Scaled(replicas))
        self._recorder.scaled(self._target, replicas, None)
        return None

    async def _pause(self, seconds: float, replicas: int) -> None:
        """Wait before the same write is tried again; another wish ends the pause."""
        try:
            async with asyncio.timeout(seconds):
                while self._wanted() == replicas:
                    self._write_wanted.clear()
                    await self._write_wanted.wait()
        except TimeoutError:
            return


def _is_news_to_others(before: Target, after: Target) -> bool:
    """Whether a proxy that takes it to zero waits to hear of this."""
    if after.shared.yields is None:
        return False
    return (not before.waiting, not before.in_flight) != (not after.waiting, not after.in_flight)


def _may_hold_others(before: Target, after: Target) -> bool:
    """Whether the number of replicas that have GPUs, or who counts them, may be another one."""
    return (
        after.phase is not before.phase
        or after.observed is not before.observed
        or after.sent != before.sent
        or after.recommended != before.recommended
        or after.shared is not before.shared
    )


def _seats(bounds: Bounds, ejector: Ejector) -> Seats:
    if bounds.load_factor is None:
        return Seats(bounds.in_flight, ejector.outliers.out)
    return HashedSeats(bounds.in_flight, ejector.outliers.out, load_factor=bounds.load_factor)


def _wake_all(queue: set[asyncio.Future[None]]) -> None:
    for turn in queue:
        if not turn.done():
            turn.set_result(None)
    queue.clear()
