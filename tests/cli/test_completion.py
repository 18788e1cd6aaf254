"""Completion as a shell has it: the script in a real bash, zsh and fish, before a proxy that is there or away."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web
from click.testing import CliRunner
from structlog.testing import capture_logs

from tests.cli.serves import serves
from tests.serving import CHILL, clean_environment
from tests.web.several import entry, several
from vllm_chill.cli import COMPLETE_VARIABLE, NAME, cli, completing
from vllm_chill.cli.completion import LineComplete

NOBODY = "http://127.0.0.1:1"
MODELS = (entry("qwen", aliases=("qwen3:8b", "qwen3:30b")), entry("llama"))

ASK_BASH = """
eval "$(vllm-chill completion bash)"
COMP_LINE={line}; COMP_POINT=${{#COMP_LINE}}; COMPREPLY=()
_vllm_chill_completion vllm-chill
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(autouse=True)
def no_log() -> Iterator[None]:
    with capture_logs():
        yield


def completed(line: str, monkeypatch: pytest.MonkeyPatch, url: str = NOBODY) -> list[str]:
    """What bash would be given for a line, without its process."""
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_WORDBREAKS", " \t\n\"'@><=;|&(:")
    monkeypatch.setenv("VLLM_CHILL_URL", url)
    return [one.partition(",")[2] for one in LineComplete(cli, {}, NAME, COMPLETE_VARIABLE).complete().split("\n")]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        pytest.param("vllm-chill wa", ["wake", "wait"], id="commands"),
        pytest.param("vllm-chill scaling ", ["metrics", "policy", "set"], id="commands of a group"),
        pytest.param("vllm-chill wait --fo", ["--for"], id="options"),
        pytest.param("vllm-chill wait --for ", ["ready", "asleep"], id="values"),
        pytest.param("vllm-chill wait --for=as", ["asleep"], id="values after an equals sign"),
        pytest.param("vllm-chill completion ", ["bash", "zsh", "fish"], id="arguments"),
        pytest.param("vllm-chill serve --backend p", ["process"], id="choices of settings"),
        pytest.param("vllm-chill serve --event-loop ", ["auto", "uvloop", "asyncio"], id="all of them"),
        pytest.param("vllm-chill wake ", [""], id="no models while the proxy is away"),
        pytest.param("vllm-chill wake --url ", [""], id="nothing for a text"),
    ],
)
def test_what_can_follow_is_offered(line: str, offered: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found = completed(line, monkeypatch)
    if line.endswith(" wa"):
        found = sorted(found)
        offered = sorted(offered)
    assert found == offered


async def test_models_are_those_of_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    async def offered(line: str) -> list[str]:
        return await asyncio.to_thread(completed, line, monkeypatch, s.url)

    async with several(MODELS) as s:
        assert await offered("vllm-chill wake ") == ["org/qwen", "qwen3:8b", "qwen3:30b", "org/llama"]
        assert await offered("vllm-chill switch org/q") == ["org/qwen"]
        assert await offered("vllm-chill scaling set org/l") == ["org/llama"]
        # Bash takes the colon for the end of a word, and replaces what is behind it only.
        assert await offered("vllm-chill wake qwen3:") == ["8b", "30b"]
        assert await offered(f"vllm-chill wake --url {NOBODY} ") == [""]


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(web.json_response({"error": {"message": "a key."}}, status=401), id="it wants a key"),
        pytest.param(web.Response(text="<html>"), id="it is another program"),
    ],
)
async def test_a_proxy_that_does_not_tell_completes_nothing(
    answer: web.Response, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answers(_: web.BaseRequest) -> web.StreamResponse:
        return answer

    async with serves(answers) as url:
        assert await asyncio.to_thread(completed, "vllm-chill wake ", monkeypatch, url) == [""]


async def test_a_proxy_that_is_slow_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completing, "_PATIENCE_SECONDS", 0.05)

    async def never(_: web.BaseRequest) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    async with serves(never) as url:
        assert await asyncio.to_thread(completed, "vllm-chill wake ", monkeypatch, url) == [""]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """One in which the command is called vllm-chill."""
    program = tmp_path / "vllm-chill"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(CHILL)} "$@"\n')
    program.chmod(0o755)
    return clean_environment(PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}", HOME=str(tmp_path))


def in_shell(shell: str, script: str, environment: dict[str, str]) -> list[str]:
    """What a script prints in a shell, which says nothing on standard error."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed; on Debian: apt-get install {shell}")
    flags = ["--norc"] if shell == "bash" else ["-f"] if shell == "zsh" else ["--no-config"]
    result = subprocess.run(
        [shell, *flags, "-c", script], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.split("\n")[:-1]


async def test_bash_is_completed(environment: dict[str, str]) -> None:
    async with several(MODELS) as s:
        told = environment | {"VLLM_CHILL_URL": s.url}
        script = ASK_BASH.format(line=shlex.quote("vllm-chill wake qwen3:"))
        assert await asyncio.to_thread(in_shell, "bash", script, told) == ["8b", "30b"]
    script = ASK_BASH.format(line=shlex.quote("vllm-chill wake "))
    assert await asyncio.to_thread(in_shell, "bash", script, told) == [""]


def test_zsh_takes_the_script(environment: dict[str, str]) -> None:
    script = 'autoload -U compinit && compinit -u && source <(vllm-chill completion zsh) && echo "$_comps[vllm-chill]"'
    assert in_shell("zsh", script, environment) == ["_vllm_chill_completion"]


def test_fish_is_completed(environment: dict[str, str]) -> None:
    script = 'vllm-chill completion fish | source; complete -C "vllm-chill completion "'
    assert in_shell("fish", script, environment) == ["bash", "fish", "zsh"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_asks_the_program_by_its_variable(shell: str) -> None:
    result = CliRunner().invoke(cli, ["completion", shell])
    assert result.exit_code == 0
    assert f"{COMPLETE_VARIABLE}={shell}_complete" in result.output


def test_the_commands_are_completed_without_importing_any() -> None:
    code = (
        "import sys, json; from vllm_chill.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    asked = clean_environment(**{COMPLETE_VARIABLE: "bash_complete", "COMP_LINE": "vllm-chill st"})
    result = subprocess.run(
        [sys.executable, "-c", code], env=asked, capture_output=True, text=True, timeout=60, check=False
    )
    offered, modules = result.stdout.strip().split("\n")
    assert (offered, result.stderr) == ("plain,status", "")
    assert not {"pydantic", "aiohttp", "msgspec", "textual"} & set(json.loads(modules))
