from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_chill.proxy.framing import ResponseFraming
from vllm_chill.proxy.request_id import RequestIds, field_of, text_of

WELL_FORMED = st.text(string.ascii_letters + string.digits + "._~:/+=@|-", min_size=1, max_size=128)


@given(WELL_FORMED)
def test_what_a_client_says_is_kept_to_the_letter(said: str) -> None:
    field, its_own = RequestIds().of([said])
    assert its_own
    assert field == f"X-Request-Id: {said}\r\n".encode()
    assert text_of(field) == said


@pytest.mark.parametrize(
    "said",
    [
        [],
        ["a", "a"],
        [""],
        [" a"],
        ["a b"],
        ['a"'],
        ["a,b"],
        ["<script>"],
        ["a\r\nX: y"],
        ["a\x00"],
        ["é"],
        ["\udcff"],
        ["a" * 129],
    ],
    ids=[
        "nothing",
        "two",
        "empty",
        "a space before",
        "a space within",
        "a quote",
        "a comma",
        "markup",
        "a line end",
        "NUL",
        "not ASCII",
        "not UTF-8",
        "too long",
    ],
)
def test_what_is_none_is_replaced(said: list[str]) -> None:
    field, its_own = RequestIds().of(said)
    assert not its_own
    assert field_of(text_of(field).encode()) == field, "one that is made is well-formed"


def test_no_two_are_the_same() -> None:
    several = [RequestIds() for _ in range(10)]
    assert len({ids.new() for ids in several for _ in range(1000)}) == 10_000


@pytest.mark.parametrize("name", [b"X-Request-Id", b"x-request-id", b"X-REQUEST-ID"])
@pytest.mark.parametrize(
    "body", [b"Content-Length: 2\r\n\r\nhi", b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"]
)
def test_a_response_that_says_one_is_known_by_its_head(name: bytes, body: bytes) -> None:
    for field, says in ((b"%b: 1\r\n" % name, True), (b"Y-%b: 1\r\n" % name, False), (b"X: %b:\r\n" % name, False)):
        framing = ResponseFraming()
        response = b"HTTP/1.1 200 OK\r\n" + field + body
        assert framing.feed(response) == response
        assert framing.complete
        assert framing.says_id is says
