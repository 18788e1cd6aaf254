"""`GET /proxy/logs`: what the engine of a target writes, as text, and as it comes for who follows it.

The rule: whoever reads slowly loses lines, and is told how many; nothing waits for them, and what is kept for them has
a bound.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from aiohttp import hdrs, web

from vllm_chill.core.engine_output import Line
from vllm_chill.errors import BackendError, LogsUnavailable, NoLogs, TooManyFollowers
from vllm_chill.ports import EngineOutput
from vllm_chill.proxy.served import Directory
from vllm_chill.web import asked
from vllm_chill.web.targets import chosen, name_of

LINES = 100
"""How many lines there are for who does not say."""
MOST_LINES = 2000
"""How many there are for who wants all."""
_MOST_FOLLOWERS = 32
_KEPT_LINES = 2000
_KEPT_CHARACTERS = 512 << 10
_FIRST_SECONDS = 1.0
_LOOK_SECONDS = 1.0
_HEADERS = {
    hdrs.CONTENT_TYPE: "text/plain; charset=utf-8",
    hdrs.CACHE_CONTROL: "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Accel-Buffering": "no",  # nginx would keep it until there is enough
    hdrs.SERVER: "vllm-chill",
}


class EngineLogs:
    """The answers. `draining` tells whether the proxy is shutting down, which ends who follows."""

    def __init__(self, directory: Directory, draining: Callable[[], bool]) -> None:
        self._directory = directory
        self._draining = draining
        self._followers = 0

    async def tell(self, request: web.BaseRequest) -> web.StreamResponse:
        """The last lines, and with `follow` all that come. Raises BadRequest, ModelNotFound, CatalogueUnknown, NoLogs,
        ReplicaNotFound, LogsUnavailable and TooManyFollowers.
        """
        lines = asked.number(request, "lines", LINES, 1, MOST_LINES)
        follows = asked.flag(request, "follow", default=False)
        replica = request.query.get("replica") or None
        served = chosen(self._directory, request.query.get("model") or None, "model")
        if served.output is None:
            raise NoLogs(f"nothing here tells what the engine of {name_of(self._directory, served)} writes.")
        source = served.output.source
        if follows and request.method == hdrs.METH_GET:
            return await self._follow(request, source, lines, replica)
        rendered = Rendered()
        try:
            for line in await source.read(lines, replica):
                rendered.add(line)
        except BackendError as error:
            raise LogsUnavailable(error.message) from error
        return web.Response(body=rendered.taken(), headers=_HEADERS)

    async def _follow(
        self, request: web.BaseRequest, source: EngineOutput, lines: int, replica: str | None
    ) -> web.StreamResponse:
        if self._followers >= _MOST_FOLLOWERS:
            raise TooManyFollowers(f"{_MOST_FOLLOWERS} others follow the output of engines already; end one of those.")
        self._followers += 1
        buffer = Buffer()
        pump = asyncio.create_task(source.follow(lines, buffer, replica))
        pump.add_done_callback(lambda _: buffer.ready.set())
        try:
            # What is wrong is found at once, mostly, and is then an answer of its own.
            await buffer.wait(_FIRST_SECONDS)
            if pump.done() and not buffer.rendered:
                _complain(pump)
            response = web.StreamResponse(headers=_HEADERS)
            await response.prepare(request)
            while not self._draining():
                if text := buffer.taken():
                    await response.write(text)
                elif pump.done():
                    break
                else:
                    await buffer.wait(_LOOK_SECONDS)
            await response.write(_end(pump))
            await response.write_eof()
            return response
        finally:
            self._followers -= 1
            pump.cancel()
            await asyncio.wait([pump])


def _complain(pump: asyncio.Task[None]) -> None:
    try:
        pump.result()
    except BackendError as error:
        raise LogsUnavailable(error.message) from error


def _end(pump: asyncio.Task[None]) -> bytes:
    """The last words, which say why there are no more."""
    if not pump.done():
        return _note("the proxy shuts down")
    try:
        pump.result()
    except BackendError as error:
        return _note(error.message)
    return b""


def _note(text: str) -> bytes:
    return f"vllm-chill: {text}\n".encode()


class Rendered:
    """Lines as text, with a line that says who wrote them wherever that is another one than before, as tail does."""

    def __init__(self) -> None:
        self._text: list[bytes] = []
        self._source = ""

    def __bool__(self) -> bool:
        return bool(self._text)

    def add(self, line: Line) -> None:
        """Put a line at the end."""
        if line.source != self._source:
            self._source = line.source
            self._text.append(f"==> {self._source} <==\n".encode())
        self._text.append(f"{line.text}\n".encode(errors="replace"))

    def note(self, text: str) -> None:
        """Put words of our own at the end."""
        self._text.append(_note(text))

    def taken(self) -> bytes:
        """What there is, which is then gone."""
        text, self._text = b"".join(self._text), []
        return text


class Buffer:
    """ports.OutputObserver of one who follows. Invariant: it keeps at most 2000 lines of 512 Ki characters in all.

    `ready` is set once there is something in it.
    """

    def __init__(self) -> None:
        self.ready = asyncio.Event()
        self.rendered = Rendered()
        self._lines = 0
        self._characters = 0
        self._missed = 0
        self._trouble = ""

    def wrote(self, line: Line) -> None:
        self._trouble = ""
        if self._lines >= _KEPT_LINES or self._characters + len(line.text) > _KEPT_CHARACTERS:
            self._missed += 1
            return
        self._lines += 1
        self._characters += len(line.text)
        self.rendered.add(line)
        self.ready.set()

    def lost(self, cause: str) -> None:
        if cause != self._trouble:
            self._trouble = cause
            self.rendered.note(cause)
            self.ready.set()

    async def wait(self, seconds: float) -> None:
        """Return when there is something in it, or after a while."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.ready.wait()

    def taken(self) -> bytes:
        """What there is, with how much was lost after it."""
        if self._missed:
            are = "line was" if self._missed == 1 else "lines were"
            self.rendered.note(f"{self._missed} {are} lost here, as they came faster than they were read")
        self._lines = self._characters = self._missed = 0
        self.ready.clear()
        return self.rendered.taken()
