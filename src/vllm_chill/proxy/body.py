"""A request's body on its way to the upstream.

What is small is read whole and can be sent as often as it takes. What is large or of unknown length is streamed,
and its first bytes are kept until more has been sent than may be kept.
"""

from __future__ import annotations

from typing import Protocol

from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web import BaseRequest, RequestPayloadError

from vllm_chill.core.prompt import LOOKED_INTO_BYTES
from vllm_chill.errors import BadRequest
from vllm_chill.proxy.aiohttp_seam import arrived, message_of
from vllm_chill.proxy.door import Refusal

KEPT_BYTES = 1 << 20

_CHUNKED = b"Transfer-Encoding: chunked\r\n"
_METHODS_WITH_A_BODY = frozenset({"POST", "PUT", "PATCH"})


def length_field(method: str, length: int | None) -> bytes:
    """The field that frames a body of known length, with its line end; `length` is what the client said, if it did.

    A method that expects a body says that it has none (RFC 9110 §8.6).
    """
    if length is None:
        return b"Content-Length: 0\r\n" if method in _METHODS_WITH_A_BODY else b""
    return b"Content-Length: %d\r\n" % length


class Sink(Protocol):
    """Where a streamed body goes."""

    def writelines(self, pieces: list[bytes]) -> None: ...
    async def drain(self) -> None: ...


class RequestBody:
    """The body of one request. It can be sent again from its start for as long as `replayable`.

    Making one reads nothing: a held caller's body stays in the socket until `load` or the relay reads it. A body
    whose Content-Length is at most `limit` bytes is read whole; a larger or chunked one is streamed, and kept
    only up to `limit`. What is read ahead is kept until it is sent, however much it is. `framing` is the field that
    says so to the upstream, with its line end; `length` is 0 where the head does not say it.
    """

    __slots__ = ("_ahead", "_ended", "_kept", "_limit", "_payload", "_small", "_whole", "framing", "length")

    def __init__(self, request: BaseRequest, limit: int = KEPT_BYTES) -> None:
        self._payload = payload = request.content
        self._limit = limit
        self._whole: bytes | None = None
        self.length = 0
        self._small = True
        self._ended = False
        self._ahead = bytearray()
        self._kept: bytearray | None = None  # bytes and not pieces: a million pieces of a byte would weigh 40 MB
        if payload is EMPTY_PAYLOAD:
            self._whole = b""
            self.framing = length_field(request.method, request.content_length)
            return
        self._kept = bytearray()
        if message_of(request).chunked:
            length = None
        else:
            length = payload.total_bytes if payload.is_eof() else request.content_length
        self.framing = _CHUNKED if length is None else b"Content-Length: %d\r\n" % length
        self._small = length is not None and length <= limit
        self.length = length or 0

    @property
    def replayable(self) -> bool:
        """Whether it can be sent from its start: nothing that was sent has been forgotten."""
        return self._whole is not None or self._kept is not None

    @property
    def missing(self) -> int:
        """The size of a body that `load` would have to wait for; 0 if there is nothing to wait for."""
        return self.length if self._small and self.whole is None else 0

    def stream(self) -> None:
        """Have it streamed and nothing of it kept, although it is small. To be called before any of it was sent."""
        self._small, self._kept = False, None

    async def read_ahead(self) -> bytes:
        """The next piece of a body that is to be streamed, before any of it was sent; empty at its end.

        Raises BadRequest if it is broken, and what it is refused with otherwise.
        """
        piece = await self._read()
        self._ended = not piece
        self._ahead += piece
        if self._kept is not None and len(self._ahead) > self._limit:
            self._kept = None
        return piece

    def held_bytes(self, streamed: int) -> int:
        """How much of it there is in memory before it is sent, if of what is streamed `streamed` at most is read."""
        if self._whole is not None:
            return len(self._whole)
        ahead = len(self._ahead)
        return ahead + (0 if self._ended else min(self.length - ahead if self.length else streamed, streamed))

    @property
    def opening(self) -> bytes:
        """What is here of its beginning, while none of it was sent; nothing more is read for that."""
        whole = self.whole
        if whole is not None:
            return whole[:LOOKED_INTO_BYTES]
        return bytes((self._ahead or self._kept or b"")[:LOOKED_INTO_BYTES]) or arrived(self._payload)

    @property
    def whole(self) -> bytes | None:
        """The body if all of it is here, or has been read; None if it is streamed or has yet to come."""
        if self._whole is None and self._small and not self._kept and self._payload.is_eof():
            self._whole, self._kept = self._payload.read_nowait(), None
        return self._whole

    async def load(self) -> bytes | None:
        """The body whole, read now if it has to be; None if it is streamed. Raises BadRequest if it is broken."""
        if self.whole is None and self._small:
            assert self._kept is not None
            while piece := await self._read():
                self._kept += piece
            self._whole, self._kept = bytes(self._kept), None
        return self._whole

    async def send(self, sink: Sink) -> None:
        """Send a streamed body from its start, as fast as the sink takes it. Raises BadRequest if it is broken.

        It can be cancelled at any time and then, if it is replayable, be sent again.
        """
        if self._ahead:
            ahead, self._ahead = bytes(self._ahead), bytearray()
            self._keep(ahead)
            await self._write(sink, ahead)
        elif self._kept:
            await self._write(sink, bytes(self._kept))
        while not self._ended:
            piece = await self._read()
            if piece:
                self._keep(piece)
                await self._write(sink, piece)
            else:
                self._ended = True
        if self.framing is _CHUNKED:
            sink.writelines([b"0\r\n\r\n"])

    async def _read(self) -> bytes:
        try:
            return await self._payload.readany()
        except Refusal as refusal:
            raise refusal.error from refusal
        except (RequestPayloadError, HttpProcessingError) as error:
            raise BadRequest(f"the body of the request is broken ({error}); send it as its head says") from error

    async def _write(self, sink: Sink, piece: bytes) -> None:
        sink.writelines([b"%x\r\n" % len(piece), piece, b"\r\n"] if self.framing is _CHUNKED else [piece])
        await sink.drain()

    def _keep(self, piece: bytes) -> None:
        if self._kept is None:
            return
        if len(self._kept) + len(piece) > self._limit:
            self._kept = None
        else:
            self._kept += piece
