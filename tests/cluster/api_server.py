"""An API server that is killed and kept away, and the wait for its return."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from vllm_chill.adapters.kubernetes.client import ApiClient, ApiError, Unreachable


def kill(control_plane: Path) -> None:
    """Kill the API server; it is started again."""
    os.kill(int((control_plane / "apiserver.pid").read_text()), signal.SIGKILL)


@asynccontextmanager
async def away(control_plane: Path) -> AsyncIterator[None]:
    """Kill the API server and keep it away; after this it starts again."""
    hold = control_plane / "hold-apiserver"
    hold.touch()
    try:
        kill(control_plane)
        yield
    finally:
        hold.unlink()


async def answers(api: ApiClient) -> None:
    """Wait until an API server that was killed is ready again."""
    async with asyncio.timeout(60):
        while True:
            try:
                await api.call("GET", "/api/v1/namespaces/kube-system")
                await api.call("GET", "/apis/apps/v1")
            except (Unreachable, ApiError):
                await asyncio.sleep(0.2)
            else:
                return
