"""Calls in text: any pieces, any shape, and never a letter lost."""

from __future__ import annotations

import itertools
import json
import time
from typing import Any
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_chill.core.tool_call_reader import CALL_CHARACTERS
from vllm_chill.core.tool_calls import Part, ToolCall, ToolCallParser
from vllm_chill.core.tools import tools_of

STRING, INTEGER, NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}
PROPERTIES: dict[str, dict[str, Any]] = {
    "find_train": {"city": STRING, "seats": INTEGER, "price": NUMBER, "direct": {"type": "boolean"}},
    "write_file": {"path": STRING, "content": STRING, "options": {"type": "object"}, "lines": {"type": "array"}},
    "math.add/v2": {"a": INTEGER, "b": INTEGER},
    "now": {},
}
REQUIRED = {"find_train": ["city"], "write_file": ["path", "content"]}
TOOLS = tools_of(
    {
        "tools": [
            {
                "type": "function",
                "function": {"name": name, "parameters": {"properties": properties, "required": REQUIRED.get(name)}},
            }
            for name, properties in PROPERTIES.items()
        ]
    }
)


def joined(parts: list[Part]) -> list[str | tuple[str, Any]]:
    """Text and calls in their order, with the pieces of text as one."""
    out: list[str | tuple[str, Any]] = []
    for part in parts:
        if isinstance(part, ToolCall):
            out.append((part.name, json.loads(part.arguments)))
        elif out and isinstance(before := out[-1], str):
            out[-1] = before + part
        else:
            out.append(part)
    return out


def parsed(*pieces: str, cut: bool = False) -> list[str | tuple[str, Any]]:
    parser = ToolCallParser(TOOLS, map("call_{}".format, itertools.count()))
    parts = [part for piece in pieces for part in parser.feed(piece)] + parser.end(cut=cut)
    assert [part.id for part in parts if isinstance(part, ToolCall)] == [f"call_{n}" for n in range(parser.made)]
    return joined(parts)


def train(**arguments: Any) -> tuple[str, dict[str, Any]]:
    return "find_train", arguments


