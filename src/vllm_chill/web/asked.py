"""What a request to one of the proxy's own routes asks for, in its query and its body."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from aiohttp import hdrs, web

from vllm_chill.errors import BadRequest
from vllm_chill.proxy.aiohttp_seam import say_continue

_BODY_BYTES = 64 * 1024

Shape = TypeVar("Shape", bound=msgspec.Struct)


def flag(request: web.BaseRequest, name: str, *, default: bool) -> bool:
    """A flag of the query. Raises BadRequest for what is neither true nor false."""
    match request.query.get(name):
        case None:
            return default
        case "true" | "1" | "":
            return True
        case "false" | "0":
            return False
        case other:
            raise BadRequest(f'{name}="{other}" is not known; give true or false.')


def number(request: web.BaseRequest, name: str, default: int, least: int, most: int) -> int:
    """A whole number of the query. Raises BadRequest for what is none, or outside of the bounds."""
    said = request.query.get(name)
    if said is None:
        return default
    if said.isascii() and said.isdecimal() and len(said) <= 9 and least <= int(said) <= most:
        return int(said)
    raise BadRequest(f'{name}="{said[:40]}" is not accepted; give a whole number from {least} to {most}.')


async def body(request: web.BaseRequest, shape: type[Shape], example: str) -> Shape | None:
    """The JSON in the body, whatever Content-Type says; None if there is no body. Raises BadRequest."""
    text = await _read(request)
    if not text:
        return None
    try:
        return msgspec.json.decode(text, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        what = _complaint(error)
        raise BadRequest(f"the body is not what this takes: {what}; send JSON such as {example}") from None


async def _read(request: web.BaseRequest) -> bytes:
    if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue":
        await say_continue(request)
    text = bytearray()
    try:
        async for chunk in request.content.iter_chunked(_BODY_BYTES):
            text += chunk
            if len(text) > _BODY_BYTES:
                raise BadRequest(f"the body is longer than {_BODY_BYTES >> 10} KiB; nothing here takes as much")
    except web.RequestPayloadError as error:
        raise BadRequest(f"the body is broken: {error}") from None
    return bytes(text)


def _complaint(error: Exception) -> str:
    if not isinstance(error, msgspec.ValidationError):
        return f"invalid JSON: {error}"
    what, _, where = str(error).partition(" - at `$.")
    what = f"{what[0].lower()}{what[1:]}"
    return f"{where.rstrip('`')}: {what}" if where else what
