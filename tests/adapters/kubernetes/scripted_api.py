"""An API server that is asked once and answers as it is told to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from vllm_chill.core.objects import Json

REVIEWS = "/apis/authorization.k8s.io/v1"


class Scripted:
    """An API server that answers as it is told to: objects by path, statuses by path, and reviews by their subject."""

    def __init__(self) -> None:
        self.objects: dict[str, Any] = {"/version": {"gitVersion": "v1.33.1"}}
        self.statuses: dict[str, int] = {}
        self.reviews: list[Json] = []
        self.denied: set[str] = set()
        self.accepted: dict[str, str] = {}
        self.url = ""

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Answer at `url`."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._serve)
        runner = web.AppRunner(app, shutdown_timeout=0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield
        finally:
            await runner.cleanup()

    async def _serve(self, request: web.Request) -> web.Response:
        path = request.path
        self.accepted[path] = request.headers.get("Accept", "")
        if path in self.statuses:
            return _status(self.statuses[path])
        if path.startswith(REVIEWS):
            review = await request.json()
            self.reviews.append(review)
            resource = review["spec"]["resourceAttributes"]["resource"]
            return web.json_response({**review, "status": {"allowed": resource not in self.denied}})
        found = self.objects.get(path)
        if isinstance(found, str):
            return web.Response(text=found)
        return _status(404) if found is None else web.json_response(found)


def _status(code: int) -> web.Response:
    return web.json_response({"kind": "Status", "message": f"it is {code}", "code": code}, status=code)


def of(plural: str, version: str = "apps/v1") -> str:
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    return f"{root}/namespaces/ai-apps/{plural}"