ULM = train(city="Ulm")
WELL_FORMED: dict[str, tuple[str, list[str | tuple[str, Any]]]] = {
    "Hermes": ('<tool_call>\n{"name": "find_train", "arguments": {"city": "Ulm"}}\n</tool_call>', [ULM]),
    "on one line, arguments first": (
        '<tool_call>{"arguments":{"city":"Ulm"},"name":"find_train"}</tool_call>',
        [ULM],
    ),
    "with words before it": (
        'I look.\n\n<tool_call>{"name":"find_train","arguments":{"city":"Ulm"}}</tool_call>\n',
        ["I look.\n\n", ULM],
    ),
    "with words behind it": (
        '<tool_call>{"name":"find_train","arguments":{"city":"Ulm"}}</tool_call>\nThere.',
        [ULM, "\nThere."],
    ),
    "two of them": (
        '<tool_call>{"name":"find_train","arguments":{"city":"Ulm"}}</tool_call>\n'
        '<tool_call>{"name":"now","arguments":{}}</tool_call>',
        [ULM, ("now", {})],
    ),
    "a list of them": (
        '<tool_call>[{"name":"find_train","arguments":{"city":"Ulm"}}, {"name":"now"}]</tool_call>',
        [ULM, ("now", {})],
    ),
    "arguments as a string": (
        '<tool_call>{"name":"find_train","arguments":"{\\"city\\": \\"Ulm\\"}"}</tool_call>',
        [ULM],
    ),
    "as OpenAI writes them": (
        '<tool_call>{"type":"function","function":{"name":"find_train","arguments":"{\\"city\\":\\"Ulm\\"}"}}</tool_call>',
        [ULM],
    ),
    "parameters for arguments": (
        '<tool_call>{"name":"find_train","parameters":{"city":"Ulm"}}</tool_call>',
        [ULM],
    ),
    "no arguments": ('<tool_call>{"name": "now"}</tool_call>', [("now", {})]),
    "a name with a dot and a slash": (
        '<tool_call>{"name": "math.add/v2", "arguments": {"a": 1, "b": -2}}</tool_call>',
        [("math.add/v2", {"a": 1, "b": -2})],
    ),
    "the closing tag in a value": (
        '<tool_call>{"name":"find_train","arguments":{"city":"</tool_call> \\" <tool_call>"}}</tool_call>',
        [train(city='</tool_call> " <tool_call>')],
    ),
    "a comma too many": ('<tool_call>{"name":"find_train","arguments":{"city":"Ulm",},}</tool_call>', [ULM]),
    "single quotes": ("<tool_call>{'name': 'find_train', 'arguments': {'city': 'Ulm'}}</tool_call>", [ULM]),
    "a line break in a string": (
        '<tool_call>{"name":"write_file","arguments":{"path":"a","content":"x\ny"}}</tool_call>',
        [("write_file", {"path": "a", "content": "x\ny"})],
    ),
    "a bracket too few": ('<tool_call>{"name":"find_train","arguments":{"city":"Ulm"}</tool_call>', [ULM]),
    "entities for quotes": (
        '<tool_call>{"name": "find_train", "arguments": {"city": "Ulm"}}</tool_call>'.replace('"', "&quot;"),
        [ULM],
    ),
    "a fence in the tag": (
        '<tool_call>\n```json\n{"name":"find_train","arguments":{"city":"Ulm"}}\n```\n</tool_call>',
        [ULM],
    ),
    "a fence round all": (
        '```xml\n<tool_call>{"name":"find_train","arguments":{"city":"Ulm"}}</tool_call>\n```',
        ["```xml\n", ULM, "\n```"],
    ),
    "CDATA in the tag": (
        '<tool_call><![CDATA[{"name":"find_train","arguments":{"city":"Ulm"}}]]></tool_call>',
        [ULM],
    ),
    "thoughts before it": (
        '<think>Is < 3 > 2?</think>\n<tool_call>{"name":"now"}</tool_call>',
        ["<think>Is < 3 > 2?</think>\n", ("now", {})],
    ),
    "an element round it": (
        '<tools><tool_call>{"name":"now"}</tool_call></tools>',
        ["<tools>", ("now", {}), "</tools>"],
    ),
    "a byte order mark": ('\ufeff<tool_call>{"name":"now"}</tool_call>', ["\ufeff", ("now", {})]),
    "function_call": ('<function_call>{"name":"find_train","arguments":{"city":"Ulm"}}</function_call>', [ULM]),
    "a namespace": ('<tool:call xmlns:tool="u:t">{"name":"now","arguments":{}}</tool:call>', [("now", {})]),
    "another namespace": ('<x:tool_call>{"name":"now","arguments":{}}</x:tool_call>', [("now", {})]),
    "Qwen3-Coder": (
        "<tool_call>\n<function=find_train>\n<parameter=city>\nUlm\n</parameter>\n<parameter=seats>\n2\n</parameter>\n"
        "<parameter=price>\n9.5\n</parameter>\n<parameter=direct>\ntrue\n</parameter>\n</function>\n</tool_call>",
        [train(city="Ulm", seats=2, price=9.5, direct=True)],
    ),
    "Qwen3-Coder, a string of digits": (
        "<tool_call><function=find_train><parameter=city>5</parameter><parameter=seats>two</parameter></function></tool_call>",
        [train(city="5", seats="two")],
    ),
    "Qwen3-Coder, many lines": (
        "<tool_call>\n<function=write_file>\n<parameter=path>\na.py\n</parameter>\n<parameter=content>\n"
        "if a < b:\n\n    print('<b>')\n\n</parameter>\n</function>\n</tool_call>",
        [("write_file", {"path": "a.py", "content": "if a < b:\n\n    print('<b>')\n"})],
    ),
    "Qwen3-Coder, objects": (
        "<tool_call><function=write_file><parameter=path>a</parameter><parameter=content>{}</parameter>"
        '<parameter=options>{"mode": 420}</parameter><parameter=lines>[1, "2"]</parameter>'
        '<parameter=more>{"a": null}</parameter><parameter=other>7</parameter></function></tool_call>',
        [
            (
                "write_file",
                {
                    "path": "a",
                    "content": "{}",
                    "options": {"mode": 420},
                    "lines": [1, "2"],
                    "more": {"a": None},
                    "other": "7",
                },
            )
        ],
    ),
    "Qwen3-Coder, no outer tag": (
        "I look.\n<function=find_train>\n<parameter=city>\nUlm\n</parameter>\n</function>",
        ["I look.\n", ULM],
    ),
    "Qwen3-Coder, only the outer tag's end": (
        "<function=find_train>\n<parameter=city>\nUlm\n</parameter>\n</function>\n</tool_call>\nThere.",
        [ULM, "\nThere."],
    ),
    "Qwen3-Coder, no end of a value": (
        "<tool_call><function=find_train><parameter=city>Ulm\n<parameter=seats>2\n</function></tool_call>",
        [train(city="Ulm", seats=2)],
    ),
    "Qwen3-Coder, no end of the function": (
        "<tool_call><function=find_train><parameter=city>Ulm</parameter></tool_call>",
        [ULM],
    ),
    "Qwen3-Coder, no parameters": ("<tool_call>\n<function=now>\n</function>\n</tool_call>", [("now", {})]),
    "Qwen3-Coder, two in a tag": (
        "<tool_call><function=now></function>\n<function=find_train><parameter=city>Ulm</parameter></function></tool_call>",
        [("now", {}), ULM],
    ),
    "Qwen3-Coder, JSON in the function": ('<function=find_train>{"city": "Ulm"}</function>', [ULM]),
    "elements": (
        "<tool_call>\n  <tool_name> find_train </tool_name>\n  <arguments>\n    <city> Ulm </city>\n"
        "    <seats>2</seats>\n  </arguments>\n</tool_call>",
        [train(city="Ulm", seats=2)],
    ),
    "elements, JSON for arguments": (
        '<tool_call><tool_name>find_train</tool_name><tool_arguments>{"city": "Ulm"}</tool_arguments></tool_call>',
        [ULM],
    ),
    "elements, the name in the tag": (
        '<tool_call id="7" name = "find_train" data-n="1"><args><city>Ulm</city></args></tool_call>',
        [ULM],
    ),
    "elements, arguments alone": (
        "<tool_call name='find_train'><city>Ulm</city><seats>2</seats></tool_call>",
        [train(city="Ulm", seats=2)],
    ),
    "elements, JSON in a tag with a name": ('<tool_call name="find_train">{"city": "Ulm"}</tool_call>', [ULM]),
    "elements, nothing in a tag with a name": ('<tool_call name="now"></tool_call>', [("now", {})]),
    "elements, parameters with names": (
        '<function_call><name>find_train</name><arguments><parameter name="city">Ulm</parameter></arguments>'
        "</function_call>",
        [ULM],
    ),
    "elements, CDATA and a comment": (
        "<tool_call><tool_name>write_file</tool_name><arguments><!-- where --><path>a</path>"
        "<content><![CDATA[ <b>&amp;</tool_call></b> ]]></content></arguments></tool_call>",
        [("write_file", {"path": "a", "content": " <b>&amp;</tool_call></b> "})],
    ),
    "elements, entities": (
        "<tool_call><tool_name>find_train</tool_name><arguments><city>A &amp; B &lt;&#233;&#x21;&gt; ?x=1&copy=2</city>"
        "</arguments></tool_call>",
        [train(city="A & B <é!> ?x=1&copy=2")],
    ),
    "elements, nested": (
        "<tool_call><tool_name>write_file</tool_name><arguments><path>a</path><content><b>x</b></content>"
        '<options><mode type="int">420</mode><deep><a>[1]</a></deep></options><lines><l>1</l><l>b</l></lines>'
        "</arguments></tool_call>",
        [
            (
                "write_file",
                {
                    "path": "a",
                    "content": "<b>x</b>",
                    "options": {"mode": 420, "deep": {"a": [1]}},
                    "lines": ["1", "b"],
                },
            )
        ],
    ),
    "elements, all of it CDATA": (
        "<tool_call><![CDATA[<tool_name>find_train</tool_name><arguments><city>Ulm</city></arguments>]]></tool_call>",
        [ULM],
    ),
    "elements, no closing tag": (
        "<tool_call><tool_name>find_train</tool_name><arguments><city>Ulm</city></arguments>\n",
        [ULM],
    ),
    "no closing tag": ('<tool_call>{"name":"find_train","arguments":{"city":"Ulm"}}\n', [ULM]),
    "half a closing tag": ('<tool_call>{"name":"find_train","arguments":{"city":"Ulm"}}</tool_', [ULM]),
    "no bracket and no closing tag": ('<tool_call>{"name":"find_train","arguments":{"city":"Ulm"}', [ULM]),
    "no closing tag before the next": (
        '<tool_call>{"name":"now"}\n<tool_call>{"name":"now"}</tool_call>',
        [("now", {}), ("now", {})],
    ),
    "Qwen3-Coder, no closing tags at all": ("<tool_call><function=find_train><parameter=city>Ulm", [ULM]),
    "Qwen3-Coder, half a closing tag": (
        "<tool_call>\n<function=find_train>\n<parameter=city>\nUlm\n</parameter>\n</func",
        [ULM],
    ),
    "behind one that is none": (
        '<tool_call>{"name": broken}</tool_call> <tool_call>{"name":"now"}</tool_call>',
        ['<tool_call>{"name": broken}</tool_call> ', ("now", {})],
    ),
    "within one that is none": (
        '<tool_call> <tool_call>{"name":"now"}</tool_call>',
        ["<tool_call> ", ("now", {})],
    ),
}

