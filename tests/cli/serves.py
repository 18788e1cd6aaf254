"""A server with one answer to everything, where a proxy is looked for."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable

from aiohttp import web

_ASKING = ("savings", "output", "deed")
Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@contextlib.asynccontextmanager
async def serves(answer: Answer, port: int = 0) -> AsyncIterator[str]:
    """Its URL."""
    runner = web.ServerRunner(web.Server(answer, handler_cancellation=True, access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        host, bound = runner.addresses[0]
        yield f"http://{host}:{bound}"
    finally:
        await asyncio.to_thread(asks_no_more)
        await runner.cleanup()
        for _ in range(3):
            await asyncio.sleep(0)  # what was closed is gone


def asks_no_more(*names: str) -> None:
    """Return when no thread asks any more, of a view or of these names; each has been told to end."""
    for thread in threading.enumerate():
        if thread.name in (*_ASKING, *names):
            thread.join(timeout=5)
