"""The one answer of a kubelet that the control plane's node does not give: the logs of its pods."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

from aiohttp import web

from vllm_chill.adapters.kubernetes.client import ApiClient

_STATUS = "/api/v1/nodes/node-0/status"


@asynccontextmanager
async def giving_logs(api: ApiClient, control_plane: Path) -> AsyncIterator[list[dict[str, str]]]:
    """Have the API server find the node's logs; the queries that it asked with."""
    queries: list[dict[str, str]] = []

    async def logs(request: web.Request) -> web.StreamResponse:
        query = dict(request.query)
        queries.append(query)
        _, _, _, pod, container = request.path.split("/")
        file = control_plane / "log" / f"pod-{pod}-{container}"
        response = web.StreamResponse()
        await response.prepare(request)
        told = max(0, len(_lines(file)) - int(query.get("tailLines", 1 << 30)))
        while True:
            lines = _lines(file)
            for number in range(told, len(lines)):
                # Each line is as of a second of its own, as the file does not say.
                moment = datetime.fromtimestamp(number, UTC).strftime("%Y-%m-%dT%H:%M:%S.000000000Z")
                if moment[:19] >= query.get("sinceTime", "")[:19]:
                    stamp = f"{moment} " if query.get("timestamps") == "true" else ""
                    await response.write(stamp.encode() + lines[number])
            told = len(lines)
            if query.get("follow") != "true":
                return response
            await asyncio.sleep(0.05)

    app = web.Application()
    app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", logs)
    runner = web.AppRunner(app, shutdown_timeout=0, handler_cancellation=True)
    await runner.setup()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(control_plane / "pki" / "apiserver.crt", control_plane / "pki" / "apiserver.key")
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    try:
        await _announce(api, runner.addresses[0][1])
        yield queries
    finally:
        await _announce(api, 0)
        await runner.cleanup()


def _lines(file: Path) -> list[bytes]:
    """The lines of a log that are whole."""
    return [line for line in file.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


async def _announce(api: ApiClient, port: int) -> None:
    addresses = [{"type": "InternalIP", "address": "127.0.0.1"}]
    status = {"addresses": addresses, "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}
    await api.call("PATCH", _STATUS, body={"status": status}, patch="strategic-merge")
