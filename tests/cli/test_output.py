"""What all commands have in common: JSON, errors, exit statuses, and a help that is read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import click
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from tests.cli.main import ended
from tests.cli.serves import serves
from tests.web.several import several
from vllm_chill.api.crd import crds
from vllm_chill.cli import NAME, cli
from vllm_chill.cli.output import EXIT_STATUSES, wants_json
from vllm_chill.errors import AskFailed

NOBODY = ("--url", "http://127.0.0.1:1")


@pytest.fixture(autouse=True)
def no_log() -> Iterator[None]:
    """The proxy runs in this process too, and its log is not what a command prints."""
    with capture_logs():
        yield


def commands() -> Iterator[tuple[str, click.Command]]:
    def below(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
        ctx = click.Context(command)
        if not isinstance(command, click.Group):
            yield path, command
            return
        for name in command.list_commands(ctx):
            found = command.get_command(ctx, name)
            assert found is not None
            yield from below(found, f"{path} {name}".strip())

    yield from below(cli, "")


EVERY = [pytest.param(path, command, id=path) for path, command in commands()]
WITHOUT_JSON = {"serve", "controller", "demo", "completion", "logs"}
"""What runs until it is ended, and what prints a script, or text that an engine wrote."""


@pytest.mark.parametrize(("path", "command"), EVERY)
def test_every_command_has_json_and_an_example_of_itself(path: str, command: click.Command) -> None:
    options = {name for param in command.params for name in param.opts}
    if path in WITHOUT_JSON:
        assert "--json" not in options
        return
    assert "--json" in options
    said = ended(*path.split(), "--help")
    assert said.status == 0
    if path != "version":
        assert f"    vllm-chill {path}" in said.out.partition("Examples:")[2]
    assert "\b" not in said.out
    assert "\\b" not in said.out


def test_the_help_has_every_command_once_and_every_exit_status() -> None:
    text = ended("--help").out
    names = cli.list_commands(click.Context(cli))
    assert len(names) == len(set(names))
    for name in names:
        assert sum(line.startswith(f"  {name}  ") for line in text.splitlines()) == 1, name
    for status, meaning in EXIT_STATUSES.items():
        assert f"{status:>3}  {meaning}" in text


@pytest.mark.parametrize(
    ("arguments", "status", "code", "says"),
    [
        pytest.param(["status", *NOBODY], 3, "cannot_be_asked", "cannot be asked: [Errno 111]", id="nobody there"),
        pytest.param(
            ["wait", "--timeout", "0s", *NOBODY], 3, "cannot_be_asked", "[Errno 111]", id="nobody to wait for"
        ),
        pytest.param(["models", "--url", "x"], 2, "usage", '--url: "x" is not accepted', id="a setting"),
        pytest.param(["switch"], 2, "usage", "Missing argument 'MODEL'", id="an argument"),
        pytest.param(["nothing"], 2, "usage", "No such command 'nothing'", id="a command"),
        pytest.param(["wake", "--nothing"], 2, "usage", "No such option '--nothing'", id="an option"),
        pytest.param(["wait", "--timeout", "x"], 2, "usage", '--timeout: "x" is not accepted', id="a duration"),
    ],
)
def test_an_error_is_a_sentence_or_json_on_standard_error(
    arguments: list[str], status: int, code: str, says: str
) -> None:
    told = ended(*arguments)
    assert (told.status, told.out) == (status, "")
    assert says in told.err
    told = ended(*arguments, "--json")
    assert (told.status, told.out) == (status, "")
    error = json.loads(told.err)["error"]
    assert set(error) == {"message", "type", "code", "param"}
    assert says in error["message"]
    assert error["code"] == code


async def test_an_error_of_the_proxy_is_its_own_json() -> None:
    async with several() as s:
        told = await asyncio.to_thread(ended, "wake", "c", "--json", "--url", s.url)
        _, answer = await s.post("/proxy/operations/start", json={"model_id": "c"})
    said = json.loads(told.err)
    assert said["error"].pop("request_id") != answer["error"].pop("request_id")
    assert (told.status, told.out, said) == (1, "", answer)


@pytest.mark.parametrize("status", [401, 403])
async def test_who_may_not_is_told_so_by_the_exit_status(status: int) -> None:
    answer = {"error": {"message": "this needs a key.", "type": "t", "code": "c", "param": None}}

    async def refuse(_: web.BaseRequest) -> web.Response:
        return web.json_response(answer, status=status)

    async with serves(refuse) as url:
        told = await asyncio.to_thread(ended, "status", "--json", "--url", url)
        assert (told.status, json.loads(told.err)) == (4, answer)
        assert "this needs a key." in (await asyncio.to_thread(ended, "wait", "--url", url)).err


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        (["status"], "/proxy/status"),
        (["models"], "/proxy/models/available"),
        (["scaling", "metrics"], "/proxy/scaling/metrics"),
        (["scaling", "policy"], "/proxy/scaling/policy"),
    ],
)
async def test_json_is_the_proxys_own_answer(arguments: list[str], path: str) -> None:
    async with several(awake=["b"], default="a") as s:
        told = await asyncio.to_thread(ended, *arguments, "--json", "--url", s.url)
        _, answer = await s.get(path)
    assert (told.status, told.err) == (0, "")
    assert _timeless(json.loads(told.out)) == _timeless(answer)


def _timeless(value: object) -> object:
    """The value without what changes with every look."""
    if isinstance(value, dict):
        return {key: _timeless(one) for key, one in value.items() if "seconds" not in key and key != "timestamp"}
    return [_timeless(one) for one in value] if isinstance(value, list) else value


async def test_what_is_done_is_told_as_json_too() -> None:
    async with several(default="a") as s:
        for arguments in (["wake", "b"], ["switch", "b"], ["sleep", "b"]):
            told = await asyncio.to_thread(ended, *arguments, "--json", "--url", s.url)
            assert told.status == 0, told.err
            assert json.loads(told.out)["message"]


def test_what_needs_no_proxy_has_json_too() -> None:
    assert json.loads(ended("crd", "--json").out) == {"apiVersion": "v1", "kind": "List", "items": [*crds()]}
    made = json.loads(ended("keys", "new", "a", "--admin", "--json").out)
    assert made["key"].startswith("chill-")
    assert made["entry"]["admin"] is True
    assert set(json.loads(ended("version", "--json").out)) == {"version"}


def test_json_for_the_engine_is_not_asked_of_the_proxy() -> None:
    assert wants_json(["status", "--json"])
    assert not wants_json(["serve", "--", "vllm", "serve", "--json"])


def test_every_error_has_a_status_of_its_own() -> None:
    kinds: list[type[AskFailed]] = [AskFailed, *AskFailed.__subclasses__()]
    assert len({kind.exit_status for kind in kinds}) == len(kinds)
    assert {kind.exit_status for kind in kinds} <= set(EXIT_STATUSES)
    assert NAME == "vllm-chill"
