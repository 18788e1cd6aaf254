from __future__ import annotations

import asyncio
from collections.abc import Sequence

import aiohttp
import pytest
from aiohttp.abc import AbstractStreamWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_chill.core.naming import Naming, naming_of
from vllm_chill.errors import BadRequest

CHAT = "/v1/chat/completions"
AUDIO = "/v1/audio/transcriptions"
JSON = "application/json"


@pytest.mark.parametrize(
    ("target", "content_type", "encoding", "body", "model"),
    [
        pytest.param(CHAT, JSON, None, b'{"model": "a"}', "a", id="JSON"),
        pytest.param(CHAT, None, None, b'{"model": "a"}', "a", id="JSON that does not say so"),
        pytest.param(CHAT, None, None, b"{broken", None, id="broken, and not said to be JSON"),
        pytest.param(CHAT, JSON, None, b"{}", None, id="none"),
        pytest.param("/v1/responses/r1", None, None, b"", None, id="no body"),
        pytest.param("/v1/realtime?model=a", None, None, b"", "a", id="in the query"),
        pytest.param("/v1/realtime?x=1&model=org%2Fa&model=b", None, None, b"", "org/a", id="in the query, escaped"),
        pytest.param("/v1/realtime?models=a", None, None, b"", None, id="another field of the query"),
        pytest.param(CHAT + "?model=q", JSON, None, b'{"model": "a"}', "a", id="the body's comes before the query's"),
        pytest.param(CHAT + "?model=q", JSON, None, b"{}", "q", id="the query's, if the body has none"),
        pytest.param(CHAT + "?model=q", JSON, "gzip", b"\x1f\x8b", "q", id="a body that cannot be read"),
        pytest.param(AUDIO + "?model=q", "audio/wav", None, b"RIFF", "q", id="a body that is something else"),
        pytest.param(AUDIO, "multipart/form-data", None, b"--x", None, id="a form without a boundary"),
    ],
)
def test_a_request_names_its_model(
    target: str, content_type: str | None, encoding: str | None, body: bytes, model: str | None
) -> None:
    naming = naming_of(target, content_type, encoding)
    assert naming.model(body) == model
    search = naming.search()
    if search is None:
        assert naming.in_query == model
    else:
        search.feed(body)
        if not search.over:
            search.end()
        assert (search.model or naming.in_query) == model or not body


def test_json_that_is_broken_is_a_bad_request_whole_or_in_pieces() -> None:
    naming = naming_of(CHAT, JSON)
    with pytest.raises(BadRequest, match="not JSON"):
        naming.model(b'{"model": ')
    search = naming.search()
    assert search is not None
    search.feed(b'{"model": ')
    with pytest.raises(BadRequest, match="not JSON"):
        search.end()


class _Written(AbstractStreamWriter):
    """What a writer of forms writes."""

    def __init__(self) -> None:
        self.data = bytearray()

    async def write(self, chunk: bytes | bytearray | memoryview) -> None:
        self.data += chunk

    async def write_eof(self, chunk: bytes = b"") -> None: ...
    async def drain(self) -> None: ...
    def enable_compression(self, *_: object) -> None: ...
    def enable_chunking(self) -> None: ...
    async def write_headers(self, *_: object) -> None: ...


def written(writer: aiohttp.MultipartWriter | aiohttp.payload.Payload) -> bytes:
    out = _Written()
    asyncio.run(writer.write(out))
    return bytes(out.data)


_NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0", exclude_categories=["Cc"]), max_size=20)
_FILES = st.tuples(st.just("file"), st.sampled_from(["file", "model", "a"]), st.binary(max_size=200))
_FIELDS = st.tuples(st.just("field"), st.sampled_from(["language", "prompt", "models"]), _NAMES)


@given(
    st.lists(_FILES | _FIELDS, max_size=4),
    st.none() | _NAMES,
    st.integers(0, 4),
    st.booleans(),
)
@settings(max_examples=60)
def test_a_form_of_a_real_client_names_its_model_whatever_the_order(
    others: Sequence[tuple[str, str, bytes | str]], model: str | None, place: int, quote: bool
) -> None:
    data = aiohttp.FormData(quote_fields=quote, default_to_multipart=True)
    parts: list[tuple[str, str, bytes | str]] = [*others]
    if model is not None:
        parts.insert(place, ("field", "model", model))
    for kind, name, value in parts:
        if kind == "file":
            data.add_field(name, value, filename="model", content_type="audio/wav")
        else:
            data.add_field(name, value)
    payload = data()
    body = written(payload) if parts else b""
    naming = naming_of(AUDIO, payload.headers["Content-Type"])
    assert naming.model(body) == (model or None)
    search = naming.search()
    assert search is not None
    for at in range(len(body)):
        if not search.over:
            search.feed(body[at : at + 1])
    assert (search.model or None) == (model or None)


@pytest.mark.parametrize("boundary", ["x", "a b", "----WebKitFormBoundary7MA4YWxk", "it's(=a),test./:?", 'q"uo\\te'])
def test_a_boundary_may_be_quoted(boundary: str) -> None:
    writer = aiohttp.MultipartWriter("form-data", boundary=boundary.replace('"', "").replace("\\", ""))
    part = writer.append("whisper")
    part.set_content_disposition("form-data", name="model")
    naming = naming_of(AUDIO, writer.headers["Content-Type"])
    assert naming.model(written(writer)) == "whisper"


def test_a_boundary_with_escapes_is_read() -> None:
    assert naming_of(AUDIO, 'multipart/form-data; charset=utf-8; Boundary="a\\"b"') == Naming(boundary=b'a"b')
