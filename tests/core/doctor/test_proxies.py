from __future__ import annotations

from dataclasses import replace

import pytest

from tests.core.doctor.world import ASKED, found, is_fine, manifest, named, only, proxy, sound
from vllm_chill.core.doctor.finding import Outcome, Unseen
from vllm_chill.core.doctor.picture import Asked, Picture
from vllm_chill.core.doctor.proxies import PROXIES, PROXY_GRACE, proxies_of, serving
from vllm_chill.core.objects import Json


def of(*deployments: Json) -> Picture:
    return sound(deployments=deployments)


def test_a_proxy_is_read_with_its_flags() -> None:
    [found_one] = proxies_of((manifest("example/deployment.yaml"), manifest("deployment.yaml")))
    assert (found_one.name, found_one.account, found_one.grace_seconds) == ("vllm-chill", "vllm-chill", 630)
    assert found_one.flags["idle-timeout"] == "5m"
    assert found_one.flags["namespace"] == "ai-apps"


def test_flags_are_read_as_they_are_written() -> None:
    container = {
        "image": "host:5000/team/vllm-chill:1",
        "args": ["serve", "--idle-timeout", "7m", "--strict-thing", "--models=$(UNKNOWN)", "--", "--port=1"],
        "env": [{"name": "WAKE_TIMEOUT", "value": "9m"}, {"name": "KEY", "valueFrom": {"secretKeyRef": {}}}],
    }
    [one] = proxies_of((named("p", spec={"template": {"spec": {"containers": [container]}}}),))
    assert one.flags == {"idle-timeout": "7m", "strict-thing": "true"}
    assert one.says("wake-timeout", "WAKE_TIMEOUT", "2m") == "9m"
    assert one.says("start-timeout", "START_TIMEOUT", "30m") == "30m"


def test_the_controller_of_variants_is_no_proxy() -> None:
    assert proxies_of((manifest("controller/deployment.yaml"),)) == []


def test_only_those_of_this_target_count() -> None:
    other = proxy("other", "--deployment=llama")
    assert [one.name for one in serving(ASKED, (manifest("deployment.yaml"), other))] == ["vllm-chill"]
    assert [one.name for one in serving(Asked(deployment="llama"), (other,))] == ["other"]
    models = proxy("models", "--models=crd", "--deployment=x")
    assert [one.name for one in serving(Asked(of_models=True), (models,))] == ["models"]


@pytest.mark.parametrize(
    ("deployments", "says"),
    [
        pytest.param(
            (proxy("vllm-chill", "--leader-elect=off", replicas=2),),
            "vllm-chill has --leader-elect off",
            id="two alone",
        ),
        pytest.param((proxy(), proxy("b", "--leader-elect=off")), "b has --leader-elect off", id="one of two alone"),
        pytest.param((proxy(), proxy("b", "--lease-name=b")), "differ in --lease-name (b has b", id="two leases"),
    ],
)
def test_proxies_that_do_not_know_of_one_another_are_a_failure(deployments: tuple[Json, ...], says: str) -> None:
    finding = only(PROXIES, of(*deployments))
    assert finding.outcome is Outcome.FAILURE
    assert says in finding.says


def test_proxies_with_other_settings_are_a_warning() -> None:
    finding = only(PROXIES, of(proxy(), proxy("b", "--idle-timeout=1m")))
    assert finding.outcome is Outcome.WARNING
    assert "differ in --idle-timeout (b has 1m, vllm-chill has 5m)" in finding.says
    assert finding.paste == "kubectl -n ai-apps edit deployment b"


def test_proxies_that_agree_are_fine() -> None:
    assert is_fine(found(PROXIES, of(proxy(replicas=3))))
    assert is_fine(found(PROXIES, of(proxy(), proxy("b", "--max-in-flight=0"))))
    assert is_fine(found(PROXIES, of(proxy("one", "--leader-elect=off"))))
    assert found(PROXIES, of()) == []
    assert only(PROXIES, sound(deployments=Unseen("no"))).outcome is Outcome.UNKNOWN


def test_a_proxy_lives_for_as_long_as_it_drains() -> None:
    assert is_fine(found(PROXY_GRACE, sound()))
    finding = only(PROXY_GRACE, sound(), replace(ASKED, drain_seconds=1800))
    assert finding.outcome is Outcome.WARNING
    assert '"terminationGracePeriodSeconds":1830' in finding.paste
