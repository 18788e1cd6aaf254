"""The response's half of an exchange: bytes of one upstream connection to one client, until the response is whole.

It is driven by what arrives: `data_received` of the upstream's connection writes to the client's transport, one
write per read. Who has sent the request learns of the end from `finish`, and no task waits in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol, TypeVar

from vllm_chill.api.openai import error_envelope
from vllm_chill.core.target import Endpoint
from vllm_chill.errors import AnswerableError, ChillError, UpstreamInvalid, UpstreamReset, UpstreamSilent
from vllm_chill.proxy.aiohttp_seam import cut_off
from vllm_chill.proxy.committed import error_event
from vllm_chill.proxy.framing import IllegalResponse, ResponseFraming
from vllm_chill.proxy.pour import DOWN_BYTES, POURED_BYTES, pour
from vllm_chill.proxy.request_id import text_of, with_fields
from vllm_chill.proxy.upstream import UpstreamConnection, UpstreamPool

# How vLLM ends an answer that it gives up, as when it is told to end: with status 200, and [DONE] if it streams.
_ABORTED = b'"finish_reason":"abort"'
_LOOKED_INTO_BYTES = 16 * 1024


class StaleConnection(UpstreamReset):
    """A kept connection was closed before a byte of the response: most likely before the request reached it."""


class Downstream(Protocol):
    """A client's connection, as a response needs it: whether it takes bytes now, and a call once it does again."""

    @property
    def writing_paused(self) -> bool: ...

    def when_writable(self, call: Callable[[], None]) -> None:
        """Call once the client takes bytes again, or is gone. To be used while `writing_paused`."""


class Exchange:
    """A request and its response on one connection.

    `connection` is None from the moment the connection is given back or gone, `request_sent` whether the upstream
    has all of the request, `sent` how many bytes the client was sent, `aborted` whether the engine has said that it
    gave the answer up, which else looks whole. `fields` are added to the response's head, each with its line end, but
    for the request's id among them if the engine says one. A subclass says what the end means (`finish`, which is
    called once the connection is not needed any more) and hears of the response's first bytes (`began`).
    """

    __slots__ = (
        "_client",
        "_downstream",
        "_endpoint",
        "_heard",
        "_last",
        "_pool",
        "_second_last",
        "_third_last",
        "aborted",
        "connection",
        "fields",
        "framing",
        "request_sent",
        "sent",
    )

    def __init__(
        self, downstream: Downstream, client: asyncio.Transport, framing: ResponseFraming, pool: UpstreamPool
    ) -> None:
        self._downstream = downstream
        self._client = client
        self._pool = pool
        self._heard = False
        self._endpoint: Endpoint | None = None
        self.connection: UpstreamConnection | None = None
        self.fields = b""
        self.framing = framing
        self.request_sent = False
        self.sent = 0
        self.aborted = False
        self._last = self._second_last = self._third_last = b""  # pieces of the response, of the usual size

    def take(self, connection: UpstreamConnection, endpoint: Endpoint) -> None:
        """Have the connection, for as long as the exchange lasts."""
        self.connection = connection
        self._endpoint = endpoint
        connection.exchange = self

    def identify(self) -> bytes:
        """The request's id, as request_id.py has it."""
        raise NotImplementedError

    def began(self) -> None:
        """The first bytes of the response are here."""

    def finish(self, failure: ChillError | None) -> None:
        """The response is whole, or it will never be."""
        raise NotImplementedError

    def received(self, data: bytes) -> None:
        """Bytes of the response."""
        self._heard = True
        framing = self.framing
        try:
            out = framing.feed(data)
        except IllegalResponse as illegal:
            self.fail(named(UpstreamInvalid, f"{self._endpoint} answered, but {illegal.message}", illegal))
            return
        if out:
            if not self.sent:
                self.began()
                if self.fields:
                    out = with_fields(out, self.fields)
                if not framing.complete and framing.untouched >= POURED_BYTES:
                    self._pour(framing.untouched)
            self._client.write(out)
            self.sent += len(out)
        if framing.complete:
            # A stream says so in a piece of its own, before one with the usage, one with [DONE] and the last chunk.
            if self._last or out.find(b'"abort"') >= 0:
                self.aborted = _ABORTED in b"".join((self._third_last, self._second_last, self._last, out))
            self._complete()
        elif out:
            if len(out) <= _LOOKED_INTO_BYTES:
                self._third_last, self._second_last, self._last = self._second_last, self._last, out
            if self._downstream.writing_paused:
                self._wait_for_client()

    def ended(self, error: Exception | None) -> None:
        """The connection is gone."""
        connection, self.connection = self.connection, None
        if error is None and self.framing.close():
            if ending := self.framing.ending:
                self._client.write(ending)
            self.finish(None)
            return
        kind = StaleConnection if connection is not None and connection.reused and not self._heard else UpstreamReset
        how = f"broke the connection ({error})" if error else "closed the connection"
        self.finish(named(kind, f"{self._endpoint} {how} before its response was whole; try again", error))

    def fail(self, failure: ChillError) -> None:
        """End it here, with the connection."""
        self.drop()
        self.finish(failure)

    def drop(self) -> None:
        """Abort the connection, if there still is one, and tell nobody."""
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.exchange = None
            connection.transport.abort()

    def end_early(self, failure: ChillError) -> None:
        """End a response that will never be whole: a stream of events with one that says so, if that can be done."""
        error = failure if isinstance(failure, AnswerableError) else UpstreamReset(failure.message)
        last = self.framing.rescue(error_event(error_envelope(error, text_of(self.identify()))))
        if last is not None:
            self._client.write(last)
        else:
            self.cut_client()

    def cut_client(self) -> None:
        """Abort the client's connection within its response: it cannot take what there is for the whole."""
        cut_off(self._client, reset=self.framing.ends_with_connection)

    def _pour(self, size: int) -> None:
        connection = self.connection
        if connection is not None:
            pour(connection, connection.transport, self._client, size, DOWN_BYTES)

    def _complete(self) -> None:
        connection = self.connection
        assert connection is not None
        if self.framing.reusable and self.request_sent:
            self.connection = None
            self._pool.release(connection)
        else:
            self.drop()
        self.finish(None)

    def _wait_for_client(self) -> None:
        if self.connection is not None and self.connection.pause_reading():
            self._downstream.when_writable(self._resume)

    def _resume(self) -> None:
        if self.connection is not None:
            self.connection.resume_reading()


def silent(endpoint: Endpoint | None, seconds: float) -> UpstreamSilent:
    """What an upstream is that has not begun to answer in time."""
    return UpstreamSilent(f"{endpoint} did not begin to answer within {seconds:g} s; try again later")


_Error = TypeVar("_Error", bound=ChillError)


def named(kind: type[_Error], message: str, cause: Exception | None) -> _Error:
    """An error with its cause."""
    error = kind(message)
    error.__cause__ = cause
    return error
