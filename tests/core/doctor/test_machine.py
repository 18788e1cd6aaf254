from __future__ import annotations

import pytest

from tests.core.doctor.world import is_fine
from vllm_chill.core.doctor.checks import found_by
from vllm_chill.core.doctor.finding import Check, Finding, Outcome, Unseen
from vllm_chill.core.doctor.machine import (
    COMMAND,
    ENGINES,
    EVENT_LOOP,
    FILES,
    GPUS,
    LIMITS,
    OF_A_MACHINE,
    OPENNESS,
    PORTS,
    STATE,
    Listening,
    Machine,
    NamedFile,
    Program,
    Running,
)
from vllm_chill.core.gpu import Gpu

VLLM = ("vllm", "serve", "m", "--port", "{port}")
SOUND = Machine(
    (Program(VLLM),), listening=(Listening("--port", "127.0.0.1", 8080),), gpus=(Gpu(0, "H200"),), files=1 << 20
)


def look(check: Check, machine: Machine) -> list[Finding]:
    return list(found_by([check], machine))


def test_a_sound_machine_is_fine() -> None:
    assert is_fine(list(found_by(OF_A_MACHINE, SOUND)))


@pytest.mark.parametrize(
    ("check", "machine", "outcome", "says", "does"),
    [
        pytest.param(
            COMMAND, Machine((Program(VLLM, found=False),)), Outcome.FAILURE,
            "there is no program vllm in PATH", "pip install vllm", id="no program",
        ),
        pytest.param(
            COMMAND, Machine((Program(("/opt/llama", "{port}"), found=False, model="m"),)), Outcome.FAILURE,
            "of the model m cannot be run: there is no program /opt/llama", "command -v", id="no program of a model",
        ),
        pytest.param(
            COMMAND, Machine((Program(("vllm", "serve", "m")),)), Outcome.FAILURE,
            "does not say where its port goes", "-- vllm serve m --port {port}", id="no port",
        ),
        pytest.param(
            COMMAND, Machine(models_trouble="--models a: it is no YAML; give models"), Outcome.FAILURE,
            "--models a: it is no YAML", "give models", id="a file of models",
        ),
        pytest.param(
            PORTS, Machine(listening=(Listening("--port", "0.0.0.0", 80, "permission denied"),)), Outcome.FAILURE,
            "0.0.0.0 port 80 (--port) cannot be listened on: permission denied", "give another --port", id="a port",
        ),
        pytest.param(GPUS, Machine(gpus=Unseen("no GPU here")), Outcome.WARNING, "no GPU", "nvidia-smi", id="GPU"),
        pytest.param(
            ENGINES, Machine(engines=(Running(7, "vllm serve m"),)), Outcome.WARNING,
            "process 7 is an engine that no vllm-chill has started", "kill 7", id="another engine",
        ),
        pytest.param(
            ENGINES, Machine(gpus=(Gpu(0, "H200", memory_used_mb=70 << 10, memory_total_mb=140 << 10),)),
            Outcome.WARNING, "70 of 140 GiB of GPU 0 are in use", "--gpu-memory-utilization", id="GPU memory",
        ),
        pytest.param(LIMITS, Machine(files=1024), Outcome.WARNING, "512 callers", "ulimit", id="files"),
        pytest.param(
            EVENT_LOOP, Machine(uvloop=False, wants_uvloop=True), Outcome.FAILURE, "not installed", "pip", id="uvloop"
        ),
        pytest.param(STATE, Machine(state_trouble="/x is full"), Outcome.WARNING, "/x", "--state-dir", id="state"),
        pytest.param(
            FILES, Machine(named=(NamedFile("--api-keys-file", "/k", "/k cannot be read"),)), Outcome.FAILURE,
            "/k cannot be read", "vllm-chill keys new", id="a file that cannot be read",
        ),
        pytest.param(
            FILES, Machine(named=(NamedFile("--tls-cert", "/c", mode=0o666),)), Outcome.FAILURE, "may write /c",
            "chmod 600 /c", id="a file that others write",
        ),
        pytest.param(
            FILES, Machine(named=(NamedFile("--tls-key", "/k", mode=0o644, secret=True),)), Outcome.WARNING,
            "everybody may read /k", "chmod 600 /k", id="a secret that others read",
        ),
        pytest.param(OPENNESS, Machine(open_host="0.0.0.0"), Outcome.WARNING, "without keys", "127.0.0.1", id="a door"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_what_to_do(
    check: Check, machine: Machine, outcome: Outcome, says: str, does: str
) -> None:
    [finding] = look(check, machine)
    assert finding.outcome is outcome
    assert says in finding.says
    assert does in f"{finding.remedy}\n{finding.paste}"


@pytest.mark.parametrize(
    ("check", "machine"),
    [
        pytest.param(COMMAND, Machine((Program(("vllm",), port=8000),)), id="a port that is known"),
        pytest.param(
            PORTS, Machine(listening=(Listening("--port", "::", 1, "in use", chill=True),)), id="our own port"
        ),
        pytest.param(LIMITS, Machine(files=None), id="any number of files"),
        pytest.param(EVENT_LOOP, Machine(uvloop=False), id="no uvloop, which is a hint"),
        pytest.param(ENGINES, Machine(gpus=(Gpu(0, memory_used_mb=10, memory_total_mb=999),)), id="hardly used"),
        pytest.param(FILES, Machine(named=(NamedFile("--tls-cert", "/c", mode=0o644),)), id="a public certificate"),
    ],
)
def test_what_is_as_it_should_be_is_fine(check: Check, machine: Machine) -> None:
    findings = look(check, machine)
    assert findings
    assert is_fine(findings)
