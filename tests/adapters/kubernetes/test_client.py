from __future__ import annotations

import asyncio
import json
import socket

import aiohttp
import pytest

from tests.adapters.kubernetes.conftest import Fixed
from tests.adapters.kubernetes.stub_api import StubApi, status
from vllm_chill.adapters.kubernetes.client import ApiClient, ApiError, Unreachable, _socket

LIST = "/api/v1/things"
QUERY = {"limit": 1}
KEEPALIVE = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)


async def client(session: aiohttp.ClientSession, credentials: Fixed, call_seconds: float = 2) -> ApiClient:
    return ApiClient(session, credentials, await credentials.load(), call_seconds=call_seconds)


def tokens(server: StubApi) -> list[str]:
    return [request.headers["Authorization"] for request in server.requests]


async def test_a_call_answers_with_json(server: StubApi, api: ApiClient) -> None:
    assert (await api.call("GET", LIST, query=QUERY))["kind"] == "List"


async def test_a_token_that_is_refused_is_read_again_and_the_call_repeated(
    server: StubApi, session: aiohttp.ClientSession
) -> None:
    api = await client(session, Fixed(server.url, "old", "new"))
    server.refusals = [(401, status(401, "Unauthorized"))]
    await api.call("GET", LIST, query=QUERY)
    await api.call("GET", LIST, query=QUERY)
    assert tokens(server) == ["Bearer old", "Bearer new", "Bearer new"]


async def test_a_token_that_is_refused_again_is_the_answer(server: StubApi, session: aiohttp.ClientSession) -> None:
    credentials = Fixed(server.url, "old", "new")
    api = await client(session, credentials)
    server.refusals = [(401, status(401, "Unauthorized"))] * 2
    with pytest.raises(ApiError, match="401: Unauthorized"):
        await api.call("GET", LIST, query=QUERY)
    assert credentials.readings == 2


async def test_calls_that_are_refused_together_read_the_token_once(
    server: StubApi, session: aiohttp.ClientSession
) -> None:
    credentials = Fixed(server.url, "old", "new")
    api = await client(session, credentials)
    server.refusals = [(401, status(401, "Unauthorized"))] * 5
    server.delay = 0.05
    await asyncio.gather(*(api.call("GET", LIST, query=QUERY) for _ in range(5)))
    assert credentials.readings == 2


async def test_a_token_that_rotates_is_read_again_in_time(server: StubApi, session: aiohttp.ClientSession) -> None:
    api = await client(session, Fixed(server.url, "old", "new", fresh_seconds=0.0))
    await api.call("GET", LIST, query=QUERY)
    assert tokens(server) == ["Bearer new"]


async def test_a_server_that_does_not_answer_is_unreachable(server: StubApi, session: aiohttp.ClientSession) -> None:
    api = await client(session, Fixed(server.url), call_seconds=0.1)
    server.delay = 5
    with pytest.raises(Unreachable, match=r"did not answer within 0\.1 s"):
        await api.call("GET", LIST, query=QUERY)
    with pytest.raises(Unreachable, match=r"did not answer within 0\.1 s"):
        async with api.stream(LIST, {"watch": "1"}):
            pass


async def test_a_server_that_is_not_there_is_unreachable(session: aiohttp.ClientSession) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        api = await client(session, Fixed(f"http://127.0.0.1:{bound.getsockname()[1]}"))
        with pytest.raises(Unreachable, match=r"cannot be reached: Connection refused$"):
            await api.call("GET", LIST)


async def test_a_kept_connection_that_the_server_closed_is_no_failure(session: aiohttp.ClientSession) -> None:
    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
        # The next request on this connection is not answered.
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(once, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        api = await client(session, Fixed(f"http://127.0.0.1:{port}"))
        for _ in range(3):
            assert await api.call("PATCH", "/scale", body={}) == {}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        pytest.param(status(403, "forbidden: no", "Forbidden"), "403: forbidden: no", id="a Status"),
        pytest.param(b"<h1>Bad\nGateway</h1>", "403: <h1>Bad Gateway</h1>", id="a page"),
        pytest.param(b"", "403: Forbidden", id="nothing"),
        pytest.param(b"[1]", r"403: \[1\]", id="JSON that is no Status"),
    ],
)
async def test_an_error_says_what_the_server_said(body: bytes, message: str, server: StubApi, api: ApiClient) -> None:
    server.refusals = [(403, body)]
    with pytest.raises(ApiError, match=message):
        await api.call("GET", LIST)


