"""What .ci/release does, in a copy of what it reads and writes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAMS = Path(sys.executable).parent
LOCKS = ["deploy/requirements.txt", "deploy/build-requirements.txt"]


def needs(program: str) -> pytest.MarkDecorator:
    missing = not (PROGRAMS / program).exists()
    return pytest.mark.skipif(missing, reason=f"needs {program}, which .ci/run install has")


def pins(*locks: str) -> set[tuple[str, str]]:
    return {pin for lock in locks for pin in re.findall(r"^([\w.-]+)==(\S+)", (ROOT / lock).read_text(), re.MULTILINE)}


class Copy:
    """A repository with one commit, of the files that a release is about."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(ROOT / "deploy", folder / "deploy")
        (folder / "src/vllm_chill").mkdir(parents=True)
        (folder / "src/vllm_chill/__init__.py").touch()
        names = ["pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "Dockerfile", ".ci/release"]
        for file in [*(ROOT / name for name in names), *(ROOT / "docs").glob("*.md")]:
            target = folder / file.relative_to(ROOT)
            target.parent.mkdir(exist_ok=True)
            shutil.copy(file, target)
        self.git("init", "--quiet")
        self.commit()

    def git(self, *arguments: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *who, *arguments], cwd=self.folder, check=True, capture_output=True)

    def commit(self) -> None:
        self.git("add", ".")
        self.git("commit", "--quiet", "--message", "a change")

    def release(self, *arguments: str) -> tuple[int, str]:
        """The exit status, and what it says."""
        done = subprocess.run(
            [self.folder / ".ci/release", *arguments],
            env={**os.environ, "VENV": sys.prefix},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout

    def texts(self) -> str:
        kept = [file for file in sorted(self.folder.rglob("*")) if file.suffix in {".md", ".yaml"}]
        return "\n".join(file.read_text() for file in [*kept, self.folder / "Dockerfile"])


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path / "copy")


def images(text: str) -> list[str]:
    return re.findall(r"\bvllm-chill:(\d[\w.-]*)", text)


def test_what_is_prepared_committed_and_tagged_can_be_released(copy: Copy) -> None:
    [before] = set(images(copy.texts()))
    count = copy.texts().count(before)
    assert copy.release("prepare", "7.8.9") == (0, "")
    assert set(images(copy.texts())) == {"7.8.9"}
    assert copy.texts().count("7.8.9") >= len(images(copy.texts()))
    # What is left of the one before is no image's: an answer that a page shows.
    assert copy.texts().count(before) < count
    copy.commit()
    copy.git("tag", "v7.8.9")
    assert copy.release("check", "v7.8.9") == (0, "v7.8.9 can be released\n")
    assert copy.release("version") == (0, "7.8.9\n")


def test_what_is_not_prepared_cannot_be_released_and_it_is_said_why(copy: Copy) -> None:
    copy.git("tag", "v7.8.9")
    code, said = copy.release("check", "v7.8.9")
    assert code == 1
    assert [line.partition(";")[2] for line in said.splitlines()] == [" run: .ci/release prepare 7.8.9"] * 3
    code, said = copy.release("check", "v7.8.8")
    assert "this commit is 7.8.9; " in said
    assert (code, copy.release("check", "7.8")[0]) == (1, 1)


def test_the_notes_are_the_changelogs(copy: Copy) -> None:
    _, unreleased = copy.release("notes", "Unreleased")
    assert "### Added" in unreleased
    copy.release("prepare", "7.8.9")
    assert copy.release("notes", "v7.8.9") == (0, unreleased)
    assert copy.release("notes", "v7.8.8") == (1, "CHANGELOG.md says nothing of v7.8.8\n")
    assert copy.release("prepare", "7.8.9") == (1, "the changelog has 7.8.9 already\n")


@pytest.mark.parametrize("arguments", [["prepare", "7.8"], ["prepare", "v7.8.9"], ["prepare"], ["notes"], ["dist"]])
def test_what_it_does_not_understand_it_says_and_changes_nothing(copy: Copy, arguments: list[str]) -> None:
    before = copy.texts()
    code, said = copy.release(*arguments)
    assert (code, len(said.splitlines())) == (1, 1)
    assert copy.texts() == before


def test_a_command_that_there_is_not_is_answered_with_those_there_are(copy: Copy) -> None:
    code, said = copy.release("publish")
    assert code == 2
    told = re.findall(r"^#   \.ci/release (\w+)", (ROOT / ".ci/release").read_text(), re.MULTILINE)
    assert said == f'there is no command "publish"; there are: {" ".join(told)}\n'


def test_a_distribution_is_made_of_both_kinds(copy: Copy) -> None:
    copy.git("tag", "v7.8.9")
    assert copy.release("dist", "made")[0] == 0
    made = {file.name for file in (copy.folder / "made").iterdir()}
    assert made == {"vllm_chill-7.8.9.tar.gz", "vllm_chill-7.8.9-py3-none-any.whl"}


@needs("helm")
def test_the_chart_is_an_archive_of_the_version(copy: Copy) -> None:
    copy.release("prepare", "7.8.9")
    assert copy.release("chart", "made")[0] == 0
    with tarfile.open(copy.folder / "made/vllm-chill-7.8.9.tgz") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        about = archive.extractfile("vllm-chill/Chart.yaml")
        assert about is not None
        assert "appVersion: 7.8.9" in about.read().decode()
    assert {"values.yaml", "values.schema.json", "templates/NOTES.txt", "files/rules.yaml"} < names
    assert "files/kustomization.yaml" not in names


@needs("cyclonedx-py")
def test_everything_that_the_image_installs_is_in_its_bill_of_materials(copy: Copy) -> None:
    copy.git("tag", "v7.8.9")
    # Whether it is valid is looked at when it is made for a release: that takes longer than all the rest.
    made = [copy.release("sbom", name, "--no-validate") for name in ("sbom.json", "again.json")]
    assert [code for code, _ in made] == [0, 0], made
    assert (copy.folder / "sbom.json").read_bytes() == (copy.folder / "again.json").read_bytes()
    bill = json.loads((copy.folder / "sbom.json").read_text())
    assert (bill["bomFormat"], bill["metadata"]["component"]["version"]) == ("CycloneDX", "7.8.9")
    assert {(one["name"], one["version"]) for one in bill["components"]} == pins("deploy/requirements.txt")
    for one in bill["components"]:
        assert one["purl"] == f"pkg:pypi/{one['name']}@{one['version']}"
        assert any(reference.get("hashes") for reference in one["externalReferences"])


@needs("pip-audit")
def test_everything_that_the_image_is_made_of_is_audited(copy: Copy) -> None:
    code, said = copy.release("audit", "--dry-run")
    assert code == 0, said
    assert f"would have audited {len(pins(*LOCKS))} packages" in said
