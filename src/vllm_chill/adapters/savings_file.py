"""What was saved on this machine, in a file of its own: ports.SavingsStore for commands.

The rule: a write is whole or not at all, and of two that write over the same only one does: they take turns by a lock
on the folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from vllm_chill.adapters.state_file import cannot, file_name, replace_file
from vllm_chill.core.savings_ledger import MOST_BYTES, KeptText
from vllm_chill.errors import BackendConflict, BackendRefused


class SavingsFile:
    """The file in `folder`, which is made when there is something to keep. `name` is what it is called by, for people;
    `identity` is what makes it another one than that of what else is served on this machine.
    """

    def __init__(self, folder: Path, name: str, identity: Sequence[str]) -> None:
        self._folder = folder
        kind = hashlib.sha256("\0".join(identity).encode()).hexdigest()[:12]
        self._file = file_name("savings", name, kind)

    @property
    def path(self) -> Path:
        """The file. Raises RuntimeError where ~ stands for no folder."""
        return self._folder.expanduser() / self._file

    async def read(self) -> KeptText | None:
        return await asyncio.to_thread(self._read)

    async def write(self, text: str, before: KeptText | None) -> None:
        await asyncio.to_thread(self._write, text, before)

    def _read(self) -> KeptText | None:
        try:
            with self.path.open("rb") as file:
                text = file.read(MOST_BYTES + 1)
        except FileNotFoundError:
            return None
        except (OSError, RuntimeError) as error:
            raise self._refused("read", error) from error
        try:
            return KeptText(text.decode(), hashlib.sha256(text).hexdigest())
        except UnicodeDecodeError as error:
            raise BackendRefused(f"{self.path} is no text; move it away, and it begins anew") from error

    def _write(self, text: str, before: KeptText | None) -> None:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _locked(self.path.parent):
                if self._read() != before:
                    raise BackendConflict(f"{self.path} is another by now")
                replace_file(self.path, text, durable=True)
        except (OSError, RuntimeError) as error:
            raise self._refused("written", error) from error

    def _refused(self, done: str, error: Exception) -> BackendRefused:
        return BackendRefused(f"{self._file} {cannot(done, self._folder, error)}")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Nobody else writes into the folder meanwhile. The file itself is another one after each write."""
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(number, fcntl.LOCK_EX)
        yield
    finally:
        os.close(number)
