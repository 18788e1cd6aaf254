"""Where the CPU of a request goes, stage by stage: a sampled profile of a running proxy, read by our own functions.

    py-spy record --native --rate 500 --duration 20 --format raw --output profile.raw --pid PID
    python benchmarks/budget.py profile.raw

PID is that of a proxy under load (benchmarks/soak.py gives one some). Each sample counts for one stage: a system call
if it is in one, else what the innermost function of vllm_chill in it belongs to, else the event loop.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

_SYSTEM_CALLS = {"write": "write to a socket", "read": "read from a socket", "epoll_pwait": "wait for sockets"}
_STAGES = {
    "fast_grammar.py": "first look at the request, head for the upstream",
    "fast_lane.py": "fast lane: order of things",
    "fast_exchange.py": "fast lane: order of things",
    "headers.py": "head for the upstream",
    "body.py": "body",
    "upstream.py": "upstream connections",
    "exchange.py": "response to the client",
    "framing.py": "response's head and framing",
    "relay.py": "relay",
    "handler.py": "handler",
    "routing.py": "routing",
    "controller.py": "lease",
    "warm.py": "lease",
    "target.py": "lease",
    "metrics.py": "metrics",
    "request_counts.py": "metrics",
    "server.py": "metrics",
    "aiohttp_seam.py": "aiohttp's server",
}


def stage_of(frames: list[str]) -> str:
    """The stage of one sample; the outermost frame comes first."""
    if frames[-1].endswith("(libc.so.6)") and (call := _SYSTEM_CALLS.get(frames[-1].split(" ")[0])):
        return call
    for frame in reversed(frames):
        if frame.startswith("__create_fn__"):
            return "lease"  # the only values that a request makes
        if "(aiohttp/" in frame:
            return "aiohttp's server"
        if "(vllm_chill/" in frame and (stage := _STAGES.get(frame.rpartition("/")[2].split(":")[0])):
            return stage
    return "event loop"


def main(profile: str) -> None:
    found: Counter[str] = Counter()
    for line in Path(profile).read_text().splitlines():
        frames, _, count = line.rpartition(" ")
        found[stage_of(frames.split(";"))] += int(count)
    whole = sum(found.values())
    print("| stage | share of the CPU |\n|---|---|")
    for stage, samples in found.most_common():
        print(f"| {stage} | {100 * samples / whole:.1f} % |")


if __name__ == "__main__":
    main(*sys.argv[1:])
