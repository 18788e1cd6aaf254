"""An API server that falls ill on demand: it passes all to the real one, or does what its sickness says.

It speaks TLS with a certificate of an authority of its own, whose certificate is what a pod finds beside its token.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import trustme
from aiohttp import web

from tests.cluster.forwarder import address_of, authority_of

Sickness = Callable[[web.Request], Awaitable[web.StreamResponse | None]]
"""What is answered in place of the real server; None leaves it to that one."""

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "host", "content-length", "te", "trailer", "upgrade"}
GONE = (
    b'{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired","message":"too old resource version"}}\n'
)


def status(code: int, message: str, reason: str = "") -> dict[str, Any]:
    """An error as an API server words it."""
    return {"kind": "Status", "apiVersion": "v1", "code": code, "message": message, "reason": reason}


class SickServer:
    """`sickness` None is health. Invariant: `_watches` are the watches that are open through it."""

    def __init__(self, kubeconfig: Path) -> None:
        self.sickness: Sickness | None = None
        self.port = 0
        self.authority = trustme.CA()
        self.asked: list[tuple[str, str]] = []
        """The method and path of each request so far; of a watch, WATCH."""
        self.scaled = 0
        """How many writes of a scale the real server has carried out."""
        self._kubeconfig = kubeconfig
        self._watches: set[asyncio.Task[Any]] = set()
        self._last_words = b""
        self._runner: web.AppRunner
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        upstream = ssl.create_default_context(cadata=authority_of(self._kubeconfig).decode())
        upstream.verify_flags &= ~ssl.VERIFY_X509_STRICT
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=upstream, limit=0),
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None),
        )
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0)
        await self._runner.setup()
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert("127.0.0.1").configure_cert(tls)
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=tls).start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end_watches()
        await self._runner.cleanup()
        await self._session.close()

    def end_watches(self, last_words: bytes = b"") -> None:
        """End all watches that are open, after these words."""
        self._last_words = last_words
        for watch in self._watches:
            watch.cancel()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(("WATCH" if is_watch(request) else request.method, request.path))
        if self.sickness is not None:
            answer = await self.sickness(request)
            if answer is not None:
                return answer
        return await self.passed_on(request)

    async def passed_on(self, request: web.Request) -> web.StreamResponse:
        """What the real server answers."""
        host, port = address_of(self._kubeconfig)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP}
        url = f"https://{host}:{port}{request.path_qs}"
        try:
            asked = self._session.request(request.method, url, headers=headers, data=await request.read() or None)
            async with asked as answer:
                self.scaled += request.path.endswith("/scale") and request.method != "GET" and answer.status == 200
                kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP_BY_HOP}
                response = web.StreamResponse(status=answer.status, headers=kept)
                await response.prepare(request)
                relaying = self._relay_watch if is_watch(request) else self._relay
                await relaying(answer, response)
                return response
        except aiohttp.ClientError:
            _abort(request)
            return web.Response(status=502)

    async def _relay(self, answer: aiohttp.ClientResponse, response: web.StreamResponse) -> None:
        async for chunk in answer.content.iter_any():
            await response.write(chunk)

    async def _relay_watch(self, answer: aiohttp.ClientResponse, response: web.StreamResponse) -> None:
        relaying = asyncio.create_task(self._relay(answer, response))
        self._watches.add(relaying)
        try:
            await asyncio.wait([relaying])
        finally:
            self._watches.discard(relaying)
            relaying.cancel()
        if relaying.cancelled():
            with contextlib.suppress(ConnectionError):
                await response.write(self._last_words)
        elif error := relaying.exception():
            raise error


def is_watch(request: web.Request) -> bool:
    return "watch" in request.query


def _abort(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


def answering(code: int, message: str, *, only: str = "", **headers: str) -> Sickness:
    """Each request gets this error; with `only`, each whose method and path begin and end so, as "PATCH /scale"."""
    method, _, end = only.partition(" ")
    sent = {name.replace("_", "-"): value for name, value in headers.items()}

    async def answer(request: web.Request) -> web.StreamResponse | None:
        if only and not (request.method == method and request.path.endswith(end)):
            return None
        return web.json_response(status(code, message), status=code, headers=sent)

    return answer


def slow(seconds: float) -> Sickness:
    """Each request takes so much longer."""

    async def answer(request: web.Request) -> web.StreamResponse | None:
        await asyncio.sleep(seconds)
        return None

    return answer


def refusing_tokens_but(token: str) -> Sickness:
    """What comes with another token is 401."""

    async def answer(request: web.Request) -> web.StreamResponse | None:
        if request.headers.get("Authorization") == f"Bearer {token}":
            return None
        return web.json_response(status(401, "Unauthorized", "Unauthorized"), status=401)

    return answer


def forgetting() -> Sickness:
    """Each watch begins after what is still kept."""

    async def answer(request: web.Request) -> web.StreamResponse | None:
        if not is_watch(request):
            return None
        return web.Response(body=GONE, content_type="application/json")

    return answer


_NONSENSE: tuple[tuple[bytes, dict[str, str]], ...] = (
    (b"<html><h1>It works!</h1></html>", {"Content-Type": "text/html"}),
    (b"[]", {}),
    (b"null\n", {}),
    (b'{"metadata":{"resourceVersion":"1"},"items":[{"metadata":{}},7,null]}\n', {}),
    (b'{"type":"MODIFIED","object":{"metadata":{"resourceVersion":"5","name":"vllm"},"spec":[]}}\n', {}),
    (b'{"type":"ADDED","object":7}\n', {}),
    (b"\xff\x00\x9c nothing that is JSON\n", {}),
    (b"[" * 100_000, {}),
    (b"this is not compressed", {"Content-Encoding": "gzip"}),
    (b'{"metadata":{"resourceVersion":"1"},"spec":7,"items":{}}', {}),
    (b"{}", {}),
)


def nonsense() -> Sickness:
    """Each request gets an answer of 200 that makes no sense, or a part of the real one, in turn."""
    turn = itertools.count()

    async def answer(request: web.Request) -> web.StreamResponse | None:
        which = next(turn) % (len(_NONSENSE) + 1)
        if which == len(_NONSENSE):
            return await _a_part(request)
        body, headers = _NONSENSE[which]
        return web.Response(body=body, headers={"Content-Type": "application/json", **headers})

    return answer


async def _a_part(request: web.Request) -> web.StreamResponse:
    whole = json.dumps({"metadata": {"resourceVersion": "1"}, "items": []}).encode()
    response = web.StreamResponse(headers={"Content-Length": str(len(whole)), "Content-Type": "application/json"})
    await response.prepare(request)
    await response.write(whole[:20])
    _abort(request)
    return response
