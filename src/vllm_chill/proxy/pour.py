"""Large bodies: bytes that are read into one buffer and written from it, which saves a copy of each.

The rule: the buffer is read into only while the sink keeps nothing of it. While it is poured into, the sink has its
writer pause as soon as it keeps anything back, and a paused writer's source is not read.
"""

from __future__ import annotations

import asyncio
from typing import cast

POURED_BYTES = 1 << 20
"""From how many bytes on it is worth it."""

UP_BYTES = 128 * 1024
"""How much of a request's body is read at once: with less it costs more, and with more an engine, which reads while
more is written, is fed more slowly.
"""

DOWN_BYTES = 256 * 1024
"""How much of a response's: the fewer the reads, the less it costs."""

_KEPT_BYTES = 16 * 1024  # as much as is kept of a response, to look into


def pour(protocol: asyncio.Protocol, source: asyncio.Transport, sink: asyncio.Transport, left: int, room: int) -> None:
    """Have the next bytes, so many, go from the source to the sink through one buffer, if that can be done.

    A transport of TLS keeps what it is written, as it is, until it can encrypt it, and it is copied there anyway.
    """
    if source.get_extra_info("sslcontext") is None and sink.get_extra_info("sslcontext") is None:
        Pour(protocol, source, sink, left, room)


class Pour(asyncio.BufferedProtocol):
    """The protocol of a connection until `left` bytes have come, at most `room` at once. Its own protocol gets them as
    ever, but as views of the buffer, of which it may keep nothing; small pieces and the last one, with what is behind
    it, are its to keep. Then it is the connection's protocol again.
    """

    __slots__ = ("_left", "_protocol", "_room", "_sink", "_source")

    def __init__(
        self, protocol: asyncio.Protocol, source: asyncio.Transport, sink: asyncio.Transport, left: int, room: int
    ) -> None:
        self._protocol = protocol
        self._source = source
        self._sink = sink
        self._left = left
        self._room = memoryview(bytearray(room))
        if not sink.is_closing():
            sink.set_write_buffer_limits(0)
        source.set_protocol(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._room

    def buffer_updated(self, nbytes: int) -> None:
        self._left -= nbytes
        data = self._room[:nbytes]
        if self._left > 0 and nbytes > _KEPT_BYTES:
            self._protocol.data_received(cast("bytes", data))
            return
        if self._left <= 0:
            self._source.set_protocol(self._protocol)
            if not self._sink.is_closing():
                self._sink.set_write_buffer_limits()
        self._protocol.data_received(bytes(data))

    def eof_received(self) -> bool | None:
        return self._protocol.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()
