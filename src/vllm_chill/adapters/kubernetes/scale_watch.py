"""One object of any kind that has a scale, followed by looking at its scale.

The rule: the number and the pods' selector are what the scale says, as nothing else of a kind is known. The object is
watched for when to look; without the right to that, or while the watch is away, the scale is looked at now and then.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing
from urllib.parse import quote

import structlog

from vllm_chill.adapters.kubernetes.client import UNREADABLE, ApiClient, ApiError, Json, Unreachable, metadata_of
from vllm_chill.adapters.kubernetes.facts import Workload
from vllm_chill.adapters.kubernetes.objects import collection_of
from vllm_chill.adapters.kubernetes.watch import ListWatch, Outage, Pace, Snapshot, cause_of, pause_seconds
from vllm_chill.core.startup import WorkloadFacts
from vllm_chill.core.target import TargetRef
from vllm_chill.core.writers import Writers, writers_of


class ScaleWatch:
    """What `watch.ListWatch` is to objects whose kind is known. `tasks` has the watch of the object meanwhile.

    Invariant: `_version` is that of the object when its scale was last seen.
    """

    def __init__(self, api: ApiClient, ref: TargetRef, pace: Pace, tasks: asyncio.TaskGroup) -> None:
        collection = collection_of(ref)
        self._api = api
        self._ref = ref
        self._pace = pace
        self._tasks = tasks
        self._path = f"{collection}/{quote(ref.name)}/scale"
        self._objects = ListWatch(api, collection, {"fieldSelector": f"metadata.name={ref.name}"}, writers_of, pace)
        self._log = structlog.get_logger("vllm_chill.kubernetes")
        self._said = False
        self._watched = False
        self._writers = Writers()
        self._version = 0
        self._failures = 0
        self._look = asyncio.Event()

    def relist(self) -> None:
        """Look anew, now."""
        self._look.set()

    async def newest(self) -> int:
        """The version of the object's last write, as the server says now; 0 if there is no such object.

        Raises ApiError or Unreachable.
        """
        try:
            return int(metadata_of(await self._api.call("GET", self._path))["resourceVersion"])
        except ApiError as error:
            if error.status == 404:
                return 0
            raise

    async def steps(self) -> AsyncGenerator[Snapshot[Workload] | Outage, None]:
        """What is, now and after each change, for ever. Close it (`aclosing`) to be done with it."""
        watching = self._tasks.create_task(self._watch())
        try:
            while True:
                self._look.clear()
                yield await self._step()
                await self._pause()
        finally:
            watching.cancel()

    async def _step(self) -> Snapshot[Workload] | Outage:
        try:
            scale = await self._api.call("GET", self._path)
            step = self._seen(scale)
        except ApiError as error:
            if error.status == 404:
                self._failures = 0
                return Snapshot({}, self._version)
            self._failures += 1
            return Outage(cause_of(error), forbidden=error.status == 403)
        except Unreachable as error:
            self._failures += 1
            return Outage(cause_of(error))
        except UNREADABLE as error:
            self._failures += 1
            return Outage(f"the API server sent a scale that cannot be read ({type(error).__name__}: {error})")
        self._failures = 0
        return step

    def _seen(self, scale: Json) -> Snapshot[Workload] | Outage:
        # Of both, what is 0 or empty is not there.
        replicas, selector = (scale.get("spec") or {}).get("replicas"), (scale.get("status") or {}).get("selector")
        if not selector:
            return Outage(
                f"the scale of {self._ref.named} does not tell its pods: its status.selector is empty, which is for "
                "its controller to fill, and for a CustomResourceDefinition to name as labelSelectorPath"
            )
        self._version = int(scale["metadata"]["resourceVersion"])
        found = Workload(WorkloadFacts(replicas or 0), selector, writers=self._writers, version=str(self._version))
        return Snapshot({self._ref.name: found}, self._version)

    async def _watch(self) -> None:
        async with aclosing(self._objects.steps()) as steps:
            async for step in steps:
                match step:
                    case Outage(cause, forbidden=forbidden):
                        self._watched, self._writers = False, Writers()
                        if forbidden:
                            self._tell_once(cause)
                    case Snapshot():
                        self._watched = True
                        self._writers = step.objects.get(self._ref.name, Writers())
                self._look.set()

    def _tell_once(self, cause: str) -> None:
        if not self._said:
            self._said = True
            event = f"{self._ref.named} is looked at every {self._pace.look_seconds:g} s, as it cannot be watched"
            self._log.info(event, cause=cause)

    async def _pause(self) -> None:
        """Wait until there is a reason to look again."""
        seconds = None if self._watched else self._pace.look_seconds
        if self._failures:
            seconds = pause_seconds(self._pace, self._failures, random.random())  # noqa: S311 - a pause is no secret
        try:
            async with asyncio.timeout(seconds):
                await self._look.wait()
        except TimeoutError:
            pass
