"""On which terms a request is held: what it may ask for, and what it may not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_chill.core.admission import Priority
from vllm_chill.errors import BadRequest
from vllm_chill.proxy.committed import Kind
from vllm_chill.proxy.hold_terms import HoldOptions, JsonHold, Terms, takes_beats, terms, turn

OPTIONS = HoldOptions(seconds=120, priority_keys=frozenset({"sk-vip", "team a"}))


@pytest.mark.parametrize(
    ("prefer", "wake_timeout", "seconds"),
    [
        (None, None, 120),
        ("wait=30", None, 30),
        ("respond-async, wait=10", None, 10),
        ('WAIT = "7"; x', None, 7),
        ("wait=0", None, 0),
        ("wait=999", None, 120),
        ("awaiting=3, handling=lenient", None, 120),
        ("wait=soon", None, 120),
        (None, "30", 30),
        (None, " 1.5m ", 90),
        (None, "250ms", 0.25),
        (None, "5h", 120),
        ("wait=10", "20s", 20),
    ],
)
def test_a_request_may_ask_for_a_shorter_hold(prefer: str | None, wake_timeout: str | None, seconds: float) -> None:
    for stream in (True, False, None):
        assert terms(OPTIONS, stream=stream, prefer=prefer, wake_timeout=wake_timeout).seconds == seconds


@pytest.mark.parametrize("said", ["", "soon", "-1", "1d", "1e3", "inf", "nan", "9" * 30])
def test_a_wake_timeout_that_is_no_time_is_a_bad_request(said: str) -> None:
    with pytest.raises(BadRequest, match="X-Wake-Timeout"):
        terms(OPTIONS, stream=True, prefer=None, wake_timeout=said)


@given(st.text(max_size=40), st.booleans())
def test_no_preference_makes_trouble_or_a_longer_hold(prefer: str, stream: bool) -> None:
    assert 0 <= terms(OPTIONS, stream=stream, prefer=prefer, wake_timeout=None).seconds <= 120


def test_streams_hear_of_their_hold_and_json_only_where_it_is_wanted() -> None:
    def of(json: JsonHold, *, stream: bool | None, prefer: str | None = None, after: float = 15) -> Terms:
        options = HoldOptions(seconds=120, json=json, beat_after_seconds=after)
        return terms(options, stream=stream, prefer=prefer, wake_timeout=None)

    for json in JsonHold:
        assert of(json, stream=True) == Terms(120, Kind.EVENTS)
        assert of(json, stream=True, after=0) == Terms(120, None)
    assert of(JsonHold.SILENT, stream=False) == Terms(120, None)
    assert of(JsonHold.WHITESPACE, stream=False) == Terms(120, Kind.JSON)
    assert of(JsonHold.WHITESPACE, stream=None) == Terms(120, None)
    assert of(JsonHold.FAIL, stream=False) == Terms(0, None)
    assert of(JsonHold.FAIL, stream=False, prefer="wait=20") == Terms(20, None)


@pytest.mark.parametrize(
    ("accept", "takes"),
    [
        (None, True),
        ("*/*", True),
        ("application/json", True),
        ("text/event-stream", True),
        ("text/html, Application/JSON;q=0.9", True),
        ("application/octet-stream", False),
        ("audio/mpeg, audio/wav", False),
    ],
)
def test_who_wants_something_else_than_events_or_json_is_held_in_silence(accept: str | None, takes: bool) -> None:
    assert takes_beats(accept) is takes


@pytest.mark.parametrize(
    ("key", "priority", "expected"),
    [
        (None, None, ("1.2.3.4", Priority.NORMAL)),
        (None, "high", ("1.2.3.4", Priority.NORMAL)),
        ("Bearer sk-x", "high", ("Bearer sk-x", Priority.NORMAL)),
        ("Bearer sk-vip", "high", ("Bearer sk-vip", Priority.HIGH)),
        ("bearer sk-vip", " LOW ", ("bearer sk-vip", Priority.LOW)),
        ("team a", "high", ("team a", Priority.HIGH)),
        ("Bearer sk-vip", "urgent", ("Bearer sk-vip", Priority.NORMAL)),
        ("", "high", ("1.2.3.4", Priority.NORMAL)),
    ],
)
def test_who_takes_whose_turn(key: str | None, priority: str | None, expected: tuple[str, Priority]) -> None:
    assert turn(OPTIONS, key=key, peer="1.2.3.4", priority=priority) == expected
