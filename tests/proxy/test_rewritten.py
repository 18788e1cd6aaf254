"""A response whose body is rewritten: its framing is right for the client, however it came from the upstream."""

from __future__ import annotations

import itertools
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.proxy.test_committed import cut, dechunked
from vllm_chill.proxy.committed import BodyRewrite, Committed, CommittedFraming, Kind, Rewrite
from vllm_chill.proxy.framing import IllegalResponse, ResponseFraming
from vllm_chill.proxy.headers import RequestMessage
from vllm_chill.proxy.rewritten import RewrittenFraming, Unencoded, unencoded

EVENTS = b"HTTP/1.1 200 OK\r\nServer: uvicorn\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
JSON = b"HTTP/1.1 200 OK\r\nServer: uvicorn\r\nContent-Type: application/json\r\n"
BODY = b"some words, and some more"
LOUD = b"SOME WORDS, AND SOME MORE!"


class Loud:
    """Letters as capitals, with a mark at the end. `holds`: nothing before the end, or before so many bytes."""

    def __init__(self, *, holds: int = 0) -> None:
        self._holds = holds
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        self._held += data.upper()
        if self._holds and len(self._held) <= self._holds:
            return b""
        self._holds, held, self._held = 0, self._held, b""
        return held

    def end(self) -> bytes:
        return self._held + b"!"

    def rescue(self) -> bytes:
        return self._held + b"?"


def loud(kind: Kind) -> BodyRewrite:
    return Loud(holds=1000 if kind is Kind.JSON else 0)


def quiet_until_ten(_: Kind) -> BodyRewrite:
    return Loud(holds=10)


def of_upstream(head: bytes) -> dict[str, bytes]:
    """One response, in each framing that HTTP has for it."""
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (BODY[:7], BODY[7:8], BODY[8:]))
    return {
        "chunked": head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n",
        "chunked with a trailer": head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\nA: b\r\n\r\n",
        "length": head + b"Content-Length: %d\r\nConnection: keep-alive\r\n\r\n" % len(BODY) + BODY,
        "to the close": head + b"Connection: close\r\n\r\n" + BODY,
        "interim first": b"HTTP/1.1 103 Early\r\n\r\n" + head + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY,
    }


def passed(framing: ResponseFraming, pieces: list[bytes]) -> bytes:
    out = b"".join(framing.feed(piece) for piece in pieces if not framing.complete)
    if not framing.complete:
        assert framing.close()
        out += framing.ending
    return out


def parts(response: bytes) -> tuple[dict[str, str], bytes]:
    head, _, body = response.partition(b"\r\n\r\n")
    status, *fields = head.decode().split("\r\n")
    assert status == "HTTP/1.1 200 OK"
    named = [(name.lower(), value.strip()) for name, _, value in (field.partition(":") for field in fields)]
    assert len(dict(named)) == len(named)
    return dict(named), body


@given(
    st.sampled_from(sorted(of_upstream(b""))), st.lists(st.integers(0, 400), max_size=8), st.booleans(), st.booleans()
)
def test_a_stream_is_chunked_anew(name: str, cuts: list[int], http10: bool, keep_alive: bool) -> None:
    framing = RewrittenFraming(loud, http10=http10, keep_alive=keep_alive)
    fields, body = parts(passed(framing, cut(of_upstream(EVENTS)[name], cuts)))
    assert framing.status == 200
    assert framing.keep_alive is (keep_alive and not http10)
    assert framing.reusable is (name != "to the close")
    assert fields.pop("server") == "uvicorn"
    assert fields.pop("content-type") == "text/event-stream; charset=utf-8"
    assert fields.pop("connection", "") == ("" if framing.keep_alive else "close")
    assert fields == ({} if http10 else {"transfer-encoding": "chunked"})
    assert (body if http10 else dechunked(body)) == LOUD


@given(
    st.sampled_from(sorted(of_upstream(b""))), st.lists(st.integers(0, 400), max_size=8), st.booleans(), st.booleans()
)
def test_a_document_has_its_new_length(name: str, cuts: list[int], http10: bool, keep_alive: bool) -> None:
    framing = RewrittenFraming(loud, http10=http10, keep_alive=keep_alive)
    fields, body = parts(passed(framing, cut(of_upstream(JSON)[name], cuts)))
    assert framing.keep_alive is keep_alive
    assert fields.pop("connection", "") == ("close" if not keep_alive else "keep-alive" if http10 else "")
    assert fields == {"server": "uvicorn", "content-type": "application/json", "content-length": str(len(LOUD))}
    assert body == LOUD


@given(st.sampled_from(sorted(of_upstream(b""))), st.lists(st.integers(0, 400), max_size=8), st.booleans())
def test_a_document_that_is_not_kept_whole_is_chunked(name: str, cuts: list[int], http10: bool) -> None:
    framing = RewrittenFraming(quiet_until_ten, http10=http10)
    fields, body = parts(passed(framing, cut(of_upstream(JSON)[name], cuts)))
    if "content-length" in fields:  # it came in one piece
        assert len(body) == int(fields["content-length"])
    else:
        assert ("transfer-encoding" in fields) is not http10
        assert framing.keep_alive is not http10
        body = body if http10 else dechunked(body)
    assert body == LOUD


