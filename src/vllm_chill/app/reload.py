"""What a running proxy is asked to do, read anew: when its file changes, and on SIGHUP.

The rule: what is read is taken whole or not at all, between two turns of the loop; and who takes it is told the plan,
and never a part of it. The settings are read by a process of their own, as at the start (decision 17).
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from vllm_chill.adapters.followed_file import Changes
from vllm_chill.api.status import ConfigurationStatus
from vllm_chill.app.plan import Plan
from vllm_chill.errors import SettingError
from vllm_chill.settings.plain import RELOADABLE, differing, names_of, taken, with_values

if TYPE_CHECKING:
    from vllm_chill.settings.serve import Settings

LOOK_SECONDS = 1.0
_READ_SECONDS = 60.0
_MOST_LINES = 5
_OTHER_VERSION = "another version of vllm-chill is installed by now, whose settings are others; restart the proxy"

Reread = Callable[[], Awaitable["Settings"]]
"""What reads the settings as they are now. It raises SettingError."""


async def reread(argv: Sequence[str]) -> Settings:
    """The settings of `vllm-chill` with these arguments, as they are now. Raises SettingError."""
    try:
        process = await asyncio.create_subprocess_exec(
            # -P: a module of the folder that it was started in is not to be taken for one of ours.
            *(sys.executable, "-P", "-m", "vllm_chill.cli.read", *argv),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as error:
        raise SettingError(f"no process could be started to read the settings: {error.strerror}") from error
    try:
        async with asyncio.timeout(_READ_SECONDS):
            told, complaints = await process.communicate()
    except TimeoutError:
        raise SettingError(f"the settings could not be read within {_READ_SECONDS:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode or not told:
        lines = [line.removeprefix("vllm-chill: ") for line in complaints.decode(errors="replace").splitlines()]
        raise SettingError("\n".join(lines[-_MOST_LINES:]) or "the process that reads the settings failed")
    try:
        return taken(told)[0]
    except Exception as error:  # whatever another version's values raise here
        raise SettingError(_OTHER_VERSION) from error


def _now() -> datetime:
    return datetime.now(UTC)


class Reloads:
    """The plan of a running proxy. Invariant: `plan` is what everybody who was told of one was told last.

    `status` says when it was read last, and what is wrong with what was read since.
    """

    def __init__(
        self,
        plan: Plan,
        read: Reread | None = None,
        now: Callable[[], datetime] = _now,
        *,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        """`read` reads the settings anew; None where they are those of a program that calls this one. `look_seconds`
        is how often the file is looked at.
        """
        self.plan = plan
        self._read = read if plan.settings.config_file else None
        self._now = now
        self._look_seconds = look_seconds
        self._takers: list[Callable[[Plan], None]] = []
        self._files: list[Callable[[], None]] = []
        self._asked = asyncio.Event()
        self._restart: tuple[str, ...] = ()
        self._error: str | None = None
        self._loaded = now()
        self._log = structlog.get_logger("vllm_chill.reload")

    def tell(self, take: Callable[[Plan], None]) -> None:
        """Have this take each plan that is new. It returns at once, and never raises."""
        self._takers.append(take)

    def look_at(self, look: Callable[[], None]) -> None:
        """Have this look at a file on SIGHUP, whether it has changed or not."""
        self._files.append(look)

    def ask(self) -> None:
        """Read everything anew, soon."""
        self._asked.set()

    @property
    def loaded_seconds(self) -> float:
        """When the plan was read, in seconds since 1970."""
        return self._loaded.timestamp()

    @property
    def successful(self) -> bool:
        """Whether what was read last is in force."""
        return self._error is None

    @property
    def status(self) -> ConfigurationStatus:
        """How it is, for who asks."""
        return ConfigurationStatus(
            loaded=self._loaded.isoformat(timespec="seconds").replace("+00:00", "Z"),
            error=self._error,
            needs_restart=list(self._restart),
        )

    async def run(self) -> None:
        """Keep to the file, and to who asks, until cancelled."""
        path = self.plan.settings.config_file
        file = None if self._read is None or path is None else Changes(Path(path))
        while True:
            if await self._woken():
                if file is not None:
                    file.use()
                await self._read_all()
            elif file is not None and file.settled():
                await self._reload()

    async def _woken(self) -> bool:
        """Whether somebody has asked for it; else it is time to look."""
        try:
            async with asyncio.timeout(None if self._read is None else self._look_seconds):
                await self._asked.wait()
        except TimeoutError:
            return False
        self._asked.clear()
        return True

    async def _read_all(self) -> None:
        for look in self._files:
            look()
        if self._read is None:
            self._loaded = self._now()
            self._log.info("the files of keys, models and certificates were read anew; there is no --config-file")
        else:
            await self._reload()

    async def _reload(self) -> None:
        assert self._read is not None
        try:
            before, settings = self.plan.settings, await self._read()
            _check_names(before, settings)
            Plan(settings, self.plan.command, self.plan.name)  # as a whole it is to be one that could be started with
            changed = differing(before, settings, names_of(before))
            values = {name: value for name, value in changed.items() if name in RELOADABLE}
            plan = replace(self.plan, settings=with_values(before, values))
        except (SettingError, ValueError) as error:
            self._refuse(error.message if isinstance(error, SettingError) else str(error))
            return
        self._take(plan, sorted(values), sorted(changed.keys() - RELOADABLE))

    def _refuse(self, cause: str) -> None:
        self._error = "; ".join(cause.splitlines())
        self._log.error("the configuration before holds on", cause=self._error)

    def _take(self, plan: Plan, changed: Sequence[str], restart: Sequence[str]) -> None:
        self.plan = plan
        for take in self._takers if changed else ():
            take(plan)
        self._error, self._loaded = None, self._now()
        self._log.info("the configuration was read anew", changed=[_name(name) for name in changed])
        needs_restart = tuple(_name(name) for name in restart)
        if needs_restart and needs_restart != self._restart:
            self._log.warning("these settings have changed, and count after a restart", settings=list(needs_restart))
        self._restart = needs_restart


def _check_names(before: Settings, after: Settings) -> None:
    if names_of(before) != names_of(after):
        raise SettingError(_OTHER_VERSION)


def _name(setting: str) -> str:
    return setting.replace("_", "-")
