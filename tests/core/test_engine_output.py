from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_chill.core.engine_output import Line, cleaned, secrets_of


@given(st.text(st.one_of(st.characters(), st.sampled_from("\x1b[];m0\x07\x9b\x9d\\")), max_size=60))
def test_nothing_is_left_that_a_terminal_obeys(text: str) -> None:
    left = cleaned(text)
    assert not {c for c in left if unicodedata.category(c) == "Cc"} - {"\t"}
    assert not set(left) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029")
    assert cleaned(left) == left


@given(st.text(st.characters(categories=["L", "N", "P", "S"]), max_size=60))
def test_text_stays_as_it_is(text: str) -> None:
    assert cleaned(text) == text


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        pytest.param("\x1b[1;31mred\x1b[0m", "red", id="colours"),
        pytest.param("a\x1b]52;c;c2VjcmV0\x07b", "ab", id="the clipboard"),
        pytest.param("a\x1b]0;title\x1b\\b", "ab", id="a title"),
        pytest.param("a\x1bP$q\x1b\\b", "ab", id="a question to the terminal"),
        pytest.param("a\x1b]0;never ended", "a", id="what never ends"),
        pytest.param("a\x1b(Bb\x1bcd", "abd", id="short ones"),
        pytest.param("a\x9b31mb", "ab", id="of eight bits"),
        pytest.param("tab\tand é 漢 🙂", "tab\tand é 漢 🙂", id="letters"),
    ],
)
def test_what_is_taken_out(raw: str, shown: str) -> None:
    assert cleaned(raw) == shown


@pytest.mark.parametrize(
    ("argv", "secrets"),
    [
        (["vllm", "serve", "m", "--api-key", "a"], ("a",)),
        (["--api-key=a", "b", "--port", "1"], ("a",)),
        (["--api-key", "a", "b", "--port", "1"], ("a", "b")),
        (["--api_key", "a"], ("a",)),
        (["--api-keys-file", "a"], ()),
    ],
)
def test_the_keys_in_a_command(argv: list[str], secrets: tuple[str, ...]) -> None:
    assert secrets_of(argv, {}) == secrets


def test_the_keys_in_an_environment() -> None:
    assert secrets_of([], {"HF_TOKEN": "a", "VLLM_API_KEY": "", "HOME": "b"}) == ("a",)


def test_who_wrote_a_line() -> None:
    assert Line("pod", "x").source == "pod"
    assert Line("pod", "x", "container download").source == "pod, container download"
