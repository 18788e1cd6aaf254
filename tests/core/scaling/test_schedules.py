from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_chill.core.scaling.policy import Schedule
from vllm_chill.core.scaling.schedules import check_schedule, is_active, next_change

BERLIN = ZoneInfo("Europe/Berlin")
OFFICE = Schedule("0 8 * * MON-FRI", "0 18 * * MON-FRI", "Europe/Berlin", 4)
NIGHT = Schedule("0 22 * * *", "0 6 * * *", "Europe/Berlin", 4)
# In 2026 clocks go from 2:00 to 3:00 on 29 March, and from 3:00 to 2:00 on 25 October.
IN_THE_GAP = Schedule("30 2 * * *", "0 5 * * *", "Europe/Berlin", 4)
TWICE = Schedule("15 2 * * *", "45 2 * * *", "Europe/Berlin", 4)


def berlin(month: int, day: int, hour: int, minute: int = 0, second: int = 0, fold: int = 0) -> datetime:
    return datetime(2026, month, day, hour, minute, second, tzinfo=BERLIN, fold=fold)


@pytest.mark.parametrize(
    ("schedule", "wall", "active"),
    [
        pytest.param(OFFICE, berlin(1, 5, 7, 59, 59), False, id="before it starts"),
        pytest.param(OFFICE, berlin(1, 5, 8), True, id="from the moment on"),
        pytest.param(OFFICE, berlin(1, 5, 17, 59, 59), True, id="until the moment"),
        pytest.param(OFFICE, berlin(1, 5, 18), False, id="and not longer"),
        pytest.param(OFFICE, berlin(1, 10, 12), False, id="not at the weekend"),
        pytest.param(OFFICE, datetime(2026, 1, 5, 7, 30, tzinfo=UTC), True, id="in its own time zone"),
        pytest.param(OFFICE, datetime(2026, 7, 6, 6, 30, tzinfo=UTC), True, id="in summer time too"),
        pytest.param(NIGHT, berlin(1, 5, 23), True, id="before midnight"),
        pytest.param(NIGHT, berlin(1, 5, 3), True, id="after midnight"),
        pytest.param(NIGHT, berlin(1, 5, 12), False, id="not at noon"),
        pytest.param(NIGHT, berlin(3, 29, 4), True, id="in the night that is an hour short"),
        pytest.param(NIGHT, berlin(10, 25, 2, 30, fold=1), True, id="in the night that is an hour long"),
        pytest.param(IN_THE_GAP, berlin(3, 29, 1, 59, 59), False, id="before the hour that is left out"),
        pytest.param(IN_THE_GAP, berlin(3, 29, 3), True, id="what is left out is at its end"),
        pytest.param(IN_THE_GAP, berlin(3, 29, 5), False, id="and ends as on any day"),
        pytest.param(TWICE, berlin(10, 25, 2, 30), True, id="the first time that it is so late"),
        pytest.param(TWICE, berlin(10, 25, 2, 50), False, id="after it ended"),
        pytest.param(TWICE, berlin(10, 25, 2, 30, fold=1), False, id="the second time is none"),
        pytest.param(TWICE, berlin(10, 26, 2, 30), True, id="the day after is a day again"),
        pytest.param(
            Schedule("0 8 1 1 *", "0 8 2 1 *", "UTC", 4), datetime(2026, 6, 1, tzinfo=UTC), False, id="once a year"
        ),
        pytest.param(
            Schedule("0 0 29 2 *", "0 0 1 3 *", "UTC", 4), datetime(2028, 2, 29, 9, tzinfo=UTC), True, id="a leap day"
        ),
    ],
)
def test_it_holds_from_its_start_to_its_end(schedule: Schedule, wall: datetime, active: bool) -> None:
    assert is_active(schedule, wall) is active


@pytest.mark.parametrize(
    ("schedule", "wall", "then"),
    [
        pytest.param(OFFICE, berlin(1, 5, 7), berlin(1, 5, 8), id="it begins today"),
        pytest.param(OFFICE, berlin(1, 5, 8), berlin(1, 5, 18), id="it ends today"),
        pytest.param(OFFICE, berlin(1, 9, 18), berlin(1, 12, 8), id="it begins on Monday"),
        pytest.param(IN_THE_GAP, berlin(3, 29, 1), berlin(3, 29, 3), id="it begins at the end of the gap"),
        pytest.param(TWICE, berlin(10, 25, 2, 30, fold=1), berlin(10, 26, 2, 15), id="not a second time"),
        pytest.param(
            Schedule("0 8,12 * * *", "0 18 * * *", "Europe/Berlin", 1),
            *(berlin(1, 5, 9), berlin(1, 5, 18)),
            id="to begin again is no change",
        ),
        pytest.param(
            Schedule("0 8,18 * * *", "0 18,20 * * *", "Europe/Berlin", 1),
            *(berlin(1, 5, 9), berlin(1, 5, 20)),
            id="to end and to begin at once is no change",
        ),
    ],
)
def test_when_it_changes_next(schedule: Schedule, wall: datetime, then: datetime) -> None:
    found = next_change(schedule, wall)
    assert found is not None
    assert found.timestamp() == then.timestamp()
    assert found.tzinfo == ZoneInfo(schedule.timezone)


