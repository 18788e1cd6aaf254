"""Capacity dealt out over the variants of a model at the least cost. Pure.

The rule: growing takes the cheapest replicas that together give what is required, and shrinking removes those that
together save the most within what is spare. Both are exact where there are not too many ways to count; else what costs
the least for its capacity comes first, and what costs the most goes first. The numbers of one variant bound it: its
`min_replicas` and `max_replicas`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vllm_chill.core.saturation.fleet import Variant

_UNITS = 1_000_000  # cost and capacity are compared as whole millionths, so that equal ones are equal
_MOST_WAYS = 20_000


@dataclass(frozen=True, slots=True)
class _Way:
    """So many replicas of each variant, in the order of their keys, what they cost and what they take on."""

    cost: int
    capacity: int
    counts: tuple[int, ...]

    @property
    def replicas(self) -> int:
        return sum(self.counts)

    def with_more(self, cost: int, capacity: int, count: int) -> _Way:
        return _Way(self.cost + cost * count, self.capacity + capacity * count, (*self.counts, count))


@dataclass(frozen=True, slots=True)
class _Kind:
    """One replica of a variant, and how many of them there may be more, or fewer."""

    key: str
    cost: int
    capacity: int
    room: int


def grow(
    variants: Sequence[Variant], numbers: Mapping[str, int], required: float, most: int | None = None
) -> dict[str, int]:
    """How many replicas of which variants come on top of `numbers` (a variant without one has 0): the cheapest that
    give `required`, all that there may be where they do not, and no more than `most` in all, None for any number.

    Where `most` does not let all of them come, those come that would be the cheapest for the capacity that they give:
    a pace makes nothing dearer. At the same cost more capacity wins, then fewer replicas, then the key.
    """
    needed = math.ceil(required * _UNITS - 0.5)
    largest = max((_units(variant.capacity) for variant in variants), default=0)
    if needed <= 0 or largest <= 0 or most == 0:
        return {}
    reach = needed if most is None else min(needed, most * largest)
    kinds = [
        _kind(variant, min(_room(variant, numbers.get(variant.key, 0), reach), -(-reach // _units(variant.capacity))))
        for variant in _by_key(variants)
        if _units(variant.capacity) > 0
    ]
    ways = _cheapest_ways(kinds, reach)
    if ways is None:
        return _cheapest_first(kinds, reach, most)
    allowed = [way for way in ways if most is None or way.replicas <= most]
    return _counted(kinds, max(allowed, key=lambda way: way.capacity).counts)


def shrink(
    variants: Sequence[Variant], numbers: Mapping[str, int], spare: float, most: int | None = None
) -> dict[str, int]:
    """How many replicas of which of the variants go: those that save the most and together take on no more than
    `spare`, no more than `most` in all, and never the last one. `numbers` are those of all that serve the model.

    At the same saving less capacity goes, then fewer replicas, then those of the last key.
    """
    there = sum(numbers.values())
    allowed = there - 1 if most is None else min(most, there - 1)
    limit = math.floor(spare * _UNITS + 0.5)
    if limit <= 0 or allowed <= 0:
        return {}
    kinds = [
        _kind(variant, min(max(0, numbers.get(variant.key, 0) - variant.min_replicas), allowed))
        for variant in _by_key(variants)
        if 0 < _units(variant.capacity) <= limit
    ]
    ways = _within(kinds, limit, allowed)
    if ways is None:
        return _dearest_first(kinds, limit, allowed)
    return _counted(kinds, min(ways, key=lambda way: (-way.cost, way.capacity, way.replicas, way.counts)).counts)


def cheapest(variants: Iterable[Variant]) -> Variant | None:
    """The variant of which one replica costs the least, the first by key of several; None if there is none that may
    have a replica.
    """
    able = (variant for variant in variants if variant.max_replicas is None or variant.max_replicas > 0)
    return min(able, key=lambda variant: (variant.cost, variant.key), default=None)


def _cheapest_ways(kinds: Sequence[_Kind], needed: int) -> list[_Way] | None:
    """For each capacity up to `needed` the cheapest way to have it, the cheapest first, each with more capacity than
    the one before; None if there are too many to look at.
    """
    ways = [_Way(0, 0, ())]
    for kind in kinds:
        if len(ways) * (kind.room + 1) > _MOST_WAYS:
            return None
        more = [way.with_more(kind.cost, kind.capacity, count) for way in ways for count in range(kind.room + 1)]
        more.sort(key=lambda way: (way.cost, -way.capacity, way.replicas, [-count for count in way.counts]))
        ways = []
        for way in more:
            if not ways or way.capacity > ways[-1].capacity:
                ways.append(way)
            if way.capacity >= needed:
                break
    return ways


def _within(kinds: Sequence[_Kind], limit: int, allowed: int) -> list[_Way] | None:
    """The ways to remove no more than `limit` and `allowed`, without those that another one of as many replicas beats
    in both cost and capacity; None if there are too many to look at.
    """
    ways = [_Way(0, 0, ())]
    for kind in kinds:
        if len(ways) * (kind.room + 1) > _MOST_WAYS:
            return None
        more = [
            grown
            for way in ways
            for count in range(min(kind.room, allowed - way.replicas) + 1)
            if (grown := way.with_more(kind.cost, kind.capacity, count)).capacity <= limit
        ]
        more.sort(key=lambda way: (way.replicas, way.capacity, -way.cost, way.counts))
        ways = []
        for way in more:
            if not ways or way.replicas != ways[-1].replicas or way.cost > ways[-1].cost:
                ways.append(way)
    return ways


def _cheapest_first(kinds: Sequence[_Kind], needed: int, most: int | None) -> dict[str, int]:
    added: dict[str, int] = {}
    for kind in sorted(kinds, key=lambda kind: (kind.cost / kind.capacity, kind.key)):
        left = kind.room if most is None else min(kind.room, most - sum(added.values()))
        count = min(left, -(-needed // kind.capacity))
        if count > 0:
            added[kind.key] = count
            needed -= count * kind.capacity
        if needed <= 0:
            break
    return added


def _dearest_first(kinds: Sequence[_Kind], limit: int, allowed: int) -> dict[str, int]:
    removed: dict[str, int] = {}
    for kind in sorted(kinds, key=lambda kind: (kind.cost / kind.capacity, kind.key), reverse=True):
        count = min(kind.room, allowed, limit // kind.capacity)
        if count > 0:
            removed[kind.key] = count
            limit, allowed = limit - count * kind.capacity, allowed - count
    return removed


def _by_key(variants: Iterable[Variant]) -> list[Variant]:
    return sorted(variants, key=lambda variant: variant.key)


def _kind(variant: Variant, room: int) -> _Kind:
    cost = max(1, _units(variant.cost))  # not 0, or replicas that cost nothing would all be had at once
    return _Kind(variant.key, cost, _units(variant.capacity), room)


def _room(variant: Variant, number: int, otherwise: int) -> int:
    return otherwise if variant.max_replicas is None else max(0, variant.max_replicas - number)


def _units(value: float) -> int:
    return round(value * _UNITS)


def _counted(kinds: Sequence[_Kind], counts: Iterable[int]) -> dict[str, int]:
    return {kind.key: count for kind, count in zip(kinds, counts, strict=True) if count}
