"""What a command writes, as lines: each is passed on as it comes, and the last are kept to explain an end."""

from __future__ import annotations

import codecs
import re
from collections import deque
from collections.abc import Callable

from vllm_chill.adapters.mask import Mask
from vllm_chill.core.engine_output import cleaned

_LINES = 20
_LINE_LENGTH = 4096
_TEXT_LENGTH = 4000
_LINE_END = re.compile(r"[\r\n]+")  # a progress bar ends its lines with a carriage return alone


class OutputTail:
    """The end of a stream of bytes, whatever is in it. Invariant: it holds no more than 20 lines of 4096 characters.

    A longer line is passed on in pieces; bytes that are not UTF-8 are replaced, what a terminal would obey is dropped,
    and what `mask` hides is not seen.
    """

    def __init__(self, take_line: Callable[[str], None], mask: Mask | None = None) -> None:
        self._take_line = take_line
        self._mask = mask or Mask()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""
        self._lines: deque[str] = deque(maxlen=_LINES)

    def feed(self, data: bytes) -> None:
        """Take what was written; empty data is the end, and makes a line of what is left."""
        *lines, self._rest = _LINE_END.split(self._rest + self._decoder.decode(data, final=not data))
        for line in lines:
            self._pieces(self._mask.hide(line))
        if not data:
            self._pieces(self._mask.hide(self._rest))
            self._rest = ""
        elif len(self._rest) > _LINE_LENGTH + (longest := self._mask.longest):
            # What goes on after the cut is kept for as long as a secret may be, so that none is cut in two.
            self._rest = self._mask.hide(self._rest)
            while len(self._rest) > _LINE_LENGTH + longest:
                self._line(self._rest[:_LINE_LENGTH])
                self._rest = self._rest[_LINE_LENGTH:]

    def text(self) -> str:
        """The last lines, at most 4000 characters; empty if there were none."""
        return "\n".join(self._lines)[-_TEXT_LENGTH:]

    def _pieces(self, line: str) -> None:
        for start in range(0, len(line), _LINE_LENGTH):
            self._line(line[start : start + _LINE_LENGTH])

    def _line(self, line: str) -> None:
        line = cleaned(line)
        if line:
            self._lines.append(line)
            self._take_line(line)
