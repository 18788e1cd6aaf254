from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.core.doctor.world import ASKED, found, is_fine, only, sound
from vllm_chill.core.doctor.finding import Check, Outcome
from vllm_chill.core.doctor.timing import IDLE_TIMEOUT, START_TIMEOUT, WAKE_TIMEOUT

SLOW = sound(history='{"version":1,"whole":200,"stages":{}}')


@pytest.mark.parametrize(
    ("check", "setting", "outcome", "remedy"),
    [
        pytest.param(IDLE_TIMEOUT, "idle_seconds", Outcome.WARNING, "give --idle-timeout 7m", id="idle"),
        pytest.param(WAKE_TIMEOUT, "wake_seconds", Outcome.WARNING, "give --wake-timeout 5m", id="wake"),
        pytest.param(START_TIMEOUT, "start_seconds", Outcome.FAILURE, "give --start-timeout 7m", id="start"),
    ],
)
def test_what_is_shorter_than_a_start_is_told(check: Check, setting: str, outcome: Outcome, remedy: str) -> None:
    short, long = (replace(ASKED, **dict[str, Any]({setting: seconds})) for seconds in (199, 201))
    finding = only(check, SLOW, short)
    assert finding.outcome is outcome
    assert "a start takes 3m20s" in finding.says
    assert finding.remedy.startswith(remedy)
    assert is_fine(found(check, SLOW, long))


@pytest.mark.parametrize("history", [None, "", "{}", "not JSON"])
def test_while_no_start_is_known_nothing_is_wrong(history: str | None) -> None:
    for check in (IDLE_TIMEOUT, WAKE_TIMEOUT, START_TIMEOUT):
        assert is_fine(found(check, sound(history=history), replace(ASKED, idle_seconds=1, wake_seconds=1)))
