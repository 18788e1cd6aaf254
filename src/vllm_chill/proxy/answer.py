"""The one place where an error becomes an answer, for aiohttp's server and as bytes for a connection without it."""

from __future__ import annotations

import json
from http import HTTPStatus

from aiohttp import web
from aiohttp.helpers import rfc822_formatted_time

from vllm_chill.api.openai import error_envelope
from vllm_chill.errors import AnswerableError, MethodNotAllowed, Unauthenticated
from vllm_chill.proxy.request_id import NAME, text_of

_OWN_PHRASES = {499: "Request Cancelled"}


def answer(error: AnswerableError, request_id: bytes = b"") -> web.Response:
    """The response that tells a caller of this error: OpenAI's envelope, and Retry-After where a retry helps.
    `request_id` is as request_id.py has it; none for what was no request. Who sends it adds the field.
    """
    envelope = error_envelope(error, text_of(request_id))
    return web.json_response(envelope, status=error.status, reason=_phrase(error.status), headers=_fields(error))


def answer_bytes(error: AnswerableError, request_id: bytes = b"", *, keep_alive: bool) -> bytes:
    """The same response as it goes over the wire; `keep_alive` says whether the connection stays open behind it."""
    said = text_of(request_id)
    body = json.dumps(error_envelope(error, said)).encode()
    fields = _fields(error) | {"Content-Type": "application/json; charset=utf-8", "Server": "vllm-chill"}
    if said:
        fields[NAME] = said
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
