"""What looks at a commit is what CI looks with: the same programs, of the same versions."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
CONFIG: dict[str, Any] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
HOOKS: list[dict[str, Any]] = [hook for repository in CONFIG["repos"] for hook in repository["hooks"]]
LINT = (ROOT / ".ci/run").read_text().partition("section_lint() {")[2].partition("\n}\n")[0]


def pinned() -> set[str]:
    group = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]["dev"]
    return {*group, *(ROOT / ".ci/requirements.txt").read_text().splitlines()}


def test_nothing_comes_from_a_repository_of_others() -> None:
    assert [repository["repo"] for repository in CONFIG["repos"]] == ["local"]


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook["id"])
def test_a_program_is_of_the_version_that_ci_has(hook: dict[str, Any]) -> None:
    assert hook["language"] == "python"
    assert hook["additional_dependencies"]
    assert set(hook["additional_dependencies"]) <= pinned()


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook["id"])
def test_a_program_is_called_as_ci_calls_it(hook: dict[str, Any]) -> None:
    program, *options = hook["entry"].split()
    [*called] = re.findall(rf'\$bin/{program}" (.*)', LINT)
    ours = {"--force-exclude", "--fix"}  # for files that are named one by one, and for a person
    assert any(all(word in command for word in options if word not in ours) for command in called)


def test_every_program_of_ci_looks_at_a_commit() -> None:
    assert set(re.findall(r'\$bin/([\w-]+)"', LINT)) == {hook["entry"].split()[0] for hook in HOOKS}
