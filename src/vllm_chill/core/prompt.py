"""The beginning of a prompt, read out of the beginning of a JSON body. Pure.

The rule: it costs about the same however long the body is, and it never fails: what has no prompt, or not yet as much
of it as is asked for, has none. Whatever else is wrong with a body is the engine's to say.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from vllm_chill.core.json_text import past_value

LOOKED_INTO_BYTES = 256 * 1024
"""How far into a body a prompt is looked for: behind a long system prompt, or tools."""

_STEPS = 200  # fields and elements that are looked at, as a body may have nothing else

# Possessive, so that time is linear whatever comes.
_FIELD = re.compile(rb'[ \t\r\n]*+[{,][ \t\r\n]*+"((?:[^"\\]++|\\.)*+)"[ \t\r\n]*+:[ \t\r\n]*+', re.DOTALL)
_ELEMENT = re.compile(rb"[ \t\r\n]*+[\[,][ \t\r\n]*+(?!\])")
# A message as clients write it, up to what is said in it.
_MESSAGE = re.compile(
    rb'\{[ \t\r\n]*+"role"[ \t\r\n]*+:[ \t\r\n]*+"([^"\\]*+)"[ \t\r\n]*+,[ \t\r\n]*+"content"[ \t\r\n]*+:[ \t\r\n]*+'
)
# Whole characters only: where the data ends, it does not end within an escape, nor between two that are one character.
_TEXT = re.compile(
    rb'(?:[^"\\]++|\\[^u]|\\u(?:[dD][89abAB][0-9a-fA-F]{2}\\u[0-9a-fA-F]{4}|(?![dD][89abAB])[0-9a-fA-F]{4}))*+',
    re.DOTALL,
)
_OBJECT = re.compile(rb"[ \t\r\n]*+\{")
_PER_CHARACTER = 12  # bytes of one that is written as two escapes

_PROMPTS = frozenset({b"messages", b"prompt", b"input"})
_QUOTE, _OPEN, _OPEN_LIST = b'"{['

_decode = msgspec.json.Decoder(str).decode


def prompt_start(body: bytes, length: int) -> str | None:
    """The first `length` characters of the prompt, or all of a shorter one; `body` may be a body's first bytes only.

    Of a call with messages it is the first text that a user says, else the `prompt` or `input`. Prompts as tokens
    count as they are written.
    """
    if _OBJECT.match(body) is None:
        return None
    try:
        return _Reader(body[:LOOKED_INTO_BYTES], length).of_call() or None
    except (IndexError, ValueError, msgspec.DecodeError):  # it breaks off, or is none
        return None


class _Reader:
    """One look into a body. Its methods raise IndexError where the data is over, or enough has been looked at."""

    __slots__ = ("_data", "_length", "_steps")

    def __init__(self, data: bytes, length: int) -> None:
        self._data = data
        self._length = length
        self._steps = _STEPS

    def of_call(self) -> str | None:
        for key, at in self._fields(0):
            if key in _PROMPTS:
                return self._of_prompt(at)
        return None

    def _of_prompt(self, at: int) -> str | None:
        """Of messages, a text, several texts, or tokens."""
        data = self._data
        if data[at] != _OPEN_LIST:
            return self._text(at)
        for element in self._elements(at):
            match data[element]:
                case byte if byte == _OPEN:
                    if text := self._of_message(element):
                        return text
                case byte if byte == _QUOTE:
                    return self._text(element)
                case byte if byte == _OPEN_LIST:
                    return self._tokens(element)
                case _:
                    return self._tokens(at)
        return None

    def _of_message(self, at: int) -> str | None:
        """What a user says in it."""
        if (usual := _MESSAGE.match(self._data, at)) is not None:
            return self._of_content(usual.end()) if usual[1] == b"user" else None
        said, is_users = None, False
        for key, value in self._fields(at):
            if key == b"role":
                if not self._data.startswith(b'"user"', value):
                    return None
                is_users = True
            elif key == b"content":
                said = value
            if is_users and said is not None:
                return self._of_content(said)
        return None

    def _of_content(self, at: int) -> str | None:
        """Of a text, or of parts of which some are texts."""
        if self._data[at] != _OPEN_LIST:
            return self._text(at)
        for part in self._elements(at):
            for key, value in self._fields(part):
                if key == b"text":
                    return self._text(value)
        return None

    def _text(self, at: int) -> str | None:
        """The beginning of a text; None for what is none, or is not here as far as that."""
        data, length = self._data, self._length
        if data[at] != _QUOTE:
            return None
        found = _TEXT.match(data, at + 1, at + 1 + _PER_CHARACTER * length)
        assert found is not None
        whole = data[found.end()] == _QUOTE
        raw = found[0]
        if not whole and not raw.isascii():
            raw = raw.decode("utf-8", "ignore").encode()  # its last character may be cut
        text = _decode(b'"%b"' % raw)
        return text[:length] if whole or len(text) >= length else None

    def _tokens(self, at: int) -> str:
        """As they are written, but for the space between them."""
        data, end = self._data, at + 4 * self._length
        raw, closed, _ = data[at:end].partition(b"]")
        if not closed and len(data) < end:
            raise IndexError
        return raw.translate(None, b" \t\r\n[").decode("latin-1")[: self._length]

    def _fields(self, at: int) -> Iterator[tuple[bytes, int]]:
        """The keys of the object there, each with where its value begins."""
        data = self._data
        while (field := _FIELD.match(data, at)) is not None:
            self._steps -= 1
            if self._steps < 0:
                raise IndexError
            yield field[1], field.end()
            at = past_value(data, field.end())

    def _elements(self, at: int) -> Iterator[int]:
        """Where each element of the list there begins."""
        data = self._data
        while (element := _ELEMENT.match(data, at)) is not None:
            self._steps -= 1
            if self._steps < 0:
                raise IndexError
            yield element.end()
            at = past_value(data, element.end())
