from __future__ import annotations

import os
from datetime import timedelta

import pytest

from vllm_chill.errors import SettingError
from vllm_chill.settings.parts import default_text, env_of, flag_of
from vllm_chill.settings.plain import parse_controllers, service_link
from vllm_chill.settings.serve import Settings, load_settings


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for field in Settings.model_fields.values():
        monkeypatch.delenv(env_of(field), raising=False)


def test_the_defaults_are_the_documented_ones() -> None:
    shown = {flag_of(n): (env_of(f), default_text(f)) for n, f in Settings.model_fields.items()}
    promised = {
        "--namespace": ("VLLM_NAMESPACE", "ai-apps"),
        "--deployment": ("VLLM_DEPLOYMENT", "vllm"),
        "--target-host": ("VLLM_TARGET", "vllm-svc"),
        "--target-port": ("VLLM_PORT", "80"),
        "--idle-timeout": ("IDLE_TIMEOUT", "5m"),
        "--port": ("PORT", "8080"),
        "--host": ("HOST", "0.0.0.0"),
        "--wake-timeout": ("WAKE_TIMEOUT", "2m"),
        "--start-timeout": ("START_TIMEOUT", "30m"),
        "--unschedulable-after": ("UNSCHEDULABLE_AFTER", "1m"),
        "--stop-timeout": ("STOP_TIMEOUT", "30s"),
        "--drain-timeout": ("DRAIN_TIMEOUT", "10m"),
        "--backend": ("VLLM_CHILL_BACKEND", "kubernetes"),
        "--kubeconfig": ("KUBECONFIG", ""),
        "--health-path": ("HEALTH_PATH", "/health"),
        "--wake-paths": ("WAKE_PATHS", "default"),
        "--readiness": ("READINESS", "probe"),
        "--route": ("ROUTE", "pod"),
    }
    assert promised.items() <= shown.items()


def test_a_flag_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IDLE_TIMEOUT", "7m")
    assert load_settings({}).idle_timeout == timedelta(minutes=7)
    assert load_settings({"idle_timeout": "1h30m"}).idle_timeout == timedelta(minutes=90)


def test_an_empty_variable_is_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IDLE_TIMEOUT", "")
    assert load_settings({}).idle_timeout == timedelta(minutes=5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("idle_timeout", "0"),
        ("idle_timeout", "-5m"),
        ("idle_timeout", "300"),
        ("idle_timeout", "soon"),
        ("idle_timeout", "99999999999999h"),
        ("wake_timeout", "0s"),
        ("start_timeout", "-1s"),
        ("drain_timeout", "-1s"),
        ("port", "http"),
        ("port", "65536"),
        ("port", "-1"),
        ("port", "8080.5"),
        ("target_port", "0"),
        ("target_host", "http://vllm-svc"),
        ("target_host", "vllm svc"),
        ("target_host", "vllm-svc:80"),
        ("namespace", "AI"),
        ("namespace", "-"),
        ("namespace", "a" * 64),
        ("deployment", "vllm/vllm"),
        ("backend", "docker"),
        ("log_format", "xml"),
        ("log_level", "loud"),
        ("replay_limit", "much"),
        ("replay_limit", "-1"),
        ("health_path", "health"),
        ("wake_paths", "completion"),
        ("wake_paths", "default,/a*b"),
        ("readiness", "kubelet"),
        ("route", "ingress"),
        ("idle_timeout", "5m\nx"),
    ],
)
@pytest.mark.parametrize("by", ["flag", "environment"])
def test_a_value_that_cannot_be_used_is_one_line(
    name: str, value: str, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = flag_of(name) if by == "flag" else env_of(Settings.model_fields[name])
    if by == "environment":
        monkeypatch.setenv(setting, value)
    with pytest.raises(SettingError) as error:
        load_settings({name: value} if by == "flag" else {})
    line = error.value.message
    assert line.startswith(f'{setting}: "{value.splitlines()[0]}')
    assert "; give a" in line or "; give " in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("idle_timeout", "90s", timedelta(seconds=90)),
        ("idle_timeout", " 1h30m ", timedelta(minutes=90)),
        ("drain_timeout", "0", timedelta(0)),
        ("stop_timeout", "0s", timedelta(0)),
        ("target_host", "10.0.0.1", "10.0.0.1"),
        ("target_host", "fd00::1", "fd00::1"),
        ("target_host", "vllm-svc.ai-apps.svc.cluster.local", "vllm-svc.ai-apps.svc.cluster.local"),
        ("replay_limit", "256Ki", 256 * 1024),
        ("replay_limit", "2Mi", 2 << 20),
        ("replay_limit", "0", 0),
        ("port", "0", 0),
    ],
)
def test_a_value_means_what_it_says(name: str, value: str, meant: object) -> None:
    assert getattr(load_settings({name: value}), name) == meant


def test_what_kubernetes_writes_for_a_service_called_vllm_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PORT", "tcp://10.0.0.1:80")
    assert service_link() == "tcp://10.0.0.1:80"
    assert load_settings({}).target_port == 80
    assert load_settings({"target_port": "8000"}).target_port == 8000
    monkeypatch.setenv("VLLM_PORT", "9000")
    assert service_link() is None
    assert load_settings({}).target_port == 9000


def test_settings_read_no_other_variable() -> None:
    assert "namespace" not in os.environ
    assert load_settings({}).namespace == "ai-apps"


@pytest.mark.parametrize(
    ("said", "names"),
    [
        ("policies", {"policies"}),
        ("variants, policies", {"policies", "variants"}),
        ("none", set()),
        ("variants", {"variants"}),
    ],
)
def test_controllers_are_named(said: str, names: set[str]) -> None:
    assert parse_controllers(load_settings({"controllers": said}).controllers) == names


@pytest.mark.parametrize("said", ["models", "none,policies", ","])
def test_a_controller_that_there_is_not_is_refused(said: str) -> None:
    with pytest.raises(SettingError, match=r"--controllers: .* is not accepted; give policies, variants, or both"):
        load_settings({"controllers": said})
