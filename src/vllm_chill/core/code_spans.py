"""Whether a place in a text is within code, as Markdown marks it. Pure.

The rule: it is known from the text before the place alone, in whatever pieces that came. Code is what stands between
two runs of as many backticks on one line, or in a fence of three or more that begins a line.
"""

from __future__ import annotations

import re

_PARTS = re.compile(r"`+|\n|[^`\n]+")


class CodeSpans:
    """The place at the end of all that was `passed`."""

    __slots__ = ("_blank", "_fence", "_fenced_here", "_first", "_inline", "_run", "_wraps")

    def __init__(self) -> None:
        self._run = 0  # backticks at the end, whose last may have yet to come
        self._inline = 0  # of how many backticks the code began that is open on this line
        self._fence = 0  # the same of a fence
        self._fenced_here = False  # the fence began on this line
        self._wraps = False  # the fence is the first thing in the text
        self._blank = True  # nothing but white space is on this line
        self._first = True  # nothing but white space is in the text

    def passed(self, text: str) -> None:
        """The text goes on so."""
        if "`" in text or self._run:
            for part in _PARTS.findall(text):
                if part[0] == "`":
                    self._run += len(part)
                else:
                    self._settle()
                    self._plain(part)
        elif text:
            self._plain(text)

    def at_code(self) -> bool:
        """Whether a tag that follows is within code.

        A fence with which the whole text begins is none: models put a call into one, with nothing to say besides.
        """
        self._settle()
        return self._inline > 0 or (self._fence > 0 and not self._wraps)

    def _plain(self, text: str) -> None:
        before, newline, line = text.rpartition("\n")
        if newline:
            self._inline, self._blank, self._fenced_here = 0, True, False
            if self._first and before.strip():
                self._first = False
        if (self._blank or self._first) and line.strip():
            self._blank = self._first = False

    def _settle(self) -> None:
        """Take the run of backticks for what it is, as it is over."""
        run, self._run = self._run, 0
        if not run:
            return
        if self._fence:
            if self._fenced_here:  # two runs on a line are code within it
                self._fence, self._inline = 0, 0 if run == self._fence else self._fence
            elif self._blank and run >= self._fence:
                self._fence = 0
        elif self._inline:
            self._inline = 0 if run == self._inline else self._inline
        elif self._blank and run >= 3:
            self._fence, self._fenced_here, self._wraps = run, True, self._first
        else:
            self._inline = run
        self._blank = self._first = False
