"""Takes replicas of one target out of the turn that fail, and brings them back once they are found to be well.

The rule: what is decided is decided by core.outliers; here is who asks a replica that is out whether it is well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from vllm_chill.core.outliers import Ejection, Outliers
from vllm_chill.core.target import Endpoint

AGAIN_SECONDS = 1.0
"""From one look at a replica that is out, and ill still, to the next."""

Look = Callable[[Endpoint], Awaitable[bool]]
"""Whether a replica says that it is healthy; it never raises."""


class EjectionRecorder(Protocol):
    """Whoever keeps a record of ejections. Calls return at once and never raise."""

    def ejected(self, ejection: Ejection) -> None:
        """Take that a replica is out from now on."""

    def restored(self, ejection: Ejection, seconds: float) -> None:
        """Take that it is back, after so many seconds."""


class Ejector:
    """The ejections of one target. `run` must be running for a replica to come back.

    `endpoints` are where it can be reached now; `changed` is called when who is out has changed. `look` None: a replica
    is back when its time is over. `suspects` is empty unless a replica's last answer was an error: as long as it is,
    `answered` need not be told of successes.
    """

    def __init__(self, endpoints: Callable[[], Sequence[Endpoint]], changed: Callable[[], None]) -> None:
        self.outliers = Outliers()
        self.suspects = self.outliers.suspects
        self.look: Look | None = None
        self.recorder: EjectionRecorder | None = None
        self._endpoints = endpoints
        self._changed = changed
        self._clock = asyncio.get_running_loop().time
        self._new: asyncio.Queue[Ejection] = asyncio.Queue()

    def failed(self, endpoint: Endpoint, cause: str) -> None:
        """Take that a replica took no connection, or broke it before it answered; `cause` is a clause."""
        self._begin(self.outliers.failed(endpoint, self._endpoints(), self._clock(), cause))

    def answered(self, endpoint: Endpoint, status: int) -> None:
        """Take the status of a response."""
        self._begin(self.outliers.answered(endpoint, status, self._endpoints(), self._clock()))

    def forget(self, endpoint: Endpoint) -> None:
        """The replica has departed."""
        self.outliers.forget(endpoint)

    async def run(self) -> None:
        """Bring replicas back, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                tasks.create_task(self._bring_back(await self._new.get()))

    def _begin(self, ejection: Ejection | None) -> None:
        if ejection is not None:
            self._new.put_nowait(ejection)
            self._changed()
            if self.recorder is not None:
                self.recorder.ejected(ejection)

    async def _bring_back(self, ejection: Ejection) -> None:
        pause = ejection.seconds
        while True:
            await asyncio.sleep(pause)
            if not self._is_on(ejection) or self.look is None or await self.look(ejection.endpoint):
                break
            pause = AGAIN_SECONDS
        now = self._clock()
        if self.outliers.restored(ejection, now):
            self._changed()
            if self.recorder is not None:
                self.recorder.restored(ejection, now - ejection.since)

    def _is_on(self, ejection: Ejection) -> bool:
        return self.outliers.out.get(ejection.endpoint) is ejection
