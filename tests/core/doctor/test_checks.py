"""All checks together: a sound installation, what cannot be looked at, and what comes of findings."""

from __future__ import annotations

import re
from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.doctor.world import ASKED, BY_SERVICE, DEPLOY, engine, sound
from vllm_chill.core.doctor.checks import OF_A_CLUSTER, count, examine, exit_status
from vllm_chill.core.doctor.finding import Finding, Outcome, Unseen, failure, ok, unknown, warning
from vllm_chill.core.doctor.machine import OF_A_MACHINE
from vllm_chill.core.doctor.picture import Asked, Picture

PAGE = (DEPLOY.parent / "docs" / "doctor.md").read_text()


@pytest.mark.parametrize("asked", [ASKED, BY_SERVICE], ids=["by pods", "by the Service"])
def test_a_sound_installation_is_fine(asked: Asked) -> None:
    findings = list(examine(asked, sound()))
    assert [one for one in findings if one.outcome is not Outcome.OK] == []
    assert len({one.check for one in findings}) > 25


def test_names_of_checks_are_their_own() -> None:
    for checks in (OF_A_CLUSTER, OF_A_MACHINE):
        names = [check.name for check in checks]
        assert len(names) == len(set(names))


@pytest.mark.parametrize("check", [*OF_A_CLUSTER, *OF_A_MACHINE], ids=lambda check: check.name)
def test_every_check_is_in_the_page_as_it_is(check: object) -> None:
    row = f"| `{check.name}` | {check.looks} | {check.harm} | {check.remedy} |"  # type: ignore[attr-defined]
    assert row in PAGE, row


def test_the_page_has_no_check_that_is_not_there() -> None:
    names = re.findall(r"^\| `([a-z-]+)` \|", PAGE.partition("## The checks")[2], re.MULTILINE)
    assert names == [check.name for check in (*OF_A_CLUSTER, *OF_A_MACHINE)]


def test_without_the_target_only_what_needs_none_is_looked_at() -> None:
    checks = {one.check for one in examine(ASKED, sound(target=None))}
    assert "deployment" in checks
    assert checks <= {check.name for check in OF_A_CLUSTER if not check.of_target}


LISTS = [field.name for field in fields(Picture) if field.name.endswith("s") and field.type == "Objects"]


@given(st.sets(st.sampled_from([*LISTS, "target", "rights", "engines"])))
@settings(max_examples=30, deadline=None)
def test_what_may_not_be_read_is_told_and_stops_no_other_check(unseen: set[str]) -> None:
    picture = sound(**{name: Unseen(f"needs {name}") for name in unseen})
    findings = list(examine(ASKED, picture))
    assert {one.outcome for one in findings} <= {Outcome.OK, Outcome.UNKNOWN}
    assert all(
        "could not look: " in one.says and "needs " in one.says for one in findings if one.outcome is Outcome.UNKNOWN
    )


@pytest.mark.parametrize("empty", [{}, {"spec": {}}, {"spec": {"template": {"spec": {"containers": [{}]}}}}])
def test_objects_that_say_hardly_anything_are_looked_at_all_the_same(empty: dict[str, object]) -> None:
    item = {**empty, "metadata": {"name": "vllm"}}
    bare = {name: ({"metadata": {"name": "a"}},) for name in LISTS}
    findings = list(examine(ASKED, sound(target=item, **bare)))
    assert findings


def test_a_failure_is_status_1_and_a_warning_only_if_that_is_asked_for() -> None:
    fine, warned, failed, blind = ok("a"), warning("a", "b"), failure("a", "b"), unknown("a")
    assert exit_status([fine, blind], strict=True) == 0
    assert (exit_status([fine, warned], strict=False), exit_status([fine, warned], strict=True)) == (0, 1)
    assert exit_status([failed], strict=False) == 1
    assert count([fine, fine, warned])[Outcome.OK] == 2


def test_whatever_is_wrong_is_said_in_a_sentence_with_what_to_do() -> None:
    def is_whole(one: Finding) -> bool:
        return not one.says.endswith(".") and (one.outcome is Outcome.OK or bool(one.remedy))

    spoiled = engine(readinessProbe=None, startupProbe=None, image="vllm/vllm-openai", resources=None)
    findings = list(examine(BY_SERVICE, replace(spoiled, claims=(), services=(), nodes=())))
    assert len([one for one in findings if one.outcome is not Outcome.OK]) > 4
    assert all(is_whole(one) for one in findings)
