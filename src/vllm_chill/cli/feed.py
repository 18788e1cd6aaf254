"""The statuses of a proxy as they change, from its feed; from one that has none, asked for once a second.

The rule: it ends for nothing but an answer that will not change by asking again. A proxy that goes away is told once
and asked again, at longer and longer intervals, until it is there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from vllm_chill.api.status import ProxyStatus
from vllm_chill.cli.asking import Proxy, Told
from vllm_chill.core.routing import Route
from vllm_chill.errors import AskFailed, CannotBeAsked, ChillError, NotAllowed

_EVENTS = "/proxy/events"
_EVENT_STREAM = "text/event-stream"
_POLL_SECONDS = 1.0
_QUIET_SECONDS = 30.0
_PAUSES_SECONDS = (1.0, 2.0, 5.0)


@dataclass(frozen=True, slots=True)
class Away:
    """The proxy cannot be asked, or has no answer; it is asked again."""

    error: AskFailed

    @property
    def reason(self) -> str:
        """Why, without where."""
        return self.error.reason if isinstance(self.error, CannotBeAsked) else self.error.message


Heard = Told[ProxyStatus] | Away


def follow(proxy: Proxy, over: threading.Event) -> Iterator[Heard]:
    """Its status now and whenever it changes, or why there is none, until `over` is set. Raises NotAllowed, and
    SettingError for a key that cannot be sent.
    """
    failures = 0
    while not over.is_set():
        pause = _POLL_SECONDS
        try:
            for told in _told(proxy, over):
                failures = 0
                yield told
        except NotAllowed:
            raise
        except AskFailed as failed:
            yield Away(failed)
            pause = _PAUSES_SECONDS[min(failures, len(_PAUSES_SECONDS) - 1)]
            failures += 1
        over.wait(pause)


def follow_aside(proxy: Proxy, tell: Callable[[Heard | ChillError], None]) -> threading.Event:
    """Follow it in a thread of its own, which tells what is heard, and what it ends with where that is an error. The
    thread ends, once it hears something, after the event that is returned is set; it keeps no program from ending.
    """
    over = threading.Event()

    def run() -> None:
        try:
            for heard in follow(proxy, over):
                if over.is_set():
                    return
                tell(heard)
        except ChillError as error:
            tell(error)

    threading.Thread(target=run, name="feed", daemon=True).start()
    return over


def _told(proxy: Proxy, over: threading.Event) -> Iterator[Told[ProxyStatus]]:
    yield proxy.ask("GET", Route.PROXY_STATUS.value, ProxyStatus)
    has_begun = False
    try:
        with proxy.stream(_EVENTS, _EVENT_STREAM, _QUIET_SECONDS) as lines:
            has_begun = True
            for text in data_of(lines):
                if over.is_set():
                    return
                if (told := _status(text)) is not None:
                    yield told
            return
    except AskFailed as failed:  # as where it has no feed, or as many listeners as may be
        if has_begun or isinstance(failed, NotAllowed):
            raise
    while not over.wait(_POLL_SECONDS):
        yield proxy.ask("GET", Route.PROXY_STATUS.value, ProxyStatus)


def data_of(lines: Iterator[bytes]) -> Iterator[bytes]:
    """The data of each server-sent event (WHATWG HTML, 9.2.6); of one that the stream ends within, nothing."""
    data: list[bytes] = []
    for line in lines:
        if not line:
            if data:
                yield b"\n".join(data)
            data = []
        elif line == b"data" or line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))


def _status(text: bytes) -> Told[ProxyStatus] | None:
    """The status that an event has; None for one of another kind."""
    try:
        return Told(msgspec.json.decode(text, type=ProxyStatus), text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
