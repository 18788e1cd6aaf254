"""`vllm-chill serve` as a program: one process reads what it is asked to do, and another does it."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from tests.adapters.certificates import Authority
from tests.serving import CHILL, clean_environment
from vllm_chill.settings.plain import handed, taken
from vllm_chill.settings.serve import Settings, load_settings


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CHILL, *arguments],
        env=clean_environment(**environment),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


def test_what_is_handed_over_is_every_setting_with_whether_it_was_given_and_the_command() -> None:
    read = load_settings({"idle_timeout": "90s", "backend": "process"})
    settings, command = taken(handed(read, ("vllm", "serve")))
    assert command == ("vllm", "serve")
    assert {name: getattr(settings, name) for name in Settings.model_fields} == read.model_dump()
    assert settings.idle_timeout == timedelta(seconds=90)
    assert settings.model_fields_set == {"idle_timeout", "backend"}


def test_help_is_told_and_nothing_is_served() -> None:
    result = run("serve", "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert "Run the proxy in front of one target" in result.stdout
    assert result.stdout.count("--idle-timeout") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        pytest.param(("--nothing",), 2, "Error: No such option '--nothing'.", id="an unknown flag"),
        pytest.param(
            ("--port", "x"), 2, 'vllm-chill: --port: "x" is not accepted; give a port from 1 to 65535', id="a value"
        ),
        pytest.param(
            ("--backend", "process"), 2, "vllm-chill: --backend process needs the command to run", id="a plan"
        ),
        pytest.param(("--kubeconfig", "/no/file"), 2, "vllm-chill: kubeconfig '/no/file' does not exist", id="a world"),
    ],
)
def test_what_cannot_be_done_is_told_once_and_is_the_exit_status(
    arguments: tuple[str, ...], code: int, says: str
) -> None:
    result = run("serve", "--host", "127.0.0.1", *arguments)
    assert (result.returncode, result.stdout) == (code, "")
    assert result.stderr.count(says) == 1
    assert "Traceback" not in result.stderr


def test_a_reader_that_is_killed_is_told_of() -> None:
    code = """
import os, signal, sys
import vllm_chill.cli
vllm_chill.cli.main = lambda begin: os.kill(os.getpid(), signal.SIGKILL)
from vllm_chill.__main__ import main
main()
"""
    result = subprocess.run(
        [sys.executable, "-c", code, "serve"],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    told = "vllm-chill: the process that reads the settings was ended by signal 9\n"
    assert (result.returncode, result.stderr) == (1, told)


def test_what_serves_has_read_no_authority(tmp_path: Path) -> None:
    code = """
import atexit, ssl

def tell():
    from aiohttp import connector
    contexts = [one for one in vars(connector).values() if isinstance(one, ssl.SSLContext)]
    print(len(contexts), [one.cert_store_stats()["x509"] for one in contexts])

atexit.register(tell)
from vllm_chill.__main__ import main
main()
"""
    result = subprocess.run(
        [sys.executable, "-c", code, "serve", "--kubeconfig", "/no/file"],
        env=clean_environment(SSL_CERT_FILE=str(Authority.new(tmp_path).file)),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert result.stdout == "2 [0, 0]\n"
