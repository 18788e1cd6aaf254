"""When a replica is taken out, for how long, and what is forgotten."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_chill.core.outliers import Ejection, Outliers
from vllm_chill.core.target import Endpoint

A, B = Endpoint("10.0.0.1", 8000), Endpoint("10.0.0.2", 8000)
BOTH = (A, B)


def out(outliers: Outliers, now: float, endpoint: Endpoint = A) -> Ejection:
    ejection = outliers.failed(endpoint, BOTH, now, "it refused")
    assert ejection is not None
    return ejection


def test_one_refusal_takes_a_replica_out_and_the_next_changes_nothing() -> None:
    outliers = Outliers()
    ejection = out(outliers, 100)
    assert (ejection.seconds, ejection.count, ejection.cause) == (5, 1, "it refused")
    assert outliers.failed(A, BOTH, 101, "it refused") is None
    assert list(outliers.out) == [A]


@pytest.mark.parametrize("among", [(A,), (B,), ()], ids=["it is the only one", "it is not there", "nothing is there"])
def test_a_replica_without_another_is_never_out(among: tuple[Endpoint, ...]) -> None:
    outliers = Outliers()
    assert outliers.failed(A, among, 100, "it refused") is None
    assert all(outliers.answered(A, 503, among, 100) is None for _ in range(9))
    assert not outliers.out


def test_each_ejection_is_longer_than_the_last_and_none_than_a_minute() -> None:
    outliers, seconds, now = Outliers(), [], 100.0
    for _ in range(14):
        ejection = out(outliers, now)
        seconds.append(ejection.seconds)
        now += ejection.seconds
        assert outliers.restored(ejection, now)
        now += 1
    assert seconds == [5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 60, 60]


def test_one_ejection_is_forgiven_for_each_ten_seconds_in_which_all_is_well() -> None:
    for well, seconds in ((0, 15), (9.9, 15), (10, 10), (25, 5), (1000, 5)):
        outliers = Outliers()
        outliers.restored(out(outliers, 100), 105)
        outliers.restored(out(outliers, 105), 115)
        assert out(outliers, 115 + well).seconds == seconds


def test_five_gateway_errors_in_a_row_take_a_replica_out_and_an_answer_between_begins_anew() -> None:
    outliers = Outliers()
    for status in (502, 503, 504, 503, 200, 503, 503, 503, 500, 502, 502, 502, 502):
        assert outliers.answered(A, status, BOTH, 100) is None
        assert outliers.answered(B, 200, BOTH, 100) is None
    assert outliers.suspects == {A: 4}
    ejection = outliers.answered(A, 502, BOTH, 100)
    assert ejection is not None
    assert ejection.cause == "it answered 5 requests in a row with a gateway error"
    assert not outliers.suspects


def test_what_comes_back_at_the_address_of_who_has_departed_is_another_one() -> None:
    outliers = Outliers()
    first = out(outliers, 100)
    outliers.forget(A)
    assert not outliers.out
    second = out(outliers, 101)
    assert (second.seconds, second.count) == (5, 1)
    assert not outliers.restored(first, 105)
    assert outliers.restored(second, 106)


@given(st.lists(st.tuples(st.sampled_from(BOTH), st.sampled_from([200, 404, 500, 502, 503, 504])), max_size=40))
def test_suspects_are_those_whose_last_answer_was_a_gateway_error(answers: list[tuple[Endpoint, int]]) -> None:
    outliers, last = Outliers(), dict[Endpoint, int]()
    for endpoint, status in answers:
        outliers.answered(endpoint, status, BOTH, 0)
        last[endpoint] = status
    suspects = {one for one, status in last.items() if status in (502, 503, 504)}
    assert suspects - outliers.out.keys() == outliers.suspects.keys() - outliers.out.keys()
    assert all(0 < count < 5 for count in outliers.suspects.values())
