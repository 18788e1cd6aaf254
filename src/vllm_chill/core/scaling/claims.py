"""Which of several policies a target is scaled by. Pure.

The rule: an object beats annotations, which beat a model's own bounds; of two of a kind the older has the target, so
that a new one never takes it from one that is in force.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from vllm_chill.core.scaling.policy import Policy


class Rank(enum.IntEnum):
    """Where a policy comes from; the lowest beats the others."""

    OBJECT = 0
    ANNOTATIONS = 1
    MODEL = 2


@dataclass(frozen=True, slots=True)
class Claim:
    """A policy for a target. `key` is what it comes from, as no other does, and `said` that for a sentence; `created`
    sorts by age.
    """

    key: str
    said: str
    target: Hashable
    policy: Policy
    rank: Rank
    created: str = ""


def settle(claims: Iterable[Claim]) -> dict[Hashable, Claim]:
    """The policy of each target."""
    won: dict[Hashable, Claim] = {}
    for claim in sorted(claims, key=lambda each: (each.rank, each.created, each.key)):
        won.setdefault(claim.target, claim)
    return won
