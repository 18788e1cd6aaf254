"""What a request to the API asks for, as far as the proxy has to know: a model's name, and whether to stream. Pure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from vllm_chill.errors import BadRequest

CALL_BYTES = 1 << 20
"""Larger bodies are not looked into."""

_JSON = re.compile(r"\s*application/(?:[-\w.]+\+)?json\s*(?:;|$)", re.IGNORECASE)
_OBJECT = re.compile(rb"[ \t\r\n]*\{")


@dataclass(frozen=True, slots=True)
class Call:
    """What is asked for. `model` is None where the request names none, which engines take for their own one; `stream`
    is None where the body was not looked into.
    """

    model: str | None = None
    stream: bool | None = None


_UNREAD = Call()


def read_call(content_type: str | None, body: bytes, content_encoding: str | None = None) -> Call:
    """The call in a whole body; an empty one for what is not JSON (audio comes as multipart), too large or encoded.

    JSON without its content type is read if it is an object, as some engines take it. Raises BadRequest for a body
    that is said to be JSON and is not, or is not an object, or names the model with something else than a string.
    """
    if not body or len(body) > CALL_BYTES or content_encoding not in (None, "", "identity"):
        return _UNREAD
    is_json = content_type is not None and _JSON.match(content_type) is not None
    if not is_json and not _OBJECT.match(body):
        return _UNREAD
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        if not is_json:
            return _UNREAD
        raise BadRequest(f"the body is not JSON ({_what(error)}); send a JSON object, as Content-Type says") from None
    if not isinstance(fields, dict):
        raise BadRequest("the body is JSON, but not an object; send an object with the call's fields")
    model = fields.get("model")
    if model is not None and not isinstance(model, str):
        raise BadRequest('"model" is not a string; send the name of a model, as GET /v1/models lists them')
    return Call(model, fields.get("stream") is True)


def _what(error: ValueError | RecursionError) -> str:
    match error:
        case json.JSONDecodeError(msg=message, lineno=line, colno=column):
            return f"{message}: line {line} column {column}"
        case UnicodeDecodeError():
            return "it is not UTF-8"
        case RecursionError():
            return "it is nested too deeply"
        case _:
            return "a number in it has too many digits"
