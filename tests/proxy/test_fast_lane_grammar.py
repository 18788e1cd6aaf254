"""What the first look accepts, aiohttp's parser accepts, and both read the same in it."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpRequestParser, HttpVersion11, RawRequestMessage
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import StreamReader
from hypothesis import example, given
from hypothesis import strategies as st

from vllm_chill.core.routing import Route, route_of
from vllm_chill.core.target import Endpoint
from vllm_chill.proxy.body import length_field
from vllm_chill.proxy.fast_grammar import HEAD_BYTES, KnownHeads, PlainRequest, first_look
from vllm_chill.proxy.headers import request_head

LIMIT = 64 * 1024
HERE = Endpoint("10.0.0.1", 8000)
NEXT = b"GET /next HTTP/1.1\r\nHost: n\r\n\r\n"


@pytest.fixture(scope="module", autouse=True)
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """aiohttp's parser makes its streams with a loop, which never runs here."""
    loop = asyncio.new_event_loop()
    Parsed.loop = loop
    yield loop
    loop.close()


@dataclass
class Parsed:
    """What aiohttp's parser, set up as the server does it, reads in these bytes."""

    data: bytes
    messages: list[tuple[RawRequestMessage, StreamReader]] = field(default_factory=list)
    upgraded: bool = False
    tail: bytes = b""

    def __post_init__(self) -> None:
        self.parser = HttpRequestParser(
            BaseProtocol(self.loop),
            self.loop,
            LIMIT,
            max_line_size=LIMIT,
            max_field_size=LIMIT,
            max_headers=128,
            auto_decompress=False,
        )
        self.feed(self.data)

    loop: asyncio.AbstractEventLoop = field(init=False, repr=False)

    def feed(self, data: bytes) -> None:
        messages, self.upgraded, self.tail = self.parser.feed_data(data)
        self.messages += messages


def where(plain: PlainRequest) -> tuple[int, int | None]:
    """Where the body is."""
    return plain.start, plain.length


def check(data: bytes) -> PlainRequest | None:
    """The rule. Raises HttpProcessingError where the parser refuses what was accepted."""
    plain = first_look(data)
    if plain is None:
        return None
    end = plain.start + (plain.length or 0)
    data += b"x" * (end - len(data))  # what of the body has yet to come
    parsed = Parsed(data[:end])
    [(message, payload)] = parsed.messages
    assert not parsed.upgraded
    assert not parsed.tail
    assert message.version == HttpVersion11
    assert (message.should_close, message.chunked, message.upgrade) == (False, False, False)
    assert message.method == plain.head.method
    assert message.path.encode() == plain.head.target
    assert plain.head.proxied == (route_of(message.method, message.path.partition("?")[0]) is Route.PROXIED)
    assert payload.is_eof()
    assert payload.read_nowait() == data[plain.start : end]
    length = message.headers.get("Content-Length")
    assert (None if length is None else int(length)) == plain.length
    for peer in ("1.2.3.4", ""):
        ours = first_look(data)
        assert ours is not None
        theirs = request_head(message, HERE, length_field(message.method, plain.length), peer=peer, scheme="http")
        assert ours.head.for_upstream(plain.length, HERE, peer, "http") == theirs
    parsed.feed(NEXT)  # the parser holds nothing back
    assert parsed.messages[1][0].path == "/next"
    again = plain.head.again(data)
    assert again is not None
    assert where(again) == where(plain)
    return plain


