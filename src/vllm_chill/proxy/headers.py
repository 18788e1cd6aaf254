"""The head of a request as it goes to the upstream, from the head that came. Pure: bytes in, bytes out.

What is end to end goes on as it was received: target, order, spelling, duplicates. What belongs to one connection
(RFC 9110 §7.6.1) is dropped, and how the body is framed is always written anew from how it is sent, so that nothing
a client says about it can make the upstream see another request than the one that was parsed here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Protocol

from vllm_chill.core.target import Endpoint
from vllm_chill.errors import BadRequest

# RFC 9110 §7.6.1 names Proxy-Connection, Keep-Alive, TE, Transfer-Encoding and Upgrade, and Connection itself.
# Proxy-Authenticate and Proxy-Authorization (§11.7) are between a client and its own proxy: to our clients we are the
# server, so they have none to give and the model is not to see them.
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
        b"upgrade",
    }
)

# What `Connection` may not name away: it would change where the message ends, or whom it is for.
NOT_FOR_CONNECTION_TO_NAME = frozenset({b"content-length", b"host", b"transfer-encoding"})

# Content-Length: written anew. Trailer: aiohttp's parser does not keep a request's trailers, so none are sent.
# Expect: the handler answers 100 itself, before it reads the body. The rest are joined or set below.
_DROPPED = HOP_BY_HOP | {b"content-length", b"expect", b"http2-settings", b"trailer"}

_HOST, _CONNECTION, _FOR, _PROTO, _FORWARDED_HOST, _DROP = range(1, 7)
_ROLES: dict[bytes, int] = dict.fromkeys(_DROPPED, _DROP) | {
    b"connection": _CONNECTION,
    b"host": _HOST,
    b"x-forwarded-for": _FOR,
    b"x-forwarded-host": _FORWARDED_HOST,
    b"x-forwarded-proto": _PROTO,
}
_role = _ROLES.get
_NAMES_NOTHING = frozenset({b"", b"close", b"keep-alive", b"Keep-Alive"})
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://(?:[^/?#]*@)?([^/?#]*)(.*)", re.DOTALL)


class RequestMessage(Protocol):
    """What is needed of aiohttp's parsed request head."""

    @property
    def method(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def raw_headers(self) -> Sequence[tuple[bytes, bytes]]: ...


def request_head(message: RequestMessage, endpoint: Endpoint, framing: bytes, *, peer: str, scheme: str) -> bytes:
    """The request line and the fields, with the empty line.

    `framing` is the field, whole with its line end, that says how the body is sent; empty for none. `peer` is the
    client's address, empty if it has none (a Unix socket); `scheme` what it spoke.
    X-Forwarded-For gets the peer at its end. X-Forwarded-Proto and X-Forwarded-Host are set only where no proxy
    before this one has set them: the first proxy's word is the one about the client. Raises BadRequest for a
    target that has no path (CONNECT).
    """
    target, authority = _origin_form(message)
    out = [message.method.encode("ascii"), b" ", target, b" HTTP/1.1\r\nHost: ", _host(endpoint), b"\r\n"]
    forwarded_for: bytes | None = None
    host, proto, forwarded_host = authority, False, False
    named: frozenset[bytes] = frozenset()
    for name, value in message.raw_headers:
        role = _role(name.lower())
        if role is None:
            out += (name, b": ", value, b"\r\n")
        elif role == _HOST:
            host = authority or value
        elif role == _CONNECTION:
            if value not in _NAMES_NOTHING:
                named |= connection_options((value,))
        elif role == _FOR:
            forwarded_for = value if forwarded_for is None else forwarded_for + b", " + value
        elif role != _DROP:
            proto |= role == _PROTO
            forwarded_host |= role == _FORWARDED_HOST
            out += (name, b": ", value, b"\r\n")
    if named:
        out[6:] = _without(out[6:], named)
        proto &= b"x-forwarded-proto" not in named
        forwarded_host &= b"x-forwarded-host" not in named
        forwarded_for = None if b"x-forwarded-for" in named else forwarded_for
    if peer:
        address = peer.encode("ascii", "replace")
        out += (b"X-Forwarded-For: ", address if forwarded_for is None else forwarded_for + b", " + address, b"\r\n")
    elif forwarded_for is not None:
        out += (b"X-Forwarded-For: ", forwarded_for, b"\r\n")
    if not proto:
        out.append(b"X-Forwarded-Proto: https\r\n" if scheme == "https" else b"X-Forwarded-Proto: http\r\n")
    if host and not forwarded_host:
        out += (b"X-Forwarded-Host: ", host, b"\r\n")
    out += (framing, b"\r\n")
    return b"".join(out)


def connection_options(values: Iterable[bytes]) -> frozenset[bytes]:
    """The options in all `Connection` fields, in lower case."""
    return frozenset(option.strip(b" \t").lower() for value in values for option in value.split(b","))


def _without(pieces: list[bytes], names: frozenset[bytes]) -> list[bytes]:
    """The fields, four pieces each (name, colon, value, line end), without those named."""
    return [
        piece
        for start in range(0, len(pieces), 4)
        if pieces[start].lower() not in names
        for piece in pieces[start : start + 4]
    ]


def _origin_form(message: RequestMessage) -> tuple[bytes, bytes]:
    """The target as a path with its query, its bytes untouched, and the authority if it was in absolute form."""
    path = message.path
    if path[:1] == "/":
        return path.encode("utf-8", "surrogateescape"), b""
    if path == "*" and message.method == "OPTIONS":
        return b"*", b""
    absolute = _ABSOLUTE.fullmatch(path)
    if absolute is None or message.method == "CONNECT":
        raise BadRequest(f"{message.method} {path} cannot be forwarded: send a request for a path, such as /v1/models")
    rest = absolute[2].encode("utf-8", "surrogateescape")
    return rest if rest[:1] == b"/" else b"/" + rest, absolute[1].encode("utf-8", "surrogateescape")


@lru_cache(maxsize=1024)
def _host(endpoint: Endpoint) -> bytes:
    return str(endpoint).encode("idna" if not str(endpoint).isascii() else "ascii")
