"""The controller's settings: llm-d's variables and flags, a file that counts the least, and words for what is wrong."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest

from vllm_chill.errors import SettingError
from vllm_chill.settings.controller import ControllerSettings, load_controller_settings
from vllm_chill.settings.parts import env_of


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for field in ControllerSettings.model_fields.values():
        monkeypatch.delenv(env_of(field), raising=False)


def test_a_flag_beats_the_environment_and_that_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        "GLOBAL_OPT_INTERVAL: 10s\nWVA_SCALE_TO_ZERO: true\nPROMETHEUS_BASE_URL: https://one:9090\nOTHER: 1\n"
    )
    monkeypatch.setenv("WVA_SCALE_TO_ZERO", "false")
    monkeypatch.setenv("GLOBAL_OPT_INTERVAL", "20s")
    settings = load_controller_settings({"interval": "30s"}, str(file))
    assert settings.interval == timedelta(seconds=30)
    assert settings.scale_to_zero is False
    assert settings.prometheus_base_url == "https://one:9090"


@pytest.mark.parametrize(("said", "meant"), [("true", True), ("1", True), ("False", False), ("off", False)])
def test_a_switch_is_read_as_people_write_it(said: str, meant: bool) -> None:
    assert load_controller_settings({"leader_elect": said}).leader_elect is meant


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"leader_elect": "perhaps"}, '--leader-elect: "perhaps" is not accepted; give true or false'),
        ({"metrics_bind_address": "8443"}, '--metrics-bind-address: "8443" is not accepted; give an address such as'),
        ({"max_concurrent_reconciles": "0"}, '--max-concurrent-reconciles: "0" is not accepted; give a number from 1'),
        ({"leader_election_renew_deadline": "15s"}, "it is not below --leader-election-lease-duration"),
        ({"prometheus_base_url": "prometheus"}, '--prometheus-base-url: "prometheus" is not accepted; give a URL'),
    ],
)
def test_what_cannot_be_used_is_said_in_a_sentence(flags: dict[str, str], words: str) -> None:
    with pytest.raises(SettingError, match=re.escape(words)):
        load_controller_settings(flags)


@pytest.mark.parametrize("text", ["[1, 2]", "a: {b: c}", "a: [", None])
def test_a_file_that_is_none_is_refused(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "config.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SettingError, match="--config-file: "):
        load_controller_settings({}, str(file))


def test_an_empty_file_says_nothing(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("")
    assert load_controller_settings({}, str(file)).metrics_source == "auto"
