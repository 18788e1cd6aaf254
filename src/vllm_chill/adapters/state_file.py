"""What is known of a command's starts, in a file of its own: ports.StartHistory for one machine.

The rule: it is never in the way. A file that cannot be read or written is told of once, and the proxy goes on without.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vllm_chill.core.target import TargetRef

_MOST_BYTES = 64 * 1024


def default_folder(environment: Mapping[str, str]) -> Path:
    """The folder for state where none is named: `$XDG_STATE_HOME/vllm-chill`, else `~/.local/state/vllm-chill`.

    As XDG's base directories have it, a variable with a relative path counts as unset.
    """
    home = Path(environment.get("XDG_STATE_HOME", ""))
    return (home if home.is_absolute() else Path("~/.local/state")) / "vllm-chill"


class StateFile:
    """One target's file in `folder`, which is made when there is something to keep.

    The file's name is made of the target's name and of the command: another command has another history. The
    command itself is not written down, as it may have keys in it. `warn` is told a sentence, once at the most.
    """

    def __init__(self, folder: Path, command: Sequence[str], warn: Callable[[str], None]) -> None:
        self._folder = folder
        self._command = tuple(command)
        self._warn = warn
        self._warned = False

    async def load(self, ref: TargetRef) -> str | None:
        try:
            return await asyncio.to_thread(self._read, ref)
        except FileNotFoundError:
            return None
        except (OSError, RuntimeError, ValueError) as error:
            self._trouble("read", error)
            return None

    async def save(self, ref: TargetRef, text: str) -> None:
        try:
            await asyncio.to_thread(self._write, ref, text)
        except (OSError, RuntimeError, ValueError) as error:
            self._trouble("written", error)

    def path(self, ref: TargetRef) -> Path:
        """The target's file. Raises RuntimeError where ~ stands for no folder."""
        kind = hashlib.sha256(json.dumps([str(ref), *self._command]).encode()).hexdigest()[:12]
        return self._folder.expanduser() / file_name("starts", ref.name, kind)

    def _read(self, ref: TargetRef) -> str:
        with self.path(ref).open("rb") as file:
            return file.read(_MOST_BYTES).decode()

    def _write(self, ref: TargetRef, text: str) -> None:
        path = self.path(ref)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(path, text)

    def _trouble(self, done: str, error: Exception) -> None:
        if self._warned:
            return
        self._warned = True
        self._warn(f"what is known of past starts {cannot(done, self._folder, error)}")


def file_name(what: str, name: str, kind: str) -> str:
    """What a file for `what` is called: `name` is for people, `kind` makes it another one than all others."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:64].lstrip(".")
    return f"{what}-{plain}-{kind}.json"


def cannot(done: str, folder: Path, error: Exception) -> str:
    """The end of a sentence: that it cannot be `done` in this folder, why, and what to do."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f'cannot be {done} in {folder}: {reason}; give another --state-dir, or --state-dir "" to keep nothing'


def replace_file(path: Path, text: str, *, durable: bool = False) -> None:
    """Have a file say this. `durable`: also after a loss of power. Raises OSError or UnicodeError, and is then as it
    was.
    """
    # Beside the file and moved over it: a reader sees the old text or the new one, whole.
    number, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-")
    try:
        with os.fdopen(number, "w") as file:
            file.write(text)
            if durable:
                file.flush()
                os.fsync(number)
        Path(beside).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(beside).unlink()
        raise