PROSE = {
    "the tag in backticks": "Write `<tool_call>` and then JSON.",
    "a call in backticks": 'Such as `<tool_call>{"name":"now"}</tool_call>`, on a line.',
    "a call in a fence": 'Such as:\n\n```xml\n<tool_call>{"name":"now"}</tool_call>\n```\n',
    "the tag alone": "Models write <tool_call> before and </tool_call> behind it.",
    "the tag at the end": "It begins with <tool_call>",
    "half a tag at the end": "It begins with <tool_c",
    "a function's tag": "It is <function=now> with a <parameter=x>",
    "markup": "<div class='a'><b>1 < 2</b></div><tool_calls><function>x</function>",
    "a tool that is none": '<tool_call>{"name": "launch", "arguments": {}}</tool_call>',
    "a function that is none": "<function=launch><parameter=x>1</parameter></function>",
    "a name in the tag that is none": '<tool_call name="launch"><arguments>{}</arguments></tool_call>',
    "a name in an element that is none": "<tool_call><tool_name>launch</tool_name><arguments></arguments></tool_call>",
    "a call and one that is none in a list": '<tool_call>[{"name":"now"},{"name":"launch"}]</tool_call>',
    "JSON that breaks off": '<tool_call>{"name": "find_train", "arguments": {"city": "Ul',
    "JSON with other brackets": '<tool_call>{"name": "now"]</tool_call>',
    "JSON with words behind it": '<tool_call>{"name": "now"} is how it is done</tool_call>',
    "JSON without a name": '<tool_call>{"city": "Ulm"}</tool_call>',
    "arguments that are no object": '<tool_call>{"name": "now", "arguments": [1]}</tool_call>',
    "arguments that are no JSON": '<tool_call>{"name": "now", "arguments": "x"}</tool_call>',
    "numbers that JSON does not have": '<tool_call>{"name": "now", "arguments": {"a": NaN}}</tool_call>',
    "words between parameters": (
        "<function=find_train><parameter=city>Ulm</parameter> or <parameter=seats>2</parameter></function>"
    ),
    "a call that begins within a value": "<function=find_train><parameter=city>a\n<function=now>\n",
    "two names": "<tool_call><tool_name>now</tool_name><tool_name>now</tool_name></tool_call>",
    "words between elements": "<tool_call><tool_name>now</tool_name> please <arguments></arguments></tool_call>",
    "elements that break off": "<tool_call><tool_name>find_train</tool_name><arguments><city>Ulm</ci",
    "CDATA that breaks off": "<tool_call><tool_name>now</tool_name><arguments><![CDATA[ {} </arguments></tool_call>",
    "another tag's end": '<tool_call>{"name": "now"}</function_call> and more',
    "much space": "<tool_call>" + 3000 * " " + '{"name": "now"}</tool_call>',
    "deep": '<tool_call>{"name": "now", "arguments": ' + 300 * "[" + 300 * "]" + "}</tool_call>",
}

