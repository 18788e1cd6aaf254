"""An engine whose /health says 503 while it loads, as llama.cpp's does, and which then streams its answers.

usage: python engine_that_loads.py PORT SECONDS
"""

from __future__ import annotations

import asyncio
import sys
import time

from aiohttp import web

READY_AT = time.monotonic() + float(sys.argv[2])
PIECES = 5


async def serve(request: web.BaseRequest) -> web.StreamResponse:
    if request.path == "/health":
        return web.Response(status=200 if time.monotonic() >= READY_AT else 503)
    if request.path == "/v1/models":
        return web.json_response({"object": "list", "data": [{"id": "m", "object": "model"}]})
    await request.read()
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for number in range(PIECES):
        await asyncio.sleep(0.05)
        await response.write(b'data: {"choices": [{"delta": {"content": "%d"}}]}\n\n' % number)
    await response.write(b"data: [DONE]\n\n")
    return response


async def main() -> None:
    runner = web.ServerRunner(web.Server(serve, access_log=None))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", int(sys.argv[1])).start()
    await asyncio.Event().wait()


asyncio.run(main())
