"""TLS on both sides of the proxy, on both lanes."""

from __future__ import annotations

import asyncio
import io
import re
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from aiohttp import web

from tests.certificates import Authority, write
from tests.scenarios.stage import FAST_LANE, Stage, echo, stage
from vllm_chill.adapters.engine_access import EngineAccess
from vllm_chill.adapters.serving_certificate import from_files
from vllm_chill.adapters.vllm import EngineScraper
from vllm_chill.core.readiness import Answered, Refused
from vllm_chill.core.target import Asleep
from vllm_chill.errors import BackendUnavailable
from vllm_chill.proxy.probe import Prober

CHAT = "/v1/chat/completions"
NAME = "engine.test"


@pytest.fixture(params=[True, False], ids=["fast lane", "base"], autouse=True)
def lane(request: pytest.FixtureRequest) -> Iterator[None]:
    token = FAST_LANE.set(request.param)
    yield
    FAST_LANE.reset(token)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def files(authority: Authority, tmp_path: Path) -> tuple[Path, Path]:
    return write(tmp_path, *authority.issue("proxy.test"))


def client(authority: Authority, **more: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=authority.certificate.decode())
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    for name, value in more.items():
        setattr(context, name, value)
    return context


def was_on_lane(proxy: Stage) -> bool:
    return bool(getattr(proxy.server._runner.server, "fast", False))


