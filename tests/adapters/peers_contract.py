"""What every store of reports must do, as tests: a subclass gives a fresh one, and pytest runs the suite on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from vllm_chill.core.peers import Demand, Demands, Report
from vllm_chill.ports import PeerReports

A, B = "proxy-a_1", "proxy-b_2"
BUSY = {"ai-apps/vllm": Demand(waiting=2, in_flight=1)}
EVERYTHING = {
    "ai-apps/vllm": Demand(2, 1, 0.5, f"{A}/3", "IDLE", f"{B}/7", ("r1", "r2"), ("r3",), stop=True),
    "ai-apps/other": Demand(idle_seconds=12.345),
}
Reports = Mapping[str, Report]


@dataclass
class SeenReports:
    """An observer that keeps what it was told, and can be waited on."""

    reports: Reports | None = None
    history: list[Reports] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def seen(self, reports: Reports) -> None:
        self.reports = reports
        self.history.append(dict(reports))
        self._changed.set()

    def lost(self, cause: str) -> None:
        self.reports = None
        self.losses.append(cause)
        self._changed.set()

    async def until(self, holds: Callable[[Reports], bool], seconds: float = 20) -> Reports:
        """Wait until the reports are such that `holds` is true."""
        async with asyncio.timeout(seconds):
            while self.reports is None or not holds(self.reports):
                await self._news()
        return self.reports

    async def until_lost(self, seconds: float = 20) -> str:
        """Wait until they cannot be seen; why that is."""
        async with asyncio.timeout(seconds):
            while self.reports is not None or not self.losses:
                await self._news()
        return self.losses[-1]

    async def _news(self) -> None:
        self._changed.clear()
        await self._changed.wait()


@asynccontextmanager
async def watched(store: PeerReports) -> AsyncIterator[SeenReports]:
    """What an observer of a store sees, from its first look on."""
    seen = SeenReports()
    watching = asyncio.create_task(store.watch(seen))
    try:
        yield seen
    finally:
        watching.cancel()
        await asyncio.wait([watching])
        assert watching.cancelled()


def demands(reports: Reports) -> dict[str, Demands | None]:
    """What the reports say, and not in which version."""
    return {identity: report.demands for identity, report in reports.items()}


def waits(count: int) -> Demands:
    return {"ai-apps/vllm": Demand(waiting=count)}


def waiting(reports: Reports) -> int:
    """How many wait by the report of A."""
    return reports[A].of("ai-apps/vllm").waiting


class PeersContract:
    """Inherit, and give fixtures `store` and `another`: PeerReports of two proxies of a group without reports."""

    async def test_there_is_none_until_one_is_written_and_then_it_says_what_was_written(
        self, store: PeerReports
    ) -> None:
        assert await store.read() == {}
        await store.write(A, EVERYTHING)
        found = await store.read()
        assert demands(found) == {A: EVERYTHING}
        assert found[A].identity == A

    async def test_each_write_replaces_the_one_before_in_another_version(self, store: PeerReports) -> None:
        versions = set()
        for said in (BUSY, BUSY, EVERYTHING, {}):
            await store.write(A, said)
            found = await store.read()
            assert demands(found) == {A: said}
            versions.add(found[A].version)
        assert len(versions) == 4

    async def test_what_one_proxy_has_written_another_reads_at_once(
        self, store: PeerReports, another: PeerReports
    ) -> None:
        await store.write(A, BUSY)
        assert demands(await another.read()) == {A: BUSY}
        await another.write(B, {})
        assert demands(await store.read()) == {A: BUSY, B: {}}

    async def test_proxies_that_write_at_the_same_time_are_in_nobodys_way(
        self, store: PeerReports, another: PeerReports
    ) -> None:
        async def keep_writing(each: PeerReports, identity: str) -> None:
            for count in range(10):
                await each.write(identity, waits(count))

        await asyncio.gather(keep_writing(store, A), keep_writing(another, B))
        assert demands(await store.read()) == {A: waits(9), B: waits(9)}

    async def test_a_watch_tells_what_is_and_each_change(self, store: PeerReports, another: PeerReports) -> None:
        await store.write(A, BUSY)
        async with watched(another) as seen:
            await seen.until(lambda reports: demands(reports) == {A: BUSY})
            await another.write(B, waits(1))
            await seen.until(lambda reports: demands(reports) == {A: BUSY, B: waits(1)})
            await store.write(A, {})
            await seen.until(lambda reports: demands(reports) == {A: {}, B: waits(1)})
            await another.remove((await another.read())[A])
            await seen.until(lambda reports: demands(reports) == {B: waits(1)})
            assert seen.losses == []

    async def test_a_watch_tells_the_versions_that_are_read(self, store: PeerReports) -> None:
        await store.write(A, BUSY)
        async with watched(store) as seen:
            assert await seen.until(lambda reports: A in reports) == await store.read()

    async def test_a_watch_never_goes_back_behind_what_was_read(self, store: PeerReports, another: PeerReports) -> None:
        await store.write(A, waits(0))
        async with watched(another) as seen:
            await seen.until(lambda reports: A in reports)
            for count in range(1, 30):
                await store.write(A, waits(count))
                assert waiting(await another.read()) == count
                told = len(seen.history)
                await asyncio.sleep(0)
                assert all(waiting(reports) >= count for reports in seen.history[told:])
            await seen.until(lambda reports: waiting(reports) == 29)
        counts = [waiting(reports) for reports in seen.history]
        assert counts == sorted(counts)

    async def test_a_report_that_is_removed_is_gone_and_can_be_written_anew(
        self, store: PeerReports, another: PeerReports
    ) -> None:
        await store.write(A, BUSY)
        await another.write(B, {})
        await another.remove((await another.read())[A])
        assert demands(await store.read()) == {B: {}}
        await store.write(A, BUSY)
        assert demands(await another.read()) == {A: BUSY, B: {}}

    async def test_a_report_that_is_another_by_now_is_not_removed(
        self, store: PeerReports, another: PeerReports
    ) -> None:
        await store.write(A, BUSY)
        before = (await another.read())[A]
        await store.write(A, BUSY)
        await another.remove(before)
        assert demands(await another.read()) == {A: BUSY}

    async def test_removing_what_is_gone_does_nothing(self, store: PeerReports) -> None:
        await store.write(A, BUSY)
        report = (await store.read())[A]
        await store.remove(report)
        await store.remove(report)
        assert await store.read() == {}

    @pytest.mark.parametrize("turns", [0, 1, 2, 5, 20])
    async def test_after_a_write_that_was_given_up_the_next_one_counts(self, store: PeerReports, turns: int) -> None:
        await store.write(A, waits(1))
        writing = asyncio.ensure_future(store.write(A, waits(2)))
        for _ in range(turns):
            await asyncio.sleep(0)
        writing.cancel()
        await asyncio.wait([writing])
        await store.write(A, waits(3))
        assert demands(await store.read()) == {A: waits(3)}
