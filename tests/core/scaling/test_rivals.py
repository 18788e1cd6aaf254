"""Other writers: when they are a conflict, and that nobody is fought for ever."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_chill.core.scaling.rivals import QUIET_SECONDS, Rivalry, written_here, wrote

_DAY = 86400.0


def _written(*times: float, by: str | None = "kubectl-scale") -> Rivalry:
    rivalry = Rivalry()
    for at in times:
        rivalry = wrote(rivalry, by, at)
    return rivalry


def test_one_write_is_no_conflict() -> None:
    assert _written(100).conflict(100) is None


@pytest.mark.parametrize(
    ("times", "is_conflict"),
    [
        pytest.param((0, 100), False, id="two within 5 minutes"),
        pytest.param((0, 100, 299), True, id="three within 5 minutes"),
        pytest.param((0, 100, 300), False, id="three in more than 5 minutes"),
        pytest.param((0, 0, 0), True, id="three at once"),
    ],
)
def test_the_third_write_within_five_minutes_is_a_conflict(times: tuple[float, ...], is_conflict: bool) -> None:
    assert (_written(*times).conflict(times[-1]) is not None) is is_conflict


def test_the_third_that_takes_ours_back_within_an_hour_is_a_conflict() -> None:
    rivalry = Rivalry()
    for at in (0, 1000):
        rivalry = wrote(written_here(rivalry), "cron", at)
        assert rivalry.conflict(at) is None
    assert wrote(written_here(rivalry), "cron", 2000).conflict(2000) == "cron scales it too"
    assert wrote(rivalry, "cron", 2000).conflict(2000) is None


@pytest.mark.parametrize(
    ("by", "who"),
    [
        ("kube-controller-manager", "a HorizontalPodAutoscaler (kube-controller-manager)"),
        ("keda", "KEDA (keda)"),
        ("argocd-controller", "Argo CD (argocd-controller)"),
        ("kustomize-controller", "Flux (kustomize-controller)"),
        ("kube-controller-manager/v1.31.0", "a HorizontalPodAutoscaler (kube-controller-manager/v1.31.0)"),
    ],
)
def test_a_tool_that_is_known_to_keep_a_number_is_a_conflict_at_once(by: str, who: str) -> None:
    assert _written(5, by=by).conflict(5) == f"{who} scales it too"


@pytest.mark.parametrize("by", ["kubectl", "kubectl-edit", "helm", None])
def test_what_a_person_uses_is_none_at_once(by: str | None) -> None:
    assert _written(5, by=by).conflict(5) is None


def test_a_writer_that_is_not_told_is_somebody() -> None:
    assert _written(0, 1, 2, by=None).conflict(2) == "somebody else scales it too"


def test_a_conflict_is_over_once_it_has_been_quiet_for_ten_minutes() -> None:
    rivalry = _written(0, 1, 2)
    assert rivalry.conflict(2 + QUIET_SECONDS - 1) is not None
    assert rivalry.conflict(2 + QUIET_SECONDS) is None
    longer = wrote(rivalry, "kubectl", 500)
    assert longer.conflict(500 + QUIET_SECONDS - 1) is not None
    assert longer.conflict(500 + QUIET_SECONDS) is None


def test_a_conflict_that_comes_back_is_one_at_the_first_write_and_for_twice_as_long() -> None:
    rivalry = wrote(_written(0, 1, 2), "kubectl", 1000)
    assert rivalry.conflict(1000 + 2 * QUIET_SECONDS - 1) is not None
    assert rivalry.conflict(1000 + 2 * QUIET_SECONDS) is None


def test_a_conflict_is_forgotten_after_a_day() -> None:
    rivalry = _written(0, 1, 2)
    assert wrote(rivalry, "kubectl", 2 + QUIET_SECONDS + _DAY).conflict(2 + QUIET_SECONDS + _DAY) is None


@settings(deadline=None)
@given(
    st.floats(0, 900),
    st.floats(10, 60),
    st.sampled_from([None, "kubectl", "cron", "argocd-controller", "keda"]),
)
def test_against_a_rival_that_always_writes_back_few_writes_are_ours(back: float, poll: float, by: str | None) -> None:
    """Each poll writes while there is no conflict; the rival takes it back within a quarter of an hour."""
    rivalry, now, ours, theirs_at = Rivalry(), 0.0, 0, None
    while now < _DAY:
        if theirs_at is not None and theirs_at <= now:
            rivalry, theirs_at = wrote(rivalry, by, theirs_at), None
        if theirs_at is None and rivalry.conflict(now) is None:
            ours, rivalry, theirs_at = ours + 1, written_here(rivalry), now + back
        now += poll
    # Three to see the first conflict, and one for each that follows: 10, 20, 40 ... minutes.
    assert 1 <= ours <= 3 + 8
