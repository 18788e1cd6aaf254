from __future__ import annotations

from dataclasses import replace

import pytest

from tests.core.doctor.world import ASKED, found, ingress, is_fine, manifest, merged, only, sound
from vllm_chill.core.doctor.finding import Outcome, Unseen
from vllm_chill.core.doctor.ingress import BUFFERING, BYPASS, OPERATORS, TIMEOUTS, ways_of
from vllm_chill.core.objects import Json

NONE: Json = {"metadata": {"annotations": None}}


def test_an_ingress_waits_for_a_cold_start() -> None:
    assert is_fine(found(TIMEOUTS, sound()))
    finding = only(TIMEOUTS, sound(ingresses=(ingress(proxy_read_timeout="119s"),)))
    assert finding.outcome is Outcome.FAILURE
    assert "gives up after 1m59s of silence" in finding.says
    assert "proxy-read-timeout=1800" in finding.paste
    patient = replace(ASKED, wake_seconds=3600)
    assert "proxy-read-timeout=3660" in only(TIMEOUTS, sound(), patient).paste


def test_without_annotations_nginx_waits_for_a_minute() -> None:
    bare = sound(ingresses=(merged(ingress(), NONE),))
    assert "after 1m of silence" in only(TIMEOUTS, bare).says
    assert is_fine(found(TIMEOUTS, bare, replace(ASKED, wake_seconds=60)))


def test_an_upload_may_wait_too() -> None:
    finding = only(TIMEOUTS, sound(ingresses=(ingress(proxy_send_timeout="60"),)))
    assert finding.outcome is Outcome.WARNING
    assert "proxy-send-timeout" in finding.paste


def test_of_other_ingresses_nothing_is_said_but_where_it_stands() -> None:
    traefik = merged(ingress(), {**NONE, "spec": {"ingressClassName": "traefik"}})
    assert "docs/hold.md" in only(TIMEOUTS, sound(ingresses=(traefik,))).says
    assert found(BUFFERING, sound(ingresses=(traefik,))) == []


def test_an_ingress_that_leads_elsewhere_is_none_of_ours() -> None:
    web = merged(ingress(), {"spec": {"rules": [{"http": {"paths": [{"backend": {"service": {"name": "web"}}}]}}]}})
    for check in (TIMEOUTS, BUFFERING, OPERATORS):
        assert found(check, sound(ingresses=(web,))) == []
    assert found(TIMEOUTS, sound(ingresses=())) == []


@pytest.mark.parametrize(
    ("annotations", "paste"),
    [
        pytest.param({"proxy_buffering": "on"}, "proxy-buffering=off", id="tokens in lumps"),
        pytest.param({"proxy_body_size": "1m"}, "proxy-body-size=64m", id="small bodies"),
        pytest.param({"proxy_body_size": "512k"}, "proxy-body-size=64m", id="smaller bodies"),
    ],
)
def test_what_an_ingress_holds_back_is_a_warning(annotations: dict[str, str], paste: str) -> None:
    finding = only(BUFFERING, sound(ingresses=(ingress(**annotations),)))
    assert finding.outcome is Outcome.WARNING
    assert paste in finding.paste


@pytest.mark.parametrize("size", ["0", "8m", "1g"])
def test_large_bodies_are_fine(size: str) -> None:
    assert found(BUFFERING, sound(ingresses=(ingress(proxy_body_size=size),))) == []


@pytest.mark.parametrize("path", ["/", "/proxy", "/proxy/operations", "/(.*)"])
def test_who_comes_through_an_ingress_must_not_operate_the_proxy(path: str) -> None:
    open_to_all = sound(ingresses=(ingress(path),))
    finding = only(OPERATORS, open_to_all)
    assert finding.outcome is Outcome.FAILURE
    assert '"path":"/spec/rules/0/http/paths/0/path","value":"/v1"' in finding.paste
    assert is_fine(found(OPERATORS, open_to_all, replace(ASKED, guarded=True)))
    assert found(OPERATORS, open_to_all, replace(ASKED, admin_port=9000)) == []


def test_an_ingress_to_the_port_of_operators_is_a_failure() -> None:
    apart = replace(ASKED, admin_port=9000)
    service = merged(manifest("service.yaml"), {"spec": {"ports": {"targetPort": 9000}}})
    assert only(OPERATORS, sound(ingresses=(ingress("/"),), services=(service,)), apart).outcome is Outcome.FAILURE
    assert found(OPERATORS, sound(ingresses=(ingress("/v1"),), services=(service,)), apart) == []


@pytest.mark.parametrize("path", ["/v1", "/proxying", "/proxy/status"])
def test_other_paths_are_fine(path: str) -> None:
    assert found(OPERATORS, sound(ingresses=(ingress(path),))) == []


def test_a_default_backend_is_a_way_to_everything() -> None:
    item = merged(ingress(), {"spec": {"defaultBackend": {"service": {"name": "vllm-chill-svc"}}}})
    assert next(way.at for way in ways_of(item)) == "/spec/defaultBackend"
    assert only(OPERATORS, sound(ingresses=(item,))).paste == ""


def test_an_exact_path_is_that_path_alone() -> None:
    item = ingress("/")
    item["spec"]["rules"][0]["http"]["paths"][0]["pathType"] = "Exact"
    assert found(OPERATORS, sound(ingresses=(item,))) == []


def test_an_ingress_past_the_proxy_is_a_failure() -> None:
    assert is_fine(found(BYPASS, sound()))
    finding = only(BYPASS, sound(ingresses=(ingress(service="vllm-svc"),)))
    assert finding.outcome is Outcome.FAILURE
    assert '"value":{"service":{"name":"vllm-chill-svc","port":{"number":80}}}' in finding.paste
    assert only(BYPASS, sound(ingresses=(ingress(service="vllm-svc"),), deployments=())).paste == ""
    assert only(BYPASS, sound(services=Unseen("no"))).outcome is Outcome.UNKNOWN
