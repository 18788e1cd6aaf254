"""The last lines that a container wrote before it crashed, to explain a crash loop with.

The rule: each crash is read once, in bounded time and size, and what cannot be read (for lack of the right, or of a
kubelet that answers) is no failure of its own: the cause then says how to look.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from urllib.parse import quote

import aiohttp
import structlog

from vllm_chill.adapters.kubernetes.client import ApiClient, ApiError, Query, Unreachable
from vllm_chill.adapters.mask import Mask
from vllm_chill.adapters.output_tail import OutputTail
from vllm_chill.core.pods import ContainerFacts

_LINES = 20
_TEXT_LENGTH = 2000
_READ_BYTES = 64 << 10
_READ_SECONDS = 2.0

Crash = tuple[str, str, int]
"""A crash by its pod, its container and how often that was restarted."""


class CrashLogs:
    """The logs of the crashes of a namespace's pods. `changed` is called when one has been read.

    `newest` is the last that was read, with its pod; it stays when that is gone.
    """

    def __init__(self, api: ApiClient, namespace: str, changed: Callable[[], None], mask: Mask | None = None) -> None:
        self.newest: tuple[str, str] | None = None
        self._mask = mask
        self._api = api
        self._pods = f"/api/v1/namespaces/{quote(namespace)}/pods"
        self._changed = changed
        self._log = structlog.get_logger("vllm_chill.kubernetes")
        self._texts: dict[Crash, str | None] = {}
        self._forbidden = False

    def of(self, pod: str, container: ContainerFacts) -> str:
        """What a container wrote before its last crash; empty if it wrote nothing or that has not been read."""
        return self._texts.get((pod, container.name, container.restarts)) or ""

    def read(self, tasks: asyncio.TaskGroup, crashes: Collection[Crash]) -> bool:
        """Read those that have not been; whether one of them is still being read. The tasks belong to `tasks`."""
        for crash in crashes:
            if crash not in self._texts:
                self._texts[crash] = None
                tasks.create_task(self._read(crash))
        return any(self._texts[crash] is None for crash in crashes)

    def forget_all_but(self, pods: Collection[str]) -> None:
        """Keep only what these pods wrote."""
        self._texts = {crash: text for crash, text in self._texts.items() if crash[0] in pods}

    async def _read(self, crash: Crash) -> None:
        pod, container, _ = crash
        # The server cuts at its bound from the front, and the end is what counts: so the bound is wide.
        query: Query = {"container": container, "previous": "true", "tailLines": _LINES, "limitBytes": _READ_BYTES}
        tail = OutputTail(lambda _: None, self._mask)
        try:
            async with (
                asyncio.timeout(_READ_SECONDS),
                self._api.stream(f"{self._pods}/{quote(pod)}/log", query) as response,
            ):
                async for chunk in response.content.iter_any():
                    tail.feed(chunk)
                tail.feed(b"")
        except ApiError as error:
            self._tell_once(error)
        except (Unreachable, TimeoutError, aiohttp.ClientError, ConnectionError):
            pass  # the cause says how to look
        if crash in self._texts:
            self._texts[crash] = text = tail.text()[-_TEXT_LENGTH:]
            self.newest = (pod, text) if text else self.newest
            self._changed()

    def _tell_once(self, error: ApiError) -> None:
        if error.status == 403 and not self._forbidden:
            self._forbidden = True
            self._log.info("a crash is told without the last lines of its log", cause=error.message)
