"""A terminal for a program, and what is on its screen: a real pty, with an emulator behind it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import struct
import termios
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field

import pyte

KEYS = {"up": "\x1b[A", "down": "\x1b[B", "enter": "\r", "escape": "\x1b", "tab": "\t", "ctrl+c": "\x03"}


@dataclass
class Terminal:
    """A program's terminal. `raw` is all that the program has written."""

    process: asyncio.subprocess.Process
    screen: pyte.Screen
    _stream: pyte.ByteStream
    _descriptor: int
    raw: bytearray = field(default_factory=bytearray)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def read(self) -> None:
        """Take what the program has written."""
        try:
            data = os.read(self._descriptor, 1 << 16)
        except OSError:  # the program has closed it
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._descriptor)
        self.raw += data
        self._stream.feed(data)
        self._changed.set()

    @property
    def text(self) -> str:
        """What is on the screen."""
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip()

    def send(self, *keys: str) -> None:
        """Press keys, by their names or as text."""
        os.write(self._descriptor, "".join(KEYS.get(key, key) for key in keys).encode())

    def resize(self, columns: int, lines: int) -> None:
        """Give the program another size of its terminal."""
        fcntl.ioctl(self._descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.screen.resize(lines, columns)

    async def until(self, holds: Callable[[str], bool] | str, seconds: float = 20) -> str:
        """The screen once this is on it, or holds for it."""
        check = (lambda text: holds in text) if isinstance(holds, str) else holds
        try:
            async with asyncio.timeout(seconds):
                while not check(self.text):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"not on the screen: {holds}\n{self.text}") from None
        return self.text

    async def ended(self, seconds: float = 20) -> int:
        """The exit status of the program."""
        return await asyncio.wait_for(self.process.wait(), seconds)


@contextlib.asynccontextmanager
async def terminal(
    *command: str, environment: Mapping[str, str], columns: int = 80, lines: int = 24
) -> AsyncIterator[Terminal]:
    """Run a program in a terminal of its own; it is ended afterwards."""
    # Who is told a size does not ask the terminal for it.
    environment = {name: value for name, value in environment.items() if name not in {"COLUMNS", "LINES"}}
    descriptor, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    process = await asyncio.create_subprocess_exec(
        *command, stdin=its, stdout=its, stderr=its, env=environment, start_new_session=True, preexec_fn=_has_terminal
    )
    os.close(its)
    screen = pyte.Screen(columns, lines)
    here = Terminal(process, screen, pyte.ByteStream(screen), descriptor)
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, here.read)
    try:
        yield here
    finally:
        loop.remove_reader(descriptor)
        if process.returncode is None:
            process.kill()
        await process.wait()
        os.close(descriptor)


def _has_terminal() -> None:
    """Make its standard input the terminal that the new session is controlled by."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
