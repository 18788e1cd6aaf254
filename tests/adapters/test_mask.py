from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vllm_chill.adapters.mask import Mask
from vllm_chill.adapters.output_tail import OutputTail

words = st.text(st.sampled_from("ab*"), min_size=1, max_size=6)


@given(
    st.lists(st.sampled_from(["key", "keys", "k", "xx"]), max_size=3), st.text(st.sampled_from("keysx "), max_size=50)
)
def test_no_secret_is_left(secrets: list[str], text: str) -> None:
    hidden = Mask(*secrets).hide(text)
    assert not any(secret in hidden for secret in secrets)


def test_what_was_a_secret_once_stays_one_and_what_is_hidden_besides_is_hidden_here() -> None:
    first = Mask("one")
    both = Mask("second", besides=first)
    first.add("three")
    assert both.hide("one second three four") == "*** *** *** four"
    assert (first.hide("second"), both.longest) == ("second", 6)


@given(st.integers(0, 9000), st.lists(st.integers(1, 5000), max_size=6))
def test_no_cut_of_a_long_line_shows_a_part_of_one(place: int, cuts: list[int]) -> None:
    lines: list[str] = []
    tail = OutputTail(lines.append, Mask("SECRETS"))
    data = b"x" * place + b"SECRETS" + b"x" * 5000
    for cut in cuts:
        tail.feed(data[:cut]) if data[:cut] else None
        data = data[cut:]
    tail.feed(data or b"\n")
    tail.feed(b"")
    assert not set("SECRT") & set("".join(lines))
