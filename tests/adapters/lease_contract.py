"""What every store of a Lease must do, as tests: a subclass gives a fresh one in `store`, and pytest runs the suite."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from vllm_chill.core.election import Record
from vllm_chill.errors import BackendConflict
from vllm_chill.ports import LeaseStore

RECORD = Record("a_1", 15, "2026-01-01T12:00:00.000000Z", "2026-01-01T12:00:00.000001Z", 3)


class LeaseContract:
    """Inherit, and give a fixture `store` that is a LeaseStore of a Lease that there is not yet."""

    async def test_there_is_none_until_it_is_made_and_then_it_says_what_was_written(self, store: LeaseStore) -> None:
        assert await store.get() is None
        made = await store.create(RECORD)
        assert made.record == RECORD
        found = await store.get()
        assert found is not None
        assert found.record == RECORD

    async def test_of_two_that_make_it_one_does(self, store: LeaseStore) -> None:
        records = [replace(RECORD, holder=holder) for holder in "abcd"]
        made = await asyncio.gather(*map(store.create, records), return_exceptions=True)
        assert sum(isinstance(each, BackendConflict) for each in made) == 3
        found = await store.get()
        assert found is not None
        assert made[records.index(found.record)] == found

    async def test_of_two_that_write_over_the_same_one_does(self, store: LeaseStore) -> None:
        made = await store.create(RECORD)
        records = [replace(RECORD, holder=holder) for holder in "abcd"]
        wrote = await asyncio.gather(*(store.update(made, each) for each in records), return_exceptions=True)
        assert sum(isinstance(each, BackendConflict) for each in wrote) == 3
        found = await store.get()
        assert found is not None
        assert wrote[records.index(found.record)] == found

    async def test_what_was_written_can_be_written_over_without_being_read(self, store: LeaseStore) -> None:
        held = await store.create(RECORD)
        for second in range(3):
            record = replace(RECORD, renewed=f"2026-01-01T12:00:0{second}.000000Z")
            held = await store.update(held, record)
            assert held.record == record

    async def test_a_lease_can_be_given_back(self, store: LeaseStore) -> None:
        made = await store.create(RECORD)
        given_back = replace(RECORD, holder="", lease_seconds=1)
        await store.update(made, given_back)
        found = await store.get()
        assert found is not None
        assert found.record == given_back
        assert (await store.update(found, RECORD)).record == RECORD
