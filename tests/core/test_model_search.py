from __future__ import annotations

import json
import time
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_chill.core.model_search import FormSearch, JsonSearch, Search
from vllm_chill.errors import BadRequest

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just('"model": "x"'),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.just("model"), inner),
    max_leaves=8,
)
_KEYS = st.text(max_size=8) | st.sampled_from(["model", "Model", "models", 'mo"del', "\\model"])


@st.composite
def documents(draw: st.DrawFn) -> bytes:
    """An object in one of its spellings, with a name in it or without, perhaps more than one."""
    pairs = draw(st.lists(st.tuples(_KEYS, _VALUES), max_size=6))
    space = draw(st.sampled_from(["", " ", "\r\n\t"]))
    escaped = draw(st.booleans())
    names = draw(st.booleans())
    indent = draw(st.sampled_from([None, 1]))

    def spelled(key: str) -> str:
        if key == "model" and names:
            return '"' + "".join(f"\\u{ord(letter):04X}" for letter in key) + '"'
        return json.dumps(key, ensure_ascii=escaped)

    fields = (
        f"{spelled(key)}{space}:{space}{json.dumps(value, ensure_ascii=escaped, indent=indent)}" for key, value in pairs
    )
    return (space + "{" + space + f"{space},{space}".join(fields) + space + "}").encode("utf-8", "surrogatepass")


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[start:end] for start, end in pairwise(at)]


def found(search: Search, data: list[bytes]) -> str | None:
    """What a search finds. Raises as it does."""
    for piece in data:
        if search.over:
            break
        search.feed(piece)
    if not search.over:
        search.end()
    assert search.over
    return search.model


def outcome(search: Search, data: list[bytes]) -> tuple[str | None, str]:
    try:
        return found(search, data), ""
    except BadRequest as error:
        return None, error.message


def first_model(document: bytes) -> Any:
    """The value of the first key "model" of the outermost object, by a whole parse."""
    nothing = object()

    def pairs(items: list[tuple[str, Any]]) -> Any:
        return items

    items = json.loads(document, object_pairs_hook=pairs)
    value = next((value for key, value in items if key == "model"), nothing)
    return None if value is nothing else value


class TestJson:
    @given(documents(), st.lists(st.integers(0, 10_000), max_size=12))
    def test_it_finds_what_a_whole_parse_does_however_it_is_cut(self, document: bytes, cuts: list[int]) -> None:
        value = first_model(document)
        if value is None or isinstance(value, str):
            assert found(JsonSearch(), pieces(document, cuts)) == value
        else:
            with pytest.raises(BadRequest, match="not a string"):
                found(JsonSearch(), pieces(document, cuts))

    @given(st.binary() | st.text(alphabet='{}[]":,\\model01n u').map(str.encode), st.lists(st.integers(0, 200)))
    def test_whatever_comes_the_cuts_change_nothing(self, data: bytes, cuts: list[int]) -> None:
        for is_json in (True, False):
            whole = outcome(JsonSearch(is_json=is_json), [data])
            assert outcome(JsonSearch(is_json=is_json), pieces(data, cuts)) == whole
            assert is_json or not whole[1]

    @pytest.mark.parametrize(
        "document",
        [
            b'{"messages": [{"model": "no", "x": "}]"}, {}], "tools": {"model": {"model": 1}}, "model": "yes"}',
            b'\n{ "a":"\\"model\\": \\\\", "\\u006dodel" : "y\\u0065s" }',
            b'{"a":-1.5e3,"b":null,"c":[],"d":{},"e":"","":"" ,"model":"yes","model":"no"}',
            b'{"model":"yes" and then nothing that makes sense',
        ],
    )
    def test_byte_by_byte(self, document: bytes) -> None:
        for at in range(len(document)):
            assert found(JsonSearch(), [document[:at], document[at:]]) == "yes"
        assert found(JsonSearch(), [document[at : at + 1] for at in range(len(document))]) == "yes"

    @pytest.mark.parametrize(
        ("document", "words"),
        [
            pytest.param(b'["model"]', "not an object", id="a list"),
            pytest.param(b"hello", "not an object", id="a word"),
            pytest.param(b'{"model": 5}', "not a string", id="a model that is no name"),
            pytest.param(b'{"model": "\xff"}', "no text", id="a name that is not UTF-8"),
            pytest.param(b'{"model": "a\nb"}', "no text", id="a name with a line end"),
            pytest.param(b'{"a": 1', "breaks off", id="half"),
            pytest.param(b"  ", "breaks off", id="nothing"),
            pytest.param(b'{"a" 1}', "broken at byte 6", id="no colon"),
            pytest.param(b'{"a":1 "b":2}', "broken at byte 8", id="no comma"),
            pytest.param(b'{"a":1,}', "broken at byte 8", id="a comma too many"),
            pytest.param(b'{"a":,}', "broken at byte 6", id="no value"),
            pytest.param(b"{a:1}", "broken at byte 2", id="a key without quotes"),
        ],
    )
    def test_what_is_no_call_is_told_in_a_sentence(self, document: bytes, words: str) -> None:
        for cut in ([document], [document[at : at + 1] for at in range(len(document))]):
            with pytest.raises(BadRequest, match=words) as error:
                found(JsonSearch(), cut)
            assert "send" in error.value.message

    @pytest.mark.parametrize(
        "filling",
        [
            pytest.param(b'"' + b"a" * (1 << 20) + b'"', id="a picture"),
            pytest.param(b'"' + b'\\"' * (1 << 19) + b'"', id="quotes"),
            pytest.param(b"[" * (1 << 17) + b"]" * (1 << 17), id="depth"),
            pytest.param(b'["' + b'","' * (1 << 18) + b'"]', id="many strings"),
            pytest.param(b"1" * (1 << 20), id="a number"),
            pytest.param(b" " * (1 << 20) + b"1", id="space"),
        ],
    )
    def test_the_time_it_takes_grows_with_the_body_alone(self, filling: bytes) -> None:
        document = b'{"a":' + filling + b',"model":"yes"}'

        def seconds(size: int) -> float:
            begun = time.process_time()
            assert found(JsonSearch(), [document[at : at + size] for at in range(0, len(document), size)]) == "yes"
            return time.process_time() - begun

        assert seconds(1 << 20) < 2
        assert seconds(1 << 12) < 2
        assert seconds(61) < 2


