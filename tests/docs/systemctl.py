#!/usr/bin/env python3
"""`systemctl --user` where no systemd runs: it starts and stops a unit of ~/.config/systemd/user as systemd would.

systemctl.py --user daemon-reload | enable --now NAME | restart NAME | stop NAME | is-active NAME

The rule: KillMode=mixed. To stop a unit is SIGTERM for its main process alone, and SIGKILL for all that is left of it
once that has ended, or TimeoutStopSec is over.
"""

from __future__ import annotations

import configparser
import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

UNITS = Path.home() / ".config/systemd/user"
STATE = Path(os.environ["XDG_RUNTIME_DIR"])


class Unit:
    """One unit file, and the process that is its main one."""

    def __init__(self, name: str) -> None:
        parser = configparser.ConfigParser(interpolation=None, strict=False)
        parser.optionxform = str  # type: ignore[assignment,method-assign]
        parser.read_string((UNITS / f"{name}.service").read_text())
        self._service = parser["Service"]
        self._pid_file, self._log = STATE / f"{name}.pid", STATE / f"{name}.log"

    @property
    def active(self) -> bool:
        return self._pid is not None

    def start(self) -> None:
        command = shlex.split(self._service["ExecStart"].replace("%h", str(Path.home())))
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=Path.home()
            )
        self._pid_file.write_text(str(process.pid))

    def stop(self) -> None:
        assert self._service["KillMode"] == "mixed"
        pid = self._pid
        if pid is None:
            return
        os.kill(pid, signal.SIGTERM)
        end = time.monotonic() + 60 * float(re.sub(r"min$", "", self._service["TimeoutStopSec"]))
        while self._pid is not None and time.monotonic() < end:
            time.sleep(0.05)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        self._pid_file.unlink()

    @property
    def _pid(self) -> int | None:
        """Of the main process, while it lives."""
        if not self._pid_file.exists():
            return None
        pid = int(self._pid_file.read_text())
        with contextlib.suppress(OSError):
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            return None if state == "Z" else pid
        return None


def main() -> int:
    match [word for word in sys.argv[1:] if word not in ("--user", "--now")]:
        case ["daemon-reload"]:
            return 0
        case ["enable" | "start", name]:
            sys.stdout.write(f"Created symlink {UNITS}/default.target.wants/{name}.service.\n")
            Unit(name).start()
        case ["restart", name]:
            Unit(name).stop()
            Unit(name).start()
        case ["stop", name]:
            Unit(name).stop()
        case ["is-active", name]:
            sys.stdout.write("active\n" if Unit(name).active else "inactive\n")
            return 0 if Unit(name).active else 3
        case words:
            sys.stderr.write(f"systemctl.py knows nothing of {words}\n")
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
