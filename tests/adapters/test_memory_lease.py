from __future__ import annotations

import pytest

from tests.adapters.lease_contract import RECORD, LeaseContract
from vllm_chill.adapters.memory_lease import MemoryLease
from vllm_chill.errors import BackendConflict


class TestMemoryLease(LeaseContract):
    @pytest.fixture
    def store(self) -> MemoryLease:
        return MemoryLease()


async def test_what_is_gone_is_not_written_over() -> None:
    store = MemoryLease()
    made = await store.create(RECORD)
    store.stored = None
    with pytest.raises(BackendConflict):
        await store.update(made, RECORD)
    assert (await store.create(RECORD)).item != made.item
