from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vllm_chill.proxy.chunks import FIELDS
from vllm_chill.proxy.framing import HEAD_BYTES, INTERIM_HEADS, IllegalResponse, ResponseFraming

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@dataclass(frozen=True)
class Client:
    no_body: bool = False
    http10: bool = False
    keep_alive: bool = True


@dataclass(frozen=True)
class Outcome:
    """All that the framing says about a response, once it has been fed and the upstream has closed."""

    out: bytes
    status: int
    whole: bool
    keep_alive: bool
    reusable: bool
    taken: bool


ILLEGAL = Outcome(b"", 0, whole=False, keep_alive=False, reusable=False, taken=False)


def outcome(pieces: list[bytes], client: Client) -> Outcome:
    framing = ResponseFraming(no_body=client.no_body, http10=client.http10, keep_alive=client.keep_alive)
    out = b""
    rest = iter(pieces)
    try:
        for piece in rest:
            out += framing.feed(piece)
            if framing.complete:
                break
    except IllegalResponse:
        return ILLEGAL
    whole = framing.close()
    reusable = framing.reusable and not any(rest)
    return Outcome(out, framing.status, whole, framing.keep_alive, reusable, taken=framing.complete)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges) if start < end]


tokens = st.text("abcxyz-_.!#$%&'*+^`|~XYZ019", min_size=1, max_size=8).map(str.encode)
values = st.binary(max_size=12).map(lambda value: bytes(b for b in value if b == 9 or (b >= 32 and b != 127)))
bodies = st.one_of(st.binary(max_size=60), st.sampled_from([b"\r\n", b"0\r\n\r\n", b"\r\n\r\n", b"5\r\nhello\r\n"]))
clients = st.builds(Client, st.booleans(), st.booleans(), st.booleans())
cuttings = st.lists(st.integers(0, 4000), max_size=12)
END_TO_END = [b"Content-Type: text/event-stream", b"date: x", b"Set-Cookie: a=1", b"set-cookie: b=2", b"X-Empty:"]
HOP = [b"Keep-Alive: timeout=5", b"Proxy-Authenticate: Basic", b"upgrade: h2c", b"TE: trailers", b"proxy-connection: a"]


@dataclass(frozen=True)
class Response:
    """A legal response, and what a client is to get of it."""

    data: bytes
    kept: list[bytes]
    framing: bytes
    raw_body: bytes
    body: bytes
    status: int


@st.composite
def responses(draw: st.DrawFn) -> Response:
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * draw(st.integers(0, 2))
    status = draw(st.sampled_from([200, 201, 206, 400, 404, 429, 503, 599, 999]))
    named = draw(st.lists(st.sampled_from([b"X-Private", b"x-other", b"content-length", b"transfer-encoding"])))
    kept = draw(st.permutations(END_TO_END))[: draw(st.integers(0, 5))]
    kept += [b"Z" + name + b":" + value for name, value in draw(st.lists(st.tuples(tokens, values), max_size=3))]
    dropped = draw(st.lists(st.sampled_from(HOP), max_size=2, unique=True))
    if named:
        dropped += [b"connection: keep-alive, " + b" ,".join(named)]
        dropped += [
            field for field in (b"X-Private: s", b"X-Other: s") if field[:-3].lower() in {n.lower() for n in named}
        ]
    body = draw(bodies)
    kind = draw(st.sampled_from(["length", "chunked", "close"]))
    raw_body, framing = body, b""
    if kind == "length":
        framing = b"Content-Length: %d" % len(body)
    elif kind == "chunked":
        framing = b"transfer-encoding: Chunked"
        raw_body = chunked(draw, body)
    fields = draw(st.permutations([*kept, *dropped, *([framing] if framing else [])]))
    reason = draw(st.sampled_from([b" OK", b" ", b"", b" Not \xe9 fine"]))
    head = b"\r\n".join([b"HTTP/1.1 %d" % status + reason, *fields, b"", b""])
    kept = [field for field in fields if field in kept]
    return Response(interim + head + raw_body, kept, framing, raw_body, body, status)


def chunked(draw: st.DrawFn, body: bytes) -> bytes:
    out, extension = b"", st.sampled_from([b"", b"", b";a", b';a="b c"'])
    for piece in split(body, draw(cuttings)):
        out += (
            draw(st.sampled_from([b"%x", b"%X", b"000%x"])) % len(piece) + draw(extension) + b"\r\n" + piece + b"\r\n"
        )
    trailers = draw(st.lists(st.sampled_from([b"Server-Timing: a", b"X-Sum:", b"x: \xff"]), max_size=3))
    return out + draw(st.sampled_from([b"0", b"000"])) + draw(extension) + b"\r\n" + b"\r\n".join([*trailers, b"", b""])


