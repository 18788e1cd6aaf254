"""One tree of the source against another: the CPU of a warm request, as a ratio.

    python benchmarks/trees.py OTHER [--rounds 40] [--flags "..."] [--headers "..."]

OTHER is a folder with another `src`, such as `git worktree add` makes, or this one where it is the flags that differ:
`--flags` are for this tree's proxy alone. The two proxies take turns of half a second in front of one upstream each,
and each pair of turns gives a ratio, so that what else goes on at the machine meets both. The load and the upstream
are those of field.py.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.field import OPENAI_HEADERS, Field, Proxy, body, start, tools
from benchmarks.peers import Ground, Peer, vllm_chill

HERE = Path(__file__).parent.parent


def cpu_nanoseconds(proxy: Proxy) -> int:
    """The CPU of all threads that its process has, the one that exports spans too."""
    threads = Path(f"/proc/{proxy.process.pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads)


def turn(field: Field, proxy: Proxy, load: list[object]) -> float:
    """CPU µs for each request."""
    proxy.go_on()
    field.load(proxy.port, "-c", 16, "-d", 0.1, *load)
    before = cpu_nanoseconds(proxy)
    figures = field.load(proxy.port, "-c", 32, "-d", 0.5, *load)
    spent = cpu_nanoseconds(proxy) - before
    proxy.halt()
    assert not figures["errs"], (
        figures,
        proxy.process.poll(),
        Path(f"{field.ground.folder}/{proxy.peer.name}.log").read_text()[-2000:],
    )
    assert not figures["non200"], figures
    return spent / 1000 / figures["reqs"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("other", type=Path)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--flags", default="")
    parser.add_argument("--headers", default="", help="more request headers, as in: X-Request-Id: a")
    given = parser.parse_args()
    headers = OPENAI_HEADERS + "".join(f"{line.strip()}\r\n" for line in given.headers.split(";") if line.strip())
    load: list[object] = ["-b", body("mode=small"), "-H", headers]
    with tempfile.TemporaryDirectory() as scratch:
        ground = Ground(Path(scratch), 0)
        tools(ground.folder)
        peers = Peer("other", vllm_chill()), Peer("this", vllm_chill(*given.flags.split()))
        proxies: list[Proxy] = []
        try:
            for peer, tree in zip(peers, (given.other, HERE), strict=True):
                proxy = start(peer, ground, tree / "src")
                assert proxy is not None
                proxy.halt()
                proxies.append(proxy)
            field = Field(ground, proxies)
            ratios, costs = [], []
            for number in range(given.rounds):
                order = proxies if number % 2 == 0 else proxies[::-1]
                cost = {proxy.peer.name: turn(field, proxy, load) for proxy in order}
                ratios.append(cost["this"] / cost["other"])
                costs.append(cost)
        finally:
            for proxy in proxies:
                proxy.end()
    low, middle, high = statistics.quantiles(ratios, n=4)
    best = {}
    for name in ("other", "this"):
        own = [cost[name] for cost in costs]
        best[name] = statistics.quantiles(own, n=10)[0]
        print(f"{name:6}{statistics.median(own):8.1f} µs of CPU for each request, {best[name]:.1f} undisturbed")
    print(f"this / other: {middle:.3f}, half of {given.rounds} rounds from {low:.3f} to {high:.3f}")
    print(f"undisturbed (the lowest tenth of each): {best['this'] / best['other']:.3f}")


if __name__ == "__main__":
    main()
