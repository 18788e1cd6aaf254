"""A response whose head the client has before the upstream has begun one: a hold that is heard. Pure.

While the target wakes, the client gets something now and then: comments of a stream of server-sent events, which
clients pass over, or spaces before a JSON document. The head says 200 then, whatever comes of it; so what goes wrong
later is told in the body, in the shape in which OpenAI's clients look for it.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Callable
from typing import Any, Protocol

from vllm_chill.proxy.framing import LAST_CHUNK, ResponseFraming, chunk

FAILURE_BYTES = 64 * 1024
"""As much of an upstream's error answer is passed on."""

_CONTENT_TYPE = re.compile(rb"\r\ncontent-type:[ \t]*([^\r\n;]*)", re.IGNORECASE)
_ENCODED = re.compile(rb"\r\ncontent-encoding:[ \t]*(?!identity)[^\r\n]", re.IGNORECASE)


class Kind(enum.Enum):
    """What the client was promised: its media type."""

    EVENTS = b"text/event-stream"
    JSON = b"application/json"


class BodyRewrite(Protocol):
    """What is done to the body of one response, without its chunks."""

    def feed(self, data: bytes) -> bytes:
        """What the client gets for these bytes, now."""

    def end(self) -> bytes:
        """The rest, as the body is whole."""

    def rescue(self) -> bytes:
        """The rest, as the body will never be whole."""


Rewrite = Callable[[Kind], BodyRewrite]
"""What is done to the body of a response of that kind, if there is one: a new one for each attempt."""


def kind_of(head: bytes) -> Kind | None:
    """What a response is, by its head; None for all other types, and for what is encoded."""
    media = _CONTENT_TYPE.search(head)
    if media is None or _ENCODED.search(head):
        return None
    return next((kind for kind in Kind if kind.value == media[1].strip().lower()), None)


class Committed:
    """What is said before the response. `http10`: the client gets no chunks, and its connection's end is the end."""

    __slots__ = ("_fields", "_http10", "keep_alive", "kind")

    def __init__(self, kind: Kind, *, http10: bool = False, keep_alive: bool = True, fields: bytes = b"") -> None:
        """`fields` are added to its head, each with its line end."""
        self.kind = kind
        self._fields = fields
        self._http10 = http10
        self.keep_alive = keep_alive and not http10

    def head(self) -> bytes:
        """The response's head."""
        fields = (
            b"Content-Type: %b; charset=utf-8\r\nCache-Control: no-cache\r\nX-Accel-Buffering: no\r\n" % self.kind.value
        )
        if not self._http10:
            fields += b"Transfer-Encoding: chunked\r\n"
        if not self.keep_alive:
            fields += b"Connection: close\r\n"
        return b"HTTP/1.1 200 OK\r\nServer: vllm-chill\r\n" + self._fields + fields + b"\r\n"

    def beat(self, words: str) -> bytes:
        """A sign of life, which says in words how far it is where words can be said."""
        line = " ".join(words.split())
        return self.piece(f": {line}\n\n".encode() if self.kind is Kind.EVENTS else b" ")

    def piece(self, data: bytes) -> bytes:
        """Bytes of the body, as they go over the wire."""
        return data if self._http10 or not data else chunk(data)

    @property
    def last(self) -> bytes:
        """The body's end."""
        return b"" if self._http10 else LAST_CHUNK

    def failure(self, envelope: Any) -> bytes:
        """All that is left to say once it is known that there will be no response: an error, and the end."""
        return self.piece(error_event(envelope) if self.kind is Kind.EVENTS else _dumped(envelope)) + self.last


def error_event(envelope: Any) -> bytes:
    """OpenAI's error as the last events of a stream."""
    return b"data: %b\n\ndata: [DONE]\n\n" % _dumped(envelope)


def _dumped(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


class CommittedFraming(ResponseFraming):
    """The upstream's response as the rest of a committed one: its body, in chunks of our own.

    One that is not what the client was promised (its status is not 200, or it has another media type) is kept until
    it is whole, and told as a failure. `status` is the upstream's own.
    """

    __slots__ = ("_body", "_committed", "_kept", "_tail")

    def __init__(self, committed: Committed, rewrite: Rewrite | None = None) -> None:
        super().__init__(http10=True)
        self._committed = committed
        self._body = rewrite(committed.kind) if rewrite is not None else None
        self._kept: bytes | None = None
        self._tail = b""

    @property
    def untouched(self) -> int:
        return 0

    @property
    def ends_with_connection(self) -> bool:
        return not self._committed.last

    @property
    def ending(self) -> bytes:
        return self._tail

    def feed(self, data: bytes) -> bytes:
        began = self.status
        body = super().feed(data)
        if not began and self.status:
            head, _, body = body.partition(b"\r\n\r\n")
            promised = self.status == 200 and kind_of(head) is self._committed.kind
            self._kept = None if promised else b""
        if self._kept is not None:
            self._kept += body[: FAILURE_BYTES - len(self._kept)]
            body = b""
        elif self._body is not None:
            body = self._body.feed(body)
        out = self._committed.piece(body)
        return out + self._end() if self.complete else out

    def close(self) -> bool:
        whole = super().close()
        if whole:
            self._tail = self._end()
        return whole

    def rescue(self, event: bytes) -> bytes | None:
        if self._committed.kind is Kind.JSON:
            return None
        rest = self._body.rescue() if self._body is not None else b""
        return self._committed.piece(rest + b"\n\n" + event) + self._committed.last

    def _end(self) -> bytes:
        self.keep_alive = self._committed.keep_alive
        if self._kept is None:
            rest = self._body.end() if self._body is not None else b""
            return self._committed.piece(rest) + self._committed.last
        return self._committed.failure(_error_in(self._kept, self.status))


def _error_in(body: bytes, status: int) -> Any:
    """OpenAI's envelope round what an upstream has said: as it is, if it is one already."""
    try:
        said = json.loads(body)
    except ValueError:
        said = None
    if isinstance(said, dict) and "error" in said:
        return said
    if isinstance(said, dict) and isinstance(said.get("message"), str):
        message = said["message"]
    else:
        message = body.decode("utf-8", "replace").strip() or f"the model server answered with status {status}"
    kind = "invalid_request_error" if 400 <= status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "code": str(status), "param": None}}
