from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_chill.core.call import CALL_BYTES, Call, model_of, read_call
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
        pytest.param(
            JSON, b'{"seed": ' + b"1" * 5000 + b', "model": "a"}', Call("a", False), id="a long one elsewhere"
        ),
        pytest.param(JSON, b'{"model": "a", "model": "b"}', Call("b", False), id="a name that comes twice"),
        pytest.param(JSON, b'{"model": 5, "model": "b"}', Call("b", False), id="one that comes twice, first as none"),
        pytest.param(JSON, b'{"x": {"model": "a"}}', Call(None, False), id="a name within another field"),
        pytest.param(JSON, b'{"temperature": NaN, "model": "a"}', Call("a", False), id="what only Python takes"),
        pytest.param(JSON, '{"model": "a"}'.encode("utf-16"), Call("a", False), id="another encoding"),
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
        pytest.param(b'{"model": ' + b"1" * 5000 + b"}", "too many digits", id="a long number"),
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


_KEYS = st.text() | st.sampled_from(["model", "stream"])
_DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(_KEYS, inner),
    max_leaves=10,
)


@given(_DOCUMENTS | st.dictionaries(_KEYS, _DOCUMENTS), st.booleans(), st.sampled_from([None, 2]))
def test_what_is_passed_over_is_passed_over_as_a_whole_parse_would(
    document: object, ascii_only: bool, indent: int | None
) -> None:
    body = json.dumps(document, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "surrogatepass")
    if not isinstance(document, dict):
        with pytest.raises(BadRequest, match="not an object"):
            read_call(JSON, body)
    elif not isinstance(document.get("model"), str | None):
        with pytest.raises(BadRequest, match="not a string"):
            read_call(JSON, body)
        with pytest.raises(BadRequest, match="not a string"):
            model_of(body)
    else:
        assert read_call(JSON, body) == Call(document.get("model"), document.get("stream") is True)
        assert model_of(body) == document.get("model")


@given(st.binary() | st.text(alphabet='{}[]":,\\model01n u').map(str.encode))
def test_a_warm_request_is_refused_for_nothing_that_a_held_one_is_not(body: bytes) -> None:
    held = _outcome(lambda: read_call(JSON, body).model)
    if body and "UTF-8" not in str(held):
        assert _outcome(lambda: model_of(body)) == held


def _outcome(read: Callable[[], str | None]) -> tuple[str | None] | str:
    """What it gives, or the sentence with which it is refused."""
    try:
        return (read(),)
    except BadRequest as error:
        return error.message


@given(st.binary(), st.sampled_from([None, JSON, "text/plain"]))
def test_any_bytes_are_a_call_or_a_bad_request(body: bytes, content_type: str | None) -> None:
    try:
        call = read_call(content_type, body)
    except BadRequest:
        assert content_type == JSON
    else:
        assert isinstance(call, Call)
