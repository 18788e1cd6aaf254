"""What the door lets through is what a second parser, h11, reads as the same requests; what is not, is refused."""

from __future__ import annotations

from dataclasses import dataclass, field

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vllm_chill.proxy.request_framing import FIELDS, HEAD_BYTES, RequestFraming

POST = b"POST /v1/x HTTP/1.1\r\nHost: a\r\n"
NEXT = b"GET /next HTTP/1.1\r\nHost: n\r\n\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"


@dataclass
class Read:
    """What a parser has read: the first lines of the requests with their bodies, and whether it refused something."""

    requests: list[tuple[bytes, bytes, bytes]] = field(default_factory=list)
    refused: bool = False


def h11_reads(data: bytes) -> Read:
    """What h11's server reads in the bytes of one connection."""
    connection, read = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20), Read()
    connection.receive_data(data)
    try:
        while True:
            match connection.next_event():
                case h11.Request(method=method, target=target):
                    read.requests.append((method, target, b""))
                case h11.Data(data=piece):
                    *before, (method, target, body) = read.requests
                    read.requests = [*before, (method, target, body + bytes(piece))]
                case h11.EndOfMessage():
                    connection.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
                    connection.send(h11.EndOfMessage())
                    if connection.our_state is h11.MUST_CLOSE:
                        return read
                    connection.start_next_cycle()
                case _:
                    return read
    except h11.RemoteProtocolError:
        read.refused = True
        return read


def fed(data: bytes, cuts: list[int] | None = None, **limits: int) -> tuple[RequestFraming, bytes]:
    """The framing after these bytes, and what it lets through of them."""
    framing, legal = RequestFraming(**limits), b""
    places = sorted(cut % (len(data) + 1) for cut in cuts or [])
    for start, end in zip([0, *places], [*places, len(data)], strict=True):
        if framing.illegal is None and start < end:
            legal += framing.feed(data[start:end])
    return framing, legal


def check(data: bytes, cuts: list[int] | None = None) -> RequestFraming:
    """The rule: what goes through, h11 reads as the same number of requests, and it refuses nothing of it.

    The exceptions, each with its reason:
    - bytes above 0x7f in a target, which curl sends as it is given them; they end nothing, and go on as they came
    - a request that asks for another protocol, after which h11 waits for the answer
    - HTTP/1.0 with keep-alive, of which h11 reads one request and closes
    """
    framing, legal = fed(data, cuts)
    if framing.switches or b"\r\nupgrade:" in legal.lower():
        return framing
    if b" HTTP/1.0\r\n" in legal and (not framing.closes or b"keep-alive" in legal.lower()):
        return framing
    theirs = h11_reads(_as_h11_takes_it(legal))
    assert not theirs.refused, (legal, framing.illegal)
    assert len(theirs.requests) == framing.requests
    return framing


def _as_h11_takes_it(legal: bytes) -> bytes:
    return bytes(byte if byte < 0x80 else 0x7A for byte in legal)


LEGAL = {
    "no body": NEXT,
    "a length": POST + b"Content-Length: 5\r\n\r\nhello" + NEXT,
    "a length behind a tab, with spaces": POST + b"Content-Length:\t5  \r\n\r\nhello" + NEXT,
    "a length with a zero before it": POST + b"Content-Length: 05\r\n\r\nhello" + NEXT,
    "chunks": POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n" + NEXT,
    "chunks with an extension": POST + b"Transfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0;z\r\n\r\n" + NEXT,
    "chunks with trailers": POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX: y\r\n\r\n" + NEXT,
    "chunks in capitals": POST + b"TRANSFER-ENCODING: Chunked\r\n\r\nA\r\n0123456789\r\n0\r\n\r\n" + NEXT,
    "HTTP/1.0": b"GET / HTTP/1.0\r\n\r\n",
    "HTTP/1.0 that is kept": b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + NEXT,
    "a body in HTTP/1.0": b"POST / HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}",
    "an absolute target": b"GET http://b/x HTTP/1.1\r\nHost: a\r\n\r\n" + NEXT,
    "an address as Host": b"GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n" + NEXT,
    "an empty Host": b"GET / HTTP/1.1\r\nHost:\r\n\r\n" + NEXT,
    "an empty line before it": b"\r\n" + NEXT,
    "Expect": POST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n{}" + NEXT,
}


