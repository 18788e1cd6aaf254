"""A plan that is read anew: whole or not at all, and told."""

from __future__ import annotations

import asyncio
import sys
from collections import namedtuple
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest
import structlog

from vllm_chill.app.plan import Plan
from vllm_chill.app.reload import Reloads, reread
from vllm_chill.errors import SettingError
from vllm_chill.settings.parts import env_of
from vllm_chill.settings.plain import RELOADABLE, handed, names_of, taken
from vllm_chill.settings.serve import Settings, load_settings

COMMAND = ("vllm", "--port", "{port}")
THEN = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for field in Settings.model_fields.values():
        monkeypatch.delenv(env_of(field), raising=False)


class Stage:
    """Settings that are read from a file, in this process."""

    def __init__(self, file: Path, text: str) -> None:
        self.file = file
        file.write_text(text)
        self.reads = 0
        self.plans: list[Plan] = []
        self.looks = 0
        self.now = THEN
        plan = Plan(taken(handed(self._load(), COMMAND))[0], COMMAND)
        self.reloads = Reloads(plan, self._read, lambda: self.now, look_seconds=0.01)
        self.reloads.tell(self.plans.append)
        self.reloads.look_at(self._look)

    def _load(self) -> Settings:
        return load_settings({"backend": "process", "config_file": str(self.file)})

    async def _read(self) -> Settings:
        self.reads += 1
        await asyncio.sleep(0)
        return taken(handed(self._load(), COMMAND))[0]

    def _look(self) -> None:
        self.looks += 1

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not holds():  # noqa: ASYNC110 - what is awaited is anything at all
                await asyncio.sleep(0.005)

    async def replaced(self, text: str) -> None:
        """Write another text, and wait until it was read."""
        reads = self.reads
        other = self.file.with_suffix(".new")
        other.write_text(text)
        other.replace(self.file)
        await self.until(lambda: self.reads == reads + 1)
        await asyncio.sleep(0.005)


@asynccontextmanager
async def staged(tmp_path: Path, text: str) -> AsyncIterator[Stage]:
    stage = Stage(tmp_path / "chill.yaml", text)
    running = asyncio.create_task(stage.reloads.run())
    await asyncio.sleep(0)
    try:
        yield stage
    finally:
        assert not running.done(), running.result()
        running.cancel()
        await asyncio.wait([running])


async def test_what_has_changed_in_the_file_is_told_as_a_plan(tmp_path: Path) -> None:
    async with staged(tmp_path, "idle-timeout: 1m") as stage:
        stage.now += timedelta(hours=1)
        await stage.replaced("idle-timeout: 2m\nmax-waiting: 3")
        [plan] = stage.plans
        assert (plan.limits.idle_seconds, plan.bounds.waiting, plan.command) == (120, 3, COMMAND)
        assert stage.reloads.plan is plan
        assert stage.reloads.status.loaded == "2026-01-01T01:00:00Z"
        await stage.replaced("")
        assert stage.plans[1].limits.idle_seconds == 300
        assert stage.plans[1].bounds.waiting == 1000


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("idle-timeout: 2m\nmax-waiting: none", 'max-waiting: "none" is not accepted'),
        ("idle-timeout: 2m\nidle-timout: 3m", "did you mean idle-timeout?"),
        ("idle-timeout: 2m\nbackend: kubernetes\nx", "it is not YAML"),
        ("idle-timeout: 2m\nmodel-id: x", "--model-id names one of several models"),
    ],
    ids=["a value", "a name", "no YAML", "settings that do not fit one another"],
)
async def test_of_a_bad_file_nothing_is_taken_and_the_next_good_one_is(tmp_path: Path, text: str, says: str) -> None:
    async with staged(tmp_path, "idle-timeout: 1m") as stage:
        with structlog.testing.capture_logs() as log:
            stage.now += timedelta(hours=1)
            await stage.replaced(text)
            assert not stage.plans
            status = stage.reloads.status
            assert (status.loaded, says in (status.error or "")) == ("2026-01-01T00:00:00Z", True)
            assert [(line["log_level"], line["event"]) for line in log] == [
                ("error", "the configuration before holds on")
            ]
            assert says in log[0]["cause"]
        await stage.replaced("idle-timeout: 3m")
        assert stage.reloads.status.error is None
        assert [plan.limits.idle_seconds for plan in stage.plans] == [180]


async def test_a_file_that_is_gone_changes_nothing_until_it_is_back(tmp_path: Path) -> None:
    async with staged(tmp_path, "idle-timeout: 1m") as stage:
        stage.file.unlink()
        await asyncio.sleep(0.05)
        assert (stage.reads, stage.plans) == (0, [])
        await stage.replaced("idle-timeout: 2m")
        assert len(stage.plans) == 1


