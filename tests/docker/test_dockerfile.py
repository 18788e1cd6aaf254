"""What must hold of the image before anything builds it. tests/docker/run-steps carries the steps out."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docker.dockerfile import Context, Stage, stages_of

ROOT = Path(__file__).parents[2]
STAGES = stages_of((ROOT / "Dockerfile").read_text())
FINAL = STAGES[-1]
CONTEXT = Context(ROOT, (ROOT / ".dockerignore").read_text())
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT: dict[str, Any] = PYPROJECT["project"]
RUNS = [instruction for stage in STAGES for instruction in stage.all_of("RUN")]
LOCKS = ["deploy/requirements.txt", "deploy/build-requirements.txt"]


def pins(lock: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9._-]+)==(\S+) \\$", (ROOT / lock).read_text(), re.MULTILINE))


def are_pinned(requirements: list[str], lock: str) -> bool:
    wanted = dict(requirement.split("==") for requirement in requirements)
    return wanted.items() <= pins(lock).items()


def last(name: str, stage: Stage = FINAL) -> str:
    found = stage.last(name)
    assert found is not None, f"no {name}"
    return found.value


def test_every_base_is_pinned_by_a_tag_that_says_python_and_debian() -> None:
    bases = [stage.base for stage in STAGES if stage.base not in {other.name for other in STAGES}]
    assert bases
    for base in bases:
        assert re.fullmatch(r"python:3\.\d+(\.\d+)?-slim-[a-z]+(@sha256:[0-9a-f]{64})?", base), base


def test_what_builds_is_not_in_the_image() -> None:
    assert len(STAGES) > 1
    assert not FINAL.all_of("RUN")
    assert [copy.option("from") for copy in FINAL.all_of("COPY")] == ["build"]


def test_it_runs_as_the_user_that_the_deployment_names() -> None:
    deployment = yaml.safe_load((ROOT / "deploy/deployment.yaml").read_text())
    security = deployment["spec"]["template"]["spec"]["securityContext"]
    assert last("USER") == f"{security['runAsUser']}:{security['runAsGroup']}"


def test_it_starts_the_proxy_where_the_deployment_looks_for_it() -> None:
    deployment = yaml.safe_load((ROOT / "deploy/deployment.yaml").read_text())
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    assert last("ENTRYPOINT") == '["vllm-chill"]'
    assert "command" not in container
    assert last("CMD") == '["serve"]'
    assert container["args"][0] == "serve"
    assert last("EXPOSE") == str(container["ports"][0]["containerPort"])
    assert last("STOPSIGNAL") == "SIGTERM"


def test_it_holds_no_secret() -> None:
    for stage in STAGES:
        for instruction in stage.all_of("ARG") + stage.all_of("ENV"):
            assert not re.search(r"(?i)secret|token|passw|key|credential", instruction.value), instruction


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"line {run.line}")
def test_an_installation_leaves_no_cache_and_takes_what_is_pinned(run: Any) -> None:
    for command in run.value.split("&&"):
        if " install " in command:
            assert "--no-cache-dir" in command
            assert "--require-hashes" in command or "--no-index" in command
        elif " wheel " in command:
            assert "--no-cache-dir" in command
            assert "--no-deps" in command
            assert "--no-build-isolation" in command


def test_no_step_is_for_one_platform() -> None:
    assert not any(re.search(r"amd64|x86_64|arm64|aarch64", run.value) for run in RUNS)
    assert not any(stage.base.startswith("--platform") for stage in STAGES)


def test_the_package_and_the_label_have_the_version_that_is_given() -> None:
    unknown = {"VERSION": PYPROJECT["tool"]["hatch"]["version"]["fallback-version"]}
    given = [argument.pairs() for stage in STAGES for argument in stage.all_of("ARG")]
    assert [pairs for pairs in given if "VERSION" in pairs] == [unknown] * 2
    [build] = [run.value for run in RUNS if " wheel " in run.value]
    assert build.startswith('SETUPTOOLS_SCM_PRETEND_VERSION="${VERSION}" ')
    [label] = FINAL.all_of("LABEL")
    labels = label.pairs({"VERSION": "1.2.3"})
    assert labels["org.opencontainers.image.version"] == "1.2.3"
    assert labels["org.opencontainers.image.licenses"] == PROJECT["license"]


def test_the_pinned_requirements_are_the_packages() -> None:
    optional = PROJECT["optional-dependencies"]
    chosen = PROJECT["dependencies"] + optional["uvloop"] + optional["otel"]
    assert are_pinned(chosen, "deploy/requirements.txt"), "run: .ci/lock"


def test_the_package_is_built_with_what_it_asks_for() -> None:
    assert are_pinned(PYPROJECT["build-system"]["requires"], "deploy/build-requirements.txt"), "run: .ci/lock"


@pytest.mark.parametrize("lock", LOCKS)
def test_every_requirement_is_pinned_by_hashes(lock: str) -> None:
    entries = re.split(r"\n(?=[a-z])", (ROOT / lock).read_text())[1:]
    assert len(entries) == len(pins(lock)) > 5
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry) for entry in entries)


@pytest.mark.parametrize("lock", LOCKS)
def test_a_host_is_never_named_in_the_requirements(lock: str) -> None:
    assert "://" not in (ROOT / lock).read_text()


@pytest.mark.parametrize(
    "path",
    [".git/config", ".venv/bin/python", "tests/conftest.py", "docs/metrics.md", "deploy/rbac.yaml", ".env", "id_rsa"],
)
def test_the_context_leaves_out(path: str) -> None:
    assert not CONTEXT.holds(path)


def test_the_context_leaves_out_what_python_left_behind() -> None:
    assert CONTEXT.holds("src/vllm_chill/app/serve.py")
    assert not CONTEXT.holds("src/vllm_chill/__pycache__/app.cpython-313.pyc")
    assert not CONTEXT.holds("src/vllm_chill/app/serve.pyc")


def test_every_file_that_is_copied_is_in_the_context() -> None:
    for stage in STAGES:
        for copy in stage.all_of("COPY"):
            if copy.option("from") is None:
                for source in copy.words()[:-1]:
                    assert CONTEXT.files(source), source
