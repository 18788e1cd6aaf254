"""What the how-to pages tell somebody to write is what the programs take, and does what the page says."""

from __future__ import annotations

import asyncio
import re
import socket
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from click.testing import CliRunner

from tests.deploy.kustomized import DEPLOY, build, needs_kubectl
from tests.ingress.nginx import PROGRAM
from tests.serving import serving
from vllm_chill.adapters.models_file import read_models
from vllm_chill.api.scaling_policy import parse_policy, policy_of, policy_warnings
from vllm_chill.api.vllm_model import parse_model, warnings
from vllm_chill.cli import cli
from vllm_chill.settings.serve import load_settings

FOLDER = Path(__file__).parents[2] / "docs" / "how-to"
TEXTS = {page.stem: page.read_text() for page in sorted(FOLDER.glob("*.md"))}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXTS[page], re.DOTALL | re.MULTILINE)


def marked(page: str, marker: str) -> str:
    """The block that follows `<!-- tested: marker -->`."""
    [found] = re.findall(rf"<!-- tested: {marker} -->\n```\w+\n(.*?)```", TEXTS[page], re.DOTALL)
    return str(found)


YAML = [
    (f"{page}-{number}", item)
    for page in TEXTS
    for number, text in enumerate(blocks(page, "yaml"), 1)
    for item in yaml.safe_load_all(text)
]


def of_kind(kind: str) -> list[Any]:
    return [pytest.param(item, id=name) for name, item in YAML if item.get("kind") == kind]


# --- what the programs are told ---


@pytest.mark.parametrize(
    "item", [pytest.param(item, id=name) for name, item in YAML if isinstance(item.get("models"), dict)]
)
def test_a_file_of_models_is_taken(item: Any, tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    file.write_text(yaml.safe_dump(item))
    told: list[str] = []
    assert len(read_models(file, gpu_count=1, cpu_offload_gb=0, warn=told.append)) == 2
    assert told == []


@pytest.mark.parametrize("item", of_kind("VLLMModel"))
def test_a_model_is_taken(item: Any) -> None:
    assert warnings(parse_model(item), item) == ()


@pytest.mark.parametrize("item", of_kind("vLLMScalingPolicy"))
def test_a_policy_is_taken(item: Any) -> None:
    assert policy_warnings(policy := parse_policy(item), item) == ()
    assert policy_of(policy).schedules


@needs_kubectl
@pytest.mark.parametrize("item", of_kind("Kustomization"))
def test_a_kustomization_comes_to_a_proxy_that_takes_its_arguments(item: Any, tmp_path: Path) -> None:
    (tmp_path / "deploy").symlink_to(DEPLOY)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "keys.yaml").write_text("keys: []\n")
    text = yaml.safe_dump(item)
    # kustomize takes a folder by where it really is.
    text = text.replace("../deploy", str(Path("../" * len(mine.resolve().parts[1:])) / str(DEPLOY).lstrip("/")))
    (mine / "kustomization.yaml").write_text(text)
    built = build(mine)
    [container] = built.of("Deployment", "vllm-chill")["spec"]["template"]["spec"]["containers"]
    given = dict(argument.removeprefix("--").split("=", 1) for argument in container["args"][1:])
    given["namespace"] = "ai-apps"
    load_settings({name.replace("-", "_"): value for name, value in given.items()})
    for patch in item.get("patches", []):
        changed = built.of(patch["target"]["kind"], patch["target"]["name"])
        for change in yaml.safe_load(patch["patch"]):
            assert is_there(changed, change["path"].split("/")[1:], change["value"]), change


def is_there(item: Any, path: list[str], value: Any) -> bool:
    """Whether a value is at a JSON pointer, or in the list that `-` is the end of."""
    for part in path:
        if part == "-":
            return value in item
        item = item[int(part) if isinstance(item, list) else part]
    return bool(item == value)


def test_the_example_of_a_schedule_is_what_the_command_prints(tmp_path: Path) -> None:
    (tmp_path / "office-hours.yaml").write_text(marked("schedules", "policy"))
    (tmp_path / "monday.yaml").write_text(marked("schedules", "samples"))
    command, _, printed = marked("schedules", "decisions").partition("\n")
    words = [str(tmp_path / word) if word.endswith(".yaml") else word for word in command.split()[2:]]
    result = CliRunner().invoke(cli, words)
    assert (result.exit_code, result.stdout) == (0, printed)


# --- what stands in front ---


def test_no_ingress_lets_the_proxys_own_paths_through() -> None:
    text = "\n".join([*blocks("ingress", "yaml"), *blocks("ingress", "nginx")])
    paths = re.findall(r"(?:PathPrefix|Path)\(`(.*?)`\)|value: (/\S*?)[},]|location (?:= )?(\S+)", text)
    let = {path for found in paths for path in found if path}
    assert let == {"/v1", "/v1/", "/health"}


@pytest.mark.skipif(PROGRAM is None, reason="needs nginx")
async def test_the_nginx_of_the_page_lets_through_what_it_says(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = (sys.executable, "-m", "vllm_chill.demo_engine", "--port", "{port}")
    async with serving(command=command) as proxy:
        server = marked("ingress", "nginx").replace("http://127.0.0.1:8080", proxy.url)
        kept = " ".join(
            f"{kind}_temp_path {tmp_path}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        file = tmp_path / "nginx.conf"
        file.write_text(
            f"daemon off; master_process off; pid {tmp_path}/pid; events {{}} "
            f"http {{ access_log off; {kept} server {{ listen 127.0.0.1:{port};\n{server}\n}} }}"
        )
        assert PROGRAM is not None
        front = await asyncio.create_subprocess_exec(
            PROGRAM, "-p", str(tmp_path), "-c", str(file), "-e", str(tmp_path / "log")
        )
        try:
            got = {path: await status_of(f"http://127.0.0.1:{port}{path}") for path in ASKED}
        finally:
            front.terminate()
            await front.wait()
    assert got == ASKED


ASKED = {"/v1/models": 200, "/health": 200, "/proxy/status": 404, "/v1/../proxy/status": 404, "/metrics": 404, "/": 404}


async def status_of(url: str) -> int:
    """The status of an answer, once somebody listens."""
    async with aiohttp.ClientSession() as session, asyncio.timeout(20):
        while True:
            try:
                async with session.get(url) as answer:
                    return answer.status
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.05)


# --- several models ---


@pytest.mark.slow
async def test_the_two_models_of_the_page_take_turns(tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    file.write_text(marked("several-models", "models").replace("python3", sys.executable))
    flags = ("--backend", "process", "--models", str(file), "--min-residency", "0")
    async with serving(*flags) as proxy, aiohttp.ClientSession() as session:

        async def phases() -> dict[str, str]:
            async with session.get(f"{proxy.url}/proxy/status") as answer:
                return {target["model"]: target["phase"] for target in (await answer.json())["targets"]}

        for name, other in (("one", "two"), ("two", "one")):
            body = {"model": name, "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}
            async with session.post(f"{proxy.url}/v1/chat/completions", json=body) as answer:
                assert (answer.status, (await answer.json())["model"]) == (200, name)
            there = await phases()
            assert there[name] == "ready"
            assert there[other] in ("asleep", "draining")