async def test_what_needs_a_restart_is_named_once_and_not_taken(tmp_path: Path) -> None:
    async with staged(tmp_path, "port: 1") as stage:
        with structlog.testing.capture_logs() as log:
            await stage.replaced("port: 2\nhost: 127.0.0.1\nidle-timeout: 2m")
            [plan] = stage.plans
            assert (plan.settings.port, plan.settings.host, plan.limits.idle_seconds) == (1, "0.0.0.0", 120)
            await stage.replaced("port: 2\nhost: 127.0.0.1\nidle-timeout: 3m")
        warnings = [line["settings"] for line in log if line["log_level"] == "warning"]
        assert warnings == [["host", "port"]]
        assert stage.reloads.status.needs_restart == ["host", "port"]
        await stage.replaced("port: 1\nidle-timeout: 3m")
        assert stage.reloads.status.needs_restart == []


async def test_the_links_of_a_mounted_config_map_are_followed(tmp_path: Path) -> None:
    for name, text in (("one", "idle-timeout: 1m"), ("two", "idle-timeout: 2m")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "chill.yaml").write_text(text)
    (tmp_path / "..data").symlink_to("one")
    link = tmp_path / "linked.yaml"
    link.symlink_to("..data/chill.yaml")
    stage = Stage(tmp_path / "unused", "")
    stage.reloads.plan = Plan(load_settings({"backend": "process", "config_file": str(link)}), COMMAND)
    stage.file = link
    running = asyncio.create_task(stage.reloads.run())
    await asyncio.sleep(0.02)
    (tmp_path / "..new").symlink_to("two")
    (tmp_path / "..new").replace(tmp_path / "..data")
    await stage.until(lambda: bool(stage.plans))
    assert stage.plans[0].limits.idle_seconds == 120
    running.cancel()
    await asyncio.wait([running])


async def test_settings_of_another_version_are_not_taken(tmp_path: Path) -> None:
    async with staged(tmp_path, "idle-timeout: 1m") as stage:
        values = {name: getattr(stage.reloads.plan.settings, name) for name in names_of(stage.reloads.plan.settings)}
        del values["port"]

        async def read() -> Settings:
            stage.reads += 1
            return cast("Settings", namedtuple("Settings", values)(**values))  # noqa: PYI024

        stage.reloads._read = read
        await stage.replaced("idle-timeout: 2m")
        assert "another version of vllm-chill is installed" in (stage.reloads.status.error or "")
        assert not stage.plans


async def test_what_the_process_says_that_reads_them_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "chill.yaml"
    file.write_text("max-waiting: 7")
    argv = ("serve", "--config-file", str(file), "--idle-timeout", "7m", "--", "x")
    settings = await reread(argv)
    assert (settings.max_waiting, settings.idle_timeout) == (7, timedelta(minutes=7))
    file.write_text("max-waiting: 7\nidle: 1")
    with pytest.raises(SettingError) as caught:
        await reread(argv)
    assert caught.value.message == (
        f'--config-file {file}: line 2: "idle" is no setting; docs/configuration.md has those there are'
    )
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    with pytest.raises(SettingError, match="no process could be started to read the settings: No such file"):
        await reread(argv)


async def test_who_asks_has_all_read_whether_it_has_changed_or_not(tmp_path: Path) -> None:
    async with staged(tmp_path, "idle-timeout: 1m") as stage:
        stage.reloads.ask()
        await stage.until(lambda: stage.reads == 1)
        assert (stage.looks, stage.plans) == (1, [])


async def test_without_a_file_who_asks_has_the_other_files_read_and_nothing_is_looked_at_else() -> None:
    reloads = Reloads(Plan(load_settings({"backend": "process"}), COMMAND), None, lambda: THEN)
    looked = asyncio.Event()
    reloads.look_at(looked.set)
    running = asyncio.create_task(reloads.run())
    with structlog.testing.capture_logs() as log:
        reloads.ask()
        async with asyncio.timeout(5):
            await looked.wait()
        await asyncio.sleep(0)
    assert [line["event"] for line in log] == [
        "the files of keys, models and certificates were read anew; there is no --config-file"
    ]
    running.cancel()
    await asyncio.wait([running])


async def test_a_file_is_not_read_while_it_is_being_written(tmp_path: Path) -> None:
    async with staged(tmp_path, "idle-timeout: 1m") as stage:
        for size in range(30):
            stage.file.write_text("#" * size)
            await asyncio.sleep(0.004)
        assert stage.reads <= 1
        await stage.until(lambda: bool(stage.plans))


def test_what_may_change_is_a_setting() -> None:
    assert set(Settings.model_fields) >= RELOADABLE
