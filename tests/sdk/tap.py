"""A look at what goes over the wire between a client and a proxy, whatever the client makes of it."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass
class Tap:
    """The bytes that passed, of all connections, in the order in which they came."""

    url: str = ""
    sent: bytearray = field(default_factory=bytearray)
    received: bytearray = field(default_factory=bytearray)

    @property
    def comments(self) -> list[str]:
        """The comments in the event streams that were received."""
        return [line for line in self.received.decode().split("\n") if line.startswith(": ")]

    @property
    def statuses(self) -> list[str]:
        """The status of each response."""
        return re.findall(r"HTTP/1\.1 (\d+) ", self.received.decode())


@contextlib.asynccontextmanager
async def tapped(url: str) -> AsyncIterator[Tap]:
    """A way to the server at `url`, by a port of its own."""
    address = urlsplit(url)
    tap = Tap()
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        up_reader, up_writer = await asyncio.open_connection(address.hostname, address.port)
        try:
            await asyncio.gather(_pass(reader, up_writer, tap.sent), _pass(up_reader, writer, tap.received))
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            up_writer.transport.abort()
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    tap.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield tap
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray) -> None:
    while data := await reader.read(65536):
        kept += data
        writer.write(data)
        await writer.drain()
    writer.write_eof()
