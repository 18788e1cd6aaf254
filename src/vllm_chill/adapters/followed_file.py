"""A small file that may be replaced while it is used: written over, moved into place, or a link in a mounted Secret.

The rule: it is looked at, and not listened to. A look costs a system call, and sees what no notification tells of: the
swapped folder behind a Secret's links, and a disk of another machine.
"""

from __future__ import annotations

from pathlib import Path

from vllm_chill.errors import SettingError

_MOST_BYTES = 4 << 20

State = tuple[int, int, int]
"""What a file that was written anew differs in, and a link that leads to another one."""


def state_of(path: Path) -> State:
    """The state of a file. Raises OSError."""
    found = path.stat()
    return found.st_mtime_ns, found.st_ino, found.st_size


def state_if_there(path: Path) -> State | None:
    """The state of a file; None for one that is not there, or cannot be looked at."""
    try:
        return state_of(path)
    except OSError:
        return None


class Changes:
    """The changes of a file that is not there for us alone. Invariant: `_used` is how it was when it was last used."""

    def __init__(self, path: Path) -> None:
        self._path = path.expanduser()
        self._used = self._before = state_if_there(self._path)

    def settled(self) -> bool:
        """Whether it is another one than was used last, and the same as at the look before: not while it is written. It
        is then taken to be used.
        """
        state, before = state_if_there(self._path), self._before
        self._before = state
        if state in (None, self._used) or state != before:
            return False
        self._used = state
        return True

    def use(self) -> None:
        """Take that it is used as it is now."""
        self._used = self._before = state_if_there(self._path)


class FollowedFile:
    """A file, called by the setting that names it. Invariant: `_seen` is how it was when it was last read."""

    def __init__(self, path: Path, flag: str) -> None:
        self._path = path.expanduser()
        self.name = f"{flag} {path}"
        self._seen: State | None = None

    @property
    def changed(self) -> bool:
        """Whether it is another one than the one that was read last."""
        return state_if_there(self._path) != self._seen

    def read(self) -> str:
        """What is in it. Raises SettingError, a sentence that says nothing of it."""
        self._seen = state_if_there(self._path)
        try:
            with self._path.open("rb") as file:
                content = file.read(_MOST_BYTES + 1)
            if len(content) > _MOST_BYTES:
                raise SettingError(f"{self.name}: the file is larger than {_MOST_BYTES >> 20} MiB")
            return content.decode()
        except OSError as error:
            raise SettingError(f"{self.name}: the file cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise SettingError(f"{self.name}: the file is no text in UTF-8") from None
