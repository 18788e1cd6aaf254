"""Calls in the shapes in which models write them, once all of one is here. Pure: text in, calls out.

The rule: a call is one only if all of its text says so, and its tool is one of the request's. None is the answer for
everything else, and the text stays text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from vllm_chill.core.tools import Tool, Tools, read_json, typed


@dataclass(frozen=True, slots=True)
class Written:
    """A call as it was written: the tool's name, and its arguments as a JSON object."""

    name: str
    arguments: str


def json_calls(body: str, tools: Tools, name: str | None = None) -> list[Written] | None:
    """Calls in JSON: `{"name": ..., "arguments": {...}}`, or a list of them.

    `name` is the tool's where it was said before; the JSON may then be the arguments alone.
    """
    try:
        said = _read_escaped(body)
    except ValueError:
        return None
    if name is not None and isinstance(said, dict) and not (said.keys() <= _CALL_KEYS and said.keys() & _ARGUMENTS):
        return _all([_written(name, said, tools)])
    return _all([_call_in(item, tools, name) for item in (said if isinstance(said, list) else [said])])


def function_call(name: str, body: str, tools: Tools, *, cut: bool = False) -> list[Written] | None:
    """Qwen3-Coder's call: what stands behind `<function=NAME>`, without the closing tags at its end.

    Parameters are `<parameter=KEY>VALUE</parameter>`, and a closing tag may be missing, as vLLM's parser has it; or
    one JSON object. `cut`: it ends because the answer does, so that the last value may not be whole, and more may
    have been to come.
    """
    tool = tools.get(name)
    if tool is None:
        return None
    if body.lstrip()[:1] == "{":
        return json_calls(body, tools, name)
    values: dict[str, Any] = {}
    end = 0
    for parameter in _PARAMETER.finditer(body):
        if body[end : parameter.start()].strip() or (cut and not parameter[3]):
            return None
        if any(inner[1].strip() in tools for inner in _INNER.finditer(parameter[2])):
            return None  # the next call has begun within this one
        key, end = parameter[1].strip(" \"'"), parameter.end()
        values[key] = typed(_without_line_ends(parameter[2]), tool.types.get(key, _NO_TYPES))
    if body[end:].strip() or (cut and not (values and tool.required <= values.keys())):
        return None
    return _all([_written(name, values, tools)])


def xml_call(body: str, tools: Tools, name: str | None = None) -> list[Written] | None:
    """A call in elements: `<tool_name>` and `<arguments>`, which has one element for each argument, or JSON.

    With a `name` that was said before the arguments may stand there without an element round them.
    """
    root = _tree(body)
    if root is None or root.said(body).strip():
        return None
    said = [child for child in root.children if child.name in _NAME_TAGS]
    if name is None:
        if len(said) != 1:
            return None
        name = _plain(said[0].source(body)).strip()
    else:
        said = said if said and _plain(said[0].source(body)).strip() == name else []
    tool = tools.get(name)
    if tool is None:
        return None
    rest = [child for child in root.children if not any(child is each for each in said)]
    if len(rest) == 1 and rest[0].name in _ARGUMENT_TAGS and rest[0].name not in tool.types:
        arguments = _arguments(rest[0], body, tool)
    else:
        arguments = {_key(child): _argument(child, body, tool) for child in rest}
    return None if arguments is None else _all([_written(name, arguments, tools)])


_CALL_KEYS = frozenset({"name", "arguments", "parameters", "args", "id", "type"})
_ARGUMENTS = ("arguments", "parameters", "args")
_NO_TYPES: frozenset[str] = frozenset()
_PARAMETER = re.compile(r"<parameter=([^<>\n]{1,200})>(.*?)(?:(</parameter>)|(?=<parameter=)|\Z)", re.DOTALL)
_INNER = re.compile(r"<function=([^<>\n]{1,200})>")


def _all(calls: list[Written | None]) -> list[Written] | None:
    found = [call for call in calls if call is not None]
    return found if found and len(found) == len(calls) else None


def _written(name: str, arguments: Mapping[str, Any], tools: Tools) -> Written | None:
    return Written(name, json.dumps(arguments, ensure_ascii=False, allow_nan=False)) if name in tools else None


def _call_in(said: object, tools: Tools, name: str | None) -> Written | None:
    if not isinstance(said, dict):
        return None
    if isinstance(function := said.get("function"), dict):
        said = function
    found = said.get("name", name)
    arguments: Any = next((said[key] for key in _ARGUMENTS if said.get(key) is not None), {})
    if isinstance(arguments, str):
        try:
            arguments = read_json(arguments or "{}")
        except ValueError:
            return None
    if not isinstance(found, str) or not isinstance(arguments, dict) or name not in (None, found):
        return None
    return _written(found, arguments, tools)


def _without_line_ends(value: str) -> str:
    """A value without the line breaks that set it apart from its tags."""
    return value.removeprefix("\n").removesuffix("\n")


def _read_escaped(text: str) -> Any:
    try:
        return read_json(text)
    except ValueError:
        unescaped = unescape(text)
        if unescaped == text:
            raise
        return read_json(unescaped)


# Elements.

_NAME_TAGS = frozenset({"tool_name", "function_name", "name"})
_ARGUMENT_TAGS = frozenset({"arguments", "args", "tool_arguments", "parameters"})
_NAMED_TAGS = frozenset({"parameter", "param", "argument", "arg"})
FIRST_TAGS = _NAME_TAGS | _ARGUMENT_TAGS
"""What a call in elements begins with."""

