"""When a status is worth a write: the sooner, the more what is new in it matters. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

LEAST_SECONDS = 1.0
"""The shortest time between two writes, whatever has changed."""
WORDS_SECONDS = 60.0
"""And where only figures have changed, by less than matters."""

Status = Mapping[str, Any]


def write_after(
    before: Status,
    after: Status,
    polling_seconds: float,
    *,
    core: Callable[[Status], object],
    has_moved: Callable[[Status, Status], bool],
    said: Callable[[Status], object],
) -> float | None:
    """How long after the last write a status is to be written; None if it says nothing new.

    `core` is what is told at once when it changes, `has_moved` whether a figure has, by as much as matters; it is asked
    of two statuses with the same core. `said` is all that is worth a write at some time.
    """
    if core(before) != core(after):
        return LEAST_SECONDS
    if has_moved(before, after):
        return max(polling_seconds, LEAST_SECONDS)
    if said(before) != said(after):
        return max(polling_seconds, WORDS_SECONDS)
    return None


def told(status: Status, wordy: Collection[str]) -> Iterator[tuple[object, ...]]:
    """What conditions say but for times; of those that are `wordy`, whose messages have figures in them, not these."""
    for one in status.get("conditions") or ():
        message = None if one.get("type") in wordy else one.get("message")
        yield one.get("type"), one.get("status"), one.get("reason"), message


def without_nulls(status: Status, *left_out: str) -> dict[str, Any]:
    """A status without the keys that are not there, as null says of them, and without these."""
    return {key: value for key, value in status.items() if value is not None and key not in left_out}
