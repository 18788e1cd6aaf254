"""Rows as they are at each width of a terminal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cli.top.statuses import EVERY, LOADING, target
from vllm_chill.api.status import ProxyStatus, StartStatus
from vllm_chill.cli.top.lines import bar, plain, text_of, wrapped
from vllm_chill.cli.top.table import SORTS, aged, details, heading, question, row, sorted_by


def shown(width: int, sort: str = "name") -> list[str]:
    head = heading(width)
    rows = [line for one in sorted_by(sort, EVERY.targets) for line in row(one, EVERY, width)]
    return [text_of(line) for line in ([] if head is None else [head]) + rows]


def test_at_80_columns_there_is_a_row_for_each_and_a_line_for_what_there_is_to_say() -> None:
    assert shown(80) == [
        "TARGET                 PHASE        FOR  WAITING  IN FLIGHT  REPLICAS  SLEEPS IN",
        "bad                    failed        1m        0          0         0          -",
        "  no such image: registry says no",
        "big                    waking       32s       12          0       0/1          -",
        "  ██████████░░░░░░░░░░  50%  loading the model, 32s so far, about 35s left",
        "coder *                ready         1m        0          7       2/3          -",
        "idle                   ready      2m10s        0          0         1      4m50s",
        "next                   queued        1m        3          0         0          -",
        "  waits for big",
        "r1                     asleep        1m        0          0         0          -",
    ]


def test_on_a_phone_each_has_a_paragraph() -> None:
    assert shown(36) == [
        "bad                        failed 1m",
        "  0 waiting, 0 in flight, replicas 0",
        "  no such image: registry says no",
        "big                       waking 32s",
        "  12 waiting, 0 in flight, replicas",
        "  0 of 1 ready",
        "  █████░░░░░  50%",
        "  loading the model, 32s so far,",
        "  about 35s left",
        "coder *                     ready 1m",
        "  0 waiting, 7 in flight, replicas 2",
        "  of 3 ready",
        "idle                     ready 2m10s",
        "  0 waiting, 0 in flight, replicas",
        "  1, sleeps in 4m50s",
        "next                       queued 1m",
        "  3 waiting, 0 in flight, replicas 0",
        "  waits for big",
        "r1                         asleep 1m",
        "  0 waiting, 0 in flight, replicas 0",
    ]


@given(st.integers(20, 200), st.text(max_size=300), st.sampled_from(["ready", "failed", "waking"]))
def test_no_line_is_wider_than_the_terminal_or_steers_it(width: int, text: str, phase: str) -> None:
    start = StartStatus(stage="pulling", detail=text, elapsed_seconds=1e5, eta_seconds=1e5)
    one = target("n" * 300, phase, cause=text, start=start if phase == "waking" else None, in_flight=10**6)
    status = ProxyStatus(version="9", draining=False, targets=[one])
    for line in (*row(one, status, width), *details(one, [text], width)):
        assert len(text_of(line)) <= width
        assert text_of(line).isprintable()


@pytest.mark.parametrize(
    ("sort", "names"),
    [
        ("name", ["bad", "big", "coder", "idle", "next", "r1"]),
        ("phase", ["bad", "next", "big", "coder", "idle", "r1"]),
        ("waiting", ["big", "next", "coder", "bad", "idle", "r1"]),
        ("in-flight", ["coder", "big", "next", "bad", "idle", "r1"]),
    ],
)
def test_rows_are_sorted_as_it_is_wished_and_else_by_name(sort: str, names: list[str]) -> None:
    assert [one.model for one in sorted_by(sort, EVERY.targets)] == names


def test_there_is_a_way_to_sort_by_each() -> None:
    assert list(SORTS) == ["name", "phase", "waiting", "in-flight"]


def test_time_goes_on_between_two_statuses() -> None:
    later = aged(target("a", "waking", start=LOADING, sleeps_in_seconds=5, idle_seconds=1), 40)
    assert later.start is not None
    assert (later.phase_seconds, later.start.elapsed_seconds, later.start.eta_seconds) == (100, 72, 0)
    assert (later.sleeps_in_seconds, later.idle_seconds) == (0, 41)


def test_a_start_is_never_over_before_it_is() -> None:
    late = target("a", "waking", start=StartStatus(stage="loading", elapsed_seconds=60, eta_seconds=0))
    assert "99%" in "".join(map(text_of, row(late, EVERY, 80)))


def test_details_have_all_there_is_and_the_engines_last_lines() -> None:
    coder = EVERY.targets[0]
    text = [text_of(line) for line in details(coder, ["INFO loading", "\x1b[1mINFO\x1b[0m ready"], 80)]
    assert text[:3] == ["model      coder", "served as  org/coder", "target     ns/vllm-coder"]
    assert "last start ready after 1m14s" in text
    assert "             loading the model              1m1s" in text
    assert text[-3:] == ["The engine's last lines:", "INFO loading", "INFO ready"]


@pytest.mark.parametrize(
    ("numbers", "asked"),
    [
        ({}, "Put a to sleep?"),
        ({"in_flight": 1}, "Put a to sleep once its answer has ended?"),
        ({"in_flight": 3}, "Put a to sleep once its 3 answers have ended?"),
        ({"waiting": 2}, "Put a to sleep? 2 wait for it, and will wake it again."),
    ],
)
def test_the_question_says_what_sleep_would_do(numbers: dict[str, int], asked: str) -> None:
    assert question(target("a", **numbers)) == asked


@pytest.mark.parametrize(
    ("text", "is_shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://x\x1b\\link", "link"),
        ("a\tb\r\nc\x00d\x9b1m", "a       b  c d 1m"),
    ],
)
def test_what_steers_a_terminal_is_taken_out(text: str, is_shown: str) -> None:
    assert plain(text) == is_shown


@given(st.floats(allow_nan=False), st.integers(1, 60))
def test_a_bar_is_as_long_as_it_is_wide(share: float, cells: int) -> None:
    assert len(text_of(bar(share, cells))) == cells


def test_words_are_not_cut_where_they_fit() -> None:
    assert [text_of(line) for line in wrapped("one two three", 10)] == ["one two", "three"]
