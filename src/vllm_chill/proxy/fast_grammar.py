"""A first look at a request's bytes: the plain ones are read here, and all else is left to aiohttp's parser. Pure.

The rule: what is accepted here is a proper part of what the parser accepts, and both read the same method, target,
fields and body in it. So the grammar knows one spelling of everything, the one that HTTP clients use: a field is a
name, a colon, one space and visible ASCII; a body has one Content-Length. Whatever changes where a message ends, or
what the connection is for, or could be read in two ways, is not in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from weakref import WeakValueDictionary

from msgspec import Struct

from vllm_chill.adapters.engine_access import authorization_field
from vllm_chill.core.keys import said_by
from vllm_chill.core.naming import Naming, naming_of
from vllm_chill.core.routing import Route, is_health_checker, route_of
from vllm_chill.core.target import Endpoint
from vllm_chill.proxy.body import length_field
from vllm_chill.proxy.headers import FORWARDED, forwarded, host_of
from vllm_chill.proxy.request_framing import HOST
from vllm_chill.proxy.request_id import field_of

HEAD_BYTES = 16 * 1024
_FIELDS = 100  # aiohttp takes 128

# Possessive, so that time is linear whatever comes. Of the target: the characters of RFC 3986, without a fragment.
_HEAD = re.compile(
    rb"(GET|POST|PUT|PATCH|DELETE) (/[0-9A-Za-z\-._~:/?\[\]@!$&'()*+,;=%%]*+) HTTP/1\.1"
    rb"(?:\r\n[!#$%%&'*+\-.^_`|~0-9A-Za-z]++: (?! )[ -~]*+(?<! )){1,%d}+\r\n\r\n" % _FIELDS
)

# In the head in lower case. The first row goes on as it came and may come once, as aiohttp's parser has it; the
# second is written anew; with any of the rest the request is not plain.
_SPECIAL = re.compile(
    rb"\r\n(content-type|user-agent|x-request-id"
    rb"|host|content-length|connection|x-forwarded-for|x-forwarded-host|x-forwarded-proto"
    rb"|transfer-encoding|te|trailer|expect|upgrade|http2-settings|keep-alive|proxy-connection|proxy-authenticate"
    rb"|proxy-authorization|content-location|content-range|etag|max-forwards|server|sec-websocket-key1):"
)
_WRITTEN_ANEW = FORWARDED | {b"host", b"content-length", b"connection"}
_KNOWN = _WRITTEN_ANEW | {b"content-type", b"user-agent", b"x-request-id"}
_LENGTH = re.compile(rb"0|[1-9][0-9]{0,9}")
_LENGTH_FIELD = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: (0|[1-9][0-9]{0,9})\r\n")

_CREDENTIALS = re.compile(rb"\r\n(?:authorization|x-api-key):[^\r\n]*", re.IGNORECASE)

_METHODS = {b"GET": "GET", b"POST": "POST", b"PUT": "PUT", b"PATCH": "PATCH", b"DELETE": "DELETE"}


class PlainHead:
    """A plain request's head, whose Content-Length is left open: a client says the same again with another body.

    `before` are its bytes up to the length's digits, `after` those behind them (None, and all of it is in `before`,
    if it says no length). `_fields` has the fields that go on as they came, each after a line end; `_special`, by
    name in lower case, those that are written anew. `proxied` says whether it is one that takes a lease, and
    `of_page` whether a browser sends it for a page; `naming` and `authorization` are found when they are asked for.
    `request_id` is the client's own, as request_id.py has it; none if it says none.
    """

    __slots__ = (
        "__weakref__",
        "_authorization",
        "_fields",
        "_special",
        "_written",
        "after",
        "before",
        "method",
        "naming",
        "of_page",
        "proxied",
        "request_id",
        "target",
    )

    def __init__(
        self, method: str, target: bytes, fields: bytes, special: dict[bytes, bytes], *, proxied: bool
    ) -> None:
        self.method = method
        self.proxied = proxied
        self.before = b""
        self.after: bytes | None = None
        self.target = target
        self._fields = fields
        self._special = special
        self.of_page = False
        self.request_id = b""
        self.naming: Naming | None = None
        self._authorization: bytes | None = b""  # not looked for yet
        self._written: tuple[Endpoint, str, str, bytes | None, bytes] | None = None

    def for_upstream(
        self,
        length: int | None,
        endpoint: Endpoint,
        peer: str,
        scheme: str,
        authorization: bytes | None = None,
        added: bytes = b"",
    ) -> bytes:
        """The head for the upstream: what `headers.request_head` makes of the same request."""
        written = self._written
        if (
            written is None
            or written[0] != endpoint
            or written[1] != peer
            or written[2] != scheme
            or written[3] != authorization
        ):
            own = authorization is None
            lines = b"%b %b HTTP/1.1\r\nHost: %b%b\r\n%b%b" % (
                self.method.encode(),
                self.target,
                host_of(endpoint),
                self._fields if own else _CREDENTIALS.sub(b"", self._fields),
                authorization_field(authorization or b""),
                forwarded(self._special, peer, scheme, self._special[b"host"]),
            )
            written = self._written = endpoint, peer, scheme, authorization, lines
        if length is None:
            return b"%b%b%b\r\n" % (written[4], added, length_field(self.method, None))
        return b"%b%bContent-Length: %d\r\n\r\n" % (written[4], added, length)

    @property
    def authorization(self) -> bytes | None:
        """Who the client says it is, as core.keys.said_by has it."""
        if self._authorization == b"":
            self._authorization = said_by(self.field("Authorization"), self.field("X-Api-Key"))
        return self._authorization

    def drop(self, fields: re.Pattern[bytes]) -> None:
        """Have these fields, each after a line end, not go on."""
        self._fields = fields.sub(b"", self._fields)

    def find_naming(self) -> Naming:
        """How a request with this head names its model; `naming` has it from now on."""
        target = self.target.decode("ascii")
        self.naming = naming_of(target, self.field("Content-Type"), self.field("Content-Encoding"))
        return self.naming

    def field(self, name: str) -> str | None:
        """A field, the first of this name."""
        found = re.search(
            rb"\r\n%b: ([^\r\n]*)" % re.escape(name.encode()), self.before + (self.after or b""), re.IGNORECASE
        )
        return found[1].decode("ascii") if found is not None else None

    def again(self, data: bytes) -> PlainRequest | None:
        """The request that these bytes start with, if its head is this one but for the length's digits."""
        before, after = self.before, self.after
        if not data.startswith(before):
            return None
        start = len(before)
        if after is None:
            return PlainRequest(self, start, None)
        end = data.find(b"\r", start, start + 11)
        digits = data[start:end] if end > 0 and data.startswith(after, end) else b""
        if not digits.isdigit() or (digits[0] == 0x30 and len(digits) > 1):
            return None
        return PlainRequest(self, end + len(after), int(digits))


