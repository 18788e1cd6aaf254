"""The commands for models: what a person is shown, and what the proxy is told, over real sockets."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner
from structlog.testing import capture_logs

from tests.scenarios.stage import stage
from tests.web.several import Several, several
from vllm_chill.api.choice import AvailableModel, AvailableModels
from vllm_chill.api.status import ProxyStatus, TargetStatus
from vllm_chill.cli import cli
from vllm_chill.cli.models import table
from vllm_chill.core.target import Asleep, Ready, Waking
from vllm_chill.errors import AskFailed


@pytest.fixture(autouse=True)
def no_log() -> Iterator[None]:
    """The proxy runs in this process too, and its log is not what a command prints."""
    with capture_logs():
        yield


async def run(url: str, command: str, *arguments: str) -> str:
    """What a command prints. Raises what it ends with, where that is an error."""
    result = await asyncio.to_thread(CliRunner().invoke, cli, [*command.split(), "--url", url, *arguments])
    if result.exception is not None:
        raise result.exception
    return result.output


def model(name: str, state: Any = "asleep", **more: Any) -> AvailableModel:
    fields: dict[str, Any] = {
        "servedModelName": f"org/{name}",
        "modelName": None,
        "maxModelLen": None,
        "gpuCount": 1,
        "aliases": [],
        "group": None,
        "eta_seconds": None,
    }
    return AvailableModel(name=name, state=state, **(fields | more))


def target(name: str, phase: Any = "asleep", **more: Any) -> TargetStatus:
    fields = {"waiting": 0, "in_flight": 0, "replicas": 0}
    return TargetStatus(target=f"ns/vllm-{name}", model=name, phase=phase, **(fields | more))


def told(*pairs: tuple[AvailableModel, TargetStatus], default: str | None = None) -> list[str]:
    models = [model for model, _ in pairs]
    status = ProxyStatus(version="1", draining=False, default_model=default, targets=[target for _, target in pairs])
    return table(AvailableModels(models=models, count=len(models)), status).splitlines()


def test_the_table_has_a_row_for_each_with_what_there_is_to_say() -> None:
    assert told(
        (model("coder", "ready"), target("coder", "ready", replicas=1, idle_seconds=130, sleeps_in_seconds=170)),
        (model("r1", aliases=["deep"], eta_seconds=74), target("r1")),
        (model("big", "waking", eta_seconds=30), target("big", "waking", replicas=1, waiting=12)),
        (model("next", "queued"), target("next", "queued", waiting=3, waits_for=["big"], cause="its turn")),
        (model("bad", "failed"), target("bad", "failed", cause="no such\nimage " + "x" * 200)),
        (model("busy", "ready"), target("busy", "ready", replicas=2, ready_replicas=2, in_flight=7)),
        (model("more", "ready"), target("more", "ready", replicas=3, ready_replicas=2, in_flight=9)),
        default="deep",
    ) == [
        "MODEL  SERVED AS  STATE   REPLICAS  IN FLIGHT  WAITING",
        "coder  org/coder  ready          1          0        0  idle for 2m10s, sleeps in 2m50s",
        "r1 *   org/r1     asleep         0          0        0  a start takes about 1m20s",
        "big    org/big    waking         1          0       12  about 30s left",
        "next   org/next   queued         0          0        3  waits for big",
        "bad    org/bad    failed         0          0        0  no such image " + "x" * 65 + "…",
        "busy   org/busy   ready          2          7        0",
        "more   org/more   ready        2/3          9        0",
        "",
        "* gets the requests that name no model",
    ]


def test_a_single_model_is_the_default_without_saying_so() -> None:
    assert told((model("a"), target("a")), default="org/a")[1:] == [
        "a *    org/a      asleep         0          0        0"
    ]


def test_without_a_model_there_is_no_table() -> None:
    assert told() == ["There is no model yet."]


async def test_models_are_listed_as_a_table_and_as_the_proxys_answer() -> None:
    async with several(awake=["b"], default="a") as s:
        lines = (await run(s.url, "models")).splitlines()
        assert lines[1].split() == ["a", "*", "org/a", "asleep", "0", "0", "0"]
        assert lines[2].startswith("b      org/b      ready          1")
        answer = json.loads(await run(s.url, "models", "--json"))
        assert answer == (await s.get("/proxy/models/available"))[1]


async def test_one_target_without_a_catalogue_is_a_table_of_one() -> None:
    async with stage(served=lambda: (["vllm", "serve", "org/a"], "1")) as s:
        lines = (await run(s.url, "models")).splitlines()
        assert lines[1].split() == ["test/vllm", "org/a", "asleep", "0", "0", "0"]


async def test_switch_makes_it_the_default_and_wakes_only_if_asked_to() -> None:
    async with several(awake=["a"], default="a") as s:
        text = await run(s.url, "switch", "b")
        assert text.startswith("Switched: org/b is the model of requests that name none. ")
        assert text.endswith("The next request for it wakes it.\n")
        assert s.directory.default == "org/b"
        await s.until("a", Asleep)
        assert s.phase_is("b", Asleep)
        assert (await run(s.url, "switch", "--wake", "--wait", "a")).endswith(" It is ready.\n")
        assert s.phase_is("a", Ready)


async def wakes(s: Several) -> None:
    assert await run(s.url, "wake", "org/b") == "b is ready.\n"
    assert await run(s.url, "sleep", "b") == "b is asleep.\n"
    assert await run(s.url, "wake") == "a is ready.\n"
    assert await run(s.url, "sleep") == "a is asleep.\n"


async def test_wake_and_sleep_are_for_the_model_that_is_named_or_the_default() -> None:
    async with several(default="a") as s:
        await wakes(s)
        assert (s.backends["a"].writes, s.backends["b"].writes) == ([1, 0], [1, 0])


async def test_wake_need_not_wait() -> None:
    async with several(start=60) as s:
        assert (await run(s.url, "wake", "--no-wait", "b")).startswith("b is waking; ")
        assert s.phase_is("b", Waking)


@pytest.mark.parametrize("command", ["switch", "wake", "sleep"])
async def test_what_the_proxy_says_against_it_is_told_and_is_an_error(command: str) -> None:
    async with several() as s:
        with pytest.raises(AskFailed, match='The model "c" does not exist; known: org/a, org/b'):
            await run(s.url, command, "c")


@pytest.mark.parametrize("command", ["models", "switch", "wake", "sleep", "status"])
def test_each_says_how_it_is_used(command: str) -> None:
    result = CliRunner().invoke(cli, [command, "--help"])
    assert result.exit_code == 0
    assert f"\n    vllm-chill {command}" in result.output


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        pytest.param(["models", "--url", "http://127.0.0.1:1"], 3, "cannot be asked: [Errno 111]", id="nobody there"),
        pytest.param(["models", "--url", "127.0.0.1:8080"], 2, "--url: ", id="no URL"),
        pytest.param(["switch"], 2, "Missing argument 'MODEL'", id="no model"),
    ],
)
async def test_the_exit_status_says_what_was_wrong(arguments: list[str], status: int, says: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "vllm_chill", *arguments), stderr=asyncio.subprocess.PIPE
    )
    _, errors = await process.communicate()
    assert process.returncode == status
    assert says in errors.decode()
    assert "Traceback" not in errors.decode()
