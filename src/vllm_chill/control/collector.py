"""When Python looks for garbage everywhere: while few requests are there to be looked at.

The rule: what ends a request is the last reference to it, so a full collection finds next to nothing and can wait. It
goes through everything that there is at one stretch, some 10 µs for each request that is held: with ten thousand of
them nobody else would be served for a tenth of a second, again and again as they come. Collections of what is new are
short, and stay as they are.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable

_EVERY_SECONDS = 60.0
_FEW = 1000
_PUT_OFF_AT_MOST = 14  # a quarter of an hour in all
_NEVER = (1 << 31) - 1


async def collect_at_leisure(requests: Callable[[], int], collect: Callable[[], object] = gc.collect) -> None:
    """Have full collections once a minute, and none by themselves, until cancelled.

    One is put off while there are more than a thousand `requests`, for at most a quarter of an hour.
    """
    young, middle, old = gc.get_threshold()
    gc.set_threshold(young, middle, _NEVER)
    put_off = 0
    try:
        while True:
            await asyncio.sleep(_EVERY_SECONDS)
            if requests() > _FEW and put_off < _PUT_OFF_AT_MOST:
                put_off += 1
            else:
                put_off = 0
                collect()
    finally:
        gc.set_threshold(young, middle, old)
