from __future__ import annotations

import os
from pathlib import Path

import pytest

from vllm_chill.adapters.state_file import StateFile, default_folder
from vllm_chill.core.target import TargetRef

REF = TargetRef("process", "vllm")
COMMAND = ("vllm", "serve", "tiny", "--api-key", "sk-secret", "--port", "{port}")


class Warnings(list[str]):
    def state_file(self, folder: Path, *command: str) -> StateFile:
        return StateFile(folder, command or COMMAND, self.append)


def names(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()]


@pytest.fixture
def warnings() -> Warnings:
    return Warnings()


async def test_what_is_saved_is_loaded_by_the_next_proxy(tmp_path: Path, warnings: Warnings) -> None:
    folder = tmp_path / "not" / "there yet"
    assert await warnings.state_file(folder).load(REF) is None
    assert not folder.exists(), "nothing is made before there is something to keep"
    await warnings.state_file(folder).save(REF, "old")
    await warnings.state_file(folder).save(REF, "the text, ü and all")
    assert await warnings.state_file(folder).load(REF) == "the text, ü and all"
    assert warnings == []


async def test_another_target_or_another_command_has_another_history(tmp_path: Path, warnings: Warnings) -> None:
    await warnings.state_file(tmp_path).save(REF, "mine")
    await warnings.state_file(tmp_path).save(TargetRef("process", "other"), "another's")
    await warnings.state_file(tmp_path, "vllm", "serve", "large").save(REF, "a larger one's")
    assert await warnings.state_file(tmp_path).load(REF) == "mine"
    assert len(names(tmp_path)) == 3


async def test_it_is_one_private_file_without_the_command_in_it(tmp_path: Path, warnings: Warnings) -> None:
    folder = tmp_path / "state"
    await warnings.state_file(folder).save(REF, "text")
    [file] = folder.iterdir()
    assert file.read_text() == "text"
    assert "sk-secret" not in file.name
    assert file.stat().st_mode & 0o077 == 0
    assert folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("name", ["../../etc/passwd", "a b/c", ".hidden", "x" * 300, "ü"])
async def test_whatever_the_target_is_called_its_file_is_in_the_folder(
    tmp_path: Path, warnings: Warnings, name: str
) -> None:
    folder = tmp_path / "state"
    await warnings.state_file(folder).save(TargetRef("process", name), "text")
    assert await warnings.state_file(folder).load(TargetRef("process", name)) == "text"
    assert names(tmp_path) == ["state"]
    [file] = names(folder)
    assert file.startswith("starts-")


async def test_a_folder_that_cannot_be_is_warned_of_once(tmp_path: Path, warnings: Warnings) -> None:
    (tmp_path / "file").write_text("")
    state = warnings.state_file(tmp_path / "file" / "folder")
    assert await state.load(REF) is None
    await state.save(REF, "text")
    await state.save(REF, "text")
    assert len(warnings) == 1
    assert "Not a directory" in warnings[0]
    assert '--state-dir ""' in warnings[0]


async def test_a_write_that_fails_leaves_the_old_text_and_nothing_else(tmp_path: Path, warnings: Warnings) -> None:
    state = warnings.state_file(tmp_path)
    await state.save(REF, "old")
    await state.save(REF, "\ud800 cannot be encoded")
    assert await state.load(REF) == "old"
    assert len(names(tmp_path)) == 1
    assert len(warnings) == 1


@pytest.mark.parametrize("content", [b"\xff\xfe", b"x" * 1_000_000], ids=["no text", "too large"])
async def test_a_file_with_anything_in_it_is_no_trouble(tmp_path: Path, warnings: Warnings, content: bytes) -> None:
    state = warnings.state_file(tmp_path)
    state.path(REF).write_bytes(content)
    text = await state.load(REF)
    assert text is None or len(text) <= 64 * 1024


async def test_a_home_that_is_not_there_is_warned_of(monkeypatch: pytest.MonkeyPatch, warnings: Warnings) -> None:
    monkeypatch.setenv("HOME", os.devnull)
    state = warnings.state_file(default_folder({}))
    await state.save(REF, "text")
    assert len(warnings) == 1


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        pytest.param({"XDG_STATE_HOME": "/var/state"}, "/var/state/vllm-chill", id="as XDG has it"),
        pytest.param({}, "~/.local/state/vllm-chill", id="nothing is set"),
        pytest.param({"XDG_STATE_HOME": ""}, "~/.local/state/vllm-chill", id="an empty variable"),
        pytest.param({"XDG_STATE_HOME": "state"}, "~/.local/state/vllm-chill", id="a relative path"),
    ],
)
def test_where_state_is_kept_if_nobody_says(environment: dict[str, str], folder: str) -> None:
    assert default_folder(environment) == Path(folder)
