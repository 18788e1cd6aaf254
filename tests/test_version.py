"""The package's version is that of git's newest tag, and building it needs neither a tag nor git."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest

from vllm_chill.app import VERSION

ROOT = Path(__file__).parents[1]
UNKNOWN = "0.0.0"
# Nobody's settings, no signatures, and no repository that the temporary folder may be in.
ENVIRONMENT = {
    "PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1", "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@example.com", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@example.com",
}  # fmt: skip


def run(folder: Path, *command: str, **more: str) -> str:
    environment = {**ENVIRONMENT, "GIT_CEILING_DIRECTORIES": str(folder.parent), **more}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def version(folder: Path, **more: str) -> str:
    return run(folder, sys.executable, "-m", "hatchling", "version", **more)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """What the package is built from, without its code and without git."""
    folder = tmp_path / "package"
    (folder / "src/vllm_chill").mkdir(parents=True)
    (folder / "src/vllm_chill/__init__.py").touch()
    for name in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture
def repository(package: Path) -> Path:
    """The same as one commit without a tag."""
    run(package, "git", "init", "--quiet")
    commit(package)
    return package


def commit(folder: Path) -> None:
    run(folder, "git", "add", ".")
    run(folder, "git", "commit", "--quiet", "--allow-empty", "--message", "a change")


def test_a_tagged_commit_is_that_version_and_what_comes_after_is_on_the_way_to_the_next(repository: Path) -> None:
    run(repository, "git", "tag", "v1.2.3")
    assert version(repository) == "1.2.3"
    commit(repository)
    assert re.fullmatch(r"1\.2\.4\.dev1\+g[0-9a-f]+", version(repository))


def test_a_shallow_clone_without_tags_has_a_version_too(repository: Path, tmp_path: Path) -> None:
    commit(repository)
    run(tmp_path, "git", "clone", "--quiet", "--depth", "1", f"file://{repository}", "clone")
    assert re.fullmatch(r"0\.0\.1\.dev1\+g[0-9a-f]+", version(tmp_path / "clone"))


def test_without_git_it_is_what_is_said_and_else_one_that_is_no_release(package: Path) -> None:
    assert version(package, SETUPTOOLS_SCM_PRETEND_VERSION="1.2.3") == "1.2.3"
    assert version(package) == UNKNOWN


def test_a_source_distribution_keeps_the_version_that_it_was_made_with(repository: Path, tmp_path: Path) -> None:
    run(repository, "git", "tag", "v1.2.3")
    run(repository, sys.executable, "-m", "hatchling", "build", "--target", "sdist")
    with tarfile.open(repository / "dist/vllm_chill-1.2.3.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    assert version(tmp_path / "vllm_chill-1.2.3") == "1.2.3"
    assert (tmp_path / "vllm_chill-1.2.3/LICENSE").exists()


def test_the_command_says_which_version_it_is() -> None:
    for argument in ("--version", "version"):
        command = [sys.executable, "-m", "vllm_chill", argument]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == f"vllm-chill {VERSION}\n"


def test_what_builds_the_package_is_what_the_tests_have() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(project["build-system"]["requires"]) <= set(project["dependency-groups"]["dev"])
