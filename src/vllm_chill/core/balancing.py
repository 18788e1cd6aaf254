"""Which replica a request goes to, and how many requests each has. Pure but for what it counts.

The rule: a request without a key goes to the replica that has the fewest; one with a key to the first on the ring from
its key on that has not more than its share, so that what an engine has cached is found again and no replica is
overrun for it. A key is a hash of what requests with the same cached beginning have in common.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from math import ceil

from xxhash import xxh3_64_intdigest

from vllm_chill.core.target import Endpoint

LOAD_FACTOR = 1.25
"""How much more than the mean a replica may have before a key goes on to the next: KubeAI's, as is the next one."""

REPLICATION = 256
"""How often each replica is on the ring, so that each has about the same part of it."""

_ONE = 1 << 48  # of a rank; what is below is when the replica was last taken
_NOBODY: frozenset[Endpoint] = frozenset()


class _Ranks(dict[Endpoint, int]):
    """For each replica the requests it has times `_ONE`, and the number of the turn at which it got the last one."""

    __slots__ = ()

    def __missing__(self, _: Endpoint) -> int:
        return 0


class Seats:
    """How many requests each replica has, of at most `limit` (None: any number).

    `out` are the replicas that are to be avoided while there is another; whoever makes the seats may change it.
    """

    __slots__ = ("_departed", "_ranks", "_turn", "limit", "out")

    def __init__(self, limit: int | None = None, out: Collection[Endpoint] = _NOBODY) -> None:
        self.limit = limit
        self._ranks = _Ranks()
        self._turn = 0
        self._departed: set[Endpoint] = set()
        self.out = out

    def taken(self, endpoint: Endpoint) -> int:
        """The requests that it has."""
        return self._ranks[endpoint] >> 48

    def take(
        self, endpoints: Sequence[Endpoint], key: int | None = None, besides: Endpoint | None = None
    ) -> Endpoint | None:
        """A place on one of these; None if all that may be taken are full. Not on `besides`, if there is another.

        Of those that have the fewest it is the one whose last turn is the longest ago. The key is not looked at.
        """
        if len(endpoints) == 1:
            found = endpoints[0]
        elif endpoints:
            if self.out or besides is not None:
                endpoints = self._wanted(endpoints, besides)
            found = min(endpoints, key=self._ranks.__getitem__)
        else:
            return None
        rank = self._ranks[found]
        if self.limit is not None and rank >> 48 >= self.limit:
            return None
        self._turn += 1
        self._ranks[found] = (rank >> 48) + 1 << 48 | self._turn
        return found

    def _wanted(self, endpoints: Sequence[Endpoint], besides: Endpoint | None) -> Sequence[Endpoint]:
        """Those that are in; if all are out, all of them: a replica that may be ill is better than none."""
        others = [endpoint for endpoint in endpoints if endpoint != besides] or endpoints
        return [endpoint for endpoint in others if endpoint not in self.out] or others

    def give_back(self, endpoint: Endpoint) -> None:
        """End one request's place there. Raises KeyError if it has none."""
        rank = self._ranks[endpoint] - _ONE
        if rank < 0:
            raise KeyError(endpoint)
        self._ranks[endpoint] = rank

    def forget(self, endpoint: Endpoint) -> None:
        """The replica has departed; nothing is kept of it once its last request has ended."""
        self._departed.add(endpoint)
        for one in [one for one in self._departed if not self.taken(one)]:
            self._departed.discard(one)
            self._ranks.pop(one, None)


