"""Which models may be awake together, whose turn it is, and who makes room. Pure.

The rule: nobody who has a GPU is asked to give it up while it answers: it is put to sleep once nobody uses it, and
after a wait that has become too long it takes no new requests, so that those it has can end. So a switch cuts no
stream, and two callers who take turns do not spend the GPU on loading.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_BUDGET = re.compile(r"(?:([^=,\s]+)\s*=\s*)?([0-9]{1,6})")


@dataclass(frozen=True, slots=True)
class Claim:
    """What a model needs to be awake. At most one of a `group` is; `gpus` are taken from `pool`. `kept`: it is never
    put to sleep for another.
    """

    name: str
    group: str | None = None
    gpus: int = 1
    pool: str = ""
    kept: bool = False


@dataclass(frozen=True, slots=True)
class Standing:
    """How a model is at one moment. Times are seconds on one clock.

    `holds`: something of it runs or may yet, so that its GPUs are taken. `wants_since`: it waits for its turn since
    then. `ready_since` and `unused_since` are None where it is not ready, or is used. `leaving`: it is on its way out.
    """

    claim: Claim
    holds: bool = False
    wants_since: float | None = None
    ready_since: float | None = None
    unused_since: float | None = None
    leaving: bool = False


@dataclass(frozen=True, slots=True)
class Rules:
    """`budgets` has the GPUs of each pool that is bounded. Times in seconds."""

    residency_seconds: float = 60.0
    most_wait_seconds: float = 300.0
    budgets: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now: those in `start` may be woken; those in `leave` are to give way, each for a model that waits.
    `waits_for` names for each that goes on waiting those that are in its way. `look_again_at`: when time alone will
    change this.
    """

    start: tuple[str, ...] = ()
    leave: Mapping[str, str] = field(default_factory=dict)
    waits_for: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    look_again_at: float | None = None


def parse_gpu_budget(text: str) -> dict[str, int]:
    """GPUs by pool from `8` (the pool with no name) or `a100=8,l4=4`; none from an empty text. Raises ValueError."""
    budgets: dict[str, int] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        found = _BUDGET.fullmatch(item)
        if found is None:
            raise ValueError(f"{item!r} is neither a number nor POOL=NUMBER")
        budgets[found[1] or ""] = int(found[2])
    return budgets
