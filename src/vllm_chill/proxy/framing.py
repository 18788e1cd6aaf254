"""An HTTP/1.1 response as its bytes come: where its head ends, and where its body. Pure: bytes in, bytes out.

The head is parsed by one strict grammar and rewritten where the connection to the client differs from the one to
the upstream. The body's bytes are passed on as they came, chunk framing and trailers included; they are walked,
never copied. What is not legal is never guessed at: two readers of one message that disagree about its end are
what response smuggling is made of.
"""

from __future__ import annotations

import re

from vllm_chill.errors import ChillError
from vllm_chill.proxy.chunks import CHUNK, FIELDS, IN_CHUNKS, ChunkedBody
from vllm_chill.proxy.headers import HOP_BY_HOP, NOT_FOR_CONNECTION_TO_NAME, connection_options

HEAD_BYTES = 64 * 1024
INTERIM_HEADS = 16

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_VALUE = rb"[\t -~\x80-\xff]"
# Possessive, so that time is linear whatever comes. No line folding, no bare CR, LF or NUL, no space before a colon.
_HEAD = re.compile(
    rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: %b*+)?\r\n(?:%b:%b*+\r\n){0,%d}+\r\n" % (_VALUE, _TOKEN, _VALUE, FIELDS)
)
_SPECIAL = re.compile(
    rb"\r\n(content-length|transfer-encoding|connection|keep-alive|proxy-authenticate|proxy-authorization"
    rb"|proxy-connection|te|upgrade):([^\r\n]*+)",
    re.IGNORECASE,
)
_NEVER_IN_A_HEAD = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r[^\n]|\n[ \t]")
_HEAD_START = b"HTTP/1."

_NO_OPTIONS: frozenset[bytes] = frozenset()

_IN_HEAD, _IN_LENGTH, _TO_CLOSE = range(2, 5)


class IllegalResponse(ChillError):
    """The upstream's bytes are not an HTTP/1.1 response; the message says what is wrong with them."""


