"""Finding the model's name in a body of which pieces come one after the other: a JSON object, or a form. Pure.

The rule: no byte is looked at twice for long, however the body is cut into pieces, and the answer does not depend on
the cuts. Only as much is read as is needed: the first name counts, and what follows it may be anything.
"""

from __future__ import annotations

import json
import re
from typing import Protocol

from vllm_chill.core.call import not_a_name, not_an_object, not_json
from vllm_chill.core.json_text import NESTED, SCALAR, SPACE, past, past_text
from vllm_chill.errors import BadRequest


class Search(Protocol):
    """A search. `over` says that nothing more has to be read; `model` is what was found, None if none is named."""

    over: bool
    model: str | None

    def feed(self, data: bytes) -> None:
        """Take the next piece. Raises BadRequest for what cannot be read; the search is of no use then."""

    def end(self) -> None:
        """Take that the body is over. Raises BadRequest if that is too early."""


def no_model_within(size: int) -> BadRequest:
    """The error for a body in which so many bytes have no model's name."""
    return BadRequest(
        f'the request names no model in the first {size} bytes of its body; put "model" first, or raise --model-limit'
    )


_MODEL = b"model"
_LONGEST_KEY = 6 * len(_MODEL)  # each letter written as an escape
_QUOTE, _BACKSLASH, _COLON, _COMMA = b'"\\:,'
_OPEN, _CLOSE = b"{}"
_OPENING = b"{["


class JsonSearch:
    """The value of the key "model" of the outermost object. Nothing is checked but what leads there.

    `is_json`: the body is said to be JSON; else what is none, or no object, names no model.
    """

    __slots__ = (
        "_at",
        "_data",
        "_depth",
        "_escaped",
        "_first",
        "_is_json",
        "_is_model",
        "_kept",
        "_seen",
        "_step",
        "model",
        "over",
    )

    def __init__(self, *, is_json: bool = True) -> None:
        self._is_json = is_json
        self.over = False
        self.model: str | None = None
        self._data = b""
        self._at = 0
        self._seen = 0  # bytes before this piece
        self._step = self._begin
        self._kept: bytearray | None = None  # of the text that is being read, if it is of use
        self._escaped = False  # the piece before has ended with a backslash within a text
        self._is_model = False
        self._first = True
        self._depth = 0

    def feed(self, data: bytes) -> None:
        self._data, self._at = data, 0
        try:
            while not self.over and self._at < len(data):
                self._step()
        except BadRequest:
            if self._is_json:
                raise
            self.over = True
        self._seen += len(data)
        self._data = b""

    def end(self) -> None:
        if not self.over and self._is_json:
            raise not_json("it breaks off")
        self.over = True

    def _next(self) -> int | None:
        """The next byte that is no space, which is not taken; None if it has yet to come."""
        at = self._at = past(SPACE, self._data, self._at)
        return self._data[at] if at < len(self._data) else None

    def _begin(self) -> None:
        byte = self._next()
        if byte is None:
            return
        if byte != _OPEN:
            raise not_an_object()
        self._at += 1
        self._step = self._before_key

    def _before_key(self) -> None:
        match self._next():
            case None:
                return
            case byte if byte == _QUOTE:
                self._at += 1
                self._first = False
                self._kept = bytearray()
                self._step = self._in_key
            case byte if byte == _CLOSE and self._first:
                self.over = True
            case _:
                raise self._broken()

    def _in_key(self) -> None:
        if not self._text(_LONGEST_KEY):
            return
        kept, self._kept = self._kept, None
        self._is_model = kept is not None and (kept == _MODEL or (b"\\" in kept and _is_model(bytes(kept))))
        self._step = self._before_value

    def _before_value(self) -> None:
        byte = self._next()
        if byte is None:
            return
        if byte != _COLON:
            raise self._broken()
        self._at += 1
        self._step = self._in_value

    def _in_value(self) -> None:
        byte = self._next()
        if byte is None:
            return
        if self._is_model:
            self._name(byte)
        elif byte == _QUOTE:
            self._at += 1
            self._step = self._in_text
        elif byte in _OPENING:
            self._at += 1
            self._depth = 1
            self._step = self._in_nested
        elif past(SCALAR, self._data, self._at) > self._at:
            self._step = self._in_scalar
        else:
            raise self._broken()

    def _name(self, byte: int) -> None:
        if byte == _QUOTE:
            self._at += 1
            self._kept = bytearray()
            self._step = self._in_name
        elif byte == ord("n"):  # null
            self.over = True
        else:
            raise not_a_name()

    def _in_name(self) -> None:
        if self._text(None):
            assert self._kept is not None
            try:
                self.model = json.loads(b'"%b"' % bytes(self._kept))
            except ValueError:
                raise not_json('"model" is no text') from None
            self.over = True

    def _in_text(self) -> None:
        if self._text(0):
            self._step = self._in_nested if self._depth else self._after_value

    def _in_scalar(self) -> None:
        self._at = past(SCALAR, self._data, self._at)
        if self._at < len(self._data):
            self._step = self._after_value

    def _in_nested(self) -> None:
        data, at, depth = self._data, self._at, self._depth
        self._step = self._in_nested
        # In one loop and not step by step, as there may be millions of brackets.
        while depth and (at := past(NESTED, data, at)) < len(data):
            byte = data[at]
            at += 1
            if byte in _OPENING:
                depth += 1
            elif byte != _QUOTE:
                depth -= 1
            elif (end := past_text(data, at)) < len(data) and data[end] == _QUOTE:
                at = end + 1
            else:
                self._step = self._in_text
                break
        else:
            if not depth:
                self._step = self._after_value
        self._at, self._depth = at, depth

    def _after_value(self) -> None:
        match self._next():
            case None:
                return
            case byte if byte == _COMMA:
                self._at += 1
                self._step = self._before_key
            case byte if byte == _CLOSE:
                self.over = True
            case _:
                raise self._broken()

    def _text(self, most: int | None) -> bool:
        """Take a text up to its quote; whether that has come. It is kept while it is not longer than `most`."""
        data, start = self._data, self._at
        at = start
        if self._escaped:
            self._escaped = False
            at += 1
        at = past_text(data, at)
        closed = at < len(data) and data[at] == _QUOTE
        self._escaped = at < len(data) and not closed  # a backslash that is the last byte
        if self._kept is not None:
            self._kept += data[start : at + self._escaped]
            if most is not None and len(self._kept) > most:
                self._kept = None
        self._at = at + 1
        return closed

    def _broken(self) -> BadRequest:
        return not_json(f"it is broken at byte {self._seen + self._at + 1}")


