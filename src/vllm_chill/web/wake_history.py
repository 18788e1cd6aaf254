"""The starts that are over: `GET /proxy/starts`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from aiohttp import web
from msgspec import to_builtins

from vllm_chill.api.wake_history import TargetStarts, WakeHistory, one_start
from vllm_chill.core.cold_start import ColdStart
from vllm_chill.proxy.served import Directory, Served


def _wall() -> datetime:
    return datetime.now(UTC)


class HistoryPage:
    """The newest starts of a directory's targets. `wall` is what the time of day is read from."""

    def __init__(self, directory: Directory, wall: Callable[[], datetime] = _wall) -> None:
        self._directory = directory
        self._wall = wall

    async def tell(self, _: web.BaseRequest) -> web.Response:
        """Those of every target."""
        targets = [self._of(served) for served in self._directory]
        return web.json_response(to_builtins(WakeHistory(targets=targets)))

    def _of(self, served: Served) -> TargetStarts:
        served.starts.settle(served.controller.target)
        wall, now = self._wall(), served.controller.now()

        def began(start: ColdStart) -> str:
            at = wall - timedelta(seconds=now - start.began)
            return at.isoformat(timespec="seconds").replace("+00:00", "Z")

        return TargetStarts(
            target=str(served.controller.target.ref),
            model=None if served.entry is None else served.entry.name,
            starts=[one_start(start, began(start)) for start in reversed(served.starts.newest)],
        )