def form(*parts: tuple[bytes, bytes], boundary: bytes = b"x", before: bytes = b"", after: bytes = b"") -> bytes:
    lines = b"".join(b"--%b\r\n%b\r\n\r\n%b\r\n" % (boundary, head, body) for head, body in parts)
    return before + lines + b"--%b--\r\n" % boundary + after


FIELD = b'Content-Disposition: form-data; name="model"'
FILE = b'Content-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav'


class TestForm:
    @pytest.mark.parametrize(
        ("body", "model"),
        [
            pytest.param(form((FIELD, b"whisper"), (FILE, b"\0\r\n--y")), "whisper", id="before the file"),
            pytest.param(form((FILE, b"\r\n--\r\n--"), (FIELD, b"whisper")), "whisper", id="behind the file"),
            pytest.param(form((FILE, b"")), None, id="no such field"),
            pytest.param(
                form((FIELD + b'; filename="model"', b"no"), (FIELD, b"yes")), "yes", id="a file of that name"
            ),
            pytest.param(
                form((FIELD + b"; filename*=UTF-8''m", b"no"), (FIELD, b"yes")), "yes", id="a file named at length"
            ),
            pytest.param(form((b"content-disposition:form-data;NAME=model", b"a")), "a", id="another spelling"),
            pytest.param(
                form((b"Content-Type: text/plain; charset=utf-8\r\n" + FIELD, "é".encode())),
                "é",
                id="another field first",
            ),
            pytest.param(form((FIELD, b"")), "", id="an empty name"),
            pytest.param(form((FIELD, b"a"), before=b"preamble\r\n"), "a", id="a preamble"),
            pytest.param(form((FILE, b"\r\n--xy\r\n" + FIELD), (FIELD, b"a")), "a", id="a line that begins so"),
            pytest.param(form(after=form((FIELD, b"a"))), None, id="behind the end"),
            pytest.param(form((FIELD, b"a")).replace(b"--x\r\n", b"--x \t\r\n"), "a", id="space behind the boundary"),
            pytest.param(form((b"X-Y: z", b"a"), (b"", b"b"), (FIELD, b"c")), "c", id="a part that is no field"),
            pytest.param(b"no form", None, id="no form"),
            pytest.param(b"--x\r\n" + FIELD + b"\r\n\r\nhal", None, id="half"),
            pytest.param(form((b'Content-Disposition: form-data; name="a;model"', b"a")), None, id="another name"),
        ],
    )
    def test_the_field_is_found_however_it_is_cut(self, body: bytes, model: str | None) -> None:
        assert found(FormSearch(b"x"), [body]) == model
        assert found(FormSearch(b"x"), [body[at : at + 1] for at in range(len(body))]) == model
        for at in range(len(body)):
            assert found(FormSearch(b"x"), [body[:at], body[at:]]) == model

    @given(
        st.lists(
            st.sampled_from([b"--x", b"\r\n", b"--", FIELD, FILE, b" ", b"\r", b"a" * 5000, b"\n", b"model", b"x"]),
            max_size=20,
        ),
        st.lists(st.integers(0, 30_000)),
    )
    def test_whatever_comes_the_cuts_change_nothing(self, parts: list[bytes], cuts: list[int]) -> None:
        data = b"".join(parts)
        assert outcome(FormSearch(b"x"), pieces(data, cuts)) == outcome(FormSearch(b"x"), [data])

    @pytest.mark.parametrize(
        ("body", "words"),
        [
            (form((FIELD, b"a" * 5000)), "too long"),
            (form((b"X: " + b"a" * 9000, b"")), "head is too long"),
        ],
    )
    def test_what_is_too_long_is_refused(self, body: bytes, words: str) -> None:
        for size in (len(body), 1000, 1):
            with pytest.raises(BadRequest, match=words):
                found(FormSearch(b"x"), [body[at : at + size] for at in range(0, len(body), size)])

    def test_the_time_it_takes_grows_with_the_body_alone(self) -> None:
        body = form((FILE, b"\r\n--" * (1 << 18)), (FIELD, b"a"))
        begun = time.process_time()
        assert found(FormSearch(b"x"), [body[at : at + 4096] for at in range(0, len(body), 4096)]) == "a"
        assert time.process_time() - begun < 2
