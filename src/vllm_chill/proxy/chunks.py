"""The chunked body of a message as its bytes come: where it ends. Pure; one grammar for requests and responses.

The bytes are walked and never copied, chunk framing and trailers included. What is not legal is never guessed at: two
readers of one message that disagree about its end are what smuggling is made of.
"""

from __future__ import annotations

import re
from typing import ClassVar

from vllm_chill.errors import ChillError

FIELDS = 256
_LINE_BYTES = 8 * 1024  # more than the longest chunk line or trailer line that the grammar below lets through

_VALUE = rb"[\t -~\x80-\xff]"
# No space round the size or the extensions: the grammar calls it bad (RFC 9112 §7.1.1), and clients differ on it.
CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15}+)(?:;%b{0,4000}+)?\r\n" % _VALUE)
_CHUNK_START = re.compile(rb"(?:[0-9A-Fa-f]{1,15}+(?:;%b{0,4000}+)?\r?)?" % _VALUE)
# A trailer that says how a message is framed or routed is illegal (RFC 9110 §6.5.1).
_TRAILER = re.compile(
    rb"(?i:(?!(?:connection|content-length|host|keep-alive|te|trailer|transfer-encoding|upgrade):))"
    rb"[!#$%%&'*+\-.^_`|~0-9A-Za-z]{1,200}+:%b{0,7000}+\r\n" % _VALUE
)
_TRAILER_START = re.compile(rb"(?:[!#$%%&'*+\-.^_`|~0-9A-Za-z]{1,200}+(?::%b{0,7000}+\r?)?|\r)?" % _VALUE)

IN_CHUNKS, IN_TRAILERS = range(2)


class ChunkedBody:
    """A chunked body. `complete` once its last byte has been walked; `illegal` is what is raised for what is none."""

    __slots__ = ("_carry", "_count", "_left", "_pieces", "_state", "complete")

    illegal: ClassVar[type[ChillError]]

    def __init__(self) -> None:
        self._state = IN_CHUNKS
        self._carry = b""  # the start of a line, whose end has not come
        self._left = 0  # bytes to the end of the chunk with its line end
        self._count = 0  # trailers
        self._pieces: list[bytes] | None = None  # the body's bytes without chunk framing, where they are wanted
        self.complete = False

    def _walk(self, data: bytes, pos: int) -> int:
        """Walk it from `pos`; where in `data` it ends, its size if it goes on. Raises `illegal`."""
        size, left, pieces = len(data), self._left, self._pieces
        while pos < size:
            if left:
                end = pos + left
                if end > size:
                    if end == size + 1 and data[size - 1] != 0x0D:
                        raise self.illegal("a chunk is longer than its size says")
                    self._left = end - size
                    if pieces is not None:
                        pieces.append(data[pos : end - 2])
                    return size
                if not (data.startswith(b"\r\n", end - 2) if left > 1 else data[pos] == 0x0A):
                    raise self.illegal("a chunk is longer than its size says")
                if pieces is not None and left > 2:
                    pieces.append(data[pos : end - 2])
                pos, left = end, 0
            elif self._state == IN_TRAILERS:
                return self._walk_trailers(data, pos)
            else:
                pos, left = self._chunk_line(data, pos)
        self._left = left
        return size

    def _chunk_line(self, data: bytes, pos: int) -> tuple[int, int]:
        """Past a chunk's first line, and the bytes from there to the next one; past the read if the line goes on."""
        if self._carry:
            known = len(self._carry)
            line = self._carry + data[pos : pos + _LINE_BYTES]
            match, pos = CHUNK.match(line), pos - known
            end = pos + match.end() if match else -1
        else:
            line = b""
            match = CHUNK.match(data, pos)
            end = match.end() if match else -1
        if match is None:
            return self._wait_for_line(line or data[pos : pos + _LINE_BYTES], _CHUNK_START, len(data)), 0
        self._carry = b""
        length = int(match[1], 16)
        if length:
            return end, length + 2
        self._state, self._count, self._left = IN_TRAILERS, 0, 0
        return end, 0

    def _walk_trailers(self, data: bytes, pos: int) -> int:
        size = len(data)
        while pos < size:
            known = len(self._carry)
            line = self._carry + data[pos : pos + _LINE_BYTES]
            if line.startswith(b"\r\n"):
                self.complete = True
                return pos + 2 - known
            field = _TRAILER.match(line)
            if field is None:
                return self._wait_for_line(line, _TRAILER_START, size)
            self._carry = b""
            self._count += 1
            if self._count > FIELDS:
                raise self.illegal(f"it has more than {FIELDS} trailers")
            pos += field.end() - known
        return size

    def _wait_for_line(self, line: bytes, start: re.Pattern[bytes], size: int) -> int:
        if start.fullmatch(line) is None:
            raise self.illegal("its chunks break the grammar of HTTP/1.1")
        self._carry = line
        return size

    def _take_pieces(self) -> bytes:
        assert self._pieces is not None
        body = b"".join(self._pieces)
        self._pieces.clear()
        return body
