from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_chill.core.code_spans import CodeSpans


def at_code(*pieces: str) -> bool:
    spans = CodeSpans()
    for piece in pieces:
        spans.passed(piece)
    return spans.at_code()


@pytest.mark.parametrize(
    ("before", "code"),
    [
        pytest.param("", False, id="nothing"),
        pytest.param("some words, ", False, id="prose"),
        pytest.param("the tag `", True, id="open on this line"),
        pytest.param("the tag `x` ", False, id="closed again"),
        pytest.param("``a ` b", True, id="two backticks are not closed by one"),
        pytest.param("``a ` b`` ", False, id="but by two"),
        pytest.param("it`s\n", False, id="a line ends it"),
        pytest.param("so:\n```xml\n", True, id="a fence"),
        pytest.param("so:\n  ````\n```\n", True, id="a longer fence is not closed by a shorter"),
        pytest.param("so:\n```\nx\n```\n", False, id="a fence that is closed"),
        pytest.param("so:\n```\nx ``` y\n", True, id="backticks within a line close no fence"),
        pytest.param("so: ```\n", False, id="a fence begins a line"),
        pytest.param("so:\n```x``` ", False, id="a line with both ends is no fence"),
        pytest.param("```json\n", False, id="a fence round all of it"),
        pytest.param("\n\n```json\n", False, id="behind empty lines too"),
        pytest.param("```a\nx\n```\n```b\n", True, id="the second fence is one"),
    ],
)
def test_code_is_known_from_what_stands_before(before: str, code: bool) -> None:
    assert at_code(before) is code


@given(st.lists(st.text("`\n a", max_size=4), max_size=30))
def test_it_is_the_same_in_any_pieces(pieces: list[str]) -> None:
    assert at_code(*pieces) == at_code("".join(pieces)) == at_code(*"".join(pieces))
