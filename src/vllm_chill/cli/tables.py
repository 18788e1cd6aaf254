"""Tables for people: columns as wide as what is in them."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def aligned(rows: Sequence[Sequence[str]], numbers: Collection[int] = ()) -> list[str]:
    """The rows as lines, of which the first is the heading; the columns `numbers` are set to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def cell(text: str, column: int) -> str:
        return f"{text:{'>' if column in numbers else '<'}{widths[column]}}"

    return ["  ".join(cell(text, column) for column, text in enumerate(row)).rstrip() for row in rows]


def cut(text: str, characters: int) -> str:
    """The text on one line, with its end left out if it is longer than that."""
    line = " ".join(text.split())
    return line if len(line) <= characters else f"{line[: characters - 1]}…"
