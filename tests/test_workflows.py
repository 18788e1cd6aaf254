"""The workflows do what can be done by hand, with no more rights than that takes, and take nothing that can change.

.ci/run's section `lint` holds them to their schema and to zizmor's rules.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
SHELLCHECK = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
FILES = sorted((ROOT / ".github/workflows").glob("*.yml"))
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def workflow(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / f".github/workflows/{name}.yml").read_text())
    return loaded


def jobs() -> list[Any]:
    return [
        pytest.param(job, id=f"{file.stem}-{name}")
        for file in FILES
        for name, job in yaml.safe_load(file.read_text())["jobs"].items()
    ]


def commands(job: dict[str, Any]) -> list[str]:
    return [step["run"] for step in job["steps"] if "run" in step]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_action_is_one_commit_and_says_which_version_that_is(file: Path) -> None:
    used = re.findall(r"uses: (.*)", file.read_text())
    assert used
    for action in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action


def test_an_action_is_of_one_version_everywhere() -> None:
    used = {line for file in FILES for line in re.findall(r"uses: (.*)", file.read_text())}
    assert len(used) == len({action.partition("@")[0] for action in used})


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_no_host_is_named(file: Path) -> None:
    assert not re.search(r"://|\b[\w-]+\.(io|com|dev|org|net)\b", file.read_text())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_rights_are_given_to_jobs_alone(file: Path) -> None:
    assert yaml.safe_load(file.read_text())["permissions"] == {}


@pytest.mark.parametrize("job", jobs())
def test_a_job_ends_and_keeps_no_login(job: dict[str, Any]) -> None:
    assert job["timeout-minutes"] <= 90
    for step in job["steps"]:
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize("job", jobs())
def test_the_programs_and_sections_that_it_runs_exist(job: dict[str, Any]) -> None:
    sections = set(re.findall(r"^section_(\w+)\(\)", (ROOT / ".ci/run").read_text(), re.MULTILINE))
    for command in commands(job):
        for program, words in re.findall(r"((?:\.ci|tests)/[\w/-]+)((?: [a-z]+)*)", command):
            assert os.access(ROOT / program, os.X_OK), program
            if program == ".ci/run":
                assert set(words.split()) <= sections
            if program == ".ci/release":
                assert re.search(rf"^{words.split()[0]}\(\)", (ROOT / program).read_text(), re.MULTILINE)


def test_ci_runs_every_section_that_needs_no_machine_of_its_own() -> None:
    sections = set(re.findall(r"^section_(\w+)\(\)", (ROOT / ".ci/run").read_text(), re.MULTILINE))
    run = {
        word
        for job in workflow("ci")["jobs"].values()
        for command in commands(job)
        if command.startswith(".ci/run ")
        for word in command.split()[1:]
    }
    # What it installs comes by itself, a control plane is built nowhere else, and there is an engine for the image.
    assert sections - run == {"install", "cluster", "chaos", "image"}


def test_it_is_tested_on_every_python_that_it_says_it_is_for() -> None:
    said = {name.rpartition(" ")[2] for name in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", name)}
    tried = workflow("ci")["jobs"]["tests"]["strategy"]["matrix"]["python"]
    assert set(tried) == said
    assert PROJECT["requires-python"] == f">={tried[0]}"


RELEASE = workflow("release")["jobs"]


def test_nothing_is_published_before_everything_is_checked_audited_and_built() -> None:
    assert [command.split()[1] for command in commands(RELEASE["package"])[:3]] == ["tests", "check", "audit"]
    assert RELEASE["image"]["needs"] == "package"
    assert RELEASE["pypi"]["needs"] == ["package", "image"]
    assert RELEASE["release"]["needs"] == ["package", "image", "pypi"]


def test_the_image_is_for_both_platforms_and_says_what_it_is() -> None:
    [push] = [step["with"] for step in RELEASE["image"]["steps"] if (step.get("with") or {}).get("push")]
    assert push["platforms"] == "linux/amd64,linux/arm64"
    declared = set(re.findall(r"^ARG (\w+)=", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^(\w+)=", push["build-args"], re.MULTILINE)) == declared
    assert (push["provenance"], push["sbom"]) == ("mode=max", True)


def test_pypi_is_trusted_and_not_told_a_secret() -> None:
    assert RELEASE["pypi"]["permissions"] == {"id-token": "write"}
    assert "secrets" not in str(RELEASE["pypi"])


def test_what_the_page_says_must_be_set_is_what_is_used() -> None:
    page = (ROOT / "docs/releases.md").read_text()
    used = re.findall(r"(?:vars|secrets)\.(\w+)", (ROOT / ".github/workflows/release.yml").read_text())
    assert set(used) == set(re.findall(r"^\| `([A-Z_]+)` \|", page, re.MULTILINE))


@pytest.mark.skipif(SHELLCHECK is None, reason="needs shellcheck, which .ci/requirements.txt has")
@pytest.mark.parametrize("job", jobs())
def test_what_it_runs_is_sound(job: dict[str, Any]) -> None:
    for command in commands(job):
        script = re.sub(r"\$\{\{.*?\}\}", "value", command)
        done = subprocess.run(
            [str(SHELLCHECK), "--shell=bash", "-"], input=script, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout
