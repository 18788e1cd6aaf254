"""What the pods of a target write, by the API server's `pods/log`: an optional right, of deploy/rbac.yaml.

The rule: nothing is read but for somebody who waits for it, and each line is told once. A stream that breaks off is
taken up where it was, which the time in front of each line says; a pod that comes is followed, and so is a container
that was started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol
from urllib.parse import quote

import aiohttp

from vllm_chill.adapters.kubernetes.client import ApiClient, ApiError, Query, Unreachable, not_logged_in
from vllm_chill.adapters.mask import Mask
from vllm_chill.adapters.output_tail import OutputTail
from vllm_chill.core.engine_output import Line
from vllm_chill.core.pods import ContainerRun
from vllm_chill.errors import BackendError, BackendRefused, BackendUnavailable, ReplicaNotFound
from vllm_chill.ports import OutputObserver

RUN_BEFORE = "the run before"
CRASHED = "before it crashed"
_READ_SECONDS = 5.0
_READ_BYTES = 8 << 20
_AT_A_TIME = 4
_MOST_LINES = 5000
_AGAIN_SECONDS = 1.0
_VIEW_SECONDS = 30.0
_STAMPED = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?(?:Z|[+-]\d\d:\d\d) ?(.*)", re.DOTALL)

Moment = tuple[str, str]
"""A time as it was written: to the second, and the digits of its fraction."""


class Seen(Protocol):
    """What is seen of a target: adapters.kubernetes.view.View."""

    @property
    def runs(self) -> tuple[ContainerRun, ...]:
        """What of each pod is to be read."""

    @property
    def newest_crash(self) -> tuple[str, str] | None:
        """The pod that crashed last, and what it wrote."""

    async def moved(self) -> None:
        """Wait for a change."""


class PodOutput:
    """ports.EngineOutput of a target in a cluster. `view` gives what is seen of it, None while nobody looks."""

    def __init__(
        self,
        api: ApiClient,
        namespace: str,
        view: Callable[[], Seen | None],
        mask: Mask | None = None,
        *,
        again_seconds: float = _AGAIN_SECONDS,
    ) -> None:
        """`again_seconds` is for how long a stream that has broken off is left alone."""
        self._api = api
        self._pods = f"/api/v1/namespaces/{quote(namespace)}/pods"
        self._view = view
        self._mask = mask
        self._again_seconds = again_seconds

    def recent(self, lines: int) -> Sequence[Line] | None:
        return None

    async def read(self, lines: int, replica: str | None = None) -> Sequence[Line]:
        runs = self._wanted(replica)
        if not runs:
            return self._crashed(lines, replica)
        turns = asyncio.Semaphore(_AT_A_TIME)

        async def read(run: ContainerRun) -> list[Line]:
            async with turns:
                return await self._read(run, lines)

        return [line for found in await asyncio.gather(*map(read, runs)) for line in found]

    async def follow(self, lines: int, observer: OutputObserver, replica: str | None = None) -> None:
        if not (runs := self._wanted(replica)):
            for line in self._crashed(lines, replica):
                observer.wrote(line)
        followed: dict[tuple[str, str, int], asyncio.Task[None]] = {}
        try:
            async with asyncio.TaskGroup() as tasks:
                told: dict[tuple[str, str], Moment] = {}
                while True:
                    for run in runs:
                        key = (run.pod, run.container, run.number)
                        if key not in followed:
                            followed[key] = tasks.create_task(self._follow(run, lines, observer, told))
                    lines = _MOST_LINES  # of who comes later, all
                    await self._moved()
                    runs = self._wanted(replica, known=True)
        except* BackendError as errors:
            raise errors.exceptions[0] from None

    def _runs(self) -> tuple[ContainerRun, ...]:
        view = self._view()
        return () if view is None else view.runs

    def _wanted(self, replica: str | None, *, known: bool = False) -> tuple[ContainerRun, ...]:
        """The runs that are to be read. Raises ReplicaNotFound for a replica that was not `known` before."""
        runs = self._runs()
        if replica is None:
            return runs
        found = tuple(run for run in runs if run.pod == replica)
        if not found and not known and not self._crashed(1, replica):
            names = ", ".join(run.pod for run in runs) or "none"
            raise ReplicaNotFound(f'there is no output of a replica "{replica}"; there is of: {names}')
        return found

    async def _moved(self) -> None:
        view = self._view()
        with contextlib.suppress(TimeoutError):  # of a view that has ended nothing moves any more
            async with asyncio.timeout(self._again_seconds if view is None else _VIEW_SECONDS):
                await (asyncio.get_running_loop().create_future() if view is None else view.moved())

    def _crashed(self, lines: int, replica: str | None) -> list[Line]:
        """What the last crash has left, where its pod is gone."""
        view = self._view()
        crash = None if view is None else view.newest_crash
        if crash is None or replica not in (None, crash[0]):
            return []
        return [Line(crash[0], text, CRASHED) for text in crash[1].splitlines()[-lines:]]

    async def _read(self, run: ContainerRun, lines: int) -> list[Line]:
        """The last lines of a run, and as many of the one before it as there is room for."""
        found = await self._read_one(run, lines, run.part)
        if run.running and run.number and len(found) < lines:
            found[:0] = await self._read_one(run, lines - len(found), RUN_BEFORE, previous=True)
        return found

    async def _read_one(self, run: ContainerRun, lines: int, part: str, *, previous: bool = False) -> list[Line]:
        found: deque[Line] = deque(maxlen=lines)
        tail = OutputTail(lambda text: found.append(Line(run.pod, text, part)), self._mask)
        query: Query = {"container": run.container, "tailLines": lines, "limitBytes": _READ_BYTES}
        if previous:
            query = {**query, "previous": "true"}
        try:
            async with asyncio.timeout(_READ_SECONDS):
                await self._feed(tail, run, query)
        except TimeoutError as error:
            raise _unavailable(f"the node did not send it within {_READ_SECONDS:g} s") from error
        tail.feed(b"")
        return list(found)

    async def _follow(
        self, run: ContainerRun, lines: int, observer: OutputObserver, told: dict[tuple[str, str], Moment]
    ) -> None:
        """Follow a run to its end. `told` is up to which moment each container's lines have been."""
        container = (run.pod, run.container)
        wants_before = run.running and run.number > 0 and container not in told
        is_new = True

        def tell(text: str) -> None:
            nonlocal is_new
            moment, text = _unstamped(text)
            if moment is not None:  # else it is more of the line before
                is_new = moment > told.get(container, ("", ""))
                told[container] = max(moment, told.get(container, moment))
            if is_new:
                observer.wrote(Line(run.pod, text, run.part))

        while True:
            try:
                if wants_before:
                    for line in await self._read_one(run, lines, RUN_BEFORE, previous=True):
                        observer.wrote(line)
                    wants_before = False
                await self._stream(run, lines, told.get(container), tell)
            except BackendUnavailable as error:
                observer.lost(error.message)
            await asyncio.sleep(self._again_seconds)
            now = next((now for now in self._runs() if (now.pod, now.container) == container), None)
            if now is None or now.number != run.number or not now.running:
                return

    async def _stream(self, run: ContainerRun, lines: int, since: Moment | None, tell: Callable[[str], None]) -> None:
        """Tell the lines of a run until its stream ends. Raises BackendUnavailable if it broke off."""
        query: Query = {"container": run.container, "follow": "true", "timestamps": "true"}
        query = {**query, "tailLines": lines} if since is None else {**query, "sinceTime": f"{since[0]}Z"}
        tail = OutputTail(tell, self._mask)
        try:
            await self._feed(tail, run, query, may_be_silent=True)
        finally:
            tail.feed(b"")

    async def _feed(self, tail: OutputTail, run: ContainerRun, query: Query, *, may_be_silent: bool = False) -> None:
        """Give all that is sent of a run's output to `tail`. Raises BackendUnavailable, and what `_refuse` does."""
        path = f"{self._pods}/{quote(run.pod)}/log"
        try:
            async with self._api.stream(path, query, may_be_silent=may_be_silent) as response:
                async for chunk in response.content.iter_any():
                    tail.feed(chunk)
        except ApiError as error:
            _refuse(error)
        except (Unreachable, aiohttp.ClientError, ConnectionError) as error:
            raise _unavailable(str(error) or "the connection broke off") from error


def _unstamped(text: str) -> tuple[Moment | None, str]:
    """A line without the time in front of it."""
    found = _STAMPED.match(text)
    if found is None:
        return None, text
    second, fraction, rest = found.groups()
    return (second, (fraction or "").ljust(9, "0")), rest


def _refuse(error: ApiError) -> None:
    """Raise what an answer means, unless it is that there is nothing to read: no pod, or no run of it yet."""
    said = error.message.rstrip(".")
    match error.status:
        case 400 | 404:
            return
        case 401:
            raise not_logged_in(error) from error
        case 403:
            raise BackendRefused(
                f'what pods write may not be read: {said}; grant the verb "get" on "pods/log" (deploy/rbac.yaml has it)'
            ) from error
        case _:
            raise _unavailable(said) from error


def _unavailable(why: str) -> BackendUnavailable:
    return BackendUnavailable(f"what its pods write cannot be read now: {why}")
