"""The page for those who write clients says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vllm_chill.errors import AnswerableError
from vllm_chill.settings.parts import default_text, flag_of
from vllm_chill.settings.serve import Settings

PAGE = (Path(__file__).parents[2] / "docs" / "hold.md").read_text()
DEFAULTS = {flag_of(name): default_text(field) for name, field in Settings.model_fields.items()}


def kinds_of(kind: type[AnswerableError]) -> list[type[AnswerableError]]:
    return [kind, *(each for below in kind.__subclasses__() for each in kinds_of(below))]


STATUSES = {kind.code: str(kind.status) for kind in kinds_of(AnswerableError)}


SETTINGS = re.findall(r"^\| `(--[a-z-]+)` \| (?:`([^`]*)`)? \|", PAGE, re.MULTILINE)


def test_the_settings_are_told() -> None:
    assert len(SETTINGS) == 10


@pytest.mark.parametrize(("flag", "default"), SETTINGS)
def test_a_setting_has_the_default_that_is_told(flag: str, default: str) -> None:
    assert DEFAULTS[flag] == default


@pytest.mark.parametrize(("status", "code"), re.findall(r"(\d{3}) `([a-z]+_[a-z_]+)`", PAGE))
def test_an_error_has_the_status_that_is_told(status: str, code: str) -> None:
    assert STATUSES[code] == status


def test_all_that_may_end_a_hold_is_told() -> None:
    told = set(re.findall(r"`([a-z]+_[a-z_]+)`", PAGE))
    elsewhere = {"not_found", "method_not_allowed", "expectation_failed", "internal_error"}
    elsewhere |= {"head_too_large", "request_too_large", "request_timeout", "too_many_connections"}
    elsewhere |= {"invalid_api_key", "model_not_allowed", "forbidden", "rate_limit_exceeded", "rights_unknown"}
    elsewhere |= {
        "stop_failed",
        "switch_failed",
        "logs_unavailable",
        "no_catalogue",
        "no_gpu_stats",
        "no_logs",
        "no_policy",
        "not_scaling",
        "replica_not_found",
        "request_not_held",
        "too_many_listeners",
        "too_many_followers",
    }  # of the proxy's own routes
    assert set(STATUSES) - told == elsewhere
