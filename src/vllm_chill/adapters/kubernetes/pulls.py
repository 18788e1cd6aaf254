"""The images that are being pulled for a Deployment's pods. A pod's status does not say so: events do.

The rule: events are watched only while a pod is being made, and what they add is optional: without the right to see
them, or without the API server, no pull is known of, and nothing else changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from urllib.parse import quote

import structlog

from vllm_chill.adapters.kubernetes.client import ApiClient, Json
from vllm_chill.adapters.kubernetes.watch import ListWatch, Outage, Pace, Snapshot
from vllm_chill.core.target import TargetRef

_REASONS = {"Pulling", "Pulled", "Failed", "BackOff"}


@dataclass(frozen=True, slots=True)
class PullEvent:
    """One event of a pull: for which container of which pod (`about`), and as of which version.

    `says` is the event's message if the pull has just begun, and empty once it has ended, well or not.
    """

    pod: str
    about: str
    version: int
    says: str


class Pulls:
    """What is pulled for the pods of one Deployment, while it is followed. `changed` is called when that may differ."""

    def __init__(self, api: ApiClient, ref: TargetRef, pace: Pace, changed: Callable[[], None]) -> None:
        self._api = api
        self._ref = ref
        self._pace = pace
        self._changed = changed
        self._log = structlog.get_logger("vllm_chill.kubernetes")
        self._task: asyncio.Task[None] | None = None
        self._now: dict[str, str] = {}
        self._forbidden = False

    def of(self, pod: str) -> str:
        """What is pulled for a pod, in the kubelet's words; empty if nothing is, as far as is known."""
        return self._now.get(pod, "")

    def follow(self, tasks: asyncio.TaskGroup, *, wanted: bool) -> None:
        """Watch the events while that is wanted; the task belongs to `tasks`."""
        if wanted and self._task is None:
            self._task = tasks.create_task(self._watch())
        elif not wanted and self._task is not None:
            self._task.cancel()
            self._task = None
            self._now = {}

    async def _watch(self) -> None:
        path = f"/api/v1/namespaces/{quote(self._ref.namespace)}/events"
        events = ListWatch(self._api, path, {"fieldSelector": "involvedObject.kind=Pod"}, self._own_pull, self._pace)
        async with aclosing(events.steps()) as steps:
            async for step in steps:
                match step:
                    case Outage(cause, forbidden=True):
                        self._tell_once(cause)
                        self._take({})
                        return
                    case Outage():
                        self._take({})
                    case Snapshot():
                        self._take(pulling(step.objects.values()))

    def _own_pull(self, event: Json) -> PullEvent | None:
        return pull_event(event, self._ref.name)

    def _take(self, now: dict[str, str]) -> None:
        if now != self._now:
            self._now = now
            self._changed()

    def _tell_once(self, cause: str) -> None:
        if not self._forbidden:
            self._forbidden = True
            self._log.info("pulls of images are not told apart from the making of a container", cause=cause)


def pull_event(event: Json, deployment: str) -> PullEvent | None:
    """What an event tells of a pull for a pod that is named as the Deployment's are; None if it tells nothing."""
    about, reason = event.get("involvedObject") or {}, event.get("reason")
    pod = str(about.get("name") or "")
    if reason not in _REASONS or not pod.startswith(f"{deployment}-"):
        return None
    says = str(event.get("message") or "Pulling") if reason == "Pulling" else ""
    # Events repeat by being written again, and their times are whole seconds: only the version orders them.
    return PullEvent(pod, str(about.get("fieldPath") or ""), int(event["metadata"]["resourceVersion"]), says)


def pulling(events: Iterable[PullEvent]) -> dict[str, str]:
    """What is being pulled, by pod: of each container the last event counts."""
    last: dict[tuple[str, str], PullEvent] = {}
    for event in sorted(events, key=lambda event: event.version):
        last[event.pod, event.about] = event
    return {event.pod: event.says for event in last.values() if event.says}