@settings(max_examples=150, deadline=None)
@given(responses(), clients, cuttings)
def test_any_split_of_a_legal_response_gives_the_same(response: Response, client: Client, cuts: list[int]) -> None:
    whole = outcome([response.data], client)
    assert whole.whole
    assert outcome(split(response.data, cuts), client) == whole
    assert outcome([bytes([byte]) for byte in response.data], client) == whole


@settings(max_examples=150, deadline=None)
@given(responses(), clients)
def test_a_legal_response_keeps_its_end_to_end_fields_and_its_body(response: Response, client: Client) -> None:
    result = outcome([response.data], client)
    head, _, body = result.out.partition(b"\r\n\r\n")
    unchunk = client.http10 and b"hunked" in response.framing
    assert result.status == response.status
    assert body == (b"" if client.no_body else response.body if unchunk else response.raw_body)
    fields = head.split(b"\r\n")[1:]
    own = [field for field in fields if field.startswith(b"Connection: ")]
    assert [field for field in fields if field not in own and field != response.framing] == response.kept
    assert (response.framing in fields) == (bool(response.framing) and not unchunk)
    self_delimiting = client.no_body or (bool(response.framing) and not unchunk)
    assert result.keep_alive == (client.keep_alive and self_delimiting)
    announced = b"Connection: close" if not result.keep_alive else b"Connection: keep-alive"
    assert own == ([announced] if client.http10 or not result.keep_alive else [])


@settings(max_examples=100, deadline=None)
@given(responses(), clients, st.binary(min_size=1, max_size=9), cuttings)
def test_bytes_past_the_end_are_dropped_with_the_connection(
    response: Response, client: Client, excess: bytes, cuts: list[int]
) -> None:
    whole = outcome([response.data], client)
    if response.framing or client.no_body:
        for pieces in ([response.data + excess], split(response.data + excess, cuts)):
            result = outcome(pieces, client)
            assert (result.out, result.whole, result.reusable) == (whole.out, True, False)


@settings(max_examples=250, deadline=None)
@given(
    responses(),
    clients,
    st.integers(0, 2000),
    st.sampled_from([b"", b"\0", b"\n", b"\r", b" ", b"\t", b":", b"0", b"a", b";"]),
    st.integers(0, 2),
    cuttings,
)
def test_any_split_of_any_bytes_comes_to_the_same_end(
    response: Response, client: Client, at: int, inserted: bytes, removed: int, cuts: list[int]
) -> None:
    at %= len(response.data)
    data = response.data[:at] + inserted + response.data[at + removed :]
    assert outcome(split(data, cuts), client) == outcome([data], client)
    assert outcome([bytes([byte]) for byte in data], client) == outcome([data], client)


@given(st.binary(max_size=200), cuttings)
@example(b"", [])
def test_bytes_that_are_not_http_are_illegal_or_not_whole(data: bytes, cuts: list[int]) -> None:
    assert not outcome(split(data, cuts), Client()).whole


@settings(max_examples=100, deadline=None)
@given(responses(), st.integers(0, 4000))
def test_a_response_cut_short_is_not_whole(response: Response, at: int) -> None:
    at %= len(response.data)
    result = outcome([response.data[:at]] if at else [], Client())
    head_end = response.data.index(b"\r\n\r\n", response.data.index(b"HTTP/1.1 %d" % response.status)) + 4
    assert result.whole == (response.framing == b"" and at >= head_end)