PLAIN = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: a:1\r\nAccept: */*\r\nUser-Agent: OpenAI/Python 1.50.0\r\n"
    b"X-Forwarded-For: 1.1.1.1\r\nConnection: keep-alive\r\nContent-Type: application/json\r\n"
    b"Content-Length: 2\r\nX-Stainless-OS: Linux\r\n\r\n{}"
)


@pytest.mark.parametrize(
    "data",
    [
        PLAIN,
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /proxy/operations/stop?x HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /?q=[a]&b=%zz HTTP/1.1\r\nHost: a\r\nCONTENT-LENGTH: 0\r\n\r\n",
        b"DELETE //x/../y;z HTTP/1.1\r\nhost: a\r\nconnection: Keep-Alive\r\nX-Forwarded-Host: b\r\n\r\n",
        b"PUT /x HTTP/1.1\r\nContent-Length: 3\r\nX: 1\r\nx: 2\r\nHost: a\r\n\r\nabc" + NEXT,
        b"PATCH /x HTTP/1.1\r\nHost: a\r\nX-Forwarded-Proto: https\r\n\r\n",
        b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\nthe rest is on its way",
    ],
)
def test_what_clients_send_is_plain(data: bytes) -> None:
    assert check(data) is not None


WRONG = {
    "a fold": PLAIN.replace(b"*/*\r\n", b"*/*\r\n more\r\n"),
    "a bare LF": PLAIN.replace(b"*/*\r\n", b"*/*\n"),
    "a bare LF at the end": PLAIN.replace(b"\r\n\r\n", b"\r\n\n"),
    "a bare CR": PLAIN.replace(b"*/*\r\n", b"*/*\rX: y\r\n"),
    "a space before the colon": PLAIN.replace(b"Accept:", b"Accept :"),
    "no name": PLAIN.replace(b"Accept:", b":"),
    "no space behind the colon": PLAIN.replace(b"Accept: ", b"Accept:"),
    "two spaces behind the colon": PLAIN.replace(b"Accept: ", b"Accept:  "),
    "a tab behind the colon": PLAIN.replace(b"Accept: ", b"Accept:\t"),
    "a space at a value's end": PLAIN.replace(b"*/*", b"*/* "),
    "a tab within a value": PLAIN.replace(b"*/*", b"*\t*"),
    "an empty value": PLAIN.replace(b"*/*", b""),
    "NUL": PLAIN.replace(b"*/*", b"*\0*"),
    "a byte above 0x7f in a value": PLAIN.replace(b"*/*", b"*\xff*"),
    "a byte above 0x7f in a name": PLAIN.replace(b"Accept", b"Accep\xf6"),
    "a byte above 0x7f in the target": PLAIN.replace(b"/v1", b"/\xe9"),
    "a fragment": PLAIN.replace(b"/v1", b"/v1#"),
    "an absolute target": PLAIN.replace(b"/v1", b"http://a/v1"),
    "an asterisk": PLAIN.replace(b"/v1/chat/completions", b"*"),
    "HTTP/1.0": PLAIN.replace(b"HTTP/1.1", b"HTTP/1.0"),
    "HTTP/1.2": PLAIN.replace(b"HTTP/1.1", b"HTTP/1.2"),
    "HTTP/0.9": b"GET /\r\n\r\n",
    "a method in lower case": PLAIN.replace(b"POST", b"post"),
    "HEAD, whose response is framed otherwise": PLAIN.replace(b"POST", b"HEAD"),
    "CONNECT": PLAIN.replace(b"POST /v1/chat/completions", b"CONNECT a:1"),
    "OPTIONS": PLAIN.replace(b"POST", b"OPTIONS"),
    "two spaces in the first line": PLAIN.replace(b"POST ", b"POST  "),
    "an empty line before it": b"\r\n" + PLAIN,
    "no Host": PLAIN.replace(b"Host: a:1\r\n", b""),
    "two Hosts": PLAIN.replace(b"Host: a:1\r\n", b"Host: a:1\r\nhOST: b\r\n"),
    "a Host with two names": PLAIN.replace(b"Host: a:1", b"Host: a, b"),
    "a Host with a path": PLAIN.replace(b"Host: a:1", b"Host: a/b"),
    "two lengths": PLAIN.replace(b"Content-Length: 2\r\n", b"Content-Length: 2\r\nContent-Length: 2\r\n"),
    "two lengths in one": PLAIN.replace(b"Length: 2", b"Length: 2, 2"),
    "a length with a sign": PLAIN.replace(b"Length: 2", b"Length: +2"),
    "a negative length": PLAIN.replace(b"Length: 2", b"Length: -2"),
    "a length in hex": PLAIN.replace(b"Length: 2", b"Length: 0x2"),
    "a length with a zero before it": PLAIN.replace(b"Length: 2", b"Length: 02"),
    "a length with an underscore": PLAIN.replace(b"Length: 2", b"Length: 1_0"),
    "a length beyond 64 bits": PLAIN.replace(b"Length: 2", b"Length: 99999999999999999999"),
    "chunks": PLAIN.replace(b"Content-Length: 2", b"Transfer-Encoding: chunked"),
    "chunks besides a length": PLAIN.replace(b"Accept: */*", b"tRANSFER-eNCODING: chunked"),
    "a coding behind a tab": PLAIN.replace(b"Accept: */*", b"Transfer-Encoding:\tchunked"),
    "a coding nobody knows": PLAIN.replace(b"Accept: */*", b"Transfer-Encoding: xchunked"),
    "Expect": PLAIN.replace(b"Accept: */*", b"Expect: 100-continue"),
    "Upgrade": PLAIN.replace(b"Accept: */*", b"Upgrade: websocket"),
    "TE": PLAIN.replace(b"Accept: */*", b"TE: trailers"),
    "Trailer": PLAIN.replace(b"Accept: */*", b"Trailer: x"),
    "Connection: close": PLAIN.replace(b"keep-alive", b"close"),
    "a Connection that names a field": PLAIN.replace(b"keep-alive", b"keep-alive, accept"),
    "two Connections": PLAIN.replace(b"Accept: */*", b"Connection: keep-alive"),
    "Keep-Alive": PLAIN.replace(b"Accept: */*", b"Keep-Alive: timeout=5"),
    "two content types": PLAIN.replace(b"Accept: */*", b"Content-Type: text/plain"),
    "two user agents": PLAIN.replace(b"Accept: */*", b"user-agent: x"),
    "the old WebSocket": PLAIN.replace(b"Accept: */*", b"Sec-WebSocket-Key1: x"),
    "a head that is too long": PLAIN.replace(b"*/*", b"*" * HEAD_BYTES),
    "too many fields": PLAIN.replace(b"Accept: */*\r\n", b"A: b\r\n" * 101),
    "nothing": b"",
}


