from __future__ import annotations

import json
from datetime import date, timedelta
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_chill.core.savings import NOTHING, Days, Tally
from vllm_chill.core.savings_ledger import MOST_BYTES, MOST_DAYS, MOST_TARGETS, OTHERS, Account, Ledger

FIRST = date(2026, 1, 1)
amounts = st.integers(0, 10_000_000).map(lambda milliseconds: milliseconds / 1000)
tallies = amounts.map(lambda n: Tally(n, n / 2, n / 4, int(n), int(n) // 2))
days = st.dictionaries(st.sampled_from([FIRST + timedelta(n) for n in range(9)]), tallies, max_size=3)
accounts = st.builds(Account, st.none() | st.sampled_from(["m", "org/ü"]), st.none() | st.integers(0, 8), tallies, days)
ledgers = st.builds(Ledger, st.none() | amounts, st.dictionaries(st.sampled_from("abc"), accounts), st.just({}))


def of_days(number: int, seconds: float = 1.0) -> Days:
    return {FIRST + timedelta(n): Tally(asleep=seconds, wakes=1) for n in range(number)}


def whole(ledger: Ledger) -> Tally:
    return sum((account.total for account in ledger.accounts.values()), NOTHING)


def same(one: Tally, other: Tally) -> bool:
    return (one.callers, one.wakes) == (other.callers, other.wakes) and (
        (one.asleep, one.awake, one.waited)
        == pytest.approx((other.asleep, other.awake, other.waited), rel=1e-9, abs=0.01)
    )


@given(ledgers)
def test_what_is_written_is_read(ledger: Ledger) -> None:
    once = Ledger.parse(ledger.dump())
    assert Ledger.parse(once.dump()) == once
    assert same(whole(once), whole(ledger))
    assert [(one.model, one.gpus) for one in once.accounts.values()] == [
        (one.model, one.gpus) for one in ledger.accounts.values()
    ]


@given(st.lists(st.tuples(st.sampled_from("pqr"), ledgers), max_size=4), st.integers(0, 1 << 16))
def test_writes_of_several_come_to_their_sum_in_whatever_order_and_however_often(
    writes: list[tuple[str, Ledger]], seed: int
) -> None:
    kept, numbers, random = Ledger(), dict.fromkeys("pqr", 0), Random(seed)
    for writer, more in writes:
        numbers[writer] += 1
        for _ in range(random.randint(1, 3)):
            kept = Ledger.parse(kept.written(more, writer, numbers[writer]).dump())
    assert same(whole(kept), sum((whole(more) for _, more in writes), NOTHING))


def test_it_began_when_the_first_began() -> None:
    assert Ledger(5).plus(Ledger(3)).since == 3
    assert Ledger().plus(Ledger(3)).since == 3
    assert Ledger(3).plus(Ledger()).since == 3


def test_the_newest_word_on_a_model_and_its_gpus_holds() -> None:
    first = Ledger().counted("a", of_days(1), model="m", gpus=2)
    assert first.plus(Ledger().counted("a", of_days(1), gpus=4)).of("a").gpus == 4
    both = {FIRST: Tally(asleep=2, wakes=2)}
    assert first.plus(Ledger().counted("a", of_days(1))).of("a") == Account("m", 2, days=both)


def test_days_that_are_too_many_are_put_together_and_none_is_lost() -> None:
    kept = Ledger().written(Ledger().counted("a", of_days(MOST_DAYS + 10)), "p", 1)
    account = kept.of("a")
    assert (len(account.days), account.before) == (MOST_DAYS, Tally(asleep=10, wakes=10))
    assert min(account.days) == FIRST + timedelta(10)


def test_however_much_there_is_it_is_never_longer_than_what_keeps_it_takes() -> None:
    long = "n" * 63 + "/" + "d" * 253
    day = Tally(86400 * 999 + 0.123, 86400 * 999 + 0.123, 99999.123, 99999, 9999)
    days = {FIRST + timedelta(n): day for n in range(MOST_DAYS)}
    many = Ledger(1.5, {f"{long}{n}": Account("m" * 253, 1024, day, days) for n in range(MOST_TARGETS)})
    kept = many.written(Ledger(), "w" * 16, 1)
    assert len(kept.dump()) <= MOST_BYTES
    assert same(whole(Ledger.parse(kept.dump())), whole(many))
    assert all(len(one.days) == 30 for one in kept.accounts.values())


def test_targets_that_are_too_many_are_put_together_the_longest_unused_first() -> None:
    kept = Ledger()
    for n in range(MOST_TARGETS + 5):
        kept = kept.counted(f"t{n}", {FIRST + timedelta(n): Tally(asleep=1)}, model="m", gpus=1)
    bounded = kept.bounded().bounded()
    assert len(bounded.accounts) == MOST_TARGETS
    assert bounded.of(OTHERS).total == Tally(asleep=6)
    assert bounded.of(OTHERS).model is None
    assert "t5" not in bounded.accounts
    assert "t6" in bounded.accounts
    again = bounded.counted("new", {FIRST + timedelta(9999): Tally(asleep=1)}).bounded()
    assert whole(again).asleep == MOST_TARGETS + 6
    assert len(again.accounts) == MOST_TARGETS


def test_the_proxies_that_are_remembered_are_the_last_that_wrote() -> None:
    kept = Ledger()
    for n in range(100):
        kept = kept.written(Ledger().counted("a", of_days(1)), f"p{n}", 1)
    assert not kept.has("p0", 1)
    assert kept.has("p99", 1)
    assert not kept.has("p99", 2)
    assert len(kept.writers) == 32


GOOD: dict[str, object] = {"version": 1, "since": None, "writers": {}, "targets": {}}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{",
        "[" * 100_000,
        json.dumps({}),
        json.dumps(GOOD | {"version": 2}),
        json.dumps(GOOD | {"since": "yesterday"}),
        json.dumps(GOOD | {"since": 1e300}),
        json.dumps(GOOD | {"since": 1e14}),
        json.dumps(GOOD | {"writers": {"p": -1}}),
        json.dumps(GOOD | {"targets": []}),
        json.dumps(GOOD | {"targets": {"a": {}}}),
        json.dumps(GOOD | {"targets": {"a": {"days": {"today": [0, 0, 0, 0, 0]}}}}),
        json.dumps(GOOD | {"targets": {"a": {"days": {"2026-01-01": [0, 0, 0, 0]}}}}),
        json.dumps(GOOD | {"targets": {"a": {"days": {"2026-01-01": [-1, 0, 0, 0, 0]}}}}),
        json.dumps(GOOD | {"targets": {"a": {"days": {"2026-01-01": [0, 0, 0, 0.5, 0]}}}}),
        json.dumps(GOOD | {"targets": {"a": {"days": {"2026-01-01": [True, 0, 0, 0, 0]}}}}),
        '{"version":1,"since":null,"writers":{},"targets":{"a":{"days":{"2026-01-01":[NaN,0,0,0,0]}}}}',
        json.dumps(GOOD | {"targets": {"a": {"gpus": "4", "days": {}}}}),
    ],
)
def test_what_is_something_else_is_told_rather_than_taken_for_nothing(text: str) -> None:
    with pytest.raises(ValueError, match=r"^it is (not what a proxy writes|of version 2)"):
        Ledger.parse(text)


def test_the_least_that_can_be_read() -> None:
    assert Ledger.parse(json.dumps(GOOD)) == Ledger()
