"""The command blocks of a page, and a terminal to type them into, one after the other, as its reader does.

A block is ```sh, a script that has to succeed, or ```console, commands after `$ ` with what they print. What is shown
is compared with what is printed, but for what is another one each time (times, addresses, the names of pods). `...` at
the end of a line stands for the rest of it, and alone in a line for any lines. A comment says where it is otherwise:

    <!-- run: again until it is so, for 60 s -->     a reader would look again, too
    <!-- run: in another terminal -->                it goes on beside what follows; what it printed is looked at last
    <!-- run: Ctrl-C in the other terminal -->       without a block: ends that, and looks at what it printed
    <!-- not run: REASON -->
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

SHELLS = ("sh", "console")
_FENCE = re.compile(r"^ *```")
_COMMENT = re.compile(r"^ *<!-- (not run|run): (.*?) -->$")
_AGAIN = re.compile(r"again until it is so, for (\d+) s")
_ELSEWHERE = "in another terminal"
_INTERRUPT = "Ctrl-C in the other terminal"
_WILD = "..."
_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Command:
    """What is typed, and the lines that the page shows after it; None where it shows none."""

    text: str
    shown: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Block:
    """One block: from which line of the page, in which language, and how it is run."""

    line: int
    language: str
    commands: tuple[Command, ...]
    not_run: str | None = None
    elsewhere: bool = False
    interrupts: bool = False
    again_seconds: float = 0.0


def blocks_of(page: str) -> list[Block]:
    """The blocks of a page that a shell takes. Raises ValueError for a comment that says nothing that is known."""
    found: list[Block] = []
    lines = page.splitlines()
    said: tuple[str, str] | None = None
    number = 0
    while number < len(lines):
        line = lines[number]
        comment = _COMMENT.match(line)
        if comment is not None and comment[2] == _INTERRUPT:
            found.append(Block(number + 1, "", (), interrupts=True))
        elif comment is not None:
            said = (comment[1], comment[2])
        elif _FENCE.match(line):
            indent, language = len(line) - len(line.lstrip()), line.strip().strip("`").partition(" ")[0]
            end = next(i for i in range(number + 1, len(lines)) if lines[i].strip() == "```")
            if language in SHELLS:
                body = [each[indent:] for each in lines[number + 1 : end]]
                found.append(_block(number + 1, language, body, said))
            said, number = None, end
        elif line.strip():
            said = None
        number += 1
    return found


def _block(line: int, language: str, body: list[str], said: tuple[str, str] | None) -> Block:
    commands = tuple(_typed(body)) if language == "console" else (Command("\n".join(body), None),)
    match said:
        case None:
            return Block(line, language, commands)
        case "not run", reason:
            return Block(line, language, commands, not_run=reason)
        case _, how if how == _ELSEWHERE:
            return Block(line, language, commands, elsewhere=True)
        case _, how if (again := _AGAIN.fullmatch(how)) is not None:
            return Block(line, language, commands, again_seconds=float(again[1]))
        case _:
            raise ValueError(f"line {line}: nobody knows how to run a block {said[1]!r}")


def _typed(body: list[str]) -> Iterator[Command]:
    text: list[str] = []
    shown: list[str] = []
    for line in body:
        if line.startswith("$ "):
            if text:
                yield Command("\n".join(text), tuple(shown))
            text, shown = [line[2:]], []
        elif text and text[-1].endswith("\\"):
            text.append(line)
        else:
            assert text, f"a console block begins with a prompt, not with {line!r}"
            shown.append(line)
    yield Command("\n".join(text), tuple(shown))


# --- what is shown and what is printed ---

_OTHER_EACH_TIME = (
    (re.compile(r"\x1b\[[0-9;]*m"), ""),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)?"), "<moment>"),
    (re.compile(r"\b\d{4}-\d\d-\d\d\b"), "<day>"),
    (re.compile(r"\b\d\d:\d\d:\d\d\b"), "<clock>"),
    (re.compile(r"\b\d{1,3}(\.\d{1,3}){3}(:\d+)?\b"), "<address>"),
    (re.compile(r"\b\d+\.\d+(\.\d+)?(\.dev\d+)?(\+g?[0-9a-f.d]+)?$"), "<version>"),
    (re.compile(r"-[0-9a-f]{8,10}-[a-z0-9]{5}\b"), "-<pod>"),
    (re.compile(r"\b(\d+(\.\d+)? ?(ms|s|m|h|d))+\b"), "<time>"),
    (re.compile(r"\b\d{10}\b"), "<seconds>"),
    (re.compile(r"[ \t]+"), " "),
)


def as_ever(line: str) -> str:
    """A line without what is another one each time."""
    for pattern, stands_for in _OTHER_EACH_TIME:
        line = pattern.sub(stands_for, line)
    return line.strip()


def is_as_shown(shown: tuple[str, ...], printed: str) -> bool:
    """Whether what was printed is what the page shows."""
    pattern = "".join(_pattern_of(line) for line in shown)
    lines = [as_ever(line) for line in printed.splitlines()]
    return re.fullmatch(r"\n*" + pattern + r"\n*", "".join(f"{line}\n" for line in lines)) is not None


def _pattern_of(shown: str) -> str:
    if shown.strip() == _WILD:
        return r"(?:.*\n)*?"
    if shown.endswith(_WILD):
        return re.escape(as_ever(shown.removesuffix(_WILD))) + r".*\n"
    return re.escape(as_ever(shown)) + r"\n"


# --- a terminal ---


class Terminal:
    """A shell that keeps its folder, its variables and what it runs in the background from one command to the next."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._shell = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._seen = ""
        self._count = 0

    def run(self, command: str, seconds: float = _SECONDS) -> tuple[int, str]:
        """Type a command; its exit status and what was printed until it ended."""
        self._count += 1
        mark = f"--- end of {self._count} "
        self._type(f"{command}\nprintf '\\n{mark}%d\\n' $?\n")
        before, status = self._until(re.compile(rf"\n{mark}(\d+)\n"), seconds)
        return int(status), before

    def begin(self, command: str) -> None:
        """Type a command that goes on."""
        self._type(f"exec {command}\n")

    def until_anything(self, seconds: float) -> None:
        """Wait until something has been printed, or the time is over."""
        end = time.monotonic() + seconds
        while not self._seen and time.monotonic() < end and self._read(end - time.monotonic()):
            pass

    def printed(self, shown: tuple[str, ...], seconds: float) -> str:
        """All that a command which goes on has printed, once it is as shown, or when the time is over."""
        end = time.monotonic() + seconds
        while not is_as_shown(shown, self._seen) and time.monotonic() < end:
            self._read(min(1.0, max(0.0, end - time.monotonic())))
        return self._seen

    def close(self) -> None:
        """End it, and what it has begun: as Ctrl-C does, and then for good."""
        for number, seconds in ((signal.SIGINT, 5.0), (signal.SIGTERM, 20.0), (signal.SIGKILL, 20.0)):
            if self._ended(number, seconds):
                break
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        with contextlib.suppress(OSError):
            self._shell.stdin.close()
        self._shell.stdout.close()
        self._shell.wait()

    def _ended(self, number: signal.Signals, seconds: float) -> bool:
        """Send all of it a signal; whether it is gone within so many seconds."""
        end = time.monotonic() + seconds
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._shell.pid, number)
        while (lives := self._lives()) and time.monotonic() < end:
            self._shell.poll()
            time.sleep(0.05)
        return not lives

    @property
    def seen(self) -> str:
        """What has been printed and not yet been taken."""
        self._read(0.0)
        return self._seen

    def _lives(self) -> bool:
        try:
            os.killpg(self._shell.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def _type(self, text: str) -> None:
        assert self._shell.stdin is not None
        self._shell.stdin.write(text.encode())
        self._shell.stdin.flush()

    def _until(self, pattern: re.Pattern[str], seconds: float) -> tuple[str, str]:
        end = time.monotonic() + seconds
        while (found := pattern.search(self._seen)) is None:
            assert time.monotonic() < end, f"it has not ended within {seconds:g} s:\n{self._seen}"
            assert self._read(end - time.monotonic()), f"the shell is gone:\n{self._seen}"
        before, self._seen = self._seen[: found.start()], self._seen[found.end() :]
        return before, found[1]

    def _read(self, seconds: float) -> bool:
        """Take what comes within so many seconds; False once there is no more to come."""
        assert self._shell.stdout is not None
        ready, _, _ = select.select([self._shell.stdout], [], [], max(0.0, seconds))
        if not ready:
            return True
        output = os.read(self._shell.stdout.fileno(), 2**16)
        self._seen += output.decode(errors="replace")
        return bool(output)


class Reader:
    """Somebody who types a page's blocks, in their order, and compares what is shown with what comes."""

    def __init__(
        self, folder: Path, environment: Mapping[str, str], seconds: float = _SECONDS, patience: float = 5.0
    ) -> None:
        """`seconds` is what a command may take. What a page says of times is for a machine that has nothing else to do:
        `patience` times as long is waited for.
        """
        self._folder, self._environment, self._seconds, self._patience = folder, environment, seconds, patience
        self._terminal = Terminal(folder, environment)
        self._others: list[tuple[Block, Terminal]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for terminal in [terminal for _, terminal in reversed(self._others)] + [self._terminal]:
            terminal.close()

    def read(self, page: str) -> int:
        """Type every block of a page that is to be run; how many there were."""
        blocks = [block for block in blocks_of(page) if block.not_run is None]
        for block in blocks:
            if block.interrupts:
                self._end_other()
            elif block.elsewhere:
                self._begin(block)
            else:
                for command in block.commands:
                    self._type(block, command)
        while self._others:
            self._end_other()
        return len(blocks)

    def _end_other(self) -> None:
        """Look at what the newest of the other terminals shows, and press Ctrl-C there."""
        block, terminal = self._others[-1]
        shown = block.commands[0].shown or ()
        printed = terminal.printed(shown, seconds=5.0 * self._patience) if shown else ""
        assert not shown or is_as_shown(shown, printed), _difference(block, block.commands[0], printed)
        terminal.close()
        self._others.pop()

    def _begin(self, block: Block) -> None:
        [command] = block.commands
        terminal = Terminal(self._folder, self._environment)
        self._others.append((block, terminal))
        terminal.begin(command.text)
        # Whoever begins to watch something sees that it is watched before doing what is to be seen.
        terminal.until_anything(20.0 * self._patience)

    def _type(self, block: Block, command: Command) -> None:
        end = time.monotonic() + block.again_seconds * self._patience
        while True:
            status, printed = self._terminal.run(command.text, self._seconds)
            good = status == 0 and (command.shown is None or is_as_shown(command.shown, printed))
            if good:
                return
            if time.monotonic() > end:
                beside = "".join(f"\n--- in another terminal\n{terminal.seen}" for _, terminal in self._others)
                raise AssertionError(_difference(block, command, printed, status) + beside)
            time.sleep(0.5)


def _difference(block: Block, command: Command, printed: str, status: int = 0) -> str:
    shown = "\n".join(command.shown or ())
    ended = f" ended with {status}" if status else ""
    return f"line {block.line}: $ {command.text}\n{ended}\n--- the page shows\n{shown}\n--- it printed\n{printed}"