_MARKUP = re.compile(
    r"<!\[CDATA\[(?P<data>.*?)(?:\]\]>|\Z)|<!--.*?(?:-->|\Z)"
    r"|<(?P<close>/?)(?:[A-Za-z_][\w.\-]*:)?(?P<name>[A-Za-z_][\w.\-]*)(?P<attributes>\s[^<>]*?)?(?P<empty>/?)>",
    re.DOTALL,
)
_ATTRIBUTE = re.compile(r"""([\w.:\-]+)\s*=\s*(?:"([^"]*)"|'([^']*)')""")
_ENTITY = re.compile(r"&(?:(lt|gt|amp|quot|apos)|#([0-9]{1,7})|#x([0-9a-fA-F]{1,6}));")
_ENTITIES = {"lt": "<", "gt": ">", "amp": "&", "quot": '"', "apos": "'"}
_HINTS = {
    "int": "integer", "integer": "integer", "float": "number", "number": "number", "bool": "boolean",
    "boolean": "boolean", "object": "object", "array": "array", "str": "string", "string": "string",
}  # fmt: skip
_ELEMENTS = 2000


@dataclass(slots=True, eq=False)
class _Element:
    """An element, its inside from `start` to `end` of the text that it is in."""

    name: str
    attributes: Mapping[str, str]
    start: int
    end: int = -1
    children: list[_Element] = field(default_factory=list)
    outer: tuple[int, int] = (0, 0)

    def source(self, text: str) -> str:
        """Its inside, as it was written."""
        return text[self.start : self.end]

    def said(self, text: str) -> str:
        """What stands between its children."""
        at, between = self.start, ""
        for child in self.children:
            between, at = between + _plain(text[at : child.outer[0]]), child.outer[1]
        return between + _plain(text[at : self.end])


def unescape(text: str) -> str:
    """The text with XML's five entities and those of characters by number resolved; HTML's are not XML's, and in an
    URL `&copy=1` is none.
    """
    return _ENTITY.sub(_resolved, text) if "&" in text else text


def attributes_in(text: str) -> dict[str, str]:
    """The attributes in a tag."""
    return {m[1]: unescape(m[2] if m[2] is not None else m[3]) for m in _ATTRIBUTE.finditer(text)}


def _resolved(entity: re.Match[str]) -> str:
    if entity[1]:
        return _ENTITIES[entity[1]]
    number = int(entity[2]) if entity[2] else int(entity[3], 16)
    return chr(number) if number <= 0x10FFFF and not 0xD800 <= number <= 0xDFFF else entity[0]


def _plain(source: str) -> str:
    """What an inside without elements says."""
    out, at = "", 0
    for markup in _special(source):
        out += unescape(source[at : markup.start()]) + (markup["data"] or "")
        at = markup.end()
    return out + unescape(source[at:])


def _special(source: str) -> Iterator[re.Match[str]]:
    """The CDATA sections and comments in it."""
    if "<!" in source:
        yield from (markup for markup in _MARKUP.finditer(source) if markup["name"] is None)


def _tree(text: str) -> _Element | None:
    """The elements in the text. One that is not closed ends where the one that it is in does."""
    root = _Element("", {}, 0, len(text))
    stack, count = [root], 0
    for markup in _MARKUP.finditer(text):
        name = markup["name"]
        if name is None:
            continue
        if not markup["close"]:
            count += 1
            if count > _ELEMENTS:
                return None
            attributes = attributes_in(markup["attributes"] or "")
            opened = _Element(name, attributes, markup.end(), outer=(markup.start(), 0))
            stack[-1].children.append(opened)
            if markup["empty"]:
                opened.end, opened.outer = markup.end(), markup.span()
            else:
                stack.append(opened)
        elif any(name == each.name for each in stack[1:]):
            while True:
                closed = stack.pop()
                closed.end = markup.start()
                closed.outer = (closed.outer[0], markup.end() if closed.name == name else markup.start())
                if closed.name == name:
                    break
    for left in stack[1:]:
        left.end, left.outer = len(text), (left.outer[0], len(text))
    return root


def _arguments(element: _Element, text: str, tool: Tool) -> dict[str, Any] | None:
    inside = _plain(element.source(text)).strip()
    if inside[:1] == "{":
        try:
            said = read_json(inside)
        except ValueError:
            return None
        return said if isinstance(said, dict) else None
    if element.said(text).strip():
        return None
    return {_key(child): _argument(child, text, tool) for child in element.children}


def _key(element: _Element) -> str:
    named = element.attributes.get("name") or element.attributes.get("key")
    return named if named and element.name in _NAMED_TAGS else element.name


def _argument(element: _Element, text: str, tool: Tool) -> Any:
    types = tool.types.get(_key(element), _NO_TYPES)
    return _value(element, text, types or _hinted(element))


def _hinted(element: _Element) -> frozenset[str]:
    hint = _HINTS.get(element.attributes.get("type", ""))
    return frozenset({hint}) if hint else _NO_TYPES


def _value(element: _Element, text: str, types: frozenset[str]) -> Any:
    """What an element says: text, or an object of its elements; an array where they are all of one name."""
    source = element.source(text)
    if element.children and "string" not in types:
        values = [(child.name, _value(child, text, _hinted(child))) for child in element.children]
        by_name = dict(values)
        if "array" in types or ("object" not in types and len(by_name) < len(values)):
            return [value for _, value in values]
        return by_name
    said = _plain(source)
    return typed(said if "<![CDATA[" in source else said.strip(), types)
