from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_chill.core.target import Endpoint
from vllm_chill.errors import BadRequest
from vllm_chill.proxy.headers import request_head

ENDPOINT = Endpoint("vllm", 8000)
TARGET = b"vllm:8000"


@dataclass(frozen=True)
class Message:
    method: str = "GET"
    path: str = "/"
    raw_headers: tuple[tuple[bytes, bytes], ...] = ((b"Host", b"chill"),)


def sent(message: Message, framing: bytes = b"", *, peer: str = "10.0.0.9", scheme: str = "http") -> list[bytes]:
    """The lines of the head; the empty one that ends it is checked and left off."""
    lines = request_head(message, ENDPOINT, framing, peer=peer, scheme=scheme).split(b"\r\n")
    assert lines[-2:] == [b"", b""]
    return lines[:-2]


def fields_for(*fields: tuple[bytes, bytes], framing: bytes = b"") -> list[bytes]:
    """What is sent for these fields, without those that are always set."""
    lines = sent(Message(raw_headers=((b"Host", b"chill"), *fields)), framing)
    always = {b"Host: " + TARGET, b"X-Forwarded-For: 10.0.0.9", b"X-Forwarded-Proto: http", b"X-Forwarded-Host: chill"}
    assert always <= set(lines)
    return [line for line in lines[1:] if line not in always]


@pytest.mark.parametrize(
    "path",
    ["/", "//", "/a%2Fb", "/a//b/../c", "/a?", "/a?b=c?d", "/a;b=1", "/a?%00%zz", "/a\\b|c", "/\udcff", "/é", "/a#b"],
)
def test_the_target_goes_on_as_its_bytes_came(path: str) -> None:
    raw = path.encode("utf-8", "surrogateescape")
    assert sent(Message(path=path))[0] == b"GET " + raw + b" HTTP/1.1"


@pytest.mark.parametrize(
    ("target", "path", "host"),
    [
        ("http://other:81/a%2Fb?c", b"/a%2Fb?c", b"other:81"),
        ("HTTP://other", b"/", b"other"),
        ("http://other?q", b"/?q", b"other"),
        ("http://user:pass@other/", b"/", b"other"),
        ("https://[::1]:81//x", b"//x", b"[::1]:81"),
        ("http://other/http://third/", b"/http://third/", b"other"),
        ("http://other/a@b", b"/a@b", b"other"),
    ],
)
def test_an_absolute_target_becomes_its_path(target: str, path: bytes, host: bytes) -> None:
    lines = sent(Message(path=target))
    assert lines[0] == b"GET " + path + b" HTTP/1.1"
    assert b"Host: " + TARGET in lines
    assert b"X-Forwarded-Host: " + host in lines


def test_options_may_be_for_the_whole_server() -> None:
    assert sent(Message(method="OPTIONS", path="*"))[0] == b"OPTIONS * HTTP/1.1"


@pytest.mark.parametrize(
    "message",
    [Message("CONNECT", "vllm:443"), Message("CONNECT", "http://vllm/"), Message("GET", "*"), Message("GET", "")],
    ids=["CONNECT", "CONNECT with an absolute target", "GET *", "no target"],
)
def test_a_target_without_a_path_is_refused(message: Message) -> None:
    with pytest.raises(BadRequest, match="cannot be forwarded"):
        sent(message)


def test_end_to_end_fields_keep_order_spelling_and_duplicates() -> None:
    fields = ((b"b", b"2"), (b"A", b""), (b"cookie", b"x=1"), (b"B", b"\xff"), (b"Cookie", b"y=2"), (b"Trailers", b""))
    assert fields_for(*fields) == [name + b": " + value for name, value in fields]


@pytest.mark.parametrize(
    "name",
    [
        b"Connection",
        b"Expect",
        b"HTTP2-Settings",
        b"Keep-Alive",
        b"Proxy-Authenticate",
        b"Proxy-Authorization",
        b"Proxy-Connection",
        b"TE",
        b"Trailer",
        b"Transfer-Encoding",
        b"Upgrade",
        b"Content-Length",
    ],
)
def test_what_is_of_one_connection_is_dropped(name: bytes) -> None:
    for spelled in (name, name.lower(), name.upper()):
        assert fields_for((b"A", b"1"), (spelled, b"7"), (b"B", b"2")) == [b"A: 1", b"B: 2"]


def test_what_connection_names_is_dropped() -> None:
    secret = ((b"X-Secret", b"1"), (b"x-secret", b"2"), (b"X-Other", b"3"), (b"X-Secrets", b"4"))
    kept = [b"X-Other: 3", b"X-Secrets: 4"]
    assert fields_for((b"Connection", b"X-SECRET"), *secret) == kept
    assert fields_for(*secret, (b"connection", b"close,\t x-Secret ,,")) == kept
    assert fields_for((b"Connection", b"close"), *secret[:2], (b"CONNECTION", b"x-secret, x-other")) == []


