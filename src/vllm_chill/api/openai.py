"""OpenAI's error envelope, as its API reference has it and its SDKs read it."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from vllm_chill.errors import AnswerableError


class ErrorDetail(TypedDict):
    """What went wrong: a sentence, a class of error, a code for programs, the parameter at fault, if any, and which
    request it was, if it was one. The last is ours, and Anthropic's.
    """

    message: str
    type: str
    code: str
    param: str | None
    request_id: NotRequired[str]


class ErrorEnvelope(TypedDict):
    """The body of every error answer."""

    error: ErrorDetail


def error_envelope(error: AnswerableError, request_id: str = "") -> ErrorEnvelope:
    """The body that answers a request with this error."""
    detail: ErrorDetail = {"message": error.message, "type": error.type, "code": error.code, "param": None}
    if request_id:
        detail["request_id"] = request_id
    return {"error": detail}
