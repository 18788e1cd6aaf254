"""A Lease that no server keeps: for candidates of one process."""

from __future__ import annotations

from vllm_chill.core.election import Record, StoredLease
from vllm_chill.errors import BackendConflict


class MemoryLease:
    """ports.LeaseStore. `stored` is what there is."""

    def __init__(self) -> None:
        self.stored: StoredLease | None = None
        self._versions = 0

    async def get(self) -> StoredLease | None:
        return self.stored

    async def create(self, record: Record) -> StoredLease:
        if self.stored is not None:
            raise BackendConflict("the Lease could not be created just now: there is one")
        return self._put(record)

    async def update(self, stored: StoredLease, record: Record) -> StoredLease:
        if self.stored is None or self.stored.item != stored.item:
            raise BackendConflict("the Lease could not be written just now: it is another than the one that was read")
        return self._put(record)

    def _put(self, record: Record) -> StoredLease:
        self._versions += 1
        self.stored = StoredLease(record, {"version": self._versions})
        return self.stored
