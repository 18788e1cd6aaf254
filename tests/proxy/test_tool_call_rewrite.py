"""What becomes of an answer with calls in its text: streamed in any pieces, and whole."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_chill.core.tools import tools_of
from vllm_chill.proxy.committed import Kind
from vllm_chill.proxy.tool_call_rewrite import (
    DOCUMENT_BYTES,
    EVENT_BYTES,
    DocumentRewrite,
    EventsRewrite,
    new_ids,
    rewrite_of,
)

REQUEST: dict[str, Any] = {
    "model": "m",
    "messages": [],
    "tools": [
        {
            "type": "function",
            "function": {"name": "find_train", "parameters": {"properties": {"seats": {"type": "integer"}}}},
        },
        {"type": "function", "function": {"name": "now"}},
    ],
}
TOOLS = tools_of(REQUEST)
DONE = b"data: [DONE]\n\n"
NOW = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
TRAIN = "<tool_call>\n<function=find_train>\n<parameter=seats>\n2\n</parameter>\n</function>\n</tool_call>"


def event(*choices: dict[str, Any], **more: Any) -> bytes:
    chunk = {"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices, **more}
    return b"data: %b\n\n" % json.dumps(chunk, separators=(",", ":"), ensure_ascii=False).encode()


def said(content: str | None, index: int = 0, reason: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"index": index, "delta": {"content": content, **delta}, "logprobs": None, "finish_reason": reason}


def stream(*contents: str, reason: str | None = "stop") -> bytes:
    """As vLLM streams an answer, with its usage."""
    first = event(said("", role="assistant"))
    last = event(said("", reason=reason), usage=None) + event(usage={"total_tokens": 9})
    return first + b"".join(event(said(content)) for content in contents) + last + DONE


def events() -> EventsRewrite:
    return EventsRewrite(TOOLS, map("call_{}".format, itertools.count()))


def rewritten(*pieces: bytes) -> bytes:
    rewrite = events()
    return b"".join(rewrite.feed(piece) for piece in pieces) + rewrite.end()


def chunks(data: bytes) -> list[dict[str, Any]]:
    """The chunks of a stream."""
    said = [each[5:].strip() for each in data.split(b"\n\n") if each.startswith(b"data:")]
    return [json.loads(each) for each in said if each != b"[DONE]"]


def told(data: bytes, index: int = 0) -> tuple[str, list[tuple[str, Any]], list[str]]:
    """The text, the calls and the finish reasons of one choice, as a client adds them up."""
    text, calls, reasons = "", dict[int, list[str]](), list[str]()
    for chunk in chunks(data):
        for choice in chunk["choices"]:
            if choice["index"] != index:
                continue
            assert not reasons, "nothing comes behind the finish reason"
            text += choice["delta"].get("content") or ""
            for call in choice["delta"].get("tool_calls", ()):
                known = calls.setdefault(call["index"], ["", ""])
                known[0] += call["function"].get("name", "")
                known[1] += call["function"].get("arguments", "")
            reasons += [choice["finish_reason"]] if choice["finish_reason"] else []
    assert list(calls) == list(range(len(calls)))
    return text, [(name, json.loads(arguments)) for name, arguments in calls.values()], reasons


def tokens(text: str) -> list[str]:
    return re.findall(r"\s*\w+|\s*\W", text)


class TestAStream:
    def test_without_calls_only_what_may_be_a_tag_comes_later(self) -> None:
        rewrite = events()
        sent = [event(said(content)) for content in ("If a ", "<", " b, then `", "<tool_", "call>", "`.")]
        out = [rewrite.feed(each) for each in sent]
        came = [chunk["choices"][0]["delta"]["content"] for chunk in chunks(b"".join(out))]
        assert came == ["If a ", "", "< b, then `", "", "<tool_call>", "`."]
        assert out[0] == sent[0]
        assert out[5] == sent[5]

    def test_without_calls_it_is_the_same_bytes(self) -> None:
        data = stream("I ", "look for `", "<tool_call>", "`.", "\n", "a <b> c", "\N{GRINNING FACE}")
        assert rewritten(data) == data

    def test_calls_are_calls(self) -> None:
        data = stream(*tokens(f"I look.\n{TRAIN}\n{NOW}\n"))
        out = rewritten(data)
        assert told(out) == ("I look.\n", [("find_train", {"seats": 2}), ("now", {})], ["tool_calls"])
        first = next(chunk for chunk in chunks(out) if "tool_calls" in chunk["choices"][0]["delta"])
        assert first == {
            "id": "c-1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "m",
            "choices": [
                {
                    "index": 0,
                    "delta": {
                        "tool_calls": [
                            {
                                "index": 0,
                                "id": "call_0",
                                "type": "function",
                                "function": {"name": "find_train", "arguments": '{"seats": 2}'},
                            }
                        ]
                    },
                    "logprobs": None,
                    "finish_reason": None,
                }
            ],
        }

    def test_no_event_is_held(self) -> None:
        rewrite = events()
        sent = [event(said(token)) for token in tokens(TRAIN)]
        for each in sent:
            assert len(chunks(rewrite.feed(each))) >= 1

    def test_its_first_and_last_events_are_as_they_were(self) -> None:
        out = rewritten(stream(NOW))
        assert out.startswith(event(said("", role="assistant")))
        assert out.endswith(event(usage={"total_tokens": 9}) + DONE)

    def test_the_rest_of_a_changed_event_is_as_it_was(self) -> None:
        choice = said("a <tool_c", reasoning_content="hm")
        choice["logprobs"] = {"content": [{"token": "<tool_c", "logprob": -0.5}]}
        data = event(choice, usage={"total_tokens": 3}, system_fingerprint="f")
        choice["delta"]["content"] = "a "
        assert events().feed(data) == event(choice, usage={"total_tokens": 3}, system_fingerprint="f")

    def test_a_call_in_the_last_chunk_comes_before_its_finish_reason(self) -> None:
        out = rewritten(event(said(f"So: {NOW}", reason="stop"), usage={"total_tokens": 3}) + DONE)
        assert told(out) == ("So: ", [("now", {})], ["tool_calls"])
        assert [chunk["usage"] for chunk in chunks(out)] == [{"total_tokens": 3}, None]

    @pytest.mark.parametrize(
        ("reason", "call"),
        [("stop", True), ("length", False), ("abort", False), ("content_filter", False), (None, False)],
    )
    def test_a_call_without_its_end_counts_if_the_model_has_stopped(self, reason: str | None, call: bool) -> None:
        text = "<function=find_train><parameter=seats>2"
        out = rewritten(stream(*tokens(text), reason=reason))
        reasons = ["tool_calls"] if call else [reason] if reason else []
        assert told(out) == ("" if call else text, [("find_train", {"seats": 2})] if call else [], reasons)

    def test_a_call_that_is_whole_counts_though_the_answer_is_cut_off(self) -> None:
        assert told(rewritten(stream(NOW + " and", reason="length"))) == (" and", [("now", {})], ["length"])

    def test_choices_are_read_apart(self) -> None:
        parts = [(0, NOW[:9]), (1, "Hello <"), (0, NOW[9:30]), (1, "3"), (2, NOW), (0, NOW[30:])]
        data = b"".join(event(said(text, index)) for index, text in parts)
        data += event(said("", 0, "stop"), said("", 1, "stop"), said("", 2, "stop")) + DONE
        out = rewritten(data)
        assert told(out, 0) == ("", [("now", {})], ["tool_calls"])
        assert told(out, 1) == ("Hello <3", [], ["stop"])
        assert told(out, 2) == ("", [("now", {})], ["tool_calls"])

    def test_an_engines_own_calls_pass(self) -> None:
        native = {"index": 0, "id": "x", "type": "function", "function": {"name": "now", "arguments": ""}}
        data = event(said("a <")) + event(said(None, tool_calls=[native]))
        data += event(said(None, tool_calls=[{"index": 0, "function": {"arguments": "{}"}}]))
        data += event(said(NOW)) + event(said(None, reason="tool_calls")) + DONE
        out = rewritten(data)
        assert told(out) == ("a <" + NOW, [("now", {})], ["tool_calls"])
        assert out.endswith(data[data.index(event(said(NOW))) :])

    def test_an_engines_own_calls_are_counted_behind_ours(self) -> None:
        native = {"index": 0, "id": "x", "type": "function", "function": {"name": "now", "arguments": "{}"}}
        out = rewritten(event(said(TRAIN)) + event(said(None, tool_calls=[native], reason="tool_calls")) + DONE)
        assert told(out) == ("", [("find_train", {"seats": 2}), ("now", {})], ["tool_calls"])

    @pytest.mark.parametrize(
        "other",
        [
            pytest.param(b": ping\n\n", id="a comment"),
            pytest.param(b": ping\n", id="a comment without an empty line"),
            pytest.param(b"\n\n", id="empty lines"),
            pytest.param(b"event: other\ndata: " + event(said("<"))[6:], id="another kind of event"),
            pytest.param(b"id: 7\nretry: 3\n\n", id="fields without data"),
            pytest.param(b"data: {broken\n\n", id="no JSON"),
            pytest.param(b"data: " + b"[" * 50_000 + b"\n\n", id="deep"),
            pytest.param(b'data: "text"\n\n', id="no object"),
            pytest.param(b'data: {"object":"other"}\n\n', id="no choices"),
            pytest.param(b'data: {"choices":[]}\n\n', id="an empty list of choices"),
            pytest.param(
                b'data: {"choices":[null,{},{"index":0},{"index":"a","delta":{"content":"<"}}]}\n\n', id="odd"
            ),
            pytest.param(b'data: {"choices":[{"index":0,"delta":{"content":null}}]}\n\n', id="no content"),
            pytest.param(b'data: {"choices":[{"index":0,"delta":{"content":[]}}]}\n\n', id="content of another kind"),
        ],
    )
    def test_what_is_no_chunk_with_text_passes(self, other: bytes) -> None:
        rewrite = events()
        assert rewrite.feed(other) == other
        assert rewrite.feed(event(said(NOW[:20]))) == event(said(""))
        assert rewrite.feed(other) == other
        assert told(rewrite.feed(event(said(NOW[20:])))) == ("", [("now", {})], [])

    @pytest.mark.parametrize(
        "shape",
        [
            pytest.param(lambda data: data.replace(b"data: ", b"data:"), id="no space"),
            pytest.param(lambda data: data.replace(b"\n", b"\r\n"), id="CRLF"),
            pytest.param(lambda data: data.replace(b"\n", b"\r"), id="CR"),
            pytest.param(lambda data: data.replace(b"data: {", b"data: {\ndata: "), id="data in two lines"),
            pytest.param(lambda data: data.replace(b"data: {", b"id: 1\nevent: message\ndata: {"), id="more fields"),
            pytest.param(lambda data: data.removesuffix(DONE), id="no end"),
            pytest.param(lambda data: data.removesuffix(b"\n"), id="half an end"),
            pytest.param(lambda data: data.replace(b"\n\n", b"\n\n\n: x\n\n"), id="comments"),
        ],
    )
    def test_events_in_any_dress(self, shape: Any) -> None:
        data = shape(stream("So: ", *tokens(TRAIN), "\n<", "a>"))
        out = rewritten(data)
        lines = re.sub(rb"\r\n|\r", b"\n", out).replace(b"data: {\ndata: ", b"data: {")
        assert told(re.sub(rb"(?m)^(:|id|event).*\n", b"", lines)) == (
            "So: \n<a>",
            [("find_train", {"seats": 2})],
            ["tool_calls"],
        )
        plain = shape(stream("Hello", " there"))
        assert rewritten(plain) == plain
        assert rewritten(*(plain[n : n + 1] for n in range(len(plain)))) == plain

    @pytest.mark.parametrize("end", [b"", DONE, b'data: {"error":{"message":"gone"}}\n\n' + DONE])
    def test_what_is_held_at_its_end_is_told(self, end: bytes) -> None:
        text = 'So: <tool_call>{"name": "now", "arg'
        out = rewritten(b"".join(event(said(token)) for token in tokens(text)) + end)
        assert out.endswith(end)
        assert told(out.removesuffix(end)) == (text, [], [])

    def test_half_an_event_at_its_end_is_not_lost(self) -> None:
        data = event(said("a <")) + b'data: {"choices": [{"ind'
        out = rewritten(data)
        assert b'data: {"choices": [{"ind\n\n' in out
        assert told(out.replace(b'data: {"choices": [{"ind\n\n', b"")) == ("a <", [], [])

    def test_what_is_held_is_told_when_its_upstream_is_lost(self) -> None:
        rewrite = events()
        out = rewrite.feed(event(said("a <tool_call>")) + b'data: {"choices": [{"ind')
        assert told(out + rewrite.rescue()) == ("a <tool_call>", [], [])
        rewrite = events()
        out = rewrite.feed(event(said("a <tool_call>")) + event(said(" b"))[:-2])
        assert told(out + rewrite.rescue()) == ("a <tool_call> b", [], [])

    def test_from_an_event_that_is_too_large_on_it_passes(self) -> None:
        head = event(said("a <"))
        large = b'data: {"x":"' + b"y" * EVENT_BYTES
        rewrite = events()
        out = rewrite.feed(head) + rewrite.feed(large)
        assert out.endswith(large)
        assert told(out.removesuffix(large)) == ("a <", [], [])
        assert rewrite.feed(event(said(NOW))) == event(said(NOW))
        assert rewrite.end() == b""

    def test_what_utf_8_cannot_say_is_said_in_json(self) -> None:
        data = b'data: {"choices":[{"index":0,"delta":{"content":"\\ud83d <"}}]}\n\n'
        rewrite = events()
        assert rewrite.feed(data) == data.replace(b" <", b" ")


CUTS = st.lists(st.integers(0, 100_000), max_size=10)
ANSWERS = [
    stream(*tokens(f"So: {TRAIN}\n{NOW}\nThat <is> it, \N{GRINNING FACE}")),
    stream("So: ", TRAIN, NOW, "<tool_call>", reason="length").replace(b"\n\n", b"\r\n\r\n"),
    stream("So ", '<tool_call>{"name"', reason=None).removesuffix(DONE).replace(b"\n\n", b"\n\n: ping\n\n"),
    event(said(NOW)) + event(said(NOW, 1)) + b"data:" + event(said("<"))[5:-1] + b"\r\r" + event(said("x"))[:-1],
]


def cut_up(data: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(at)]


@given(st.sampled_from(ANSWERS), CUTS)
def test_any_pieces_of_a_stream_give_the_same(data: bytes, cuts: list[int]) -> None:
    assert rewritten(*cut_up(data, cuts)) == rewritten(data)


@pytest.mark.parametrize("data", ANSWERS)
def test_single_bytes_of_a_stream_give_the_same(data: bytes) -> None:
    assert rewritten(*(data[n : n + 1] for n in range(len(data)))) == rewritten(data)


@given(st.lists(st.text(st.characters(exclude_characters="<", exclude_categories=["Cs"]))), CUTS)
def test_a_stream_without_a_sign_is_the_same_bytes(contents: list[str], cuts: list[int]) -> None:
    data = stream(*contents)
    assert rewritten(*cut_up(data, cuts)) == data


_FIELDS = ["choices", "index", "delta", "content", "tool_calls", "finish_reason", "message", "error", "usage"]
_LEAVES = st.none() | st.booleans() | st.integers(-1, 2) | st.sampled_from(["stop", NOW, "<", "<tool_call>"])
_ANYTHING = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_FIELDS), inner, max_size=4),
    max_leaves=12,
)
_CHOICES = st.fixed_dictionaries(
    {"index": _ANYTHING | st.just(0), "delta": st.dictionaries(st.sampled_from(_FIELDS), _ANYTHING)},
    optional={"finish_reason": _ANYTHING, "message": st.dictionaries(st.sampled_from(_FIELDS), _ANYTHING)},
)


@given(
    st.lists(_ANYTHING | st.builds(lambda choices: {"choices": choices}, st.lists(_CHOICES, max_size=3)), max_size=5)
)
def test_whatever_json_says_it_is_no_trouble(documents: list[Any]) -> None:
    data = b"".join(b"data: %b\n\n" % json.dumps(each).encode() for each in documents)
    assert len(chunks(rewritten(data))) >= len(documents)
    for each in documents:
        json.loads(document(json.dumps(each).encode()))


@given(st.binary(max_size=200), CUTS)
def test_what_is_no_stream_of_chunks_is_the_same_bytes(data: bytes, cuts: list[int]) -> None:
    assert rewritten(*cut_up(data, cuts)) == data


WORDS = st.sampled_from([*tokens(f"a {TRAIN} {NOW} <b> `"), NOW, TRAIN, "<tool_call>"])


@given(st.lists(WORDS, max_size=20), st.lists(st.integers(0, 1)), st.sampled_from(["stop", "length"]))
def test_streamed_or_whole_the_answer_is_the_same(words: list[str], choices: list[int], reason: str) -> None:
    said_by = list(zip(words, itertools.cycle(choices or [0]), strict=False))
    data = b"".join(event(said(word, index)) for word, index in said_by)
    data += event(said("", 0, reason), said("", 1, reason)) + DONE
    texts = ["".join(word for word, index in said_by if index == each) for each in (0, 1)]
    whole = json.loads(document(answer(*texts, reason=reason)))
    for choice in whole["choices"]:
        message = choice["message"]
        calls = [
            (call["function"]["name"], json.loads(call["function"]["arguments"])) for call in message["tool_calls"]
        ]
        text, streamed_calls, reasons = told(rewritten(data), choice["index"])
        assert (message["content"] or "") == (text if not calls or text.strip() else "")
        assert calls == streamed_calls
        assert [choice["finish_reason"]] == reasons


def answer(*contents: str | None, reason: str = "stop", **more: Any) -> bytes:
    """As vLLM answers, not streamed."""
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": content, "tool_calls": [], "reasoning_content": "hm", **more},
            "logprobs": None,
            "finish_reason": reason,
        }
        for index, content in enumerate(contents)
    ]
    return json.dumps({"id": "c-1", "choices": choices, "usage": {"total_tokens": 9}}).encode()


def document(*pieces: bytes) -> bytes:
    rewrite = DocumentRewrite(TOOLS, map("call_{}".format, itertools.count()))
    return b"".join(rewrite.feed(piece) for piece in pieces) + rewrite.end()


class TestADocument:
    def test_calls_are_calls_and_the_rest_is_kept(self) -> None:
        out = document(answer(f"I look.\n{TRAIN}\n{NOW}", "Hello", NOW))
        assert list(json.loads(out)) == ["id", "choices", "usage"]
        first, second, third = json.loads(out)["choices"]
        assert first == {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "I look.\n",
                "tool_calls": [
                    {
                        "id": "call_0",
                        "type": "function",
                        "function": {"name": "find_train", "arguments": '{"seats": 2}'},
                    },
                    {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": "{}"}},
                ],
                "reasoning_content": "hm",
            },
            "logprobs": None,
            "finish_reason": "tool_calls",
        }
        assert list(first["message"]) == ["role", "content", "tool_calls", "reasoning_content"]
        assert second == json.loads(answer("", "Hello"))["choices"][1]
        assert third["message"]["content"] is None
        assert third["message"]["tool_calls"][0]["id"] == "call_2"

    @pytest.mark.parametrize(
        "body",
        [
            pytest.param(answer("Hello"), id="no sign"),
            pytest.param(answer("a < b, `<tool_call>` <tool_call>"), id="no call"),
            pytest.param(answer(None), id="no content"),
            pytest.param(answer(NOW, tool_calls=[{"id": "x"}]), id="calls of the engine's own"),
            pytest.param(b"<html>", id="no JSON"),
            pytest.param(b'"<"', id="no object"),
            pytest.param(b'{"choices": "<"}', id="no choices"),
            pytest.param(b'{"choices": [null, {"message": null}, "<"]}', id="odd"),
            pytest.param(b"[" * 50_000 + b"<", id="deep"),
            pytest.param(b"", id="nothing"),
            pytest.param(answer("x" * DOCUMENT_BYTES + NOW), id="too large"),
        ],
    )
    def test_what_needs_no_change_is_the_same_bytes(self, body: bytes) -> None:
        assert document(body) == body
        assert document(*(body[at : at + 100_000] for at in range(0, len(body), 100_000))) == body

    def test_a_call_may_be_written_in_escapes(self) -> None:
        out = json.loads(document(answer(NOW).replace(b"<", b"\\u003C")))
        assert out["choices"][0]["message"]["tool_calls"]

    def test_an_answer_that_is_cut_off_keeps_its_reason(self) -> None:
        out = json.loads(document(answer(NOW + "<function=find_train><parameter=seats>2", reason="length")))
        message = out["choices"][0]["message"]
        assert message["content"] == "<function=find_train><parameter=seats>2"
        assert len(message["tool_calls"]) == 1
        assert out["choices"][0]["finish_reason"] == "length"


class TestARequest:
    @pytest.mark.parametrize(
        "body",
        [
            pytest.param(b"", id="nothing"),
            pytest.param(b'{"messages": []}', id="no tools"),
            pytest.param(b'{"tools": []}', id="an empty list of tools"),
            pytest.param(b'{"tools"', id="broken"),
            pytest.param(b'["tools"]', id="no object"),
            pytest.param(b'{"tools":' + b"[" * 50_000, id="deep"),
            pytest.param(json.dumps({**REQUEST, "tool_choice": "none"}).encode(), id="none may be called"),
        ],
    )
    def test_without_tools_nothing_is_rewritten(self, body: bytes) -> None:
        assert rewrite_of(body) is None

    def test_with_tools_streams_and_documents_are(self) -> None:
        rewrite = rewrite_of(json.dumps(REQUEST).encode())
        assert rewrite is not None
        assert told(rewrite(Kind.EVENTS).feed(event(said(NOW)))) == ("", [("now", {})], [])
        whole = rewrite(Kind.JSON)
        whole.feed(answer(NOW))
        assert json.loads(whole.end())["choices"][0]["finish_reason"] == "tool_calls"


def test_ids_are_never_the_same() -> None:
    ids = [*itertools.islice(new_ids(), 500), *itertools.islice(new_ids(), 500)]
    assert len(set(ids)) == 1000
    assert all(re.fullmatch("call_[0-9a-f]{24}", each) for each in ids)
