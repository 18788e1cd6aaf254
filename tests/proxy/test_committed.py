"""A response that was committed before the upstream's began: any response, in any pieces, is a good end of it."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_chill.proxy.committed import Committed, CommittedFraming, Kind, error_event

EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
ENVELOPE = {"error": {"message": "it broke", "type": "server_error", "code": "x", "param": None}}
STREAM = b"data: 1\n\ndata: [DONE]\n\n"
BODIES = {
    "chunked": EVENTS + b"Transfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\ne\r\ndata: [DONE]\n\n\r\n0\r\n\r\n",
    "length": EVENTS + b"Content-Length: %d\r\n\r\n%b" % (len(STREAM), STREAM),
    "to the close": EVENTS + b"\r\n" + STREAM,
    "interim first": b"HTTP/1.1 103 Early\r\n\r\n" + EVENTS + b"Content-Length: %d\r\n\r\n%b" % (len(STREAM), STREAM),
}


def dechunked(data: bytes) -> bytes:
    """A chunked body, whole and nothing behind it."""
    body = b""
    while True:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            assert data == b"\r\n"
            return body
        body += data[:length]
        assert data[length : length + 2] == b"\r\n"
        data = data[length + 2 :]


def relayed(committed: Committed, pieces: list[bytes]) -> tuple[CommittedFraming, bytes]:
    framing = CommittedFraming(committed)
    out = b"".join(framing.feed(piece) for piece in pieces if not framing.complete)
    if not framing.complete:
        assert framing.close()
        out += framing.ending
    return framing, out


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({0, len(data), *(c % (len(data) + 1) for c in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(at)]


@given(st.sampled_from(sorted(BODIES)), st.lists(st.integers(0, 400), max_size=8), st.booleans())
def test_a_stream_is_the_same_however_it_comes(name: str, cuts: list[int], http10: bool) -> None:
    framing, out = relayed(Committed(Kind.EVENTS, http10=http10), cut(BODIES[name], cuts))
    assert (out if http10 else dechunked(out)) == STREAM
    assert framing.status == 200
    assert framing.keep_alive is not http10


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b'{"error":{"message":"no such model","code":404}}', {"message": "no such model", "code": 404}),
        (b'{"object":"error","message":"too long"}', {"message": "too long", "type": "invalid_request_error"}),
        (b"Internal Server Error", {"message": "Internal Server Error"}),
        (b"", {"message": "the model server answered with status 404"}),
    ],
)
@given(cuts=st.lists(st.integers(0, 200), max_size=6), kind=st.sampled_from(Kind))
def test_an_error_of_the_upstream_is_told_in_the_shape_of_an_error(
    said: bytes, error: dict[str, Any], cuts: list[int], kind: Kind
) -> None:
    response = b"HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(said)
    framing, out = relayed(Committed(kind), cut(response + said, cuts))
    body = dechunked(out)
    if kind is Kind.EVENTS:
        first, done = body.split(b"\n\n", 1)
        assert done == b"data: [DONE]\n\n"
        body = first.removeprefix(b"data: ")
    assert json.loads(body)["error"].items() >= error.items()
    assert framing.status == 404
    assert framing.keep_alive


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n",
        b"HTTP/1.1 200 OK\r\n",
        EVENTS + b"Content-Encoding: gzip\r\n",
    ],
)
def test_what_the_client_was_not_promised_is_told_as_an_error(head: bytes) -> None:
    _, out = relayed(Committed(Kind.EVENTS), [head + b"Content-Length: 2\r\n\r\n{}"])
    assert b'data: {"error"' in dechunked(out)


def test_a_json_document_follows_its_spaces() -> None:
    committed = Committed(Kind.JSON)
    response = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 8\r\n\r\n" + b'{"a": 1}'
    _, out = relayed(committed, [response])
    assert json.loads(dechunked(committed.beat("waking") * 3 + out)) == {"a": 1}


def test_the_head_says_what_is_coming() -> None:
    head = Committed(Kind.EVENTS, http10=False).head()
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nTransfer-Encoding: chunked\r\n" in head
    assert b"Connection" not in head
    old = Committed(Kind.EVENTS, http10=True).head()
    assert b"Transfer-Encoding" not in old
    assert b"\r\nConnection: close\r\n" in old


def test_a_beat_is_one_comment_whatever_the_words() -> None:
    assert dechunked(Committed(Kind.EVENTS).beat("a\n\ndata: b\rc") + b"0\r\n\r\n") == b": a data: b c\n\n"


def test_a_failure_is_one_event_and_the_end() -> None:
    out = dechunked(Committed(Kind.EVENTS).failure(ENVELOPE))
    assert out == error_event(ENVELOPE)
    assert json.loads(dechunked(Committed(Kind.JSON).failure(ENVELOPE))) == ENVELOPE


def test_a_stream_that_loses_its_upstream_ends_with_an_event_of_its_own() -> None:
    framing = CommittedFraming(Committed(Kind.EVENTS))
    out = framing.feed(EVENTS + b"Transfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n6\r\ndata: ")
    rest = framing.rescue(error_event(ENVELOPE))
    assert rest is not None
    assert dechunked(out + rest) == b"data: 1\n\ndata: \n\n" + error_event(ENVELOPE)
    assert CommittedFraming(Committed(Kind.JSON)).rescue(b"x") is None
