"""The gate: whose key a request has, and whether it comes in time, before anything of it is read or woken.

The rule: a request that is let in costs one look into a dict. Only a header that has not been seen before is hashed,
and only those that were good are remembered, so that who guesses has nothing remembered.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from vllm_chill.core.keys import Key, Keys, bearer_token
from vllm_chill.core.rate import NEVER_USED, spent, wait_seconds
from vllm_chill.errors import RateLimited, Unauthenticated

_MOST_HEADERS = 4096
_HOW = 'send it in the header "Authorization: Bearer KEY"'


class Entrant:
    """Whoever has a key, and when its bucket is full again (core.rate)."""

    __slots__ = ("full_at", "key")

    def __init__(self, key: Key) -> None:
        self.key = key
        self.full_at = NEVER_USED

    def take(self, now: float) -> None:
        """Take that a request of it comes now. Raises RateLimited."""
        limit = self.key.rate
        if limit is None:
            return
        if wait := wait_seconds(limit, self.full_at, now):
            seconds = math.ceil(wait)
            message = (
                f'the key "{self.key.name}" may send {limit.per_minute} requests a minute, {limit.burst} of them at '
                f"once; try again in {seconds} s."
            )
            raise RateLimited(message, retry_after_seconds=seconds)
        self.full_at = spent(limit, self.full_at, now)

    def give_back(self) -> None:
        """Take that the last one did not come after all."""
        if self.key.rate is not None:
            self.full_at -= self.key.rate.interval_seconds


class Gate:
    """Knows all keys. Invariant: what `_known` has for a header is what `_keys` says of it."""

    __slots__ = ("_entrants", "_keys", "_known", "clock")

    def __init__(self, keys: Keys, clock: Callable[[], float]) -> None:
        """`clock` is that of the rates, in seconds; who has the time at hand may give it instead."""
        self.clock = clock
        self._keys = keys
        self._known: dict[bytes, Entrant] = {}
        self._entrants: dict[str, Entrant] = {}

    def replace(self, keys: Keys) -> None:
        """Let these in from now on. What a key has used of its rate, it has used."""
        self._keys = keys
        self._known.clear()
        for name, entrant in list(self._entrants.items()):
            found = keys.named(name)
            if found is None:
                del self._entrants[name]
            else:
                entrant.key = found

    def who(self, authorization: bytes | None) -> Entrant:
        """Whose the value of an Authorization field is. Raises Unauthenticated."""
        if authorization is None:
            raise Unauthenticated(f"this needs an API key; {_HOW}.")
        # A dict compares bytes only once their hashes are the same, and those hang on a secret of this process.
        entrant = self._known.get(authorization)
        return entrant if entrant is not None else self._find(authorization)

    def _find(self, authorization: bytes) -> Entrant:
        token = bearer_token(authorization)
        if token is None:
            raise Unauthenticated(f"the header Authorization has no API key; {_HOW}.")
        key = self._keys.find(token)
        if key is None:
            raise Unauthenticated("the API key is not known here; see whether it is whole, and has not been withdrawn.")
        entrant = self._entrants.get(key.name)
        if entrant is None:
            entrant = self._entrants[key.name] = Entrant(key)
        if len(self._known) >= _MOST_HEADERS:
            self._known.clear()
        self._known[authorization] = entrant
        return entrant
