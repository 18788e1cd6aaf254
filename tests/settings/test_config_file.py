from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vllm_chill.errors import SettingError
from vllm_chill.settings.parts import default_text, env_of, flag_of
from vllm_chill.settings.serve import Settings, load_settings


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for field in Settings.model_fields.values():
        monkeypatch.delenv(env_of(field), raising=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "chill.yaml"


def loaded(file: Path, text: str, **flags: str) -> Settings:
    file.write_text(text)
    return load_settings({"config_file": str(file), **flags})


def refusal(file: Path, text: str, **flags: str) -> list[str]:
    with pytest.raises(SettingError) as caught:
        loaded(file, text, **flags)
    return [line.replace(str(file), "FILE") for line in caught.value.message.splitlines()]


def test_flags_win_over_variables_and_those_over_the_file_and_that_over_defaults(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "idle-timeout: 1m\nwake-timeout: 1m\nmax-waiting: 7\n"
    monkeypatch.setenv("IDLE_TIMEOUT", "2m")
    monkeypatch.setenv("WAKE_TIMEOUT", "2m")
    monkeypatch.setenv("MAX_WAITING", "")
    found = loaded(file, text, idle_timeout="3m")
    minutes = [each / timedelta(minutes=1) for each in (found.idle_timeout, found.wake_timeout, found.start_timeout)]
    assert (minutes, found.max_waiting) == ([3, 2, 30], 7)


def test_a_variable_names_the_file_too(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("port: 99")
    monkeypatch.setenv("CONFIG_FILE", str(file))
    assert load_settings({}).port == 99
    assert load_settings({"config_file": ""}).port == 8080


def test_what_kubernetes_writes_for_a_service_is_no_variable(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PORT", "tcp://10.0.0.1:80")
    assert loaded(file, "target-port: 8000").target_port == 8000


def test_values_are_read_as_they_are_written_and_lists_have_commas(file: Path) -> None:
    text = """
    leader-elect: off
    fast-lane: on
    max-body: 1Mi
    cors-origins: [https://a.example, https://b.example]
    state-dir: ""
    model-id:
    """
    found = loaded(file, text)
    assert (found.leader_elect, found.fast_lane, found.max_body) == ("off", "on", 1 << 20)
    assert (found.cors_origins, found.state_dir, found.model_id) == ("https://a.example,https://b.example", "", None)


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "null"])
def test_an_empty_file_gives_nothing(file: Path, text: str) -> None:
    assert loaded(file, text).idle_timeout == timedelta(minutes=5)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        pytest.param(
            "idle_timeout: 5m\n# x\nwake-timeot: 5m\nxyzzy: 1\nconfig-file: x",
            [
                '--config-file FILE: line 1: "idle_timeout" is no setting; did you mean idle-timeout?',
                '--config-file FILE: line 3: "wake-timeot" is no setting; did you mean wake-timeout?',
                '--config-file FILE: line 4: "xyzzy" is no setting; docs/configuration.md has those there are',
                '--config-file FILE: line 5: "config-file" is no setting; docs/configuration.md has those there are',
            ],
            id="what is no setting",
        ),
        pytest.param(
            "idle-timeout: never\nmax-waiting: 0",
            [
                '--config-file FILE: idle-timeout: "never" is not accepted; give a duration above zero, such as 5m or '
                "1h30m",
                '--config-file FILE: max-waiting: "0" is not accepted; give a number of requests, at least 1',
            ],
            id="values",
        ),
        pytest.param(
            "port: 1\nport: 2", ["--config-file FILE: line 2: port is given twice; leave one of them out"], id="twice"
        ),
        pytest.param(
            "port: {a: 1}", ["--config-file FILE: line 1: port: give one value, or a list of values"], id="a mapping"
        ),
        pytest.param(
            "- port", ["--config-file FILE: give settings with their values, such as idle-timeout: 10m"], id="a list"
        ),
        pytest.param(
            "port: [",
            ["--config-file FILE: it is not YAML in line 1: expected the node content, but found"],
            id="no YAML",
        ),
        pytest.param(
            "\x00",
            ["--config-file FILE: it is not YAML; give settings with their values, such as idle-timeout: 10m"],
            id="\\0",
        ),
    ],
)
def test_what_is_wrong_is_said_line_by_line(file: Path, text: str, lines: list[str]) -> None:
    found = refusal(file, text)
    assert len(found) == len(lines)
    assert all(said.startswith(line) for said, line in zip(found, lines, strict=True)), found


def test_a_file_that_is_not_there_is_told(file: Path) -> None:
    with pytest.raises(SettingError, match=r"^--config-file .*chill.yaml: the file cannot be read: No such file"):
        load_settings({"config_file": str(file)})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(text=st.text(max_size=80))
def test_whatever_is_in_it_nothing_but_a_sentence_comes_of_it(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8", errors="replace")
    lines: list[str] = []
    try:
        load_settings({"config_file": str(file)})
    except SettingError as error:
        lines = error.message.splitlines()
    assert not [line for line in lines if not line.startswith("--config-file ")]


def test_every_setting_can_be_given_there(file: Path) -> None:
    given = {n: default_text(f) for n, f in Settings.model_fields.items() if default_text(f) and n != "config_file"}
    text = "".join(f"{flag_of(name)[2:]}: {value!r}\n" for name, value in given.items())
    assert loaded(file, text).model_dump(exclude={"config_file"}) == load_settings({}).model_dump(
        exclude={"config_file"}
    )