ANSWERS = [text for text, _ in WELL_FORMED.values()] + list(PROSE.values())


@pytest.mark.parametrize("shape", WELL_FORMED)
def test_a_call_in_each_shape(shape: str) -> None:
    text, parts = WELL_FORMED[shape]
    assert parsed(text) == parts
    assert parsed(*text) == parts


@pytest.mark.parametrize("what", PROSE)
def test_what_is_no_call_comes_through_untouched(what: str) -> None:
    assert parsed(PROSE[what]) == [PROSE[what]]
    assert parsed(*PROSE[what]) == [PROSE[what]]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        pytest.param('<tool_call>{"name":"now"}', [("now", {})], id="JSON that is whole"),
        pytest.param('<tool_call>{"name":"now","arguments":{}', None, id="JSON without its last bracket"),
        pytest.param("<function=find_train><parameter=city>Ulm</parameter>", [ULM], id="all that is required"),
        pytest.param("<function=find_train><parameter=city>Ulm</parameter>\n</fun", [ULM], id="half a closing tag"),
        pytest.param("<function=find_train><parameter=city>Ulm", None, id="half a value"),
        pytest.param("<function=find_train><parameter=city>Ulm</param", None, id="half the end of a value"),
        pytest.param("<function=write_file><parameter=path>a</parameter>", None, id="not all that is required"),
        pytest.param("<function=now>", None, id="a function's tag"),
        pytest.param("<tool_call><tool_name>now</tool_name><arguments></arguments>", [("now", {})], id="elements"),
        pytest.param("<tool_call><tool_name>now</tool_name><arguments>", None, id="elements that break off"),
    ],
)
def test_an_answer_that_is_cut_off_has_a_call_only_if_it_is_whole(text: str, parts: Any) -> None:
    assert parsed(text, cut=True) == (parts or [text])
    assert parsed(*text, cut=True) == (parts or [text])


