"""Wakes a real engine twice through the proxy and compares its answers with its own.

    python benchmarks/real_engine.py [--model tiny] [--idle-timeout 5s] -- vllm serve MODEL --port {port}

It prints, for each wake: the time from the request at zero to its first byte and to its end, that of a warm request
through the proxy and of one asked directly, whether the tokens are the same, and how long after the last answer the
engine's processes were gone. The proxy runs on a free port of the loopback address and is ended afterwards.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import aiohttp

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.serving import Serving, serving


@dataclass(frozen=True, slots=True)
class Answer:
    """One streamed completion: seconds to the head, seconds to the end, and the text."""

    first: float
    whole: float
    text: str


async def ask(url: str, model: str) -> Answer:
    body = {"model": model, "prompt": "the proxy holds", "max_tokens": 24, "temperature": 0, "seed": 1, "stream": True}
    begun = time.monotonic()
    async with aiohttp.ClientSession() as session, session.post(f"{url}/v1/completions", json=body) as response:
        response.raise_for_status()
        page = await response.content.readany()
        first = time.monotonic() - begun
        page += await response.read()
    assert page.endswith(b"data: [DONE]\n\n"), page[-200:]
    events = [json.loads(line[6:]) for line in page.decode().splitlines() if line.startswith("data: {")]
    text = "".join(choice["text"] for event in events for choice in event["choices"])
    return Answer(first, time.monotonic() - begun, text)


def descendants(pid: int) -> int:
    children = [
        int(child) for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()
    ]
    return len(children) + sum(descendants(child) for child in children)


async def one_wake(number: int, proxy: Serving, model: str) -> None:
    cold = await ask(proxy.url, model)
    warm = await ask(proxy.url, model)
    endpoint = (await proxy.status())["endpoints"][0]
    await ask(f"http://{endpoint}", model)
    direct = await ask(f"http://{endpoint}", model)
    ended = time.monotonic()
    running = descendants(proxy.process.pid)
    await proxy.until_logged("asleep", number, seconds=180)
    gone = time.monotonic() - ended
    print(
        f"wake {number}: first byte from zero {cold.first:.1f} s, whole {cold.whole:.1f} s; "
        f"warm first byte {warm.first * 1e3:.0f} ms (direct {direct.first * 1e3:.0f} ms); "
        f"same tokens {cold.text == warm.text == direct.text}; "
        f"processes {running} -> {descendants(proxy.process.pid)} after {gone:.1f} s"
    )


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--idle-timeout", default="5s")
    parser.add_argument("command", nargs="+")
    given = parser.parse_args()
    flags = ("--idle-timeout", given.idle_timeout, "--wake-timeout", "10m", "--shutdown-delay", "0")
    async with serving(*flags, command=given.command) as proxy:
        for number in (1, 2):
            await one_wake(number, proxy, given.model)
        print(f"the proxy ended with status {await proxy.stop()}")


if __name__ == "__main__":
    asyncio.run(main())
