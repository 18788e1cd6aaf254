from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_chill.core.tools import Tool, read_json, tools_of, typed


def request(*functions: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": function} for function in functions], **more}


def types_of(schema: Any, **root: Any) -> frozenset[str]:
    function = {"name": "f", "parameters": {"type": "object", "properties": {"a": schema}, **root}}
    return tools_of(request(function))["f"].types["a"]


@pytest.mark.parametrize(
    ("schema", "types"),
    [
        pytest.param({"type": "integer"}, {"integer"}, id="a type"),
        pytest.param({"type": ["string", "null"]}, {"string", "null"}, id="types"),
        pytest.param({"anyOf": [{"type": "integer"}, {"type": "null"}]}, {"integer", "null"}, id="pydantic's optional"),
        pytest.param({"enum": ["a", "b"]}, {"string"}, id="an enum"),
        pytest.param({"enum": [1, None]}, {"integer", "null"}, id="an enum of numbers"),
        pytest.param({"const": 1.5}, {"number"}, id="a constant"),
        pytest.param({"$ref": "#/$defs/Place"}, {"object"}, id="a reference"),
        pytest.param({"allOf": [{"$ref": "#/$defs/Place"}]}, {"object"}, id="a reference with a default"),
        pytest.param({"$ref": "#/$defs/Loop"}, set(), id="a reference to itself"),
        pytest.param({"$ref": "elsewhere"}, set(), id="a reference to nowhere"),
        pytest.param({"description": "?"}, set(), id="nothing said"),
        pytest.param(True, set(), id="anything"),
    ],
)
def test_the_types_of_a_parameter(schema: Any, types: set[str]) -> None:
    defs = {"Place": {"type": "object"}, "Loop": {"$ref": "#/$defs/Loop"}}
    assert types_of(schema, **{"$defs": defs}) == types


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(None, id="no object"),
        pytest.param({}, id="no tools"),
        pytest.param({"tools": None}, id="null"),
        pytest.param({"tools": [None, {}, {"function": 1}, {"function": {"name": 1}}]}, id="no names"),
        pytest.param(request({"name": "f"}, tool_choice="none"), id="none may be called"),
    ],
)
def test_a_request_without_tools(body: Any) -> None:
    assert tools_of(body) == {}


def test_the_tools_of_a_request() -> None:
    weather = {"properties": {"city": {"type": "string"}}, "required": ["city", 1]}
    assert tools_of(request({"name": "weather", "parameters": weather}, {"name": "ping"}, tool_choice="auto")) == {
        "weather": Tool("weather", {"city": frozenset({"string"})}, frozenset({"city"})),
        "ping": Tool("ping", {}),
    }


@pytest.mark.parametrize(
    ("text", "types", "value"),
    [
        pytest.param("5", {"string"}, "5", id="a string of digits"),
        pytest.param(' {"a": 1} ', {"string"}, ' {"a": 1} ', id="a string of JSON"),
        pytest.param("null", {"string"}, "null", id="a string that says null"),
        pytest.param("null", {"string", "null"}, None, id="null"),
        pytest.param("None", {"integer", "null"}, None, id="Python's null"),
        pytest.param(" 5\n", {"integer"}, 5, id="an integer"),
        pytest.param("5.0", {"integer"}, 5, id="an integer with a fraction of nothing"),
        pytest.param("5.5", {"integer"}, "5.5", id="no integer"),
        pytest.param("five", {"integer"}, "five", id="a word"),
        pytest.param("true", {"integer"}, "true", id="no number"),
        pytest.param("5", {"number"}, 5, id="a whole number"),
        pytest.param("-1.5e3", {"number"}, -1500.0, id="a number"),
        pytest.param("NaN", {"number"}, "NaN", id="not a number"),
        pytest.param("1e999", {"number"}, "1e999", id="more than a number"),
        pytest.param("1" * 5000, {"integer"}, "1" * 5000, id="too many digits"),
        pytest.param("True", {"boolean"}, True, id="Python's true"),
        pytest.param("false", {"boolean"}, False, id="false"),
        pytest.param("yes", {"boolean"}, "yes", id="yes is a word"),
        pytest.param('{"a": [1,]}', {"object"}, {"a": [1]}, id="a comma too many"),
        pytest.param("{'a': True, 'b': 'it\\'s \"x\"'}", {"object"}, {"a": True, "b": 'it\'s "x"'}, id="Python's"),
        pytest.param("[1]", {"object"}, "[1]", id="another type"),
        pytest.param("[1, 2]", {"array"}, [1, 2], id="an array"),
        pytest.param("[" * 100_000, {"array"}, "[" * 100_000, id="deep"),
        pytest.param("5", set(), "5", id="unknown: a string"),
        pytest.param("[5]", set(), [5], id="unknown: an array"),
        pytest.param('{"a": 1}', set(), {"a": 1}, id="unknown: an object"),
        pytest.param("5", {"string", "integer"}, "5", id="a string where it may be one"),
    ],
)
def test_a_value_has_the_type_of_its_schema(text: str, types: set[str], value: object) -> None:
    read = typed(text, frozenset(types))
    assert read == value
    assert type(read) is type(value)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(_JSON, st.sampled_from([None, 2]))
def test_json_is_read_as_it_is(value: object, indent: int | None) -> None:
    assert read_json(json.dumps(value, indent=indent)) == value


_PYTHONS = st.booleans() | st.integers() | st.text("ab'\"\\\n,]}", max_size=8)


@given(st.recursive(_PYTHONS, lambda inner: st.lists(inner, max_size=3), max_leaves=6))
def test_what_python_writes_is_read(value: object) -> None:
    assert read_json(repr(value)) == value


@given(st.text("{}[]\"',:\\ntrue1 .e-"))
def test_any_text_is_json_or_none(text: str) -> None:
    try:
        value = read_json(text)
    except ValueError:
        return
    json.dumps(value, allow_nan=False)
