"""What it costs to read an engine's metrics page, beside prometheus_client's own parser.

    python benchmarks/engine_page.py [--turns 50]

The page is that of a real vLLM 0.32, as it is and as that of eight engines in one vLLM (data parallel). `first` is the
first page of its kind, `next` any other, whose buckets have been seen before; `longest` is the longest that the event
loop is held at a stretch, as a page is read in pieces of 64 KiB. The best of the turns counts, as whatever else the
machine does only adds to it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from vllm_chill.adapters.page import PIECE_BYTES
from vllm_chill.core import engine_page
from vllm_chill.core.engine_page import PageReader, engine_sample

PAGE = (Path(__file__).parent.parent / "tests" / "engine" / "vllm-metrics.txt").read_bytes()


def of_engines(count: int) -> bytes:
    """The page of a vLLM with so many engines in it."""
    lines = []
    for line in PAGE.splitlines(keepends=True):
        many = b'engine="0"' in line and not line.startswith(b"#")
        lines += [line.replace(b'engine="0"', b'engine="%d"' % number) for number in range(count if many else 1)]
    return b"".join(lines)


def best(turns: int, call: Callable[[], object], before: Callable[[], object] = lambda: None) -> float:
    """The shortest of so many turns, in milliseconds."""
    times = []
    for _ in range(turns):
        before()
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return 1000 * min(times)


def longest(page: bytes, turns: int) -> float:
    """The longest stretch of a whole page, in milliseconds: the shortest of so many turns for each of its pieces."""
    pieces = [page[begin : begin + PIECE_BYTES] for begin in range(0, len(page), PIECE_BYTES)]
    stretches = [float("inf")] * (len(pieces) + 1)
    for _ in range(turns):
        reader = PageReader()
        for number, piece in enumerate(pieces):
            began = time.perf_counter()
            reader.feed(piece)
            stretches[number] = min(stretches[number], time.perf_counter() - began)
        began = time.perf_counter()
        reader.sample()
        stretches[-1] = min(stretches[-1], time.perf_counter() - began)
    return 1000 * max(stretches)


def general(page: bytes) -> object:
    """All of it, as prometheus_client reads it."""
    return [family.samples for family in text_string_to_metric_families(page.decode())]


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--turns", type=int, default=50)
    turns = arguments.parse_args().turns
    print("ms                     bytes   prometheus_client    first     next  longest")
    for name, count in (("one engine", 1), ("eight engines", 8)):
        page = of_engines(count)
        assert engine_sample(page) is not None
        row = (
            best(max(3, turns // 10), partial(general, page)),
            best(turns, partial(engine_sample, page), engine_page._bound.cache_clear),
            best(turns, partial(engine_sample, page)),
            longest(page, turns),
        )
        print(f"{name:<18}{len(page):>10}{row[0]:>20.1f}{row[1]:>9.2f}{row[2]:>9.2f}{row[3]:>9.2f}")


if __name__ == "__main__":
    main()
