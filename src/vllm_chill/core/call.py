"""What a request to the API asks for, as far as the proxy has to know: a model's name, and whether to stream. Pure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import msgspec

from vllm_chill.errors import BadRequest

CALL_BYTES = 1 << 20
"""Larger bodies of held requests are not looked into."""

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


class _Fields(msgspec.Struct, gc=False):
    """What is decoded of a call; whatever else there is in it is passed over, which takes an eighth of the time."""

    model: str | None = None
    stream: object = None


_decode = msgspec.json.Decoder(_Fields).decode


def read_call(content_type: str | None, body: bytes, content_encoding: str | None = None) -> Call:
    """The call in a whole body; an empty one for what is not JSON (audio comes as multipart), too large or encoded.

    JSON without its content type is read if it is an object, as some engines take it. Raises BadRequest for a body
    that is said to be JSON and is not, or is not an object, or names the model with something else than a string.
    """
    if not body or len(body) > CALL_BYTES or is_encoded(content_encoding):
        return _UNREAD
    is_json = says_json(content_type)
    if not is_json and not _OBJECT.match(body):
        return _UNREAD
    try:
        if not body.isascii():
            body.decode("utf-8", "surrogatepass")  # of what it passes over the decoder takes any bytes
        fields = _decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError):
        read = _read_slowly(body, is_json=is_json)
        return _UNREAD if read is None else Call(read.model, read.stream is True)
    return Call(fields.model, fields.stream is True)


def model_of(body: bytes, *, is_json: bool = True) -> str | None:
    """The model that a JSON body names, if it names one; `is_json`: it is said to be JSON. Raises as read_call does.

    Text that is not UTF-8 is the engine's to refuse.
    """
    try:
        return _decode(body).model
    except (msgspec.DecodeError, ValueError, RecursionError):
        if not is_json and not _OBJECT.match(body):
            return None
        read = _read_slowly(body, is_json=is_json)
        return None if read is None else read.model


def says_json(content_type: str | None) -> bool:
    """Whether this Content-Type is JSON's."""
    return content_type is not None and _JSON.match(content_type) is not None


def is_encoded(content_encoding: str | None) -> bool:
    """Whether a body of this Content-Encoding cannot be looked into."""
    return content_encoding not in (None, "", "identity")


def not_json(why: str) -> BadRequest:
    """The error for a body that is said to be JSON."""
    return BadRequest(f"the body is not JSON ({why}); send a JSON object, as Content-Type says")


def not_an_object() -> BadRequest:
    """The error for JSON that is no call."""
    return BadRequest("the body is JSON, but not an object; send an object with the call's fields")


def not_a_name() -> BadRequest:
    """The error for a model that is no string."""
    return BadRequest('"model" is not a string; send the name of a model, as GET /v1/models lists them')


def _read_slowly(body: bytes, *, is_json: bool) -> _Fields | None:
    """What Python's own reader takes, as engines do (NaN, other encodings, half a surrogate pair), and its words."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        if not is_json:
            return None
        raise not_json(_what(error)) from None
    if not isinstance(fields, dict):
        raise not_an_object()
    model = fields.get("model")
    if model is not None and not isinstance(model, str):
        raise not_a_name()
    return _Fields(model, fields.get("stream"))


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
