"""An API server's list, watch, scale, patch and logs over real sockets, with hands to make it misbehave.

Its rules: versions grow by one with each write, a watch begins after the version it names, what is forgotten is 410.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

Json = dict[str, Any]
Watch = Callable[[web.Request, web.StreamResponse], Awaitable[None]]


def status(code: int, message: str, reason: str = "") -> Json:
    return {"kind": "Status", "apiVersion": "v1", "code": code, "message": message, "reason": reason}


def line(kind: str, item: Json) -> bytes:
    return json.dumps({"type": kind, "object": item}).encode() + b"\n"


def is_at(path: str, item: Json) -> bool:
    """Whether an object is in the collection at a path."""
    kind = item.get("kind")
    return kind is None or f"{kind.lower()}s" == path.split("/")[-1]


class StubApi:
    """One collection at every path, of which an object that says its kind is only in those of its kind.

    `requests` are the requests so far, and `count` counts them by what they are. `logs` are the answers for the logs
    of pods by name; a collection in `forbidden` may not be read, nor may logs if "log" is, nor its objects be patched
    if "patch " and its name are.
    """

    def __init__(self) -> None:
        self.objects: dict[str, Json] = {}
        self.version = 10
        self.oldest = 0
        self.history: list[tuple[int, Json, bytes]] = []
        self.logs: dict[str, bytes] = {}
        self.forbidden: set[str] = set()
        self.requests: list[web.Request] = []
        self.count: Counter[str] = Counter()
        self.refusals: list[tuple[int, Json | bytes]] = []
        self.scripts: list[Watch] = []
        self.last_script: Watch | None = None
        self.delay = 0.0
        self.retry_after = ""
        self.left = asyncio.Event()
        self._asked = asyncio.Event()
        self._written = asyncio.Condition()
        self._cut = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def start(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        self._cut.set()
        assert self._runner is not None
        await self._runner.cleanup()

    async def put(self, item: Json) -> Json:
        """Write an object, new or not."""
        name = item["metadata"]["name"]
        item = {**item, "metadata": {**item["metadata"], "resourceVersion": str(self.version + 1)}}
        kind = "MODIFIED" if name in self.objects else "ADDED"
        self.objects[name] = item
        await self._log(kind, item)
        return item

    async def delete(self, name: str) -> None:
        item = self.objects.pop(name)
        await self._log("DELETED", {**item, "metadata": {**item["metadata"], "resourceVersion": str(self.version + 1)}})

    async def bookmark(self, version: int) -> None:
        """Tell all watches that nothing up to this version concerns them."""
        self.version = version - 1
        await self._log("BOOKMARK", {"metadata": {"resourceVersion": str(version)}})

    async def until_asked(self, what: str, times: int = 1) -> None:
        """Wait until so many requests of a kind ("list", "watch", "write") have come."""
        async with asyncio.timeout(5):
            while self.count[what] < times:
                self._asked.clear()
                await self._asked.wait()

    def forget(self) -> None:
        """Keep nothing of what was: versions before this one are gone."""
        self.oldest = self.version
        self.history.clear()

    def cut(self) -> None:
        """End every open watch in the middle of whatever it says."""
        self._cut.set()
        self._cut = asyncio.Event()

    async def _log(self, kind: str, item: Json) -> None:
        async with self._written:
            self.version += 1
            self.history.append((self.version, item, line(kind, item)))
            self._written.notify_all()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        await request.read()
        self.requests.append(request)
        collection = request.path.split("/")[-1]
        what = "watch" if "watch" in request.query else {"GET": "list"}.get(request.method, "write")
        what = "log" if collection == "log" else what
        self.count[what] += 1
        self._asked.set()
        if self.delay:
            await asyncio.sleep(self.delay)
        if self.refusals:
            code, body = self.refusals.pop(0)
            headers = {"Retry-After": self.retry_after} if self.retry_after else {}
            if isinstance(body, bytes):
                return web.Response(status=code, body=body, headers=headers)
            return web.json_response(body, status=code, headers=headers)
        if {collection, f"{request.method.lower()} {request.path.split('/')[-2]}"} & self.forbidden:
            return web.json_response(status(403, f"User cannot {what} {collection}", "Forbidden"), status=403)
        match what:
            case "watch":
                return await self._watch(request)
            case "list" if collection == "scale":
                return self._scale_of(request.path.split("/")[-2])
            case "list":
                return self._list(request)
            case "log":
                return await self._log_of(request)
            case _:
                return await (self._scale if collection == "scale" else self._patch)(request)

    async def _log_of(self, request: web.Request) -> web.StreamResponse:
        return web.Response(body=self.logs[request.path.split("/")[-2]])

    def _list(self, request: web.Request) -> web.Response:
        begin, limit = int(request.query.get("continue", 0)), int(request.query.get("limit", 500))
        names = sorted(name for name, item in self.objects.items() if is_at(request.path, item))
        metadata: Json = {"resourceVersion": str(self.version)}
        if begin + limit < len(names):
            metadata["continue"] = str(begin + limit)
        items = [self.objects[name] for name in names[begin : begin + limit]]
        return web.json_response({"kind": "List", "metadata": metadata, "items": items})

    async def _scale(self, request: web.Request) -> web.Response:
        name = request.path.split("/")[-2]
        patch = await request.json()
        if name not in self.objects:
            return web.json_response(status(404, f'deployments.apps "{name}" not found', "NotFound"), status=404)
        replicas, over = patch["spec"]["replicas"], patch.get("metadata", {}).get("resourceVersion")
        item = self.objects[name]
        if over not in (None, item["metadata"]["resourceVersion"]):
            return web.json_response(status(409, "the object has been modified", "Conflict"), status=409)
        if item["spec"]["replicas"] != replicas:
            item = await self.put({**item, "spec": {**item["spec"], "replicas": replicas}})
        return web.json_response({"kind": "Scale", "metadata": item["metadata"], "spec": {"replicas": replicas}})

    def _scale_of(self, name: str) -> web.Response:
        if name not in self.objects:
            return web.json_response(status(404, f'engines "{name}" not found', "NotFound"), status=404)
        item = self.objects[name]
        replicas, selector = item["spec"]["replicas"], item.get("status", {}).get("selector")
        # As a server has it: what is 0 or empty is left out.
        spec, of_pods = {"replicas": replicas} if replicas else {}, {"selector": selector} if selector else {}
        return web.json_response({"kind": "Scale", "metadata": item["metadata"], "spec": spec, "status": of_pods})

    async def _patch(self, request: web.Request) -> web.Response:
        """A merge patch of an object's metadata."""
        item, patch = self.objects[request.path.split("/")[-1]], (await request.json())["metadata"]
        merged = {**item["metadata"].get("annotations", {}), **patch["annotations"]}
        annotations = {name: value for name, value in merged.items() if value is not None}
        item = await self.put({**item, "metadata": {**item["metadata"], "annotations": annotations}})
        return web.json_response(item)

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        script = self.scripts.pop(0) if self.scripts else self.last_script or self._follow
        try:
            await script(request, response)
        except (asyncio.CancelledError, ConnectionError):
            self.left.set()
            raise
        return response

    async def _follow(self, request: web.Request, response: web.StreamResponse) -> None:
        version, cut = int(request.query["resourceVersion"]), self._cut
        if version < self.oldest:
            await response.write(line("ERROR", status(410, f"too old resource version: {version}", "Expired")))
            return
        cutting = asyncio.create_task(cut.wait())
        try:
            while not cut.is_set():
                for at, item, said in self.history:
                    if at > version:
                        version = at
                        if is_at(request.path, item):
                            await response.write(said)
                writing = asyncio.create_task(self._after(version))
                try:
                    await asyncio.wait({writing, cutting}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    writing.cancel()
        finally:
            cutting.cancel()
        assert request.transport is not None
        request.transport.abort()

    async def _after(self, version: int) -> None:
        async with self._written:
            await self._written.wait_for(lambda: self.version > version)
