"""What it costs to find the name of the model in a request's body, beside a parse of the whole of it.

    python benchmarks/model_name.py [--seconds 1]

Chat bodies as the OpenAI client writes them, with the name behind the messages, in four sizes. `whole` is what is done
with a body that is whole in memory; `pieces` with one that comes in pieces of 64 KiB and is read up to the name, which
comes last here: that is all of it. `json` is Python's own json.loads, which engines use. Each way takes turns with the
others, and the best of its turns counts, as whatever else the machine does only adds to it.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from functools import partial

from vllm_chill.core.call import model_of
from vllm_chill.core.model_search import FormSearch, JsonSearch, Search

SIZES = (1 << 10, 10 << 10, 100 << 10, 1 << 20)
PIECE = 64 << 10
NAME = "org/model"
_WORDS = [*["the", "model", "a", "name,", "1.5", "and", "then", "waits.", "größer"] * 8, 'it "said"', "\n"]


def chat(size: int) -> bytes:
    """A conversation of about that many bytes: its messages are a few hundred bytes long, its tools are nested."""
    words = random.Random(size)
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}}}
    body: dict[str, object] = {"messages": [], "tools": [tool], "temperature": 0.7, "stream": True, "model": NAME}
    messages: list[object] = []
    left = size - len(_written(body))
    while left > 0:
        said = " ".join(words.choice(_WORDS) for _ in range(min(60, left // 8)))
        messages.append({"role": words.choice(["user", "assistant"]), "content": said})
        left -= len(_written(messages[-1])) + 1
    return _written({"messages": messages, **{key: body[key] for key in body if key != "messages"}})


def _written(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def picture(size: int) -> bytes:
    """A call with one long text in it, as a picture is."""
    text = "iVBORw0KGgo" * (size // 11)
    url = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{text}"}}
    return _written({"messages": [{"role": "user", "content": [url]}], "model": NAME})


def form(size: int) -> bytes:
    """A form with a sound before the name, as curl writes it."""
    field = b'--boundary\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'
    sound = random.Random(size).randbytes(size)
    parts = field % (b"file", b'; filename="a.wav"', sound), field % (b"model", b"", NAME.encode())
    return b"".join(parts) + b"--boundary--\r\n"


def by_json(body: bytes) -> str | None:
    found = json.loads(body)["model"]
    return str(found)


def in_pieces(begin: Callable[[], Search], body: bytes) -> str | None:
    search = begin()
    for at in range(0, len(body), PIECE):
        search.feed(body[at : at + PIECE])
        if search.over:
            break
    return search.model


def measured(ways: dict[str, Callable[[], str | None]], seconds: float) -> dict[str, float]:
    """The CPU of one search in each of the ways, in microseconds."""
    best = dict.fromkeys(ways, float("inf"))
    times = dict.fromkeys(ways, 1)
    ends = time.monotonic() + seconds * len(ways)
    while time.monotonic() < ends:
        for name, find in ways.items():
            begun = time.process_time()
            for _ in range(times[name]):
                assert find() == NAME
            spent = time.process_time() - begun
            if spent < 0.005:
                times[name] *= 2
            else:
                best[name] = min(best[name], spent / times[name])
    return {name: seconds * 1e6 for name, seconds in best.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each way and size")
    seconds = parser.parse_args().seconds
    print(f"{'CPU, µs':<24}{'bytes':>10}{'json':>10}{'whole':>18}{'pieces':>18}")
    for kind, make in (("a conversation", chat), ("a picture", picture)):
        for size in SIZES:
            body = make(size)
            found = measured(
                {
                    "json": partial(by_json, body),
                    "whole": partial(model_of, body),
                    "pieces": partial(in_pieces, JsonSearch, body),
                },
                seconds,
            )
            whole = found["json"]
            cells = "".join(f"{f'{found[way]:.1f} ({found[way] / whole:.2f})':>18}" for way in ("whole", "pieces"))
            print(f"{kind:<24}{len(body):>10}{whole:>10.1f}{cells}")
    for size in SIZES:
        body = form(size)
        search = partial(FormSearch, b"boundary")
        found = measured({"pieces": partial(in_pieces, search, body)}, seconds)
        print(f"{'a sound, in a form':<24}{len(body):>10}{'':>10}{'':>18}{found['pieces']:>18.1f}")


if __name__ == "__main__":
    main()
