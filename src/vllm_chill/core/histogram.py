"""A histogram as Prometheus has it: how many observations were at most so large, for each of some bounds. A value."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate
from operator import add, sub


@dataclass(frozen=True, slots=True)
class Histogram:
    """`counts` has for each of `bounds`, which are finite and ascending, how many observations were at most that large;
    `count` is that of all, `sum` the sum of all.
    """

    bounds: tuple[float, ...]
    counts: tuple[float, ...]
    count: float
    sum: float

    def plus(self, other: Histogram) -> Histogram:
        """The observations of both; with the bounds that both have, for of others nothing is known of one of them."""
        mine, others = self._at_shared(other), other._at_shared(self)
        counts = tuple(map(add, mine.counts, others.counts))
        return Histogram(mine.bounds, counts, self.count + other.count, self.sum + other.sum)

    def since(self, before: Histogram) -> Histogram:
        """The observations that came after `before`, which is the same histogram earlier in the same life."""
        mine, earlier = self._at_shared(before), before._at_shared(self)
        counts = tuple(map(sub, mine.counts, earlier.counts))
        return Histogram(mine.bounds, counts, self.count - before.count, self.sum - before.sum)

    def percentile(self, percent: float) -> float | None:
        """The value that so many percent of the observations are not above; None where that is not known.

        As Prometheus' histogram_quantile: within a bucket the observations are taken to be spread evenly, the first
        one begins at 0, and what is above the last bound counts as being at it.
        """
        if self.count <= 0 or not self.bounds:
            return None
        rank = percent / 100 * self.count
        rising = tuple(accumulate(self.counts, max))
        index = bisect_left(rising, rank)
        if index == len(rising):
            return self.bounds[-1]
        upper = self.bounds[index]
        if index == 0 and upper <= 0:
            return upper
        lower, below = (self.bounds[index - 1], rising[index - 1]) if index else (0.0, 0.0)
        within = rising[index] - below
        return lower if within <= 0 else lower + (upper - lower) * (rank - below) / within

    def _at_shared(self, other: Histogram) -> Histogram:
        if self.bounds == other.bounds:
            return self
        shared = set(other.bounds)
        kept = [(bound, count) for bound, count in zip(self.bounds, self.counts, strict=True) if bound in shared]
        bounds, counts = tuple(bound for bound, _ in kept), tuple(count for _, count in kept)
        return Histogram(bounds, counts, self.count, self.sum)


def merged(histograms: Iterable[Histogram]) -> Histogram | None:
    """The observations of all; None of none."""
    some = tuple(histograms)
    return reduce(Histogram.plus, some) if some else None


def histogram_of(buckets: Mapping[float, float], count: float, total: float) -> Histogram:
    """The one with these counts by bound, of which those that are not finite are left out."""
    bounds = tuple(sorted(bound for bound in buckets if abs(bound) != float("inf")))
    return Histogram(bounds, tuple(buckets[bound] for bound in bounds), count, total)
