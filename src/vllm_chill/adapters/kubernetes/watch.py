"""A collection of objects followed by list and watch, as one async iterator of what is.

The rule: each step is the whole truth as far as it is known, never an edge: a snapshot, or an outage. After an
outage comes a list, so what was missed meanwhile is in the next snapshot. Nothing is retried without a pause twice
in a row, and no silence is taken for peace: the server is asked to end each watch after `watch_seconds`, so one
that does not is hung.

kubernetes_asyncio's own watch retries an expired version with the same version, and reconnects without a pause.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from types import MappingProxyType
from typing import Generic, TypeVar

import aiohttp

from vllm_chill.adapters.kubernetes.client import (
    JSON,
    UNREADABLE,
    ApiClient,
    ApiError,
    Json,
    Query,
    Unreachable,
    items_of,
    metadata_of,
)

T = TypeVar("T")

_PAGE = 100
_LINE_BYTES = 32 << 20
_QUICK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Snapshot(Generic[T]):
    """All objects by their key, as of `version`: every write up to it is in here. A view: good until the next step."""

    objects: Mapping[str, T]
    version: int


@dataclass(frozen=True, slots=True)
class Outage:
    """The collection cannot be seen at present; `cause` is a sentence without a full stop.

    `forbidden`: for lack of a right, so that trying again is of use only once somebody grants it. `absent`: the server
    does not know such a collection.
    """

    cause: str
    forbidden: bool = False
    absent: bool = False


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a watch lasts, how much longer a silence is borne, the pauses between tries, and how often what may not
    be watched is looked at, in seconds.

    After an outage a server is seen within 10 s: the longest pause, and a connection that takes too long before it.
    """

    watch_seconds: int = 30
    grace_seconds: float = 5.0
    pause_first_seconds: float = 0.2
    pause_most_seconds: float = 4.0
    look_seconds: float = 5.0


class _Expired(Exception):
    """The version to watch from is no longer kept, or a list was asked for."""


class _Ended(Exception):
    """The stream ended before its time; the version is still good."""


class ListWatch(Generic[T]):
    """One collection. `parse` keeps of an object what is needed, or None to leave the object out; `key` is what it is
    called by, in all of the collection. `metadata_only`: the server is asked for objects' metadata, and leaves out the
    rest if it can.

    Invariant: `_objects` is the collection as of `_version`. One iteration at a time.
    """

    def __init__(
        self,
        api: ApiClient,
        path: str,
        query: Query,
        parse: Callable[[Json], T | None],
        pace: Pace | None = None,
        *,
        metadata_only: bool = False,
        key: Callable[[Json], str] = lambda item: str(item["metadata"]["name"]),
    ) -> None:
        self._api = api
        self._path = path
        self._query = dict(query)
        self._parse = parse
        self._metadata_only = metadata_only
        self._key = key
        self._pace = pace or Pace()
        self._objects: dict[str, T] = {}
        self._version = "0"
        self._failures = 0
        self._relist = asyncio.Event()
        self._response: aiohttp.ClientResponse | None = None

    def relist(self) -> None:
        """List anew, now: for whoever knows of a write that the watch has not told of."""
        self._relist.set()
        if self._response is not None:
            self._response.close()

    async def steps(self) -> AsyncGenerator[Snapshot[T] | Outage, None]:
        """What is, now and after each change, for ever. Close it (`aclosing`) to be done with it."""
        while True:
            try:
                await self._list()
                async with aclosing(self._watches()) as snapshots:
                    async for snapshot in snapshots:
                        yield snapshot
            except _Expired:
                self._failures += 1
                # The first time there is nothing to wait for; a server that never keeps a version is not hammered.
                await self._pause(self._failures - 1)
            except (ApiError, Unreachable) as error:
                self._failures += 1
                status = error.status if isinstance(error, ApiError) else 0
                yield Outage(cause_of(error), forbidden=status == 403, absent=status == 404)
                await self._pause(self._failures, error.retry_after_seconds if isinstance(error, ApiError) else 0.0)

    async def newest(self) -> int:
        """The version of the last write to any of the objects that there are, as the server says now; 0 without any.

        Raises ApiError or Unreachable.
        """
        listing = await self._api.call("GET", self._path, query=self._query, accept=_metadata_only("List"))
        return max((int(metadata_of(item)["resourceVersion"]) for item in items_of(listing)), default=0)

    async def _list(self) -> None:
        self._relist.clear()
        objects: dict[str, T] = {}
        # In pages, so that a namespace of thousands of pods is never in memory as a whole.
        page: dict[str, str | int] = {**self._query, "limit": _PAGE}
        version = None
        while True:
            try:
                listing = await self._api.call("GET", self._path, query=page, accept=self._accept("List"))
            except ApiError as error:
                if error.status == 410:
                    raise _Expired from error
                raise
            metadata = metadata_of(listing)
            for item in items_of(listing):
                self._keep(objects, item)
            version = version or metadata["resourceVersion"]
            if not metadata.get("continue"):
                break
            page["continue"] = metadata["continue"]
        self._objects, self._version = objects, version

    async def _watches(self) -> AsyncGenerator[Snapshot[T], None]:
        yield self._snapshot()
        loop = asyncio.get_running_loop()
        while True:
            begun, progress = loop.time(), False
            try:
                async with aclosing(self._events()) as events:
                    async for event in events:
                        progress = True
                        self._failures = 0
                        if self._take(event):
                            yield self._snapshot()
            except _Ended:
                pass
            if self._relist.is_set():
                raise _Expired
            if progress or loop.time() >= begun + _QUICK_SECONDS:
                self._failures = 0
            else:
                self._failures += 1
                await self._pause(self._failures)

    async def _events(self) -> AsyncGenerator[Json, None]:
        """The events of one watch, until the server ends it. Raises _Expired, _Ended, ApiError, Unreachable."""
        if self._relist.is_set():
            raise _Expired
        seconds = self._pace.watch_seconds
        query = {
            **self._query,
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": seconds,
        }
        try:
            async with self._api.stream(self._path, query, self._accept()) as self._response:
                if self._relist.is_set():
                    raise _Expired
                deadline = asyncio.get_running_loop().time() + seconds + self._pace.grace_seconds
                async with aclosing(_lines(self._response.content, deadline)) as lines:
                    async for line in lines:
                        yield _event(line)
        except ApiError as error:
            if error.status == 410:
                raise _Expired from error
            raise
        except TimeoutError as error:
            raise Unreachable(
                f"the API server has been silent for {self._pace.grace_seconds:g} s beyond the end of a watch"
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            raise _Ended from error
        finally:
            self._response = None

    def _accept(self, of: str = "") -> str:
        return _metadata_only(of) if self._metadata_only else JSON

    def _take(self, event: Json) -> bool:
        """Take an event over; whether the collection may have changed."""
        item = event["object"]
        self._version = item["metadata"]["resourceVersion"]
        match event["type"]:
            case "BOOKMARK":
                return False
            case "DELETED":
                self._objects.pop(self._key(item), None)
            case _:
                self._keep(self._objects, item)
        return True

    def _keep(self, objects: dict[str, T], item: Json) -> None:
        try:
            key, parsed = self._key(item), self._parse(item)
        except UNREADABLE as error:
            raise Unreachable(
                f"the API server sent an object that cannot be read ({type(error).__name__}: {error})"
            ) from error
        if parsed is None:
            objects.pop(key, None)
        else:
            objects[key] = parsed

    def _snapshot(self) -> Snapshot[T]:
        return Snapshot(MappingProxyType(self._objects), int(self._version))

    async def _pause(self, failures: int, least_seconds: float = 0.0) -> None:
        """Wait before the next try; `relist` cuts it short."""
        seconds = pause_seconds(self._pace, failures, random.random())  # noqa: S311 - a pause is no secret
        seconds = max(seconds, least_seconds)
        if not seconds:
            return
        try:
            async with asyncio.timeout(seconds):
                await self._relist.wait()
        except TimeoutError:
            pass


def pause_seconds(pace: Pace, failures: int, chance: float) -> float:
    """The pause after so many failures in a row: it doubles up to a bound; `chance` (0 to 1) takes up to half off."""
    if failures < 1:
        return 0.0
    most: float = min(pace.pause_first_seconds * 2 ** min(failures - 1, 30), pace.pause_most_seconds)
    return most * (1 - chance / 2)


async def _lines(content: aiohttp.StreamReader, deadline: float) -> AsyncGenerator[bytes, None]:
    """The lines of a stream, of any length (an object may be larger than what aiohttp takes for a line).

    Raises TimeoutError at `deadline`, on the loop's clock.
    """
    parts: list[bytes] = []
    size = 0
    while True:
        async with asyncio.timeout_at(deadline):
            chunk = await content.readany()
        if not chunk:
            return
        *ended, rest = chunk.split(b"\n")
        for line in ended:
            parts.append(line)
            if whole := b"".join(parts).strip():
                yield whole
            parts, size = [], 0
        parts.append(rest)
        size += len(rest)
        if size > _LINE_BYTES:
            raise Unreachable(f"the API server sent a watch event of more than {_LINE_BYTES >> 20} MiB")


def _event(line: bytes) -> Json:
    """One watch event. Raises _Expired or ApiError if it is an error, Unreachable if it is none at all."""
    try:
        event: Json = json.loads(line)
        item, kind = event["object"], event["type"]
        if kind == "ERROR":
            code, message = int(item.get("code") or 500), str(item.get("message") or "no message")
    except UNREADABLE as error:
        raise Unreachable(f"the API server sent a watch event that cannot be read: {line[:80]!r}") from error
    if kind != "ERROR":
        metadata_of(item)
        return event
    if code == 410:
        raise _Expired
    raise ApiError(code, message)


def _metadata_only(of: str = "") -> str:
    return f"{JSON};as=PartialObjectMetadata{of};g=meta.k8s.io;v=v1,{JSON}"


def cause_of(error: ApiError | Unreachable) -> str:
    """Why something cannot be seen, as a sentence without a full stop."""
    if isinstance(error, Unreachable):
        return str(error)
    if error.status == 401:
        return f"the API server does not accept the credentials: {error.message}; log in again, or renew the token"
    if error.status == 403:
        return f"{error.message.rstrip('.')}; grant it that right (deploy/rbac.yaml has the Role)"
    return f"the API server answered {error.status}: {error.message.rstrip('.')}"
