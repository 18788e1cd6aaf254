"""One possible call in a text that is still coming, from its first tag on. Pure.

The rule: what it is depends on its text alone and not on the pieces in which that comes. It is known to be no call as
soon as one character says so.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable

from vllm_chill.core.tool_call_shapes import FIRST_TAGS, Written, attributes_in, function_call, json_calls, xml_call
from vllm_chill.core.tools import Tools

CALL_CHARACTERS = 1 << 18
"""A longer call is text."""

_SPACE_CHARACTERS = 512  # white space and the like, before and behind what a call says
_JSON_DEPTH = 200


class End(enum.IntEnum):
    """Whether the answer has ended: not yet, where the model wanted it to, or before."""

    NOT_YET = 0
    STOP = 1
    CUT = 2


class Verdict(enum.Enum):
    """What is read has to be seen, is a call, or is text."""

    OPEN = 0
    CALL = 1
    TEXT = 2


_NAMESPACE = r"(?:[A-Za-z][\w.\-]{0,39}:)?"
_TAG = rf"(?:{_NAMESPACE}(?:tool_call|function_call)|tool:call)"
OPENING = re.compile(rf"<(?:(?P<tag>{_TAG})(?P<attributes>\s[^<>]{{0,400}})?|function=(?P<function>[^<>\n]{{1,200}}))>")
"""The tag that a call may begin with."""
OPENING_START = re.compile(
    rf"<(?:[A-Za-z][\w.\-]{{0,39}}(?::[a-z_]{{0,13}})?|{_TAG}\s[^<>]{{0,400}}|function=[^<>\n]{{0,200}})?"
)
"""What may become one."""

_FUNCTION = re.compile(r"<function=([^<>\n]{1,200})>")
_CLOSING = re.compile(rf"</(?:function|{_TAG})>")
_CLOSING_CHARACTERS = 60  # more than the longest of them

# Before what a call says.
_BEFORE = re.compile(r"(?:\s++|<!\[CDATA\[|<!--(?:[^-]|-(?!->))*+-->|```[a-z]*+\s)*+")
_ELEMENT = re.compile(rf"<{_NAMESPACE}([A-Za-z_][\w.\-]*)(?:\s[^<>]*)?/?>")
_BEFORE_START = re.compile(
    r"`{1,3}[a-z]*|<!(?:\[[CDAT]{0,5}|--?(?:[^-]|-(?!->))*)?"
    r"|<(?:[A-Za-z_][\w.\-]{0,60}(?::[\w.\-]{0,60})?(?:\s[^<>]{0,300})?/?|function=[^<>\n]{0,200})?|"
)
_BODY = re.compile(r"<parameter=[^<>\n]{1,200}>|</function>|</tool_call>|\{")
_BODY_START = re.compile(r"<(?:p[a-z]{0,8}|parameter=[^<>\n]{0,200}|/[a-z_]{0,9})?|")
_JSON_FIRST = re.compile(r"[\[{][\s\[{]{0,40}+(?:[\"'&}\]]|\Z)")
_JSON_NAME = re.compile(r"""[\[{][\s\[{]{0,40}+["']name["']\s{0,20}+:\s{0,20}+(["'])([^"'\\]{0,200}+)\1""")
_JSON_NAME_START = re.compile(
    r"""[\[{][\s\[{]{0,40}+(?:["'](?:n(?:a(?:m(?:e(?:["']\s{0,20}+(?::\s{0,20}+(?:["'][^"'\\]{0,200}+)?)?)?)?)?)?)?)?"""
)

_JSON_MARK = re.compile(r"[\"'{}\[\]<]")
_IN_STRING = {'"': re.compile(r'["\\]'), "'": re.compile(r"['\\]")}
_BRACKETS = {"}": "{", "]": "["}
_CLOSED = str.maketrans("{[", "}]")
_XML_MARK = re.compile(rf"<!\[CDATA\[|<!--|</{_TAG}>")
_XML_ENDS = {"<![CDATA[": "]]>", "<!--": "-->"}
_XML_WHOLE = re.compile(rf"</{_NAMESPACE}(?:arguments|args|tool_arguments|parameters)>\s*(?:\]\]>\s*)?\Z")

# Behind what a call says, before its closing tag.
_AFTER = re.compile(r"(?:\s++|```|\]\]>)*+")
_AFTER_START = re.compile(r"``?|\]\]?")
_SPACE = re.compile(r"\s*+")

_Step = Callable[["End"], Verdict]


class CallReader:
    """What may be a call.

    `tag` is its first one, `body` what has been looked through since, `rest` what has not. `begun`: it has the look
    of a call of one of the tools. `closing` is what may still stand behind it, once it is one.

    Each step looks through `rest` as far as it can, and says what it is, or that more has to come; or it leaves the
    rest to the next step.
    """

    __slots__ = (
        "_close",
        "_from",
        "_name",
        "_open",
        "_parts",
        "_size",
        "_step",
        "_tools",
        "_within",
        "begun",
        "calls",
        "closing",
        "rest",
        "tag",
    )

    def __init__(self, opening: re.Match[str], tools: Tools) -> None:
        self.tag = opening[0]
        self.rest = ""
        self.begun = False
        self.calls: list[Written] = []
        self.closing = ""
        self._tools = tools
        self._parts: list[str] = []
        self._size = 0
        self._from = 0  # where in the body what the call says begins
        self._within = ""  # the quote of the string, or the end of the section, that it is in
        self._open: list[str] = []  # the brackets of JSON that are
        self._step: _Step = self._start
        self._close = f"</{opening['tag']}>"
        self._name = attributes_in(opening["attributes"] or "").get("name")
        if opening["function"] is not None:
            self._close, self._name, self._step = "</tool_call>", _bare(opening["function"]), self._function_start

    @property
    def hopeful(self) -> bool:
        """Whether it can be a call at all, by its first tag."""
        return self._name is None or self._name in self._tools

    @property
    def body(self) -> str:
        return "".join(self._parts)

    def feed(self, text: str, end: End) -> Verdict:
        """What it is, now that it goes on so. Of a call, `calls` are made and `rest` is what stands behind it."""
        self.rest += text
        while True:
            step = self._step
            verdict = step(end)
            if verdict is not Verdict.OPEN:
                return Verdict.TEXT if self._size > CALL_CHARACTERS else verdict
            if self._step == step:
                waits = not end and self._size + len(self.rest) <= CALL_CHARACTERS
                return Verdict.OPEN if waits else Verdict.TEXT

    @property
    def _said(self) -> str:
        return self.body[self._from :]

    def _take(self, size: int) -> None:
        """Count so much of the rest to the body."""
        if size > 0:
            self._parts.append(self.rest[:size])
            self.rest = self.rest[size:]
            self._size += size

    def _go(self, step: _Step, taken: int = 0) -> Verdict:
        if taken:
            self._take(taken)
            self._from = self._size
        self._step = step
        return Verdict.OPEN

    def _call(self, calls: list[Written] | None, size: int) -> Verdict:
        """A call if there are any; it ends with so much of the rest."""
        if not calls:
            return Verdict.TEXT
        self._take(size)
        self.calls = calls
        return Verdict.CALL

    def _unless_short(self, start: re.Pattern[str], at: int) -> Verdict:
        """Text, unless what is there from `at` on may become what has to be there."""
        short = len(self.rest) <= 2 * _SPACE_CHARACTERS and start.fullmatch(self.rest, at)
        return Verdict.OPEN if short else Verdict.TEXT

    def _start(self, end: End) -> Verdict:
        """Which shape it has."""
        rest, at = self.rest, _after(_BEFORE, self.rest, 0)
        if at > _SPACE_CHARACTERS:
            return Verdict.TEXT
        if rest[at : at + 1] in {"{", "["}:
            return self._go(self._json_start, at)
        if inner := _FUNCTION.match(rest, at):
            name = _bare(inner[1])
            if name not in self._tools or self._name not in {None, name}:
                return Verdict.TEXT
            self._name = name
            return self._go(self._function_start, inner.end())
        if self._name is not None and rest.startswith(self._close, at):
            return self._go(self._xml, at)
        if element := _ELEMENT.match(rest, at):
            if self._name is None and element[1] not in FIRST_TAGS:
                return Verdict.TEXT
            self.begun = True
            return self._go(self._xml, at)
        if self._name is not None and self._close.startswith(rest[at:]):
            return Verdict.OPEN
        return self._unless_short(_BEFORE_START, at)

    # {"name": ..., "arguments": {...}}

    def _json_start(self, end: End) -> Verdict:
        rest = self.rest
        if not _JSON_FIRST.match(rest):
            return Verdict.TEXT
        if named := _JSON_NAME.match(rest):
            if self._name is None and named[2] not in self._tools:
                return Verdict.TEXT
        elif _JSON_NAME_START.fullmatch(rest):
            return Verdict.OPEN
        self.begun = True
        return self._go(self._json)

    def _json(self, end: End) -> Verdict:
        rest, at, size = self.rest, 0, len(self.rest)
        while at < size:
            if self._within:
                mark = _IN_STRING[self._within].search(rest, at)
                if mark is None:
                    at = size
                elif mark[0] != "\\":
                    at, self._within = mark.end(), ""
                elif mark.end() < size:
                    at = mark.end() + 1
                else:
                    at = mark.start()
                    break
                continue
            mark = _JSON_MARK.search(rest, at)
            if mark is None:
                at = size
                break
            at, found = mark.start(), mark[0]
            if found == "<":
                if rest.startswith(self._close, at):
                    self._take(at)
                    return self._call(self._unclosed_json(), len(self._close))
                if self._close.startswith(rest[at:]):
                    break
                return Verdict.TEXT
            at += 1
            if found in _IN_STRING:
                self._within = found
            elif found in _BRACKETS.values():
                self._open.append(found)
                if len(self._open) > _JSON_DEPTH:
                    return Verdict.TEXT
            elif self._open.pop() != _BRACKETS[found]:
                return Verdict.TEXT
            elif not self._open:
                self._take(at)
                return self._go(self._json_end)
        self._take(at)
        if end is End.STOP and not self._within:
            return self._call(self._unclosed_json(), len(self.rest))
        return Verdict.OPEN

    def _unclosed_json(self) -> list[Written] | None:
        missing = "".join(reversed(self._open)).translate(_CLOSED)
        return json_calls(self._said + missing, self._tools, self._name)

    def _json_end(self, end: End) -> Verdict:
        rest, at = self.rest, _after(_AFTER, self.rest, 0)
        if at > _SPACE_CHARACTERS:
            return Verdict.TEXT
        if rest.startswith(self._close, at):
            at += len(self._close)
        elif self._close.startswith(rest[at:]) or _AFTER_START.fullmatch(rest, at):
            if not end:
                return Verdict.OPEN
            at = len(rest)
        elif not OPENING.match(rest, at):  # the next call says too that this one is over
            may_be = not end and OPENING_START.fullmatch(rest, at)
            return Verdict.OPEN if may_be else Verdict.TEXT
        return self._call(json_calls(self._said, self._tools, self._name), at)

    # <function=NAME><parameter=KEY>VALUE</parameter></function>

    def _function_start(self, end: End) -> Verdict:
        at = _after(_SPACE, self.rest, 0)
        if at > _SPACE_CHARACTERS:
            return Verdict.TEXT
        if not _BODY.match(self.rest, at):
            return self._unless_short(_BODY_START, at)
        self.begun = True
        return self._go(self._function)

    def _function(self, end: End) -> Verdict:
        assert self._name is not None
        rest = self.rest
        closing = _CLOSING.search(rest)
        if closing is not None:
            self._take(closing.start())
            if closing[0] == "</function>":
                self.closing = self._close
            return self._call(function_call(self._name, self._said, self._tools), len(closing[0]))
        if not end:
            self._take(len(rest) - _CLOSING_CHARACTERS)
            return Verdict.OPEN
        said = _without_start_of(self._said + rest, "</parameter>", "</function>", self._close)
        return self._call(function_call(self._name, said, self._tools, cut=end is End.CUT), len(rest))

    # <tool_name>NAME</tool_name><arguments><key>value</key></arguments>

    def _xml(self, end: End) -> Verdict:
        rest, at = self.rest, 0
        while True:
            if self._within:
                found = rest.find(self._within, at)
                if found < 0:
                    at = max(at, len(rest) - 2)
                    break
                at, self._within = found + 3, ""
            mark = _XML_MARK.search(rest, at)
            if mark is None:
                at = max(at, len(rest) - _CLOSING_CHARACTERS)
                break
            if mark[0] == self._close:
                self._take(mark.start())
                return self._call(self._in_elements(self._said), len(self._close))
            at, self._within = mark.end(), _XML_ENDS.get(mark[0], "")
        self._take(at)
        if end and not self._within:
            said = _without_start_of(self._said + self.rest, self._close)
            if _XML_WHOLE.search(said):
                return self._call(self._in_elements(said), len(self.rest))
        return Verdict.OPEN

    def _in_elements(self, said: str) -> list[Written] | None:
        return xml_call(said.rstrip().removesuffix("]]>"), self._tools, self._name)


def _bare(name: str) -> str:
    """A name without what some models put round it."""
    return name.strip(" \"'")


def _after(pattern: re.Pattern[str], text: str, at: int) -> int:
    """Where what always matches ends."""
    match = pattern.match(text, at)
    return match.end() if match else at


def _without_start_of(text: str, *tags: str) -> str:
    """The text without the start of one of these at its end."""
    at = text.rfind("<")
    start = text[at:]
    return text[:at] if at >= 0 and any(tag.startswith(start) and tag != start for tag in tags) else text
