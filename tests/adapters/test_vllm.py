"""The scraping of engines over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from aiohttp import web

from vllm_chill.adapters.vllm import EngineScraper
from vllm_chill.core.engine_page import EngineSample
from vllm_chill.core.target import Endpoint
from vllm_chill.errors import BackendUnavailable

PAGE = b'vllm:num_requests_running{engine="0"} 3.0\nvllm:num_requests_waiting{engine="0"} 1.0\n'


@dataclass
class Engine:
    """Answers GET /metrics with a page, so often by now; `connections` are those that it came on."""

    page: bytes = PAGE
    status: int = 200
    seconds: float = 0.0
    where: Endpoint = field(init=False)
    connections: set[object] = field(default_factory=set)
    headers: dict[str, str] = field(default_factory=dict)
    asked: int = 0

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        assert request.path == "/metrics"
        self.connections.add(request.transport)
        self.asked += 1
        self.headers = dict(request.headers)
        await asyncio.sleep(self.seconds)
        return web.Response(body=self.page, status=self.status, content_type="text/plain")

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[Engine]:
        server = web.Server(self.answer, handler_cancellation=True, access_log=None)
        runner = web.ServerRunner(server, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.where = Endpoint(*runner.addresses[0])
        try:
            yield self
        finally:
            await runner.cleanup()


async def test_what_an_engine_says_is_read_on_a_connection_that_is_kept() -> None:
    async with Engine().listening() as engine, EngineScraper() as scraper:
        for _ in range(3):
            assert await scraper.scrape(engine.where) == EngineSample(running=3, waiting=1)
    assert len(engine.connections) == 1
    assert engine.headers["Accept-Encoding"] == "identity"


async def test_a_large_page_is_read_in_pieces_between_which_others_go_on() -> None:
    """A page of 3 MB, as of many engines: each piece of it takes less than a tenth of the whole."""
    line = b'vllm:request_params_n_bucket{engine="0",le="1.0",model_name="tiny"} 7.0\n'
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async with Engine(line * 40_000 + PAGE).listening() as engine, EngineScraper() as scraper:
        task = asyncio.create_task(other())
        assert await scraper.scrape(engine.where) == EngineSample(running=3, waiting=1)
        task.cancel()
    assert turns >= len(line) * 40_000 / (1 << 16)


@pytest.mark.parametrize(
    ("engine", "says"),
    [
        pytest.param(Engine(b"python_info 1\n"), "has no metrics of vLLM", id="another program"),
        pytest.param(Engine(status=404), "answers with status 404", id="no such page"),
        pytest.param(Engine(b"x" * (9 << 20)), "answers with more than 8 MiB", id="a page without end"),
        pytest.param(Engine(seconds=60), "did not answer within 0.2 s", id="a silent one"),
    ],
)
async def test_what_is_no_engines_page_is_said(engine: Engine, says: str) -> None:
    async with engine.listening(), EngineScraper(seconds=0.2 if engine.seconds else 4) as scraper:
        with pytest.raises(BackendUnavailable, match=says):
            await scraper.scrape(engine.where)
        engine.page, engine.status, engine.seconds = PAGE, 200, 0
        assert await scraper.scrape(engine.where) == EngineSample(running=3, waiting=1)


async def test_one_that_is_not_there_is_said() -> None:
    async with EngineScraper() as scraper:
        with pytest.raises(BackendUnavailable, match=r"http://127.0.0.1:1/metrics cannot be asked"):
            await scraper.scrape(Endpoint("127.0.0.1", 1))