@pytest.mark.parametrize("data", LEGAL.values(), ids=LEGAL.keys())
def test_what_is_legal_goes_through_byte_for_byte_however_it_comes(data: bytes) -> None:
    for cut in range(len(data)):
        framing, legal = fed(data, [cut])
        assert (framing.illegal, legal) == (None, data.removeprefix(b"\r\n"))
        assert not framing.in_head
        assert not framing.in_body
    check(data)


ILLEGAL = {
    "CL.TE": POST + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
    "TE.CL": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n5c\r\n",
    "two lengths": POST + b"Content-Length: 0\r\nContent-Length: 37\r\n\r\n",
    "two lengths, the same": POST + b"Content-Length: 2\r\ncontent-length: 2\r\n\r\n{}",
    "two lengths in one": POST + b"Content-Length: 2, 2\r\n\r\n{}",
    "a length with a plus": POST + b"Content-Length: +2\r\n\r\n{}",
    "a negative length": POST + b"Content-Length: -2\r\n\r\n{}",
    "a length in hex": POST + b"Content-Length: 0x2\r\n\r\n{}",
    "a length with an underscore": POST + b"Content-Length: 1_0\r\n\r\n",
    "a length with a point": POST + b"Content-Length: 2.0\r\n\r\n{}",
    "a length beyond 64 bits": POST + b"Content-Length: 18446744073709551617\r\n\r\n",
    "an empty length": POST + b"Content-Length:\r\n\r\n",
    "a length in two words": POST + b"Content-Length: 2 2\r\n\r\n",
    "a space before the colon": POST + b"Content-Length : 2\r\n\r\n{}",
    "a tab before the colon": POST + b"Transfer-Encoding\t: chunked\r\n\r\n",
    "a coding twice": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    "a coding twice in one": POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n",
    "chunked, identity": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n",
    "identity": POST + b"Transfer-Encoding: identity\r\n\r\n",
    "gzip, chunked": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
    "xchunked": POST + b"Transfer-Encoding: xchunked\r\n\r\n",
    "chunked in quotes": POST + b'Transfer-Encoding: "chunked"\r\n\r\n',
    "an empty coding": POST + b"Transfer-Encoding:\r\n\r\n",
    "a coding behind a vertical tab": POST + b"Transfer-Encoding:\x0bchunked\r\n\r\n",
    "chunks in HTTP/1.0": b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a fold": POST + b"A: b\r\n Transfer-Encoding: chunked\r\n\r\n",
    "a fold of the first field": b"GET / HTTP/1.1\r\n Host: a\r\n\r\n",
    "a bare LF": b"POST / HTTP/1.1\r\nHost: a\nContent-Length: 37\r\n\r\n",
    "a bare LF at the end": b"POST / HTTP/1.1\r\nHost: a\r\n\n",
    "a bare CR": b"POST / HTTP/1.1\r\nHost: a\r\nA: b\rContent-Length: 37\r\n\r\n",
    "NUL in a value": POST + b"A: \0\r\n\r\n",
    "NUL in a name": POST + b"A\0: b\r\n\r\n",
    "a control character": POST + b"A: \x1b[2J\r\n\r\n",
    "no name": POST + b": b\r\n\r\n",
    "no colon": POST + b"Content-Length\r\n\r\n",
    "no Host": b"POST / HTTP/1.1\r\n\r\n",
    "two Hosts": b"POST / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "two names in a Host": b"POST / HTTP/1.1\r\nHost: a, b@c\r\n\r\n",
    "a path in a Host": b"POST / HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "a port that is none": b"POST / HTTP/1.1\r\nHost: a:b\r\n\r\n",
    "a space in the target": b"POST /a b HTTP/1.1\r\nHost: a\r\n\r\n",
    "a tab in the first line": b"POST\t/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "two spaces in the first line": b"POST  / HTTP/1.1\r\nHost: a\r\n\r\n",
    "a method that is no token": b"PO(ST / HTTP/1.1\r\nHost: a\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\nHost: a\r\n\r\n",
    "HTTP/2.0": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "http/1.1": b"GET / http/1.1\r\nHost: a\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "two empty lines before it": b"\r\n\r\n" + NEXT,
    "CONNECT": b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n",
    "a chunk whose size is no number": POST + b"Transfer-Encoding: chunked\r\n\r\nZ\r\n",
    "a chunk's size in hex with 0x": POST + b"Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n",
    "a negative chunk": POST + b"Transfer-Encoding: chunked\r\n\r\n-5\r\n",
    "a chunk beyond 64 bits": POST + b"Transfer-Encoding: chunked\r\n\r\n10000000000000005\r\n",
    "a space behind a chunk's size": POST + b"Transfer-Encoding: chunked\r\n\r\n5 \r\nhello\r\n",
    "a bare LF behind a chunk's size": POST + b"Transfer-Encoding: chunked\r\n\r\n5\nhello\r\n",
    "a bare LF in an extension": POST + b"Transfer-Encoding: chunked\r\n\r\n5;\nhello\r\n0\r\n\r\n",
    "a chunk that is longer than its size": POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n",
    "a trailer that frames": POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 5\r\n\r\n",
    "a trailer without a colon": POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nGET / HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("data", ILLEGAL.values(), ids=ILLEGAL.keys())
def test_what_could_be_read_in_two_ways_is_refused_however_it_comes(data: bytes) -> None:
    data += SMUGGLED
    for cut in range(len(data)):
        framing, legal = fed(data, [cut])
        assert framing.illegal is not None
        assert framing.illegal.status == 400
        assert b"/smuggled" not in legal


def test_a_head_that_is_too_large_is_told_so() -> None:
    for data in (
        b"GET /" + b"x" * HEAD_BYTES,
        POST + b"A: " + b"x" * HEAD_BYTES + b"\r\n\r\n",
        POST + b"A: b\r\n" * FIELDS + b"\r\n",
    ):
        framing, legal = fed(data, [1000])
        assert framing.illegal is not None
        assert (framing.illegal.status, legal) == (431, b"")


def test_a_chunked_body_is_refused_once_it_announces_more_than_may_be() -> None:
    head = POST + b"Transfer-Encoding: chunked\r\n\r\n"
    assert fed(head + b"5\r\nhello\r\n5\r\nhello\r\n", body_bytes=10)[0].illegal is None
    framing, _ = fed(head + b"5\r\nhello\r\n6\r\n", body_bytes=10)
    assert framing.illegal is not None
    assert framing.illegal.status == 413


def test_chunks_that_are_mostly_framing_are_refused_and_small_ones_are_not() -> None:
    head = POST + b"Transfer-Encoding: chunked\r\n\r\n"
    assert fed(head + b"1\r\na\r\n" * 100_000)[0].illegal is None
    framing, _ = fed(head + b"1;%b\r\na\r\n" % (b"x" * 1000) * 100)
    assert framing.illegal is not None
    assert "more framing than body" in framing.illegal.message


def test_a_request_for_another_protocol_stops_the_reading_if_it_is_alone_and_has_no_body() -> None:
    upgrade = b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    framing, legal = fed(upgrade + b"\x81\x05")
    assert (framing.switches, legal, framing.rest) == (True, upgrade, b"\x81\x05")
    framing, legal = fed(NEXT + upgrade + NEXT)
    assert not framing.switches
    assert legal == NEXT + upgrade.replace(b"\r\nUpgrade: websocket", b"") + NEXT
    framing, legal = fed(upgrade[:-2] + b"Content-Length: 2\r\n\r\n{}" + NEXT)
    assert not framing.switches
    assert b"pgrade: websocket" not in legal


def test_what_is_behind_a_request_that_closes_is_passed_over() -> None:
    close = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    framing, legal = fed(close + b"\0 anything")
    assert (framing.illegal, legal) == (None, close)


names = st.sampled_from(
    [b"Host", b"Content-Length", b"content-length", b"Transfer-Encoding", b"Connection", b"Expect", b"X", b"", b"A B"]
) | st.binary(max_size=3)
values = st.sampled_from(
    [
        *[b"a", b"0", b"5", b"+5", b"-1", b"0x5", b"5,5", b"5, 5", b"05", b"5 ", b" 5", b"1_0", b"chunked", b"Chunked"],
        *[b"\tchunked", b"chunked ", b"gzip, chunked", b"identity", b"keep-alive", b"close", b"x, keep-alive", b""],
        *[b"chunked,", b",chunked", b"100-continue", b"a b  c", b"\x00", b"\xff", b"a\tb", b"a\r b", b"chunked;q=1"],
    ]
) | st.binary(max_size=8)
ends = st.sampled_from([b"\r\n"] * 12 + [b"\n", b"\r", b"\r\n ", b"\r\n\t", b"\r\r\n", b"\0\r\n"])
fields = st.builds(
    lambda *parts: b"".join(parts), names, st.sampled_from([b": "] * 8 + [b":", b" : ", b":\t", b"\t: "]), values, ends
)
lines = st.builds(
    lambda *parts: b" ".join(parts[:3]) + parts[3],
    st.sampled_from([b"POST"] * 6 + [b"GET", b"get", b"CONNECT", b"P\x01", b"", b"\r\nGET"]),
    st.sampled_from([b"/"] * 6 + [b"/a?b#c", b"http://h/p", b"*", b"/\xff", b"/ x", b""]),
    st.sampled_from([b"HTTP/1.1"] * 6 + [b"HTTP/1.0", b"HTTP/1.2", b"HTTP/1.1 ", b"HTTP/11"]),
    ends,
)
sizes = st.sampled_from([b"5", b"05", b"5;x", b"5 ", b"0x5", b'5\t;y="z"', b"-1", b"", b"a", b"5;\xff"])
chunks = st.builds(
    lambda sizes, tail: b"".join(size + b"\r\nhello\r\n" for size in sizes) + tail,
    st.lists(sizes, max_size=3),
    st.sampled_from(
        [b"0\r\n\r\n", b"0\r\nX: y\r\n\r\n", b"0\r\nx\r\n\r\n", b"0\n\n", b"00\r\n\r\n", b"", b"0\r\n X: y\r\n\r\n"]
    ),
)
requests = st.builds(
    lambda line, host, rest, end, body: b"".join([line, host, *rest, end, body]),
    lines,
    st.sampled_from([b"Host: a\r\n"] * 8 + [b"", b"Host:a\r\n", b"Host: a@b\r\n"]),
    st.lists(fields, max_size=3),
    ends,
    chunks | st.binary(max_size=12),
)
connections = st.lists(requests, min_size=1, max_size=3).map(b"".join)
cuts = st.lists(st.integers(0, 1000), max_size=4)


@given(connections, cuts)
@example(b"\r\n" + NEXT, [])
@example(POST + b"Connection: close\r\nContent-Length: 2\r\n\r\n{}" + NEXT, [])
def test_what_goes_through_h11_reads_as_the_same_requests(data: bytes, cuts: list[int]) -> None:
    check(data, cuts)


@given(
    st.sampled_from(list(LEGAL.values())), st.lists(st.tuples(st.integers(0, 300), st.binary(max_size=2)), max_size=3)
)
def test_a_legal_request_with_other_bytes_in_it_is_refused_or_read_the_same(
    data: bytes, changes: list[tuple[int, bytes]]
) -> None:
    for at, piece in changes:
        data = data[: at % len(data)] + piece + data[at % len(data) + len(piece) :]
    check(data)


@given(connections, cuts)
def test_it_makes_no_difference_in_which_pieces_it_comes(data: bytes, cuts: list[int]) -> None:
    whole, legal = fed(data)
    cut, same = fed(data, cuts)
    assert (whole.illegal is None) == (cut.illegal is None)
    if whole.illegal is None:
        assert (legal, whole.requests, whole.in_head, whole.in_body) == (same, cut.requests, cut.in_head, cut.in_body)