@pytest.mark.parametrize("data", WRONG.values(), ids=WRONG.keys())
def test_what_is_not_plain_is_left_to_the_parser(data: bytes) -> None:
    assert first_look(data) is None


def test_a_head_that_is_not_whole_is_left_to_the_parser() -> None:
    start = PLAIN.index(b"\r\n\r\n") + 4
    for size in range(start):
        assert first_look(PLAIN[:size]) is None
    for size in range(start, len(PLAIN) + 1):
        assert check(PLAIN[:size]) is not None


names = st.sampled_from(
    [
        *[b"Host", b"host", b"Content-Length", b"Transfer-Encoding", b"transfer-encoding", b"Connection", b"Expect"],
        *[b"Upgrade", b"TE", b"Trailer", b"Keep-Alive", b"X", b"x-a", b"Content-Type", b"User-Agent", b"Server", b""],
        *[b"ETag", b"Max-Forwards", b"Content-Range", b"X-Forwarded-For", b"X-Forwarded-Proto", b"Content-Encoding"],
        *[b"Cookie", b"Proxy-Connection", b"Proxy-Authorization", b"HTTP2-Settings", b"Sec-WebSocket-Key1", b"A B"],
    ]
) | st.binary(max_size=3)
values = st.sampled_from(
    [
        *[b"a", b"0", b"5", b"+5", b"-1", b"0x5", b"5,5", b"5, 5", b"05", b"5 ", b" 5", b"1_0", b"chunked", b"Chunked"],
        *[b"\tchunked", b"chunked ", b"gzip, chunked", b"identity", b"keep-alive", b"close", b"x, keep-alive", b""],
        *[b"100-continue", b"websocket", b"h2c", b"trailers", b"a b  c", b"\x00", b"\xff", b"a\tb", b"gzip", b"a\r b"],
    ]
) | st.binary(max_size=8)
separators = st.sampled_from([b": "] * 8 + [b":", b" : ", b":  ", b":\t", b"\t: ", b" "])
ends = st.sampled_from([b"\r\n"] * 12 + [b"\n", b"\r", b"\r\n ", b"\r\n\t", b"\r\r\n"])
fields = st.builds(lambda *parts: b"".join(parts), names, separators, values, ends)
first_lines = st.builds(
    lambda *parts: b"".join(parts),
    st.sampled_from(
        [b"POST"] * 4 + [b"GET", b"DELETE", b"PUT", b"PATCH", b"post", b"HEAD", b"CONNECT", b"PRI", b"QUERY"]
    ),
    st.sampled_from([b" "] * 8 + [b"  ", b"\t"]),
    st.sampled_from(
        [b"/", b"/v1/x?a=b%20c", b"//a", b"/a#b", b"http://h/p", b"*", b"h:1", b"/a b", b"/\xff", b"/[", b"?"]
    ),
    st.sampled_from([b" "] * 8 + [b"  ", b"\t"]),
    st.sampled_from([b"HTTP/1.1"] * 8 + [b"HTTP/1.0", b"HTTP/2.0", b"http/1.1", b"HTTP/1.1 "]),
    ends,
)
requests = st.builds(
    lambda line, host, rest, end, body: b"".join([line, host, *rest, end, body]),
    first_lines,
    st.sampled_from([b"Host: a\r\n"] * 8 + [b"", b"Host:a\r\n"]),
    st.lists(fields, max_size=4),
    ends,
    st.binary(max_size=12),
)
bytes_of_http = st.sampled_from(
    [bytes([c]) for c in b"\r\n :\t\0,+-05\x7f\x80\xff#"] + [b"\r\n", b"\r\n ", b"Transfer-Encoding: chunked\r\n"]
)


@st.composite
def nearly_plain(draw: st.DrawFn) -> bytes:
    """The plain request with one or two places of it replaced."""
    data = PLAIN
    for _ in range(draw(st.integers(1, 2))):
        at, size = draw(st.integers(0, len(data))), draw(st.integers(0, 3))
        data = data[:at] + draw(bytes_of_http) + data[at + size :]
    return data


