"""What stands before aiohttp's parser: bytes that are not strictly requests never reach it.

To aiohttp's server it is the parser. What it refuses takes the place of a request in the server's order, and is
answered there, so that what came before it is answered first.
"""

from __future__ import annotations

from typing import Any

from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import _ErrInfo

from vllm_chill.errors import AnswerableError, BadRequest
from vllm_chill.proxy.request_framing import RequestFraming

_Message = tuple[Any, StreamReader]


class Refusal(HttpProcessingError):
    """Bytes of a client that are refused, as an exception that aiohttp's server knows; `error` is their answer."""

    def __init__(self, error: AnswerableError) -> None:
        super().__init__(code=error.status, message=error.message)
        self.error = error


def refusal(error: AnswerableError) -> _Message:
    """What stands in a server's queue for bytes that are refused."""
    return _ErrInfo(error.status, Refusal(error), error.message), EMPTY_PAYLOAD


class Door:
    """A parser of requests, to aiohttp's server. Invariant: the parser behind it gets whole and legal heads only, and
    nothing behind a request that asks for another protocol.

    `refused` says that something was, and nothing more is taken.
    """

    __slots__ = ("_parser", "_payload", "_seen", "framing", "refused")

    def __init__(self, parser: Any, body_bytes: int | None) -> None:
        """`parser` is aiohttp's, for one connection."""
        self._parser = parser
        self._payload: StreamReader = EMPTY_PAYLOAD
        self._seen = 0
        self.framing = RequestFraming(body_bytes)
        self.refused = False

    def feed_data(self, data: bytes) -> tuple[list[_Message], bool, bytes]:
        """The requests whose heads are whole now, whether what follows is another protocol, and what came of that."""
        framing = self.framing
        found: list[_Message] = []
        if not data:
            self._pass_on(data, found)
        elif not self.refused:
            framing.may_switch = self._seen == framing.requests and self._payload.is_eof()
            legal = framing.feed(data)
            if legal and not self._pass_on(legal, found):
                return found, False, b""
            if framing.illegal is not None:
                self.refused = True
                found.append(refusal(framing.illegal))
        return found, framing.switches, self._rest()

    def _pass_on(self, legal: bytes, found: list[_Message]) -> bool:
        """Have the parser read what may be read; False if it refuses it."""
        try:
            messages, _, _ = self._parser.feed_data(legal)
        except HttpProcessingError as error:
            self.refused = True
            why = error.message.strip().partition("\n")[0].rstrip(":.")
            found.append(refusal(BadRequest(f"the request cannot be read: {why}.")))
            return False
        found += messages
        self._seen += len(messages)
        if messages:
            self._payload = messages[-1][1]
        return True

    def _rest(self) -> bytes:
        rest, self.framing.rest = self.framing.rest, b""
        return rest

    def set_upgraded(self, upgraded: bool) -> None:
        """Take that the other protocol was refused, and what follows is HTTP again."""
        self._parser.set_upgraded(upgraded)
        self.framing.switches = upgraded

    def message_consumed(self) -> None:
        self._parser.message_consumed()

    def pause_reading(self) -> None:
        self._parser.pause_reading()

    def feed_eof(self) -> Any:
        return self._parser.feed_eof()