class TestTheClientsSide:
    async def test_a_request_is_held_and_answered_and_the_engine_is_told_of_https(
        self, authority: Authority, files: tuple[Path, Path], request: pytest.FixtureRequest
    ) -> None:
        async with stage(tls=from_files(*files)) as proxy:
            status, seen = await proxy.post(CHAT, json={"model": "m"}, ssl=client(authority))
            assert status == 200
            assert ["X-Forwarded-Proto", "https"] in seen["headers"]
            assert was_on_lane(proxy) is FAST_LANE.get(), "TLS is no reason to go the long way"

    async def test_large_bodies_pass_both_ways(self, authority: Authority, files: tuple[Path, Path]) -> None:
        size = 8 << 20

        async def engine(request: web.BaseRequest) -> web.StreamResponse:
            seen = 0
            async for piece in request.content.iter_any():
                seen += len(piece)
            return web.Response(body=io.BytesIO(b"%08d" % seen + b"x" * (size - 8)))

        async with stage(engine, tls=from_files(*files), awake=True) as proxy:
            for _ in range(2):
                data = io.BytesIO(b"y" * size)
                async with proxy.session.post(proxy.url + CHAT, data=data, ssl=client(authority)) as response:
                    body = await response.read()
                assert int(body[:8]) == size
                assert len(body) == size

    async def test_a_stream_comes_piece_by_piece_and_a_client_that_leaves_ends_it(
        self, authority: Authority, files: tuple[Path, Path]
    ) -> None:
        gone = asyncio.Event()

        async def engine(request: web.BaseRequest) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            try:
                while True:
                    await response.write(b"data: {}\n\n")
                    await asyncio.sleep(0.01)
            finally:
                gone.set()

        async with stage(engine, tls=from_files(*files), awake=True) as proxy:
            async with proxy.session.post(proxy.url + CHAT, json={}, ssl=client(authority)) as response:
                for _ in range(3):
                    assert await response.content.readuntil(b"\n\n") == b"data: {}\n\n"
                response.close()
            await asyncio.wait_for(gone.wait(), 5)
            await proxy.until(lambda: not proxy.controller.target.in_flight)

    async def test_what_is_refused_early_is_read_by_a_client_that_goes_on_sending(
        self, authority: Authority, files: tuple[Path, Path]
    ) -> None:
        from vllm_chill.proxy.hold_terms import HoldOptions

        terms = HoldOptions(10, body_budget=1000)
        async with stage(tls=from_files(*files), terms=terms) as proxy:
            host, port = proxy.address
            reader, writer = await asyncio.open_connection(
                host, port, ssl=client(authority), server_hostname="proxy.test"
            )
            writer.write(b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: 500000\r\n\r\n" % CHAT.encode())
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            assert head.startswith(b"HTTP/1.1 503 ")
            length = int(re.findall(rb"Content-Length: (\d+)", head)[0])
            with suppress(ConnectionError):
                writer.write(b"x" * 400_000)
                await writer.drain()
            assert b"hold_budget_spent" in await asyncio.wait_for(reader.readexactly(length), 5)
            writer.transport.abort()
            await proxy.until(lambda: not proxy.server._active)
            assert proxy.phase_is(Asleep)

    async def test_a_websocket_passes(self, authority: Authority, files: tuple[Path, Path]) -> None:
        async def engine(request: web.BaseRequest) -> web.StreamResponse:
            socket = web.WebSocketResponse()
            await socket.prepare(request)
            async for message in socket:
                await socket.send_str(message.data * 2)
            return socket

        async with (
            stage(engine, tls=from_files(*files), awake=True) as proxy,
            proxy.session.ws_connect(proxy.url + "/v1/realtime", ssl=client(authority)) as socket,
        ):
            await socket.send_str("ab")
            assert await socket.receive_str(timeout=5) == "abab"

    async def test_a_new_certificate_is_shown_to_who_connects_and_cuts_nobody(
        self, authority: Authority, files: tuple[Path, Path], tmp_path: Path
    ) -> None:
        async with stage(tls=from_files(*files), awake=True) as proxy:
            host, port = proxy.address
            request = b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}" % CHAT.encode()

            async def connected() -> tuple[asyncio.StreamReader, asyncio.StreamWriter, object]:
                reader, writer = await asyncio.open_connection(
                    host, port, ssl=client(authority), server_hostname="proxy.test"
                )
                return reader, writer, writer.get_extra_info("peercert")["serialNumber"]

            async def answered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
                writer.write(request)
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
                await reader.readexactly(int(re.findall(rb"(?i)Content-Length: (\d+)", head)[0]))
                return head.startswith(b"HTTP/1.1 200 ")

            reader, writer, first = await connected()
            assert await answered(reader, writer)
            write(tmp_path, *authority.issue("proxy.test"))
            new_reader, new_writer, second = await connected()
            assert second != first
            assert await answered(new_reader, new_writer)
            assert await answered(reader, writer), "whoever was connected still is"
            for each in (writer, new_writer):
                each.transport.abort()

    async def test_older_tls_is_refused_and_plain_http_too(
        self, authority: Authority, files: tuple[Path, Path]
    ) -> None:
        async with stage(tls=from_files(*files), awake=True) as proxy:
            host, port = proxy.address
            with pytest.warns(DeprecationWarning, match="TLSv1"):
                old = client(authority, minimum_version=ssl.TLSVersion.TLSv1, maximum_version=ssl.TLSVersion.TLSv1_1)
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await asyncio.open_connection(host, port, ssl=old, server_hostname="proxy.test")
            assert not (await proxy.raw(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")).startswith(b"HTTP/1.1 200")
            assert (await proxy.post(CHAT, json={}, ssl=client(authority)))[0] == 200

    async def test_the_admin_port_speaks_it_too(self, authority: Authority, files: tuple[Path, Path]) -> None:
        async with stage(tls=from_files(*files), apart=True) as proxy:
            assert proxy.admin_url.startswith("https:")
            url = proxy.admin_url + "/proxy/status"
            async with proxy.session.get(url, ssl=client(authority)) as response:
                assert response.status == 200

    async def test_an_orderly_end_waits_for_what_is_under_way(
        self, authority: Authority, files: tuple[Path, Path]
    ) -> None:
        go = asyncio.Event()

        async def engine(request: web.BaseRequest) -> web.StreamResponse:
            await go.wait()
            return await echo(request)

        async with stage(engine, tls=from_files(*files), awake=True) as proxy:
            request = asyncio.create_task(proxy.post(CHAT, json={}, ssl=client(authority)))
            await proxy.until(lambda: proxy.controller.target.in_flight == 1)
            draining = asyncio.create_task(proxy.server.drain(0, 5))
            await asyncio.sleep(0.02)
            go.set()
            assert (await request)[0] == 200
            assert await draining


@pytest.fixture
def engine_tls(authority: Authority, tmp_path: Path) -> ssl.SSLContext:
    (tmp_path / "engine").mkdir()
    return from_files(*write(tmp_path / "engine", *authority.issue(NAME)))


class TestTheEnginesSide:
    @pytest.mark.parametrize("name", [NAME, None], ids=["by its name", "by its address"])
    async def test_requests_go_to_engines_over_tls(
        self, authority: Authority, engine_tls: ssl.SSLContext, name: str | None
    ) -> None:
        engines = EngineAccess(tls=client(authority), server_name=name)
        async with stage(engines=engines, upstream_tls=engine_tls) as proxy:
            for _ in range(2):
                assert (await proxy.post(CHAT, json={"model": "m"}))[0] == 200
            data = io.BytesIO(b"x" * (900 << 10))
            assert (await proxy.post(CHAT, data=data))[1]["size"] == 900 << 10
            assert (await proxy.get("/docs"))[0] == 200

    async def test_a_websocket_does(self, authority: Authority, engine_tls: ssl.SSLContext) -> None:
        async def engine(request: web.BaseRequest) -> web.StreamResponse:
            socket = web.WebSocketResponse()
            await socket.prepare(request)
            await socket.send_str(request.headers["Authorization"])
            await socket.close()
            return socket

        engines = EngineAccess(b"Bearer engine", client(authority), NAME)
        async with (
            stage(engine, engines=engines, upstream_tls=engine_tls, awake=True) as proxy,
            proxy.session.ws_connect(proxy.url + "/v1/realtime", headers={"Authorization": "Bearer mine"}) as socket,
        ):
            assert await socket.receive_str(timeout=5) == "Bearer engine"

    @pytest.mark.parametrize(
        ("engines", "why"),
        [
            (lambda authority: EngineAccess(tls=ssl.create_default_context()), "CERTIFICATE_VERIFY_FAILED"),
            (lambda authority: EngineAccess(tls=client(authority), server_name="other.test"), "Hostname mismatch"),
        ],
        ids=["an unknown authority", "another name"],
    )
    async def test_one_whose_certificate_is_no_good_gets_no_request(
        self, authority: Authority, engine_tls: ssl.SSLContext, engines: object, why: str
    ) -> None:
        assert callable(engines)
        async with stage(engines=engines(authority), upstream_tls=engine_tls, awake=True) as proxy:
            status, body = await proxy.post(CHAT, json={"model": "m"})
            assert (status, body["error"]["code"]) == (502, "upstream_refused")
            assert why in body["error"]["message"]
            assert not proxy.hits

    async def test_the_proxys_own_questions_have_the_key_and_go_over_tls(
        self, authority: Authority, engine_tls: ssl.SSLContext
    ) -> None:
        async def engine(request: web.BaseRequest) -> web.StreamResponse:
            if request.headers.get("Authorization") != "Bearer engine":
                return web.Response(status=401)
            return web.Response(text="vllm:num_requests_running 1\nvllm:num_requests_waiting 0\n")

        engines = EngineAccess(b"Bearer engine", client(authority), NAME)
        async with stage(engine, engines=engines, upstream_tls=engine_tls, awake=True) as proxy:
            endpoint = proxy.controller.endpoint
            assert endpoint is not None
            prober = Prober(proxy.pool)
            for path in ("/health", "/v1/models"):
                answer = await prober.ask(endpoint, path, 2)
                assert isinstance(answer, Answered)
                assert answer.status == 200
            async with EngineScraper(access=engines) as scraper:
                await scraper.scrape(endpoint)
            async with EngineScraper(access=EngineAccess(None, client(authority), NAME)) as scraper:
                with pytest.raises(BackendUnavailable, match="401"):
                    await scraper.scrape(endpoint)
            plain = EngineAccess(tls=ssl.create_default_context())
            proxy.pool.access.tls = plain.tls
            proxy.pool.close_endpoint(endpoint)
            assert await prober.ask(endpoint, "/health", 2) == Refused()
