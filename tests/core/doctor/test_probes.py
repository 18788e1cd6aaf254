from __future__ import annotations

from dataclasses import replace

import pytest

from tests.core.doctor.world import ASKED, engine, found, is_fine, only, sound
from vllm_chill.core.doctor.finding import Outcome
from vllm_chill.core.doctor.probes import LIVENESS, READINESS, STARTUP, allows_seconds

PAST = '{"version":1,"whole":400,"stages":{}}'


def test_a_pod_is_ready_by_a_probe() -> None:
    assert is_fine(found(READINESS, sound()))
    assert is_fine(found(READINESS, engine(readinessProbe=None)))
    finding = only(READINESS, engine(readinessProbe=None, startupProbe=None))
    assert finding.outcome is Outcome.FAILURE
    assert '"readinessProbe":{"httpGet":{"path":"/health","port":"http"}' in finding.paste
    other = only(
        READINESS, engine(readinessProbe=None, startupProbe=None, ports=None), replace(ASKED, health_path="/up")
    )
    assert '{"path":"/up","port":8000}' in other.paste


@pytest.mark.parametrize(
    ("probe", "past", "outcome"),
    [
        pytest.param({"periodSeconds": 2, "failureThreshold": 900}, None, Outcome.OK, id="as long as a start may take"),
        pytest.param({"periodSeconds": 10, "failureThreshold": 60}, None, Outcome.WARNING, id="ten minutes"),
        pytest.param({"periodSeconds": 10, "failureThreshold": 60}, PAST, Outcome.WARNING, id="longer than it takes"),
        pytest.param({"periodSeconds": 10, "failureThreshold": 39}, PAST, Outcome.FAILURE, id="shorter than it takes"),
        pytest.param({"timeoutSeconds": 1}, None, Outcome.FAILURE, id="as Kubernetes has it"),
    ],
)
def test_a_startup_probe_lets_a_model_load(probe: dict[str, int], past: str | None, outcome: Outcome) -> None:
    picture = engine(startupProbe=None)
    assert isinstance(picture.target, dict)
    picture.target["spec"]["template"]["spec"]["containers"][0]["startupProbe"] = probe
    assert only(STARTUP, replace(picture, history=past)).outcome is outcome


def test_without_probes_nothing_ends_an_engine_that_loads() -> None:
    assert found(STARTUP, engine(startupProbe=None)) == []  # the livenessProbe is looked at by itself
    bare = engine(startupProbe=None, livenessProbe=None)
    assert is_fine(found(STARTUP, bare))
    assert is_fine(found(LIVENESS, bare))


def test_a_liveness_probe_alone_kills_a_model_that_loads() -> None:
    assert is_fine(found(LIVENESS, sound()))
    finding = only(LIVENESS, engine(startupProbe=None))
    assert finding.outcome is Outcome.FAILURE
    assert "not healthy 1m after its start" in finding.says
    assert '"failureThreshold":900' in finding.paste
    patient = engine(startupProbe=None, livenessProbe={"initialDelaySeconds": 1800})
    assert is_fine(found(LIVENESS, patient))


def test_what_a_probe_allows_counts_from_the_start() -> None:
    assert allows_seconds({}) == 30
    assert allows_seconds({"initialDelaySeconds": 5, "periodSeconds": 2, "failureThreshold": 10}) == 25
