from __future__ import annotations

from dataclasses import replace

import pytest

from tests.core.doctor.world import (
    ASKED,
    BY_SERVICE,
    engine,
    found,
    is_fine,
    manifest,
    merged,
    named,
    only,
    pods,
    sound,
)
from vllm_chill.core.doctor.finding import Outcome
from vllm_chill.core.doctor.picture import Asked, Picture
from vllm_chill.core.doctor.service import ENGINE_PORT, SELECTOR, SERVICE, SERVICE_LINKS, SERVICE_PORT
from vllm_chill.core.objects import Json


def service(**spec: object) -> Picture:
    return sound(services=(merged(manifest("example/service.yaml"), {"spec": spec}), manifest("service.yaml")))


def test_a_service_that_is_not_there_is_a_failure_only_where_requests_go_to_it() -> None:
    gone = sound(services=())
    assert only(SERVICE, gone, BY_SERVICE).outcome is Outcome.FAILURE
    assert "kind: Service" in only(SERVICE, gone, BY_SERVICE).paste
    finding = only(SERVICE, gone, ASKED)
    assert finding.outcome is Outcome.WARNING
    assert "requests go to the pods themselves" in finding.says


def test_a_service_that_leads_to_the_pods_is_named_in_place_of_one_that_is_not_there() -> None:
    finding = only(SERVICE, sound(), replace(BY_SERVICE, service="vllm-service", host="vllm-service"))
    assert finding.remedy == "give --target-host vllm-svc"


def test_a_host_that_is_no_service_is_left_alone() -> None:
    asked = Asked(service=None, host="10.0.0.9", direct=False)
    assert is_fine(found(SERVICE, sound(), asked))
    assert found(SELECTOR, sound(), asked) == []


def test_the_address_of_a_service_stands_for_it() -> None:
    assert is_fine(found(SELECTOR, service(clusterIP="10.0.0.9"), Asked(service=None, host="10.0.0.9", direct=False)))
    assert found(SELECTOR, service(clusterIP="10.0.0.9"), Asked(service=None, host="10.0.0.9"))


def test_a_selector_that_selects_others_is_replaced_by_the_deployments() -> None:
    finding = only(SELECTOR, service(selector={"app": "web", "tier": "x"}), BY_SERVICE)
    assert finding.says == "Service vllm-svc selects app=web,tier=x, and vllm's pods have app=vllm"
    assert '{"app":"vllm","tier":null}' in finding.paste


@pytest.mark.parametrize(
    ("port", "says"),
    [
        pytest.param({"port": 81}, "has no port 80; it has 81", id="another port"),
        pytest.param({"port": 80, "targetPort": "web"}, "no port called web, but http", id="an unknown name"),
        pytest.param({"port": 80, "targetPort": 9}, "no port 9, but 8000", id="an unknown number"),
        pytest.param({"port": 80}, "no port 80, but 8000", id="its own number, which the pods do not have"),
    ],
)
def test_a_port_that_leads_nowhere_is_told(port: Json, says: str) -> None:
    finding = only(SERVICE_PORT, service(ports=[port]), BY_SERVICE)
    assert finding.outcome is Outcome.FAILURE
    assert says in finding.says


def test_a_port_by_number_is_fine_where_pods_declare_none() -> None:
    picture = replace(engine(ports=None), services=service(ports=[{"port": 80, "targetPort": 8000}]).services)
    assert is_fine(found(SERVICE_PORT, picture, BY_SERVICE))


def test_the_engines_port_is_the_one_that_is_declared() -> None:
    assert is_fine(found(ENGINE_PORT, sound()))
    finding = only(ENGINE_PORT, engine(args=["--port", "9000"]))
    assert "listens on port 9000, and requests go to port 8000" in finding.says
    assert '"containerPort":9000' in finding.paste
    shell = engine(command=["sh", "-c", "vllm serve m --port=9000"], args=None)
    assert only(ENGINE_PORT, shell).outcome is Outcome.FAILURE
    assert only(ENGINE_PORT, engine(args=["--model=m"], ports=[{"containerPort": 80}])).outcome is Outcome.FAILURE
    assert is_fine(found(ENGINE_PORT, engine(image="other:1", args=[], ports=[{"containerPort": 80}])))
    assert found(ENGINE_PORT, engine(args=["--port=9"]), BY_SERVICE) == []


def test_a_service_called_vllm_breaks_vllm_unless_its_variables_are_not_made() -> None:
    called = (*sound().services, named("vllm", spec={}))  # type: ignore[misc]
    assert is_fine(found(SERVICE_LINKS, sound(services=called)))
    finding = only(SERVICE_LINKS, replace(pods(enableServiceLinks=None), services=called))
    assert "VLLM_PORT=tcp://" in finding.says
    assert is_fine(found(SERVICE_LINKS, pods(enableServiceLinks=None)))
    given = engine(env=[{"name": "VLLM_PORT", "value": "5000"}])
    loose = merged(given.target, {"spec": {"template": {"spec": {"enableServiceLinks": True}}}})
    assert is_fine(found(SERVICE_LINKS, sound(services=called, target=loose)))
