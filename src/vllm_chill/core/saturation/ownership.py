"""Who owns whom: from a pod to what it is a replica of, and back. Pure.

The rule: only an owner that controls counts (`controller: true`), and it is known by its uid: one that was deleted and
made again under its name owns nothing of before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vllm_chill.core.objects import metadata

_GENERATIONS = 8  # what owns one another in a ring has no end


@dataclass(frozen=True, slots=True)
class Owner:
    """An object that controls another, in the same namespace."""

    api_version: str
    kind: str
    name: str
    uid: str


def controller_of(item: Mapping[str, Any]) -> Owner | None:
    """The owner that controls an object; None if it has none."""
    for each in metadata(item).get("ownerReferences") or ():
        if each.get("controller"):
            return Owner(each.get("apiVersion", ""), each.get("kind", ""), each.get("name", ""), each.get("uid", ""))
    return None


class Ownership:
    """Objects by their uid, and who controls each. Invariant: `_owned` is `_owners` turned round."""

    def __init__(self) -> None:
        self._owners: dict[str, Owner | None] = {}
        self._owned: dict[str, dict[str, None]] = {}

    def put(self, uid: str, owner: Owner | None) -> None:
        """Take that an object is there, and who controls it."""
        self.drop(uid)
        self._owners[uid] = owner
        if owner is not None:
            self._owned.setdefault(owner.uid, {})[uid] = None

    def drop(self, uid: str) -> None:
        """Take that an object is gone."""
        owner = self._owners.pop(uid, None)
        if owner is not None:
            owned = self._owned[owner.uid]
            del owned[uid]
            if not owned:
                del self._owned[owner.uid]

    def above(self, uid: str) -> Iterator[Owner]:
        """Who controls an object, and who controls that, up to the first that is not known to be there."""
        for _ in range(_GENERATIONS):
            owner = self._owners.get(uid)
            if owner is None:
                return
            yield owner
            uid = owner.uid

    def below(self, uid: str, generations: int = _GENERATIONS) -> Iterator[str]:
        """The uids of all that an object controls, and of what these control."""
        if generations:
            for owned in self._owned.get(uid, {}):
                yield owned
                yield from self.below(owned, generations - 1)
