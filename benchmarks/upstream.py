"""An upstream that costs next to nothing, so that what is measured is what stands in front of it.

    python benchmarks/upstream.py PORT [LOAD_SECONDS]          listens on POD_IP, else on 127.0.0.1

GET /v1/models is answered with a list of one model; any other request with a small JSON object, in which `arrived_ns`
is when its first byte came (time.monotonic_ns, the same clock in every process of a machine). A request with the field
`X-Chunks: N` gets N events of a stream, one every `X-Every` milliseconds. With LOAD_SECONDS it listens only after so
long, at random between two if that is LEAST-MOST, and GET /began is answered with the moment at which it did.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import sys
import time

_EVENT = b'data: {"choices": [{"index": 0, "delta": {"content": "token "}, "finish_reason": null}]}\n\n'
_CHUNK = b"%x\r\n%s\r\n" % (len(_EVENT), _EVENT)
_MODELS = b'{"object": "list", "data": [{"id": "light", "object": "model"}]}'
_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKS = re.compile(rb"\r\nx-chunks: *(\d+)", re.IGNORECASE)
_EVERY = re.compile(rb"\r\nx-every: *(\d+)", re.IGNORECASE)


class Connection(asyncio.Protocol):
    """One connection; its requests are answered in order, each once all of it is there."""

    began = 0

    def __init__(self) -> None:
        self._received = b""
        self._arrived = 0
        self._sent = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if not self._received:
            self._arrived = time.monotonic_ns()
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if end and len(body) >= _number(_LENGTH, head, 0):
            self._received = b""
            self._answer(head)

    def _answer(self, head: bytes) -> None:
        if count := _number(_CHUNKS, head, 0):
            self._transport.write(_STREAM)
            self._sent = 0
            loop = asyncio.get_running_loop()
            self._stream(loop, loop.time(), count, _number(_EVERY, head, 10) / 1000)
        else:
            body = self._body(head)
            fields = b"Content-Type: application/json\r\nContent-Length: %d" % len(body)
            self._transport.write(b"HTTP/1.1 200 OK\r\n%s\r\n\r\n%s" % (fields, body))

    def _body(self, head: bytes) -> bytes:
        if head.startswith(b"GET /v1/models "):
            return _MODELS
        if head.startswith(b"GET /began "):
            return b'{"began_ns": %d}' % self.began
        return b'{"arrived_ns": %d}' % self._arrived

    def _stream(self, loop: asyncio.AbstractEventLoop, begun: float, count: int, every: float) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(_CHUNK)
        self._sent += 1
        if self._sent < count:
            loop.call_at(begun + self._sent * every, self._stream, loop, begun, count, every)
        else:
            self._transport.write(b"0\r\n\r\n")


def _number(pattern: re.Pattern[bytes], head: bytes, default: int) -> int:
    found = pattern.search(head)
    return int(found[1]) if found is not None else default


async def main() -> None:
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    if len(sys.argv) > 2:
        least, _, most = sys.argv[2].partition("-")
        time.sleep(random.uniform(float(least), float(most or least)))  # noqa: ASYNC251 - nothing runs yet
    await loop.create_server(Connection, os.environ.get("POD_IP", "127.0.0.1"), int(sys.argv[1]), backlog=1024)
    Connection.began = time.monotonic_ns()
    await stopped.wait()


if __name__ == "__main__":
    asyncio.run(main())
