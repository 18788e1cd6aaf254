"""Several policies for one target."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_chill.core.scaling.claims import Claim, Rank, settle
from vllm_chill.core.scaling.policy import Policy

_POLICY = Policy("p", 1, 3)


def _claim(key: str, target: str = "t", rank: Rank = Rank.OBJECT, created: str = "2026-01-01T00:00:00Z") -> Claim:
    return Claim(key, key, target, _POLICY, rank, created)


def test_an_object_beats_annotations_and_those_a_models_own_bounds() -> None:
    claims = [_claim("m", rank=Rank.MODEL, created="1"), _claim("a", rank=Rank.ANNOTATIONS), _claim("o", created="9")]
    assert settle(claims)["t"].key == "o"
    assert settle(claims[:2])["t"].key == "a"


def test_of_two_objects_the_older_has_the_target() -> None:
    young, old = _claim("a", created="2026-02-01T00:00:00Z"), _claim("b", created="2026-01-01T00:00:00Z")
    assert settle([young, old])["t"].key == "b"


def test_of_two_that_are_as_old_it_is_always_the_same() -> None:
    assert settle([_claim("b"), _claim("a")])["t"].key == settle([_claim("a"), _claim("b")])["t"].key == "a"


_CLAIMS = st.lists(
    st.builds(_claim, st.text("abc", max_size=3), st.sampled_from("tu"), st.sampled_from(Rank), st.text("12"))
)


@settings(deadline=None)
@given(_CLAIMS, st.builds(_claim, st.just("z"), st.just("t"), st.just(Rank.OBJECT), st.just("3")))
def test_a_new_object_takes_nothing_from_an_older_one(claims: list[Claim], new: Claim) -> None:
    before, after = settle(claims), settle([*claims, new])
    held = before.get("t")
    assert after["t"] is (held if held is not None and held.rank is Rank.OBJECT else new)
    assert after.get("u") == before.get("u")
