"""A world that several proxies share: one target, one store of reports, one Lease; each proxy's way to them is slow,
uneven, and sometimes away. Whoever has the target written to zero while somebody is served by it is found out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar

from tests.control.nobody import Nobody
from vllm_chill.adapters.memory_lease import MemoryLease
from vllm_chill.adapters.memory_peers import MemoryPeers
from vllm_chill.control.controller import ScaleController
from vllm_chill.control.election import Election
from vllm_chill.control.peering import Peering
from vllm_chill.core.election import Record, StoredLease
from vllm_chill.core.election import Terms as LeaseTerms
from vllm_chill.core.peers import Demands, Report, Terms
from vllm_chill.core.target import Endpoint, Limits, Observation, Progress, Replica, Stage, TargetRef
from vllm_chill.errors import BackendRefused, BackendUnavailable
from vllm_chill.ports import Observer, PeersObserver, Recorder

_T = TypeVar("_T")
REF = TargetRef("ai-apps", "vllm")
IDLE = 20.0
START = 2.0
CALL = 3.0
"""The longest that a call takes."""


def now() -> float:
    return asyncio.get_running_loop().time()


@dataclass
class Road:
    """A proxy's way to the API server. While it is `away` no call arrives, and nothing is seen. `refuses` is what every
    call for Leases is told.
    """

    random: Random
    delay: float
    away: bool = False
    refuses: str | None = None
    behind: float = 0.0
    """By how many seconds the watch of the reports is late."""

    async def pass_(self) -> None:
        await asyncio.sleep(self.random.uniform(0, self.delay))
        if self.away:
            raise BackendUnavailable("the API server is away")

    async def call(self, call: Callable[[], Awaitable[_T]]) -> _T:
        try:
            async with asyncio.timeout(CALL):
                await self.pass_()
                answer = await call()
                await self.pass_()
                return answer
        except TimeoutError:
            raise BackendUnavailable("the API server did not answer in time") from None


class Engine:
    """The target: it is ready some seconds after it is scaled up. `writes` has each change of its replicas."""

    def __init__(self) -> None:
        self.seen = Observation(0, 0)
        self.writes: list[tuple[float, int]] = []
        self.cut: list[str] = []
        self.proxies: list[Proxy] = []
        self.changed = asyncio.Condition()
        self._count = 0

    async def scale(self, replicas: int) -> None:
        if replicas == self.seen.replicas:
            return
        self.writes.append((now(), replicas))
        if replicas == 0:
            self.cut += [proxy.name for proxy in self.proxies if proxy.controller.target.in_flight]
        kept = self.seen.members[:replicas]
        for gone in self.seen.members[replicas:]:
            self.cut += [p.name for p in self.proxies if gone.endpoint and p.controller.outstanding(gone.endpoint)]
        members = [*kept, *(self._new() for _ in range(replicas - len(kept)))]
        await self._show(tuple(members), replicas)

    def _new(self) -> Replica:
        self._count += 1
        name = f"r{self._count}"
        asyncio.get_running_loop().call_later(START, lambda: asyncio.ensure_future(self._ready(name)))
        return Replica(name, Endpoint("10.0.0.1", self._count), False, Progress(Stage.STARTING))

    async def _ready(self, name: str) -> None:
        members = tuple(
            Replica(one.name, one.endpoint, True, Progress(Stage.ANSWERING)) if one.name == name else one
            for one in self.seen.members
        )
        if members != self.seen.members:
            await self._show(members, self.seen.replicas)

    async def _show(self, members: tuple[Replica, ...], replicas: int) -> None:
        ready = [one for one in members if one.ready]
        self.seen = Observation(
            replicas, len(members), tuple(one.endpoint for one in ready if one.endpoint),
            serving=frozenset(one.name for one in ready), members=members,
        )  # fmt: skip
        async with self.changed:
            self.changed.notify_all()


class Way:
    """ports.ClusterBackend, ports.PeerReports and ports.LeaseStore of one proxy."""

    def __init__(self, world: World, road: Road) -> None:
        self.world = world
        self.road = road
        self._newest = 0
        self._observer: Observer | None = None

    async def _sees(self, observer: Observer | PeersObserver) -> bool:
        """Whether news came through; who watches is told if they did not."""
        try:
            await self.road.pass_()
        except BackendUnavailable as error:
            observer.lost(error.message)
            await asyncio.sleep(1)
            return False
        return True

    # The target.

    async def scale(self, ref: TargetRef, replicas: int, *, doomed: Sequence[str] = ()) -> None:
        await self.road.call(lambda: self.world.engine.scale(replicas))
        self._tell_target()

    async def catch_up(self, ref: TargetRef) -> None:
        async def look() -> None:
            self._tell_target()

        await self.road.call(look)

    async def watch_target(self, observer: Observer) -> None:
        self._observer = observer
        while True:
            if not await self._sees(observer):
                continue
            self._tell_target()
            async with self.world.engine.changed:
                await self.world.engine.changed.wait()

    def _tell_target(self) -> None:
        assert self._observer is not None
        self._observer.observed(self.world.engine.seen)

    # The reports.

    async def watch_reports(self, observer: PeersObserver) -> None:
        store = self.world.reports
        while True:
            version, reports = store.newest, dict(store.reports)
            await asyncio.sleep(self.road.behind)
            if not await self._sees(observer):
                continue
            # A watch is never behind what was read before.
            if version >= self._newest:
                observer.seen(reports)
            if version == store.newest:
                await store.news()

    def _may(self) -> None:
        if self.road.refuses is not None:
            raise BackendRefused(self.road.refuses)

    async def read(self) -> Mapping[str, Report]:
        self._may()

        async def read() -> tuple[int, Mapping[str, Report]]:
            return self.world.reports.newest, await self.world.reports.read()

        version, reports = await self.road.call(read)
        self._newest = max(self._newest, version)
        return reports

    async def write(self, identity: str, demands: Demands) -> None:
        self._may()
        await self.road.call(lambda: self.world.reports.write(identity, demands))

    async def remove(self, report: Report) -> None:
        await self.road.call(lambda: self.world.reports.remove(report))

    # The Lease.

    async def get(self) -> StoredLease | None:
        self._may()
        return await self.road.call(self.world.lease.get)

    async def create(self, record: Record) -> StoredLease:
        return await self.road.call(lambda: self.world.lease.create(record))

    async def update(self, stored: StoredLease, record: Record) -> StoredLease:
        return await self.road.call(lambda: self.world.lease.update(stored, record))


class _Target:
    """ports.ClusterBackend of a Way."""

    def __init__(self, way: Way) -> None:
        self.watch = lambda _, observer: way.watch_target(observer)
        self.scale = way.scale
        self.catch_up = way.catch_up


class _Reports:
    """ports.PeerReports of a Way."""

    def __init__(self, way: Way) -> None:
        self.watch = way.watch_reports
        self.read = way.read
        self.write = way.write
        self.remove = way.remove


@dataclass
class Proxy:
    """One proxy, as it runs."""

    name: str
    road: Road
    controller: ScaleController
    peering: Peering
    tasks: list[asyncio.Task[None]]
    served: int = 0
    troubles: list[str] = field(default_factory=list)


class World:
    def __init__(self, random: Random, *, idle: float = IDLE, delay: float = 0.3) -> None:
        self.random = random
        self.idle = idle
        self.delay = delay
        self.engine = Engine()
        self.reports = MemoryPeers()
        self.lease = MemoryLease()
        self.proxies: list[Proxy] = self.engine.proxies
        self._count = 0

    def start(self, *, delay: float | None = None, recorder: Recorder | None = None) -> Proxy:
        """One more proxy."""
        self._count += 1
        name = f"p{self._count}"
        road = Road(self.random, self.delay if delay is None else delay)
        way = Way(self, road)
        controller = ScaleController(REF, Limits(self.idle, 1800), _Target(way), recorder or Nobody())
        election = Election(way, name, LeaseTerms(15, 10, 2), chance=self.random.random)
        terms = Terms()
        peering = Peering(_Reports(way), election, name, terms)
        peering.add(controller)
        tasks = [asyncio.ensure_future(controller.run()), asyncio.ensure_future(peering.run())]
        proxy = Proxy(name, road, controller, peering, tasks)
        self.proxies.append(proxy)
        return proxy

    async def stop(self, proxy: Proxy) -> None:
        """End a proxy in order, once nobody is served by it."""
        self.proxies.remove(proxy)
        for task in proxy.tasks:
            task.cancel()
        await asyncio.wait(proxy.tasks)

    async def kill(self, proxy: Proxy) -> None:
        """End a proxy at once: it says nothing to anybody any more."""
        proxy.road.away = True
        await self.stop(proxy)

    async def close(self) -> None:
        for proxy in tuple(self.proxies):
            await self.stop(proxy)

    def broken(self) -> list[BaseException]:
        """What has ended by itself."""
        return [
            error
            for proxy in self.proxies
            for task in proxy.tasks
            if task.done() and (error := task.exception()) is not None
        ]


async def use(proxy: Proxy, seconds: float, hold: float = 300) -> None:
    """One request, which takes so long once it is let in."""
    try:
        with proxy.controller.lease_now() or await proxy.controller.lease(hold):
            proxy.served += 1
            await asyncio.sleep(seconds)
    except Exception as error:
        proxy.troubles.append(f"{type(error).__name__}: {error}")