@pytest.mark.parametrize(
    ("pieces", "given"),
    [
        pytest.param(["Hello", " there"], ["Hello", " there"], id="text"),
        pytest.param(["a <", "3"], ["a ", "<3"], id="a sign"),
        pytest.param(["a <to", "e>"], ["a ", "<toe>"], id="another tag"),
        pytest.param(["<tool_call>", " the"], ["", "<tool_call> the"], id="words behind the tag"),
        pytest.param(['<tool_call>{"name": "la', 'unch"'], ["", '<tool_call>{"name": "launch"'], id="another name"),
        pytest.param(["<tool_call>{", "a"], ["", "<tool_call>{a"], id="no JSON"),
        pytest.param(["<tool_call>\n<", "b>"], ["", "<tool_call>\n<b>"], id="no element of a call"),
        pytest.param(["<function=now> ", "is"], ["", "<function=now> is"], id="words behind a function's tag"),
        pytest.param(["`", "<tool_call>"], ["`", "<tool_call>"], id="code"),
    ],
)
def test_nothing_is_held_for_longer_than_it_may_be_a_call(pieces: list[str], given: list[str]) -> None:
    parser = ToolCallParser(TOOLS, iter(()))
    assert ["".join(map(str, parser.feed(piece))) for piece in pieces] == given


