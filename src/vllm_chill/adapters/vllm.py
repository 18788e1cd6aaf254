"""Engines' own metrics, scraped: one session for all engines, whose connections are kept between two scrapes."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from types import TracebackType
from typing import Self

import aiohttp

from vllm_chill.adapters.engine_access import PLAIN, EngineAccess
from vllm_chill.adapters.page import pieces
from vllm_chill.core.engine_page import EngineSample, PageReader
from vllm_chill.core.target import Endpoint
from vllm_chill.errors import BackendUnavailable

SECONDS = 4.0
_PAGE_BYTES = 8 << 20
_AT_A_TIME = 128
_KEEP_SECONDS = 30.0


class EngineScraper:
    """Scrapes engines, so many at a time that those which hang leave room. To be used within `async with`."""

    def __init__(self, seconds: float = SECONDS, access: EngineAccess = PLAIN) -> None:
        """One scrape may take so many seconds, its wait for a turn included."""
        self._seconds = seconds
        self._access = access
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=_AT_A_TIME, limit_per_host=2, keepalive_timeout=_KEEP_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def scrape(self, endpoint: Endpoint) -> EngineSample:
        """What the engine there says of itself now. Raises BackendUnavailable if it says nothing."""
        url = f"{self._access.scheme}://{endpoint}/metrics"
        reader = PageReader()
        async with aclosing(pieces(self._session, url, self._seconds, _PAGE_BYTES, access=self._access)) as page:
            async for piece in page:
                reader.feed(piece)
                await asyncio.sleep(0)  # a page may have come as a whole: whoever else is ready goes first
        sample = reader.sample()
        if sample is None:
            raise BackendUnavailable(
                f"{url} has no metrics of vLLM, nor of llama.cpp; vLLM has none with --disable-log-stats"
            )
        return sample
