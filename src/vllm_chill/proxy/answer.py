"""The one place where an error becomes an answer, for aiohttp's server and as bytes for a connection without it."""

from __future__ import annotations

import json
from http import HTTPStatus

from aiohttp import web
from aiohttp.helpers import rfc822_formatted_time

from vllm_chill.api.openai import error_envelope
from vllm_chill.errors import AnswerableError, MethodNotAllowed, Unauthenticated

_OWN_PHRASES = {499: "Request Cancelled"}


def answer(error: AnswerableError) -> web.Response:
    """The response that tells a caller of this error: OpenAI's envelope, and Retry-After where a retry helps."""
    return web.json_response(
        error_envelope(error), status=error.status, reason=_phrase(error.status), headers=_fields(error)
    )


def answer_bytes(error: AnswerableError, *, keep_alive: bool) -> bytes:
    """The same response as it goes over the wire; `keep_alive` says whether the connection stays open behind it."""
    body = json.dumps(error_envelope(error)).encode()
    fields = _fields(error) | {"Content-Type": "application/json; charset=utf-8", "Server": "vllm-chill"}
    fields |= {"Content-Length": str(len(body)), "Date": rfc822_formatted_time()}
    if not keep_alive:
        fields["Connection"] = "close"
    lines = [f"HTTP/1.1 {error.status} {_phrase(error.status)}", *(f"{k}: {v}" for k, v in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _phrase(status: int) -> str:
    return _OWN_PHRASES.get(status) or HTTPStatus(status).phrase


def _fields(error: AnswerableError) -> dict[str, str]:
    fields = {} if error.retry_after_seconds is None else {"Retry-After": str(error.retry_after_seconds)}
    if isinstance(error, MethodNotAllowed):
        fields["Allow"] = ", ".join(error.allowed)
    if isinstance(error, Unauthenticated):
        fields["WWW-Authenticate"] = "Bearer"
    return fields