async def test_a_long_error_is_read_to_its_end(session: aiohttp.ClientSession) -> None:
    body = json.dumps(status(422, "spec.a is wrong, " * 200 + "spec.z too", "Invalid")).encode()

    async def in_pieces(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 422 Unprocessable Entity\r\nContent-Length: %d\r\n\r\n" % len(body))
        writer.write(body[:1000])
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.write(body[1000:])
        writer.close()
        await writer.wait_closed()
        ended.set()

    ended = asyncio.Event()
    async with await asyncio.start_server(in_pieces, "127.0.0.1", 0) as listening:
        api = await client(session, Fixed(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"))
        with pytest.raises(ApiError, match=r"spec\.z too") as refused:
            await api.call("GET", LIST)
        assert refused.value.reason == "Invalid"
        await ended.wait()


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        pytest.param("7", 7.0, id="seconds"),
        pytest.param("3600", 30.0, id="longer than anybody waits"),
        pytest.param("Sun, 06 Nov 1994 08:49:37 GMT", 0.0, id="a date"),
        pytest.param("-1", 0.0, id="what is past"),
    ],
)
async def test_an_error_says_when_to_come_again(said: str, seconds: float, server: StubApi, api: ApiClient) -> None:
    server.refusals, server.retry_after = [(429, status(429, "too many"))], said
    with pytest.raises(ApiError) as refused:
        await api.call("GET", LIST)
    assert refused.value.retry_after_seconds == seconds


async def test_a_peer_that_is_gone_without_a_word_is_asked_after() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        with _socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", listening.getsockname())) as made:
            assert made.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert [made.getsockopt(socket.IPPROTO_TCP, option) for option in KEEPALIVE] == [5, 2, 3]


@pytest.mark.parametrize("body", [b"[]", b"null", b"7", b'{"spec": 7}', b'{"metadata": []}'])
async def test_an_answer_that_is_no_object_is_unreachable(body: bytes, server: StubApi, api: ApiClient) -> None:
    server.refusals = [(200, body)]
    with pytest.raises(Unreachable, match="no object of a Kubernetes API server"):
        await api.call("GET", LIST)


async def test_an_answer_that_is_nested_without_end_is_unreachable(server: StubApi, api: ApiClient) -> None:
    server.refusals = [(200, b"[" * 100_000), (500, b"[" * 100_000)]
    with pytest.raises(Unreachable, match="not JSON"):
        await api.call("GET", LIST)
    with pytest.raises(ApiError, match=r"500: \[\["):
        await api.call("GET", LIST)


async def test_an_answer_that_is_not_json_is_unreachable(server: StubApi, api: ApiClient) -> None:
    server.refusals = [(200, b"<html>")]
    with pytest.raises(Unreachable, match="not JSON"):
        await api.call("GET", LIST)


async def test_each_call_is_timed_with_what_came_of_it(server: StubApi, session: aiohttp.ClientSession) -> None:
    told: list[tuple[str, str, float]] = []
    credentials = Fixed(server.url)
    api = ApiClient(
        session, credentials, await credentials.load(), call_seconds=0.5, timed=lambda *call: told.append(call)
    )
    server.delay = 0.05
    await api.call("GET", LIST, query=QUERY)
    server.refusals = [(409, status(409, "no")), (503, b"")]
    with pytest.raises(ApiError):
        await api.call("PATCH", LIST, body={})
    with pytest.raises(ApiError):
        async with api.stream(LIST, {"watch": "1"}):
            pass
    async with api.stream(LIST, {"watch": "1", "resourceVersion": "10"}):
        pass
    server.logs["a"] = b"said"
    async with api.stream("/a/log", {}):
        pass
    server.delay = 5
    with pytest.raises(Unreachable):
        await api.call("GET", LIST)
    asked = asyncio.create_task(api.call("GET", LIST))
    await server.until_asked("list", 3)
    asked.cancel()
    await asyncio.wait([asked])
    assert [(verb, outcome) for verb, outcome, _ in told] == [
        ("GET", "2xx"),
        ("PATCH", "4xx"),
        ("WATCH", "5xx"),
        ("WATCH", "2xx"),
        ("GET", "2xx"),
        ("GET", "unreachable"),
    ]
    assert all(0.05 <= seconds < 0.7 for _, _, seconds in told)
    assert told[-1][2] >= 0.5
