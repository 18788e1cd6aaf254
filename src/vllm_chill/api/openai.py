"""OpenAI's error envelope, as its API reference has it and its SDKs read it."""

from __future__ import annotations

from typing import TypedDict

from vllm_chill.errors import AnswerableError


class ErrorDetail(TypedDict):
    """What went wrong: a sentence, a class of error, a code for programs, and the parameter at fault, if any."""

    message: str
    type: str
    code: str
    param: str | None


class ErrorEnvelope(TypedDict):
    """The body of every error answer."""

    error: ErrorDetail


def error_envelope(error: AnswerableError) -> ErrorEnvelope:
    """The body that answers with this error."""
    return {"error": {"message": error.message, "type": error.type, "code": error.code, "param": None}}
