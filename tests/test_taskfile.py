"""Every task is described, and names programs and files that exist."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
TASKFILE: dict[str, Any] = yaml.safe_load((ROOT / "Taskfile.yml").read_text())
TASKS: dict[str, dict[str, Any]] = TASKFILE["tasks"]
ELSEWHERE = {"docker", "task"}  # programs that a machine has or has not


def test_it_has_what_is_done_often() -> None:
    assert TASKFILE["version"] == "3"
    assert set(TASKS) >= {"test", "lint", "run", "demo", "docs", "docker", "ci"}


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_described(name: str) -> None:
    assert TASKS[name]["desc"]


@pytest.mark.parametrize("name", TASKS)
def test_a_task_runs_what_exists(name: str) -> None:
    assert set(TASKS[name].get("deps", [])) <= set(TASKS)
    for command in TASKS[name]["cmds"]:
        program, *words = re.sub(r"\{\{.*?\}\}", "", command).split()
        if program.startswith(".venv/bin/"):
            assert shutil.which(program.removeprefix(".venv/bin/"), path=Path(sys.executable).parent), program
            assert TASKS[name]["deps"] == ["install"]
        elif program not in ELSEWHERE:
            assert os.access(ROOT / program, os.X_OK), program
        for word in words:
            assert not re.fullmatch(r"[\w./-]+\.(py|yaml|toml)", word) or (ROOT / word).exists(), word


def test_the_sections_that_it_names_are_those_of_ci() -> None:
    sections = set(re.findall(r"^section_(\w+)\(\)", (ROOT / ".ci/run").read_text(), re.MULTILINE))
    named = [command.split()[1:] for task in TASKS.values() for command in task["cmds"] if ".ci/run" in command]
    assert sections >= {section for sections_of in named for section in sections_of}


def test_the_image_is_built_for_both_platforms() -> None:
    [command] = TASKS["docker"]["cmds"]
    assert "--platform linux/amd64,linux/arm64 " in command
