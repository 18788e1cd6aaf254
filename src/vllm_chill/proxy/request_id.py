"""Which request it is: by the name that its client gave it in X-Request-Id, or one that is made here.

The rule: a request has one id, from its head to its last byte. The engine gets it, the answer says it, and whatever
the log says of the request says it too. An id is kept as the field that says it, with its line end, as it is written
more often than it is read; none is empty.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from itertools import count

from aiohttp.web import BaseRequest, RequestKey

NAME = "X-Request-Id"
IN_PLACE_OF = frozenset({NAME.lower().encode()})
"""What an id that is made here takes the place of, if the client has said something that is none."""

REQUEST_ID: RequestKey[bytes] = RequestKey("vllm_chill.request_id", bytes)
"""Where a request of aiohttp's server has its id."""

# UUIDs, ULIDs, base64, and what load balancers make. What is longer or has other characters may be meant for a log or
# a header that it would break.
_WELL_FORMED = re.compile(rb"[0-9A-Za-z._~:/+=@|-]{1,128}")
_START = len(NAME) + 2
_SAID = re.compile(rb"\r\nx-request-id:", re.IGNORECASE)
_OWN = re.compile(rb"^X-Request-Id:[^\r\n]*\r\n", re.MULTILINE)
_RANDOM_BYTES = 6


def field_of(said: bytes) -> bytes | None:
    """The id that a client has said; None if it is not well-formed."""
    return b"%b: %b\r\n" % (NAME.encode(), said) if _WELL_FORMED.fullmatch(said) else None


def text_of(request_id: bytes) -> str:
    """An id as it is said elsewhere; empty for none."""
    return request_id[_START:-2].decode("ascii")


def id_of(request: BaseRequest) -> bytes:
    """The id of a request of aiohttp's server; none if it was given none."""
    request_id: bytes = request.get(REQUEST_ID, b"")
    return request_id


def with_fields(response: bytes, fields: bytes) -> bytes:
    """A response that begins with its head, with these fields added to it; without the id among them if it says one."""
    line, _, rest = response.partition(b"\r\n")
    if _SAID.search(response, len(line), response.find(b"\r\n\r\n", len(line)) + 2) is not None:
        fields = _OWN.sub(b"", fields)
    return b"%b\r\n%b%b" % (line, fields, rest)


class RequestIds:
    """Makes ids: a beginning that no other process has, and a number."""

    __slots__ = ("_begin", "_next")

    def __init__(self) -> None:
        self._begin = f"{NAME}: {secrets.token_hex(_RANDOM_BYTES)}-".encode()
        self._next = count(1).__next__

    def new(self) -> bytes:
        """One that no request has had."""
        return b"%b%08x\r\n" % (self._begin, self._next())

    def of(self, said: Sequence[str]) -> tuple[bytes, bool]:
        """The id of a request with these fields, and whether it is the client's own: said once, and well-formed."""
        field = field_of(said[0].encode("utf-8", "surrogateescape")) if len(said) == 1 else None
        return (self.new(), False) if field is None else (field, True)
