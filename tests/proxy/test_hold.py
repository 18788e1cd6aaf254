"""The desk where requests are held, as either lane comes to it."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from tests.scenarios.stage import stage
from vllm_chill.control.controller import ScaleController
from vllm_chill.proxy.hold_terms import HoldOptions

CHAT = "/v1/chat/completions"
LANES = pytest.mark.parametrize("fast", [True, False], ids=["fast lane", "base"])
HEARD = HoldOptions(beat_after_seconds=0.05, beat_seconds=0.05)
STREAM = b'{"stream": true}'


def post(body: bytes, version: bytes = b"1.1", *fields: bytes) -> bytes:
    lines = b"".join(field + b"\r\n" for field in fields)
    line = b"POST %b HTTP/%b\r\n" % (CHAT.encode(), version)
    return line + b"Host: a\r\n%bContent-Length: %d\r\n\r\n%b" % (lines, len(body), body)


class TestAfterTheHeadHasGoneOut:
    @pytest.mark.parametrize(
        ("version", "field"), [(b"1.1", b"X: x"), (b"1.1", b"Connection: close"), (b"1.0", b"X: x")]
    )
    async def test_a_bug_is_never_a_second_response_within_the_first(
        self, version: bytes, field: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def lease(*_: object) -> None:
            await asyncio.sleep(0.2)
            raise RuntimeError("a bug")

        monkeypatch.setattr(ScaleController, "lease", lease)
        async with stage(terms=HEARD) as s:
            reader, writer = await asyncio.open_connection(*s.address)
            writer.write(post(STREAM, version, field))
            answer = await reader.readuntil(b"\r\n\r\n")
            with contextlib.suppress(asyncio.TimeoutError, ConnectionResetError):
                while piece := await asyncio.wait_for(reader.read(1 << 16), 0.5):
                    answer += piece
            assert answer.count(b"HTTP/1.") == 1
            writer.transport.abort()
