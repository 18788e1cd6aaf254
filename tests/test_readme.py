"""What the README, the pages in docs/ and the manifests tell somebody to type can be typed, and does what they say."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from vllm_chill.cli import cli

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
MANIFESTS = sorted((ROOT / "deploy").rglob("*.yaml"))
CONTEXT = click.Context(cli)
COMMANDS = frozenset(cli.list_commands(CONTEXT))
INSTALL_SECONDS = 600
DEMO_PORT = 8080


def command_after(marker: str) -> str:
    """The text of the sh block that follows `<!-- marker -->`."""
    found = re.findall(rf"<!-- {marker} -->\n+```sh\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(found) == 1, f"one sh block after <!-- {marker} -->, not {len(found)}"
    return str(found[0]).strip()


# --- what is written can be typed ---


def code_of(text: str) -> Iterator[str]:
    """The code of a page: its fenced blocks with continued lines joined, line by line, and its inline spans."""
    blocks = re.compile(r"^ *```.*?\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
    for block in blocks.findall(text):
        yield from re.sub(r"\\\n\s*", " ", block).splitlines()
    yield from re.findall(r"`([^`\n]+)`", blocks.sub("", text))


def commands_of(page: Path) -> Iterator[tuple[str, list[str]]]:
    """The vllm-chill commands that a page shows: the subcommand and its words, up to `--`."""
    lines = code_of(page.read_text()) if page.suffix == ".md" else page.read_text().splitlines()
    for line in lines:
        for name, rest in re.findall(r"(?:^|[\s;&(]|bin/)vllm-chill ([a-z]+)\b([^|;&`]*)", line):
            if page.suffix == ".md" or name in COMMANDS:
                yield name, re.split(r" \[?--(?:\s|$)|\s#", rest)[0].split()


@pytest.mark.parametrize("page", [*PAGES, *MANIFESTS], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_that_is_shown_exists_with_its_flags(page: Path) -> None:
    for name, words in commands_of(page):
        assert name in COMMANDS, f"vllm-chill {name}"
        command = cli.get_command(CONTEXT, name)
        assert command is not None
        if isinstance(command, click.Group) and words and (below := command.get_command(CONTEXT, words[0])) is not None:
            command = below
        known = {opt for param in command.get_params(click.Context(command)) for opt in (*param.opts, "--help")}
        for word in words:
            flag = word.strip("[]").partition("=")[0]
            assert not flag.startswith("--") or flag in known, f"vllm-chill {name} {flag}"


def test_the_readme_shows_every_command() -> None:
    assert {name for name, _ in commands_of(README)} >= {"serve", "demo", "status"}


def anchors_of(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ +(.+?)\s*$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        leads_to = (page.parent / path).resolve() if path else page
        assert leads_to.exists(), target
        assert leads_to.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors_of(leads_to), target


# --- the two commands of a newcomer ---


def test_the_command_for_the_tests_is_the_script_that_ci_runs() -> None:
    command = command_after("tests")
    assert os.access(ROOT / command, os.X_OK)
    assert f"  {command}\n" in (ROOT / ".ci/run").read_text()


class Terminal:
    """A command in a shell, as somebody sees it who waits for words to appear."""

    def __init__(self, command: str, folder: Path) -> None:
        self._process = subprocess.Popen(
            ["bash", "-c", command],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # What pip is told by this machine stays; what would change the demo does not.
            env={name: value for name, value in os.environ.items() if not name.startswith("VLLM")},
        )
        self.seen = ""

    def wait_for(self, words: str, seconds: float) -> None:
        """Wait until the words have appeared."""
        assert self._process.stdout is not None
        end = time.monotonic() + seconds
        while words not in self.seen:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, end - time.monotonic()))
            assert ready, f'"{words}" did not appear within {seconds} s:\n{self.seen}'
            output = os.read(self._process.stdout.fileno(), 2**16)
            assert output, f'it ended without "{words}":\n{self.seen}'
            self.seen += output.decode()

    def interrupt(self) -> int:
        """Press Ctrl-C, and wait for the exit status."""
        os.killpg(self._process.pid, signal.SIGINT)
        output, _ = self._process.communicate(timeout=30)
        self.seen += output.decode()
        return self._process.returncode

    def close(self) -> None:
        """End whatever is left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()


@pytest.fixture
def fresh_copy(tmp_path: Path) -> Path:
    """The files that git tracks, and nothing else."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs the repository: it runs the command in a copy of what git tracks")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    copy = tmp_path / "vllm-chill"
    for name in filter(None, tracked.split("\0")):
        if (ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    return copy


@pytest.fixture
def demo(fresh_copy: Path) -> Iterator[Terminal]:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", DEMO_PORT))
        except OSError:
            pytest.skip(f"port {DEMO_PORT}, which the command uses, is taken on this machine")
    terminal = Terminal(command_after("demo"), fresh_copy)
    yield terminal
    terminal.close()


def engines_of(copy: Path) -> list[int]:
    """The demo engines that run from a copy."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if command[0].startswith(str(copy)) and command[1:3] == ["-m", "vllm_chill.demo_engine"]:
                found.append(int(process.name))
    return found


def printed(terminal: Terminal, beginning: str) -> str:
    """The command that the welcome shows and that begins so, continued lines and all."""
    lines = iter(terminal.seen.splitlines())
    for line in lines:
        if line.strip().startswith(beginning):
            shown = [line]
            while shown[-1].endswith("\\"):
                shown.append(next(lines))
            return "\n".join(shown)
    raise AssertionError(f"no {beginning} in:\n{terminal.seen}")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="the demo shows a request by curl, which is not installed")
def test_the_command_for_the_demo_installs_it_and_shows_what_it_says(demo: Terminal, fresh_copy: Path) -> None:
    demo.wait_for("Ctrl-C ends the demo", INSTALL_SECONDS)
    assert engines_of(fresh_copy) == []

    ask = ["bash", "-c", printed(demo, "curl ")]
    answer = subprocess.run(ask, capture_output=True, text=True, check=True, timeout=60).stdout
    events = [line.removeprefix("data: ") for line in answer.splitlines() if line]
    assert len(events) > 5
    assert events[-1] == "[DONE]"
    assert "demo engine" in demo.seen
    assert len(engines_of(fresh_copy)) == 1

    tell = [str(fresh_copy / ".venv/bin/vllm-chill"), *shlex.split(printed(demo, "vllm-chill status "))[1:]]
    assert "ready" in subprocess.run(tell, capture_output=True, text=True, check=True, timeout=30).stdout

    demo.wait_for("the engine is gone; the next request starts it again", 60)
    assert engines_of(fresh_copy) == []
    assert "asleep" in subprocess.run(tell, capture_output=True, text=True, check=True, timeout=30).stdout

    assert demo.interrupt() == 0, demo.seen
    assert "Traceback" not in demo.seen