class HashedSeats(Seats):
    """Seats by consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam, 2016).

    With n replicas that have m requests, none gets one more by its key than makes it `load_factor` x (m + 1) / n,
    rounded up. Invariant: `_held` is the sum of what the replicas of the ring have.
    """

    __slots__ = ("_held", "_load_factor", "_ring", "_told")

    def __init__(
        self,
        limit: int | None = None,
        out: Collection[Endpoint] = _NOBODY,
        *,
        load_factor: float = LOAD_FACTOR,
    ) -> None:
        super().__init__(limit, out)
        self._load_factor = load_factor
        self._told: Sequence[Endpoint] = ()
        self._ring = Ring()
        self._held = 0

    def take(
        self, endpoints: Sequence[Endpoint], key: int | None = None, besides: Endpoint | None = None
    ) -> Endpoint | None:
        """A place on one of these as by Seats.take, or where the key leads."""
        if endpoints is not self._told:
            self._follow(endpoints)
        if key is None or len(endpoints) < 2:
            found = super().take(endpoints, None, besides)
        else:
            found = self._take_by_key(endpoints, key, besides)
        if found is not None:
            self._held += 1
        return found

    def _take_by_key(self, endpoints: Sequence[Endpoint], key: int, besides: Endpoint | None) -> Endpoint | None:
        among, held = endpoints, self._held
        if self.out or besides is not None:
            among = self._wanted(endpoints, besides)
            held = sum(map(self.taken, among))
        bound = ceil(self._load_factor * (held + 1) / len(among))
        if self.limit is not None:
            if held >= self.limit * len(among):
                return None
            bound = min(bound, self.limit)
        full = bound << 48
        ranks = self._ranks
        for endpoint in self._ring.owners(key):
            rank = ranks[endpoint]
            if rank < full and (among is endpoints or endpoint in among):
                self._turn += 1
                ranks[endpoint] = (rank >> 48) + 1 << 48 | self._turn
                return endpoint
        return None

    def give_back(self, endpoint: Endpoint) -> None:
        super().give_back(endpoint)
        if endpoint in self._ring:
            self._held -= 1

    def _follow(self, endpoints: Sequence[Endpoint]) -> None:
        self._told = endpoints
        if self._ring.become(endpoints):
            self._held = sum(map(self.taken, self._ring))


class Ring:
    """Replicas on a circle of 64-bit numbers, each `REPLICATION` times, by their addresses: a set of replicas has one
    ring, whatever was before and whoever asks.
    """

    __slots__ = ("_at", "_owners", "_points")

    def __init__(self, endpoints: Sequence[Endpoint] = ()) -> None:
        self._points: dict[Endpoint, list[tuple[int, Endpoint]]] = {}
        self._at: list[int] = []
        self._owners: list[Endpoint] = []
        self.become(endpoints)

    def __contains__(self, endpoint: Endpoint) -> bool:
        return endpoint in self._points

    def __iter__(self) -> Iterator[Endpoint]:
        return iter(self._points)

    def become(self, endpoints: Sequence[Endpoint]) -> bool:
        """Have these replicas; whether that is a change."""
        if self._points.keys() == set(endpoints):
            return False
        self._points = {endpoint: self._points.get(endpoint) or _points(endpoint) for endpoint in endpoints}
        points = sorted(point for own in self._points.values() for point in own)
        self._at = [at for at, _ in points]
        self._owners = [endpoint for _, endpoint in points]
        return True

    def owners(self, key: int) -> Iterator[Endpoint]:
        """Whose places follow the key, once round; a replica comes as often as it has places."""
        owners, start = self._owners, bisect_left(self._at, key)
        for at in range(start, len(owners)):
            yield owners[at]
        for at in range(start):
            yield owners[at]


def _points(endpoint: Endpoint) -> list[tuple[int, Endpoint]]:
    name = str(endpoint)
    return sorted((xxh3_64_intdigest(f"{name}/{number}".encode()), endpoint) for number in range(REPLICATION))


def key_of(text: str, salt: int = 0) -> int:
    """The key of requests with this text in common; the same text under another salt has another one."""
    return xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"), salt)


def salt_of(name: str) -> int:
    """The salt of an adapter: what is cached for one is of no use to another."""
    return xxh3_64_intdigest(name.encode()) if name else 0
