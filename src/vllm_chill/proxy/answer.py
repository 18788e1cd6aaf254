"""The one place where an error becomes an answer."""

from __future__ import annotations

from aiohttp import web

from vllm_chill.api.openai import error_envelope
from vllm_chill.errors import AnswerableError


def answer(error: AnswerableError) -> web.Response:
    """The response that tells a caller of this error: OpenAI's envelope, and Retry-After where a retry helps."""
    response = web.json_response(error_envelope(error), status=error.status)
    if error.retry_after_seconds is not None:
        response.headers["Retry-After"] = str(error.retry_after_seconds)
    return response
