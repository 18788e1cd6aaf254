from __future__ import annotations

import asyncio

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.test_utils import make_mocked_request
from aiohttp.web import RequestPayloadError
from hypothesis import given
from hypothesis import strategies as st

from vllm_chill.errors import BadRequest
from vllm_chill.proxy.body import RequestBody


class Sink:
    """An upstream that remembers, and stops taking after `room` writes."""

    def __init__(self, room: int = 1000) -> None:
        self.data = b""
        self.room = room

    def writelines(self, pieces: list[bytes]) -> None:
        self.data += b"".join(pieces)

    async def drain(self) -> None:
        self.room -= 1
        if not self.room:
            await asyncio.Event().wait()


class Sent:
    """A request whose body comes when the test says."""

    def __init__(self, length: int | None, limit: int = 10, method: str = "POST") -> None:
        self.payload = StreamReader(BaseProtocol(asyncio.get_running_loop()), 1 << 16)
        self.payload._protocol.transport = asyncio.Transport()
        self.payload._protocol._upgraded = True  # its parser is not asked to go on
        headers = {"Transfer-Encoding": "chunked"} if length is None else {"Content-Length": str(length)}
        self.request = make_mocked_request(method, "/", headers=headers, payload=self.payload)
        self.body = RequestBody(self.request, limit)

    def come(self, *pieces: bytes, end: bool = True) -> None:
        for piece in pieces:
            self.payload.feed_data(piece)
        if end:
            self.payload.feed_eof()


async def test_a_request_without_a_body_says_so_where_one_is_expected() -> None:
    for method, headers, framing in [
        ("GET", {}, b""),
        ("DELETE", {}, b""),
        ("GET", {"Content-Length": "0"}, b"Content-Length: 0\r\n"),
        ("POST", {}, b"Content-Length: 0\r\n"),
        ("PATCH", {"Content-Length": "0"}, b"Content-Length: 0\r\n"),
    ]:
        body = RequestBody(make_mocked_request(method, "/", headers=headers, payload=EMPTY_PAYLOAD))
        assert body.framing == framing
        assert await body.load() == b""
        assert body.replayable


async def test_a_small_body_is_read_whole_and_stays_replayable() -> None:
    sent = Sent(10)
    assert sent.body.framing == b"Content-Length: 10\r\n"
    assert sent.body.replayable
    sent.come(b"hello", b"world")
    for _ in range(2):
        assert await sent.body.load() == b"helloworld"
        assert sent.body.replayable


async def test_a_small_body_that_comes_late_is_waited_for_and_a_wait_given_up_loses_nothing() -> None:
    sent = Sent(10)
    sent.come(b"hello", end=False)
    for _ in range(2):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(sent.body.load(), 0.01)
    sent.come(b"world")
    assert await sent.body.load() == b"helloworld"


@pytest.mark.parametrize("length", [11, None], ids=["longer than the limit", "chunked"])
async def test_a_large_or_chunked_body_is_not_loaded(length: int | None) -> None:
    sent = Sent(length)
    assert sent.body.replayable
    assert await sent.body.load() is None


async def test_a_streamed_body_of_known_length_is_sent_as_it_is() -> None:
    sent, sink = Sent(15), Sink()
    sent.come(b"hello", b"world", b"again")
    await sent.body.send(sink)
    assert sink.data == b"helloworldagain"
    assert sent.body.framing == b"Content-Length: 15\r\n"
    assert not sent.body.replayable


async def test_a_chunked_body_is_sent_in_chunks_with_its_end() -> None:
    sent, sink = Sent(None), Sink()
    sending = asyncio.ensure_future(sent.body.send(sink))
    for piece in (b"hello", b"0123456789abcdef"):
        sent.come(piece, end=False)
        await asyncio.sleep(0.001)
    sent.come()
    await sending
    assert sink.data == b"5\r\nhello\r\n10\r\n0123456789abcdef\r\n0\r\n\r\n"
    assert sent.body.framing == b"Transfer-Encoding: chunked\r\n"


async def test_what_is_kept_is_sent_again_before_what_still_comes() -> None:
    sent, first, second = Sent(None), Sink(), Sink()
    sent.come(b"hello", end=False)
    sending = asyncio.ensure_future(sent.body.send(first))
    await asyncio.sleep(0.001)
    sending.cancel()
    await asyncio.wait([sending])
    assert first.data == b"5\r\nhello\r\n"
    assert sent.body.replayable
    sent.come(b"world")
    for sink in (second, third := Sink()):
        await sent.body.send(sink)
    assert second.data == b"5\r\nhello\r\n5\r\nworld\r\n0\r\n\r\n"
    assert third.data == b"a\r\nhelloworld\r\n0\r\n\r\n"
    assert sent.body.replayable, "as much as is kept, and no more, was sent"


async def test_a_byte_more_than_is_kept_is_not_replayable() -> None:
    sent = Sent(None)
    sent.come(b"helloworld", end=False)
    sending = asyncio.ensure_future(sent.body.send(Sink()))
    await asyncio.sleep(0.001)
    assert sent.body.replayable
    sent.come(b"!")
    await sending
    assert not sent.body.replayable


async def test_a_body_is_read_no_faster_than_it_is_taken() -> None:
    sent, sink = Sent(None), Sink(room=1)
    sent.come(b"hello", end=False)
    sending = asyncio.ensure_future(sent.body.send(sink))
    await asyncio.sleep(0.001)
    sent.come(b"world", end=False)
    await asyncio.sleep(0.001)
    assert sink.data == b"5\r\nhello\r\n"
    sending.cancel()
    await asyncio.wait([sending])
    assert sent.body.replayable


@pytest.mark.parametrize("length", [10, 20, None])
async def test_a_broken_body_is_the_clients_fault(length: int | None) -> None:
    sent = Sent(length)
    sent.come(b"hello", end=False)
    sent.payload.set_exception(RequestPayloadError("bad chunk"))
    with pytest.raises(BadRequest, match="broken"):
        await (sent.body.send(Sink()) if length != 10 else sent.body.load())


@given(st.lists(st.binary(min_size=1, max_size=9), max_size=8), st.integers(0, 20), st.lists(st.integers(1, 9)))
def test_every_attempt_sends_the_body_from_its_start(pieces: list[bytes], limit: int, attempts: list[int]) -> None:
    async def attempt() -> None:
        sent = Sent(None, limit)
        sent.come(*pieces)
        for room in attempts:
            if not sent.body.replayable:
                return
            sink = Sink(room)
            sending = asyncio.ensure_future(sent.body.send(sink))
            for _ in range(30):
                await asyncio.sleep(0)
            sending.cancel()
            await asyncio.wait([sending])
            assert b"".join(pieces).startswith(unchunked(sink.data))
        if sent.body.replayable:
            await sent.body.send(sink := Sink())
            assert sink.data.endswith(b"0\r\n\r\n")
            assert unchunked(sink.data) == b"".join(pieces)

    asyncio.run(attempt())


def unchunked(data: bytes) -> bytes:
    body = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        body, data = body + data[: int(size, 16)], data[int(size, 16) + 2 :]
    return body
