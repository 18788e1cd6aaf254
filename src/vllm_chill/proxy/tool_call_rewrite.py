"""Chat completions whose tool calls the model wrote as text, as what they would be with OpenAI: `tool_calls`. Pure but
for the ids.

The rule: what needs no change goes out byte for byte as it came, and every event of a stream goes out when it comes,
with whatever of its text may be part of a call left out until that is known. So no stream falls silent, and nothing
else of an event (role, reasoning, logprobs, usage) moves.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from typing import Any

from aiohttp.web import BaseRequest

from vllm_chill.core.tool_calls import Part, ToolCall, ToolCallParser
from vllm_chill.core.tools import Tools, tools_of
from vllm_chill.proxy.aiohttp_seam import message_of
from vllm_chill.proxy.body import RequestBody
from vllm_chill.proxy.committed import BodyRewrite, Kind, Rewrite

DOCUMENT_BYTES = 4 << 20
"""A larger answer that is not streamed goes out as it is."""

EVENT_BYTES = 1 << 20
"""From a larger event on a stream goes out as it is."""

_PATH = "/v1/chat/completions"


def tool_call_rewrite(request: BaseRequest, body: RequestBody) -> Rewrite | None:
    """What is done to the answer of this request: None if it is no chat completion that offers tools.

    A body that is streamed, as it is larger than what is kept for a replay, is not looked into.
    """
    if request.method != "POST" or message_of(request).path.partition("?")[0] != _PATH:
        return None
    whole = body.whole
    return None if whole is None else rewrite_of(whole)


def rewrite_of(request: bytes) -> Rewrite | None:
    """The same for the body of a chat completion request."""
    if b'"tools"' not in request:
        return None
    try:
        tools = tools_of(json.loads(request))
    except (ValueError, RecursionError):
        return None
    if not tools:
        return None

    def rewrite(kind: Kind) -> BodyRewrite:
        return EventsRewrite(tools, new_ids()) if kind is Kind.EVENTS else DocumentRewrite(tools, new_ids())

    return rewrite


def new_ids() -> Iterator[str]:
    """Ids of calls. They are random, as a conversation has the calls of many answers in it."""
    while True:
        yield f"call_{secrets.token_hex(12)}"


class _Choice:
    """One choice of an answer. `parser` is None once nothing of it is rewritten any more; `made` counts its calls."""

    __slots__ = ("made", "parser")

    def __init__(self, tools: Tools, ids: Iterator[str]) -> None:
        self.parser: ToolCallParser | None = ToolCallParser(tools, ids)
        self.made = 0

    def read(self, text: str, *, ends: bool, cut: bool = True) -> tuple[str, list[dict[str, Any]]]:
        """The text and the calls, as OpenAI has them in a stream, that are known now."""
        parser = self.parser
        if parser is None:
            return text, []
        parts = parser.feed(text)
        if ends:
            parts += parser.end(cut=cut)
            self.parser = None
        if len(parts) == 1 and isinstance(parts[0], str):
            return parts[0], []
        calls = []
        for part in parts:
            if isinstance(part, ToolCall):
                calls.append({"index": self.made, **_call(part)})
                self.made += 1
        return _text(parts), calls

    def reason(self, said: object) -> object:
        """Why it is over, where the engine has said that it is for this reason."""
        return "tool_calls" if self.made and said == "stop" else said


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _text(parts: list[Part]) -> str:
    return "".join(part for part in parts if isinstance(part, str))


def _is_cut(reason: object) -> bool:
    """Whether a choice that is over for this reason is not over because the model said so."""
    return reason != "stop" and reason != "tool_calls"


# Both a line's end and an event's: a CR counts only once it is known what follows.
_COMMENTS = re.compile(rb"(?:(?::[^\r\n]*+)?(?:\r\n|\n|\r(?=[^\n])))++")
_EVENT_END = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r(?=[^\n]))")
_NO_CHUNK: dict[str, Any] = {}


class EventsRewrite:
    """A stream of server-sent events."""

    __slots__ = ("_choices", "_chunk", "_ids", "_passes", "_rest", "_tools")

    def __init__(self, tools: Tools, ids: Iterator[str]) -> None:
        self._tools = tools
        self._ids = ids
        self._choices: dict[int, _Choice] = {}
        self._chunk = _NO_CHUNK  # the last one, as a pattern for those that are ours
        self._rest = b""  # the start of an event
        self._passes = False

    def feed(self, data: bytes) -> bytes:
        if self._passes:
            return data
        if self._rest:
            data = self._rest + data
        out: list[bytes] = []
        kept = at = 0
        while True:
            if comments := _COMMENTS.match(data, at):
                at = comments.end()
            end = _EVENT_END.search(data, at)
            if end is None:
                break
            changed = self._event(data[at : end.start()])
            if changed is not None:
                out += (data[kept:at], changed)
                kept = end.end()
            at = end.end()
        self._rest = data[at:]
        if len(self._rest) > EVENT_BYTES:
            out += (data[kept:at], self._left(), self._rest)
            self._rest, self._passes = b"", True
            return b"".join(out)
        if not out:
            return data[:at]
        out.append(data[kept:at])
        return b"".join(out)

    def end(self) -> bytes:
        rest, self._rest = self._rest, b""
        changed = self._event(rest)
        if changed is not None:
            rest = changed
        left = self._left()
        if rest and left:
            return rest.rstrip(b"\r\n") + b"\n\n" + left
        return rest + left

    def rescue(self) -> bytes:
        try:
            json.loads(self._rest.partition(b":")[2])
        except (ValueError, RecursionError):
            return self._left()
        return self.end()

    def _event(self, event: bytes) -> bytes | None:
        """What goes out for an event, if that is not the event itself."""
        more = b""
        if event.startswith(b"data:") and b"\n" not in event and b"\r" not in event:
            data = event[5:].strip()
        else:
            lines = event.splitlines()
            if any(line.startswith(b"event:") and line[6:].strip() != b"message" for line in lines):
                return None
            data = b"\n".join(line[5:] for line in lines if line.startswith(b"data:")).strip()
            more = b"".join(line + b"\n" for line in lines if not line.startswith(b"data:"))
        if data == b"[DONE]":
            return self._before(event)
        try:
            chunk = json.loads(data)
        except (ValueError, RecursionError):
            return None
        if not isinstance(chunk, dict):
            return None
        choices = chunk.get("choices")
        if not isinstance(choices, list):
            return self._before(event) if "error" in chunk else None
        ours: list[dict[str, Any]] = []
        changed = False
        for choice in choices:
            changed = self._rewrite(choice, ours) or changed
        self._chunk = chunk
        if not changed:
            return None
        return b"".join((more, _event(chunk), *(_event(self._like(choice)) for choice in ours)))

    def _rewrite(self, choice: Any, ours: list[dict[str, Any]]) -> bool:
        """Change a choice of a chunk, and add those that are to follow it; whether anything has changed."""
        match choice:
            case {"index": int(index), "delta": dict(delta)}:
                pass
            case _:
                return False
        known = self._choices.get(index)
        if known is None:
            known = self._choices[index] = _Choice(self._tools, self._ids)
        said, native, reason = delta.get("content"), delta.get("tool_calls"), choice.get("finish_reason")
        content = said if isinstance(said, str) else ""
        changed = bool(native) and known.made > 0
        if changed:
            _renumber(native, known.made)
        text, calls = known.read(content, ends=bool(native) or reason is not None, cut=bool(native) or _is_cut(reason))
        if text != content:
            delta["content"], changed = text, True
        if (new := known.reason(reason)) != reason:
            choice["finish_reason"], changed = new, True
        if not calls:
            return changed
        ours += [_delta(index, {"tool_calls": [call]}) for call in calls]
        if reason is not None:
            choice["finish_reason"], ours[-1]["finish_reason"] = None, new
        return True

    def _like(self, choice: dict[str, Any]) -> dict[str, Any]:
        """A chunk of ours with this choice."""
        ours = {"choices": [choice], "usage": None}
        return {key: ours.get(key, value) if key in ours else value for key, value in self._chunk.items()}

    def _before(self, event: bytes) -> bytes | None:
        """An event after which nothing is read any more, behind what is left."""
        left = self._left()
        return left + event + b"\n\n" if left else None

    def _left(self) -> bytes:
        """Events with what has been held, as there will be no more."""
        out = b""
        for index, known in self._choices.items():
            text, calls = known.read("", ends=True)
            deltas: list[dict[str, Any]] = [{"content": text}] if text else []
            deltas += [{"tool_calls": [call]} for call in calls]
            out += b"".join(_event(self._like(_delta(index, delta))) for delta in deltas)
        return out


def _delta(index: int, delta: dict[str, Any]) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


def _renumber(native: object, by: int) -> None:
    """Count an engine's own calls from where those of ours end."""
    for call in native if isinstance(native, list) else ():
        if isinstance(call, dict) and isinstance(call.get("index"), int):
            call["index"] += by


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % _dumped(chunk)