def test_a_call_is_there_with_its_last_character() -> None:
    for text in ('<tool_call>{"name":"now"}</tool_call>', "<function=now>\n</function>"):
        parser = ToolCallParser(TOOLS, iter(["call_a"]))
        assert parser.feed(text[:-1]) == []
        assert parser.feed(text[-1]) == [ToolCall("call_a", "now", "{}")]


def test_without_tools_nothing_is_a_call() -> None:
    text = '<tool_call>{"name":"now"}</tool_call><function=now></function>'
    parser = ToolCallParser({}, iter(()))
    assert joined(parser.feed(text) + parser.end()) == [text]


def test_a_call_may_be_long_but_not_too_long() -> None:
    def call(size: int) -> str:
        text = '<tool_call>{"name":"find_train","arguments":{"city":"%s"}}</tool_call>'
        return text % ("x" * (size - len(text) + 2 + len("<tool_call>")))

    def pieces(text: str) -> list[str]:
        return [text[at : at + 1000] for at in range(0, len(text), 1000)]

    most, more = call(CALL_CHARACTERS), call(CALL_CHARACTERS + 1)
    assert [len(part) for part in parsed(most)] == [2]
    assert parsed(*pieces(most)) == parsed(most)
    assert parsed(more) == parsed(*pieces(more)) == [more]


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param('<tool_call>{"name":"now","arguments":{"' * 8000, id="calls that never end"),
        pytest.param("<tool_call>" * 40_000, id="tags"),
        pytest.param('<tool_call name="now"><a>' * 10_000, id="elements that never end"),
        pytest.param("<" * 300_000, id="signs"),
        pytest.param("<function=now>" * 20_000, id="functions"),
        pytest.param("<function=now><parameter=a>" * 10_000, id="parameters that never end"),
        pytest.param("`" * 300_000, id="backticks"),
        pytest.param("<tool_call>" + '{"name": "now"' + " " * 300_000, id="space"),
        pytest.param("<a:" + "a" * 300_000, id="a long name"),
        pytest.param("<tool_call " + "a=" * 100_000, id="attributes"),
        pytest.param('<tool_call>{"name":"now","arguments":{"a":"' + "\\" * 200_000, id="escapes"),
    ],
)
def test_no_answer_takes_long(answer: str) -> None:
    began = time.process_time()
    assert "".join(str(part) for part in parsed(answer)) == answer
    assert time.process_time() - began < 3


def cut_up(text: str, cuts: list[int]) -> list[str]:
    at = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in itertools.pairwise(at)]


