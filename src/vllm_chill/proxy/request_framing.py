"""A client's bytes on one connection, request after request: where a head ends, and where its body. Pure.

The counterpart of `framing`, and as strict: what the two sides of a proxy could read in two ways is refused here,
before any parser has seen it. A head goes on whole or not at all.
"""

from __future__ import annotations

import re

from vllm_chill.errors import AnswerableError, BadRequest, ChillError, HeadTooLarge, RequestTooLarge
from vllm_chill.proxy.chunks import ChunkedBody
from vllm_chill.proxy.headers import connection_options

HEAD_BYTES = 64 * 1024
FIELDS = 128  # as many as aiohttp takes
_OVERHEAD_BYTES = 16 * 1024

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_VALUE = rb"[\t -~\x80-\xff]"
# Possessive, so that time is linear whatever comes. One empty line before it is left out (RFC 9112 §2.2). Bytes
# above 0x7f in a target are no URL, but curl sends what it is given, and they end nothing.
_HEAD = re.compile(
    rb"(?:\r\n)?+(%b) ([!-~\x80-\xff]++) HTTP/1\.([01])((?:\r\n%b:%b*+)*+)\r\n\r\n" % (_TOKEN, _TOKEN, _VALUE)
)
_SPECIAL = re.compile(
    rb"\r\n(host|content-length|transfer-encoding|connection|upgrade|expect):([^\r\n]*+)", re.IGNORECASE
)
_UPGRADE = re.compile(rb"\r\nupgrade:[^\r\n]*+", re.IGNORECASE)
_NEVER_IN_A_HEAD = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r[^\n]|\n[ \t]")
_USUAL_OPTIONS = {option: frozenset({option}) for option in (b"", b"keep-alive", b"close")}
_LENGTH = re.compile(rb"[0-9]{1,18}")

HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]++\]|[0-9A-Za-z\-._~%!$&'()*+,;=]*+)(?::[0-9]*+)?")
"""What may be in Host (RFC 3986 §3.2.2): who reads another name in it than the next one does routes elsewhere."""


class _Illegal(ChillError):
    """The client's bytes are no request; the message says what is wrong with it."""


class _RequestChunks(ChunkedBody):
    """A request's chunked body: `size` is how much of the body has been announced so far.

    Framing that outweighs the body is refused, as Go's server does (CVE-2023-39326): it costs the reader alone.
    """

    __slots__ = ("_overhead", "size")

    illegal = _Illegal

    def __init__(self) -> None:
        super().__init__()
        self.size = 0
        self._overhead = 0

    def walk(self, data: bytes, pos: int) -> int:
        """Walk it from `pos`; where in `data` it ends, its size if it goes on."""
        return self._walk(data, pos)

    def _chunk_line(self, data: bytes, pos: int) -> tuple[int, int]:
        before = -len(self._carry)
        end, left = super()._chunk_line(data, pos)
        if left:
            self.size += left - 2
            self._overhead = max(0, self._overhead + end - pos - before - 16 - 2 * (left - 2))
            if self._overhead > _OVERHEAD_BYTES:
                raise _Illegal("its chunks are more framing than body")
        return end, left


class RequestFraming:
    """One connection's requests. Feed it what the client sends; what `feed` returns is legal, and may be parsed.

    `illegal` says what is wrong once something is; nothing goes on after that. `requests` counts the heads that went
    on, `received` the bytes of the body that is on its way. `expects` says that the client waits to be told to send it.

    `closes` says that the connection ends with the request that went on last: what is behind it is passed over.

    `may_switch` is for who feeds it to say: whether the next request is alone, so that it may ask for another protocol.
    One that does and has no body sets `switches`, and what is behind it is not HTTP until that is refused. Any other
    loses its Upgrade field, as a server may pass over it (RFC 9110 §7.8).
    """

    __slots__ = (
        "_body_bytes",
        "_carry",
        "_chunks",
        "_left",
        "closes",
        "expects",
        "illegal",
        "may_switch",
        "received",
        "requests",
        "rest",
        "switches",
    )

    def __init__(self, body_bytes: int | None = None) -> None:
        """`body_bytes`: how large a chunked body may be; None for any size. A length that is said is not judged."""
        self._body_bytes = body_bytes
        self._carry = b""  # the start of a head
        self._left = 0  # bytes to the end of a body whose length was said
        self._chunks: _RequestChunks | None = None
        self.illegal: AnswerableError | None = None
        self.may_switch = True
        self.switches = False
        self.expects = False
        self.closes = False
        self.requests = 0
        self.received = 0
        self.rest = b""
        """What has come behind a request that switches."""

    @property
    def in_head(self) -> bool:
        """Whether a head has begun and is not whole; an empty line before one is no beginning."""
        return self._carry not in (b"", b"\r", b"\r\n")

    @property
    def in_body(self) -> bool:
        """Whether a head has gone on whose body is not whole."""
        return bool(self._left) or self._chunks is not None

    def feed(self, data: bytes) -> bytes:
        """What may be parsed of these bytes, and of those before that were kept."""
        if self._left > len(data):
            self._take(len(data))
            return data
        legal: list[bytes] = []
        try:
            self._walk(data, legal)
        except _Illegal as illegal:
            self.illegal = BadRequest(f"the request is not legal HTTP/1.1: {illegal.message}.")
        except AnswerableError as error:
            self.illegal = error
        return legal[0] if len(legal) == 1 else b"".join(legal)

    def _walk(self, data: bytes, legal: list[bytes]) -> None:
        pos, size = 0, len(data)
        while pos < size:
            start = pos
            if self._left:
                pos = min(size, pos + self._left)
                self._take(pos - start)
            elif self._chunks is not None:
                pos = self._walk_chunks(self._chunks, data, pos)
            elif self.switches:
                self.rest = data[pos:]
                return
            elif self.closes:
                return
            else:
                if self._carry:
                    known = len(self._carry)
                    data, pos = self._carry + data[pos:], 0
                    size = len(data)
                else:
                    known = 0
                pos, head = self._read_head(data, pos, known)
                if head:
                    legal.append(head)
                continue
            legal.append(data if not start and pos == size else data[start:pos])

    def _take(self, size: int) -> None:
        self._left -= size
        self.received += size
        self.expects = False

    def _walk_chunks(self, chunks: _RequestChunks, data: bytes, pos: int) -> int:
        end = chunks.walk(data, pos)
        self.received += end - pos
        self.expects = False
        if self._body_bytes is not None and chunks.size > self._body_bytes:
            raise too_large(self._body_bytes)
        if chunks.complete:
            self._chunks = None
        return end

    def _read_head(self, data: bytes, pos: int, known: int) -> tuple[int, bytes]:
        """Where the head ends that begins here, and what of it goes on; the end of the data if it is kept for now."""
        end = data.find(b"\r\n\r\n", max(pos, pos + known - 3), pos + HEAD_BYTES)
        if end < 0:
            if len(data) - pos >= HEAD_BYTES:
                raise HeadTooLarge(f"the head of the request is larger than {HEAD_BYTES} bytes; send less in it.")
            if never := _NEVER_IN_A_HEAD.search(data, max(pos, pos + known - 1)):
                raise _Illegal(_where(data[pos : never.start()]))
            self._carry = data[pos:] if pos else data
            return len(data), b""
        self._carry = b""
        end += 4
        match = _HEAD.fullmatch(data, pos, end)
        if match is None:
            raise _Illegal(_where(_legal_part(data[pos:end])))
        head = self._read_fields(match, data[match.start(1) : end])
        self.requests += 1
        self.may_switch = False
        return end, head

    def _read_fields(self, match: re.Match[bytes], head: bytes) -> bytes:
        """Set up how the body is framed; the head that goes on."""
        method, _, minor, fields = match.groups()
        if fields.count(b"\r\n") > FIELDS:
            raise HeadTooLarge(f"the request has more than {FIELDS} fields in its head; send fewer.")
        if method == b"CONNECT":
            raise BadRequest("CONNECT cannot be forwarded: send a request for a path, such as /v1/models")
        said: dict[bytes, bytes] = {}
        for spelled, value in _SPECIAL.findall(fields):
            name = spelled.lower()
            if name not in said:
                said[name] = value.strip(b" \t")
            elif name == b"connection":
                said[name] += b"," + value
            elif name != b"upgrade":
                raise _Illegal(f"it has two {name.decode().title()} fields")
        self._check_host(said.get(b"host"), minor)
        self._frame(said.get(b"content-length"), said.get(b"transfer-encoding"), minor)
        self.expects = self.in_body and minor == b"1" and said.get(b"expect", b"").lower() == b"100-continue"
        connection = said.get(b"connection", b"")
        options = _USUAL_OPTIONS.get(connection) or connection_options(connection)
        self.closes = b"close" in options or (minor == b"0" and b"keep-alive" not in options)
        if b"upgrade" not in said:
            return head
        if self.may_switch and not self.in_body and minor == b"1" and b"upgrade" in options:
            self.switches = True
            return head
        return _UPGRADE.sub(b"", head)

    def _check_host(self, host: bytes | None, minor: bytes) -> None:
        if host is None:
            if minor == b"1":
                raise _Illegal("it has no Host field")
        elif not HOST.fullmatch(host):
            raise _Illegal("its Host field is no host with a port")

    def _frame(self, length: bytes | None, coding: bytes | None, minor: bytes) -> None:
        self.received = 0
        if coding is not None:
            if length is not None:
                raise _Illegal("it has both a Content-Length and a Transfer-Encoding")
            if coding.lower() != b"chunked" or minor == b"0":
                raise _Illegal("its Transfer-Encoding is not just chunked, once, in HTTP/1.1")
            self._chunks = _RequestChunks()
        elif length is not None:
            if not _LENGTH.fullmatch(length):
                raise _Illegal("its Content-Length is not one number")
            self._left = int(length)


def too_large(limit: int) -> RequestTooLarge:
    """What a body is that has more bytes than this."""
    return RequestTooLarge(f"the body of the request is larger than the {limit} bytes that are taken (--max-body).")


def _where(before: bytes) -> str:
    """Which line of a head is wrong, by what is before the fault."""
    line = before.lstrip(b"\r\n").count(b"\n") + 1
    return f"line {line} of its head breaks the grammar"


_LEGAL_PART = re.compile(
    rb"(?:\r\n)?+(?:%b [!-~\x80-\xff]++ HTTP/1\.[01](?:\r\n%b:%b*+(?=\r\n))*+)?+" % (_TOKEN, _TOKEN, _VALUE)
)


def _legal_part(head: bytes) -> bytes:
    """A head up to the first line that is wrong."""
    match = _LEGAL_PART.match(head)
    assert match is not None
    return match[0] + b"\r\n" if match[0].strip() else b""
