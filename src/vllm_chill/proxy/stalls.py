"""Clients that do not go on: with a head, with a body, or with reading what is there for them.

The rule: nobody keeps a lease by being slow. One timer looks at all connections now and then, so a request makes no
timer and takes no note of the time; what is written down of a connection lasts from one look to the next.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from vllm_chill.errors import AnswerableError, RequestTimeout
from vllm_chill.proxy.client_limits import LEAST_RATE, ClientLimits


class Part(enum.Enum):
    """What a client is in the middle of."""

    HEAD = enum.auto()
    BODY = enum.auto()
    RESPONSE = enum.auto()


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a client is. `of` is what it is in the middle of, the same object or number for as long as that lasts;
    `done` grows with every byte.
    """

    part: Part
    of: object
    done: int


class Client(Protocol):
    """A client's connection."""

    @property
    def progress(self) -> Progress | None:
        """What the proxy waits for from it; None if that is nothing."""

    def time_out(self, error: RequestTimeout) -> None:
        """Answer what it has not sent in time, and end its connection."""

    @property
    def waiting_since(self) -> float | None:
        """Since when nothing is done for it, by the loop's clock; None if something is."""

    def turn_away(self, error: AnswerableError) -> None:
        """Answer this and end it, as there is no room for it."""

    def abort(self) -> None:
        """Drop it, with what is being served."""


@dataclass(slots=True)
class _Mark:
    """What was seen of a client: since when it is in the middle of this, when it last went on, and the window in which
    its rate is measured.
    """

    progress: Progress
    since: float
    heard: float
    window: float
    window_done: int


class Stalls:
    """What was seen of the clients at the last look."""

    def __init__(self, limits: ClientLimits) -> None:
        self._limits = limits
        self._marks: dict[Client, _Mark] = {}

    def look(self, clients: Iterable[Client], now: float) -> None:
        """End what has taken too long."""
        before, self._marks = self._marks, {}
        for client in clients:
            progress = client.progress
            if progress is None:
                continue
            mark = before.get(client)
            if mark is None or mark.progress.part is not progress.part or mark.progress.of != progress.of:
                mark = _Mark(progress, now, now, now, progress.done)
            elif progress.done != mark.progress.done:
                mark.heard = now
            mark.progress = progress
            if not self._end(client, mark, now):
                self._marks[client] = mark

    def _end(self, client: Client, mark: _Mark, now: float) -> bool:
        """Whether it was ended."""
        limits = self._limits
        match mark.progress.part:
            case Part.HEAD if limits.head_seconds is not None and now - mark.since >= limits.head_seconds:
                message = f"the head of the request was not whole after {limits.head_seconds:g} s; send it again."
                client.time_out(RequestTimeout(message))
            case Part.BODY if limits.body_seconds is not None and self._is_slow(mark, now, limits.body_seconds):
                message = (
                    f"the body of the request came too slowly: nothing, or less than {LEAST_RATE} bytes a second, for "
                    f"{limits.body_seconds:g} s; send it again."
                )
                client.time_out(RequestTimeout(message))
            case Part.RESPONSE if limits.send_seconds is not None and now - mark.heard >= limits.send_seconds:
                client.abort()
            case _:
                return False
        return True

    def _is_slow(self, mark: _Mark, now: float, seconds: float) -> bool:
        if now - mark.heard >= seconds:
            return True
        past = now - mark.window
        if past < seconds:
            return False
        came = mark.progress.done - mark.window_done
        mark.window, mark.window_done = now, mark.progress.done
        return came < LEAST_RATE * past