CUTS = st.lists(st.integers(0, 10_000), max_size=12)
MARKUP = st.sampled_from(
    [
        *("<tool_call>", "</tool_call>", "<function=now>", "<function=find_train>", "</function>", "<parameter=city>"),
        *(
            "</parameter>",
            '{"name": "now"',
            '"arguments": {',
            "}",
            "}}",
            '"',
            "\\",
            "<",
            ">",
            "`",
            "```",
            "\n",
            " ",
            "x",
        ),
        *("<tool_name>now</tool_name>", "<arguments>", "</arguments>", "<![CDATA[", "]]>", "<!--", "-->", "[", "]"),
        *('<tool_call name="now">', "<a:tool_call>", "</a:tool_call>", "<tool_", "</tool_", ",", ":", "'", "&quot;"),
    ]
)
JUMBLE = st.lists(MARKUP, max_size=25).map("".join)
PLAIN = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<`"), max_size=30)


@given(st.sampled_from(ANSWERS) | JUMBLE, CUTS, st.booleans())
def test_any_pieces_give_the_same(text: str, cuts: list[int], cut: bool) -> None:
    whole = parsed(text, cut=cut)
    assert parsed(*cut_up(text, cuts), cut=cut) == whole
    assert parsed(*text, cut=cut) == whole


@given(JUMBLE, CUTS)
def test_text_without_a_call_is_the_same_text(text: str, cuts: list[int]) -> None:
    parts = parsed(*cut_up(text, cuts))
    if all(isinstance(part, str) for part in parts):
        assert "".join(map(str, parts)) == text


MENTIONS = ["<tool_call>", "<tool_call> is", "<function=now> is", "</tool_call>", "`", "```\n", "a\n", " word "]


@given(st.lists(st.sampled_from(MENTIONS)))
def test_prose_that_mentions_the_tags_is_untouched(words: list[str]) -> None:
    assert "".join(map(str, parsed(*words))) == "".join(words)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(lambda text: "<" not in text)
LINES = st.lists(TEXTS | st.sampled_from(["    indented", "", "<b>a & b</b>", "&lt;"]), max_size=4).map("\n".join)


def hermes(name: str, arguments: dict[str, Any], indent: int | None) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments}, indent=indent)}\n</tool_call>"


@given(st.sampled_from(sorted(TOOLS)), st.dictionaries(st.text(max_size=6), VALUES, max_size=4), st.data())
def test_any_call_in_json_comes_out_as_it_went_in(name: str, arguments: dict[str, Any], data: st.DataObject) -> None:
    text = hermes(name, arguments, data.draw(st.sampled_from([None, 2])))
    assert parsed(*cut_up(text, data.draw(CUTS))) == [(name, arguments)]


@given(LINES, LINES, st.dictionaries(st.text(max_size=6), VALUES), st.lists(VALUES), CUTS, st.booleans())
def test_any_call_of_qwens_comes_out_as_it_went_in(
    path: str, content: str, options: dict[str, Any], lines: list[Any], cuts: list[int], outer: bool
) -> None:
    arguments = {"path": path, "content": content, "options": json.dumps(options), "lines": json.dumps(lines)}
    # A tag cannot be told from the same tag in a value, here as in vLLM.
    arguments = {key: value.replace("</", "< /").replace("<parameter", "") for key, value in arguments.items()}
    parameters = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in arguments.items())
    text = f"<function=write_file>\n{parameters}</function>"
    told = {key: arguments[key] for key in ("path", "content")}
    read = {key: json.loads(arguments[key]) for key in ("options", "lines")}
    assert parsed(*cut_up(f"<tool_call>\n{text}\n</tool_call>" if outer else text, cuts)) == [
        ("write_file", {**told, **read})
    ]


@given(LINES, st.integers(), st.booleans(), st.floats(allow_nan=False, allow_infinity=False), CUTS, st.booleans())
def test_any_call_in_elements_comes_out_as_it_went_in(
    city: str, seats: int, direct: bool, price: float, cuts: list[int], cdata: bool
) -> None:
    city = city.replace("]]>", "")
    said = f"<![CDATA[{city}]]>" if cdata else escape(city)
    text = (
        f"<tool_call><tool_name>find_train</tool_name><arguments><city>{said}</city><seats>{seats}</seats>"
        f"<direct>{str(direct).lower()}</direct><price>{price!r}</price></arguments></tool_call>"
    )
    expected = train(city=city if cdata else city.strip(), seats=seats, direct=direct, price=price)
    assert parsed(*cut_up(text, cuts)) == [expected]


@given(st.lists(PLAIN | st.tuples(st.sampled_from(sorted(TOOLS)), st.dictionaries(PLAIN, VALUES, max_size=2))), CUTS)
def test_text_and_calls_come_out_in_their_order(told: list[Any], cuts: list[int]) -> None:
    text = "".join(part if isinstance(part, str) else hermes(part[0], part[1], None) for part in told)
    parts = parsed(*cut_up(text, cuts))
    assert [part for part in parts if not isinstance(part, str)] == [part for part in told if not isinstance(part, str)]
    said = ["".join(group) for plain, group in itertools.groupby(told, lambda part: isinstance(part, str)) if plain]
    kept = [part for part in parts if isinstance(part, str)]
    # White space between calls and behind the last is in neither.
    assert [part for part in kept if part.strip()] == [part for part in said if part.strip()]
