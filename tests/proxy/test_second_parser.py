"""h11 as a second opinion on what crosses the proxy: what it sends to an upstream, and what it takes from one."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.proxy.test_fast_lane_grammar import PLAIN, nearly_plain
from tests.proxy.test_fast_lane_grammar import requests as plain_requests
from tests.proxy.test_request_framing import ILLEGAL, LEGAL, connections, fed, h11_reads
from tests.proxy.wire import Peer, upstream_of
from tests.scenarios.stage import stage
from vllm_chill.core.target import Endpoint, Observation
from vllm_chill.proxy.fast_grammar import first_look
from vllm_chill.proxy.framing import IllegalResponse, ResponseFraming

HERE = Endpoint("10.0.0.1", 8000)


@given(plain_requests | nearly_plain() | connections)
@example(PLAIN)
def test_what_the_fast_lane_takes_the_door_takes_too_and_so_does_h11(data: bytes) -> None:
    plain = first_look(data)
    if plain is None:
        return
    data = data[: plain.start] + b"x" * (plain.length or 0)
    framing, legal = fed(data)
    assert (framing.illegal, legal, framing.requests, framing.in_body) == (None, data, 1, False)
    read = h11_reads(data)
    assert not read.refused
    assert read.requests == [(plain.head.method.encode(), plain.head.target, data[plain.start :])]


@given(plain_requests | nearly_plain(), st.binary(max_size=50))
def test_what_the_fast_lane_sends_is_one_request_for_h11(data: bytes, body: bytes) -> None:
    plain = first_look(data)
    if plain is None:
        return
    length = None if plain.length is None else len(body)
    body = b"" if length is None else body
    sent = plain.head.for_upstream(length, HERE, "1.2.3.4", "http") + body
    read = h11_reads(sent + b"GET /next HTTP/1.1\r\nHost: n\r\n\r\n")
    assert not read.refused
    assert read.requests == [(plain.head.method.encode(), plain.head.target, body), (b"GET", b"/next", b"")]


@dataclass
class Taken:
    """All bytes that an upstream got on each of its connections, answered one after the other as h11 reads them."""

    connections: list[bytearray] = field(default_factory=list)
    requests: list[tuple[bytes, bytes]] = field(default_factory=list)

    async def __call__(self, peer: Peer) -> None:
        got = bytearray()
        self.connections.append(got)
        server = h11.Connection(h11.SERVER)
        while True:
            try:
                event = server.next_event()
            except h11.RemoteProtocolError as error:
                if "peer closed connection without sending complete" not in str(error):
                    raise
                self.requests.pop()  # one whose end was refused ends with its connection, and is never whole
                return
            match event:
                case h11.NEED_DATA:
                    data = await peer.reader.read(1 << 16)
                    got += data
                    server.receive_data(data)
                case h11.Request(target=target):
                    self.requests.append((target, b""))
                case h11.Data(data=piece):
                    target, body = self.requests[-1]
                    self.requests[-1] = target, body + bytes(piece)
                case h11.EndOfMessage():
                    response = h11.Response(status_code=200, headers=[("Content-Length", "2")])
                    await peer.send((server.send(response) or b"") + (server.send(h11.Data(data=b"ok")) or b""))
                    server.send(h11.EndOfMessage())
                    server.start_next_cycle()
                case _:
                    return


@pytest.mark.parametrize("fast", [True, False], ids=["fast lane", "base"])
async def test_what_goes_on_of_good_and_bad_requests_is_the_good_ones_and_each_is_one_request_for_h11(
    fast: bool,
) -> None:
    """The script raises, and fails the test, at anything that h11 does not take."""
    taken = Taken()
    async with upstream_of(taken) as upstream, stage(fast=fast, awake=True) as s:
        s.controller.observed(Observation(1, 1, (upstream.endpoint,)))
        for name, data in {**LEGAL, **ILLEGAL}.items():
            del taken.requests[:]
            wanted = data.replace(b" /v1/x ", b" /v1/audio/x ").replace(b" / ", b" /v1/audio/y ")
            wanted += b"GET /v1/audio/smuggled HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
            async with asyncio.timeout(5):
                reader, writer = await asyncio.open_connection(*s.address)
                writer.write(wanted)
                answer = await _until_closed(reader)
                writer.transport.abort()
            await s.until(lambda: not s.server._active and not s.controller.target.in_flight)
            if name in ILLEGAL:
                assert b"HTTP/1.1 400 " in answer, name
                assert not any(target == b"/v1/audio/smuggled" for target, _ in taken.requests), name
            else:
                assert b" 400 " not in answer, name
                assert taken.requests[-1][0] == b"/v1/audio/smuggled" or b"HTTP/1.0" in data, name


async def _until_closed(reader: asyncio.StreamReader) -> bytes:
    answer = b""
    try:
        while piece := await reader.read(1 << 16):
            answer += piece
    except ConnectionError:
        pass
    return answer


# --- responses ---

statuses = st.sampled_from(
    [b"200 OK"] * 8 + [b"204 No Content", b"304", b"404 ", b"500 x", b"100 Continue", b"99", b"2000"]
)
response_names = st.sampled_from(
    [b"Content-Length", b"content-length", b"Transfer-Encoding", b"Connection", b"X", b"", b"A B", b"Content-Type"]
)
response_values = st.sampled_from(
    [
        b"5",
        b"0",
        b"05",
        b"+5",
        b"5, 5",
        b"-1",
        b"chunked",
        b"Chunked ",
        b"gzip, chunked",
        b"close",
        b"",
        b"a\tb",
        b"\xff",
    ]
) | st.binary(max_size=4)
response_fields = st.builds(
    lambda *parts: b"".join(parts),
    response_names,
    st.sampled_from([b": "] * 8 + [b":", b" : "]),
    response_values,
    st.sampled_from([b"\r\n"] * 12 + [b"\n", b"\r\n ", b"\r"]),
)
bodies = st.sampled_from(
    [
        *[b"hello", b"", b"hello and more", b"5\r\nhello\r\n0\r\n\r\n", b"5;x=y\r\nhello\r\n0\r\nT: t\r\n\r\n"],
        *[b"5\r\nhelloXX0\r\n\r\n", b"5 \r\nhello\r\n0\r\n\r\n", b"0x5\r\nhello\r\n0\r\n\r\n", b"5\nhello\n0\n\n"],
        *[b"0\r\nContent-Length: 5\r\n\r\n", b"Z\r\n\r\n", b"00\r\n\r\n", b"5\r\nhello\r\n"],
    ]
)
responses = st.builds(
    lambda version, status, fields, end, body: b"%b %b\r\n%b%b%b" % (version, status, b"".join(fields), end, body),
    st.sampled_from([b"HTTP/1.1"] * 8 + [b"HTTP/1.0", b"HTTP/2", b"http/1.1"]),
    statuses,
    st.lists(response_fields, max_size=3),
    st.sampled_from([b"\r\n"] * 8 + [b"\n", b""]),
    bodies,
)


def h11_takes(data: bytes) -> tuple[int, bytes, bool] | None:
    """The status, the body, and whether it is whole, of the response that h11's client reads; None if it refuses it."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    client.send(h11.EndOfMessage())
    status, body = 0, b""
    try:
        client.receive_data(data)
        closed = False
        while True:
            match client.next_event():
                case h11.Response(status_code=code):
                    status = code
                case h11.Data(data=piece):
                    body += bytes(piece)
                case h11.EndOfMessage():
                    return status, body, True
                case h11.NEED_DATA if not closed:
                    client.receive_data(b"")
                    closed = True
                case h11.InformationalResponse():
                    pass
                case _:
                    return status, body, False
    except h11.RemoteProtocolError:
        return (status, body, False) if closed else None


@given(responses, st.lists(st.integers(0, 200), max_size=3))
def test_a_response_that_is_taken_is_the_same_for_h11_before_and_behind_the_proxy(data: bytes, cuts: list[int]) -> None:
    framing, out = ResponseFraming(), b""
    places = sorted(cut % (len(data) + 1) for cut in cuts)
    try:
        for start, end in zip([0, *places], [*places, len(data)], strict=True):
            if start < end and not framing.complete:
                out += framing.feed(data[start:end])
    except IllegalResponse:
        return
    whole = framing.complete or framing.close()
    if not whole or framing.status in {101, 204, 304}:
        return
    assert h11_takes(data) == h11_takes(out)
    read = h11_takes(out)
    assert read is not None
    assert read[0] == framing.status
    assert read[2]
