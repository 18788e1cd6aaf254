from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_chill.proxy.request_id import RequestIds, field_of, text_of, with_fields

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
def test_a_response_that_says_one_by_itself_gets_no_other(name: bytes) -> None:
    mine, cors = b"X-Request-Id: mine\r\n", b"Access-Control-Allow-Origin: *\r\n"
    for field, says in ((b"%b: 1\r\n" % name, True), (b"Y-%b: 1\r\n" % name, False), (b"X: %b:\r\n" % name, False)):
        rest = b"Server: x\r\n%bContent-Length: 20\r\n\r\n\r\n%b: a\r\n" % (field, name)
        for fields in (mine, cors + mine):
            added = fields.removesuffix(mine) if says else fields
            assert with_fields(b"HTTP/1.1 200 OK\r\n" + rest, fields) == b"HTTP/1.1 200 OK\r\n" + added + rest
