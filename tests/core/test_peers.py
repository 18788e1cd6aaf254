"""What proxies tell one another: the text of it, and what follows from who was seen when."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vllm_chill.core import peers
from vllm_chill.core.peers import UNUSED, Demand, Demands, Peers, Report, Terms, from_text, terms_of, to_text
from vllm_chill.core.target import ALONE, SleepReason

ME, A, B = "me", "a", "b"
T = "ai-apps/vllm"
NOW = 1000.0
TERMS = Terms()

counts = st.integers(0, 2**40)
seconds = st.floats(0, 1e9)
words = st.text(max_size=8)
names = st.lists(words, max_size=3).map(tuple)
demands = st.builds(
    Demand, counts, counts, st.none() | seconds, words, words, words, leaving=names, left=names, stop=st.booleans()
)
reported = st.dictionaries(words, demands, max_size=3)
said = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
)
fields_said = st.dictionaries(st.sampled_from([one.name for one in fields(Demand)]), said)


def report(identity: str, version: int = 1, **demand: object) -> Report:
    return Report(identity, str(version), {T: Demand(**demand)} if demand else {})  # type: ignore[arg-type]


def reports(*given: Report) -> Mapping[str, Report]:
    return {one.identity: one for one in given}


def seen(*given: Report, at: float = NOW, before: Peers | None = None) -> Peers:
    """What ME knows once it has seen these."""
    return peers.observe(before or Peers(ME), reports(*given), at)


def kept_seeing(*others: Report, until: float, before: Peers) -> Peers:
    """What ME knows that goes on to report, and sees no other news, until then: it has just reported anew."""
    known, time, version = before, NOW, 1
    while time < until:
        time, version = min(time + TERMS.report_seconds, until), version + 1
        known = seen(report(ME, version), *others, at=time, before=known)
    return known


# The text.


@given(reported)
def test_what_is_written_is_read_again(given_demands: Demands) -> None:
    assert from_text(to_text(given_demands)) == given_demands


def test_what_is_as_it_is_by_default_is_not_written() -> None:
    assert to_text({T: Demand(waiting=2), "other": UNUSED}) == '{"ai-apps/vllm":{"waiting":2},"other":{}}'
    assert to_text({}) == "{}"


@given(reported, st.dictionaries(words.map(lambda word: f"later_{word}"), said, max_size=3))
def test_what_a_later_version_says_besides_is_passed_over(given_demands: Demands, besides: dict[str, object]) -> None:
    later = {target: asdict(demand) | besides for target, demand in given_demands.items()}
    # None is what is not said.
    later = {t: {n: v for n, v in one.items() if n != "idle_seconds" or v is not None} for t, one in later.items()}
    assert from_text(json.dumps(later)) == given_demands


@given(st.text() | said.map(json.dumps) | st.dictionaries(words, said | fields_said).map(json.dumps))
@example("[" * 100_000)
@example('{"t": {"idle_seconds": 1' + "0" * 400 + "}}")
@example('{"t": {"waiting": 1' + "0" * (sys.get_int_max_str_digits() + 1) + "}}")
@example('{"t": {"idle_seconds": NaN}}')
@example('{"t": {"idle_seconds": -Infinity}}')
@example("\ud800")
def test_any_text_is_read_as_something_that_can_be_followed(text: str) -> None:
    found = from_text(text)
    assert found is None or to_text(found) is not None
    known = seen(report(ME), Report(A, "1", found), Report(B, "1", {T: UNUSED}))
    for target in [T, *(found or ())]:
        used = peers.used_at(known, target)
        assert used is None or used <= NOW
        assert peers.shared(known, target, NOW, leads=True, agreed=False).waiting >= 0
        peers.agrees(known, target, "", NOW)


@pytest.mark.parametrize(
    "demand",
    [
        '"waiting"',
        "[]",
        "3",
        "null",
        '{"waiting": "2"}',
        '{"waiting": 2.5}',
        '{"waiting": 1e300}',
        '{"waiting": true}',
        '{"waiting": -1}',
        '{"in_flight": -1}',
        '{"in_flight": null}',
        '{"idle_seconds": "long"}',
        '{"idle_seconds": -0.5}',
        '{"idle_seconds": NaN}',
        '{"idle_seconds": Infinity}',
        '{"idle_seconds": true}',
        '{"round": 7}',
        '{"yields": null}',
        '{"leaving": "r1"}',
        '{"left": [1]}',
        '{"left": {"r1": 1}}',
        '{"stop": 1}',
    ],
)
def test_what_cannot_be_meant_is_not_read_and_may_be_anything(demand: str) -> None:
    found = from_text(f'{{"{T}": {demand}}}')
    assert found is None
    of_it = Report(A, "1", found).of(T)
    assert of_it.in_use
    assert not of_it.yields
    assert not of_it.left


def test_what_a_report_does_not_name_is_not_used() -> None:
    assert report(A).of(T) == UNUSED


# Who is there.


def test_the_terms_go_with_the_leaders_lease() -> None:
    assert terms_of(15) == Terms()
    assert terms_of(60).report_seconds < terms_of(60).fresh_seconds < terms_of(60).gone_seconds


@pytest.mark.parametrize(
    ("age", "is_told", "is_gone"), [(0, True, False), (14.9, True, False), (15, False, False), (29.9, False, False)]
)
def test_a_proxy_is_taken_for_what_it_said_for_a_while_and_then_waited_for(
    age: float, is_told: bool, is_gone: bool
) -> None:
    known = kept_seeing(report(A), until=NOW + age, before=seen(report(ME), report(A)))
    assert peers.told(known, NOW + age) is is_told
    assert bool(peers.gone(known, NOW + age)) is is_gone
    assert peers.live(known, NOW + age) == (A,)


def test_a_proxy_that_was_silent_for_long_enough_is_gone_and_nobody_waits_for_it() -> None:
    known = kept_seeing(report(A), report(B), until=NOW + 25, before=seen(report(ME), report(A), report(B)))
    known = seen(report(ME, 9), report(A), report(B, 2), at=NOW + 30, before=known)
    assert peers.gone(known, NOW + 30) == (report(A),)
    assert peers.live(known, NOW + 30) == (B,)
    assert peers.told(known, NOW + 30)


def test_a_report_that_is_the_same_in_another_version_is_a_new_one() -> None:
    known = kept_seeing(report(A), until=NOW + 10, before=seen(report(ME), report(A)))
    known = seen(report(ME, 8), report(A, 2, waiting=1), at=NOW + 14, before=known)
    known = kept_seeing(report(A, 2, waiting=1), until=NOW + 28, before=known)
    assert peers.told(known, NOW + 28)
    assert not peers.told(known, NOW + 29)


def test_who_is_removed_is_not_there() -> None:
    known = seen(report(ME, 2), at=NOW + 1, before=seen(report(ME), report(A, in_flight=1)))
    assert peers.live(known, NOW + 1) == ()
    assert peers.told(known, NOW + 1)
    assert peers.used_at(known, T) is None


@pytest.mark.parametrize(
    "blinded",
    [
        pytest.param(lambda: seen(report(A)), id="its own report is not there"),
        pytest.param(lambda: peers.lost(seen(report(ME), report(A))), id="reports cannot be seen"),
        pytest.param(lambda: seen(report(ME), report(A)), id="its own report is old"),
    ],
)
def test_who_does_not_see_its_own_report_takes_nobody_for_gone_or_for_told(blinded: Callable[[], Peers]) -> None:
    known, later = blinded(), NOW + 1000
    assert peers.gone(known, later) == ()
    assert peers.live(known, later) == (A,)
    assert not peers.told(known, later)
    assert not peers.agrees(known, T, "", later)


@pytest.mark.parametrize(
    ("since", "sees"), [(0, True), (TERMS.fresh_seconds - 0.1, True), (TERMS.fresh_seconds, False)]
)
def test_ones_own_report_is_good_for_as_long_as_the_others(since: float, sees: bool) -> None:
    assert peers.told(seen(report(ME)), NOW + since) is sees


@pytest.mark.parametrize("outage", [True, False], ids=["told of", "unnoticed"])
def test_after_an_outage_time_begins_again_for_everybody(outage: bool) -> None:
    known = seen(report(ME), report(A, in_flight=1))
    if outage:
        known = peers.lost(known)
    back = NOW + 100
    known = seen(report(ME, 2), report(A, in_flight=1), at=back, before=known)
    assert peers.gone(known, back) == ()
    assert peers.told(known, back)
    for age in (10, 20, 30):
        known = seen(report(ME, 2 + age), report(A, in_flight=1), at=back + age, before=known)
        assert bool(peers.gone(known, back + age)) is (age == 30)


histories = st.lists(st.tuples(st.floats(0.01, 20), st.sampled_from(["me", "a", "b", "both", "lost"])), max_size=40)


@given(histories)
def test_nobody_is_gone_who_has_been_heard_of_lately_or_while_nothing_was_seen(
    history: list[tuple[float, str]],
) -> None:
    """Whatever is seen and lost: a proxy is gone only after all its time was spent in sight, and silent."""
    now, versions = NOW, {ME: 1, A: 1, B: 1}
    known = seen(*(report(who, version) for who, version in versions.items()))
    heard = dict.fromkeys(versions, now)
    for pause, what in history:
        now += pause
        if what == "lost":
            known = peers.lost(known)
            heard = dict.fromkeys(heard, math.inf)
            continue
        if now - heard[ME] >= TERMS.fresh_seconds:
            heard = dict.fromkeys(heard, now)
        for who in {"me": (ME,), "a": (ME, A), "b": (ME, B), "both": (ME, A, B)}[what]:
            versions[who] += 1
            heard[who] = now
        known = seen(*(report(who, version) for who, version in versions.items()), at=now, before=known)
        heard = {who: min(since, now) for who, since in heard.items()}
        for one in peers.gone(known, now):
            assert now - heard[one.identity] >= TERMS.gone_seconds
        assert {one.identity for one in peers.gone(known, now)}.isdisjoint(peers.live(known, now))
        assert all(now - heard[who] < TERMS.fresh_seconds for who in peers.live(known, now)) == peers.told(known, now)


# Who takes a target down.


def test_a_round_is_yielded_to_from_when_it_was_first_seen_and_for_longer_than_it_is_good_for() -> None:
    known = seen(report(ME), report(A, round="a/1", reason="IDLE"))
    assert peers.yielded_to(known, T, NOW) == "a/1"
    known = seen(report(ME, 2), report(A, 2, round="a/1", reason="IDLE"), at=NOW + 10, before=known)
    assert peers.yielded_to(known, T, NOW + TERMS.yield_seconds - 0.1) == "a/1"
    assert peers.yielded_to(known, T, NOW + TERMS.yield_seconds) == ""
    assert peers.shared(known, T, NOW + TERMS.yield_seconds, leads=False, agreed=False).yields is None
    assert TERMS.yield_seconds > TERMS.round_seconds


def test_a_round_that_is_announced_anew_is_yielded_to_from_then_on() -> None:
    known = seen(report(ME), report(A, round="a/1"))
    known = seen(report(ME, 2), report(A, 2, round="a/2"), at=NOW + 10, before=known)
    assert peers.yielded_to(known, T, NOW + TERMS.yield_seconds + 9.9) == "a/2"
    known = seen(report(ME, 3), report(A, 3), at=NOW + 11, before=known)
    assert peers.yielded_to(known, T, NOW + 11) == ""


def test_a_round_is_yielded_to_though_its_proxy_cannot_be_seen_any_more() -> None:
    known = peers.lost(seen(report(ME), report(A, round="a/1", reason="IDLE")))
    assert peers.yielded_to(known, T, NOW + 5) == "a/1"


@pytest.mark.parametrize(
    ("reason", "is_"), [("IDLE", SleepReason.IDLE), ("RETIRED", SleepReason.RETIRED), ("?", SleepReason.ELSEWHERE)]
)
def test_a_round_says_why(reason: str, is_: SleepReason) -> None:
    known = seen(report(ME), report(A, round="a/1", reason=reason))
    assert peers.shared(known, T, NOW, leads=False, agreed=False).yields is is_


def test_of_two_rounds_all_proxies_yield_to_the_same() -> None:
    rounds = [report(A, round="a/1"), report(B, round="b/1")]
    for order in (rounds, rounds[::-1]):
        assert peers.yielded_to(seen(report(ME), *order), T, NOW) == "a/1"


def test_all_must_yield_to_this_round() -> None:
    def agree(*others: Report) -> bool:
        return peers.agrees(seen(report(ME), *others), T, "me/1", NOW)

    assert agree()
    assert agree(report(A, yields="me/1"))
    assert not agree(report(A, yields="me/0"))
    assert not agree(report(A))
    assert not agree(report(A, yields="me/1"), report(B, waiting=1))
    assert not agree(report(A, yields="me/1"), Report(B, "1"))


@given(st.lists(st.sampled_from(["me/1", "me/0", ""]), max_size=4), st.sampled_from([0.0, 14.9, 15.0, 29.9]))
def test_a_round_is_agreed_on_by_fresh_reports_alone(yields: list[str], age: float) -> None:
    others = [report(f"p{number}", yields=name) for number, name in enumerate(yields)]
    known = kept_seeing(*others, until=NOW + age, before=seen(report(ME), *others))
    fresh = age < TERMS.fresh_seconds or not others
    assert peers.agrees(known, T, "me/1", NOW + age) is (fresh and all(name == "me/1" for name in yields))


def test_who_is_gone_need_not_yield() -> None:
    known = kept_seeing(report(A, in_flight=1), until=NOW + 30, before=seen(report(ME), report(A, in_flight=1)))
    assert peers.agrees(known, T, "me/1", NOW + 30)
    assert not peers.shared(known, T, NOW + 30, leads=True, agreed=True).in_use


# How it is used.


def test_what_all_live_proxies_say_is_put_together() -> None:
    known = seen(report(ME, waiting=9), report(A, waiting=2), report(B, waiting=3, stop=True))
    shared = peers.shared(known, T, NOW, leads=True, agreed=False)
    assert (shared.leads, shared.told, shared.in_use, shared.waiting) == (True, True, True, 5)
    assert peers.stop_asked(known, T, NOW)
    assert not peers.stop_asked(known, "another", NOW)
    assert not peers.shared(known, "another", NOW, leads=True, agreed=False).in_use


@pytest.mark.parametrize(
    ("others", "at"),
    [
        pytest.param([], None, id="nobody else"),
        pytest.param([report(A)], None, id="never used"),
        pytest.param([report(A, in_flight=1)], NOW, id="used when it was seen"),
        pytest.param([report(A, waiting=1)], NOW, id="waited for"),
        pytest.param([report(A, idle_seconds=40.0)], NOW - 40, id="used before"),
        pytest.param([report(A, idle_seconds=40.0), report(B, idle_seconds=3.0)], NOW - 3, id="the last of several"),
        pytest.param([report(A, idle_seconds=40.0), Report(B, "1")], NOW, id="one cannot be read"),
    ],
)
def test_when_it_was_used_last(others: list[Report], at: float | None) -> None:
    assert peers.used_at(seen(report(ME, idle_seconds=0.0), *others), T) == at


def test_how_long_it_was_not_used_counts_from_when_that_was_first_seen() -> None:
    known = seen(report(ME), report(A, idle_seconds=40.0))
    known = seen(report(ME, 2), report(A, idle_seconds=40.0), at=NOW + 9, before=known)
    assert peers.used_at(known, T) == NOW - 40


def test_replicas_that_go_are_avoided_and_waited_for() -> None:
    known = seen(report(ME), report(A, leaving=("r1",)), report(B, leaving=("r2",), left=("r1",)))
    assert peers.leaving(known, T, NOW) == {"r1", "r2"}
    assert peers.leaving(known, "another", NOW) == frozenset()
    assert not peers.are_used(known, T, (), NOW)
    assert peers.are_used(known, T, ("r1",), NOW)
    both = seen(report(ME), report(A, left=("r1", "r3")), report(B, left=("r1",)))
    assert not peers.are_used(both, T, ("r1",), NOW)
    assert peers.are_used(both, T, ("r1", "r3"), NOW)
    assert peers.are_used(seen(report(ME), Report(A, "1")), T, ("r1",), NOW)


def test_whoever_is_alone_need_not_wait_for_anybody() -> None:
    known = seen(report(ME))
    assert peers.told(known, NOW)
    assert peers.agrees(known, T, "me/1", NOW)
    assert not peers.are_used(known, T, ("r1",), NOW)
    assert peers.shared(known, T, NOW, leads=True, agreed=True) == ALONE
