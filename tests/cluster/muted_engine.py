"""The control plane's stub of vLLM, whose metrics fail for as long as a file is there.

muted_engine.py STUB FILE [the stub's own arguments]
"""

from __future__ import annotations

import os
import runpy
import sys
from typing import Any

from aiohttp import web

_STUB, _MUTED, *_ARGUMENTS = sys.argv[1:]
_get = web.get


def _or_muted(path: str, handler: Any, **options: Any) -> web.RouteDef:
    async def answer(request: web.Request) -> web.StreamResponse:
        if os.path.exists(_MUTED):  # noqa: ASYNC240, PTH110 - a look that takes no time
            return web.Response(status=503)
        return await handler(request)  # type: ignore[no-any-return]

    return _get(path, answer if path == "/metrics" else handler, **options)


if __name__ == "__main__":
    web.get = _or_muted
    sys.argv = [_STUB, *_ARGUMENTS]
    runpy.run_path(_STUB, run_name="__main__")
