"""The newest lines of a command's output, over one run and the next, for whoever asks and whoever follows."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from vllm_chill.core.engine_output import Line
from vllm_chill.errors import ReplicaNotFound
from vllm_chill.ports import OutputObserver

_LINES = 1000
_CHARACTERS = 128 << 10


class OutputLog:
    """ports.EngineOutput of what is told by `wrote`. Invariant: it keeps at most 1000 lines of 128 Ki characters in
    all, and one line at the least.
    """

    def __init__(self) -> None:
        self._lines: deque[Line] = deque()
        self._characters = 0
        self._followers: list[tuple[OutputObserver, str | None]] = []

    def wrote(self, line: Line) -> None:
        """Take the next line."""
        self._lines.append(line)
        self._characters += len(line.text)
        while len(self._lines) > _LINES or (self._characters > _CHARACTERS and len(self._lines) > 1):
            self._characters -= len(self._lines.popleft().text)
        for observer, replica in self._followers:
            if replica in (None, line.replica):
                observer.wrote(line)

    def recent(self, lines: int) -> Sequence[Line]:
        return list(self._lines)[-lines:]

    async def read(self, lines: int, replica: str | None = None) -> Sequence[Line]:
        if replica is None:
            return self.recent(lines)
        found = [line for line in self._lines if line.replica == replica]
        if not found:
            known = ", ".join(dict.fromkeys(line.replica for line in self._lines)) or "none"
            raise ReplicaNotFound(f'there is no output of a replica "{replica}"; there is of: {known}')
        return found[-lines:]

    async def follow(self, lines: int, observer: OutputObserver, replica: str | None = None) -> None:
        for line in await self.read(lines, replica):
            observer.wrote(line)
        follower = (observer, replica)
        self._followers.append(follower)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self._followers.remove(follower)