OTHERS = [
    response
    for head in (
        EVENTS.replace(b"200 OK", b"404 Not Found"),
        JSON.replace(b"200", b"201"),
        EVENTS + b"Content-Encoding: gzip\r\n",
        JSON.replace(b"application/json", b"text/plain"),
        JSON.replace(b"Content-Type: application/json\r\n", b""),
    )
    for response in of_upstream(head).values()
] + [b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\nx", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"]


@given(
    st.sampled_from(OTHERS) | st.binary(max_size=60),
    st.lists(st.integers(0, 400), max_size=8),
    st.booleans(),
    st.booleans(),
)
def test_any_other_response_is_passed_on_as_it_always_is(
    response: bytes, cuts: list[int], http10: bool, keep_alive: bool
) -> None:
    plain = ResponseFraming(http10=http10, keep_alive=keep_alive)
    framing = RewrittenFraming(loud, http10=http10, keep_alive=keep_alive)
    for piece in cut(response, cuts):
        if plain.complete:
            break
        try:
            out = plain.feed(piece)
        except IllegalResponse:
            with pytest.raises(IllegalResponse):
                framing.feed(piece)
            return
        assert framing.feed(piece) == out
        assert framing.ends_with_connection == plain.ends_with_connection
        assert framing.rescue(b"x") == plain.rescue(b"x")
    assert framing.close() == plain.close()
    for name in ("status", "complete", "keep_alive", "reusable", "ending"):
        assert getattr(framing, name) == getattr(plain, name), name


@pytest.mark.parametrize("http10", [False, True])
def test_a_stream_that_loses_its_upstream_ends_with_what_was_held_and_an_event(http10: bool) -> None:
    framing = RewrittenFraming(loud, http10=http10)
    out = framing.feed(of_upstream(EVENTS)["chunked"][:-20])
    assert framing.ends_with_connection is http10
    rest = framing.rescue(b"data: lost\n\n")
    assert rest is not None
    _, body = parts(out + rest)
    said = body if http10 else dechunked(body)
    assert re.fullmatch(rb"SOME WORDS[A-Z, ]*\?\n\ndata: lost\n\n", said)


def test_a_document_that_loses_its_upstream_has_sent_nothing() -> None:
    framing = RewrittenFraming(loud)
    assert framing.feed(of_upstream(JSON)["length"][:-5]) == b""
    assert framing.status == 200
    assert framing.rescue(b"x") is None
    assert not framing.close()


@given(
    st.sampled_from(Kind),
    st.sampled_from(sorted(of_upstream(b""))),
    st.lists(st.integers(0, 400), max_size=8),
    st.booleans(),
)
def test_a_committed_response_is_rewritten_too(kind: Kind, name: str, cuts: list[int], http10: bool) -> None:
    framing = CommittedFraming(Committed(kind, http10=http10), loud)
    out = passed(framing, cut(of_upstream(EVENTS if kind is Kind.EVENTS else JSON)[name], cuts))
    assert (out if http10 else dechunked(out)) == LOUD


def test_an_error_in_a_committed_response_is_told_as_it_is() -> None:
    framing = CommittedFraming(Committed(Kind.JSON), loud)
    body = b'{"error":{"message":"no"}}'
    out = framing.feed(JSON.replace(b"200", b"404") + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert json.loads(dechunked(out)) == json.loads(body)


def test_a_committed_stream_that_loses_its_upstream_tells_what_was_held() -> None:
    framing = CommittedFraming(Committed(Kind.EVENTS), loud)
    out = framing.feed(of_upstream(EVENTS)["chunked"][:-20])
    rest = framing.rescue(b"data: lost\n\n")
    assert rest is not None
    assert re.fullmatch(rb"SOME WORDS[A-Z, ]*\?\n\ndata: lost\n\n", dechunked(out + rest))


def test_the_upstream_is_not_asked_to_encode() -> None:
    fields = ((b"Host", b"a"), (b"ACCEPT-encoding", b"gzip"), (b"Accept", b"*/*"), (b"accept-encoding", b"br"))
    message: RequestMessage = unencoded(Unencoded("POST", "/v1?x", fields))
    assert message == Unencoded("POST", "/v1?x", ((b"Host", b"a"), (b"Accept", b"*/*")))


def test_a_rewrite_is_new_for_each_response() -> None:
    made = itertools.count()

    def counting(kind: Kind) -> BodyRewrite:
        next(made)
        return loud(kind)

    rewrite: Rewrite = counting
    for _ in range(2):
        passed(RewrittenFraming(rewrite), [of_upstream(EVENTS)["length"]])
    assert next(made) == 2
