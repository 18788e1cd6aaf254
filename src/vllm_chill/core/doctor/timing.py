"""The timeouts of the proxy, against what starts of this target take. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from vllm_chill.core.doctor.finding import Check, Finding, failure, ok, warning
from vllm_chill.core.doctor.picture import Asked, Picture
from vllm_chill.core.doctor.words import span
from vllm_chill.core.past_starts import PastStarts

_MINUTE = 60.0


def find_idle_timeout(asked: Asked, picture: Picture) -> Iterator[Finding]:
    """Whether it sleeps for so short a silence that it starts more than it serves."""
    usual = PastStarts.parse(picture.history).whole
    if usual is None:
        return
    if asked.idle_seconds >= usual:
        yield ok(f"--idle-timeout {span(asked.idle_seconds)} is longer than a start, which takes {span(usual)}")
        return
    yield warning(
        f"--idle-timeout is {span(asked.idle_seconds)}, and a start takes {span(usual)}: it starts more than it serves",
        f"give --idle-timeout {_rounded(2 * usual)}",
    )


def find_wake_timeout(asked: Asked, picture: Picture) -> Iterator[Finding]:
    """Whether callers are held for as long as a start takes."""
    usual = PastStarts.parse(picture.history).whole
    if usual is None:
        yield ok("how long starts take is not known yet")
        return
    if asked.wake_seconds >= usual:
        yield ok(f"callers are held for {span(asked.wake_seconds)}, and a start takes {span(usual)}")
        return
    yield warning(
        f"--wake-timeout is {span(asked.wake_seconds)}, and a start takes {span(usual)}: who wakes the model is told "
        "to try again",
        f"give --wake-timeout {_rounded(1.5 * usual)}, if your clients and what stands in front wait for as long",
    )


def find_start_timeout(asked: Asked, picture: Picture) -> Iterator[Finding]:
    """Whether a start is given up before it usually is over."""
    usual = PastStarts.parse(picture.history).whole
    if usual is None:
        return
    if asked.start_seconds > usual:
        yield ok(f"a start may take {span(asked.start_seconds)}")
        return
    yield failure(
        f"--start-timeout is {span(asked.start_seconds)}, and a start takes {span(usual)}: it is given up each time",
        f"give --start-timeout {_rounded(2 * usual)}",
    )


def _rounded(seconds: float) -> str:
    """The next whole minute."""
    return f"{max(1, -int(-seconds // _MINUTE))}m"


IDLE_TIMEOUT = Check(
    "idle-timeout",
    "`--idle-timeout`, against what starts took so far",
    "it sleeps for a short pause, and its next start takes longer than that",
    "about twice what a start takes",
    find_idle_timeout,
)
WAKE_TIMEOUT = Check(
    "wake-timeout",
    "`--wake-timeout`, against what starts took so far",
    "nobody who comes to a sleeping model is answered: all get 503 and come again",
    "more than a start takes",
    find_wake_timeout,
)
START_TIMEOUT = Check(
    "start-timeout",
    "`--start-timeout`, against what starts took so far",
    "starts are given up that would have ended well",
    "about twice what a start takes",
    find_start_timeout,
)
