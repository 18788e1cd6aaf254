from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from vllm_chill.adapters.output_tail import OutputTail

output = st.lists(st.sampled_from([b"\n", b"\r", b"\xc3\xa9", b"\xff", b"\x1b[1m", b"word", b" ", b"x" * 5000])).map(
    b"".join
)


def lines_of(*chunks: bytes) -> tuple[list[str], str]:
    lines: list[str] = []
    tail = OutputTail(lines.append)
    for chunk in (*(c for c in chunks if c), b""):
        tail.feed(chunk)
    return lines, tail.text()


@given(output, st.lists(st.integers(0, 20000)))
def test_the_lines_do_not_depend_on_how_the_output_was_cut_up(data: bytes, cuts: list[int]) -> None:
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    assert lines_of(*(data[a:b] for a, b in itertools.pairwise(places))) == lines_of(data)


@given(output)
def test_what_it_holds_is_bounded_and_is_the_end(data: bytes) -> None:
    lines, text = lines_of(data)
    assert all(len(line) <= 4096 for line in lines)
    assert len(text) <= 4000
    assert "\n".join(lines).endswith(text)


def test_an_unfinished_line_is_not_lost() -> None:
    assert lines_of(b"one\ntw", b"o") == (["one", "two"], "one\ntwo")