class PlainRequest(Struct, frozen=True):
    """A request that was read: its body is from `start` on; `length` is None if none was said."""

    head: PlainHead
    start: int
    length: int | None


def first_look(data: bytes, route_of: Callable[[str, str], Route] = route_of) -> PlainRequest | None:
    """The request that these bytes start with, if its head is whole and plain; `route_of` gives a path its route."""
    end = data.find(b"\r\n\r\n", 0, HEAD_BYTES)
    match = _HEAD.match(data, 0, end + 4) if end >= 0 else None
    if match is None:
        return None
    special: dict[bytes, bytes] = {}
    kept: list[bytes] = []
    at, length_at = match.end(2) + 9, 0
    lowered = data[:end].lower()
    for field in _SPECIAL.finditer(lowered, at):
        name, value = field[1], field.end() + 1
        line_end = data.find(b"\r\n", value)
        if name in special or name not in _KNOWN:
            return None
        special[name] = data[value:line_end]
        if name in _WRITTEN_ANEW:
            kept.append(data[at : field.start()])
            at = line_end
        if name == b"content-length":
            length_at = value
    kept.append(data[at:end])
    if b"host" not in special or special.get(b"connection", b"keep-alive").lower() != b"keep-alive":
        return None
    if not HOST.fullmatch(special[b"host"]):
        return None
    length = special.get(b"content-length")
    if length is not None and not _LENGTH.fullmatch(length):
        return None
    request_id = field_of(special[b"x-request-id"]) if b"x-request-id" in special else b""
    if request_id is None:
        return None
    written_anew = {name: value for name, value in special.items() if name in _WRITTEN_ANEW}
    method, target = _METHODS[match[1]], match[2]
    route = route_of(method, target.partition(b"?")[0].decode("ascii"))
    proxied = route is Route.PROXIED and not is_health_checker(special.get(b"user-agent", b""))
    if method == "GET" and b"text/html" in lowered:
        proxied = False  # a browser, perhaps, that is shown a page rather than held
    head = PlainHead(method, target, b"".join(kept), written_anew, proxied=proxied)
    head.of_page = b"\r\norigin:" in lowered
    head.request_id = request_id
    start = end + 4
    if length is None:
        head.before = data[:start]
        return PlainRequest(head, start, None)
    head.before, head.after = data[:length_at], data[length_at + len(length) : start]
    return PlainRequest(head, start, int(length))


class KnownHeads:
    """The heads of the connections there are: a client opens many, and says the same on each of them. Fields that
    `dropped` matches do not go on.
    """

    __slots__ = ("_dropped", "_heads")

    def __init__(self, dropped: re.Pattern[bytes] | None = None) -> None:
        self._dropped = dropped
        self._heads: WeakValueDictionary[bytes, PlainHead] = WeakValueDictionary()

    def look(self, data: bytes, route_of: Callable[[str, str], Route] = route_of) -> PlainRequest | None:
        """What `first_look` finds, with the head that is known already if there is one."""
        start = data.find(b"\r\n\r\n", 0, HEAD_BYTES) + 4
        field = _LENGTH_FIELD.search(data, 0, start)
        key = data[: field.start(1)] + data[field.end(1) : start] if field is not None else data[:start]
        head = self._heads.get(key) if start > 3 else None
        if head is not None and (head.after is None) == (field is None):
            return PlainRequest(head, start, int(field[1]) if field is not None else None)
        request = first_look(data, route_of)
        if request is not None:
            if self._dropped is not None:
                request.head.drop(self._dropped)
            self._heads[request.head.before + (request.head.after or b"")] = request.head
        return request