def test_what_never_changes_has_no_next_change() -> None:
    always = Schedule("0 * * * *", "0 */2 * * *", "UTC", 1)
    assert next_change(always, datetime(2026, 1, 1, 9, tzinfo=UTC)) is None


MINUTES = st.integers(0, 59)
HOURS = st.integers(0, 23)
DAILY = st.builds("{} {} * * *".format, MINUTES, HOURS)
ZONES = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"])
YEAR = datetime(2026, 1, 1, tzinfo=UTC)
MOMENTS = st.integers(0, 365 * 24 * 3600).map(lambda second: YEAR + timedelta(seconds=second))


@given(DAILY, DAILY, ZONES, MOMENTS)
def test_nothing_changes_before_the_next_change(start: str, end: str, zone: str, wall: datetime) -> None:
    if check_schedule(start, end, zone) is not None:
        return
    schedule = Schedule(start, end, zone, 1)
    change = next_change(schedule, wall)
    assert change is not None
    at = change.timestamp()
    assert wall.timestamp() < at <= wall.timestamp() + 26 * 3600
    before = datetime.fromtimestamp(at - 1, UTC)
    assert is_active(schedule, max(before, wall)) is is_active(schedule, wall)
    assert is_active(schedule, datetime.fromtimestamp(at, UTC)) is not is_active(schedule, wall)


@pytest.mark.parametrize(
    ("start", "end", "zone"),
    [
        ("0 8 * * MON-FRI", "0 18 * * mon-fri", "Europe/Berlin"),
        ("*/15 * * * *", "7 * * * *", "UTC"),
        ("0 0 L * *", "0 0 1 * *", "America/New_York"),
        ("0 0 29 2 *", "0 0 1 3 *", "Etc/GMT+5"),
    ],
)
def test_what_can_be_used(start: str, end: str, zone: str) -> None:
    assert check_schedule(start, end, zone) is None


GIVE = 'give a cron expression of 5 fields, such as "0 8 * * MON-FRI"'


@pytest.mark.parametrize(
    ("start", "end", "zone", "problem"),
    [
        ("0 8 * *", "0 18 * * *", "UTC", f'start: "0 8 * *" is not accepted; {GIVE}'),
        ("0 0 8 * * *", "0 18 * * *", "UTC", f'start: "0 0 8 * * *" is not accepted; {GIVE}'),
        ("0 8 * * *", "0 25 * * *", "UTC", f'end: "0 25 * * *" is not accepted; {GIVE}'),
        ("0 8 * * *", "0 0 30 2 *", "UTC", f'end: "0 0 30 2 *" is not accepted; {GIVE}'),
        ("@daily", "0 18 * * *", "UTC", f'start: "@daily" is not accepted; {GIVE}'),
        ("", "0 18 * * *", "UTC", f'start: "" is not accepted; {GIVE}'),
        ("0 8 * * *", "0  8 * * *", "UTC", 'start and end are both "0 8 * * *"; give an end at another time'),
        *(
            ("0 8 * * *", "0 9 * * *", zone, f'the time zone "{zone}" is not known; give one such as Europe/Berlin')
            for zone in ("Europe/Atlantis", "", "Europe", "../etc/passwd", "/etc/passwd", "a\0b")
        ),
    ],
)
def test_what_cannot_be_used_is_told(start: str, end: str, zone: str, problem: str) -> None:
    assert check_schedule(start, end, zone) == problem


@settings(max_examples=20)  # an unknown zone is looked for in files
@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=20))
def test_whatever_is_given_is_used_or_told(start: str, end: str, zone: str) -> None:
    problem = check_schedule(start, end, zone)
    assert problem is None or "; give " in problem


@given(st.lists(st.text("0123456789*/,-LW# MONFRI", max_size=6), min_size=5, max_size=5).map(" ".join))
def test_whatever_looks_like_cron_is_used_or_told(expression: str) -> None:
    problem = check_schedule(expression, "59 23 31 12 *", "Europe/Berlin")
    assert problem is None or "; give " in problem
