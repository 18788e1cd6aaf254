"""What `vllm-chill doctor` prints, and how it ends."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from vllm_chill.app.doctor import Diagnosis
from vllm_chill.cli import cli
from vllm_chill.cli.doctor import as_dict, as_text
from vllm_chill.core.doctor.finding import Finding, Outcome
from vllm_chill.errors import SettingError

PROGRAMS = (("a", "sh"), ("b", "nope"))
LONG = "a long sentence that says at length what is wrong, " * 3
FOUND = Diagnosis(
    "Deployment vllm in ai-apps, https://cluster:6443",
    (
        Finding(Outcome.OK, "it is there", check="deployment"),
        Finding(Outcome.FAILURE, LONG.strip(), "do this", "kubectl apply -f - <<'END'\nkind: Service\nEND", "service"),
        Finding(Outcome.UNKNOWN, "could not look: needs the right to list nodes cluster-wide", check="gpus"),
    ),
    "vllm-chill",
)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("KUBECONFIG", "NO_COLOR", "VLLM_CHILL_BACKEND", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def doctor(*words: str, **more: Any) -> Result:
    return CliRunner().invoke(cli, ["doctor", *words], **more)


def test_a_row_for_each_finding_and_below_it_what_to_do() -> None:
    assert click.unstyle(as_text(FOUND)).splitlines() == [
        "Deployment vllm in ai-apps, https://cluster:6443",
        "with the settings of Deployment vllm-chill",
        "",
        "ok       deployment  it is there",
        f"failure  service     {LONG[:94]}",
        "                     wrong, a long sentence that says at length what is wrong,",
        "                     -> do this",
        "                        kubectl apply -f - <<'END'",
        "                        kind: Service",
        "                        END",
        "unknown  gpus        could not look: needs the right to list nodes cluster-wide",
        "",
        "1 failure, 1 could not be looked at, 1 fine",
    ]


def test_what_is_pasted_is_never_broken_into_lines() -> None:
    long = "kubectl " + "x" * 300
    told = as_text(Diagnosis("it", (Finding(Outcome.WARNING, "a", "b", long, "c"),)))
    assert long in told


def test_the_same_for_a_program() -> None:
    told: Any = json.loads(json.dumps(as_dict(FOUND)))
    assert told["counts"] == {"ok": 1, "warning": 0, "failure": 1, "unknown": 1}
    assert told["settings_of"] == "vllm-chill"
    assert told["findings"][0] == {
        "check": "deployment", "outcome": "ok", "says": "it is there", "remedy": None, "paste": None,
    }  # fmt: skip


def test_without_a_cluster_the_credentials_are_what_is_wrong() -> None:
    result = doctor()
    assert result.exit_code == 1
    assert "failure  credentials  no way to a Kubernetes API server was found" in result.output
    assert "\x1b" not in result.output


def test_a_kubeconfig_that_is_broken_is_told(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("{")
    result = doctor("--kubeconfig", str(tmp_path / "config"), "--json")
    assert result.exit_code == 1
    [finding] = json.loads(result.output)["findings"]
    assert finding["check"] == "credentials"
    assert "it does not have the form of a kubeconfig" in finding["says"]


def test_colour_is_for_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b[31m" in doctor(color=True).output
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in doctor(color=True).output


def test_settings_that_serve_does_not_take_are_not_taken_here() -> None:
    for words in (("--port", "x"), ("--backend", "process")):
        assert isinstance(doctor(*words).exception, SettingError)


def machine(*words: str) -> Result:
    return doctor("--backend", "process", "--host", "127.0.0.1", "--state-dir", "", *words)


def test_a_command_that_is_not_there_is_told() -> None:
    result = machine("--", "no-such-engine", "--port", "{port}")
    assert result.exit_code == 1
    assert "there is no program no-such-engine in PATH" in result.output


def test_a_port_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = machine("--port", str(port), "--", "sh", "{port}")
    assert result.exit_code == 1
    assert f"127.0.0.1 port {port} (--port) cannot be listened on: address already in use" in result.output


def test_a_keys_file_that_is_no_good_is_told(tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text("keys: 7\n")
    keys.chmod(0o600)
    result = machine("--port", "0", "--api-keys-file", str(keys), "--", "sh", "{port}")
    assert result.exit_code == 1
    assert "failure  files" in result.output
    keys.chmod(0o622)
    keys.write_text("keys: []\n")
    assert "may write" in machine("--port", "0", "--api-keys-file", str(keys), "--", "sh", "{port}").output
    keys.chmod(0o600)
    sound = machine("--port", "0", "--api-keys-file", str(keys), "--", "sh", "{port}")
    assert sound.exit_code == 0, sound.output


def test_warnings_count_if_that_is_asked_for(tmp_path: Path) -> None:
    words = ("--port", "0", "--host", "0.0.0.0", "--", "sh", "{port}")
    assert (machine(*words).exit_code, machine("--strict", *words).exit_code) == (0, 1)


def test_the_models_of_a_file_are_looked_at(tmp_path: Path) -> None:
    models = tmp_path / "models.yaml"
    entries = (f'  {name}: {{modelName: {name}, command: [{program}, "{{port}}"]}}' for name, program in PROGRAMS)
    models.write_text("\n".join(["models:", *entries]))
    result = machine("--port", "0", "--models", str(models))
    assert "sh of the model a is there" in result.output
    assert "the command of the model b cannot be run" in result.output
    models.write_text("models: 7\n")
    assert "failure  command" in machine("--port", "0", "--models", str(models)).output
