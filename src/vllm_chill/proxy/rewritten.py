"""A response whose body is rewritten on its way, and so has another length than the upstream said. Pure.

The rule: only the body of a 200 that is JSON or a stream of events, and not encoded, is rewritten. Any other response
is passed on by the same framing as if nobody had asked for more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vllm_chill.proxy.committed import BodyRewrite, Kind, Rewrite, kind_of
from vllm_chill.proxy.framing import LAST_CHUNK, ResponseFraming, chunk
from vllm_chill.proxy.headers import RequestMessage

_OURS = frozenset({b"connection", b"content-length", b"trailer", b"transfer-encoding"})


@dataclass(frozen=True, slots=True)
class Unencoded:
    """A request's head without what would have its response encoded, as that could not be read."""

    method: str
    path: str
    raw_headers: Sequence[tuple[bytes, bytes]]


def unencoded(message: RequestMessage) -> Unencoded:
    """The head as it is to be sent where the response is to be read."""
    fields = tuple(field for field in message.raw_headers if field[0].lower() != b"accept-encoding")
    return Unencoded(message.method, message.path, fields)


class RewrittenFraming(ResponseFraming):
    """One response, and its body as `rewrite` has it: in chunks of our own if it is a stream, else whole.

    `http10` and `keep_alive` are the client's, as for any response.
    """

    __slots__ = (
        "_body",
        "_head",
        "_http10_client",
        "_kind",
        "_plain",
        "_raw",
        "_rewrite",
        "_tail",
        "_wishes_keep_alive",
    )

    def __init__(self, rewrite: Rewrite, *, http10: bool = False, keep_alive: bool = True) -> None:
        super().__init__(http10=True)  # so that the body comes without its chunks
        self._plain: ResponseFraming | None = ResponseFraming(http10=http10, keep_alive=keep_alive)
        self._rewrite = rewrite
        self._http10_client = http10
        self._wishes_keep_alive = keep_alive
        self._raw = b""  # what has come of the head
        self._kind: Kind | None = None
        self._body: BodyRewrite | None = None
        self._head = b""  # the status line and the fields, until they have been sent
        self._tail = b""

    @property
    def ending(self) -> bytes:
        return self._tail

    @property
    def untouched(self) -> int:
        return 0

    @property
    def ends_with_connection(self) -> bool:
        return self._http10_client if self._plain is None else self._plain.ends_with_connection

    def feed(self, data: bytes) -> bytes:
        if self._plain is not None:
            known, out = self.status, self._plain.feed(data)
            self._mirror(self._plain)
            if known:
                return out
            self._raw += data
            if not self.status:
                return b""
            self._kind = kind_of(out.partition(b"\r\n\r\n")[0]) if self.status == 200 else None
            data, self._raw = self._raw, b""
            if self._kind is None:
                return out
            self._body = self._rewrite(self._kind)
            self._plain = None
            self.status, self.complete = 0, False
        return self._feed_rewritten(data)

    def close(self) -> bool:
        if self._plain is not None:
            whole = self._plain.close()
            self._mirror(self._plain)
            return whole
        whole = super().close()
        if whole:
            self._tail = self._framed(b"")
        return whole

    def rescue(self, event: bytes) -> bytes | None:
        if self._plain is not None:
            return self._plain.rescue(event)
        if self._kind is not Kind.EVENTS or self._body is None:
            return None
        rest = self._body.rescue() + b"\n\n" + event
        return rest if self._http10_client else chunk(rest) + LAST_CHUNK

    def _mirror(self, plain: ResponseFraming) -> None:
        self.status = plain.status
        self.complete = plain.complete
        self.keep_alive = plain.keep_alive
        self.reusable = plain.reusable

    def _feed_rewritten(self, data: bytes) -> bytes:
        began = self.status
        body = super().feed(data)
        if not began:
            head, _, body = body.partition(b"\r\n\r\n")
            self._head = b"".join(
                line + b"\r\n" for line in head.split(b"\r\n") if line.partition(b":")[0].lower() not in _OURS
            )
        return self._framed(body)

    def _framed(self, body: bytes) -> bytes:
        """What the client gets for so much of the upstream's body."""
        assert self._body is not None
        if body:
            body = self._body.feed(body)
        if self.complete:
            body += self._body.end()
        if self._kind is Kind.JSON and self._head and (self.complete or not body):
            return self._whole(body) if self.complete else b""
        chunked = not self._http10_client
        self.keep_alive = self._wishes_keep_alive and chunked
        out, self._head = self._head, b""
        if out:
            out += (b"Transfer-Encoding: chunked\r\n" if chunked else b"") + self._connection_field() + b"\r\n"
        if not chunked:
            return out + body
        return out + (chunk(body) if body else b"") + (LAST_CHUNK if self.complete else b"")

    def _whole(self, body: bytes) -> bytes:
        self.keep_alive = self._wishes_keep_alive
        head, self._head = self._head, b""
        return head + b"Content-Length: %d\r\n" % len(body) + self._connection_field() + b"\r\n" + body

    def _connection_field(self) -> bytes:
        if self.keep_alive:
            return b"Connection: keep-alive\r\n" if self._http10_client else b""
        return b"Connection: close\r\n"