LINE = b"a: b\r\n"
LEGAL = {
    "no reason phrase and no space before it": (b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", b""),
    "no fields at all, to the close": (OK + b"\r\nbody", b"body"),
    "a length with zeros before it": (OK + b"Content-Length: 0004\r\n\r\nbody", b"body"),
    "HTTP/1.0 with a length": (b"HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\nbody", b"body"),
    "205 with an empty body": (b"HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n", b""),
    "a head of exactly the bound": (
        OK + b"Content-Length: 0\r\na:" + b"b" * (HEAD_BYTES - len(OK) - 25) + b"\r\n\r\n",
        b"",
    ),
    "as many fields as the bound": (OK + b"Content-Length: 0\r\n" + LINE * (FIELDS - 1) + b"\r\n", b""),
    "as many interim heads as the bound": (
        b"HTTP/1.1 100 Continue\r\n\r\n" * INTERIM_HEADS + OK + b"Content-Length: 0\r\n\r\n",
        b"",
    ),
    "a chunk of many digits": (
        CHUNKED + b"000000000000004\r\nbody\r\n0\r\n\r\n",
        b"000000000000004\r\nbody\r\n0\r\n\r\n",
    ),
}


@pytest.mark.parametrize(("data", "body"), LEGAL.values(), ids=LEGAL)
def test_legal(data: bytes, body: bytes) -> None:
    for pieces in ([data], split(data, list(range(0, len(data), 97)))):
        result = outcome(pieces, Client())
        assert result.whole
        assert result.out.partition(b"\r\n\r\n")[2] == body


ILLEGAL_RESPONSES = {
    "not HTTP": b"SSH-2.0-OpenSSH_9.6\r\n",
    "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\n",
    "HTTP/2 in text": b"HTTP/2 200 OK\r\n\r\n",
    "HTTP/0.9": b"<html>\n",
    "lower case": b"http/1.1 200 OK\r\n\r\n",
    "a blank line first": b"\r\n" + OK + b"\r\n",
    "a status of two digits": b"HTTP/1.1 20 OK\r\n\r\n",
    "a status of four digits": b"HTTP/1.1 2000 OK\r\n\r\n",
    "a status that begins with 0": b"HTTP/1.1 020 OK\r\n\r\n",
    "two spaces before the status": b"HTTP/1.1  200 OK\r\n\r\n",
    "line feeds alone": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "one line feed alone": OK + b"a: b\nContent-Length: 0\r\n\r\n",
    "a carriage return within a value": OK + b"a: b\rc\r\n\r\n",
    "NUL in a value": OK + b"a: \0\r\n\r\n",
    "DEL in a value": OK + b"a: \x7f\r\n\r\n",
    "a folded line": OK + b"a: b\r\n c\r\n\r\n",
    "a first field that is folded": OK + b" a: b\r\n\r\n",
    "a space before the colon": OK + b"Content-Length : 0\r\n\r\n",
    "a field without a name": OK + b": b\r\n\r\n",
    "a field without a colon": OK + b"abc\r\n\r\n",
    "a name that is no token": OK + b"a(b: c\r\n\r\n",
    "too many fields": OK + LINE * (FIELDS + 1) + b"\r\n",
    "too large a head": OK + b"a: " + b"b" * HEAD_BYTES + b"\r\n\r\n",
    "a head without an end": OK + b"a: " + b"b" * HEAD_BYTES,
    "too many interim heads": b"HTTP/1.1 100 Continue\r\n\r\n" * (INTERIM_HEADS + 1) + OK + b"\r\n",
    "a switch of protocols": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
    "two lengths that differ": OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "two lengths that are the same": OK + b"Content-Length: 1\r\ncontent-length: 1\r\n\r\na",
    "a list of lengths": OK + b"Content-Length: 1, 1\r\n\r\na",
    "a negative length": OK + b"Content-Length: -1\r\n\r\n",
    "a length with a sign": OK + b"Content-Length: +1\r\n\r\na",
    "a length in hexadecimal": OK + b"Content-Length: 0x1\r\n\r\na",
    "an empty length": OK + b"Content-Length:\r\n\r\na",
    "a length with an underscore": OK + b"Content-Length: 1_0\r\n\r\n" + b"a" * 10,
    "a length beyond any": OK + b"Content-Length: 1" + b"0" * 18 + b"\r\n\r\n",
    "a length and chunks": OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and a length": OK + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "another transfer coding": OK + b"Transfer-Encoding: gzip\r\n\r\n",
    "two transfer codings": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked twice": OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "identity": OK + b"Transfer-Encoding: identity\r\nContent-Length: 0\r\n\r\n",
    "chunked with a form feed": OK + b"Transfer-Encoding: \x0cchunked\r\n\r\n0\r\n\r\n",
    "chunks in HTTP/1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a chunk size that is no number": CHUNKED + b"xyz\r\n",
    "an empty chunk size": CHUNKED + b"\r\n",
    "a chunk size with 0x": CHUNKED + b"0x5\r\nhello\r\n0\r\n\r\n",
    "a chunk size with a sign": CHUNKED + b"+5\r\nhello\r\n0\r\n\r\n",
    "a negative chunk size": CHUNKED + b"-5\r\nhello\r\n0\r\n\r\n",
    "a chunk size with an underscore": CHUNKED + b"1_0\r\n" + b"a" * 16 + b"\r\n0\r\n\r\n",
    "a chunk size beyond any": CHUNKED + b"1" + b"0" * 15 + b"\r\n",
    "a space after the chunk size": CHUNKED + b"5 \r\nhello\r\n0\r\n\r\n",
    "a space before the chunk size": CHUNKED + b" 5\r\nhello\r\n0\r\n\r\n",
    "a chunk line that ends in a line feed": CHUNKED + b"5\nhello\r\n0\r\n\r\n",
    "a line feed in an extension": CHUNKED + b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    "an extension without an end": CHUNKED + b"5;" + b"a" * 5000,
    "a chunk longer than its size": CHUNKED + b"4\r\nhello\r\n0\r\n\r\n",
    "a chunk shorter than its size": CHUNKED + b"6\r\nhello\r\n0\r\n\r\n",
    "a chunk that ends in a line feed": CHUNKED + b"5\r\nhello\n0\r\n\r\n",
    "a chunk that ends in a carriage return": CHUNKED + b"5\r\nhello\r0\r\n\r\n",
    "a last chunk with bytes after it": CHUNKED + b"0\r\nx\r\n\r\n",
    "a folded trailer": CHUNKED + b"0\r\na: b\r\n c\r\n\r\n",
    "a trailer without a colon": CHUNKED + b"0\r\nabc\r\n\r\n",
    "a trailer that ends in a line feed": CHUNKED + b"0\r\na: b\n\r\n",
    "a length as a trailer": CHUNKED + b"0\r\ncontent-LENGTH: 5\r\n\r\n",
    "a transfer coding as a trailer": CHUNKED + b"0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "a trailer too long": CHUNKED + b"0\r\na: " + b"b" * 8000 + b"\r\n\r\n",
    "too many trailers": CHUNKED + b"0\r\n" + LINE * (FIELDS + 1) + b"\r\n",
}


@pytest.mark.parametrize("client", [Client(), Client(http10=True)], ids=["HTTP/1.1", "HTTP/1.0"])
@pytest.mark.parametrize("data", ILLEGAL_RESPONSES.values(), ids=ILLEGAL_RESPONSES)
def test_illegal(data: bytes, client: Client) -> None:
    assert outcome([data], client) == ILLEGAL
    assert (
        outcome(
            [data[at : at + 1] for at in range(len(data))]
            if len(data) < 9000
            else split(data, list(range(0, len(data), 999))),
            client,
        )
        == ILLEGAL
    )


@pytest.mark.parametrize("fields", [b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n", b""])
def test_no_content_has_no_body_whatever_it_says(fields: bytes) -> None:
    result = outcome([b"HTTP/1.1 204 No Content\r\n" + fields + b"\r\n"], Client())
    assert result == Outcome(
        b"HTTP/1.1 204 No Content\r\n\r\n", 204, whole=True, keep_alive=True, reusable=True, taken=True
    )


@pytest.mark.parametrize("fields", [b"Content-Length: 9\r\n", b"Transfer-Encoding: chunked\r\n", b""])
@pytest.mark.parametrize(
    ("status", "client"),
    [(b"304 Not Modified", Client()), (b"200 OK", Client(no_body=True))],
    ids=["304", "HEAD"],
)
def test_what_has_no_body_keeps_its_framing_fields(fields: bytes, status: bytes, client: Client) -> None:
    data = b"HTTP/1.1 " + status + b"\r\n" + fields + b"\r\n"
    result = outcome([data], client)
    assert (result.out, result.whole, result.keep_alive, result.reusable) == (data, True, True, True)


def test_a_plain_response_is_not_copied() -> None:
    framing = ResponseFraming()
    first, second = OK + b"Content-Length: 10\r\n\r\nhello", b"world"
    assert framing.feed(first) is first
    assert framing.feed(second) is second
    assert framing.complete


def test_chunks_are_not_copied() -> None:
    framing = ResponseFraming()
    for piece in (CHUNKED + b"5\r\nhel", b"lo\r\n5", b"\r\nworld\r", b"\n0\r\n", b"\r\n"):
        assert framing.feed(piece) is piece
    assert framing.complete


def test_an_upstream_that_closes_or_speaks_an_old_version_is_not_reused() -> None:
    for head in (OK + b"Connection: Close\r\n", b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n"):
        result = outcome([head + b"Content-Length: 0\r\n\r\n"], Client())
        assert result.whole
        assert not result.reusable
        assert result.keep_alive
        assert result.out == OK + b"Content-Length: 0\r\n\r\n"
