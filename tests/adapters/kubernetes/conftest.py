from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.adapters.kubernetes.stub_api import StubApi
from vllm_chill.adapters.kubernetes.client import ApiClient
from vllm_chill.adapters.kubernetes.credentials import Access


class Fixed:
    """Credentials that count how often they are read; each reading is the next of `tokens`, the last for ever."""

    def __init__(self, server: str, *tokens: str, fresh_seconds: float | None = None) -> None:
        self.fresh_seconds: float | None = fresh_seconds
        self.readings = 0
        self._server = server
        self._tokens = tokens or ("token",)

    async def load(self) -> Access:
        token = self._tokens[min(self.readings, len(self._tokens) - 1)]
        self.readings += 1
        return Access(self._server, authorization=f"Bearer {token}")


@pytest.fixture
async def server() -> AsyncIterator[StubApi]:
    server = StubApi()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def api(server: StubApi, session: aiohttp.ClientSession) -> ApiClient:
    credentials = Fixed(server.url)
    return ApiClient(session, credentials, await credentials.load(), call_seconds=2)
