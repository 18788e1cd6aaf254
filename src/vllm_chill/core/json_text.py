"""Where things end in JSON text that is read without being taken apart: for searches that need but little of it. Pure.

The rule: time is linear whatever comes, and nothing is checked but what leads to the end.
"""

from __future__ import annotations

import re

# Possessive, so that nothing is tried twice.
SPACE = re.compile(rb"[ \t\r\n]*+")
_TEXT = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
SCALAR = re.compile(rb"[-+.0-9A-Za-z]*+")
# Of texts only the short ones: to look for the quote of a long one is much faster, unless it has many within it.
NESTED = re.compile(rb'(?:[^"{}\[\]]++|"[^"\\]{0,40}+")*+')
_QUOTES_BY_HAND = 8
_BACKSLASH, _QUOTE = b'\\"'
_OPENING = b"{["


def past(pattern: re.Pattern[bytes], data: bytes, at: int = 0) -> int:
    """Where a match ends of a pattern that also matches nothing."""
    found = pattern.match(data, at)
    assert found is not None
    return found.end()


def past_text(data: bytes, at: int) -> int:
    """Where a text stops, whose inside begins there: at its quote, a backslash that is the last byte, or the end."""
    for _ in range(_QUOTES_BY_HAND):
        end = data.find(b'"', at)
        stop = len(data) if end < 0 else end
        escaped = 0
        if stop > at and data[stop - 1] == _BACKSLASH:
            inside = data[at:stop]
            escaped = (len(inside) - len(inside.rstrip(b"\\"))) % 2
        if end < 0 or not escaped:
            return stop - escaped
        at = end + 1
    return past(_TEXT, data, at)


def past_value(data: bytes, at: int) -> int:
    """Where the value ends that begins there; behind the end of the data if it goes on."""
    byte = data[at]
    if byte == _QUOTE:
        return past_text(data, at + 1) + 1
    if byte not in _OPENING:
        return past(SCALAR, data, at)
    at, depth = at + 1, 1
    while depth and (at := past(NESTED, data, at)) < len(data):
        byte = data[at]
        at += 1
        if byte in _OPENING:
            depth += 1
        elif byte != _QUOTE:
            depth -= 1
        else:
            at = past_text(data, at) + 1
    return at if not depth else len(data) + 1
