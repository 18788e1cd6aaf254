"""Reports that no server keeps: for proxies of one process."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from vllm_chill.core.peers import Demands, Report
from vllm_chill.ports import PeersObserver


class MemoryPeers:
    """ports.PeerReports. `reports` is what there is."""

    def __init__(self) -> None:
        self.reports: dict[str, Report] = {}
        self._versions = 0
        self._changed = asyncio.Condition()

    @property
    def newest(self) -> int:
        """The version of the last write."""
        return self._versions

    async def news(self) -> None:
        """Return after the next write."""
        async with self._changed:
            await self._changed.wait()

    async def watch(self, observer: PeersObserver) -> None:
        while True:
            observer.seen(dict(self.reports))
            await self.news()

    async def read(self) -> Mapping[str, Report]:
        return dict(self.reports)

    async def write(self, identity: str, demands: Demands) -> None:
        self.reports[identity] = Report(identity, await self._next(), dict(demands))

    async def remove(self, report: Report) -> None:
        found = self.reports.get(report.identity)
        if found is not None and found.version == report.version:
            del self.reports[report.identity]
            await self._next()

    async def _next(self) -> str:
        async with self._changed:
            self._versions += 1
            self._changed.notify_all()
        return str(self._versions)