@given(requests)
@example(b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n\r\n")
def test_what_is_accepted_both_read_the_same(data: bytes) -> None:
    check(data)


@given(nearly_plain())
def test_a_near_miss_is_read_the_same_or_left_to_the_parser(data: bytes) -> None:
    check(data)


@given(nearly_plain() | requests)
def test_what_the_parser_refuses_is_not_accepted(data: bytes) -> None:
    try:
        Parsed(data)
    except HttpProcessingError:
        plain = first_look(data)
        # What it refuses may be behind the request.
        assert plain is None or Parsed(data[: plain.start + (plain.length or 0)]).messages


@given(st.integers(0, 10**10 - 1), st.binary(max_size=6) | bytes_of_http | st.just(b"0\r\n\r\n"))
def test_the_same_head_with_another_length_is_read_as_if_for_the_first_time(length: int, digits: bytes) -> None:
    known = first_look(PLAIN)
    assert known is not None
    for said in (b"%d" % length, digits):
        data = PLAIN.replace(b"Length: 2\r", b"Length: " + said + b"\r")
        plain, again = first_look(data), known.head.again(data)
        assert (again is not None) or said == digits
        if again is not None:
            assert plain is not None
            assert where(plain) == where(again)
            assert plain.head.for_upstream(plain.length, HERE, "c", "http") == again.head.for_upstream(
                again.length, HERE, "c", "http"
            )


@given(st.integers(0, len(PLAIN) - 1), bytes_of_http)
def test_another_head_is_not_taken_for_the_same(at: int, piece: bytes) -> None:
    known = first_look(PLAIN)
    assert known is not None
    data = PLAIN[:at] + piece + PLAIN[at + len(piece) :]
    again = known.head.again(data)
    if again is not None:
        plain = first_look(data)
        assert plain is not None
        assert where(plain) == where(again)
        assert data[: plain.start].replace(b"Length: %d\r" % (plain.length or 0), b"Length: 2\r") == PLAIN[:-2]


HEADS_OF_A_CLIENT = (PLAIN, PLAIN.replace(b"Content-Length: 2\r\n", b""), PLAIN.replace(b"Length: 2", b"length: 0"))


@given(nearly_plain() | requests, st.integers(0, 10**10 - 1))
@example(PLAIN.replace(b"Length: 2", b"Length: "), 2)
@example(PLAIN.replace(b"Length: 2", b"Length: \x00"), 2)
@example(PLAIN.replace(b"Length: 2", b"Length: 2\r\nContent-Length: 2"), 2)
@example(PLAIN.replace(b"Length: 2", b"Length: \r\nContent-Length: 2"), 2)
def test_a_head_that_another_connection_has_sent_is_read_as_if_for_the_first_time(data: bytes, length: int) -> None:
    heads = KnownHeads()
    before = [heads.look(head.replace(b"Length: 2", b"Length: %d" % length)) for head in HEADS_OF_A_CLIENT]
    assert all(before)
    for _ in range(2):
        plain, found = first_look(data), heads.look(data)
        assert (plain is None) == (found is None)
        if plain is not None and found is not None:
            assert where(plain) == where(found)
            for endpoint, peer in ((HERE, "c"), (Endpoint("b", 1), "c"), (HERE, "d")):
                head = plain.head.for_upstream(plain.length, endpoint, peer, "http")
                assert head == found.head.for_upstream(found.length, endpoint, peer, "http")


@pytest.mark.parametrize(
    ("method", "accept", "proxied"),
    [
        (b"GET", b"*/*", True),
        (b"GET", b"application/json", True),
        (b"GET", b"text/html,application/xhtml+xml,*/*;q=0.8", False),
        (b"GET", b"application/json, Text/HTML", False),
        (b"POST", b"text/html", True),
    ],
)
def test_a_get_that_a_browser_may_have_sent_takes_the_long_way(method: bytes, accept: bytes, proxied: bool) -> None:
    data = b"%b /ui HTTP/1.1\r\nHost: a\r\nAccept: %b\r\n\r\n" % (method, accept)
    request = first_look(data, lambda _, __: Route.PROXIED)
    assert request is not None
    assert request.head.proxied is proxied


def test_connections_of_one_client_share_a_head_for_as_long_as_there_are_any() -> None:
    heads = KnownHeads()
    first = heads.look(PLAIN)
    second = heads.look(PLAIN.replace(b"Length: 2\r", b"Length: 77\r"))
    assert first is not None
    assert second is not None
    assert first.head is second.head
    assert len(heads._heads) == 1
    del first, second
    gc.collect()
    assert not len(heads._heads)
