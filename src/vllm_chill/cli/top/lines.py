"""Lines for a terminal as values: text with how it is to look, of no more cells than there are.

What is shown comes from engines and clusters too, so whatever would steer a terminal is taken out of it.
"""

from __future__ import annotations

import enum
import re
import textwrap
from collections.abc import Sequence

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")


class Look(enum.Enum):
    """How a piece of text is to look. A colour says nothing that the text does not say too."""

    PLAIN = enum.auto()
    FAINT = enum.auto()
    STRONG = enum.auto()
    GOOD = enum.auto()
    BUSY = enum.auto()
    BAD = enum.auto()


Span = tuple[str, Look]
Line = tuple[Span, ...]


def text_of(line: Line) -> str:
    """A line without its looks."""
    return "".join(text for text, _ in line).rstrip()


def plain(text: str) -> str:
    """The text on one line, without anything that a terminal would take for more than text."""
    shown = _ESCAPES.sub("", text).expandtabs()
    return "".join(character if character.isprintable() else " " for character in shown).rstrip()


def wrapped(text: str, width: int, look: Look = Look.PLAIN, indent: int = 0) -> list[Line]:
    """A text as lines of no more than `width` cells."""
    room = max(8, width - indent)
    return [((" " * indent + line, look),) for line in textwrap.wrap(plain(text), room)]


def bar(share: float, cells: int) -> Line:
    """How much of something is done, from 0 to 1."""
    full = round(max(0.0, min(1.0, share)) * cells)
    return (("█" * full, Look.BUSY), ("░" * (cells - full), Look.FAINT))


def joined(parts: Sequence[str | None], by: str = ", ") -> str:
    """Those parts that there are."""
    return by.join(part for part in parts if part)
