"""The tools that a request offers its model, and the types of their arguments. Pure.

The rule: what a schema does not say is not guessed. A value that is not what its schema says stays the text that the
model wrote.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_SCHEMA_DEPTH = 8
_TYPE_OF = {str: "string", bool: "boolean", int: "integer", float: "number", dict: "object", list: "array"}
_UNKNOWN = frozenset({"object", "array"})  # what is tried where the schema says nothing


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool. `types` has JSON Schema's names of types for each parameter, none where the schema says none;
    `required` are the parameters without which there is no call.
    """

    name: str
    types: Mapping[str, frozenset[str]]
    required: frozenset[str] = frozenset()


Tools = Mapping[str, Tool]
"""By name."""


def tools_of(request: object) -> dict[str, Tool]:
    """The tools that a chat completion request lets its model call; none for anything else."""
    if not isinstance(request, dict) or request.get("tool_choice") == "none":
        return {}
    entries = request.get("tools")
    functions = [
        entry["function"]
        for entry in (entries if isinstance(entries, list) else ())
        if isinstance(entry, dict) and isinstance(entry.get("function"), dict)
    ]
    return {name: _tool(name, function) for function in functions if isinstance(name := function.get("name"), str)}


def typed(text: str, types: frozenset[str]) -> Any:
    """What a model means that has written `text` for a parameter of these types.

    Where it may be a string it is one. Of a parameter that nothing is said about only objects and arrays are read.
    """
    bare = text.strip()
    if "null" in types and bare.lower() in {"null", "none"}:
        return None
    wanted = types - {"null"} or _UNKNOWN
    if "string" in wanted:
        return text
    if "boolean" in wanted and bare.lower() in {"true", "false"}:
        return bare.lower() == "true"
    try:
        value = read_json(bare)
    except ValueError:
        return text
    if type(value) is int and "number" in wanted:
        return value
    if type(value) is float and value.is_integer() and "integer" in wanted:
        return value if "number" in wanted else int(value)
    return value if _TYPE_OF.get(type(value)) in wanted else text


def read_json(text: str) -> Any:
    """A JSON document as models write it: with line breaks in strings, a comma too many, single quotes, Python's words.

    Raises ValueError for anything else, and for numbers that JSON cannot say again (NaN, 1e999).
    """
    try:
        return _decoded(text)
    except ValueError:
        repaired = _FAULTS.sub(_mended, text)
        if repaired == text:
            raise
        return _decoded(repaired)


def _decoded(text: str) -> Any:
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is too large")
    return value


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_no_constant, strict=False)

_FAULTS = re.compile(
    r'"(?:[^"\\]|\\.)*+"'
    r"|'((?:[^'\\]|\\.)*+)'"
    r"|,(?=\s*[}\]])"
    r"|\b(?:True|False|None)\b",
    re.DOTALL,
)
_IN_SINGLE_QUOTES = re.compile(r"""\\.|\"""", re.DOTALL)
_PYTHONS = {"True": "true", "False": "false", "None": "null", ",": ""}


def _mended(fault: re.Match[str]) -> str:
    if fault[1] is not None:
        return '"' + _IN_SINGLE_QUOTES.sub(lambda m: {"\\'": "'", '"': '\\"'}.get(m[0], m[0]), fault[1]) + '"'
    return _PYTHONS.get(fault[0], fault[0])


def _tool(name: str, function: Mapping[str, Any]) -> Tool:
    schema = function.get("parameters")
    if not isinstance(schema, dict):
        return Tool(name, {})
    properties = schema.get("properties")
    required = schema.get("required")
    return Tool(
        name,
        {key: _types(each, schema) for key, each in (properties if isinstance(properties, dict) else {}).items()},
        frozenset(key for key in (required if isinstance(required, list) else ()) if isinstance(key, str)),
    )


def _types(schema: object, root: Mapping[str, Any], depth: int = 0) -> frozenset[str]:
    """The types that a schema lets a value have."""
    if not isinstance(schema, dict) or depth > _SCHEMA_DEPTH:
        return frozenset()
    match schema:
        case {"type": str(kind)}:
            return frozenset({kind})
        case {"type": list(kinds)}:
            return frozenset(kind for kind in kinds if isinstance(kind, str))
        case {"enum": list(values)}:
            return frozenset(_TYPE_OF.get(type(value), "null") for value in values)
        case {"const": value}:
            return frozenset({_TYPE_OF.get(type(value), "null")})
        case {"$ref": str(reference)}:
            return _types(_referred(reference, root), root, depth + 1)
    found: frozenset[str] = frozenset()
    for word in ("anyOf", "oneOf", "allOf"):
        choices = schema.get(word)
        for choice in choices if isinstance(choices, list) else ():
            found |= _types(choice, root, depth + 1)
    return found


def _referred(reference: str, root: Mapping[str, Any]) -> object:
    """The schema that a reference within the same document (`#/$defs/Place`) is to."""
    found: object = root
    for step in reference.removeprefix("#/").split("/"):
        found = found.get(step) if isinstance(found, dict) else None
    return found
