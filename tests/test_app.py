from __future__ import annotations

import pytest

from vllm_chill.api.version import Build
from vllm_chill.app import VERSION
from vllm_chill.app.plan import Plan, is_service_of
from vllm_chill.app.serve import build
from vllm_chill.errors import SettingError
from vllm_chill.proxy.affinity import Affinity
from vllm_chill.settings.parts import env_of
from vllm_chill.settings.serve import Settings, load_settings


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for field in Settings.model_fields.values():
        monkeypatch.delenv(env_of(field), raising=False)


@pytest.mark.parametrize(
    ("host", "is_one"),
    [
        ("vllm-svc", True),
        ("vllm-svc.ai-apps", True),
        ("vllm-svc.ai-apps.svc", True),
        ("vllm-svc.ai-apps.svc.cluster.local", True),
        ("VLLM-svc.ai-apps.svc.cluster.local.", True),
        ("vllm-svc.other", False),
        ("vllm-svc.other.svc.cluster.local", False),
        ("gpu.ai-apps.example.com", False),
        ("vllm.example.com", False),
        ("10.96.0.7", False),
        ("127.0.0.1", False),
        ("fd00::1", False),
        ("::1", False),
    ],
)
def test_a_service_of_the_namespace_is_known_by_its_name(host: str, is_one: bool) -> None:
    assert is_service_of("ai-apps", host) is is_one


@pytest.mark.parametrize(
    ("flags", "direct"),
    [
        pytest.param({}, True, id="by default"),
        pytest.param({"route": "service"}, False, id="as asked"),
        pytest.param({"target_host": "gateway.example.com"}, False, id="a host outside the namespace"),
        pytest.param({"target_host": "10.96.0.7"}, False, id="an address"),
        pytest.param({"target_host": "10.96.0.7", "route": "pod"}, True, id="an address, and as asked"),
        pytest.param({"target_host": "vllm.ai-apps.svc"}, True, id="a Service by its longer name"),
        pytest.param({"readiness": "kubernetes"}, True, id="by the kubelet's word"),
    ],
)
def test_requests_go_to_the_pods_where_they_may(flags: dict[str, str], direct: bool) -> None:
    assert Plan(load_settings(flags)).direct is direct


def test_a_command_has_an_address_of_its_own() -> None:
    assert Plan(load_settings({"backend": "process", "target_host": "10.96.0.7"}), ("engine", "{port}")).direct


@pytest.mark.parametrize(
    ("flags", "words"),
    [({"readiness": "kubernetes"}, "--readiness kubernetes"), ({"route": "service"}, "--route service")],
)
def test_a_command_has_neither_a_kubelet_nor_a_service(flags: dict[str, str], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        Plan(load_settings({"backend": "process", **flags}), ("engine", "{port}"))


@pytest.mark.parametrize(
    ("flags", "affinity", "load_factor"),
    [
        pytest.param({}, None, None, id="by default nothing is looked into"),
        pytest.param({"prefix_length": "7", "hash_load_factor": "2"}, None, None, id="nor with what else is said"),
        pytest.param({"load_balancing": "prefix-hash"}, Affinity(None, 100), 1.25, id="the prompt"),
        pytest.param({"session_header": "X-Session"}, Affinity("X-Session", 0), 1.25, id="a session"),
        pytest.param(
            {
                "load_balancing": "prefix-hash",
                "prefix_length": "7",
                "session_header": "X-Session",
                "hash_load_factor": "2",
            },
            Affinity("X-Session", 7),
            2.0,
            id="both",
        ),
    ],
)
def test_what_requests_are_brought_together_by(
    flags: dict[str, str], affinity: Affinity | None, load_factor: float | None
) -> None:
    plan = Plan(load_settings(flags))
    assert plan.affinity == affinity
    assert plan.bounds.load_factor == load_factor


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        pytest.param({}, "vllm-chill", id="the usual target"),
        pytest.param({"deployment": "llama"}, "vllm-chill-llama", id="another one beside it"),
        pytest.param({"models": "crd"}, "vllm-chill", id="models"),
        pytest.param({"deployment": "llama", "lease_name": "mine"}, "mine", id="as it is told"),
    ],
)
def test_proxies_of_different_targets_have_different_leases(flags: dict[str, str], name: str) -> None:
    assert Plan(load_settings(flags)).lease_name == name


def test_a_build_is_what_its_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_CHILL_COMMIT", raising=False)
    monkeypatch.setenv("VLLM_CHILL_BUILD_DATE", "2026-01-31T12:00:00Z")
    assert build() == Build(version=VERSION, commit="unknown", build_date="2026-01-31T12:00:00Z")
