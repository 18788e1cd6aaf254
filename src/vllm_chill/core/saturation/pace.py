"""How fast a model may grow and shrink: so many replicas within a period. Pure.

The rule: what counts is what was decided lately, not how often it was looked at, for something may happen at any time
that makes it be looked at again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vllm_chill.core.saturation.config import Config


@dataclass(frozen=True, slots=True)
class Change:
    """So many replicas were to come at `at`, over all variants, and so many to go."""

    at: float
    came: int
    went: int


def left_up(config: Config, changes: Iterable[Change], now: float) -> int:
    """How many replicas may come now."""
    came = sum(one.came for one in changes if one.at > now - config.scale_up_period)
    return max(0, config.scale_up_increment - came)


def left_down(config: Config, changes: Iterable[Change], now: float) -> int:
    """How many replicas may go now."""
    went = sum(one.went for one in changes if one.at > now - config.scale_down_period)
    return max(0, config.scale_down_increment - went)


def recent(config: Config, changes: Iterable[Change], now: float) -> tuple[Change, ...]:
    """The changes that a period reaches back to."""
    longest = max(config.scale_up_period, config.scale_down_period)
    return tuple(one for one in changes if one.at > now - longest)


def change(moves: Iterable[int], now: float) -> Change:
    """What the variants are to move by, as one change."""
    moves = list(moves)
    return Change(now, sum(by for by in moves if by > 0), -sum(by for by in moves if by < 0))
