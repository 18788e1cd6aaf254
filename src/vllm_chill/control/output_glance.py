"""The last lines of an engine that starts or has failed, for whoever asks how it is.

The rule: nobody waits for them; and nothing is read unless somebody asks, and then every two seconds at the most.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from vllm_chill.core.engine_output import Line
from vllm_chill.core.target import Failed, Target, Waking
from vllm_chill.errors import AnswerableError, BackendError, BackendRefused
from vllm_chill.ports import EngineOutput

_LINES = 10
_LINE_CHARACTERS = 500
_FRESH_SECONDS = 2.0
_REFUSED_SECONDS = 60.0
_READ_SECONDS = 5.0


class OutputGlance:
    """What is known of the newest output of one target. `source` is where all of it is.

    Invariant: `_found` was read since the start that `_since` names began.
    """

    def __init__(self, source: EngineOutput) -> None:
        self.source = source
        self._clock = asyncio.get_running_loop().time
        self._found: Sequence[Line] = ()
        self._since: float | None = None
        self._reading: asyncio.Task[None] | None = None
        self._again_at = 0.0
        self._refusal = ""
        self._log = structlog.get_logger("vllm_chill.engine_output")

    def lines(self, target: Target) -> list[str] | None:
        """The last lines, at most ten of 500 characters, as far as they are known; None of a target that neither starts
        nor has failed, or that has written nothing yet. What is not known is read, for who asks next.
        """
        phase = target.phase
        if not isinstance(phase, Waking | Failed):
            return None
        if isinstance(phase, Waking) and phase.since != self._since:
            self._since, self._found, self._again_at = phase.since, (), 0.0
        recent = self.source.recent(_LINES)
        if recent is None:
            self._have_read()
        else:
            self._found = recent
        found = [line.text[:_LINE_CHARACTERS] for line in self._found if _is_of(line, target)]
        return found[-_LINES:] or None

    def _have_read(self) -> None:
        if self._clock() >= self._again_at and (self._reading is None or self._reading.done()):
            self._again_at = self._clock() + _FRESH_SECONDS
            self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        since = self._since
        try:
            async with asyncio.timeout(_READ_SECONDS):
                found = await self.source.read(_LINES)
        except BackendRefused as error:
            self._again_at = self._clock() + _REFUSED_SECONDS
            if error.message != self._refusal:
                self._refusal = error.message
                self._log.info("a start is told without the last lines of its output", cause=error.message)
        except (BackendError, AnswerableError, TimeoutError):
            pass  # who asks again has it read again
        else:
            # Of a start that has failed the pods go, and what they wrote stays.
            if since == self._since and found:
                self._found = found


def _is_of(line: Line, target: Target) -> bool:
    """Whether it was written in the start that the target is in. What has failed may have no replica any more."""
    members = () if target.observed is None else target.observed.members
    return isinstance(target.phase, Failed) or any(line.replica == replica.name for replica in members)
