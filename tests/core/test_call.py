from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_chill.core.call import CALL_BYTES, Call, read_call
from vllm_chill.errors import BadRequest

JSON = "application/json"


@pytest.mark.parametrize(
    ("content_type", "body", "call"),
    [
        pytest.param(JSON, b'{"model": "a", "stream": true}', Call("a", True), id="a stream"),
        pytest.param(JSON, b'{"model": "a"}', Call("a", False), id="no stream"),
        pytest.param("Application/JSON; charset=UTF8", b' {"model": "\\u00e9"}', Call("é", False), id="with a charset"),
        pytest.param("application/vnd.api+json", b'{"model": "a"}', Call("a", False), id="a kind of JSON"),
        pytest.param(JSON, b'{"model": null, "stream": null}', Call(None, False), id="nulls"),
        pytest.param(JSON, b"{}", Call(None, False), id="no model"),
        pytest.param(JSON, b"", Call(), id="no body, as SDKs send a GET"),
        pytest.param(None, b'\n{"model": "a", "stream": true}', Call("a", True), id="no content type"),
        pytest.param("application/x-www-form-urlencoded", b'{"model": "a"}', Call("a", False), id="curl -d"),
        pytest.param("application/x-www-form-urlencoded", b"{broken", Call(), id="what does not say that it is JSON"),
        pytest.param("multipart/form-data; boundary=x", b'--x\r\n{"model": "a"}', Call(), id="audio"),
        pytest.param("application/jsonlines", b"[", Call(), id="another type that begins so"),
        pytest.param(JSON, b'{"model":"' + b"a" * CALL_BYTES, Call(), id="too large"),
    ],
)
def test_a_call_is_read(content_type: str | None, body: bytes, call: Call) -> None:
    assert read_call(content_type, body) == call


@pytest.mark.parametrize(
    ("body", "words"),
    [
        pytest.param(b'{"model": "a",}', "line 1 column", id="a comma too many"),
        pytest.param(b'{"model": "a"', "not JSON", id="half"),
        pytest.param(b'{"model": "\xff"}', "not UTF-8", id="not text"),
        pytest.param(b"hello", "not JSON", id="a word"),
        pytest.param(b"[" * 100_000, "not JSON", id="deep"),
        pytest.param(b'{"seed": ' + b"1" * 5000 + b"}", "too many digits", id="a long number"),
        pytest.param(b'["a"]', "not an object", id="a list"),
        pytest.param(b'{"model": 5}', "not a string", id="a model that is no name"),
    ],
)
def test_what_is_said_to_be_json_and_is_no_call_is_told_in_a_sentence(body: bytes, words: str) -> None:
    with pytest.raises(BadRequest, match=words) as error:
        read_call(JSON, body)
    assert "send" in error.value.message
    assert "\n" not in error.value.message


def test_an_encoded_body_is_left_alone() -> None:
    assert read_call(JSON, b"\x1f\x8b\x08", "gzip") == Call()
    assert read_call(JSON, b'{"model": "a"}', "identity") == Call("a", False)


_FIELDS = st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text()))


@given(_FIELDS, st.none() | st.text(), st.booleans())
def test_whatever_else_is_in_it_the_model_and_the_stream_are_found(
    more: dict[str, object], model: str | None, stream: bool
) -> None:
    body = json.dumps({**more, "model": model, "stream": stream}).encode()
    assert read_call(JSON, body) == Call(model, stream)


@given(st.binary(), st.sampled_from([None, JSON, "text/plain"]))
def test_any_bytes_are_a_call_or_a_bad_request(body: bytes, content_type: str | None) -> None:
    try:
        call = read_call(content_type, body)
    except BadRequest:
        assert content_type == JSON
    else:
        assert isinstance(call, Call)
