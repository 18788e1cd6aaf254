"""The one answer of a kubelet that the control plane's node does not give: the logs of its pods."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

from vllm_chill.adapters.kubernetes.client import ApiClient

_STATUS = "/api/v1/nodes/node-0/status"


@asynccontextmanager
async def giving_logs(api: ApiClient, control_plane: Path) -> AsyncIterator[list[dict[str, str]]]:
    """Have the API server find the node's logs; the queries that it asked with."""
    queries: list[dict[str, str]] = []

    async def logs(request: web.Request) -> web.Response:
        queries.append(dict(request.query))
        _, _, _, pod, container = request.path.split("/")
        lines = (control_plane / "log" / f"pod-{pod}-{container}").read_bytes().splitlines(keepends=True)
        return web.Response(body=b"".join(lines[-int(request.query["tailLines"]) :]))

    app = web.Application()
    app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", logs)
    runner = web.AppRunner(app, shutdown_timeout=0)
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


async def _announce(api: ApiClient, port: int) -> None:
    addresses = [{"type": "InternalIP", "address": "127.0.0.1"}]
    status = {"addresses": addresses, "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}
    await api.call("PATCH", _STATUS, body={"status": status}, patch="strategic-merge")
