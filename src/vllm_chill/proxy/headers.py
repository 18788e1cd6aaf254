"""The head of a request as it goes to the upstream, from the head that came. Pure: bytes in, bytes out.

What is end to end goes on as it was received: target, order, spelling, duplicates. What belongs to one connection
(RFC 9110 §7.6.1) is dropped, and how the body is framed is always written anew from how it is sent, so that nothing
a client says about it can make the upstream see another request than the one that was parsed here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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

# What does not simply go on. Content-Length: written anew. Trailer: aiohttp's parser does not keep a request's
# trailers, so none are sent. Expect: the handler answers 100 itself, before it reads the body.
_SPECIAL = (
    HOP_BY_HOP
    | {b"content-length", b"expect", b"http2-settings", b"trailer"}
    | {b"host", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto"}
)
CREDENTIALS = frozenset({b"authorization", b"x-api-key"})
"""What says who the client is. Anthropic's clients, whose API vLLM has too, say it in the second, or in both."""
FORWARDED = frozenset({b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto"})
_field = b": ".join
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


def request_head(
    message: RequestMessage,
    endpoint: Endpoint,
    framing: bytes,
    *,
    peer: str,
    scheme: str,
    authorization: bytes | None = None,
    besides: frozenset[bytes] = frozenset(),
    added: bytes = b"",
) -> bytes:
    """The request line and the fields, with the empty line.

    `framing` is the field, whole with its line end, that says how the body is sent; empty for none. `peer` is the
    client's address, empty if it has none (a Unix socket); `scheme` what it spoke; `authorization` is as in
    EngineAccess. Fields whose names, in lower case, are in `besides` do not go on; `added` are others, each with its
    line end.
    X-Forwarded-For gets the peer at its end. X-Forwarded-Proto and X-Forwarded-Host are set only where no proxy
    before this one has set them: the first proxy's word is the one about the client. Raises BadRequest for a
    target that has no path (CONNECT).
    """
    target, authority = _origin_form(message)
    fields: list[tuple[bytes, bytes]] = []
    said: dict[bytes, bytes] = {}  # the special ones, by name
    for field in message.raw_headers:
        name = field[0].lower()
        if name not in _SPECIAL:
            fields.append(field)
        else:
            said[name] = said[name] + b", " + field[1] if name in said else field[1]
    options = said.get(b"connection", b"")
    if options not in _NAMES_NOTHING:
        named = connection_options(options)
        fields = [field for field in fields if field[0].lower() not in named]
        said = {name: value for name, value in said.items() if name not in named or name == b"host"}
    dropped = besides if authorization is None else besides | CREDENTIALS
    if dropped:
        fields = [field for field in fields if field[0].lower() not in dropped]
    if authorization:
        fields.append((b"Authorization", authorization))
    lines = [b"%b %b HTTP/1.1\r\nHost: %b" % (message.method.encode(), target, host_of(endpoint))]
    lines += map(_field, fields)
    lines.append(forwarded(said, peer, scheme, authority or said.get(b"host", b"")))
    return b"\r\n".join(lines) + added + framing + b"\r\n"


def forwarded(said: Mapping[bytes, bytes], peer: str, scheme: str, host: bytes) -> bytes:
    """The X-Forwarded fields, each with its line end; `said` has those that came, by their names in lower case."""
    if said.keys().isdisjoint(FORWARDED):
        return _forwarded(peer, scheme, host)
    before = said.get(b"x-forwarded-for", b"")
    return _forwarding(
        before + b", " + peer.encode() if before and peer else before or peer.encode(),
        said.get(b"x-forwarded-proto") or scheme.encode(),
        said.get(b"x-forwarded-host") or host,
    )


@lru_cache(maxsize=1024)
def _forwarded(peer: str, scheme: str, host: bytes) -> bytes:
    """The X-Forwarded fields where no proxy before this one has set any, as the same client asks again and again."""
    return _forwarding(peer.encode(), scheme.encode(), host)


def _forwarding(peers: bytes, scheme: bytes, host: bytes) -> bytes:
    """The X-Forwarded fields after a line end of the fields before, each with its own."""
    named = ((b"X-Forwarded-For", peers), (b"X-Forwarded-Proto", scheme), (b"X-Forwarded-Host", host))
    return b"".join(_field(field) + b"\r\n" for field in named if field[1])


def connection_options(value: bytes) -> frozenset[bytes]:
    """The options in a `Connection` field, in lower case."""
    return frozenset(option.strip(b" \t").lower() for option in value.split(b","))


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
def host_of(endpoint: Endpoint) -> bytes:
    """An endpoint as the upstream's Host."""
    return str(endpoint).encode("idna" if not str(endpoint).isascii() else "ascii")