class ResponseFraming(ChunkedBody):
    """One response. Feed it what the upstream sends until it is `complete`; what `feed` returns is the client's.

    `status` is 0 until the head is whole. Once complete: `keep_alive` says whether the client can tell where the
    response ends without its connection being closed; `reusable` whether the upstream connection can take another
    request. `event_stream` says of a chunked response whether it is a stream of server-sent events.
    """

    __slots__ = (
        "_http10",
        "_keep_alive",
        "_no_body",
        "_plain_client",
        "event_stream",
        "keep_alive",
        "reusable",
        "status",
    )

    illegal = IllegalResponse

    def __init__(self, *, no_body: bool = False, http10: bool = False, keep_alive: bool = True) -> None:
        """`no_body`: the request was HEAD. `http10`: the client speaks HTTP/1.0, and gets no chunks.
        `keep_alive`: the client would like to keep its connection.
        """
        self._no_body = no_body
        self._http10 = http10
        self._keep_alive = keep_alive
        self._plain_client = keep_alive and not http10 and not no_body
        self._state = _IN_HEAD
        self._carry = b""  # the start of a head or of a line, whose end has not come
        self._left = 0  # bytes to the end of the body, or of the chunk with its line end
        self._count = 0  # interim heads, then trailers
        self._pieces: list[bytes] | None = None  # the body's bytes without chunk framing, for a 1.0 client
        self.status = 0
        self.complete = False
        self.keep_alive = False
        self.reusable = False
        self.event_stream = False

    @property
    def ending(self) -> bytes:
        """What the client is to get once the upstream has closed a response that ends with its connection."""
        return b""

    def rescue(self, event: bytes) -> bytes | None:
        """An end in good order, with a last event, for a stream that has lost its upstream; None if there is none."""
        if self.event_stream and self._state == IN_CHUNKS and not self._left and not self._carry:
            return chunk(b"\n\n" + event) + LAST_CHUNK if self._pieces is None else b"\n\n" + event
        return None

    @property
    def ends_with_connection(self) -> bool:
        """Whether the client can tell the response's end only by its connection's end."""
        return self._state == _TO_CLOSE or self._pieces is not None

    @property
    def untouched(self) -> int:
        """How many bytes are to come that all go on as they are; 0 where that is not known."""
        return self._left if self._state == _IN_LENGTH else 0

    def feed(self, data: bytes) -> bytes:
        """What the client is to get for these bytes: the same object wherever it can be. Raises IllegalResponse."""
        state = self._state
        if state == IN_CHUNKS and not self._left and _is_one_chunk(data) and not self._carry and self._pieces is None:
            return data
        if state == _IN_HEAD:
            return self._feed_head(data)
        end = self._advance(data, 0)
        if self._pieces is not None:
            return self._take_pieces()
        return data if end == len(data) else data[:end]

    def close(self) -> bool:
        """The upstream has closed the connection in good order: whether the response is whole."""
        if self._state == _TO_CLOSE:
            self.complete = True
        return self.complete

    def _feed_head(self, data: bytes) -> bytes:
        if self._carry:
            known = len(self._carry)
            data = self._carry + data
            if data.find(b"\r\n\r\n", max(0, known - 3), HEAD_BYTES) < 0:
                return self._wait_for_head(data, known)
        head = _HEAD.match(data)
        if head is None:
            if data.find(b"\r\n\r\n", 0, HEAD_BYTES) >= 0:
                raise IllegalResponse("its head breaks the grammar of HTTP/1.1")
            return self._wait_for_head(data, 0)
        if head.end() > HEAD_BYTES:
            raise IllegalResponse(f"its head is larger than {HEAD_BYTES} bytes")
        self._carry = b""
        version, status = head.groups()
        start = head.end()
        if status == b"200" and version == b"1" and self._is_whole(data, start):
            self.status = 200
            self.complete = self.keep_alive = self.reusable = True
            return data
        if status[0] == 0x31:
            return self._feed_head(self._after_interim(status, data[start:]))
        rewritten = self._read_head(data, start, version == b"1", status)
        end = start if self.complete else self._advance(data, start)
        if end < len(data):
            self.reusable = False
        if rewritten is None:
            return data if end == len(data) else data[:end]
        return rewritten + (data[start:end] if self._pieces is None else self._take_pieces())

    def _is_whole(self, data: bytes, start: int) -> bool:
        """Whether this is the commonest of responses, all of it in one read: its length, and nothing else special."""
        special = _SPECIAL.findall(data, 0, start) if self._plain_client else ()
        if len(special) != 1 or special[0][0].lower() != b"content-length":
            return False
        return _length(special[0][1].strip(b" \t"), -1) == len(data) - start

    def _wait_for_head(self, data: bytes, known: int) -> bytes:
        if len(data) >= HEAD_BYTES:
            raise IllegalResponse(f"its head is larger than {HEAD_BYTES} bytes")
        if data[:7] != _HEAD_START[: len(data)] or _NEVER_IN_A_HEAD.search(data, max(0, known - 1)):
            raise IllegalResponse("it does not begin like an HTTP/1.1 response")
        self._carry = data
        return b""

    def _after_interim(self, status: bytes, rest: bytes) -> bytes:
        """Interim responses are dropped: the handler answers 100 itself, and one passed on would rule out a replay."""
        self._count += 1
        if status == b"101":
            raise IllegalResponse("it switches protocols (101), which nobody asked for")
        if self._count > INTERIM_HEADS:
            raise IllegalResponse(f"it has more than {INTERIM_HEADS} interim heads")
        return rest

    def _read_head(self, data: bytes, end: int, http11: bool, status: bytes) -> bytes | None:
        """Set up how the body is framed; the head for the client, or None if it is the one in `data`."""
        length, chunked, options, plain = -1, False, _NO_OPTIONS, http11
        for name, value in _SPECIAL.findall(data, 0, end):
            match name.lower():
                case b"content-length":
                    length = _length(value.strip(b" \t"), length)
                case b"transfer-encoding":
                    if chunked or value.strip(b" \t").lower() != b"chunked" or not http11:
                        raise IllegalResponse("its Transfer-Encoding is not just chunked, once, in HTTP/1.1")
                    chunked = True
                case b"connection":
                    plain = False
                    options |= connection_options(value)
                case _:
                    plain = False
        if chunked and length >= 0:
            raise IllegalResponse("it has both a Content-Length and a Transfer-Encoding")
        self.status = int(status)
        no_body = self._no_body or status in {b"204", b"304"}
        delimited = no_body or chunked or length >= 0
        unchunk = self._http10 and chunked
        self.keep_alive = self._keep_alive and delimited and (no_body or not unchunk)
        self.reusable = http11 and delimited and b"close" not in options
        if no_body or length == 0:
            self.complete = True
        elif chunked:
            self._state = IN_CHUNKS
            self._pieces = [] if unchunk else None
            self.event_stream = data.find(b"text/event-stream", 0, end) >= 0
        elif length > 0:
            self._state, self._left = _IN_LENGTH, length
        else:
            self._state = _TO_CLOSE
        if plain and self.keep_alive and not self._http10 and status != b"204":
            return None
        dropped = HOP_BY_HOP - {b"transfer-encoding"} | options - NOT_FOR_CONNECTION_TO_NAME
        if unchunk:
            dropped |= {b"trailer", b"transfer-encoding"}
        if status == b"204":  # which may have neither (RFC 9110 §8.6, RFC 9112 §6.1)
            dropped |= {b"content-length", b"transfer-encoding"}
        return _rewritten(data[:end], dropped, b"" if self.keep_alive and not self._http10 else self._connection())

    def _connection(self) -> bytes:
        return b"Connection: keep-alive\r\n" if self.keep_alive else b"Connection: close\r\n"

    def _advance(self, data: bytes, pos: int) -> int:
        """Walk the body from `pos`; where in `data` what belongs to this response ends."""
        state, size = self._state, len(data)
        if state == _IN_LENGTH:
            self._left -= size - pos
            if self._left > 0:
                return size
            self.complete = True
            end = size + self._left
        elif state == _TO_CLOSE:
            return size
        else:
            end = self._walk(data, pos)
        if end < size:
            self.reusable = False
        return end


LAST_CHUNK = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """Bytes of a body, not empty, as a chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def _is_one_chunk(data: bytes) -> bool:
    """Whether it is one chunk from its first byte to its last, as most reads of a stream of tokens are."""
    line = CHUNK.match(data)
    if line is None:
        return False
    length = int(line[1], 16)
    return length > 0 and line.end() + length + 2 == len(data) and data.endswith(b"\r\n")


def _length(value: bytes, known: int) -> int:
    """A Content-Length, which may come once: parsers of HTTP disagree about what two of them mean, same or not."""
    if known >= 0 or not value.isdigit() or len(value) > 18:
        raise IllegalResponse("its Content-Length is not one number")
    return int(value)


def _rewritten(head: bytes, dropped: frozenset[bytes], connection: bytes) -> bytes:
    """The head without the fields whose names are dropped, as HTTP/1.1, with a Connection field of our own."""
    lines = head[8:-4].split(b"\r\n")
    kept = [line for line in lines[1:] if line.partition(b":")[0].lower() not in dropped]
    return b"\r\n".join([b"HTTP/1.1" + lines[0], *kept, connection + b"\r\n"])
