"""Tool calls in the text that a model writes, found while it comes. Pure: pieces of text in, text and calls out.

The rule: no text is lost and none is held for longer than it may be a call. What turns out to be none is given out as
it was, and what stands behind its first tag is looked through again. How the text is cut into pieces changes nothing.

A call stands in `<tool_call>` or `<function_call>`, with a namespace or without, or is a bare `<function=NAME>`; what
may be inside is in `tool_call_shapes`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from vllm_chill.core.code_spans import CodeSpans
from vllm_chill.core.tool_call_reader import OPENING, OPENING_START, CallReader, End, Verdict
from vllm_chill.core.tools import Tools

_TRIES = 32  # calls that were none, after which an answer is text: each costs a look through all that follows
_PIECE_CHARACTERS = 4096  # at a time, as what stands behind a tag is copied for it
_SPACE = re.compile(r"\s*+")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call with an id of its own. `arguments` is a JSON object."""

    id: str
    name: str
    arguments: str


Part = str | ToolCall


class ToolCallParser:
    """The answer of one choice. `feed` it, then `end` it: what they give is the answer's text in pieces, and its calls.

    White space between calls and behind the last one is in neither. `ids` are those of the calls, in order; `made`
    counts them.
    """

    __slots__ = ("_call", "_closing", "_code", "_gap", "_held", "_ids", "_out", "_tools", "_tries", "made")

    def __init__(self, tools: Tools, ids: Iterator[str]) -> None:
        self._tools = tools
        self._ids = ids
        self._code = CodeSpans()
        self._held = ""  # what may be the start of a tag
        self._gap: str | None = None  # white space since the last call; None behind text
        self._closing = ""  # the tag that may stand there, of the last call
        self._call: CallReader | None = None
        self._tries = _TRIES
        self._out: list[Part] = []
        self.made = 0

    def feed(self, text: str) -> list[Part]:
        """What is known, now that the answer goes on so."""
        if self._call is None and self._gap is None and not self._held and "<" not in text:
            self._code.passed(text)
            return [text] if text else []
        self._read_in_pieces(text)
        return self._taken()

    def end(self, *, cut: bool = False) -> list[Part]:
        """The rest. `cut`: the model has not come to its own end, so that a call without its closing tags counts only
        if nothing else is missing.
        """
        end = End.CUT if cut else End.STOP
        while self._held or self._call is not None:
            self._read("", end)
        self._gap = None
        return self._taken()

    def _taken(self) -> list[Part]:
        out, self._out = self._out, []
        return out

    def _say(self, text: str) -> None:
        if not text:
            return
        if self._gap is not None:
            text, self._gap = self._gap + text, None
        self._code.passed(text)
        if self._out and isinstance(before := self._out[-1], str):
            self._out[-1] = before + text
        else:
            self._out.append(text)

    def _read_in_pieces(self, text: str) -> None:
        for at in range(0, len(text), _PIECE_CHARACTERS):
            self._read(text[at : at + _PIECE_CHARACTERS], End.NOT_YET)

    def _read(self, text: str, end: End) -> None:
        text, self._held = self._held + text, ""
        while text or (end and self._call is not None):
            call = self._call
            if call is None:
                text = self._read_text(text, end)
                continue
            verdict = call.feed(text, end)
            if verdict is Verdict.OPEN:
                return
            self._call = None
            if verdict is Verdict.CALL:
                self._found(call)
                text = call.rest
                continue
            self._tries -= call.begun
            self._say(call.tag)
            text = call.body + call.rest
            if len(text) > 2 * _PIECE_CHARACTERS or end:
                self._read_in_pieces(text)
                return

    def _found(self, call: CallReader) -> None:
        for written in call.calls:
            self.made += 1
            self._out.append(ToolCall(next(self._ids), written.name, written.arguments))
        self._gap, self._closing = "", call.closing

    def _read_text(self, text: str, end: End) -> str:
        """Say what is text, up to what may be a call; what is still to be read, behind its tag."""
        said = 0
        if self._gap is not None:
            space = _SPACE.match(text)
            said = space.end() if space else 0
            self._gap += text[:said]
            if self._closing and text.startswith(self._closing, said):
                said, self._closing, self._gap = said + len(self._closing), "", ""
                return text[said:]
            if said == len(text):
                return ""
            if self._closing.startswith(text[said:]):
                self._held = "" if end else text[said:]
                return ""
        at = said
        while (at := text.find("<", at)) >= 0:
            opening = OPENING.match(text, at)
            if opening is None:
                if not end and OPENING_START.fullmatch(text, at):
                    self._say(text[said:at])
                    self._held = text[at:]
                    return ""
                at += 1
                continue
            self._say(text[said:at])
            said, at = at, opening.end()
            if self._tries > 0 and not self._code.at_code() and (call := CallReader(opening, self._tools)).hopeful:
                self._call = call
                return text[at:]
        self._say(text[said:])
        return ""