def test_connection_cannot_name_away_the_host_or_the_framing() -> None:
    named = (b"Connection", b"host, content-length, transfer-encoding")
    for framing in (b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"):
        assert fields_for(named, (b"Content-Length", b"5"), framing=framing) == [framing[:-2]]


def test_connection_cannot_name_away_what_this_proxy_says() -> None:
    named = (b"Connection", b"x-forwarded-for, x-forwarded-proto, x-forwarded-host")
    assert fields_for(named) == []
    assert fields_for((b"X-Forwarded-For", b"1.1.1.1"), (b"X-Forwarded-Proto", b"https"), named) == []


def test_the_peer_is_added_to_who_it_was_forwarded_for() -> None:
    host = (b"Host", b"chill")
    once = Message(raw_headers=(host, (b"X-Forwarded-For", b"1.1.1.1")))
    twice = Message(raw_headers=(host, (b"X-Forwarded-For", b"1.1.1.1"), (b"x-forwarded-for", b"2.2.2.2, 3.3.3.3")))
    assert b"X-Forwarded-For: 1.1.1.1, 10.0.0.9" in sent(once)
    assert b"X-Forwarded-For: 1.1.1.1, 2.2.2.2, 3.3.3.3, 10.0.0.9" in sent(twice)
    assert b"X-Forwarded-For: 1.1.1.1" in sent(once, peer="")
    assert not any(b"forwarded-for" in line.lower() for line in sent(Message(), peer=""))
    assert b"X-Forwarded-For: ::1" in sent(Message(), peer="::1")


def test_the_first_proxys_word_about_scheme_and_host_stands() -> None:
    fields = ((b"Host", b"chill"), (b"x-forwarded-proto", b"https"), (b"X-Forwarded-Host", b"api.example"))
    lines = sent(Message(raw_headers=fields))
    forwarded = [line for line in lines if line.lower().startswith((b"x-forwarded-proto", b"x-forwarded-host"))]
    assert forwarded == [b"X-Forwarded-Proto: https", b"X-Forwarded-Host: api.example"]
    assert b"X-Forwarded-Proto: https" in sent(Message(), scheme="https")


def test_the_host_is_the_targets_even_if_the_client_named_none() -> None:
    assert sent(Message(raw_headers=()))[1:] == [
        b"Host: vllm:8000",
        b"X-Forwarded-For: 10.0.0.9",
        b"X-Forwarded-Proto: http",
    ]
    assert b"Host: [fd00::1]:80" in request_head(Message(), Endpoint("fd00::1", 80), b"", peer="", scheme="http")


names = st.one_of(
    st.sampled_from([b"Connection", b"Content-Length", b"transfer-encoding", b"Host", b"X-Forwarded-For", b"TE", b"A"]),
    st.text("abc-_.!XYZ019", min_size=1, max_size=6).map(str.encode),
)
values = st.one_of(
    st.sampled_from([b"close", b"keep-alive, a", b"host", b"content-length, te", b"chunked", b"5"]),
    st.text("\t ,;abc09", max_size=8).map(lambda value: value.strip(" \t").encode()),
)


@given(st.lists(st.tuples(names, values), max_size=12))
def test_one_host_and_one_framing_whatever_the_client_says(fields: list[tuple[bytes, bytes]]) -> None:
    lines = sent(Message(method="POST", raw_headers=tuple(fields)), b"Content-Length: 3\r\n")
    lower = [line.lower() for line in lines]
    assert [line for line in lower if line.startswith(b"host:")] == [b"host: " + TARGET]
    assert [line for line in lower if line.startswith((b"content-length:", b"transfer-encoding:"))] == [
        b"content-length: 3"
    ]
    assert not any(line.startswith((b"connection:", b"te:")) for line in lower)


@given(st.lists(st.tuples(names, values), max_size=12))
def test_what_is_not_named_goes_on_in_order(fields: list[tuple[bytes, bytes]]) -> None:
    named = {option.strip().lower() for name, value in fields if name == b"Connection" for option in value.split(b",")}
    special = {b"connection", b"content-length", b"transfer-encoding", b"host", b"x-forwarded-for", b"te"}
    expected = [
        name + b": " + value for name, value in fields if name.lower() not in special and name.lower() not in named
    ]
    lines = sent(Message(raw_headers=tuple(fields)))[2:]
    assert [line for line in lines if not line.startswith(b"X-Forwarded-")] == expected
