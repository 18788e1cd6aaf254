"""Coverage-guided fuzzing of the three parsers, with atheris, for by hand.

    pip install atheris==3.0.0
    PYTHONPATH=src:. python -m tests.fuzz.coverage -max_total_time=600 [folder of a corpus]

Every input goes to each of: what a client sends (the door, against h11 and against the fast lane's first look), and
what an upstream sends (the framing, whole and in pieces). An exception other than those that say "illegal" is a crash,
and so is any difference that tests/proxy/test_request_framing.py does not name.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

atheris: Any = importlib.import_module("atheris")

with atheris.instrument_imports(include=["vllm_chill.proxy"]):
    from tests.proxy.test_request_framing import check, fed
    from vllm_chill.proxy.fast_grammar import first_look
    from vllm_chill.proxy.framing import IllegalResponse, ResponseFraming


def requests(data: bytes, cut: int) -> None:
    """A client's bytes."""
    framing = check(data, [cut])
    whole, legal = fed(data)
    assert (whole.illegal is None) == (framing.illegal is None)
    plain = first_look(data)
    if plain is not None:
        end = plain.start + (plain.length or 0)
        assert legal[:end] == data[:end]


def response(data: bytes, cut: int, *, http10: bool) -> None:
    """An upstream's bytes: whatever the pieces, the same comes of them."""
    outcomes: list[tuple[bytes, int, bool] | None] = []
    for pieces in ([data], [data[: cut % (len(data) + 1)], data[cut % (len(data) + 1) :]]):
        framing, out = ResponseFraming(http10=http10), b""
        try:
            for piece in pieces:
                if piece and not framing.complete:
                    out += framing.feed(piece)
        except IllegalResponse:
            outcomes.append(None)
        else:
            outcomes.append((out, framing.status, framing.complete or framing.close()))
    if None not in outcomes:
        assert outcomes[0] == outcomes[1]


def one(data: bytes) -> None:
    if len(data) < 3:
        return
    cut, rest = data[0] * 8 + data[1], data[3:]
    requests(rest, cut)
    response(rest, cut, http10=data[2] % 2 == 0)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
