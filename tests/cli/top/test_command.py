"""`vllm-chill top` in a real terminal, before a real proxy that runs the demo engine."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from contextlib import AbstractAsyncContextManager

import pytest

from tests.cli.main import ended
from tests.cli.terminal import Terminal, terminal
from tests.serving import CHILL, Serving, clean_environment, serving
from vllm_chill.cli.asking import Proxy
from vllm_chill.cli.top.command import show
from vllm_chill.errors import SettingError

ENGINE = (
    *(sys.executable, "-m", "vllm_chill.demo_engine", "--model", "demo"),
    *("--port", "{port}", "--load-seconds", "0.5"),
)
COLOUR = re.compile(rb"\x1b\[(?:[0-9;]*;)?(?:3[0-7]|4[0-7]|9[0-7]|38|48)(?:;[0-9;]*)?m")


def at(proxy: Serving, columns: int = 80, lines: int = 24, **environment: str) -> AbstractAsyncContextManager[Terminal]:
    more = {"TERM": "xterm-256color", "LANG": "C.UTF-8"} | environment
    return terminal(
        *CHILL, "top", "--url", proxy.url, environment=clean_environment(**more), columns=columns, lines=lines
    )


async def test_a_persons_round_through_it() -> None:
    async with serving("--idle-timeout", "5m", command=ENGINE) as proxy, at(proxy) as screen:
        text = await screen.until("asleep")
        assert re.fullmatch(rf"vllm-chill \S+ at {re.escape(proxy.url)}", text.splitlines()[0])
        assert "SLEEPS IN" in text
        await screen.until("w Wake z Sleep s Sort q Quit")
        screen.send("w")
        await screen.until("starting the engine")
        await screen.until(lambda text: "ready; 0 waiting, 0 in flight" in text)
        screen.send("enter")
        text = await screen.until("last start ready after")
        assert "endpoints  127.0.0.1:" in text
        screen.send("escape")
        await screen.until("SLEEPS IN")
        screen.send("z")
        await screen.until("Put process/python to sleep?")
        screen.send("n")
        await screen.until(lambda text: "Put process" not in text)
        screen.send("z")
        await screen.until("y: yes")
        screen.send("y")
        await screen.until("process/python is asleep.")
        screen.resize(40, 20)
        await screen.until(lambda text: "SLEEPS IN" not in text and "0 waiting, 0 in flight, replicas 0" in text)
        await proxy.stop()
        await screen.until("It does not answer")
        screen.send("q")
        assert await screen.ended() == 0
        assert b"Traceback" not in screen.raw
        assert COLOUR.search(screen.raw)


async def test_without_colour_there_is_none_and_what_is_selected_is_seen() -> None:
    async with serving(command=ENGINE) as proxy, at(proxy, NO_COLOR="1") as screen:
        text = await screen.until("asleep")
        row = next(number for number, line in enumerate(text.splitlines()) if line.startswith("process/python"))
        await screen.until(lambda _: screen.screen.buffer[row][0].reverse)
        screen.send("ctrl+c")
        assert await screen.ended() == 0
        assert not COLOUR.search(screen.raw)


async def test_where_the_output_is_no_terminal_it_is_printed_once() -> None:
    async with serving(command=ENGINE) as proxy:
        told = await asyncio.to_thread(ended, "top", "--url", proxy.url)
        assert (told.status, told.err) == (0, "")
        head, counts, today, empty, columns, row = told.out.splitlines()
        assert head.endswith(f" at {proxy.url}")
        assert (counts, empty) == ("asleep; 0 waiting, 0 in flight", "")
        assert re.fullmatch(r"today: \d+\.\d GPU-hours saved", today)
        assert columns.startswith("TARGET ")
        assert row.split()[:2] == ["process/python", "asleep"]


async def test_on_a_terminal_that_cannot_be_drawn_on_it_is_printed_once() -> None:
    async with serving(command=ENGINE) as proxy, at(proxy, TERM="dumb") as screen:
        await screen.until("process/python")
        assert await screen.ended() == 0
        assert b"\x1b" not in screen.raw


def test_a_proxy_that_is_not_there_is_an_error_where_it_is_printed_once() -> None:
    told = ended("top", "--once", "--url", "http://127.0.0.1:1")
    assert (told.status, told.out) == (3, "")


@pytest.mark.parametrize("command", ["serve", "status", "top --once"])
def test_nothing_else_imports_the_library(command: str) -> None:
    code = (
        "import sys; from vllm_chill.cli import main\n"
        f"sys.argv[1:] = {[*command.split(), '--help']!r}\n"
        "try:\n    main()\nfinally:\n    assert 'textual' not in sys.modules"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], env=clean_environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in ("textual", "rich")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "vllm_chill.cli.top.app", raising=False)
    monkeypatch.setitem(sys.modules, "textual", None)
    with pytest.raises(SettingError, match=r"pip install 'vllm-chill\[top\]'"):
        show(Proxy("http://127.0.0.1:1"), "name")
