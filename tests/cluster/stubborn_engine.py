"""An engine that takes no notice of SIGTERM: it serves, and says that it is healthy, until it is killed.

Every answer tells its pod's name and how many requests that pod has been asked, but for probes, scrapes and /asked.
"""

from __future__ import annotations

import asyncio
import os
import signal

from aiohttp import web

_asked = 0


async def answer(request: web.BaseRequest) -> web.Response:
    global _asked
    if request.path not in {"/health", "/v1/models", "/metrics", "/asked"}:
        _asked += 1
        await asyncio.sleep(0.1)  # long enough for requests of one moment to need a connection each
    return web.json_response({"pod": os.environ["POD_NAME"], "asked": _asked})


async def main() -> None:
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, lambda: None)
    server = await loop.create_server(web.Server(answer, keepalive_timeout=3600), os.environ["POD_IP"], 8000)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