def _dumped(document: Any) -> bytes:
    try:
        return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can say and UTF-8 cannot
        return json.dumps(document, separators=(",", ":")).encode()


class DocumentRewrite:
    """A whole answer."""

    __slots__ = ("_ids", "_kept", "_passes", "_size", "_tools")

    def __init__(self, tools: Tools, ids: Iterator[str]) -> None:
        self._tools = tools
        self._ids = ids
        self._kept: list[bytes] = []
        self._size = 0
        self._passes = False

    def feed(self, data: bytes) -> bytes:
        if self._passes:
            return data
        self._kept.append(data)
        self._size += len(data)
        if self._size <= DOCUMENT_BYTES:
            return b""
        self._passes = True
        return self._taken()

    def end(self) -> bytes:
        body = self._taken()
        try:
            answer = json.loads(body) if b"<" in body or b"\\u003c" in body.lower() else None
        except (ValueError, RecursionError):
            return body
        choices = answer.get("choices") if isinstance(answer, dict) else None
        changed = [self._rewrite(choice) for choice in choices] if isinstance(choices, list) else ()
        return _dumped(answer) if any(changed) else body

    def rescue(self) -> bytes:
        return self._taken()

    def _taken(self) -> bytes:
        body = b"".join(self._kept)
        self._kept.clear()
        return body

    def _rewrite(self, choice: Any) -> bool:
        """Change a choice; whether there was a call in it."""
        match choice:
            case {"message": {"content": str(content), **more} as message} if not more.get("tool_calls"):
                pass
            case _:
                return False
        parser = ToolCallParser(self._tools, self._ids)
        parts = parser.feed(content) + parser.end(cut=_is_cut(choice.get("finish_reason")))
        if not parser.made:
            return False
        text = _text(parts)
        message["content"] = text if text.strip() else None
        message["tool_calls"] = [_call(part) for part in parts if isinstance(part, ToolCall)]
        if choice.get("finish_reason") == "stop":
            choice["finish_reason"] = "tool_calls"
        return True