def _is_model(key: bytes) -> bool:
    try:
        return bool(json.loads(b'"%b"' % key) == "model")
    except ValueError:
        return False


_PART_HEAD_BYTES = 8 * 1024
_NAME_BYTES = 4 * 1024
_PADDING_BYTES = 1024
_PADDING = re.compile(rb"[ \t]*+")
_DISPOSITION = re.compile(rb"\r\ncontent-disposition[ \t]*:[ \t]*form-data[ \t]*(;[^\r\n]*)", re.IGNORECASE)
_PARAMETER = re.compile(rb';[ \t]*([^\s=;"]++)[ \t]*=[ \t]*("(?:[^"\\]++|\\.)*+"|[^;]*+)')


class FormSearch:
    """The field "model" of a form (multipart/form-data, RFC 7578); a file of that name is none.

    What is kept is a part's head, or the field, or as much as may be the beginning of a boundary.
    """

    __slots__ = ("_delimiter", "_kept", "_step", "model", "over")

    def __init__(self, boundary: bytes) -> None:
        self.over = False
        self.model: str | None = None
        self._delimiter = b"\r\n--" + boundary
        self._kept = b"\r\n"  # the first boundary needs no line before it
        self._step = self._between

    def feed(self, data: bytes) -> None:
        self._kept += data
        while not self.over and self._step():
            pass

    def end(self) -> None:
        self.over = True

    def _between(self) -> bool:
        """Pass over what is no head, up to a boundary; whether to go on."""
        at = self._kept.find(self._delimiter)
        if at < 0:
            self._kept = self._kept[-len(self._delimiter) + 1 :]
            return False
        self._kept = self._kept[at + len(self._delimiter) :]
        self._step = self._behind_boundary
        return True

    def _behind_boundary(self) -> bool:
        kept = self._kept
        if kept[:2] == b"--":
            self.over = True
            return False
        end = past(_PADDING, kept)
        if end <= _PADDING_BYTES and len(kept) < end + 2 and kept[end:] in (b"", b"\r", b"-"):
            return False
        if end <= _PADDING_BYTES and kept[end : end + 2] == b"\r\n":
            self._kept = kept[end:]
            self._step = self._in_head
        else:
            self._step = self._between  # a line that only begins as a boundary does
        return True

    def _in_head(self) -> bool:
        end = self._kept.find(b"\r\n\r\n")
        if end > _PART_HEAD_BYTES or (end < 0 and len(self._kept) >= _PART_HEAD_BYTES + 4):
            raise BadRequest("the form in the body has a part whose head is too long; send it as RFC 7578 has it")
        if end < 0:
            return False
        is_model = _names_model(self._kept[:end])
        self._kept = self._kept[end + (4 if is_model else 2) :]
        self._step = self._in_field if is_model else self._between
        return True

    def _in_field(self) -> bool:
        end = self._kept.find(self._delimiter)
        if end > _NAME_BYTES or (end < 0 and len(self._kept) >= _NAME_BYTES + len(self._delimiter)):
            raise BadRequest('the field "model" of the form is too long; send the name of a model')
        if end < 0:
            return False
        self.model = self._kept[:end].decode("utf-8", "replace")
        self.over = True
        return False


def _names_model(head: bytes) -> bool:
    disposition = _DISPOSITION.search(head)
    if disposition is None:
        return False
    said = {name.lower(): value for name, value in _PARAMETER.findall(disposition[1])}
    if b"filename" in said or b"filename*" in said:
        return False
    return bool(said.get(b"name", b"").strip(b' \t"') == _MODEL)
